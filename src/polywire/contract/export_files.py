"""Which message, enum and service belongs into which file, and what each file says."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from google.protobuf import descriptor_pb2

from polywire.contract.error_comments import error_comment
from polywire.contract.export_http import ANNOTATIONS, rule_of, set_rule
from polywire.contract.export_messages import describe_enum, describe_message
from polywire.contract.export_standard import EMPTY, STANDARD_TYPES
from polywire.contract.failures import detail_of, errors_of
from polywire.contract.message import Message
from polywire.contract.rpc import Rpc, Service
from polywire.contract.schema import EnumSchema, Form, Schema, closure_of, enum_schema_of, enums_of, schema_of
from polywire.errors import CallError, ContractError

FileProto = descriptor_pb2.FileDescriptorProto
_MESSAGES = FileProto.MESSAGE_TYPE_FIELD_NUMBER
_ENUMS = FileProto.ENUM_TYPE_FIELD_NUMBER
_SERVICES = FileProto.SERVICE_FIELD_NUMBER
_METHODS = descriptor_pb2.ServiceDescriptorProto.METHOD_FIELD_NUMBER
_FIELDS = descriptor_pb2.DescriptorProto.FIELD_FIELD_NUMBER
_ONEOFS = descriptor_pb2.DescriptorProto.ONEOF_DECL_FIELD_NUMBER
_NESTED = descriptor_pb2.DescriptorProto.NESTED_TYPE_FIELD_NUMBER
_NESTED_ENUMS = descriptor_pb2.DescriptorProto.ENUM_TYPE_FIELD_NUMBER
_VERSION = re.compile(r"v\d+((alpha|beta|p)\d*)*\Z")
_COMMENT_WIDTH = 96
_LAID_OUT = re.compile(r"\s|[-*+|>`]|\d+[.)] ")
_IMPLIED = {"decimal": "A decimal number, as text.", "uuid": "A UUID, as text."}

Path = tuple[int, ...]
"""Where something stands in a file, as source info counts it."""


def file_name(package: str) -> str:
    """`shop/v1/shop.proto` for `shop.v1`: the directory is the package, as buf and most languages' tools want it."""
    if not package:
        return "contracts.proto"
    parts = package.split(".")
    named = [part for part in parts if not _VERSION.match(part)] or parts
    return f"{'/'.join(parts)}/{named[-1].lower()}.proto"


def dotted(*parts: str) -> str:
    return ".".join(part for part in parts if part)


class Files:
    """All files of one export. Raises ContractError where two things would have one name."""

    def __init__(
        self,
        services: Sequence[Service],
        messages: Sequence[type[Message]],
        enums: Sequence[type[enum.Enum]],
        *,
        http: bool,
    ) -> None:
        self.names: dict[Any, str] = {}
        """The full name of every message and enum."""
        self.homes: dict[str, str] = {}
        """The file of every full name."""
        self.raised_by: dict[type[CallError], list[str]] = {}
        """The rpcs that raise each error, by their full names."""
        self.http = http
        self._taken: dict[str, str] = {}
        self._files: dict[str, File] = {}
        for service in services:
            for error, rpcs in errors_of(service).items():
                self.raised_by.setdefault(error, []).extend(rpcs)
        used = [message for service in services for message in _messages_of(service)]
        used += [detail_of(error) for error in self.raised_by]
        for message in closure_of(*used, *messages):
            if not schema_of(message).transparent:
                self._place_message(schema_of(message))
        for cls, package in _packages_of_enums([*used, *messages], enums):
            self._place_enum(enum_schema_of(cls), package)
        for service in services:
            self._take(service.full_name, "contract", service.contract)
            self._file(service.package).services.append(service)
        for file in self._files.values():
            file.describe(self)

    def _place_message(self, schema: Schema) -> None:
        self.names[schema.message] = schema.full_name
        if schema.full_name not in STANDARD_TYPES:
            self._take(schema.full_name, "message", schema.message)
            file = self._file(schema.package)
            file.root.at(schema.name).schema = schema
            self.homes[schema.full_name] = file.described.name

    def _place_enum(self, schema: EnumSchema, package: str) -> None:
        full_name = dotted(package, schema.name)
        self.names[schema.enum] = full_name
        if full_name not in STANDARD_TYPES:
            self._take(full_name, "enum", schema.enum)
            file = self._file(package)
            file.root.at(schema.name.rpartition(".")[0]).enums.append(schema)
            self.homes[full_name] = file.described.name

    def _take(self, full_name: str, what: str, cls: type) -> None:
        mine = f"the {what} {cls.__module__}.{cls.__qualname__}"
        other = self._taken.setdefault(full_name, mine)
        if other != mine:
            raise ContractError(
                f"{other[0].upper()}{other[1:]} and {mine} are both called {full_name!r} on the wire. "
                "Give one of them another name=."
            )

    def _file(self, package: str) -> File:
        if package not in self._files:
            self._files[package] = File(package)
        return self._files[package]

    def in_order(self) -> Iterator[File]:
        """Each file after those that it imports."""
        by_name = {file.described.name: file for file in self._files.values()}
        done: set[str] = set()

        def visit(file: File, above: tuple[str, ...]) -> Iterator[File]:
            name = file.described.name
            if name in above:
                raise _circle([by_name[other].package for other in above[above.index(name) :]])
            if name not in done:
                for dependency in file.described.dependency:
                    if dependency in by_name:
                        yield from visit(by_name[dependency], (*above, name))
                done.add(name)
                yield file

        for file in sorted(self._files.values(), key=lambda file: file.described.name):
            if file.described.name not in done:
                yield from visit(file, ())


