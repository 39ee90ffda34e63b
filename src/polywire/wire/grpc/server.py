"""gRPC at the server: requests become calls of the dispatcher, what comes out of it becomes answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from polywire.clock import SYSTEM_CLOCK, Clock
from polywire.context import Call, MetadataValue
from polywire.contract import Kind
from polywire.errors import CallError, Cancelled, InvalidArgument, Unimplemented
from polywire.net.stream import Field, Headers, Receiver, Stream, StreamClosed
from polywire.wire.compression import ACCEPTED, compress
from polywire.wire.framing import COMPRESSED, PREFIX_SIZE, Frames, framed
from polywire.wire.grpc.messages import SingleBody, plain
from polywire.wire.grpc.protocol import ACCEPT_ENCODING, CONTENT_TYPE, ENCODING, MESSAGE, STATUS, TIMEOUT, parse_timeout
from polywire.wire.grpc.route import (
    CONTENT_TYPE_FIELD,
    DECISIVE,
    REQUEST_ID_FIELD,
    Route,
    apply_field,
    malformed_timeout,
    read_route,
)
from polywire.wire.grpc.status import status_fields
from polywire.wire.incoming import Incoming
from polywire.wire.request_id import new_request_id
from polywire.wire.seam import Dispatcher, fields_from_metadata, metadata_from_fields, request_id_from, start_task

log = logging.getLogger("polywire.grpc")

COMPRESS_FROM = 1024
"""Bytes of a message below which compressing it gains nothing."""

_BATCH = 14 * 1024
"""Bytes of small answers from which on they are sent together; with the last of them they mostly fit in one frame."""
_CANCEL = 0x8
"""RST_STREAM's code for a call that is given up."""

_COMMON: tuple[Field, ...] = (
    (b":status", b"200"),
    (CONTENT_TYPE_FIELD, CONTENT_TYPE),
    (ACCEPT_ENCODING, ",".join(ACCEPTED).encode()),
)
_HEADERS = Headers(_COMMON)
_GZIP_HEADERS = Headers((*_COMMON, (ENCODING, b"gzip")))
_OK = Headers(((STATUS, b"0"),))
_NO_TRAILERS = Headers(())
_NOT_GRPC = {
    405: Headers(((b":status", b"405"), (b"allow", b"POST"))),
    415: Headers(((b":status", b"415"), (STATUS, b"2"), (MESSAGE, b"the content type is not application/grpc"))),
}
_NO_TAIL: tuple[Field, ...] = ()


