"""The slots of schedules in a store: each fired by one of many processes."""

from __future__ import annotations

from polywire.durable.migrations import Migration
from polywire.durable.store.seam import Store, Transaction

COMPONENT = "schedule"
MIGRATIONS = (
    Migration(
        1,
        "the slots of schedules",
        """CREATE TABLE polywire_schedule (
            name TEXT NOT NULL PRIMARY KEY, began BIGINT NOT NULL, forgotten BIGINT NOT NULL);
        CREATE TABLE polywire_slot (
            schedule TEXT NOT NULL, slot BIGINT NOT NULL, held_until BIGINT, PRIMARY KEY (schedule, slot));
        CREATE INDEX polywire_slot_held ON polywire_slot (schedule, held_until) WHERE held_until IS NOT NULL""",
    ),
)
KEPT = 2000
"""Slots that are remembered of each schedule. Older ones count as done."""
CLEAN_EVERY = 250
"""Firings between two cleanings."""


class StoreSlots:
    """A `polywire.bus.schedule.ticking.SlotStore`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._fired = 0

    async def begin(self, name: str, now: int) -> int:
        async with self._store.transaction(inbox=False) as tx:
            await tx.execute("INSERT INTO polywire_schedule VALUES ($1, $2, -1) ON CONFLICT DO NOTHING", (name, now))
            row = await tx.fetch_one(
                "SELECT began, (SELECT max(slot) FROM polywire_slot WHERE schedule = name AND slot <= $1) "
                "FROM polywire_schedule WHERE name = $2",
                (now, name),
            )
        began: int = now if row is None else row[0]
        newest: int = began if row is None or row[1] is None else row[1]
        return max(min(began, now), min(newest, now))

    async def take(self, name: str, slot: int, *, newest: bool, now: int, until: int) -> bool:
        async with self._store.transaction(inbox=False) as tx:
            row = await tx.fetch_one(
                "SELECT held_until FROM polywire_slot WHERE schedule = $1 AND slot = $2", (name, slot)
            )
            if row is not None and (row[0] is None or row[0] > now):
                return False
            if newest and await _has_later(tx, name, slot, now):
                # Whoever had it before left it behind; the later one stands for it.
                await tx.execute("DELETE FROM polywire_slot WHERE schedule = $1 AND slot = $2", (name, slot))
                return False
            return await _hold(tx, name, slot, until) if row is None else await _take_over(tx, name, slot, until)

    async def done(self, name: str, slot: int) -> None:
        async with self._store.transaction(inbox=False) as tx:
            await tx.execute(
                "UPDATE polywire_slot SET held_until = NULL WHERE schedule = $1 AND slot = $2", (name, slot)
            )
            self._fired += 1
            if self._fired % CLEAN_EVERY == 0:
                await _forget(tx, name)

    async def give_back(self, name: str, slot: int) -> None:
        async with self._store.transaction(inbox=False) as tx:
            await tx.execute(
                "UPDATE polywire_slot SET held_until = 0 WHERE schedule = $1 AND slot = $2 AND held_until IS NOT NULL",
                (name, slot),
            )

    async def left_behind(self, name: str, now: int) -> list[int]:
        async with self._store.read() as view:
            rows = await view.fetch_all(
                "SELECT slot FROM polywire_slot WHERE schedule = $1 AND held_until IS NOT NULL AND held_until <= $2 "
                "ORDER BY slot LIMIT 100",
                (name, now),
            )
        return [slot for (slot,) in rows]


async def _has_later(tx: Transaction, name: str, slot: int, now: int) -> bool:
    found = await tx.fetch_one(
        "SELECT 1 FROM polywire_slot WHERE schedule = $1 AND slot > $2 AND slot <= $3 LIMIT 1", (name, slot, now)
    )
    return found is not None


async def _hold(tx: Transaction, name: str, slot: int, until: int) -> bool:
    # What is older than all that is remembered was fired long ago.
    count = await tx.execute(
        "INSERT INTO polywire_slot SELECT $1, $2, $3 WHERE NOT EXISTS "
        "(SELECT 1 FROM polywire_schedule WHERE name = $1 AND forgotten >= $2) ON CONFLICT DO NOTHING",
        (name, slot, until),
    )
    return count == 1


async def _take_over(tx: Transaction, name: str, slot: int, until: int) -> bool:
    await tx.execute("UPDATE polywire_slot SET held_until = $1 WHERE schedule = $2 AND slot = $3", (until, name, slot))
    return True


async def _forget(tx: Transaction, name: str) -> None:
    row = await tx.fetch_one(
        "SELECT slot FROM polywire_slot WHERE schedule = $1 ORDER BY slot DESC LIMIT 1 OFFSET $2", (name, KEPT)
    )
    if row is not None:
        await tx.execute(
            "DELETE FROM polywire_slot WHERE schedule = $1 AND slot <= $2 AND held_until IS NULL", (name, row[0])
        )
        await tx.execute("UPDATE polywire_schedule SET forgotten = $1 WHERE name = $2", (row[0], name))
