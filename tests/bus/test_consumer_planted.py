"""Runners with a planted bug: each is caught by a check that the real ones pass."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from consumer_support import (
    GROUP,
    QUEUE,
    TOPIC,
    Bench,
    Script,
    bench,
    envelope,
    event,
    event_handler,
    handling,
    log_bench,
    turns,
)

from polywire.bus.consumer import LogRunner, QueueRunner
from polywire.bus.consumer.verdict import ACK
from polywire.bus.core import Delivery, Outcome, Record, Release, RetryAfter, Settlement

Check = Callable[[Any], Awaitable[None]]


async def _soon(condition: Callable[[], Any]) -> None:
    """Let others run until *condition* holds, or for so long that a bug is the only explanation."""
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never happened")


async def _held_by_nobody(b: Bench) -> list[Delivery]:
    """What the queue hands out next."""
    consumer = await b.queue.consumer(QUEUE, limit=100)
    await b.clock.advance(0.0)
    found = await asyncio.wait_for(consumer.receive(100), 5.0)
    await consumer.close()
    return found


# ---- checks of queues ----


async def a_worker_that_dies_in_its_handler_loses_nothing(make: type[QueueRunner]) -> None:
    async with bench() as b:
        script = Script()
        script.plan[1] = [asyncio.Event()]
        runner = await b.run(handling(script.handle), make=make)
        await b.send(envelope(1))
        await _soon(lambda: script.seen == [1])
        runner.pause()
        b.queue.cut()
        assert await b.left() == 1


async def what_a_worker_died_with_is_a_suspect(make: type[QueueRunner]) -> None:
    async with bench() as b:
        script = Script()
        script.plan[1] = [asyncio.Event()]
        await b.run(handling(script.handle), make=make)
        await b.send(envelope(1))
        await _soon(lambda: script.seen == [1])
        b.queue.cut()
        [delivery] = await _held_by_nobody(b)
        assert (delivery.attempt, delivery.lost) == (2, 1)


async def what_was_received_and_not_started_is_no_suspect(make: type[QueueRunner]) -> None:
    async with bench() as b:
        script = Script()
        script.plan[0] = [asyncio.Event()]
        runner = await b.run(handling(script.handle), make=make, concurrency=1, prefetch=5)
        runner.runs.average = 0.0
        await b.send(*(envelope(n) for n in range(4)))
        await _soon(lambda: script.seen == [0] and runner.held == 4)
        b.queue.cut()
        found = {d.envelope.id: (d.attempt, d.lost) for d in await _held_by_nobody(b)}
        assert found == {"m0": (2, 1), "m1": (1, 0), "m2": (1, 0), "m3": (1, 0)}


async def a_shutdown_costs_no_attempt(make: type[QueueRunner]) -> None:
    async with bench() as b:
        script = Script()
        script.plan[1] = [asyncio.Event()]
        runner = await b.run(handling(script.handle), make=make)
        await b.send(envelope(1))
        await _soon(lambda: runner.in_flight == 1)
        await runner.stop(0.0)
        [delivery] = await _held_by_nobody(b)
        assert (delivery.attempt, delivery.lost) == (1, 0)


async def what_is_somebody_elses_is_not_handled(make: type[QueueRunner]) -> None:
    async with bench() as b:
        script = Script()
        runner = await b.run(handling(script.handle), make=make)
        session = runner._session
        assert session is not None
        settle = session.consumer.settle

        async def lose(settlements: Sequence[Settlement], starting: Sequence[Delivery] = ()) -> list[Delivery]:
            held = await settle(settlements, starting)
            return [delivery for delivery in held if delivery.envelope.id != "m1"]

        session.consumer.settle = lose  # type: ignore[method-assign]  # replaced for the test
        await b.send(envelope(1), envelope(2))
        await _soon(lambda: 2 in script.seen)
        await turns()
        assert script.seen == [2]


# ---- checks of logs ----


async def a_member_that_dies_in_its_handler_loses_nothing(make: type[LogRunner]) -> None:
    async with log_bench(1) as b:
        script = Script()
        script.plan[0] = [asyncio.Event()]
        await b.run(event_handler(script.handle), make=make)
        await b.append(event(0))
        await _soon(lambda: script.seen == [0])
        await turns()
        b.events.cut()
        assert await b.lag() == 1


async def what_lies_before_a_finished_event_is_not_committed(make: type[LogRunner]) -> None:
    async with log_bench(1) as b:
        script = Script()
        script.plan[0] = [asyncio.Event()]
        runner = await b.run(event_handler(script.handle), make=make)
        await b.append(event(0), event(1))
        await _soon(lambda: runner.counters.done == 1)
        await turns()
        b.events.cut()
        assert await b.lag() == 2


async def an_event_without_a_key_that_fails_is_handled_again(make: type[LogRunner]) -> None:
    async with log_bench(1) as b:
        script = Script()
        script.plan[0] = [ValueError("x")]
        await b.run(event_handler(script.handle), make=make)
        await b.append(event(0))
        await _soon(lambda: script.seen == [0])
        await turns()
        await b.clock.advance(2.0)
        await _soon(lambda: script.seen == [0, 0])


async def an_event_with_a_key_that_fails_is_not_overtaken(make: type[LogRunner]) -> None:
    async with log_bench(1) as b:
        script = Script()
        script.plan[0] = [ValueError("x")]
        await b.run(event_handler(script.handle), make=make)
        await b.append(event(0, key="a"), event(1, key="a"))
        await _soon(lambda: script.seen)
        await turns()
        await b.clock.advance(2.0)
        await _soon(lambda: len(script.seen) == 3)
        assert script.seen == [0, 0, 1]


async def a_partition_is_not_given_up_while_its_handlers_run(make: type[LogRunner]) -> None:
    async with log_bench(2) as b:
        gate = asyncio.Event()
        mine, theirs = Script(), Script()
        mine.plan = {n: [gate] for n in range(10)}
        first = await b.run(event_handler(mine.handle), make=make)
        await b.append(*(event(n, key=f"k{n}") for n in range(10)))
        await _soon(lambda: first.in_flight == 10)
        await b.run(event_handler(theirs.handle), make=make)
        await turns()
        gate.set()
        await turns()
        assert theirs.seen == []


async def an_event_is_dead_only_once_its_dead_letter_is_written(make: type[LogRunner]) -> None:
    async with log_bench(1) as b:
        script = Script()
        script.always[0] = ValueError("x")
        runner = await b.run(event_handler(script.handle), make=make)
        session = runner._session
        assert session is not None

        async def fail(record: Record, outcome: Any) -> None:
            raise OSError("the broker does not answer")

        session.consumer.bury = fail  # type: ignore[method-assign]  # replaced for the test
        await b.append(event(0, key="a"))
        for _ in range(6):
            await b.clock.advance(2.0)
        b.events.cut()
        assert await b.lag() == 1
        assert await b.events.dead(TOPIC, GROUP) == []


# ---- bugs of queues ----


class AckBeforeHandling(QueueRunner):
    async def _acknowledge_first(self, session: Any, consumer: Any, works: Any) -> Any:
        await consumer.settle([Settlement(work.item, ACK) for work in works])
        return works


class StartingWithoutSettle(QueueRunner):
    async def _start(self, session: Any, consumer: Any, finished: Any, works: Any) -> None:
        await consumer.settle(finished)
        for work in works:
            work.task = asyncio.get_running_loop().create_task(self._run(work))


class CountingAtClaim(QueueRunner):
    async def _fetch(self, session: Any, room: int) -> list[Delivery]:
        deliveries = await super()._fetch(session, room)
        await session.consumer.settle([], deliveries)
        return deliveries


class CancelledIsFailure(QueueRunner):
    def _finish(self, work: Any, delivery: Delivery, outcome: Outcome) -> None:
        super()._finish(work, delivery, RetryAfter(0.0) if isinstance(outcome, Release) else outcome)


class StartingWhatIsGone(QueueRunner):
    def _still_held(self, session: Any, works: Any, held: Any) -> Any:
        return works


# ---- bugs of logs ----


class DoneBeforeHandling(LogRunner):
    async def _fetch(self, session: Any, room: int) -> list[Record]:
        records = await super()._fetch(session, room)
        await session.consumer.done(records)
        return records


class CommitOfTheLastFinished(LogRunner):
    def _done(self, session: Any, record: Record) -> None:
        for lane in self._lanes:
            earlier = [r for r in lane.records if r.partition == record.partition and r.offset < record.offset]
            session.done += earlier
        super()._done(session, record)


class RetryCopyAfterDone(LogRunner):
    async def _retry(self, session: Any, lane: Any, work: Any, record: Record, outcome: Any) -> None:
        await session.consumer.done([record])
        await super()._retry(session, lane, work, record, outcome)


class RetryOfAKeyAsCopy(LogRunner):
    async def _settle(self, session: Any, lane: Any, work: Any, record: Record, outcome: Outcome) -> float:
        if isinstance(outcome, RetryAfter):
            await self._retry(session, lane, work, record, outcome)
            return 0.0
        return await super()._settle(session, lane, work, record, outcome)


class GivingUpAtOnce(LogRunner):
    async def _finish(self, partitions: Any) -> None:
        return


class DoneThoughNotBuried(LogRunner):
    async def _write(self, session: Any, lane: Any, record: Record, write: Any) -> bool:
        try:
            await write()
        except OSError:
            await session.consumer.done([record])
        return True


PLANTED: list[tuple[type[Any], Check]] = [
    (AckBeforeHandling, a_worker_that_dies_in_its_handler_loses_nothing),
    (StartingWithoutSettle, what_a_worker_died_with_is_a_suspect),
    (CountingAtClaim, what_was_received_and_not_started_is_no_suspect),
    (CancelledIsFailure, a_shutdown_costs_no_attempt),
    (StartingWhatIsGone, what_is_somebody_elses_is_not_handled),
    (DoneBeforeHandling, a_member_that_dies_in_its_handler_loses_nothing),
    (CommitOfTheLastFinished, what_lies_before_a_finished_event_is_not_committed),
    (RetryCopyAfterDone, an_event_without_a_key_that_fails_is_handled_again),
    (RetryOfAKeyAsCopy, an_event_with_a_key_that_fails_is_not_overtaken),
    (GivingUpAtOnce, a_partition_is_not_given_up_while_its_handlers_run),
    (DoneThoughNotBuried, an_event_is_dead_only_once_its_dead_letter_is_written),
]


@pytest.mark.parametrize(("bug", "check"), PLANTED, ids=lambda x: x.__name__)
async def test_the_real_runner_passes(bug: type[Any], check: Check) -> None:
    await check(bug.__mro__[1])


@pytest.mark.parametrize(("bug", "check"), PLANTED, ids=lambda x: x.__name__)
async def test_a_planted_bug_is_caught(bug: type[Any], check: Check) -> None:
    with pytest.raises(AssertionError):
        await check(bug)
