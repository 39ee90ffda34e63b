"""The local wire: a service in the same process, called as if it were elsewhere.

Arguments and results are copied through a codec, and the handler runs in a task and a context of its own, so that
mutation, cancellation and context variables behave as they do across sockets.
"""

from __future__ import annotations

import asyncio
import contextvars
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

from polywire.clock import SYSTEM_CLOCK, Clock
from polywire.codec import codec_for
from polywire.codec.failures import as_declared
from polywire.codec.status import travelled
from polywire.context import NO_METADATA, Call, Metadata
from polywire.contract import Kind, Message, Rpc
from polywire.errors import (
    CallError,
    Cancelled,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)
from polywire.policy.deadline import Deadlines
from polywire.wire.framing import too_large
from polywire.wire.seam import (
    PRIORITY,
    Dispatcher,
    Handler,
    Outgoing,
    fields_from_metadata,
    metadata_from_fields,
    not_in_time,
    plain_value,
    priority_from,
    unknown_method,
)

BUFFER = 16
"""Messages that may wait in each direction of a stream before its sender has to."""


MAX_MESSAGE_BYTES = 4 * 1024 * 1024
"""Of one answer, as on the other wires: what is too large for a socket should not pass until there is one."""


class LocalWire:
    """Reaches the services of a dispatcher in this process, whose calls are those of service *caller*, if it is one."""

    name = "local"

    def __init__(
        self,
        dispatcher: Dispatcher,
        *,
        caller: str | None = None,
        clock: Clock = SYSTEM_CLOCK,
        address: str = "local",
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        self.limit = max_message_bytes
        # Being in this process proves as much as a certificate does across sockets.
        self._certificate = None if caller is None else {"subject": ((("commonName", caller),),)}
        self.address = address
        self.in_flight = 0
        self._dispatcher = dispatcher
        self._clock = clock
        self.deadlines = Deadlines(clock)
        self._closed = False
        self._drained: asyncio.Event | None = None
        self._running: set[asyncio.Future[Any]] = set()
        self._streams: weakref.WeakSet[_LocalStream] = weakref.WeakSet()

    @property
    def usable(self) -> bool:
        return not self._closed

    def encode(self, rpc: Rpc, request: Message | None) -> bytes:
        return codec_for(rpc.request, "proto").encode(request)

    async def unary(self, outgoing: Outgoing, encoded: Any, *, wait_for_ready: bool = False) -> Message | None:
        handler = self._handler(outgoing.rpc)
        rpc = handler.rpc
        call = self._call(outgoing)
        if len(encoded) > self._dispatcher.max_message_bytes:
            refused = too_large(len(encoded), self._dispatcher.max_message_bytes)
            self._dispatcher.rejected(call, refused)
            raise refused
        self._take_place(handler, call, rpc)
        work = self._dispatcher.unary(
            handler, call, codec_for(rpc.request, "proto").decode, encoded, codec_for(rpc.response, "proto").encode
        )
        answer = _Answer(work, call, outgoing)
        self._running.add(answer.future)
        slot = None if outgoing.deadline is None else self.deadlines.add(outgoing.deadline, answer)
        self.in_flight += 1
        try:
            body = _within(await answer.future, self.limit)
            return codec_for(outgoing.rpc.response, "proto").decode(body)  # type: ignore[no-any-return]  # the codec's type is known at run time
        except asyncio.CancelledError:
            self._dispatcher.cancel(call)
            raise
        except CallError as error:
            error.metadata = _trailing(call)
            raise
        finally:
            self.in_flight -= 1
            self._wake_drain()
            self._running.discard(answer.future)
            if slot is not None:
                slot.discard(answer)
            outgoing.headers = _leading(call)
            outgoing.trailers = _trailing(call)

    async def stream(self, outgoing: Outgoing, *, wait_for_ready: bool = False) -> _LocalStream:
        handler = self._handler(outgoing.rpc)
        call = self._call(outgoing)
        self._take_place(handler, call, outgoing.rpc)
        stream = _LocalStream(self, self._dispatcher, handler, call, outgoing)
        self._streams.add(stream)
        self.in_flight += 1
        return stream

    def stream_over(self, _task: asyncio.Task[Any]) -> None:
        self.in_flight -= 1
        self._wake_drain()

    def _wake_drain(self) -> None:
        if self._drained is not None and not self.in_flight:
            self._drained.set()

    async def drain(self) -> None:
        self._closed = True
        if self.in_flight:
            self._drained = asyncio.Event()
            await self._drained.wait()
        await self.close()

    async def close(self) -> None:
        self._closed = True
        lost = Unavailable("local did not answer: the connection was closed.", reached="maybe")
        for future in list(self._running):
            if not future.done():
                future.set_exception(lost)
        for stream in list(self._streams):
            stream.fail(lost)
        self.deadlines.close()

    def _handler(self, rpc: Rpc) -> Handler:
        if self._closed:
            raise Unavailable("local did not answer: the connection was closed.", reached="no")
        handler = self._dispatcher.handlers.get(rpc.path)
        if handler is None:
            raise unknown_method(self._dispatcher, rpc.path)
        return handler

    def _take_place(self, handler: Handler, call: Call, rpc: Rpc) -> None:
        """Raises what the caller is told where there is no room for *call*."""
        refused = self._dispatcher.take_place(handler, call)
        if refused is not None:
            self._dispatcher.rejected(call, refused)
            raise _told(refused, rpc)

    def _call(self, outgoing: Outgoing) -> Call:
        rpc = outgoing.rpc
        metadata = NO_METADATA
        if outgoing.metadata:
            # Through the headers' form, so that what could not travel fails here too.
            metadata = metadata_from_fields(fields_from_metadata(outgoing.metadata))
        call = Call(
            rpc.full_name,
            deadline=outgoing.deadline,
            request_id=outgoing.request_id,
            metadata=metadata,
            peer=self.address,
            wire=self.name,
            clock=self._clock,
        )
        call.attempt = outgoing.attempt
        if outgoing.authorization is not None:
            call.credentials = plain_value("authorization", outgoing.authorization).decode()
        call.peer_certificate = self._certificate
        call.principal = outgoing.principal
        if outgoing.metadata:
            for value in metadata.get_all(PRIORITY):
                call.priority = priority_from(str(value).encode(), call.priority)
        call.traceparent = outgoing.traceparent
        call.tracestate = outgoing.tracestate
        call.baggage = outgoing.baggage
        return call


def _leading(call: Call) -> Metadata:
    return Metadata(call.response_metadata) if call.response_metadata else NO_METADATA


def _trailing(call: Call) -> Metadata:
    return Metadata(call.trailing_metadata) if call.trailing_metadata else NO_METADATA


def _start(work: Any) -> asyncio.Task[Any]:
    """Run *work* in a context that inherits nothing from the caller's."""
    return asyncio.get_running_loop().create_task(work, context=contextvars.Context())


class _Answer:
    """The future that the caller waits on: the handler's answer, or the deadline, whichever comes first."""

    __slots__ = ("_call", "_outgoing", "future")

    def __init__(self, work: Any, call: Call, outgoing: Outgoing) -> None:
        self._call = call
        self._outgoing = outgoing
        self.future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        _start(work).add_done_callback(self._done)

    def _done(self, task: asyncio.Task[Any]) -> None:
        error = Cancelled(f"{self._call.method} was cancelled.") if task.cancelled() else task.exception()
        if self.future.done():
            return
        if error is not None:
            self.future.set_exception(_told(error, self._outgoing.rpc))
        else:
            self.future.set_result(task.result())

    def expire(self) -> None:
        if not self.future.done():
            self.future.set_exception(not_in_time(self._outgoing))
        self._call.expire()


class _Pipe:
    """One direction of a stream: bounded, one writer, one reader."""

    __slots__ = ("_ended", "_error", "_items", "_reader", "_writer")

    def __init__(self) -> None:
        self._items: deque[bytes] = deque()
        self._ended = False
        self._error: CallError | None = None
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None

    async def put(self, item: bytes) -> None:
        """Add *item* once there is room. Raises the error the pipe failed with; after the end it does nothing."""
        while len(self._items) >= BUFFER and not self._ended and self._error is None:
            self._writer = asyncio.get_running_loop().create_future()
            await self._writer
        if self._error is not None:
            raise self._error
        if not self._ended:
            self._items.append(item)
            _wake(self._reader)

    async def get(self) -> bytes:
        """The next item; then the error, if it failed; then StopAsyncIteration."""
        while not self._items:
            if self._error is not None:
                raise self._error
            if self._ended:
                raise StopAsyncIteration
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        item = self._items.popleft()
        _wake(self._writer)
        return item

    def end(self, error: CallError | None = None, *, discard: bool = False) -> None:
        """No more items; the first end counts. *discard* drops those that wait."""
        if self._ended or self._error is not None:
            return
        self._ended = error is None
        self._error = error
        if discard:
            self._items.clear()
        _wake(self._reader)
        _wake(self._writer)


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)


