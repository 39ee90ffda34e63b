"""What REST and Connect clients share: the headers beside a request, and the receiver of its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from polywire.clock import Clock
from polywire.context import NO_METADATA, Metadata
from polywire.errors import CallError, Cancelled, ResourceExhausted
from polywire.net.pool import Pool
from polywire.net.stream import ClientConnection, Field, Head, Stream, StreamClosed
from polywire.policy.deadline import Deadlines, Slot
from polywire.wire.http.connect_protocol import TRAILER
from polywire.wire.seam import (
    PREVIOUS_ATTEMPTS,
    PRINCIPAL,
    REQUEST_ID,
    Outgoing,
    fields_from_metadata,
    metadata_from_fields,
    not_in_time,
    plain_value,
    unavailable,
)

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
"""Of one answer, after decompression."""
CANCEL = 0x8
"""RST_STREAM: the exchange is not wanted any more."""

_REQUEST_ID = REQUEST_ID.encode()
_PRINCIPAL = PRINCIPAL.encode()
_PREVIOUS = PREVIOUS_ATTEMPTS.encode()
_NO_HEAD = Head(())
_QUIET = frozenset({b"date", b"content-length", b"vary", b"server", _REQUEST_ID})
"""Headers that change nothing about how an answer is read, and are no metadata."""

# Headers of nearly every answer that are no metadata: left out before the slower look at each name.
_PLAIN = frozenset(
    {b"content-type", b"content-length", b"date", b"server", b"vary", _REQUEST_ID, b"content-encoding"}
)  # fmt: skip


def fields_of(outgoing: Outgoing) -> list[Field]:
    """The headers that differ from call to call, without the timeout, whose name each protocol has for itself.

    Raises InvalidArgument for metadata that no header can carry.
    """
    fields: list[Field] = []
    if outgoing.request_id:
        fields.append((_REQUEST_ID, outgoing.request_id.encode()))
    if outgoing.authorization is not None:
        fields.append((b"authorization", plain_value("authorization", outgoing.authorization)))
    if outgoing.traceparent is not None:
        fields.append((b"traceparent", outgoing.traceparent.encode()))
        if outgoing.tracestate is not None:
            fields.append((b"tracestate", outgoing.tracestate.encode()))
    if outgoing.baggage is not None:
        fields.append((b"baggage", outgoing.baggage.encode()))
    if outgoing.principal is not None:
        fields.append((_PRINCIPAL, plain_value("principal", outgoing.principal)))
    if outgoing.attempt > 1:
        fields.append((_PREVIOUS, b"%d" % (outgoing.attempt - 1)))
    if outgoing.metadata:
        fields += fields_from_metadata(outgoing.metadata)
    return fields


def metadata_among(fields: Iterable[Field]) -> Metadata:
    """The metadata of an answer."""
    rest = [field for field in fields if field[0] not in _PLAIN]
    return metadata_from_fields(rest) if rest else NO_METADATA


class AnswerHead:
    """What the headers of an answer say; kept in `Head.memo` for all answers that begin with the same ones."""

    __slots__ = ("coding", "content_type", "fields", "metadata", "status", "trailers")

    def __init__(self, status: int, fields: tuple[Field, ...]) -> None:
        named = dict(fields)
        self.status = status
        self.fields = fields
        self.content_type = named.get(b"content-type", b"").partition(b";")[0].strip().lower()
        self.coding = named.get(b"content-encoding", b"identity").strip().lower()
        after = [(name[len(TRAILER) :], value) for name, value in fields if name.startswith(TRAILER)]
        self.trailers = metadata_among(after) if after else NO_METADATA
        """Of Connect, whose trailers of unary answers are headers."""
        before = [field for field in fields if not field[0].startswith(TRAILER)] if after else fields
        self.metadata = metadata_among(before)


def answer_head(head: Head, tail: tuple[Field, ...]) -> AnswerHead:
    """What *head* and *tail* say together."""
    known = head.memo
    if not isinstance(known, AnswerHead):
        known = head.memo = AnswerHead(head.status, head.fields)
    for name, _ in tail:
        if name not in _QUIET:
            return AnswerHead(head.status, head.fields + tail)
    return known


class Reply:
    """Takes the whole of one answer; *future* is done when it is there, or never will be."""

    __slots__ = ("_address", "_limit", "_outgoing", "_parts", "_size", "body", "future", "head", "stream",
                 "tail", "trailers")  # fmt: skip

    stream: Stream

    def __init__(self, outgoing: Outgoing, address: str, limit: int, loop: asyncio.AbstractEventLoop) -> None:
        self._outgoing = outgoing
        self._address = address
        self._limit = limit
        self._size = 0
        self._parts: bytearray | None = None
        self.head = _NO_HEAD
        self.tail: tuple[Field, ...] = ()
        self.trailers: tuple[Field, ...] = ()
        self.body = b""
        self.future: asyncio.Future[None] = loop.create_future()

    def headers_received(self, head: Head, tail: tuple[Field, ...]) -> None:
        self.head = head
        self.tail = tail

    def data_received(self, data: bytes) -> None:
        size = len(data)
        self.stream.consumed(size)
        before = self._size
        self._size = before + size
        if self._size > self._limit:
            self._give_up(
                ResourceExhausted(
                    f"The answer of {self._outgoing.rpc.full_name} was not read: it is over the limit of {self._limit} "
                    "bytes. Ask for less, or raise `max_message_bytes` of the client."
                )
            )
        elif before:
            if self._parts is None:
                self._parts = bytearray(self.body)
            self._parts += data
        else:
            self.body = data

    def ended(self, trailers: tuple[Field, ...]) -> None:
        if not self.future.done():
            self.trailers = trailers
            if self._parts is not None:
                self.body = bytes(self._parts)
            self.future.set_result(None)

    def failed(self, error: StreamClosed) -> None:
        if not self.future.done():
            self.future.set_exception(unavailable(error, self._address))

    def expire(self) -> None:
        """The deadline has come."""
        self._give_up(not_in_time(self._outgoing))

    def abandon(self) -> None:
        """Nobody waits any more."""
        self.stream.reset(CANCEL)
        if not self.future.cancel() and not self.future.cancelled():
            self.future.exception()  # seen, so that it is not reported as forgotten

    def _give_up(self, error: CallError) -> None:
        if not self.future.done():
            self.future.set_exception(error)
            self.stream.reset(CANCEL)


class Calls:
    """The calls under way to one endpoint over one pool."""

    def __init__(self, pool: Pool, *, clock: Clock, limit: int) -> None:
        self.pool = pool
        self.address = str(pool.address)
        self.clock = clock
        self.limit = limit
        self.in_flight = 0
        self.deadlines = Deadlines(clock)
        self.closed = False
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def usable(self) -> bool:
        return self.pool.retry_at is None and not self.closed

    async def exchange(
        self, outgoing: Outgoing, headers: Any, tail: list[Field], body: bytes, wait_for_ready: bool
    ) -> Reply:
        """Send a whole request and wait for the whole answer. Raises CallErrors for what keeps it from coming."""
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        slot: Slot | None = None
        self.in_flight += 1
        try:
            connection = self.pool.ready() or await self.connection(outgoing, wait_for_ready)
            reply = Reply(outgoing, self.address, self.limit, loop)
            try:
                reply.stream = connection.open(headers, tail, reply, body=body)
            except StreamClosed as error:
                raise unavailable(error, self.address) from None
            try:
                if outgoing.deadline is not None:
                    slot = self.deadlines.add(outgoing.deadline, reply)
                await reply.future
            except asyncio.CancelledError:
                reply.abandon()
                raise
            finally:
                if slot is not None:
                    slot.discard(reply)
                # Stream and receiver hold each other; without this every call would be left to the garbage collector.
                del reply.stream
            return reply
        finally:
            self.in_flight -= 1

    async def connection(self, outgoing: Outgoing, wait_for_ready: bool) -> ClientConnection:
        """Wait for a connection, at most until the deadline."""
        left = None if outgoing.deadline is None else outgoing.deadline - self.clock.monotonic()
        try:
            async with asyncio.timeout(left):
                return await self.pool.acquire(wait_for_ready=wait_for_ready)
        except TimeoutError:
            raise not_in_time(outgoing) from None
        except StreamClosed as error:
            raise unavailable(error, self.address) from None

    async def drain(self) -> None:
        self.closed = True
        await self.pool.drain()
        self.deadlines.close()

    async def close(self) -> None:
        self.closed = True
        self.pool.close()
        self.deadlines.close()
        await self.pool.wait_closed()


def cancelled(outgoing: Outgoing) -> Cancelled:
    return Cancelled(f"{outgoing.rpc.full_name} was cancelled by its caller.")
