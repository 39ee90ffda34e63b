"""Which slots are due, and what their firings are called."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polywire.bus.schedule.cron import MICROSECOND, CronTimes
from polywire.bus.schedule.slots import MAX_MISSED, Due, EveryTimes, due, firing_id, times_of
from polywire.contract.schedule import Cron, Every, Missed

S = MICROSECOND
TEN = EveryTimes(10.0)


@given(st.floats(0.05, 1e6), st.integers(0, 2_000_000_000 * S))
def test_intervals_are_counted_from_the_epoch(seconds: float, moment: int) -> None:
    times = EveryTimes(seconds)
    following = times.next_after(moment)
    assert following % round(seconds * S) == 0
    assert moment < following <= moment + round(seconds * S)


def test_a_declared_schedule_has_its_times() -> None:
    assert isinstance(times_of(Every(60.0)), EveryTimes)
    assert isinstance(times_of(Cron("0 3 * * *", zone="UTC")), CronTimes)


@pytest.mark.parametrize("missed", ["skip", "once", "all"])
def test_a_slot_that_has_come_is_due_and_none_before_it(missed: Missed) -> None:
    assert due(TEN, missed, 10 * S, 20 * S - 1) == Due(slots=())
    assert due(TEN, missed, 10 * S, 20 * S) == Due(slots=(20 * S,))
    assert due(TEN, missed, 20 * S, 25 * S) == Due(slots=())


def test_of_missed_slots_skip_fires_one_that_is_on_time_and_once_the_newest_in_any_case() -> None:
    hour = EveryTimes(3600.0)
    now = 10 * 3600 * S
    assert due(hour, "skip", 0, now + 60 * S).slots == (now,)
    assert due(hour, "skip", 0, now + 61 * S).slots == ()
    assert due(hour, "once", 0, now + 61 * S).slots == (now,)
    assert due(hour, "once", 0, now + 61 * S).passed_over > 0
    assert due(hour, "all", 0, now + 61 * S).slots == tuple(range(3600 * S, now + 1, 3600 * S))


def test_all_makes_up_for_the_last_thousand_only_and_says_so() -> None:
    now = 10_000_000 * S
    found = due(TEN, "all", 0, now)
    assert found.slots == tuple(range(now - 10 * S * (MAX_MISSED - 1), now + 1, 10 * S))
    assert found.passed_over > 0
    assert due(TEN, "all", now - 10 * S * MAX_MISSED, now).passed_over == 0


def test_a_year_of_minutes_is_no_more_work_than_a_day_of_them() -> None:
    asked = 0

    class Counted:
        def next_after(self, moment: int) -> int | None:
            nonlocal asked
            asked += 1
            return EveryTimes(60.0).next_after(moment)

    assert len(due(Counted(), "all", 0, 366 * 86400 * S).slots) == MAX_MISSED
    assert asked < 10 * MAX_MISSED


@given(
    interval=st.integers(1, 500),
    last=st.integers(0, 10_000),
    passed=st.integers(0, 20_000),
    missed=st.sampled_from(["skip", "once", "all"]),
)
def test_due_agrees_with_a_plain_list(interval: int, last: int, passed: int, missed: Missed) -> None:
    now = last + passed
    every = [slot * S for slot in range(last + 1, now + 1) if slot % interval == 0]
    wanted = every[-MAX_MISSED:] if missed == "all" else every[-1:]
    if missed == "skip" and every and now * S - every[-1] > 60 * S:
        wanted = []
    found = due(EveryTimes(float(interval)), missed, last * S, now * S)
    assert list(found.slots) == wanted
    assert (found.passed_over > 0) == (len(every) > len(wanted))


def test_a_firing_has_the_same_id_everywhere_and_another_for_each_name_and_slot() -> None:
    assert firing_id("shop.v1.Reports/Nightly", 1_700_000_000 * S) == "95bab090-1b6b-8cde-a844-e3959a1f9bc4"
    ids = {firing_id(name, slot) for name in ("a", "b", "a1") for slot in (1, 11, 2)}
    assert len(ids) == 9
    assert {uuid.UUID(one).version for one in ids} == {8}
