"""A replay behind an inbox: its events have their effects once more, exactly, and what is sent again has none."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from consumer_process_app import TYPE, handlings
from consumer_support import GROUP, TOPIC, Job, envelope, event, event_handler, log_bench

from polywire import App, Event, subscribe
from polywire.bus.consumer import LogRunner, event_handling
from polywire.bus.consumer.processes import ProcessPool
from polywire.bus.core import EVERY_DEAD, Envelope, Seek, new_id
from polywire.contract.event import Batch, event_of, subscriptions_of
from polywire.contract.retry import Retry
from polywire.durable.inbox import StoreInbox
from polywire.durable.store.apsw import SqliteStore
from polywire.errors import GroupRunning, Reject
from polywire.system.file import load
from polywire.system.operating import GroupPlace, Operator, operating
from polywire.system.plan import plan
from polywire.testing.stores import PROBE

SOON = 60.0
COUNT = 30
SYSTEM = """\
[system]
name = "shop"

[services.till]
app = "till:app"

[wires]
events = "{url}"
"""


app = App("till")


class Sold(Event, topic=f"replay-{secrets.token_hex(5)}", package="shop.v1"):
    n: int


@app.service
class Listener:
    """Declares what `Till` does: its handler is not the system's to start here."""

    @subscribe(Sold, group="till", retry=Retry(attempts=5, base=0.0, cap=0.0))
    async def hear(self, event: Sold) -> None:
        raise NotImplementedError


SOLD = event_of(Sold)
(HEAR,) = subscriptions_of(Listener)


@asynccontextmanager
async def opened(url: str, directory: Path) -> AsyncIterator[Till]:
    """With new connections to everything, as after a restart."""
    (directory / "polywire.toml").write_text(SYSTEM.format(url=url))
    made = plan(load(directory / "polywire.toml"), given={"till": app})
    store = SqliteStore(directory / "till.db", migrations=PROBE, upgrade=True)
    async with operating(made) as operator, store:
        await operator.apply()
        yield Till(operator, store)


class Till:
    """A system with one group, whose handler leaves its effects in a store."""

    def __init__(self, operator: Operator, store: SqliteStore) -> None:
        self._operator = operator
        self._store = store
        self._failed: set[int] = set()
        place = operator.place(f"{HEAR.topic}/till")
        assert isinstance(place, GroupPlace)
        self.place = place

    async def _hear(self, event: Sold) -> None:
        """Of three one fails at first, and one is buried when its effects are there."""
        if event.n % 3 == 1 and event.n not in self._failed:
            self._failed.add(event.n)
            raise LookupError("not yet")
        async with self._store.transaction() as tx:
            await tx.execute("INSERT INTO effect VALUES (?)", (f"{event.n}",))
        if event.n % 3 == 2:
            raise Reject("not for us")

    async def append(self) -> None:
        """All events, each of them twice, as publishers do who were told nothing of the first."""
        sent = [Envelope(new_id(), SOLD.type, b'{"n":%d}' % n, "shop") for n in range(COUNT)] * 2
        assert await self.place.backend.append(HEAR.topic, sent, timeout=SOON) == [None] * len(sent)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[LogRunner]:
        handling = event_handling(HEAR, self._hear)
        runner = LogRunner(self.place.backend, [HEAR.topic], HEAR.group, [handling], inbox=StoreInbox(self._store))
        await runner.start()
        try:
            yield runner
        finally:
            await runner.stop(SOON)

    async def handle(self, count: int) -> LogRunner:
        """Let a consumer settle *count* messages, and go."""
        async with self.running() as runner:
            await settled(runner, count)
        assert runner.counters.done + runner.counters.dead == count
        return runner

    async def replay(self, to: Seek) -> None:
        """As `polywire bus replay` does; a server may notice late that members are gone."""

        async def replayed() -> bool:
            try:
                await self._operator.replay(self.place.name, to)
            except GroupRunning:
                return False
            return True

        await until(replayed)

    async def redrive(self) -> int:
        letters = await self.place.dead(EVERY_DEAD, 1000)
        assert await self.place.revive(letters) == len(letters) > 0
        return len(letters)

    async def effects(self) -> Counter[str]:
        async with self._store.read() as view:
            return Counter(row[0] for row in await view.fetch_all("SELECT message FROM effect"))


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(SOON):
        while not await condition():  # noqa: ASYNC110 - nobody tells us
            await asyncio.sleep(0.02)


