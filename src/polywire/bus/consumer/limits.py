"""What holds starts back: so many per second, and suspects alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from polywire.clock import Clock, Timer

BURST = 0.1
"""Seconds worth of starts that may come at once."""
PATIENCE = 30.0
"""Seconds for which others are held back until a suspect can run alone; then it runs beside those that still do."""


class Rate:
    """So many starts per second, evenly (a token bucket)."""

    def __init__(self, per_second: float, clock: Clock) -> None:
        self.per_second = per_second
        self._now = clock.monotonic
        self._most = max(1.0, per_second * BURST)
        self._tokens = self._most
        self._filled = self._now()

    def wait(self) -> float:
        """Seconds until the next start is allowed, 0 where it is now."""
        now = self._now()
        self._tokens = min(self._most, self._tokens + (now - self._filled) * self.per_second)
        self._filled = now
        # A hair less than a whole token, so that rounding cannot make a timer ring just too early for ever.
        return 0.0 if self._tokens >= 1.0 - 1e-9 else (1.0 - self._tokens) / self.per_second

    def take(self, count: int = 1) -> None:
        """*count* were started; a batch may take more than there is, for which the next one waits longer."""
        self._tokens -= count


class Alone:
    """Lets suspects run one at a time, with nothing beside them. All runners of one process share it.

    A suspect was under way when a worker died. Whatever runs beside it when it kills this one too becomes a suspect as
    well, so nothing does.
    """

    def __init__(self, clock: Clock, *, patience: float = PATIENCE) -> None:
        self.running = 0
        """Handlers, of all runners."""
        self._clock = clock
        self._patience = patience
        self._line: deque[Callable[[], None]] = deque()
        self._since = 0.0
        self._timer: Timer | None = None
        self._listeners: set[Callable[[], None]] = set()

    @property
    def open(self) -> bool:
        """Whether what is no suspect may start."""
        return not self._line

    def listen(self, wake: Callable[[], None]) -> None:
        """Call *wake* whenever somebody may be able to start again."""
        self._listeners.add(wake)

    def forget(self, wake: Callable[[], None]) -> None:
        self._listeners.discard(wake)
        self.leave(wake)

    def claim(self, wake: Callable[[], None]) -> bool:
        """Whether the runner known by *wake* may start its suspect now. It stands in line until it calls `leave`."""
        if wake not in self._line:
            self._line.append(wake)
            if len(self._line) == 1:
                self._first_in_line()
        if self._line[0] != wake:  # compared by value: a bound method is another object each time
            return False
        return self.running == 0 or self._clock.monotonic() >= self._since + self._patience

    def leave(self, wake: Callable[[], None]) -> None:
        """The suspect ended, or is not there any more."""
        if wake not in self._line:
            return
        was_first = self._line[0] == wake
        self._line.remove(wake)
        if was_first:
            self._first_in_line()
            self.ring()

    def ended(self) -> None:
        """A handler ended: to be called after `running` was lowered, where `open` is False."""
        if self.running == 0:
            self.ring()

    def ring(self) -> None:
        for wake in tuple(self._listeners):
            wake()

    def _first_in_line(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._line:
            self._since = self._clock.monotonic()
            self._timer = self._clock.call_later(self._patience, self.ring)
