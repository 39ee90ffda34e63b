"""Types and constraints as source text: the conditions that a value fails, in the words that msgspec uses for JSON."""

from __future__ import annotations

import re
from collections.abc import Iterator

from polywire.codec.source import Source
from polywire.contract.fields import FLOAT_KINDS, INTEGER_RANGES, Constraints
from polywire.contract.schema import FieldSchema, Form, Value


def emit_limits(source: Source, value: Value, variable: str, path: str) -> None:
    """Lines that raise a Violation where *variable* breaks a constraint; *path* is an expression."""
    for condition, what in _broken_by(source, value, variable):
        _emit(source, condition, what, path)


def emit_size(source: Source, field: FieldSchema, variable: str, path: str) -> None:
    """The same for the size of a list or map."""
    word = "array" if field.form is Form.LIST else "object"
    for condition, what in _lengths(field.constraints, word, variable):
        _emit(source, condition, what, path)


def _emit(source: Source, condition: str, what: str, path: str) -> None:
    with source.block(f"if {condition}:"):
        source.line(f"raise Violation({path}, {what!r})")


def _broken_by(source: Source, value: Value, variable: str) -> Iterator[tuple[str, str]]:
    limits = value.constraints
    if value.kind in INTEGER_RANGES:
        yield from _integer_bounds(limits, variable)
    elif value.kind in FLOAT_KINDS:
        yield from _bounds(limits, "float", variable)
        if limits.multiple_of is not None:
            yield f"{variable} % {limits.multiple_of!r}", f"expected `float` that's a multiple of {limits.multiple_of}"
    elif value.kind == "decimal":
        yield from _bounds(limits, "decimal", variable)
    elif value.kind == "string":
        yield from _lengths(limits, "str", variable)
        if limits.pattern is not None:
            search = source.bind("search", re.compile(limits.pattern).search)
            yield f"{search}({variable}) is None", f"expected `str` matching regex {limits.pattern!r}"
    elif value.kind == "bytes":
        yield from _lengths(limits, "bytes", variable)
    elif value.kind == "enum" and limits.known:
        yield f"not is_recognized({variable})", f"expected a known value of `{value.python.__name__}`"


def _integer_bounds(limits: Constraints, variable: str) -> Iterator[tuple[str, str]]:
    least = [bound for bound in (limits.ge, None if limits.gt is None else limits.gt + 1) if bound is not None]
    most = [bound for bound in (limits.le, None if limits.lt is None else limits.lt - 1) if bound is not None]
    if least:
        yield f"{variable} < {max(least)!r}", f"expected `int` >= {max(least)}"
    if most:
        yield f"{variable} > {min(most)!r}", f"expected `int` <= {min(most)}"
    if limits.multiple_of is not None:
        yield f"{variable} % {limits.multiple_of!r}", f"expected `int` that's a multiple of {limits.multiple_of}"


def _bounds(limits: Constraints, word: str, variable: str) -> Iterator[tuple[str, str]]:
    # Written as "not in bounds", so that NaN is outside of all of them.
    for name, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<=")):
        bound = getattr(limits, name)
        if bound is not None:
            shown = float(bound) if word == "float" else bound
            yield f"not {variable} {sign} {bound!r}", f"expected `{word}` {sign} {shown}"


def _lengths(limits: Constraints, word: str, variable: str) -> Iterator[tuple[str, str]]:
    if limits.min_length is not None:
        yield f"len({variable}) < {limits.min_length!r}", f"expected `{word}` of length >= {limits.min_length}"
    if limits.max_length is not None:
        yield f"len({variable}) > {limits.max_length!r}", f"expected `{word}` of length <= {limits.max_length}"
