"""Descriptors as readable `.proto` text; compiling it gives the same descriptors again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from google.protobuf import descriptor_pb2

from polywire.contract.export_http import rule_in
from polywire.contract.export_messages import TYPES
from polywire.contract.schema import lower_camel

_Field = descriptor_pb2.FieldDescriptorProto
_NAMES = {number: name for name, number in TYPES.items() if name not in ("message", "enum")}
_FILE_OPTIONS = ("go_package", "java_multiple_files", "java_outer_classname", "java_package", "objc_class_prefix")
_MAX_NUMBER = 2**29
_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def proto_text(file: descriptor_pb2.FileDescriptorProto) -> str:
    """The text of one file of proto3."""
    return "\n".join(_Text(file).lines()) + "\n"


def quoted(text: str) -> str:
    """A string literal of protobuf."""
    return '"' + "".join(_ESCAPES.get(character, character) for character in text) + '"'


class _Text:
    def __init__(self, file: descriptor_pb2.FileDescriptorProto) -> None:
        self._file = file
        self._comments = {
            tuple(location.path): location.leading_comments for location in file.source_code_info.location
        }
        self._symbols = set(_symbols(file))

    def lines(self) -> Iterator[str]:
        file = self._file
        yield 'syntax = "proto3";'
        if file.package:
            yield from ("", f"package {file.package};")
        if file.dependency:
            yield ""
            yield from (f"import {quoted(name)};" for name in file.dependency)
        options = list(_options(file.options, _FILE_OPTIONS))
        if options:
            yield from ("", *options)
        for index, service in enumerate(file.service):
            yield ""
            yield from self._service(service, (6, index))
        for index, message in enumerate(file.message_type):
            yield ""
            yield from self._message(message, (4, index), file.package)
        for index, enum in enumerate(file.enum_type):
            yield ""
            yield from self._enum(enum, (5, index))
        for extension in file.extension:
            yield from ("", f"extend {self._reference(extension.extendee, file.package)} {{")
            yield f"  {self._field(extension, file.package)}"
            yield "}"

    def _comment(self, path: Sequence[int]) -> Iterator[str]:
        for line in self._comments.get(tuple(path), "").splitlines():
            yield f"//{line}".rstrip()

    def _service(self, service: descriptor_pb2.ServiceDescriptorProto, path: tuple[int, ...]) -> Iterator[str]:
        yield from self._comment(path)
        blocks = [
            [*self._comment((*path, 2, index)), *self._method(method, _joined(self._file.package, service.name))]
            for index, method in enumerate(service.method)
        ]
        yield from _braced(f"service {service.name}", _apart(blocks))

    def _method(self, method: descriptor_pb2.MethodDescriptorProto, scope: str) -> Iterator[str]:
        request = ("stream " if method.client_streaming else "") + self._reference(method.input_type, scope)
        response = ("stream " if method.server_streaming else "") + self._reference(method.output_type, scope)
        head = f"rpc {method.name}({request}) returns ({response})"
        options = []
        if method.options.HasField("idempotency_level"):
            level = method.options.IdempotencyLevel.Name(method.options.idempotency_level)
            options.append(f"option idempotency_level = {level};")
        rule = rule_in(method.options)
        if rule is not None:
            name = self._reference(".google.api.http", scope)
            options.extend(_literal(f"option ({name}) =", list(_rule(rule)), end="};"))
        if options:
            yield from _braced(head, options)
        else:
            yield f"{head};"

    def _message(self, message: descriptor_pb2.DescriptorProto, path: tuple[int, ...], scope: str) -> Iterator[str]:
        yield from self._comment(path)
        own = _joined(scope, message.name)
        blocks = [
            list(self._message(nested, (*path, 3, index), own))
            for index, nested in enumerate(message.nested_type)
            if not nested.options.map_entry
        ]
        blocks += [list(self._enum(enum, (*path, 4, index))) for index, enum in enumerate(message.enum_type)]
        rest = list(_reserved(message)) + list(self._fields(message, path, own))
        yield from _braced(f"message {message.name}", _apart([*blocks, rest] if rest else blocks))

    def _fields(self, message: descriptor_pb2.DescriptorProto, path: tuple[int, ...], scope: str) -> Iterator[str]:
        entries = {nested.name: nested for nested in message.nested_type if nested.options.map_entry}
        begun: set[int] = set()
        for index, field in enumerate(message.field):
            if field.HasField("oneof_index") and not field.proto3_optional:
                if field.oneof_index not in begun:
                    begun.add(field.oneof_index)
                    yield from self._oneof(message, field.oneof_index, path, scope)
                continue
            yield from self._comment((*path, 2, index))
            entry = entries.get(field.type_name.rpartition(".")[2]) if field.type_name else None
            if entry is not None and field.type_name == f".{scope}.{entry.name}":
                yield self._map(field, entry, scope)
            else:
                yield self._field(field, scope)

    def _oneof(
        self, message: descriptor_pb2.DescriptorProto, oneof: int, path: tuple[int, ...], scope: str
    ) -> Iterator[str]:
        yield from self._comment((*path, 8, oneof))
        inside = []
        for index, field in enumerate(message.field):
            if field.HasField("oneof_index") and field.oneof_index == oneof:
                inside += [*self._comment((*path, 2, index)), self._field(field, scope)]
        yield from _braced(f"oneof {message.oneof_decl[oneof].name}", inside)

    def _field(self, field: descriptor_pb2.FieldDescriptorProto, scope: str) -> str:
        label = "repeated " if field.label == _Field.LABEL_REPEATED else "optional " if field.proto3_optional else ""
        return f"{label}{self._type(field, scope)} {field.name} = {field.number}{_json_name(field)};"

    def _map(
        self, field: descriptor_pb2.FieldDescriptorProto, entry: descriptor_pb2.DescriptorProto, scope: str
    ) -> str:
        key, value = (self._type(part, scope) for part in entry.field)
        return f"map<{key}, {value}> {field.name} = {field.number}{_json_name(field)};"

    def _type(self, field: descriptor_pb2.FieldDescriptorProto, scope: str) -> str:
        return self._reference(field.type_name, scope) if field.type_name else _NAMES[field.type]

    def _enum(self, enum: descriptor_pb2.EnumDescriptorProto, path: tuple[int, ...]) -> Iterator[str]:
        yield from self._comment(path)
        inside = ["option allow_alias = true;"] if enum.options.allow_alias else []
        for index, value in enumerate(enum.value):
            inside += [*self._comment((*path, 2, index)), f"{value.name} = {value.number};"]
        yield from _braced(f"enum {enum.name}", inside)

    def _reference(self, type_name: str, scope: str) -> str:
        """The shortest way to name a type that means this type where it stands."""
        full_name = type_name.removeprefix(".")
        package = self._file.package
        short = full_name.removeprefix(f"{package}.") if package else full_name
        candidates = [full_name]
        if full_name in self._symbols:
            parts = short.split(".")
            candidates = [".".join(parts[index:]) for index in reversed(range(len(parts)))] + candidates
        for candidate in candidates:
            if self._meaning(candidate, scope) == full_name:
                return candidate
        return f".{full_name}"

    def _meaning(self, name: str, scope: str) -> str:
        """What protobuf takes a name for: the first part decides, in the innermost scope that has it."""
        first = name.partition(".")[0]
        while scope:
            if f"{scope}.{first}" in self._symbols:
                return f"{scope}.{name}"
            scope = scope.rpartition(".")[0]
        return name


def _symbols(file: descriptor_pb2.FileDescriptorProto) -> Iterator[str]:
    """Every name that decides what a type's name means in the scopes of a file."""
    parts = file.package.split(".") if file.package else []
    yield from (".".join(parts[: count + 1]) for count in range(len(parts)))
    waiting = [(file.package, message) for message in file.message_type]
    yield from (_joined(file.package, enum.name) for enum in file.enum_type)
    for service in file.service:
        own = _joined(file.package, service.name)
        yield own
        # In the scope of a service the name of an rpc hides a message of that name.
        yield from (_joined(own, method.name) for method in service.method)
    while waiting:
        scope, message = waiting.pop()
        own = _joined(scope, message.name)
        yield own
        yield from (_joined(own, enum.name) for enum in message.enum_type)
        waiting.extend((own, nested) for nested in message.nested_type)


