"""Checks objects that were built, not decoded: the types and constraints of every field, and where one is broken."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NoReturn
from uuid import UUID

from polywire.codec.base import Violation
from polywire.codec.limits import emit_limits, emit_size
from polywire.codec.source import Source, attribute, functions_for
from polywire.contract.fields import FLOAT_KINDS, INTEGER_RANGES, is_recognized
from polywire.contract.message import Message
from polywire.contract.schema import FieldSchema, Form, Schema, Value, closure_of, schema_of
from polywire.errors import InvalidArgument

FLOAT32_LIMIT = 3.4028235677973366e38
"""Where a number rounds to infinity in 32 bits."""


def check(message: Message) -> None:
    """Raise InvalidArgument, with the field at fault, where an object is not what its class says.

    Decoding and encoding check by themselves; this is for objects that go no further than this process.
    """
    run_check(type(message), message, checker_for(type(message)))


def run_check(expected: type[Message], message: Any, checker: Callable[[Any], None]) -> None:
    try:
        checker(message)
    except Violation as violation:
        raise violation.error_of(expected.__name__) from None
    except RecursionError:
        raise InvalidArgument(f"{expected.__name__} is nested too deeply to be sent, or contains itself.") from None


def checker_for(message: type[Message], *, json: bool = False) -> Callable[[Any], None]:
    """The function that raises a Violation for an object of this class; for *json*, also for NaN and infinity."""
    found: Callable[[Any], None]
    if json:
        found = functions_for(message, "check for JSON", _generate_for_json)["check"]
    else:
        found = functions_for(message, "check", _generate)["check"]
    return found


def residual_checker_for(message: type[Message]) -> Callable[[Any], None] | None:
    """Raises a Violation for what msgspec lets pass in JSON; None where nothing is left to check."""
    if not _leaves_something(message):
        return None
    found: Callable[[Any], None] = functions_for(message, "check after JSON", _generate_residual)["check"]
    return found


def _leaves_something(message: type[Message]) -> bool:
    return any(_residual(field) for inner in closure_of(message) for field in schema_of(inner).fields)


def _residual(field: FieldSchema) -> bool:
    values = [field.value, field.key, *(member.transparent for member in field.members)]
    return any(value is not None and _left_to_check(value) for value in values)


def _left_to_check(value: Value) -> bool:
    """msgspec knows no integers above int64, no floats of 32 bits, and takes every decimal."""
    return value.kind in ("uint64", "fixed64", "float", "decimal", "timestamp") or value.constraints.known


def explain(expected: type[Message], message: Any, error: BaseException, checker: Callable[[Any], None]) -> NoReturn:
    """Raise what is wrong with an object that could not be encoded, by looking at it once more and slowly."""
    if isinstance(error, RecursionError):
        raise InvalidArgument(f"{expected.__name__} is nested too deeply to be sent, or contains itself.") from None
    try:
        checker(message)
    except Violation as violation:
        raise violation.error_of(expected.__name__) from None
    raise InvalidArgument(f"{expected.__name__} cannot be encoded: {error}.") from error


def spelled(value: Any) -> str:
    """The type of a value, the way msgspec names it."""
    return "null" if value is None else type(value).__name__


def _leads_to_residual(field: FieldSchema) -> bool:
    inside = [member.message for member in field.members]
    if field.value is not None and field.value.is_message:
        inside.append(field.value.python)
    return any(_leaves_something(message) for message in inside)


_PYTHON: dict[str, type] = {
    "string": str,
    "bool": bool,
    "bytes": bytes,
    "timestamp": datetime,
    "duration": timedelta,
    "decimal": Decimal,
    "uuid": UUID,
}


_UNSUSPICIOUS = {"string": "{}.isascii()", "timestamp": "{}.tzinfo is utc", "decimal": "{}.is_finite()"}
"""Conditions under which a value needs no closer look."""


def _generate(schema: Schema, source: Source) -> None:
    _Checks(schema, source, finite=False).write()


def _generate_for_json(schema: Schema, source: Source) -> None:
    _Checks(schema, source, finite=True).write()


def _generate_residual(schema: Schema, source: Source) -> None:
    _Checks(schema, source, finite=False, residual=True).write()


class _Checks:
    def __init__(self, schema: Schema, source: Source, *, finite: bool, residual: bool = False) -> None:
        self._schema = schema
        self._source = source
        self._finite = finite
        self._residual = residual
        source.namespace.update(HELPERS)

    def write(self) -> None:
        source = self._source
        owner = source.bind(self._schema.message.__name__, self._schema.message)
        with source.block("def check(m):"):
            with source.block(f"if m.__class__ is not {owner} and not isinstance(m, {owner}):"):
                source.line(f"wrong(m, {owner}, '')")
            for field in self._schema.fields:
                if not self._residual or _residual(field) or _leads_to_residual(field):
                    self._field(field)

    def _field(self, field: FieldSchema) -> None:
        source = self._source
        variable = source.fresh()
        source.line(f"{variable} = {attribute('m', field.attribute)}")
        if not field.nullable:
            self._contents(field, variable)
            return
        with source.block(f"if {variable} is not None:"):
            self._contents(field, variable)

    def _contents(self, field: FieldSchema, variable: str) -> None:
        if field.form is Form.ONEOF:
            self._oneof(field, variable)
        elif field.form is Form.LIST:
            self._list(field, variable)
        elif field.form is Form.MAP:
            self._map(field, variable)
        else:
            self._value(field.holds, variable, repr(field.name))

    def _oneof(self, field: FieldSchema, variable: str) -> None:
        source = self._source
        with source.block("try:"):
            word = "if"
            for member in field.members:
                owner = source.bind(member.message.__name__, member.message)
                with source.block(f"{word} isinstance({variable}, {owner}):"):
                    source.line(f"{source.link('check', member.message)}({variable})")
                word = "elif"
            expected = " | ".join(member.message.__name__ for member in field.members)
            with source.block("else:"):
                source.line(f"raise Violation('', f'expected `{expected}`, got `{{spelled({variable})}}`')")
        self._within(repr(field.name))

    def _list(self, field: FieldSchema, variable: str) -> None:
        source, value = self._source, field.holds
        with source.block(f"if not isinstance({variable}, list):"):
            source.line(f"raise Violation({field.name!r}, f'expected `array`, got `{{spelled({variable})}}`')")
        emit_size(source, field, variable, repr(field.name))
        self._each(field, value, variable, f"enumerate({variable})")

    def _each(self, field: FieldSchema, value: Value, variable: str, pairs: str) -> None:
        source, element, index = self._source, self._source.fresh(), self._source.fresh("i")
        with source.block("try:"), source.block(f"for {index}, {element} in {pairs}:"):
            self._value(value, element, "''")
        place = f"f'{field.name}[{{{index}}}]'" if field.form is Form.LIST else repr(f"{field.name}[...]")
        self._within(place)

    def _map(self, field: FieldSchema, variable: str) -> None:
        source, key, value = self._source, field.keyed_by, field.holds
        with source.block(f"if not isinstance({variable}, dict):"):
            source.line(f"raise Violation({field.name!r}, f'expected `object`, got `{{spelled({variable})}}`')")
        emit_size(source, field, variable, repr(field.name))
        name = source.fresh("k")
        with source.block(f"for {name} in {variable}:"):
            self._value(key, name, repr(f"{field.name}[...]"))
        self._each(field, value, variable, f"{variable}.items()")

    def _within(self, place: str) -> None:
        with self._source.block("except Violation as violation:"):
            self._source.line(f"raise violation.within({place})")

    def _value(self, value: Value, variable: str, path: str) -> None:
        source, kind = self._source, value.kind
        if kind == "message":
            check = source.link("check", value.python)
            if path == "''":
                source.line(f"{check}({variable})")
                return
            with source.block("try:"):
                source.line(f"{check}({variable})")
            self._within(path)
            return
        if kind in INTEGER_RANGES:
            low, high = INTEGER_RANGES[kind]
            # Comparing with small numbers is faster; the rest is for the function to judge.
            least = min(high, 2**30 - 1)
            with source.block(f"if {variable}.__class__ is not int or not 0 <= {variable} <= {least}:"):
                source.line(f"check_int({variable}, {low}, {high}, {path})")
        elif kind in FLOAT_KINDS:
            with source.block(f"if {variable}.__class__ is not float:"):
                source.line(f"check_float({variable}, {path})")
            if kind == "float":
                source.line(f"check_float32({variable}, {path})")
            if self._finite:
                with source.block(f"if not isfinite({variable}):"):
                    source.line(f"raise Violation({path}, f'{{{variable}}} cannot be written as JSON')")
        elif kind == "enum":
            owner = source.bind(value.python.__name__, value.python)
            with source.block(f"if not isinstance({variable}, {owner}):"):
                source.line(f"wrong({variable}, {owner}, {path})")
        else:
            owner = _PYTHON[kind].__name__
            with source.block(f"if {variable}.__class__ is not {owner}:"):
                source.line(f"wrong({variable}, {owner}, {path})")
            if kind in _UNSUSPICIOUS:
                with source.block(f"if not {_UNSUSPICIOUS[kind].format(variable)}:"):
                    source.line(f"check_{kind}({variable}, {path})")
        if value.constraints:
            emit_limits(source, value, variable, path)


def _wrong(value: Any, expected: type, path: str) -> None:
    """Instances of subclasses are as good; anything else is not."""
    if not isinstance(value, expected) or (isinstance(value, enum.Enum) and not issubclass(expected, (enum.Enum, str))):
        raise Violation(path, f"expected `{expected.__name__}`, got `{spelled(value)}`")


def _check_int(value: Any, low: int, high: int, path: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise Violation(path, f"expected `int`, got `{spelled(value)}`")
    if value < low:
        raise Violation(path, f"expected `int` >= {low}")
    if value > high:
        raise Violation(path, f"expected `int` <= {high}")


def _check_float(value: Any, path: str) -> None:
    if not isinstance(value, (float, int)) or isinstance(value, bool):
        raise Violation(path, f"expected `float`, got `{spelled(value)}`")
    try:
        float(value)
    except OverflowError:
        raise Violation(path, "number out of range") from None


def _check_float32(value: float, path: str) -> None:
    if math.isfinite(value) and abs(value) >= FLOAT32_LIMIT:
        raise Violation(path, "number out of range of 32 bits")


def _check_string(value: str, path: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Violation(path, "expected text, got half of a surrogate pair") from None


def _check_timestamp(value: datetime, path: str) -> None:
    if value.utcoffset() is None:
        raise Violation(path, "expected `datetime` with a timezone component")
    try:
        value.astimezone(UTC)
    except OverflowError:
        raise Violation(path, "expected a timestamp from the year 1 to 9999") from None


def _check_decimal(value: Decimal, path: str) -> None:
    raise Violation(path, f"expected a finite decimal, got {value}")


HELPERS: dict[str, Any] = {
    **{python.__name__: python for python in _PYTHON.values()},
    "Violation": Violation,
    "spelled": spelled,
    "wrong": _wrong,
    "check_int": _check_int,
    "check_float": _check_float,
    "check_float32": _check_float32,
    "check_string": _check_string,
    "check_timestamp": _check_timestamp,
    "check_decimal": _check_decimal,
    "is_recognized": is_recognized,
    "isfinite": math.isfinite,
    "utc": UTC,
}
