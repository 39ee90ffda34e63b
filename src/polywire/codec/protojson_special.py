"""ProtoJSON of the messages that come with protobuf, which is not that of their fields: "text", 5, "a,b", any JSON."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import msgspec

from polywire.codec.base import Violation, violation_from_msgspec
from polywire.codec.protojson_values import (
    spelled_double,
    spelled_float,
    to_bytes,
    to_double,
    to_float,
    to_int,
)
from polywire.contract import wellknown
from polywire.contract.fields import INTEGER_RANGES
from polywire.contract.message import Message
from polywire.contract.schema import lower_camel, schema_of

NULL = b"null"


@dataclass(frozen=True, slots=True)
class Special:
    """Both ways of one message: `render` makes what msgspec writes, `read` takes JSON. Both raise Violation."""

    render: Callable[[Any], Any]
    read: Callable[[msgspec.Raw], Any]
    null_is_a_value: bool = False


def parsed(raw: msgspec.Raw, kind: Any) -> Any:
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as error:
        raise violation_from_msgspec(str(error)) from None


def _wrapper(message: type[Message], kind: str) -> Special:
    """A wrapper is written as the value inside of it."""
    make = cast(Any, message)
    if kind in INTEGER_RANGES:
        low, high = INTEGER_RANGES[kind]
        long = kind in ("int64", "uint64")
        return Special(
            lambda wrapper: str(wrapper.value) if long else wrapper.value,
            lambda raw: make(value=to_int(parsed(raw, int | float | str), low, high, "")),
        )
    if kind in ("double", "float"):
        spelled, read = (spelled_double, to_double) if kind == "double" else (spelled_float, to_float)
        return Special(
            lambda wrapper: spelled(wrapper.value), lambda raw: make(value=read(parsed(raw, int | float | str), ""))
        )
    if kind == "bytes":
        return Special(lambda wrapper: wrapper.value, lambda raw: make(value=to_bytes(parsed(raw, str), "")))
    plain = bool if kind == "bool" else str
    return Special(lambda wrapper: wrapper.value, lambda raw: make(value=parsed(raw, plain)))


def _number(value: float) -> float | int:
    if not math.isfinite(value):
        raise Violation("", f"{value} cannot be written as JSON")
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


def _render_value(value: wellknown.Value) -> Any:
    kind = value.kind
    if isinstance(kind, wellknown.ValueNumber):
        return _number(kind.value)
    if isinstance(kind, wellknown.ValueStruct):
        return _render_struct(kind.value)
    if isinstance(kind, wellknown.ValueList):
        return _render_list(kind.value)
    return value.plain()


def _render_struct(struct: wellknown.Struct) -> dict[str, Any]:
    return {name: _render_value(value) for name, value in struct.fields.items()}


def _render_list(values: wellknown.ListValue) -> list[Any]:
    return [_render_value(value) for value in values.values]


def _plain(raw: msgspec.Raw, kind: Any) -> Any:
    plain = parsed(raw, kind)
    _refuse_huge(plain)
    return plain


def _refuse_huge(plain: Any) -> None:
    """JSON may have integers that are no float."""
    for element in plain.values() if isinstance(plain, dict) else plain if isinstance(plain, list) else [plain]:
        if isinstance(element, (dict, list)):
            _refuse_huge(element)
        elif isinstance(element, int) and abs(element) > 2**1023:
            raise Violation("", "number out of range")


def _render_mask(mask: wellknown.FieldMask) -> str:
    return ",".join(".".join(lower_camel(part) for part in path.split(".")) for path in mask.paths)


def _read_mask(raw: msgspec.Raw) -> wellknown.FieldMask:
    text = parsed(raw, str)
    if "_" in text:
        raise Violation("", "expected the lowerCamelCase names of fields, separated by commas")
    paths = [re.sub("[A-Z]", lambda letter: "_" + letter[0].lower(), path) for path in text.split(",")] if text else []
    return wellknown.FieldMask(paths=paths)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_INSTANT = re.compile(r"([0-9T:-]{19})(?:\.([0-9]{1,9}))?(Z|[+-][0-9]{2}:[0-9]{2})\Z")
_SPAN = re.compile(r"(-?)([0-9]{1,12})(?:\.([0-9]{1,9}))?s\Z")


def _fraction(nanos: int) -> str:
    if not nanos:
        return ""
    digits = f"{nanos:09}"
    return "." + (digits[:3] if digits.endswith("000000") else digits[:6] if digits.endswith("000") else digits)


def _render_timestamp(stamp: wellknown.Timestamp) -> str:
    if not 0 <= stamp.nanos <= 999_999_999:
        raise Violation("nanos", "expected nanoseconds of a timestamp from 0 to 999999999")
    try:
        whole = _EPOCH + timedelta(0, stamp.seconds)
    except OverflowError:
        raise Violation("seconds", "expected a timestamp from the year 1 to 9999") from None
    return whole.isoformat(timespec="seconds")[:-6] + _fraction(stamp.nanos) + "Z"


def _read_timestamp(raw: msgspec.Raw) -> wellknown.Timestamp:
    found = _INSTANT.match(parsed(raw, str))
    try:
        if found is None:
            raise ValueError
        since = datetime.fromisoformat(found[1] + found[3]).astimezone(UTC) - _EPOCH
    except (ValueError, OverflowError):
        raise Violation("", "invalid RFC3339 encoded datetime") from None
    return wellknown.Timestamp(seconds=since.days * 86400 + since.seconds, nanos=int((found[2] or "").ljust(9, "0")))


def _render_duration(span: wellknown.Duration) -> str:
    sign = "-" if span.seconds < 0 or span.nanos < 0 else ""
    if abs(span.nanos) > 999_999_999 or span.seconds * span.nanos < 0:
        raise Violation("nanos", "expected nanoseconds with the sign of the seconds, less than a second")
    return f"{sign}{abs(span.seconds)}{_fraction(abs(span.nanos))}s"


def _read_duration(raw: msgspec.Raw) -> wellknown.Duration:
    found = _SPAN.match(parsed(raw, str))
    if found is None or int(found[2]) > 315_576_000_000:
        raise Violation("", "expected a duration such as '90.5s', of at most 10000 years")
    sign = -1 if found[1] else 1
    return wellknown.Duration(seconds=sign * int(found[2]), nanos=sign * int((found[3] or "").ljust(9, "0")))


SPECIAL: dict[type[Message], Special] = {
    wellknown.Value: Special(_render_value, lambda raw: wellknown.Value.of(_plain(raw, Any)), null_is_a_value=True),
    wellknown.Struct: Special(_render_struct, lambda raw: wellknown.Struct.of(_plain(raw, dict[str, Any]))),
    wellknown.ListValue: Special(_render_list, lambda raw: wellknown.ListValue.of(_plain(raw, list[Any]))),
    wellknown.FieldMask: Special(_render_mask, _read_mask),
    wellknown.Timestamp: Special(_render_timestamp, _read_timestamp),
    wellknown.Duration: Special(_render_duration, _read_duration),
}


def _add_wrappers() -> None:
    for name, message in wellknown.MESSAGES.items():
        if name.endswith("Value") and message not in SPECIAL:
            SPECIAL[message] = _wrapper(message, schema_of(message).fields[0].holds.kind)


_add_wrappers()
