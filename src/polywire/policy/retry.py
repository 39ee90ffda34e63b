"""Whether and when a failed call is tried again."""

from __future__ import annotations

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
        self._second = 0
        self._slot = 0
        """Of the second that calls are counted in."""

    def called(self, now: float) -> None:
        """Count a call (not its retries) at *now*, on any monotonic scale in seconds."""
        if not 0 <= now - self._second < 1:
            self._move_to(int(now))
        self._calls[self._slot] += 1

    def take(self, now: float) -> bool:
        """Take leave for one retry. False where the budget is used up."""
        second = int(now)
        if second != self._second:
            self._move_to(second)
        allowed = self._share * sum(self._calls) + self._minimum * self.WINDOW
        if sum(self._retries) + 1 > allowed:
            return False
        self._retries[second % self.WINDOW] += 1
        return True

    def _move_to(self, second: int) -> None:
        """Forget the seconds that left the window."""
        passed = second - self._second
        for offset in range(1, min(abs(passed), self.WINDOW) + 1):
            slot = (self._second + offset) % self.WINDOW if passed > 0 else (second + offset) % self.WINDOW
            self._calls[slot] = 0
            self._retries[slot] = 0
        self._second = second
        self._slot = second % self.WINDOW
