"""The protobuf side of a comparison: messages and their fields."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from google.protobuf import descriptor_pb2

from polywire.contract.breaking.described import (
    FieldProto,
    FileProto,
    Index,
    Message,
    MessageProto,
    Path,
    cardinality,
    is_real_oneof,
    type_name,
)
from polywire.contract.breaking.findings import Finding
from polywire.contract.breaking.protobuf import found
from polywire.contract.breaking.protobuf_types import kind_of, same_type, wire_compatible, wire_json_compatible
from polywire.contract.schema import lower_camel

_64_BITS = ("int64", "sint64", "uint64", "fixed64", "sfixed64")
_MAX_NUMBER = 2**29 - 1
_OPTIONS = descriptor_pb2.FieldOptions

Span = tuple[int, int]
"""The first and the last of a range."""


def compare_messages(old: Index, new: Index) -> Iterator[Finding]:
    for name, before in old.messages.items():
        after = new.messages.get(name)
        if after is not None:
            yield from _Pair(old, new, before, after).findings()
    yield from _compare_extensions(old, new)


class _Pair:
    """A message as it was and as it is."""

    def __init__(self, old: Index, new: Index, before: Message, after: Message) -> None:
        self.old, self.new, self.before, self.after = old, new, before, after

    def findings(self) -> Iterator[Finding]:
        yield from self._options()
        yield from self._reserved()
        yield from self._oneofs()
        yield from self._required()
        fields = {described.number: (index, described) for index, described in enumerate(self.after.described.field)}
        for described in self.before.described.field:
            if described.number in fields:
                index, now = fields[described.number]
                yield from _Field(self, described, now, (*self.after.path, 2, index)).findings()
            else:
                yield from self._deleted(described)

    def found(self, rule: str, change: str, where: str = "", path: Path = ()) -> Finding:
        where = f"{self.after.full_name}.{where}" if where else self.after.full_name
        return found(rule, where, change, self.new, self.after.file, *(path or self.after.path))

    def _options(self) -> Iterator[Finding]:
        was, now = self.before.described.options, self.after.described.options
        if now.no_standard_descriptor_accessor and not was.no_standard_descriptor_accessor:
            change = "The option no_standard_descriptor_accessor is set now."
            path = *self.after.path, 7, 2
            yield self.found("MESSAGE_NO_REMOVE_STANDARD_DESCRIPTOR_ACCESSOR", change, path=path)
        if self.before.file.syntax == "proto3" and self.after.file.syntax != "proto3":
            change = "Its JSON is no longer checked for names that collide, as the syntax changed."
            yield self.found("MESSAGE_SAME_JSON_FORMAT", change)

    def _reserved(self) -> Iterator[Finding]:
        was, now = self.before.described, self.after.described
        for span, missing in lost(_spans(was.reserved_range), _spans(now.reserved_range)):
            change = f"{shown(span)} was reserved; {shown(missing)} is free now."
            yield self.found("RESERVED_MESSAGE_NO_DELETE", change)
        for name in was.reserved_name:
            if name not in now.reserved_name:
                yield self.found("RESERVED_MESSAGE_NO_DELETE", f"The name {name!r} was reserved and is free now.")
        for span, missing in lost(_spans(was.extension_range), _spans(now.extension_range)):
            change = f"{shown(span)} was open to extensions; {shown(missing)} is not now."
            yield self.found("EXTENSION_MESSAGE_NO_DELETE", change)

    def _oneofs(self) -> Iterator[Finding]:
        names = {oneof.name for oneof in self.after.described.oneof_decl}
        for name in _real_oneofs(self.before.described):
            if name not in names:
                yield self.found("ONEOF_NO_DELETE", f"The oneof {name!r} is gone.", name)

    def _required(self) -> Iterator[Finding]:
        was, now = _required_in(self.before.described), _required_in(self.after.described)
        for number, name in was.items():
            if number not in now:
                yield self.found("MESSAGE_SAME_REQUIRED_FIELDS", f"Field {number} was required and is not now.", name)
        for index, field in enumerate(self.after.described.field):
            if field.number in now and field.number not in was:
                change, path = f"Field {field.number} is required now.", (*self.after.path, 2, index)
                yield self.found("MESSAGE_SAME_REQUIRED_FIELDS", change, field.name, path)

    def _deleted(self, field: FieldProto) -> Iterator[Finding]:
        now, name, number = self.after.described, field.name, field.number
        yield self.found("FIELD_NO_DELETE", f"Field {number} is gone.", name)
        if not any(start <= number <= end for start, end in _spans(now.reserved_range)):
            change = f"Field {number} is gone and its number is not reserved."
            yield self.found("FIELD_NO_DELETE_UNLESS_NUMBER_RESERVED", change, name)
        if name not in now.reserved_name:
            change = f"Field {number} is gone and its name is not reserved."
            yield self.found("FIELD_NO_DELETE_UNLESS_NAME_RESERVED", change, name)


class _Field:
    """A field of one number, as it was and as it is."""

    def __init__(self, pair: _Pair, before: FieldProto, after: FieldProto, path: Path) -> None:
        self.pair, self.before, self.after, self.path = pair, before, after, path
        self.old, self.new = pair.old, pair.new
        self.entry = pair.before.described.options.map_entry and pair.after.described.options.map_entry

    def findings(self) -> Iterator[Finding]:
        for rule, change in self._changes():
            yield self.pair.found(rule, f"Field {self.after.number} {change}", self.after.name, self.path)

    def _changes(self) -> Iterator[tuple[str, str]]:
        before, after = self.before, self.after
        if before.name != after.name:
            yield "FIELD_SAME_NAME", f"was called {before.name!r} and is called {after.name!r} now."
        was, now = json_name(before), json_name(after)
        if was != now:
            yield "FIELD_SAME_JSON_NAME", f"was called {was!r} in JSON and is called {now!r} now."
        yield from _same_oneof(before, after, self.pair.before.described, self.pair.after.described)
        yield from type_changes(before, after, self.old, self.new)
        if not self.entry:
            files = self.pair.before.file, self.pair.after.file
            yield from cardinality_changes(before, after, self.old, self.new, files)
        yield from encoding_changes(before, after, self.pair.before.file, self.pair.after.file, entry=self.entry)
        yield from default_changes(before, after, self.old, self.new)


def _same_oneof(
    before: FieldProto, after: FieldProto, old: MessageProto, new: MessageProto
) -> Iterator[tuple[str, str]]:
    was = old.oneof_decl[before.oneof_index].name if is_real_oneof(before) else ""
    now = new.oneof_decl[after.oneof_index].name if is_real_oneof(after) else ""
    if was != now:
        said = f"was in the oneof {was!r}" if was else "was in no oneof"
        yield "FIELD_SAME_ONEOF", f"{said} and is in {repr(now) if now else 'none'} now."


def type_changes(before: FieldProto, after: FieldProto, old: Index, new: Index) -> Iterator[tuple[str, str]]:
    change = f"was {type_name(before)} and is {type_name(after)} now."
    if not same_type(before, after):
        yield "FIELD_SAME_TYPE", change
        if not wire_json_compatible(before, after, old, new):
            yield "FIELD_WIRE_JSON_COMPATIBLE_TYPE", change
        if not wire_compatible(before, after, old, new):
            yield "FIELD_WIRE_COMPATIBLE_TYPE", change


def cardinality_changes(
    before: FieldProto, after: FieldProto, old: Index, new: Index, files: tuple[FileProto, FileProto]
) -> Iterator[tuple[str, str]]:
    was, now = cardinality(old, before, files[0]), cardinality(new, after, files[1])
    if was == now:
        return
    change = f"was {was} and is {now} now."
    yield "FIELD_SAME_CARDINALITY", change
    if not (was.startswith("optional") and now.startswith("optional")):
        yield "FIELD_WIRE_JSON_COMPATIBLE_CARDINALITY", change
        if {was, now} != {"map", "repeated"}:  # a map is a repeated entry on the wire
            yield "FIELD_WIRE_COMPATIBLE_CARDINALITY", change


def encoding_changes(
    before: FieldProto, after: FieldProto, old: FileProto, new: FileProto, *, entry: bool = False
) -> Iterator[tuple[str, str]]:
    was, now = kind_of(before), kind_of(after)
    if was in _64_BITS and now in _64_BITS and before.options.jstype != after.options.jstype:
        spelled = [_OPTIONS.JSType.Name(field.options.jstype) for field in (before, after)]
        yield "FIELD_SAME_JSTYPE", f"had jstype {spelled[0]} and has {spelled[1]} now."
    if {was, now} <= {"string", "bytes"} and not entry:
        ctypes = before.options.ctype, after.options.ctype
        # From a piece to a string is harmless: what it gives is what was taken.
        if ctypes[0] != ctypes[1] and ctypes != (_OPTIONS.STRING_PIECE, _OPTIONS.STRING):
            spelled = [_OPTIONS.CType.Name(ctype) for ctype in ctypes]
            yield "FIELD_SAME_CPP_STRING_TYPE", f"had ctype {spelled[0]} and has {spelled[1]} now."
    if was == now == "string":
        checked = old.syntax == "proto3", new.syntax == "proto3"
        if checked[0] != checked[1]:
            yield "FIELD_SAME_UTF8_VALIDATION", f"is {'now' if checked[1] else 'no longer'} checked for UTF-8."
        in_java = checked[0] or old.options.java_string_check_utf8, checked[1] or new.options.java_string_check_utf8
        if in_java[0] != in_java[1]:
            said = f"is {'now' if in_java[1] else 'no longer'} checked for UTF-8 in Java."
            yield "FIELD_SAME_JAVA_UTF8_VALIDATION", said


def default_changes(before: FieldProto, after: FieldProto, old: Index, new: Index) -> Iterator[tuple[str, str]]:
    if not _can_default(before) or not _can_default(after):
        return
    was, now = _default(before, old), _default(after, new)
    if was == now or (not was and not now):
        return
    if isinstance(was, float) and isinstance(now, float) and math.isnan(was) and math.isnan(now):
        return
    yield "FIELD_SAME_DEFAULT", f"had the default {was!r} and has {now!r} now."


def _can_default(field: FieldProto) -> bool:
    return field.label != FieldProto.LABEL_REPEATED and kind_of(field) not in ("message", "group")


def _default(field: FieldProto, index: Index) -> str | float | int:
    """What an absent field reads as."""
    kind, said = kind_of(field), field.default_value
    if kind in ("string", "bytes"):
        return said
    if kind == "bool":
        return int(said == "true")
    if kind == "enum":
        enum = index.known_enums.get(type_name(field))
        values = enum.described.value if enum is not None else ()
        first = values[0].number if values else 0
        return next((value.number for value in values if said and value.name == said), first)
    if kind in ("float", "double"):
        return float(said or 0)
    return int(said or 0)


def json_name(field: FieldProto) -> str:
    return field.json_name or lower_camel(field.name)


def _real_oneofs(message: MessageProto) -> list[str]:
    made = {field.oneof_index for field in message.field if field.proto3_optional}
    return [oneof.name for index, oneof in enumerate(message.oneof_decl) if index not in made]


def _required_in(message: MessageProto) -> dict[int, str]:
    return {field.number: field.name for field in message.field if field.label == FieldProto.LABEL_REQUIRED}


def _spans(
    ranges: Iterable[MessageProto.ReservedRange] | Iterable[MessageProto.ExtensionRange],
) -> list[Span]:
    return [(span.start, span.end - 1) for span in ranges]  # messages count to, but not with, the end


def lost(before: Sequence[Span], after: Sequence[Span]) -> Iterator[tuple[Span, Span]]:
    """Each range of *before* that is not wholly in *after*, with the first part that is missing."""
    for start, end in before:
        free = start
        for first, last in sorted(after):
            if first <= free <= last:
                free = last + 1
        if free <= end:
            following = min((first for first, _ in after if first > free), default=end + 1)
            yield (start, end), (free, min(end, following - 1))


def shown(span: Span) -> str:
    start, end = span
    if start == end:
        return f"Number {start}"
    return f"{start} to {'max' if end == _MAX_NUMBER else end}"


def _compare_extensions(old: Index, new: Index) -> Iterator[Finding]:
    """Extensions of one message and number, as they were and as they are."""
    now = {(placed.described.extendee, placed.described.number): placed for placed in new.extensions.values()}
    for before in old.extensions.values():
        after = now.get((before.described.extendee, before.described.number))
        if after is None:
            continue
        was, is_ = before.described, after.described
        changes = [
            *type_changes(was, is_, old, new),
            *cardinality_changes(was, is_, old, new, (before.file, after.file)),
            *encoding_changes(was, is_, before.file, after.file),
            *default_changes(was, is_, old, new),
        ]
        if before.full_name != after.full_name:
            changes.append(("FIELD_SAME_NAME", f"was called {before.full_name!r} and is {after.full_name!r} now."))
        for rule, change in changes:
            sentence = f"Extension {is_.number} of {is_.extendee.removeprefix('.')} {change}"
            yield found(rule, after.full_name, sentence, new, after.file, *after.path)
