"""What users write, as both type checkers accept it; checked, not run."""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Annotated, assert_type
from uuid import UUID

from polywire import (
    App,
    Balance,
    Call,
    CallError,
    Contract,
    Fallback,
    Field,
    Hedge,
    Int32,
    Message,
    Metadata,
    NotFound,
    Retry,
    UInt64,
    calling,
    connect,
    current,
    delete,
    get,
    post,
    put,
    rpc,
    serve,
    testing,
)
from polywire.contract import enum_form
from polywire.testing import ManualClock


class StockQuery(Message):
    product_id: str


class Stock(Message):
    product_id: str
    quantity: int
    in_stock: bool


class Inventory(Contract, package="shop.v1"):
    """What is in stock, and promises on it."""

    @rpc(get("/inventory/{product_id}"), idempotent=True, timeout=0.5)
    async def check_stock(self, query: StockQuery) -> Stock:
        """Units on hand now; it may change before an order is placed."""
        raise NotImplementedError

    @rpc
    def watch(self, query: StockQuery) -> AsyncIterator[Stock]:
        raise NotImplementedError

    @rpc
    async def restock(self, deliveries: AsyncIterator[Stock]) -> Stock:
        raise NotImplementedError

    @rpc
    def chat(self, questions: AsyncIterator[StockQuery]) -> AsyncIterator[Stock]:
        raise NotImplementedError

    @rpc(idempotent=True, policies=(Hedge(after=0.05), Retry(attempts=1), Balance(by="by_key", key="product_id")))
    async def look(self, query: StockQuery) -> Stock:
        raise NotImplementedError

    @rpc(delete("/inventory"))
    async def clear(self) -> None:
        raise NotImplementedError


# Messages of every type


@enum_form(names={"RED": "COLOUR_ROUGE"})
class Colour(enum.Enum):
    RED = "red"


class Card(Message, tag="card"):
    number: Annotated[str, Field(sensitive=True)]


class Cash(Message, tag="cash", frozen=True):
    pass


class Order(Message, package="shop.v1", name="ShopOrder", reserved=(4, range(10, 12), "old")):
    order_id: UUID
    placed: datetime
    total: Annotated[Decimal, Field(number=3, ge=0)]
    payment: Card | Cash
    small: Int32 = 0
    big: Annotated[UInt64, Field(le=10)] = 0
    note: str | None = None
    took: timedelta | None = None
    colour: Colour = Colour.RED
    items: list[Stock] = []
    by_id: dict[str, Stock] = {}


class Rush(Order):
    minutes: int = 30


def build() -> None:
    stock = Stock(product_id="a", quantity=1, in_stock=True)
    assert_type(stock, Stock)
    assert_type(stock.quantity, int)
    stock.quantity = 2
    order = Order(order_id=UUID(int=0), placed=datetime.now(), total=Decimal(1), payment=Cash())
    assert_type(order.small, int)
    assert_type(order.big, int)
    assert_type(order.items, list[Stock])
    assert_type(order.note, str | None)
    assert_type(order.payment, Card | Cash)
    Rush(order_id=UUID(int=0), placed=datetime.now(), total=Decimal(1), payment=Card(number="1"), minutes=5)


# Services


class Ledger:
    @classmethod
    @asynccontextmanager
    async def open(cls, path: str) -> AsyncIterator[Ledger]:
        yield cls()


app = App("orders")


@app.resource
async def ledger() -> AsyncIterator[Ledger]:
    async with Ledger.open("orders.db") as ledger:
        yield ledger


@app.resource
def audit() -> Annotated[Ledger, "audit"]:
    return Ledger()


