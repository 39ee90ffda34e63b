"""Generates the functions that copy what the protobuf runtime parsed into our own messages."""

from __future__ import annotations

from typing import Any

import msgspec

from polywire.codec import texts
from polywire.codec.base import Violation, missing
from polywire.codec.descriptors import runtime_class
from polywire.codec.limits import emit_limits, emit_size
from polywire.codec.source import Source, attribute
from polywire.contract.fields import is_recognized, unrecognized
from polywire.contract.schema import FieldSchema, Form, Presence, Schema, Value, enum_schema_of, schema_of

_CONVERTED = {"decimal": "to_decimal", "uuid": "to_uuid", "timestamp": "to_datetime", "duration": "to_timedelta"}
_HELPERS: dict[str, Any] = {
    "Violation": Violation,
    "missing": missing,
    "is_recognized": is_recognized,
    **{name: getattr(texts, name) for name in _CONVERTED.values()},
}


class Members(dict[int, Any]):
    """Enum members by number; a number that this side does not know gets a stand-in, made anew each time."""

    def __init__(self, cls: type[Any]) -> None:
        super().__init__(enum_schema_of(cls).by_number())
        self._enum = cls

    def __missing__(self, number: int) -> Any:
        return unrecognized(self._enum, number=number)


def generate_reader(schema: Schema, source: Source) -> None:
    """`read(m)`: a Message from an object of the runtime. Raises Violation."""
    source.namespace.update(_HELPERS)
    # Taken from the class: a field may have the same name, and looking for one first would cost time.
    runtime = runtime_class(schema.message)
    source.namespace.update(has=runtime.HasField, which_oneof=runtime.WhichOneof)
    _Reader(schema, source).write()


