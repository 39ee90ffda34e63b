"""The protobuf side of a comparison: enums, services and their methods."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from google.protobuf import descriptor_pb2

from polywire.contract.breaking.described import Enum, EnumProto, Index, Service
from polywire.contract.breaking.findings import Finding
from polywire.contract.breaking.protobuf import found
from polywire.contract.breaking.protobuf_messages import Span, lost, shown

_LEVELS = descriptor_pb2.MethodOptions.IdempotencyLevel


def compare_enums(old: Index, new: Index) -> Iterator[Finding]:
    for name, before in old.enums.items():
        after = new.enums.get(name)
        if after is not None:
            yield from _enum_changes(before, after, new)


def _enum_changes(before: Enum, after: Enum, new: Index) -> Iterator[Finding]:
    changes = [*_value_changes(before.described, after.described), *_reserved_changes(before, after)]
    was, now = before.file.syntax == "proto3", after.file.syntax == "proto3"
    if was != now:
        said = ("open", "closed") if was else ("closed", "open")
        changes.append(("ENUM_SAME_TYPE", "", f"It was {said[0]} and is {said[1]} now, as the syntax changed."))
    if was and not now:
        change = "Its JSON is no longer checked for names that collide, as the syntax changed."
        changes.append(("ENUM_SAME_JSON_FORMAT", "", change))
    for rule, value, change in changes:
        where = f"{after.full_name}.{value}" if value else after.full_name
        names = [said.name for said in after.described.value] if rule == "ENUM_VALUE_SAME_NAME" else []
        path = (*after.path, 2, names.index(value)) if names else after.path
        yield found(rule, where, change, new, after.file, *path)


def _value_changes(before: EnumProto, after: EnumProto) -> Iterator[tuple[str, str, str]]:
    was, now = _names(before), _names(after)
    for number, names in was.items():
        if number in now:
            if not set(names) <= set(now[number]):
                change = f"Value {number} was called {_listed(names)} and is called {_listed(now[number])} now."
                yield from (("ENUM_VALUE_SAME_NAME", name, change) for name in now[number])
            continue
        first = names[0]
        yield "ENUM_VALUE_NO_DELETE", first, f"Value {number} is gone."
        if not any(start <= number <= end for start, end in _spans(after)):
            change = f"Value {number} is gone and its number is not reserved."
            yield "ENUM_VALUE_NO_DELETE_UNLESS_NUMBER_RESERVED", first, change
        if not set(names) <= set(after.reserved_name):
            change = f"Value {number} is gone and its name is not reserved."
            yield "ENUM_VALUE_NO_DELETE_UNLESS_NAME_RESERVED", first, change


def _names(enum: EnumProto) -> dict[int, list[str]]:
    """The names of each number; more than one where there are aliases."""
    names: dict[int, list[str]] = defaultdict(list)
    for value in enum.value:
        names[value.number].append(value.name)
    return names


def _listed(names: list[str]) -> str:
    return " and ".join(repr(name) for name in sorted(names))


def _spans(enum: EnumProto) -> list[Span]:
    return [(span.start, span.end) for span in enum.reserved_range]


def _reserved_changes(before: Enum, after: Enum) -> Iterator[tuple[str, str, str]]:
    for span, missing in lost(_spans(before.described), _spans(after.described)):
        yield "RESERVED_ENUM_NO_DELETE", "", f"{shown(span)} was reserved; {shown(missing)} is free now."
    for name in before.described.reserved_name:
        if name not in after.described.reserved_name:
            yield "RESERVED_ENUM_NO_DELETE", "", f"The name {name!r} was reserved and is free now."


def compare_services(old: Index, new: Index) -> Iterator[Finding]:
    for name, before in old.services.items():
        after = new.services.get(name)
        if after is not None:
            yield from _service_changes(before, after, new)


def _service_changes(before: Service, after: Service, new: Index) -> Iterator[Finding]:
    methods = {method.name: (index, method) for index, method in enumerate(after.described.method)}
    for method in before.described.method:
        where = f"{after.full_name}/{method.name}"
        if method.name not in methods:
            yield found("RPC_NO_DELETE", where, "The method is gone.", new, after.file, *after.path)
            continue
        index, now = methods[method.name]
        for rule, change in _method_changes(method, now):
            yield found(rule, where, change, new, after.file, *after.path, 2, index)


def _method_changes(
    before: descriptor_pb2.MethodDescriptorProto, after: descriptor_pb2.MethodDescriptorProto
) -> Iterator[tuple[str, str]]:
    for rule, what, attribute in (
        ("RPC_SAME_REQUEST_TYPE", "request", "input_type"),
        ("RPC_SAME_RESPONSE_TYPE", "response", "output_type"),
    ):
        was, now = (getattr(method, attribute).removeprefix(".") for method in (before, after))
        if was != now:
            yield rule, f"Its {what} was {was} and is {now} now."
    for rule, what, attribute in (
        ("RPC_SAME_CLIENT_STREAMING", "request", "client_streaming"),
        ("RPC_SAME_SERVER_STREAMING", "response", "server_streaming"),
    ):
        streams = getattr(after, attribute)
        if getattr(before, attribute) != streams:
            yield rule, f"Its {what} is {'a stream' if streams else 'one message'} now."
    was, now = before.options.idempotency_level, after.options.idempotency_level
    if was != now:
        change = f"Its idempotency level was {_LEVELS.Name(was)} and is {_LEVELS.Name(now)} now."
        yield "RPC_SAME_IDEMPOTENCY_LEVEL", change
