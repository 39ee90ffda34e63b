"""How much nuisance one connection may make before it is told to calm down."""

from __future__ import annotations

from collections.abc import Callable

from polywire.net.http2.frames import ConnectionFault, ErrorCode


class Allowance:
    """A bucket of tokens: *burst* at most, *per_second* come back, and `earn` puts some back for honest work.

    Raises ConnectionFault(ENHANCE_YOUR_CALM) once it is empty. Time is asked for only when the bucket seems empty,
    so that spending costs next to nothing.
    """

    __slots__ = ("_burst", "_filled_at", "_left", "_now", "_per_second", "_what")

    def __init__(self, what: str, *, burst: float, per_second: float, now: Callable[[], float]) -> None:
        self._what = what
        self._burst = burst
        self._per_second = per_second
        self._now = now
        self._left = burst
        self._filled_at = now()

    def spend(self, tokens: float = 1.0, *, earned: float = 0.0) -> None:
        """Take *tokens*; *earned* ones are put in first, for honest work since the last time."""
        self._left = min(self._burst, self._left + earned) - tokens
        if self._left >= 0:
            return
        now = self._now()
        self._left = min(self._burst, self._left + (now - self._filled_at) * self._per_second)
        self._filled_at = now
        if self._left < 0:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, f"too many {self._what}")
