"""Values that travel as text or as a well-known message: decimals, UUIDs, timestamps and durations, read with care."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec

from polywire.codec.base import Violation

_DECIMAL = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,6})?\Z", re.ASCII)
MAX_DECIMAL = 4300
"""Characters: as many as Python converts without being asked twice."""
_UUID = re.compile(r"[0-9a-fA-F]{8}(-?)[0-9a-fA-F]{4}\1[0-9a-fA-F]{4}\1[0-9a-fA-F]{4}\1[0-9a-fA-F]{12}\Z")
_from_seconds = datetime.fromtimestamp
_convert = msgspec.convert


def to_decimal(text: str, path: str) -> Decimal:
    """A decimal number in plain or scientific notation, `12.50` or `1E+3`; nothing is 0, as an absent field is."""
    if not text:
        return Decimal(0)
    if len(text) > MAX_DECIMAL or _DECIMAL.match(text) is None:
        raise Violation(path, "expected a decimal number such as '12.50'")
    return Decimal(text)


def to_uuid(text: str, path: str) -> UUID:
    if _UUID.match(text) is None:
        raise Violation(path, "expected a UUID such as '9b2f0c1e-5d3a-4c6b-8f7e-0a1b2c3d4e5f'")
    found: UUID = _convert(text, UUID)
    return found


def to_datetime(stamp: Any, path: str) -> datetime:
    """From a Timestamp of the protobuf runtime. What is finer than a microsecond is cut off."""
    nanos = stamp.nanos
    if not 0 <= nanos <= 999_999_999:
        raise Violation(path, "expected nanoseconds of a timestamp from 0 to 999999999")
    try:
        whole = _from_seconds(stamp.seconds, UTC)
        return whole.replace(microsecond=nanos // 1000) if nanos else whole
    except (OverflowError, ValueError, OSError):  # the last one is the platform's own
        raise Violation(path, "expected a timestamp from the year 1 to 9999") from None


def to_timedelta(span: Any, path: str) -> timedelta:
    """From a Duration of the protobuf runtime. What is finer than a microsecond is cut off."""
    seconds, nanos = span.seconds, span.nanos
    if not -999_999_999 <= nanos <= 999_999_999 or (seconds < 0 < nanos) or (nanos < 0 < seconds):
        raise Violation(path, "expected nanoseconds of a duration with the sign of its seconds, less than a second")
    if not -315_576_000_000 <= seconds <= 315_576_000_000:
        raise Violation(path, "expected a duration of at most 10000 years")
    return timedelta(0, seconds, nanos // 1000 if nanos >= 0 else -(-nanos // 1000))
