"""A queue and a log in memory, handlers to be told what to do, and runners over them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from polywire.bus.backend.memory import MemoryLog, MemoryQueue
from polywire.bus.consumer import Handling, LogRunner, QueueRunner
from polywire.bus.core import DeadLetter, Envelope, GroupSpec, QueueSpec, TopicSpec, new_id
from polywire.contract import Message
from polywire.contract.retry import Backoff
from polywire.testing import ManualClock

JOB = "shop.v1.Jobs/Do"
PAID = "shop.orders.OrderPaid"
QUEUE = "shop.v1.Jobs"
TOPIC = "shop.orders"
GROUP = "warehouse"
FEW = Backoff(attempts=3, base=1.0, cap=10.0)


class Job(Message):
    n: int


def envelope(n: int, *, type: str = JOB, key: str | None = None, **more: Any) -> Envelope:
    """Its id says which one it is."""
    more.setdefault("body", b'{"n":%d}' % n)
    more.setdefault("source", "shop")
    return Envelope(id=more.pop("id", f"m{n}"), type=type, key=key, **more)


async def until(condition: Callable[[], Any], what: str = "") -> None:
    """Let others run until *condition* holds; fails after 20 s of real time."""
    loop = asyncio.get_running_loop()
    end = loop.time() + 20.0
    while not condition():
        assert loop.time() < end, f"waited in vain {what}"
        await asyncio.sleep(0)


async def turns(count: int = 50) -> None:
    """Let everything that can run do so."""
    for _ in range(count):
        await asyncio.sleep(0)


class Script:
    """A handler that remembers what it got, and does what it was told to."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.running = 0
        self.most = 0
        self.plan: dict[int, list[BaseException | asyncio.Event]] = {}
        """For each message: what to raise, or wait for, at its first run, its second, ..."""
        self.always: dict[int, BaseException] = {}

    async def __call__(self, job: Job) -> None:
        self.seen.append(job.n)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            steps = self.plan.get(job.n)
            step = steps.pop(0) if steps else None
            if isinstance(step, asyncio.Event):
                await step.wait()
            elif step is not None:
                raise step
            if job.n in self.always:
                raise self.always[job.n]
        finally:
            self.running -= 1

    async def handle(self, job: Job) -> None:
        await self(job)


def handling(function: Any, *, type: str = JOB, **more: Any) -> Handling:
    more.setdefault("backoff", FEW)
    more.setdefault("name", "Jobs.do")
    return Handling(types={type: Job}, function=function, **more)


class Bench:
    """One queue in memory, with a clock by hand."""

    def __init__(self, **spec: Any) -> None:
        self.clock = ManualClock()
        self.queue = MemoryQueue(clock=self.clock)
        self.spec = QueueSpec(name=QUEUE, **spec)
        self.runners: list[QueueRunner] = []

    async def send(self, *envelopes: Envelope) -> None:
        assert await self.queue.send(QUEUE, envelopes) == [None] * len(envelopes)

    async def run(self, *handlings: Handling, make: type[QueueRunner] = QueueRunner, **more: Any) -> QueueRunner:
        runner = make(self.queue, QUEUE, handlings, clock=self.clock, keyed=self.spec.keyed, **more)
        self.runners.append(runner)
        await runner.start()
        return runner

    async def dead(self) -> list[DeadLetter]:
        return await self.queue.dead(QUEUE)

    async def left(self) -> int:
        stats = await self.queue.stats(QUEUE)
        return stats.ready + (stats.delayed or 0) + (stats.in_flight or 0)

    async def empty(self) -> None:
        """Wait until all is done or dead."""
        for _ in range(100_000):
            if not await self.left():
                return
            await asyncio.sleep(0)
        raise AssertionError(f"never empty: {await self.queue.stats(QUEUE)}")


@asynccontextmanager
async def bench(**spec: Any) -> AsyncIterator[Bench]:
    made = Bench(**spec)
    await made.queue.start()
    await made.queue.declare([made.spec])
    try:
        yield made
    finally:
        for runner in made.runners:
            await runner.stop(0.0)
        await made.queue.close()


class LogBench:
    """One topic with one group in memory, with a clock by hand."""

    def __init__(self, partitions: int) -> None:
        self.clock = ManualClock()
        self.events = MemoryLog(clock=self.clock)
        self.topic = TopicSpec(name=TOPIC, partitions=partitions)
        self.runners: list[LogRunner] = []

    async def append(self, *envelopes: Envelope) -> None:
        assert await self.events.append(TOPIC, envelopes) == [None] * len(envelopes)

    async def run(self, *handlings: Handling, make: type[LogRunner] = LogRunner, **more: Any) -> LogRunner:
        runner = make(self.events, [TOPIC], GROUP, handlings, clock=self.clock, **more)
        self.runners.append(runner)
        await runner.start()
        return runner

    async def dead(self) -> list[DeadLetter]:
        return await self.events.dead(TOPIC, GROUP, limit=1000)

    async def lag(self) -> int:
        return (await self.events.stats(TOPIC, GROUP)).lag

    async def caught_up(self) -> None:
        for _ in range(100_000):
            if not await self.lag():
                return
            await asyncio.sleep(0)
        raise AssertionError(f"never caught up: {await self.events.stats(TOPIC, GROUP)}")


@asynccontextmanager
async def log_bench(partitions: int = 4) -> AsyncIterator[LogBench]:
    made = LogBench(partitions)
    await made.events.start()
    await made.events.declare([made.topic], [GroupSpec(topic=TOPIC, group=GROUP)])
    try:
        yield made
    finally:
        for runner in made.runners:
            await runner.stop(0.0)
        await made.events.close()


def event(n: int, *, key: str | None = None, **more: Any) -> Envelope:
    return envelope(n, type=PAID, key=key, **more)


def event_handler(function: Any, **more: Any) -> Handling:
    return handling(function, type=PAID, **more)


def fresh(count: int) -> list[Envelope]:
    """Envelopes with real ids."""
    return [envelope(n, id=new_id()) for n in range(count)]


def numbers(letters: Sequence[DeadLetter]) -> list[str]:
    return [letter.envelope.id for letter in letters]
