"""Every codec against Google's own code: protoc's descriptors, the protobuf runtime and json_format."""

from __future__ import annotations

import enum
import json
import math
import struct
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any
from uuid import UUID

import msgspec
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from grpc_tools import protoc  # type: ignore[import-untyped]  # has no types
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polywire.codec import Format, check, codec_for, copy
from polywire.codec.descriptors import runtime_class
from polywire.contract import (
    Double,
    Field,
    Fixed32,
    Fixed64,
    Float32,
    Int32,
    Message,
    SFixed32,
    SFixed64,
    SInt32,
    SInt64,
    UInt32,
    UInt64,
)
from polywire.errors import InvalidArgument

PROTO = """
syntax = "proto3";
package judge.v1;
import "google/protobuf/duration.proto";
import "google/protobuf/timestamp.proto";

enum State { STATE_UNSPECIFIED = 0; STATE_PLACED = 1; STATE_PAID = 2; }
enum Level { LEVEL_LOW = 0; LEVEL_HIGH = 7; LEVEL_DEEP = -3; }
message Card { string number = 1; Level level = 2; }
message Cash { }
message Numbers {
  int32 a = 1; int64 b = 2; uint32 c = 3; uint64 d = 4; sint32 e = 5; sint64 f = 6;
  fixed32 g = 7; fixed64 h = 8; sfixed32 i = 9; sfixed64 j = 10; float k = 11; double l = 12; bool m = 13;
}
message Optionals {
  optional int64 count = 1; optional string text = 2; optional bool flag = 3; optional double ratio = 4;
  optional State state = 5; Card card = 6; optional int64 limit = 7; optional string word = 8;
  google.protobuf.Timestamp at = 9; google.protobuf.Duration span = 10; optional string price = 11;
  optional bytes raw = 12;
}
message Lists {
  repeated int64 counts = 1; repeated string words = 2; repeated bool flags = 3; repeated double ratios = 4;
  repeated State states = 5; repeated Card cards = 6; repeated bytes blobs = 7; repeated sint32 offsets = 8;
  repeated fixed64 marks = 9; repeated google.protobuf.Timestamp times = 10; repeated string prices = 11;
}
message Maps {
  map<string, string> labels = 1; map<int64, Card> cards_by_number = 2; map<string, State> states = 3;
  map<sint32, double> ratios = 4; map<string, bytes> blobs = 5;
}
message Everything {
  string product_id = 1; string camelCase = 2; bytes blob = 3; State state = 4; Level level = 5;
  google.protobuf.Timestamp created_at = 6; google.protobuf.Duration time_to_live = 7; string unit_price = 8;
  string id = 9; Numbers numbers = 10; Optionals optionals = 11; Lists lists = 12; Maps maps = 13;
  oneof payment { Card card = 20; Cash cash = 21; string text = 22; int64 points = 23; }
  Everything inner = 2000;
}
"""


class State(enum.Enum):
    PLACED = "placed"
    PAID = "paid"


class Level(enum.IntEnum):
    LOW = 0
    HIGH = 7
    DEEP = -3


class Card(Message, tag="card"):
    number: str
    level: Level = Level.LOW


class Cash(Message, tag="cash"):
    pass


class Text(Message, tag="text", transparent=True):
    value: str


class Points(Message, tag="points", transparent=True):
    value: int


class Numbers(Message):
    a: Int32
    b: int
    c: UInt32
    d: UInt64
    e: SInt32
    f: SInt64
    g: Fixed32
    h: Fixed64
    i: SFixed32
    j: SFixed64
    k: Float32
    l: Double  # noqa: E741 - named after its type
    m: bool


class Optionals(Message):
    count: int | None = None
    text: str | None = None
    flag: bool | None = None
    ratio: float | None = None
    state: State | None = None
    card: Card | None = None
    limit: int = 20
    word: str = "word"
    at: datetime | None = None
    span: timedelta = timedelta(seconds=5)
    price: Decimal = Decimal("0.00")
    raw: bytes | None = None


class Lists(Message):
    counts: list[int] = []
    words: list[str] = []
    flags: list[bool] = []
    ratios: list[float] = []
    states: list[State] = []
    cards: list[Card] = []
    blobs: list[bytes] = []
    offsets: list[SInt32] = []
    marks: list[Fixed64] = []
    times: list[datetime] = []
    prices: list[Decimal] = []


class Maps(Message):
    labels: dict[str, str] = {}
    cards_by_number: dict[int, Card] = {}
    states: dict[str, State] = {}
    ratios: dict[SInt32, float] = {}
    blobs: dict[str, bytes] = {}


class Everything(Message, package="judge.v1"):
    product_id: str
    camel: Annotated[str, Field(name="camelCase")]
    blob: bytes
    state: State
    level: Level
    created_at: datetime
    time_to_live: timedelta
    unit_price: Decimal
    id: UUID
    numbers: Numbers
    optionals: Optionals
    lists: Lists
    maps: Maps
    payment: Annotated[Card | Cash | Text | Points | None, Field(numbers=(20, 21, 22, 23))] = None
    inner: Annotated[Everything | None, Field(number=2000)] = None