def _circle(packages: list[str]) -> ContractError:
    named = " and ".join(sorted(package or "(none)" for package in packages))
    return ContractError(
        f"The packages {named} use messages of each other, but files must not import each other in a circle. "
        "Move what they share into a package of its own, with package=."
    )


def _messages_of(service: Service) -> Iterator[type[Message]]:
    for rpc in service.rpcs.values():
        if rpc.request is not None:
            yield rpc.request
        if rpc.response is not None:
            yield rpc.response


def _packages_of_enums(
    messages: Sequence[type[Message]], enums: Iterable[type[enum.Enum]]
) -> Iterator[tuple[type[enum.Enum], str]]:
    """Every enum with its package: its own, or that of the only package whose messages use it."""
    users: dict[type[enum.Enum], dict[str, type[Message]]] = {cls: {} for cls in enums}
    for message in closure_of(*messages):
        for cls in enums_of([message]):
            users.setdefault(cls, {}).setdefault(schema_of(message).package, message)
    for cls, found in users.items():
        declared = enum_schema_of(cls).package
        if declared is None and len(found) > 1:
            (first, one), (second, other) = list(found.items())[:2]
            raise ContractError(
                f"{cls.__qualname__} has no package of its own and is used by {one.__qualname__} and by "
                f"{other.__qualname__}, which are in different packages ({first or 'none'}, {second or 'none'}). "
                f"Say which it belongs to: @enum_form(package={first!r})."
            )
        yield cls, declared if declared is not None else next(iter(found), "")


@dataclasses.dataclass(slots=True)
class _Node:
    """A message and what is nested in it; without a schema it only is a name around others."""

    schema: Schema | None = None
    nested: dict[str, _Node] = dataclasses.field(default_factory=dict)
    enums: list[EnumSchema] = dataclasses.field(default_factory=list)

    def at(self, path: str) -> _Node:
        node = self
        for part in path.split(".") if path else ():
            node = node.nested.setdefault(part, _Node())
        return node


