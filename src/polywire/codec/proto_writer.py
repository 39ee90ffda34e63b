"""Generates the functions that write our messages as protobuf, in f-strings of pieces that mostly come from tables."""

from __future__ import annotations

import sys
from typing import Any

from polywire.codec import varint
from polywire.codec.base import Violation
from polywire.codec.limits import emit_limits, emit_size
from polywire.codec.source import Source, attribute
from polywire.contract.fields import INTEGER_RANGES, is_recognized, unrecognized
from polywire.contract.schema import FieldSchema, Form, Member, Presence, Schema, Value, enum_schema_of, schema_of

_PLAIN_VARINTS = frozenset({"int32", "int64", "uint32", "uint64"})
_HELPERS: dict[str, Any] = {
    "Violation": Violation,
    "is_recognized": is_recognized,
    "prefix": varint.prefix,
    "signed": varint.signed,
    "zigzag": varint.zigzag,
    "timestamp": varint.timestamp,
    "duration": varint.duration,
    "decimal_text": varint.decimal_text,
    "uuid_text": varint.uuid_text,
    "two": varint.TWO,
    "zero_int": varint.zero_int,
    "refuse": varint.refuse,
    "utf8": varint.utf8,
    "raw": varint.raw,
    "join": "".join,
}
_BODIES = {
    "bytes": "raw({})",
    "decimal": "decimal_text({})",
    "uuid": "uuid_text({})",
    "timestamp": "timestamp({})",
    "duration": "duration({})",
}


def generate_writer(schema: Schema, source: Source) -> None:
    """`write(m)`: the bytes of a message as text, see `varint`.

    Raises whatever its values cause when they are not of their types.
    """
    source.namespace.update(_HELPERS)
    _Writer(schema, source).write()


