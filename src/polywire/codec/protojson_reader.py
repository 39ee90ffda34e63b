"""Generates the functions that copy the shadows which msgspec read from ProtoJSON into our own messages."""

from __future__ import annotations

from typing import Any

from polywire.codec.base import Violation, missing
from polywire.codec.limits import emit_limits, emit_size
from polywire.codec.proto_reader import default_of, members_of
from polywire.codec.protojson_special import NULL, SPECIAL
from polywire.codec.protojson_values import to_bytes, to_datetime, to_double, to_float, to_int, to_timedelta
from polywire.codec.shadow import Slot, slots_of
from polywire.codec.source import Source
from polywire.codec.texts import to_decimal, to_uuid
from polywire.contract.fields import FLOAT_KINDS, INTEGER_RANGES, is_recognized, unrecognized
from polywire.contract.schema import FieldSchema, Form, Presence, Schema, Value, enum_schema_of, schema_of

_ZEROS = {"string": "''", "bool": "False", "bytes": "b''", "decimal": "to_decimal('', '')"}


def generate_strict_reader(schema: Schema, source: Source) -> None:
    """`read(s)`: a Message from a strict shadow. Raises Violation."""
    _Reader(schema, source, strict=True).write()


def generate_lenient_reader(schema: Schema, source: Source) -> None:
    """`read(s)`: a Message from a lenient shadow, which may have a field under either name. Raises Violation."""
    _Reader(schema, source, strict=False).write()


