"""Whether one side understands what the other one writes, in REST's JSON and as text of a path or a query."""

from __future__ import annotations

from polywire.contract.breaking.rest_model import Holds, JsonField
from polywire.contract.fields import FLOAT_KINDS, INTEGER_RANGES, Constraints
from polywire.contract.schema import Form

_AS_TEXT = frozenset({"string", "decimal", "uuid", "timestamp", "duration", "bytes"})
_BY_PROTO = {"decimal": "string", "uuid": "string"}
_UNSAID = 1e400
"""More than any limit."""


def understands(reader: JsonField, writer: JsonField, *, exact: bool, text: bool = False) -> bool:
    """Whether *reader* takes whatever *writer* may hold. *exact*: both are Python, which tells decimals from text.

    *text*: as a part of a path or a query, where a list of scalars is its key repeated. What is in a message, and the
    members of a oneof, are not looked at.
    """
    if reader.form is not writer.form:
        return text and (reader.form, writer.form) == (Form.LIST, Form.ONE) and _same(reader, writer, exact, text)
    if reader.form is Form.ONEOF:
        return True
    if reader.key is not None and writer.key is not None and not _takes(reader.key, writer.key, exact, text):
        return False
    return _same(reader, writer, exact, text)


def _same(reader: JsonField, writer: JsonField, exact: bool, text: bool) -> bool:
    if reader.holds is None or writer.holds is None:
        return reader.holds is writer.holds
    return _takes(reader.holds, writer.holds, exact, text)


def _takes(reader: Holds, writer: Holds, exact: bool, text: bool) -> bool:
    takes, gives = _kind(reader, exact), _kind(writer, exact)
    if takes == gives:
        return True  # messages and enums of other names are compared by what is in them
    if takes in INTEGER_RANGES and gives in INTEGER_RANGES:
        low, high = INTEGER_RANGES[takes]
        least, most = INTEGER_RANGES[gives]
        return low <= least and most <= high
    if takes in FLOAT_KINDS:
        return gives in FLOAT_KINDS or gives in INTEGER_RANGES
    if takes == "string":
        return gives in _AS_TEXT or (text and gives != "message")
    return False


def _kind(holds: Holds, exact: bool) -> str:
    return holds.kind if exact else _BY_PROTO.get(holds.kind, holds.kind)


def spelled(field: JsonField) -> str:
    """`list of shop.v1.Item`"""
    if field.holds is None:
        return "a union"
    one = field.holds.type or field.holds.kind
    if field.form is Form.MAP:
        return f"a map of {one} by {field.key.kind if field.key is not None else 'string'}"
    return f"a list of {one}" if field.form is Form.LIST else one


def refused(reader: Constraints, writer: Constraints) -> str:
    """What *writer* allows and *reader* refuses, in a word or two; empty if nothing."""
    lowest = max(_or(reader.gt, -_UNSAID), _or(reader.ge, -_UNSAID))
    least = max(_or(writer.gt, -_UNSAID), _or(writer.ge, -_UNSAID))
    if lowest > least or (lowest == least and reader.gt == lowest and writer.gt != least):
        return f"what is {'not over' if reader.gt == lowest else 'under'} {lowest}"
    highest = min(_or(reader.lt, _UNSAID), _or(reader.le, _UNSAID))
    most = min(_or(writer.lt, _UNSAID), _or(writer.le, _UNSAID))
    if highest < most or (highest == most and reader.lt == highest and writer.lt != most):
        return f"what is {'not under' if reader.lt == highest else 'over'} {highest}"
    if (reader.min_length or 0) > (writer.min_length or 0):
        return f"what is shorter than {reader.min_length}"
    if reader.max_length is not None and (writer.max_length is None or reader.max_length < writer.max_length):
        return f"what is longer than {reader.max_length}"
    if reader.pattern is not None and reader.pattern != writer.pattern:
        return f"what does not match {reader.pattern!r}"
    if reader.multiple_of is not None and (not writer.multiple_of or writer.multiple_of % reader.multiple_of):
        return f"what is no multiple of {reader.multiple_of}"
    return "values that it does not know" if reader.known and not writer.known else ""


def _or(bound: float | None, otherwise: float) -> float:
    return otherwise if bound is None else bound
