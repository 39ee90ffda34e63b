"""Hedging: when copies of a call are sent, which answer counts, and what becomes of the others."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.policy.unhurried_support import UNHURRIED

from polywire.contract.policies import Hedge
from polywire.errors import DO_NOT_RETRY, CallError, InvalidArgument, NotFound, ResourceExhausted, Unavailable
from polywire.policy.hedge import PAUSE, Hedging, Latencies, Race, hedged
from polywire.policy.retry import RetryBudget
from polywire.testing import ManualClock
from polywire.testing.clock import settle


def plenty() -> RetryBudget:
    return RetryBudget(share=0.0, minimum=1e6)


def hedging(budget: RetryBudget | None = None, *, idempotent: bool = True, **values: Any) -> Hedging:
    values = {"after": 1.0} | values
    return Hedging(Hedge(**values), idempotent=idempotent, budget=budget or plenty())


@dataclass
class Target:
    """Answers each copy of a call as planned: after so many seconds, by its number or by an error."""

    clock: ManualClock
    plan: list[tuple[float, CallError | None]]
    started: list[float] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)

    async def send(self, copy: int) -> int:
        self.started.append(self.clock.monotonic())
        seconds, error = self.plan[copy]
        try:
            await self.clock.sleep(seconds)
        except asyncio.CancelledError:
            self.cancelled.append(copy)
            await asyncio.sleep(0)
            raise
        finally:
            self.ended.append(copy)
        if error is not None:
            raise error
        return copy


async def outcome(
    how: Hedging, plan: list[tuple[float, CallError | None]], deadline: float | None = None
) -> tuple[Target, Any, float]:
    """The target, the answer or the error, and when it came."""
    clock = ManualClock(start=0.0)
    target = Target(clock, plan)
    at = [0.0]

    async def call() -> Any:
        try:
            return await hedged(how, target.send, clock=clock, deadline=deadline)
        except CallError as error:
            return error
        finally:
            at[0] = clock.monotonic()

    task = asyncio.get_running_loop().create_task(call())
    await clock.advance(1000.0)
    found = await task
    assert sorted(target.ended) == list(range(len(target.started)))
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert clock.sleeping == 0
    return target, found, at[0]


# ---- the model: one event after the other ----


def modelled(
    plan: list[tuple[float, str]], after: float, copies: int, deadline: float | None
) -> tuple[list[float], int, str, float]:
    """When the copies start, which one decides, how, and when."""
    starts = [0.0]
    running = {0: plan[0][0]}
    due = after
    if deadline is not None and after >= deadline:
        copies = 0

    def can_start(at: float) -> bool:
        return len(starts) <= copies and (deadline is None or at < deadline)

    while True:
        which = min(running, key=lambda copy: running[copy])
        now = running[which]
        if due < now and can_start(due):
            running[len(starts)] = due + plan[len(starts)][0]
            starts.append(due)
            due += after
            continue
        del running[which]
        how = plan[which][1]
        if how != "down":
            return starts, which, how, now
        if can_start(now):
            running[len(starts)] = now + plan[len(starts)][0]
            starts.append(now)
            due = now + after
        elif not running:
            return starts, which, how, now


ERRORS = {"ok": None, "down": Unavailable("x"), "wrong": InvalidArgument("x")}
PLANS = st.lists(st.tuples(st.integers(1, 60), st.sampled_from(["ok", "ok", "down", "wrong"])), min_size=5, max_size=5)


@settings(UNHURRIED, max_examples=100)
@given(PLANS, st.integers(1, 20), st.integers(1, 4), st.sampled_from([None, 7, 25]))
def test_it_does_what_a_model_does_that_looks_at_one_event_after_the_other(
    steps: list[tuple[int, str]], after: int, copies: int, deadline: int | None
) -> None:
    # Odd fractions, so that no two things happen at once.
    plan = [(seconds + 0.0103 * 2**copy, how) for copy, (seconds, how) in enumerate(steps)]
    starts, which, how, at = modelled(plan, after + 0.25, copies, deadline)

    async def main() -> None:
        real = hedging(after=after + 0.25, copies=copies)
        target, found, when = await outcome(real, [(seconds, ERRORS[how]) for seconds, how in plan], deadline)
        assert target.started == pytest.approx(starts)
        assert when == pytest.approx(at)
        assert found == which if how == "ok" else found is ERRORS[how]
        assert sorted(target.cancelled) == sorted(
            copy for copy, start in enumerate(starts) if start + plan[copy][0] > at and copy != which
        )

    asyncio.run(main())


# ---- copies ----


async def test_the_first_answer_counts_and_the_loser_is_cancelled_and_awaited() -> None:
    target, found, at = await outcome(hedging(), [(10.0, None), (0.5, None)])
    assert (found, at) == (1, 1.5)
    assert target.cancelled == [0]


async def test_a_quick_call_is_sent_once() -> None:
    target, found, at = await outcome(hedging(copies=4), [(0.9, None)])
    assert (found, at, target.started) == (0, 0.9, [0.0])


async def test_no_more_copies_are_sent_than_declared() -> None:
    target, _, _ = await outcome(hedging(copies=2), [(50.0, None)] * 6)
    assert target.started == [0.0, 1.0, 2.0]


async def test_a_method_that_is_not_idempotent_is_never_sent_twice() -> None:
    for _ in range(3):
        target, found, _ = await outcome(hedging(idempotent=False, copies=4), [(50.0, None)])
        assert (found, len(target.started)) == (0, 1)


async def test_switched_off_it_sends_once() -> None:
    target, _, _ = await outcome(hedging(enabled=False), [(50.0, None)])
    assert len(target.started) == 1


async def test_copies_are_paid_from_the_budget_of_the_retries() -> None:
    budget = RetryBudget(share=0.0, minimum=0.2)
    how = hedging(budget, copies=4)
    target, _, _ = await outcome(how, [(50.0, None)] * 5)
    assert len(target.started) == 3
    assert not budget.take(2.0)
    # And the other way round: what retries have used up is not there for copies.
    budget = RetryBudget(share=0.0, minimum=0.1)
    assert budget.take(0.0)
    target, _, _ = await outcome(hedging(budget), [(5.0, None)] * 2)
    assert len(target.started) == 1


async def test_no_copy_is_sent_at_the_deadline_or_later() -> None:
    target, _, _ = await outcome(hedging(copies=4), [(50.0, None)] * 5, deadline=2.0)
    assert target.started == [0.0, 1.0]


async def test_an_error_that_another_copy_would_meet_as_well_ends_the_call() -> None:
    target, found, at = await outcome(hedging(), [(10.0, None), (0.5, NotFound("x"))])
    assert isinstance(found, NotFound)
    assert at == 1.5
    assert target.cancelled == [0]


async def test_the_next_copy_follows_a_failure_at_once_and_the_last_error_is_raised() -> None:
    errors = [Unavailable(str(copy), reached="no" if copy == 2 else "maybe") for copy in range(3)]
    target, found, at = await outcome(hedging(copies=2), [(0.25, error) for error in errors])
    assert target.started == [0.0, 0.25, 0.5]
    assert found is errors[2]
    assert errors[2].reached == "maybe"  # by the other copies
    assert at == 0.75


async def test_pushback_stops_the_copies_of_this_call_and_of_others() -> None:
    for retry_after, pause in ((DO_NOT_RETRY, PAUSE), (3.0, 3.0)):
        how = hedging(copies=4)
        away = ResourceExhausted("x", retry_after=retry_after)
        target, found, at = await outcome(how, [(5.0, None), (0.5, away), (0.5, None)])
        assert target.started == [0.0, 1.0]
        assert (found, at) == (0, 5.0)
        assert how.delay(1.5 + pause - 0.01) is None
        assert how.delay(1.5 + pause) == 1.0


async def test_cancelling_the_call_cancels_every_copy() -> None:
    clock = ManualClock(start=0.0)
    target = Target(clock, [(50.0, None)] * 3)
    task = asyncio.get_running_loop().create_task(hedged(hedging(copies=2), target.send, clock=clock))
    await clock.advance(2.5)
    assert len(target.started) == 3
    task.cancel()
    await settle()
    assert task.cancelled()
    assert sorted(target.cancelled) == [0, 1, 2]
    assert clock.sleeping == 0


async def test_an_exception_that_is_no_error_of_a_call_comes_out_as_it_is() -> None:
    clock = ManualClock(start=0.0)

    async def send(copy: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await hedged(hedging(), send, clock=clock)


async def test_a_loser_that_fails_while_it_is_cancelled_is_not_reported() -> None:
    clock = ManualClock(start=0.0)
    trouble: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: trouble.append(context))

    async def send(copy: int) -> int:
        try:
            await clock.sleep(10.0 - copy * 9.5)
        except asyncio.CancelledError:
            raise Unavailable("x") from None
        return copy

    task = asyncio.get_running_loop().create_task(hedged(hedging(), send, clock=clock))
    await clock.advance(2.0)
    assert await task == 1
    await settle()
    assert trouble == []


# ---- when ----


def test_the_observed_time_is_that_in_which_95_percent_were_answered() -> None:
    latencies = Latencies()
    for call in range(31):
        latencies.add(float(call))
    assert latencies.p95 is None
    for call in range(31, 1000):
        latencies.add(float(call))
    recent = sorted(float(call) for call in range(992 - 128, 992))
    assert latencies.p95 == recent[121]
    assert len(latencies._last) == 128


@UNHURRIED
@given(st.lists(st.floats(0.0, 100.0), min_size=32, max_size=300))
def test_the_observed_time_is_exact_over_the_last_calls(times: list[float]) -> None:
    latencies = Latencies()
    looked = 0
    for number, seconds in enumerate(times, 1):
        latencies.add(seconds)
        if number >= 32 and number % 16 == 0:
            looked = number
    seen = sorted(times[:looked][-128:])
    at_most = sum(seconds <= (latencies.p95 or 0.0) for seconds in seen) / len(seen)
    below = sum(seconds < (latencies.p95 or 0.0) for seconds in seen) / len(seen)
    assert below < 0.95 <= at_most


def test_no_copy_is_sent_before_it_is_known_when() -> None:
    how = hedging(after=None)
    assert how.delay(0.0) is None
    for _ in range(32):
        how.answered(0.02)
    assert how.delay(0.0) == 0.02


def test_no_copy_is_sent_sooner_than_allowed() -> None:
    how = hedging(after=None, at_least=0.05)
    for _ in range(32):
        how.answered(0.001)
    assert how.delay(0.0) == 0.05


def test_its_own_copies_do_not_make_it_send_them_sooner_and_sooner() -> None:
    """Where the time of the winning copy is observed and not the call's, slow answers are never seen again."""
    dice = random.Random(1)
    how = hedging(after=None, at_least=0.0001)
    for _ in range(64):
        how.answered(dice.expovariate(10.0))
    now = copies = 0.0
    for _ in range(5000):
        race = Race(how, now, None)
        first = dice.expovariate(10.0)
        if race.due is not None and now + first > race.due and race.copy(race.due):
            copies += 1
            second = race_delay(how, now) + dice.expovariate(10.0)
            first = min(first, second)
        race.answered(now + first)
        now += first
    delay = how.delay(now)
    assert delay is not None
    assert 0.2 < delay < 0.45  # the real p95 is at 0.3
    assert copies / 5000 < 0.1


def race_delay(how: Hedging, now: float) -> float:
    delay = how.delay(now)
    assert delay is not None
    return delay