class _Reader:
    def __init__(self, schema: Schema, source: Source, *, strict: bool) -> None:
        self._schema = schema
        self._source = source
        self._strict = strict
        source.namespace.update(_HELPERS)

    def write(self) -> None:
        source, schema = self._source, self._schema
        if schema.message in SPECIAL:
            source.namespace["read"] = SPECIAL[schema.message].read
            return
        make = source.make(schema.message)
        with source.block("def read(s):"):
            arguments = []
            for field in schema.fields:
                slots = [slot for slot in slots_of(schema.message) if slot.field is field]
                one = field.form is Form.ONEOF
                variable = self._oneof(field, slots) if one else self._single(field, slots[0])
                arguments.append(f"{field.attribute}={variable}")
            source.line(f"return {make}({', '.join(arguments)})")

    def _take(self, slot: Slot) -> str:
        """A local with what JSON had: None where that was null or nothing."""
        source, variable = self._source, self._source.fresh()
        source.line(f"{variable} = s.{slot.slot}")
        if not self._strict and slot.name != slot.json_name:
            with source.block(f"if {variable} is None:"):
                source.line(f"{variable} = s.{slot.slot}_")
        if slot.special is not None and not slot.special.null_is_a_value:
            with source.block(f"if {variable} is not None and bytes({variable}) == {NULL!r}:"):
                source.line(f"{variable} = None")
        return variable

    def _single(self, field: FieldSchema, slot: Slot) -> str:
        source, variable = self._source, self._take(slot)
        if not self._needs_work(field):
            if field.nullable:
                return variable
            return f"{self._absent(field)} if {variable} is None else {variable}"
        with source.block(f"if {variable} is None:"):
            absent = self._absent(field)
            source.line(absent if absent.startswith("missing(") else f"{variable} = {absent}")
            if field.form is not Form.ONE:
                emit_size(source, field, variable, repr(field.json_name))
            elif field.presence is Presence.IMPLICIT and field.holds.constraints:
                emit_limits(source, field.holds, variable, repr(field.json_name))
        with source.block("else:"):
            if field.form is Form.LIST:
                self._list(field, variable)
            elif field.form is Form.MAP:
                self._map(field, variable)
            else:
                self._value(field.holds, variable, repr(field.json_name))
        return variable

    def _needs_work(self, field: FieldSchema) -> bool:
        """Whether there is more to do than to copy."""
        value = field.holds
        plain = value.kind in ("string", "bool") and not value.constraints and not field.constraints
        if field.form is Form.MAP and field.keyed_by.kind != "string":
            plain = False
        return not plain or field.presence is Presence.REQUIRED

    def _absent(self, field: FieldSchema) -> str:
        if field.form is Form.LIST:
            return "[]"
        if field.form is Form.MAP:
            return "{}"
        if field.presence is Presence.REQUIRED:
            return f"missing({field.json_name!r})"
        if field.presence is Presence.EXPLICIT:
            return default_of(self._source, field)
        kind = field.holds.kind
        if kind == "enum":
            return f"{self._source.bind('members', members_of(field.holds.python))}[0]"
        if kind == "uuid":
            return f"to_uuid('', {field.json_name!r})"
        return _ZEROS.get(kind, "0.0" if kind in FLOAT_KINDS else "0")

    def _value(self, value: Value, variable: str, path: str) -> None:
        """Lines that replace what JSON had with what it means."""
        source = self._source
        if value.kind == "message":
            read = f"{variable} = {source.link('read', value.python)}({variable})"
            if path == "''":
                source.line(read)
                return
            with source.block("try:"):
                source.line(read)
            self._within(path)
            return
        converted = self._converted(value, variable, path)
        if converted != variable:
            source.line(f"{variable} = {converted}")
        if value.constraints:
            emit_limits(source, value, variable, path)

    def _converted(self, value: Value, variable: str, path: str) -> str:
        kind = value.kind
        if kind in INTEGER_RANGES:
            low, high = INTEGER_RANGES[kind]
            return f"to_int({variable}, {low}, {high}, {path})"
        if kind in FLOAT_KINDS:
            return f"to_{kind}({variable}, {path})"
        if kind == "enum":
            return f"{self._source.bind('named', named_of(value.python))}[{variable}]"
        return variable if kind in ("string", "bool") else f"{_CONVERTERS[kind]}({variable}, {path})"

    def _list(self, field: FieldSchema, variable: str) -> None:
        source, value = self._source, field.holds
        emit_size(source, field, variable, repr(field.json_name))
        if value.kind in ("string", "bool") and not value.constraints:
            return
        made, element = source.fresh(), source.fresh("x")
        source.line(f"{made} = []")
        with source.block("try:"), source.block(f"for {element} in {variable}:"):
            self._value(value, element, "''")
            source.line(f"{made}.append({element})")
        self._within(f"f'{field.json_name}[{{len({made})}}]'")
        source.line(f"{variable} = {made}")

    def _map(self, field: FieldSchema, variable: str) -> None:
        source, key, value = self._source, field.keyed_by, field.holds
        emit_size(source, field, variable, repr(field.json_name))
        made, name, element = source.fresh(), source.fresh("k"), source.fresh("x")
        source.line(f"{made} = {{}}")
        with source.block("try:"), source.block(f"for {name}, {element} in {variable}.items():"):
            self._value(key, name, "''")
            self._value(value, element, "''")
            source.line(f"{made}[{name}] = {element}")
        self._within(repr(f"{field.json_name}[...]"))
        source.line(f"{variable} = {made}")

    def _oneof(self, field: FieldSchema, slots: list[Slot]) -> str:
        source, chosen = self._source, self._source.fresh()
        source.line(f"{chosen} = None")
        for slot in slots:
            variable = self._take(slot)
            with source.block(f"if {variable} is not None:"):
                with source.block(f"if {chosen} is not None:"):
                    source.line(f"raise Violation({slot.json_name!r}, 'excludes the other members of {field.name}')")
                if slot.chosen.transparent is None:
                    self._value(Value(kind="message", python=slot.chosen.message), variable, repr(slot.json_name))
                    source.line(f"{chosen} = {variable}")
                else:
                    self._value(slot.chosen.transparent, variable, repr(slot.json_name))
                    make = source.make(slot.chosen.message)
                    inner = schema_of(slot.chosen.message).fields[0]
                    source.line(f"{chosen} = {make}({inner.attribute}={variable})")
        if field.presence is Presence.REQUIRED:
            with source.block(f"if {chosen} is None:"):
                source.line(f"missing({field.json_name!r})")
        elif not field.nullable:
            with source.block(f"if {chosen} is None:"):
                source.line(f"{chosen} = {default_of(source, field)}")
        return chosen

    def _within(self, place: str) -> None:
        with self._source.block("except Violation as violation:"):
            self._source.line(f"raise violation.within({place})")


class Named(dict[Any, Any]):
    """Enum members by name and by number; what this side does not know gets a stand-in."""

    def __init__(self, cls: type[Any]) -> None:
        schema = enum_schema_of(cls)
        super().__init__(schema.by_number())
        self.update((member.name, member.member) for member in schema.members)
        self._enum = cls
        self._zero = schema.zero_name

    def __missing__(self, key: str | int) -> Any:
        if key == self._zero:
            return unrecognized(self._enum, number=0)
        if isinstance(key, int):
            return unrecognized(self._enum, number=key)
        return unrecognized(self._enum, value=key)


_named: dict[type[Any], Named] = {}


def named_of(cls: type[Any]) -> Named:
    if cls not in _named:
        _named[cls] = Named(cls)
    return _named[cls]


_CONVERTERS = {
    "bytes": "to_bytes",
    "timestamp": "to_datetime",
    "duration": "to_timedelta",
    "decimal": "to_decimal",
    "uuid": "to_uuid",
}
_HELPERS: dict[str, Any] = {
    "Violation": Violation,
    "missing": missing,
    "is_recognized": is_recognized,
    "to_int": to_int,
    "to_double": to_double,
    "to_float": to_float,
    "to_bytes": to_bytes,
    "to_datetime": to_datetime,
    "to_timedelta": to_timedelta,
    "to_decimal": to_decimal,
    "to_uuid": to_uuid,
}
