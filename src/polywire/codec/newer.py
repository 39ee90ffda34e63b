"""Reads JSON of a newer peer: enum values and union members that this side does not know fail nothing by themselves.

msgspec refuses both. Where it does, the bytes are read once more into a struct that takes them as they are: an unknown
enum value becomes a stand-in (`is_recognized` tells), an unknown member of a union becomes None or the default.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

import msgspec

from polywire.codec.base import MISSING, Violation, violation_from_msgspec
from polywire.codec.source import functions_lock, maker
from polywire.contract.fields import unrecognized
from polywire.contract.message import Message
from polywire.contract.schema import FieldSchema, Form, Presence, closure_of, enum_schema_of, schema_of

_KEY = "shadow for newer peers"
_Reader = Callable[[Any], Any]


def reader_for_newer(message: type[Message]) -> Callable[[bytes], Any] | None:
    """Decodes a message with whatever is new in it; None where nothing in it could be new."""
    if not any(_may_be_new(inner) for inner in closure_of(message)):
        return None
    shadow = _shadow(message)
    decode = msgspec.json.Decoder(shadow).decode
    return lambda data: _read(message, decode(data))


def _may_be_new(message: type[Message]) -> bool:
    return any(field.form is Form.ONEOF or field.holds.kind == "enum" for field in schema_of(message).fields)


def _shadow(message: type[Message]) -> type[Any]:
    cache = message.__polywire__.cache
    if _KEY not in cache:
        with functions_lock:
            new = [inner for inner in closure_of(message) if _KEY not in inner.__polywire__.cache]
            for inner in new:
                inner.__polywire__.cache[_KEY] = _blank(inner)
            for inner in new:
                inner.__polywire__.cache[_KEY].__annotations__ = {
                    field.attribute: _type_of(inner, field) for field in schema_of(inner).fields
                }
    found: type[Any] = cache[_KEY]
    return found


def _blank(message: type[Message]) -> type[Any]:
    fields: list[Any] = []
    for field in schema_of(message).fields:
        if field.required:
            fields.append((field.attribute, Any))
        elif field.default_factory is not msgspec.NODEFAULT:
            fields.append((field.attribute, Any, msgspec.field(default_factory=field.default_factory)))
        else:
            fields.append((field.attribute, Any, field.default))
    names = {field.attribute: field.name for field in schema_of(message).fields}
    return msgspec.defstruct(message.__name__, fields, rename=names, kw_only=True)


def _type_of(message: type[Message], field: FieldSchema) -> Any:
    if field.form is Form.ONEOF:
        return msgspec.Raw
    element: Any
    if field.holds.kind == "enum":
        element = str | int
    elif field.holds.is_message:
        element = _shadow(field.holds.python)
    else:
        return message.__annotations__[field.attribute]
    if field.form is Form.LIST:
        return list[element]
    if field.form is Form.MAP:
        return dict.__class_getitem__((str if field.keyed_by.kind == "string" else int, element))
    return element | None if field.nullable else element


def _read(message: type[Message], shadow: Any) -> Any:
    values = {}
    for field in schema_of(message).fields:
        value = getattr(shadow, field.attribute)
        try:
            values[field.attribute] = _field(field, value)
        except Violation as violation:
            raise violation.within(field.name) from None
    return maker(message)(**values)


def _field(field: FieldSchema, value: Any) -> Any:
    if field.form is Form.ONEOF:
        return _member(field, value) if isinstance(value, msgspec.Raw) else value
    one = _reader_of(field)
    if one is None or value is None:
        return value
    if field.form is Form.LIST:
        return [_element(one, element, f"[{index}]") for index, element in enumerate(value)]
    if field.form is Form.MAP:
        return {key: _element(one, element, "[...]") for key, element in value.items()}
    return one(value)


def _element(one: _Reader, element: Any, place: str) -> Any:
    try:
        return one(element)
    except Violation as violation:
        raise violation.within(place) from None


def _reader_of(field: FieldSchema) -> _Reader | None:
    cls = field.holds.python
    if field.holds.kind == "enum":
        return lambda value: _enum(cls, value)
    if field.holds.is_message:
        # A default stands there as it is, and is no shadow.
        return lambda value: value if isinstance(value, Message) else _read(cls, value)
    return None


def _enum(cls: Any, value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value
    for member in enum_schema_of(cls).members:
        if member.member.value == value:
            return member.member
    if isinstance(value, int) and not -(2**31) <= value < 2**31:
        raise Violation("", f"invalid enum value {value}")
    return unrecognized(cls, value=value)


def _member(field: FieldSchema, raw: msgspec.Raw) -> Any:
    if bytes(raw) == b"null":
        if not field.nullable:
            raise Violation("", "expected `object`, got `null`")
        return None
    tag_field = field.members[0].message.__struct_config__.tag_field or "type"
    try:
        tag = msgspec.json.decode(raw, type=dict[str, Any]).get(tag_field)
        for member in field.members:
            if member.tag == tag:
                shadow = _shadow(member.message)
                return _read(member.message, msgspec.json.decode(raw, type=shadow))
    except msgspec.ValidationError as error:
        raise violation_from_msgspec(str(error)) from None
    if field.presence is Presence.REQUIRED:
        raise Violation("", MISSING if tag is None else f"invalid value {str(tag)[:40]!r} of `{tag_field}`")
    default = field.default_value()
    return None if default is msgspec.NODEFAULT else default
