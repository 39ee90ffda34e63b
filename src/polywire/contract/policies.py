"""What surrounds a call, as it is declared: breaker, fallback, bulkhead, hedging, balance, ejection, shedding."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, TypeVar, cast, dataclass_transform

from polywire.contract.retry import Kinds, Retry
from polywire.errors import (
    ContractError,
    DataLoss,
    DeadlineExceeded,
    Internal,
    ResourceExhausted,
    Unavailable,
    Unknown,
)

P = TypeVar("P", bound="Policy")


class WrongValue(ContractError):
    """A value that a policy cannot have: *name* of it, and what is *expected*, for whoever read it from a file."""

    def __init__(self, policy: str, name: str, value: object, expected: str) -> None:
        super().__init__(f"{policy}({name}={value!r}): {expected}")
        self.name = name
        self.value = value
        self.expected = expected


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(field,))
def policy(declared: type[P]) -> type[P]:
    """Make *declared* a frozen dataclass that knows which of its values were given, and which are the defaults."""
    made = dataclass(frozen=True, kw_only=True)(declared)
    fill = cast("Callable[..., None]", made.__init__)

    @functools.wraps(fill)
    def remember(self: P, **values: Any) -> None:
        object.__setattr__(self, "given", frozenset(values))
        fill(self, **values)

    made.__init__ = remember  # type: ignore[method-assign,assignment]  # a dataclass has no hook for it
    # By what was given and not by its values, which need not be hashable (weights, an answer to fall back on).
    made.__hash__ = _hash  # type: ignore[assignment]  # of a policy, and not of any object
    return made


def _hash(declared: Policy) -> int:
    return hash((type(declared), declared.given))


@policy
class Policy:
    """A policy as it is declared for a system, a service, a method or a call; the nearer declaration wins, by value."""

    enabled: bool = True
    """False switches it off."""

    given: frozenset[str] = field(init=False, repr=False, compare=False)
    """The names of the values that were given."""

    def over(self, usual: Self) -> Self:
        """This policy, with what it does not give taken from *usual*."""
        values = {name: getattr(usual, name) for name in usual.given - self._replaces()}
        values.update((name, getattr(self, name)) for name in self.given)
        return type(self)(**values)

    def _replaces(self) -> frozenset[str]:
        """What is not taken from a policy further away, as this one gives something else in its place."""
        return frozenset()

    def __post_init__(self) -> None:
        if not isinstance(self.enabled, bool):
            raise self._wrong("enabled", "True or False.")

    def _wrong(self, name: str, expected: str) -> WrongValue:
        return WrongValue(type(self).__name__, name, getattr(self, name), expected)

    def _number(self, name: str) -> float:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self._wrong(name, "this is not a number.")
        return value

    def _counts(self, least: int, *names: str) -> None:
        for name in names:
            if self._number(name) != int(getattr(self, name)) or getattr(self, name) < least:
                raise self._wrong(name, f"this is a whole number, {least} or more.")

    def _seconds(self, *names: str) -> None:
        for name in names:
            if getattr(self, name) is not None and not self._number(name) > 0:
                raise self._wrong(name, "this is a number of seconds, more than 0.")

    def _shares(self, *names: str) -> None:
        for name in names:
            if not 0 < self._number(name) <= 1:
                raise self._wrong(name, "a share is more than 0 and at most 1, 0.5 for one half.")

    def _factors(self, least: float, *names: str) -> None:
        for name in names:
            if not self._number(name) >= least:
                raise self._wrong(name, f"a factor is a number, {least:g} or more.")

    def _one_of(self, name: str, *values: str) -> None:
        if getattr(self, name) not in values:
            raise self._wrong(name, f"give one of {', '.join(map(repr, values))}.")


@policy
class Breaker(Policy):
    """Refuses calls to a target for a while, once too many of them failed or were slow.

    It is the caller's own finding: each process has its own. What counts as failure is whatever says that the target
    is in trouble; errors that are the caller's fault are answers. Calls that were not answered in time count as slow
    ones: a target that has too much to do needs a moment until it turns some of them away, and would never come to that
    if all were kept from it. What it turns away with pushback counts as nothing, and neither does what it says of
    others that it needs: the caller next to the trouble refuses calls, and those before it are back as soon as it is.
    """

    window: float = 10.0
    """Seconds that are looked back at."""
    window_calls: int | None = None
    """Look back at this many calls instead, however long ago they were; the nearer of both wins."""
    minimum_calls: int = 20
    """Fewer calls than this in the window never open it."""
    failure_rate: float = 0.5
    """It opens where this share of the calls failed."""
    slow_after: float | None = None
    """Seconds after which a call counts as slow. None: none does."""
    slow_rate: float = 0.8
    """It opens where this share of the calls was slow, or not answered in time."""
    trials: int = 3
    """Once the time is up exactly so many calls are let through; how they end decides."""
    trial_time: float = 30.0
    """Seconds after which it opens again where trials have not ended; while none is under way it waits for more."""
    open_time: float = 2.0
    """Seconds it stays open at first."""
    growth: float = 2.0
    """Each time it opens again soon, it stays open so many times longer."""
    max_open_time: float = 5.0
    """Seconds it stays open at most: so long it may take until a target that is well again is called as before."""
    jitter: float = 0.2
    """The share of that time that chance may take off it, so that the callers of a target do not return together."""

    def _replaces(self) -> frozenset[str]:
        by_time = "window" in self.given and "window_calls" not in self.given
        return frozenset({"window_calls"}) if by_time else frozenset()

    def __post_init__(self) -> None:
        super().__post_init__()
        self._seconds("window", "slow_after", "trial_time", "open_time", "max_open_time")
        self._counts(1, "minimum_calls", "trials")
        self._shares("failure_rate", "slow_rate")
        if not 1 <= self._number("growth") <= 100:
            raise self._wrong("growth", "a factor between 1 and 100; 1 keeps the time as it is.")
        if not 0 <= self._number("jitter") < 1:
            raise self._wrong("jitter", "a share that is taken off is at least 0 and less than 1.")
        if self.window_calls is not None:
            self._counts(1, "window_calls")
            if self.window_calls > 10_000:
                raise self._wrong("window_calls", "at most 10000 calls are remembered. Give seconds by `window=`.")
            if self.window_calls < self.minimum_calls:
                raise self._wrong(
                    "window_calls",
                    f"so few calls never come to minimum_calls={self.minimum_calls}. Give that as well, or more calls.",
                )


TROUBLE: Kinds = (Unavailable, DeadlineExceeded, ResourceExhausted, Internal, Unknown, DataLoss)
"""The errors that a fallback answers for by itself: those that are not the caller's fault."""


