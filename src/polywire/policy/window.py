"""How the calls of late went, in bounded memory."""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple, Protocol


class Tally(NamedTuple):
    calls: int
    failures: int
    slow: int


class Window(Protocol):
    ends: float
    """Until then a call that was good may be counted by adding one to `calls`."""
    calls: int

    def good(self, now: float) -> None:
        """Count a call that was neither."""

    def add(self, now: float, failed: bool, slow: bool) -> None: ...

    def tally(self, now: float) -> Tally: ...


class TimeWindow:
    """The calls of the last *seconds*, in ten slices: what is over nine to ten tenths of that old is forgotten."""

    SLICES = 10

    def __init__(self, seconds: float) -> None:
        self._rate = self.SLICES / seconds
        self._slice = 0
        self.ends = 0.0
        """When the slice is over that calls are counted in."""
        self.calls = 0
        self._failures = 0
        self._slow = 0
        self._earlier: deque[tuple[int, int, int, int]] = deque(maxlen=self.SLICES - 1)

    def good(self, now: float) -> None:
        if now >= self.ends:
            self._turn(now)
        self.calls += 1

    def add(self, now: float, failed: bool, slow: bool) -> None:
        self.good(now)
        self._failures += failed
        self._slow += slow

    def tally(self, now: float) -> Tally:
        self._turn(now)
        calls, failures, slow = self.calls, self._failures, self._slow
        oldest = self._slice - self.SLICES + 1
        for at, more_calls, more_failures, more_slow in self._earlier:
            if at >= oldest:
                calls += more_calls
                failures += more_failures
                slow += more_slow
        return Tally(calls, failures, slow)

    def _turn(self, now: float) -> None:
        """Begin the slice of *now*. Where that is earlier than the last one, as calls end in any order, it goes on."""
        slice_ = int(now * self._rate)
        if slice_ > self._slice:
            if self.calls:
                self._earlier.append((self._slice, self.calls, self._failures, self._slow))
            self._slice = slice_
            self.ends = (slice_ + 1) / self._rate
            self.calls = self._failures = self._slow = 0


class CountWindow:
    """The last *size* calls, however long ago they were."""

    def __init__(self, size: int) -> None:
        self.ends = -math.inf
        self._size = size
        self._ring = bytearray(size)
        """Of each call: 1 where it failed, 2 where it was slow, 3 where both."""
        self._next = 0
        self.calls = 0
        self._failures = 0
        self._slow = 0

    def good(self, now: float) -> None:
        self._put(0)

    def add(self, now: float, failed: bool, slow: bool) -> None:
        self._put(failed + 2 * slow)
        self._failures += failed
        self._slow += slow

    def tally(self, now: float) -> Tally:
        return Tally(self.calls, self._failures, self._slow)

    def _put(self, mark: int) -> None:
        old = self._ring[self._next]
        self._ring[self._next] = mark
        self._next += 1
        if self._next == self._size:
            self._next = 0
        if old:
            self._failures -= old & 1
            self._slow -= old >> 1
        if self.calls < self._size:
            self.calls += 1
