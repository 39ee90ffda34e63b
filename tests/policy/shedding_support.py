"""A service on virtual time: calls that come by chance, one processor, and a dependency; for tests of its limit."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from polywire import Contract, Message, rpc
from polywire.context import Call
from polywire.contract.priority import Priority
from polywire.services import Services
from polywire.testing import ManualClock


class Admission(Protocol):
    @property
    def limit(self) -> int: ...

    def admit(self, priority: int) -> bool: ...

    def read(self, waited: float) -> None: ...

    def answered(self, now: float, seconds: float) -> None: ...

    def cut_short(self, now: float, seconds: float) -> None: ...


@dataclass
class Course:
    """What happened, second by second."""

    latencies: dict[int, list[float]] = field(default_factory=dict)
    """Of the calls that came in this second and were answered in time."""
    shed: dict[int, int] = field(default_factory=dict)
    late: dict[int, int] = field(default_factory=dict)
    limits: list[tuple[float, int]] = field(default_factory=list)
    turned_away: Counter[int] = field(default_factory=Counter)
    """By priority."""
    came: Counter[int] = field(default_factory=Counter)

    def goodput(self, first: int, last: int) -> float:
        """Calls per second answered in time, of those that came in the seconds *first* to *last* (excluded)."""
        return sum(len(self.latencies.get(second, ())) for second in range(first, last)) / (last - first)

    def p99(self, first: int, last: int) -> float:
        found = sorted(x for second in range(first, last) for x in self.latencies.get(second, ()))
        return found[int(len(found) * 0.99)]

    def shed_between(self, first: int, last: int) -> int:
        return sum(self.shed.get(second, 0) for second in range(first, last))

    def limits_between(self, first: float, last: float) -> list[int]:
        return [limit for at, limit in self.limits if first <= at < last]


def simulate(
    admission: Admission,
    *,
    seconds: float,
    rate: Callable[[float], float],
    work: float = 0.005,
    dependency: Callable[[float], float] = lambda now: 0.02,
    deadline: float = 1.0,
    priority: Callable[[random.Random], int] = lambda dice: Priority.NORMAL,
    seed: int = 1,
) -> Course:
    """What happens to calls that come at *rate* per second.

    Each waits for the *dependency* (in parallel) and then needs *work* seconds of the only processor, first come, first
    served, both drawn by chance around these. One whose turn has not come after *deadline* seconds is given up then.
    """
    dice = random.Random(seed)
    course = Course()
    ends: list[tuple[float, int, float]] = []
    ready: list[tuple[float, int, float]] = []
    free_at = 0.0
    number = 0
    now = 0.0
    shown = -1.0
    while now < seconds:
        now += dice.expovariate(rate(now))
        # What became ready before, the processor took in that order.
        while ready and ready[0][0] <= now:
            at, n, came = heapq.heappop(ready)
            start = max(at, free_at)
            late = start - came >= deadline
            free_at = start + (0.0 if late else work * dice.uniform(0.5, 1.5))
            heapq.heappush(ends, (free_at, n, -came if late else came))
        while ends and ends[0][0] <= now:
            at, _, came = heapq.heappop(ends)
            if came < 0:
                admission.cut_short(at, at + came)
                course.late[int(-came)] = course.late.get(int(-came), 0) + 1
            else:
                admission.answered(at, at - came)
                course.latencies.setdefault(int(came), []).append(at - came)
        if now - shown >= 0.05:
            shown = now
            course.limits.append((now, admission.limit))
        whose = priority(dice)
        course.came[whose] += 1
        if admission.admit(whose):
            number += 1
            heapq.heappush(ready, (now + dependency(now) * dice.uniform(0.8, 1.2), number, now))
        else:
            course.turned_away[whose] += 1
            course.shed[int(now)] = course.shed.get(int(now), 0) + 1
    return course


def simulate_turns(
    admission: Admission,
    *,
    seconds: float,
    rate: Callable[[float], float],
    work: float = 0.005,
    dependency: float = 0.02,
    deadline: float = 1.0,
    priority: Callable[[random.Random], int] = lambda dice: Priority.NORMAL,
    seed: int = 1,
) -> Course:
    """As `simulate`, of a service on an event loop: what came meanwhile is read between two turns of it, all at once.

    A turn runs whatever is ready, one after the other. So calls do not come one by one, and those that wait to be read
    are not seen until then; only how long the last turn took says for how long they may have waited.
    """
    dice = random.Random(seed)
    course = Course()
    waiting: list[tuple[float, int, float, float]] = []
    now = lag = shown = 0.0
    number = 0
    due = dice.expovariate(rate(0.0))
    while now < seconds:
        if due <= now:
            admission.read(lag)
        while due <= now:
            number += 1
            whose = priority(dice)
            course.came[whose] += 1
            if admission.admit(whose):
                heapq.heappush(waiting, (now + dependency * dice.uniform(0.8, 1.2), number, due, now - lag))
            else:
                course.turned_away[whose] += 1
                course.shed[int(due)] = course.shed.get(int(due), 0) + 1
            due += dice.expovariate(rate(due))
        began = now
        while waiting and waiting[0][0] <= began:
            _, _, came, arrived = heapq.heappop(waiting)
            if now - came >= deadline:
                admission.cut_short(now, now - arrived)
                course.late[int(came)] = course.late.get(int(came), 0) + 1
                continue
            now += work * dice.uniform(0.5, 1.5)
            admission.answered(now, now - arrived)
            course.latencies.setdefault(int(came), []).append(now - came)
        lag = now - began
        if now == began:
            now = min(due, waiting[0][0] if waiting else due)
        if now - shown >= 0.05:
            shown = now
            course.limits.append((now, admission.limit))
    return course


class Thing(Message, package="restless.v1"):
    number: int = 0


class Restless(Contract, package="restless.v1"):
    @rpc
    async def get(self, thing: Thing) -> Thing:
        raise NotImplementedError


class RestlessService(Restless):
    async def get(self, thing: Thing) -> Thing:
        return thing


class Steered(ManualClock):
    """Moved by whoever has no event loop."""

    def move_to(self, now: float) -> None:
        self._now = now


def simulate_cancels(
    *,
    seconds: float,
    rate: float,
    took: Callable[[float, random.Random], float],
    cancelled: float,
    timeout: float | None = 10.0,
    patience: float | None = None,
    seed: int = 1,
) -> tuple[Services, dict[int, int]]:
    """The services of a process whose calls take as long as they *took* whatever the load, and who was turned away.

    Calls come by chance, *rate* per second. A share of them is *cancelled* by callers, after some part of the time that
    they would have taken, or all after *patience* seconds. Whoever was turned away is counted by the second.
    """
    clock = Steered(start=0.0, seed=seed)
    services = Services([RestlessService()], clock=clock)
    handler = services.handlers["/restless.v1.Restless/Get"]
    dice = random.Random(seed)
    shed: dict[int, int] = {}
    ends: list[tuple[float, int, Call, str]] = []
    now, number = 0.0, 0
    while now < seconds:
        now += dice.expovariate(rate)
        while ends and ends[0][0] <= now:
            at, _, call, code = heapq.heappop(ends)
            clock.move_to(at)
            call.ended_by = "caller" if code == "cancelled" else None
            services._end(handler, call, code, at)
        clock.move_to(now)
        call = Call("restless.v1.Restless/Get", None if timeout is None else now + timeout, clock=clock)
        if services.take_place(handler, call) is not None:
            shed[int(now)] = shed.get(int(now), 0) + 1
            continue
        number += 1
        lasts = took(now, dice)
        if dice.random() < cancelled:
            heapq.heappush(ends, (now + lasts * dice.random(), number, call, "cancelled"))
        elif patience is not None and lasts > patience:
            heapq.heappush(ends, (now + patience, number, call, "cancelled"))
        else:
            heapq.heappush(ends, (now + lasts, number, call, "ok"))
    return services, shed


def simulate_bursts(
    admission: Admission,
    *,
    seconds: float,
    burst: Callable[[float], int],
    every: float,
    took: Callable[[float], float],
    between: float = 0.0,
    seed: int = 1,
) -> dict[int, float]:
    """The share of the calls that was turned away, minute by minute, where they come in a *burst* *every* so often.

    They come by chance as well, *between* of them per second. What they take has nothing to do with the load.
    """
    dice = random.Random(seed)
    times = [every * number for number in range(int(seconds / every)) for _ in range(burst(every * number))]
    now = 0.0
    while between and now < seconds:
        now += dice.expovariate(between)
        times.append(now)
    ends: list[tuple[float, float]] = []
    came: Counter[int] = Counter()
    shed: Counter[int] = Counter()
    for at in sorted(times):
        while ends and ends[0][0] <= at:
            end, began = heapq.heappop(ends)
            admission.answered(end, end - began)
        came[int(at / 60)] += 1
        if admission.admit(Priority.NORMAL):
            heapq.heappush(ends, (at + took(at), at))
        else:
            shed[int(at / 60)] += 1
    return {minute: shed[minute] / came[minute] for minute in came}
