"""The server side of a call, the same for every wire: admit it, run its handler, translate what it raises, count it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Protocol

from polywire.admission import Admit, Allowed, admission, check_guarded, rules_of
from polywire.admission import Authenticator as Authenticator
from polywire.clock import SYSTEM_CLOCK, Clock
from polywire.context import Call, _current
from polywire.contract import Rpc, Service, contracts_of, service_of
from polywire.contract.policies import Shedding
from polywire.errors import (
    DO_NOT_RETRY,
    CallError,
    Cancelled,
    DeadlineExceeded,
    Internal,
    PermissionDenied,
    ResourceExhausted,
    SetupError,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from polywire.interceptor import Intercepted, Interceptor, around
from polywire.policy.deadline import Deadlines, Slot
from polywire.policy.shedding import Backlog, Limiter
from polywire.telemetry.counters import Counters
from polywire.wire.seam import Handler

log = logging.getLogger("polywire.server")

_set_current = _current.set  # as a name of its own it is looked up once, and not for every call

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
"""Of one message, after decompression; gRPC's customary limit."""
STREAM_IDLE_TIMEOUT = 300.0
OUT_OF_TIME = 0.9
"""Who cancels after this share of the time that a call has does so for the sake of its deadline."""
STREAM_OPENS = 1.0
"""Seconds after which a stream has opened that has not answered anything: it waits for something to tell."""


class AccessLog(Protocol):
    """Where one line per call goes."""

    def record(self, call: Call, code: str, duration: float) -> None:
        """*code* is `ok` or an error's code; *duration* in seconds."""


