"""Compiled `.proto` files, indexed for a comparison: everything by its full name, and the line where it stands."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeAlias, TypeVar

from google.protobuf import descriptor_pb2

FileProto: TypeAlias = descriptor_pb2.FileDescriptorProto
MessageProto: TypeAlias = descriptor_pb2.DescriptorProto
FieldProto: TypeAlias = descriptor_pb2.FieldDescriptorProto
EnumProto: TypeAlias = descriptor_pb2.EnumDescriptorProto
ServiceProto: TypeAlias = descriptor_pb2.ServiceDescriptorProto

T = TypeVar("T")
Path = tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Placed(Generic[T]):
    """A declaration and where it stands."""

    described: T
    full_name: str
    """`shop.v1.Order.Item`"""
    file: FileProto
    path: Path

    @property
    def name(self) -> str:
        """Without the package: `Order.Item`."""
        return self.full_name.removeprefix(f"{self.file.package}.") if self.file.package else self.full_name


Message: TypeAlias = Placed[MessageProto]
Enum: TypeAlias = Placed[EnumProto]
Service: TypeAlias = Placed[ServiceProto]
Extension: TypeAlias = Placed[FieldProto]


@dataclass
class Index:
    """What *files* declare. What they import is there too, for looking up types, but is not compared."""

    files: dict[str, FileProto]
    imported: dict[str, FileProto] = field(default_factory=dict)
    messages: dict[str, Message] = field(default_factory=dict)
    """The entries of maps among them."""
    enums: dict[str, Enum] = field(default_factory=dict)
    services: dict[str, Service] = field(default_factory=dict)
    extensions: dict[str, Extension] = field(default_factory=dict)
    known_messages: dict[str, Message] = field(default_factory=dict)
    """Those of imported files as well."""
    known_enums: dict[str, Enum] = field(default_factory=dict)
    _lines: dict[str, dict[Path, int]] = field(default_factory=dict)

    def line(self, file: FileProto, *path: int) -> int:
        """The line of a declaration or of the nearest one around it, from 1; 0 where the source is not known."""
        if file.name not in self._lines:
            located = file.source_code_info.location
            self._lines[file.name] = {tuple(place.path): place.span[0] + 1 for place in located if place.span}
        lines = self._lines[file.name]
        while path:
            if path in lines:
                return lines[path]
            path = path[:-1]
        return 0


def index_of(files: Sequence[FileProto], imported: Iterable[FileProto] = ()) -> Index:
    """Index *files*; *imported* are others whose types they use."""
    index = Index({file.name: file for file in files})
    for file in files:
        _add(index, file)
    for file in imported:
        if file.name not in index.files:
            index.imported[file.name] = file
            for message in messages_in(file):
                index.known_messages[message.full_name] = message
            for enum in _enums_in(file):
                index.known_enums[enum.full_name] = enum
    return index


def _add(index: Index, file: FileProto) -> None:
    for message in messages_in(file):
        index.messages[message.full_name] = index.known_messages[message.full_name] = message
        for number, extension in enumerate(message.described.extension):
            name = f"{message.full_name}.{extension.name}"
            index.extensions[name] = Placed(extension, name, file, (*message.path, 6, number))
    for enum in _enums_in(file):
        index.enums[enum.full_name] = index.known_enums[enum.full_name] = enum
    for number, service in enumerate(file.service):
        name = joined(file.package, service.name)
        index.services[name] = Placed(service, name, file, (6, number))
    for number, extension in enumerate(file.extension):
        name = joined(file.package, extension.name)
        index.extensions[name] = Placed(extension, name, file, (7, number))


def joined(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def messages_in(file: FileProto) -> Iterator[Message]:
    def visit(described: MessageProto, scope: str, path: Path) -> Iterator[Message]:
        name = joined(scope, described.name)
        yield Placed(described, name, file, path)
        # The entry of a map is written nowhere: it stands where its field stands.
        fields = {field.type_name: index for index, field in enumerate(described.field)}
        for index, nested in enumerate(described.nested_type):
            held = fields.get(f".{name}.{nested.name}", 0)
            yield from visit(nested, name, (*path, 2, held) if nested.options.map_entry else (*path, 3, index))

    for index, message in enumerate(file.message_type):
        yield from visit(message, file.package, (4, index))


def _enums_in(file: FileProto) -> Iterator[Enum]:
    for index, enum in enumerate(file.enum_type):
        yield Placed(enum, joined(file.package, enum.name), file, (5, index))
    for message in messages_in(file):
        for index, enum in enumerate(message.described.enum_type):
            yield Placed(enum, f"{message.full_name}.{enum.name}", file, (*message.path, 4, index))


def is_real_oneof(described: FieldProto) -> bool:
    """Whether a field is in a oneof that was written, not in the one that `optional` is made of."""
    return described.HasField("oneof_index") and not described.proto3_optional


def map_entry(index: Index, described: FieldProto) -> MessageProto | None:
    """The entry of a field that is a map, else None."""
    if described.label != FieldProto.LABEL_REPEATED or described.type != FieldProto.TYPE_MESSAGE:
        return None
    found = index.known_messages.get(described.type_name.removeprefix("."))
    return found.described if found is not None and found.described.options.map_entry else None


def cardinality(index: Index, described: FieldProto, file: FileProto) -> str:
    """`map`, `repeated`, `required`, `optional with explicit presence` or `... implicit presence`."""
    if map_entry(index, described) is not None:
        return "map"
    if described.label == FieldProto.LABEL_REPEATED:
        return "repeated"
    if described.label == FieldProto.LABEL_REQUIRED:
        return "required"
    tracked = file.syntax != "proto3" or described.HasField("oneof_index") or described.HasField("extendee")
    message = described.type in (FieldProto.TYPE_MESSAGE, FieldProto.TYPE_GROUP)
    return f"optional with {'explicit' if tracked or message else 'implicit'} presence"


def type_name(described: FieldProto) -> str:
    """`int64`, or the full name of a message or an enum."""
    if described.type_name:
        return described.type_name.removeprefix(".")
    return FieldProto.Type.Name(described.type).removeprefix("TYPE_").lower()
