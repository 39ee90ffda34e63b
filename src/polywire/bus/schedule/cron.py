"""The moments of a cron line in its zone, over changes of the clock."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

from polywire.contract.schedule import Cron

MICROSECOND = 1_000_000
"""Of a second. Moments are whole microseconds since the epoch."""
YEARS = 50
"""Without any moment in so many years there is none: the calendar has begun to repeat itself."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class CronTimes:
    """The moments of a cron line.

    A line of certain hours means what the clock on the wall shows: a time that a change of the clock skips comes right
    after it, all skipped ones together; one that the clock shows twice comes the first time. A line of every hour
    (`*/5 * * * *`) means time that passes: it runs on evenly over the change, and skips and doubles nothing.
    """

    def __init__(self, cron: Cron) -> None:
        self._fields = cron.fields()
        self._zone = ZoneInfo(cron.zone)
        self._hours = sorted(self._fields.hours)
        self._minutes = sorted(self._fields.minutes)
        self._evenly = len(self._hours) == 24

    def next_after(self, moment: int) -> int | None:
        """The first moment after *moment*; None where there is none in the next 50 years."""
        seconds = moment // MICROSECOND
        try:
            local = datetime.fromtimestamp(seconds, self._zone)
            found = self._next_passing(seconds) if self._evenly else self._next_shown(seconds, local)
        except OverflowError:  # the calendar ends in the year 9999
            return None
        return None if found is None else found * MICROSECOND

    def _next_shown(self, seconds: int, local: datetime) -> int | None:
        # What the wall shows only later is not before what it shows now, whichever way it is changed.
        now = local.replace(tzinfo=None, fold=0, second=0)
        for day in self._days(local.date()):
            for hour in self._hours:
                for minute in self._minutes:
                    shown = datetime(day.year, day.month, day.day, hour, minute)
                    if shown >= now and (found := self._instant(shown)) > seconds:
                        return found
        return None

    def _next_passing(self, seconds: int) -> int | None:
        found = seconds - seconds % 60 + 60
        while True:
            shown = datetime.fromtimestamp(found, self._zone)
            if not self._fits(shown.date()):
                day = next(self._days(shown.date()), None)
                if day is None:
                    return None
                found = max(found + 60, self._instant(datetime(day.year, day.month, day.day)))
            elif shown.minute in self._fields.minutes:
                return found
            else:
                found += 60

    def _fits(self, day: date) -> bool:
        return self._fields.fits_day(day.month, day.day, day.isoweekday() % 7)

    def _days(self, first: date) -> Iterator[date]:
        day = first
        while day.year <= first.year + YEARS:
            if day.month not in self._fields.months:
                day = (day.replace(day=1) + timedelta(days=32)).replace(day=1)
                continue
            if self._fits(day):
                yield day
            day += timedelta(days=1)

    def _instant(self, shown: datetime) -> int:
        """When the wall first shows *shown*, in seconds since the epoch; where it skips that, when it does so."""
        earlier = _seconds(shown.replace(tzinfo=self._zone))
        if datetime.fromtimestamp(earlier, self._zone).replace(tzinfo=None, fold=0) == shown:
            return earlier
        # In a gap, the two readings lie on either side of the change.
        after, before = earlier, _seconds(shown.replace(tzinfo=self._zone, fold=1))
        offset = datetime.fromtimestamp(before, self._zone).utcoffset()
        while after - before > 1:
            middle = (before + after) // 2
            if datetime.fromtimestamp(middle, self._zone).utcoffset() == offset:
                before = middle
            else:
                after = middle
        return after


def _seconds(moment: datetime) -> int:
    return (moment.astimezone(UTC) - _EPOCH) // timedelta(seconds=1)
