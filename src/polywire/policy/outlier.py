"""Which endpoints of a target are left out, as they do worse than the others."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from polywire.contract.policies import Ejection
from polywire.policy.balance import Candidate
from polywire.policy.evidence import Evidence

E = TypeVar("E", bound=Candidate)

TRIAL_TIME = 30.0
"""Seconds after which a trial that has not ended is taken for failed."""
STALE = 5
"""So many times the calls that it takes to compare an endpoint are kept of it while the others have too few."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ejected(Generic[E]):
    """An endpoint was left out, or came back."""

    endpoint: E
    out: bool
    reason: str
    at: float
    seconds: float = 0.0
    """How long it is left out."""


class Health(Generic[E]):
    """What is known of one endpoint."""

    __slots__ = (
        "calls",
        "consecutive",
        "endpoint",
        "failed_at",
        "failures",
        "good_since",
        "out",
        "row_since",
        "seconds",
        "shares",
        "since",
        "times",
        "trial",
        "until",
    )

    def __init__(self, endpoint: E) -> None:
        self.endpoint = endpoint
        self.consecutive = 0
        """Failures without a success in between."""
        self.row_since = -math.inf
        """When the first of them ended."""
        self.failed_at = -math.inf
        """When the last of them ended."""
        self.good_since = -math.inf
        """When the youngest of the attempts that were answered began."""
        self.times = 0
        """How often it was left out lately."""
        self.out = False
        self.until = 0.0
        self.trial = False
        """Left out, and a call under way tries it."""
        self.since = -math.inf
        """Only calls that began then or later count."""
        self.clear()

    def clear(self) -> None:
        """Begin a new interval."""
        self.calls = 0
        self.failures = 0
        self.seconds = 0.0
        """Of the calls that were answered, together."""
        self.shares = 0.0
        """The same in proportion to what each of them usually takes; this is what is compared."""

    @property
    def mean(self) -> float:
        """Seconds of a call that was answered."""
        answered = self.calls - self.failures
        return self.seconds / answered if answered else 0.0

    @property
    def share(self) -> float:
        """The same in proportion."""
        answered = self.calls - self.failures
        return self.shares / answered if answered else 0.0