class _Nothing:
    def __repr__(self) -> str:
        return "NOTHING"


NOTHING: Any = _Nothing()
"""Where None would be a value."""


@policy
class Fallback(Policy):
    """An answer in place of an error: the last good one for the same request, then a function's, then a fixed value."""

    value: Any = NOTHING
    """This answer; each caller gets a copy of its own."""
    function: Callable[[Any, Any], Any] | None = None
    """Called with the request and the error, for an answer or an awaitable of one. What it raises the caller gets."""
    last_good: float | None = None
    """Seconds that an answer may be old to be given again for the same request of the same principal."""
    remember: int = 256
    """How many answers are kept for that."""
    on: Kinds = TROUBLE
    """Only these errors are answered for. Cancellation never is."""

    def _replaces(self) -> frozenset[str]:
        either = frozenset({"value", "function"})
        return either if self.given & either else frozenset()

    def __post_init__(self) -> None:
        super().__post_init__()
        self._seconds("last_good")
        self._counts(1, "remember")
        if self.value is not NOTHING and self.function is not None:
            raise ContractError("Fallback(value=..., function=...): give one of them; a function may return the value.")
        if self.function is not None and not callable(self.function):
            raise self._wrong("function", "this is not a function of a request and an error.")
        if self.enabled and self.value is NOTHING and self.function is None and self.last_good is None:
            raise ContractError(
                "Fallback() has nothing to fall back on. Give `value=`, `function=` or `last_good=` (seconds)."
            )
        # Exceptions only: whoever cancels a call does not want another answer.
        if not isinstance(self.on, tuple) or not all(
            isinstance(kind, type) and issubclass(kind, Exception) for kind in self.on
        ):
            raise self._wrong("on", "give a tuple of exception classes, on=(Unavailable,).")