class GrpcServer:
    """Serves a dispatcher over gRPC; calling it with a stream makes it an `Application` of the listener.

    It keeps what it worked out about a request's head in `Head.memo`. Whoever decides before it which wire a request
    is for may look there: a memo of class `Route` is a gRPC request.

    *compress*: answers over a kilobyte are compressed for every client that accepts it; otherwise only those to
    requests that may be compressed themselves.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        *,
        clock: Clock = SYSTEM_CLOCK,
        compress: bool = False,
        new_request_id: Callable[[], str] = new_request_id,
    ) -> None:
        self.dispatcher = dispatcher
        self.limit = dispatcher.max_message_bytes
        self.compress = compress
        self._clock = clock
        self._now = clock.monotonic
        self._new_request_id = new_request_id
        self._loop: asyncio.AbstractEventLoop | None = None

    def __call__(self, stream: Stream) -> Receiver:
        head = stream.head
        route = head.memo
        if type(route) is not Route:
            route = head.memo = self._read(stream, head.fields)
        return self._begin(stream, route, stream.tail)

    def _begin(self, stream: Stream, route: Route, tail: tuple[Field, ...]) -> Receiver:
        # By position: naming the arguments costs more than the rest of it.
        connection = stream.connection
        call = Call(route.method, None, route.request_id, route.metadata, connection.peer, "grpc", self._clock)
        if connection.peer_certificate is not None:
            call.peer_certificate = connection.peer_certificate
        timeout = route.timeout
        fault = route.fault
        if route.carries:
            route.hand_on(call)
        for name, value in tail:
            if name == REQUEST_ID_FIELD:
                call.request_id = request_id_from(value)
            elif name == TIMEOUT:
                try:
                    timeout = parse_timeout(value)
                except ValueError as error:
                    fault = fault or malformed_timeout(route.method, value, error)
            elif name in DECISIVE:
                return self._begin(stream, self._read(stream, stream.head.fields + tail), ())
            elif not apply_field(call, name, value) and call._metadata is not None:
                call._metadata = None
                call._metadata_source = partial(metadata_from_fields, stream.head.fields + tail)
        if timeout is not None:
            call.deadline = self._now() + timeout
        if route.credentials is not None:
            call.credentials = route.credentials
        made_id = _NO_TAIL
        if not call.request_id:
            call.request_id = self._new_request_id()
            made_id = ((REQUEST_ID_FIELD, call.request_id.encode()),)
        if fault is not None or route.http_status != 200:
            return self.refuse(stream, route, call, fault, made_id)
        receiver: Receiver = route.receiver(self, stream, route, call, made_id)
        return receiver

    def _read(self, stream: Stream, fields: tuple[Field, ...]) -> Route:
        route = read_route(self.dispatcher, stream.head, fields)
        if route.fault is None and route.http_status == 200:
            route.receiver = _RECEIVERS[route.handler.rpc.kind]
        return route

    def refuse(
        self, stream: Stream, route: Route, call: Call, fault: CallError | None, made_id: tuple[Field, ...]
    ) -> Receiver:
        """Answer a request that no handler gets to see."""
        if route.http_status != 200 or fault is None:
            stream.send_headers(_NOT_GRPC[route.http_status], end=True)
            self.dispatcher.rejected(call, Unimplemented(f"{call.method} was asked for, but not with gRPC."))
        else:
            stream.send_headers(_HEADERS, [*made_id, *status_fields(fault)], end=True)
            self.dispatcher.rejected(call, fault)
        return _Ignored(stream)

    def start(self, coroutine: Coroutine[Any, Any, None], call: Call) -> None:
        """Run a call's coroutine as its task. The dispatcher keeps it alive."""
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        start_task(loop, coroutine, call)

    def at_the_next_turn(self, callback: Callable[[], None]) -> None:
        """Call back as soon as the loop gets to it."""
        if self._loop is not None:
            self._loop.call_soon(callback)


class _Ignored:
    """Takes the rest of a request that was answered already."""

    __slots__ = ("_stream",)

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def headers_received(self, head: Any, tail: Any) -> None:
        """Only clients get headers."""

    def data_received(self, data: bytes) -> None:
        self._stream.consumed(len(data))

    def ended(self, trailers: tuple[Field, ...]) -> None:
        """Nothing waits for it."""

    def failed(self, error: StreamClosed) -> None:
        """Nothing waits for it."""


