"""Something that happens at many calls, told once when it begins and once when it is over."""

from __future__ import annotations

QUIET = 10.0
"""Seconds without it after which it is over."""


class Spell:
    """Between its first time and `QUIET` seconds without another, it is one spell."""

    __slots__ = ("_last", "times")

    def __init__(self) -> None:
        self.times = 0
        """How often it happened in this spell; 0 before the first one, and once somebody saw it ended."""
        self._last = 0.0

    def happened(self, now: float) -> bool:
        """It happened. True where a spell begins by that, be it that the last one has ended meanwhile."""
        if now - self._last >= QUIET:
            self.times = 0
        self._last = now
        self.times += 1
        return self.times == 1

    def ended(self, now: float) -> int:
        """It did not happen now, though it could have. How often it did, where that ends the spell, and else 0."""
        if not self.times or now - self._last < QUIET:
            return 0
        times, self.times = self.times, 0
        return times
