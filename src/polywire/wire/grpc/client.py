"""gRPC at the client: one endpoint, reached over the connections of a pool."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from polywire.clock import SYSTEM_CLOCK, Clock
from polywire.codec import codec_for
from polywire.contract import Message, Rpc
from polywire.errors import CallError, Cancelled, Internal, InvalidArgument
from polywire.net.pool import Pool
from polywire.net.stream import ClientConnection, StreamClosed
from polywire.policy.deadline import Deadlines, Slot
from polywire.wire.compression import compress
from polywire.wire.framing import COMPRESSED, framed
from polywire.wire.grpc.answer import Answer, StreamedAnswers, unreadable
from polywire.wire.grpc.request import RequestHeaders
from polywire.wire.seam import Outgoing, not_in_time, unavailable

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
"""Of one answer, after decompression; gRPC's customary limit."""
COMPRESS_FROM = 1024
"""Bytes of a message below which compressing it gains nothing."""


class GrpcWire:
    """The `EndpointWire` of gRPC. The *pool* is this wire's own, of version "2".

    *secure*: the pool uses TLS although its address does not say so.
    *compress*: requests over a kilobyte are compressed. Compressed answers are read in any case.
    """

    name = "grpc"

    def __init__(
        self,
        pool: Pool,
        *,
        secure: bool = False,
        clock: Clock = SYSTEM_CLOCK,
        compress: bool = False,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:
        self.address = str(pool.address)
        self.in_flight = 0
        self._pool = pool
        self._clock = clock
        self._compress = compress
        self._limit = max_message_bytes
        self._deadlines = Deadlines(clock)
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._codecs: dict[Rpc, tuple[Callable[[Any], bytes], Callable[[bytes], Any]]] = {}
        self._headers = RequestHeaders(
            scheme="https" if secure or pool.address.secure else "http",
            authority=pool.address.authority,
            gzip=compress,
        )

    @property
    def usable(self) -> bool:
        return self._pool.retry_at is None and not self._closed

    def encode(self, rpc: Rpc, request: Message | None) -> bytes:
        payload = (self._codecs.get(rpc) or self._codec(rpc))[0](request)
        return self._framed(payload) if self._compress else framed(payload)

    def _codec(self, rpc: Rpc) -> tuple[Callable[[Any], bytes], Callable[[bytes], Any]]:
        """How to encode requests and decode answers of *rpc*."""
        codec = self._codecs[rpc] = codec_for(rpc.request, "proto").encode, codec_for(rpc.response, "proto").decode
        return codec

    def _framed(self, payload: bytes) -> bytes:
        if self._compress and len(payload) >= COMPRESS_FROM:
            return framed(compress(payload), COMPRESSED)
        return framed(payload)

    async def unary(self, outgoing: Outgoing, encoded: Any, *, wait_for_ready: bool = False) -> Any:
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        slot: Slot | None = None
        self.in_flight += 1
        try:
            headers, tail = self._headers.of(outgoing)
            connection = self._pool.ready() or await self._connection(outgoing, wait_for_ready)
            answer = Answer(self, outgoing, self._limit, loop.create_future())
            try:
                answer.stream = connection.open(headers, tail, answer, body=encoded)
            except StreamClosed as error:
                raise unavailable(error, self.address) from None
            try:
                if outgoing.deadline is not None:
                    slot = self._deadlines.add(outgoing.deadline, answer)
                body = await answer.future
            except asyncio.CancelledError:
                answer.abandon()
                raise
            finally:
                if slot is not None:
                    slot.discard(answer)
                # Stream and receiver hold each other; without this every call would be left to the garbage collector.
                del answer.stream
            try:
                return (self._codecs.get(outgoing.rpc) or self._codec(outgoing.rpc))[1](body)
            except InvalidArgument as error:
                raise unreadable(outgoing.rpc, error) from error
        finally:
            self.in_flight -= 1

    async def stream(self, outgoing: Outgoing, *, wait_for_ready: bool = False) -> GrpcStream:
        headers, tail = self._headers.of(outgoing)
        encode, decode = self._codecs.get(outgoing.rpc) or self._codec(outgoing.rpc)
        self.in_flight += 1
        try:
            connection = self._pool.ready() or await self._connection(outgoing, wait_for_ready)
            answers = StreamedAnswers(self, outgoing, self._limit, decode)
            try:
                answers.attach(connection.open(headers, tail, answers, end=False))
            except StreamClosed as error:
                raise unavailable(error, self.address) from None
        except BaseException:
            self.in_flight -= 1
            raise
        if outgoing.deadline is not None:
            answers.slot = self._deadlines.add(outgoing.deadline, answers)
        return GrpcStream(answers, outgoing.rpc, encode, self._framed)

    async def _connection(self, outgoing: Outgoing, wait_for_ready: bool) -> ClientConnection:
        """Wait for a connection, at most until the deadline."""
        left = None if outgoing.deadline is None else outgoing.deadline - self._clock.monotonic()
        try:
            async with asyncio.timeout(left):
                return await self._pool.acquire(wait_for_ready=wait_for_ready)
        except TimeoutError:
            raise not_in_time(outgoing) from None
        except StreamClosed as error:
            raise unavailable(error, self.address) from None

    def in_time(self, outgoing: Outgoing) -> bool:
        """Whether the deadline of *outgoing* is still to come."""
        return outgoing.deadline is None or self._clock.monotonic() < outgoing.deadline

    def finished(self, slot: Slot | None, receiver: StreamedAnswers) -> None:
        """A streaming call is over."""
        self.in_flight -= 1
        if slot is not None:
            slot.discard(receiver)

    async def drain(self) -> None:
        self._closed = True
        await self._pool.drain()
        self._deadlines.close()

    async def close(self) -> None:
        self._closed = True
        self._pool.close()
        self._deadlines.close()
        await self._pool.wait_closed()


class GrpcStream:
    """A streaming call; see `ClientStream` for the rules."""

    __slots__ = (
        "__weakref__",
        "_answered",
        "_answers",
        "_encode",
        "_failure",
        "_framed",
        "_requests_ended",
        "_rpc",
        "_streams_answers",
    )

    def __init__(
        self,
        answers: StreamedAnswers,
        rpc: Rpc,
        encode: Callable[[Any], bytes],
        framed: Callable[[bytes], bytes],
    ) -> None:
        self._answers = answers
        self._rpc = rpc
        self._encode = encode
        self._framed = framed
        self._streams_answers = rpc.streams_responses
        self._requests_ended = False
        self._answered = False
        self._failure: CallError | None = None

    async def send(self, message: Message | None) -> None:
        answers = self._answers
        if not answers.over:
            try:
                frame = self._framed(self._encode(message))
            except CallError as error:
                answers.give_up(error)
                raise
            stream = answers.stream
            stream.send_data(frame)
            if stream.writable:
                return
            with suppress(StreamClosed):  # the receiver is told as well, and says what it means
                await stream.drain()
        failure = self._failure or answers.error
        if failure is not None:
            raise failure

    def end_requests(self) -> None:
        if not self._requests_ended:
            self._requests_ended = True
            self._answers.stream.send_data(b"", end=True)

    async def receive(self) -> Any:
        if self._failure is not None:
            raise self._failure
        try:
            if self._streams_answers:
                return await self._answers.messages.__anext__()
            return await self._only_answer()
        except CallError as error:
            self._failure = error
            # It may be of a message that is too large or cannot be decoded; then the other side has to be told.
            self._answers.give_up(error)
            raise

    async def _only_answer(self) -> Any:
        """The answer of a call that has exactly one: it counts once the status is there too."""
        messages = self._answers.messages
        try:
            answer = await messages.__anext__()
            self._answered = True
        except StopAsyncIteration:
            if self._answered:
                raise
            raise Internal(f"The answer of {self._rpc.full_name} is missing: its body is empty.") from None
        try:
            await messages.__anext__()
        except StopAsyncIteration:
            return answer
        raise Internal(f"The answer of {self._rpc.full_name} came more than once: its body has several messages.")

    def cancel(self) -> None:
        self._answers.give_up(Cancelled(f"{self._rpc.full_name} was cancelled by its caller."))
        self._answers.messages.discard()

    def __del__(self) -> None:
        answers = self._answers
        if not answers.over:
            answers.give_up(Cancelled(f"{self._rpc.full_name} was cancelled: nobody held its stream any more."))
            answers.messages.discard()
