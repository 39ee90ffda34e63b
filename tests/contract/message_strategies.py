"""Arbitrary objects of a message class, for hypothesis, from what its schema says."""

from __future__ import annotations

import functools
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from hypothesis import strategies as st

from polywire.contract.fields import INTEGER_RANGES
from polywire.contract.message import Message
from polywire.contract.schema import FieldSchema, Form, Value, enum_schema_of, schema_of

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
_SCALARS: dict[str, st.SearchStrategy[Any]] = {
    **{
        kind: st.integers(low, high) | st.sampled_from((0, 1, low, high))
        for kind, (low, high) in INTEGER_RANGES.items()
    },
    "double": st.floats(allow_nan=False),
    "float": st.floats(width=32, allow_nan=False),
    "bool": st.booleans(),
    "string": _TEXT,
    "bytes": st.binary(max_size=8),
    "timestamp": st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.just(UTC)),
    "duration": st.timedeltas(timedelta(days=-100_000), timedelta(days=100_000)),
    "decimal": st.decimals(allow_nan=False, allow_infinity=False).map(Decimal.normalize),
    "uuid": st.uuids(),
}


def messages(cls: type[Message], depth: int = 2) -> st.SearchStrategy[Any]:
    """Objects of *cls*, with others nested in them down to *depth*."""
    return _messages(cls, depth)


@functools.cache
def _messages(cls: Any, depth: int) -> st.SearchStrategy[Any]:
    fields = {field.attribute: _field(field, depth) for field in schema_of(cls).fields}
    return st.fixed_dictionaries(fields).map(lambda values: cls(**values))


def _field(field: FieldSchema, depth: int) -> st.SearchStrategy[Any]:
    if field.form is Form.ONEOF:
        members = [messages(member.message, depth - 1) for member in field.members] if depth > 0 else []
        return st.one_of(*([st.none()] if field.nullable else []), *members)
    value = field.value
    assert value is not None
    if value.is_message and depth <= 0 and field.form is not Form.ONE:
        return st.just([] if field.form is Form.LIST else {})
    if value.is_message and depth <= 0 and field.nullable:
        return st.none()
    if field.form is Form.LIST:
        # A map that is imported as a list of entries has no order: one entry at most.
        is_map = value.is_message and schema_of(value.python).name.endswith("Entry")
        return st.lists(_value(value, depth), max_size=1 if is_map else 3)
    if field.form is Form.MAP:
        assert field.key is not None
        return st.dictionaries(_value(field.key, depth), _value(value, depth), max_size=3)
    return st.none() | _value(value, depth) if field.nullable else _value(value, depth)


def _value(value: Value, depth: int) -> st.SearchStrategy[Any]:
    if value.kind == "message":
        return st.deferred(lambda: messages(value.python, depth - 1))
    if value.kind == "enum":
        return st.sampled_from([member.member for member in enum_schema_of(value.python).members])
    return _SCALARS[value.kind]
