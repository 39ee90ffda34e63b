"""Deadlines: many alarms, one timer."""

from __future__ import annotations

import gc
import weakref

from polywire.policy.deadline import SLOTS_PER_SECOND, Deadlines
from polywire.testing import ManualClock

SLOT = 1 / SLOTS_PER_SECOND


class Bell:
    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.rang: list[float] = []

    def expire(self) -> None:
        self.rang.append(self.clock.monotonic())


async def test_an_alarm_rings_once_never_early_and_at_most_a_slot_late() -> None:
    clock = ManualClock()
    deadlines = Deadlines(clock)
    bells = {delay: Bell(clock) for delay in (0.0, 0.001, 0.1, 0.1234, 3.0)}
    start = clock.monotonic()
    for delay, bell in bells.items():
        deadlines.add(start + delay, bell)
    await clock.advance(10)
    for delay, bell in bells.items():
        assert len(bell.rang) == 1
        assert 0 <= bell.rang[0] - (start + delay) <= SLOT


async def test_a_discarded_alarm_does_not_ring_and_leaves_nothing_behind() -> None:
    clock = ManualClock()
    deadlines = Deadlines(clock)
    bell, other = Bell(clock), Bell(clock)
    slot = deadlines.add(clock.monotonic() + 1, bell)
    deadlines.add(clock.monotonic() + 1, other)
    slot.discard(bell)
    assert len(deadlines) == 1
    await clock.advance(2)
    assert (len(bell.rang), len(other.rang), len(deadlines)) == (0, 1, 0)
    assert clock.sleeping == 0


async def test_an_earlier_alarm_set_later_rings_in_time() -> None:
    clock = ManualClock()
    deadlines = Deadlines(clock)
    late, early = Bell(clock), Bell(clock)
    start = clock.monotonic()
    deadlines.add(start + 5, late)
    deadlines.add(start + 1, early)
    await clock.advance(1 + SLOT)
    assert len(early.rang) == 1
    assert late.rang == []
    await clock.advance(5)
    assert len(late.rang) == 1


async def test_an_alarm_may_set_another_one_while_it_rings() -> None:
    clock = ManualClock()
    deadlines = Deadlines(clock)
    second = Bell(clock)

    class Chain:
        def expire(self) -> None:
            deadlines.add(clock.monotonic() + 1, second)

    deadlines.add(clock.monotonic() + 1, Chain())
    await clock.advance(3)
    assert len(second.rang) == 1


async def test_closing_silences_everything() -> None:
    clock = ManualClock()
    deadlines = Deadlines(clock)
    bell = Bell(clock)
    deadlines.add(clock.monotonic() + 1, bell)
    deadlines.close()
    await clock.advance(2)
    assert bell.rang == []
    assert clock.sleeping == 0


async def test_alarms_of_one_moment_may_take_each_other_back_while_they_ring() -> None:
    clock = ManualClock()
    deadlines = Deadlines(clock)
    rang: list[str] = []

    class Twin:
        def __init__(self, name: str) -> None:
            self.name = name
            self.slot = deadlines.add(clock.monotonic() + 1, self)

        def expire(self) -> None:
            rang.append(self.name)
            for twin in twins:
                twin.slot.discard(twin)

    twins = [Twin("first"), Twin("second")]
    later = Bell(clock)
    deadlines.add(clock.monotonic() + 2, later)
    await clock.advance(3)
    assert sorted(rang) == ["first", "second"]
    assert len(later.rang) == 1
    for twin in twins:
        twin.slot.discard(twin)


async def test_what_has_gone_off_is_not_left_to_the_garbage_collector() -> None:
    clock = ManualClock()
    deadlines = Deadlines(clock)

    class Holder:
        def __init__(self) -> None:
            self.slot = deadlines.add(clock.monotonic() + 1, self)

        def expire(self) -> None:
            """It keeps its slot."""

    holder = Holder()
    seen = weakref.ref(holder)
    gc.disable()
    try:
        await clock.advance(2)
        del holder
        assert seen() is None
    finally:
        gc.enable()