async def settled(runner: LogRunner, count: int) -> None:
    async def done() -> bool:
        return runner.counters.done + runner.counters.dead >= count

    await until(done)


def each(times: int) -> Counter[str]:
    return Counter(dict.fromkeys(map(str, range(COUNT)), times))


async def replays(url: str, directory: Path) -> None:
    async with opened(url, directory) as first:
        await first.append()
        await first.handle(2 * COUNT)
        assert await first.effects() == each(1)
    async with opened(url, directory) as moved:
        await moved.replay(Seek(latest=True))
        count = await moved.redrive()
    async with opened(url, directory) as redriven:
        runner = await redriven.handle(count)
        assert runner.counters.duplicates == count
        assert await redriven.effects() == each(1), "what was sent again had its effects in the new generation"
        await redriven.replay(Seek(earliest=True))
    async with opened(url, directory) as replayed:
        await replayed.handle(2 * COUNT)
        assert await replayed.effects() == each(2)
        count = await replayed.redrive()
        await replayed.handle(count)
        assert await replayed.effects() == each(2), "what was sent again had its effects once more"


async def test_what_is_replayed_in_a_file_has_its_effects_once_more(tmp_path: Path) -> None:
    await replays(f"sqlite:{tmp_path / 'bus.db'}", tmp_path)


@pytest.mark.slow
async def test_what_is_replayed_on_kafka_has_its_effects_once_more(tmp_path: Path, kafka_url: str) -> None:
    await replays(f"{kafka_url}?commit_interval=0.05&group_protocol=consumer", tmp_path)


async def test_a_running_group_in_a_file_is_replayed(tmp_path: Path) -> None:
    async with opened(f"sqlite:{tmp_path / 'bus.db'}", tmp_path) as one, one.running() as runner:
        await one.append()
        await settled(runner, 2 * COUNT)
        for times in (2, 3):
            await one.replay(Seek(earliest=True))
            await settled(runner, times * 2 * COUNT)
            assert await one.effects() == each(times)


async def test_a_batch_that_is_replayed_has_its_effects_once_more(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "probe.db", migrations=PROBE, upgrade=True)
    async with store, log_bench(partitions=1) as b:
        handled: list[int] = []

        async def handle(jobs: Sequence[Job]) -> None:
            async with store.transaction() as tx:
                for one in jobs:
                    await tx.execute("INSERT INTO effect VALUES (?)", (f"{one.n}",))
            handled.extend(one.n for one in jobs)

        await b.append(*(event(n) for n in range(10)))
        await b.run(event_handler(handle, batch=Batch(5, wait=0.0)))
        for times in (1, 2):
            await b.caught_up()
            assert Counter(handled) == Counter(dict.fromkeys(range(10), times))
            await b.events.seek(TOPIC, GROUP, Seek(earliest=True))


async def test_what_is_done_once_without_a_transaction_is_replayed(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "probe.db", migrations=PROBE, upgrade=True)
    async with store, log_bench() as b:
        handled: list[int] = []

        async def handle(one: Job) -> None:
            handled.append(one.n)

        await b.append(event(7, key="a"), event(7, key="a"))
        await b.run(event_handler(handle, once=True), inbox=StoreInbox(store))
        await b.caught_up()
        await b.events.seek(TOPIC, GROUP, Seek(earliest=True))
        await b.caught_up()
        assert handled == [7, 7]


async def test_a_process_that_handles_what_is_replayed_knows_the_generation(tmp_path: Path) -> None:
    async with log_bench(partitions=1) as b:
        pool = ProcessPool("consumer_process_app:load", [str(tmp_path)], size=1)
        try:
            runner = await b.run(*handlings(str(tmp_path)), processes=pool)
            await b.append(envelope(1, type=TYPE, body=b'{"do":"generation","note":"one"}'))
            await settled(runner, 1)
            await b.events.seek(TOPIC, GROUP, Seek(earliest=True))
            await settled(runner, 2)
            await runner.stop(0.0)
        finally:
            await pool.close()
    assert (tmp_path / "one-0").exists()
    assert (tmp_path / "one-1").exists()