@cache
def judge() -> Any:
    """The class that protoc and the official runtime make of PROTO."""
    with TemporaryDirectory() as folder:
        (Path(folder) / "judge.proto").write_text(PROTO)
        include = Path(protoc.__file__).parent / "_proto"
        written = Path(folder) / "set"
        status = protoc.main(
            ["protoc", f"-I{folder}", f"-I{include}", "--include_imports", f"-o{written}", f"{folder}/judge.proto"]
        )
        assert status == 0
        files = descriptor_pb2.FileDescriptorSet.FromString(written.read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("judge.v1.Everything"))


def integers(low: int, high: int) -> st.SearchStrategy[int]:
    return st.one_of(
        st.integers(max(low, -3), 300), st.sampled_from([low, high, 127, 128, 16383, 16384]), st.integers(low, high)
    )


i32, i64 = integers(-(2**31), 2**31 - 1), integers(-(2**63), 2**63 - 1)
u32, u64 = integers(0, 2**32 - 1), integers(0, 2**64 - 1)
texts = st.text(max_size=6) | st.sampled_from([130, 16400]).map(lambda size: "ä" * size)
blobs = st.binary(max_size=6) | st.just(200).map(bytes)
doubles = st.one_of(st.sampled_from([0.0, -0.0, math.inf, -math.inf, 1.5]), st.floats(allow_nan=False))
floats32 = st.sampled_from([math.inf, -math.inf]) | st.floats(-(2.0**127), 2.0**127, width=32)
moments = st.one_of(
    st.just(datetime(1970, 1, 1, tzinfo=UTC)),
    st.datetimes(
        timezones=st.sampled_from([UTC, timezone(timedelta(hours=-7, minutes=-30))]),
        min_value=datetime(1, 1, 3),
        max_value=datetime(9999, 12, 29),
    ),
)
spans = st.timedeltas(timedelta(days=-3_650_000), timedelta(days=3_650_000)) | st.sampled_from(
    [timedelta(0), timedelta(seconds=90.5), timedelta(microseconds=-1), timedelta(seconds=-3, microseconds=7)]
)
decimals = st.decimals(allow_nan=False, allow_infinity=False) | st.sampled_from(
    [Decimal("0"), Decimal("0.00"), Decimal("-0")]
)
states, levels = st.sampled_from(State), st.sampled_from(Level)
cards = st.builds(Card, number=texts, level=levels)
numbers = st.builds(
    Numbers,
    a=i32,
    b=i64,
    c=u32,
    d=u64,
    e=i32,
    f=i64,
    g=u32,
    h=u64,
    i=i32,
    j=i64,
    k=floats32,
    l=doubles,
    m=st.booleans(),
)
optionals = st.builds(
    Optionals,
    count=st.none() | i64,
    text=st.none() | texts,
    flag=st.none() | st.booleans(),
    ratio=st.none() | doubles,
    state=st.none() | states,
    card=st.none() | cards,
    limit=i64,
    word=texts,
    at=st.none() | moments,
    span=spans,
    price=decimals,
    raw=st.none() | blobs,
)
lists = st.builds(
    Lists,
    counts=st.lists(i64, max_size=3),
    words=st.lists(texts, max_size=3),
    flags=st.lists(st.booleans(), max_size=3),
    ratios=st.lists(doubles, max_size=3),
    states=st.lists(states, max_size=3),
    cards=st.lists(cards, max_size=3),
    blobs=st.lists(blobs, max_size=3),
    offsets=st.lists(i32, max_size=3),
    marks=st.lists(u64, max_size=3),
    times=st.lists(moments, max_size=3),
    prices=st.lists(decimals, max_size=3),
)
maps = st.builds(
    Maps,
    labels=st.dictionaries(texts, texts, max_size=3),
    cards_by_number=st.dictionaries(i64, cards, max_size=3),
    states=st.dictionaries(texts, states, max_size=3),
    ratios=st.dictionaries(i32, doubles, max_size=3),
    blobs=st.dictionaries(texts, blobs, max_size=3),
)
payments = st.none() | cards | st.builds(Cash) | st.builds(Text, value=texts) | st.builds(Points, value=i64)


def everything(inner: st.SearchStrategy[Everything | None]) -> st.SearchStrategy[Everything]:
    return st.builds(
        Everything,
        product_id=texts,
        camel=texts,
        blob=blobs,
        state=states,
        level=levels,
        created_at=moments,
        time_to_live=spans,
        unit_price=decimals,
        id=st.uuids(),
        numbers=numbers,
        optionals=optionals,
        lists=lists,
        maps=maps,
        payment=payments,
        inner=inner,
    )


messages = everything(st.none() | everything(st.none()))
UNHURRIED = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
thorough = settings(max_examples=60, suppress_health_check=UNHURRIED)
proto, plain, protojson = (codec_for(Everything, name) for name in ("proto", "json", "protojson"))


def same(one: Message, other: Message) -> bool:
    """Equality that tells 0.00 from 0 and -0.0 from 0.0, and takes an instant in another zone as the same."""
    return one == other and exact(one) == exact(other)


