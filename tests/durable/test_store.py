"""The store on SQLite: what it refuses and how, fairness, groups, and its inbox under random failures."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import Counter
from pathlib import Path
from typing import Any

import apsw
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polywire.context import Call, _current
from polywire.durable.inbox import CHUNK, INSERT, StoreInbox
from polywire.durable.migrations import Migration
from polywire.durable.store import apsw_reader
from polywire.durable.store.apsw import SqliteStore
from polywire.errors import AlreadyDone, ConstraintViolated, SetupError, StoreBusy, StoreError
from polywire.testing.clock import ManualClock
from polywire.testing.stores import PROBE, handling, message, names, put


def a_store(path: Path, **options: Any) -> SqliteStore:
    return SqliteStore(path / "probe.db", migrations=PROBE, upgrade=True, **options)


async def refused(store: SqliteStore) -> str:
    with pytest.raises(SetupError) as caught:
        await store.start()
    return str(caught.value)


# ---- what cannot be opened -------------------------------------------------------------------------------------------


async def test_places_where_no_store_can_be_are_refused(tmp_path: Path) -> None:
    assert await refused(SqliteStore(tmp_path / "no" / "x.db")) == (
        f"Store 'x' was not opened: there is no folder '{tmp_path}/no'. Create it with `mkdir -p {tmp_path}/no`."
    )
    assert await refused(SqliteStore(tmp_path, name="x")) == (
        f"Store 'x' was not opened: '{tmp_path}' is a folder. Name a file in it."
    )
    with pytest.raises(SetupError) as caught:
        SqliteStore(":memory:", name="x")
    assert str(caught.value) == (
        "Store 'x' was not opened: a store has its tables in a file, which several connections open. Use one in a "
        "temporary folder."
    )


async def test_a_file_that_another_sqlite_library_has_open_is_refused(tmp_path: Path) -> None:
    async with a_store(tmp_path):
        pass
    other = sqlite3.connect(tmp_path / "probe.db")
    other.execute("SELECT count(*) FROM probe").fetchall()
    try:
        assert await refused(a_store(tmp_path)) == (
            f"Store 'probe' was not opened: '{tmp_path}/probe.db' is open in this process already, but not by apsw. "
            "Two SQLite libraries in one process would break each other's locks and the file with them. Close the "
            "other one, or use the store for everything."
        )
    finally:
        other.close()
    async with a_store(tmp_path), a_store(tmp_path):
        pass


async def test_migrations_that_are_not_numbered_in_order_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SetupError) as caught:
        SqliteStore(tmp_path / "x.db", migrations=[Migration(1, "a", ""), Migration(3, "b", "")])
    assert str(caught.value) == (
        "The migrations of 'app' have the versions 1, 3. Number them 1, 2, 3 and so on, in order."
    )


async def test_a_migration_that_fails_is_named_with_its_reason(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "x.db", migrations=[Migration(1, "a typo", "CREATE TABEL x (y)")], upgrade=True)
    assert await refused(store) == (
        "Store 'x' was not upgraded: app 1 (a typo) failed: near \"TABEL\": syntax error. Nothing was changed."
    )


async def test_a_store_that_is_not_open_says_so(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    with pytest.raises(StoreError) as caught:
        store.transaction()
    assert str(caught.value) == "A transaction of store 'probe' was not begun: it is not open."
    async with store:
        with pytest.raises(SetupError) as twice:
            await store.start()
        assert str(twice.value) == "Store 'probe' is open already."
        assert await names(store) == []


# ---- what statements and transactions are told -----------------------------------------------------------------------


async def test_errors_of_statements_have_the_drivers_reason_and_cause(tmp_path: Path) -> None:
    async with a_store(tmp_path) as store, store.transaction() as tx:
        await put(tx, "a")
        with pytest.raises(ConstraintViolated) as violated:
            await put(tx, "a")
        assert str(violated.value) == "Store 'probe' refused a row: UNIQUE constraint failed: probe.name."
        assert isinstance(violated.value.__cause__, apsw.ConstraintError)
        with pytest.raises(StoreError) as wrong:
            await tx.execute("SELEC 1")
        assert str(wrong.value) == "Store 'probe' refused a statement: near \"SELEC\": syntax error."
        with pytest.raises(StoreError) as control:
            await tx.execute("RELEASE polywire_turn")
        assert str(control.value) == (
            "Store 'probe' refused a statement that begins or ends a transaction, or attaches a file. The blocks of "
            "`transaction()` and `savepoint()` do the one; for the other, open another store."
        )


async def test_foreign_keys_are_kept(tmp_path: Path) -> None:
    async with a_store(tmp_path) as store:

        def tables(db: apsw.Connection) -> None:
            db.execute("CREATE TABLE child (name TEXT REFERENCES probe (name) DEFERRABLE INITIALLY DEFERRED)")

        await store.run(tables)
        works = [store.run(lambda db: db.execute("INSERT INTO probe VALUES ('innocent', 1)"))]
        works += [store.run(lambda db: db.execute("INSERT INTO child VALUES ('nobody')"))]
        (innocent, guilty) = await asyncio.gather(*works, return_exceptions=True)
        assert not isinstance(innocent, BaseException)
        assert isinstance(guilty, ConstraintViolated)
        assert str(guilty) == "Store 'probe' refused a row: FOREIGN KEY constraint failed."
        async with store.transaction() as tx:
            await tx.execute("INSERT INTO child VALUES ('later')")
            await put(tx, "later")
        assert await names(store) == ["innocent", "later"]


async def test_a_transaction_that_waited_in_vain_says_for_how_long_and_for_whom(tmp_path: Path) -> None:
    async with a_store(tmp_path, wait=0.05) as store:
        held, done = asyncio.Event(), asyncio.Event()

        async def hold() -> None:
            async with store.transaction() as tx:
                await put(tx, "a")
                held.set()
                await done.wait()

        holder = asyncio.create_task(hold())
        await held.wait()
        with pytest.raises(StoreBusy) as caught:
            await store.run(lambda db: db.execute("INSERT INTO probe VALUES ('b', 1)"))
        assert str(caught.value) == (
            "A transaction of store 'probe' was not begun: other transactions of this process have had the file for "
            "0.05 s. Nothing was done. Keep transactions short: no calls to others in them."
        )
        done.set()
        await holder
        assert await names(store) == ["a"]


async def test_a_transaction_one_of_whose_statements_was_cancelled_can_only_be_rolled_back(tmp_path: Path) -> None:
    async with a_store(tmp_path) as store:

        async def work() -> None:
            async with store.transaction() as tx:
                await put(tx, "a")
                statement = asyncio.create_task(put(tx, "b"))
                await asyncio.sleep(0)
                statement.cancel()
                await asyncio.wait([statement])
                with pytest.raises(StoreError) as caught:
                    await put(tx, "c")
                assert str(caught.value) == (
                    "A statement was not run: the transaction of store 'probe' can only be rolled back, since one of "
                    "its statements was cancelled, and nobody knows whether it ran."
                )

        with pytest.raises(StoreError) as caught:
            await work()
        assert str(caught.value) == (
            "A transaction of store 'probe' was rolled back: one of its statements was cancelled, and nobody knows "
            "whether it ran."
        )
        assert await names(store) == []


async def test_snapshots_are_bounded_and_wait_for_each_other(tmp_path: Path) -> None:
    async with a_store(tmp_path) as store:
        views = [store.read() for _ in range(apsw_reader.READERS)]
        for view in views:
            await view.__aenter__()
        _current.set(Call(deadline=time.monotonic() + 0.05))
        with pytest.raises(StoreBusy, match=r"^Store 'probe' was not read: 4 other blocks of `read\(\)` have been"):
            await names(store)
        _current.set(None)
        waiting = asyncio.create_task(names(store))
        await views[0].__aexit__(None, None, None)
        assert await waiting == []
        for view in views[1:]:
            await view.__aexit__(None, None, None)


# ---- groups ----------------------------------------------------------------------------------------------------------


async def test_functions_and_blocks_share_commits_and_each_has_its_own_outcome(tmp_path: Path) -> None:
    async with a_store(tmp_path) as store:

        def insert(name: str, db: apsw.Connection) -> str:
            db.execute("INSERT INTO probe VALUES (?, 0)", (name,))
            if name.endswith("3"):
                raise LookupError(name)
            return name

        async def block(name: str) -> str:
            async with store.transaction() as tx:
                await put(tx, name)
                if name.endswith("5"):
                    raise LookupError(name)
            return name

        works = [store.run(lambda db, n=n: insert(f"r{n}", db)) for n in range(20)]  # type: ignore[misc]  # a default binds the loop's variable
        works += [block(f"b{n}") for n in range(20)]
        outcomes = await asyncio.gather(*works, return_exceptions=True)
        failed = [str(outcome) for outcome in outcomes if isinstance(outcome, LookupError)]
        done = [outcome for outcome in outcomes if isinstance(outcome, str)]
        assert failed == ["r3", "r13", "b5", "b15"]
        assert len(done) == 36
        assert await names(store) == sorted(done)


async def test_transactions_get_their_turn_in_the_order_in_which_they_asked(tmp_path: Path) -> None:
    async with a_store(tmp_path) as store:
        order: list[int] = []

        async def work(number: int) -> None:
            async with store.transaction() as tx:
                await put(tx, f"{number}")
                order.append(number)
                await asyncio.sleep(0)

        await asyncio.gather(*(work(number) for number in range(50)))
        assert order == list(range(50))


async def test_a_transaction_is_not_kept_from_its_turn_by_those_that_keep_coming(tmp_path: Path) -> None:
    async with a_store(tmp_path) as store:
        stop = False

        async def busy(number: int) -> None:
            for step in range(10_000):
                if stop:
                    return
                await store.run(lambda db, r=step: db.execute("INSERT INTO effect VALUES (?)", (f"{number}-{r}",)))  # type: ignore[misc]  # a default binds the loop's variable

        tasks = [asyncio.create_task(busy(number)) for number in range(20)]
        async with asyncio.timeout(20):
            for number in range(20):
                async with store.transaction() as tx:
                    await put(tx, f"{number}")
        stop = True
        await asyncio.gather(*tasks)


# ---- the inbox -------------------------------------------------------------------------------------------------------


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    deliveries=st.lists(
        st.tuples(st.integers(0, 5), st.sampled_from(["block", "run"]), st.sampled_from(["ok", "raises", "cancelled"])),
        min_size=1,
        max_size=30,
    ),
    at_once=st.integers(1, 6),
)
def test_whatever_is_delivered_how_often_and_fails_effects_match_the_inbox(
    tmp_path_factory: pytest.TempPathFactory, deliveries: list[tuple[int, str, str]], at_once: int
) -> None:
    path = tmp_path_factory.mktemp("inbox")

    async def work() -> None:
        async with a_store(path) as store:
            committed: set[int] = set()
            for first in range(0, len(deliveries), at_once):
                group = deliveries[first : first + at_once]
                outcomes = await asyncio.gather(*(deliver(store, *one) for one in group))
                for (number, _, _), outcome in zip(group, outcomes, strict=True):
                    if outcome == "new":
                        assert number not in committed
                        committed.add(number)
                    elif outcome == "done":
                        # Perhaps by one of the same group, which is counted with it.
                        assert number in committed | {
                            n for (n, _, _), o in zip(group, outcomes, strict=True) if o == "new"
                        }
            async with store.read() as view:
                effects = Counter(row[0] for row in await view.fetch_all("SELECT message FROM effect"))
                rows = {row[0] for row in await view.fetch_all("SELECT message FROM polywire_inbox")}
            assert effects == Counter({f"{number}": 1 for number in committed})
            assert rows == set(effects)

    asyncio.run(work())


async def deliver(store: SqliteStore, number: int, how: str, end: str) -> str:
    """One delivery with a handler that ends as told: `new`, `done` or `failed`."""

    async def handler() -> None:
        if how == "run":
            await store.run(run)
            return
        async with store.transaction() as tx:
            await tx.execute("INSERT INTO effect VALUES ($1)", (f"{number}",))
            if end == "raises":
                raise LookupError
            if end == "cancelled":
                raise asyncio.CancelledError

    def run(db: apsw.Connection) -> None:
        db.execute("INSERT INTO effect VALUES (?)", (f"{number}",))
        if end != "ok":
            raise LookupError

    with handling(message(f"{number}")):
        try:
            await handler()
        except AlreadyDone:
            return "done"
        except (LookupError, asyncio.CancelledError):
            return "failed"
    return "new"


async def test_a_second_transaction_is_refused_with_what_to_do(tmp_path: Path) -> None:
    async with a_store(tmp_path) as store:
        with handling(message("m")):
            await store.run(lambda db: db.execute("INSERT INTO effect VALUES ('m')"))
            with pytest.raises(StoreError) as caught:
                await store.run(lambda db: None)
        assert str(caught.value) == (
            "A second transaction of store 'probe' was not opened for the message 'm': what the first one did is there "
            "already, and would be without this one if the process died in between. Do it all in one transaction, or "
            "say `transaction(inbox=False)` where it may happen twice."
        )
        with handling(message("m")), pytest.raises(AlreadyDone) as done:
            await store.run(lambda db: None)
        assert str(done.value) == "The message 'm' was handled before by 'billing'."


async def test_the_inbox_is_cleaned_in_chunks_while_it_is_open(tmp_path: Path) -> None:
    clock = ManualClock()
    async with a_store(tmp_path, clock=clock) as store:
        inbox = StoreInbox(store, retention=1000.0, clock=clock)
        count = 2 * CHUNK + 500

        def fill(db: apsw.Connection) -> None:
            rows = (("g", 0, "s", f"{n}", clock.time() + n * 1e-3) for n in range(count))
            db.executemany(INSERT, rows)

        await store.run(fill)
        await inbox.start()
        await clock.advance(900)
        async with store.read() as view:
            assert await view.fetch_one("SELECT count(*) FROM polywire_inbox") == (count,)
        while await left(store):
            await clock.advance(100)
            await asyncio.sleep(0.005)  # its transactions run in a thread
        await inbox.close()
        await inbox.close()


async def left(store: SqliteStore) -> int:
    async with store.read() as view:
        row = await view.fetch_one("SELECT count(*) FROM polywire_inbox")
    assert row is not None
    return int(row[0])
