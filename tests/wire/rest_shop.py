"""A small shop, as the tests of REST serve it."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Annotated
from uuid import UUID

from polywire.context import current
from polywire.contract import Contract, Field, Int32, Message, delete, get, patch, post, put, rpc, service_of
from polywire.contract.details import ErrorInfo
from polywire.contract.pagination import Page, PageQuery, page_of
from polywire.contract.schema import assign_packages
from polywire.errors import (
    BY_CODE,
    AlreadyExists,
    NotFound,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)


class State(enum.Enum):
    OPEN = "open"
    PAID = "paid"


class ProductKey(Message):
    product_id: str


class Product(Message):
    product_id: str
    name: str = ""
    price: Decimal = Decimal(0)
    stock: Annotated[int, Field(ge=0)] = 0


class NewProduct(Message):
    product_id: Annotated[str, Field(min_length=1)]
    name: str
    stock: Annotated[int, Field(ge=0)] = 0


class ProductChange(Message):
    product_id: str
    name: str | None = None
    stock: Annotated[int | None, Field(ge=0)] = None


class ProductList(PageQuery):
    category: str = ""


class ProductPage(Page):
    items: list[Product]


class Range(Message):
    low: Int32 = 0
    high: Int32 = 100


class Search(Message):
    """Something of every kind that can stand in a query."""

    text: str = ""
    state: State | None = None
    tags: list[str] = []
    numbers: list[int] = []
    exact: bool = False
    at: datetime | None = None
    id: UUID | None = None
    price: Decimal | None = None
    ratio: float = 0.0
    blob: bytes = b""
    range: Range | None = None
    labels: dict[str, str] = {}
    ranges: list[Range] = []


class Nested(Message):
    range: Range
    note: str = ""


class Text(Message):
    text: str = ""


class Upload(Message):
    name: str
    tenant: str = ""
    product: Product | None = None


class Numbers(Message):
    count: int
    fail_at: int = -1


class Number(Message):
    number: int


class Failing(Message):
    code: str = "internal"
    message: str = "went wrong"
    retry_after: float | None = None


class Shop(Contract, package="shop.v1", prefix="/api/v1"):
    """What is sold."""

    @rpc(get("/products"), idempotent=True)
    async def list_products(self, query: ProductList) -> ProductPage:
        raise NotImplementedError

    @rpc(post("/products", status=201, location="/products/{product_id}", response_headers={"stock": "X-Stock"}))
    async def create(self, product: NewProduct) -> Product:
        raise NotImplementedError

    @rpc(get("/products/{product_id}"), idempotent=True)
    async def product(self, key: ProductKey) -> Product:
        raise NotImplementedError

    @rpc(put("/products/{product_id}"), idempotent=True)
    async def replace(self, product: Product) -> Product:
        raise NotImplementedError

    @rpc(patch("/products/{product_id}"))
    async def change(self, change: ProductChange) -> ProductChange:
        raise NotImplementedError

    @rpc(delete("/products/{product_id}"), idempotent=True)
    async def remove(self, key: ProductKey) -> None:
        raise NotImplementedError

    @rpc(post("/products/{product_id}:publish", body=None))
    async def publish(self, key: ProductKey) -> Product:
        raise NotImplementedError

    @rpc(get("/products/latest"), idempotent=True)
    async def latest(self) -> Product:
        raise NotImplementedError

    @rpc(get("/search"), idempotent=True)
    async def search(self, search: Search) -> Search:
        raise NotImplementedError

    @rpc(put("/ranges/{range.low}/{range.high}"), idempotent=True)
    async def nested(self, nested: Nested) -> Nested:
        raise NotImplementedError

    @rpc(get("/files/{text=**}"), idempotent=True)
    async def file(self, text: Text) -> Text:
        raise NotImplementedError

    @rpc(get("/shelves/{text=shelves/*/books/*}"), idempotent=True)
    async def book(self, text: Text) -> Text:
        raise NotImplementedError

    @rpc(post("/uploads/{name}", body="product", headers={"tenant": "X-Tenant"}))
    async def upload(self, upload: Upload) -> Upload:
        raise NotImplementedError

    @rpc(get("/numbers"))
    def numbers(self, numbers: Numbers) -> AsyncIterator[Number]:
        raise NotImplementedError

    @rpc(post("/sum"))
    async def sum(self, numbers: AsyncIterator[Number]) -> Number:
        raise NotImplementedError

    @rpc(post("/fail"))
    async def fail(self, failing: Failing) -> Text:
        raise NotImplementedError

    @rpc(post("/echo"))
    async def echo(self, text: Text) -> Text:
        raise NotImplementedError

    @rpc(post("/wait"))
    async def wait(self) -> None:
        raise NotImplementedError

    @rpc(get("/seen"))
    async def seen(self) -> Text:
        raise NotImplementedError


assign_packages([service_of(Shop)])


@dataclass
class ShopService(Shop):
    started: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    produced: int = 0

    async def list_products(self, query: ProductList) -> ProductPage:
        numbers = range(query.offset, min(query.offset + query.limit, 45))
        items = [Product(product_id=f"{query.category}{number}") for number in numbers]
        return page_of(ProductPage, items, total=45, query=query)

    async def create(self, product: NewProduct) -> Product:
        if product.product_id == "taken":
            raise AlreadyExists("there is a product 'taken'")
        return Product(product_id=product.product_id, name=product.name, stock=product.stock)

    async def product(self, key: ProductKey) -> Product:
        if key.product_id == "gone":
            raise NotFound("there is no product 'gone'")
        return Product(product_id=key.product_id)

    async def replace(self, product: Product) -> Product:
        return product

    async def change(self, change: ProductChange) -> ProductChange:
        return change

    async def remove(self, key: ProductKey) -> None:
        return None

    async def publish(self, key: ProductKey) -> Product:
        return Product(product_id=key.product_id, name="published")

    async def latest(self) -> Product:
        return Product(product_id="the latest")

    async def search(self, search: Search) -> Search:
        return search

    async def nested(self, nested: Nested) -> Nested:
        return nested

    async def file(self, text: Text) -> Text:
        return text

    async def book(self, text: Text) -> Text:
        return text

    async def upload(self, upload: Upload) -> Upload:
        return upload

    async def numbers(self, numbers: Numbers) -> AsyncIterator[Number]:
        call = current()
        call.respond_with("x-before", "first")
        call.trail_with("x-after", "last")
        try:
            for number in range(numbers.count):
                if number == numbers.fail_at:
                    raise ResourceExhausted("no more numbers")
                self.produced += 1
                yield Number(number=number)
        finally:
            self.ended.set()

    async def sum(self, numbers: AsyncIterator[Number]) -> Number:
        return Number(number=sum([number.number async for number in numbers]))

    async def fail(self, failing: Failing) -> Text:
        if failing.code == "a bug":
            raise ZeroDivisionError("the secret of the service")
        kind = BY_CODE[failing.code]
        details = (ErrorInfo(reason="ASKED", domain="shop.example", metadata={"a": "b"}),)
        error = kind(failing.message, details=details, retry_after=failing.retry_after)
        if isinstance(error, Unavailable):
            error.reached = "no"
        if isinstance(error, Unauthenticated):
            error.details = ()
        raise error

    async def echo(self, text: Text) -> Text:
        return text

    async def wait(self) -> None:
        self.started.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.set()

    async def seen(self) -> Text:
        call = current()
        call.respond_with("x-answer", "42")
        call.trail_with("x-trailer", "43")
        left = call.time_left()
        return Text(
            text=" ".join(
                [
                    call.method,
                    call.wire,
                    "no deadline" if left is None else "in time" if 0 < left <= 2 else "late",
                    str(call.metadata.get("idempotency-key")),
                    str(call.traceparent),
                    str(call.tracestate),
                    str(call.baggage),
                ]
            )
        )
