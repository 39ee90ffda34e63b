"""How many calls to a target may be under way at once, and who waits for their turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import Enum

from polywire.contract.policies import Bulkhead
from polywire.errors import CallError, DeadlineExceeded, ResourceExhausted
from polywire.policy.deadline import Deadlines

SMOOTHING = 0.1
"""Weight of the last call in what calls are expected to take."""


class Place(Enum):
    WAITING = "waiting"
    ADMITTED = "admitted"
    DROPPED = "dropped"
    GONE = "gone"


class Waiter:
    """A call that waits for its turn in a `Compartment`."""

    __slots__ = ("_compartment", "deadline", "error", "method", "place", "wake")

    def __init__(
        self, compartment: Compartment, method: str, deadline: float | None, wake: Callable[[], object]
    ) -> None:
        self._compartment = compartment
        self.method = method
        self.deadline = deadline
        self.wake = wake
        self.place = Place.WAITING
        self.error: CallError | None = None
        """Why it was dropped."""

    def expire(self) -> None:
        """Its deadline has come (`polywire.policy.deadline.Expiring`)."""
        self._compartment.expire(self)


class Compartment:
    """The state machine behind a `Bulkhead`.

    Whoever was let in by `enter`, or admitted after `line_up`, calls `leave` once. A waiter that is given up calls
    `give_up`, whatever became of it in the meantime: a place that it was just handed goes to the next one. Nobody
    waits while a place is free. All times are on one monotonic scale in seconds.
    """

    def __init__(self, policy: Bulkhead, name: str) -> None:
        """*name*: whose it is, for people."""
        self.policy = policy
        self.name = name
        self.running = 0
        self.typical = 0.0
        """Seconds that a call is expected to hold its place: a moving average."""
        self._limit = policy.limit
        self._newest_first = policy.order == "lifo"
        self._waiters: dict[Waiter, None] = {}
        """In the order they came."""

    @property
    def waiting(self) -> int:
        return len(self._waiters)

    def enter(self) -> bool:
        """Take a free place. False where there is none."""
        if self.running < self._limit:
            self.running += 1
            return True
        return False

    def line_up(self, method: str, now: float, deadline: float | None, wake: Callable[[], object]) -> Waiter:
        """Wait for a place, after `enter` found none: *wake* is called, and must not raise, once that is decided.

        Raises ResourceExhausted where the queue is full, and DeadlineExceeded where the turn would come too late.
        """
        policy = self.policy
        if len(self._waiters) >= policy.queue and not (self._newest_first and policy.queue):
            raise self._full(method)
        ahead = 0 if self._newest_first else len(self._waiters)
        turn = now + (ahead + 1) * self.typical / self._limit
        if deadline is not None and turn + self.typical > deadline:
            raise self._too_late(method)
        if len(self._waiters) >= policy.queue:
            # The oldest one waits for a turn that the newer ones take: it is the least likely to be in time.
            oldest = next(iter(self._waiters))
            self._drop(oldest, self._full(oldest.method))
        waiter = Waiter(self, method, deadline, wake)
        self._waiters[waiter] = None
        return waiter

    def leave(self, now: float, seconds: float) -> None:
        """Give a place back after *seconds*; the next waiter gets it."""
        self.typical += SMOOTHING * (seconds - self.typical)
        if self._waiters:
            self._hand_over(now)
        else:
            self.running -= 1

    def give_up(self, waiter: Waiter, now: float) -> None:
        """Whoever waited was cancelled."""
        place, waiter.place = waiter.place, Place.GONE
        if place is Place.WAITING:
            del self._waiters[waiter]
        elif place is Place.ADMITTED:
            self._hand_over(now)

    def expire(self, waiter: Waiter) -> None:
        """The deadline of *waiter* has come; nothing happens where it waits no longer."""
        if waiter.place is Place.WAITING:
            self._drop(waiter, self._too_late(waiter.method))

    def _hand_over(self, now: float) -> None:
        """Give a place that is taken to the next waiter that can still make its deadline, or free it."""
        while self._waiters:
            waiter = next(reversed(self._waiters)) if self._newest_first else next(iter(self._waiters))
            if waiter.deadline is not None and now + self.typical > waiter.deadline:
                self._drop(waiter, self._too_late(waiter.method))
                continue
            del self._waiters[waiter]
            waiter.place = Place.ADMITTED
            waiter.wake()
            return
        self.running -= 1

    def _drop(self, waiter: Waiter, error: CallError) -> None:
        del self._waiters[waiter]
        waiter.place = Place.DROPPED
        waiter.error = error
        waiter.wake()

    def _full(self, method: str) -> ResourceExhausted:
        queue = self.policy.queue
        return ResourceExhausted(
            f"{method} was not called: {self._limit} calls to {self.name} are under way and "
            f"{'none may wait' if not queue else f'{queue} wait'}. See what keeps them, or raise `Bulkhead(limit=...)`."
        )

    def _too_late(self, method: str) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"{method} was not called: with {self._limit} calls to {self.name} under way its turn would have come too "
            "late for its deadline. See what keeps them, or raise `Bulkhead(limit=...)` or the timeout."
        )


async def entered(
    compartment: Compartment, method: str, *, now: Callable[[], float], deadline: float | None, alarms: Deadlines
) -> None:
    """Back with a place in *compartment*, which the caller leaves later. Raises what `line_up` does.

    *alarms* ends the wait at the deadline; the place of a caller that is cancelled goes to the next one.
    """
    if compartment.enter():
        return
    turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def wake() -> None:
        if not turn.done():
            turn.set_result(None)

    waiter = compartment.line_up(method, now(), deadline, wake)
    slot = None if deadline is None else alarms.add(deadline, waiter)
    try:
        await turn
    except BaseException:
        compartment.give_up(waiter, now())
        raise
    finally:
        if slot is not None:
            slot.discard(waiter)
    if waiter.error is not None:
        raise waiter.error