class _Writer:
    def __init__(self, schema: Schema, source: Source, variable: str = "m") -> None:
        self._schema = schema
        self._source = source
        self._variable = variable
        self._parts: list[str] = []

    def write(self) -> None:
        with self._source.block("def write(m):"):
            self._source.line(f"return {self.body()}")

    def body(self) -> str:
        """An expression for the bytes of the whole message, after lines that prepare it."""
        source, variable = self._source, self._variable
        owner = source.bind(self._schema.message.__name__, self._schema.message)
        with source.block(f"if {variable}.__class__ is not {owner} and not isinstance({variable}, {owner}):"):
            source.line(f"raise TypeError('not an instance of {self._schema.message.__name__}')")
        for field in self._schema.fields:
            self._field(field)
        return _joined(self._parts)

    def _field(self, field: FieldSchema) -> None:
        read = attribute(self._variable, field.attribute)
        if field.form is Form.ONEOF:
            self._oneof(field, read)
        elif field.form is Form.LIST:
            self._list(field, read)
        elif field.form is Form.MAP:
            self._map(field, read)
        elif field.presence is Presence.IMPLICIT:
            self._parts.extend(self._value(field.holds, field.number, read, keep_zero=False, path=field.name))
        else:
            self._explicit(field, field.holds, read)

    def _explicit(self, field: FieldSchema, value: Value, read: str) -> None:
        """Written although it is zero, and not at all where it is None."""
        source = self._source
        variable, written = source.fresh(), source.fresh("b")
        source.line(f"{variable} = {read}")
        if not field.nullable:
            self._parts.extend(self._value(value, field.number, variable, keep_zero=True, path=field.name))
            return
        with source.block(f"if {variable} is None:"):
            source.line(f"{written} = ''")
        with source.block("else:"):
            parts = self._value(value, field.number, variable, keep_zero=True, path=field.name)
            source.line(f"{written} = {_joined(parts)}")
        self._parts.append(written)

    def _value(self, value: Value, number: int, read: str, *, keep_zero: bool, path: str) -> list[str]:
        """Expressions whose bytes together are one field with its tag, after lines that prepare them."""
        source, kind = self._source, value.kind
        if value.constraints:
            variable = source.fresh()
            source.line(f"{variable} = {read}")
            emit_limits(source, value, variable, repr(path))
            read = variable
        tag = varint.tag_of(number, kind)
        if kind == "message":
            return self._delimited(tag, self._nested(value, read), keep_zero=True)
        if kind in ("timestamp", "duration"):
            return self._delimited(tag, _BODIES[kind].format(read), keep_zero=True)
        if kind == "string":
            return self._text(tag, read, keep_zero=keep_zero)
        if kind in _BODIES:
            return self._delimited(tag, _BODIES[kind].format(read), keep_zero=keep_zero, zero_text=kind == "decimal")
        return [self._scalar(value, tag, read, keep_zero=keep_zero)]

    def _nested(self, value: Value, read: str) -> str:
        """The bytes of a message inside of this one: written on the spot where it is a leaf, which saves a call."""
        source, inner = self._source, schema_of(value.python)
        if any(field.form is Form.ONEOF or field.holds.kind == "message" for field in inner.fields):
            return f"{source.link('write', value.python)}({read})"
        return _Writer(inner, source, self._local(read)).body()

    def _text(self, tag: str, read: str, *, keep_zero: bool) -> list[str]:
        source, variable = self._source, self._source.fresh()
        source.line(f"{variable} = {read}")
        # A subclass could write itself differently into an f-string than its length says.
        with source.block(f"if {variable}.__class__ is not str or not {variable}.isascii():"):
            source.line(f"{variable} = utf8({variable})")
        return self._prefixed(tag, variable, keep_zero=keep_zero)

    def _delimited(self, tag: str, body: str, *, keep_zero: bool, zero_text: bool = False) -> list[str]:
        source, written = self._source, self._source.fresh("b")
        source.line(f"{written} = {body}")
        if zero_text and not keep_zero:
            # A decimal of 0 is the zero value; the length of its text then picks "nothing" from the table.
            with source.block(f"if {written} == '0':"):
                source.line(f"{written} = ''")
        return self._prefixed(tag, written, keep_zero=keep_zero)

    def _prefixed(self, tag: str, written: str, *, keep_zero: bool) -> list[str]:
        source, length = self._source, self._source.fresh("n")
        source.line(f"{length} = len({written})")
        table = source.bind("table", tables(tag, keep_zero=keep_zero))
        return [f"{table}[{length}] if {length} < 128 else prefix({self._tag(tag)}, {length})", written]

    def _tag(self, tag: str) -> str:
        # By name, as an expression inside of an f-string may hold neither a backslash nor a quote.
        return self._source.bind("tag", sys.intern(tag))

    def _scalar(self, value: Value, tag: str, read: str, *, keep_zero: bool) -> str:
        """An expression for the tag and value of a number, a bool or an enum."""
        source, kind = self._source, value.kind
        zero = tag + "\0" if keep_zero else ""
        if kind in _PLAIN_VARINTS:
            low, high = INTEGER_RANGES[kind]
            variable = self._local(read)
            table = source.bind("table", tables(tag, keep_zero=keep_zero))
            return (
                f"{table}[{variable}] if 0 <= {variable} < 128 else {self._tag(tag)} + "
                f"(two[{variable}] if 0 < {variable} < 16384 else signed({variable}, {low}, {high}))"
            )
        if kind == "bool":
            return f"{source.bind('flags', {False: zero, True: tag + chr(1)})}[{read}]"
        if kind == "enum":
            variable, owner = self._local(read), source.bind(value.python.__name__, value.python)
            # By value: hashing a member itself is done in Python and takes longer than all the rest.
            members = source.bind("members", EnumWriter(value.python, tag, zero))
            return f"{members}[{variable}._value_] if {variable}.__class__ is {owner} else refuse({variable})"
        if kind in ("sint32", "sint64"):
            low, high = INTEGER_RANGES[kind]
            variable = self._local(read)
            written = f"{self._tag(tag)} + zigzag({variable}, {low}, {high})"
            return written if keep_zero else f"{written} if {variable} else zero_int({variable})"
        pack = source.bind("pack", varint.packer(kind))
        if keep_zero:
            return f"{self._tag(tag)} + {pack}({read})"
        packed = source.fresh("b")
        source.line(f"{packed} = {pack}({read})")
        with source.block(f"if {packed} != {varint.zero_of(kind)!r}:"):
            source.line(f"{packed} = {self._tag(tag)} + {packed}")
        with source.block("else:"):
            source.line(f"{packed} = ''")
        return packed

    def _local(self, read: str) -> str:
        if read.isidentifier():
            return read
        variable = self._source.fresh()
        self._source.line(f"{variable} = {read}")
        return variable

    def _list(self, field: FieldSchema, read: str) -> None:
        source, value = self._source, field.holds
        variable, written = source.fresh(), source.fresh("b")
        source.line(f"{variable} = {read}")
        with source.block(f"if {variable}.__class__ is not list and not isinstance({variable}, list):"):
            source.line(f"raise TypeError({field.name!r})")
        emit_size(source, field, variable, repr(field.name))
        element, chunks = source.fresh("x"), source.fresh("c")
        packed = value.kind in varint.WIRE_TYPES
        with source.block(f"if {variable}:"):
            source.line(f"{chunks} = []")
            with source.block(f"for {element} in {variable}:"):
                parts = (
                    [self._scalar_in_list(value, element, field.name)]
                    if packed
                    else self._value(value, field.number, element, keep_zero=True, path=field.name)
                )
                source.line(f"{chunks}.append({_joined(parts)})")
            source.line(f"{written} = join({chunks})")
            if packed:
                tag = varint.tag_of(field.number, "bytes")
                source.line(f"{written} = prefix({self._tag(tag)}, len({written})) + {written}")
        with source.block("else:"):
            source.line(f"{written} = ''")
        self._parts.append(written)

    def _scalar_in_list(self, value: Value, element: str, path: str) -> str:
        if value.constraints:
            emit_limits(self._source, value, element, repr(path))
        return self._scalar(value, "", element, keep_zero=True)

    def _map(self, field: FieldSchema, read: str) -> None:
        source, key, value = self._source, field.keyed_by, field.holds
        variable, written = source.fresh(), source.fresh("b")
        source.line(f"{variable} = {read}")
        with source.block(f"if {variable}.__class__ is not dict and not isinstance({variable}, dict):"):
            source.line(f"raise TypeError({field.name!r})")
        emit_size(source, field, variable, repr(field.name))
        name, element, chunks, entry = (source.fresh(base) for base in ("k", "x", "c", "e"))
        with source.block(f"if {variable}:"):
            source.line(f"{chunks} = []")
            with source.block(f"for {name}, {element} in {variable}.items():"):
                parts = self._value(key, 1, name, keep_zero=True, path=field.name)
                parts += self._value(value, 2, element, keep_zero=True, path=field.name)
                source.line(f"{entry} = {_joined(parts)}")
                tag = varint.tag_of(field.number, "bytes")
                source.line(f"{chunks}.append(prefix({self._tag(tag)}, len({entry})) + {entry})")
            source.line(f"{written} = join({chunks})")
        with source.block("else:"):
            source.line(f"{written} = ''")
        self._parts.append(written)

    def _oneof(self, field: FieldSchema, read: str) -> None:
        source = self._source
        variable, kind, written = source.fresh(), source.fresh("t"), source.fresh("b")
        source.line(f"{variable} = {read}")
        source.line(f"{kind} = {variable}.__class__")
        word = "if"
        if field.nullable:
            with source.block(f"if {variable} is None:"):
                source.line(f"{written} = ''")
            word = "elif"
        for member in field.members:
            owner = source.bind(member.message.__name__, member.message)
            with source.block(f"{word} {kind} is {owner}:"):
                source.line(f"{written} = {self._member(member, variable)}")
            word = "elif"
        with source.block("else:"):
            source.line(f"raise TypeError({field.name!r})")
        self._parts.append(written)

    def _member(self, member: Member, variable: str) -> str:
        if member.transparent is None:
            value, read = Value(kind="message", python=member.message), variable
        else:
            value = member.transparent
            inner = schema_of(member.message).fields[0]
            read = attribute(variable, inner.attribute)
        return _joined(self._value(value, member.number, read, keep_zero=True, path=member.name))


def _joined(parts: list[str]) -> str:
    """One expression of several. All of them are exactly `str`, which an f-string copies as it is."""
    if len(parts) > 1:
        return f"f'{''.join(f'{{{part}}}' for part in parts)}'"
    return parts[0] if parts else "''"


class EnumWriter(dict[Any, str]):
    """The bytes of each member with its tag, by its value; those of stand-ins are made when met."""

    def __init__(self, cls: type[Any], tag: str, zero: str) -> None:
        super().__init__()
        self._enum, self._tag, self._zero = cls, tag, zero
        for member in enum_schema_of(cls).members:
            self[member.member.value] = self._bytes(member.number)

    def __missing__(self, value: Any) -> str:
        return self._bytes(unrecognized(self._enum, value=value)._number_)

    def _bytes(self, number: int) -> str:
        return self._tag + varint.signed(number, -(2**31), 2**31 - 1) if number else self._zero


_tables: dict[tuple[str, bool], list[str]] = {}


def tables(tag: str, *, keep_zero: bool) -> list[str]:
    """Shared: the same few tags occur in most messages."""
    key = tag, keep_zero
    if key not in _tables:
        _tables[key] = varint.table(tag, zero=tag + "\0" if keep_zero else "")
    return _tables[key]
