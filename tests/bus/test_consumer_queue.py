"""QueueRunner: what becomes of the messages of a queue, over the memory backend and a clock by hand."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from collections.abc import Sequence
from typing import Any

import pytest
from consumer_support import JOB, QUEUE, Job, Script, bench, envelope, handling, numbers, turns, until

from polywire.bus.consumer import Alone, QueueRunner
from polywire.bus.core import Bury, Delivery, Envelope, Settlement
from polywire.bus.core.inbox import UnderWay, under_way
from polywire.context import current
from polywire.contract.event import Batch, Where
from polywire.contract.retry import Backoff
from polywire.errors import (
    AlreadyDone,
    BackendLost,
    BackendUnreachable,
    BatchFailed,
    Reject,
    RetryLater,
    SetupError,
)

TRACE = "00-" + "a" * 32 + "-" + "b" * 16 + "-01"


async def test_what_was_handled_is_acknowledged_and_counted() -> None:
    async with bench() as b:
        script = Script()
        runner = await b.run(handling(script.handle))
        await b.send(*(envelope(n) for n in range(20)))
        await b.empty()
        assert sorted(script.seen) == list(range(20))
        counters = runner.counters
        assert (counters.received, counters.started, counters.done, counters.dead) == (20, 20, 20, 0)
        assert (runner.in_flight, runner.held) == (0, 0)


async def test_a_failure_is_tried_again_after_full_jitter_and_given_up_in_the_last_attempt() -> None:
    async with bench() as b:
        script = Script()
        script.always[1] = ValueError("card expired")
        runner = await b.run(handling(script.handle))
        await b.send(envelope(1))
        await until(lambda: runner.counters.retried == 1)
        await b.clock.advance(1.0)  # at most base * 2**0
        await until(lambda: runner.counters.retried == 2)
        await b.clock.advance(2.0)  # at most base * 2**1
        await b.empty()
        [letter] = await b.dead()
        assert script.seen == [1, 1, 1]
        assert (letter.reason, letter.error, letter.attempts) == ("attempts", "ValueError: card expired", 3)
        assert runner.counters.buried == {"attempts": 1}


async def test_a_handler_may_say_when_to_try_again_and_when_never() -> None:
    async with bench() as b:
        script = Script()
        script.plan[1] = [RetryLater("busy", after=77.0)]
        script.plan[2] = [Reject("no such order")]
        runner = await b.run(handling(script.handle))
        await b.send(envelope(1), envelope(2))
        await until(lambda: runner.counters.dead and runner.counters.retried)
        await b.clock.advance(76.9)
        assert script.seen == [1, 2]
        await b.clock.advance(0.2)
        await b.empty()
        assert script.seen == [1, 2, 1]
        [letter] = await b.dead()
        assert (letter.reason, letter.error) == ("rejected", "no such order")


async def test_the_policy_says_which_errors_are_worth_another_attempt() -> None:
    async with bench() as b:
        script = Script()
        script.plan[1] = [KeyError("x")]
        script.plan[2] = [ConnectionError("gone")]
        script.plan[3] = [FileNotFoundError("never")]
        backoff = Backoff(attempts=3, base=0.0, cap=0.0, retry_on=(OSError,), give_up_on=(FileNotFoundError,))
        await b.run(handling(script.handle, backoff=backoff))
        await b.send(envelope(1), envelope(2), envelope(3))
        await b.empty()
        assert sorted(script.seen) == [1, 2, 2, 3]
        assert {(x.envelope.id, x.reason, x.error) for x in await b.dead()} == {
            ("m1", "rejected", "KeyError: 'x'"),
            ("m3", "rejected", "FileNotFoundError: never"),
        }


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (envelope(1, body=b"{"), "The body is no "),
        (envelope(1, body=b'{"n":"x"}'), "n: expected `int`, got `str`"),
        (envelope(1, content_type="text/xml"), "The body has the content type 'text/xml', which is not read. Send "),
    ],
)
async def test_what_cannot_be_decoded_is_buried_at_once(sent: Envelope, error: str) -> None:
    async with bench() as b:
        script = Script()
        await b.run(handling(script.handle))
        await b.send(sent)
        await b.empty()
        [letter] = await b.dead()
        assert (letter.reason, letter.attempts, script.seen) == ("undecodable", 1, [])
        assert error in letter.error


async def test_bytes_without_an_envelope_are_buried_as_undecodable() -> None:
    async with bench() as b:
        await b.run(handling(Script().handle))
        b.queue.inject(QUEUE, b"\xff not msgpack")
        await b.empty()
        [letter] = await b.dead()
        assert letter.reason == "undecodable"
        assert letter.error.startswith("The message is no polywire envelope: ")


async def test_both_forms_of_a_body_are_read() -> None:
    async with bench() as b:
        script = Script()
        await b.run(handling(script.handle))
        await b.send(envelope(1, content_type="application/json; charset=utf-8"))
        await b.send(envelope(2, body=b"\x08\x02", content_type="application/protobuf"))
        await b.empty()
        assert sorted(script.seen) == [1, 2]


async def test_what_has_expired_is_not_handled() -> None:
    async with bench() as b:
        script = Script()
        gate = asyncio.Event()
        script.plan[1] = [gate]
        await b.run(handling(script.handle), concurrency=1)
        await b.send(envelope(1), envelope(2, expires=b.clock.time() + 5.0))
        await until(lambda: script.seen == [1])
        await b.clock.advance(6.0)
        gate.set()
        await b.empty()
        [letter] = await b.dead()
        assert (letter.envelope.id, letter.reason) == ("m2", "expired")
        assert letter.error == "No handler had started 1 s after it expired."
        assert letter.attempts == 0


async def test_a_task_that_nobody_knows_waits_for_somebody_who_does_and_is_buried_after_an_hour() -> None:
    async with bench() as b:
        runner = await b.run(handling(Script().handle))
        await b.send(envelope(1, type="shop.v1.Jobs/New"))
        await until(lambda: runner.counters.released == 1)
        assert await b.dead() == []
        await b.clock.advance(3590.0)
        assert await b.dead() == []
        await b.clock.advance(30.0)
        await b.empty()
        [letter] = await b.dead()
        assert (letter.reason, letter.attempts) == ("unknown_type", 0)
        assert letter.error == (
            "No handler of the queue 'shop.v1.Jobs' knew 'shop.v1.Jobs/New', version 1, for 3600 s."
        )


async def test_a_task_that_was_unknown_is_handled_by_a_newer_worker() -> None:
    async with bench() as b:
        old = await b.run(handling(Script().handle))
        await b.send(envelope(1, type="shop.v1.Jobs/New"))
        await until(lambda: old.counters.released == 1)
        await old.stop(0.0)
        script = Script()
        await b.run(handling(script.handle, type="shop.v1.Jobs/New"))
        await b.clock.advance(10.0)
        await b.empty()
        assert script.seen == [1]


async def test_a_group_skips_events_that_it_does_not_declare_or_want() -> None:
    async with bench() as b:
        script = Script()
        runner = await b.run(handling(script.handle, where=Where(headers={"tenant": "a"})), group="warehouse")
        await b.send(envelope(1, type="shop.Other"), envelope(2), envelope(3, headers={"tenant": "a"}))
        await b.empty()
        assert script.seen == [3]
        assert (runner.counters.skipped, runner.counters.dead) == (2, 0)


async def test_an_event_of_a_newer_version_waits_for_somebody_who_understands_it() -> None:
    async with bench() as b:
        script = Script()
        runner = await b.run(handling(script.handle, versions={JOB: 2}), group="warehouse")
        await b.send(envelope(1, version=2), envelope(2, version=3))
        await until(lambda: runner.counters.released == 1 and runner.counters.done == 1)
        assert script.seen == [1]


async def test_no_more_handlers_run_and_no_more_messages_are_held_than_allowed() -> None:
    async with bench() as b:
        script = Script()
        gate = asyncio.Event()
        script.plan = {n: [gate] for n in range(50)}
        runner = await b.run(handling(script.handle), concurrency=4, prefetch=3)
        runner.runs.average = 0.0  # handlers are known to be quick
        await b.send(*(envelope(n) for n in range(50)))
        await until(lambda: runner.in_flight == 4)
        await turns()
        assert (runner.in_flight, script.most) == (4, 4)
        assert (await b.queue.stats(QUEUE)).in_flight == runner.held <= 7
        gate.set()
        await b.empty()
        assert (script.most, len(script.seen)) == (4, 50)


async def test_where_handlers_take_long_nothing_is_held_that_another_worker_could_start() -> None:
    async with bench() as b:
        script = Script()
        gate = asyncio.Event()
        script.plan = {n: [gate] for n in range(10)}
        runner = await b.run(handling(script.handle), concurrency=2, prefetch=8)
        await b.send(*(envelope(n) for n in range(10)))
        await until(lambda: runner.in_flight == 2)
        await turns()
        assert runner.held == 2
        gate.set()
        await b.empty()


async def test_a_handling_may_run_fewer_at_a_time_than_its_queue() -> None:
    async with bench() as b:
        slow, quick = Script(), Script()
        gate = asyncio.Event()
        slow.plan = {n: [gate] for n in range(3)}
        await b.run(
            handling(slow.handle, concurrency=1, name="slow"), handling(quick.handle, type="quick", name="quick")
        )
        await b.send(*(envelope(n) for n in range(3)), *(envelope(n, type="quick") for n in range(10, 15)))
        await until(lambda: len(quick.seen) == 5)
        assert slow.seen == [0]
        gate.set()
        await b.empty()
        assert (slow.seen, slow.most) == ([0, 1, 2], 1)


async def test_starts_per_second_are_bounded() -> None:
    async with bench() as b:
        script = Script()
        await b.run(handling(script.handle), rate=2.0)
        await b.send(*(envelope(n) for n in range(5)))
        await turns()
        assert len(script.seen) == 1
        for count in (2, 3, 4, 5):
            await b.clock.advance(0.5)
            assert len(script.seen) == count
        await b.empty()


async def test_paused_nothing_is_started_and_what_was_held_is_given_back_unharmed() -> None:
    async with bench() as b:
        script = Script()
        gate = asyncio.Event()
        script.plan[0] = [gate]
        runner = await b.run(handling(script.handle), concurrency=1, prefetch=5)
        runner.runs.average = 0.0
        await b.send(*(envelope(n) for n in range(4)))
        await until(lambda: script.seen == [0] and runner.held > 1)
        runner.pause()
        assert not runner.ready
        assert runner.paused
        gate.set()
        await until(lambda: runner.held == 0)
        await turns()
        assert script.seen == [0]
        assert (await b.queue.stats(QUEUE)).ready == 3
        runner.resume()
        assert runner.ready
        await b.empty()
        assert script.seen == [0, 1, 2, 3]
        assert runner.counters.retried == 0


async def test_stopping_lets_handlers_finish_and_gives_back_the_rest_without_an_attempt() -> None:
    async with bench() as b:
        script = Script()
        gate = asyncio.Event()
        script.plan = {0: [gate], 1: [asyncio.Event()]}
        runner = await b.run(handling(script.handle), concurrency=2, prefetch=5)
        runner.runs.average = 0.0
        await b.send(*(envelope(n) for n in range(6)))
        await until(lambda: runner.held > 2)
        stopping = asyncio.ensure_future(runner.stop(10.0))
        await turns()
        assert not stopping.done()
        gate.set()
        await turns()
        await b.clock.advance(10.0)  # the other one never ends
        await stopping
        assert runner.counters.done == 1
        assert runner.counters.dead == runner.counters.retried == 0
        again = Script()
        attempts: list[int] = []

        async def count(job: Job) -> None:
            attempts.append(current().attempt)
            await again(job)

        await b.run(handling(count))
        await b.empty()
        assert sorted(again.seen) == [1, 2, 3, 4, 5]
        assert attempts == [1] * 5
        await runner.stop()  # twice is fine


async def test_a_handler_whose_message_is_taken_back_is_told_by_cancellation_and_nothing_comes_of_it() -> None:
    async with bench() as b:
        begun: list[int] = []
        ended: list[str] = []

        async def handle(job: Job) -> None:
            call = current()
            begun.append(job.n)
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                ended.append(f"{job.n} {call.ended_by}")
                if job.n == 2:
                    raise RuntimeError("interrupted") from None
                if job.n == 1:
                    raise

        runner = await b.run(handling(handle))
        await b.send(*(envelope(n) for n in range(4)))
        await until(lambda: len(begun) == 4)
        for n in range(3):
            assert await b.queue.withdraw(QUEUE, f"m{n}")
        await until(lambda: runner.in_flight == 1)
        await turns()
        assert sorted(ended) == ["0 withdrawn", "1 withdrawn", "2 withdrawn"]
        assert (runner.counters.retried, runner.counters.dead, await b.dead(), await b.left()) == (0, 0, [], 1)


async def test_a_message_that_is_taken_back_before_its_start_is_not_handled() -> None:
    async with bench() as b:
        script = Script()
        gate = asyncio.Event()
        script.plan[0] = [gate]
        runner = await b.run(handling(script.handle), concurrency=1, prefetch=5)
        runner.runs.average = 0.0
        await b.send(*(envelope(n) for n in range(3)))
        await until(lambda: runner.held == 3)
        assert await b.queue.withdraw(QUEUE, "m1")
        gate.set()
        await b.empty()
        await turns()
        assert (script.seen, runner.held) == ([0, 2], 0)


async def test_a_handler_that_turns_the_cancellation_of_a_shutdown_into_an_error_did_not_fail() -> None:
    async with bench() as b:

        async def stubborn(job: Job) -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise RuntimeError("interrupted") from None

        runner = await b.run(handling(stubborn))
        await b.send(envelope(1))
        await until(lambda: runner.in_flight == 1)
        await runner.stop(0.0)
        assert (runner.counters.released, runner.counters.retried, await b.dead()) == (1, 0, [])
        assert (await b.queue.stats(QUEUE)).ready == 1


async def test_a_handler_that_cancels_itself_did_not_fail_and_is_not_done() -> None:
    async with bench() as b:
        script = Script()
        script.plan[1] = [asyncio.CancelledError()]
        runner = await b.run(handling(script.handle))
        await b.send(envelope(1))
        await until(lambda: runner.counters.released == 1)
        await b.clock.advance(1.0)
        await b.empty()
        assert (script.seen, runner.counters.done, runner.counters.retried) == ([1, 1], 1, 0)


async def test_at_its_time_limit_a_handler_is_cancelled_and_that_counts_as_a_failure() -> None:
    async with bench() as b:
        script = Script()
        script.plan[1] = [asyncio.Event()] * 3
        runner = await b.run(handling(script.handle, timeout=5.0, backoff=Backoff(attempts=2, base=1.0, cap=1.0)))
        await b.send(envelope(1))
        await until(lambda: runner.in_flight == 1)
        await b.clock.advance(4.9)
        assert runner.in_flight == 1
        await b.clock.advance(0.2)
        assert runner.counters.retried == 1
        await b.clock.advance(1.0)
        await until(lambda: runner.in_flight == 1)
        await b.clock.advance(5.1)
        await b.empty()
        [letter] = await b.dead()
        assert letter.reason == "attempts"
        assert letter.error == ("Jobs.do was stopped at its time limit of 5 s. It may have done part of its work.")


async def test_a_handler_may_ask_for_more_time() -> None:
    async with bench() as b:
        gate = asyncio.Event()

        async def slow(job: Job) -> None:
            call = current()
            assert call.message is not None
            call.message.extend(10.0)
            assert call.time_left() == 15.0
            await gate.wait()

        runner = await b.run(handling(slow, timeout=5.0))
        await b.send(envelope(1))
        await until(lambda: runner.in_flight == 1)
        await b.clock.advance(14.0)
        gate.set()
        await b.empty()
        assert (runner.counters.done, runner.counters.retried) == (1, 0)


async def test_a_handler_knows_its_message() -> None:
    async with bench() as b:
        found: list[Any] = []

        async def look(job: Job) -> None:
            call = current()
            message = call.message
            assert message is not None
            found.append((call.method, call.request_id, call.traceparent, call.tracestate, call.attempt, call.wire))
            found.append((message.id, message.attempt, message.key, message.published_at, dict(message.headers)))
            found.append((call.time_left(), call.peer, call.caller, call.principal, bool(message.position)))
            [way] = under_way()
            found.append((way.group, way.source, way.id, way.generation))
            with pytest.raises(ValueError, match=r"extend\(-1\): it is a positive number of seconds\."):
                message.extend(-1)

        await b.run(handling(look))
        await b.send(
            envelope(
                5, key="k", time=123.0, headers={"tenant": "a"}, request_id="r1", traceparent=TRACE, tracestate="x=1",
                principal="mallory",
            )
        )  # fmt: skip
        await b.send(envelope(6, traceparent="nonsense", tracestate="x=1"))
        await b.empty()
        assert found[:4] == [
            (JOB, "r1", TRACE, "x=1", 1, "tasks"),
            ("m5", 1, "k", 123.0, {"tenant": "a"}),
            (30.0, "", None, None, True),
            (QUEUE, "shop", "m5", 0),
        ]
        method, request_id, traceparent, tracestate, _, _ = found[4]
        assert (method, traceparent, tracestate, bool(request_id)) == (JOB, None, None, True)


async def test_what_a_handler_leaves_in_its_context_meets_no_other_message() -> None:
    async with bench() as b:
        seen: list[str] = []

        async def look(job: Job) -> None:
            message = current().message
            assert message is not None
            await asyncio.sleep(0)
            assert current().message is message
            seen.append(message.id)

        await b.run(handling(look))
        await b.send(*(envelope(n) for n in range(30)))
        await b.empty()
        assert sorted(seen) == sorted(f"m{n}" for n in range(30))
        with pytest.raises(LookupError):
            current()


async def test_an_error_is_kept_bounded_and_fit_to_be_stored(caplog: pytest.LogCaptureFixture) -> None:
    # Its traceback has the lone surrogate, which a test run of several processes cannot hand on.
    caplog.set_level(logging.CRITICAL, logger="polywire.consumer")

    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    async with bench() as b:
        script = Script()
        script.always = {1: ValueError("x" * 9000), 2: ValueError("bad \udc80 \x00"), 3: Broken(), 4: KeyError()}
        await b.run(handling(script.handle, backoff=Backoff(attempts=1, base=0, cap=0)))
        await b.send(*(envelope(n) for n in range(1, 5)))
        await b.empty()
        errors = {letter.envelope.id: letter.error for letter in await b.dead()}
        assert len(errors["m1"]) == 2000
        assert errors["m1"].endswith("xxx...")
        assert errors["m2"] == "ValueError: bad ? \\0"
        assert errors["m3"] == "Broken: (its text could not be made)"
        assert errors["m4"] == "KeyError"


# ---- threads ----


async def test_a_plain_function_runs_in_a_thread_with_its_context() -> None:
    async with bench() as b:
        found: list[Any] = []

        def blocking(job: Job) -> None:
            message = current().message
            assert message is not None
            found.append((job.n, message.id, threading.current_thread() is threading.main_thread()))
            if job.n == 2:
                raise ValueError("no")

        await b.run(handling(blocking, backoff=Backoff(attempts=1, base=0, cap=0)))
        await b.send(envelope(1), envelope(2))
        await b.empty()
        assert sorted(found) == [(1, "m1", False), (2, "m2", False)]
        assert [letter.error for letter in await b.dead()] == ["ValueError: no"]


async def test_a_thread_beyond_its_time_limit_is_reported_and_its_message_held_until_it_returns(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with bench() as b:
        gate = threading.Event()
        runner = await b.run(handling(lambda job: gate.wait(20.0), timeout=5.0))
        await b.send(envelope(1))
        await until(lambda: runner.in_flight == 1)
        await b.clock.advance(6.0)
        await until(lambda: runner.counters.overdue == 1)
        assert (runner.in_flight, runner.held, runner.counters.retried) == (1, 1, 0)
        gate.set()
        await until(lambda: runner.counters.done == 1)
        assert caplog.messages == [
            "Jobs.do runs in a thread beyond its time limit of 5 s and cannot be stopped; its message is held until it "
            "returns (id m1)"
        ]


async def test_a_thread_that_does_not_return_keeps_nobody_from_stopping() -> None:
    async with bench() as b:
        gate = threading.Event()
        runner = await b.run(handling(lambda job: gate.wait(20.0)))
        await b.send(envelope(1))
        await until(lambda: runner.in_flight == 1)
        await runner.stop(0.0)
        assert (runner.counters.released, await b.dead()) == (1, [])
        gate.set()


async def test_a_thread_may_ask_for_more_time() -> None:
    async with bench() as b:
        gate, asked = threading.Event(), threading.Event()

        def slow(job: Job) -> None:
            message = current().message
            assert message is not None
            message.extend(10.0)
            asked.set()
            gate.wait(20.0)

        runner = await b.run(handling(slow, timeout=5.0))
        await b.send(envelope(1))
        await until(asked.is_set)
        await b.clock.advance(14.0)
        assert runner.counters.overdue == 0
        gate.set()
        await until(lambda: runner.counters.done == 1)


def test_an_async_handler_cannot_be_told_to_run_in_a_thread() -> None:
    with pytest.raises(SetupError) as raised:
        handling(Script().handle, runs_in="thread")
    assert str(raised.value) == (
        "Jobs.do cannot be run in a thread: it is declared `async def`, which belongs to the event loop. "
        "Declare it `def`, or leave out runs_in='thread'."
    )


# ---- inbox, once, at most once ----


class MemoryInbox:
    def __init__(self) -> None:
        self.rows: set[tuple[str, str, str, int]] = set()
        self.recorded = 0

    @staticmethod
    def _row(message: UnderWay) -> tuple[str, str, str, int]:
        return message.group, message.source, message.id, message.generation

    async def seen(self, message: UnderWay) -> bool:
        return self._row(message) in self.rows

    async def record(self, message: UnderWay) -> None:
        self.recorded += 1
        self.rows.add(self._row(message))

    def transaction(self) -> None:
        """What a store does for the first transaction of a handler."""
        [message] = under_way()
        if self._row(message) in self.rows:
            raise AlreadyDone("the inbox has it")
        self.rows.add(self._row(message))
        message.recorded = True


async def test_once_means_that_what_the_inbox_has_is_not_handled_again() -> None:
    async with bench() as b:
        inbox, script = MemoryInbox(), Script()
        runner = await b.run(handling(script.handle, once=True), inbox=inbox)
        await b.send(envelope(1))
        await b.empty()
        await b.clock.advance(1000.0)  # beyond what the backend remembers by itself
        await b.send(envelope(1), envelope(2))
        await b.empty()
        assert script.seen == [1, 2]
        assert (runner.counters.done, runner.counters.duplicates, inbox.recorded) == (3, 1, 2)


async def test_a_transaction_writes_the_row_and_one_that_finds_it_is_acknowledged() -> None:
    async with bench() as b:
        inbox = MemoryInbox()
        effects: list[int] = []

        async def handle(job: Job) -> None:
            inbox.transaction()
            effects.append(job.n)

        runner = await b.run(handling(handle), inbox=inbox)
        await b.send(envelope(1))
        await b.empty()
        await b.clock.advance(1000.0)
        await b.send(envelope(1))
        await b.empty()
        assert (effects, runner.counters.duplicates, await b.dead()) == ([1], 1, [])


async def test_with_once_the_row_of_a_transaction_is_not_written_a_second_time() -> None:
    async with bench() as b:
        inbox = MemoryInbox()

        async def handle(job: Job) -> None:
            inbox.transaction()

        await b.run(handling(handle, once=True), inbox=inbox)
        await b.send(envelope(1))
        await b.empty()
        assert (len(inbox.rows), inbox.recorded) == (1, 0)


async def test_once_without_an_inbox_is_refused() -> None:
    async with bench() as b:
        with pytest.raises(SetupError) as raised:
            await b.run(handling(Script().handle, once=True))
        assert str(raised.value) == (
            "Jobs.do cannot be run: it is once=True, but there is no inbox. Give the app a store."
        )


async def test_at_most_once_is_acknowledged_before_the_handler_runs() -> None:
    async with bench() as b:
        left: list[int] = []

        async def handle(job: Job) -> None:
            left.append(await b.left())
            if job.n == 2:
                raise ValueError("lost")

        once = Backoff(attempts=1, base=0.0, cap=0.0)
        runner = await b.run(handling(handle, at_most_once=True, backoff=once), concurrency=1)
        await b.send(envelope(1), envelope(2))
        await until(lambda: len(left) == 2 and not runner.in_flight)
        assert left[1] == 0
        assert await b.dead() == []
        assert (runner.counters.done, runner.counters.dropped, runner.counters.retried) == (1, 1, 0)


# ---- suspects, lost workers ----


async def test_what_was_under_way_when_a_worker_died_runs_alone() -> None:
    async with bench(lost_limit=9) as b:
        script = Script()
        gate = asyncio.Event()
        script.plan = {n: [asyncio.Event()] for n in range(3)}
        first = await b.run(handling(script.handle), concurrency=3)
        await b.send(*(envelope(n) for n in range(3)))
        await until(lambda: first.in_flight == 3)
        first.pause()
        b.queue.cut()
        script.plan = {}
        alone: list[tuple[int, int]] = []

        async def watch(job: Job) -> None:
            script.running += 1
            await turns(5)
            alone.append((job.n, script.running))
            script.running -= 1

        script.running = 0
        second = await b.run(handling(watch), concurrency=8)
        await b.send(*(envelope(n) for n in range(10, 15)))
        gate.set()
        await until(lambda: second.counters.done + first.counters.done >= 8 or len(alone) >= 8)
        suspects = [running for n, running in alone if n < 3]
        assert suspects == [1, 1, 1]


async def test_suspects_of_all_runners_of_a_process_run_one_at_a_time() -> None:
    async with bench(lost_limit=9) as b:
        alone = Alone(b.clock)
        gate = asyncio.Event()
        woken: list[str] = []
        alone.listen(lambda: woken.append("rung"))

        def first() -> None:
            woken.append("first")

        def second() -> None:
            woken.append("second")

        alone.running = 1
        assert not alone.claim(first)
        assert not alone.open
        alone.running = 0
        alone.ended()
        assert alone.claim(first)
        alone.running = 1
        assert not alone.claim(second)
        alone.running = 0
        assert not alone.claim(second)  # the first one has not left
        alone.leave(first)
        assert alone.claim(second)
        alone.leave(second)
        assert alone.open
        gate.set()


async def test_a_suspect_waits_for_others_only_so_long() -> None:
    async with bench() as b:
        alone = Alone(b.clock, patience=30.0)

        def wake() -> None:
            """Not needed here."""

        alone.running = 1  # a handler that takes an hour
        assert not alone.claim(wake)
        await b.clock.advance(29.0)
        assert not alone.claim(wake)
        await b.clock.advance(1.0)
        assert alone.claim(wake)


async def test_what_killed_its_workers_too_often_is_buried_without_another_start() -> None:
    async with bench(lost_limit=9) as b:
        script = Script()
        script.plan[1] = [asyncio.Event()] * 2
        for _ in range(2):
            runner = await b.run(handling(script.handle), lost_limit=2)
            if not script.seen:
                await b.send(envelope(1))
            await until(lambda runner=runner: runner.in_flight == 1)  # type: ignore[misc]  # a default binds the loop's variable
            b.queue.cut()
            await until(lambda runner=runner: runner.counters.reopened == 1)  # type: ignore[misc]  # a default binds the loop's variable
            await runner.stop(0.0)
        assert script.seen == [1, 1]
        await b.run(handling(script.handle), lost_limit=2)
        await b.empty()
        [letter] = await b.dead()
        assert (letter.reason, letter.error) == ("worker_lost", "Its worker ended 2 times while it was handled.")
        assert script.seen == [1, 1]


# ---- a backend that goes away ----


async def test_a_lost_backend_is_waited_for_and_what_was_held_is_not_settled() -> None:
    async with bench() as b:
        script = Script()
        gate = asyncio.Event()
        script.plan[1] = [gate]
        runner = await b.run(handling(script.handle))
        await b.send(envelope(1))
        await until(lambda: runner.in_flight == 1)
        b.queue.cut()
        await until(lambda: runner.counters.reopened == 1)
        assert not runner.ready
        assert runner.in_flight == 1
        gate.set()  # it finishes, but its message is somebody else's
        await until(lambda: runner.in_flight == 0)
        assert (runner.counters.lost, runner.counters.done, await b.left()) == (1, 0, 1)
        await b.clock.advance(1.0)
        assert runner.ready
        await b.empty()
        assert (script.seen, runner.counters.done) == ([1, 1], 1)


async def test_a_backend_that_is_away_at_the_start_is_waited_for_with_growing_pauses(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with bench() as b:
        asked: list[float] = []
        open_really = b.queue.consumer

        async def refuse(queue: str, *, limit: int) -> Any:
            asked.append(b.clock.monotonic())
            if len(asked) <= 6:
                raise BackendUnreachable("'amqp://x' does not answer.")
            return await open_really(queue, limit=limit)

        b.queue.consumer = refuse  # type: ignore[method-assign]  # replaced for the test
        script = Script()
        runner = await b.run(handling(script.handle))
        await b.send(envelope(1))
        await b.clock.advance(60.0)
        await b.empty()
        pauses = [later - sooner for sooner, later in itertools.pairwise(asked)]
        assert all(0.1 * 2**n <= pause <= 0.2 * 2**n + 1e-9 for n, pause in enumerate(pauses))
        assert runner.ready
        assert caplog.messages[0] == (
            "The queue 'shop.v1.Jobs' is not consumed at the moment, and it is tried again: 'amqp://x' does not answer."
        )


async def test_a_fault_of_the_backend_that_nobody_expected_does_not_end_the_runner() -> None:
    async with bench() as b:
        script = Script()
        runner = await b.run(handling(script.handle))
        session = runner._session
        assert session is not None
        settle = session.consumer.settle
        failures = [OSError("disk full")]

        async def fail(settlements: Any, starting: Any = ()) -> Any:
            if failures:
                raise failures.pop()
            return await settle(settlements, starting)

        session.consumer.settle = fail  # type: ignore[method-assign]  # replaced for the test
        await b.send(envelope(1))
        await until(lambda: runner.counters.reopened == 1)
        await b.clock.advance(1.0)
        await b.empty()
        assert script.seen == [1]


async def test_stopping_while_the_backend_is_away_ends() -> None:
    async with bench() as b:
        runner = await b.run(handling(Script().handle))
        await turns()

        async def away(queue: str, *, limit: int) -> Any:
            raise BackendLost("gone")

        b.queue.consumer = away  # type: ignore[method-assign]  # replaced for the test
        b.queue.cut()
        await until(lambda: runner.counters.reopened == 1)
        await runner.stop(5.0)
        assert runner.in_flight == 0


async def test_a_queue_that_was_never_declared_is_told_at_the_start() -> None:
    async with bench() as b:
        runner = QueueRunner(b.queue, "nowhere", [handling(Script().handle)], clock=b.clock)
        with pytest.raises(SetupError):
            await runner.start()
        await runner.stop()


async def test_what_is_somebody_elses_when_it_shall_start_is_not_handled() -> None:
    async with bench() as b:
        script = Script()
        runner = await b.run(handling(script.handle), concurrency=1, prefetch=2)
        session = runner._session
        assert session is not None
        settle = session.consumer.settle

        async def lose(settlements: Any, starting: Any = ()) -> Any:
            held = await settle(settlements, starting)
            return [delivery for delivery in held if delivery.envelope.id != "m2"]

        session.consumer.settle = lose  # type: ignore[method-assign]  # replaced for the test
        await b.send(envelope(1), envelope(2), envelope(3))
        await until(lambda: runner.counters.done == 2)
        assert (script.seen, runner.counters.lost) == ([1, 3], 1)


# ---- what finishes together is settled together ----


class Recording(QueueRunner):
    """Remembers each call of settle: ids settled, ids started."""

    calls: list[tuple[list[str], list[str]]]

    async def _open(self) -> Any:
        session = await super()._open()
        self.calls = []
        settle = session.consumer.settle

        async def record(settlements: Sequence[Settlement], starting: Sequence[Delivery] = ()) -> Any:
            self.calls.append(([s.delivery.envelope.id for s in settlements], [d.envelope.id for d in starting]))
            return await settle(settlements, starting)

        session.consumer.settle = record  # type: ignore[method-assign]  # replaced for the test
        return session


async def test_finished_and_new_ones_share_a_call_and_a_lone_one_is_not_delayed() -> None:
    async with bench() as b:
        gate = asyncio.Event()
        script = Script()
        script.plan = {n: [gate] for n in range(4)}
        runner = await b.run(handling(script.handle), make=Recording, concurrency=4, prefetch=4)
        assert isinstance(runner, Recording)
        runner.runs.average = 0.0
        await b.send(*(envelope(n) for n in range(8)))
        await until(lambda: runner.in_flight == 4 and runner.held == 8)
        assert runner.calls == [([], ["m0", "m1", "m2", "m3"])]
        gate.set()
        await b.empty()
        assert runner.calls[1] == (["m0", "m1", "m2", "m3"], ["m4", "m5", "m6", "m7"])
        runner.calls.clear()
        await b.send(envelope(9))
        await b.empty()
        assert runner.calls == [([], ["m9"]), (["m9"], [])]


async def test_a_slow_dead_letter_does_not_hold_up_the_others() -> None:
    async with bench() as b:
        script = Script()
        script.plan[1] = [Reject("no")]
        runner = await b.run(handling(script.handle))
        session = runner._session
        assert session is not None
        settle = session.consumer.settle
        gate = asyncio.Event()

        async def slow(settlements: Any, starting: Any = ()) -> Any:
            if any(isinstance(s.outcome, Bury) for s in settlements):
                await gate.wait()
            return await settle(settlements, starting)

        session.consumer.settle = slow  # type: ignore[method-assign]  # replaced for the test
        await b.send(*(envelope(n) for n in range(1, 20)))
        await until(lambda: runner.counters.done == 18)
        assert await b.left() == 1
        gate.set()
        await b.empty()
        assert numbers(await b.dead()) == ["m1"]


# ---- batches ----


class Batches:
    def __init__(self) -> None:
        self.seen: list[list[int]] = []
        self.plan: list[BaseException | None] = []

    async def handle(self, jobs: list[Job]) -> None:
        self.seen.append([job.n for job in jobs])
        step = self.plan.pop(0) if self.plan else None
        if step is not None:
            raise step


async def test_a_batch_is_handed_over_when_it_is_full_or_has_waited() -> None:
    async with bench() as b:
        batches = Batches()
        await b.run(handling(batches.handle, batch=Batch(3, wait=0.5)))
        await b.send(*(envelope(n) for n in range(7)))
        await until(lambda: len(batches.seen) == 2)
        await b.clock.advance(0.4)
        assert batches.seen == [[0, 1, 2], [3, 4, 5]]
        await b.clock.advance(0.2)
        await b.empty()
        assert batches.seen == [[0, 1, 2], [3, 4, 5], [6]]


async def test_of_a_batch_only_what_failed_is_tried_again_and_then_alone() -> None:
    async with bench() as b:
        batches = Batches()
        batches.plan = [BatchFailed({1: ValueError("x"), 3: Reject("never")})]
        runner = await b.run(handling(batches.handle, batch=Batch(4)))
        await b.send(*(envelope(n) for n in range(4)))
        await until(lambda: runner.counters.done == 2 and runner.counters.retried == 1)
        await b.clock.advance(1.0)
        await b.empty()
        assert batches.seen == [[0, 1, 2, 3], [1]]
        assert numbers(await b.dead()) == ["m3"]


async def test_a_batch_that_fails_as_a_whole_does_not_take_the_innocent_along() -> None:
    async with bench() as b:
        batches = Batches()

        async def poisoned(jobs: list[Job]) -> None:
            batches.seen.append([job.n for job in jobs])
            if any(job.n == 2 for job in jobs):
                raise ValueError("poison")

        runner = await b.run(handling(poisoned, batch=Batch(4)))
        await b.send(*(envelope(n) for n in range(4)))
        await until(lambda: runner.counters.retried == 4)
        for _ in range(4):
            await b.clock.advance(10.0)
        await b.empty()
        assert batches.seen[0] == [0, 1, 2, 3]
        assert all(len(batch) == 1 for batch in batches.seen[1:])
        assert numbers(await b.dead()) == ["m2"]
        assert runner.counters.done == 3


async def test_an_unreadable_message_is_left_out_of_its_batch() -> None:
    async with bench() as b:
        batches = Batches()
        batches.plan = [BatchFailed({1: Reject("this is message 2")})]
        await b.run(handling(batches.handle, batch=Batch(3)))
        await b.send(envelope(0), envelope(1, body=b"{"), envelope(2))
        await b.empty()
        assert batches.seen == [[0, 2]]
        assert {(x.envelope.id, x.reason) for x in await b.dead()} == {("m1", "undecodable"), ("m2", "rejected")}


async def test_a_batch_that_names_an_index_it_has_not_failed_as_a_whole() -> None:
    async with bench() as b:
        batches = Batches()
        batches.plan = [BatchFailed({7: ValueError("x")})]
        runner = await b.run(handling(batches.handle, batch=Batch(2), backoff=Backoff(attempts=1, base=0, cap=0)))
        await b.send(envelope(0), envelope(1))
        await b.empty()
        assert [letter.error for letter in await b.dead()] == [
            "ValueError: Jobs.do raised BatchFailed for the message at index 7, but the batch had 2. "
            "All of it counts as failed."
        ] * 2
        assert runner.counters.done == 0


async def test_a_keyed_batch_stops_at_its_first_failure() -> None:
    async with bench(keyed=True) as b:
        batches = Batches()
        batches.plan = [BatchFailed({1: ValueError("x")})]
        runner = await b.run(handling(batches.handle, batch=Batch(4, wait=0.1)))
        await b.send(*(envelope(n, key=f"k{n}") for n in range(4)))
        await until(lambda: runner.counters.done == 1)
        assert (runner.counters.retried, runner.counters.released) == (1, 2)
        for _ in range(5):
            await b.clock.advance(1.0)
        await b.empty()
        assert batches.seen[0] == [0, 1, 2, 3]
        assert sorted(n for batch in batches.seen[1:] for n in batch) == [1, 2, 3]


async def test_stopping_gives_back_a_batch_that_is_not_full() -> None:
    async with bench() as b:
        batches = Batches()
        runner = await b.run(handling(batches.handle, batch=Batch(10, wait=5.0)))
        await b.send(envelope(0), envelope(1))
        await until(lambda: runner.held == 2)
        await runner.stop(1.0)
        assert (batches.seen, (await b.queue.stats(QUEUE)).ready) == ([], 2)


def test_a_batch_is_not_handed_to_a_process() -> None:
    with pytest.raises(SetupError) as raised:
        handling(Batches().handle, batch=Batch(3), runs_in="process")
    assert str(raised.value) == (
        "Jobs.do cannot be run: a batch is not handed to another process. Leave out batch= or runs_in='process'."
    )


# ---- put together wrongly ----


async def test_wrong_declarations_are_told_when_the_runner_is_made() -> None:
    async with bench() as b:
        with pytest.raises(SetupError) as raised:
            QueueRunner(b.queue, QUEUE, [])
        assert str(raised.value) == (
            "The queue 'shop.v1.Jobs' cannot be consumed: there is no handler for any of its messages."
        )
        with pytest.raises(SetupError) as raised:
            QueueRunner(b.queue, QUEUE, [handling(Script().handle), handling(Script().handle, name="Other.do")])
        assert str(raised.value) == (
            "'shop.v1.Jobs/Do' cannot be consumed: it is handled by both Jobs.do and Other.do. "
            "Give one of them a queue or a group of its own."
        )
        with pytest.raises(SetupError) as raised:
            QueueRunner(b.queue, QUEUE, [handling(Script().handle, on_dead="park_key")])
        assert str(raised.value) == (
            "Jobs.do cannot be consumed from a queue: on_dead='park_key' needs an event log. "
            "Choose on_dead='continue', or a backend that keeps a log."
        )


async def test_each_failure_is_logged_with_what_happens_next(caplog: pytest.LogCaptureFixture) -> None:
    async with bench() as b:
        caplog.set_level(logging.INFO)
        script = Script()
        script.always[1] = ValueError("card expired")
        runner = await b.run(handling(script.handle, backoff=Backoff(attempts=2, base=0.0, cap=0.0)))
        await b.send(envelope(1))
        await b.empty()
        assert runner.counters.dead == 1
        assert caplog.messages == [
            "shop.v1.Jobs/Do failed in attempt 1 of 2 and is tried again in 0 s (id m1): ValueError: card expired",
            "shop.v1.Jobs/Do is given up in attempt 2 of 2 and goes to the dead letters (id m1): "
            "ValueError: card expired",
        ]
