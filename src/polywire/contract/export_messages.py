"""Messages and enums as protobuf descriptors: the one place where a schema becomes what protoc would make of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf import descriptor_pb2

from polywire.contract.schema import EnumSchema, FieldSchema, Form, Member, Presence, Schema, Value

DescriptorProto = descriptor_pb2.DescriptorProto
FieldDescriptorProto = descriptor_pb2.FieldDescriptorProto

TYPES: dict[str, FieldDescriptorProto.Type.ValueType] = {
    "double": FieldDescriptorProto.TYPE_DOUBLE,
    "float": FieldDescriptorProto.TYPE_FLOAT,
    "int64": FieldDescriptorProto.TYPE_INT64,
    "uint64": FieldDescriptorProto.TYPE_UINT64,
    "int32": FieldDescriptorProto.TYPE_INT32,
    "fixed64": FieldDescriptorProto.TYPE_FIXED64,
    "fixed32": FieldDescriptorProto.TYPE_FIXED32,
    "bool": FieldDescriptorProto.TYPE_BOOL,
    "string": FieldDescriptorProto.TYPE_STRING,
    "message": FieldDescriptorProto.TYPE_MESSAGE,
    "bytes": FieldDescriptorProto.TYPE_BYTES,
    "uint32": FieldDescriptorProto.TYPE_UINT32,
    "enum": FieldDescriptorProto.TYPE_ENUM,
    "sfixed32": FieldDescriptorProto.TYPE_SFIXED32,
    "sfixed64": FieldDescriptorProto.TYPE_SFIXED64,
    "sint32": FieldDescriptorProto.TYPE_SINT32,
    "sint64": FieldDescriptorProto.TYPE_SINT64,
}
"""The types of fields, as schemas and `.proto` files spell them."""
WELL_KNOWN = {"timestamp": "google.protobuf.Timestamp", "duration": "google.protobuf.Duration"}


def describe_enum(described: descriptor_pb2.EnumDescriptorProto, schema: EnumSchema) -> None:
    """Fill in the values of an enum: zero first, as proto3 demands, the others as declared."""
    numbers = [member.number for member in schema.members]
    if 0 not in numbers:
        described.value.add(name=schema.zero_name, number=0)
    if len(set(numbers)) < len(numbers):
        described.options.allow_alias = True
    for member in sorted(schema.members, key=lambda member: member.number != 0):
        described.value.add(name=member.name, number=member.number)


def describe_message(described: DescriptorProto, schema: Schema, names: Mapping[Any, str]) -> None:
    """Fill in the fields of a message. *names* has the full names of the messages and enums inside, and its own."""
    optional: list[FieldDescriptorProto] = []
    for field in schema.fields:
        if field.form is Form.ONEOF:
            _describe_oneof(described, field, names)
        elif field.form is Form.MAP:
            _describe_map(described, field, names, names[schema.message])
        else:
            added = _describe_field(described, field, field.holds, names)
            if field.form is Form.LIST:
                added.label = FieldDescriptorProto.LABEL_REPEATED
            elif field.presence is Presence.EXPLICIT and field.holds.proto != "message":
                optional.append(added)
    for added in optional:  # their oneofs, which only tell absent from zero, come after the real ones
        added.proto3_optional = True
        added.oneof_index = len(described.oneof_decl)
        described.oneof_decl.add(name=_synthetic_name(described, added.name))


def _synthetic_name(described: DescriptorProto, field: str) -> str:
    taken = {other.name for other in described.field} | {oneof.name for oneof in described.oneof_decl}
    name = f"_{field}"
    while name in taken:
        name = f"X{name}"
    return name


def _describe_oneof(described: DescriptorProto, field: FieldSchema, names: Mapping[Any, str]) -> None:
    index = len(described.oneof_decl)
    described.oneof_decl.add(name=field.name)
    for member in field.members:
        value = member.transparent or Value(kind="message", python=member.message)
        _describe_field(described, member, value, names).oneof_index = index


def _describe_map(described: DescriptorProto, field: FieldSchema, names: Mapping[Any, str], owner: str) -> None:
    # protobuf insists on this spelling of the entry's name.
    name = "".join(part[:1].upper() + part[1:] for part in field.name.split("_")) + "Entry"
    entry = described.nested_type.add(name=name)
    entry.options.map_entry = True
    for number, (part, value) in enumerate((("key", field.keyed_by), ("value", field.holds)), start=1):
        added = entry.field.add(name=part, json_name=part, number=number, label=FieldDescriptorProto.LABEL_OPTIONAL)
        _set_type(added, value, names)
    described.field.add(
        name=field.name,
        json_name=field.json_name,
        number=field.number,
        label=FieldDescriptorProto.LABEL_REPEATED,
        type=FieldDescriptorProto.TYPE_MESSAGE,
        type_name=f".{owner}.{name}",
    )


def _describe_field(
    described: DescriptorProto, field: FieldSchema | Member, value: Value, names: Mapping[Any, str]
) -> FieldDescriptorProto:
    added = described.field.add(
        name=field.name, json_name=field.json_name, number=field.number, label=FieldDescriptorProto.LABEL_OPTIONAL
    )
    _set_type(added, value, names)
    return added


def _set_type(added: FieldDescriptorProto, value: Value, names: Mapping[Any, str]) -> None:
    added.type = TYPES[value.proto]
    if value.kind in WELL_KNOWN:
        added.type_name = f".{WELL_KNOWN[value.kind]}"
    elif value.kind in ("message", "enum"):
        added.type_name = f".{names[value.python]}"
