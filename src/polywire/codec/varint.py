"""Protobuf's wire format, one field at a time: what generated writers call where their tables end.

Everything here is text with one character per byte (latin-1), because f-strings and `str.join` put text together faster
than anything puts bytes together; the whole message is turned into bytes once, at its end, in the time of a copy.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NoReturn
from uuid import UUID

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
SMALL = 128
"""Tables of one-byte varints have this many entries."""

WIRE_TYPES = {
    "double": FIXED64,
    "fixed64": FIXED64,
    "sfixed64": FIXED64,
    "float": FIXED32,
    "fixed32": FIXED32,
    "sfixed32": FIXED32,
    "bool": VARINT,
    "int32": VARINT,
    "int64": VARINT,
    "uint32": VARINT,
    "uint64": VARINT,
    "sint32": VARINT,
    "sint64": VARINT,
    "enum": VARINT,
}

_ONE = [chr(n) for n in range(SMALL)]
TWO = _ONE + [chr(n & 127 | 128) + chr(n >> 7) for n in range(128, 1 << 14)]
"""Varints of one and two bytes, which is what most lengths and numbers are."""
_MORE = [chr(n & 127 | 128) + chr(n >> 7 | 128) for n in range(1 << 14)]
"""Two bytes of a longer varint."""


def varint(number: int) -> str:
    """A number from 0 to 2**64-1."""
    if number < 1 << 14:
        return TWO[number]
    if number < 1 << 28:
        return _MORE[number & 16383] + TWO[number >> 14]
    if number < 1 << 42:
        return _MORE[number & 16383] + _MORE[number >> 14 & 16383] + TWO[number >> 28]
    return _MORE[number & 16383] + _MORE[number >> 14 & 16383] + _MORE[number >> 28 & 16383] + varint(number >> 42)


def tag_of(number: int, kind: str) -> str:
    return varint(number << 3 | WIRE_TYPES.get(kind, LENGTH))


def table(tag: str, *, zero: str) -> list[str]:
    """What precedes a value of a one-byte length, or a one-byte number with its tag, by that length or number."""
    return [zero, *(tag + _ONE[n] for n in range(1, SMALL))]


def prefix(tag: str, length: int) -> str:
    return tag + varint(length)


def signed(number: int, low: int, high: int) -> str:
    """A varint of two's complement: int32, int64, uint32, uint64. Raises where *number* is not an integer in range."""
    if not low <= number <= high:
        raise OverflowError(f"{number} is not from {low} to {high}")
    if number.__class__ is not int:
        number = _integer(number)
    return varint(number if number >= 0 else number + (1 << 64))


def zigzag(number: int, low: int, high: int) -> str:
    """sint32 and sint64."""
    if not low <= number <= high:
        raise OverflowError(f"{number} is not from {low} to {high}")
    number = _integer(number)
    return varint(number << 1 if number >= 0 else (-number << 1) - 1)


def zero_int(number: Any) -> str:
    """Nothing, for what is false and has to be the integer 0."""
    _integer(number)
    return ""


def _integer(number: Any) -> int:
    if not isinstance(number, int):
        raise TypeError(f"{type(number).__name__} is no int")
    return int(number)


_FORMATS = {"double": "<d", "float": "<f", "fixed32": "<I", "sfixed32": "<i", "fixed64": "<Q", "sfixed64": "<q"}


def packer(kind: str) -> Callable[[Any], str]:
    """What writes a number of fixed size."""
    pack = struct.Struct(_FORMATS[kind]).pack
    return lambda number: pack(number).decode("latin-1")


def zero_of(kind: str) -> str:
    """A zero of fixed size."""
    return "\0" * struct.calcsize(_FORMATS[kind])


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def timestamp(value: datetime) -> str:
    """The body of a google.protobuf.Timestamp, whose nanos are never negative.

    Raises TypeError for a datetime without a time zone, OverflowError for one outside of the years 1 to 9999 in UTC.
    """
    if value.tzinfo is not UTC and value.utcoffset() is not None:
        value = value.astimezone(UTC)
    since = value - _EPOCH
    seconds = since.days * 86400 + since.seconds
    written = "\x08" + varint(seconds if seconds >= 0 else seconds + (1 << 64)) if seconds else ""
    return written + "\x10" + varint(since.microseconds * 1000) if since.microseconds else written


def duration(value: timedelta) -> str:
    """The body of a google.protobuf.Duration, whose nanos have the sign of its seconds."""
    seconds = value.days * 86400 + value.seconds
    micros = value.microseconds
    if seconds < 0 and micros:
        seconds, micros = seconds + 1, micros - 1_000_000
    written = ""
    if seconds:
        written = "\x08" + varint(seconds if seconds >= 0 else seconds + (1 << 64))
    if micros:
        nanos = micros * 1000
        written += "\x10" + varint(nanos if nanos >= 0 else nanos + (1 << 64))
    return written


def decimal_text(value: Decimal) -> str:
    if value.__class__ is not Decimal and not isinstance(value, Decimal):
        raise TypeError(f"{type(value).__name__} is no Decimal")
    if not value.is_finite():
        raise ValueError(f"{value} is not finite")
    return str(value)


def uuid_text(value: UUID) -> str:
    if value.__class__ is not UUID and not isinstance(value, UUID):
        raise TypeError(f"{type(value).__name__} is no UUID")
    return str(value)


def refuse(value: Any) -> NoReturn:
    """Raise for a value that is none of what its field may hold."""
    raise TypeError(f"{type(value).__name__} is of the wrong type")


def utf8(value: Any) -> str:
    """Text that is not ASCII, or not exactly a `str`: then its own methods are not to be trusted with its length."""
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} is no str")
    return str.encode(value).decode("latin-1")


def raw(value: Any) -> str:
    if not isinstance(value, (bytes, bytearray)):
        raise TypeError(f"{type(value).__name__} is no bytes")
    return value.decode("latin-1")
