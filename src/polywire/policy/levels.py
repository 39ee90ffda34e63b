"""Which policies hold for a call, and who says so: polywire, the system, the service, the method, or the call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from polywire.contract import Kind, Rpc
from polywire.contract.keys import check_key, has_key
from polywire.contract.policies import Balance, Breaker, Bulkhead, Ejection, Fallback, Hedge, Policy, checked_policies
from polywire.contract.retry import FOR_CALLS, Backoff, Retry
from polywire.errors import ContractError

P = TypeVar("P", bound=Policy)

DEFAULT_TIMEOUT = 10.0
"""Seconds for a call whose contract gives none; of unary and client-streaming methods only."""
BUDGET_SHARE = 0.2
"""The share of the calls to a target that may be retries or copies of hedged calls."""
BUDGET_MINIMUM = 3.0
"""And so many a second besides."""
DEFAULTS: Mapping[type[Policy], Policy] = {
    Breaker: Breaker(),
    Bulkhead: Bulkhead(),
    Ejection: Ejection(),
    Balance: Balance(),
}
"""What holds where nobody says anything. Hedging and fallbacks are off until they are declared somewhere: the one costs
the target calls, the other needs to know an answer."""

ORDER: tuple[type[Policy], ...] = (Fallback, Hedge, Breaker, Bulkhead, Ejection, Balance)
"""From the caller to the wire; deadline and retries come after the fallback."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallDefaults:
    """What is said about calls in one place; what is None, or not among the policies, is left to places further away.

    Given to `connect` it holds for calls to that target where neither the contract nor `calling()` says otherwise.
    """

    timeout: float | None = None
    attempt_timeout: float | None = None
    retry: Retry | None = None
    budget_share: float | None = None
    """Of systems and services only: a target has one budget for all of its methods."""
    budget_minimum: float | None = None
    wait_for_ready: bool | None = None
    policies: tuple[Policy | Retry, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "policies", checked_policies("CallDefaults(policies=...)", self.policies))


NOTHING_SAID = CallDefaults()


class Misfit(ContractError):
    """What is said about calls does not fit a method; *place* are the keys where it stands in the system file."""

    def __init__(self, message: str, place: tuple[str, ...] | None) -> None:
        super().__init__(message)
        self.place = place


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """Something that was said about calls, and how near to the call."""

    name: str
    """`system`, `service`, `method` or `call`."""
    said: CallDefaults
    place: tuple[str, ...] | None = None
    """The keys of the table in the system file; None where it stands in the code."""

    @property
    def near(self) -> bool:
        """It speaks of the method alone, or of the call."""
        return self.name in ("method", "call")


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """What holds for the calls to one target."""

    system: CallDefaults = NOTHING_SAID
    service: CallDefaults = NOTHING_SAID
    methods: Mapping[str, CallDefaults] = field(default_factory=dict)
    """By the full name of the method, `shop.v1.Inventory/CheckStock` or `shop.v1.Inventory/check_stock`."""
    service_place: tuple[str, ...] | None = None
    """Where *service* stands in the system file."""
    method_places: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def of(self, rpc: Rpc) -> list[Level]:
        """What is said about *rpc*, the furthest first. On one level the system file is nearer than the contract: who
        runs a system knows more of it than who wrote the contract."""
        name = next((one for one in spellings(rpc) if one in self.methods), rpc.full_name)
        method = CallDefaults(timeout=rpc.timeout, attempt_timeout=rpc.attempt_timeout, policies=rpc.policies)
        return [
            Level(name="system", said=self.system, place=("calls",)),
            Level(name="service", said=CallDefaults(policies=rpc.of_contract)),
            Level(name="service", said=self.service, place=self.service_place),
            Level(name="method", said=method),
            Level(name="method", said=self.methods.get(name, NOTHING_SAID), place=self.method_places.get(name)),
        ]

    def budget(self) -> tuple[float, float]:
        """The share of the calls that may be retries, and how many a second besides."""
        said = [level for level in (self.service, self.system) if level is not NOTHING_SAID]
        return (
            _first((level.budget_share for level in said), BUDGET_SHARE),
            _first((level.budget_minimum for level in said), BUDGET_MINIMUM),
        )


def spellings(rpc: Rpc) -> tuple[str, str]:
    """How *rpc* may be named: as it is on the wire, and as it is in Python."""
    return rpc.full_name, f"{rpc.service}/{rpc.attribute}"


