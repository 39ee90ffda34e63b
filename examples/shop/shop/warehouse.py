"""The packers: each confirmed order becomes a parcel, and is unpacked should it be cancelled."""

from __future__ import annotations

from collections.abc import Iterator

from polywire import App, subscribe
from shop.backoffice import ParcelCount, Warehouse
from shop.database import Database, open_database
from shop.events import OrderCancelled, OrderConfirmed

app = App("warehouse")


def create_tables(database: Database) -> None:
    database.run("""
        CREATE TABLE parcels (order_id TEXT PRIMARY KEY, state TEXT NOT NULL, units INTEGER NOT NULL) WITHOUT ROWID""")


@app.resource
def database() -> Iterator[Database]:
    with open_database("warehouse", create_tables) as database:
        yield database


@app.service
class WarehouseService(Warehouse):
    """One row per order, written by whatever is told of it first, so that hearing anything twice, or a cancellation
    before its confirmation, changes nothing."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @subscribe(OrderConfirmed, group="warehouse")
    async def pack(self, order: OrderConfirmed) -> None:
        units = sum(line.quantity for line in order.lines)
        self._database.run("INSERT OR IGNORE INTO parcels VALUES (?, 'packed', ?)", order.order_id, units)

    @subscribe(OrderCancelled, group="warehouse")
    async def unpack(self, order: OrderCancelled) -> None:
        self._database.run(
            "INSERT INTO parcels VALUES (?, 'never packed', 0)"
            " ON CONFLICT (order_id) DO UPDATE SET state = 'unpacked' WHERE state = 'packed'",
            order.order_id,
        )

    async def count_parcels(self) -> ParcelCount:
        rows = self._database.all("SELECT state, count(*) AS number, sum(units) AS units FROM parcels GROUP BY state")
        by_state = {row["state"]: row for row in rows}
        packed, unpacked = by_state.get("packed"), by_state.get("unpacked")
        return ParcelCount(
            packed=packed["number"] if packed else 0,
            unpacked=unpacked["number"] if unpacked else 0,
            units=packed["units"] if packed else 0,
        )
