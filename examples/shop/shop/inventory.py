"""The warehouse: what the shop sells, what is on the shelf, and what is put aside for whom."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from polywire import App, FailedPrecondition, NotFound
from polywire.clock import SYSTEM_CLOCK, Clock
from shop.catalogue import goods
from shop.contracts import (
    Catalog,
    Inventory,
    Item,
    OutOfStock,
    Product,
    ProductQuery,
    ProductSearch,
    ProductsFound,
    Reservation,
    ReservationId,
    ReservationState,
    Reserve,
    ReservedItem,
    Stock,
    StockCount,
    StockQuery,
    StockWatch,
)
from shop.database import Database, Row, Value, open_database

app = App("inventory")

LOOK_EVERY = 0.1
"""Seconds after which those who watch stock hear of what another instance sold."""


def create_tables(database: Database) -> None:
    database.run("""
        CREATE TABLE products (
            number INTEGER PRIMARY KEY, product_id TEXT NOT NULL UNIQUE, name TEXT NOT NULL, category TEXT NOT NULL,
            description TEXT NOT NULL, price_cents INTEGER NOT NULL,
            initial INTEGER NOT NULL, on_hand INTEGER NOT NULL CHECK (on_hand >= 0)
        )""")
    database.run("""
        CREATE TABLE reservations (reservation_id TEXT PRIMARY KEY, state TEXT NOT NULL, expires_at REAL NOT NULL)""")
    # Only those that can expire: the many that are sold need not be looked at.
    database.run("CREATE INDEX reservations_held ON reservations (expires_at) WHERE state = 'held'")
    database.run("""
        CREATE TABLE reserved_items (
            reservation_id TEXT NOT NULL REFERENCES reservations, product_id TEXT NOT NULL, name TEXT NOT NULL,
            quantity INTEGER NOT NULL, price_cents INTEGER NOT NULL, PRIMARY KEY (reservation_id, product_id)
        ) WITHOUT ROWID""")


def fill_shelves(database: Database) -> None:
    database.run_many(
        "INSERT INTO products VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [(g.number, g.product_id, g.name, g.category, g.description, g.price_cents, g.units, g.units) for g in goods()],
    )


@app.resource
def database() -> Iterator[Database]:
    with open_database("inventory", create_tables, fill_shelves, processes=True) as database:
        yield database


# Fixed texts, in which an empty condition holds for every product: what customers write is only ever a value. Both
# look at the whole table, 0.25 ms for 1,200 products. (No LIKE: in it what people type could have a meaning, "100%".)
COUNT_FOUND = """
    SELECT count(*) FROM products WHERE (? = '' OR instr(lower(name), lower(?)) > 0)
    AND (? = '' OR category = ?) AND (? IS NULL OR price_cents <= ?)"""
FIND = """
    SELECT * FROM products WHERE (? = '' OR instr(lower(name), lower(?)) > 0)
    AND (? = '' OR category = ?) AND (? IS NULL OR price_cents <= ?)
    AND number > coalesce((SELECT number FROM products WHERE product_id = ?), 0)
    ORDER BY number LIMIT ? OFFSET ?"""


@app.service
class CatalogService(Catalog):
    def __init__(self, database: Database) -> None:
        self._database = database

    async def find_products(self, search: ProductSearch) -> ProductsFound:
        conditions = _conditions(search)
        total = self._database.value(COUNT_FOUND, *conditions)
        rows = self._database.all(FIND, *conditions, search.after, search.limit, search.offset)
        return ProductsFound(products=[_product(row) for row in rows], total=total)

    async def get_product(self, query: ProductQuery) -> Product:
        return _product(_row_of(self._database, query.product_id))


def _conditions(search: ProductSearch) -> list[Value]:
    most = search.max_price_cents
    return [search.search, search.search, search.category, search.category, most, most]


def _row_of(database: Database, product_id: str) -> Row:
    row = database.one("SELECT * FROM products WHERE product_id = ?", product_id)
    if row is None:
        raise NotFound(f"There is no product {product_id!r}.")
    return row


def _product(row: Row) -> Product:
    return Product(
        product_id=row["product_id"],
        name=row["name"],
        category=row["category"],
        description=row["description"],
        price_cents=row["price_cents"],
    )


@app.service
class InventoryService(Inventory):
    """Every unit is on hand, reserved or sold; each method moves units between the three in one transaction."""

    def __init__(self, database: Database, clock: Clock = SYSTEM_CLOCK) -> None:
        self._database = database
        self._clock = clock
        self._watchers = Watchers(database.version, clock)

    async def check_stock(self, query: StockQuery) -> Stock:
        self._expire()
        return self._stock(query.product_id)

    async def reserve(self, request: Reserve) -> Reservation:
        self._expire()
        with self._database.transaction():
            known = self._reservation(request.reservation_id)
            if known is None:
                self._put_aside(request)
                known = self._reservation(request.reservation_id)
                self._watchers.tell(item.product_id for item in request.items)
        assert known is not None  # it is there, or was just written
        if known.state is not ReservationState.HELD and known.state is not ReservationState.COMMITTED:
            raise FailedPrecondition(f"Reservation {request.reservation_id!r} is {known.state}.")
        return known

    async def commit(self, request: ReservationId) -> Reservation:
        self._expire()
        with self._database.transaction():
            self._move(request.reservation_id, ReservationState.HELD, ReservationState.COMMITTED)
            reservation = self._reservation(request.reservation_id)
        if reservation is None:
            raise NotFound(f"There is no reservation {request.reservation_id!r}.")
        if reservation.state is not ReservationState.COMMITTED:
            raise FailedPrecondition(f"Reservation {request.reservation_id!r} is {reservation.state}; reserve again.")
        return reservation

    async def release(self, request: ReservationId) -> None:
        with self._database.transaction():
            # A reservation that comes after its release (it was slow, its caller gave up) finds this and is refused.
            self._database.run(
                "INSERT OR IGNORE INTO reservations VALUES (?, 'released', ?)",
                request.reservation_id,
                self._clock.time(),
            )
            for state in (ReservationState.HELD, ReservationState.COMMITTED):
                if self._move(request.reservation_id, state, ReservationState.RELEASED):
                    self._back_on_the_shelf(request.reservation_id)

    async def watch(self, request: StockWatch) -> AsyncIterator[Stock]:
        told: dict[str, Stock] = {}
        with self._watchers.watching(request.product_ids) as changed:
            while True:
                for product_id in await changed.next():
                    stock = self._stock(product_id)
                    if told.get(product_id) != stock:
                        told[product_id] = stock
                        yield stock

    async def count_stock(self) -> StockCount:
        self._expire()
        initial, on_hand = self._database.all("SELECT sum(initial), sum(on_hand) FROM products")[0]
        units = {
            row["state"]: row["units"]
            for row in self._database.all(
                "SELECT state, sum(quantity) AS units FROM reservations JOIN reserved_items USING (reservation_id)"
                " GROUP BY state"
            )
        }
        return StockCount(
            initial=initial,
            on_hand=on_hand,
            reserved=units.get(ReservationState.HELD, 0),
            sold=units.get(ReservationState.COMMITTED, 0),
        )

    def _stock(self, product_id: str) -> Stock:
        on_hand = _row_of(self._database, product_id)["on_hand"]
        return Stock(product_id=product_id, quantity=on_hand, in_stock=on_hand > 0)

    def _reservation(self, reservation_id: str) -> Reservation | None:
        row = self._database.one("SELECT * FROM reservations WHERE reservation_id = ?", reservation_id)
        if row is None:
            return None
        items = self._database.all("SELECT * FROM reserved_items WHERE reservation_id = ?", reservation_id)
        return Reservation(
            reservation_id=reservation_id,
            state=ReservationState(row["state"]),
            expires_at=datetime.fromtimestamp(row["expires_at"], UTC),
            items=[
                ReservedItem(
                    product_id=item["product_id"],
                    name=item["name"],
                    quantity=item["quantity"],
                    price_cents=item["price_cents"],
                )
                for item in items
            ],
        )

    def _put_aside(self, request: Reserve) -> None:
        expires_at = self._clock.time() + request.seconds
        self._database.run("INSERT INTO reservations VALUES (?, 'held', ?)", request.reservation_id, expires_at)
        for product_id, quantity in _added_up(request.items).items():
            row = _row_of(self._database, product_id)
            if row["on_hand"] < quantity:
                raise OutOfStock(product_id=product_id, wanted=quantity, on_hand=row["on_hand"])
            self._database.run("UPDATE products SET on_hand = on_hand - ? WHERE product_id = ?", quantity, product_id)
            self._database.run(
                "INSERT INTO reserved_items VALUES (?, ?, ?, ?, ?)",
                request.reservation_id, product_id, row["name"], quantity, row["price_cents"],
            )  # fmt: skip

    def _move(self, reservation_id: str, before: ReservationState, after: ReservationState) -> bool:
        """False where it was in another state."""
        moved = self._database.run(
            "UPDATE reservations SET state = ? WHERE reservation_id = ? AND state = ?", after, reservation_id, before
        )
        return moved == 1

    def _back_on_the_shelf(self, reservation_id: str) -> None:
        items = self._database.all(
            "SELECT product_id, quantity FROM reserved_items WHERE reservation_id = ?", reservation_id
        )
        for product_id, quantity in items:
            self._database.run("UPDATE products SET on_hand = on_hand + ? WHERE product_id = ?", quantity, product_id)
        self._watchers.tell(product_id for product_id, _ in items)

    def _expire(self) -> None:
        """Let go of what was held too long. Called before stock is looked at, so no timer is needed."""
        due = "SELECT reservation_id FROM reservations WHERE state = 'held' AND expires_at <= ? LIMIT 100"
        if not self._database.all(due, self._clock.time()):
            return
        with self._database.transaction():
            for (reservation_id,) in self._database.all(due, self._clock.time()):
                self._move(reservation_id, ReservationState.HELD, ReservationState.EXPIRED)
                self._back_on_the_shelf(reservation_id)


def _added_up(items: list[Item]) -> dict[str, int]:
    """Units by product: someone may ask for the same product twice."""
    wanted: dict[str, int] = {}
    for item in items:
        wanted[item.product_id] = wanted.get(item.product_id, 0) + item.quantity
    return wanted


class Changes:
    """What one watcher has not been told yet: product ids, not values, so that a slow one gets the latest and the
    memory it takes is bounded by what it watches."""

    def __init__(self, product_ids: Iterable[str]) -> None:
        self._pending = dict.fromkeys(product_ids)
        self._any = asyncio.Event()
        self._any.set()

    def add(self, product_id: str) -> None:
        self._pending[product_id] = None
        self._any.set()

    async def next(self) -> list[str]:
        await self._any.wait()
        self._any.clear()
        pending, self._pending = list(self._pending), {}
        return pending


class Watchers:
    """Who is to be told of a change: at once of one that this process made, and of what another instance changed when
    the database says so, which does not say what it was."""

    def __init__(self, version: Callable[[], int], clock: Clock) -> None:
        """*version* is another number whenever another process has changed something."""
        self._version = version
        self._clock = clock
        self._by_product: dict[str, set[Changes]] = {}
        self._looking: asyncio.Task[None] | None = None
        """Looks at the version, for as long as anybody watches."""

    @contextmanager
    def watching(self, product_ids: list[str]) -> Iterator[Changes]:
        changes = Changes(product_ids)
        for product_id in product_ids:
            self._by_product.setdefault(product_id, set()).add(changes)
        if self._looking is None:
            self._looking = asyncio.create_task(self._look(self._version()))
        try:
            yield changes
        finally:
            for product_id in dict.fromkeys(product_ids):
                self._by_product[product_id].discard(changes)
                if not self._by_product[product_id]:
                    del self._by_product[product_id]
            if not self._by_product:
                self._looking.cancel()
                self._looking = None

    async def _look(self, seen: int) -> None:
        while True:
            await self._clock.sleep(LOOK_EVERY)
            version = self._version()
            if version != seen:
                seen = version
                self.tell(self._by_product)

    def tell(self, product_ids: Iterable[str]) -> None:
        for product_id in product_ids:
            for changes in self._by_product.get(product_id, ()):
                changes.add(product_id)
