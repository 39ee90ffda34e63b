"""The rules of the protobuf side: the names and the meaning are those of `buf breaking`."""

from __future__ import annotations

from polywire.contract.breaking.findings import Category, Rule

_FILE: tuple[Category, ...] = ("file",)
_PACKAGE: tuple[Category, ...] = ("package",)
_CODE: tuple[Category, ...] = ("file", "package")
_JSON: tuple[Category, ...] = ("file", "package", "wire_json")
_ALL: tuple[Category, ...] = ("file", "package", "wire_json", "wire")
_BOTH_WIRES: tuple[Category, ...] = ("wire_json", "wire")

_PUT_BACK = "Put it back; mark it `deprecated = true` and remove it in a new package, such as v2."
_NEW_FIELD = "Give the field back what it had, and add a new field with a new number for the new meaning."
_NEW_METHOD = "Leave the method as it was, and add another one beside it."
_OPTION = "Set the option back: generated code of other languages changes its names or its behaviour with it."
_RESERVE = "Put it back, or reserve its number and its name so that nothing else can take them."
_KEEP_RESERVED = "Reserve it again: an old program may still send what it stood for."

FILE_OPTIONS = {
    "cc_enable_arenas": "FILE_SAME_CC_ENABLE_ARENAS",
    "cc_generic_services": "FILE_SAME_CC_GENERIC_SERVICES",
    "csharp_namespace": "FILE_SAME_CSHARP_NAMESPACE",
    "go_package": "FILE_SAME_GO_PACKAGE",
    "java_generic_services": "FILE_SAME_JAVA_GENERIC_SERVICES",
    "java_multiple_files": "FILE_SAME_JAVA_MULTIPLE_FILES",
    "java_outer_classname": "FILE_SAME_JAVA_OUTER_CLASSNAME",
    "java_package": "FILE_SAME_JAVA_PACKAGE",
    "objc_class_prefix": "FILE_SAME_OBJC_CLASS_PREFIX",
    "optimize_for": "FILE_SAME_OPTIMIZE_FOR",
    "php_class_prefix": "FILE_SAME_PHP_CLASS_PREFIX",
    "php_metadata_namespace": "FILE_SAME_PHP_METADATA_NAMESPACE",
    "php_namespace": "FILE_SAME_PHP_NAMESPACE",
    "py_generic_services": "FILE_SAME_PY_GENERIC_SERVICES",
    "ruby_package": "FILE_SAME_RUBY_PACKAGE",
    "swift_prefix": "FILE_SAME_SWIFT_PREFIX",
}
"""The options of a file that have to stay, with their rules."""

