"""Values of fields as text: in a path, in a query, in a header."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec

from polywire.contract.fields import FLOAT_KINDS, INTEGER_RANGES
from polywire.contract.schema import FieldSchema, Form, Value
from polywire.errors import InvalidArgument

Reader = Callable[[str, str], Any]
"""From the name of a field and its text to what JSON would have there. Raises InvalidArgument."""

_INTEGER = re.compile(r"[+-]?[0-9]{1,40}\Z")
_FLOAT = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?\Z")
_MAX_FLOAT = 400
_SPACE_FOR_PLUS = re.compile(r" (?=\d\d:?\d\d\Z)")
_BOOLEANS = {"true": True, "false": False, "1": True, "0": False}
_raw = msgspec.json.Decoder(msgspec.Raw).decode
_MAX_SHOWN = 60


def shown(text: str) -> str:
    """A peer's text inside of a sentence."""
    return repr(text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "...")


def _wrong(name: str, expected: str, text: str) -> InvalidArgument:
    return InvalidArgument(f"{name}: expected {expected}, got {shown(text)}", field=name)


def _text(name: str, text: str) -> str:
    return text


def _bool(name: str, text: str) -> bool:
    try:
        return _BOOLEANS[text.lower()]
    except KeyError:
        raise _wrong(name, "`bool` (true or false)", text) from None


def _int(name: str, text: str) -> int:
    if _INTEGER.match(text) is None:
        raise _wrong(name, "`int`", text)
    return int(text)


def _float(name: str, text: str) -> float:
    if len(text) > _MAX_FLOAT or _FLOAT.match(text) is None:
        raise _wrong(name, "`float`", text)
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise _wrong(name, "a finite `float`", text)
    return number


def _timestamp(name: str, text: str) -> str:
    # Whoever did not encode the plus sign of an offset in a query sent a space.
    return _SPACE_FOR_PLUS.sub("+", text)


def _bytes(name: str, text: str) -> str:
    """Base64, in either alphabet, with or without padding; JSON wants the plain one, padded."""
    text = text.replace("-", "+").replace("_", "/").rstrip("=").replace(" ", "+")
    return text + "=" * (-len(text) % 4)


def _json(name: str, text: str) -> Any:
    try:
        return _raw(text.encode())
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError):
        raise _wrong(name, "JSON", text) from None


def reader_for(value: Value) -> Reader:
    """How text becomes a *value*."""
    if value.kind in INTEGER_RANGES:
        return _int
    if value.kind in FLOAT_KINDS:
        return _float
    if value.kind == "enum":
        integer = all(isinstance(member.value, int) for member in value.python)
        return _int if integer else _text
    return {"bool": _bool, "bytes": _bytes, "timestamp": _timestamp, "message": _json}.get(value.kind, _text)


class Binding:
    """One field of a request that is given as text."""

    __slots__ = ("many", "name", "path", "read")

    def __init__(self, path: tuple[str, ...], read: Reader, *, many: bool) -> None:
        self.path = path
        """The wire names on the way to it, itself last."""
        self.name = ".".join(path)
        self.read = read
        self.many = many
        """A list: the name may be given several times."""


def binding_for(field: FieldSchema, outer: tuple[str, ...] = ()) -> Binding:
    """Scalars as themselves, lists of scalars by repeating the name, and all else as JSON."""
    path = (*outer, field.name)
    if field.form is Form.ONE and field.value is not None:
        return Binding(path, reader_for(field.value), many=False)
    if field.form is Form.LIST and field.value is not None and not field.value.is_message:
        return Binding(path, reader_for(field.value), many=True)
    return Binding(path, _json, many=False)


def is_scalar(field: FieldSchema) -> bool:
    return field.form is Form.ONE and field.value is not None and not field.value.is_message


# The way out: what JSON has there, as text.


def text_of(value: Any) -> str:
    """A scalar of a JSON document, or a whole part of one, as text."""
    if value.__class__ is str:
        return value
    if value is True or value is False:
        return "true" if value else "false"
    if value.__class__ is int:
        return str(value)
    return msgspec.json.encode(value).decode()