@app.service
class InventoryService(Inventory):
    def __init__(self, ledger: Ledger, audit: Annotated[Ledger, "audit"]) -> None:
        self.ledger = ledger
        self.audit = audit

    async def check_stock(self, query: StockQuery) -> Stock:
        call = current()
        assert_type(call, Call)
        assert_type(call.principal, str | None)
        assert_type(call.caller, str | None)
        if not query.product_id:
            raise NotFound("there is no such product")
        return Stock(product_id=query.product_id, quantity=0, in_stock=False)

    async def watch(self, query: StockQuery) -> AsyncIterator[Stock]:
        yield Stock(product_id=query.product_id, quantity=0, in_stock=False)

    async def restock(self, deliveries: AsyncIterator[Stock]) -> Stock:
        async for delivery in deliveries:
            assert_type(delivery, Stock)
        return Stock(product_id="", quantity=0, in_stock=False)

    async def chat(self, questions: AsyncIterator[StockQuery]) -> AsyncIterator[Stock]:
        async for question in questions:
            yield Stock(product_id=question.product_id, quantity=0, in_stock=False)

    async def clear(self) -> None:
        pass


assert_type(InventoryService(Ledger(), Ledger()), InventoryService)


class PlaceOrder(Message):
    product_id: str


class Orders(Contract, package="shop.v1", prefix="/api/v1"):
    @rpc(post("/orders", status=201, location="/orders/{order_id}"), put("/orders/{product_id}", body=None))
    async def place(self, request: PlaceOrder) -> Order:
        raise NotImplementedError


@app.service
class OrderService(Orders):
    def __init__(self, inventory: Inventory, ledger: Ledger) -> None:
        self.inventory = inventory

    async def place(self, request: PlaceOrder) -> Order:
        stock = await self.inventory.check_stock(StockQuery(product_id=request.product_id))
        assert_type(stock, Stock)
        return Order(order_id=UUID(int=0), placed=datetime.now(), total=Decimal(1), payment=Cash())


# Clients


async def deliveries() -> AsyncIterator[Stock]:
    yield Stock(product_id="a", quantity=1, in_stock=True)


async def questions() -> AsyncIterator[StockQuery]:
    yield StockQuery(product_id="a")


async def use(inventory: Inventory) -> None:
    query = StockQuery(product_id="SKU-1")
    assert_type(await inventory.check_stock(query), Stock)
    waiting: Awaitable[Stock] = inventory.check_stock(query)
    assert_type(await waiting, Stock)
    async for stock in inventory.watch(query):
        assert_type(stock, Stock)
    assert_type(await inventory.restock(deliveries()), Stock)
    async for answer in inventory.chat(questions()):
        assert_type(answer, Stock)
    await inventory.clear()


async def outside(token: str) -> None:
    async with connect(Inventory, "grpc://127.0.0.1:8001", token=token) as inventory:
        assert_type(inventory, Inventory)
        await use(inventory)
    async with connect(Orders, ["http://127.0.0.1:8001", "http://127.0.0.1:8002"], token=lambda: token) as orders:
        assert_type(await orders.place(PlaceOrder(product_id="a")), Order)
    async with serve(app, "127.0.0.1:0") as address:
        assert_type(address, str)


def sold_out(query: StockQuery, error: CallError) -> Stock:
    return Stock(product_id=query.product_id, quantity=0, in_stock=False)


async def with_options(inventory: Inventory) -> None:
    try:
        with calling(timeout=0.2, metadata={"tenant": "a"}) as call:
            assert_type(await inventory.check_stock(StockQuery(product_id="a")), Stock)
        with calling(Fallback(function=sold_out), Retry(attempts=1), attempt_timeout=0.1) as call:
            assert_type(await inventory.check_stock(StockQuery(product_id="a")), Stock)
        assert_type(call.attempts, int)
        assert_type(call.fallback, bool)
        assert_type(call.endpoint, str)
        assert_type(call.trailers, Metadata)
    except CallError as error:
        assert_type(error.code, str)
        assert_type(error.message, str)


class FakeInventory(Inventory):
    async def check_stock(self, query: StockQuery) -> Stock:
        return Stock(product_id="", quantity=5, in_stock=True)


async def test_of_a_user() -> None:
    async with testing.system(app, replace={Inventory: FakeInventory()}, clock=ManualClock()) as system:
        orders = system.client(Orders)
        assert_type(orders, Orders)
        assert_type(await orders.place(PlaceOrder(product_id="a")), Order)
