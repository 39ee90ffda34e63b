"""The logs in a file: what the suite of all logs does not ask."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from polywire.bus.backend.sqlite_log import SqliteLog
from polywire.bus.core import Bury, Envelope, Record, RetryAfter, Seek, TopicSpec, new_id
from polywire.clock import SYSTEM_CLOCK, Clock


@asynccontextmanager
async def opened(path: Path, *specs: TopicSpec, clock: Clock = SYSTEM_CLOCK) -> AsyncIterator[SqliteLog]:
    log = SqliteLog(f"sqlite:{path / 'bus.db'}", clock=clock)
    await log.start()
    try:
        topics = specs or (TopicSpec(name="orders", partitions=4),)
        await log.declare(topics, [GroupSpec(topic=topic.name, group="g") for topic in topics])
        yield log
    finally:
        await log.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - of another object, which tells nobody
            await asyncio.sleep(0.01)


def made(body: bytes = b"{}", **attributes: object) -> Envelope:
    return Envelope(**{"id": new_id(), "type": "t", "body": body, **attributes})  # type: ignore[arg-type]


async def test_events_are_read_in_order_and_done(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        sent = [made(b"%d" % i, key=f"k{i % 10}") for i in range(200)]
        assert await log.append("orders", sent) == [None] * 200
        consumer = await log.consumer(["orders"], "g", limit=100)
        got: list[Record] = []
        while len(got) < 200:
            async with asyncio.timeout(5):
                batch = await consumer.receive(50)
            await consumer.done(batch)
            got += batch
        assert (await log.stats("orders", "g")).lag == 0
        for k in range(10):
            assert [r.envelope.body for r in got if r.envelope.key == f"k{k}"] == [b"%d" % i for i in range(k, 200, 10)]
        await log.seek("orders", "g", Seek(earliest=True))
        async with asyncio.timeout(5):
            (again,) = await consumer.receive(1)
        await consumer.retry(again, RetryAfter(0.01))
        async with asyncio.timeout(5):
            while not (batch := await consumer.receive(1000))[0].retried:
                await consumer.done(batch)
        assert batch[0].attempt == 2
        await consumer.bury(batch[0], Bury("rejected", "x"))
        (letter,) = await log.dead("orders", "g")
        assert letter.envelope == again.envelope
        assert letter.attempts == 2
        await consumer.close()


async def test_partitions_move_to_a_second_member(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        told: list[object] = []

        async def revoking(parts: object) -> None:
            told.append(parts)

        a = await log.consumer(["orders"], "g", limit=100, revoking=revoking)
        b = await log.consumer(["orders"], "g", limit=100)
        await until(lambda: len(a.assigned) == len(b.assigned) == 2)
        assert told
        await b.close()
        await until(lambda: len(a.assigned) == 4)
        await a.close()