class Outliers(Generic[E]):
    """The state behind an `Ejection`, for the endpoints of one target.

    For each attempt: choose among `rotation`, then `begin`, and at its end `succeeded` or `ended`, each with the time
    when the attempt began. What began before its endpoint was left out, or before its trial, does not count any more.
    An endpoint whose time is over is in the rotation for a single attempt, and back for good when that was answered.
    Trouble that all endpoints share leaves none of them out: it has to be one that does worse than the others.
    All times are on one monotonic scale in seconds.
    """

    def __init__(self, policy: Ejection, *, listen: Callable[[Ejected[E]], None] | None = None) -> None:
        """*listen* is told what is left out and what comes back, and must not raise."""
        self.policy = policy
        self.trial_time = TRIAL_TIME
        self.health: dict[E, Health[E]] = {}
        self._endpoints: Sequence[E] = ()
        self._left: Sequence[E] = ()
        self._out = 0
        self._compare_at = -math.inf
        self._usual = math.inf
        """What answers took in the last interval, in proportion to what each of them usually takes."""
        self._listen = listen

    def rotation(self, endpoints: Sequence[E], now: float) -> Sequence[E]:
        """Those of *endpoints* that are to be used; all of them where too few would be left.

        It is the same object for as long as they are the same.
        """
        if endpoints is not self._endpoints:
            self._learn(endpoints)
        if not self._out:
            return endpoints
        left = [endpoint for endpoint in endpoints if self._in_rotation(self.health[endpoint], now)]
        usable = sum(endpoint.usable for endpoint in left)
        if not left or usable < self.policy.panic * len(endpoints):
            return endpoints
        if left != self._left:
            self._left = left
        return self._left

    def begin(self, endpoint: E, now: float) -> None:
        """An attempt goes to *endpoint*."""
        if self._out:
            health = self.health.get(endpoint)
            if health is not None and health.out and not health.trial and now >= health.until:
                health.trial = True
                health.since = now

    def tries(self, endpoint: E, began: float) -> bool:
        """Whether the attempt that *began* then tries if *endpoint* can come back."""
        health = self.health.get(endpoint)
        return health is not None and health.trial and began >= health.since

    def succeeded(self, endpoint: E, began: float, now: float, usual: float = 1.0) -> None:
        """The attempt that *began* then was answered. *usual*: seconds that calls of its kind take, where some take
        longer than others; an endpoint is not slow because it got more of those."""
        health = self.health.get(endpoint)
        if health is None or began < health.since:
            return
        if began > health.good_since:
            health.good_since = began
        seconds = now - began
        share = seconds / usual if usual > 0 else 1.0
        if health.out:
            self._trial_answered(health, now, seconds, share)
            return
        health.consecutive = 0
        health.calls += 1
        health.seconds += seconds
        health.shares += share
        if now >= self._compare_at:
            self._compare(now)

    def ended(self, endpoint: E, began: float, now: float, found: Evidence) -> None:
        """The attempt that *began* then ended, with an error that says *found*."""
        if found is Evidence.HEALTHY:
            self.succeeded(endpoint, began, now)
            return
        health = self.health.get(endpoint)
        if health is None or began < health.since:
            return
        if health.out:
            self._trial_failed(health, now, found)
        elif found is Evidence.SICK:
            self._failed(health, now)

    def _failed(self, health: Health[E], now: float) -> None:
        if not health.consecutive:
            health.row_since = now
        health.consecutive += 1
        health.failed_at = now
        health.calls += 1
        health.failures += 1
        if health.consecutive >= self.policy.consecutive_failures and self._fails_alone(health):
            self._eject(health, now, f"{health.consecutive} calls in a row failed")
        if now >= self._compare_at:
            self._compare(now)

    def _learn(self, endpoints: Sequence[E]) -> None:
        """Keep what is known of those that are still there."""
        self.health = {endpoint: self.health.get(endpoint) or Health(endpoint) for endpoint in endpoints}
        self._endpoints = endpoints
        # Those that were left are equal to the ones that are now, and perhaps not the same.
        self._left = ()
        self._out = sum(health.out for health in self.health.values())

    # ---- leaving out ----

    def _compare(self, now: float) -> None:
        """Look at what the interval brought, the worst endpoint first; what had too few calls goes on collecting."""
        self._compare_at = now + self.policy.interval
        seen = [health for health in self.health.values() if health.calls and not health.out]
        seen.sort(key=lambda health: (health.failures / health.calls, health.share), reverse=True)
        for health in seen:
            others = [other for other in seen if other is not health and not other.out]
            reason = self._is_outlier(health, others)
            if reason:
                self._eject(health, now, reason)
            else:
                health.times = max(0, health.times - 1)
        self._usual = self._mean([health for health in seen if not health.out])
        calls = sum(health.calls for health in seen)
        for health in [health for health in seen if self._has_told(health, calls - health.calls)]:
            health.clear()

    def _has_told(self, health: Health[E], others: int) -> bool:
        """Whether its calls were enough to be compared with the *others'*, or are too old to wait for theirs.

        Were it forgotten as soon as it has enough itself, two that are called in turn might never have enough at once.
        """
        least = self.policy.minimum_calls
        return health.calls >= least and (others >= least or health.calls >= STALE * least)

    def _fails_alone(self, health: Health[E]) -> bool:
        """Whether its failures in a row are its own: meanwhile others were answered, or at least did not fail too."""
        others = [other for other in self.health.values() if other is not health and not other.out]
        if any(other.good_since >= health.row_since for other in others):
            return True
        return bool(others) and all(other.failed_at < health.row_since for other in others)

    def _is_outlier(self, health: Health[E], others: Sequence[Health[E]]) -> str:
        """Why *health* is, compared with *others*; empty where it is not."""
        policy = self.policy
        calls = sum(other.calls for other in others)
        if health.calls < policy.minimum_calls or calls < policy.minimum_calls:
            return ""
        failures = sum(other.failures for other in others)
        rate, usual = health.failures / health.calls, failures / calls
        if rate - usual >= policy.failure_rate:
            return f"{rate:.0%} of its calls failed, and {usual:.0%} of the others'"
        usual_share = self._mean(others)
        if self._is_slow(health.mean, health.share, usual_share):
            times = f", {health.share / usual_share:.3g} times as long as the others'" if usual_share else ""
            return f"its calls took {health.mean:.3g} s{times}"
        return ""

    def _is_slow(self, seconds: float, share: float, usual: float) -> bool:
        return seconds >= self.policy.slow_floor and share >= self.policy.slow_factor * usual

    @staticmethod
    def _mean(healths: Sequence[Health[E]]) -> float:
        """What answers of these took, in proportion; infinity where there were none: then none is slow."""
        answered = sum(health.calls - health.failures for health in healths)
        return sum(health.shares for health in healths) / answered if answered else math.inf

    def _eject(self, health: Health[E], now: float, reason: str) -> None:
        if self._out + 1 > self.policy.max_ejected * len(self.health):
            return
        self._out += 1
        health.out = True
        self._keep_out(health, now, reason)

    def _keep_out(self, health: Health[E], now: float, reason: str) -> None:
        health.times += 1
        health.trial = False
        health.since = math.inf
        seconds = min(self.policy.max_time, self.policy.base_time * health.times)
        health.until = now + seconds
        self._tell(health, now, reason, seconds)

    # ---- coming back ----

    def _in_rotation(self, health: Health[E], now: float) -> bool:
        if not health.out:
            return True
        if health.trial and now - health.since >= self.trial_time:
            self._keep_out(health, now, f"the call that tried it did not end within {self.trial_time:g} s")
        return not health.trial and now >= health.until

    def _trial_failed(self, health: Health[E], now: float, found: Evidence) -> None:
        if found is Evidence.SICK:
            self._keep_out(health, now, "the call that tried it failed")
        else:
            # It said nothing: the next call tries it.
            health.trial = False
            health.since = math.inf

    def _trial_answered(self, health: Health[E], now: float, seconds: float, share: float) -> None:
        if self._is_slow(seconds, share, self._usual):
            self._keep_out(health, now, f"the call that tried it took {seconds:.3g} s")
            return
        self._out -= 1
        health.out = health.trial = False
        health.consecutive = 0
        health.clear()
        self._tell(health, now, "the call that tried it was answered", 0.0)

    def _tell(self, health: Health[E], now: float, reason: str, seconds: float) -> None:
        if self._listen is not None:
            self._listen(Ejected(endpoint=health.endpoint, out=health.out, reason=reason, at=now, seconds=seconds))
