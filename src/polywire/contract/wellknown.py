"""The messages that come with protobuf, as far as they are no Python types: wrappers, Any, Struct, FieldMask, Empty.

Timestamps and durations are `datetime` and `timedelta`, and an rpc without an argument or a result says `Empty` by
itself. These are for contracts that have to agree with a `.proto` of others; in a contract of one's own `int | None`
does what `Int64Value` does, in fewer bytes.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Annotated, Union

from polywire.contract.fields import Field, Float32, Int32, UInt32, UInt64, enum_form
from polywire.contract.message import Message

PACKAGE = "google.protobuf"

Plain = Union[None, bool, float, str, Sequence["Plain"], Mapping[str, "Plain"]]  # noqa: UP007  # it names itself
"""What a Value can be: anything that JSON can say."""


class Empty(Message, package=PACKAGE):
    """Nothing. Needed as an element of a stream or a member of a oneof only."""


class Any(Message, package=PACKAGE):
    """A message of any type, serialized; *type_url* ends in its full name: `type.googleapis.com/shop.v1.Stock`."""

    type_url: Annotated[str, Field(number=1)] = ""
    value: Annotated[bytes, Field(number=2)] = b""


class FieldMask(Message, package=PACKAGE):
    """Names of fields, in dotted form: which ones to read or to change."""

    paths: Annotated[list[str], Field(number=1)] = []


class DoubleValue(Message, package=PACKAGE):
    value: Annotated[float, Field(number=1)] = 0.0


class FloatValue(Message, package=PACKAGE):
    value: Annotated[Float32, Field(number=1)] = 0.0


class Int64Value(Message, package=PACKAGE):
    value: Annotated[int, Field(number=1)] = 0


class UInt64Value(Message, package=PACKAGE):
    value: Annotated[UInt64, Field(number=1)] = 0


class Int32Value(Message, package=PACKAGE):
    value: Annotated[Int32, Field(number=1)] = 0


class UInt32Value(Message, package=PACKAGE):
    value: Annotated[UInt32, Field(number=1)] = 0


class BoolValue(Message, package=PACKAGE):
    value: Annotated[bool, Field(number=1)] = False


class StringValue(Message, package=PACKAGE):
    value: Annotated[str, Field(number=1)] = ""


class BytesValue(Message, package=PACKAGE):
    value: Annotated[bytes, Field(number=1)] = b""


@enum_form(package=PACKAGE, names={"NULL_VALUE": "NULL_VALUE"})
class NullValue(enum.IntEnum):
    """The only value of JSON's null."""

    NULL_VALUE = 0


class ValueNull(Message, transparent=True, tag="null_value"):
    value: NullValue


class ValueNumber(Message, transparent=True, tag="number_value"):
    value: float


class ValueString(Message, transparent=True, tag="string_value"):
    value: str


class ValueBool(Message, transparent=True, tag="bool_value"):
    value: bool


class ValueStruct(Message, transparent=True, tag="struct_value"):
    value: Struct


class ValueList(Message, transparent=True, tag="list_value"):
    value: ListValue


class Value(Message, package=PACKAGE):
    """Anything that JSON can say: `Value.of([1, "two", None])`, and `plain()` for the way back."""

    kind: Annotated[
        ValueNull | ValueNumber | ValueString | ValueBool | ValueStruct | ValueList | None,
        Field(numbers=(1, 2, 3, 4, 5, 6)),
    ] = None

    @classmethod
    def of(cls, plain: Plain) -> Value:
        """Raises TypeError for what JSON cannot say. Numbers become floats, as protobuf has no others here."""
        if plain is None:
            return cls(kind=ValueNull(value=NullValue.NULL_VALUE))
        if isinstance(plain, bool):
            return cls(kind=ValueBool(value=plain))
        if isinstance(plain, (int, float)):
            return cls(kind=ValueNumber(value=float(plain)))
        if isinstance(plain, str):
            return cls(kind=ValueString(value=plain))
        if isinstance(plain, Mapping):
            return cls(kind=ValueStruct(value=Struct.of(plain)))
        if isinstance(plain, (list, tuple)):
            return cls(kind=ValueList(value=ListValue.of(plain)))
        raise TypeError(f"google.protobuf.Value cannot hold a {type(plain).__qualname__}: JSON has no such type.")

    def plain(self) -> Plain:
        kind = self.kind
        if isinstance(kind, (ValueStruct, ValueList)):
            return kind.value.plain()
        return None if kind is None or isinstance(kind, ValueNull) else kind.value


class Struct(Message, package=PACKAGE):
    """An object of JSON: `Struct.of({"colour": "red"})`, and `plain()` for the way back."""

    fields: Annotated[dict[str, Value], Field(number=1)] = {}

    @classmethod
    def of(cls, plain: Mapping[str, Plain]) -> Struct:
        return cls(fields={name: Value.of(value) for name, value in plain.items()})

    def plain(self) -> dict[str, Plain]:
        return {name: value.plain() for name, value in self.fields.items()}


class ListValue(Message, package=PACKAGE):
    """A list of JSON: `ListValue.of([1, "two"])`, and `plain()` for the way back."""

    values: Annotated[list[Value], Field(number=1)] = []

    @classmethod
    def of(cls, plain: Sequence[Plain]) -> ListValue:
        return cls(values=[Value.of(value) for value in plain])

    def plain(self) -> list[Plain]:
        return [value.plain() for value in self.values]


class Timestamp(Message, package=PACKAGE):
    """An instant, where it is a whole argument or result; a field is a `datetime` instead."""

    seconds: Annotated[int, Field(number=1)] = 0
    nanos: Annotated[Int32, Field(number=2)] = 0


class Duration(Message, package=PACKAGE):
    """A span of time, where it is a whole argument or result; a field is a `timedelta` instead."""

    seconds: Annotated[int, Field(number=1)] = 0
    nanos: Annotated[Int32, Field(number=2)] = 0


MESSAGES: dict[str, type[Message]] = {
    f"{PACKAGE}.{message.__name__}": message
    for message in (
        Any,
        BoolValue,
        BytesValue,
        DoubleValue,
        Duration,
        Empty,
        FieldMask,
        FloatValue,
        Int32Value,
        Int64Value,
        ListValue,
        StringValue,
        Struct,
        Timestamp,
        UInt32Value,
        UInt64Value,
        Value,
    )
}
"""By full name."""
