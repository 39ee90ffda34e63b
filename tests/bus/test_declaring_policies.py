"""Retry policies and schedules as values: defaults, limits, and what cannot be meant."""

from __future__ import annotations

from typing import Any

import pytest

from polywire.contract import FOR_CALLS, FOR_MESSAGES, Cron, Every, Retry
from polywire.errors import ContractError


def test_what_a_policy_leaves_open_is_filled_in_by_who_tries() -> None:
    assert Retry().over(FOR_CALLS) == FOR_CALLS
    assert (FOR_CALLS.attempts, FOR_CALLS.base, FOR_CALLS.cap) == (3, 0.05, 2.0)
    assert (FOR_MESSAGES.attempts, FOR_MESSAGES.base, FOR_MESSAGES.cap) == (5, 1.0, 300.0)
    filled = Retry(attempts=9, give_up_on=(ValueError,)).over(FOR_MESSAGES)
    assert (filled.attempts, filled.base, filled.cap, filled.give_up_on) == (9, 1.0, 300.0, (ValueError,))


def test_an_exception_is_repeated_unless_something_says_otherwise() -> None:
    assert FOR_MESSAGES.repeats(ValueError())
    picky = Retry(retry_on=(OSError,), give_up_on=(FileNotFoundError,)).over(FOR_MESSAGES)
    assert picky.repeats(ConnectionError())
    assert not picky.repeats(ValueError())
    assert not picky.repeats(FileNotFoundError())


def test_the_wait_of_a_late_attempt_is_the_cap_and_no_overflow() -> None:
    assert FOR_MESSAGES.delay(1_000_000, 0.5) == 150.0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"attempts": 0}, "Retry(attempts=0): the first attempt counts, so there is at least 1."),
        ({"base": -1}, "Retry(base=-1): a wait is a number of seconds, 0 or more."),
        ({"cap": float("nan")}, "Retry(cap=nan): a wait is a number of seconds, 0 or more."),
        (
            {"retry_on": OSError},
            "Retry(retry_on=<class 'OSError'>): give a tuple of exception classes, retry_on=(OSError,).",
        ),
        ({"give_up_on": (5,)}, "Retry(give_up_on=(5,)): give a tuple of exception classes, give_up_on=(OSError,)."),
    ],
)
def test_a_policy_that_means_nothing_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ContractError) as refused:
        Retry(**options)
    assert str(refused.value) == sentence


def test_a_cron_line_is_read_into_what_it_allows() -> None:
    fields = Cron("*/20 8-18/5,23 1,15 jan-mar Mon-FRI", zone="UTC").fields()
    assert fields.minutes == {0, 20, 40}
    assert fields.hours == {8, 13, 18, 23}
    assert fields.days == {1, 15}
    assert fields.months == {1, 2, 3}
    assert fields.weekdays == {1, 2, 3, 4, 5}


def test_sunday_has_two_numbers_and_a_start_with_a_step_goes_to_the_end() -> None:
    assert Cron("0 0 * * 7", zone="UTC").fields().weekdays == {0}
    assert Cron("50/3 0 * * *", zone="UTC").fields().minutes == {50, 53, 56, 59}


def test_two_restricted_kinds_of_days_are_alternatives_as_in_cron() -> None:
    both = Cron("0 0 13 * fri", zone="UTC").fields()
    assert both.fits_day(1, 13, 3)
    assert both.fits_day(1, 12, 5)
    assert not both.fits_day(1, 12, 3)
    only = Cron("0 0 13 2 *", zone="UTC").fields()
    assert only.fits_day(2, 13, 3)
    assert not only.fits_day(3, 13, 3)
    assert not only.fits_day(2, 12, 3)


@pytest.mark.parametrize("line", ["@hourly", "@daily", "@weekly", "@monthly", "@yearly"])
def test_macros_are_lines(line: str) -> None:
    assert 0 in Cron(line, zone="UTC").fields().minutes


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            "0 3 * *",
            "Cron('0 3 * *') has 4 fields instead of 5: minute, hour, day of month, month, day of week, as in "
            "'0 3 * * *'.",
        ),
        ("60 3 * * *", "Cron('60 3 * * *'): '60' is no minute. It takes 0 to 59."),
        ("0 3 * foo *", "Cron('0 3 * foo *'): 'foo' is no month. It takes 1 to 12, or jan to dec."),
        ("0 3 0 * *", "Cron('0 3 0 * *'): '0' is no day of month. It takes 1 to 31."),
        ("0 3 * * 8", "Cron('0 3 * * 8'): '8' is no day of week. It takes 0 to 7, or sun to sat."),
        ("5-1 3 * * *", "Cron('5-1 3 * * *'): the minute '5-1' runs backwards. Write it as two ranges."),
        ("*/0 3 * * *", "Cron('*/0 3 * * *'): '0' is no minute. It takes 1 to 59."),
        (", 3 * * *", "Cron(', 3 * * *'): '' is no minute. It takes 0 to 59."),
        ("0 3 30 2 *", "Cron('0 3 30 2 *') names a day that no month of it has: it would never run."),
        ("\u0661 3 * * *", "Cron('\u0661 3 * * *'): '\u0661' is no minute. It takes 0 to 59."),
    ],
)
def test_a_cron_line_that_is_none_says_which_field(line: str, sentence: str) -> None:
    with pytest.raises(ContractError) as refused:
        Cron(line, zone="UTC")
    assert str(refused.value) == sentence


@pytest.mark.parametrize("zone", ["Europe/Atlantis", "", "../etc/passwd", "Europe"])
def test_a_zone_has_to_exist(zone: str) -> None:
    with pytest.raises(ContractError) as refused:
        Cron("0 3 * * *", zone=zone)
    assert str(refused.value) == (
        f"Cron('0 3 * * *', zone={zone!r}): there is no such time zone here. Write it like 'Europe/Berlin' or 'UTC'; "
        "where the system has no zones, `pip install tzdata` brings them."
    )


def test_an_interval_has_limits_and_missed_slots_a_choice() -> None:
    with pytest.raises(ContractError, match=r"^Every\(0.5\): an interval has at least 1 s and at most 31622400 s\.$"):
        Every(0.5)
    with pytest.raises(ContractError, match=r"^Every\(missed='never'\): choose 'skip', 'once' or 'all'\.$"):
        Every(60, missed="never")  # type: ignore[arg-type]  # wrong on purpose
