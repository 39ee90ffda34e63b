"""Whether and when a failed call is tried again."""

from __future__ import annotations

from dataclasses import dataclass

from polywire.errors import Aborted, CallError, DeadlineExceeded, ResourceExhausted, Unavailable


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How often, and how long to wait in between: exponential backoff with full jitter.

    The wait before retry n is drawn evenly from 0 to ``min(cap, base * 2**(n-1))`` seconds (the "full jitter" of the
    AWS Architecture Blog, "Exponential Backoff And Jitter"), so that callers that failed together do not come back
    together.
    """

    retries: int = 2
    """After the first attempt; 2 retries are 3 attempts. 0 switches retrying off."""
    base: float = 0.05
    cap: float = 2.0

    def delay(self, retry: int, dice: float) -> float:
        """Seconds before the *retry*-th retry (1 is the first), for *dice* in [0, 1)."""
        return dice * min(self.cap, self.base * 2.0 ** (retry - 1))


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

    def called(self, now: float) -> None:
        """Count a call (not its retries) at *now*, on any monotonic scale in seconds."""
        second = int(now)
        if second != self._second:
            self._move_to(second)
        self._calls[second % 10] += 1

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