class _LocalStream:
    """A streaming call inside the process; see `ClientStream` for the rules."""

    def __init__(
        self, wire: LocalWire, dispatcher: Dispatcher, handler: Handler, call: Call, outgoing: Outgoing
    ) -> None:
        self._wire = wire
        self._dispatcher = dispatcher
        self._call = call
        self._outgoing = outgoing
        self._requests = _Pipe()
        self._answers = _Pipe()
        self._encode = codec_for(outgoing.rpc.request, "proto").encode
        self._decode = codec_for(outgoing.rpc.response, "proto").decode
        # The task holds the pipes but not this object, so that dropping it is noticed (see `__del__`).
        task = _start(_serve(dispatcher, handler, call, self._requests, self._answers))
        task.add_done_callback(partial(_finished, outgoing.rpc, self._requests, self._answers))
        task.add_done_callback(wire.stream_over)
        if outgoing.deadline is not None:
            wire.deadlines.add(outgoing.deadline, _Alarm(self))

    async def send(self, message: Message | None) -> None:
        try:
            encoded = self._encode(message)
        except CallError as error:
            self.fail(error)
            raise
        await self._requests.put(encoded)

    def end_requests(self) -> None:
        self._requests.end()

    async def receive(self) -> Message | None:
        try:
            item = await self._answers.get()
        except (CallError, StopAsyncIteration) as end:
            self._outgoing.headers = _leading(self._call)
            self._outgoing.trailers = _trailing(self._call)
            if isinstance(end, CallError):
                end.metadata = self._outgoing.trailers
            raise
        try:
            return self._decode(_within(item, self._wire.limit))  # type: ignore[no-any-return]  # typed by the rpc
        except ResourceExhausted as error:
            self.fail(error)
            raise

    def cancel(self) -> None:
        self.fail(Cancelled(f"{self._call.method} was cancelled by its caller."))

    def fail(self, error: CallError) -> None:
        """End the call for its caller, and its handler."""
        self._answers.end(error, discard=True)
        self._requests.end(error, discard=True)
        self._dispatcher.cancel(self._call)

    def expire(self) -> None:
        self._call.expire()
        self.fail(not_in_time(self._outgoing))

    def __del__(self) -> None:
        self._dispatcher.cancel(self._call)


