"""The bulkhead: who gets in, who waits, who is let go, and that no place is ever lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.policy.unhurried_support import UNHURRIED

from polywire.contract.policies import Bulkhead
from polywire.errors import CallError, DeadlineExceeded, ResourceExhausted
from polywire.policy.bulkhead import SMOOTHING, Compartment, Place, Waiter, entered
from polywire.policy.deadline import Deadlines
from polywire.policy.retry import is_retryable
from polywire.testing import ManualClock
from polywire.testing.clock import settle

FULL = (
    "m was not called: 1 calls to stock are under way and 1 wait. See what keeps them, or raise `Bulkhead(limit=...)`."
)
TOO_LATE = (
    "m was not called: with 1 calls to stock under way its turn would have come too late for its deadline. "
    "See what keeps them, or raise `Bulkhead(limit=...)` or the timeout."
)


def compartment(limit: int = 1, queue: int = 10, order: Literal["fifo", "lifo"] = "fifo") -> Compartment:
    return Compartment(Bulkhead(limit=limit, queue=queue, order=order), "stock")


def busy(limit: int = 1, queue: int = 10, order: Literal["fifo", "lifo"] = "fifo") -> Compartment:
    """One without a free place."""
    found = compartment(limit, queue, order)
    assert [found.enter() for _ in range(limit + 1)] == [True] * limit + [False]
    return found


def lined_up(one: Compartment, deadline: float | None = None, now: float = 0.0) -> Waiter:
    return one.line_up("m", now, deadline, lambda: None)


# ---- the model: lists of names, and the rules as they are written down ----


@dataclass
class Model:
    limit: int
    queue: int
    lifo: bool
    running: list[int] = field(default_factory=list)
    waiting: list[tuple[int, float | None]] = field(default_factory=list)
    dropped: set[int] = field(default_factory=set)
    typical: float = 0.0

    def arrive(self, call: int, now: float, deadline: float | None) -> None:
        if len(self.running) < self.limit:
            self.running.append(call)
            return
        before = 0 if self.lifo else len(self.waiting)
        starts = now + (before + 1) * self.typical / self.limit
        full = len(self.waiting) == self.queue
        if (full and (not self.lifo or self.queue == 0)) or (deadline is not None and starts + self.typical > deadline):
            self.dropped.add(call)
        else:
            if full:
                self.dropped.add(self.waiting.pop(0)[0])
            self.waiting.append((call, deadline))

    def leave(self, call: int, now: float, seconds: float) -> None:
        self.typical += SMOOTHING * (seconds - self.typical)
        self.running.remove(call)
        self.next_one(now)

    def next_one(self, now: float) -> None:
        while self.waiting and len(self.running) < self.limit:
            call, deadline = self.waiting.pop(-1 if self.lifo else 0)
            if deadline is not None and now + self.typical > deadline:
                self.dropped.add(call)
            else:
                self.running.append(call)

    def give_up(self, call: int, now: float) -> None:
        self.waiting = [waiter for waiter in self.waiting if waiter[0] != call]
        if call in self.running:
            self.running.remove(call)
            self.next_one(now)

    def expire(self, call: int) -> None:
        if any(waiter[0] == call for waiter in self.waiting):
            self.waiting = [waiter for waiter in self.waiting if waiter[0] != call]
            self.dropped.add(call)


STEPS = st.one_of(
    st.tuples(st.just("arrive"), st.sampled_from([None, 0.5, 2.0, 10.0])),
    st.tuples(st.just("wait"), st.sampled_from([0.25, 1.0, 3.0])),
    st.tuples(st.sampled_from(["leave", "leave", "give up", "expire"]), st.integers(0, 20)),
)


@settings(UNHURRIED, max_examples=200)
@given(st.integers(1, 3), st.integers(0, 4), st.booleans(), st.lists(STEPS, max_size=80))
def test_it_does_what_a_model_does_that_keeps_lists_of_names(
    limit: int, queue: int, lifo: bool, steps: list[tuple[str, Any]]
) -> None:
    real, model = compartment(limit, queue, "lifo" if lifo else "fifo"), Model(limit, queue, lifo)
    now, number = 0.0, 0
    waiters: dict[int, Waiter] = {}
    entered_at: dict[int, float] = {}
    dropped: set[int] = set()
    woken: list[int] = []
    for step, value in steps:
        if step == "wait":
            now += value
        elif step == "arrive":
            number += 1
            deadline = None if value is None else now + value
            if real.enter():
                entered_at[number] = now
            else:
                try:
                    waiters[number] = real.line_up("m", now, deadline, lambda call=number: woken.append(call))  # type: ignore[misc]  # a default binds the loop's variable
                except CallError:
                    dropped.add(number)
            model.arrive(number, now, deadline)
        elif step == "leave" and model.running:
            call = model.running[value % len(model.running)]
            seconds = now - entered_at[call]
            model.leave(call, now, seconds)
            real.leave(now, seconds)
        elif step == "give up" and waiters:
            call = sorted(waiters)[value % len(waiters)]
            if waiters[call].place is not Place.ADMITTED or call in model.running:
                model.give_up(call, now)
                real.give_up(waiters.pop(call), now)
        elif step == "expire" and waiters:
            call = sorted(waiters)[value % len(waiters)]
            model.expire(call)
            waiters[call].expire()
        for call, waiter in waiters.items():
            if waiter.place is Place.ADMITTED:
                entered_at.setdefault(call, now)
            elif waiter.place is Place.DROPPED:
                assert waiter.error is not None
                dropped.add(call)
        assert real.running == len(model.running) <= limit
        assert real.waiting == len(model.waiting) <= queue
        assert dropped == model.dropped
        assert not (real.waiting and real.running < limit)
        assert {call for call, waiter in waiters.items() if waiter.place is Place.WAITING} == {
            c for c, _ in model.waiting
        }
        assert len(woken) == len(set(woken))


# ---- the queue ----


@pytest.mark.parametrize(("order", "turns"), [("fifo", [0, 1, 2]), ("lifo", [2, 1, 0])])
def test_whose_turn_it_is(order: Literal["fifo", "lifo"], turns: list[int]) -> None:
    one = busy(order=order)
    came: list[int] = []
    for call in range(3):
        one.line_up("m", 0.0, None, lambda call=call: came.append(call))  # type: ignore[misc]  # a default binds the loop's variable
    for _ in range(3):
        one.leave(0.0, 0.0)
    assert came == turns


def test_first_in_first_out_turns_the_newcomer_away_where_the_queue_is_full() -> None:
    one = busy(queue=1)
    first = lined_up(one)
    with pytest.raises(ResourceExhausted) as caught:
        lined_up(one)
    assert str(caught.value) == FULL
    assert not is_retryable(caught.value, repeatable=True)
    assert first.place is Place.WAITING


def test_last_in_first_out_lets_go_of_the_oldest_where_the_queue_is_full() -> None:
    one = busy(queue=1, order="lifo")
    first = lined_up(one)
    second = lined_up(one)
    assert (first.place, second.place) == (Place.DROPPED, Place.WAITING)
    assert str(first.error) == FULL


def test_without_a_queue_nobody_waits() -> None:
    for order in ("fifo", "lifo"):
        with pytest.raises(ResourceExhausted, match="and none may wait"):
            lined_up(busy(queue=0, order=order))


def test_a_call_that_would_miss_its_deadline_in_the_queue_does_not_wait_for_that() -> None:
    one = busy()
    for _ in range(200):
        one.leave(0.0, 1.0)
        assert one.enter()
    lined_up(one, deadline=2.1)
    with pytest.raises(DeadlineExceeded) as caught:
        lined_up(one, deadline=2.9)
    assert str(caught.value) == TOO_LATE
    lined_up(one, deadline=3.1)


def test_a_call_whose_deadline_came_too_near_while_it_waited_is_not_started() -> None:
    one = busy()
    late, in_time = lined_up(one, deadline=1.0), lined_up(one, deadline=5.0)
    one.leave(1.5, 0.0)
    assert (late.place, in_time.place) == (Place.DROPPED, Place.ADMITTED)
    assert str(late.error) == TOO_LATE


def test_an_estimate_that_is_too_long_does_not_keep_it_shut() -> None:
    """After one very slow spell all that would wait is refused; what finds a place brings the estimate down again."""
    one = busy()
    for _ in range(100):
        one.leave(0.0, 60.0)
        one.enter()
    with pytest.raises(DeadlineExceeded):
        lined_up(one, deadline=1.0)
    for _ in range(100):
        one.leave(0.0, 0.01)
        assert one.enter()
    lined_up(one, deadline=1.0)


# ---- the asynchronous layer ----


class House:
    """A compartment, and calls that go through it."""

    def __init__(self, one: Compartment) -> None:
        self.one = one
        self.clock = ManualClock(start=0.0)
        self.alarms = Deadlines(self.clock)
        self.most = 0

    @asynccontextmanager
    async def place(self, timeout: float | None = None) -> AsyncIterator[None]:
        deadline = None if timeout is None else self.clock.monotonic() + timeout
        await entered(self.one, "m", now=self.clock.monotonic, deadline=deadline, alarms=self.alarms)
        started = self.clock.monotonic()
        self.most = max(self.most, self.one.running)
        try:
            yield
        finally:
            self.one.leave(self.clock.monotonic(), self.clock.monotonic() - started)

    async def call(self, seconds: float, timeout: float | None = None) -> None:
        async with self.place(timeout):
            await self.clock.sleep(seconds)

    def start(self, seconds: float, timeout: float | None = None) -> asyncio.Task[None]:
        return asyncio.get_running_loop().create_task(self.call(seconds, timeout))

    def assert_empty(self) -> None:
        assert (self.one.running, self.one.waiting, len(self.alarms)) == (0, 0, 0)
        self.alarms.close()
        assert self.clock.sleeping == 0


async def test_never_more_than_the_limit_run_and_all_get_their_turn() -> None:
    house = House(compartment(limit=3, queue=100))
    tasks = [house.start(1.0) for _ in range(20)]
    await house.clock.advance(7.0)
    assert all(task.done() for task in tasks)
    assert house.most == 3
    house.assert_empty()


async def test_a_waiter_is_told_at_its_deadline_and_not_when_a_place_is_free() -> None:
    house = House(compartment())
    long = house.start(100.0)
    await settle()
    short = house.start(1.0, timeout=2.0)
    await house.clock.advance(2.1)
    with pytest.raises(DeadlineExceeded) as caught:
        await short
    assert str(caught.value) == TOO_LATE
    await house.clock.advance(100.0)
    await long
    house.assert_empty()


async def test_a_cancelled_waiter_leaks_nothing() -> None:
    house = House(compartment())
    first, second, third = house.start(1.0), house.start(1.0, timeout=50.0), house.start(1.0)
    await settle()
    second.cancel()
    await house.clock.advance(2.5)
    assert second.cancelled()
    assert first.done()
    assert third.done()
    house.assert_empty()


async def test_a_waiter_cancelled_when_it_has_just_got_its_place_hands_it_on() -> None:
    """The bug of failsafe#393, and of many a semaphore: the place went to somebody who had left."""
    house = House(compartment())
    await entered(house.one, "m", now=house.clock.monotonic, deadline=None, alarms=house.alarms)
    second, third = house.start(1.0), house.start(1.0)
    await settle()
    house.one.leave(0.0, 0.0)
    second.cancel()
    await house.clock.advance(1.5)
    assert second.cancelled()
    assert third.done()
    house.assert_empty()


async def test_eight_waiters_that_give_up_leave_all_eight_places() -> None:
    """failsafe#393: each wait that timed out took a place away for ever."""
    house = House(compartment(limit=8))
    running = [house.start(10.0) for _ in range(8)]
    await settle()
    gone = [house.start(1.0, timeout=1.0) for _ in range(8)]
    await house.clock.advance(11.0)
    assert all(isinstance(task.exception(), DeadlineExceeded) for task in gone)
    assert all(task.done() for task in running)
    house.assert_empty()
    assert [house.one.enter() for _ in range(9)] == [True] * 8 + [False]


async def test_a_cancelled_call_gives_its_place_back_once() -> None:
    """resilience4j#332 and #263: not at all, or twice."""
    house = House(compartment(limit=2))
    tasks = [house.start(10.0) for _ in range(3)]
    await settle()
    tasks[0].cancel()
    await settle()
    assert (house.one.running, house.one.waiting) == (2, 0)
    for task in tasks[1:]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    house.assert_empty()
