"""Whoever meets a message first, msgspec itself or one of our codecs: its limits hold, inside of others too."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import msgspec
import pytest

from polywire.codec import codec_for
from polywire.contract import Field, Int32, Message
from polywire.errors import ContractError, InvalidArgument


def family() -> tuple[type[Message], type[Message], type[Message]]:
    """Classes that nobody has met: one that names another before it stands there, and one derived from it."""

    class Order(Message):
        items: list[Item]
        parent: Order | None = None

    class Item(Message):
        quantity: Annotated[Int32, Field(ge=1)]
        code: Annotated[str, Field(max_length=3)] = ""

    class Gift(Item):
        words: Annotated[str, Field(min_length=1)] = "hello"

    # What a module has in its globals, and a function only once all of its classes stand there.
    for cls in (Order, Item, Gift):
        cls.__polywire__.namespace.update(Order=Order, Item=Item)
    return Order, Item, Gift


BAD = b'{"items":[{"quantity":1},{"quantity":0}]}'
SAID = "Expected `int` >= 1 - at `$.items[1].quantity`"


def test_a_message_that_msgspec_reads_by_itself_keeps_its_limits() -> None:
    order, item, _ = family()
    with pytest.raises(msgspec.ValidationError) as refused:
        msgspec.json.decode(BAD, type=order)
    assert str(refused.value) == SAID
    with pytest.raises(msgspec.ValidationError) as refused:
        msgspec.convert({"quantity": 1, "code": "abcd"}, item)
    assert str(refused.value) == "Expected `str` of length <= 3 - at `$.code`"


def test_a_codec_made_after_msgspec_has_met_the_class_refuses_the_same() -> None:
    order, item, _ = family()
    for cls in (item, order):
        msgspec.json.Decoder(cls)
    with pytest.raises(InvalidArgument) as refused:
        codec_for(order, "json").decode(BAD)
    assert str(refused.value) == "items[1].quantity: expected `int` >= 1"


def test_a_message_first_met_inside_of_something_else_keeps_its_limits() -> None:
    order, _, gift = family()
    inside = dataclasses.make_dataclass("Inside", [("order", order), ("gifts", list[gift])])  # type: ignore[valid-type]  # a type made at run time
    with pytest.raises(msgspec.ValidationError) as refused:
        msgspec.json.decode(b'{"order":%b,"gifts":[]}' % BAD, type=inside)
    assert str(refused.value) == SAID.replace("$", "$.order")
    with pytest.raises(msgspec.ValidationError) as refused:
        msgspec.json.decode(b'{"order":{"items":[]},"gifts":[{"quantity":1,"words":""}]}', type=inside)
    assert str(refused.value) == "Expected `str` of length >= 1 - at `$.gifts[0].words`"
    with pytest.raises(InvalidArgument) as invalid:
        codec_for(gift, "json").decode(b'{"quantity":0}')
    assert str(invalid.value) == "quantity: expected `int` >= 1"


def test_a_class_that_could_not_travel_is_refused_by_name_there_too() -> None:
    class Odd(Message):
        what: complex

    with pytest.raises(ContractError) as refused:
        msgspec.json.Decoder(Odd)
    assert (
        str(refused.value)
        .partition(" Use one of")[0]
        .endswith(".Odd.what is annotated `complex`, which cannot travel.")
    )


def test_annotations_read_as_they_were_written_until_they_are_asked_for() -> None:
    _, item, _ = family()
    written: Any = item.__annotations__
    assert written["quantity"] == "Annotated[Int32, Field(ge=1)]"
    assert list(written) == ["quantity", "code"]
    assert msgspec.Meta(ge=1, le=2**31 - 1) in item.__annotations__["quantity"].__metadata__
