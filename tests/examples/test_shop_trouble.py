"""The shop while one of its processes is killed: callers see `unavailable` or success, and the books balance again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from aftermath import Aftermath, look, quiet, what_differs
from customers import Outcome, Report, crowd
from demo import quiet_books
from postbox import open_postbox
from shop.api_v1 import GatewayV1
from shop.backoffice import Recommendations
from shop.contracts import OrderState
from shop_support import GOOD_CARD, ROOMY, RunningShop, running_shop, until

from polywire import connect

ORDER = {"user_id": "U-1", "items": [{"product_id": "SKU-123", "quantity": 1}], "card": GOOD_CARD}


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["inventory", "payments", "orders", "users"])
async def test_a_service_killed_under_load_leaves_books_that_balance(tmp_path: Path, victim: str) -> None:
    with running_shop(tmp_path, **ROOMY) as shop:
        report = Report()
        async with connect(GatewayV1, shop.address) as client:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(crowd(client, report, customers=200, seed=5, over=4.0, patience=0.3))
                tasks.create_task(kill_under_load(shop, victim, report))
            books = await quiet_books(client, within=30.0)
    assert books.problems == []
    assert books.unfinished == 0
    assert set(report.failures) <= {"unavailable"}
    assert report.asked == report.outcomes.total()
    assert report.outcomes[Outcome.PLACED] > 0
    sold = books.orders.by_state.get(OrderState.CONFIRMED, 0) + books.orders.by_state.get(OrderState.CANCELLED, 0)
    assert report.outcomes[Outcome.PLACED] <= sold


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["mail", "warehouse", "analytics", "images"])
async def test_a_service_of_the_back_office_killed_under_load_does_all_that_follows_nevertheless(
    tmp_path: Path, victim: str
) -> None:
    report = Report()
    async with open_postbox() as (postbox, smtp):
        with running_shop(tmp_path, SHOP_SMTP=smtp, **ROOMY) as shop:
            async with connect(GatewayV1, shop.address) as client:

                async def see() -> Aftermath:
                    return await look(client, postbox.subjects, report)

                before = await quiet(see, lambda _: True)
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(crowd(client, report, customers=200, seed=5, over=4.0, patience=0.3))
                    tasks.create_task(kill_under_load(shop, victim, report))
                after = await quiet(see, lambda now: not differs(before, now, report), within=60.0)
    assert differs(before, after, report) == []
    assert len(report.order_ids) > 50
    assert set(report.failures) <= {"unavailable"}


def differs(before: Aftermath, after: Aftermath, report: Report) -> list[str]:
    """A letter that was sent when its writer was killed may be sent again: the mail server had it, nobody noted it."""
    unwanted = " customers got more than one letter about their order."
    return [problem for problem in what_differs(before, after, report) if not problem.endswith(unwanted)]


@pytest.mark.slow
def test_orders_and_pages_go_on_while_the_bus_hangs(tmp_path: Path) -> None:
    with running_shop(tmp_path) as shop:
        shop.curl("POST", "/api/v1/orders", ORDER)
        with holding(tmp_path / "bus.db"):
            assert shop.curl("GET", "/api/v1/products/SKU-123").status == 200
            placed = shop.curl("POST", "/api/v1/orders", ORDER)
            assert (placed.status, placed.body["state"]) == (201, "confirmed")
        assert shop.curl("GET", "/api/v1/books").body["problems"] == []
        assert f"order {placed.body['order_id']} goes on, but not everybody knows: " in shop.log
        later = (shop.curl("POST", "/api/v1/orders", ORDER).body["order_id"] for _ in range(20))
        assert any(f"order {order_id} goes on" not in shop.log for order_id in later)


@contextlib.contextmanager
def holding(file: Path) -> Iterator[None]:
    """Nobody else can write into this database."""
    connection = sqlite3.connect(file, isolation_level=None, timeout=10.0)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


@pytest.mark.slow
async def test_recommendations_are_rebuilt_by_a_replay(tmp_path: Path) -> None:
    report = Report()
    with running_shop(tmp_path) as shop:
        async with connect(GatewayV1, shop.address) as client:
            await crowd(client, report, customers=60, seed=5, over=0.5, patience=0.0)
        async with connect(Recommendations, shop.address_of("analytics")) as advice:
            assert await pairs_of(advice, len(report.order_ids)) == report.pairs > 0
            assert (await advice.forget()).orders == 0
            await asyncio.to_thread(shop.polywire, "bus", "replay", "shop.orders/recommendations", "--from", "earliest")
            assert await pairs_of(advice, len(report.order_ids)) == report.pairs


async def pairs_of(advice: Recommendations, orders: int) -> int:
    """How many there are once so many orders were counted."""
    async with asyncio.timeout(30):
        while True:
            counted = await advice.count_baskets()
            if counted.orders == orders:
                return counted.pairs
            await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_a_shop_that_closes_under_load_loses_no_request_that_it_took(tmp_path: Path) -> None:
    report = Report()
    with running_shop(tmp_path, **ROOMY) as shop:
        async with connect(GatewayV1, shop.address) as client, asyncio.TaskGroup() as tasks:
            tasks.create_task(crowd(client, report, customers=200, seed=6, over=3.0, patience=0.2))
            await some_orders(report)
            assert await asyncio.to_thread(shop.stop) == 0
    assert set(report.failures) == {"unavailable"}
    assert report.outcomes[Outcome.FAILED] > 0
    with running_shop(tmp_path) as shop:
        until(lambda: shop.curl("GET", "/api/v1/books").status == 200)  # the gateway answers before all others do
        books = shop.curl("GET", "/api/v1/books").body
    assert books["problems"] == []
    assert books["unfinished"] == 0
    by_state = Counter(books["orders"]["by_state"])
    assert by_state[OrderState.FAILED] == 0
    assert by_state[OrderState.CONFIRMED] + by_state[OrderState.CANCELLED] == report.outcomes[Outcome.PLACED]
    assert by_state[OrderState.DECLINED] == report.outcomes[Outcome.DECLINED]
    assert by_state[OrderState.OUT_OF_STOCK] == report.outcomes[Outcome.OUT_OF_STOCK]


async def kill_under_load(shop: RunningShop, victim: str, report: Report) -> None:
    await some_orders(report)
    os.kill(shop.pid_of(victim), signal.SIGKILL)


async def some_orders(report: Report) -> None:
    """Wait until the first orders are placed and many more are under way."""
    while report.outcomes[Outcome.PLACED] < 20:  # noqa: ASYNC110 - the report is a plain record
        await asyncio.sleep(0.01)