class File:
    """One file: what belongs into it, and then its descriptor."""

    def __init__(self, package: str) -> None:
        self.package = package
        self.root = _Node()
        self.services: list[Service] = []
        self.described = FileProto(name=file_name(package), package=package or None, syntax="proto3")
        self._needed: set[str] = set()

    def describe(self, files: Files) -> None:
        described = self.described
        for service in self.services:
            self._service(service, (_SERVICES, len(described.service)), files)
        for name, node in self.root.nested.items():
            path = _MESSAGES, len(described.message_type)
            self._message(described.message_type.add(name=name), node, path, dotted(self.package, name), files)
        for schema in self.root.enums:
            self._enum(described.enum_type.add(), schema, (_ENUMS, len(described.enum_type) - 1))
        described.dependency.extend(sorted(self._needed - {described.name}))

    def _service(self, service: Service, path: Path, files: Files) -> None:
        described = self.described.service.add(name=service.name)
        self._comment(path, service.doc)
        for rpc in service.rpcs.values():
            here = *path, _METHODS, len(described.method)
            self._method(described.method.add(name=rpc.name), rpc, service, files)
            self._comment(here, rpc.doc)

    def _method(
        self, described: descriptor_pb2.MethodDescriptorProto, rpc: Rpc, service: Service, files: Files
    ) -> None:
        described.input_type = self._reference(files.names[rpc.request] if rpc.request else EMPTY, files)
        described.output_type = self._reference(files.names[rpc.response] if rpc.response else EMPTY, files)
        if rpc.streams_requests:
            described.client_streaming = True
        if rpc.streams_responses:
            described.server_streaming = True
        options = descriptor_pb2.MethodOptions
        if rpc.idempotent:
            readable = any(route.verb == "GET" for route in rpc.routes)
            described.options.idempotency_level = options.NO_SIDE_EFFECTS if readable else options.IDEMPOTENT
        rule = rule_of(rpc, service) if files.http else None
        if rule is not None:
            set_rule(described.options, rule)
            self._needed.add(ANNOTATIONS)

    def _reference(self, full_name: str, files: Files) -> str:
        self._needed.add(STANDARD_TYPES.get(full_name) or files.homes[full_name])
        return f".{full_name}"

    def _message(
        self, described: descriptor_pb2.DescriptorProto, node: _Node, path: Path, full_name: str, files: Files
    ) -> None:
        for name, inner in node.nested.items():
            here = *path, _NESTED, len(described.nested_type)
            self._message(described.nested_type.add(name=name), inner, here, dotted(full_name, name), files)
        for schema in node.enums:
            self._enum(described.enum_type.add(), schema, (*path, _NESTED_ENUMS, len(described.enum_type) - 1))
        if node.schema is None:
            return
        describe_message(described, node.schema, files.names)
        _reserve(described, node.schema)
        self._needed.update(_homes_of(described, files))
        doc = inspect.cleandoc(node.schema.doc)
        error = node.schema.message.__polywire__.error
        if error is not None:
            doc = f"{doc}\n\n{error_comment(error, files.raised_by.get(error, ()), self.package)}"
        self._comment(path, doc)
        self._comment_fields(node.schema, described, path)

    def _comment_fields(self, schema: Schema, described: descriptor_pb2.DescriptorProto, path: Path) -> None:
        fields = {added.name: index for index, added in enumerate(described.field)}
        oneofs = {added.name: index for index, added in enumerate(described.oneof_decl)}
        for field in schema.fields:
            if field.form is Form.ONEOF:
                self._comment((*path, _ONEOFS, oneofs[field.name]), field.description)
                for member in field.members:
                    if member.transparent is not None:  # its class is nowhere else in the file
                        doc = inspect.cleandoc(schema_of(member.message).doc)
                        self._comment((*path, _FIELDS, fields[member.name]), doc)
            else:
                implied = _IMPLIED.get(field.value.kind, "") if field.value is not None else ""
                self._comment((*path, _FIELDS, fields[field.name]), field.description or implied)

    def _enum(self, described: descriptor_pb2.EnumDescriptorProto, schema: EnumSchema, path: Path) -> None:
        described.name = schema.name.rpartition(".")[2]
        describe_enum(described, schema)
        self._comment(path, inspect.cleandoc(vars(schema.enum).get("__doc__") or ""))

    def _comment(self, path: Path, text: str) -> None:
        if text.strip():
            paragraphs = [_wrapped(paragraph) for paragraph in text.strip().split("\n\n")]
            lines = [line for paragraph in paragraphs for line in ("", *paragraph)][1:]
            leading = "".join(f" {line}\n" if line else "\n" for line in lines)
            self.described.source_code_info.location.add(path=path, leading_comments=leading)


def _wrapped(paragraph: str) -> list[str]:
    """The lines of a paragraph, filled anew where one is too long; lists, tables and code stay as they are."""
    lines = [line.rstrip() for line in paragraph.splitlines()]
    as_it_is = all(len(line) <= _COMMENT_WIDTH for line in lines) or any(_LAID_OUT.match(line) for line in lines)
    if as_it_is:
        return lines
    return textwrap.wrap(" ".join(lines), _COMMENT_WIDTH, break_long_words=False, break_on_hyphens=False)


def _homes_of(described: descriptor_pb2.DescriptorProto, files: Files) -> Iterator[str]:
    for inner in (described, *(nested for nested in described.nested_type if nested.options.map_entry)):
        for field in inner.field:
            full_name = field.type_name.removeprefix(".")
            home = STANDARD_TYPES.get(full_name) or files.homes.get(full_name)
            if home is not None:  # the entries of maps have none
                yield home


def _reserve(described: descriptor_pb2.DescriptorProto, schema: Schema) -> None:
    for entry in schema.reserved:
        if isinstance(entry, str):
            described.reserved_name.append(entry)
        elif isinstance(entry, int):
            described.reserved_range.add(start=entry, end=entry + 1)
        else:
            described.reserved_range.add(start=entry.start, end=entry.stop)
