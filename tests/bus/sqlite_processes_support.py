"""Processes that share a file of the bus, for tests that watch, stop and kill them.

Run as a program: `python sqlite_processes_support.py work|send PATH QUEUE LOG [ARGUMENTS]`. Each writes what it did to
a file of its own, a line at a time, so that nothing of it is lost when it is killed.
"""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from polywire.bus.backend.sqlite import SqliteQueue
from polywire.bus.core import Ack, Delivery, Envelope, Settlement, new_id


@contextmanager
def process(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """One of them; killed at the end, if it did not end before."""
    started = subprocess.Popen([sys.executable, __file__, *arguments])
    try:
        yield started
    finally:
        started.kill()
        started.wait()


def lines(path: Path) -> list[str]:
    """Whole lines only: the last one may be half written by a process that was killed."""
    if not path.exists():
        return []
    text = path.read_text()
    return text[: text.rfind("\n") + 1].splitlines()


async def work(path: str, queue: str, log: str, seconds: float) -> None:
    """Handle messages, *seconds* each, until killed. A line per start: id, key, attempt, lost and time."""
    bus = SqliteQueue(f"sqlite:{path}")
    await bus.start()
    consumer = await bus.consumer(queue, limit=20)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(output, b"ready\n")
    done: list[Delivery] = []
    while True:
        got = await consumer.receive(10)
        for delivery in await consumer.settle([Settlement(one, Ack()) for one in done], got):
            write(output, delivery)
            if seconds:
                await asyncio.sleep(seconds * random.random())
        done = got
        if seconds:
            await consumer.settle([Settlement(one, Ack()) for one in done])
            done = []


def write(output: int, delivery: Delivery) -> None:
    envelope = delivery.envelope
    text = f"{envelope.body.decode()} {envelope.key} {delivery.attempt} {delivery.lost} {time.monotonic()}\n"
    os.write(output, text.encode())


async def send(path: str, queue: str, log: str, count: int, keys: int) -> None:
    """Send *count* messages, numbered per key from 1. A line per confirmed one."""
    bus = SqliteQueue(f"sqlite:{path}")
    await bus.start()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in range(count):
        key = f"{os.getpid()}-{number % keys}" if keys else None
        envelope = Envelope(new_id(), "t", f"{os.getpid()}:{number}".encode(), key=key)
        (failure,) = await bus.send(queue, [envelope], timeout=30)
        assert failure is None, failure
        os.write(output, envelope.body + b"\n")
    await bus.close()


def main() -> None:
    what, path, queue, log, *rest = sys.argv[1:]
    if what == "work":
        asyncio.run(work(path, queue, log, float(rest[0])))
    else:
        asyncio.run(send(path, queue, log, int(rest[0]), int(rest[1])))


if __name__ == "__main__":
    main()
