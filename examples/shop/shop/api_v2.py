"""The public face of the shop, second version, served beside the first.

What changed: money is an amount with its currency instead of a number of cents, lists go on from a cursor instead of a
page number, orders name their customer, and cancelling answers with the order.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Annotated

from polywire import Contract, Field, Message, delete, get, post, rpc
from shop.contracts import Card, CardDeclined, OrderUndone, OutOfStock


class Money(Message):
    amount: Decimal
    currency: str = "EUR"


class Product(Message):
    product_id: str
    name: str
    category: str
    description: str
    price: Money


class ProductSearch(Message):
    search: Annotated[str, Field(max_length=100)] = ""
    category: str = ""
    cursor: str = ""
    """`next` of the answer before."""
    limit: Annotated[int, Field(ge=1, le=100)] = 20


class ProductList(Message):
    products: list[Product]
    next: str | None = None
    """The cursor of what follows; none where nothing does."""


class ProductQuery(Message):
    product_id: str


class ProductInStock(Message):
    product: Product
    units: int


class Item(Message):
    product_id: str
    quantity: Annotated[int, Field(ge=1, le=100)]


class NewOrder(Message):
    user_id: str
    items: Annotated[list[Item], Field(min_length=1, max_length=50)]
    card: Card
    idempotency_key: Annotated[str, Field(min_length=1, max_length=100)] | None = None


class Customer(Message):
    user_id: str
    name: str
    city: str


class Line(Message):
    product_id: str
    name: str
    quantity: int
    price: Money


class Order(Message):
    order_id: str
    state: str
    customer: Customer
    lines: list[Line]
    total: Money
    placed_at: datetime
    reason: str | None = None


class OrderId(Message):
    order_id: str


class GatewayV2(Contract, package="shop.v2", name="Gateway", prefix="/api/v2"):
    """Browse and buy."""

    @rpc(get("/products"), idempotent=True, timeout=3.0)
    async def list_products(self, search: ProductSearch) -> ProductList:
        raise NotImplementedError

    @rpc(get("/products/{product_id}"), idempotent=True, timeout=3.0)
    async def get_product(self, query: ProductQuery) -> ProductInStock:
        raise NotImplementedError

    @rpc(
        post("/orders", status=201, location="/orders/{order_id}", headers={"idempotency_key": "Idempotency-Key"}),
        timeout=8.0,
        raises=(OutOfStock, CardDeclined, OrderUndone),
    )
    async def place_order(self, order: NewOrder) -> Order:
        raise NotImplementedError

    @rpc(get("/orders/{order_id}"), idempotent=True, timeout=3.0)
    async def get_order(self, query: OrderId) -> Order:
        raise NotImplementedError

    @rpc(delete("/orders/{order_id}"), idempotent=True, timeout=8.0)
    async def cancel_order(self, order: OrderId) -> Order:
        raise NotImplementedError
