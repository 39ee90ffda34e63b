"""The calls of this process to one target: deadlines, attempts, and which endpoint gets them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from polywire.clock import SYSTEM_CLOCK, Clock, Timer
from polywire.context import NO_METADATA, Call, Calling, MetadataValue, _calling, _current
from polywire.contract import Kind, Message, Rpc
from polywire.discovery import Resolver
from polywire.errors import DO_NOT_RETRY, CallError, DeadlineExceeded, Unavailable
from polywire.policy.balance import choose
from polywire.policy.retry import FOR_CALLS, Retry, RetryBudget, is_retryable
from polywire.telemetry.counters import Counters
from polywire.wire.request_id import new_request_id
from polywire.wire.seam import IDEMPOTENCY_KEY, ClientStream, EndpointWire, Outgoing, not_in_time

log = logging.getLogger("polywire.client")

DEFAULT_TIMEOUT = 10.0
"""Seconds for a call whose contract gives none; of unary and client-streaming methods only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallDefaults:
    """What holds for calls to one target where neither the contract nor `calling()` says otherwise."""

    timeout: float = DEFAULT_TIMEOUT
    retry: Retry = field(default_factory=Retry)
    budget_share: float = 0.2
    budget_minimum: float = 3.0
    wait_for_ready: bool = False


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
        self._leaving: set[asyncio.Task[None]] = set()
        self._timer: Timer | None = None
        self._reason = ""
        self._asked = 0.0

    async def find(self) -> tuple[EndpointWire, ...]:
        """The endpoints; waits for the first answer of the resolver. Raises Unavailable where it has none."""
        if not self.current:
            await asyncio.shield(self._resolve())
        if not self.current:
            raise Unavailable(f"No endpoint was found: {self._reason}.", reached="no")
        return self.current

    def look_again(self) -> None:
        """An endpoint failed: ask the resolver now, in the background, but not more than once a second."""
        if self._resolver.refresh is not None and self._clock.monotonic() >= self._asked + 1.0:
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
            known.pop(address) if address in known else self._open_wire(address) for address in addresses
        )
        for gone in known.values():
            task = asyncio.get_running_loop().create_task(gone.drain())
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    async def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        tasks = [task for task in (self._resolving, *self._leaving) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for wire in self.current:
            await wire.close()


class Channel:
    """All calls of this process to one target: its endpoints, its retry budget, its counters."""

    def __init__(
        self,
        target: str,
        endpoints: Endpoints,
        *,
        defaults: CallDefaults | None = None,
        token: Callable[[], str] | None = None,
        inside: bool = False,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.target = target
        self.endpoints = endpoints
        self.defaults = defaults or CallDefaults()
        self._backoff = self.defaults.retry.over(FOR_CALLS)
        self.budget = RetryBudget(share=self.defaults.budget_share, minimum=self.defaults.budget_minimum)
        self.counters: dict[str, Counters] = {}
        """By the full name of the method."""
        self._counted: dict[Rpc, Counters] = {}
        self._token = token
        self._inside = inside
        """The target belongs to the same system, and is told for whom it is called."""
        self._clock = clock
        self.now = clock.monotonic

    async def unary(self, rpc: Rpc, request: Message | None) -> Any:
        """One request, one answer, and whatever retries are allowed in between."""
        started = self.now()
        asked = _calling.get()
        outgoing = self._outgoing(rpc, asked, started, self.defaults.timeout)
        wait_for_ready = self.defaults.wait_for_ready
        if asked is not None and asked.wait_for_ready is not None:
            wait_for_ready = asked.wait_for_ready
        code = "ok"
        wire: EndpointWire | None = None
        try:
            endpoints = self.endpoints.current or await self._find(outgoing)
            wire = endpoints[0] if len(endpoints) == 1 else choose(endpoints, self._clock.random())
            encoded = wire.encode(rpc, request)
            try:
                return await wire.unary(outgoing, encoded, wait_for_ready=wait_for_ready)
            except CallError as error:
                wire, answer = await self._again(wire, outgoing, encoded, error, wait_for_ready, asked)
                return answer
        except CallError as error:
            code = error.code
            raise self.explained(error, outgoing) from error.__cause__
        except asyncio.CancelledError:
            code = "cancelled"
            raise
        finally:
            if asked is not None:
                asked.attempts = outgoing.attempt
                asked.endpoint = "" if wire is None else wire.address
                asked.headers = outgoing.headers or NO_METADATA
                asked.trailers = outgoing.trailers or NO_METADATA
            self.count(rpc, code, self.now() - started)

    async def _again(
        self,
        wire: EndpointWire,
        outgoing: Outgoing,
        encoded: Any,
        error: CallError,
        wait_for_ready: bool,
        asked: Calling | None,
    ) -> tuple[EndpointWire, Any]:
        """Further attempts after the first one failed with *error*; raises the last error where none succeeds."""
        tried = [wire]
        while await self._may_retry(outgoing, error, asked):
            wire = choose(self.endpoints.current or await self._find(outgoing), self._clock.random(), tried)
            tried.append(wire)
            try:
                return wire, await wire.unary(outgoing, encoded, wait_for_ready=wait_for_ready)
            except CallError as again:
                error = again
        raise error

    async def _may_retry(self, outgoing: Outgoing, error: CallError, asked: Calling | None) -> bool:
        """Decide on another attempt and wait until it is due. An error that used its retries up is marked."""
        rpc = outgoing.rpc
        retry = self._backoff
        if isinstance(error, Unavailable):
            self.endpoints.look_again()
        repeatable = rpc.idempotent or (asked is not None and asked.idempotency_key is not None)
        if not is_retryable(error, repeatable=repeatable):
            return False
        now = self.now()
        delay = max(retry.delay(outgoing.attempt, self._clock.random()), error.retry_after or 0.0)
        deadline = outgoing.call_deadline
        if deadline is not None and now + delay >= deadline:
            return False
        if retry.attempts == 1:
            # There is nothing to multiply: retrying is switched off here, and left to whoever called us.
            return False
        if outgoing.attempt >= retry.attempts or not self.budget.take(now):
            # Whoever called us must not multiply these attempts by its own.
            error.retry_after = DO_NOT_RETRY
            return False
        await self._clock.sleep(delay)
        outgoing.attempt += 1
        self._counters(rpc).retries += 1
        self._start_attempt(outgoing, deadline)
        return True

    def _outgoing(self, rpc: Rpc, asked: Calling | None, now: float, default_timeout: float | None) -> Outgoing:
        """What goes beside the request: the deadline of this call, and what the call under way hands on."""
        timeout = rpc.timeout or default_timeout
        metadata: tuple[tuple[str, MetadataValue], ...] = ()
        if asked is not None:
            timeout = asked.timeout or timeout
            metadata = asked.metadata
            if asked.idempotency_key is not None:
                metadata = (*metadata, (IDEMPOTENCY_KEY, asked.idempotency_key))
        deadline = None if timeout is None else now + timeout
        parent = _current.get()
        if parent is None:
            outgoing = Outgoing(rpc, deadline, timeout, new_request_id(), metadata)
        else:
            outgoing = self._part_of(parent, rpc, now, deadline, timeout, metadata)
        self.budget.called(now)
        if self._token is not None:
            outgoing.authorization = "Bearer " + self._token()
        if rpc.attempt_timeout is not None:
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
        limit = outgoing.rpc.attempt_timeout
        if limit is not None and (deadline is None or now + limit < deadline):
            deadline = now + limit
        outgoing.deadline = deadline
        outgoing.timeout = None if deadline is None else deadline - now

    async def _find(self, outgoing: Outgoing) -> tuple[EndpointWire, ...]:
        try:
            async with asyncio.timeout(outgoing.timeout):
                return await self.endpoints.find()
        except TimeoutError:
            raise not_in_time(outgoing) from None

    def explained(self, error: CallError, outgoing: Outgoing) -> CallError:
        error.method = outgoing.rpc.full_name
        error.request_id = outgoing.request_id
        error.attempts = outgoing.attempt
        return error

    def _counters(self, rpc: Rpc) -> Counters:
        counters = self._counted.get(rpc)
        if counters is None:
            counters = self._counted[rpc] = self.counters[rpc.full_name] = Counters()
        return counters

    def count(self, rpc: Rpc, code: str, seconds: float) -> None:
        """Count a call that has ended."""
        self._counters(rpc).count(code, seconds)

    async def open(self, rpc: Rpc) -> tuple[Outgoing, ClientStream, EndpointWire]:
        """Open a streaming call; only what certainly reached nobody is tried again, as requests cannot be replayed."""
        asked = _calling.get()
        default = self.defaults.timeout if rpc.kind is Kind.CLIENT_STREAM else None
        outgoing = self._outgoing(rpc, asked, self.now(), default)
        wait_for_ready = self.defaults.wait_for_ready
        if asked is not None and asked.wait_for_ready is not None:
            wait_for_ready = asked.wait_for_ready
        tried: list[EndpointWire] = []
        while True:
            wire = choose(self.endpoints.current or await self._find(outgoing), self._clock.random(), tried)
            tried.append(wire)
            try:
                return outgoing, await wire.stream(outgoing, wait_for_ready=wait_for_ready), wire
            except CallError as error:
                if not isinstance(error, Unavailable) or error.reached != "no":
                    raise self.explained(error, outgoing) from None
                if not await self._may_retry(outgoing, error, None):
                    raise self.explained(error, outgoing) from None

    async def collect(self, rpc: Rpc, requests: AsyncIterator[Message]) -> Any:
        """A stream of requests, one answer."""
        started = self.now()
        code = "cancelled"
        try:
            outgoing, stream, _ = await self.open(rpc)
            try:
                answer = await self._send_and_receive(rpc, stream, requests)
            except CallError as error:
                raise self.explained(error, outgoing) from None
            except BaseException:
                stream.cancel()
                raise
            finally:
                self.tell(outgoing)
            code = "ok"
            return answer
        except CallError as error:
            code = error.code
            raise
        finally:
            self.count(rpc, code, self.now() - started)

    async def _send_and_receive(self, rpc: Rpc, stream: ClientStream, requests: AsyncIterator[Message]) -> Any:
        sending = asyncio.get_running_loop().create_task(send_all(stream, requests))
        try:
            answer = await _only_answer(rpc, stream, sending)
        finally:
            sending.cancel()
            await asyncio.wait([sending])
        return answer

    @staticmethod
    def tell(outgoing: Outgoing) -> None:
        asked = _calling.get()
        if asked is not None:
            asked.attempts = outgoing.attempt
            asked.headers = outgoing.headers or NO_METADATA
            asked.trailers = outgoing.trailers or NO_METADATA

    async def close(self) -> None:
        await self.endpoints.close()


async def send_all(stream: ClientStream, requests: AsyncIterator[Message]) -> None:
    try:
        async for request in requests:
            await stream.send(request)
    except CallError:
        # The call is over; `receive` says how.
        return
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
