"""The calls of this process to one target: deadlines, attempts, and which endpoint gets them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from copy import copy
from inspect import isawaitable
from typing import Any

from polywire.call_rules import CallRules, RuleBook, Underway
from polywire.clock import SYSTEM_CLOCK, Clock, Timer
from polywire.context import NO_METADATA, Call, Calling, MetadataValue, _calling, _current
from polywire.contract import Message, Rpc
from polywire.contract.policies import NOTHING
from polywire.contract.priority import Priority
from polywire.discovery import Resolver
from polywire.errors import DO_NOT_RETRY, CallError, DeadlineExceeded, Unavailable
from polywire.policy.bulkhead import entered
from polywire.policy.deadline import Deadlines
from polywire.policy.hedge import Hedging, hedged
from polywire.policy.levels import CallDefaults as CallDefaults
from polywire.policy.levels import Levels
from polywire.policy.retry import RetryBudget, is_retryable
from polywire.telemetry.counters import Counters
from polywire.wire.request_id import new_request_id
from polywire.wire.seam import (
    IDEMPOTENCY_KEY,
    NO_PRIORITY,
    PRIORITIES,
    PRIORITY,
    ClientStream,
    EndpointWire,
    Outgoing,
    not_in_time,
)

log = logging.getLogger("polywire.client")


def _as_it_is(wire: EndpointWire) -> EndpointWire:
    return wire


class Endpoints:
    """The endpoints of one target, kept in step with what its resolver says."""

    def __init__(
        self, resolver: Resolver, open_wire: Callable[[str], EndpointWire], *, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self.current: tuple[EndpointWire, ...] = ()
        self._resolver = resolver
        self._open_wire = open_wire
        self._clock = clock
        self._resolving: asyncio.Task[None] | None = None
        self._leaving: dict[asyncio.Task[None], EndpointWire] = {}
        self._closed = False
        self._timer: Timer | None = None
        self._reason = ""
        self._asked = 0.0
        self._change: Callable[[EndpointWire], EndpointWire] = _as_it_is

    async def find(self) -> tuple[EndpointWire, ...]:
        """The endpoints; waits for the first answer of the resolver. Raises Unavailable where it has none."""
        if not self.current and not self._closed:
            resolving = self._resolve()
            # Waited for from outside: it goes on where this caller is cancelled, and is cancelled itself by `close`.
            await asyncio.wait([resolving])
            if not resolving.cancelled():
                resolving.result()
        if not self.current:
            raise Unavailable(f"No endpoint was found: {self._reason}.", reached="no")
        return self.current

    def exchange(self, change: Callable[[EndpointWire], EndpointWire]) -> None:
        """Let each wire be what *change* makes of it: those that are open, and those that will be."""
        self._change = change
        self.current = tuple(map(change, self.current))

    def look_again(self) -> None:
        """An endpoint failed: ask the resolver now, in the background, but not more than once a second."""
        if self._resolver.refresh is None or self._closed:
            return
        if self._clock.monotonic() >= self._asked + 1.0:
            self._resolve()

    def _resolve(self) -> asyncio.Task[None]:
        if self._resolving is None or self._resolving.done():
            self._asked = self._clock.monotonic()
            self._resolving = asyncio.get_running_loop().create_task(self._update())
        return self._resolving

    async def _update(self) -> None:
        if self._resolver.refresh is not None:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._clock.call_later(self._resolver.refresh, self._resolve)
        try:
            addresses = await self._resolver.resolve()
        except OSError as error:
            # What was known stays: a name server that is down must not take healthy services with it.
            self._reason = str(error)
            log.warning("endpoints could not be looked up, the last known ones stay in use: %s", error)
            return
        known = {wire.address: wire for wire in self.current}
        self.current = tuple(
            known.pop(address) if address in known else self._change(self._open_wire(address)) for address in addresses
        )
        for gone in known.values():
            task = asyncio.get_running_loop().create_task(gone.drain())
            self._leaving[task] = gone
            task.add_done_callback(self._leaving.pop)

    async def close(self) -> None:
        """Close all wires, those that were being drained too. Calls under way fail with Unavailable."""
        self._closed = True
        self._reason = "the channel was closed"
        if self._timer is not None:
            self._timer.cancel()
        wires = [*self._leaving.values(), *self.current]
        tasks = [task for task in (self._resolving, *self._leaving) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for wire in wires:
            await wire.close()


# As a name of its own a method of an imported object is looked up once, and not for every call.
_asked_of_call, _call_under_way = _calling.get, _current.get

READY_AGAIN = 0.05
"""Seconds after which a call that waits until its target is ready asks an open breaker again."""


class Channel:
    """All calls of this process to one target: its endpoints, its policies and their state, its counters.

    The order around a call: fallback > deadline > retry > hedge > breaker > bulkhead > ejection > balance > wire.
    """

    def __init__(
        self,
        target: str,
        endpoints: Endpoints,
        *,
        defaults: CallDefaults | None = None,
        levels: Levels | None = None,
        token: Callable[[], str] | None = None,
        inside: bool = False,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """*defaults* is what holds for the target as a whole; *levels*, in its place, what a system says in detail."""
        self.target = target
        self.endpoints = endpoints
        levels = levels or Levels(system=defaults or CallDefaults())
        share, minimum = levels.budget()
        self.budget = RetryBudget(share=share, minimum=minimum)
        self.counters: dict[str, Counters] = {}
        """By the full name of the method."""
        self._book = RuleBook(target, levels, self.budget, clock, self.counters)
        self._rules = self._book.rules
        self._token = token
        self._inside = inside
        """The target belongs to the same system, and is told for whom it is called."""
        self._clock = clock
        self._alarms = Deadlines(clock)
        self.now = clock.monotonic

    def prepare(self, rpc: Rpc) -> None:
        """Look at what is said about *rpc*. Raises ContractError where that does not go together."""
        self._book.of(rpc)

    def _rules_of(self, rpc: Rpc, asked: Calling | None) -> CallRules:
        if asked is not None and asked.policies:
            return self._book.asked(rpc, asked)
        return self._rules.get(rpc) or self._book.of(rpc)

    async def unary(self, rpc: Rpc, request: Message | None) -> Any:
        """One request, one answer, and whatever retries are allowed in between."""
        # The hot path: of the first attempt, what `_attempt` does in steps is written out here, as each step would cost
        # as much as what it does.
        started = began = self.now()
        asked = _asked_of_call()
        rules = (self._rules.get(rpc) or self._book.of(rpc)) if asked is None else self._rules_of(rpc, asked)
        outgoing = self._outgoing(rules, asked, started)
        wait_for_ready = rules.wait_for_ready if asked is None else _waits(rules, asked)
        code = "ok"
        ended = 0.0
        try:
            endpoints = self.endpoints.current
            if not endpoints:
                endpoints = await self._find(outgoing)
                began = self.now()  # how long the look-up took says nothing of the endpoint
            wire = endpoints[0]
            encoded = wire.encode(rpc, request)
            breaker, places = rules.breaker, rules.places
            permit = breaker.shared
            try:
                if not permit or rules.hedging is not None or not places.enter():
                    answer = await self._send(rules, outgoing, request, encoded, wait_for_ready, ())
                else:
                    compared: EndpointWire | None = None
                    try:
                        if len(endpoints) > 1:
                            wire = compared = rules.pick(endpoints, began, self._clock.random(), (), request)
                        outgoing.wire = wire
                        answer = await wire.unary(outgoing, encoded, wait_for_ready=wait_for_ready)
                    except BaseException as error:
                        rules.failed(permit, compared, began, self.now(), error)
                        raise
                    ended = self.now()
                    places.leave(ended, ended - began)
                    breaker.succeeded(permit, ended, ended - began)
                    if compared is not None:
                        rules.answered(compared, began, ended)
            except CallError as error:
                answer = await self._again(rules, outgoing, request, encoded, wait_for_ready, asked, error)
            if rules.fallback is not None:
                rules.fallback.succeeded(outgoing, request, answer, self.now())
            return answer
        except CallError as error:
            code = error.code
            self.explained(error, outgoing)
            answer = NOTHING if rules.fallback is None else await self._instead(rules, outgoing, request, error, asked)
            if answer is not NOTHING:
                return answer
            raise error from error.__cause__
        except asyncio.CancelledError:
            code = "cancelled"
            raise
        finally:
            if asked is not None:
                self._tell_caller(asked, outgoing)
            rules.counters.count(code, (ended or self.now()) - started)

    async def _send(
        self,
        rules: CallRules,
        outgoing: Outgoing,
        request: Message | None,
        encoded: Any,
        wait_for_ready: bool,
        tried: Sequence[EndpointWire],
    ) -> Any:
        """The answer to one attempt, or to the first of its copies that has one."""
        if rules.hedging is None:
            return await self._attempt(rules, outgoing, request, encoded, wait_for_ready, tried, self.now())
        return await self._hedged(rules, rules.hedging, outgoing, request, encoded, wait_for_ready, tried)

    async def _attempt(
        self,
        rules: CallRules,
        outgoing: Outgoing,
        request: Message | None,
        encoded: Any,
        wait_for_ready: bool,
        tried: Collection[EndpointWire],
        began: float,
    ) -> Any:
        """One attempt that *began* now: past the breaker and the bulkhead, to the endpoint that is chosen now."""
        breaker, places = rules.breaker, rules.places
        permit = breaker.shared or breaker.admit(began)
        if not permit or not places.enter():
            permit = await self._turn(rules, outgoing, permit, wait_for_ready)
            began = self.now()
        compared: EndpointWire | None = None
        try:
            endpoints = self.endpoints.current
            if not endpoints:
                endpoints = await self._find(outgoing)
                began = self.now()
            if len(endpoints) == 1:
                wire = endpoints[0]
            else:
                wire = compared = rules.pick(endpoints, began, self._clock.random(), tried, request)
            outgoing.wire = wire
            answer = await wire.unary(outgoing, encoded, wait_for_ready=wait_for_ready)
        except BaseException as error:
            rules.failed(permit, compared, began, self.now(), error)
            raise
        now = self.now()
        places.leave(now, now - began)
        breaker.succeeded(permit, now, now - began)
        if compared is not None:
            rules.answered(compared, began, now)
        return answer

    async def _turn(self, rules: CallRules, outgoing: Outgoing, permit: int, wait_for_ready: bool) -> int:
        """Wait for what an attempt did not get at once, a *permit* of the breaker or a place; back with both.

        Raises Unavailable where the breaker is open and the call does not wait for its target to be ready, and what
        `entered` does.
        """
        breaker, places = rules.breaker, rules.places
        permit = await self._placed(rules, outgoing, permit or await self._permit(rules, outgoing, wait_for_ready))
        # The calls that it waited for may have opened the breaker, and others may have closed it again.
        while not breaker.holds(permit) and not (permit := breaker.admit(self.now())):
            places.leave(self.now(), places.typical)
            permit = await self._placed(rules, outgoing, await self._permit(rules, outgoing, wait_for_ready))
        self._start_attempt(outgoing, outgoing.call_deadline)
        return permit

    async def _placed(self, rules: CallRules, outgoing: Outgoing, permit: int) -> int:
        """Back with a place for the call that has *permit*, which is given back where it gets none."""
        try:
            await entered(
                rules.places,
                rules.rpc.full_name,
                now=self.now,
                deadline=outgoing.call_deadline,
                alarms=self._alarms,
            )
        except BaseException as error:
            rules.breaker.release(permit)
            if isinstance(error, DeadlineExceeded):
                # There is no room for it here: neither we nor those above need send it again.
                error.retry_after = DO_NOT_RETRY
            raise
        return permit

    async def _permit(self, rules: CallRules, outgoing: Outgoing, wait_for_ready: bool) -> int:
        while True:
            now = self.now()
            permit = rules.breaker.admit(now)
            if permit:
                return permit
            deadline = outgoing.call_deadline
            if not wait_for_ready or (deadline is not None and now + READY_AGAIN >= deadline):
                raise rules.refused(now)
            await self._clock.sleep(READY_AGAIN)

    async def _hedged(
        self,
        rules: CallRules,
        hedging: Hedging,
        outgoing: Outgoing,
        request: Message | None,
        encoded: Any,
        wait_for_ready: bool,
        tried: Sequence[EndpointWire],
    ) -> Any:
        """The first answer to an attempt or its copies, each of which goes to another endpoint where there is one."""
        sent = [outgoing]

        async def send(number: int) -> Any:
            if number:
                sent.append(copy(outgoing))
                sent[number].attempt = outgoing.attempt + number
                self._start_attempt(sent[number], outgoing.call_deadline)
                self._copy_sent(rules)
            avoided = [*tried, *(other.wire for other in sent[:number] if other.wire is not None)]
            attempt = self._attempt(rules, sent[number], request, encoded, wait_for_ready, avoided, self.now())
            answer = await attempt
            return sent[number], answer

        try:
            winner, answer = await hedged(hedging, send, clock=self._clock, deadline=outgoing.call_deadline)
            outgoing.wire, outgoing.headers, outgoing.trailers = winner.wire, winner.headers, winner.trailers
            return answer
        finally:
            outgoing.attempt += len(sent) - 1
            outgoing.copied_to = [other.wire for other in sent[1:] if other.wire is not None]

    def _copy_sent(self, rules: CallRules) -> None:
        rules.counters.hedges += 1
        if rules.hedging_spell.happened(self.now()):
            log.info("%s is sent again where its answer is late", rules.rpc.full_name)

    async def _again(
        self,
        rules: CallRules,
        outgoing: Outgoing,
        request: Message | None,
        encoded: Any,
        wait_for_ready: bool,
        asked: Calling | None,
        error: CallError,
    ) -> Any:
        """Further attempts after the first one failed with *error*; raises the last error where none succeeds."""
        tried: list[EndpointWire] = []
        reached = False
        while True:
            if outgoing.wire is not None:
                tried.append(outgoing.wire)
            tried.extend(outgoing.copied_to)
            reached = reached or not isinstance(error, Unavailable) or error.reached != "no"
            if not await self._may_retry(rules, outgoing, error, asked):
                if reached and isinstance(error, Unavailable):
                    error.reached = "maybe"  # an attempt before it was
                raise error
            try:
                return await self._send(rules, outgoing, request, encoded, wait_for_ready, tried)
            except CallError as again:
                error = again

    async def _may_retry(self, rules: CallRules, outgoing: Outgoing, error: CallError, asked: Calling | None) -> bool:
        """Decide on another attempt and wait until it is due. An error that used its retries up is marked."""
        rpc, retry = rules.rpc, rules.retry
        if isinstance(error, Unavailable):
            self.endpoints.look_again()
        repeatable = rpc.idempotent or (asked is not None and asked.idempotency_key is not None)
        if not is_retryable(error, repeatable=repeatable):
            return False
        if retry.attempts == 1:
            # There is nothing to multiply: retrying is switched off here, and left to whoever called us.
            return False
        if outgoing.attempt >= retry.attempts:
            # Whoever called us must not multiply these attempts by its own, however much time is left.
            error.retry_after = DO_NOT_RETRY
            return False
        now = self.now()
        delay = max(retry.delay(outgoing.attempt, self._clock.random()), error.retry_after or 0.0)
        deadline = outgoing.call_deadline
        if deadline is not None and now + delay >= deadline:
            return False
        if not self.budget.take(now):
            error.retry_after = DO_NOT_RETRY
            return False
        await self._clock.sleep(delay)
        outgoing.attempt += 1
        rules.counters.retries += 1
        self._start_attempt(outgoing, deadline)
        return True

    async def _instead(
        self,
        rules: CallRules,
        outgoing: Outgoing,
        request: Message | None,
        error: CallError,
        asked: Calling | None,
    ) -> Any:
        """What the caller gets instead of *error*, NOTHING where that stands."""
        assert rules.fallback is not None  # noqa: S101 - whoever calls this has looked
        # What was asked of the call does not hold for those that the function makes, this fallback least of all.
        token = _calling.set(None)
        try:
            answer = rules.fallback.instead(outgoing, request, error, self.now())
            if isawaitable(answer):
                answer = await answer
        finally:
            _calling.reset(token)
        if answer is not NOTHING:
            rules.fallback.used(answer, error, self.now())
            if asked is not None:
                asked.fallback = True
        return answer

    def _outgoing(self, rules: CallRules, asked: Calling | None, now: float) -> Outgoing:
        """What goes beside the request: the deadline of this call, and what the call under way hands on."""
        rpc, timeout, limit = rules.rpc, rules.timeout, rules.attempt_timeout
        metadata: tuple[tuple[str, MetadataValue], ...] = ()
        if asked is not None:
            timeout = asked.timeout or timeout
            limit = asked.attempt_timeout or limit
            metadata = asked.metadata
            asked.fallback = False
            if asked.idempotency_key is not None:
                metadata = (*metadata, (IDEMPOTENCY_KEY, asked.idempotency_key))
        deadline = None if timeout is None else now + timeout
        parent = _call_under_way()
        if parent is not None or asked is not None:
            metadata = _with_priority(metadata, parent, asked)
        if parent is None:
            outgoing = Outgoing(rpc, deadline, timeout, new_request_id(), metadata)
        else:
            outgoing = self._part_of(parent, rpc, now, deadline, timeout, metadata)
        self.budget.called(now)
        if self._token is not None:
            outgoing.authorization = "Bearer " + self._token()
        if limit is not None:
            outgoing.attempt_timeout = limit
            self._start_attempt(outgoing, outgoing.deadline)
        return outgoing

    def _part_of(
        self,
        parent: Call,
        rpc: Rpc,
        now: float,
        deadline: float | None,
        timeout: float | None,
        metadata: tuple[tuple[str, MetadataValue], ...],
    ) -> Outgoing:
        """A call made by the handler of *parent*: it ends no later, and carries on what travels from hop to hop."""
        if parent.deadline is not None and (deadline is None or parent.deadline < deadline):
            deadline = parent.deadline
            timeout = deadline - now
        outgoing = Outgoing(rpc, deadline, timeout, parent.request_id or new_request_id(), metadata)
        if deadline is not None and deadline <= now:
            raise self.explained(
                DeadlineExceeded(f"{rpc.full_name} was not called: the deadline of the call under way had passed."),
                outgoing,
            )
        if parent.traceparent is not None:
            outgoing.traceparent = parent.traceparent
            outgoing.tracestate = parent.tracestate
        if parent.baggage is not None:
            outgoing.baggage = parent.baggage
        if parent.principal is not None and self._inside:
            outgoing.principal = parent.principal
        return outgoing

    def _start_attempt(self, outgoing: Outgoing, deadline: float | None) -> None:
        """Give the attempt that starts now its own share of the time."""
        now = self.now()
        limit = outgoing.attempt_timeout
        if limit is not None and (deadline is None or now + limit < deadline):
            deadline = now + limit
        outgoing.deadline = deadline
        outgoing.timeout = None if deadline is None else deadline - now

    async def _find(self, outgoing: Outgoing) -> tuple[EndpointWire, ...]:
        """The endpoints, as soon as they are known; the attempt starts then, with the time that is left."""
        try:
            async with asyncio.timeout(outgoing.timeout):
                endpoints = await self.endpoints.find()
        except TimeoutError:
            raise not_in_time(outgoing) from None
        self._start_attempt(outgoing, outgoing.call_deadline)
        return endpoints

    def explained(self, error: CallError, outgoing: Outgoing) -> CallError:
        error.method = outgoing.rpc.full_name
        error.request_id = outgoing.request_id
        error.attempts = outgoing.attempt
        return error

    def count(self, rpc: Rpc, code: str, seconds: float) -> None:
        """Count a call that has ended."""
        self._book.of(rpc).counters.count(code, seconds)

    async def open(self, rpc: Rpc) -> tuple[Outgoing, ClientStream, Underway]:
        """Open a streaming call; only what certainly reached nobody is tried again, as requests cannot be replayed.

        Whoever has it says when its first answer is there, and when it is over.
        """
        asked = _asked_of_call()
        rules = self._rules_of(rpc, asked)
        outgoing = self._outgoing(rules, asked, self.now())
        try:
            stream, underway = await self._opened(rules, outgoing, asked)
        except CallError as error:
            raise self.explained(error, outgoing) from None
        return outgoing, stream, underway

    async def _opened(
        self, rules: CallRules, outgoing: Outgoing, asked: Calling | None
    ) -> tuple[ClientStream, Underway]:
        wait_for_ready = _waits(rules, asked)
        tried: list[EndpointWire] = []
        while True:
            try:
                return await self._open_once(rules, outgoing, wait_for_ready, tried)
            except CallError as error:
                if outgoing.wire is not None:
                    tried.append(outgoing.wire)
                if not isinstance(error, Unavailable) or error.reached != "no":
                    raise
                if not await self._may_retry(rules, outgoing, error, None):
                    raise

    async def _open_once(
        self, rules: CallRules, outgoing: Outgoing, wait_for_ready: bool, tried: Collection[EndpointWire]
    ) -> tuple[ClientStream, Underway]:
        """As `_attempt`, for a stream: its end is for later."""
        began = self.now()
        permit = rules.breaker.admit(began)
        if not permit or not rules.places.enter():
            permit = await self._turn(rules, outgoing, permit, wait_for_ready)
            began = self.now()
        underway = Underway(rules, permit, began, self._clock, self._alarms)
        try:
            endpoints = self.endpoints.current
            if not endpoints:
                endpoints = await self._find(outgoing)
                underway.began = began = self.now()
            if len(endpoints) == 1:
                wire = endpoints[0]
            else:
                # Its requests come later, and none of them is the key of all.
                wire = underway.wire = rules.pick(endpoints, began, self._clock.random(), tried, None)
            outgoing.wire = wire
            stream = await wire.stream(outgoing, wait_for_ready=wait_for_ready)
        except BaseException as error:
            underway.ended(error)
            raise
        underway.opened()
        return stream, underway

    async def collect(self, rpc: Rpc, requests: AsyncIterator[Message]) -> Any:
        """A stream of requests, one answer."""
        started = self.now()
        code = "cancelled"
        asked = _asked_of_call()
        rules = self._rules_of(rpc, asked)
        outgoing = self._outgoing(rules, asked, started)
        sent = Requests(requests)
        try:
            answer = await self._collect(rules, outgoing, asked, sent)
            code = "ok"
            if rules.fallback is not None:
                rules.fallback.succeeded(outgoing, None, answer, self.now())
            return answer
        except CallError as error:
            if error is sent.error:
                raise
            code = error.code
            self.explained(error, outgoing)
            answer = NOTHING if rules.fallback is None else await self._instead(rules, outgoing, None, error, asked)
            if answer is not NOTHING:
                return answer
            raise error from None
        finally:
            self.tell(outgoing)
            rules.counters.count(code, self.now() - started)

    async def _collect(self, rules: CallRules, outgoing: Outgoing, asked: Calling | None, requests: Requests) -> Any:
        stream, underway = await self._opened(rules, outgoing, asked)
        try:
            answer = await self._send_and_receive(rules.rpc, stream, requests)
            underway.ended(None)
            return answer
        except BaseException as error:
            if isinstance(error, CallError) and error is not requests.error:
                underway.ended(error)
            else:
                underway.given_up()
                stream.cancel()
            raise

    async def _send_and_receive(self, rpc: Rpc, stream: ClientStream, requests: Requests) -> Any:
        sending = asyncio.get_running_loop().create_task(requests.send_all(stream))
        try:
            answer = await _only_answer(rpc, stream, sending)
        finally:
            sending.cancel()
            await asyncio.wait([sending])
        return answer

    def tell(self, outgoing: Outgoing) -> None:
        asked = _asked_of_call()
        if asked is not None:
            self._tell_caller(asked, outgoing)

    @staticmethod
    def _tell_caller(asked: Calling, outgoing: Outgoing) -> None:
        asked.attempts = outgoing.attempt
        asked.endpoint = "" if outgoing.wire is None else outgoing.wire.address
        asked.headers = outgoing.headers or NO_METADATA
        asked.trailers = outgoing.trailers or NO_METADATA

    async def close(self) -> None:
        self._alarms.close()
        await self.endpoints.close()


def _with_priority(
    metadata: tuple[tuple[str, MetadataValue], ...], parent: Call | None, asked: Calling | None
) -> tuple[tuple[str, MetadataValue], ...]:
    """Tell how urgent a call is where it is less so than most: no more than the call under way, and than was asked."""
    priority = NO_PRIORITY if parent is None else parent.priority
    if asked is not None and asked.priority is not None:
        priority = min(priority, PRIORITIES[asked.priority])
    return metadata if priority == NO_PRIORITY else (*metadata, (PRIORITY, Priority(priority).name.lower()))


def _waits(rules: CallRules, asked: Calling | None) -> bool:
    """Whether a call waits for its target to be ready."""
    if asked is not None and asked.wait_for_ready is not None:
        return asked.wait_for_ready
    return rules.wait_for_ready


class Requests:
    """The requests of a streaming call, as their own iterator has them."""

    def __init__(self, iterator: AsyncIterator[Message]) -> None:
        self._iterator = iterator
        self.error: BaseException | None = None
        """What the iterator raised, for the caller as it is: whatever it is, it says nothing of the call's target."""

    async def send_all(self, stream: ClientStream) -> None:
        """Send them, until the call is over. Raises what their iterator does."""
        try:
            async for request in self._iterator:
                try:
                    await stream.send(request)
                except CallError:
                    # The call is over; `receive` says how.
                    return
        except BaseException as error:
            self.error = error
            raise
        stream.end_requests()


async def _only_answer(rpc: Rpc, stream: ClientStream, sending: asyncio.Task[None]) -> Any:
    """The only answer of a call whose requests are still being sent; an exception of their iterator ends it."""
    receiving = asyncio.get_running_loop().create_task(_receive(stream))
    try:
        await asyncio.wait([sending, receiving], return_when=asyncio.FIRST_COMPLETED)
        if not receiving.done() and sending.done():
            sending.result()
        found, answer = await receiving
        if not found:
            raise Unavailable(f"{rpc.full_name} ended without an answer.", reached="maybe")
        return answer
    finally:
        receiving.cancel()
        await asyncio.wait([receiving])


async def _receive(stream: ClientStream) -> tuple[bool, Any]:
    """One answer; StopAsyncIteration cannot leave a task, so its absence is a False."""
    try:
        return True, await stream.receive()
    except StopAsyncIteration:
        return False, None
