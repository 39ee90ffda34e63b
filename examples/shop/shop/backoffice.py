"""What the back office promises: the work that is done after the customer has gone, and what came of it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from polywire import Contract, Cron, Field, Message, Retry, rpc, task
from shop.contracts import Email, OrderLine, ProductQuery


class Confirmation(Message):
    """All that the mail says, so that nobody has to be asked when it is written."""

    order_id: str
    email: Email
    lines: list[OrderLine]
    total_cents: int


class MailCount(Message):
    sent: int


class Mail(Contract, package="shop.v1"):
    """Letters to customers."""

    # Half an hour with a mail server that is down; after that a person decides: `polywire bus dead retry shop.v1.Mail`.
    @task(key="order_id", timeout=30.0, retry=Retry(attempts=30, base=0.5, cap=120.0))
    async def send_confirmation(self, mail: Confirmation) -> None:
        """One letter for each order, however often it is asked for."""
        raise NotImplementedError

    @rpc(idempotent=True, timeout=2.0)
    async def count_mails(self) -> MailCount:
        raise NotImplementedError


Width = Annotated[int, Field(ge=8, le=128)]


class Resize(Message):
    product_id: str
    width: Width = 64


class Thumb(Message):
    product_id: str
    width: int
    """Pixels; it is as high as it is wide."""
    png: bytes


class PictureCount(Message):
    made: int


class Images(Contract, package="shop.v1"):
    """Pictures of the goods, in sizes that fit."""

    # It keeps a core busy, so processes of its own do it.
    @task(runs_in="process", timeout=30.0, retry=Retry(attempts=3))
    async def resize(self, request: Resize) -> Thumb:
        """Shrink a product's photograph, and keep what comes of it."""
        raise NotImplementedError

    @rpc(idempotent=True, timeout=1.0)
    async def find_thumb(self, query: Resize) -> Thumb:
        """NotFound where nobody has asked for it, or it is not done yet."""
        raise NotImplementedError

    @rpc(idempotent=True, timeout=1.0)
    async def count_pictures(self) -> PictureCount:
        raise NotImplementedError


class ParcelCount(Message):
    packed: int
    """Ready to go."""
    unpacked: int
    """Packed, and taken apart again because the order was cancelled."""
    units: int
    """In the parcels that are ready."""


class Warehouse(Contract, package="shop.v1"):
    """Where orders become parcels."""

    @rpc(idempotent=True, timeout=2.0)
    async def count_parcels(self) -> ParcelCount:
        raise NotImplementedError


class ProductViews(Message):
    product_id: str
    views: int


class Day(Message):
    day: str
    """`2026-03-01`, in UTC."""
    orders: int
    """Confirmed and not cancelled."""
    revenue_cents: int


class Activity(Message):
    views: int
    top: list[ProductViews]
    """The most looked at, ten at most."""
    days: list[Day]
    """The latest first, thirty at most."""
    orders: int
    """Of all days."""
    revenue_cents: int


class NightlyReport(Message):
    """A day as it was known when it was over; what is cancelled later does not change it."""

    day: str
    orders: int
    revenue_cents: int
    written_at: datetime


class NightlyReports(Message):
    items: list[NightlyReport]
    """The latest first, thirty at most."""


class Analytics(Contract, package="shop.v1"):
    """What is going on, a second later."""

    @rpc(idempotent=True, timeout=2.0)
    async def get_activity(self) -> Activity:
        raise NotImplementedError

    # Five minutes for what was sold at midnight to be heard of; one night makes up for all in which nobody was there.
    @task(schedule=Cron("5 0 * * *", zone="UTC", missed="once"))
    async def close_days(self) -> None:
        """Write the reports of all days that are over and have none."""
        raise NotImplementedError

    @rpc(idempotent=True, timeout=2.0)
    async def list_reports(self) -> NightlyReports:
        raise NotImplementedError


class Companion(Message):
    product_id: str
    orders: int
    """In which both products were."""


class Companions(Message):
    companions: list[Companion]
    """The most frequent first, five at most."""


class BasketCount(Message):
    orders: int
    pairs: int
    """Of different products in one order, over all orders."""


class Recommendations(Contract, package="shop.v1"):
    """What was bought together with what."""

    @rpc(idempotent=True, timeout=1.0)
    async def recommend(self, query: ProductQuery) -> Companions:
        raise NotImplementedError

    @rpc(idempotent=True, timeout=2.0)
    async def count_baskets(self) -> BasketCount:
        raise NotImplementedError

    @rpc(idempotent=True, timeout=5.0)
    async def forget(self) -> BasketCount:
        """Throw away what was counted, to count it anew: replay the group `recommendations` of `shop.orders`."""
        raise NotImplementedError