@policy
class Bulkhead(Policy):
    """Bounds how many calls to a target are under way at once, so that a slow one cannot take everything down.

    Calls over the limit wait in a bounded queue. One that would miss its deadline there fails at once, and again when
    its turn comes. First come, first served ("fifo") is fair, and right while the queue is short. Where the queue stays
    long, everybody in it has waited nearly until the deadline when the turn comes, and whoever is served is too late;
    then the newest first ("lifo") serves those that still have time, and lets go of the oldest.
    """

    limit: int = 256
    queue: int = 256
    """How many calls may wait. 0: none does."""
    order: Literal["fifo", "lifo"] = "fifo"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._counts(1, "limit")
        self._counts(0, "queue")
        self._one_of("order", "fifo", "lifo")


@policy
class Hedge(Policy):
    """Sends a call again before its answer is there, and takes whichever comes first: against rare slow answers.

    Only for idempotent methods; others are never hedged, whatever is declared. Copies are paid from the same budget as
    retries, and pushback of the target stops them.
    """

    after: float | None = None
    """Seconds. None: the time in which 95 % of the calls were answered lately."""
    copies: int = 1
    """How many besides the first."""
    at_least: float = 0.005
    """Seconds: no copy is sent sooner, whatever was observed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._seconds("after", "at_least")
        self._counts(1, "copies")
        if self.copies > 4:
            raise self._wrong("copies", "at most 4 besides the first; more only multiply the load.")


@policy
class Balance(Policy):
    """Which of several endpoints gets a call.

    *least_busy*: of two drawn at random the one with fewer calls under way. *round_robin*: one after the other.
    *weighted*: in proportion to `weights`, evenly interleaved. *by_key*: the same key goes to the same endpoint.
    """

    by: Literal["least_busy", "round_robin", "weighted", "by_key"] = "least_busy"
    weights: Mapping[str, float] = field(default_factory=dict)
    """By address; endpoints that are not named have the weight 1."""
    key: str | None = None
    """Of by_key: the field of the request whose value is the key. Without one, and where it is None, the call goes to
    the less busy of two."""
    load: float = 1.25
    """Of by_key: no endpoint gets more calls under way than so many times its even share."""

    def _replaces(self) -> frozenset[str]:
        return frozenset({"key"}) if "by" in self.given and self.by != "by_key" else frozenset()

    def __post_init__(self) -> None:
        super().__post_init__()
        self._one_of("by", "least_busy", "round_robin", "weighted", "by_key")
        if self.key is not None and (not isinstance(self.key, str) or self.by != "by_key"):
            raise self._wrong("key", "the name of a field of the request, together with by='by_key'.")
        self._number("load")
        if not self.load > 1:
            raise self._wrong("load", "a factor more than 1: with 1 every call that comes too many would move keys.")
        for address, weight in self.weights.items():
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
                raise ContractError(f"Balance(weights={{{address!r}: {weight!r}}}): a weight is a number more than 0.")


@policy
class Ejection(Policy):
    """Leaves out endpoints that fail, or are slow, while the others of the same target are not.

    One that comes back after its time is tried with a single call first.
    """

    consecutive_failures: int = 5
    """Left out after so many without a success in between, unless all that the others did meanwhile was to fail too."""
    interval: float = 1.0
    """Seconds after which the endpoints are compared."""
    minimum_calls: int = 5
    """An endpoint is compared with the others once it had so many calls."""
    failure_rate: float = 0.2
    """Left out where the share of its calls that failed is over that of the others by this much."""
    slow_factor: float = 8.0
    """Left out where its answers take so many times as long as those of the others."""
    slow_floor: float = 0.02
    """Seconds: answers that take less are never slow."""
    base_time: float = 1.0
    """Seconds it is left out the first time, twice and three times as long the next times."""
    max_time: float = 4.0
    """Seconds it is left out at most."""
    max_ejected: float = 0.5
    """At most this share of the endpoints is left out."""
    panic: float = 0.5
    """Where less than this share of the endpoints could be used, all are: they cannot all be outliers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._counts(1, "consecutive_failures", "minimum_calls")
        self._seconds("interval", "slow_floor", "base_time", "max_time")
        self._shares("failure_rate", "max_ejected")
        self._factors(1, "slow_factor")
        if not 0 <= self._number("panic") <= 1:
            raise self._wrong("panic", "a share is at least 0 and at most 1. 0 switches the panic off.")


