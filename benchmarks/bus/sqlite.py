"""What the file bus costs: enqueue, process, append and read, with an empty backlog and with large ones.

`python benchmarks/bus/sqlite.py` takes some seconds; `--messages 200000 --backlog 1000000` shows what grows, and
`--profile` where the time goes. CPU is that of the whole process, the writer's thread included, per message.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from polywire.bus.backend import sqlite_messages
from polywire.bus.backend.sqlite import SqliteQueue
from polywire.bus.backend.sqlite_file import Transaction
from polywire.bus.backend.sqlite_log import SqliteLog
from polywire.bus.backend.sqlite_messages import QueueRow
from polywire.bus.core import Ack, Delivery, Envelope, GroupSpec, QueueSpec, Settlement, TopicSpec, new_id, pack

BODY = os.urandom(600)
HEADERS = {f"header-{n}": f"value {n}" for n in range(6)}
"""With the six attributes that every envelope has, twelve."""
SENDERS = 100
BATCH = 100


def envelope(key: str | None = None, not_before: float | None = None, priority: int = 0) -> Envelope:
    return Envelope(
        new_id(),
        "shop.v1.Mail/SendConfirmation",
        BODY,
        source="orders",
        time=time.time(),
        key=key,
        headers=HEADERS,
        traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        request_id="0199c7a0-5b1e-7000-8000-000000000000",
        priority=priority,
        not_before=not_before,
    )


@contextmanager
def measured(what: str, count: int) -> Iterator[None]:
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(f"{what:<70} {count / wall:>9,.0f}/s {cpu / count * 1e6:>7.1f} µs CPU")


# ---- tasks -----------------------------------------------------------------------------------------------------------


async def enqueue(bus: SqliteQueue, queue: str, count: int) -> None:
    """From many coroutines, each of which waits until its message is durable."""
    left = iter(range(count))

    async def sender() -> None:
        for number in left:
            (failure,) = await bus.send(queue, [envelope(key=f"key-{number % 1000}")])
            assert failure is None, failure

    await asyncio.gather(*(sender() for _ in range(SENDERS)))


async def process(bus: SqliteQueue, queue: str, count: int) -> None:
    """As the consumer does: what is done is settled together with the start of what comes next."""
    consumer = await bus.consumer(queue, limit=2 * BATCH)
    done: list[Delivery] = []
    handled = 0
    while handled < count:
        got = await consumer.receive(min(BATCH, count - handled))
        await consumer.settle([Settlement(one, Ack()) for one in done], got)
        done = got
        handled += len(got)
    await consumer.settle([Settlement(one, Ack()) for one in done])
    await consumer.close()


Row = tuple[str, int, float | None]
"""Key, priority and the time before which it is not handled, of the n-th message of a backlog."""
BACKLOGS: dict[str, Callable[[int], Row]] = {
    "none": lambda n: ("", 0, None),
    "none, of a queue with keys": lambda n: ("", 0, None),
    "all waiting under one key, which is held": lambda n: ("hot", 1, None),
    "all delayed": lambda n: (f"key-{n}", 0, time.time() + 86_400),
    "all of low priority": lambda n: (f"low-{n}", 0, None),
}


async def pile_up(bus: SqliteQueue, queue: str, count: int, shape: Callable[[int], Row]) -> None:
    """Past the pending limit and the confirmation of each."""
    row = await bus.known(queue)
    assert row is not None
    for start in range(0, count, 10_000):
        values = list(_values(row, shape, range(start, min(start + 10_000, count))))
        await bus.file.do(lambda tx, values=values: _insert(tx, row, values), durable=False)


def _insert(tx: Transaction, row: QueueRow, values: list[object]) -> None:
    sqlite_messages.insert(tx, values, keyed=row.keyed, delayed=True)
    tx.changed.add(row.channel)


def _values(row: QueueRow, shape: Callable[[int], Row], numbers: range) -> Iterator[object]:
    for number in numbers:
        key, priority, due = shape(number)
        made = envelope(key=key, priority=priority)
        yield from (row.n, made.id, key if row.keyed else None, row.level(priority), due, pack(made))


async def tasks(folder: Path, count: int, backlog: int) -> None:
    for number, (name, shape) in enumerate(BACKLOGS.items()):
        size = 0 if name.startswith("none") else backlog
        if not size and not name.startswith("none"):
            return
        bus = SqliteQueue(f"sqlite:{folder / f'tasks-{number}.db'}")
        await bus.start()
        hot = "one key" in name
        await bus.declare([QueueSpec(name="work", keyed="key" in name, priorities=3)])
        await pile_up(bus, "work", size, shape)
        holder = await bus.consumer("work", limit=1)
        if hot and size:
            await holder.receive(1)
        shown = f"{name}, {size:,}" if size else name
        if "low" in name:
            await urgent(bus, count, shown)
        else:
            with measured(f"enqueue   backlog: {shown}", count):
                await enqueue(bus, "work", count)
            with measured(f"process   backlog: {shown}", count):
                await process(bus, "work", count)
        await holder.close()
        await bus.close()


async def urgent(bus: SqliteQueue, count: int, shown: str) -> None:
    """Beside a backlog of low priority, messages of a high one."""
    left = iter(range(count))

    async def sender() -> None:
        for _ in left:
            await bus.send("work", [envelope(priority=2)])

    with measured(f"enqueue   backlog: {shown}", count):
        await asyncio.gather(*(sender() for _ in range(SENDERS)))
    with measured(f"process   backlog: {shown}", count):
        await process(bus, "work", count)


# ---- events ----------------------------------------------------------------------------------------------------------


async def append(log: SqliteLog, count: int) -> None:
    left = iter(range(count))

    async def sender() -> None:
        for number in left:
            (failure,) = await log.append("orders", [envelope(key=f"key-{number % 1000}")])
            assert failure is None, failure

    await asyncio.gather(*(sender() for _ in range(SENDERS)))


async def read(log: SqliteLog, count: int) -> None:
    consumer = await log.consumer(["orders"], "group", limit=BATCH)
    seen = 0
    while seen < count:
        records = await consumer.receive(5 * BATCH)
        seen += len(records)
        await consumer.done(records)
    await consumer.close()


async def events(folder: Path, count: int) -> None:
    log = SqliteLog(f"sqlite:{folder / 'events.db'}")
    await log.start()
    await log.declare([TopicSpec(name="orders")], [GroupSpec(topic="orders", group="group")])
    with measured("append", count):
        await append(log, count)
    with measured("read and commit", count):
        await read(log, count)
    await log.close()


async def run(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        await tasks(Path(folder), options.messages, options.backlog)
        await events(Path(folder), options.messages)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=40_000)
    parser.add_argument("--backlog", type=int, default=0, help="messages that wait beside those that are measured")
    parser.add_argument("--folder", default=None, help="on the disk to measure")
    parser.add_argument("--plain", action="store_true", help="asyncio's own event loop instead of uvloop")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    if options.plain:
        runner = asyncio.run
    else:
        import uvloop

        runner = uvloop.run
    if options.profile:
        profile = cProfile.Profile()
        profile.runcall(runner, run(options))
        profile.print_stats("tottime")
    else:
        runner(run(options))


if __name__ == "__main__":
    main()
