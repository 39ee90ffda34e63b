"""What happened, in plain numbers that a collector reads; counting must cost next to nothing."""

from __future__ import annotations


class Counters:
    """What one method did so far, on one side."""

    __slots__ = ("codes", "fallbacks", "hedges", "refused", "retries", "seconds")

    def __init__(self) -> None:
        self.codes: dict[str, int] = {"ok": 0}
        """Finished calls by code: `ok`, or an error's code."""
        self.retries = 0
        self.hedges = 0
        """Copies that were sent of calls whose answer was late."""
        self.refused = 0
        """Attempts that the breaker did not let through."""
        self.fallbacks = 0
        """Failed calls whose caller got another answer in place of the error."""
        self.seconds = 0.0
        """The sum of the durations of all finished calls."""

    def count(self, code: str, seconds: float) -> None:
        self.seconds += seconds
        try:
            self.codes[code] += 1
        except KeyError:
            self.codes[code] = 1
