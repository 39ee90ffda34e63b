"""Protobuf descriptors made at run time, so that the official runtime parses our messages."""

from __future__ import annotations

import re
import threading
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, duration_pb2, message_factory, timestamp_pb2

from polywire.contract.message import Message
from polywire.contract.schema import (
    EnumSchema,
    FieldSchema,
    Form,
    Member,
    Presence,
    Schema,
    Value,
    closure_of,
    enum_schema_of,
    enums_of,
    schema_of,
)

_Field = descriptor_pb2.FieldDescriptorProto
_TYPES: dict[str, Any] = {
    "double": _Field.TYPE_DOUBLE,
    "float": _Field.TYPE_FLOAT,
    "int64": _Field.TYPE_INT64,
    "uint64": _Field.TYPE_UINT64,
    "int32": _Field.TYPE_INT32,
    "fixed64": _Field.TYPE_FIXED64,
    "fixed32": _Field.TYPE_FIXED32,
    "bool": _Field.TYPE_BOOL,
    "string": _Field.TYPE_STRING,
    "message": _Field.TYPE_MESSAGE,
    "bytes": _Field.TYPE_BYTES,
    "uint32": _Field.TYPE_UINT32,
    "enum": _Field.TYPE_ENUM,
    "sfixed32": _Field.TYPE_SFIXED32,
    "sfixed64": _Field.TYPE_SFIXED64,
    "sint32": _Field.TYPE_SINT32,
    "sint64": _Field.TYPE_SINT64,
}
_WELL_KNOWN = {"timestamp": ".google.protobuf.Timestamp", "duration": ".google.protobuf.Duration"}

# A pool of our own: the names in it never meet those of generated classes that the program may import as well.
_pool = descriptor_pool.DescriptorPool()
_pool.AddSerializedFile(timestamp_pb2.DESCRIPTOR.serialized_pb)
_pool.AddSerializedFile(duration_pb2.DESCRIPTOR.serialized_pb)
_lock = threading.Lock()
_files = 0


def runtime_class(message: type[Message]) -> Any:
    """The protobuf runtime's class for a message; its fields have the names of the wire."""
    cache = message.__polywire__.cache
    if "runtime" not in cache:
        with _lock:
            if "runtime" not in cache:
                _describe(message)
    return cache["runtime"]


def _describe(message: type[Message]) -> None:
    global _files
    closure = closure_of(message)
    known = [inner for inner in closure if "runtime" in inner.__polywire__.cache]
    new = [inner for inner in closure if "runtime" not in inner.__polywire__.cache]
    _files += 1
    file = _File(_files, known, new)
    _pool.AddSerializedFile(file.described.SerializeToString())
    for inner in new:
        descriptor = _pool.FindMessageTypeByName(file.names[inner])
        inner.__polywire__.cache["runtime"] = message_factory.GetMessageClass(descriptor)


class _File:
    """One file for a message and everything inside of it that has not been described yet, as cycles demand.

    Files are numbered and names made unique by that: two classes may well have the same name on the wire.
    """

    def __init__(self, number: int, known: list[type[Message]], new: list[type[Message]]) -> None:
        self.described = descriptor_pb2.FileDescriptorProto(
            name=f"polywire/{number}.proto", package=f"polywire.runtime{number}", syntax="proto3"
        )
        descriptors = {inner: inner.__polywire__.cache["runtime"].DESCRIPTOR for inner in known}
        self.described.dependency.extend([timestamp_pb2.DESCRIPTOR.name, duration_pb2.DESCRIPTOR.name])
        self.described.dependency.extend(sorted({descriptor.file.name for descriptor in descriptors.values()}))
        self.names: dict[Any, str] = {inner: descriptor.full_name for inner, descriptor in descriptors.items()}
        package = self.described.package
        for index, inner in enumerate(new):
            self.names[inner] = f"{package}.{_plain(schema_of(inner).name)}_{index}"
        for index, cls in enumerate(enums_of(new)):
            self.names[cls] = f"{package}.{_plain(cls.__name__)}_enum{index}.Enum"
            self._enum(enum_schema_of(cls))
        for inner in new:
            self._message(schema_of(inner))

    def _enum(self, schema: EnumSchema) -> None:
        # Values are siblings of their enum, so each enum sits in a message of its own.
        around = self.described.message_type.add(name=self.names[schema.enum].split(".")[-2])
        described = around.enum_type.add(name="Enum")
        numbers = [member.number for member in schema.members]
        if 0 not in numbers:
            described.value.add(name=schema.zero_name, number=0)
        if len(set(numbers)) < len(numbers):
            described.options.allow_alias = True
        for member in sorted(schema.members, key=lambda member: member.number != 0):  # zero has to come first
            described.value.add(name=member.name, number=member.number)

    def _message(self, schema: Schema) -> None:
        described = self.described.message_type.add(name=self.names[schema.message].rpartition(".")[2])
        optional: list[descriptor_pb2.FieldDescriptorProto] = []
        for field in schema.fields:
            if field.form is Form.ONEOF:
                self._oneof(described, field)
            elif field.form is Form.MAP:
                self._map(described, field, self.names[schema.message])
            else:
                added = self._field(described, field, field.holds)
                if field.form is Form.LIST:
                    added.label = _Field.LABEL_REPEATED
                elif field.presence is Presence.EXPLICIT and field.holds.proto != "message":
                    optional.append(added)
        for added in optional:  # synthetic oneofs come after the real ones
            added.proto3_optional = True
            added.oneof_index = len(described.oneof_decl)
            described.oneof_decl.add(name=f"_{added.name}")

    def _oneof(self, described: descriptor_pb2.DescriptorProto, field: FieldSchema) -> None:
        index = len(described.oneof_decl)
        described.oneof_decl.add(name=field.name)
        for member in field.members:
            value = member.transparent or Value(kind="message", python=member.message)
            self._field(described, member, value).oneof_index = index

    def _map(self, described: descriptor_pb2.DescriptorProto, field: FieldSchema, owner: str) -> None:
        # protobuf insists on this spelling of the entry's name.
        name = "".join(part[:1].upper() + part[1:] for part in field.name.split("_")) + "Entry"
        entry = described.nested_type.add(name=name)
        entry.options.map_entry = True
        for number, (part, value) in enumerate((("key", field.keyed_by), ("value", field.holds)), start=1):
            self._typed(entry.field.add(name=part, json_name=part, number=number, label=1), value)
        added = described.field.add(name=field.name, json_name=field.json_name, number=field.number, label=3)
        added.type = _Field.TYPE_MESSAGE
        added.type_name = f".{owner}.{name}"

    def _field(
        self, described: descriptor_pb2.DescriptorProto, field: FieldSchema | Member, value: Value
    ) -> descriptor_pb2.FieldDescriptorProto:
        added = described.field.add(name=field.name, json_name=field.json_name, number=field.number, label=1)
        self._typed(added, value)
        return added

    def _typed(self, added: descriptor_pb2.FieldDescriptorProto, value: Value) -> None:
        added.type = _TYPES[value.proto]
        if value.kind in _WELL_KNOWN:
            added.type_name = _WELL_KNOWN[value.kind]
        elif value.kind in ("message", "enum"):
            added.type_name = f".{self.names[value.python]}"


def _plain(name: str) -> str:
    return re.sub(r"\W", "_", name)
