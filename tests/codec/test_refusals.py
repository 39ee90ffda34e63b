"""What codecs say about bytes and objects that they refuse: whole sentences, and the field at fault."""

from __future__ import annotations

import enum
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

import msgspec
import pytest

from polywire.codec import Format, Malformed, check, codec_for
from polywire.contract import Field, Fixed64, Float32, Int32, Message, UInt64
from polywire.contract.schema import schema_of
from polywire.errors import InvalidArgument


class State(enum.Enum):
    PLACED = "placed"
    PAID = "paid"


class Item(Message, package="refusals.v1"):
    sku: Annotated[str, Field(pattern="^[A-Z]+$", max_length=5)]
    quantity: Annotated[int, Field(ge=1, le=99)] = 1


class Card(Message, package="refusals.v1", tag="card"):
    number: Annotated[str, Field(min_length=4)]


class Cash(Message, package="refusals.v1", tag="cash"):
    pass


class Order(Message, package="refusals.v1"):
    order_id: Annotated[str, Field(max_length=8)]
    items: Annotated[list[Item], Field(max_length=3)] = []
    labels: Annotated[dict[str, Annotated[int, Field(ge=0)]], Field(max_length=2)] = {}
    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.5
    total: Annotated[Decimal, Field(ge=0)] = Decimal(0)
    state: Annotated[State, Field(known=True)] = State.PLACED
    lot: Annotated[Int32, Field(multiple_of=12)] = 0
    serial: UInt64 = 0
    mark: Fixed64 = 0
    weight: Float32 = 0.0
    placed: datetime | None = None
    span: timedelta = timedelta(0)
    key: UUID | None = None
    blob: Annotated[bytes, Field(max_length=2)] = b""
    payment: Card | Cash | None = None
    parent: Order | None = None
    words: list[Annotated[str, Field(max_length=2)]] = []


FORMATS: tuple[Format, ...] = ("proto", "json", "protojson")
good = Order(order_id="o-1")


def build(**values: Any) -> Order:
    return msgspec.structs.replace(good, **values)


def refused(act: Any, *arguments: Any) -> InvalidArgument:
    with pytest.raises(InvalidArgument) as caught:
        act(*arguments)
    return caught.value


WRONG_OBJECTS: list[tuple[dict[str, Any], str, str]] = [
    ({"order_id": 5}, "order_id", "expected `str`, got `int`"),
    ({"order_id": None}, "order_id", "expected `str`, got `null`"),
    ({"order_id": "\ud800"}, "order_id", "expected text, got half of a surrogate pair"),
    ({"order_id": b"bytes"}, "order_id", "expected `str`, got `bytes`"),
    ({"order_id": "too long a name"}, "order_id", "expected `str` of length <= 8"),
    ({"items": (Item(sku="A"),)}, "items", "expected `array`, got `tuple`"),
    ({"items": [Item(sku="A"), Item(sku="a")]}, "items[1].sku", "expected `str` matching regex '^[A-Z]+$'"),
    ({"items": [Item(sku="A", quantity=0)]}, "items[0].quantity", "expected `int` >= 1"),
    ({"items": [Item(sku="A", quantity=100)]}, "items[0].quantity", "expected `int` <= 99"),
    ({"items": [Cash()]}, "items[0]", "expected `Item`, got `Cash`"),
    ({"items": [Item(sku="A")] * 4}, "items", "expected `array` of length <= 3"),
    ({"labels": {"a": -1}}, "labels[...]", "expected `int` >= 0"),
    ({"labels": {1: 1}}, "labels[...]", "expected `str`, got `int`"),
    ({"labels": {"a": 1, "b": 2, "c": 3}}, "labels", "expected `object` of length <= 2"),
    ({"ratio": 0.0}, "ratio", "expected `float` > 0.0"),
    ({"ratio": 1.0}, "ratio", "expected `float` < 1.0"),
    ({"ratio": "0.5"}, "ratio", "expected `float`, got `str`"),
    ({"total": Decimal(-1)}, "total", "expected `decimal` >= 0"),
    ({"total": Decimal("NaN")}, "total", "expected a finite decimal, got NaN"),
    ({"total": 5}, "total", "expected `Decimal`, got `int`"),
    ({"state": "placed"}, "state", "expected `State`, got `str`"),
    ({"lot": 13}, "lot", "expected `int` that's a multiple of 12"),
    ({"lot": 2**31}, "lot", "expected `int` <= 2147483647"),
    ({"lot": 1.5}, "lot", "expected `int`, got `float`"),
    ({"serial": -1}, "serial", "expected `int` >= 0"),
    ({"serial": 2**64}, "serial", "expected `int` <= 18446744073709551615"),
    ({"mark": "1"}, "mark", "expected `int`, got `str`"),
    ({"weight": 1e39}, "weight", "number out of range of 32 bits"),
    ({"placed": datetime(2026, 1, 1)}, "placed", "expected `datetime` with a timezone component"),
    ({"span": 5}, "span", "expected `timedelta`, got `int`"),
    ({"key": "k"}, "key", "expected `UUID`, got `str`"),
    ({"blob": b"abc"}, "blob", "expected `bytes` of length <= 2"),
    ({"blob": "a"}, "blob", "expected `bytes`, got `str`"),
    ({"payment": Item(sku="A")}, "payment", "expected `Card | Cash`, got `Item`"),
    ({"payment": Card(number="1")}, "payment.number", "expected `str` of length >= 4"),
    ({"parent": build(lot=1)}, "parent.lot", "expected `int` that's a multiple of 12"),
    ({"words": ["ab", "abc"]}, "words[1]", "expected `str` of length <= 2"),
]


