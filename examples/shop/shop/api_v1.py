"""The public face of the shop, first version: REST resources close to what the services say."""

from __future__ import annotations

from typing import Annotated

from polywire import Contract, Field, Message, delete, get, patch, post, put, rpc
from polywire.contract.pagination import Page
from shop.backoffice import Activity, BasketCount, MailCount, NightlyReports, ParcelCount, PictureCount, Thumb, Width
from shop.contracts import (
    Balance,
    Card,
    CardDeclined,
    Email,
    Item,
    Name,
    NewUser,
    Order,
    OrderId,
    OrdersOf,
    OrderUndone,
    OutOfStock,
    Product,
    ProductQuery,
    ProductSearch,
    StockCount,
    Tally,
    User,
    UserChange,
    UserQuery,
)

PAGE_WITHIN = 3.0
"""Seconds after which whoever wants to see something has an answer, good or bad."""
ORDER_WITHIN = 8.0
"""The same for placing an order, and for sending it back."""


class ProductPage(Page):
    items: list[Product]


class ProductDetail(Message):
    product_id: str
    name: str
    category: str
    description: str
    price_cents: int
    in_stock: bool
    units: int


class NewOrder(Message):
    user_id: str
    items: Annotated[list[Item], Field(min_length=1, max_length=50)]
    card: Card
    idempotency_key: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    """Of the customer's own making: the same key again is answered with the same order."""


class NewThumb(Message):
    product_id: str
    width: Width = 64


class ThumbAsked(Message):
    product_id: str
    width: int
    task_id: str
    """By which the log speaks of it."""


class Companion(Message):
    product_id: str
    name: str
    price_cents: int
    orders: int
    """In which both products were."""


class CompanionList(Message):
    items: list[Companion]
    """The most frequent first, five at most."""
    fallback: bool = False
    """Nobody could be asked just now: this is what was said last, or else what the shop has most of, with 0 orders."""


class OrderPage(Page):
    items: list[Order]


class UserReplacement(Message):
    user_id: str
    name: Name
    email: Email
    city: Annotated[str, Field(max_length=100)]


class Books(Message):
    """What the whole shop owns and owes. Between orders it has to balance; while orders are under way it may not."""

    stock: StockCount
    orders: Tally
    money: Balance
    unfinished: int
    """Orders still being placed or undone."""
    problems: list[str]
    """Sentences; empty where the books balance."""


class BackOffice(Message):
    """How much was done of what follows from orders: it comes some moments after them."""

    mails: MailCount
    parcels: ParcelCount
    pictures: PictureCount
    baskets: BasketCount


class GatewayV1(Contract, package="shop.v1", name="Gateway", prefix="/api/v1"):
    """Browse, buy, and look after orders and customers."""

    @rpc(get("/products"), idempotent=True, timeout=PAGE_WITHIN)
    async def list_products(self, search: ProductSearch) -> ProductPage:
        raise NotImplementedError

    @rpc(get("/products/{product_id}"), idempotent=True, timeout=PAGE_WITHIN)
    async def get_product(self, query: ProductQuery) -> ProductDetail:
        """With what is in stock right now."""
        raise NotImplementedError

    @rpc(get("/products/{product_id}/recommendations"), idempotent=True, timeout=PAGE_WITHIN)
    async def list_recommendations(self, query: ProductQuery) -> CompanionList:
        """What others bought together with it."""
        raise NotImplementedError

    @rpc(post("/products/{product_id}/thumbnail", status=202), idempotent=True, timeout=PAGE_WITHIN)
    async def order_thumbnail(self, request: NewThumb) -> ThumbAsked:
        """Have a picture made, which takes a moment."""
        raise NotImplementedError

    @rpc(get("/products/{product_id}/thumbnail"), idempotent=True, timeout=PAGE_WITHIN)
    async def get_thumbnail(self, query: NewThumb) -> Thumb:
        """NotFound where none was asked for, or it is not done yet."""
        raise NotImplementedError

    @rpc(
        post("/orders", status=201, location="/orders/{order_id}", headers={"idempotency_key": "Idempotency-Key"}),
        timeout=ORDER_WITHIN,
        raises=(OutOfStock, CardDeclined, OrderUndone),
    )
    async def place_order(self, order: NewOrder) -> Order:
        """NotFound for a customer that is none."""
        raise NotImplementedError

    @rpc(get("/orders/{order_id}"), idempotent=True, timeout=PAGE_WITHIN)
    async def get_order(self, query: OrderId) -> Order:
        raise NotImplementedError

    @rpc(delete("/orders/{order_id}"), idempotent=True, timeout=ORDER_WITHIN)
    async def cancel_order(self, order: OrderId) -> None:
        """Money and goods go back."""
        raise NotImplementedError

    @rpc(post("/users", status=201, location="/users/{user_id}"), timeout=PAGE_WITHIN)
    async def create_user(self, user: NewUser) -> User:
        raise NotImplementedError

    @rpc(get("/users/{user_id}"), idempotent=True, timeout=PAGE_WITHIN)
    async def get_user(self, query: UserQuery) -> User:
        raise NotImplementedError

    @rpc(put("/users/{user_id}"), idempotent=True, timeout=PAGE_WITHIN)
    async def replace_user(self, user: UserReplacement) -> User:
        raise NotImplementedError

    @rpc(patch("/users/{user_id}"), idempotent=True, timeout=PAGE_WITHIN)
    async def change_user(self, change: UserChange) -> User:
        raise NotImplementedError

    @rpc(get("/users/{user_id}/orders"), idempotent=True, timeout=PAGE_WITHIN)
    async def list_orders(self, query: OrdersOf) -> OrderPage:
        """The latest first."""
        raise NotImplementedError

    @rpc(get("/books"), idempotent=True, timeout=5.0)
    async def get_books(self) -> Books:
        raise NotImplementedError

    @rpc(get("/analytics"), idempotent=True, timeout=5.0)
    async def get_analytics(self) -> Activity:
        """What was looked at and what was sold, a second later."""
        raise NotImplementedError

    @rpc(get("/reports"), idempotent=True, timeout=5.0)
    async def list_reports(self) -> NightlyReports:
        """What was sold on the days that are over."""
        raise NotImplementedError

    @rpc(get("/backoffice"), idempotent=True, timeout=5.0)
    async def get_backoffice(self) -> BackOffice:
        raise NotImplementedError
