"""What every benchmark sends: the order of 987 bytes as JSON and 629 as protobuf, and the small messages around it."""

from __future__ import annotations

import enum
from datetime import UTC, datetime

from polywire.contract import Message


class State(enum.Enum):
    PLACED = "placed"
    PAID = "paid"
    SHIPPED = "shipped"


class Address(Message, package="bench.v1"):
    street: str
    city: str
    zip: str
    country: str


class Item(Message, package="bench.v1"):
    sku: str
    name: str
    count: int
    cents: int


class Order(Message, package="bench.v1"):
    """A POST-like call sends one and gets one; a GET-like call gets one."""

    id: str
    customer: str
    state: State
    placed: datetime
    address: Address
    items: list[Item]
    total: int
    note: str = ""


class OrderQuery(Message, package="bench.v1"):
    """What a GET-like call sends."""

    order_id: str


class Stock(Message, package="bench.v1"):
    """A small answer."""

    product_id: str
    quantity: int
    in_stock: bool


_PRODUCTS = (
    "Desk lamp, brass, dimmable",
    "Oak shelf, 120 cm, oiled, with brackets",
    "Wool blanket, grey, 140 x 200 cm",
    "Coffee grinder, manual",
    "Notebook A5, dotted, 192 pages",
    "Fountain pen, medium nib",
    "Linen apron, indigo, one size fits most",
)


def order() -> Order:
    return Order(
        id="ord_01HZY3M4Q8X2",
        customer="cus_7f3a9b",
        state=State.PAID,
        placed=datetime(2026, 11, 21, 9, 30, 15, tzinfo=UTC),
        address=Address(street="12 St James's Square", city="London", zip="SW1Y 4JH", country="GB"),
        items=[
            Item(sku=f"SKU-{10000 + 37 * index}", name=name, count=1 + index % 4, cents=1290 + 735 * index)
            for index, name in enumerate(_PRODUCTS)
        ],
        total=84_105,
        note="Please ring twice, as the bell on the left does not work; if nobody is there, the neighbours at 14 "
        "take it in. Please leave a card in the letter box, and do not fold the blanket again.",
    )


def query() -> OrderQuery:
    return OrderQuery(order_id="ord_01HZY3M4Q8X2")


def stock() -> Stock:
    return Stock(product_id="SKU-12345", quantity=17, in_stock=True)