@pytest.mark.parametrize(("values", "field", "what"), WRONG_OBJECTS)
def test_an_object_that_is_not_what_its_class_says_is_sent_by_nothing(
    values: dict[str, Any], field: str, what: str
) -> None:
    for act in (check, *(codec_for(Order, name).encode for name in FORMATS)):
        error = refused(act, build(**values))
        assert error.message == f"Order.{field}: {what}"
        assert error.field == field


def test_an_object_of_another_class_is_refused() -> None:
    for name in FORMATS:
        error = refused(codec_for(Order, name).encode, Cash())
        assert error.message == "Order: expected `Order`, got `Cash`"


def test_an_object_that_contains_itself_is_refused() -> None:
    loop = build()
    loop.parent = loop
    for act in (check, *(codec_for(Order, name).encode for name in FORMATS)):
        assert refused(act, loop).message == "Order is nested too deeply to be sent, or contains itself."


BAD_JSON: list[tuple[dict[str, Any], str, str]] = [
    ({"order_id": 5}, "order_id", "expected `str`, got `int`"),
    ({"items": [{"sku": "A"}, {"sku": "A", "quantity": 0}]}, "items[1].quantity", "expected `int` >= 1"),
    ({"items": [{"quantity": 1}]}, "items[0].sku", "is missing"),
    ({"ratio": 1}, "ratio", "expected `float` < 1.0"),
    ({"total": "-1"}, "total", "expected `decimal` >= 0"),
    ({"total": "NaN"}, "total", "expected a finite decimal, got NaN"),
    ({"total": "x"}, "total", "invalid decimal string"),
    ({"serial": 2**64}, "serial", "expected `int` <= 18446744073709551615"),
    ({"serial": -1}, "serial", "expected `int` >= 0"),
    ({"lot": 2**31}, "lot", "expected `int` <= 2147483647"),
    ({"weight": 1e39}, "weight", "number out of range of 32 bits"),
    ({"state": "refunded"}, "state", "expected a known value of `State`"),
    ({"placed": "2026-01-01T00:00:00"}, "placed", "expected `datetime` with a timezone component"),
    ({"blob": "?"}, "blob", "invalid base64 encoded string"),
    ({"labels": {"a": -1}}, "labels[...]", "expected `int` >= 0"),
    ({"payment": {"type": "card", "number": "1"}}, "payment.number", "expected `str` of length >= 4"),
    ({"parent": {"order_id": "a", "lot": 13}}, "parent.lot", "expected `int` that's a multiple of 12"),
]