_TABLE: tuple[tuple[str, tuple[Category, ...], str, str], ...] = (
    ("FILE_NO_DELETE", _FILE, "Files stay.", "Put the file back, with what was in it."),
    ("FILE_SAME_SYNTAX", _CODE, "A file keeps its syntax.", "Set the syntax back."),
    (
        "FILE_SAME_PACKAGE",
        _ALL,
        "A file keeps its package.",
        "Set the package back, and add a new file for the new one.",
    ),
    *((name, _CODE, f"A file keeps its option {option}.", _OPTION) for option, name in FILE_OPTIONS.items()),
    ("PACKAGE_NO_DELETE", _PACKAGE, "Packages stay.", _PUT_BACK),
    ("SERVICE_NO_DELETE", _FILE, "Services stay in their file.", _PUT_BACK),
    ("PACKAGE_SERVICE_NO_DELETE", _PACKAGE, "Services stay in their package.", _PUT_BACK),
    ("MESSAGE_NO_DELETE", _FILE, "Messages stay in their file.", _PUT_BACK),
    ("PACKAGE_MESSAGE_NO_DELETE", _PACKAGE, "Messages stay in their package.", _PUT_BACK),
    ("ENUM_NO_DELETE", _FILE, "Enums stay in their file.", _PUT_BACK),
    ("PACKAGE_ENUM_NO_DELETE", _PACKAGE, "Enums stay in their package.", _PUT_BACK),
    ("EXTENSION_NO_DELETE", _FILE, "Extensions stay in their file.", _PUT_BACK),
    ("PACKAGE_EXTENSION_NO_DELETE", _PACKAGE, "Extensions stay in their package.", _PUT_BACK),
    ("RPC_NO_DELETE", _CODE, "Methods stay.", _PUT_BACK),
    ("RPC_SAME_REQUEST_TYPE", _ALL, "A method keeps the type of its request.", _NEW_METHOD),
    ("RPC_SAME_RESPONSE_TYPE", _ALL, "A method keeps the type of its response.", _NEW_METHOD),
    ("RPC_SAME_CLIENT_STREAMING", _ALL, "A method goes on taking one message, or a stream.", _NEW_METHOD),
    ("RPC_SAME_SERVER_STREAMING", _ALL, "A method goes on answering one message, or a stream.", _NEW_METHOD),
    (
        "RPC_SAME_IDEMPOTENCY_LEVEL",
        _ALL,
        "A method keeps its idempotency.",
        "Set idempotent= back, or routes to be read with GET: old clients retry by what they knew of the method.",
    ),
    ("MESSAGE_SAME_REQUIRED_FIELDS", _ALL, "No field becomes required or stops being so.", "Leave it optional."),
    (
        "MESSAGE_NO_REMOVE_STANDARD_DESCRIPTOR_ACCESSOR",
        _CODE,
        "Messages keep their descriptor accessor.",
        "Remove the option no_standard_descriptor_accessor.",
    ),
    ("MESSAGE_SAME_JSON_FORMAT", _JSON, "Messages keep their JSON form.", "Keep the file's syntax."),
    ("ENUM_SAME_JSON_FORMAT", _JSON, "Enums keep their JSON form.", "Keep the file's syntax."),
    ("ENUM_SAME_TYPE", _CODE, "Enums stay open, or closed.", "Keep the file's syntax."),
    ("RESERVED_MESSAGE_NO_DELETE", _ALL, "What is reserved in a message stays reserved.", _KEEP_RESERVED),
    ("RESERVED_ENUM_NO_DELETE", _ALL, "What is reserved in an enum stays reserved.", _KEEP_RESERVED),
    ("EXTENSION_MESSAGE_NO_DELETE", _CODE, "Ranges for extensions stay.", "Put the range back."),
    ("ONEOF_NO_DELETE", _CODE, "Oneofs stay.", "Put the oneof back, with its members."),
    ("FIELD_NO_DELETE", _CODE, "Fields stay.", "Put the field back and stop using it: `deprecated = true`."),
    ("FIELD_NO_DELETE_UNLESS_NUMBER_RESERVED", _BOTH_WIRES, "No number of a field becomes free.", _RESERVE),
    ("FIELD_NO_DELETE_UNLESS_NAME_RESERVED", ("wire_json",), "No name of a field becomes free.", _RESERVE),
    ("FIELD_SAME_NAME", _JSON, "A field keeps its name.", "Keep the name: in Python, Field(name=...) keeps it."),
    (
        "FIELD_SAME_JSON_NAME",
        _JSON,
        "A field keeps its name in JSON.",
        "Keep it with json_name; in Python with Field(json_name=...).",
    ),
    ("FIELD_SAME_TYPE", _CODE, "A field keeps its type.", _NEW_FIELD),
    (
        "FIELD_WIRE_JSON_COMPATIBLE_TYPE",
        ("wire_json",),
        "A field keeps a type that old bytes and JSON fit.",
        _NEW_FIELD,
    ),
    ("FIELD_WIRE_COMPATIBLE_TYPE", ("wire",), "A field keeps a type that old bytes fit.", _NEW_FIELD),
    ("FIELD_SAME_CARDINALITY", _CODE, "A field stays single, optional, a list or a map.", _NEW_FIELD),
    (
        "FIELD_WIRE_JSON_COMPATIBLE_CARDINALITY",
        ("wire_json",),
        "A field stays single, a list or a map.",
        _NEW_FIELD,
    ),
    ("FIELD_WIRE_COMPATIBLE_CARDINALITY", ("wire",), "A field stays single, or repeated.", _NEW_FIELD),
    ("FIELD_SAME_DEFAULT", _ALL, "A field keeps its default.", "Set the default back."),
    ("FIELD_SAME_ONEOF", _ALL, "A field stays in its oneof, or outside.", _NEW_FIELD),
    ("FIELD_SAME_JSTYPE", _CODE, "A field keeps its option jstype.", _OPTION),
    ("FIELD_SAME_CPP_STRING_TYPE", _CODE, "A field keeps its type in C++.", _OPTION),
    ("FIELD_SAME_UTF8_VALIDATION", _CODE, "Texts go on being checked for UTF-8, or not.", "Keep the file's syntax."),
    ("FIELD_SAME_JAVA_UTF8_VALIDATION", _CODE, "Texts go on being checked in Java, or not.", _OPTION),
    ("ENUM_VALUE_NO_DELETE", _CODE, "Values of an enum stay.", "Put the value back: `deprecated = true`."),
    ("ENUM_VALUE_NO_DELETE_UNLESS_NUMBER_RESERVED", _BOTH_WIRES, "No number of a value becomes free.", _RESERVE),
    ("ENUM_VALUE_NO_DELETE_UNLESS_NAME_RESERVED", ("wire_json",), "No name of a value becomes free.", _RESERVE),
    (
        "ENUM_VALUE_SAME_NAME",
        _JSON,
        "The values of an enum keep their names.",
        "Keep the name: in Python, @enum_form(names=...) keeps it; an alias may be added beside it.",
    ),
)

PROTOBUF_RULES: dict[str, Rule] = {
    name: Rule(name=name, side="protobuf", purpose=purpose, way_out=way_out, categories=frozenset(categories))
    for name, categories, purpose, way_out in _TABLE
}
