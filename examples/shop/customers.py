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
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeVar

from shop.api_v1 import ORDER_WITHIN, PAGE_WITHIN, CompanionList, GatewayV1, NewOrder, NewThumb
from shop.catalogue import goods
from shop.contracts import (
    CardDeclined,
    Item,
    Order,
    OrderId,
    OrdersOf,
    OrderUndone,
    OutOfStock,
    Product,
    ProductQuery,
    ProductSearch,
    User,
    UserQuery,
)
from shop.money import euros
from shop.users import SEEDED

from polywire import Breaker, Bulkhead, CallDefaults, CallError, calling, connect

Answer = TypeVar("Answer")

GOOD_CARD = "4242424242424242"
BAD_CARD = "4000000000000002"
BARGAIN = min(goods(), key=lambda product: (product.units, product.number))
"""What everybody wants and hardly anybody gets."""
STRANGERS = CallDefaults(policies=(Breaker(enabled=False), Bulkhead(enabled=False)), budget_minimum=1000.0)
"""Customers know nothing of each other: what one of them meets does not keep the next one from asking, though in this
program they share a client."""
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
    longest: dict[float, float] = field(default_factory=dict)
    """The longest that a request took, in seconds, by its deadline."""
    retried: int = 0
    """Requests that were answered well when the client had sent them again by itself."""
    asked_again: int = 0
    """Orders whose fate a customer learned by asking again."""
    advised: int = 0
    """Pages with recommendations."""
    fallbacks: int = 0
    """Those of them for which the recommendations could not be asked."""
    unclear: list[tuple[str, NewOrder]] = field(default_factory=list)
    """Orders, with their keys, whose customers left with empty hands and cannot know what became of them."""
    unclear_returns: list[Order] = field(default_factory=list)
    """Orders that their customers tried to send back and do not know whether they did."""
    news: deque[str] = field(default_factory=lambda: deque(maxlen=3))

    def percentile(self, share: float) -> float:
        """Of the latencies, in milliseconds."""
        ordered = sorted(self.latencies) or [0.0]
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000

    def placed(self, order: Order) -> None:
        self.order_ids.append(order.order_id)
        self.spent_cents += order.total_cents
        self.units += _units(order)
        self.pairs += len(order.lines) * (len(order.lines) - 1) // 2

    def sent_back(self, order: Order) -> None:
        self.cancelled += 1
        self.spent_cents -= order.total_cents
        self.units -= _units(order)

    @contextmanager
    def request(self, within: float) -> Iterator[None]:
        """Around one request, which has to be answered *within* some seconds. A failed one is counted and raised."""
        started = time.perf_counter()
        try:
            with calling() as asked:
                yield
            self.retried += asked.attempts > 1
        except CallError as error:
            if not isinstance(error, CardDeclined | OutOfStock):
                self.failures[error.code] += 1
            raise
        finally:
            seconds = time.perf_counter() - started
            self.requests += 1
            self.latencies.append(seconds)
            self.longest[within] = max(seconds, self.longest.get(within, 0.0))


async def place(shop: GatewayV1, key: str, order: NewOrder, report: Report) -> Order | Outcome | None:
    """Try to place an order; None where nobody can say yet what becomes of it. The key is the customer's own, so that
    asking again after a lost answer cannot order twice. It is sent as `Idempotency-Key`, where the shop reads it."""
    try:
        with calling(idempotency_key=key), report.request(ORDER_WITHIN):
            return await shop.place_order(order)
    except CardDeclined:
        return Outcome.DECLINED
    except OutOfStock:
        return Outcome.OUT_OF_STOCK
    except OrderUndone:
        return Outcome.FAILED
    except CallError:
        return None


async def send_back(shop: GatewayV1, order: Order, report: Report) -> bool:
    """False where nobody can say whether it was."""
    try:
        with report.request(ORDER_WITHIN):
            await shop.cancel_order(OrderId(order_id=order.order_id))
    except CallError:
        return False
    report.sent_back(order)
    return True


class Customer:
    """One person with dice of their own, so that the same seed makes the same choices."""

    def __init__(
        self, shop: GatewayV1, number: int, seed: int, report: Report, *, patience: float = 1.0, tries: int = 1
    ) -> None:
        self._shop = shop
        self._number = number
        self._user_id = f"U-{number % SEEDED + 1}"
        self._dice = random.Random(f"{seed}/{number}")
        self._report = report
        self._patience = patience
        """Multiplies the time spent looking at pages; 0 clicks as fast as the shop answers."""
        self._tries = tries
        """How often to ask for an order before leaving without."""

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
            self._note_advice(await self._ask(self._shop.list_recommendations(query)))
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
        order = NewOrder(user_id=user.user_id, items=items, card=card)
        placed = await self._place(order)
        if isinstance(placed, Outcome):
            self._report.outcomes[placed] += 1
            self._report.news.append(f"{user.name} left with empty hands: {placed}")
            return
        self._report.outcomes[Outcome.PLACED] += 1
        self._report.placed(placed)
        first = placed.lines[0]
        more = f" and {len(placed.lines) - 1} more" if len(placed.lines) > 1 else ""
        self._report.news.append(
            f"{user.name} bought {first.quantity} x {first.name}{more} for {euros(placed.total_cents)}"
        )
        await self._afterwards(user, placed)

    async def _place(self, order: NewOrder) -> Order | Outcome:
        key = str(uuid.uuid4())
        for attempt in range(self._tries):
            if attempt:
                await asyncio.sleep(self._dice.uniform(0.5, 1.5))
            placed = await place(self._shop, key, order, self._report)
            if placed is not None:
                self._report.asked_again += attempt > 0
                return placed
        self._report.unclear.append((key, order))
        return Outcome.FAILED

    async def _afterwards(self, user: User, order: Order) -> None:
        await self._look()
        await self._ask(self._shop.get_order(OrderId(order_id=order.order_id)))
        await self._ask(self._shop.list_orders(OrdersOf(user_id=user.user_id, limit=5)))
        if self._dice.random() < 0.12:
            await self._look()
            if await send_back(self._shop, order, self._report):
                self._report.news.append(f"{user.name} sent everything back")
            else:
                self._report.unclear_returns.append(order)

    async def _ask(self, call: Awaitable[Answer]) -> Answer | None:
        """What a page has, None where it cannot be had."""
        try:
            with self._report.request(PAGE_WITHIN):
                return await call
        except CallError:
            return None

    def _note_advice(self, page: CompanionList | None) -> None:
        if page is not None:
            self._report.advised += 1
            self._report.fallbacks += page.fallback

    async def _look(self) -> None:
        await asyncio.sleep(self._dice.uniform(0.1, 0.9) * self._patience)


def _units(order: Order) -> int:
    return sum(line.quantity for line in order.lines)


async def crowd(
    shop: GatewayV1,
    report: Report,
    *,
    customers: int,
    seed: int,
    over: float = 4.0,
    patience: float = 1.0,
    tries: int = 1,
) -> None:
    """Let *customers* come in over some seconds and wait until the last one has left."""
    arrivals = random.Random(seed)

    async def one(number: int) -> None:
        await asyncio.sleep(arrivals.uniform(0, over))
        await Customer(shop, number, seed, report, patience=patience, tries=tries).visit()

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
    async with connect(GatewayV1, options.address, defaults=STRANGERS) as shop:
        telling = asyncio.create_task(tell(report))
        await crowd(shop, report, customers=options.customers, seed=options.seed)
        telling.cancel()
    print(f"{report.requests} requests, {report.asked} orders: {dict(report.outcomes)}, {report.cancelled} cancelled")


if __name__ == "__main__":
    asyncio.run(main())