def _joined(scope: str, name: str) -> str:
    return f"{scope}.{name}" if scope else name


def _braced(head: str, inside: Sequence[str], end: str = "}") -> Iterator[str]:
    if not inside:
        yield f"{head} {{{end}"
        return
    yield f"{head} {{"
    yield from (f"  {line}".rstrip() for line in inside)
    yield end


def _literal(head: str, fields: Sequence[str], end: str = "}") -> Iterator[str]:
    """A value of a message type; on one line where it has one field only."""
    if len(fields) == 1:
        yield f"{head} {{{fields[0]}{end}"
    else:
        yield from _braced(head, fields, end)


def _apart(blocks: Sequence[Sequence[str]]) -> list[str]:
    """Blocks with an empty line between them."""
    return [line for index, block in enumerate(blocks) for line in (["", *block] if index else block)]


def _json_name(field: descriptor_pb2.FieldDescriptorProto) -> str:
    return f" [json_name = {quoted(field.json_name)}]" if has_json_name(field) else ""


def has_json_name(field: descriptor_pb2.FieldDescriptorProto) -> bool:
    """Whether a field has another name in JSON than the one that protoc gives it by itself."""
    return field.json_name not in ("", lower_camel(field.name))


def _reserved(message: descriptor_pb2.DescriptorProto) -> Iterator[str]:
    if message.reserved_range:
        spans = []
        for entry in message.reserved_range:
            last = "max" if entry.end == _MAX_NUMBER else str(entry.end - 1)
            spans.append(str(entry.start) if entry.end == entry.start + 1 else f"{entry.start} to {last}")
        yield f"reserved {', '.join(spans)};"
    if message.reserved_name:
        yield f"reserved {', '.join(quoted(name) for name in message.reserved_name)};"


def _options(options: Any, names: Sequence[str]) -> Iterator[str]:
    for name in names:
        if options.HasField(name):
            value = getattr(options, name)
            yield f"option {name} = {'true' if value is True else quoted(value)};"


def _rule(rule: Any) -> Iterator[str]:
    pattern = rule.WhichOneof("pattern")
    if pattern == "custom":
        yield from _literal("custom:", [f"kind: {quoted(rule.custom.kind)}", f"path: {quoted(rule.custom.path)}"])
    elif pattern is not None:
        yield f"{pattern}: {quoted(getattr(rule, pattern))}"
    if rule.body:
        yield f"body: {quoted(rule.body)}"
    if rule.response_body:
        yield f"response_body: {quoted(rule.response_body)}"
    for binding in rule.additional_bindings:
        yield from _literal("additional_bindings:", list(_rule(binding)))
