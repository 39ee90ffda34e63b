"""The moments of cron lines, against a walk over every minute, and over changes of the clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polywire.bus.schedule.cron import MICROSECOND, CronTimes
from polywire.contract.schedule import Cron, CronFields

ZONES = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/St_Johns",
    "Australia/Lord_Howe",  # changes by half an hour
    "Africa/Cairo",  # changes at midnight
    "America/Havana",  # and back to the day before
    "Asia/Kathmandu",
    "Pacific/Apia",  # was without a 30 December 2011
]


def at(text: str, zone: str) -> int:
    moment = datetime.fromisoformat(text)
    moment = moment.replace(tzinfo=ZoneInfo(zone), fold=moment.fold) if moment.tzinfo is None else moment
    return int(moment.timestamp()) * MICROSECOND


def shown(moment: int | None, zone: str) -> str:
    assert moment is not None
    return datetime.fromtimestamp(moment // MICROSECOND, ZoneInfo(zone)).isoformat(timespec="minutes")


def next_ones(line: str, zone: str, after: str, count: int) -> list[str]:
    times, moment, found = CronTimes(Cron(line, zone=zone)), at(after, zone), []
    for _ in range(count):
        following = times.next_after(moment)
        assert following is not None
        moment = following
        found.append(shown(moment, zone))
    return found


def test_a_time_that_the_clock_skips_comes_right_after_the_change() -> None:
    assert next_ones("30 2 * * *", "Europe/Berlin", "2025-03-29T12:00", 3) == [
        "2025-03-30T03:00+02:00",
        "2025-03-31T02:30+02:00",
        "2025-04-01T02:30+02:00",
    ]


def test_all_times_that_the_clock_skips_come_together_as_one() -> None:
    assert next_ones("*/20 2,3 * * *", "Europe/Berlin", "2025-03-29T12:00", 3) == [
        "2025-03-30T03:00+02:00",
        "2025-03-30T03:20+02:00",
        "2025-03-30T03:40+02:00",
    ]


def test_a_time_that_the_clock_shows_twice_comes_the_first_time() -> None:
    assert next_ones("30 2 * * *", "Europe/Berlin", "2025-10-25T12:00", 2) == [
        "2025-10-26T02:30+02:00",
        "2025-10-27T02:30+01:00",
    ]
    # Also where somebody asks in the hour that comes again.
    again = datetime(2025, 10, 26, 2, 10, tzinfo=ZoneInfo("Europe/Berlin"), fold=1)
    times = CronTimes(Cron("30 2 * * *", zone="Europe/Berlin"))
    moment = times.next_after(int(again.timestamp()) * MICROSECOND)
    assert shown(moment, "Europe/Berlin") == "2025-10-27T02:30+01:00"


def test_a_line_of_every_hour_runs_on_evenly_over_a_change() -> None:
    assert next_ones("30 * * * *", "Europe/Berlin", "2025-03-30T00:45", 3) == [
        "2025-03-30T01:30+01:00",
        "2025-03-30T03:30+02:00",
        "2025-03-30T04:30+02:00",
    ]
    assert next_ones("30 * * * *", "Europe/Berlin", "2025-10-26T01:45", 3) == [
        "2025-10-26T02:30+02:00",
        "2025-10-26T02:30+01:00",
        "2025-10-26T03:30+01:00",
    ]


def test_midnight_that_is_skipped_comes_when_the_day_begins() -> None:
    assert next_ones("0 0 * * *", "Africa/Cairo", "2024-04-25T12:00", 2) == [
        "2024-04-26T01:00+03:00",
        "2024-04-27T00:00+03:00",
    ]
    assert next_ones("0 12 30 12 *", "Pacific/Apia", "2011-12-01T00:00", 2) == [
        "2011-12-31T00:00+14:00",
        "2012-12-30T12:00+14:00",
    ]


@pytest.mark.parametrize(
    ("line", "after", "expected"),
    [
        ("@daily", "2025-01-01T00:00", "2025-01-02T00:00+00:00"),
        ("@weekly", "2025-01-01T00:00", "2025-01-05T00:00+00:00"),
        ("0 0 29 2 *", "2097-03-01T00:00", "2104-02-29T00:00+00:00"),
        ("0 0 13 * fri", "2025-01-01T00:00", "2025-01-03T00:00+00:00"),
        ("0 0 */2 * mon", "2025-01-01T00:00", "2025-01-13T00:00+00:00"),
        ("15 8-18/2 * jan,jul MON-FRI", "2025-01-31T18:15", "2025-07-01T08:15+00:00"),
        ("59 23 31 12 *", "2025-12-31T23:59", "2026-12-31T23:59+00:00"),
        ("0 0 * * 7", "2025-01-01T00:00", "2025-01-05T00:00+00:00"),
    ],
)
def test_the_next_moment_of(line: str, after: str, expected: str) -> None:
    assert next_ones(line, "UTC", after, 1) == [expected]


def test_a_line_that_can_never_fit_has_no_next_moment() -> None:
    # The 31st on its own would be refused where it is declared; the last days of the calendar are not.
    times = CronTimes(Cron("0 0 1 1 *", zone="UTC"))
    assert times.next_after(at("9999-06-01T00:00", "UTC")) is None


FIELDS = st.tuples(
    st.sampled_from(["*", "0", "30", "*/7", "*/30", "5,35", "58-59", "10-50/20"]),
    st.sampled_from(["*", "0", "1", "2", "*/2", "1-3", "0,23", "2-23/3", "3", "*/1"]),
    st.sampled_from(["*", "*", "*", "25-31", "*/2", "1", "26,27"]),
    st.sampled_from(["*", "*", "3,4,10,11", "12"]),
    st.sampled_from(["*", "*", "sun", "mon-fri", "0,6"]),
)
# Around changes of the clock of the zones above, where anything can go wrong.
CHANGES = st.sampled_from(
    [
        "2025-03-30", "2025-10-26", "2025-03-09", "2025-11-02", "2025-04-06", "2025-10-05", "2024-04-26", "2024-10-31",
        "2024-03-10", "2024-11-03", "2011-12-30", "2025-07-01", "2006-10-29", "2011-03-13", "2006-04-02",
    ]
)  # fmt: skip


@given(fields=FIELDS, zone=st.sampled_from(ZONES), day=CHANGES, minute=st.integers(-1440, 2880))
def test_next_after_agrees_with_a_walk_over_every_minute(
    fields: tuple[str, ...], zone: str, day: str, minute: int
) -> None:
    cron = Cron(" ".join(fields), zone=zone)
    begin = int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()) + minute * 60
    until = begin + 36 * 3600
    times = CronTimes(cron)
    found, moment = [], times.next_after(begin * MICROSECOND)
    while moment is not None and moment // MICROSECOND <= until:
        found.append(moment // MICROSECOND)
        moment = times.next_after(moment)
    assert found == walked(cron, begin, until)


def walked(cron: Cron, begin: int, until: int) -> list[int]:
    """Watch the clock on the wall minute by minute, remembering what it has shown."""
    zone, fields = ZoneInfo(cron.zone), cron.fields()
    evenly = len(fields.hours) == 24
    found = []
    # From days before, so that what was shown already is known.
    furthest = datetime.fromtimestamp(begin - 3 * 86400 - 60, zone).replace(tzinfo=None, fold=0)
    for now in range(begin - 3 * 86400, until + 1, 60):
        wall = datetime.fromtimestamp(now, zone).replace(tzinfo=None, fold=0)
        if evenly:
            fires = fits(fields, wall)
        else:
            # Everything that the wall shows for the first time, or passes over, in this minute.
            passed = int((wall - furthest) / timedelta(minutes=1))
            fires = any(fits(fields, furthest + timedelta(minutes=step)) for step in range(1, passed + 1))
        furthest = max(furthest, wall)
        if fires and now > begin:
            found.append(now)
    return found


def fits(fields: CronFields, wall: datetime) -> bool:
    return (
        wall.minute in fields.minutes
        and wall.hour in fields.hours
        and fields.fits_day(wall.month, wall.day, wall.isoweekday() % 7)
    )


@given(
    fields=FIELDS,
    zone=st.sampled_from(ZONES),
    first=st.integers(1_000_000_000, 2_000_000_000),
    later=st.integers(0, 200_000),
)
def test_a_later_question_never_has_an_earlier_answer(
    fields: tuple[str, ...], zone: str, first: int, later: int
) -> None:
    times = CronTimes(Cron(" ".join(fields), zone=zone))
    one, two = (times.next_after(moment * MICROSECOND) for moment in (first, first + later))
    assert one is not None
    assert two is not None
    assert first * MICROSECOND < one <= two
    assert (first + later) * MICROSECOND < two
