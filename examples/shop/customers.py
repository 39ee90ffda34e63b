"""Simulated customers: they browse, change their minds, buy, and now and then send it all back. Over REST, as anyone.

python customers.py http://127.0.0.1:8000 --customers 300 --seed 1
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
import uuid
from collections import Counter, deque
from collections.abc import Awaitable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeVar

from shop.api_v1 import GatewayV1, NewOrder, NewThumb
from shop.catalogue import goods
from shop.contracts import (
    CardDeclined,
    Item,
    Order,
    OrderId,
    OrdersOf,
    OutOfStock,
    Product,
    ProductQuery,
    ProductSearch,
    User,
    UserQuery,
)
from shop.money import euros
from shop.users import SEEDED

from polywire import CallError, calling, connect

Answer = TypeVar("Answer")

GOOD_CARD = "4242424242424242"
BAD_CARD = "4000000000000002"
BARGAIN = min(goods(), key=lambda product: (product.units, product.number))
"""What everybody wants and hardly anybody gets."""
WORDS = ["oak", "steel", "small", "lamp", "bench", "wool", "kettle", "round"]
CATEGORIES = ["Kitchen", "Office", "Garden", "Travel", "Home", "Toys"]


class Outcome(StrEnum):
    """How an attempt to buy ended, from the customer's point of view."""

    PLACED = "placed"
    DECLINED = "declined"
    OUT_OF_STOCK = "out of stock"
    FAILED = "failed"


@dataclass(kw_only=True)
class Report:
    """What all customers together did and met."""

    arrived: int = 0
    left: int = 0
    asked: int = 0
    """Orders that somebody tried to place."""
    outcomes: Counter[Outcome] = field(default_factory=Counter)
    cancelled: int = 0
    spent_cents: int = 0
    """Of orders placed, less those cancelled."""
    units: int = 0
    """Of orders placed, less those cancelled."""
    order_ids: list[str] = field(default_factory=list)
    """Of orders placed, cancelled or not."""
    pairs: int = 0
    """Of different products in one order, over all orders placed."""
    viewed: int = 0
    """Products that were looked at."""
    pictures: set[str] = field(default_factory=set)
    """Products of which somebody wanted a picture."""
    requests: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    """Requests that failed though the customer did nothing wrong, by code."""
    latencies: list[float] = field(default_factory=list)
    """Seconds, of every request."""
    news: deque[str] = field(default_factory=lambda: deque(maxlen=3))

    def percentile(self, share: float) -> float:
        """Of the latencies, in milliseconds."""
        ordered = sorted(self.latencies) or [0.0]
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000


