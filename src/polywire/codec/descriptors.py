"""Protobuf descriptors made at run time, so that the official runtime parses our messages."""

from __future__ import annotations

import re
import threading
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, duration_pb2, message_factory, timestamp_pb2

from polywire.contract.export_messages import describe_enum, describe_message
from polywire.contract.message import Message
from polywire.contract.schema import EnumSchema, Schema, closure_of, enum_schema_of, enums_of, schema_of

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
        describe_enum(around.enum_type.add(name="Enum"), schema)

    def _message(self, schema: Schema) -> None:
        described = self.described.message_type.add(name=self.names[schema.message].rpartition(".")[2])
        describe_message(described, schema, self.names)


def _plain(name: str) -> str:
    return re.sub(r"\W", "_", name)
