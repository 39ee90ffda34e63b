"""One exchange over HTTP/2: its two windows, what waits to be sent, and who takes what arrives."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from polywire.net.http2.frames import (
    DATA,
    DEFAULT_FRAME_SIZE,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    ErrorCode,
    pack_header,
)
from polywire.net.stream import Field, Head, Headers, HeadersTooLarge, Receiver, Stream, StreamClosed

if TYPE_CHECKING:
    from polywire.net.http2.engine import Http2Connection

PLENTY = 8
"""Exchanges in `Outbound.out` that are handed over without waiting for more. One write for all of them costs a little
less here, but leaves the other side idle until the last is ready: two processes in lockstep, at half the rate."""


class Silent:
    """Takes the place of a receiver that is not to be told anything any more."""

    __slots__ = ()

    def headers_received(self, head: Head, tail: tuple[Field, ...]) -> None:
        """Nobody waits for it."""

    def data_received(self, data: bytes) -> None:
        """Nobody waits for it."""

    def ended(self, trailers: tuple[Field, ...]) -> None:
        """Nobody waits for it."""

    def failed(self, error: StreamClosed) -> None:
        """Nobody waits for it."""


SILENT = Silent()


class Block:
    """A header list that waits for its turn. It is encoded when it is sent: encoding changes the peer's table."""

    __slots__ = ("end", "headers", "tail")

    def __init__(self, headers: Headers, tail: Sequence[Field], end: bool) -> None:
        self.headers = headers
        self.tail = tail
        self.end = end


class Outbox:
    """What one stream could not send yet, and who waits for that to change. Most streams never need one."""

    __slots__ = ("end", "failure", "items", "queued", "size", "waiters")

    def __init__(self) -> None:
        self.items: deque[Block | memoryview] = deque()
        self.size = 0
        self.end = False
        """The last data item ends the stream."""
        self.queued = False
        """In the connection's line of streams that have something to send."""
        self.waiters: list[asyncio.Future[None]] = []
        self.failure: StreamClosed | None = None

    def wake(self) -> None:
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(None)
        self.waiters.clear()