@pytest.mark.parametrize(("values", "field", "what"), BAD_JSON)
def test_json_that_violates_the_contract_names_the_field(values: dict[str, Any], field: str, what: str) -> None:
    error = refused(codec_for(Order, "json").decode, json.dumps({"order_id": "o-1", **values}).encode())
    assert (error.message, error.field) == (f"{field}: {what}", field)
    assert not isinstance(error, Malformed)


def test_a_missing_field_is_named() -> None:
    error = refused(codec_for(Order, "json").decode, b"{}")
    assert (error.message, error.field) == ("order_id: is missing", "order_id")


BAD_PROTOJSON: list[tuple[dict[str, Any], str, str]] = [
    ({"orderId": 5}, "orderId", "expected `str | null`, got `int`"),
    ({"items": [{"sku": "A", "quantity": "0"}]}, "items[0].quantity", "expected `int` >= 1"),
    ({"items": [{"quantity": "1"}]}, "items[0].sku", "expected `str` matching regex '^[A-Z]+$'"),
    ({"lot": "1.5"}, "lot", "expected `int`, got `str`"),
    ({"lot": 1.5}, "lot", "expected `int`, got `float`"),
    ({"serial": "18446744073709551616"}, "serial", "expected `int` <= 18446744073709551615"),
    ({"ratio": "half"}, "ratio", "expected `float`, got `str`"),
    ({"ratio": "NaN"}, "ratio", "expected `float` > 0.0"),
    ({"weight": 1e39}, "weight", "number out of range of 32 bits"),
    ({"total": "1_0"}, "total", "expected a decimal number such as '12.50'"),
    ({"state": "STATE_REFUNDED"}, "state", "expected a known value of `State`"),
    ({"placed": "2026-01-01"}, "placed", "invalid RFC3339 encoded datetime"),
    ({"span": "5"}, "span", "expected a duration such as '90.5s', of at most 10000 years"),
    ({"key": "x"}, "key", "expected a UUID such as '9b2f0c1e-5d3a-4c6b-8f7e-0a1b2c3d4e5f'"),
    ({"blob": "?"}, "blob", "invalid base64 encoded string"),
    ({"labels": {"a": "-1"}}, "labels[...]", "expected `int` >= 0"),
    ({"card": {"number": "1"}}, "card.number", "expected `str` of length >= 4"),
    ({"card": {"number": "1234"}, "cash": {}}, "cash", "excludes the other members of payment"),
]


@pytest.mark.parametrize(("values", "field", "what"), BAD_PROTOJSON)
def test_protojson_that_violates_the_contract_names_the_field(values: dict[str, Any], field: str, what: str) -> None:
    error = refused(codec_for(Order, "protojson").decode, json.dumps({"orderId": "o-1", **values}).encode())
    assert (error.message, error.field) == (f"{field}: {what}", field)
    assert not isinstance(error, Malformed)


@pytest.mark.parametrize(
    ("data", "field", "what"),
    [
        (b"\x12\x02\x0a\x00", "items[0].sku", "expected `str` matching regex '^[A-Z]+$'"),
        (b"\x12\x03\x0a\x01A\x12\x05\x0a\x01A\x10\x00", "items[1].quantity", "expected `int` >= 1"),
        (b"\x0a\x09123456789", "order_id", "expected `str` of length <= 8"),
        (b"\x1a\x0d\x0a\x00\x10" + b"\xff" * 9 + b"\x01", "labels[...]", "expected `int` >= 0"),
        (b"\x2a\x03abc", "total", "expected a decimal number such as '12.50'"),
        (b"\x2a\x02-1", "total", "expected `decimal` >= 0"),
        (b"\x30\x07", "state", "expected a known value of `State`"),
        (b"\x38\x01", "lot", "expected `int` that's a multiple of 12"),
        (b"\x5a\x0b\x08" + b"\xff" * 9 + b"\x01", None, None),
        (b"\x5a\x06\x10\x80\x94\xeb\xdc\x03", "placed", "expected nanoseconds of a timestamp from 0 to 999999999"),
        (b"\x5a\x0a\x08" + b"\xff" * 8 + b"\x7f", "placed", "expected a timestamp from the year 1 to 9999"),
        (b"\x6a\x01x", "key", "expected a UUID such as '9b2f0c1e-5d3a-4c6b-8f7e-0a1b2c3d4e5f'"),
        (b"\x72\x03abc", "blob", "expected `bytes` of length <= 2"),
        (b"\x7a\x00", "payment.number", "expected `str` of length >= 4"),
        (b"\x8a\x01\x02\x38\x01", "parent.lot", "expected `int` that's a multiple of 12"),
        (b"\x92\x01\x02ab\x92\x01\x03abc", "words[1]", "expected `str` of length <= 2"),
    ],
)
def test_protobuf_that_violates_the_contract_names_the_field(data: bytes, field: str | None, what: str | None) -> None:
    if field is None:
        assert codec_for(Order, "proto").decode(data).placed == datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC)
        return
    error = refused(codec_for(Order, "proto").decode, data)
    assert (error.message, error.field) == (f"{field}: {what}", field)
    assert not isinstance(error, Malformed)


