"""Requests as they are typed."""

from __future__ import annotations

import datetime
import enum
from decimal import Decimal
from typing import Annotated

import pytest

from polywire.cli.request import from_arguments
from polywire.contract import Field, Message
from polywire.errors import SetupError


class Colour(enum.Enum):
    RED = "red"


class Address(Message):
    city: str
    zip: str = ""


class Item(Message):
    product_id: str
    quantity: Annotated[int, Field(ge=1)] = 1


class Order(Message, package="typed.v1"):
    order_id: str
    total: Decimal = Decimal(0)
    gift: bool = False
    address: Address | None = None
    tags: list[str] = []
    items: list[Item] = []
    colour: Colour | None = None
    due: datetime.timedelta | None = None
    renamed: Annotated[str, Field(name="otherName")] = ""


def test_texts_become_what_the_message_wants() -> None:
    made = from_arguments(
        Order,
        [
            "order_id=1", "total=9.99", "gift=true", "address.city=Rome", "address.zip=00100", "tags=a", "tags=b",
            'items:=[{"product_id": "x", "quantity": 2}]', "colour=red", "due=PT90S", "otherName=n",
        ],
    )  # fmt: skip

    assert made == Order(
        order_id="1",
        total=Decimal("9.99"),
        gift=True,
        address=Address(city="Rome", zip="00100"),
        tags=["a", "b"],
        items=[Item(product_id="x", quantity=2)],
        colour=Colour.RED,
        due=datetime.timedelta(seconds=90),
        renamed="n",
    )


def test_a_single_value_for_a_list_is_a_list_of_one_and_python_names_are_understood() -> None:
    made = from_arguments(Order, ["order_id=1", "tags=a", "renamed=n"])

    assert made == Order(order_id="1", tags=["a"], renamed="n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["order_id=1", "address.town=Rome"],
            "Address has no field 'address.town'. It has: city, zip.",
        ),
        (
            ["order_id=1", "address=x", "address.city=Rome"],
            "'address.city=Rome' gives 'address' a part, and it has a value already.",
        ),
        (
            ["order_id=1", 'items:=[{"product_id": "x", "quantity": 0}]'],
            "The request is no Order: Expected `int` >= 1 - at `$.items[0].quantity`.",
        ),
    ],
)
def test_what_does_not_fit_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(SetupError) as caught:
        from_arguments(Order, arguments)

    assert str(caught.value) == message