class _Alarm:
    """The deadline of a stream, which must not keep the stream alive."""

    __slots__ = ("_stream",)

    def __init__(self, stream: _LocalStream) -> None:
        self._stream = weakref.ref(stream)

    def expire(self) -> None:
        stream = self._stream()
        if stream is not None:
            stream.expire()


async def _serve(dispatcher: Dispatcher, handler: Handler, call: Call, requests: _Pipe, answers: _Pipe) -> None:
    rpc = handler.rpc
    decode_any = codec_for(rpc.request, "proto").decode
    encode = codec_for(rpc.response, "proto").encode

    def decode(data: bytes) -> Any:
        return decode_any(_within(data, dispatcher.max_message_bytes))

    if rpc.kind is Kind.CLIENT_STREAM:
        await answers.put(await dispatcher.collect(handler, call, _decoded(requests, decode), encode))
        return

    def send(message: Any) -> Any:
        return answers.put(encode(message))

    if rpc.kind is Kind.BIDIRECTIONAL:
        await dispatcher.stream(handler, call, _decoded(requests, decode), send)
        return
    try:
        only = await requests.get()
    except StopAsyncIteration:
        dispatcher.cancel(call)  # it took a place, and will not be run
        raise InvalidArgument(f"{rpc.full_name} got no request message.") from None
    await dispatcher.stream(handler, call, lambda: decode(only), send)


async def _decoded(requests: _Pipe, decode: Callable[[bytes], Any]) -> AsyncIterator[Any]:
    while True:
        try:
            item = await requests.get()
        except StopAsyncIteration:
            return
        yield decode(item)


def _within(data: bytes, limit: int) -> bytes:
    """*data*, or ResourceExhausted where it is more than *limit* bytes."""
    if len(data) > limit:
        raise too_large(len(data), limit)
    return data


def _told(error: BaseException, rpc: Rpc) -> BaseException:
    """What the caller gets of what the handler's task ended with: a copy, as if it had travelled."""
    return as_declared(travelled(error), rpc) if isinstance(error, CallError) else error


def _finished(rpc: Rpc, requests: _Pipe, answers: _Pipe, task: asyncio.Task[Any]) -> None:
    requests.end(discard=True)
    if task.cancelled():
        answers.end(Cancelled("The call was cancelled."))
        return
    error = task.exception()
    if error is None:
        answers.end()
    elif isinstance(error, CallError):
        answers.end(as_declared(travelled(error), rpc))
    else:
        answers.end(Internal("internal error"))
        raise error
