"""What a compiled `.proto` file says, indexed: every type by its full name, with its comment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from google.protobuf import descriptor_pb2

from polywire.contract import wellknown
from polywire.errors import ContractError

File = descriptor_pb2.FileDescriptorProto
FieldProto = descriptor_pb2.FieldDescriptorProto
Described: TypeAlias = (
    descriptor_pb2.DescriptorProto | descriptor_pb2.EnumDescriptorProto | descriptor_pb2.ServiceDescriptorProto
)
Path = tuple[int, ...]


class Comments:
    """The comments of one file, by where they stand."""

    def __init__(self, file: File) -> None:
        self._texts = {
            tuple(location.path): location.leading_comments or location.trailing_comments
            for location in file.source_code_info.location
            if location.leading_comments or location.trailing_comments
        }

    def lines(self, *path: int) -> list[str]:
        """Without the space that stands after `//`, and without the second star of `/** ... */`."""
        text = self._texts.get(path, "")
        if text.startswith(("*\n", "* ")):
            text = text[1:]
        lines = [line.rstrip() for line in text.splitlines()]
        margin = min((len(line) - len(line.lstrip()) for line in lines if line), default=0)
        lines = [line[margin:].replace("\t", "    ") for line in lines]
        while lines and not lines[0]:
            lines.pop(0)
        while lines and not lines[-1]:
            lines.pop()
        return lines

    def text(self, *path: int) -> str:
        return "\n".join(self.lines(*path))

    def paragraphs(self, *path: int) -> str:
        """Each paragraph on a line of its own."""
        return "\n\n".join(" ".join(part.split()) for part in self.text(*path).split("\n\n"))


@dataclass(frozen=True, eq=False)
class Entry:
    """One message, enum or service."""

    file: File
    comments: Comments
    described: Described
    names: tuple[str, ...]
    """`("Order", "Item")`"""
    path: Path

    @property
    def full_name(self) -> str:
        return ".".join((*([self.file.package] if self.file.package else []), *self.names))

    @property
    def name(self) -> str:
        """Without the package: `Order.Item`."""
        return ".".join(self.names)


class Model:
    """Everything that *files* declare, and whatever of their imports they use."""

    def __init__(self, compiled: descriptor_pb2.FileDescriptorSet, files: Sequence[str]) -> None:
        self.entries: dict[str, Entry] = {}
        by_name = {file.name: file for file in compiled.file}
        for file in compiled.file:
            self.entries.update((entry.full_name, entry) for entry in _entries(file))
        self._used: dict[str, None] = {}
        for name in files:
            _refuse_unless_proto3(by_name[name])
            for entry in _entries(by_name[name]):
                self._use(entry.full_name)

    def of(self, kind: type[Described]) -> list[Entry]:
        """The used messages, enums or services: in the order of the files, nested ones after what they are in."""
        return [
            entry
            for full_name, entry in self.entries.items()
            if full_name in self._used and isinstance(entry.described, kind)
        ]

    def _use(self, full_name: str) -> None:
        waiting = [full_name]
        while waiting:
            full_name = waiting.pop()
            if full_name in self._used or full_name in wellknown.MESSAGES or full_name == "google.protobuf.NullValue":
                continue
            entry = self.entries[full_name]
            _refuse_unless_proto3(entry.file)
            self._used[full_name] = None
            waiting += [name.removeprefix(".") for name in _references(entry.described)]


def _refuse_unless_proto3(file: File) -> None:
    if file.syntax == "proto3":
        return
    if file.syntax == "editions":
        edition = descriptor_pb2.Edition.Name(file.edition).removeprefix("EDITION_")
        spoken = f"edition {edition} of protobuf"
    else:
        spoken = "proto2"
    raise ContractError(
        f"{file.name} is written in {spoken}, but only proto3 can be imported: what an absent field means differs. "
        'Rewrite it with syntax = "proto3" if you can; required fields, groups and extensions have to go.'
    )


def _entries(file: File) -> Iterator[Entry]:
    comments = Comments(file)

    def visit(described: Described, names: tuple[str, ...], path: Path) -> Iterator[Entry]:
        if isinstance(described, descriptor_pb2.DescriptorProto) and _is_map(described):
            return
        names = (*names, described.name)
        yield Entry(file, comments, described, names, path)
        if isinstance(described, descriptor_pb2.DescriptorProto):
            for index, enum in enumerate(described.enum_type):
                yield from visit(enum, names, (*path, 4, index))
            for index, nested in enumerate(described.nested_type):
                yield from visit(nested, names, (*path, 3, index))

    for index, enum in enumerate(file.enum_type):
        yield from visit(enum, (), (5, index))
    for index, message in enumerate(file.message_type):
        yield from visit(message, (), (4, index))
    for index, service in enumerate(file.service):
        yield from visit(service, (), (6, index))


def _references(described: Described) -> Iterator[str]:
    """The types that something uses directly; of a map, those of its values."""
    if isinstance(described, descriptor_pb2.ServiceDescriptorProto):
        for method in described.method:
            yield from (method.input_type, method.output_type)
    elif isinstance(described, descriptor_pb2.DescriptorProto):
        entries = entries_of(described)
        for field in described.field:
            entry = entries.get(field.type_name.rpartition(".")[2]) if is_entry(described, field) else None
            name = entry.field[1].type_name if entry is not None else field.type_name
            if name:
                yield name


def entries_of(message: descriptor_pb2.DescriptorProto) -> dict[str, descriptor_pb2.DescriptorProto]:
    """What maps are made of, by name."""
    return {nested.name: nested for nested in message.nested_type if _is_map(nested)}


def _is_map(message: descriptor_pb2.DescriptorProto) -> bool:
    """Whether a message is the entry of a map.

    Not so where keys are bools, as JSON libraries know no such maps: those are lists of entries, the same on the wire.
    """
    return message.options.map_entry and message.field[0].type != FieldProto.TYPE_BOOL


def is_entry(message: descriptor_pb2.DescriptorProto, field: FieldProto) -> bool:
    """Whether *field* is a map: its type is one of the message's own entries."""
    *_, owner, name = ("", *field.type_name.split("."))
    return field.label == FieldProto.LABEL_REPEATED and owner == message.name and name in entries_of(message)
