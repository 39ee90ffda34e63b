"""Fires the slots of schedules, each once among all processes that have them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from polywire.bus.schedule.cron import MICROSECOND
from polywire.bus.schedule.slots import ON_TIME, Times, due, firing_id
from polywire.clock import SYSTEM_CLOCK, Clock, Timer
from polywire.contract.schedule import Missed
from polywire.errors import PolywireError

LOOK = 10.0
"""Seconds between two looks at the clock on the wall, which may be changed, and at what others left behind."""
LEASE = 60.0
"""Seconds after which a slot is somebody else's that was taken and not fired."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 30.0
"""Seconds before what failed is tried again."""

logger = logging.getLogger("polywire.bus.schedule")


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A schedule of the system, under a name that is its own: `shop.v1.Reports/Nightly`."""

    name: str
    times: Times
    missed: Missed


@dataclass(frozen=True, slots=True, kw_only=True)
class Firing:
    name: str
    slot: int
    """When it was to happen, in microseconds since the epoch."""
    id: str
    """Of the message: the same in every process and in every attempt."""


class SlotStore(Protocol):
    """Remembers which slots were fired. Moments are in microseconds since the epoch.

    * Of all who `take` a slot, one gets it, until it calls `done` or `give_back`, or its time is over.
    """

    async def begin(self, name: str, now: int) -> int:
        """Up to where the schedule has come: its newest slot that was taken and is not in the future, or *now* where
        it is seen for the first time."""
        ...

    async def take(self, name: str, slot: int, *, newest: bool, now: int, until: int) -> bool:
        """Whether it is ours now. *newest*: not where somebody has taken a later one that is not in the future."""
        ...

    async def done(self, name: str, slot: int) -> None: ...

    async def give_back(self, name: str, slot: int) -> None:
        """Anybody may take it at once."""

    async def left_behind(self, name: str, now: int) -> list[int]:
        """Slots whose time is over or that were given back, oldest first, 100 at most."""
        ...


class LocalSlots:
    """Slots in memory: of one process, or before a backend that drops a second message of the same id (`Guarantees.
    deduplicate`). What was missed while no process ran is not known to it."""

    KEPT = 2000

    def __init__(self) -> None:
        self._began: dict[str, int] = {}
        self._slots: dict[str, dict[int, int | None]] = {}
        """By schedule and slot: until when it is somebody's, or None where it is done."""

    async def begin(self, name: str, now: int) -> int:
        began = self._began.setdefault(name, now)
        return max([min(began, now), *(slot for slot in self._slots.get(name, ()) if slot <= now)])

    async def take(self, name: str, slot: int, *, newest: bool, now: int, until: int) -> bool:
        slots = self._slots.setdefault(name, {})
        held = slots.get(slot, 0)
        if held is None or held > now or (slot not in slots and slot <= self._floor(name)):
            return False
        if newest and any(slot < other <= now for other in slots):
            slots.pop(slot, None)
            return False
        slots[slot] = until
        return True

    def _floor(self, name: str) -> int:
        """Older ones are forgotten, and done."""
        slots = self._slots[name]
        return min(slots) if len(slots) >= self.KEPT else -1

    async def done(self, name: str, slot: int) -> None:
        slots = self._slots[name]
        slots[slot] = None
        for old in sorted(slots)[: -self.KEPT]:
            del slots[old]

    async def give_back(self, name: str, slot: int) -> None:
        self._slots[name][slot] = 0

    async def left_behind(self, name: str, now: int) -> list[int]:
        held = self._slots.get(name, {})
        return sorted(slot for slot, until in held.items() if until is not None and until <= now)[:100]