class Services:
    """The services of one process, ready to be called over any wire. It is the wires' `Dispatcher`.

    *services* are instances of classes that implement contracts. Every rpc of those contracts gets a handler; one that
    the class does not override answers `unimplemented`. *allow* names the callers that may call any of them; None is
    everybody. See `polywire.allow` for what the classes themselves say. *shedding* bounds how many calls they work on
    at once, all together; None is the default of polywire.
    """

    def __init__(
        self,
        services: Iterable[object],
        *,
        internal: Iterable[object] = (),
        authenticator: Authenticator | None = None,
        allow: Iterable[str] | None = None,
        public: bool = False,
        access_log: AccessLog | None = None,
        interceptors: Sequence[Interceptor] = (),
        shedding: Shedding | None = None,
        clock: Clock = SYSTEM_CLOCK,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        stream_idle_timeout: float = STREAM_IDLE_TIMEOUT,
    ) -> None:
        self.max_message_bytes = max_message_bytes
        self.stream_idle_timeout = stream_idle_timeout
        self.clock = clock
        self.public = public
        self.deadlines = Deadlines(clock)
        self.counters: dict[str, Counters] = {}
        self._authenticator = None if public else authenticator
        allow = [allow] if isinstance(allow, str) else allow
        self._allow = () if allow is None else (Allowed(frozenset(allow)),)
        self._access_log = access_log
        self._interceptors = tuple(interceptors)
        shedding = shedding or Shedding()
        self.limiter = Limiter(shedding, dice=clock.random) if shedding.enabled else None
        """Who admits calls; None where all are."""
        self._now = clock.monotonic
        self._backlog = Backlog(time.thread_time if clock is SYSTEM_CLOCK else float)
        self._running: set[Call] = set()
        self._endless: set[Call] = set()
        """Streams without a deadline."""
        self._idle: asyncio.Event | None = None
        self._closed = False
        self._services: dict[str, Service] = {}
        self._handlers: dict[str, Handler] = {}
        for instance in services:
            self._add(instance, internal=False)
        for instance in internal:
            self._add(instance, internal=True)

    @property
    def handlers(self) -> Mapping[str, Handler]:
        return self._handlers

    @property
    def services(self) -> Mapping[str, Service]:
        return self._services

    @property
    def in_flight(self) -> int:
        return len(self._running)

    def method_of(self, task: asyncio.Task[Any]) -> str | None:
        """The method that *task* runs the handler of; None where it runs none. May be asked by any thread."""
        return next((call.method for call in tuple(self._running) if call._task is task), None)

    def _add(self, instance: object, *, internal: bool) -> None:
        contracts = contracts_of(type(instance))
        if not contracts:
            raise SetupError(
                f"{type(instance).__qualname__} cannot be served: it implements no contract. "
                "Derive it from one, `class StockService(Inventory): ...`."
            )
        check_guarded(type(instance), {name for contract in contracts for name in service_of(contract).rpcs})
        for contract in contracts:
            service = service_of(contract)
            if service.full_name in self._services:
                raise SetupError(
                    f"{service.full_name} is implemented twice: by {type(instance).__qualname__} and by another "
                    "service of the same process. Serve one of them elsewhere."
                )
            self._services[service.full_name] = service
            for attribute, rpc in service.rpcs.items():
                function = getattr(instance, attribute)
                if getattr(type(instance), attribute) is getattr(contract, attribute):
                    function = _missing(rpc)
                if self._interceptors and not internal:
                    function = around(self._interceptors, Intercepted(rpc=rpc, side="server"), function)
                handler = Handler(rpc, function, service, internal=internal)
                if not internal:
                    handler.admit = self._admission(type(instance), rpc)
                    handler.limiter = self.limiter
                self._handlers[rpc.path] = handler
                self._handlers[f"/{service.full_name}/{attribute}"] = handler

    def _admission(self, cls: type, rpc: Rpc) -> Admit | None:
        rules = (*self._allow, *rules_of(cls, rpc.attribute))
        if self._authenticator is None and any(allowed.names for allowed in rules):
            raise SetupError(
                f"{rpc.full_name} is not for everybody to call, but nothing here proves who calls. Serve "
                f"{cls.__qualname__} with an authenticator (in a system file: `token` of its callers, or `tls` with a "
                "`ca`) and not as public."
            )
        return admission(self._authenticator, rules)

    def take_place(self, handler: Handler, call: Call) -> ResourceExhausted | None:
        # Callers may stand back, and not push to the front.
        priority = handler.priority
        if call.priority < priority:
            priority = call.priority
        elif not priority:
            call.priority = priority  # what is done for it is of the background as well
        limiter = handler.limiter
        if limiter is None:
            return None
        if handler.unary:
            admitted = limiter.admit(priority)
        else:
            admitted = call._opening = limiter.admit_stream(priority)
        if not admitted:
            return limiter.refusal(call.method)
        backlog = self._backlog
        now = self._now()
        if backlog.turned:
            limiter.read(backlog.turn(now))
        call._arrived = now - backlog.seconds
        return None

    def _leave(
        self, handler: Handler, call: Call, arrived: float, started: float, now: float, code: str, ran: bool
    ) -> None:
        """Give back the place that *call* has had since *arrived*; its task *started* later.

        *code*: what it ended with, if its handler *ran*.
        """
        call._arrived = None
        limiter = handler.limiter
        assert limiter is not None  # noqa: S101 - who gave it the place
        if not handler.unary:
            limiter.stream_ended()
            self._opened(handler, call)
        elif not ran:
            # One whose time ran out while it waited to be read and to be started tells as much as one that was stopped.
            late = call.deadline is not None and arrived < call.deadline and _out_of_time(call, arrived, started, now)
            limiter.cut_short(now, now - arrived) if late else limiter.left()
        elif call.ended_by is None and code != "cancelled":
            limiter.answered(now, now - arrived)
        elif call.ended_by == "deadline" or (call.ended_by == "caller" and _out_of_time(call, arrived, started, now)):
            limiter.cut_short(now, now - arrived)
        elif call.ended_by == "caller":
            limiter.given_up(now, now - arrived)
        else:
            limiter.left()

    def _opened(self, handler: Handler, call: Call) -> None:
        """A stream has opened, and needs no place any longer."""
        if call._opening and handler.limiter is not None:
            call._opening = False
            handler.limiter.left()

    # The three ways to run a handler. Each is the body of one call's task.

    async def unary(
        self,
        handler: Handler,
        call: Call,
        decode: Callable[[Any], Any],
        body: Any,
        encode: Callable[[Any], Any],
    ) -> Any:
        # The hot path: what `_run` does for streams in steps is written out here, as each step would cost as much as
        # what it does.
        started = self._now()
        self._backlog.turned = True
        if call._task is None:
            call._task = asyncio.current_task()
        _set_current(call)
        self._running.add(call)
        code = "ok"
        ran = False
        slot: Slot | None = None
        try:
            deadline = call.deadline
            if deadline is not None:
                if deadline <= started:
                    raise _too_late(call)
                slot = self.deadlines.add(deadline, call)
            if handler.admit is not None or self._closed or call.ended_by is not None:
                self._admit(handler, call)
            if call.principal is not None and call.caller is None:
                call.principal = None
            request = decode(body)
            ran = True
            answer = await (handler.function() if handler.rpc.request is None else handler.function(request))
            try:
                return encode(answer)
            except (CallError, TypeError, ValueError) as error:
                raise self._broken(call, error) from error
        except BaseException as error:
            code = "cancelled"
            failure = self._failure(call, error)
            code = failure.code
            if failure is error:
                raise
            raise failure from None
        finally:
            if slot is not None:
                slot.discard(call)
            self._end(handler, call, code, started, ran)

    async def collect(
        self, handler: Handler, call: Call, requests: AsyncIterator[Any], encode: Callable[[Any], Any]
    ) -> Any:
        async def run() -> Any:
            return self._encode(call, encode, await handler.function(requests))

        return await self._run(handler, call, run())

    async def stream(
        self,
        handler: Handler,
        call: Call,
        request: Callable[[], Any] | AsyncIterator[Any],
        send: Callable[[Any], Coroutine[Any, Any, None] | None],
    ) -> None:
        watch = _IdleWatch(self.deadlines, call, self.stream_idle_timeout)

        async def run() -> None:
            answers = handler.function(*_arguments(handler.rpc, request, watch))
            try:
                async for answer in answers:
                    watch.touch()
                    if call._opening:
                        self._opened(handler, call)
                    waiting = self._encode(call, send, answer)
                    if waiting is not None:
                        await waiting
                        watch.touch()
            finally:
                await _close_iterator(answers)

        if call.deadline is None and not handler.internal:
            watch.start()
            self._endless.add(call)
        try:
            await self._run(handler, call, run())
        finally:
            watch.stop()
            self._endless.discard(call)

    async def _run(self, handler: Handler, call: Call, body: Coroutine[Any, Any, Any]) -> Any:
        """Admission, translation and accounts around *body*, as `unary` has them written out."""
        started = self._begin(call)
        code = "ok"
        slot: Slot | None = None
        opening = _Opening(self, handler, call)
        opens = self.deadlines.add(started + STREAM_OPENS, opening) if call._opening else None
        try:
            if call.deadline is not None:
                if call.deadline <= started:
                    raise _too_late(call)
                slot = self.deadlines.add(call.deadline, call)
            self._admit(handler, call)
            if call.principal is not None and call.caller is None:
                call.principal = None  # only a caller that proved who it is may speak for somebody else
            return await body
        except BaseException as error:
            code = "cancelled"
            body.close()
            failure = self._failure(call, error)
            code = failure.code
            if failure is error:
                raise
            raise failure from None
        finally:
            if slot is not None:
                slot.discard(call)
            if opens is not None:
                opens.discard(opening)
            self._end(handler, call, code, started)

    def _begin(self, call: Call) -> float:
        if call._task is None:
            # On Python 3.12 and newer a call's task starts before whoever started it could say which it is.
            call._task = asyncio.current_task()
        self._backlog.turned = True
        _set_current(call)
        self._running.add(call)
        return self._now()

    def _end(self, handler: Handler, call: Call, code: str, started: float, ran: bool = True) -> None:
        # The task's context holds the call: without this, every call is left to the garbage collector.
        call._task = None
        self._running.discard(call)
        if self._idle is not None and not self._running:
            self._idle.set()
        if not handler.internal:
            now = self._now()
            arrived = call._arrived
            if arrived is not None:
                if code == "ok" and handler.unary and handler.limiter is not None:
                    call._arrived = None
                    handler.limiter.answered(now, now - arrived)
                else:
                    self._leave(handler, call, arrived, started, now, code, ran)
            self._account(call, code, now - started)

    def _admit(self, handler: Handler, call: Call) -> None:
        if call.ended_by is not None:
            raise Cancelled(f"{call.method} was not started: its caller had gone.")
        if self._closed:
            raise Unavailable(f"{call.method} was not started: the service is shutting down.", reached="no")
        if handler.admit is not None:
            handler.admit(call)

    def _encode(self, call: Call, encode: Callable[[Any], Any], answer: Any) -> Any:
        try:
            return encode(answer)
        except (CallError, TypeError, ValueError) as error:
            raise self._broken(call, error) from error

    def _broken(self, call: Call, error: Exception) -> Internal:
        """The handler broke its own contract. The caller can do nothing about it and must not be blamed for it."""
        log.error(
            "%s returned an answer that its contract does not allow: %s (request id %s)",
            call.method, error, call.request_id,
        )  # fmt: skip
        return _internal(call)

    def _failure(self, call: Call, error: BaseException) -> CallError:
        """What the caller is told of *error*. Raises what is not the call's own business to end."""
        if isinstance(error, CallError):
            if error.method is not None:
                return self._nested(call, error)
            if isinstance(error, Unavailable) and error.reached == "no" and not self._closed:
                error.reached = "maybe"  # whatever the handler meant, it was reached
            return error
        if isinstance(error, asyncio.CancelledError):
            return self._cancelled(call, error)
        if not isinstance(error, Exception):
            raise error
        log.error(
            "%s failed with an exception that is no error of its contract (request id %s)",
            call.method, call.request_id, exc_info=error,
        )  # fmt: skip
        return _internal(call)

    def _nested(self, call: Call, error: CallError) -> CallError:
        """What this call's caller is told of the error that a call made by its handler ended with.

        Errors of the other service's domain go on as they are, and so does what this call's own contract lists. What is
        about the way there (addresses, credentials, time) is nobody's business further up: it is logged here, and told
        without.
        """
        handler = self._handlers.get(f"/{call.method}")
        if isinstance(error, ResourceExhausted) and error.retry_after is not None:
            # It is the other service that did not begin; this one did, and must not be asked twice for its part.
            if handler is None or not handler.rpc.idempotent:
                error.retry_after = DO_NOT_RETRY
            return error
        if not isinstance(error, Unavailable | DeadlineExceeded | Unauthenticated | PermissionDenied):
            return error
        if handler is not None and type(error) in handler.rpc.raises.values():
            if isinstance(error, Unavailable):
                error.reached = "maybe"
            return error
        log.warning("%s failed as %s did: %s (request id %s)", call.method, error.method, error, call.request_id)
        if isinstance(error, Unauthenticated | PermissionDenied):
            return _internal(call)
        if isinstance(error, Unavailable):
            # The nested call may not have got through, but this one reached its handler.
            return Unavailable(
                f"{call.method} could not be completed: {error.method} is not available.",
                reached="maybe", retry_after=error.retry_after,
            )  # fmt: skip
        return DeadlineExceeded(
            f"{call.method} could not be completed: {error.method} did not answer in time.",
            retry_after=error.retry_after,
        )

    def _cancelled(self, call: Call, error: asyncio.CancelledError) -> CallError:
        if call.ended_by is None:
            raise error
        if call._task is not None:
            call._task.uncancel()  # the cancellation ends here: the wire still has an answer to write
        if call.ended_by == "deadline":
            return DeadlineExceeded(f"{call.method} was stopped at its deadline. It may have done part of its work.")
        if call.ended_by == "idle":
            return Cancelled(
                f"{call.method} was ended: no message went either way for {self.stream_idle_timeout:g} s. "
                "Open the stream again, or give it a deadline."
            )
        if call.ended_by == "shutdown":
            return Unavailable(f"{call.method} was stopped: the service is shutting down.", reached="maybe")
        return Cancelled(f"{call.method} was cancelled by its caller.")

    def _account(self, call: Call, code: str, duration: float) -> None:
        try:
            counters = self.counters[call.method]
        except KeyError:
            counters = self.counters[call.method] = Counters()
        counters.count(code, duration)
        if self._access_log is not None:
            self._access_log.record(call, code, duration)

    def rejected(self, call: Call, error: CallError) -> None:
        if f"/{call.method}" not in self._handlers:
            # A peer chooses these names: one counter for all of them keeps their number bounded.
            call.method = "unknown"
        self._account(call, error.code, 0.0)

    def cancel(self, call: Call) -> None:
        if call not in self._running and call._arrived is not None:
            # Its task was not started yet, and now never will be.
            now = self._now()
            self._leave(self._handlers[f"/{call.method}"], call, call._arrived, now, now, "cancelled", ran=False)
        call.end("caller")

    def end_streams(self) -> None:
        """End the streams that have no deadline: nobody can say when they would end by themselves."""
        for call in tuple(self._endless):
            call.end("shutdown")

    async def finish(self, grace: float) -> None:
        """Wait until no call is under way, at most *grace* seconds; then end those that are left."""
        if self._running and grace > 0:
            self._idle = asyncio.Event()
            try:
                async with asyncio.timeout(grace):
                    await self._idle.wait()
            except TimeoutError:
                log.warning("%d calls were still running after %g s and are stopped", len(self._running), grace)
        self._closed = True
        tasks = [call._task for call in self._running if call._task is not None]
        for call in tuple(self._running):
            call.end("shutdown")
        if tasks:
            await asyncio.wait(tasks, timeout=1.0)
        self.deadlines.close()


