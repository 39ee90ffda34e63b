"""What is going on in the shop, and what is bought with what: two groups, each counting what it is told of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import permutations
from typing import Annotated

from polywire import App, Batch, Clock, subscribe
from shop.backoffice import (
    Activity,
    Analytics,
    BasketCount,
    Companion,
    Companions,
    Day,
    NightlyReport,
    NightlyReports,
    ProductViews,
    Recommendations,
)
from shop.contracts import ProductQuery
from shop.database import Database, open_database
from shop.events import OrderCancelled, OrderConfirmed, PageView

app = App("analytics")

REMEMBERED = 8 * 24 * 3600.0
"""Seconds for which a view is known by its id: longer than its topic keeps it, so none is counted again."""


def create_activity(database: Database) -> None:
    database.run("CREATE TABLE seen (view_id TEXT PRIMARY KEY, at REAL NOT NULL) WITHOUT ROWID")
    database.run("CREATE INDEX seen_by_time ON seen (at)")
    database.run("CREATE TABLE views (product_id TEXT PRIMARY KEY, number INTEGER NOT NULL) WITHOUT ROWID")
    database.run("CREATE INDEX views_by_number ON views (number)")
    database.run("""
        CREATE TABLE purchases (
            order_id TEXT PRIMARY KEY, day TEXT NOT NULL, cents INTEGER NOT NULL, cancelled INTEGER NOT NULL
        ) WITHOUT ROWID""")
    database.run("""
        CREATE TABLE days (day TEXT PRIMARY KEY, orders INTEGER NOT NULL, cents INTEGER NOT NULL) WITHOUT ROWID""")


def create_reports(database: Database) -> None:
    database.run("""
        CREATE TABLE reports (
            day TEXT PRIMARY KEY, orders INTEGER NOT NULL, cents INTEGER NOT NULL, written_at REAL NOT NULL
        ) WITHOUT ROWID""")


@app.resource
def activity() -> Iterator[Annotated[Database, "activity"]]:
    with open_database("analytics", create_activity, create_reports) as database:
        yield database


@app.service
class AnalyticsService(Analytics):
    """Live aggregates. An event and its share in them are written in one transaction, so telling it twice counts once;
    a batch is one transaction, so a hundred views cost little more than one."""

    def __init__(self, database: Annotated[Database, "activity"], clock: Clock) -> None:
        self._database = database
        self._clock = clock

    @subscribe(PageView, group="analytics", batch=Batch(500, wait=0.2))
    async def count_views(self, views: Sequence[PageView]) -> None:
        with self._database.transaction():
            for view in views:
                if self._database.run("INSERT OR IGNORE INTO seen VALUES (?, ?)", view.view_id, view.at.timestamp()):
                    self._database.run(
                        "INSERT INTO views VALUES (?, 1) ON CONFLICT (product_id) DO UPDATE SET number = number + 1",
                        view.product_id,
                    )
            latest = max(view.at.timestamp() for view in views)
            self._database.run("DELETE FROM seen WHERE at < ?", latest - REMEMBERED)

    @subscribe(OrderConfirmed, OrderCancelled, group="analytics", batch=Batch(200, wait=0.2))
    async def count_orders(self, orders: Sequence[OrderConfirmed | OrderCancelled]) -> None:
        with self._database.transaction():
            for order in orders:
                if isinstance(order, OrderConfirmed):
                    self._confirmed(order)
                else:
                    self._cancelled(order)

    def _confirmed(self, order: OrderConfirmed) -> None:
        day = order.placed_at.astimezone(UTC).date().isoformat()
        if self._database.run(
            "INSERT OR IGNORE INTO purchases VALUES (?, ?, ?, 0)", order.order_id, day, order.total_cents
        ):
            self._add(day, 1, order.total_cents)

    def _cancelled(self, order: OrderCancelled) -> None:
        row = self._database.one("SELECT * FROM purchases WHERE order_id = ?", order.order_id)
        if row is None:
            # It was declined or the like; or its confirmation is still to come, which will find this and not count.
            self._database.run("INSERT INTO purchases VALUES (?, '', 0, 1)", order.order_id)
        elif not row["cancelled"]:
            self._database.run("UPDATE purchases SET cancelled = 1 WHERE order_id = ?", order.order_id)
            self._add(row["day"], -1, -row["cents"])

    def _add(self, day: str, orders: int, cents: int) -> None:
        self._database.run(
            "INSERT INTO days VALUES (?, ?, ?)"
            " ON CONFLICT (day) DO UPDATE SET orders = orders + excluded.orders, cents = cents + excluded.cents",
            day, orders, cents,
        )  # fmt: skip

    async def get_activity(self) -> Activity:
        views = self._database.value("SELECT coalesce(sum(number), 0) FROM views")
        orders, cents = self._database.all("SELECT coalesce(sum(orders), 0), coalesce(sum(cents), 0) FROM days")[0]
        top = self._database.all("SELECT * FROM views ORDER BY number DESC, product_id LIMIT 10")
        days = self._database.all("SELECT * FROM days ORDER BY day DESC LIMIT 30")
        return Activity(
            views=views,
            top=[ProductViews(product_id=row["product_id"], views=row["number"]) for row in top],
            days=[Day(day=row["day"], orders=row["orders"], revenue_cents=row["cents"]) for row in days],
            orders=orders,
            revenue_cents=cents,
        )

    async def close_days(self) -> None:
        now = self._clock.time()
        today = datetime.fromtimestamp(now, UTC).date().isoformat()
        self._database.run(
            "INSERT OR IGNORE INTO reports SELECT day, orders, cents, ? FROM days WHERE day < ?", now, today
        )

    async def list_reports(self) -> NightlyReports:
        rows = self._database.all("SELECT * FROM reports ORDER BY day DESC LIMIT 30")
        return NightlyReports(
            items=[
                NightlyReport(
                    day=row["day"],
                    orders=row["orders"],
                    revenue_cents=row["cents"],
                    written_at=datetime.fromtimestamp(row["written_at"], UTC),
                )
                for row in rows
            ]
        )


def create_baskets(database: Database) -> None:
    database.run("CREATE TABLE baskets (order_id TEXT PRIMARY KEY) WITHOUT ROWID")
    database.run("""
        CREATE TABLE together (
            product_id TEXT NOT NULL, companion TEXT NOT NULL, orders INTEGER NOT NULL,
            PRIMARY KEY (product_id, companion)
        ) WITHOUT ROWID""")


@app.resource
def baskets() -> Iterator[Annotated[Database, "baskets"]]:
    with open_database("recommendations", create_baskets) as database:
        yield database


@app.service
class RecommendationService(Recommendations):
    """A cancelled order still says what goes together, so cancellations are of no interest here."""

    def __init__(self, database: Annotated[Database, "baskets"]) -> None:
        self._database = database

    @subscribe(OrderConfirmed, group="recommendations")
    async def learn(self, order: OrderConfirmed) -> None:
        with self._database.transaction():
            if self._database.run("INSERT OR IGNORE INTO baskets VALUES (?)", order.order_id):
                self._database.run_many(
                    "INSERT INTO together VALUES (?, ?, 1)"
                    " ON CONFLICT (product_id, companion) DO UPDATE SET orders = orders + 1",
                    list(permutations((line.product_id for line in order.lines), 2)),
                )

    async def recommend(self, query: ProductQuery) -> Companions:
        rows = self._database.all(
            "SELECT companion, orders FROM together WHERE product_id = ? ORDER BY orders DESC, companion LIMIT 5",
            query.product_id,
        )
        return Companions(companions=[Companion(product_id=row["companion"], orders=row["orders"]) for row in rows])

    async def count_baskets(self) -> BasketCount:
        # Each pair is there twice, once for each of its products.
        return BasketCount(
            orders=self._database.value("SELECT count(*) FROM baskets"),
            pairs=self._database.value("SELECT coalesce(sum(orders), 0) FROM together") // 2,
        )

    async def forget(self) -> BasketCount:
        with self._database.transaction():
            self._database.run("DELETE FROM baskets")
            self._database.run("DELETE FROM together")
        return await self.count_baskets()