class _Exchange(SingleBody):
    """A call and its answer, which begins with the first message or ends at once with an error."""

    __slots__ = ("_begun", "_call", "_gzip", "_held", "_held_size", "_made_id", "_route", "_server", "_started")

    def __init__(
        self, server: GrpcServer, stream: Stream, route: Route, call: Call, made_id: tuple[Field, ...]
    ) -> None:
        # SingleBody's part is written out: one call less for each call served.
        self._limit = server.limit
        self._body = None
        self._frames = None
        self._server = server
        self.stream = stream
        self._route = route
        self._call = call
        self._made_id = made_id
        self._gzip = route.accepts_gzip and (server.compress or route.gzip)
        self._begun = False
        """Headers were sent."""
        self._held: list[bytes] | None = None
        """Answers of this turn of the loop that wait for others; None while the next one goes at once."""
        self._held_size = 0
        self._started = False
        """The dispatcher has heard of the call."""

    def headers_received(self, head: Any, tail: Any) -> None:
        """Only clients get headers."""

    def failed(self, error: StreamClosed) -> None:
        self._server.dispatcher.cancel(self._call)

    def _frame(self, message: Any) -> bytes:
        """What the dispatcher calls to encode an answer."""
        payload = self._route.encode(message)
        if self._gzip and len(payload) >= COMPRESS_FROM:
            return framed(compress(payload), COMPRESSED)
        return framed(payload)

    def _leading(self) -> tuple[Field, ...]:
        return self._made_id + self._metadata(self._call.response_metadata)

    def _metadata(self, pairs: list[tuple[str, MetadataValue]] | None) -> tuple[Field, ...]:
        fields: list[Field] = []
        for pair in pairs or ():
            try:
                fields += fields_from_metadata((pair,))
            except InvalidArgument as error:
                # The handler's mistake. Its answer is right all the same, and the caller can do nothing about it.
                log.error("%s (of the answer to %s, request id %s)", error, self._call.method, self._call.request_id)
        return tuple(fields)

    def _fail(self, error: CallError) -> None:
        fields = [*self._metadata(self._call.trailing_metadata), *status_fields(error)]
        if self._begun:
            self._send_held()
            self.stream.send_trailers(_NO_TRAILERS, fields)
        else:
            self.stream.send_headers(_HEADERS, [*self._leading(), *fields], end=True)

    def _reject(self, error: CallError) -> None:
        """End a call that the dispatcher has not heard of."""
        self._fail(error)
        self._server.dispatcher.rejected(self._call, error)

    # Streamed answers.

    def _send(self, message: Any) -> Coroutine[Any, Any, None] | None:
        """What the dispatcher calls to send an answer. Returns what to wait for where the peer holds us back."""
        frame = self._frame(message)
        held = self._held
        if held is None:
            if not self._begun:
                self._begin()
            # The first message of a turn of the loop goes at once; those that follow it in the same turn share DATA
            # frames, as each of those costs either side more than the message in it.
            self._held = []
            self._server.at_the_next_turn(self._turn_over)
            self.stream.send_data(frame)
        else:
            held.append(frame)
            self._held_size += len(frame)
            if self._held_size < _BATCH:
                return None
            self._send_held()
        return None if self.stream.writable else self._room()

    def _turn_over(self) -> None:
        self._send_held()
        self._held = None

    def _send_held(self) -> None:
        if self._held:
            self.stream.send_data(b"".join(self._held))
            self._held.clear()
            self._held_size = 0

    def _begin(self) -> None:
        self._begun = True
        self.stream.send_headers(_GZIP_HEADERS if self._gzip else _HEADERS, self._leading())

    async def _room(self) -> None:
        self._send_held()
        try:
            await self.stream.drain()
        except StreamClosed as error:
            raise Cancelled(f"{self._route.method} was cancelled by its caller.") from error

    async def _answer(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run the dispatcher's *work*, which sends answers or returns the only one, and end the stream as it ended."""
        try:
            only = await work
        except CallError as error:
            self._fail(error)
        except asyncio.CancelledError:
            self.stream.reset(_CANCEL)
            raise
        else:
            trailing = self._metadata(self._call.trailing_metadata)
            if only is not None:
                headers = _GZIP_HEADERS if self._gzip else _HEADERS
                self.stream.respond(headers, self._leading(), only, _OK, trailing)
                return
            if not self._begun:
                self._begin()
            self._send_held()
            self.stream.send_trailers(_OK, trailing)


class _OneRequest(_Exchange):
    """What unary and server-streaming calls share: they start when their only message is complete."""

    __slots__ = ()

    def _gather(self, data: bytes) -> None:
        super()._gather(data)
        fault = self.fault_so_far()
        if fault is not None and not self._started:
            self._started = True
            self._reject(fault)

    def ended(self, trailers: tuple[Field, ...]) -> None:
        if self._started:
            return
        self._started = True
        body = self._body
        if body is not None and not body[0]:
            payload = body[PREFIX_SIZE:]
        else:
            try:
                flags, payload = self.frame(f"The request of {self._route.method}")
                payload = plain(flags, payload, gzip=self._route.gzip, limit=self._limit)
            except CallError as error:
                self._reject(error)
                return
        server = self._server
        refused = server.dispatcher.take_place(self._route.handler, self._call)
        if refused is None:
            server.start(self._run(payload), self._call)
            return
        self._reject(refused)
        # As after a call that was answered: those that are turned away come in great numbers.
        del self.stream

    async def _run(self, payload: bytes) -> None:
        raise NotImplementedError

    def failed(self, error: StreamClosed) -> None:
        if self._started:
            self._server.dispatcher.cancel(self._call)
        else:
            self._started = True
            gone = Cancelled(f"{self._route.method} was not called: its caller went away before its request was here.")
            self._server.dispatcher.rejected(self._call, gone)


class _Unary(_OneRequest):
    __slots__ = ()

    async def _run(self, payload: bytes) -> None:
        route = self._route
        call = self._call
        stream = self.stream
        try:
            answer = await self._server.dispatcher.unary(route.handler, call, route.decode, payload, self._frame)
        except CallError as error:
            self._fail(error)
        except asyncio.CancelledError:
            stream.reset(_CANCEL)
            raise
        else:
            if call.response_metadata is None and call.trailing_metadata is None:
                stream.respond(_GZIP_HEADERS if self._gzip else _HEADERS, self._made_id, answer, _OK)
            else:
                headers = _GZIP_HEADERS if self._gzip else _HEADERS
                stream.respond(headers, self._leading(), answer, _OK, self._metadata(call.trailing_metadata))
        finally:
            # Stream and receiver hold each other; without this every call would be left to the garbage collector.
            del self.stream


class _ServerStream(_OneRequest):
    __slots__ = ()

    async def _run(self, payload: bytes) -> None:
        route = self._route
        answers = self._server.dispatcher.stream(route.handler, self._call, partial(route.decode, payload), self._send)
        await self._answer(answers)


class _ManyRequests(_Exchange):
    """Client-streaming and bidirectional calls: they start with their headers."""

    __slots__ = ("_requests",)

    def __init__(
        self, server: GrpcServer, stream: Stream, route: Route, call: Call, made_id: tuple[Field, ...]
    ) -> None:
        super().__init__(server, stream, route, call, made_id)
        self._requests: Incoming[Any] = Incoming(stream, Frames(self._limit), self._request_from)
        server.start(self._run(), call)

    def _request_from(self, flags: int, payload: bytes) -> Any:
        route = self._route
        if flags:
            payload = plain(flags, payload, gzip=route.gzip, limit=self._limit)
        return route.decode(payload)

    def data_received(self, data: bytes) -> None:
        self._requests.feed(data)

    def ended(self, trailers: tuple[Field, ...]) -> None:
        self._requests.end()

    def failed(self, error: StreamClosed) -> None:
        self._requests.fail(Cancelled(f"{self._route.method} was cancelled by its caller."))
        super().failed(error)

    async def _run(self) -> None:
        dispatcher = self._server.dispatcher
        handler = self._route.handler
        try:
            if handler.rpc.kind is Kind.CLIENT_STREAM:
                await self._answer(dispatcher.collect(handler, self._call, self._requests, self._frame))
            else:
                await self._answer(dispatcher.stream(handler, self._call, self._requests, self._send))
        finally:
            self._requests.discard()


def _many_requests(
    server: GrpcServer, stream: Stream, route: Route, call: Call, made_id: tuple[Field, ...]
) -> Receiver:
    refused = server.dispatcher.take_place(route.handler, call)
    if refused is not None:
        return server.refuse(stream, route, call, refused, made_id)
    return _ManyRequests(server, stream, route, call, made_id)


_RECEIVERS: dict[Kind, Callable[[GrpcServer, Stream, Route, Call, tuple[Field, ...]], Receiver]] = {
    Kind.UNARY: _Unary,
    Kind.SERVER_STREAM: _ServerStream,
    Kind.CLIENT_STREAM: _many_requests,
    Kind.BIDIRECTIONAL: _many_requests,
}
