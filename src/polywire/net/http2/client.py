"""The client's end of an HTTP/2 connection: it opens streams and waits for what comes back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from polywire.net.hpack import Lead
from polywire.net.http2 import messages
from polywire.net.http2.engine import Http2Connection
from polywire.net.http2.frames import (
    DEFAULT_FRAME_SIZE,
    ENABLE_PUSH,
    END_HEADERS,
    GOAWAY,
    HEADERS,
    LARGEST_STREAM,
    PREFACE,
    ConnectionFault,
    ErrorCode,
    StreamFault,
    frame,
    pack_header,
    pack_u32,
)
from polywire.net.http2.stream import PLENTY, Http2Stream
from polywire.net.stream import Field, Headers, Limits, Receiver, StreamClosed

UNTOLD_MAX_STREAMS = 100
"""Exchanges at once until the server said how many it takes; it may be fewer, then it refuses some."""

_HEAD_METHOD = (b":method", b"HEAD")
_NO_TAIL: tuple[Field, ...] = ()


class Http2Client(Http2Connection):
    """Opens exchanges with `open`; see `Http2Connection` for the rest."""

    __slots__ = (
        "_next",
        "_taken_up_to",
    )

    def __init__(self, limits: Limits, *, now: Callable[[], float], on_output: Callable[[], None]) -> None:
        super().__init__(limits, now=now, on_output=on_output)
        self.peer_max_streams = UNTOLD_MAX_STREAMS
        self._next = 1
        self._taken_up_to = 0
        self.out.append(PREFACE + self._hello((ENABLE_PUSH, 0)))

    @property
    def available(self) -> bool:
        return not self.draining and len(self.streams) < self.peer_max_streams

    @property
    def closed(self) -> bool:
        return self.draining

    def open(
        self,
        headers: Headers,
        tail: Sequence[Field],
        receiver: Receiver,
        *,
        body: bytes = b"",
        end: bool = True,
    ) -> Http2Stream:
        """See `ClientConnection.open`."""
        if self.draining or len(self.streams) >= self.peer_max_streams:
            raise StreamClosed("the connection takes no more exchanges for now", reached=False)
        block = self.encode(headers, tail)
        sid = self._next
        self._next = sid + 2
        self.opened += 1
        if sid >= LARGEST_STREAM - 2:
            self.draining = True
        stream = Http2Stream(self, sid, receiver)
        stream.headers_done = False
        stream.request = headers
        self.streams[sid] = stream
        size = len(body)
        if (
            not size
            or size > DEFAULT_FRAME_SIZE
            or size > self.send_window
            or size > stream.send_window
            or self.paused
            or len(block) > DEFAULT_FRAME_SIZE
        ):
            self._open_slowly(stream, block, body, end)
        else:
            self.out.append(
                b"".join(
                    (
                        pack_header(len(block) << 8 | HEADERS, END_HEADERS, sid),
                        block,
                        pack_header(size << 8, end, sid),
                        body,
                    )
                )
            )
            stream.send_window -= size
            self.send_window -= size
            stream.local_open = not end
        if self.quiet:
            self.rouse()
        elif len(self.out) >= PLENTY and self.hand_over is not None:
            self.hand_over()
        return stream

    def _open_slowly(self, stream: Http2Stream, block: bytes, body: bytes, end: bool) -> None:
        # The headers go out even while the transport pauses: ids must be opened in order, and there are no more of
        # them than the server allows.
        at_once = end and not body
        self.send_block(stream.id, block, at_once)
        stream.local_open = not at_once
        if body:
            stream.send_data(body, end=end)

    def take(self) -> bytes:
        data = super().take()
        self._taken_up_to = self._next - 2
        return data

    def die(self, code: ErrorCode, reason: str, *, late: bool = False) -> None:
        if not self.finished:
            # What is not written yet never will be: exchanges whose headers are among it reached nobody.
            self.out.clear()
        super().die(code, reason, late=late)

    def _header_list(self, sid: int, lead: Lead, rest: tuple[Field, ...], ended: int) -> None:
        stream = self.streams.get(sid)
        if stream is None:
            if not sid or self._is_idle(sid):
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"HEADERS on stream {sid}, which is not open")
            self._stray_headers(sid)
            return
        if not stream.remote_open:
            raise StreamFault(ErrorCode.STREAM_CLOSED, "HEADERS after the end of the stream")
        if stream.headers_done:
            self._trailers(stream, lead, rest, ended)
            return
        head, tail, length = messages.response(lead, rest)
        if head.status < 200:
            if ended:
                raise messages.malformed("an interim response that ends the stream")
            self._spend(1)
            return
        if length >= 0 or head.status in (204, 304):
            length = self._body_length(stream, head.status, length)
            if ended and length > 0:
                raise messages.malformed("no body where content-length announced one")
            stream.expected = length
        stream.headers_done = True
        stream.head = head
        stream.tail = tail
        stream.receiver.headers_received(head, tail)
        if ended:
            self._end_remote(stream, ())

    def _body_length(self, stream: Http2Stream, status: int, length: int) -> int:
        """What is to come of a body: nothing after HEAD, 204 and 304, whatever content-length says."""
        if status in (204, 304) or _HEAD_METHOD in stream.request.fields:
            return 0
        return length

    def _too_large(self, sid: int, ended: int) -> None:
        if sid in self.streams:
            raise StreamFault(ErrorCode.ENHANCE_YOUR_CALM, "a header list that is too large")
        self._stray_headers(sid)

    def answered_early(self, stream: Http2Stream) -> None:
        """Our request is complete; the response takes its time."""

    def _is_idle(self, sid: int) -> bool:
        return sid >= self._next or not sid & 1

    def _last_peer_stream(self) -> int:
        return 0

    def _was_sent(self, sid: int) -> bool:
        return sid <= self._taken_up_to

    def _most_push(self) -> int:
        return 0

    def _goaway_received(self, last: int, code: int, reason: str) -> None:
        self.draining = True
        for stream in [stream for stream in self.streams.values() if stream.id > last]:
            self._fail(stream, StreamClosed(reason, reached=False, code=code))
        if not self.streams:
            self._last_stream_ended()

    def drain(self) -> None:
        """Open nothing more, and end with the last exchange under way."""
        if self.draining:
            return
        self.draining = True
        self.answer(frame(GOAWAY, 0, 0, pack_u32(0) + pack_u32(ErrorCode.NO_ERROR)))
        if not self.streams:
            self._last_stream_ended()
