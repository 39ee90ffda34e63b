"""The ProtoJSON side of a comparison: JSON knows names, where protobuf knows numbers."""

from __future__ import annotations

from collections.abc import Iterator

from polywire.contract.breaking.described import (
    Enum,
    FieldProto,
    Index,
    Message,
    cardinality,
    is_real_oneof,
    map_entry,
    type_name,
)
from polywire.contract.breaking.findings import Finding
from polywire.contract.breaking.protobuf_messages import json_name
from polywire.contract.breaking.protobuf_types import kind_of
from polywire.contract.breaking.wire_rules import WIRE_RULES
from polywire.contract.export_standard import EMPTY

_SCALARS = {
    **dict.fromkeys(("int32", "uint32", "sint32", "fixed32", "sfixed32"), "a whole number"),
    **dict.fromkeys(("int64", "uint64", "sint64", "fixed64", "sfixed64"), "a whole number as text"),
    **dict.fromkeys(("float", "double"), "a number"),
    "bool": "true or false",
    "string": "text",
    "bytes": "base64",
    "enum": "the name of a value",
    "message": "an object",
    "group": "an object",
}
_WELL_KNOWN = {
    "google.protobuf.Timestamp": "a time as text",
    "google.protobuf.Duration": "seconds as text",
    "google.protobuf.FieldMask": "names of fields as text",
    "google.protobuf.Struct": "any object",
    "google.protobuf.ListValue": "any list",
    "google.protobuf.Value": "any value",
    "google.protobuf.Any": "an object with its type",
    "google.protobuf.Int32Value": "a whole number",
    "google.protobuf.UInt32Value": "a whole number",
    "google.protobuf.Int64Value": "a whole number as text",
    "google.protobuf.UInt64Value": "a whole number as text",
    "google.protobuf.FloatValue": "a number",
    "google.protobuf.DoubleValue": "a number",
    "google.protobuf.BoolValue": "true or false",
    "google.protobuf.StringValue": "text",
    "google.protobuf.BytesValue": "base64",
}

_OPAQUE = frozenset({*_WELL_KNOWN, EMPTY})
"""Messages whose fields JSON does not show."""


def compare_protojson(old: Index, new: Index) -> Iterator[Finding]:
    """What would break who reads or writes the ProtoJSON of before, by messages that stand for each other."""
    pairs = Pairs(old, new)
    for before, after in pairs.messages:
        yield from _Json(old, new, before, after).findings()
    for enum_before, enum_after in pairs.enums:
        yield from _enum_changes(enum_before, enum_after, new)


class Pairs:
    """The messages and enums of OLD with what stands for them in NEW: of the same name, or in the same place."""

    def __init__(self, old: Index, new: Index) -> None:
        self.messages: list[tuple[Message, Message]] = []
        self.enums: list[tuple[Enum, Enum]] = []
        self._old, self._new = old, new
        self._seen: set[tuple[str, str]] = set()
        for name in old.messages:
            self._add(name, name)
        for name in old.enums:
            self._add(name, name)
        for name, service in old.services.items():
            after = new.services.get(name)
            methods = {method.name: method for method in after.described.method} if after is not None else {}
            for method in service.described.method:
                if method.name in methods:
                    now = methods[method.name]
                    self._add(method.input_type, now.input_type)
                    self._add(method.output_type, now.output_type)

    def _add(self, before: str, after: str) -> None:
        waiting = [(before.removeprefix("."), after.removeprefix("."))]
        while waiting:
            names = waiting.pop()
            if names in self._seen or not _OPAQUE.isdisjoint(names):
                continue
            self._seen.add(names)
            enums = self._old.known_enums.get(names[0]), self._new.known_enums.get(names[1])
            messages = self._old.known_messages.get(names[0]), self._new.known_messages.get(names[1])
            if enums[0] is not None and enums[1] is not None:
                self.enums.append((enums[0], enums[1]))
            elif messages[0] is not None and messages[1] is not None:
                if not messages[0].described.options.map_entry:
                    self.messages.append((messages[0], messages[1]))
                waiting += _same_places(*messages)


def _same_places(before: Message | None, after: Message | None) -> Iterator[tuple[str, str]]:
    fields = {json_name(field): field for field in after.described.field} if after is not None else {}
    for field in before.described.field if before is not None else ():
        now = fields.get(json_name(field))
        if now is not None and field.type_name and now.type_name:
            yield type_name(field), type_name(now)


