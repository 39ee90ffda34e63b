"""What every policy does around calls, as tests that are the same for every wire."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import re
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from functools import partial
from typing import Any, ClassVar

import pytest
from tests.conformance.instances_support import (
    PATIENCE,
    Answer,
    Ask,
    Desk,
    Running,
    WireName,
    instances,
    outcomes,
    until,
)

from polywire import Balance, Breaker, Bulkhead, Ejection, Fallback, Hedge, Retry, calling
from polywire.channel import CallDefaults
from polywire.context import Call, Calling, _current, calling_or_none
from polywire.contract.policies import Policy
from polywire.errors import (
    CallError,
    ContractError,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)
from polywire.policy.breaker import State
from polywire.policy.levels import Levels
from polywire.policy.window import Tally
from polywire.system.file import parse

QUICK = Breaker(minimum_calls=4, trials=2, open_time=0.05, jitter=0.0, growth=1.0)
SHORT = 0.3
"""Seconds of a deadline that is to pass."""
STEADY = Ejection(enabled=False)
KINDS = ("unary", "stream", "collect")
FAILURES = (Unavailable("mine", reached="no"), ValueError("mine"))


async def ask(desk: Desk, kind: str, text: str = "") -> Answer:
    """One call of that *kind*, of which the first answer is enough."""
    if kind == "unary":
        return await desk.read(Ask(text=text))
    if kind == "collect":
        return await desk.gather(once(text))
    async with aclosing(desk.watch(Ask(text=text))) as answers:  # type: ignore[type-var]  # it is an object with aclose
        return await anext(answers)


async def once(text: str) -> AsyncIterator[Ask]:
    yield Ask(text=text)


async def failing(text: str, failure: Exception) -> AsyncIterator[Ask]:
    yield Ask(text=text)
    raise failure


def breaker_of(running: Running, kind: str) -> Any:
    method = {"unary": "read", "stream": "watch", "collect": "gather"}[kind]
    return running.channel._book.of(rpc_of(method)).breaker


def places_of(running: Running, kind: str) -> Any:
    method = {"unary": "read", "stream": "watch", "collect": "gather"}[kind]
    return running.channel._book.of(rpc_of(method)).places


def rpc_of(method: str) -> Any:
    from polywire.contract import service_of

    return service_of(Desk).rpcs[method]


async def opened(running: Running, kind: str) -> None:
    """Let the breaker open by failing calls."""
    running.first.mode = "internal"
    for _ in range(4):
        with pytest.raises(Internal):
            await ask(running.desk, kind)
    assert breaker_of(running, kind).state is State.OPEN


async def waiting(running: Running, kind: str, count: int, of: int) -> list[asyncio.Task[Answer]]:
    """Of *of* calls those that were let in, *count* of them, and wait for the gate; the rest was refused.

    The breaker may still be open when they come; then they come again.
    """
    running.first.mode = "wait"
    left: list[asyncio.Task[Answer]] = []
    numbers = itertools.count()
    while len(left) < count:
        texts = [f"trial{next(numbers)}" for _ in range(of)]
        calls = [asyncio.ensure_future(ask(running.desk, kind, text)) for text in texts]
        await until(partial(_settled, running, dict(zip(texts, calls, strict=True))))
        left += [call for call in calls if not call.done()]
        assert set(await outcomes([call for call in calls if call.done()])) <= {"unavailable"}
    return left


def _settled(running: Running, calls: dict[str, asyncio.Task[Answer]]) -> bool:
    """Each was refused, or is being handled."""
    return all(call.done() or text in running.first.running for text, call in calls.items())


class PolicySuite:
    """Override *wire*."""

    wire: ClassVar[WireName]

    def running(self, count: int = 1, *policies: Policy | Retry, **others: Any) -> AbstractAsyncContextManager[Running]:
        return instances(self.wire, count, defaults=CallDefaults(policies=policies, **others))

    # ---- breaker ----

    async def test_a_breaker_opens_and_refuses_without_asking(self, kind: str) -> None:
        async with self.running(1, Breaker(minimum_calls=4, open_time=30.0, jitter=0.0)) as running:
            await opened(running, kind)
            with pytest.raises(Unavailable) as caught:
                await ask(running.desk, kind)
            name, method = {
                "unary": ("idempotent methods", "Read"),
                "stream": ("streams", "Watch"),
                "collect": ("streams", "Gather"),
            }[kind]
            told = re.sub(r"another [\d.]+ s", "another T", str(caught.value))
            assert told == (
                f"instances.v1.Desk/{method} was not called: the breaker of {running.channel.target} ({name}) is open "
                "for another T, because 4 of 4 calls failed. See to what is wrong there, or declare `Fallback(...)` to "
                "answer without it."
            )
            assert (caught.value.reached, caught.value.attempts) == ("no", 1)
            assert running.seen == 4
            assert running.channel.counters[f"instances.v1.Desk/{method}"].refused == 1

    async def test_half_open_exactly_so_many_calls_come_through_and_then_it_closes(self, kind: str) -> None:
        async with self.running(1, QUICK) as running:
            await opened(running, kind)
            trials = await waiting(running, kind, 2, of=10)
            assert len(trials) == 2
            assert running.seen == 4 + 2
            with pytest.raises(Unavailable):
                await ask(running.desk, kind)
            running.first.gate.set()
            assert await outcomes(trials) == ["ok", "ok"]
            assert breaker_of(running, kind).state is State.CLOSED
            assert (await ask(running.desk, kind)).instance == 0

    async def test_a_cancelled_trial_leaves_its_permit_to_the_next_call(self, kind: str) -> None:
        async with self.running(1, QUICK) as running:
            await opened(running, kind)
            trials = await waiting(running, kind, 2, of=2)
            for trial in trials:
                trial.cancel()
            await asyncio.wait(trials)
            assert breaker_of(running, kind).state is State.HALF_OPEN
            running.first.mode = "answer"
            for _ in range(2):
                await ask(running.desk, kind)
            assert breaker_of(running, kind).state is State.CLOSED

    async def test_a_trial_that_is_cancelled_while_it_waits_for_a_place_leaves_its_permit(self) -> None:
        one_trial = Breaker(minimum_calls=4, trials=1, open_time=0.05, jitter=0.0)
        async with self.running(1, one_trial, Bulkhead(limit=1)) as running:
            await opened(running, "unary")
            running.first.mode = "hang"
            with calling(Breaker(enabled=False)):
                holder = asyncio.ensure_future(running.desk.read(Ask(text="holder")))
            await until(lambda: "holder" in running.first.seen)
            places = places_of(running, "unary")
            while True:
                trial = asyncio.ensure_future(running.desk.read(Ask()))
                await until(partial(self._waits_or_is_over, places, trial))
                if places.waiting:
                    break
                assert isinstance(trial.exception(), Unavailable)
            trial.cancel()
            await asyncio.wait([trial])
            running.first.mode = "answer"
            holder.cancel()
            await asyncio.wait([holder])
            assert (await running.desk.read(Ask())).instance == 0
            assert breaker_of(running, "unary").state is State.CLOSED

    @staticmethod
    def _waits_or_is_over(places: Any, call: asyncio.Future[Answer]) -> bool:
        return call.done() or bool(places.waiting)

    async def test_a_stream_that_says_nothing_and_stands_is_well(self) -> None:
        one_trial = Breaker(minimum_calls=4, trials=1, trial_time=0.4, open_time=0.05, jitter=0.0, growth=1.0)
        async with self.running(1, one_trial) as running:
            await opened(running, "stream")
            running.first.mode = "hang"
            held = breaker_of(running, "stream")
            while True:
                quiet = asyncio.ensure_future(ask(running.desk, "stream"))
                await until(partial(self._stands_or_is_over, held, quiet))
                if not quiet.done():
                    break
            await until(lambda: held.state is not State.HALF_OPEN)
            assert held.state.value == "closed"
            quiet.cancel()
            await asyncio.wait([quiet])

    @staticmethod
    def _stands_or_is_over(held: Any, call: asyncio.Future[Answer]) -> bool:
        if call.done():
            assert isinstance(call.exception(), Unavailable)
        return call.done() or held.state is State.HALF_OPEN

    async def test_cancelled_calls_never_open_a_breaker(self, kind: str) -> None:
        async with self.running(1, Breaker(minimum_calls=4)) as running:
            running.first.mode = "hang"
            calls = [asyncio.ensure_future(ask(running.desk, kind, str(number))) for number in range(8)]
            await until(lambda: running.seen == 8)
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)
            assert breaker_of(running, kind).state is State.CLOSED
            assert places_of(running, kind).running == 0
            running.first.mode = "answer"
            assert (await ask(running.desk, kind)).instance == 0

    @pytest.mark.parametrize("failure", FAILURES, ids=["of a call", "of the program"])
    async def test_what_the_requests_own_iterator_raises_is_counted_nowhere(self, failure: Exception) -> None:
        never = Fallback(on=(CallError,), value=Answer(instance=-1))
        async with self.running(1, Breaker(minimum_calls=1), Bulkhead(limit=1)) as running:
            held = breaker_of(running, "collect")
            for _ in range(3):
                with pytest.raises(type(failure)) as caught, calling(never, timeout=PATIENCE):
                    await running.desk.gather(failing("one", failure))
                assert caught.value is failure
            with pytest.raises(type(failure)) as caught:
                _ = [answer async for answer in running.desk.talk(failing("one", failure))]
            assert caught.value is failure
            assert getattr(failure, "method", None) is None
            assert (held.state, held._window.tally(running.channel.now())) == (State.CLOSED, Tally(0, 0, 0))
            assert places_of(running, "collect").running == 0
            counters = running.channel.counters["instances.v1.Desk/Gather"]
            assert (counters.codes, counters.fallbacks) == ({"ok": 0, "cancelled": 3}, 0)
            assert running.channel.counters["instances.v1.Desk/Talk"].codes == {"ok": 0, "cancelled": 1}

    async def test_a_failure_from_before_it_opened_does_not_count_once_it_has_closed(self) -> None:
        async with self.running(1, QUICK) as running:
            running.first.mode = "fail late"
            stale = [asyncio.ensure_future(ask(running.desk, "unary", f"stale{n}")) for n in range(4)]
            await until(lambda: running.seen == 4)
            of_stale, running.first.gate = running.first.gate, asyncio.Event()
            await opened(running, "unary")
            running.first.running.clear()
            trials = await waiting(running, "unary", 2, of=2)
            running.first.gate.set()
            assert await outcomes(trials) == ["ok", "ok"]
            assert breaker_of(running, "unary").state is State.CLOSED
            of_stale.set()
            assert await outcomes(stale) == ["internal"] * 4
            assert breaker_of(running, "unary").state is State.CLOSED

    async def test_a_call_that_waits_until_its_target_is_ready_waits_for_the_breaker_too(self) -> None:
        async with self.running(1, QUICK) as running:
            await opened(running, "unary")
            running.first.mode = "answer"
            with calling(wait_for_ready=True):
                assert (await running.desk.read(Ask())).instance == 0

    async def test_methods_of_another_class_and_those_with_a_breaker_of_their_own_go_on(self) -> None:
        async with self.running(1, Breaker(minimum_calls=4, open_time=30.0)) as running:
            await opened(running, "unary")
            running.first.mode = "answer"
            with pytest.raises(Unavailable):
                await running.desk.look(Ask())
            assert (await running.desk.write(Ask())).instance == 0
            with calling(Breaker(enabled=False)):
                assert (await running.desk.read(Ask())).instance == 0

    async def test_opening_and_closing_are_logged_once_each(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "polywire.client")
        async with self.running(1, QUICK) as running:
            await opened(running, "unary")
            trials = await waiting(running, "unary", 2, of=10)
            running.first.gate.set()
            await outcomes(trials)
            said = [record.getMessage() for record in caplog.records if "breaker" in record.getMessage()]
            name = f"the breaker of {running.channel.target} (idempotent methods)"
            assert said == [
                f"{name} opened for 0.05 s: 4 of 4 calls failed",
                f"{name} lets calls through to try it: it was open for 0.05 s",
                f"{name} closed: 2 calls were let through to try it, and went well",
            ]

    async def test_good_calls_count_against_those_that_failed(self) -> None:
        async with self.running(1, Breaker(minimum_calls=4, failure_rate=0.5)) as running:
            for mode, count, ended in (("answer", 10, "ok"), ("internal", 9, "internal"), ("answer", 1, "ok")):
                running.first.mode = mode
                assert await outcomes([asyncio.ensure_future(running.desk.read(Ask())) for _ in range(count)]) == (
                    [ended] * count
                )
            assert running.seen == 20

    # ---- bulkhead ----

    async def test_no_more_calls_than_the_limit_are_under_way_and_those_over_the_queue_are_refused(
        self, kind: str
    ) -> None:
        async with self.running(1) as running:
            running.first.mode = "wait"
            with calling(Bulkhead(limit=2, queue=1)):
                calls = [asyncio.ensure_future(ask(running.desk, kind, str(number))) for number in range(3)]
                await until(lambda: running.seen == 2)
                with pytest.raises(ResourceExhausted) as caught:
                    await ask(running.desk, kind)
                assert "2 calls to" in str(caught.value)
                assert "are under way and 1 wait." in str(caught.value)
                running.first.gate.set()
                assert await outcomes(calls) == ["ok", "ok", "ok"]
                assert running.seen == 3
                assert (await ask(running.desk, kind)).instance == 0

    async def test_a_call_that_would_miss_its_deadline_in_the_queue_does_not_reach_the_target(self) -> None:
        async with self.running(1, Bulkhead(limit=1, queue=8)) as running:
            running.first.mode = "wait"
            first = asyncio.ensure_future(running.desk.read(Ask(text="first")))
            await until(lambda: running.seen == 1)
            with pytest.raises(DeadlineExceeded) as caught, calling(timeout=SHORT):
                await running.desk.read(Ask(text="late"))
            assert str(caught.value) == (
                f"instances.v1.Desk/Read was not called: with 1 calls to {running.channel.target} (idempotent methods) "
                "under way its turn would have come too late for its deadline. See what keeps them, or raise "
                "`Bulkhead(limit=...)` or the timeout."
            )
            assert caught.value.attempts == 1
            running.first.gate.set()
            await first
            assert running.first.seen == ["first"]

    async def test_calls_that_wait_for_a_place_do_not_go_past_a_breaker_that_opens_meanwhile(self, kind: str) -> None:
        sharp = Breaker(minimum_calls=1, open_time=60.0, jitter=0.0)
        async with self.running(1) as running:
            running.first.mode = "fail late"
            with calling(sharp, Bulkhead(limit=20, queue=80)):
                calls = [asyncio.ensure_future(ask(running.desk, kind, str(number))) for number in range(100)]
                await until(lambda: running.seen == 20)
                running.first.gate.set()
                results = await asyncio.gather(*calls, return_exceptions=True)
            refused = [result for result in results if isinstance(result, Unavailable)]
            assert [type(result) for result in results].count(Internal) == 20
            assert (len(refused), {error.reached for error in refused}) == (80, {"no"})
            assert running.seen == 20
            # Whoever was refused has left its place.
            running.first.mode = "wait"
            running.first.gate.clear()
            with calling(Breaker(enabled=False), Bulkhead(limit=20, queue=80)):
                calls = [asyncio.ensure_future(ask(running.desk, kind, str(number))) for number in range(20)]
                await until(lambda: running.seen == 40)
                running.first.gate.set()
                assert await outcomes(calls) == ["ok"] * 20

    async def test_a_call_that_waits_for_its_target_gets_a_permit_anew_where_the_breaker_opened_in_the_queue(
        self,
    ) -> None:
        at_once = Breaker(minimum_calls=1, trials=2, open_time=0.05, jitter=0.0)
        async with self.running(1, at_once, Bulkhead(limit=1, queue=8)) as running:
            running.first.mode = "fail late"
            failing = asyncio.ensure_future(running.desk.read(Ask(text="failing")))
            await until(lambda: running.seen == 1)
            with calling(wait_for_ready=True):
                patient = [asyncio.ensure_future(running.desk.read(Ask(text=f"patient{n}"))) for n in range(4)]
            await until(lambda: places_of(running, "unary").waiting == 4)
            running.first.gate.set()
            running.first.mode = "answer"
            assert await outcomes([failing]) == ["internal"]
            assert await outcomes(patient) == ["ok"] * 4
            held = breaker_of(running, "unary")
            assert [change.new.value for change in held.changes] == ["open", "half_open", "closed"]
            assert places_of(running, "unary").running == 0

    async def test_the_time_in_the_queue_is_taken_off_what_the_target_is_given(self) -> None:
        async with self.running(1, Bulkhead(limit=1, queue=8)) as running:
            running.first.mode = "wait"
            first = asyncio.ensure_future(running.desk.read(Ask(text="first")))
            await until(lambda: running.seen == 1)
            with calling(timeout=30.0):
                second = asyncio.ensure_future(running.desk.read(Ask(text="second")))
            await until(lambda: places_of(running, "unary").waiting == 1)
            before = running.channel.now()
            await until(lambda: running.channel.now() > before + 0.2)
            running.first.gate.set()
            await asyncio.gather(first, second)
            left = running.first.left[1]
            assert left is not None
            assert left <= 29.8

    async def test_a_cancelled_call_gives_its_place_to_the_next_one(self, kind: str) -> None:
        async with self.running(1) as running:
            running.first.mode = "hang"
            with calling(Bulkhead(limit=1, queue=4)):
                first = asyncio.ensure_future(ask(running.desk, kind, "first"))
                await until(lambda: running.seen == 1)
                waiter = asyncio.ensure_future(ask(running.desk, kind, "waiter"))
                last = asyncio.ensure_future(ask(running.desk, kind, "last"))
                await asyncio.sleep(0)
                waiter.cancel()
                await asyncio.wait([waiter])
                running.first.mode = "answer"
                first.cancel()
                await asyncio.wait([first])
                assert (await last).text == "last"
            assert running.first.seen == ["first", "last"]

    async def test_a_stream_that_is_let_go_gives_its_place_back(self) -> None:
        async with self.running(1) as running:
            with calling(Bulkhead(limit=1, queue=0)):
                answers = running.desk.watch(Ask(text="one"))
                await anext(answers)
                with pytest.raises(ResourceExhausted):
                    await ask(running.desk, "stream")
                del answers
                gc.collect()
                assert (await ask(running.desk, "stream")).instance == 0

    async def test_streams_of_answers_have_places_only_where_their_method_says_so(self) -> None:
        async with self.running(1, Bulkhead(limit=1, queue=0)) as running:
            streams = [running.desk.watch(Ask(text=str(number))) for number in range(5)]
            for stream in streams:
                assert (await anext(stream)).instance == 0
            for stream in streams:
                stream.cancel()  # type: ignore[attr-defined]  # of the client's streams

    async def test_what_a_method_declares_without_values_is_its_own(self) -> None:
        """So that those who watch keep nobody from sending, though all values are those of all methods."""
        levels = Levels(
            service=CallDefaults(policies=(Bulkhead(limit=2, queue=0),)),
            methods={"instances.v1.Desk/watch": CallDefaults(policies=(Bulkhead(), Breaker()))},
        )
        async with instances(self.wire, levels=levels) as running:
            streams = [running.desk.watch(Ask(text=str(number))) for number in range(2)]
            for stream in streams:
                assert (await anext(stream)).instance == 0
            with pytest.raises(ResourceExhausted):
                await ask(running.desk, "stream")
            assert (await ask(running.desk, "collect")).instance == 0
            assert breaker_of(running, "stream").name == "instances.v1.Desk/Watch"
            for stream in streams:
                stream.cancel()  # type: ignore[attr-defined]  # of the client's streams

    # ---- attempts and retries ----

    async def test_an_attempt_has_its_own_time_and_the_next_one_goes_elsewhere(self) -> None:
        async with self.running(2, Balance(by="round_robin"), STEADY, Retry(base=0.0)) as running:
            running.first.mode = "hang"
            with calling(attempt_timeout=SHORT) as call:
                answers = [await running.desk.read(Ask(text=str(number))) for number in range(2)]
            assert {answer.instance for answer in answers} == {1}
            assert call.attempts in (1, 2)
            await until(lambda: running.first.cancelled == running.first.seen)
            assert len(running.first.seen) in (1, 2)

    async def test_what_is_not_idempotent_is_neither_retried_nor_hedged(self) -> None:
        async with self.running(2, Hedge(after=0.01), STEADY, Retry(base=0.0)) as running:
            for service in running.services:
                service.mode = "hang"
            with pytest.raises(DeadlineExceeded), calling(timeout=SHORT):
                await running.desk.write(Ask())
            assert running.seen == 1

    async def test_a_retry_goes_to_another_instance_also_where_its_key_belongs_to_the_one_that_failed(self) -> None:
        async with self.running(2, Balance(by="by_key", key="text"), STEADY, Retry(base=0.0)) as running:
            running.first.mode = "unavailable"
            for key in map(str, range(8)):
                assert (await running.desk.read(Ask(text=key))).instance == 1
            assert len(set(running.first.seen)) == len(running.first.seen) > 0

    async def test_what_is_not_idempotent_and_may_have_arrived_is_sent_once(self) -> None:
        async with self.running(2, Retry(base=0.0)) as running:
            for service in running.services:
                service.mode = "unavailable"
            with pytest.raises(Unavailable):
                await running.desk.write(Ask())
            assert running.seen == 1

    async def test_an_attempt_ends_no_later_than_its_call(self) -> None:
        async with self.running(1) as running:
            with calling(timeout=20.0, attempt_timeout=40.0):
                await running.desk.read(Ask())
            left = running.first.left[0]
            assert left is not None
            assert left <= 20.0

    async def test_a_call_may_ask_for_no_retries(self) -> None:
        async with self.running(1, Retry(base=0.0)) as running:
            running.first.mode = "unavailable"
            with pytest.raises(Unavailable):
                await running.desk.read(Ask())
            assert running.seen == 3
            with pytest.raises(Unavailable), calling(Retry(attempts=1)):
                await running.desk.read(Ask())
            assert running.seen == 4

    # ---- hedging ----

    async def test_a_copy_wins_over_a_slow_instance_and_the_loser_is_cancelled_there(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "polywire.client")
        hedge = Hedge(after=0.02)
        async with self.running(2, hedge, Balance(by="round_robin"), STEADY) as running:
            running.first.mode = "hang"
            with calling() as call:
                for number in range(8):
                    assert (await running.desk.read(Ask(text=str(number)))).instance == 1
                    assert call.endpoint == str(running.channel.endpoints.current[1].address)
            await until(lambda: running.first.cancelled == running.first.seen)
            assert len(running.first.seen) >= 2
            counters = running.channel.counters["instances.v1.Desk/Read"]
            assert counters.hedges == len(running.first.seen)
            assert counters.codes == {"ok": 8}
            said = [record.getMessage() for record in caplog.records]
            assert said == ["instances.v1.Desk/Read is sent again where its answer is late"]

    async def test_copies_stay_within_the_budget_of_retries(self) -> None:
        async with self.running(
            2, Hedge(after=0.01), Balance(by="round_robin"), STEADY, budget_share=0.0, budget_minimum=0.1
        ) as running:
            for service in running.services:
                service.mode = "hang"
            calls = []
            with calling(timeout=1.0):
                calls = [asyncio.ensure_future(running.desk.read(Ask(text=str(number)))) for number in range(10)]
            assert set(await outcomes(calls)) == {"deadline_exceeded"}
            assert running.seen == 10 + 1

    async def test_a_cancelled_call_takes_its_copies_along(self) -> None:
        async with self.running(2, Hedge(after=0.01), STEADY) as running:
            for service in running.services:
                service.mode = "hang"
            call = asyncio.ensure_future(running.desk.read(Ask()))
            await until(lambda: running.seen == 2)
            call.cancel()
            await asyncio.wait([call])
            await until(lambda: all(service.cancelled for service in running.services))
            assert places_of(running, "unary").running == 0

    # ---- ejection and balance ----

    async def test_the_instance_of_three_that_errs_is_left_out(
        self, kind: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "polywire.client")
        async with self.running(3, Ejection(base_time=60.0, max_time=60.0), Balance(by="round_robin")) as running:
            running.first.mode = "internal"
            failed = 0
            for _ in range(60):
                try:
                    assert (await ask(running.desk, kind)).instance != 0
                except Internal:
                    failed += 1
            assert failed == 5
            assert len(running.first.seen) == 5
            address = running.channel.endpoints.current[0].address
            said = [record.getMessage() for record in caplog.records]
            assert said == [f"{address} of {running.channel.target} is left out for 60 s: 5 calls in a row failed"]

    async def test_one_that_is_well_again_comes_back_with_a_single_call(self) -> None:
        # The call that tries it waits here until the others were answered; that is not to count as slow.
        ejection = Ejection(base_time=0.1, max_time=0.1, slow_floor=60.0)
        async with self.running(3, ejection, Balance(by="round_robin")) as running:
            running.first.mode = "internal"
            while len(running.first.seen) < 5:
                await asyncio.wait([asyncio.ensure_future(running.desk.read(Ask()))])
            running.first.mode = "wait"
            first = running.first
            before = len(first.seen)
            calls: list[asyncio.Task[Answer]] = []
            async with asyncio.timeout(60):
                while len(first.seen) == before:
                    calls.append(asyncio.ensure_future(running.desk.read(Ask())))
                    await asyncio.sleep(0.01)
                for _ in range(12):
                    await running.desk.read(Ask())
            assert len(first.seen) == before + 1
            first.gate.set()
            await asyncio.gather(*calls)
            found = Counter([(await running.desk.read(Ask())).instance for _ in range(30)])
            assert found == {0: 10, 1: 10, 2: 10}

    async def test_a_stream_that_says_nothing_and_stands_brings_its_instance_back(self) -> None:
        ejection = Ejection(base_time=0.05, max_time=0.05)
        async with self.running(2, Breaker(enabled=False), ejection, Balance(by="round_robin")) as running:
            running.first.mode = "internal"
            while len(running.first.seen) < 5:
                await asyncio.wait([asyncio.ensure_future(ask(running.desk, "stream"))])
            comparison = running.channel._book.of(rpc_of("watch")).comparison
            assert comparison is not None
            health = next(one for one in comparison.outliers.health.values() if one.out)
            comparison.outliers.trial_time = 0.4
            running.first.mode = "hang"
            quiet: list[asyncio.Task[Answer]] = []
            async with asyncio.timeout(60):
                while not health.trial:
                    quiet.append(asyncio.ensure_future(ask(running.desk, "stream")))
                    await asyncio.sleep(0.01)
            # It says nothing, and each call that is made meanwhile looks whether its time is up.
            async with asyncio.timeout(60):
                while health.trial:
                    await running.desk.read(Ask())
                    await asyncio.sleep(0.01)
            assert not health.out
            assert health.times <= 1
            for call in quiet:
                call.cancel()
            await asyncio.wait(quiet)

    async def test_a_slow_instance_is_left_out_though_each_call_asks_for_something_else(self) -> None:
        ejection = Ejection(interval=0.05, slow_floor=0.001, base_time=60.0, max_time=60.0)
        async with self.running(2, ejection, Balance(by="round_robin")) as running:
            running.first.pauses["slow"] = 0.2
            await running.desk.read(Ask())
            comparison = running.channel._book.of(rpc_of("read")).comparison
            assert comparison is not None
            slow, well = comparison.outliers.health.values()
            numbers = itertools.count(300)

            async def read() -> None:
                with calling(Bulkhead(limit=next(numbers))):
                    await running.desk.read(Ask(text="slow"))

            async with asyncio.timeout(60):
                while not slow.out:
                    await asyncio.gather(*[read() for _ in range(20)])
            assert not well.out

    async def test_a_mix_of_slow_and_quick_methods_leaves_nobody_out(self) -> None:
        async with self.running(2, Ejection(interval=0.05, slow_floor=0.001), Balance(by="round_robin")) as running:

            async def slow() -> None:
                with calling(Balance(by="weighted", weights={running.channel.endpoints.current[0].address: 50.0})):
                    await running.desk.look(Ask(text="slow"))

            # Both long enough for the delays of a busy machine to be a small part of them.
            for service in running.services:
                service.pauses |= {"slow": 0.3, "": 0.02}
            await running.desk.read(Ask())
            comparison = running.channel._book.of(rpc_of("read")).comparison
            assert comparison is not None
            for _ in range(10):
                await asyncio.gather(*[slow() for _ in range(8)], *[running.desk.read(Ask()) for _ in range(8)])
                assert not any(health.out for health in comparison.outliers.health.values())

    @pytest.mark.parametrize(
        ("policy", "expected"),
        [
            (Balance(by="round_robin"), {0: 20, 1: 20, 2: 20}),
            (Balance(by="weighted", weights={"FIRST": 4.0}), {0: 40, 1: 10, 2: 10}),
        ],
        ids=["round_robin", "weighted"],
    )
    async def test_calls_are_shared_out_as_declared(self, policy: Balance, expected: dict[int, int]) -> None:
        async with self.running(3) as running:
            await running.desk.read(Ask())
            first = running.channel.endpoints.current[0].address
            if policy.weights:
                policy = Balance(by="weighted", weights={first: 4.0})
            with calling(policy):
                found = Counter([(await running.desk.read(Ask())).instance for _ in range(60)])
            assert found == expected

    async def test_calls_of_one_key_go_to_one_instance_and_other_keys_elsewhere(self) -> None:
        async with self.running(3, Balance(by="by_key", key="text")) as running:
            homes = {key: (await running.desk.read(Ask(text=key))).instance for key in map(str, range(40))}
            assert set(homes.values()) == {0, 1, 2}
            for key, home in homes.items():
                assert (await running.desk.read(Ask(text=key))).instance == home

    async def test_a_key_said_of_all_methods_means_those_whose_requests_have_it(self) -> None:
        async with self.running(2, Balance(by="by_key", key="customer")) as running:
            assert {(await running.desk.read(Ask())).instance for _ in range(40)} == {0, 1}

    @pytest.mark.parametrize("count", [1, 2])
    async def test_a_key_that_a_call_asks_for_has_to_be_there(self, count: int) -> None:
        async with self.running(count) as running:
            with calling(Balance(by="by_key", key="customer")), pytest.raises(ContractError) as caught:
                await running.desk.read(Ask())
            assert str(caught.value) == (
                "instances.v1.Desk/Read: key='customer' is no field of Ask. Its fields are: text."
            )
            assert running.seen == 0

    async def test_an_instance_that_hangs_gets_hardly_any_calls(self) -> None:
        async with self.running(3) as running:
            running.first.mode = "hang"
            hung = []
            for number in range(60):
                call = asyncio.ensure_future(running.desk.read(Ask(text=str(number))))
                await until(partial(self._answered_or_hung, running, call))
                if call.done():
                    call.result()
                else:
                    hung.append(call)
                    running.first.running.clear()
            assert len(hung) == 1
            for call in hung:
                call.cancel()
            await asyncio.wait(hung)

    @staticmethod
    def _answered_or_hung(running: Running, call: asyncio.Future[Answer]) -> bool:
        return call.done() or bool(running.first.running)

    # ---- fallback ----

    @pytest.mark.parametrize("kind", ["unary", "collect"])
    async def test_a_fallback_answers_in_place_of_the_error(self, kind: str, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "polywire.client")
        async with self.running(1) as running:
            running.first.mode = "internal"
            with calling(Fallback(value=Answer(instance=-1, text="none"))) as call:
                for _ in range(3):
                    assert await ask(running.desk, kind) == Answer(instance=-1, text="none")
                    assert call.fallback
                running.first.mode = "answer"
                assert (await ask(running.desk, kind)).instance == 0
                assert not call.fallback
            (counters,) = [one for one in running.channel.counters.values() if one.fallbacks]
            assert counters.codes == {"ok": 1, "internal": 3}
            assert counters.fallbacks == 3
            assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
                f"instances.v1.Desk/{'Read' if kind == 'unary' else 'Gather'} is answered by its fallback"
            ]

    async def test_a_function_is_given_the_request_and_the_error_and_may_take_its_time(self) -> None:
        async def instead(ask: Ask, error: CallError) -> Answer:
            await asyncio.sleep(0)
            return Answer(instance=-1, text=f"{ask.text} {error.code} {error.method}")

        async with self.running(1) as running:
            running.first.mode = "internal"
            with calling(Fallback(function=instead)):
                answer = await running.desk.read(Ask(text="who"))
            assert answer == Answer(instance=-1, text="who internal instances.v1.Desk/Read")

    @pytest.mark.parametrize("kind", ["unary", "collect"])
    async def test_nothing_that_was_asked_of_a_call_holds_for_those_that_its_fallback_makes(self, kind: str) -> None:
        asked: list[str] = []
        noted: list[Calling | None] = []

        async def instead(_ask: Ask | None, error: CallError) -> Answer:
            asked.append(error.code)
            noted.append(calling_or_none())
            return await running.desk.look(Ask(text="instead"))

        def at_once(_ask: Ask | None, _error: CallError) -> Answer:
            noted.append(calling_or_none())
            return Answer(instance=-1)

        async with self.running(1) as running:
            running.first.mode = "internal"
            for function in (instead, at_once):
                with calling(
                    Fallback(function=function), timeout=20.0, metadata={"tenant": "a"}, idempotency_key="k"
                ) as block:
                    if function is instead:
                        with pytest.raises(Internal) as caught:
                            await ask(running.desk, kind)
                        assert caught.value.method == "instances.v1.Desk/Look"
                    else:
                        assert (await ask(running.desk, kind)).instance == -1
                    assert calling_or_none() is block
            assert (asked, noted) == (["internal"], [None, None])
            assert running.first.seen == ["", "instead", ""]
            left = running.first.left[1]
            assert left is not None
            assert left > 20.0

    async def test_the_last_good_answer_to_the_same_question_is_given_again(self) -> None:
        async with self.running(1, Fallback(last_good=60.0)) as running:
            good = await running.desk.read(Ask(text="a"))
            running.first.mode = "internal"
            assert await running.desk.read(Ask(text="a")) == good
            with pytest.raises(Internal):
                await running.desk.read(Ask(text="b"))
            with pytest.raises(Internal), calling(metadata={"tenant": "other"}):
                await running.desk.read(Ask(text="a"))

    async def test_a_request_that_breaks_its_contract_is_told_of_as_without_a_fallback(self) -> None:
        wrong = Ask(text="a")
        wrong.text = 3  # type: ignore[assignment]  # that is the point
        told: list[str] = []
        async with self.running(1) as running:
            for policies in ((), (Fallback(last_good=60.0),)):
                with pytest.raises(InvalidArgument) as caught, calling(*policies):
                    await running.desk.read(wrong)
                assert caught.value.method == "instances.v1.Desk/Read"
                assert caught.value.request_id
                told.append(caught.value.message)
            assert told[0] == told[1]
            with calling(Fallback(last_good=60.0, on=(InvalidArgument,), value=Answer(instance=-1))):
                assert (await running.desk.read(wrong)).instance == -1
            assert running.seen == 0

    async def test_the_last_good_answer_of_one_user_is_not_given_to_another(self) -> None:
        async with self.running(1, Fallback(last_good=60.0)) as running:
            handling = Call("outer")
            token = _current.set(handling)
            try:
                handling.principal = "alice"
                good = await running.desk.read(Ask(text="a"))
                running.first.mode = "internal"
                assert await running.desk.read(Ask(text="a")) == good
                handling.principal = "bob"
                with pytest.raises(Internal):
                    await running.desk.read(Ask(text="a"))
            finally:
                _current.reset(token)

    async def test_what_is_said_of_all_methods_answers_only_for_those_that_are_idempotent(self) -> None:
        async with self.running(1, Fallback(last_good=60.0)) as running:
            await running.desk.write(Ask(text="a"))
            await running.desk.gather(once("a"))
            running.first.mode = "internal"
            with pytest.raises(Internal):
                await running.desk.write(Ask(text="a"))
            with calling(Fallback(last_good=60.0)):
                running.first.mode = "answer"
                good = await running.desk.write(Ask(text="a"))
                await running.desk.gather(once("a"))
                running.first.mode = "internal"
                assert await running.desk.write(Ask(text="a")) == good
                with pytest.raises(Internal):
                    await running.desk.gather(once("a"))

    async def test_an_open_breaker_is_answered_for_and_cancellation_is_not(self) -> None:
        async with self.running(1, Breaker(minimum_calls=4, open_time=30.0)) as running:
            await opened(running, "unary")
            with calling(Fallback(value=Answer(instance=-1))):
                assert (await running.desk.read(Ask())).instance == -1
                running.first.mode = "hang"
                call = asyncio.ensure_future(running.desk.write(Ask()))
                await until(lambda: running.first.running)
                call.cancel()
                await asyncio.wait([call])
                assert call.cancelled()

    async def test_a_fallback_that_answers_something_else_is_told(self) -> None:
        async with self.running(1) as running:
            running.first.mode = "internal"
            with calling(Fallback(function=lambda _ask, _error: "nobody")), pytest.raises(ContractError) as caught:
                await running.desk.read(Ask())
            assert str(caught.value) == (
                "The fallback of instances.v1.Desk/Read answered a str; the method answers Answer. Let the function "
                "return that."
            )

    # ---- levels ----

    async def test_what_the_system_file_says_of_all_of_one_service_and_of_one_method_holds(self) -> None:
        system = parse(
            """
            [system]
            name = "offices"

            [services.desk]
            address = "127.0.0.1:1"
            serves = ["instances.v1.Desk"]

            [services.desk.calls]
            bulkhead = { limit = 2 }

            [services.desk.calls."instances.v1.Desk/look"]
            bulkhead = { limit = 3 }

            [calls]
            bulkhead = { limit = 1, queue = 0 }
            """
        )
        async with instances(self.wire, levels=system.levels("desk")) as running:
            running.first.mode = "wait"
            desk = running.desk
            for method, limit in ((desk.read, 2), (desk.look, 3), (desk.write, 2)):
                running.first.running.clear()
                calls = [asyncio.ensure_future(method(Ask(text=str(number)))) for number in range(5)]
                await until(partial(self._let_in, running, calls, limit))
                with calling(Bulkhead(limit=1)):
                    one, other = (asyncio.ensure_future(method(Ask(text=f"more{n}"))) for n in range(2))
                    await asyncio.wait([one, other], return_when=asyncio.FIRST_COMPLETED)
                running.first.gate.set()
                assert sorted(await outcomes(calls)) == ["ok"] * limit + ["resource_exhausted"] * (5 - limit)
                assert sorted(await outcomes([one, other])) == ["ok", "resource_exhausted"]
                running.first.gate.clear()

    @staticmethod
    def _let_in(running: Running, calls: Sequence[asyncio.Future[Answer]], limit: int) -> bool:
        return len(running.first.running) == limit and sum(call.done() for call in calls) == len(calls) - limit
