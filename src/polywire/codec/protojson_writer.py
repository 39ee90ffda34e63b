"""Generates the functions that turn our messages into shadows which msgspec writes as ProtoJSON."""

from __future__ import annotations

from typing import Any

import msgspec

from polywire.codec.protojson_special import SPECIAL
from polywire.codec.protojson_values import is_zero, spelled_double, spelled_duration, spelled_float, spelled_timestamp
from polywire.codec.shadow import Slot, slots_of, written_shadow
from polywire.codec.source import Source, attribute
from polywire.contract.fields import INTEGER_RANGES
from polywire.contract.schema import FieldSchema, Form, Presence, Schema, Value, enum_schema_of, schema_of

_LONG = frozenset({"int64", "uint64", "sint64", "fixed64", "sfixed64"})


def generate_writer(schema: Schema, source: Source) -> None:
    """`render(m)`: the shadow of a message that has been checked."""
    if schema.message in SPECIAL:
        source.namespace["render"] = SPECIAL[schema.message].render
        return
    source.namespace.update(_HELPERS)
    shadow = source.bind("Shadow", written_shadow(schema.message))
    with source.block("def render(m):"):
        arguments = []
        for field in schema.fields:
            slots = [slot for slot in slots_of(schema.message) if slot.field is field]
            if field.form is Form.ONEOF:
                arguments += _oneof(source, field, slots)
            else:
                arguments.append(f"{slots[0].slot}={_field(source, field)}")
        source.line(f"return {shadow}({', '.join(arguments)})")


def _field(source: Source, field: FieldSchema) -> str:
    variable = source.fresh()
    source.line(f"{variable} = {attribute('m', field.attribute)}")
    if field.form is Form.LIST:
        element = _value(source, field.holds, "x")
        written = variable if element == "x" else f"[{element} for x in {variable}]"
        return f"{written} if {variable} else UNSET"
    if field.form is Form.MAP:
        return _map(source, field, variable)
    written = _value(source, field.holds, variable)
    if field.nullable:
        return f"UNSET if {variable} is None else {written}"
    if field.presence is not Presence.IMPLICIT:
        return written
    return f"UNSET if {_is_zero(source, field.holds, variable)} else {written}"


def _map(source: Source, field: FieldSchema, variable: str) -> str:
    element = _value(source, field.holds, "x")
    written = variable if element == "x" else f"{{k: {element} for k, x in {variable}.items()}}"
    return f"{written} if {variable} else UNSET"


def _oneof(source: Source, field: FieldSchema, slots: list[Slot]) -> list[str]:
    variable = source.fresh()
    source.line(f"{variable} = {attribute('m', field.attribute)}")
    chosen = []
    for slot in slots:
        owner = source.bind(slot.chosen.message.__name__, slot.chosen.message)
        if slot.chosen.transparent is None:
            written = _value(source, Value(kind="message", python=slot.chosen.message), variable)
        else:
            inner = schema_of(slot.chosen.message).fields[0]
            written = _value(source, slot.chosen.transparent, attribute(variable, inner.attribute))
        chosen.append(f"{slot.slot}={written} if {variable}.__class__ is {owner} else UNSET")
    return chosen


def _is_zero(source: Source, value: Value, variable: str) -> str:
    if value.kind in ("double", "float"):
        return f"not {variable} and is_zero({variable})"
    if value.kind == "decimal":
        return f"not {variable} and str({variable}) == '0'"
    if value.kind == "enum":
        return f"{_enum(source, value)}[{variable}] == {enum_schema_of(value.python).zero_name!r}"
    return "False" if value.kind == "uuid" else f"not {variable}"


def _enum(source: Source, value: Value) -> str:
    return source.bind("names", names_of(value.python))


def _value(source: Source, value: Value, variable: str) -> str:
    kind = value.kind
    if kind in _LONG:
        return f"f'{{{variable}}}'"
    if kind in INTEGER_RANGES:
        return variable
    if kind == "enum":
        return f"{_enum(source, value)}[{variable}]"
    if kind == "message":
        return f"{source.link('render', value.python)}({variable})"
    if kind in ("double", "float", "timestamp", "duration"):
        return f"{kind}({variable})"
    # Text and bool as they are; msgspec writes bytes as base64, decimals and UUIDs as text.
    return variable


class Names(dict[Any, "str | int"]):
    """The names of an enum's members; what this side does not know is written as its number."""

    def __init__(self, cls: type[Any]) -> None:
        schema = enum_schema_of(cls)
        super().__init__((member.member, member.name) for member in schema.members)
        for member in schema.members:
            if member.member.name == member.attribute:  # an alias does not hide its elder
                self[member.member] = member.name
        self._zero = schema.zero_name

    def __missing__(self, member: Any) -> str | int:
        number: int = member._number_
        return number or self._zero


_names: dict[type[Any], Names] = {}


def names_of(cls: type[Any]) -> Names:
    if cls not in _names:
        _names[cls] = Names(cls)
    return _names[cls]


_HELPERS: dict[str, Any] = {
    "UNSET": msgspec.UNSET,
    "double": spelled_double,
    "float": spelled_float,
    "is_zero": is_zero,
    "timestamp": spelled_timestamp,
    "duration": spelled_duration,
}