class Ticker:
    """Runs schedules until it is stopped. Every process that has them runs one; each slot is fired by one of them.

    *fire* sends the message of a firing, and returns once it is durable. Where it raises, the slot is given back and
    tried again, by this process or another one, with the same id: behind the inbox a second message does nothing.
    Time is that of the wall; where it jumps, slots in between are missed ones, and none is fired twice.
    """

    def __init__(
        self,
        schedules: Sequence[Planned],
        fire: Callable[[Firing], Awaitable[object]],
        slots: SlotStore,
        *,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._schedules = schedules
        self._fire = fire
        self._slots = slots
        self._clock = clock
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        self._pauses: set[asyncio.Future[None]] = set()

    async def start(self) -> None:
        if self._tasks or self._stopping:
            raise RuntimeError("A ticker is started once.")
        self._tasks = [asyncio.create_task(self._run(planned)) for planned in self._schedules]

    async def stop(self) -> None:
        """Begin no further firing, and wait for those under way. May be called twice; cancelling it cancels them."""
        self._stopping = True
        for pause in self._pauses:
            if not pause.done():
                pause.set_result(None)
        try:
            await asyncio.gather(*self._tasks)
        except asyncio.CancelledError:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            raise

    def _now(self) -> int:
        return int(self._clock.time() * MICROSECOND)

    # ---- one schedule ------------------------------------------------------------------------------------------------

    async def _run(self, planned: Planned) -> None:
        failures = 0
        last: int | None = None
        while not self._stopping:
            try:
                if last is None:
                    last = await self._slots.begin(planned.name, self._now())
                last = await self._catch_up(planned, last)
            except Exception as error:  # noqa: BLE001 - the schedule has to go on, whatever it was
                failures += 1
                pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(failures - 1, 16))
                pause *= 0.5 + self._clock.random() / 2  # so that processes do not try again together
                self._tell(planned, error, pause)
                await self._wait(pause)
            else:
                failures = 0
                await self._wait(self._until_next(planned, last))

    def _tell(self, planned: Planned, error: Exception, pause: float) -> None:
        logger.error(
            "The schedule %r could not be fired, which is tried again in %.3g s: %s",
            planned.name,
            pause,
            error,
            exc_info=None if isinstance(error, PolywireError) else error,
        )

    async def _catch_up(self, planned: Planned, last: int) -> int:
        """Fire what is due. Up to where it came; a slot that fails stays due, and is raised."""
        now = self._now()
        if now < last:
            # The clock was set back. What it has shown before is remembered, and not fired again.
            last = await self._slots.begin(planned.name, now)
        await self._take_over(planned, last, now)
        found = due(planned.times, planned.missed, last, now)
        if found.passed_over:
            self._tell_passed_over(planned, found.passed_over)
        for slot in found.slots:
            if self._stopping:
                return last
            await self._attempt(planned, slot)
            last = slot
        return now

    async def _take_over(self, planned: Planned, last: int, now: int) -> None:
        """Fire what somebody took and did not fire."""
        for slot in await self._slots.left_behind(planned.name, now):
            if self._stopping:
                return
            if self._is_over(planned, slot, last, now):
                self._tell_passed_over(planned, 1)
                await self._slots.done(planned.name, slot)
            else:
                await self._attempt(planned, slot)

    def _is_over(self, planned: Planned, slot: int, last: int, now: int) -> bool:
        if planned.missed == "all":
            return False
        newer = planned.times.next_after(max(slot, last))
        late = planned.missed == "skip" and now - slot > ON_TIME * MICROSECOND
        return late or (newer is not None and newer <= now)

    def _tell_passed_over(self, planned: Planned, count: int) -> None:
        logger.warning(
            "The schedule %r passed over %d missed slots or more (missed=%r).", planned.name, count, planned.missed
        )

    async def _attempt(self, planned: Planned, slot: int) -> None:
        now = self._now()
        until = now + int(LEASE * MICROSECOND)
        newest = planned.missed != "all"
        if not await self._slots.take(planned.name, slot, newest=newest, now=now, until=until):
            return
        try:
            await self._fire(Firing(name=planned.name, slot=slot, id=firing_id(planned.name, slot)))
        except BaseException:
            await self._slots.give_back(planned.name, slot)
            raise
        await self._slots.done(planned.name, slot)

    # ---- waiting -----------------------------------------------------------------------------------------------------

    def _until_next(self, planned: Planned, last: int) -> float:
        following = planned.times.next_after(last)
        if following is None:
            return LOOK
        return min(LOOK, max(0.0, (following - self._now()) / MICROSECOND))

    async def _wait(self, seconds: float) -> None:
        if self._stopping:
            return
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        timer: Timer = self._clock.call_later(seconds, lambda: None if over.done() else over.set_result(None))
        self._pauses.add(over)
        try:
            await over
        finally:
            self._pauses.discard(over)
            timer.cancel()