class Http2Stream(Stream):
    """A `Stream` of an `Http2Connection`.

    *local_open* and *remote_open* say which side may still send; once neither is, the connection has forgotten it.
    The attributes without documentation here are the engine's own.
    """

    # Not all of these are set from the start: a stream is made for each call, and each attribute costs.
    stalled_at: float
    """Set at the first look of the connection's clock."""
    headers_done: bool
    """At a client: the final response headers came."""
    request: Headers
    """At a client: what was asked, to know whether a body may follow."""

    __slots__ = (
        "engine",
        "expected",
        "headers_done",
        "held",
        "id",
        "local_open",
        "moved",
        "outbox",
        "remote_open",
        "request",
        "room",
        "send_window",
        "stalled_at",
    )

    version = "2"

    def __init__(self, engine: Http2Connection, sid: int, receiver: Receiver) -> None:
        self.engine = self.connection = engine
        self.id = sid
        self.receiver = receiver
        self.local_open = True
        self.remote_open = True
        self.send_window = engine.peer_initial_window
        self.room = engine.receive_room
        """What the peer may send before it must wait."""
        self.held = 0
        """Received, and not yet consumed by the application."""
        self.expected = -1
        """What is missing of the announced content-length, or -1."""
        self.outbox: Outbox | None = None
        self.moved = True
        """A byte of a body went through, either way, since the last look of the connection's clock."""

    # Sending. The first lines of each method are the way of a stream that was never held up.

    @property
    def writable(self) -> bool:
        """See `Stream`. False for good once the stream has failed, so that whoever sends in a loop asks `drain`."""
        outbox = self.outbox
        if outbox is not None and (outbox.failure is not None or outbox.size > self.engine.limits.write_high_water):
            return False
        return not self.engine.stuffed

    async def drain(self) -> None:
        while not self.writable:
            outbox = self._opened_outbox()
            if outbox.failure is not None:
                raise outbox.failure
            waiter = asyncio.get_running_loop().create_future()
            outbox.waiters.append(waiter)
            self.engine.drainers.add(self)
            await waiter

    def send_headers(self, headers: Headers, tail: Sequence[Field] = (), *, end: bool = False) -> None:
        if not self.local_open:
            return
        engine = self.engine
        if self.outbox is not None or engine.paused:
            self._queue_block(Block(headers, tail, end))
            return
        if not self._send_block(headers, tail, end):
            return
        if end:
            self.end_local()
        if engine.quiet:
            engine.rouse()

    def _send_block(self, headers: Headers, tail: Sequence[Field], end: bool) -> bool:
        """Send a header list; where it is more than the peer takes, give the exchange up instead and return False."""
        engine = self.engine
        try:
            engine.send_block(self.id, engine.encode(headers, tail), end)
        except HeadersTooLarge:
            self.reset(ErrorCode.INTERNAL_ERROR)
            return False
        return True

    def send_data(self, data: bytes, *, end: bool = False) -> None:
        if not self.local_open:
            return
        engine = self.engine
        size = len(data)
        if (
            self.outbox is None
            and size <= self.send_window
            and size <= engine.send_window
            and size <= DEFAULT_FRAME_SIZE
            and not engine.paused
        ):
            if not size and not end:
                return
            self.send_window -= size
            engine.send_window -= size
            engine.out.append(pack_header(size << 8, end, self.id))
            engine.out.append(data)
            engine.count_out(size)
            self.moved = True
            if end:
                self.end_local()
            if engine.quiet:
                engine.rouse()
            return
        self._queue_data(data, end)

    def send_trailers(self, trailers: Headers, tail: Sequence[Field] = ()) -> None:
        self.send_headers(trailers, tail, end=True)

    def respond(
        self,
        headers: Headers,
        tail: Sequence[Field],
        body: bytes,
        trailers: Headers | None = None,
        trailers_tail: Sequence[Field] = (),
    ) -> None:
        engine = self.engine
        size = len(body)
        if (
            self.outbox is not None
            or not self.local_open
            or not size
            or size > self.send_window
            or size > engine.send_window
            or size > DEFAULT_FRAME_SIZE
            or engine.paused
        ):
            super().respond(headers, tail, body, trailers, trailers_tail)
            return
        sid = self.id
        first = last = b""
        try:
            first = engine.encode(headers, tail)
            if trailers is not None:
                last = engine.encode(trailers, trailers_tail)
        except HeadersTooLarge:
            if first:
                engine.send_block(sid, first, False)  # the peer's table may have been taught by it
            self.reset(ErrorCode.INTERNAL_ERROR)
            return
        if trailers is None:
            engine.send_block(sid, first, False)
            engine.out.append(pack_header(size << 8, END_STREAM, sid) + body)
        else:
            if len(first) > DEFAULT_FRAME_SIZE or len(last) > DEFAULT_FRAME_SIZE:
                engine.send_block(sid, first, False)
                engine.out.append(pack_header(size << 8, 0, sid) + body)
                engine.send_block(sid, last, True)
            else:
                engine.out.append(
                    b"".join(
                        (
                            pack_header(len(first) << 8 | HEADERS, END_HEADERS, sid),
                            first,
                            pack_header(size << 8, 0, sid),
                            body,
                            pack_header(len(last) << 8 | HEADERS, END_HEADERS | END_STREAM, sid),
                            last,
                        )
                    )
                )
        self.send_window -= size
        engine.send_window -= size
        self.end_local()
        if engine.quiet:
            engine.rouse()
        elif len(engine.out) >= PLENTY and engine.hand_over is not None:
            engine.hand_over()

    def end_local(self) -> None:
        """Our last frame on this stream is on its way."""
        self.local_open = False
        if self.remote_open:
            self.engine.answered_early(self)
        else:
            self.engine.forget(self)

    def _opened_outbox(self) -> Outbox:
        if self.outbox is None:
            self.outbox = Outbox()
        return self.outbox

    def _queue_block(self, block: Block) -> None:
        outbox = self._opened_outbox()
        if outbox.end:
            return
        outbox.items.append(block)
        outbox.end = block.end
        self.engine.enqueue(self)

    def _queue_data(self, data: bytes, end: bool) -> None:
        outbox = self._opened_outbox()
        if outbox.end or not (data or end):
            return
        outbox.items.append(memoryview(data))
        outbox.size += len(data)
        outbox.end = end
        self.engine.enqueue(self)

    def push(self, outbox: Outbox) -> bool:
        """Send at most one chunk of data and what may follow it at once. True where more could go right now."""
        engine = self.engine
        sent = False
        while outbox.items:
            item = outbox.items[0]
            if isinstance(item, Block):
                outbox.items.popleft()
                if not self._send_block(item.headers, item.tail, item.end):
                    return False
            else:
                if sent and item:
                    return True
                size = min(len(item), self.send_window, engine.send_window, DEFAULT_FRAME_SIZE)
                if size <= 0 and item:
                    return self.send_window > 0
                self._push_data(outbox, item, size)
                sent = True
        ended = outbox.end
        if not outbox.waiters:
            self.outbox = None
        if ended:
            self.end_local()
        return False

    def _push_data(self, outbox: Outbox, item: memoryview, size: int) -> None:
        engine = self.engine
        if size == len(item):
            outbox.items.popleft()
        else:
            outbox.items[0] = item[size:]
        last = outbox.end and not outbox.items
        engine.out.append(pack_header(size << 8 | DATA, END_STREAM if last else 0, self.id))
        engine.out.append(item[:size])
        engine.count_out(size)
        outbox.size -= size
        self.send_window -= size
        engine.send_window -= size
        self.moved = True

    # Receiving.

    def consumed(self, size: int) -> None:
        size = min(size, self.held)
        if size <= 0:
            return
        self.held -= size
        engine = self.engine
        engine.give_back(size)
        if self.remote_open:
            owed = engine.stream_window - self.room - self.held
            if owed >= engine.stream_step:
                self.room += owed
                engine.send_window_update(self.id, owed)

    def reset(self, code: int) -> None:
        if self.local_open or self.remote_open:
            self.engine.reset_stream(self, code)

    def void(self, error: StreamClosed) -> None:
        """Drop what waits to be sent, and tell those who wait for it to be gone."""
        outbox = self._opened_outbox()
        outbox.failure = error
        outbox.items.clear()
        outbox.size = 0
        outbox.wake()
        self.engine.drainers.discard(self)