class Customer:
    """One person with dice of their own, so that the same seed makes the same choices."""

    def __init__(self, shop: GatewayV1, number: int, seed: int, report: Report, *, patience: float = 1.0) -> None:
        self._shop = shop
        self._number = number
        self._user_id = f"U-{number % SEEDED + 1}"
        self._dice = random.Random(f"{seed}/{number}")
        self._report = report
        self._patience = patience
        """Multiplies the time spent looking at pages; 0 clicks as fast as the shop answers."""

    async def visit(self) -> None:
        self._report.arrived += 1
        try:
            user = await self._ask(self._shop.get_user(UserQuery(user_id=self._user_id)))
            wanted = await self._browse()
            if user is not None and self._dice.random() < 0.8:
                await self._buy(user, wanted)
        finally:
            self._report.left += 1

    async def _browse(self) -> list[Product]:
        seen: list[Product] = []
        for _ in range(self._dice.randint(1, 3)):
            page = await self._ask(self._shop.list_products(self._search()))
            seen += page.items if page is not None else []
            await self._look()
        wanted = self._dice.sample(seen, min(len(seen), self._dice.randint(1, 3)))
        for product in wanted:
            await self._view(product)
            await self._look()
        return wanted

    async def _view(self, product: Product) -> None:
        query = ProductQuery(product_id=product.product_id)
        if await self._ask(self._shop.get_product(query)) is not None:
            self._report.viewed += 1
        if self._number % 5 == 0:
            await self._ask(self._shop.list_recommendations(query))
        if self._number % 20 == 0:
            asked = await self._ask(self._shop.order_thumbnail(NewThumb(product_id=product.product_id)))
            if asked is not None:
                self._report.pictures.add(product.product_id)

    def _search(self) -> ProductSearch:
        if self._dice.random() < 0.5:
            return ProductSearch(search=self._dice.choice(WORDS), page=self._dice.randint(1, 2), limit=10)
        return ProductSearch(category=self._dice.choice(CATEGORIES), page=self._dice.randint(1, 5), limit=20)

    async def _buy(self, user: User, wanted: list[Product]) -> None:
        items = [Item(product_id=product.product_id, quantity=self._dice.randint(1, 3)) for product in wanted]
        if self._dice.random() < 0.1 or not items:
            items = [Item(product_id=BARGAIN.product_id, quantity=1)]
        card = BAD_CARD if self._dice.random() < 0.08 else GOOD_CARD
        self._report.asked += 1
        placed = await self._place(NewOrder(user_id=user.user_id, items=items, card=card))
        if isinstance(placed, Outcome):
            self._report.outcomes[placed] += 1
            self._report.news.append(f"{user.name} left with empty hands: {placed}")
            return
        self._report.outcomes[Outcome.PLACED] += 1
        self._note(placed)
        first = placed.lines[0]
        more = f" and {len(placed.lines) - 1} more" if len(placed.lines) > 1 else ""
        self._report.news.append(
            f"{user.name} bought {first.quantity} x {first.name}{more} for {euros(placed.total_cents)}"
        )
        await self._afterwards(user, placed)

    def _note(self, placed: Order) -> None:
        self._report.order_ids.append(placed.order_id)
        self._report.spent_cents += placed.total_cents
        self._report.units += _units(placed)
        self._report.pairs += len(placed.lines) * (len(placed.lines) - 1) // 2

    async def _place(self, order: NewOrder) -> Order | Outcome:
        """With a key of the customer's own, so that asking again after a lost answer cannot order twice. It is sent as
        `Idempotency-Key`, where the shop reads it."""
        with calling(idempotency_key=str(uuid.uuid4())):
            started = time.perf_counter()
            try:
                return await self._shop.place_order(order)
            except CardDeclined:
                return Outcome.DECLINED
            except OutOfStock:
                return Outcome.OUT_OF_STOCK
            except CallError as error:
                self._report.failures[error.code] += 1
                return Outcome.FAILED
            finally:
                self._count(started)

    async def _afterwards(self, user: User, order: Order) -> None:
        await self._look()
        await self._ask(self._shop.get_order(OrderId(order_id=order.order_id)))
        await self._ask(self._shop.list_orders(OrdersOf(user_id=user.user_id, limit=5)))
        if self._dice.random() < 0.12:
            await self._look()
            if await self._ask(self._sent_back(order)):
                self._report.cancelled += 1
                self._report.spent_cents -= order.total_cents
                self._report.units -= _units(order)
                self._report.news.append(f"{user.name} sent everything back")

    async def _sent_back(self, order: Order) -> bool:
        await self._shop.cancel_order(OrderId(order_id=order.order_id))
        return True

    async def _ask(self, call: Awaitable[Answer]) -> Answer | None:
        started = time.perf_counter()
        try:
            return await call
        except CallError as error:
            self._report.failures[error.code] += 1
            return None
        finally:
            self._count(started)

    def _count(self, started: float) -> None:
        self._report.requests += 1
        self._report.latencies.append(time.perf_counter() - started)

    async def _look(self) -> None:
        await asyncio.sleep(self._dice.uniform(0.1, 0.9) * self._patience)


def _units(order: Order) -> int:
    return sum(line.quantity for line in order.lines)


async def crowd(
    shop: GatewayV1, report: Report, *, customers: int, seed: int, over: float = 4.0, patience: float = 1.0
) -> None:
    """Let *customers* come in over some seconds and wait until the last one has left."""
    arrivals = random.Random(seed)

    async def one(number: int) -> None:
        await asyncio.sleep(arrivals.uniform(0, over))
        await Customer(shop, number, seed, report, patience=patience).visit()

    async with asyncio.TaskGroup() as visits:
        for number in range(customers):
            visits.create_task(one(number))


async def tell(report: Report, every: float = 1.0) -> None:
    """Print how it goes, until cancelled."""
    started = time.monotonic()
    before = 0
    while True:
        await asyncio.sleep(every)
        outcomes = report.outcomes
        print(
            f"{time.monotonic() - started:4.0f} s  {report.arrived - report.left:4} customers  "
            f"{(report.requests - before) / every:6.0f} requests/s  {report.percentile(0.5):5.1f} ms (p50)  "
            f"{report.percentile(0.99):6.1f} ms (p99)  {outcomes[Outcome.PLACED]:4} bought  "
            f"{outcomes[Outcome.DECLINED]:3} declined  {outcomes[Outcome.OUT_OF_STOCK]:3} too late",
            flush=True,
        )
        before = report.requests
        if report.news:
            print(f"        {report.news.pop()}", flush=True)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address", nargs="?", default="http://127.0.0.1:8000")
    parser.add_argument("--customers", type=int, default=300)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    options = parser.parse_args()
    report = Report()
    async with connect(GatewayV1, options.address) as shop:
        telling = asyncio.create_task(tell(report))
        await crowd(shop, report, customers=options.customers, seed=options.seed)
        telling.cancel()
    print(f"{report.requests} requests, {report.asked} orders: {dict(report.outcomes)}, {report.cancelled} cancelled")


if __name__ == "__main__":
    asyncio.run(main())
