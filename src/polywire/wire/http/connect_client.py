"""The Connect protocol at the client: one endpoint, reached over the connections of a pool."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from polywire.clock import SYSTEM_CLOCK, Clock
from polywire.codec import codec_for
from polywire.codec.failures import as_declared
from polywire.context import Metadata
from polywire.contract import Kind, Message, Rpc
from polywire.errors import CallError, Cancelled, Internal, InvalidArgument
from polywire.net.pool import Pool
from polywire.net.stream import Field, Head, Headers, Stream, StreamClosed
from polywire.policy.deadline import Slot
from polywire.wire.compression import compress
from polywire.wire.framing import COMPRESSED, Frames, framed
from polywire.wire.http import connect_protocol as connect
from polywire.wire.http.connect_protocol import CODECS, STREAM_TYPES, TIMEOUT, UNARY_TYPES, Encoding
from polywire.wire.http.outbound import (
    CANCEL,
    MAX_MESSAGE_BYTES,
    Calls,
    Reply,
    answer_head,
    cancelled,
    fields_of,
    metadata_among,
)
from polywire.wire.incoming import Incoming
from polywire.wire.seam import Outgoing, not_in_time, unavailable

COMPRESS_FROM = 1024
"""Bytes of a message below which compressing it gains nothing."""


class ConnectWire:
    """The `EndpointWire` of Connect. The *pool* is this wire's own; bidirectional streams need version "2".

    *encoding*: of messages, `proto` or `json` (protobuf's own JSON). *secure*: the pool uses TLS although its address
    does not say so. *compress*: requests over a kilobyte are compressed, and answers may be.
    """

    name = "connect"

    def __init__(
        self,
        pool: Pool,
        *,
        encoding: Encoding = "proto",
        secure: bool = False,
        compress: bool = False,
        clock: Clock = SYSTEM_CLOCK,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        self.address = str(pool.address)
        self._calls = Calls(pool, clock=clock, limit=max_message_bytes)
        self._version = pool.version
        self._encoding: Encoding = encoding
        self._compress = compress
        self._first: tuple[Field, ...] = (
            (b":method", b"POST"),
            (b":scheme", b"https" if secure or pool.address.secure else b"http"),
            (b":authority", pool.address.authority.encode()),
        )
        self._methods: dict[Rpc, _Method] = {}

    @property
    def usable(self) -> bool:
        return self._calls.usable

    @property
    def in_flight(self) -> int:
        return self._calls.in_flight

    def _method(self, rpc: Rpc) -> _Method:
        found = self._methods.get(rpc)
        if found is None:
            found = self._methods[rpc] = _Method(rpc, self._encoding, self._first, compressed=self._compress)
        return found

    def encode(self, rpc: Rpc, request: Message | None) -> tuple[bytes, bool]:
        """The message, and whether it is compressed."""
        encoded = self._method(rpc).encode(request)
        if self._compress and len(encoded) >= COMPRESS_FROM:
            return compress(encoded), True
        return encoded, False

    async def unary(self, outgoing: Outgoing, encoded: Any, *, wait_for_ready: bool = False) -> Any:
        method = self._method(outgoing.rpc)
        tail = fields_of(outgoing)
        if outgoing.timeout is not None:
            tail.append((TIMEOUT, connect.format_timeout(outgoing.timeout)))
        body, zipped = encoded
        if zipped:
            tail.append((b"content-encoding", b"gzip"))
        reply = await self._calls.exchange(outgoing, method.headers, tail, body, wait_for_ready)
        return self._answer(method, outgoing, reply)

    def _answer(self, method: _Method, outgoing: Outgoing, reply: Reply) -> Any:
        head = answer_head(reply.head, reply.tail)
        outgoing.headers = head.metadata
        outgoing.trailers = head.trailers
        body = reply.body
        if head.coding != b"identity":
            body = inflated_answer(self.address, outgoing, head.coding, body, self._calls.limit)
        content_type = head.content_type
        if head.status != 200:
            fields = reply.head.fields + reply.tail
            error = connect.error_from_response(head.status, fields, body, self.address, content_type)
            error.metadata = Metadata((*head.metadata.pairs(), *head.trailers.pairs()))
            raise as_declared(error, outgoing.rpc)
        if content_type != method.content_type:
            raise Internal(
                f"{self.address} answered {outgoing.rpc.full_name} with {content_type[:60].decode('latin-1')!r} "
                f"instead of {method.content_type.decode()!r}. Is it the service, or a proxy?"
            )
        try:
            return method.decode(body)
        except InvalidArgument as error:
            raise unreadable(outgoing, error) from None

    async def stream(self, outgoing: Outgoing, *, wait_for_ready: bool = False) -> ConnectStream:
        calls = self._calls
        method = self._method(outgoing.rpc)
        if method.kind is Kind.BIDIRECTIONAL and self._version != "2":
            raise Internal(
                f"{outgoing.rpc.full_name} was not called: it streams both ways at once, which needs HTTP/2, and this "
                "client was made for HTTP/1.1."
            )
        tail = fields_of(outgoing)
        if outgoing.timeout is not None:
            tail.append((TIMEOUT, connect.format_timeout(outgoing.timeout)))
        calls.in_flight += 1
        try:
            connection = calls.pool.ready() or await calls.connection(outgoing, wait_for_ready)
            answers = _Answers(calls, outgoing, method)
            try:
                answers.attach(connection.open(method.stream_headers, tail, answers, end=False))
            except StreamClosed as error:
                raise unavailable(error, self.address) from None
        except BaseException:
            calls.in_flight -= 1
            raise
        if outgoing.deadline is not None:
            answers.slot = calls.deadlines.add(outgoing.deadline, answers)
        return ConnectStream(answers, method, compressed=self._compress)

    async def drain(self) -> None:
        await self._calls.drain()

    async def close(self) -> None:
        await self._calls.close()


def inflated_answer(address: str, outgoing: Outgoing, coding: bytes, body: bytes, limit: int) -> bytes:
    """The body of an answer from *address* that came in *coding*, *limit* bytes at most. Raises Internal."""
    if coding != b"gzip":
        raise Internal(
            f"{address} compressed its answer to {outgoing.rpc.full_name} with "
            f"{coding[:40].decode('latin-1')!r}; gzip is known here."
        )
    try:
        return connect.inflated(body, limit)
    except InvalidArgument as error:
        raise unreadable(outgoing, error) from None


def unreadable(outgoing: Outgoing, error: CallError) -> Internal:
    """What a caller gets for an answer that its contract does not allow: the request is not what is wrong."""
    return Internal(
        f"The answer of {outgoing.rpc.full_name} could not be read: {error.message.rstrip('.')}. "
        "Do both sides have the same contract?"
    )


class _Method:
    """One rpc: its headers and codecs."""

    __slots__ = ("content_type", "decode", "encode", "headers", "kind", "stream_headers", "stream_type")

    def __init__(self, rpc: Rpc, encoding: Encoding, first: tuple[Field, ...], *, compressed: bool) -> None:
        self.kind = rpc.kind
        self.encode: Callable[[Any], bytes] = codec_for(rpc.request, CODECS[encoding]).encode
        self.decode: Callable[[bytes], Any] = codec_for(rpc.response, CODECS[encoding]).decode
        self.content_type = next(name for name, known in UNARY_TYPES.items() if known == encoding)
        self.stream_type = next(name for name, known in STREAM_TYPES.items() if known == encoding)
        path = (b":path", rpc.path.encode())
        version = (connect.VERSION, b"1")
        zipped: tuple[Field, ...] = ((b"accept-encoding", b"gzip"),) if compressed else ()
        self.headers = Headers((*first, path, (b"content-type", self.content_type), version, *zipped))
        if compressed:
            zipped = ((connect.STREAM_ENCODING, b"gzip"), (connect.STREAM_ACCEPT, b"gzip"))
        self.stream_headers = Headers((*first, path, (b"content-type", self.stream_type), version, *zipped))


class _Answers:
    """Takes the answers of a streaming call. It does not know the `ConnectStream`, so that dropping that is noticed."""

    __slots__ = ("_calls", "_coding", "_error_body", "_frames", "_head", "_method", "_outgoing", "_plain", "error",
                 "messages", "over", "slot", "stream")  # fmt: skip

    stream: Stream
    messages: Incoming[Any]

    def __init__(self, calls: Calls, outgoing: Outgoing, method: _Method) -> None:
        self._calls = calls
        self._outgoing = outgoing
        self._method = method
        self._frames = Frames(calls.limit)
        self._head: Head | None = None
        self._coding = b"identity"
        self._plain = b""
        """The body of an answer that is no stream: an error of the service, or of something before it."""
        self.slot: Slot | None = None
        """Of the deadline's alarm."""
        self.over = False
        """Nothing will come or go any more."""
        self.error: CallError | None = None
        """Why, if not well."""

    def attach(self, stream: Stream) -> None:
        """The exchange was opened as *stream*."""
        self.stream = stream
        self.messages = Incoming(stream, self._frames, self._message)

    def _message(self, flags: int, payload: bytes) -> Any:
        try:
            return self._method.decode(connect.unpacked(flags, payload, self._coding, self._calls.limit))
        except InvalidArgument as error:
            raise unreadable(self._outgoing, error) from None

    def headers_received(self, head: Head, tail: tuple[Field, ...]) -> None:
        self._head = Head(head.fields + tail, status=head.status) if tail else head
        fields = self._head.fields
        named = dict(fields)
        self._outgoing.headers = metadata_among(fields)
        self._coding = named.get(connect.STREAM_ENCODING, b"identity").lower()
        content_type = connect.media_type(named.get(b"content-type", b""))
        if head.status == 200 and content_type != self._method.stream_type:
            self.give_up(
                Internal(
                    f"{self._calls.address} answered {self._outgoing.rpc.full_name} with "
                    f"{content_type[:60].decode('latin-1')!r} instead of {self._method.stream_type.decode()!r}. "
                    "Is it the service, or a proxy?"
                )
            )

    def data_received(self, data: bytes) -> None:
        size = len(data)
        if self.over:
            self.stream.consumed(size)
        elif self._head is not None and self._head.status != 200:
            self.stream.consumed(size)
            self._plain = (self._plain + data)[:_MAX_ERROR]
        else:
            self._sort(data)

    def _sort(self, data: bytes) -> None:
        for flags, payload in self._frames.feed(data):
            if flags & connect.END_STREAM:
                self._end_of_stream(flags, payload)
                break
            self.messages.put(flags, payload)
        self.messages.received(len(data))
        if self._frames.fault is not None and not self.over:
            self.give_up(self._frames.fault)

    def _end_of_stream(self, flags: int, payload: bytes) -> None:
        try:
            plain = connect.unpacked(flags & ~connect.END_STREAM, payload, self._coding, self._calls.limit)
        except CallError as wrong:
            self._end(unreadable(self._outgoing, wrong))
            return
        error, trailers = connect.read_end_of_stream(plain)
        self._outgoing.trailers = trailers
        self._end(None if error is None else as_declared(error, self._outgoing.rpc))

    def ended(self, trailers: tuple[Field, ...]) -> None:
        if self.over:
            # The server answered before the requests ended: it wants no more of them.
            self.stream.reset(_NO_ERROR)
            return
        head = self._head
        if head is not None and head.status != 200:
            content_type = connect.media_type(dict(head.fields).get(b"content-type", b""))
            error = connect.error_from_response(
                head.status, head.fields, self._plain, self._calls.address, content_type
            )
            self._end(as_declared(error, self._outgoing.rpc))
        else:
            self._end(
                Internal(
                    f"{self._calls.address} ended its answer to {self._outgoing.rpc.full_name} without saying how the "
                    "call ended. It, or a proxy on the way, cut it off."
                )
            )

    def failed(self, error: StreamClosed) -> None:
        if not self.over:
            self._end(unavailable(error, self._calls.address))

    def expire(self) -> None:
        """The deadline has come."""
        self.give_up(not_in_time(self._outgoing))

    def give_up(self, error: CallError) -> None:
        """End the call from this side, with *error* for whoever uses it."""
        if not self.over:
            self._end(error)
            self.stream.reset(CANCEL)

    def _end(self, error: CallError | None) -> None:
        self.over = True
        self.error = error
        if error is None:
            self.messages.end()
        else:
            self.messages.fail(error)
        self._calls.in_flight -= 1
        if self.slot is not None:
            self.slot.discard(self)


_NO_ERROR = 0x0
_MAX_ERROR = 256 * 1024
"""Bytes of an error's body that are read."""


class ConnectStream:
    """A streaming call; see `ClientStream` for the rules."""

    __slots__ = ("__weakref__", "_answered", "_answers", "_compressed", "_method", "_requests_ended")

    def __init__(self, answers: _Answers, method: _Method, *, compressed: bool) -> None:
        self._answers = answers
        self._method = method
        self._compressed = compressed
        self._requests_ended = False
        self._answered = False

    async def send(self, message: Message | None) -> None:
        answers = self._answers
        if not answers.over:
            try:
                frame = self._frame(message)
            except CallError as error:
                answers.give_up(error)
                raise
            stream = answers.stream
            stream.send_data(frame)
            if stream.writable:
                return
            with suppress(StreamClosed):  # the receiver is told as well, and says what it means
                await stream.drain()
        if answers.error is not None:
            raise answers.error

    def _frame(self, message: Message | None) -> bytes:
        payload = self._method.encode(message)
        if self._compressed and len(payload) >= COMPRESS_FROM:
            return framed(compress(payload), COMPRESSED)
        return framed(payload)

    def end_requests(self) -> None:
        if not self._requests_ended:
            self._requests_ended = True
            if not self._answers.over:
                self._answers.stream.send_data(b"", end=True)

    async def receive(self) -> Any:
        answers = self._answers
        try:
            if self._method.kind in (Kind.SERVER_STREAM, Kind.BIDIRECTIONAL):
                return await answers.messages.__anext__()
            return await self._only_answer()
        except CallError as error:
            # Of a message that is too large or cannot be decoded; otherwise the call is over and this does nothing.
            answers.give_up(error)
            raise

    async def _only_answer(self) -> Any:
        """The answer of a call that has exactly one: it counts once the end of the stream said that all is well."""
        name = self._answers._outgoing.rpc.full_name
        messages = self._answers.messages
        try:
            answer = await messages.__anext__()
            self._answered = True
        except StopAsyncIteration:
            if self._answered:
                raise
            raise Internal(f"The answer of {name} is missing: its body is empty.") from None
        try:
            await messages.__anext__()
        except StopAsyncIteration:
            return answer
        raise Internal(f"The answer of {name} came more than once: its body has several messages.")

    def cancel(self) -> None:
        self._answers.give_up(cancelled(self._answers._outgoing))
        self._answers.messages.discard()

    def __del__(self) -> None:
        answers = self._answers
        if not answers.over:
            answers.give_up(
                Cancelled(f"{answers._outgoing.rpc.full_name} was cancelled: nobody held its stream any more.")
            )
            answers.messages.discard()
