"""One process of the benchmark: it sends for some seconds, or handles what was sent. Run by `run.py`."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from benchmarks.bus.stacks import STACKS, Place, Sending, Stack

WARM = 0.2
"""Of the seconds, for warming up."""
FIRST = 100
"""Messages that are handled before the measurement begins."""
SETTLED = 0.3
"""Seconds between the last message that is handled and the end, for its acknowledgement."""


def tell(event: str, **facts: Any) -> None:
    """To the runner; one write, as workers with threads tell, too."""
    os.write(1, (json.dumps({"event": event, **facts}) + "\n").encode())


# ---- sending ---------------------------------------------------------------------------------------------------------


async def send(stack: Stack, place: Place, seconds: float) -> None:
    async with stack.send(place) as sending:
        warmed = await _send_for(sending, seconds * WARM)
        sending.finish()
        started, cpu = time.perf_counter(), time.process_time()
        count = await _send_for(sending, seconds)
        sending.finish()
        took, spent = time.perf_counter() - started, time.process_time() - cpu
    tell("sent", total=warmed + count, count=count, seconds=took, cpu=spent)


async def _send_for(sending: Sending, seconds: float) -> int:
    end = time.perf_counter() + seconds
    count = 0

    async def sender() -> None:
        nonlocal count
        while time.perf_counter() < end:
            await sending.one()
            count += 1

    await asyncio.gather(*(sender() for _ in range(sending.senders)))
    return count


async def send_count(stack: Stack, place: Place, count: int) -> None:
    """So many, without looking at the clock: a backlog."""
    async with stack.send(place) as sending:
        await _send_count(sending.one, count, sending.senders)
        sending.finish()
    tell("sent", total=count)


async def send_evenly(stack: Stack, place: Place, seconds: float, rate: float) -> None:
    """One every 1 / *rate* seconds, whatever the last one does."""
    under_way: set[asyncio.Task[Any]] = set()
    async with stack.send(place) as sending:
        await sending.one()
        count = int(rate * seconds)
        started = time.perf_counter()
        for number in range(count):
            await asyncio.sleep(max(0.0, started + number / rate - time.perf_counter()))
            task = asyncio.ensure_future(sending.one())
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        await asyncio.gather(*under_way)
    tell("sent", total=count)


# ---- handling --------------------------------------------------------------------------------------------------------


class Meter:
    """Counts what is handled, from any thread, and tells the figures when all was or the time is over.

    It begins *settle* seconds after the first message, when a client that fetches ahead has what it wants to have.
    """

    def __init__(self, total: int, seconds: float, *, settle: float = 0.0, latency: bool = False) -> None:
        self._first = min(FIRST, max(1, total // 10))
        self._latest = max(1, total // 2)
        self._total = total
        self._seconds = seconds
        self._settle = settle
        self._numbers = itertools.count(1)
        self._latencies: list[float] | None = [] if latency else None
        self._told = threading.Lock()
        self._came = self._started = self._cpu = 0.0
        self._before = 0
        """Messages that were handled before it began."""

    def handled(self, sent: float) -> None:
        number = next(self._numbers)
        if not self._started:
            self._begin(number)
            return
        if self._latencies is not None:
            self._latencies.append(time.time() - sent)
        if number >= self._total or (not number & 63 and time.perf_counter() - self._started > self._seconds):
            self._tell(number)

    def _begin(self, number: int) -> None:
        now = time.perf_counter()
        self._came = self._came or now
        if number >= self._latest or (number >= self._first and now - self._came >= self._settle):
            self._before, self._cpu, self._started = number, time.process_time(), now

    def _tell(self, number: int) -> None:
        if not self._told.acquire(blocking=False):
            return
        took, spent = time.perf_counter() - self._started, time.process_time() - self._cpu
        facts: dict[str, Any] = {"count": number - self._before, "seconds": took, "cpu": spent}
        if self._latencies is not None:
            found = sorted(self._latencies)
            facts |= {f"p{p}": found[min(len(found) - 1, int(len(found) * p / 100))] for p in (50, 95, 99)}
        tell("handled", **facts)


async def receive(stack: Stack, place: Place, meter: Meter, pause: float) -> None:
    """Until this process is told to end, as a worker lives, or is killed."""
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    tell("ready")
    async with stack.receive(place, meter.handled, pause):
        await told.wait()


# ---- what needs both ends --------------------------------------------------------------------------------------------


async def memory(seconds: float) -> None:
    """The bus in memory, which is one process: first all is sent, then all is handled."""
    from benchmarks.bus.stacks import opened, tasks_of, tasks_to

    from polywire.bus.backend.memory import MemoryQueue

    place = Place("memory:", "bench")
    async with opened(MemoryQueue("memory:")) as queue:
        async with tasks_to(queue, place) as sending:
            started, cpu = time.perf_counter(), time.process_time()
            count = await _send_for(sending, seconds)
            took, spent = time.perf_counter() - started, time.process_time() - cpu
        tell("sent", total=count, count=count, seconds=took, cpu=spent)
        meter = Meter(count, 10 * seconds)
        async with tasks_of(queue, place, meter.handled, 0.0):
            await asyncio.Event().wait()


async def syncs(place: Place, count: int, senders: int) -> None:
    """From sending to handling in one process: how often the disk was waited for."""
    from benchmarks.bus.stacks import opened, tasks_of, tasks_to
    from benchmarks.bus.syncs import Counting

    from polywire.bus.backend.sqlite import SqliteQueue
    from polywire.bus.backend.sqlite_file import FileOptions

    counting = Counting()
    done = asyncio.Event()
    handled = itertools.count(1)

    def one_more(sent: float) -> None:
        if next(handled) == count:
            done.set()

    async with (
        opened(SqliteQueue(place.url, options=FileOptions(vfs=counting.name))) as queue,
        tasks_of(queue, place, one_more, 0.0),
        tasks_to(queue, place) as sending,
    ):
        await asyncio.sleep(SETTLED)
        before = counting.syncs
        await _send_count(sending.one, count, senders)
        await done.wait()
        await asyncio.sleep(SETTLED)
        tell("counted", syncs=counting.syncs - before)


async def _send_count(one: Callable[[], Any], count: int, senders: int) -> None:
    left = iter(range(count))

    async def sender() -> None:
        for _ in left:
            await one()

    await asyncio.gather(*(sender() for _ in range(senders)))


async def hold(place: Place) -> None:
    """Take the first message of a queue, and keep it."""
    from benchmarks.bus.contract import mail_contract, mail_queue
    from benchmarks.bus.stacks import opened

    from polywire.bus.backend.opening import open_tasks

    async with opened(open_tasks(place.url)) as queue:
        await queue.declare([mail_queue(mail_contract(place.name, place.shape))])
        consumer = await queue.consumer(place.name, limit=1)
        held = await consumer.receive(1)
        await consumer.settle([], held)
        tell("holds")
        await asyncio.Event().wait()


def main() -> None:
    from polywire.net.loop import run

    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=["send", "send-count", "send-evenly", "receive", "memory", "syncs", "hold"])
    parser.add_argument("stack", choices=[*STACKS, "polywire, memory"])
    parser.add_argument("--url", default="")
    parser.add_argument("--place", default="bench")
    parser.add_argument("--shape", default="plain")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--senders", type=int, default=1)
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--settle", type=float, default=0.0)
    parser.add_argument("--latency", action="store_true")
    asked = parser.parse_args()
    place = Place(asked.url, asked.place, asked.shape)
    stack = STACKS.get(asked.stack, STACKS["polywire, sqlite"])
    work: dict[str, Callable[[], Any]] = {
        "send": lambda: send(stack, place, asked.seconds),
        "send-count": lambda: send_count(stack, place, asked.count),
        "send-evenly": lambda: send_evenly(stack, place, asked.seconds, asked.rate),
        "receive": lambda: receive(
            stack, place, Meter(asked.count, asked.seconds, settle=asked.settle, latency=asked.latency), asked.pause
        ),
        "memory": lambda: memory(asked.seconds),
        "syncs": lambda: syncs(place, asked.count, asked.senders),
        "hold": lambda: hold(place),
    }
    run(work[asked.role]())


if __name__ == "__main__":
    main()