@policy
class Shedding(Policy):
    """Bounds how many calls a service works on at once, and turns the rest away early, with pushback.

    The limit starts at `limit`. Where it is adaptive it is found between `minimum` and `maximum` from how long the
    calls take. A stream takes a place while it opens; after that it is counted with the streams, which may last for
    hours and say nothing of how much there is to do. Health checks and reflection are exempt.
    """

    limit: int = 300
    adaptive: bool = True
    minimum: int = 4
    maximum: int = 2000
    tolerance: float = 1.5
    """Calls may take so many times as long as they do without load before the limit goes down."""
    slow_floor: float = 0.02
    """Seconds: while quick calls take less, the limit does not go down, however many there are."""
    window: float = 0.1
    """Seconds: the limit is looked at no more often."""
    window_calls: int = 20
    """And not with fewer calls."""
    background: float = 0.6
    """The share of the limit that calls of the lowest priority may fill."""
    normal: float = 0.9
    """And those of the usual one; the rest is kept for critical ones."""
    streams: int = 10_000
    """How many streams may be open at once; the classes have the same shares of it."""
    pushback: float = 0.1
    """Seconds after which a call that was turned away may come again, while few are; up to ten times that."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._counts(1, "limit", "minimum", "maximum", "window_calls", "streams")
        self._seconds("window", "pushback", "slow_floor")
        self._shares("background", "normal")
        self._factors(1, "tolerance")
        if self.adaptive and not self.minimum <= self.limit <= self.maximum:
            raise self._wrong(
                "limit", f"an adaptive limit starts between minimum={self.minimum} and maximum={self.maximum}."
            )
        if self.background > self.normal:
            raise self._wrong("background", f"it is turned away first, so its share is not over normal={self.normal}.")


def checked_policies(where: str, given: Any) -> tuple[Policy | Retry, ...]:
    """*given* as policies of callers, each kind at most once. Raises ContractError that begins with *where*."""
    policies: tuple[Any, ...] = tuple(given)
    kinds = []
    for one in policies:
        if isinstance(one, Shedding):
            raise ContractError(
                f"{where}: Shedding is a service's own, not its callers'. Declare it where it is served."
            )
        if not isinstance(one, Policy | Retry):
            raise ContractError(
                f"{where}: {one!r} is no policy. Give Retry, Breaker, Bulkhead, Hedge, Balance, Ejection or Fallback."
            )
        if type(one) in kinds:
            raise ContractError(f"{where}: there are two of {type(one).__name__}. Put what both say into one.")
        kinds.append(type(one))
    return policies


def answers(response: type[Any] | None, value: object) -> bool:
    """Whether *value* may stand for the answer of a method that answers *response*."""
    return value is None if response is None else isinstance(value, response)
