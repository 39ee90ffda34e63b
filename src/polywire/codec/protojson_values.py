"""Single values in ProtoJSON: how numbers, bytes, instants and spans are spelled, and which spellings are read."""

from __future__ import annotations

import base64
import binascii
import math
import re
import struct
from datetime import UTC, datetime, timedelta
from typing import Any

from polywire.codec.base import Violation
from polywire.codec.checks import FLOAT32_LIMIT

_INTEGER = re.compile(r"-?[0-9]{1,20}\Z")
_NUMBER = re.compile(r"-?[0-9]{1,400}(\.[0-9]{1,400})?([eE][+-]?[0-9]{1,4})?\Z")
_WORDS = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}
_INSTANT = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?([Zz]|[+-][0-9]{2}:[0-9]{2})\Z"
)
_SPAN = re.compile(r"(-?)([0-9]{1,12})(?:\.([0-9]{1,9}))?s\Z")


def to_int(value: Any, low: int, high: int, path: str) -> int:
    if value.__class__ is str:
        # Most are plain digits, and seeing that costs less than a pattern.
        if not (value.isdecimal() and value.isascii() and len(value) <= 20) and _INTEGER.match(value) is None:
            raise Violation(path, "expected `int`, got `str`")
        value = int(value)
    elif value.__class__ is float:
        if not value.is_integer():
            raise Violation(path, "expected `int`, got `float`")
        value = int(value)
    if low <= value <= high:
        number: int = value
        return number
    raise Violation(path, f"expected `int` >= {low}" if value < low else f"expected `int` <= {high}")


def to_double(value: Any, path: str) -> float:
    if value.__class__ is float:
        number: float = value
        return number
    if value.__class__ is str:
        if value in _WORDS:
            return _WORDS[value]
        if _NUMBER.match(value) is None:
            raise Violation(path, "expected `float`, got `str`")
    try:
        number = float(value)
    except OverflowError:
        raise Violation(path, "number out of range") from None
    if number in (float("inf"), float("-inf")):
        raise Violation(path, "number out of range")
    return number


def to_float(value: Any, path: str) -> float:
    number = to_double(value, path)
    if FLOAT32_LIMIT <= abs(number) < float("inf"):
        raise Violation(path, "number out of range of 32 bits")
    rounded: float = struct.unpack("<f", struct.pack("<f", number))[0]
    return rounded


def to_bytes(text: str, path: str) -> bytes:
    """Base64 in either alphabet, with or without its padding."""
    try:
        plain = text.replace("-", "+").replace("_", "/").rstrip("=")
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise Violation(path, "invalid base64 encoded string") from None


def to_datetime(text: str, path: str) -> datetime:
    """RFC 3339; what is finer than a microsecond is cut off."""
    if _INSTANT.match(text) is None:
        raise Violation(path, "invalid RFC3339 encoded datetime")
    try:
        return datetime.fromisoformat(text.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        raise Violation(path, "invalid RFC3339 encoded datetime") from None


def to_timedelta(text: str, path: str) -> timedelta:
    found = _SPAN.match(text)
    if found is None or int(found[2]) > 315_576_000_000:
        raise Violation(path, "expected a duration such as '90.5s', of at most 10000 years")
    span = timedelta(0, int(found[2]), int((found[3] or "").ljust(6, "0")[:6]))
    return -span if found[1] else span


_FLOAT_MAX = (2 - 2**-23) * 2.0**127
"""Google's parser refuses anything above, although it would round to it."""


def spelled_double(value: float) -> float | str:
    number = float(value)
    return number if math.isfinite(number) else _spelled(number)


def spelled_float(value: float) -> float | str:
    """The shortest decimal that rounds to the same 32 bits, and is not above what 32 bits can hold."""
    number: float = struct.unpack("<f", struct.pack("<f", value))[0]
    if not math.isfinite(number):
        return _spelled(number)
    for digits in (6, 7, 8, 9):
        short = float(f"{number:.{digits}g}")
        if abs(short) <= _FLOAT_MAX and struct.pack("<f", short) == struct.pack("<f", number):
            return short
    return number


def _spelled(number: float) -> str:
    if number != number:
        return "NaN"
    return "Infinity" if number > 0 else "-Infinity"


def is_zero(value: float) -> bool:
    return value == 0 and math.copysign(1, value) > 0


def spelled_timestamp(value: datetime) -> str:
    if value.tzinfo is not UTC:
        value = value.astimezone(UTC)
    text = value.isoformat(timespec=_precision(value.microsecond))
    return text[:-6] + "Z"


def _precision(micros: int) -> str:
    if not micros:
        return "seconds"
    return "microseconds" if micros % 1000 else "milliseconds"


def spelled_duration(value: timedelta) -> str:
    total = (value.days * 86400 + value.seconds) * 1_000_000 + value.microseconds
    sign, (seconds, micros) = "-" if total < 0 else "", divmod(abs(total), 1_000_000)
    if not micros:
        return f"{sign}{seconds}s"
    return f"{sign}{seconds}.{micros:06}s" if micros % 1000 else f"{sign}{seconds}.{micros // 1000:03}s"
