"""Makes requests over one HTTP/1.1 connection, one after the other (RFC 9112)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import cast

from polywire.net.http1.body import Body, ChunkedBody, EndlessBody, SizedBody
from polywire.net.http1.encode import CHUNKED_LINE, PreparedRequest, encode_fields, prepare_request
from polywire.net.http1.grammar import BARE_LINE_FEED, CHUNKED, UNTIL_CLOSE, Refused
from polywire.net.http1.heads import HeadReader, ResponseHead, too_large
from polywire.net.http1.request import CHUNKS, SENT, SIZED, Http1ClientStream
from polywire.net.http1.transport import Endpoint
from polywire.net.stream import Field, Headers, Limits, Receiver, StreamClosed

_JOIN = 128 * 1024
"""A body longer than this is written by itself instead of being copied behind its head."""
_INTERIM = 16
"""Interim responses (1xx) that may come before the final one."""


class Http1ClientConnection(Endpoint):
    """An open connection to a server; a `ClientConnection`.

    *released* is called each time when it is available again, *lost* once when it is gone.
    """

    __slots__ = (
        "_body",
        "_buffer",
        "_closed",
        "_draining",
        "_fresh",
        "_gone",
        "_interim",
        "_keep",
        "_limits",
        "_lost",
        "_reader",
        "_reason",
        "_released",
        "_scanned",
        "_since",
        "_unconsumed",
        "current",
        "in_flight",
        "receiving",
    )

    version = "1.1"

    def __init__(
        self,
        limits: Limits,
        *,
        reader: HeadReader | None = None,
        released: Callable[[Http1ClientConnection], None] | None = None,
        lost: Callable[[Http1ClientConnection], None] | None = None,
    ) -> None:
        super().__init__(limits.write_high_water)
        self._limits = limits
        self._reader = reader or HeadReader(limits)
        self._released = released
        self._lost = lost
        self.in_flight = 0
        self.current: Http1ClientStream | None = None
        """The exchange under way: its request or its response is not complete."""
        self.receiving = False
        """More of the response to it is to come."""
        self._body: Body | None = None
        self._buffer = b""
        self._scanned = 0
        self._interim = 0
        self._unconsumed = 0
        self._keep = True
        self._draining = False
        self._closed = False
        self._reason = "the server closed the connection"
        self._gone = asyncio.Event()
        self._fresh = True
        self._since = 0.0

    # --- what the pool sees

    @property
    def available(self) -> bool:
        return self.current is None and not self._closed and not self._draining and not self._transport.is_closing()

    @property
    def closed(self) -> bool:
        return self._closed or self._draining or self._transport.is_closing()

    def open(
        self,
        headers: Headers,
        tail: Sequence[Field],
        receiver: Receiver,
        *,
        body: bytes = b"",
        end: bool = True,
    ) -> Http1ClientStream:
        if not self.available:
            raise StreamClosed("the connection cannot take another request", reached=False)
        prepared = prepare_request(headers)
        lines = encode_fields(tail) if tail else b""
        stream = Http1ClientStream(self, receiver, head=prepared.head)
        framing = self._frame(stream, prepared, len(body), end=end)
        self.current = stream
        self.in_flight = 1
        self.receiving = True
        self._keep = True
        self._interim = 0
        if stream.sending == CHUNKS:
            self._transport.write(b"%b%b%b\r\n" % (prepared.start, lines, framing))
            stream.send_data(body)
        elif len(body) > _JOIN:
            self._transport.write(b"%b%b%b\r\n" % (prepared.start, lines, framing))
            self._transport.write(body)
        else:
            self._transport.write(b"%b%b%b\r\n%b" % (prepared.start, lines, framing, body))
        return stream

    @staticmethod
    def _frame(stream: Http1ClientStream, prepared: PreparedRequest, size: int, *, end: bool) -> bytes:
        """Choose how the request's body is framed. Returns the line that says so."""
        if prepared.sized is not None:
            stream.left = prepared.sized - size
            if stream.left < 0 or (end and stream.left):
                raise ValueError(
                    "The body has not the length that the request's content-length says; nothing was sent."
                )
            stream.sending = SENT if end else SIZED
            return b""
        if not end:
            stream.sending = CHUNKS
            return CHUNKED_LINE
        if size or prepared.sends_body:
            return b"content-length: %d\r\n" % size
        return b""

    async def drain(self) -> None:
        self._draining = True
        if self.current is None:
            self.close()
        await self._gone.wait()

    def close(self) -> None:
        if not self._closed:
            self._shut("the connection was closed by this side")

    def abort(self) -> None:
        """Close at once; what is not sent yet is lost."""
        self._closed = True
        self._transport.abort()

    def _shut(self, reason: str) -> None:
        self._closed = True
        self._reason = reason
        if self.current is None:
            self._transport.close()
        else:
            self._transport.abort()

    def tick(self, now: float) -> None:
        """Close the connection where it had nothing to do for `Limits.idle_timeout`."""
        if self._fresh or self.current is not None:
            self._fresh = False
            self._since = now
        elif now - self._since >= self._limits.idle_timeout:
            self._shut("the connection was idle for too long")

    def write(self, data: bytes) -> None:
        """Send bytes of the request under way."""
        self._transport.write(data)

    # --- what the transport says

    def data_received(self, data: bytes) -> None:
        if self._closed:
            return
        if not self.receiving:
            # Nobody asked: a server that gives up an idle connection may say 408 first.
            self._shut("the server sent something that no request had asked for")
            return
        try:
            body = self._body
            if body is None:
                self._read_head(self._buffer + data if self._buffer else data)
            else:
                self._read_body(body, data, 0)
        except Refused as refused:
            self._void(f"the response is not HTTP/1.1 as it should be: {refused.detail}")

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        closed_by_us = self._closed
        self._closed = True
        super().connection_lost(exc)
        if isinstance(self._body, EndlessBody) and exc is None and not closed_by_us:
            self._keep = False
            self._response_over(())
        stream = self.current
        if stream is not None:
            self._drop()
            where = "in the middle of the response" if self._body or self._buffer else "before the response"
            because = f" ({exc})" if exc is not None and str(exc) else ""
            stream.fail(StreamClosed(f"{self._reason} {where}{because}", reached=True))
        self._gone.set()
        if self._lost is not None:
            self._lost(self)

    # --- the response

    def _read_head(self, data: bytes) -> None:
        while True:
            end = data.find(b"\r\n\r\n", self._scanned) + 4
            if end == 3:
                self._hold(data)
                return
            if end > self._limits.max_header_bytes:
                raise too_large(self._limits)
            self._buffer = b""
            self._scanned = 0
            response = self._reader.response(data[:end])
            if response.head.status >= 200:
                break
            self._count_interim(response.head.status)
            data = data[end:]
            if not data:
                return
        self._begin_response(response, data, end)

    def _hold(self, data: bytes) -> None:
        if len(data) > self._limits.max_header_bytes:
            raise too_large(self._limits)
        if BARE_LINE_FEED.search(data, self._scanned):
            raise Refused(502, "the head has a bare line feed in it")
        self._buffer = data
        self._scanned = max(len(data) - 3, 0)

    def _count_interim(self, status: int) -> None:
        self._interim += 1
        if status == 101:
            raise Refused(502, "it switches to a protocol that was not asked for")
        if self._interim > _INTERIM:
            raise Refused(502, f"more than {_INTERIM} interim responses came before the final one")

    def _begin_response(self, response: ResponseHead, data: bytes, position: int) -> None:
        stream = cast(Http1ClientStream, self.current)
        head = response.head
        self._keep = response.keep_alive
        stream.head = head
        tail = stream.tail = response.tail
        length = response.length
        if stream.head_only or head.status in (204, 304):
            length = 0
        if length == 0:
            self._keep = self._keep and position == len(data)
            stream.receiver.headers_received(head, tail)
            if self.current is stream:
                self._response_over(())
            return
        if length == CHUNKED:
            self._body = ChunkedBody(self._reader, self._limits, None)
        elif length == UNTIL_CLOSE:
            self._keep = False
            self._body = EndlessBody()
        else:
            self._body = SizedBody(length)
        stream.receiver.headers_received(head, tail)
        if position < len(data) and self.current is stream:
            self._read_body(self._body, data, position)

    def _read_body(self, body: Body, data: bytes, position: int) -> None:
        stream = self.current
        end = body.feed(data, position, self._deliver)
        if self.current is not stream or stream is None:
            return
        if end < 0:
            if self._unconsumed > self._limits.stream_window:
                self._pause_reading()
            return
        if end < len(data):
            self._keep = False
        self._response_over(body.trailers)

    def _deliver(self, data: bytes) -> None:
        self._unconsumed += len(data)
        cast(Http1ClientStream, self.current).receiver.data_received(data)

    def consumed(self, size: int) -> None:
        self._unconsumed -= size
        if self._reading_paused and self._unconsumed <= self._limits.stream_window // 2:
            self._resume_reading()

    def _response_over(self, trailers: tuple[Field, ...]) -> None:
        stream = cast(Http1ClientStream, self.current)
        self._body = None
        self.receiving = False
        self._unconsumed = 0
        if self._reading_paused:
            self._resume_reading()
        if stream.sending == SENT:
            # Free first: whoever gets the answer may ask the next question at once.
            self.exchange_over()
            stream.receiver.ended(trailers)
            return
        stream.receiver.ended(trailers)
        if not self._keep and self.current is stream:
            self._void("the server answered and ended the connection before the request was complete")

    def exchange_over(self) -> None:
        """Request and response are complete."""
        self._drop()
        self._fresh = True
        if not self._keep or self._draining:
            if not self._closed:
                self._shut("the connection was closed after its last response")
        elif self._released is not None and not self._closed:
            self._released(self)

    # --- ending

    def _drop(self) -> None:
        self.current = None
        self.receiving = False
        self.in_flight = 0

    def _void(self, reason: str) -> None:
        """The exchange under way cannot be completed."""
        stream = cast(Http1ClientStream, self.current)
        self._drop()
        self.abort()
        stream.fail(StreamClosed(reason, reached=True))

    def give_up(self) -> None:
        """End the exchange under way, and so the connection: there is no other way to stop the peer."""
        self._drop()
        self.abort()
