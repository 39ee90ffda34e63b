"""LogRunner: lanes per key, retries in place or as copies, parked keys, rebalancing, over the memory backend."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

import pytest
from consumer_support import (
    GROUP,
    TOPIC,
    Job,
    Script,
    event,
    event_handler,
    log_bench,
    numbers,
    turns,
    until,
)

from polywire.bus.consumer import LogRunner
from polywire.bus.core import Record, Seek
from polywire.context import current
from polywire.contract.event import Batch, Where
from polywire.contract.retry import Backoff
from polywire.errors import BackendLost, BatchFailed, Reject, SetupError

ONCE = Backoff(attempts=1, base=0.0, cap=0.0)


async def test_all_events_of_all_partitions_are_handled_and_committed() -> None:
    async with log_bench() as b:
        script = Script()
        runner = await b.run(event_handler(script.handle))
        await b.append(*(event(n, key=f"k{n % 7}") for n in range(50)))
        await b.caught_up()
        assert sorted(script.seen) == list(range(50))
        assert (runner.counters.received, runner.counters.done, runner.held) == (50, 50, 0)
        assert runner.ready


async def test_events_of_one_key_run_one_after_the_other_while_other_keys_go_on() -> None:
    async with log_bench() as b:
        gate = asyncio.Event()
        script = Script()
        script.plan[0] = [gate]
        await b.run(event_handler(script.handle))
        await b.append(*(event(n, key="a" if n < 3 else f"k{n}") for n in range(10)))
        await until(lambda: len(script.seen) == 8)
        assert not {1, 2} & set(script.seen)
        gate.set()
        await b.caught_up()
        assert [n for n in script.seen if n < 3] == [0, 1, 2]


async def test_an_event_with_a_key_is_tried_again_in_place_and_its_lane_waits() -> None:
    async with log_bench() as b:
        script = Script()
        script.plan[0] = [ValueError("x"), ValueError("x")]
        attempts: list[int] = []

        async def handle(job: Job) -> None:
            if job.n == 0:
                attempts.append(current().attempt)
            await script(job)

        runner = await b.run(event_handler(handle))
        await b.append(event(0, key="a"), event(1, key="a"), event(2, key="b"))
        await until(lambda: runner.counters.retried == 1)
        await turns()
        assert sorted(script.seen) == [0, 2]
        await b.clock.advance(1.0)
        await b.clock.advance(2.0)
        await b.caught_up()
        assert [n for n in script.seen if n < 2] == [0, 0, 0, 1]
        assert attempts == [1, 2, 3]
        assert await b.dead() == []


async def test_without_a_key_a_failure_is_tried_again_as_a_copy_and_holds_up_nobody() -> None:
    async with log_bench(1) as b:
        script = Script()
        script.plan[0] = [ValueError("x")]
        runner = await b.run(event_handler(script.handle))
        await b.append(event(0), event(1))
        await b.caught_up()
        assert (sorted(script.seen), runner.counters.retried) == ([0, 1], 1)
        await b.clock.advance(1.0)
        await until(lambda: runner.counters.done == 2)
        assert sorted(script.seen) == [0, 0, 1]


async def test_after_a_dead_event_its_key_goes_on() -> None:
    async with log_bench() as b:
        script = Script()
        script.always[0] = ValueError("poison")
        await b.run(event_handler(script.handle, backoff=Backoff(attempts=2, base=0.0, cap=0.0)))
        await b.append(event(0, key="a"), event(1, key="a"))
        await b.caught_up()
        assert script.seen == [0, 0, 1]
        [letter] = await b.dead()
        assert (letter.envelope.id, letter.reason, letter.error, letter.attempts) == (
            "m0", "attempts", "ValueError: poison", 2,
        )  # fmt: skip


async def test_a_parked_key_is_held_back_until_its_dead_letters_are_gone() -> None:
    async with log_bench(1) as b:
        script = Script()
        script.plan[0] = [ValueError("poison")]
        handling = event_handler(script.handle, backoff=ONCE, on_dead="park_key")
        runner = await b.run(handling)
        await b.append(event(0, key="a"), event(1, key="a"), event(2, key="b"))
        await b.caught_up()
        assert sorted(script.seen) == [0, 2]
        reasons = {letter.envelope.id: (letter.reason, letter.error) for letter in await b.dead()}
        assert reasons == {
            "m0": ("attempts", "ValueError: poison"),
            "m1": ("parked", "An earlier event of its key 'a' is dead."),
        }
        await runner.stop(0.0)
        await b.run(handling)  # another process knows it too
        await b.append(event(3, key="a"))
        await b.caught_up()
        assert 3 not in script.seen
        await b.events.revive(TOPIC, GROUP, await b.dead())
        await until(lambda: {0, 1, 3} <= set(script.seen))
        await b.clock.advance(5.0)
        await b.append(event(4, key="a"))
        await b.caught_up()
        assert script.seen[-1] == 4
        assert await b.dead() == []


async def test_what_a_group_does_not_declare_or_want_is_skipped_and_committed() -> None:
    async with log_bench() as b:
        script = Script()
        runner = await b.run(event_handler(script.handle, where=Where(headers={"tenant": "a"})))
        await b.append(event(0), event(1, headers={"tenant": "a"}))
        other = event(2)
        other.type = "shop.orders.Unheard"
        await b.append(other)
        await b.caught_up()
        assert (script.seen, runner.counters.skipped, await b.dead()) == ([1], 2, [])


async def test_unreadable_undecodable_expired_and_newer_events_are_buried() -> None:
    async with log_bench(1) as b:
        script = Script()
        b.events.inject(TOPIC, b"\xff")
        await b.append(event(1, body=b"{"), event(2, expires=b.clock.time() - 4.0), event(3, version=2), event(4))
        await b.run(event_handler(script.handle))
        await b.caught_up()
        assert script.seen == [4]
        found = sorted((letter.reason, letter.error) for letter in await b.dead())
        assert found[0] == ("expired", "No handler had started 4 s after it expired.")
        assert found[1][0] == found[2][0] == found[3][0] == "undecodable"
        assert ("undecodable", "It has version 2, and Jobs.do knows 1.") in found


async def test_at_most_once_counts_what_failed_and_never_repeats_it() -> None:
    async with log_bench() as b:
        script = Script()
        script.always[0] = ValueError("x")
        runner = await b.run(event_handler(script.handle, at_most_once=True, backoff=ONCE))
        await b.append(event(0, key="a"), event(1, key="a"))
        await b.caught_up()
        await until(lambda: runner.counters.done == 1)
        assert (script.seen, runner.counters.dropped, await b.dead()) == ([0, 1], 1, [])


async def test_concurrency_is_bounded_over_all_lanes() -> None:
    async with log_bench() as b:
        gate = asyncio.Event()
        script = Script()
        script.plan = {n: [gate] for n in range(30)}
        runner = await b.run(event_handler(script.handle), concurrency=3)
        await b.append(*(event(n, key=f"k{n}") for n in range(30)))
        await until(lambda: runner.in_flight == 3)
        await turns()
        assert runner.in_flight == 3
        gate.set()
        await b.caught_up()
        assert script.most == 3


async def test_no_more_records_are_held_than_are_read_ahead() -> None:
    async with log_bench(2) as b:
        gate = asyncio.Event()
        script = Script()
        script.plan = {n: [gate] for n in range(100)}
        runner = await b.run(event_handler(script.handle), read_ahead=5)
        await b.append(*(event(n, key=f"k{n}") for n in range(100)))
        await until(lambda: runner.held == 10)
        await turns()
        assert runner.held == 10
        gate.set()
        await b.caught_up()


async def test_paused_nothing_is_started() -> None:
    async with log_bench() as b:
        script = Script()
        runner = await b.run(event_handler(script.handle))
        await turns()
        runner.pause()
        assert not runner.ready
        await b.append(event(0), event(1, key="a"))
        await turns()
        assert script.seen == []
        runner.resume()
        await b.caught_up()
        assert sorted(script.seen) == [0, 1]


async def test_stopping_lets_handlers_finish_and_commits_what_is_done() -> None:
    async with log_bench(1) as b:
        gate = asyncio.Event()
        script = Script()
        script.plan = {0: [gate], 1: [asyncio.Event()]}
        runner = await b.run(event_handler(script.handle), concurrency=2)
        await b.append(*(event(n, key=f"k{n}") for n in range(4)))
        await until(lambda: runner.in_flight == 2)
        stopping = asyncio.ensure_future(runner.stop(5.0))
        await turns()
        gate.set()
        await turns()
        await b.clock.advance(5.0)
        await stopping
        assert (runner.counters.done, await b.lag(), await b.dead()) == (1, 3, [])
        again = Script()
        await b.run(event_handler(again.handle))
        await b.caught_up()
        assert sorted(again.seen) == [1, 2, 3]


async def test_a_lane_that_waits_for_a_retry_keeps_nobody_from_stopping() -> None:
    async with log_bench() as b:
        script = Script()
        script.always[0] = ValueError("x")
        runner = await b.run(event_handler(script.handle))
        await b.append(event(0, key="a"), event(1, key="a"))
        await until(lambda: runner.counters.retried == 1)
        await runner.stop(30.0)
        assert (runner.held, await b.lag(), await b.dead()) == (0, 2, [])


# ---- rebalancing ----


async def test_a_partition_goes_to_another_member_once_its_handlers_finished() -> None:
    async with log_bench(2) as b:
        gate = asyncio.Event()
        mine, theirs = Script(), Script()
        mine.plan = {n: [gate] for n in range(20)}
        first = await b.run(event_handler(mine.handle), concurrency=20)
        await b.append(*(event(n, key=f"k{n}") for n in range(20)))
        await until(lambda: first.in_flight == 20)
        second = await b.run(event_handler(theirs.handle))
        await turns()
        assert not second.ready  # it waits for what the first one does
        gate.set()
        await until(lambda: second.ready)
        await b.caught_up()
        assert (len(mine.seen), theirs.seen) == (20, [])
        assert first.counters.lost == second.counters.lost == 0


async def test_queued_events_of_a_revoked_partition_are_left_to_the_next_member() -> None:
    async with log_bench(2) as b:
        gate = asyncio.Event()
        mine, theirs = Script(), Script()
        mine.plan = {n: [gate] for n in range(40)}
        first = await b.run(event_handler(mine.handle), concurrency=4)
        await b.append(*(event(n, key=f"k{n % 10}") for n in range(40)))
        await until(lambda: first.in_flight == 4 and first.held == 40)
        second = await b.run(event_handler(theirs.handle))
        await until(lambda: first.counters.released > 0)
        gate.set()
        await b.caught_up()
        assert sorted(mine.seen + theirs.seen) == list(range(40))
        assert theirs.seen
        assert second.counters.lost == 0
        _assert_order(mine.seen + theirs.seen, lambda n: n % 10)


async def test_a_retry_in_place_of_a_revoked_partition_is_left_to_the_next_member() -> None:
    async with log_bench(2) as b:
        mine, theirs = Script(), Script()
        mine.always = {n: ValueError("x") for n in range(20)}
        first = await b.run(event_handler(mine.handle), concurrency=30)
        await b.append(*(event(n, key=f"k{n}") for n in range(20)))
        await until(lambda: first.counters.retried == 20)
        second = await b.run(event_handler(theirs.handle))
        await until(lambda: second.ready and theirs.seen)
        await turns()
        revoked = set(theirs.seen)
        await b.clock.advance(1.0)
        assert not revoked & set(mine.seen[20:])


async def test_handlers_of_a_revoked_partition_are_waited_for_only_so_long() -> None:
    async with log_bench(2) as b:
        gate = asyncio.Event()
        mine, theirs = Script(), Script()
        mine.plan = {n: [gate] for n in range(20)}
        first = await b.run(event_handler(mine.handle), concurrency=20, revoke_patience=2.0)
        await b.append(*(event(n, key=f"k{n}") for n in range(20)))
        await until(lambda: first.in_flight == 20)
        second = await b.run(event_handler(theirs.handle))
        await turns()
        await b.clock.advance(2.0)
        await until(lambda: second.ready and theirs.seen)
        gate.set()
        await until(lambda: first.in_flight == 0)
        await b.caught_up()
        assert first.counters.lost == len(theirs.seen) > 0  # finished, but not counted: it was handled twice
        assert first.counters.done + second.counters.done == 20


async def test_a_group_that_is_sent_back_handles_again_what_it_had() -> None:
    async with log_bench(1) as b:
        gate = asyncio.Event()
        script = Script()
        script.plan[2] = [gate]
        runner = await b.run(event_handler(script.handle), concurrency=1)
        await b.append(*(event(n, key=f"k{n}") for n in range(5)))
        await until(lambda: script.seen == [0, 1, 2])
        await b.events.seek(TOPIC, GROUP, Seek(earliest=True))
        await until(lambda: runner.counters.received > 5)
        gate.set()
        await b.caught_up()
        assert script.seen[:3] == [0, 1, 2]
        assert sorted(script.seen[3:]) == [0, 1, 2, 3, 4]
        assert runner.counters.lost == 1


async def test_after_the_backend_was_lost_what_was_not_done_is_read_again_in_order() -> None:
    async with log_bench(1) as b:
        gate = asyncio.Event()
        script = Script()
        script.plan[1] = [gate]
        runner = await b.run(event_handler(script.handle))
        await b.append(*(event(n, key="a") for n in range(4)))
        await until(lambda: script.seen == [0, 1])
        b.events.cut()
        await until(lambda: runner.counters.reopened == 1)
        assert not runner.ready
        await b.clock.advance(1.0)
        await until(lambda: runner.ready)
        await turns()
        assert script.seen == [0, 1]  # the lane waits for the one that still runs
        gate.set()
        await b.caught_up()
        assert script.seen == [0, 1, 1, 2, 3]


async def test_what_killed_its_workers_runs_alone_and_is_buried_at_last() -> None:
    async with log_bench(1) as b:
        script = Script()
        script.plan[0] = [asyncio.Event()] * 9
        runner = await b.run(event_handler(script.handle), lost_limit=2)
        await b.append(event(0, key="a"), *(event(n, key=f"k{n}") for n in range(1, 4)))
        for lost in (1, 2):
            await until(lambda lost=lost: script.seen.count(0) == lost)  # type: ignore[misc]  # a default binds the loop's variable
            b.events.cut()
            await until(lambda lost=lost: runner.counters.reopened == lost)  # type: ignore[misc]  # a default binds the loop's variable
            await b.clock.advance(31.0)  # the first run never ends by itself: at its time limit
        await b.caught_up()
        [letter] = await b.dead()
        assert (letter.envelope.id, letter.reason) == ("m0", "worker_lost")
        assert letter.error == "Its worker ended 2 times while it was handled."
        assert script.seen.count(0) == 2


async def test_a_copy_or_a_dead_letter_that_cannot_be_written_is_tried_until_it_is() -> None:
    async with log_bench(1) as b:
        script = Script()
        script.always = {0: ValueError("x"), 1: Reject("y")}
        runner = await b.run(event_handler(script.handle))
        session = runner._session
        assert session is not None
        consumer: Any = session.consumer
        failures = {"retry": [OSError("a"), OSError("b")], "bury": [OSError("c")]}
        for name in failures:
            setattr(consumer, name, _failing(getattr(consumer, name), failures[name]))
        await b.append(event(0), event(1, key="a"))
        await until(lambda: not failures["bury"] and len(failures["retry"]) == 1)
        assert await b.lag() == 2
        await b.clock.advance(1.0)
        assert numbers(await b.dead()) == ["m1"]
        await b.clock.advance(2.0)
        await b.caught_up()
        assert runner.counters.retried == 1


def _failing(method: Any, failures: list[OSError]) -> Any:
    async def call(record: Record, outcome: Any) -> None:
        if failures:
            raise failures.pop()
        await method(record, outcome)

    return call


# ---- batches ----


class Batches:
    def __init__(self) -> None:
        self.seen: list[list[int]] = []
        self.plan: list[BaseException | None] = []
        self.poison: set[int] = set()

    async def handle(self, jobs: list[Job]) -> None:
        self.seen.append([job.n for job in jobs])
        step = self.plan.pop(0) if self.plan else None
        if step is not None:
            raise step
        if self.poison & {job.n for job in jobs}:
            raise ValueError("poison")


async def test_batches_follow_the_order_of_their_partition() -> None:
    async with log_bench(1) as b:
        batches = Batches()
        await b.run(event_handler(batches.handle, batch=Batch(4, wait=0.2)))
        await b.append(*(event(n, key=f"k{n % 3}") for n in range(10)))
        await until(lambda: len(batches.seen) == 2)
        await b.clock.advance(0.2)
        await b.caught_up()
        assert batches.seen == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


async def test_a_keyed_batch_stops_at_its_first_failure_and_goes_on_with_it() -> None:
    async with log_bench(1) as b:
        batches = Batches()
        batches.plan = [BatchFailed({1: ValueError("x")})]
        runner = await b.run(event_handler(batches.handle, batch=Batch(4, wait=0.2)))
        await b.append(*(event(n, key="a") for n in range(4)))
        await until(lambda: runner.counters.retried == 1)
        assert runner.counters.done == 1
        await b.clock.advance(1.0)
        await b.caught_up()
        assert batches.seen == [[0, 1, 2, 3], [1], [2], [3]]


async def test_one_poison_of_a_keyed_batch_dies_alone_and_in_order() -> None:
    async with log_bench(1) as b:
        batches = Batches()
        batches.poison = {2}
        runner = await b.run(event_handler(batches.handle, batch=Batch(4, wait=0.2)))
        await b.append(*(event(n, key="a") for n in range(4)))
        for _ in range(8):
            await b.clock.advance(4.0)
        await b.caught_up()
        assert numbers(await b.dead()) == ["m2"]
        assert runner.counters.done == 3
        assert [batch[0] for batch in batches.seen[1:] if len(batch) == 1] == [0, 1, 2, 2, 2, 3]


async def test_of_a_batch_without_keys_only_what_failed_is_tried_again() -> None:
    async with log_bench(1) as b:
        batches = Batches()
        batches.plan = [BatchFailed({0: ValueError("x"), 2: Reject("never")})]
        runner = await b.run(event_handler(batches.handle, batch=Batch(3)))
        await b.append(*(event(n) for n in range(3)))
        await b.caught_up()
        assert runner.counters.done == 1
        await b.clock.advance(1.0)
        await until(lambda: runner.counters.done == 2)
        assert batches.seen == [[0, 1, 2], [0]]
        assert numbers(await b.dead()) == ["m2"]


# ---- put together wrongly ----


async def test_wrong_declarations_are_told() -> None:
    async with log_bench() as b:
        with pytest.raises(SetupError) as raised:
            LogRunner(b.events, [TOPIC], GROUP, [])
        assert str(raised.value) == (
            "The group 'warehouse' of 'shop.orders' cannot be consumed: there is no handler for any of its messages."
        )
        runner = LogRunner(b.events, ["nowhere"], GROUP, [event_handler(Script().handle)], clock=b.clock)
        with pytest.raises(SetupError):
            await runner.start()


async def test_a_log_that_is_away_at_the_start_is_waited_for() -> None:
    async with log_bench() as b:
        opening = b.events.consumer

        async def away(*arguments: Any, **options: Any) -> Any:
            if b.clock.monotonic() < 1002.0:
                raise BackendLost("gone")
            return await opening(*arguments, **options)

        b.events.consumer = away  # type: ignore[method-assign]  # replaced for the test
        script = Script()
        runner = await b.run(event_handler(script.handle))
        await b.append(event(0))
        assert not runner.ready
        await b.clock.advance(5.0)
        await b.caught_up()
        assert script.seen == [0]


def _assert_order(seen: list[int], key: Any) -> None:
    """First effects of each key are in the order in which they were appended."""
    by_key: dict[Any, list[int]] = defaultdict(list)
    for n in seen:
        if n not in by_key[key(n)]:
            by_key[key(n)].append(n)
    for found in by_key.values():
        assert found == sorted(found)
