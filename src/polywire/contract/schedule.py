"""When a task runs by itself: cron lines and intervals, as declared."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal
from zoneinfo import ZoneInfo

from polywire.errors import ContractError

Missed = Literal["skip", "once", "all"]
"""What becomes of slots in which nobody ran: forgotten, one firing for all of them, or one for each."""

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_MACROS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
}
MAX_INTERVAL = 366 * 24 * 3600.0


@dataclass(frozen=True, slots=True)
class CronFields:
    """A cron line read: the values that each of its five fields allows."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    """Of the month, 1 to 31."""
    months: frozenset[int]
    weekdays: frozenset[int]
    """0 is Sunday, 6 is Saturday."""
    either_day: bool
    """Both kinds of days are restricted: one that fits is enough, as cron has always had it."""

    def fits_day(self, month: int, day: int, weekday: int) -> bool:
        """*weekday* counts from 0, which is Sunday."""
        if month not in self.months:
            return False
        if self.either_day:
            return day in self.days or weekday in self.weekdays
        return day in self.days and weekday in self.weekdays


@dataclass(frozen=True, slots=True)
class Cron:
    """Runs when the clock of *zone* shows a time that *line* names: minute, hour, day of month, month, day of week.

    A field is `*`, a value, a range `1-5`, a list `1,15`, a step `*/10` or `8-18/2`; months and days of the week have
    their English names too. `@hourly`, `@daily`, `@weekly`, `@monthly` and `@yearly` are lines as well. A time that a
    clock change skips fires when the clock has been changed; one that comes twice fires the first time only. A line of
    every hour (`*/5 * * * *`) means time that passes: it runs on evenly over the change.
    """

    line: str
    zone: str = field(kw_only=True)
    """Of the IANA database, `Europe/Berlin`, or `UTC`. It is always said: a default would be wrong for somebody."""
    missed: Missed = field(default="once", kw_only=True)

    def __post_init__(self) -> None:
        _check_missed("Cron", self.missed)
        self.fields()
        try:
            ZoneInfo(self.zone)
        except (LookupError, ValueError, OSError) as error:
            raise ContractError(
                f"Cron({self.line!r}, zone={self.zone!r}): there is no such time zone here. Write it like "
                "'Europe/Berlin' or 'UTC'; where the system has no zones, `pip install tzdata` brings them."
            ) from error

    def fields(self) -> CronFields:
        """Raises ContractError, naming the field that is wrong."""
        parts = _MACROS.get(self.line, self.line).split()
        if len(parts) != 5:
            raise ContractError(
                f"Cron({self.line!r}) has {len(parts)} fields instead of 5: minute, hour, day of month, month, day of "
                "week, as in '0 3 * * *'."
            )
        minutes = self._values("minute", parts[0], 0, 59)
        hours = self._values("hour", parts[1], 0, 23)
        days = self._values("day of month", parts[2], 1, 31)
        months = self._values("month", parts[3], 1, 12, _MONTHS)
        weekdays = frozenset(day % 7 for day in self._values("day of week", parts[4], 0, 7, _DAYS))
        either = not parts[2].startswith("*") and not parts[4].startswith("*")
        if not either and not _can_come(days, months):
            raise ContractError(f"Cron({self.line!r}) names a day that no month of it has: it would never run.")
        return CronFields(minutes, hours, days, months, weekdays, either)

    def _values(self, name: str, text: str, least: int, most: int, names: tuple[str, ...] = ()) -> frozenset[int]:
        found: set[int] = set()
        for part in text.split(","):
            span, slash, step = part.partition("/")
            first, last = self._span(name, span, bool(slash), least, most, names)
            width = self._number(name, step, 1, most, ()) if slash else 1
            found.update(range(first, last + 1, width))
        return frozenset(found)

    def _span(
        self, name: str, text: str, stepped: bool, least: int, most: int, names: tuple[str, ...]
    ) -> tuple[int, int]:
        if text == "*":
            return least, most
        first, dash, last = text.partition("-")
        start = self._number(name, first, least, most, names)
        if not dash:
            return start, most if stepped else start
        end = self._number(name, last, least, most, names)
        if end < start:
            raise ContractError(f"Cron({self.line!r}): the {name} {text!r} runs backwards. Write it as two ranges.")
        return start, end

    def _number(self, name: str, text: str, least: int, most: int, names: tuple[str, ...]) -> int:
        if text.lower() in names:
            return names.index(text.lower()) + least
        if text.isascii() and text.isdecimal() and len(text) <= 2 and least <= int(text) <= most:
            return int(text)
        raise ContractError(
            f"Cron({self.line!r}): {text!r} is no {name}. It takes {least} to {most}"
            + (f", or {names[0]} to {names[-1]}." if names else ".")
        )


@dataclass(frozen=True, slots=True)
class Every:
    """Runs every *seconds*, counted from the epoch, so that all processes mean the same moments."""

    seconds: float
    missed: Missed = field(default="skip", kw_only=True)

    def __post_init__(self) -> None:
        _check_missed("Every", self.missed)
        if not 1.0 <= self.seconds <= MAX_INTERVAL:
            raise ContractError(
                f"Every({self.seconds!r}): an interval has at least 1 s and at most {MAX_INTERVAL:.0f} s."
            )


Schedule = Cron | Every


def _check_missed(kind: str, missed: object) -> None:
    if missed not in ("skip", "once", "all"):
        raise ContractError(f"{kind}(missed={missed!r}): choose 'skip', 'once' or 'all'.")


def _can_come(days: frozenset[int], months: frozenset[int]) -> bool:
    longest = {2: 29, 4: 30, 6: 30, 9: 30, 11: 30}
    return any(min(days) <= longest.get(month, 31) for month in months)