def _out_of_time(call: Call, arrived: float, started: float, now: float) -> bool:
    """Whether *call* had as good as no time left: its caller stops at the same deadline, and may be a little sooner.

    Its deadline counts from when it was read, and its caller's from when it was sent: where it waited to be read,
    theirs comes first. So what it has taken since it *arrived* is compared with the time that it was given, which is
    no less than it had when its task *started*.
    """
    return call.deadline is not None and now - arrived >= OUT_OF_TIME * (call.deadline - started)


def _missing(rpc: Rpc) -> Callable[..., Any]:
    def unimplemented() -> Unimplemented:
        return Unimplemented(f"{rpc.full_name} is in the contract, but the service does not implement it.")

    async def single(*_arguments: Any) -> Any:
        raise unimplemented()

    async def streamed(*_arguments: Any) -> AsyncIterator[Any]:
        raise unimplemented()
        yield  # makes it a generator, as the contract says

    return streamed if rpc.streams_responses else single


def _arguments(rpc: Rpc, request: Callable[[], Any] | AsyncIterator[Any], watch: _IdleWatch) -> tuple[Any, ...]:
    if rpc.streams_requests:
        assert not callable(request) or hasattr(request, "__anext__")  # noqa: S101 - the wire's side of the seam
        return (_watched(request, watch),)  # type: ignore[arg-type]  # narrowed by rpc.streams_requests
    decoded = request()  # type: ignore[operator]  # narrowed by rpc.streams_requests
    return () if rpc.request is None else (decoded,)