def exact(value: Any) -> Any:
    if isinstance(value, Message):
        return {name: exact(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, list):
        return [exact(element) for element in value]
    if isinstance(value, dict):
        return {key: exact(element) for key, element in value.items()}
    if isinstance(value, float):
        return struct.pack("<d", value)
    return str(value) if isinstance(value, Decimal) else value


@thorough
@given(messages)
def test_what_is_written_as_protobuf_is_what_protoc_s_classes_read_and_write(message: Everything) -> None:
    written = proto.encode(message)
    theirs = judge().FromString(written)
    assert len(theirs.SerializeToString()) == len(written)  # nothing left out, nothing there twice
    assert same(proto.decode(theirs.SerializeToString()), message)


@thorough
@given(messages)
def test_protojson_says_what_json_format_says_of_the_same_bytes(message: Everything) -> None:
    theirs = json_format.MessageToDict(judge().FromString(proto.encode(message)))
    ours = json.loads(protojson.encode(message))
    # A decimal that is zero is the only text of which protobuf cannot know that it says the same as nothing.
    assert ours == theirs


@thorough
@given(messages)
def test_json_format_reads_our_protojson_and_we_read_its(message: Everything) -> None:
    theirs = json_format.Parse(protojson.encode(message), judge()())
    assert same(proto.decode(theirs.SerializeToString()), message)
    for original_names in (False, True):
        text = json_format.MessageToJson(theirs, preserving_proto_field_name=original_names)
        assert same(protojson.decode(text.encode()), message)


def finite(message: Everything) -> bool:
    """Whether JSON without protobuf's conventions can say all of its numbers."""
    try:
        plain.encode(message)
    except InvalidArgument as error:
        return "cannot be written as JSON" not in error.message
    return True


@thorough
@given(messages.filter(finite))
def test_json_with_the_declared_names_comes_back_as_it_went(message: Everything) -> None:
    assert same(plain.decode(plain.encode(message)), message)


@thorough
@given(messages)
def test_a_copy_is_equal_and_shares_nothing_that_can_change(message: Everything) -> None:
    check(message)
    copied = copy(message)
    assert same(copied, message)
    assert copied is not message
    assert copied.lists.cards is not message.lists.cards


@pytest.mark.parametrize("name", ["proto", "json", "protojson"])
def test_no_bytes_whatever_cause_anything_but_invalid_argument(name: Format) -> None:
    codec = codec_for(Everything, name)

    @settings(max_examples=100, suppress_health_check=UNHURRIED)
    @given(mutated(codec.encode))
    def never_anything_else(data: bytes) -> None:
        try:
            decoded = codec.decode(data)
        except InvalidArgument:
            return
        check_or_refuse(decoded, codec.encode)

    never_anything_else()


def check_or_refuse(decoded: Any, encode: Callable[[Any], bytes]) -> None:
    """What was decoded can be encoded again."""
    assert isinstance(decoded, Everything)
    encode(decoded)


@st.composite
def mutated(draw: st.DrawFn, encode: Callable[[Any], bytes]) -> bytes:
    message = draw(messages)
    try:
        data = bytearray(encode(message))
    except InvalidArgument:
        data = bytearray(b"{}")
    for _ in range(draw(st.integers(0, 4))):
        position = draw(st.integers(0, max(0, len(data) - 1)))
        action = draw(st.sampled_from(["flip", "cut", "insert", "truncate"]))
        if action == "flip" and data:
            data[position] ^= 1 << draw(st.integers(0, 7))
        elif action == "cut":
            del data[position : position + draw(st.integers(1, 8))]
        elif action == "insert":
            data[position:position] = draw(st.binary(min_size=1, max_size=4))
        elif action == "truncate":
            del data[position:]
    return bytes(data)


def test_the_largest_float_of_32_bits_is_written_so_that_json_format_takes_it() -> None:
    class Largest(Message):
        value: Float32

    largest = Largest(value=(2 - 2**-23) * 2.0**127)
    codec = codec_for(Largest, "protojson")
    assert codec.encode(largest) == b'{"value":3.4028234663852886e38}'
    assert codec.decode(codec.encode(largest)) == largest
    json_format.Parse(codec.encode(largest), runtime_class(Largest)())


@pytest.mark.parametrize("value", [1.0410071592658342e37, 0.1, 16777217.0, 1e-45, 123456.79])
def test_floats_of_32_bits_are_written_as_json_format_writes_them(value: float) -> None:
    class Small(Message):
        value: Float32

    small = Small(value=value)
    theirs = json_format.MessageToDict(runtime_class(Small).FromString(codec_for(Small, "proto").encode(small)))
    assert json.loads(codec_for(Small, "protojson").encode(small)) == theirs


def test_the_schema_tells_msgspec_what_protobuf_can_hold() -> None:
    assert msgspec.json.schema(Numbers)["$defs"]["Numbers"]["properties"]["a"] == {
        "type": "integer",
        "minimum": -(2**31),
        "maximum": 2**31 - 1,
    }