def _first(values: Iterable[float | None], usual: float) -> float:
    return next((value for value in values if value is not None), usual)


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What holds for the calls of one method, everything said and done."""

    rpc: Rpc
    timeout: float | None
    attempt_timeout: float | None
    retry: Backoff
    wait_for_ready: bool
    policies: Mapping[type[Policy], Policy]
    """What applies; a policy that is switched off somewhere is there with `enabled=False`."""
    sources: Mapping[str, Level]
    """Who said each value, by its name: `timeout`, `retry.attempts`, `breaker.open_time`. Others are defaults."""
    declared: Mapping[type[Policy], Level]
    """The nearest level that declares a policy of that kind, even without any values."""

    def policy(self, kind: type[P]) -> P | None:
        """The policy of that *kind*, None where it is off or never declared."""
        found = self.policies.get(kind)
        return cast(P, found) if found is not None and found.enabled else None

    def nearest(self, kind: type[Policy]) -> str:
        """The name of the nearest level that declares a policy of that *kind*, `default` where none does."""
        return self.declared[kind].name if kind in self.declared else "default"


def label(kind: type[Any]) -> str:
    """`breaker`: what a policy is called in the system file and by `polywire explain`."""
    return kind.__name__.lower()


def resolve(rpc: Rpc, levels: Sequence[Level]) -> Held:
    """What holds for *rpc* after what *levels* say, the furthest first; the nearer one wins, value by value.

    Raises ContractError where values that are fine by themselves do not go together, or do not fit the method.
    """
    sources: dict[str, Level] = {}
    streams = rpc.kind in (Kind.SERVER_STREAM, Kind.BIDIRECTIONAL)
    timeout: float | None = None if streams else DEFAULT_TIMEOUT
    attempt_timeout: float | None = None
    wait_for_ready = False
    retry = FOR_CALLS
    for level in levels:
        said = level.said
        # A stream of answers lasts until it is over; only who speaks of it by name can know when it should be.
        if said.timeout is not None and (level.near or not streams):
            timeout = said.timeout
            sources["timeout"] = level
        if said.attempt_timeout is not None and (level.near or not streams):
            attempt_timeout = said.attempt_timeout
            sources["attempt_timeout"] = level
        if said.wait_for_ready is not None:
            wait_for_ready = said.wait_for_ready
            sources["wait_for_ready"] = level
        for one in _retries(said):
            retry = one.over(retry)
            sources.update((f"retry.{name}", level) for name in RETRY if getattr(one, name) is not None)
    policies = {}
    declared = {}
    for kind in ORDER:
        saying = _saying(rpc, kind, levels)
        found = _fold(kind, saying, None if _unbounded(rpc, kind) else DEFAULTS.get(kind), sources)
        if isinstance(found, Balance):
            found = _keyed(rpc, found, sources)
        if found is not None:
            policies[kind] = found
        if saying:
            declared[kind] = saying[-1][0]
    return Held(
        rpc=rpc,
        timeout=timeout,
        attempt_timeout=attempt_timeout,
        retry=retry,
        wait_for_ready=wait_for_ready,
        policies=policies,
        sources=sources,
        declared=declared,
    )


RETRY = ("attempts", "base", "cap")
"""What a `Retry` says about calls."""


def _retries(said: CallDefaults) -> Iterator[Retry]:
    if said.retry is not None:
        yield said.retry
    yield from (one for one in said.policies if isinstance(one, Retry))


def _saying(rpc: Rpc, kind: type[Policy], levels: Sequence[Level]) -> Sequence[tuple[Level, Policy]]:
    """The levels that say something about policies of that *kind*, where there is something to say."""
    if kind is Fallback and rpc.streams_responses:
        return []
    if kind is Hedge and rpc.kind is not Kind.UNARY:
        return []
    said = [
        (level, one) for level in levels for one in level.said.policies if isinstance(one, Policy) and type(one) is kind
    ]
    if _unbounded(rpc, kind) and not any(level.near for level, _ in said):
        return []
    if kind is Fallback and not rpc.idempotent:
        # Who speaks of all methods thinks of those that ask. That something was done must not be made up in passing.
        return [(level, one) for level, one in said if level.near]
    return said


def _unbounded(rpc: Rpc, kind: type[Policy]) -> bool:
    """A stream of answers keeps its place for as long as somebody listens, so what is right for calls that end would
    one day lock everybody out: only what its own method or call says bounds it."""
    return kind is Bulkhead and rpc.streams_responses


def _keyed(rpc: Rpc, balance: Balance, sources: dict[str, Level]) -> Balance:
    """*balance*, without its key where who speaks of many methods names a field that requests of *rpc* do not have.

    Raises Misfit where that field can be no key, or who names it speaks of this method or call.
    """
    level = sources.get("balance.key")
    if balance.key is None or level is None or not balance.enabled:
        return balance
    request = None if rpc.streams_requests else rpc.request
    try:
        if level.near:
            check_key(rpc.full_name, request, balance.key)
            return balance
        if has_key(rpc.full_name, request, balance.key):
            return balance
    except ContractError as error:
        raise Misfit(str(error), None if level.place is None else (*level.place, "balance", "key")) from error
    del sources["balance.key"]
    return Balance(**{name: getattr(balance, name) for name in balance.given - {"key"}})


def _fold(
    kind: type[P], saying: Sequence[tuple[Level, Policy]], usual: Policy | None, sources: dict[str, Level]
) -> P | None:
    held = cast("P | None", usual)
    for level, one in saying:
        before = frozenset[str]() if held is None else held.given
        held = cast(P, one) if held is None else cast(P, one).over(held)
        for name in before - held.given:
            sources.pop(f"{label(kind)}.{name}", None)  # something else was given in its place
        sources.update((f"{label(kind)}.{name}", level) for name in one.given)
    return held
