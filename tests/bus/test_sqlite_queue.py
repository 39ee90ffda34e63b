"""The queues in a file: what the suite of all queues does not ask."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from polywire.bus.backend.sqlite import SqliteQueue
from polywire.bus.core import Ack, Bury, Delivery, Envelope, QueueSpec, Release, RetryAfter, Settlement, new_id
from polywire.clock import SYSTEM_CLOCK, Clock


@asynccontextmanager
async def opened(path: Path, *specs: QueueSpec, clock: Clock = SYSTEM_CLOCK) -> AsyncIterator[SqliteQueue]:
    queue = SqliteQueue(f"sqlite:{path / 'bus.db'}", clock=clock)
    await queue.start()
    try:
        await queue.declare(specs or (QueueSpec(name="work"),))
        yield queue
    finally:
        await queue.close()


def made(body: bytes = b"{}", **attributes: object) -> Envelope:
    return Envelope(**{"id": new_id(), "type": "t", "body": body, **attributes})  # type: ignore[arg-type]


async def test_what_is_sent_is_received_started_and_done(tmp_path: Path) -> None:
    async with opened(tmp_path) as queue:
        sent = [made(b"%d" % i) for i in range(200)]
        assert await queue.send("work", sent) == [None] * 200
        consumer = await queue.consumer("work", limit=100)
        got: list[Delivery] = []
        while len(got) < 200:
            async with asyncio.timeout(5):
                batch = await consumer.receive(50)
            assert len(await consumer.settle([], batch)) == len(batch)
            await consumer.settle([Settlement(d, Ack()) for d in batch])
            got += batch
        assert [d.envelope for d in got] == sent
        stats = await queue.stats("work")
        assert (stats.ready, stats.delayed, stats.in_flight, stats.dead, stats.oldest) == (0, 0, 0, 0, None)
        await consumer.close()


async def test_all_outcomes(tmp_path: Path) -> None:
    async with opened(tmp_path) as queue:
        await queue.send("work", [made(b"%d" % i) for i in range(4)])
        consumer = await queue.consumer("work", limit=100)
        a, b, c, d = await consumer.receive(10)
        await consumer.settle([], [a, b, c, d])
        await consumer.settle(
            [
                Settlement(a, Ack()),
                Settlement(b, RetryAfter(0.0)),
                Settlement(c, Release()),
                Settlement(d, Bury("rejected", "no")),
            ]
        )
        again = await consumer.receive(10)
        assert [(x.envelope.body, x.attempt, x.lost) for x in again] == [(b"1", 2, 0), (b"2", 1, 0)]
        (letter,) = await queue.dead("work")
        assert (letter.reason, letter.error, letter.attempts) == ("rejected", "no", 1)
        assert await queue.revive("work", [letter]) == 1
        (revived,) = await consumer.receive(10)
        assert revived.envelope.redrive_count == 1
        await consumer.close()
        await consumer.close()
