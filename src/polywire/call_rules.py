"""What holds for the calls of each method of a target, and the state behind it: breakers, places, who is left out."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Hashable, Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import Any, TypeVar

from polywire.clock import Clock
from polywire.codec import codec_for
from polywire.context import Calling, current_or_none
from polywire.contract import Kind, Message, Rpc
from polywire.contract.keys import key_reader
from polywire.contract.policies import (
    NOTHING,
    Balance,
    Breaker,
    Bulkhead,
    Ejection,
    Fallback,
    Hedge,
    Policy,
    answers,
    checked_policies,
)
from polywire.errors import ContractError, InvalidArgument, Unavailable
from polywire.policy.balance import Balancer
from polywire.policy.balance_kinds import balancer_of
from polywire.policy.breaker import Change, CircuitBreaker, State
from polywire.policy.bulkhead import Compartment
from polywire.policy.deadline import Deadlines, Slot
from polywire.policy.evidence import Evidence, evidence
from polywire.policy.fallback import Fallbacks, LastGood
from polywire.policy.hedge import Hedging
from polywire.policy.levels import CallDefaults, Held, Level, Levels, resolve
from polywire.policy.outlier import Ejected, Outliers
from polywire.policy.retry import RetryBudget
from polywire.policy.spell import Spell
from polywire.telemetry.counters import Counters
from polywire.wire.seam import EndpointWire, Outgoing

log = logging.getLogger("polywire.client")

T = TypeVar("T")

SMOOTHING = 0.05
"""Weight of the last call in what calls usually take."""
MAX_KEPT = 256
"""What calls ask for by `calling(...)` is kept in as many forms, the oldest is forgotten."""
NO_LIMIT = 1 << 62


class CallRules:
    """What holds for the calls of one method over one channel. Calls read it; `RuleBook` makes it."""

    __slots__ = (
        "attempt_timeout",
        "balancer",
        "breaker",
        "comparison",
        "counters",
        "fallback",
        "hedging",
        "hedging_spell",
        "key_of",
        "places",
        "retry",
        "rpc",
        "timeout",
        "typical",
        "wait_for_ready",
    )

    def __init__(
        self,
        held: Held,
        *,
        breaker: CircuitBreaker,
        places: Compartment,
        hedging: Hedging | None,
        fallback: StandIn | None,
        comparison: Comparison | None,
        balancer: Balancer[EndpointWire],
        typical: Typical,
        hedging_spell: Spell,
        counters: Counters,
    ) -> None:
        self.rpc = held.rpc
        # As floats: adding to the time, which is one, is twice as quick then.
        self.timeout = None if held.timeout is None else float(held.timeout)
        self.attempt_timeout = None if held.attempt_timeout is None else float(held.attempt_timeout)
        self.retry = held.retry
        self.wait_for_ready = held.wait_for_ready
        self.breaker = breaker
        self.places = places
        self.hedging = hedging
        self.hedging_spell = hedging_spell
        self.fallback = fallback
        self.comparison = comparison
        self.balancer = balancer
        self.counters = counters
        self.key_of = _key_of(held.policy(Balance))
        """The key of a request, where calls of the same key go to the same endpoint."""
        self.typical = typical

    def pick(
        self, endpoints: Sequence[EndpointWire], now: float, dice: float, tried: Collection[EndpointWire], request: Any
    ) -> EndpointWire:
        """Which of several *endpoints* gets the attempt that begins *now*."""
        comparison = self.comparison
        if comparison is not None:
            endpoints = comparison.outliers.rotation(endpoints, now)
        key = None if self.key_of is None else self.key_of(request)
        chosen = self.balancer.pick(endpoints, dice, tried, key)
        if comparison is not None:
            comparison.outliers.begin(chosen, now)
        return chosen

    def answered(self, wire: EndpointWire, began: float, now: float) -> None:
        """One of several endpoints answered an attempt."""
        if self.comparison is not None:
            self.comparison.answered(self, wire, began, now)

    def failed(self, permit: int, wire: EndpointWire | None, began: float, now: float, error: BaseException) -> None:
        """An attempt failed, or was cancelled; *wire* is None where there is one endpoint, or none had been found."""
        self.places.leave(now, now - began)
        self.breaker.failed(permit, error, now, now - began)
        if wire is not None and self.comparison is not None:
            self.comparison.failed(self, wire, began, now, error)

    def refused(self, now: float) -> Unavailable:
        self.counters.refused += 1
        return self.breaker.refusal(self.rpc.full_name, now)


class Typical:
    """How long the calls of one method usually take, whatever each asks for; where there are several endpoints."""

    __slots__ = ("seconds",)

    def __init__(self) -> None:
        self.seconds = 0.0

    def add(self, seconds: float) -> float:
        """A call took so many *seconds*. What they usually take."""
        usual = self.seconds
        self.seconds = usual = usual + SMOOTHING * (seconds - usual) if usual else seconds
        return usual


class Comparison:
    """How the endpoints of a target do beside each other, whatever methods each of them was asked for."""

    def __init__(self, policy: Ejection, target: str) -> None:
        self.outliers: Outliers[EndpointWire] = Outliers(policy, listen=lambda change: _tell_ejected(target, change))

    def answered(self, rules: CallRules, wire: EndpointWire, began: float, now: float) -> None:
        """A call of one method takes longer than that of another, and an endpoint that got more of those is not slow:
        what is compared is how long it took in proportion to the calls of its method."""
        self.outliers.succeeded(wire, began, now, rules.typical.add(now - began))

    def failed(self, rules: CallRules, wire: EndpointWire, began: float, now: float, error: BaseException) -> None:
        found = evidence(error)
        if found is Evidence.HEALTHY:
            self.answered(rules, wire, began, now)
        else:
            self.outliers.ended(wire, began, now, found)


def _key_of(policy: Balance | None) -> Callable[[Any], bytes | None] | None:
    if policy is None or policy.by != "by_key" or policy.key is None:
        return None
    read = key_reader(policy.key)

    def key_of(request: Any) -> bytes | None:
        key = None if request is None else read(request)
        return None if key is None else key.encode()

    return key_of


class StandIn:
    """The fallback of one method: what its callers get in place of an error."""

    def __init__(self, rpc: Rpc, state: Fallbacks, spell: Spell, counters: Counters) -> None:
        self._rpc = rpc
        self._state = state
        self._spell = spell
        self._counters = counters
        self._remembers = state.policy.last_good is not None and not rpc.streams_requests
        """A stream of requests is over once it is sent, and nobody can tell whether another one is the same."""

    def succeeded(self, outgoing: Outgoing, request: Message | None, answer: Any, now: float) -> None:
        """The call went well by itself."""
        if self._remembers:
            self._state.succeeded(self._key(outgoing, request), answer, now)
        times = self._spell.ended(now)
        if times:
            log.info("%s answers by itself again; its fallback answered %d times", self._rpc.full_name, times)

    def instead(self, outgoing: Outgoing, request: Message | None, error: BaseException, now: float) -> Any:
        """An answer, an awaitable of one, or NOTHING where *error* stands."""
        key = None
        if self._remembers:
            # A request that breaks its contract has no key, and was never answered.
            with suppress(InvalidArgument):
                key = self._key(outgoing, request)
        return self._state.instead(key, request, error, now)

    def used(self, answer: Any, error: BaseException, now: float) -> None:
        """*answer* stands for the error. Raises ContractError where the method could not have answered it."""
        if not answers(self._rpc.response, answer):
            wanted = "None" if self._rpc.response is None else self._rpc.response.__qualname__
            raise ContractError(
                f"The fallback of {self._rpc.full_name} answered a {type(answer).__qualname__}; the method answers "
                f"{wanted}. Let the function return that."
            )
        self._counters.fallbacks += 1
        if self._spell.happened(now):
            log.warning("%s is answered by its fallback: %s", self._rpc.full_name, error)

    def _key(self, outgoing: Outgoing, request: Message | None) -> Hashable:
        """Who asks, and what: nobody is given what another was answered."""
        call = current_or_none()
        asked = codec_for(self._rpc.request, "proto").encode(request)
        return (
            None if call is None else call.principal,
            outgoing.authorization,
            tuple(outgoing.metadata),
            blake2b(asked, digest_size=16).digest(),
        )


class Underway:
    """What a streaming call holds, until its first answer says how the target does and its end gives the place back.

    A stream may say nothing for hours and be well. So one that tries whether a breaker can close, or whether an
    endpoint can come back, is taken for answered when it has stood for half of the time that trials have.
    """

    __slots__ = ("_alarms", "_clock", "_permit", "_place", "_slot", "began", "rules", "wire")

    def __init__(
        self,
        rules: CallRules,
        permit: int,
        began: float,
        clock: Clock,
        alarms: Deadlines,
    ) -> None:
        self.rules = rules
        self.began = began
        self.wire: EndpointWire | None = None
        self._permit = permit
        self._place = True
        self._clock = clock
        self._alarms = alarms
        self._slot: Slot | None = None

    def opened(self) -> None:
        breaker, comparison = self.rules.breaker, self.rules.comparison
        stood = math.inf
        if breaker.state is State.HALF_OPEN:
            stood = breaker.policy.trial_time / 2
        if self.wire is not None and comparison is not None and comparison.outliers.tries(self.wire, self.began):
            stood = min(stood, comparison.outliers.trial_time / 2)
        if stood < math.inf:
            self._slot = self._alarms.add(self.began + stood, self)

    def expire(self) -> None:
        self.answered()

    def answered(self) -> None:
        """The first answer is there. Nothing happens where it was."""
        self._tell(None)

    def ended(self, error: BaseException | None) -> None:
        """The call is over, with *error*, or as the contract has it. May be called twice."""
        self._tell(error)
        if self._place:
            self._place = False
            now = self._clock.monotonic()
            self.rules.places.leave(now, now - self.began)

    def given_up(self) -> None:
        """Its caller wants no more of it: that says nothing of the target."""
        permit, self._permit = self._permit, 0
        if permit:
            self._stop_alarm()
            self.rules.breaker.release(permit)
            if self.wire is not None and self.rules.comparison is not None:
                now = self._clock.monotonic()
                self.rules.comparison.outliers.ended(self.wire, self.began, now, Evidence.NONE)
        self.ended(None)

    def _tell(self, error: BaseException | None) -> None:
        permit, self._permit = self._permit, 0
        if not permit:
            return
        self._stop_alarm()
        now = self._clock.monotonic()
        rules, comparison = self.rules, self.rules.comparison
        # How long the first answer takes is the stream's own affair, and none of calls that are compared.
        if error is None:
            rules.breaker.succeeded(permit, now, 0.0)
        else:
            rules.breaker.failed(permit, error, now, 0.0)
        if self.wire is not None and comparison is not None:
            found = Evidence.HEALTHY if error is None else evidence(error)
            if found is Evidence.HEALTHY:
                comparison.outliers.succeeded(self.wire, self.began, now, now - self.began)
            else:
                comparison.outliers.ended(self.wire, self.began, now, found)

    def _stop_alarm(self) -> None:
        if self._slot is not None:
            self._slot.discard(self)
            self._slot = None


class RuleBook:
    """The rules of all methods of one target, and the state that they share.

    Breaker and bulkhead are shared by the methods of a class: idempotent ones, others, streams. A method that declares
    one of its own has it for itself, and so have calls that ask for other values. Endpoints are compared by all calls
    together.
    """

    def __init__(
        self, target: str, levels: Levels, budget: RetryBudget, clock: Clock, counters: dict[str, Counters]
    ) -> None:
        self.rules: dict[Rpc, CallRules] = {}
        """Where calls look first; `of` makes what is missing."""
        self._target = target
        self._levels = levels
        self._budget = budget
        self._clock = clock
        self._counters = counters
        self._asked: dict[tuple[Rpc, tuple[Any, ...]], CallRules] = {}
        self._state: dict[Hashable, Any] = {}
        self._state_of_asked: dict[Hashable, None] = {}
        """What of that only single calls asked for."""

    def of(self, rpc: Rpc) -> CallRules:
        """The rules of *rpc*. Raises ContractError where what is said about it does not go together."""
        rules = self.rules.get(rpc)
        if rules is None:
            rules = self.rules[rpc] = self._made(resolve(rpc, self._levels.of(rpc)))
        return rules

    def asked(self, rpc: Rpc, asked: Calling) -> CallRules:
        """The rules of one call, which asks for policies of its own."""
        key = (rpc, asked.policies)
        rules = self._asked.get(key)
        if rules is None:
            self.of(rpc)  # what it shares with all calls is made by them
            known = len(self._state)
            levels = self._levels.of(rpc)
            for one in asked.policies:
                said = CallDefaults(policies=checked_policies("calling(...)", (one,)))
                levels.append(Level(name="call", said=said))
            rules = self._made(resolve(rpc, levels))
            if len(self._asked) >= MAX_KEPT:
                del self._asked[next(iter(self._asked))]
            self._asked[key] = rules
            self._forget_asked(list(self._state)[known:])
        return rules

    def _forget_asked(self, new: list[Hashable]) -> None:
        """Remember which state single calls asked for, and forget the oldest where that is too much."""
        self._state_of_asked.update(dict.fromkeys(new))
        while len(self._state_of_asked) > MAX_KEPT:
            oldest = next(iter(self._state_of_asked))
            del self._state_of_asked[oldest]
            del self._state[oldest]

    def _made(self, held: Held) -> CallRules:
        rpc = held.rpc
        counters = self._counters.get(rpc.full_name)
        if counters is None:
            counters = self._counters[rpc.full_name] = Counters()
        ejection, balance = held.policy(Ejection), held.policy(Balance)
        return CallRules(
            held,
            breaker=self._breaker(held),
            places=self._places(held),
            hedging=self._hedging(held),
            fallback=self._fallback(held, counters),
            comparison=None
            if ejection is None
            else self._shared(("ejection", ejection), lambda: Comparison(ejection, self._target)),
            balancer=self._shared(("balance", balance), lambda: balancer_of(balance or Balance())),
            typical=self._shared(("typical", rpc), Typical),
            hedging_spell=self._shared(("hedged", rpc), Spell),
            counters=counters,
        )

    def _breaker(self, held: Held) -> CircuitBreaker:
        policy = held.policy(Breaker)
        if policy is None:
            # One that learns nothing never opens; so that the path of a call need not ask whether there is one.
            return self._shared("no breaker", lambda: CircuitBreaker(Breaker(), "", judge=lambda _: Evidence.NONE))
        scope, name = self._scope(held, Breaker)
        return self._shared(
            ("breaker", scope, policy),
            lambda: CircuitBreaker(policy, name, dice=self._clock.random, listen=_tell_breaker),
        )

    def _places(self, held: Held) -> Compartment:
        policy = held.policy(Bulkhead)
        if policy is None:
            return self._shared("no bulkhead", lambda: Compartment(Bulkhead(limit=NO_LIMIT), ""))
        scope, name = self._scope(held, Bulkhead)
        return self._shared(("bulkhead", scope, policy), lambda: Compartment(policy, name))

    def _hedging(self, held: Held) -> Hedging | None:
        policy, rpc = held.policy(Hedge), held.rpc
        may_be_sent_twice = rpc.idempotent
        if policy is None or not may_be_sent_twice:
            return None
        return self._shared(
            ("hedge", rpc, policy), lambda: Hedging(policy, idempotent=may_be_sent_twice, budget=self._budget)
        )

    def _fallback(self, held: Held, counters: Counters) -> StandIn | None:
        policy, rpc = held.policy(Fallback), held.rpc
        if policy is None:
            return None
        if policy.value is not NOTHING and not answers(rpc.response, policy.value):
            wanted = "None" if rpc.response is None else rpc.response.__qualname__
            raise ContractError(f"{rpc.full_name} falls back on {policy.value!r}, but answers {wanted}.")
        last_good = None
        if policy.last_good is not None:
            age, size = policy.last_good, policy.remember
            # Whatever value a single call has beside them.
            last_good = self._shared(("last good", rpc, age, size), lambda: LastGood(size, age))
        return StandIn(rpc, Fallbacks(policy, last_good), self._shared(("fallback", rpc), Spell), counters)

    def _scope(self, held: Held, kind: type[Policy]) -> tuple[Hashable, str]:
        """Who shares the state of a policy, and what it is called."""
        nearest, rpc = held.nearest(kind), held.rpc
        if nearest == "method":
            return rpc, rpc.full_name
        methods = "streams" if rpc.kind is not Kind.UNARY else f"{'idempotent' if rpc.idempotent else 'other'} methods"
        if nearest == "call":
            return (methods, "call"), f"{self._target} ({methods}, as some calls want it)"
        return methods, f"{self._target} ({methods})"

    def _shared(self, key: Hashable, make: Callable[[], T]) -> T:
        found: T | None = self._state.get(key)
        if found is None:
            found = self._state[key] = make()
        return found


def _tell_breaker(change: Change) -> None:
    if change.new is State.OPEN:
        log.warning("the breaker of %s opened for %.3g s: %s", change.breaker, change.open_for, change.reason)
    elif change.new is State.HALF_OPEN:
        log.info("the breaker of %s lets calls through to try it: %s", change.breaker, change.reason)
    else:
        log.info("the breaker of %s closed: %s", change.breaker, change.reason)


def _tell_ejected(target: str, change: Ejected[EndpointWire]) -> None:
    address = change.endpoint.address
    if change.out:
        log.warning("%s of %s is left out for %.3g s: %s", address, target, change.seconds, change.reason)
    else:
        log.info("%s of %s is back: %s", address, target, change.reason)