async def _watched(requests: AsyncIterator[Any], watch: _IdleWatch) -> AsyncIterator[Any]:
    async for request in requests:
        watch.touch()
        yield request


async def _close_iterator(iterator: Any) -> None:
    """Run the `finally` blocks of a handler's generator now, in its own task and context."""
    close = getattr(iterator, "aclose", None)
    if close is not None:
        await close()


def _too_late(call: Call) -> DeadlineExceeded:
    return DeadlineExceeded(f"{call.method} was not started: its deadline had passed when it arrived.")


def _internal(call: Call) -> Internal:
    return Internal(f"internal error, request id {call.request_id}")


class _Opening:
    """The time that a stream has to open in."""

    __slots__ = ("_call", "_handler", "_services")

    def __init__(self, services: Services, handler: Handler, call: Call) -> None:
        self._services = services
        self._handler = handler
        self._call = call

    def expire(self) -> None:
        self._services._opened(self._handler, self._call)


class _IdleWatch:
    """Ends a stream that has no deadline once nothing moved on it for a while."""

    __slots__ = ("_call", "_deadlines", "_last", "_now", "_slot", "_timeout")

    def __init__(self, deadlines: Deadlines, call: Call, timeout: float) -> None:
        self._deadlines = deadlines
        self._call = call
        self._timeout = timeout
        self._now = call.clock.monotonic
        self._last = 0.0
        self._slot: Slot | None = None

    def start(self) -> None:
        self._last = self._now()
        self._slot = self._deadlines.add(self._last + self._timeout, self)

    def touch(self) -> None:
        if self._slot is not None:
            self._last = self._now()

    def stop(self) -> None:
        if self._slot is not None:
            self._slot.discard(self)

    def expire(self) -> None:
        due = self._last + self._timeout
        if due <= self._now():
            self._call.end("idle")
        else:
            self._slot = self._deadlines.add(due, self)
