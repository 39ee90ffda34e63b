"""What a store has confirmed survives a power cut, at the price of one sync for many transactions; disks may fail."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import apsw
import pytest
from sqlite_disk_support import Disk

from polywire.durable.migrations import Migration
from polywire.durable.store.apsw import SqliteStore
from polywire.durable.store.apsw_file import Synchronous
from polywire.errors import SetupError, StoreError

RUNS, CUTS = 40, 15
WRITERS, EACH = 6, 5
TABLE = (Migration(1, "pairs", "CREATE TABLE pair (id TEXT NOT NULL, half BIGINT NOT NULL, PRIMARY KEY (id, half))"),)


@pytest.fixture(autouse=True)
def _no_shared_memory() -> Iterator[None]:
    """The disk in memory has none, which SQLite only does without where nobody else may open the file."""

    def alone(connection: apsw.Connection) -> None:
        connection.pragma("locking_mode", "EXCLUSIVE")

    apsw.connection_hooks.append(alone)
    yield
    apsw.connection_hooks.remove(alone)


@contextmanager
def a_disk(files: dict[str, bytes] | None = None) -> Iterator[Disk]:
    disk = Disk(files)
    yield disk
    disk.close()


@asynccontextmanager
async def a_store(path: Path, disk: Disk, synchronous: Synchronous = "full") -> AsyncIterator[SqliteStore]:
    async with SqliteStore(
        path / "pairs.db", migrations=TABLE, upgrade=True, synchronous=synchronous, vfs=disk.name
    ) as store:
        yield store


async def write_pair(store: SqliteStore, name: str) -> None:
    async with store.transaction() as tx:
        await tx.execute("INSERT INTO pair VALUES (?, 1)", (name,))
        await tx.execute("INSERT INTO pair VALUES (?, 2)", (name,))


async def pairs(store: SqliteStore) -> dict[str, int]:
    async with store.transaction() as tx:
        rows = await tx.fetch_all("SELECT id, count(*) FROM pair GROUP BY id")
    return dict(rows)


Cut = tuple[dict[str, bytes], frozenset[str]]
"""What is on the disk, and what had been confirmed before."""


async def use(path: Path, seed: int, synchronous: Synchronous) -> list[Cut]:
    """Write pairs from several tasks at once; the cuts that happened on the way."""
    dice = random.Random(seed)
    confirmed: list[str] = []
    cuts: list[Cut] = []

    def watch() -> None:
        if dice.random() < 0.1:
            known = frozenset(confirmed)
            cuts.append((disk.after_cut(dice), known))

    async def write(number: int) -> None:
        for each in range(EACH):
            await write_pair(store, f"{number}-{each}")
            confirmed.append(f"{number}-{each}")

    with a_disk() as disk:
        async with a_store(path, disk, synchronous) as store:
            disk.watch = watch
            assert store._writer is not None
            store._writer._next_checkpoint = 10
            await asyncio.gather(*(write(number) for number in range(WRITERS)))
            cuts.append((disk.after_cut(dice), frozenset(confirmed)))
    return dice.sample(cuts, min(CUTS, len(cuts)))


async def lost(path: Path, cut: Cut) -> list[str]:
    """What was confirmed and is gone. Nothing may be there by half."""
    files, confirmed = cut
    with a_disk(files) as disk:
        async with a_store(path, disk) as store:
            found = await pairs(store)
            assert set(found.values()) <= {2}
            assert await store.run(lambda db: db.pragma("integrity_check")) == "ok"
    return sorted(confirmed - set(found))


async def test_a_power_cut_loses_nothing_that_was_committed_and_leaves_nothing_by_half(tmp_path: Path) -> None:
    count = 0
    for seed in range(RUNS):
        for cut in await use(tmp_path, seed, "full"):
            assert await lost(tmp_path, cut) == []
            count += 1
    assert count > 250


async def test_the_cuts_find_what_the_cheaper_mode_loses(tmp_path: Path) -> None:
    for seed in range(RUNS):
        for cut in await use(tmp_path, seed, "normal"):
            if await lost(tmp_path, cut):
                return
    pytest.fail("no power cut lost anything: the simulation proves nothing")


async def test_a_transaction_is_synced_once_and_many_at_a_time_share_that(tmp_path: Path) -> None:
    with a_disk() as disk:
        async with a_store(tmp_path, disk) as store:
            await write_pair(store, "first")  # the first one in a new log has a header to write
            disk.syncs = 0
            for number in range(10):
                await write_pair(store, f"{number}")
            assert disk.syncs == 10
            disk.syncs = 0

            def put(name: str, db: apsw.Connection) -> None:
                db.execute("INSERT INTO pair VALUES (?, 1)", (name,))

            await asyncio.gather(*(store.run(lambda db, n=n: put(f"r{n}", db)) for n in range(40)))  # type: ignore[misc]  # a default binds the loop's variable
            assert disk.syncs <= 4
            disk.syncs = 0
            async with store.transaction() as tx:
                await tx.fetch_all("SELECT * FROM pair")
            assert disk.syncs == 0


@pytest.mark.parametrize("what", ["write", "sync"])
async def test_a_disk_that_fails_in_the_commit_is_told_and_the_store_works_again(tmp_path: Path, what: str) -> None:
    failing = False

    def fail(action: str, name: str) -> None:
        if failing and action == what and name.endswith("-wal"):
            raise apsw.IOError("injected")

    with a_disk() as disk:
        async with a_store(tmp_path, disk) as store:
            disk.fail = fail
            await write_pair(store, "before")
            failing = True
            outcomes = await asyncio.gather(*(write_pair(store, f"{n}") for n in range(3)), return_exceptions=True)
            assert all(isinstance(outcome, StoreError) for outcome in outcomes), outcomes
            assert {outcome.committed for outcome in outcomes if isinstance(outcome, StoreError)} == {"maybe"}
            assert str(outcomes[0]) == (
                "Nobody knows whether a transaction of store 'pairs' was committed: injected. Look before doing "
                "it again, or do it behind the inbox."
            )
            failing = False
            await write_pair(store, "after")
            found = await pairs(store)
            assert {"before", "after"} <= set(found)
            assert set(found.values()) == {2}


async def test_a_full_disk_fails_the_transaction_and_not_those_after_it(tmp_path: Path) -> None:
    full = False

    def fail(action: str, name: str) -> None:
        if full and action == "write":
            raise apsw.FullError("injected")

    with a_disk() as disk:
        async with a_store(tmp_path, disk) as store:
            disk.fail = fail
            full = True
            with pytest.raises(StoreError, match=r"^A transaction of store 'pairs' was rolled back: injected\.$"):
                await write_pair(store, "lost")
            full = False
            await write_pair(store, "after")
            assert await pairs(store) == {"after": 2}


async def test_a_disk_that_fails_under_a_statement_takes_its_group_with_it_and_says_so(tmp_path: Path) -> None:
    failing = False

    def fail(action: str, name: str) -> None:
        if failing:
            raise apsw.IOError("injected")

    with a_disk() as disk:
        async with a_store(tmp_path, disk) as store:
            disk.fail = fail
            # A cache of a few pages has to write in the middle of a transaction.
            await store.run(lambda db: db.execute("PRAGMA cache_size = 5"))

            async def write_much() -> None:
                nonlocal failing
                async with store.transaction() as tx:
                    await tx.execute("INSERT INTO pair VALUES ('a', 1)")
                    failing = True
                    for number in range(200):
                        await tx.execute("INSERT INTO pair VALUES (?, 1)", (f"{number}" * 500,))

            with pytest.raises(StoreError) as caught:
                await write_much()
            assert str(caught.value) == "A transaction of store 'pairs' was rolled back: injected."
            failing = False
            await write_pair(store, "after")
            assert await pairs(store) == {"after": 2}


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pairs.db").write_bytes(b"Dear diary, " * 100)
    with pytest.raises(SetupError) as caught:
        async with SqliteStore(tmp_path / "pairs.db", upgrade=True):
            pass
    assert str(caught.value) == (
        f"Store 'pairs' was not opened at '{tmp_path}/pairs.db'. A transaction of store 'pairs' was rolled back: file "
        "is not a database."
    )
