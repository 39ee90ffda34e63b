"""The consumer, the inbox and a handler's transactions together: effects happen once, whatever comes twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from consumer_support import Job, bench, envelope, event, event_handler, handling, log_bench, until

from polywire.bus.core.inbox import under_way
from polywire.context import transaction_or_none
from polywire.contract.event import Batch
from polywire.durable.inbox import StoreInbox
from polywire.durable.store.apsw import SqliteStore
from polywire.testing.stores import PROBE


def a_store(path: Path) -> SqliteStore:
    return SqliteStore(path / "probe.db", migrations=PROBE, upgrade=True)


async def effects(store: SqliteStore) -> Counter[str]:
    async with store.read() as view:
        return Counter(row[0] for row in await view.fetch_all("SELECT message FROM effect"))


async def test_an_event_that_comes_twice_has_its_effects_once(tmp_path: Path) -> None:
    async with a_store(tmp_path) as store, log_bench() as b:

        async def handle(job: Job) -> None:
            async with store.transaction() as tx:
                await tx.execute("INSERT INTO effect VALUES (?)", (f"{job.n}",))

        await b.append(*(event(n % 20) for n in range(60)))
        runner = await b.run(event_handler(handle))
        await b.caught_up()
        assert await effects(store) == Counter(f"{n}" for n in range(20))
        assert runner.counters.duplicates == 40
        assert await b.dead() == []


async def test_a_handler_that_fails_after_its_statements_is_retried_and_has_its_effects_once(tmp_path: Path) -> None:
    async with a_store(tmp_path) as store, bench() as b:
        tries: Counter[int] = Counter()

        async def handle(job: Job) -> None:
            tries[job.n] += 1
            async with store.transaction() as tx:
                await tx.execute("INSERT INTO effect VALUES (?)", (f"{job.n}",))
                if tries[job.n] < 3:
                    raise LookupError("not yet")

        await b.send(envelope(1), envelope(2))
        runner = await b.run(handling(handle))
        while await b.left():
            if not runner.in_flight:
                await b.clock.advance(5)
            await asyncio.sleep(0.001)
        assert tries == {1: 3, 2: 3}
        assert await effects(store) == Counter(["1", "2"])


async def test_once_without_a_transaction_is_remembered_by_the_consumer(tmp_path: Path) -> None:
    async with a_store(tmp_path) as store, log_bench() as b:
        handled: list[int] = []

        async def handle(job: Job) -> None:
            handled.append(job.n)

        runner = await b.run(event_handler(handle, once=True), inbox=StoreInbox(store))
        for _ in range(3):
            await b.append(event(7))
            await b.caught_up()
        assert handled == [7]
        assert runner.counters.duplicates == 2


async def test_a_handler_stopped_at_its_time_limit_leaves_nothing_and_holds_nobody_up(tmp_path: Path) -> None:
    async with a_store(tmp_path) as store, bench() as b:
        hanging = True

        async def handle(job: Job) -> None:
            async with store.transaction() as tx:
                await tx.execute("INSERT INTO effect VALUES (?)", (f"{job.n}",))
                if hanging:
                    await asyncio.Event().wait()

        await b.send(envelope(1))
        await b.run(handling(handle, timeout=30.0))
        await until(lambda: store._writer is not None and store._writer._holder is not None)
        hanging = False
        await b.clock.advance(30)
        while await b.left():
            await b.clock.advance(0.2)
            await asyncio.sleep(0.002)
        assert await effects(store) == Counter(["1"])


async def test_a_handler_sees_when_its_transaction_is_open_and_that_its_message_is_recorded(tmp_path: Path) -> None:
    async with a_store(tmp_path) as store, bench() as b:
        seen: list[object] = []

        async def handle(job: Job) -> None:
            async with store.transaction() as tx:
                await tx.execute("INSERT INTO effect VALUES (?)", (f"{job.n}",))
                seen.append(transaction_or_none())
            seen.append(transaction_or_none())
            seen.append([one.recorded for one in under_way()])

        await b.send(envelope(1))
        await b.run(handling(handle))
        await b.empty()
        assert seen == ["probe", None, [True]]


async def test_of_batches_with_messages_done_before_only_the_others_have_effects(tmp_path: Path) -> None:
    async with a_store(tmp_path) as store, log_bench(partitions=1) as b:

        async def handle(jobs: Sequence[Job]) -> None:
            async with store.transaction() as tx:
                for job in jobs:
                    await tx.execute("INSERT INTO effect VALUES (?)", (f"{job.n}",))

        # Of other lengths than the batches, so that each meets some that were there before and some that were not.
        await b.append(*(event(n % 7) for n in range(30)), *(event(n) for n in range(5, 12)))
        await b.run(event_handler(handle, batch=Batch(4, wait=0.2)))
        for _ in range(10_000):
            if not await b.lag() and len(await effects(store)) == 12:
                break
            await b.clock.advance(0.1)
            await asyncio.sleep(0.001)
        assert await effects(store) == Counter(f"{n}" for n in range(12))
        assert await b.dead() == []
