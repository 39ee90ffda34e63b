"""The rules of the other sides: ProtoJSON, REST, and what a contract in Python promises on every wire."""

from __future__ import annotations

from polywire.contract.breaking.findings import Rule, Side

_ADD = "Put it back, and add the new one beside it."
_NEW_FIELD = "Leave the field as it was, and add another one for the new meaning."
_NEW_ROUTE = "Put the route back beside the new one: an @rpc takes several."
_DEFAULT = "Give it a default, or keep the old one optional and add a new method that asks for it."

_TABLE: tuple[tuple[Side, str, str, str], ...] = (
    (
        "protojson",
        "PROTOJSON_FIELD_NO_DELETE",
        "A name that JSON had stays, unless it is reserved.",
        "Put the name back: Field(json_name=...) keeps it while the field is renamed. If nobody uses it, reserve it.",
    ),
    (
        "protojson",
        "PROTOJSON_FIELD_SAME_FORM",
        "A name keeps the form of its value in JSON: a number, text, a list.",
        _NEW_FIELD,
    ),
    (
        "protojson",
        "PROTOJSON_FIELD_SAME_PRESENCE",
        "A name that is not there goes on meaning zero, or nothing.",
        "Leave the default as it was: JSON leaves zeros out, and so zero and None would be mistaken for each other.",
    ),
    (
        "protojson",
        "PROTOJSON_FIELD_SAME_ONEOF",
        "Names that exclude each other go on doing so, and no others.",
        _NEW_FIELD,
    ),
    (
        "protojson",
        "PROTOJSON_ENUM_VALUE_NO_DELETE",
        "A name of a value stays, unless it is reserved.",
        "Put the name back: @enum_form(names=...) keeps it. If nobody uses it, reserve it.",
    ),
    ("rest", "REST_ROUTE_NO_DELETE", "What could be called by verb and path still can.", _NEW_ROUTE),
    (
        "rest",
        "REST_ROUTE_SAME_STREAMING",
        "A route goes on taking and answering one JSON value, or lines of them.",
        "Leave the method as it was, and add another one with a route of its own.",
    ),
    ("rest", "REST_PATH_PARAMETER_SAME_TYPE", "A part of a path keeps a type that old paths fit.", _NEW_ROUTE),
    (
        "rest",
        "REST_QUERY_PARAMETER_NO_DELETE",
        "What was read from the query is read from there still; else it is ignored without a word.",
        "Leave the parameter in the query: body= says which field is the body, all others stay.",
    ),
    ("rest", "REST_QUERY_PARAMETER_SAME_TYPE", "A parameter keeps a type that old queries fit.", _ADD),
    ("rest", "REST_HEADER_NO_DELETE", "What was read from a header is read from there still.", "Put headers= back."),
    (
        "rest",
        "REST_BODY_SAME_FIELD",
        "The body of a request stays what it was: the whole message, one field, or nothing.",
        "Put body= back, or add a route of another path.",
    ),
    (
        "rest",
        "REST_REQUEST_FIELD_NO_DELETE",
        "A field of a body is read still, unless its name is reserved; else it is ignored without a word.",
        "Put the field back. If ignoring it is right, reserve its name.",
    ),
    ("rest", "REST_REQUEST_FIELD_SAME_TYPE", "A field of a request keeps a type that old ones fit.", _NEW_FIELD),
    ("rest", "REST_REQUEST_FIELD_REQUIRED", "No request has to have more than before.", _DEFAULT),
    ("rest", "REST_REQUEST_FIELD_NULLABLE", "What could be null in a request still can.", "Put `| None` back."),
    (
        "rest",
        "REST_RESPONSE_FIELD_NO_DELETE",
        "A field of an answer stays, unless those who read it have a default and its name is reserved.",
        "Put the field back and go on filling it in.",
    ),
    ("rest", "REST_RESPONSE_FIELD_SAME_TYPE", "A field of an answer fits who read it before.", _NEW_FIELD),
    ("rest", "REST_RESPONSE_FIELD_NULLABLE", "What never was null in an answer never is.", "Take `| None` out again."),
    ("rest", "REST_RESPONSE_SAME_BODY", "An answer stays a message, one of its fields, or nothing.", _NEW_ROUTE),
    ("rest", "REST_STATUS_SAME", "A success keeps its status.", "Put status= back."),
    (
        "rest",
        "REST_RESPONSE_HEADER_NO_DELETE",
        "An answer keeps its headers, `Location` among them.",
        "Put response_headers= or location= back.",
    ),
    (
        "rest",
        "REST_ENUM_VALUE_NO_DELETE",
        "A value that JSON had for an enum stays.",
        "Put the member back with the value that it had.",
    ),
    (
        "rest",
        "REST_ONEOF_SAME_TAGS",
        "The members of a union keep their tags, and the name of the tag.",
        "Put the tag back: class Card(Message, tag='card').",
    ),
    (
        "rest",
        "REST_ERROR_SAME_STATUS",
        "An error of the contract keeps its status.",
        "Put http_status= of the error back, or derive another error.",
    ),
    (
        "contract",
        "CONTRACT_ERROR_NO_DELETE",
        "A method goes on raising the errors of the contract that it listed.",
        "List it in raises= again, and raise it where it was raised: callers wait for it by its class.",
    ),
    (
        "contract",
        "CONTRACT_ERROR_SAME_CODE",
        "An error of the contract keeps its canonical code, by which callers retry and translate.",
        "Derive it from the class that it was derived from, and add another error for the new code.",
    ),
    (
        "contract",
        "CONTRACT_TASK_NO_DELETE",
        "A task stays for as long as messages of it may wait.",
        "Put it back until its queue is empty. @task(name=...) keeps the name of a method that was renamed.",
    ),
    (
        "contract",
        "CONTRACT_TASK_SAME_QUEUE",
        "The messages of a task that wait are where its workers look.",
        "Put queue= back, or add another task for the new queue and remove this one once its queue is empty.",
    ),
    (
        "contract",
        "CONTRACT_TASK_SAME_BODY",
        "Messages of a task that wait can be read, and so can results by those who wait for them.",
        "Add a field with a default, or another task for the new message.",
    ),
    (
        "contract",
        "CONTRACT_FIELD_REQUIRED",
        "No request has to have a message or a union on any wire that it did not need before.",
        _DEFAULT,
    ),
    (
        "contract",
        "CONTRACT_REQUEST_LIMITS",
        "What a request could hold, it still can: no limit gets tighter.",
        "Put the limit back, or check it in the handler for new clients only.",
    ),
    (
        "contract",
        "CONTRACT_RESPONSE_LIMITS",
        "What an answer holds fits those who read it before: no limit gets looser, as clients check answers too.",
        "Loosen the limit in one release, once all clients have it send more.",
    ),
    (
        "contract",
        "CONTRACT_FIELD_SAME_DEFAULT",
        "What is not said goes on meaning the same.",
        "Put the default back, and let callers say the new one.",
    ),
)

WIRE_RULES: dict[str, Rule] = {
    name: Rule(name=name, side=side, purpose=purpose, way_out=way_out) for side, name, purpose, way_out in _TABLE
}