def test_an_absent_message_without_a_default_is_refused_everywhere() -> None:
    class Needs(Message, package="refusals.v1"):
        card: Card
        at: datetime
        either: Annotated[Card | Cash, Field(names=("by_card", "by_cash"))]

    assert schema_of(Needs).full_name == "refusals.v1.Needs"
    for name, empty in (("proto", b""), ("json", b"{}"), ("protojson", b"{}")):
        error = refused(codec_for(Needs, name).decode, empty)  # type: ignore[arg-type]  # a literal of the loop
        assert (error.message, error.field) == ("card: is missing", "card")
    error = refused(codec_for(Needs, "proto").decode, b"\x0a\x06\x0a\x041234")
    assert (error.message, error.field) == ("at: is missing", "at")
    error = refused(codec_for(Needs, "proto").decode, b"\x0a\x06\x0a\x041234\x12\x00")
    assert (error.message, error.field) == ("either: is missing", "either")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "Input data was truncated"),
        (b"{", "Input data was truncated"),
        (b'{"order_id":"a"} x', "trailing characters (byte 18)"),
        (b'{"order_id":NaN}', "invalid character (byte 12)"),
        (b'{"order_id":"\xff"}', "text that is not UTF-8"),
        (b'{"parent":' * 100_000, "nested too deeply"),
        (b'{"unknown":' + b"[" * 100_000, "nested too deeply"),
        (b"\xff", "invalid character (byte 0)"),
    ],
)
def test_json_that_cannot_be_parsed_is_malformed(data: bytes, why: str) -> None:
    error = refused(codec_for(Order, "json").decode, data)
    assert type(error) is Malformed
    assert error.message == f"refusals.v1.Order: the JSON is malformed ({why})."
    data = data.replace(b"order_id", b"orderId ").replace(b"orderId ", b"orderId")
    assert type(refused(codec_for(Order, "protojson").decode, data)) is Malformed


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\x05ab", b"\x0a\x01\xff", b"\x0f\x00", b"\x8a\x01\x7f" * 60])
def test_protobuf_that_cannot_be_parsed_is_malformed(data: bytes) -> None:
    error = refused(codec_for(Order, "proto").decode, data)
    assert type(error) is Malformed
    assert error.message == (
        "refusals.v1.Order: the protobuf bytes are malformed or truncated, or hold text that is not UTF-8."
    )


def test_protobuf_nested_too_deeply_is_malformed() -> None:
    data = b""
    for _ in range(200):
        length = len(data)
        data = b"\x8a\x01" + (bytes((length,)) if length < 128 else bytes((length & 127 | 128, length >> 7))) + data
    assert type(refused(codec_for(Order, "proto").decode, data)) is Malformed


def test_numbers_that_json_cannot_say_are_refused_by_json_alone() -> None:
    class Measured(Message, package="refusals.v1"):
        value: float

    for value, shown in ((float("nan"), "nan"), (float("inf"), "inf")):
        measured = Measured(value=value)
        error = refused(codec_for(Measured, "json").encode, measured)
        assert error.message == f"Measured.value: {shown} cannot be written as JSON"
        for name in ("proto", "protojson"):
            codec = codec_for(Measured, name)
            assert str(codec.decode(codec.encode(measured)).value) == shown
