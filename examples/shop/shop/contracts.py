"""What the services of the shop promise each other. Money is in whole cents, everywhere."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from enum import StrEnum
from typing import Annotated

from polywire import Contract, FailedPrecondition, Field, Message, Unavailable, rpc
from polywire.contract.pagination import PageQuery

# Why the shop says no to a request that is in order. Every caller on every wire gets the same class; in REST it is 409,
# 402 or 503, with the fields in the body.


class OutOfStock(
    FailedPrecondition,
    package="shop.v1",
    http_status=409,
    message="Product {product_id!r} is out of stock: {wanted} wanted, {on_hand} on hand.",
):
    """There is not enough of a product."""

    product_id: str
    wanted: int
    on_hand: int


class CardDeclined(
    FailedPrecondition,
    package="shop.v1",
    http_status=402,
    message="The card ending in {card_ending} was declined.",
):
    """The bank does not pay."""

    card_ending: str


class OrderUndone(
    Unavailable,
    package="shop.v1",
    message="Order {order_id} was interrupted, and whatever was charged is given back. Place it again with a new key.",
):
    """Nothing will come of an order, as a service did not answer or took too long. Money and goods go back."""

    order_id: str


class Product(Message):
    product_id: str
    name: str
    category: str
    description: str
    price_cents: int


class ProductQuery(Message):
    product_id: str


class ProductSearch(PageQuery):
    """Empty and absent conditions are none. With *after*, the last product seen, pages count from there."""

    search: Annotated[str, Field(max_length=100)] = ""
    category: str = ""
    max_price_cents: int | None = None
    after: str = ""


class ProductsFound(Message):
    products: list[Product]
    total: int
    """Of all pages."""


class Catalog(Contract, package="shop.v1"):
    """What the shop sells, and for how much."""

    @rpc(idempotent=True, timeout=1.0)
    async def find_products(self, search: ProductSearch) -> ProductsFound:
        """In the order of the catalogue."""
        raise NotImplementedError

    @rpc(idempotent=True, timeout=1.0)
    async def get_product(self, query: ProductQuery) -> Product:
        raise NotImplementedError


class Item(Message):
    product_id: str
    quantity: Annotated[int, Field(ge=1, le=100)]


class StockQuery(Message):
    product_id: str


class Stock(Message):
    product_id: str
    quantity: int
    """What can be reserved now."""
    in_stock: bool


class StockWatch(Message):
    product_ids: Annotated[list[str], Field(min_length=1, max_length=100)]


class Reserve(Message):
    """*reservation_id* is chosen by the caller, so that asking again finds the same reservation."""

    reservation_id: str
    items: Annotated[list[Item], Field(min_length=1, max_length=50)]
    seconds: Annotated[float, Field(gt=0, le=3600)] = 60.0
    """After which the goods go back on the shelf, if the reservation is not committed."""


class ReservationId(Message):
    reservation_id: str


class ReservationState(StrEnum):
    HELD = "held"
    COMMITTED = "committed"
    RELEASED = "released"
    EXPIRED = "expired"


class ReservedItem(Message):
    product_id: str
    name: str
    quantity: int
    price_cents: int
    """Of one, at the moment of the reservation."""


class Reservation(Message):
    reservation_id: str
    state: ReservationState
    items: list[ReservedItem]
    expires_at: datetime


class StockCount(Message):
    """Of the whole warehouse, in units. `initial == on_hand + reserved + sold`, or something is broken."""

    initial: int
    on_hand: int
    reserved: int
    sold: int


class Inventory(Contract, package="shop.v1"):
    """What is in stock, and promises on it."""

    @rpc(idempotent=True, timeout=0.5)
    async def check_stock(self, query: StockQuery) -> Stock:
        """Units on hand now; it may change before an order is placed."""
        raise NotImplementedError

    @rpc(idempotent=True, timeout=2.0, raises=(OutOfStock,))
    async def reserve(self, request: Reserve) -> Reservation:
        """Put all of the items aside, or none of them: then OutOfStock names the first that is short."""
        raise NotImplementedError

    @rpc(idempotent=True, timeout=2.0)
    async def commit(self, request: ReservationId) -> Reservation:
        """The goods are sold. FailedPrecondition if the reservation has expired or was released."""
        raise NotImplementedError

    @rpc(idempotent=True, timeout=2.0)
    async def release(self, request: ReservationId) -> None:
        """Back on the shelf, sold or not. A reservation that never came is refused, should it still come."""
        raise NotImplementedError

    @rpc
    def watch(self, request: StockWatch) -> AsyncIterator[Stock]:
        """The stock of each product now, and again whenever it has changed. Changes in a hurry come as one."""
        raise NotImplementedError

    @rpc(idempotent=True, timeout=2.0)
    async def count_stock(self) -> StockCount:
        raise NotImplementedError


Card = Annotated[str, Field(pattern=r"^[0-9]{16}$", sensitive=True)]


class Charge(Message):
    """*charge_id* is chosen by the caller, so that asking again does not charge again."""

    charge_id: str
    amount_cents: Annotated[int, Field(ge=1)]
    card: Card


class ChargeId(Message):
    charge_id: str


class ChargeState(StrEnum):
    CHARGED = "charged"
    DECLINED = "declined"
    REFUNDED = "refunded"
    VOID = "void"
    """Refunded before it came; should it still come, it is refused."""


class Payment(Message):
    charge_id: str
    state: ChargeState
    amount_cents: int
    card_ending: str


class Balance(Message):
    charges: int
    charged_cents: int
    """Of all charges that went through, those refunded later included."""
    refunds: int
    refunded_cents: int
    declined: int


class Payments(Contract, package="shop.v1"):
    """Money in, and back."""

    @rpc(idempotent=True, timeout=2.0, raises=(CardDeclined,))
    async def charge(self, request: Charge) -> Payment:
        """Take the money, once per charge id. FailedPrecondition if the charge is void."""
        raise NotImplementedError

    @rpc(idempotent=True, timeout=2.0)
    async def refund(self, request: ChargeId) -> Payment:
        """Give it back, once; a charge that never came is void from now on."""
        raise NotImplementedError

    @rpc(idempotent=True, timeout=2.0)
    async def get_balance(self) -> Balance:
        raise NotImplementedError


class Pace(Message):
    """*seconds* is what the bank takes for a charge: half of it before the money moves, and half before it says so."""

    seconds: Annotated[float, Field(ge=0, le=60)]


class Bank(Contract, package="shop.v1"):
    """The bank behind the till, which is made up. So it can be told to be slow, to see what the shop makes of it."""

    @rpc(idempotent=True, timeout=2.0)
    async def set_pace(self, pace: Pace) -> None:
        """For charges from now on, until the till is started again: then it is $SHOP_BANK_SECONDS, or no time."""
        raise NotImplementedError


class User(Message):
    user_id: str
    name: str
    email: str
    city: str


class UserQuery(Message):
    user_id: str


class UserList(Message):
    city: str = ""
    """Empty: everywhere."""


Name = Annotated[str, Field(min_length=1, max_length=100)]
Email = Annotated[str, Field(pattern=r"^[^@\s]+@[^@\s]+$", max_length=200)]


class NewUser(Message):
    name: Name
    email: Email
    city: Annotated[str, Field(max_length=100)] = ""


class UsersCreated(Message):
    user_ids: list[str]
    """In the order in which they were sent."""


class UserChange(Message):
    """What is absent stays as it is."""

    user_id: str
    name: Name | None = None
    email: Email | None = None
    city: Annotated[str, Field(max_length=100)] | None = None


class ChatMessage(Message):
    text: Annotated[str, Field(max_length=1000)]
    user_id: str = ""
    """In the customer's first message; the agent leaves it empty."""


