"""Processes that share a file of the bus, for tests that watch, stop and kill them.

Run as a program: `python sqlite_processes_support.py work|send|read|append PATH NAME LOG [ARGUMENTS]`. Each writes what
it did to a file of its own, a line at a time, so that nothing of it is lost when it is killed.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from polywire.bus.backend.sqlite import SqliteQueue
from polywire.bus.backend.sqlite_log import SqliteLog
from polywire.bus.core import Ack, Delivery, Envelope, Record, Settlement, new_id


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


def write(output: int, started: Delivery | Record) -> None:
    envelope = started.envelope
    text = f"{envelope.body.decode()} {envelope.key} {started.attempt} {started.lost} {time.monotonic()}\n"
    os.write(output, text.encode())


def numbers(log: str, count: int) -> Iterator[int]:
    """As many, or until somebody asks to stop."""
    stop = stopper(Path(log))
    return itertools.takewhile(lambda _: not stop.exists(), range(count))


def stopper(log: Path) -> Path:
    """Made by a test to have `send` and `append` stop."""
    return log.with_suffix(".stop")


async def send(path: str, queue: str, log: str, count: int, keys: int, pause: float = 0.0) -> None:
    """Send *count* messages, numbered in order. A line per confirmed one."""
    bus = SqliteQueue(f"sqlite:{path}")
    await bus.start()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in numbers(log, count):
        await asyncio.sleep(pause)
        key = f"{os.getpid()}-{number % keys}" if keys else None
        envelope = Envelope(new_id(), "t", f"{os.getpid()}:{number}".encode(), key=key)
        (failure,) = await bus.send(queue, [envelope], timeout=30)
        assert failure is None, failure
        os.write(output, envelope.body + b"\n")
    await bus.close()


async def read(path: str, topic: str, log: str, how: str) -> None:
    """Handle events for the group `g`, *how* many seconds each or until one whose body *how* is. A line per start."""
    bus = SqliteLog(f"sqlite:{path}")
    await bus.start()
    consumer = await bus.consumer([topic], "g", limit=10)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(output, b"ready\n")
    while True:
        for record in await consumer.receive(5):
            if record.lost:
                await consumer.starting(record)
            write(output, record)
            if record.envelope.body.decode() == how:
                os._exit(1)
            if how.startswith("0."):
                await asyncio.sleep(float(how) * random.random())
            await consumer.done([record])


async def append(path: str, topic: str, log: str, count: int, keys: int, pause: float = 0.0) -> None:
    """As `send`, to a topic."""
    bus = SqliteLog(f"sqlite:{path}")
    await bus.start()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in numbers(log, count):
        await asyncio.sleep(pause)
        envelope = Envelope(new_id(), "t", f"{os.getpid()}:{number}".encode(), key=f"{os.getpid()}-{number % keys}")
        (failure,) = await bus.append(topic, [envelope], timeout=30)
        assert failure is None, failure
        os.write(output, envelope.body + b"\n")
    await bus.close()


def first_starts_out_of_order(logs: list[Path]) -> list[str]:
    """Of the messages of each key, those whose first start came after that of a later one."""
    starts = [line.split() for log in logs for line in lines(log) if line != "ready"]
    starts.sort(key=lambda start: float(start[4]))
    last: Counter[str] = Counter()
    seen: set[str] = set()
    wrong = []
    for text, key, *_ in starts:
        number = int(text.partition(":")[2]) + 1
        if text not in seen and number < last[key]:
            wrong.append(text)
        seen.add(text)
        last[key] = max(last[key], number)
    return wrong


def main() -> None:
    what, path, name, log, *rest = sys.argv[1:]
    if what == "work":
        asyncio.run(work(path, name, log, float(rest[0])))
    elif what == "read":
        asyncio.run(read(path, name, log, rest[0]))
    else:
        how = send if what == "send" else append
        asyncio.run(how(path, name, log, int(rest[0]), int(rest[1]), *map(float, rest[2:])))


if __name__ == "__main__":
    main()
