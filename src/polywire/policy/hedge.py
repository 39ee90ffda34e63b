"""Whether and when a call is sent again before its answer is there."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from polywire.clock import Clock
from polywire.contract.policies import Hedge
from polywire.errors import Aborted, CallError, DeadlineExceeded, ResourceExhausted, Unavailable
from polywire.policy.retry import RetryBudget

T = TypeVar("T")

PAUSE = 1.0
"""Seconds without copies after a target said not to come again."""


class Latencies:
    """How long the last calls took, and within which time 95 % of them were answered."""

    SIZE = 128
    EVERY = 16
    """Calls after which that is looked at anew."""
    LEAST = 32
    """Calls before it is known at all."""

    def __init__(self) -> None:
        self._last: list[float] = []
        self._next = 0
        self._fresh = 0
        self.p95: float | None = None

    def add(self, seconds: float) -> None:
        if len(self._last) < self.SIZE:
            self._last.append(seconds)
        else:
            self._last[self._next] = seconds
            self._next = (self._next + 1) % self.SIZE
        self._fresh += 1
        if self._fresh >= self.EVERY and len(self._last) >= self.LEAST:
            self._fresh = 0
            self.p95 = sorted(self._last)[math.ceil(len(self._last) * 0.95) - 1]


class Hedging:
    """What is known for the copies of calls of one method to one target.

    *budget* is that of the retries: a copy is one more attempt that the target has to bear.
    """

    def __init__(self, policy: Hedge, *, idempotent: bool, budget: RetryBudget) -> None:
        self.policy = policy
        self.budget = budget
        self.copies = 0
        """How many were sent in all."""
        self._allowed = idempotent and policy.enabled
        self._latencies = Latencies()
        self._paused_until = -math.inf

    def answered(self, seconds: float) -> None:
        """A call was answered, *seconds* after its first copy was sent.

        From the first, whichever copy it was: the time of a copy alone would make calls look faster than they are, so
        that copies are sent sooner and sooner.
        """
        if self._allowed and self.policy.after is None:
            self._latencies.add(seconds)

    def delay(self, now: float) -> float | None:
        """Seconds after which the next copy of a call is due; None where there is to be none."""
        if not self._allowed or now < self._paused_until:
            return None
        after = self._latencies.p95 if self.policy.after is None else self.policy.after
        return None if after is None else max(after, self.policy.at_least)

    def refused(self, retry_after: float, now: float) -> None:
        """The target pushed back, by *retry_after* seconds or, where that is negative, without saying how long."""
        self._paused_until = max(self._paused_until, now + (PAUSE if retry_after < 0 else retry_after))


class Race:
    """The copies of one call: when the next one is due, and what the failure of one means."""

    def __init__(self, hedging: Hedging, now: float, deadline: float | None) -> None:
        self._hedging = hedging
        self._deadline = deadline
        self._left = hedging.policy.copies
        self._started = now
        self.due: float | None = None
        """When the next copy is to be sent; None: never."""
        self._plan(now)

    def copy(self, now: float) -> bool:
        """Take leave to send the copy that is due. False: there will be no more."""
        self.due = None
        delay = self._hedging.delay(now)
        too_late = self._deadline is not None and now >= self._deadline
        if delay is None or too_late or not self._hedging.budget.take(now):
            return False
        self._left -= 1
        self._hedging.copies += 1
        self._plan(now)
        return True

    def failed(self, error: CallError, now: float) -> bool:
        """One of the copies failed. True: so does the call. False: the others go on, and the next is due at once."""
        if error.retry_after is not None:
            # Whoever pushes back gets no more of them, neither of this call nor of others for a while.
            self._hedging.refused(error.retry_after, now)
            self._left = 0
        self.due = now if self._left else None
        return not isinstance(error, Unavailable | DeadlineExceeded | Aborted | ResourceExhausted)

    def answered(self, now: float) -> None:
        self._hedging.answered(now - self._started)

    def _plan(self, now: float) -> None:
        delay = self._hedging.delay(now)
        self.due = None if delay is None or not self._left else now + delay
        if self.due is not None and self._deadline is not None and self.due >= self._deadline:
            self.due = None


async def hedged(
    hedging: Hedging,
    send: Callable[[int], Coroutine[Any, Any, T]],
    *,
    clock: Clock,
    deadline: float | None = None,
) -> T:
    """The first answer to `send(0)`, or to its copies `send(1)` and on; the others are cancelled, and awaited.

    Raises the error that ends the call: one that another copy would meet as well, or the last one.
    """
    race = Race(hedging, clock.monotonic(), deadline)
    if race.due is None:
        answer = await send(0)
        race.answered(clock.monotonic())
        return answer
    copies = _Copies(race, send, clock)
    try:
        return await copies.first()
    finally:
        await copies.end()


class _Copies(Generic[T]):
    """The tasks of one hedged call."""

    def __init__(self, race: Race, send: Callable[[int], Coroutine[Any, Any, T]], clock: Clock) -> None:
        self._race = race
        self._send = send
        self._clock = clock
        self._sent = 0
        self._running: set[asyncio.Task[T]] = set()

    async def first(self) -> T:
        self._start()
        error: CallError | None = None
        while self._running:
            for task in await self._ended():
                self._running.discard(task)
                try:
                    answer = task.result()
                except CallError as failure:
                    error = failure
                    if self._sent > 1 and isinstance(failure, Unavailable):
                        failure.reached = "maybe"  # by another copy
                    if self._race.failed(failure, self._clock.monotonic()):
                        raise
                else:
                    self._race.answered(self._clock.monotonic())
                    return answer
            due = self._race.due
            now = self._clock.monotonic()
            if due is not None and now >= due and self._race.copy(now):
                self._start()
        assert error is not None  # noqa: S101 - each task that ended without an answer left one
        raise error

    def _start(self) -> None:
        self._running.add(asyncio.get_running_loop().create_task(self._send(self._sent)))
        self._sent += 1

    async def _ended(self) -> set[asyncio.Task[T]]:
        """The copies that have ended, as soon as there is one; none where the next one is due before."""
        if self._race.due is None:
            return (await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED))[0]
        alarm: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        wait = max(0.0, self._race.due - self._clock.monotonic())
        timer = self._clock.call_later(wait, lambda: alarm.cancel())
        try:
            waiting: list[asyncio.Future[Any]] = [*self._running, alarm]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()
        return {task for task in self._running if task.done()}

    async def end(self) -> None:
        """Cancel the copies that are left, and be back when they have given everything back."""
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running)
        for task in self._running:
            if not task.cancelled():
                task.exception()  # it lost, and nobody else asks
