"""The messages that come with protobuf, as Google's json_format writes and reads them."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any

import pytest
from google.protobuf import (
    any_pb2,
    duration_pb2,
    field_mask_pb2,
    json_format,
    struct_pb2,
    timestamp_pb2,
    wrappers_pb2,
)

from polywire.codec import codec_for
from polywire.contract import Field, Message
from polywire.contract import wellknown as w
from polywire.errors import InvalidArgument

JSON_LIKE: list[Any] = [None, True, 1, -2.5, "text", "", [], {}, [1, [None]], {"a": {"b": [1, "x", None]}}]

CASES: list[tuple[Message, type[Any]]] = [
    (w.StringValue(value="a"), wrappers_pb2.StringValue),
    (w.StringValue(), wrappers_pb2.StringValue),
    (w.BytesValue(value=b"\xfb\xff"), wrappers_pb2.BytesValue),
    (w.BoolValue(value=True), wrappers_pb2.BoolValue),
    (w.Int32Value(value=-5), wrappers_pb2.Int32Value),
    (w.UInt32Value(value=5), wrappers_pb2.UInt32Value),
    (w.Int64Value(value=-(2**63)), wrappers_pb2.Int64Value),
    (w.UInt64Value(value=2**64 - 1), wrappers_pb2.UInt64Value),
    (w.DoubleValue(value=math.inf), wrappers_pb2.DoubleValue),
    (w.FloatValue(value=0.5), wrappers_pb2.FloatValue),
    (w.FieldMask(paths=["user.display_name", "photo"]), field_mask_pb2.FieldMask),
    (w.FieldMask(), field_mask_pb2.FieldMask),
    (w.Timestamp(seconds=-1, nanos=1), timestamp_pb2.Timestamp),
    (w.Timestamp(seconds=1_763_717_415, nanos=500_000_000), timestamp_pb2.Timestamp),
    (w.Duration(seconds=-3, nanos=-50_000), duration_pb2.Duration),
    (w.Duration(seconds=90), duration_pb2.Duration),
    (w.Struct.of({"a": JSON_LIKE}), struct_pb2.Struct),
    (w.ListValue.of(JSON_LIKE), struct_pb2.ListValue),
    *((w.Value.of(plain), struct_pb2.Value) for plain in JSON_LIKE),
]


@pytest.mark.parametrize(("message", "theirs"), CASES)
def test_alone_they_are_written_and_read_as_by_json_format(message: Message, theirs: type[Any]) -> None:
    proto, protojson = codec_for(type(message), "proto"), codec_for(type(message), "protojson")
    parsed = theirs.FromString(proto.encode(message))
    written = json_format.MessageToJson(parsed)
    assert json.loads(protojson.encode(message)) == json.loads(written)
    assert protojson.decode(written.encode()) == message
    assert proto.decode(parsed.SerializeToString()) == message


class Holder(Message, package="wellknown.v1"):
    text: w.StringValue | None = None
    texts: list[w.StringValue] = []
    long: w.Int64Value | None = None
    value: w.Value | None = None
    values: dict[str, w.Value] = {}
    mask: w.FieldMask | None = None
    any: Annotated[w.Any | None, Field(name="any")] = None


def test_as_fields_they_keep_their_form() -> None:
    holder = Holder(
        text=w.StringValue(value=""),
        texts=[w.StringValue(value="a")],
        long=w.Int64Value(value=5),
        value=w.Value.of(None),
        values={"a": w.Value.of([1])},
        mask=w.FieldMask(paths=["a_b"]),
    )
    codec = codec_for(Holder, "protojson")
    assert json.loads(codec.encode(holder)) == {
        "text": "",
        "texts": ["a"],
        "long": "5",
        "value": None,
        "values": {"a": [1]},
        "mask": "aB",
    }
    assert codec.decode(codec.encode(holder)) == holder
    assert codec.decode(b'{"text":null,"long":null,"mask":null,"unknown":1}') == Holder()
    assert codec_for(Holder, "proto").decode(codec_for(Holder, "proto").encode(holder)) == holder


class Thing(Message, package="wellknown.v1"):
    sku: str
    count: int = 0


@pytest.mark.parametrize(
    ("inner", "expected"),
    [
        (Thing(sku="A", count=5), {"@type": "type.googleapis.com/wellknown.v1.Thing", "sku": "A", "count": "5"}),
        (w.Duration(seconds=5), {"@type": "type.googleapis.com/google.protobuf.Duration", "value": "5s"}),
    ],
)
def test_any_is_written_with_its_type_beside_it(inner: Message, expected: dict[str, Any]) -> None:
    packed = w.Any(type_url=expected["@type"], value=codec_for(type(inner), "proto").encode(inner))
    codec = codec_for(Holder, "protojson")
    assert json.loads(codec.encode(Holder(any=packed))) == {"any": expected}
    assert codec.decode(codec.encode(Holder(any=packed))) == Holder(any=packed)
    if isinstance(inner, w.Duration):
        theirs = any_pb2.Any.FromString(codec_for(w.Any, "proto").encode(packed))
        assert json_format.MessageToDict(theirs) == expected


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"any":{"@type":"x/no.such.Type"}}', "any.@type: this program has no message 'x/no.such.Type'"),
        (b'{"text":5}', "text: expected `str`, got `int`"),
        (b'{"long":"x"}', "long: expected `int`, got `str`"),
        (b'{"mask":"a_b"}', "mask: expected the lowerCamelCase names of fields, separated by commas"),
        (b'{"texts":[5]}', "texts[0]: expected `str`, got `int`"),
    ],
)
def test_what_is_not_in_their_form_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        codec_for(Holder, "protojson").decode(data)
    assert refused.value.message == message


def test_numbers_of_a_value_that_json_cannot_say_are_refused() -> None:
    with pytest.raises(InvalidArgument) as refused:
        codec_for(w.Value, "protojson").encode(w.Value.of(math.nan))
    assert refused.value.message == "Value: nan cannot be written as JSON"


def test_a_value_nested_too_deeply_is_refused() -> None:
    with pytest.raises(InvalidArgument):
        codec_for(w.Value, "protojson").decode(b"[" * 100_000 + b"]" * 100_000)
    with pytest.raises(InvalidArgument):
        codec_for(w.Value, "protojson").decode(b"[" * 700 + b"]" * 700)
