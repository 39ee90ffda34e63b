"""Consumers of one file get their share, also where one of them could do it all."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import pytest

from polywire.bus.backend.sqlite import SqliteQueue
from polywire.bus.core import Ack, Envelope, QueueSpec, Settlement, new_id

SOON = 60.0
KEYS = 7


async def keep_full(queue: SqliteQueue, waiting: int) -> None:
    """See to it that there is always more of each key than anybody has got."""
    for number in itertools.count():
        if (await queue.stats("work")).ready < waiting:
            batch = [Envelope(new_id(), "t", b"", key=str(key)) for key in range(KEYS) for _ in range(20)]
            assert not any(await queue.send("work", batch))
        await asyncio.sleep(0.001 * (number % 3))


async def consume(queue: SqliteQueue, limit: int, counts: list[int]) -> None:
    consumer = await queue.consumer("work", limit=limit)
    counts.append(0)
    mine = len(counts) - 1
    try:
        done: list[Settlement] = []
        while True:
            got = await consumer.receive(limit)
            await consumer.settle(done, got)
            counts[mine] += len(got)
            done = [Settlement(one, Ack()) for one in got]
            await asyncio.sleep(0.001)
            await consumer.settle(done)
            done = []
    finally:
        await consumer.close()


@pytest.mark.parametrize("consumers", [2, 4])
async def test_keys_that_one_consumer_could_hold_for_ever_are_shared(tmp_path: Path, consumers: int) -> None:
    url = f"sqlite:{tmp_path / 'bus.db'}"
    counts: list[int] = []
    async with asyncio.timeout(SOON):
        queues = [SqliteQueue(url) for _ in range(consumers + 1)]
        for queue in queues:
            await queue.start()
        await queues[0].declare([QueueSpec(name="work", keyed=True)])
        tasks = [asyncio.ensure_future(keep_full(queues[0], 200))]
        for queue in queues[1:]:
            tasks.append(asyncio.ensure_future(consume(queue, 20, counts)))
            while len(counts) < len(tasks) - 1 or not counts[-1]:  # noqa: ASYNC110 - of other tasks
                await asyncio.sleep(0.01)
        before = list(counts)
        while sum(counts) - sum(before) < 2000 or min(counts) < 50:
            assert not any(task.done() for task in tasks)
            await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for queue in queues:
            await queue.close()
    shares = [after - began for began, after in zip(before, counts, strict=True)]
    assert min(shares) >= 0.15 / consumers * sum(shares), shares