class _Json:
    """The JSON of a message, as it was and as it is."""

    def __init__(self, old: Index, new: Index, before: Message, after: Message) -> None:
        self.old, self.new, self.before, self.after = old, new, before, after

    def findings(self) -> Iterator[Finding]:
        now = {json_name(field): (index, field) for index, field in enumerate(self.after.described.field)}
        for field in self.before.described.field:
            name = json_name(field)
            if name in now:
                index, after = now[name]
                for rule, change in self._changes(name, field, after):
                    yield self._found(rule, change, after.name, index)
            elif field.name not in self.after.described.reserved_name:
                yield self._gone(name, field)

    def _found(self, rule: str, change: str, field: str, index: int | None = None) -> Finding:
        path = self.after.path if index is None else (*self.after.path, 2, index)
        line = self.new.line(self.after.file, *path)
        where = f"{self.after.full_name}.{field}"
        return Finding(rule=WIRE_RULES[rule], where=where, change=change, file=self.after.file.name, line=line)

    def _gone(self, name: str, field: FieldProto) -> Finding:
        for index, after in enumerate(self.after.described.field):
            if after.number == field.number:
                change = f"{name!r} is called {json_name(after)!r} in JSON now."
                return self._found("PROTOJSON_FIELD_NO_DELETE", change, after.name, index)
        return self._found("PROTOJSON_FIELD_NO_DELETE", f"{name!r} is gone from JSON.", field.name)

    def _changes(self, name: str, before: FieldProto, after: FieldProto) -> Iterator[tuple[str, str]]:
        was, now = form_of(before, self.old), form_of(after, self.new)
        if was != now:
            yield "PROTOJSON_FIELD_SAME_FORM", f"{name!r} was {was} in JSON and is {now} now."
            return
        presence = _tracked(before, self.old, self.before), _tracked(after, self.new, self.after)
        in_oneof = is_real_oneof(before), is_real_oneof(after)
        if presence[0] != presence[1] and in_oneof[0] == in_oneof[1]:
            said = "nothing, and zero is written" if presence[1] else "zero, and zero is not written"
            change = f"Where {name!r} is not in JSON, that means {said} now."
            yield "PROTOJSON_FIELD_SAME_PRESENCE", change
        others = _excluded(before, self.before), _excluded(after, self.after)
        names = [{json_name(field) for field in message.described.field} for message in (self.before, self.after)]
        if in_oneof[0] != in_oneof[1] or others[0] & names[1] != others[1] & names[0]:
            yield "PROTOJSON_FIELD_SAME_ONEOF", f"{name!r} {_said(others[0])}, and {_said(others[1])} now."


def _said(names: frozenset[str]) -> str:
    return f"excludes {', '.join(map(repr, sorted(names)))}" if names else "excludes nothing"


def _excluded(field: FieldProto, message: Message) -> frozenset[str]:
    """The names of those that a field is in a oneof with."""
    if not is_real_oneof(field):
        return frozenset()
    return frozenset(
        json_name(other)
        for other in message.described.field
        if is_real_oneof(other) and other.oneof_index == field.oneof_index and other.number != field.number
    )


def _tracked(field: FieldProto, index: Index, message: Message) -> bool:
    return cardinality(index, field, message.file) == "optional with explicit presence"


def form_of(field: FieldProto, index: Index) -> str:
    """What JSON has there, in words; two fields with the same words read each other's JSON."""
    entry = map_entry(index, field)
    if entry is not None:
        keys = {"string": "text", "bool": "true or false"}.get(kind_of(entry.field[0]), "a whole number")
        return f"an object of {_one(entry.field[1])} by {keys}"
    one = _one(field)
    return f"a list of {one}" if field.label == FieldProto.LABEL_REPEATED else one


def _one(field: FieldProto) -> str:
    return _WELL_KNOWN.get(type_name(field)) or _SCALARS[kind_of(field)]


def _enum_changes(before: Enum, after: Enum, new: Index) -> Iterator[Finding]:
    names = {value.name for value in after.described.value}
    numbers = {value.number: value.name for value in after.described.value}
    for value in before.described.value:
        if value.name not in names and value.name not in after.described.reserved_name:
            other = numbers.get(value.number)
            said = f"is called {other!r} in JSON now." if other is not None else "is gone from JSON."
            yield Finding(
                rule=WIRE_RULES["PROTOJSON_ENUM_VALUE_NO_DELETE"],
                where=f"{after.full_name}.{value.name}",
                change=f"{value.name!r} {said}",
                file=after.file.name,
                line=new.line(after.file, *after.path),
            )
