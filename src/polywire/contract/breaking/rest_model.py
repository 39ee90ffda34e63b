"""What a REST client knows of a contract: its routes, and where each field of a request comes from."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from google.protobuf import descriptor_pb2

from polywire.contract.breaking.contracts import Contracts
from polywire.contract.breaking.described import FieldProto, Message, is_real_oneof, map_entry, type_name
from polywire.contract.breaking.protobuf_types import kind_of
from polywire.contract.export_http import rule_in, wire_path
from polywire.contract.fields import NO_CONSTRAINTS, Constraints
from polywire.contract.rest import Route
from polywire.contract.rpc import Rpc
from polywire.contract.schema import FieldSchema, Form, Presence, Value

UNKNOWN: Any = object()
"""What a `.proto` file does not say."""
_VARIABLE = re.compile(r"\{([^{}=]+)(?:=([^{}]*))?\}")
_MAX_DEPTH = 5
"""Names between the dots of a query key."""
_MAX_PARAMETERS = 2000
"""Of one route: messages in messages multiply, and nobody writes so many."""
_WELL_KNOWN = {"google.protobuf.Timestamp": "timestamp", "google.protobuf.Duration": "duration"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Holds:
    """One value: the field's, or an element's, or that of a map."""

    kind: str
    """`int64`, `string`, `enum`, `message`, `timestamp`, ..., and `decimal` and `uuid` where Python says so."""
    type: str = ""
    """The full name of a message or an enum."""
    constraints: Constraints = NO_CONSTRAINTS


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonField:
    """A field as REST's JSON has it; UNKNOWN where only Python would say."""

    name: str
    form: Form
    holds: Holds | None
    """None for a oneof."""
    key: Holds | None = None
    required: Any = UNKNOWN
    needed_everywhere: Any = UNKNOWN
    """Whether it has to be there on every wire."""
    nullable: Any = UNKNOWN
    default: Any = UNKNOWN
    constraints: Constraints = NO_CONSTRAINTS
    """Of the list or map."""
    members: Mapping[str, str] = field(default_factory=dict)
    """Of a oneof: the full names of its messages, by tag; empty where the tags are not known."""
    tag_field: str = ""


def fields_of(contracts: Contracts, message: str) -> dict[str, JsonField]:
    """The fields of a message by their name in REST's JSON; none for a message that is not known."""
    if message not in contracts.known:
        contracts.known[message] = _read(contracts, message)
    found: dict[str, JsonField] = contracts.known[message]
    return found


def _read(contracts: Contracts, message: str) -> dict[str, JsonField]:
    schema = contracts.schemas.get(message)
    if schema is not None:
        return {field.name: _of_schema(field, contracts) for field in schema.fields}
    placed = contracts.index.known_messages.get(message)
    return _of_descriptor(placed, contracts) if placed is not None else {}


def reserved_names(contracts: Contracts, message: str) -> set[str]:
    placed = contracts.index.known_messages.get(message)
    return set(placed.described.reserved_name) if placed is not None else set()


def _of_schema(field: FieldSchema, contracts: Contracts) -> JsonField:
    common: dict[str, Any] = {
        "name": field.name,
        "form": field.form,
        "required": field.required,
        "needed_everywhere": field.presence is Presence.REQUIRED,
        "nullable": field.nullable,
        "default": field.default_value(),
        "constraints": field.constraints,
    }
    if field.form is Form.ONEOF:
        members = {str(member.tag): _full_name(member.message) for member in field.members}
        tags = {member.message.__struct_config__.tag_field or "type" for member in field.members}
        return JsonField(**common, holds=None, members=members, tag_field=min(tags, default=""))
    key = None if field.key is None else _holds(field.key, contracts)
    return JsonField(**common, holds=_holds(field.holds, contracts), key=key)


def _full_name(message: Any) -> str:
    declaration = message.__polywire__
    return ".".join(part for part in (declaration.package or "", declaration.name) if part)


def _holds(value: Value, contracts: Contracts) -> Holds:
    name = ""
    if value.is_message:
        name = _full_name(value.python)
    elif value.kind == "enum":
        name = next((name for name, schema in contracts.enums.items() if schema.enum is value.python), "")
    return Holds(kind=value.kind, type=name, constraints=value.constraints)


def _of_descriptor(message: Message, contracts: Contracts) -> dict[str, JsonField]:
    fields: dict[str, JsonField] = {}
    for described in message.described.field:
        if is_real_oneof(described):
            name = message.described.oneof_decl[described.oneof_index].name
            fields[name] = JsonField(name=name, form=Form.ONEOF, holds=None)
            continue
        entry = map_entry(contracts.index, described)
        if entry is not None:
            key, value = (_described(part) for part in entry.field)
            fields[described.name] = JsonField(name=described.name, form=Form.MAP, holds=value, key=key)
            continue
        form = Form.LIST if described.label == FieldProto.LABEL_REPEATED else Form.ONE
        fields[described.name] = JsonField(name=described.name, form=form, holds=_described(described))
    return fields