class Users(Contract, package="shop.v1"):
    """Who buys here."""

    @rpc(idempotent=True, timeout=1.0)
    async def get_user(self, query: UserQuery) -> User:
        raise NotImplementedError

    @rpc(timeout=30.0)
    def list_users(self, request: UserList) -> AsyncIterator[User]:
        """One by one, in the order in which they came."""
        raise NotImplementedError

    @rpc(timeout=30.0)
    async def create_users(self, users: AsyncIterator[NewUser]) -> UsersCreated:
        """All of them or none, at most 1,000. AlreadyExists if one has an email that somebody has."""
        raise NotImplementedError

    @rpc(idempotent=True, timeout=1.0)
    async def change_user(self, change: UserChange) -> User:
        """AlreadyExists if somebody else has the email."""
        raise NotImplementedError

    @rpc
    def chat(self, messages: AsyncIterator[ChatMessage]) -> AsyncIterator[ChatMessage]:
        """Customer support. It ends when the customer stops writing or says goodbye."""
        raise NotImplementedError


class PlaceOrder(Message):
    """*key* is the customer's own: the same key again finds the same order instead of placing another."""

    key: Annotated[str, Field(min_length=1, max_length=200)]
    user_id: str
    items: Annotated[list[Item], Field(min_length=1, max_length=50)]
    card: Card
    email: Email | None = None
    """Where the confirmation goes; without one, none is sent."""


class OrderState(StrEnum):
    PENDING = "pending"
    """Being placed; nothing is promised yet."""
    CONFIRMED = "confirmed"
    UNDOING = "undoing"
    """Money and goods are on their way back."""
    OUT_OF_STOCK = "out_of_stock"
    DECLINED = "declined"
    FAILED = "failed"
    """A service could not be reached, or took too long. Nothing was charged, or it was given back."""
    CANCELLED = "cancelled"


class OrderLine(Message):
    product_id: str
    name: str
    quantity: int
    price_cents: int


class Order(Message):
    order_id: str
    user_id: str
    state: OrderState
    lines: list[OrderLine]
    total_cents: int
    placed_at: datetime
    reason: str = ""
    """Why it is not confirmed."""


class OrderId(Message):
    order_id: str


class OrdersOf(PageQuery):
    user_id: str


class OrdersFound(Message):
    orders: list[Order]
    total: int


class Tally(Message):
    """All orders ever, by state; and what the confirmed ones amount to."""

    by_state: dict[str, int]
    confirmed_units: int
    confirmed_cents: int


class Orders(Contract, package="shop.v1"):
    """From a wish to goods and money changing hands."""

    @rpc(timeout=5.0, raises=(OutOfStock, CardDeclined, OrderUndone))
    async def place(self, request: PlaceOrder) -> Order:
        """Reserve, charge and confirm; if one of them fails, nothing of it stays.

        OrderUndone: a service did not answer; try again with a new key. Any other Unavailable: it is not known yet what
        becomes of the order; ask again with the same key. InvalidArgument: the key was used for a different order.
        """
        raise NotImplementedError

    @rpc(idempotent=True, timeout=1.0)
    async def get_order(self, query: OrderId) -> Order:
        raise NotImplementedError

    @rpc(idempotent=True, timeout=1.0)
    async def list_orders(self, query: OrdersOf) -> OrdersFound:
        """The latest first."""
        raise NotImplementedError

    @rpc(idempotent=True, timeout=5.0)
    async def cancel(self, request: OrderId) -> Order:
        """Give back money and goods of a confirmed order. It is UNDOING where that takes longer than this call."""
        raise NotImplementedError

    @rpc(idempotent=True, timeout=2.0)
    async def tally(self) -> Tally:
        raise NotImplementedError
