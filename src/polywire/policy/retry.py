"""Whether and when a failed call is tried again."""

from __future__ import annotations

import math

from polywire.contract.retry import FOR_CALLS, Backoff, Retry
from polywire.errors import Aborted, CallError, DeadlineExceeded, ResourceExhausted, Unavailable

__all__ = ["FOR_CALLS", "Backoff", "Retry", "RetryBudget", "is_retryable"]


def is_retryable(error: CallError, *, repeatable: bool) -> bool:
    """Whether *error* allows another attempt at all.

    *repeatable*: the method is idempotent or the call carries an idempotency key. Without that only calls are repeated
    that certainly reached no handler, or that the service turned away saying when to come back. Pushback that forbids
    it wins over everything. Errors not named here are never retried.
    """
    if error.retry_after is not None and error.retry_after < 0:
        return False
    if isinstance(error, Unavailable):
        return repeatable or error.reached == "no"
    if isinstance(error, ResourceExhausted):
        return error.retry_after is not None
    return repeatable and isinstance(error, Aborted | DeadlineExceeded)


class RetryBudget:
    """Bounds retries to a share of the calls made, so that they cannot keep an overloaded service down.

    Over the last ten seconds at most *share* of the calls, plus *minimum* per second, may be retries (the budget of
    Twitter's Finagle). One per client and target, shared by all its methods.
    """

    WINDOW = 10

    def __init__(self, *, share: float = 0.2, minimum: float = 3.0) -> None:
        self._share = share
        self._minimum = minimum
        self._calls = [0] * self.WINDOW
        self._retries = [0] * self.WINDOW
        """Of each second of the window, by its last digit; calls of the current second are in `_called`."""
        self._called = 0
        self._second = 0
        self._ends = -math.inf
        """When the current second is over."""

    def called(self, now: float) -> None:
        """Count a call (not its retries) at *now*, on any monotonic scale in seconds."""
        if now >= self._ends:
            self._move_to(int(now))
        self._called += 1

    def take(self, now: float) -> bool:
        """Take leave for one retry. False where the budget is used up."""
        if now >= self._ends:
            self._move_to(int(now))
        allowed = self._share * (sum(self._calls) + self._called) + self._minimum * self.WINDOW
        if sum(self._retries) + 1 > allowed:
            return False
        self._retries[self._second % self.WINDOW] += 1
        return True

    def _move_to(self, second: int) -> None:
        """Count in this *second* from now on, and forget those that left the window."""
        self._calls[self._second % self.WINDOW] = self._called
        for passed in range(1, min(second - self._second, self.WINDOW) + 1):
            slot = (self._second + passed) % self.WINDOW
            self._calls[slot] = self._retries[slot] = 0
        self._called = 0
        self._second = second
        self._ends = second + 1.0