def _described(described: FieldProto) -> Holds:
    name = type_name(described) if described.type_name else ""
    return Holds(kind=_WELL_KNOWN.get(name) or kind_of(described), type=name)


@dataclass(frozen=True, slots=True, kw_only=True)
class RestRoute:
    """One route of a method."""

    verb: str
    path: str
    """As written, `/orders/{order_id}`."""
    shape: str
    """Without the names, as a client knows it: `/orders/{}`."""
    method: str
    """`shop.v1.Orders/Find`"""
    variables: tuple[str, ...]
    """The fields in the path, dotted, in order."""
    body: str
    """`*`, a field, or empty."""
    response_body: str
    request: str
    """Full names of messages; google.protobuf.Empty where there is none."""
    response: str
    takes_stream: bool
    answers_stream: bool
    headers: Any = UNKNOWN
    """Header to field."""
    response_headers: Any = UNKNOWN
    """The headers of an answer, in lower case."""
    status: Any = UNKNOWN

    @property
    def text(self) -> str:
        return f"{self.verb} {self.path}"

    def query(self, contracts: Contracts) -> dict[str, JsonField]:
        """What can be said in the query, by its dotted name."""
        if self.body == "*" or self.takes_stream:
            return {}
        bound = {*self.variables, *((self.headers or {}).values() if self.headers is not UNKNOWN else ())}
        found = {}
        for name, parameter in islice(_flat(contracts, self.request, "", (self.request,)), _MAX_PARAMETERS):
            if name not in bound and name.split(".")[0] != self.body:
                found[name] = parameter
        return found


def _flat(contracts: Contracts, message: str, prefix: str, above: tuple[str, ...]) -> Iterator[tuple[str, JsonField]]:
    for name, parameter in fields_of(contracts, message).items():
        holds = parameter.holds if parameter.form is Form.ONE else None
        inner = holds.type if holds is not None and holds.kind == "message" else ""
        if not inner:
            yield prefix + name, parameter
        elif inner not in above and len(above) < _MAX_DEPTH:
            yield from _flat(contracts, inner, f"{prefix}{name}.", (*above, inner))


def routes_of(contracts: Contracts) -> list[RestRoute]:
    """Every route, in order."""
    found = []
    for name, service in contracts.index.services.items():
        for method in service.described.method:
            rule = rule_in(method.options)
            rpc = contracts.rpcs.get(f"{name}/{method.name}")
            bindings = [rule, *rule.additional_bindings] if rule is not None else []
            for index, binding in enumerate(bindings):
                if binding.WhichOneof("pattern") is not None:
                    route = rpc.routes[index] if rpc is not None else None
                    found.append(_route(f"{name}/{method.name}", method, binding, rpc, route))
    return found


def _route(
    name: str, method: descriptor_pb2.MethodDescriptorProto, binding: Any, rpc: Rpc | None, route: Route | None
) -> RestRoute:
    pattern = binding.WhichOneof("pattern")
    if pattern == "custom":
        verb, path = binding.custom.kind, binding.custom.path
    else:
        verb, path = pattern.upper(), getattr(binding, pattern)
    said: dict[str, Any] = {}
    if rpc is not None and route is not None:
        said["headers"] = {header.lower(): wire_path(rpc.request, field) for field, header in route.headers.items()}
        said["response_headers"] = {header.lower() for header in route.response_headers.values()} | (
            {"location"} if route.location is not None else set()
        )
        said["status"] = route.status or (204 if rpc.response is None else 200)
    return RestRoute(
        verb=verb,
        path=path,
        shape=_VARIABLE.sub(lambda match: "{" + (match[2] if match[2] not in (None, "*") else "") + "}", path),
        method=name,
        variables=tuple(match[1] for match in _VARIABLE.finditer(path)),
        body=binding.body,
        response_body=binding.response_body,
        request=method.input_type.removeprefix("."),
        response=method.output_type.removeprefix("."),
        takes_stream=method.client_streaming,
        answers_stream=method.server_streaming,
        **said,
    )


def field_at(contracts: Contracts, message: str, path: str) -> JsonField | None:
    """The field at a dotted path."""
    found: JsonField | None = None
    for part in path.split("."):
        found = fields_of(contracts, message).get(part)
        if found is None:
            return None
        message = found.holds.type if found.holds is not None else ""
    return found
