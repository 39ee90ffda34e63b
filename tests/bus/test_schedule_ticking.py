"""Schedules fire each slot once, whatever the clock, the sender and the other processes do."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from polywire.bus.schedule.cron import MICROSECOND
from polywire.bus.schedule.slots import EveryTimes, firing_id
from polywire.bus.schedule.ticking import Firing, LocalSlots, Planned, SlotStore, Ticker
from polywire.contract.schedule import Missed
from polywire.durable.slots import StoreSlots
from polywire.durable.store.apsw import SqliteStore
from polywire.errors import BackendLost
from polywire.testing.clock import ManualClock, settle

S = MICROSECOND
EPOCH = 1_700_000_000
"""A multiple of ten: of every interval here."""


class Wall(ManualClock):
    """A clock whose time on the wall can be set."""

    def __init__(self) -> None:
        super().__init__(epoch=float(EPOCH))
        self.changed = 0.0

    def time(self) -> float:
        return super().time() + self.changed


def planned(missed: Missed = "once", every: float = 10.0, name: str = "report") -> Planned:
    return Planned(name=name, times=EveryTimes(every), missed=missed)


class Fired(list[int]):
    """The slots fired, in seconds after the start."""

    async def __call__(self, firing: Firing) -> None:
        assert firing.id == firing_id(firing.name, firing.slot)
        self.append(firing.slot // S - EPOCH)


@asynccontextmanager
async def ticking(
    schedule: Planned, fire: Callable[[Firing], Awaitable[object]], slots: SlotStore, clock: ManualClock
) -> AsyncIterator[Ticker]:
    ticker = Ticker([schedule], fire, slots, clock=clock)
    await ticker.start()
    await settle()
    yield ticker
    await ticker.stop()


async def test_each_slot_is_fired_when_it_comes() -> None:
    clock, fired = Wall(), Fired()
    async with ticking(planned(), fired, LocalSlots(), clock):
        await clock.advance(9.9)
        assert fired == []
        await clock.advance(0.1)
        assert fired == [10]
        await clock.advance(30)
    assert fired == [10, 20, 30, 40]
    assert clock.sleeping == 0


async def test_what_was_missed_while_nobody_ran_is_made_up_for_as_declared() -> None:
    for missed, expected in (("skip", []), ("once", [690]), ("all", list(range(20, 691, 10)))):
        clock, fired, slots = Wall(), Fired(), LocalSlots()
        schedule = planned(missed)  # type: ignore[arg-type]  # a parameter, so a str
        async with ticking(schedule, fired, slots, clock):
            await clock.advance(10)
        assert fired == [10]
        fired.clear()
        clock.changed += 685  # 695 s: beyond the minute for which a slot is on time at 700 only
        if missed == "skip":
            slow = Planned(name="report", times=EveryTimes(500.0), missed="skip")
            async with ticking(slow, fired, slots, clock):
                await clock.advance(1)
        else:
            async with ticking(schedule, fired, slots, clock):
                await clock.advance(1)
        assert fired == expected, missed


async def test_a_schedule_seen_for_the_first_time_has_missed_nothing() -> None:
    clock, fired = Wall(), Fired()
    async with ticking(planned("all"), fired, LocalSlots(), clock):
        pass
    assert fired == []


async def test_a_clock_set_forward_misses_slots_and_one_set_back_fires_none_twice() -> None:
    clock, fired = Wall(), Fired()
    async with ticking(planned("all"), fired, LocalSlots(), clock):
        await clock.advance(20)
        clock.changed += 30
        await clock.advance(10)
        assert fired == [10, 20, 30, 40, 50, 60]
        clock.changed -= 40
        await clock.advance(70)
    assert fired == [10, 20, 30, 40, 50, 60, 70, 80, 90]


async def test_a_clock_that_was_far_ahead_stops_nothing_once_it_is_right() -> None:
    clock, fired = Wall(), Fired()
    async with ticking(planned("once"), fired, LocalSlots(), clock):
        await clock.advance(10)
        clock.changed += 365 * 86400
        await clock.advance(10)
        clock.changed = 0
        await clock.advance(30)
    assert fired == [10, 365 * 86400 + 20, 30, 40, 50]


async def test_a_slot_that_cannot_be_sent_is_tried_again_with_the_same_id(caplog: pytest.LogCaptureFixture) -> None:
    clock, ids = Wall(), []

    async def fire(firing: Firing) -> None:
        ids.append(firing.id)
        if len(ids) < 4:
            raise BackendLost("The broker is gone.")

    async with ticking(planned(), fire, LocalSlots(), clock):
        await clock.advance(15)
    assert ids == [firing_id("report", (EPOCH + 10) * S)] * 4
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 3
    assert "The schedule 'report' could not be fired, which is tried again in" in caplog.messages[0]
    assert caplog.messages[0].endswith("s: The broker is gone.")


@pytest.mark.parametrize("missed", ["once", "all"])
async def test_a_slot_that_failed_is_given_up_for_a_newer_one_but_not_with_all(missed: Missed) -> None:
    clock, fired, broken = Wall(), Fired(), True

    async def fire(firing: Firing) -> None:
        if broken:
            raise BackendLost("The broker is gone.")
        await fired(firing)

    async with ticking(planned(missed), fire, LocalSlots(), clock):
        await clock.advance(29)
        broken = False
        await clock.advance(61)
    assert fired == sorted(set(fired))
    assert (fired[:3] == [10, 20, 30]) == (missed == "all")
    assert not {10, 20} & set(fired) or missed == "all"
    assert fired[-1] == 90


async def test_stopping_waits_for_what_is_being_sent_and_begins_nothing() -> None:
    clock, sending, may_end, fired = Wall(), asyncio.Event(), asyncio.Event(), Fired()

    async def fire(firing: Firing) -> None:
        sending.set()
        await may_end.wait()
        await fired(firing)

    slots = LocalSlots()
    ticker = Ticker([planned("all")], fire, slots, clock=clock)
    await ticker.start()
    await settle()
    clock.changed += 35
    await clock.advance(10)
    await sending.wait()
    stopping = asyncio.create_task(ticker.stop())
    await settle()
    assert not stopping.done()
    may_end.set()
    await stopping
    assert fired == [10]
    await ticker.stop()
    async with ticking(planned("all"), fired, slots, clock):
        await settle()
    assert fired == [10, 20, 30, 40]


async def test_cancelling_the_stop_cancels_what_is_being_sent_and_gives_it_back() -> None:
    clock, slots, fired, sending = Wall(), LocalSlots(), Fired(), asyncio.Event()

    async def fire(firing: Firing) -> None:
        sending.set()
        await asyncio.Event().wait()

    ticker = Ticker([planned()], fire, slots, clock=clock)
    await ticker.start()
    await clock.advance(10)
    await sending.wait()
    stopping = asyncio.create_task(ticker.stop())
    await settle()
    stopping.cancel()
    await asyncio.wait([stopping])
    assert stopping.cancelled()
    async with ticking(planned(), fired, slots, clock):
        pass
    assert fired == [10]


# ---- what slots promise, in memory and in a store --------------------------------------------------------------------


@asynccontextmanager
async def some_slots(kind: str, path: Path) -> AsyncIterator[SlotStore]:
    if kind == "memory":
        yield LocalSlots()
        return
    async with SqliteStore(path / "slots.db", upgrade=True) as store:
        yield StoreSlots(store)


KINDS = pytest.mark.parametrize("kind", ["memory", "store"])


@KINDS
async def test_of_all_who_take_a_slot_one_gets_it(kind: str, tmp_path: Path) -> None:
    async with some_slots(kind, tmp_path) as slots:
        assert await slots.begin("report", 5) == 5
        got = await asyncio.gather(*(slots.take("report", 10, newest=False, now=10, until=70) for _ in range(10)))
        assert sorted(got) == [False] * 9 + [True]
        await slots.done("report", 10)
        assert not await slots.take("report", 10, newest=False, now=500, until=600)
        assert await slots.take("other", 10, newest=False, now=10, until=70)
        assert await slots.begin("report", 30) == 10
        assert await slots.begin("report", 9) == 5


@KINDS
async def test_a_slot_left_behind_is_found_when_its_time_is_over_or_it_was_given_back(
    kind: str, tmp_path: Path
) -> None:
    async with some_slots(kind, tmp_path) as slots:
        for slot in (10, 20, 30):
            assert await slots.take("report", slot, newest=False, now=slot, until=slot + 60)
        await slots.done("report", 20)
        assert await slots.left_behind("report", 69) == []
        assert await slots.left_behind("report", 100) == [10, 30]
        await slots.give_back("report", 30)
        assert await slots.left_behind("report", 69) == [30]
        assert await slots.take("report", 30, newest=True, now=69, until=129)
        assert not await slots.take("report", 30, newest=True, now=69, until=129)
        # A later one stands for it, where only the newest is wanted.
        assert not await slots.take("report", 10, newest=True, now=100, until=160)
        assert await slots.left_behind("report", 100) == []


@KINDS
async def test_only_a_later_slot_that_is_not_in_the_future_stands_for_one(kind: str, tmp_path: Path) -> None:
    async with some_slots(kind, tmp_path) as slots:
        assert await slots.take("report", 1000, newest=True, now=1000, until=1060)
        assert await slots.take("report", 10, newest=True, now=15, until=75)
        assert not await slots.take("report", 5, newest=True, now=15, until=75)
        assert await slots.take("report", 5, newest=False, now=15, until=75)


@KINDS
async def test_old_slots_are_forgotten_and_still_never_fired_again(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalSlots, "KEPT", 20)
    monkeypatch.setattr("polywire.durable.slots.KEPT", 20)
    monkeypatch.setattr("polywire.durable.slots.CLEAN_EVERY", 5)
    async with some_slots(kind, tmp_path) as slots:
        await slots.begin("report", 0)
        for slot in range(1, 61):
            assert await slots.take("report", slot, newest=False, now=slot, until=slot + 60)
            await slots.done("report", slot)
        assert not any([await slots.take("report", slot, newest=False, now=60, until=99) for slot in range(1, 61)])
        if isinstance(slots, StoreSlots):
            async with slots._store.read() as view:
                assert await view.fetch_one("SELECT count(*) FROM polywire_slot") == (20,)
