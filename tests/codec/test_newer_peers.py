"""What a newer peer sends fails no call that does not need it: unknown fields, enum values and members of unions."""

from __future__ import annotations

import enum
import json
from typing import Annotated

import pytest

from polywire.codec import Format, codec_for
from polywire.contract import Field, Message, enum_form, is_recognized
from polywire.errors import InvalidArgument

FORMATS: tuple[Format, ...] = ("proto", "json", "protojson")


@enum_form(name="State")
class OldState(enum.Enum):
    PLACED = "placed"


@enum_form(name="Level")
class OldLevel(enum.IntEnum):
    LOW = 0


class OldCash(Message, tag="cash"):
    pass


class OldCard(Message, tag="card"):
    number: str


class Old(Message, package="newer.v1", name="Order"):
    state: Annotated[OldState, Field(number=1)]
    states: Annotated[list[OldState], Field(number=2)] = []
    by_name: Annotated[dict[str, OldLevel], Field(number=3)] = {}
    payment: Annotated[OldCard | None, Field(number=4)] = None
    either: Annotated[OldCard | OldCash | None, Field(numbers=(5, 6), names=("by_card", "by_cash"))] = None
    inner: Annotated[Old | None, Field(number=9)] = None


@enum_form(name="State")
class NewState(enum.Enum):
    PLACED = "placed"
    REFUNDED = "refunded"


@enum_form(name="Level")
class NewLevel(enum.IntEnum):
    LOW = 0
    HIGH = 3


class NewCard(Message, tag="card"):
    number: str
    issuer: str = "issuer"


class NewCash(Message, tag="cash"):
    pass


class Cheque(Message, tag="cheque"):
    bank: str = "bank"


class New(Message, package="newer.v1", name="Order"):
    state: Annotated[NewState, Field(number=1)]
    states: Annotated[list[NewState], Field(number=2)] = []
    by_name: Annotated[dict[str, NewLevel], Field(number=3)] = {}
    payment: Annotated[NewCard | None, Field(number=4)] = None
    either: Annotated[
        NewCard | NewCash | Cheque | None, Field(numbers=(5, 6, 7), names=("by_card", "by_cash", "by_cheque"))
    ] = None
    inner: Annotated[New | None, Field(number=9)] = None
    extra: Annotated[list[Cheque], Field(number=20)] = []


def sent() -> New:
    return New(
        state=NewState.REFUNDED,
        states=[NewState.PLACED, NewState.REFUNDED],
        by_name={"a": NewLevel.LOW, "b": NewLevel.HIGH},
        payment=NewCard(number="4111"),
        either=Cheque(),
        inner=New(state=NewState.PLACED, either=NewCash(), extra=[Cheque()]),
        extra=[Cheque()],
    )


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_unknown_is_passed_over_or_stood_in_for(name: Format) -> None:
    got = codec_for(Old, name).decode(codec_for(New, name).encode(sent()))
    assert isinstance(got.state, OldState)
    assert not is_recognized(got.state)
    assert [is_recognized(state) for state in got.states] == [True, False]
    assert got.by_name["a"] is OldLevel.LOW
    assert not is_recognized(got.by_name["b"])
    assert got.payment == OldCard(number="4111")
    assert got.either is None
    assert got.inner == Old(state=OldState.PLACED, either=OldCash())


@pytest.mark.parametrize("name", ["proto", "json"])
def test_an_unknown_enum_value_is_sent_on_as_it_came(name: Format) -> None:
    new, old = codec_for(New, name), codec_for(Old, name)
    again = new.decode(old.encode(old.decode(new.encode(sent()))))
    assert again.state is NewState.REFUNDED
    assert again.states == [NewState.PLACED, NewState.REFUNDED]
    assert again.by_name == {"a": NewLevel.LOW, "b": NewLevel.HIGH}


def test_an_unknown_number_survives_protojson_and_json_on_its_way() -> None:
    old = codec_for(Old, "proto").decode(codec_for(New, "proto").encode(sent()))
    for name in FORMATS:
        codec = codec_for(Old, name)
        old = codec.decode(codec.encode(old))
        assert old.state.name == "UNRECOGNIZED_2"
    assert codec_for(New, "proto").decode(codec_for(Old, "proto").encode(old)).state is NewState.REFUNDED


def test_an_enum_that_was_not_set_is_unspecified() -> None:
    for name, empty in (("proto", b""), ("protojson", b"{}")):
        got = codec_for(Old, name).decode(empty)  # type: ignore[arg-type]  # a literal of the loop
        assert got.state.name == "UNSPECIFIED"
        assert not is_recognized(got.state)
    assert codec_for(Old, "proto").encode(got) == b""
    assert codec_for(Old, "protojson").encode(got) == b"{}"


@pytest.mark.parametrize("name", FORMATS)
def test_a_call_that_needs_the_value_says_so_and_fails(name: Format) -> None:
    class Needing(Message, package="newer.v1"):
        state: Annotated[OldState, Field(known=True)]

    with pytest.raises(InvalidArgument) as refused:
        codec_for(Needing, name).decode(codec_for(New, name).encode(New(state=NewState.REFUNDED)))
    assert refused.value.message == "state: expected a known value of `OldState`"
    assert refused.value.field == "state"


def test_a_required_union_without_a_member_that_is_known_is_refused() -> None:
    class Needing(Message, package="newer.v1"):
        either: Annotated[OldCard | OldCash, Field(numbers=(5, 6), names=("by_card", "by_cash"))]

    sender = New(state=NewState.PLACED, either=Cheque())
    for name, said in (
        ("proto", "either: is missing"),
        ("json", "either: invalid value 'cheque' of `type`"),
        ("protojson", "either: is missing"),
    ):
        with pytest.raises(InvalidArgument) as refused:
            codec_for(Needing, name).decode(  # type: ignore[arg-type]  # a literal of the loop
                codec_for(New, name).encode(sender)  # type: ignore[arg-type]  # either of the two
            )
        assert refused.value.message == said


def test_protojson_takes_either_name_and_any_spelling_of_a_value() -> None:
    class Spelled(Message, package="newer.v1"):
        product_id: str = ""
        unit_count: int = 0
        is_new: bool = False
        state: OldState | None = None
        raw_bytes: bytes = b""

    decode = codec_for(Spelled, "protojson").decode
    expected = Spelled(product_id="a", unit_count=5, is_new=True, state=OldState.PLACED, raw_bytes=b"\xfb\xff\xfe")
    for text in (
        {"productId": "a", "unitCount": "5", "isNew": True, "state": "STATE_PLACED", "rawBytes": "+//+"},
        {"product_id": "a", "unit_count": 5, "is_new": True, "state": 1, "raw_bytes": "-__-"},
        {"productId": "a", "unitCount": 5.0, "is_new": True, "state": 1, "raw_bytes": "-__-", "unknown": [1, {}]},
    ):
        assert decode(json.dumps(text).encode()) == expected
    assert decode(b'{"productId":null,"unitCount":null,"isNew":null,"state":null,"rawBytes":null}') == Spelled()
    assert decode(b'{"rawBytes":"-w"}').raw_bytes == b"\xfb"
