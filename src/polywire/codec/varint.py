"""Protobuf's wire format, one field at a time: what generated writers call where their tables end."""

from __future__ import annotations

import struct
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
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

_ONE = [bytes((n,)) for n in range(SMALL)]
TWO = _ONE + [bytes((n & 127 | 128, n >> 7)) for n in range(128, 1 << 14)]
"""Varints of one and two bytes, which is what most lengths and numbers are."""
_MORE = [bytes((n & 127 | 128, n >> 7 | 128)) for n in range(1 << 14)]
"""Two bytes of a longer varint."""


def varint(number: int) -> bytes:
    """A number from 0 to 2**64-1."""
    if number < 1 << 14:
        return TWO[number]
    if number < 1 << 28:
        return _MORE[number & 16383] + TWO[number >> 14]
    if number < 1 << 42:
        return _MORE[number & 16383] + _MORE[number >> 14 & 16383] + TWO[number >> 28]
    return _MORE[number & 16383] + _MORE[number >> 14 & 16383] + _MORE[number >> 28 & 16383] + varint(number >> 42)


def tag_of(number: int, kind: str) -> bytes:
    return varint(number << 3 | WIRE_TYPES.get(kind, LENGTH))


def table(tag: bytes, *, zero: bytes) -> list[bytes]:
    """What precedes a value of a one-byte length, or a one-byte number with its tag, by that length or number."""
    return [zero, *(tag + _ONE[n] for n in range(1, SMALL))]


def prefix(tag: bytes, length: int) -> bytes:
    return tag + varint(length)


def signed(number: int, low: int, high: int) -> bytes:
    """A varint of two's complement: int32, int64, uint32, uint64. Raises where *number* is not an integer in range."""
    if not low <= number <= high:
        raise OverflowError(f"{number} is not from {low} to {high}")
    if number.__class__ is not int:
        number = _integer(number)
    return varint(number if number >= 0 else number + (1 << 64))


def zigzag(number: int, low: int, high: int) -> bytes:
    """sint32 and sint64."""
    if not low <= number <= high:
        raise OverflowError(f"{number} is not from {low} to {high}")
    number = _integer(number)
    return varint(number << 1 if number >= 0 else (-number << 1) - 1)


def zero_int(number: Any) -> bytes:
    """Nothing, for what is false and has to be the integer 0."""
    _integer(number)
    return b""


def _integer(number: Any) -> int:
    if not isinstance(number, int):
        raise TypeError(f"{type(number).__name__} is no int")
    return int(number)


pack_double = struct.Struct("<d").pack
_pack_float = struct.Struct("<f").pack
_FIXED = {
    "fixed32": struct.Struct("<I").pack,
    "sfixed32": struct.Struct("<i").pack,
    "fixed64": struct.Struct("<Q").pack,
    "sfixed64": struct.Struct("<q").pack,
}
ZERO_DOUBLE = bytes(8)
ZERO_FLOAT = bytes(4)


def pack_float(number: float) -> bytes:
    return _pack_float(number)


def packer(kind: str) -> Any:
    """The `struct` function of a fixed-size kind."""
    if kind in _FIXED:
        return _FIXED[kind]
    return pack_double if kind == "double" else pack_float


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def timestamp(value: datetime) -> bytes:
    """The body of a google.protobuf.Timestamp, whose nanos are never negative.

    Raises TypeError for a datetime without a time zone, OverflowError for one outside of the years 1 to 9999 in UTC.
    """
    if value.tzinfo is not UTC and value.utcoffset() is not None:
        value = value.astimezone(UTC)
    since = value - _EPOCH
    seconds = since.days * 86400 + since.seconds
    written = b"\x08" + varint(seconds if seconds >= 0 else seconds + (1 << 64)) if seconds else b""
    return written + b"\x10" + varint(since.microseconds * 1000) if since.microseconds else written


def duration(value: timedelta) -> bytes:
    """The body of a google.protobuf.Duration, whose nanos have the sign of its seconds."""
    seconds = value.days * 86400 + value.seconds
    micros = value.microseconds
    if seconds < 0 and micros:
        seconds, micros = seconds + 1, micros - 1_000_000
    written = b""
    if seconds:
        written = b"\x08" + varint(seconds if seconds >= 0 else seconds + (1 << 64))
    if micros:
        nanos = micros * 1000
        written += b"\x10" + varint(nanos if nanos >= 0 else nanos + (1 << 64))
    return written


def decimal_text(value: Decimal) -> bytes:
    if value.__class__ is not Decimal and not isinstance(value, Decimal):
        raise TypeError(f"{type(value).__name__} is no Decimal")
    if not value.is_finite():
        raise ValueError(f"{value} is not finite")
    return str(value).encode()


def uuid_text(value: UUID) -> bytes:
    if value.__class__ is not UUID and not isinstance(value, UUID):
        raise TypeError(f"{type(value).__name__} is no UUID")
    return str(value).encode()
