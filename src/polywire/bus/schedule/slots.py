"""Which slots of a schedule are due, and the names of their firings."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from polywire.bus.schedule.cron import MICROSECOND, CronTimes
from polywire.contract.schedule import Cron, Missed, Schedule

MAX_MISSED = 1000
"""Slots that are made up for at once; of more, the last ones."""
ON_TIME = 60.0
"""Seconds for which a slot can be late and still is not missed."""


class Times(Protocol):
    """The moments of a schedule, in microseconds since the epoch, the same in every process."""

    def next_after(self, moment: int) -> int | None:
        """The first one after *moment*, if there is any."""
        ...


class EveryTimes:
    """Every so many seconds since the epoch."""

    def __init__(self, seconds: float) -> None:
        self._interval = round(seconds * MICROSECOND)

    def next_after(self, moment: int) -> int:
        return (moment // self._interval + 1) * self._interval


def times_of(schedule: Schedule) -> Times:
    return CronTimes(schedule) if isinstance(schedule, Cron) else EveryTimes(schedule.seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """What is to be fired now, in order, and how many slots are passed over."""

    slots: tuple[int, ...]
    passed_over: int = 0
    """At least."""


def due(times: Times, missed: Missed, last: int, now: int) -> Due:
    """Of the slots after *last* up to *now*, those to fire: the newest one where it is on time or is to be made up
    for; with `all`, those before it too, at most `MAX_MISSED`."""
    found, more = _newest(times, last, now, MAX_MISSED if missed == "all" else 2)
    if not found:
        return Due(slots=())
    if missed == "all":
        return Due(slots=tuple(found), passed_over=int(more))
    late = missed == "skip" and now - found[-1] > ON_TIME * MICROSECOND
    fired = () if late else (found[-1],)
    return Due(slots=fired, passed_over=len(found) - len(fired) + int(more))


def _newest(times: Times, last: int, now: int, limit: int) -> tuple[Sequence[int], bool]:
    """The last *limit* slots in (*last*, *now*], in order, and whether there are more.

    Walked forwards from ever further back, so that a year of minutes costs no more than a day of them.
    """
    span = 60 * MICROSECOND
    while True:
        begin = max(last, now - span)
        found = list(_walk(times, begin, now))
        if begin == last or len(found) > limit:
            return found[-limit:], len(found) > limit
        span *= 4


def _walk(times: Times, after: int, until: int) -> Iterator[int]:
    slot = times.next_after(after)
    while slot is not None and slot <= until:
        yield slot
        slot = times.next_after(slot)


def firing_id(name: str, slot: int) -> str:
    """Of the message of a firing: the same in every process, so that all but one of them are dropped."""
    digest = hashlib.sha256(f"polywire schedule\0{name}\0{slot}".encode()).digest()
    # Version 8 of RFC 9562 is for ids of one's own making.
    number = int.from_bytes(digest[:16], "big") & ~(0xF << 76) & ~(0x3 << 62) | (8 << 76) | (2 << 62)
    return str(uuid.UUID(int=number))
