"""Which protobuf types may follow each other in a field without hurting bytes, or bytes and JSON, that exist."""

from __future__ import annotations

from polywire.contract.breaking.described import Enum, FieldProto, Index, type_name

_WIRE_GROUPS = (
    ("int32", "int64", "uint32", "uint64", "bool"),
    ("sint32", "sint64"),
    ("fixed32", "sfixed32"),
    ("fixed64", "sfixed64"),
)
# int32 and int64 are the same bytes, but in JSON one is a number and the other is text.
_WIRE_JSON_GROUPS = (
    ("int32", "uint32"),
    ("int64", "uint64"),
    ("fixed32", "sfixed32"),
    ("fixed64", "sfixed64"),
)


def kind_of(described: FieldProto) -> str:
    return FieldProto.Type.Name(described.type).removeprefix("TYPE_").lower()


def same_type(before: FieldProto, after: FieldProto) -> bool:
    return before.type == after.type and before.type_name == after.type_name


def wire_compatible(before: FieldProto, after: FieldProto, old: Index, new: Index) -> bool:
    """Whether bytes written for *before* are read as they were meant by *after*."""
    if kind_of(before) == "string" and kind_of(after) == "bytes":
        return True
    return _compatible(before, after, _WIRE_GROUPS, old, new)


def wire_json_compatible(before: FieldProto, after: FieldProto, old: Index, new: Index) -> bool:
    return _compatible(before, after, _WIRE_JSON_GROUPS, old, new)


def _compatible(
    before: FieldProto, after: FieldProto, groups: tuple[tuple[str, ...], ...], old: Index, new: Index
) -> bool:
    was, now = kind_of(before), kind_of(after)
    if was != now:
        return any(was in group and now in group for group in groups)
    if was == "enum" and before.type_name != after.type_name:
        return _moved(old.known_enums.get(type_name(before)), new.known_enums.get(type_name(after)))
    return before.type_name == after.type_name


def _moved(before: Enum | None, after: Enum | None) -> bool:
    """Whether an enum is another one of the same name, which perhaps has more values."""
    if before is None or after is None or before.described.name != after.described.name:
        return False
    numbers = {value.name: value.number for value in after.described.value}
    return all(numbers.get(value.name) == value.number for value in before.described.value)
