"""Whether a target is to be called at all, after how it did lately."""

from __future__ import annotations

import itertools
import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

from polywire.contract.policies import Breaker
from polywire.errors import DO_NOT_RETRY, Unavailable
from polywire.policy.evidence import Evidence, evidence_of_target
from polywire.policy.window import CountWindow, Tally, TimeWindow, Window

REFUSED = 0
"""The permit that is none."""


class State(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A breaker went from one state to another."""

    breaker: str
    old: State
    new: State
    reason: str
    at: float
    """On the monotonic scale."""
    open_for: float | None = None
    """Seconds, where it opened."""


class CircuitBreaker:
    """The state machine behind a `Breaker`: closed, open, half open.

    `admit` gives a permit, a number that is not 0, for each call that may be made. Whoever has one hands it back once,
    by `succeeded`, `failed` or `release`. Permits of a state that is over are worth nothing: what they bring back is
    ignored, and so is one that is handed back twice. While half open exactly `trials` calls count, and no more than
    that are under way; one that is released (cancelled, or its error says nothing) makes room for another. Where calls
    come seldom, what the trials so far said is kept until there are enough of them.

    It opens at a call that failed or was slow, never at one that went well. It has no timer: the time is looked at when
    a call comes. All times are *now*, on any monotonic scale in seconds.
    """

    def __init__(
        self,
        policy: Breaker,
        name: str,
        *,
        dice: Callable[[], float] = random.random,
        judge: Callable[[BaseException], Evidence] = evidence_of_target,
        listen: Callable[[Change], None] | None = None,
    ) -> None:
        """*name*: whose breaker it is, for people. *listen* is told of each change, and must not raise."""
        self.policy = policy
        self.name = name
        self.state = State.CLOSED
        self.changes: deque[Change] = deque(maxlen=32)
        """The last ones."""
        self.reason = ""
        """Why it is in its state."""
        self._dice = dice
        self._judge = judge
        self._listen = listen
        self._slow_after = math.inf if policy.slow_after is None else policy.slow_after
        self._permits = itertools.count(1)
        self.shared = next(self._permits)
        """The permit of every call while closed, REFUSED otherwise. Who finds it here saves asking `admit`."""
        self._window = self._new_window()
        self._trials: set[int] = set()
        self._results = Tally(0, 0, 0)
        """Of the trials that have ended."""
        self._until = 0.0
        """When it is no longer open, or when the trials under way must have ended."""
        self._open_time = 0.0
        self._times = 0
        """How often it opened soon after it closed."""
        self._closed_at = -math.inf

    def admit(self, now: float) -> int:
        """A permit for a call, or REFUSED."""
        return self.shared or self._admit_trial(now)

    def holds(self, permit: int) -> bool:
        """Whether *permit* is still worth something: the state that gave it is not over."""
        return permit in self._trials or (permit != REFUSED and permit == self.shared)

    def succeeded(self, permit: int, now: float, seconds: float) -> None:
        """The call of *permit* was answered after *seconds*."""
        if permit == self.shared:
            window = self._window
            if seconds >= self._slow_after:
                self._count(now, failed=False, slow=True)
            elif now < window.ends:
                window.calls += 1  # as `good` would, for nearly every call
            else:
                window.good(now)
        else:
            self._trial_ended(permit, now, failed=False, slow=seconds >= self._slow_after)

    def failed(self, permit: int, error: BaseException, now: float, seconds: float) -> None:
        """The call of *permit* ended with *error*; the judge says whether that counts, and as what."""
        found = Evidence.NONE
        try:
            found = self._judge(error)
        finally:
            # Also where the judge itself raises: a permit that nobody hands back would keep it half open for ever.
            if found is Evidence.NONE:
                self.release(permit)
        if found is Evidence.HEALTHY:
            self.succeeded(permit, now, seconds)
        elif found is not Evidence.NONE:
            late = found is Evidence.LATE
            ended = self._count if permit == self.shared else partial(self._trial_ended, permit)
            ended(now, failed=not late, slow=late or seconds >= self._slow_after)

    def release(self, permit: int) -> None:
        """The call of *permit* says nothing: it was cancelled, or never made."""
        self._trials.discard(permit)

    def refusal(self, method: str, now: float) -> Unavailable:
        """What the caller of *method* is told that was REFUSED."""
        if self.state is State.OPEN:
            how = f"is open for another {max(0.0, self._until - now):.3g} s"
        else:
            how = "waits for the calls that try it"
        # Not to be retried, by us or above: the breaker would refuse it again.
        return Unavailable(
            f"{method} was not called: the breaker of {self.name} {how}, because {self.reason}. "
            "See to what is wrong there, or declare `Fallback(...)` to answer without it.",
            reached="no",
            retry_after=DO_NOT_RETRY,
        )

    # ---- closed ----

    def _new_window(self) -> Window:
        if self.policy.window_calls is not None:
            return CountWindow(self.policy.window_calls)
        return TimeWindow(self.policy.window)

    def _count(self, now: float, *, failed: bool, slow: bool) -> None:
        self._window.add(now, failed, slow)
        tally = self._window.tally(now)
        if tally.calls >= self.policy.minimum_calls:
            reason = self._verdict(tally, tally.calls)
            if reason:
                self._open(now, reason)

    def _verdict(self, tally: Tally, calls: int) -> str:
        """Why *tally* is too bad, whatever the rest of *calls* brings; empty where it is not."""
        if tally.failures >= self.policy.failure_rate * calls:
            return f"{tally.failures} of {calls} calls failed"
        if tally.slow >= self.policy.slow_rate * calls:
            how = "" if self._slow_after == math.inf else f" took {self._slow_after:g} s or more, or"
            return f"{tally.slow} of {calls} calls{how} were not answered in time"
        return ""

    # ---- open and half open ----

    def _open(self, now: float, reason: str) -> None:
        policy = self.policy
        if self.state is State.CLOSED and now - self._closed_at >= self._open_time:
            self._times = 0
        longest = policy.open_time * policy.growth ** min(self._times, 64)
        self._times += 1
        self._open_time = min(policy.max_open_time, longest) * (1.0 - policy.jitter * self._dice())
        self._until = now + self._open_time
        self.shared = REFUSED
        self._trials.clear()
        self._change(State.OPEN, reason, now, self._open_time)

    def _admit_trial(self, now: float) -> int:
        if self.state is State.OPEN:
            if now < self._until:
                return REFUSED
            self._half_open(now)
        elif self._trials and now >= self._until:
            self._open(now, f"its trials came to no decision within {self.policy.trial_time:g} s")
            return REFUSED
        if len(self._trials) + self._results.calls >= self.policy.trials:
            return REFUSED
        if not self._trials:
            # However long it took until somebody came: only trials that do not end are a bad sign.
            self._until = now + self.policy.trial_time
        permit = next(self._permits)
        self._trials.add(permit)
        return permit

    def _half_open(self, now: float) -> None:
        self._results = Tally(0, 0, 0)
        self._change(State.HALF_OPEN, f"it was open for {self._open_time:.3g} s", now)

    def _trial_ended(self, permit: int, now: float, *, failed: bool, slow: bool) -> None:
        if permit not in self._trials:
            return  # of a state that is over
        self._trials.discard(permit)
        calls, failures, slow_ones = self._results
        self._results = results = Tally(calls + 1, failures + failed, slow_ones + slow)
        reason = self._verdict(results, self.policy.trials)
        if reason:
            self._open(now, f"{reason} when it was tried")
        elif results.calls == self.policy.trials:
            self._close(now)

    def _close(self, now: float) -> None:
        self._closed_at = now
        self._window = self._new_window()
        self.shared = next(self._permits)
        self._change(State.CLOSED, f"{self._results.calls} calls were let through to try it, and went well", now)

    def _change(self, new: State, reason: str, now: float, open_for: float | None = None) -> None:
        old, self.state, self.reason = self.state, new, reason
        change = Change(breaker=self.name, old=old, new=new, reason=reason, at=now, open_for=open_for)
        self.changes.append(change)
        if self._listen is not None:
            self._listen(change)