class _Reader:
    def __init__(self, schema: Schema, source: Source) -> None:
        self._schema = schema
        self._source = source

    def write(self) -> None:
        source = self._source
        make = source.make(self._schema.message)
        with source.block("def read(m):"):
            arguments = [f"{field.attribute}={self._field(field)}" for field in self._schema.fields]
            source.line(f"return {make}({', '.join(arguments)})")

    def _field(self, field: FieldSchema) -> str:
        """An expression for the field's value, after lines that prepare it."""
        if field.form is Form.ONEOF:
            return self._oneof(field)
        if field.form is Form.LIST:
            return self._list(field)
        if field.form is Form.MAP:
            return self._map(field)
        return self._single(field)

    def _single(self, field: FieldSchema) -> str:
        source, value = self._source, field.holds
        read = attribute("m", field.name)
        if field.presence is Presence.IMPLICIT:
            return self._checked(value, read, field.name)
        variable = source.fresh()
        with source.block(f"if has(m, {field.name!r}):"):
            source.line(f"{variable} = {self._checked(value, read, field.name)}")
        with source.block("else:"):
            source.line(self._absent(field, variable))
        return variable

    def _absent(self, field: FieldSchema, variable: str) -> str:
        if field.presence is Presence.REQUIRED:
            return f"missing({field.name!r})"
        return f"{variable} = {default_of(self._source, field)}"

    def _checked(self, value: Value, read: str, name: str) -> str:
        """An expression for one value, read from *read*, whose constraints have been checked."""
        source = self._source
        if value.kind == "message":
            variable = source.fresh()
            if is_plain(value.python):
                source.line(f"{variable} = {read}")
                return inlined(source, value.python, variable)
            with source.block("try:"):
                source.line(f"{variable} = {source.link('read', value.python)}({read})")
            self._within(repr(name))
            return variable
        expression = self._converted(value, read, repr(name))
        if not value.constraints:
            return expression
        variable = source.fresh()
        source.line(f"{variable} = {expression}")
        emit_limits(source, value, variable, repr(name))
        return variable

    def _converted(self, value: Value, read: str, path: str) -> str:
        if value.kind == "enum":
            return f"{self._source.bind('members', members_of(value.python))}[{read}]"
        if value.kind in _CONVERTED:
            return f"{_CONVERTED[value.kind]}({read}, {path})"
        return read

    def _list(self, field: FieldSchema) -> str:
        source, value = self._source, field.holds
        variable = source.fresh()
        # A slice is a plain list, made in C.
        source.line(f"{variable} = {attribute('m', field.name)}[:]")
        emit_size(source, field, variable, repr(field.name))
        if value.kind == "message" and is_plain(value.python):
            return f"[{inlined(source, value.python, 'x')} for x in {variable}]"
        if value.kind == "message":
            self._guarded(field, variable, f"[{source.link('read', value.python)}(x) for x in {variable}]")
        elif value.kind == "enum":
            return f"[{self._converted(value, 'x', '')} for x in {variable}]"
        elif value.kind in _CONVERTED:
            self._guarded(field, variable, f"[{self._converted(value, 'x', repr(''))} for x in {variable}]")
        if value.constraints:
            index, element = source.fresh("i"), source.fresh()
            with source.block(f"for {index}, {element} in enumerate({variable}):"):
                emit_limits(source, value, element, f"f'{field.name}[{{{index}}}]'")
        return variable

    def _guarded(self, field: FieldSchema, variable: str, comprehension: str) -> None:
        """Read all elements; should one be refused, find out which (which costs nothing until then)."""
        source, value = self._source, field.holds
        with source.block("try:"):
            source.line(f"{variable} = {comprehension}")
        with source.block("except Violation:"):
            index, element = source.fresh("i"), source.fresh()
            with source.block(f"for {index}, {element} in enumerate({variable}):"):
                one = (
                    f"{source.link('read', value.python)}({element})"
                    if value.kind == "message"
                    else self._converted(value, element, repr(""))
                )
                with source.block("try:"):
                    source.line(one)
                self._within(f"f'{field.name}[{{{index}}}]'")
            source.line("raise")

    def _map(self, field: FieldSchema) -> str:
        source, key, value = self._source, field.keyed_by, field.holds
        variable = source.fresh()
        read = attribute("m", field.name)
        if value.kind == "message" or value.kind in _CONVERTED or value.kind == "enum":
            one = (
                f"{source.link('read', value.python)}(x)"
                if value.kind == "message"
                else self._converted(value, "x", repr(""))
            )
            with source.block("try:"):
                source.line(f"{variable} = {{k: {one} for k, x in {read}.items()}}")
            self._within(repr(f"{field.name}[...]"))
        else:
            source.line(f"{variable} = dict({read}.items())")
        emit_size(source, field, variable, repr(field.name))
        for part, values in ((key, variable), (value, f"{variable}.values()")):
            if part.constraints:
                element = source.fresh()
                with source.block(f"for {element} in {values}:"):
                    emit_limits(source, part, element, repr(f"{field.name}[...]"))
        return variable

    def _oneof(self, field: FieldSchema) -> str:
        source = self._source
        which, variable = source.fresh("w"), source.fresh()
        source.line(f"{which} = which_oneof(m, {field.name!r})")
        word = "if"
        with source.block("try:"):
            for member in field.members:
                with source.block(f"{word} {which} == {member.name!r}:"):
                    read = attribute("m", member.name)
                    if member.transparent is None:
                        source.line(f"{variable} = {source.link('read', member.message)}({read})")
                    else:
                        inner = schema_of(member.message).fields[0]
                        make = source.make(member.message)
                        checked = self._checked(member.transparent, read, inner.name)
                        source.line(f"{variable} = {make}({inner.attribute}={checked})")
                word = "elif"
            with source.block("else:"):
                source.line(self._absent_oneof(field, variable))
        self._within(repr(field.name))
        return variable

    def _absent_oneof(self, field: FieldSchema, variable: str) -> str:
        if field.presence is Presence.REQUIRED:
            return "missing('')"
        return f"{variable} = {default_of(self._source, field)}"

    def _within(self, place: str) -> None:
        with self._source.block("except Violation as violation:"):
            self._source.line(f"raise violation.within({place})")


_members: dict[type[Any], Members] = {}


def members_of(cls: type[Any]) -> Members:
    if cls not in _members:
        _members[cls] = Members(cls)
    return _members[cls]


def default_of(source: Source, field: FieldSchema) -> str:
    """An expression for what an absent field is."""
    if field.default_factory is not msgspec.NODEFAULT:
        return f"{source.bind('factory', field.default_factory)}()"
    if field.default is msgspec.NODEFAULT or field.default is None:
        return "None"
    return source.bind("default", field.default)


def is_plain(message: Any) -> bool:
    """Whether all that its reader would do is copy attributes."""
    return not hasattr(message, "__post_init__") and all(
        field.form is Form.ONE
        and field.presence is Presence.IMPLICIT
        and not field.holds.constraints
        and field.holds.kind not in _CONVERTED
        and field.holds.kind != "message"
        for field in schema_of(message).fields
    )


def inlined(source: Source, message: Any, variable: str) -> str:
    """A plain message's reader as an expression, which saves a call for each element of a list."""
    schema = schema_of(message)
    make = source.make(message)
    arguments = []
    for field in schema.fields:
        read = attribute(variable, field.name)
        if field.holds.kind == "enum":
            read = f"{source.bind('members', members_of(field.holds.python))}[{read}]"
        arguments.append(f"{field.attribute}={read}")
    return f"{make}({', '.join(arguments)})"
