"""Serves HTTP/1.1 on one connection: one request after the other, answered in order (RFC 9112)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from polywire.net.http1.body import Body, ChunkedBody, SizedBody, body_too_large
from polywire.net.http1.encode import CLOSE, CONTINUE, KEEP_ALIVE, Dateline, problem
from polywire.net.http1.grammar import BARE_LINE_FEED, CHUNKED, Refused
from polywire.net.http1.heads import HeadReader, RequestHead, too_large
from polywire.net.http1.response import DONE, NOTHING, TO_CLOSE, VOID, Http1ServerStream
from polywire.net.http1.transport import Endpoint
from polywire.net.stream import Application, Limits, StreamClosed

MAX_REQUEST_LINE = 8192
"""Bytes; 414 beyond (RFC 9112 section 3 asks for 8000 at least)."""
LINGER = 2.0
"""Seconds that a connection closed by us still swallows what the peer sends, so that it can read our last words."""
QUIET = 0.25
"""Seconds without a byte after which a connection that is to end is closed: sooner, a request may be on its way."""

_QUEUE = 64 * 1024
"""Bytes of requests sent ahead that are held while one is answered, before reading pauses."""
_DISCARD = 256 * 1024
"""Bytes of a request body that are read to no purpose, to keep a connection whose request was answered early."""

# Where a connection is. A stream under way is EXCHANGE, whichever of its two directions is still open.
_IDLE, _HEAD, _EXCHANGE, _LINGER, _CLOSED = range(5)


class Http1ServerProtocol(Endpoint):
    """One connection of a client.

    *lost* is called once when the connection is gone. `tick` must be called now and then for the limits of time to
    hold; they are late by up to one interval. *reader* and *date* may be shared between connections.
    """

    __slots__ = (
        "_abandons",
        "_application",
        "_body",
        "_buffer",
        "_corked",
        "_date",
        "_discarded",
        "_draining",
        "_fresh",
        "_keep",
        "_limits",
        "_lost",
        "_out",
        "_phase",
        "_reader",
        "_scanned",
        "_since",
        "_unconsumed",
        "_unsent",
        "common",
        "current",
    )

    def __init__(
        self,
        application: Application,
        limits: Limits,
        *,
        reader: HeadReader | None = None,
        date: Dateline | None = None,
        lost: Callable[[Http1ServerProtocol], None] | None = None,
    ) -> None:
        super().__init__(limits.write_high_water)
        self._application = application
        self._limits = limits
        self._reader = reader or HeadReader(limits)
        self._date = date or Dateline()
        self._lost = lost
        self._phase = _IDLE
        self._buffer = b""
        self.current: Http1ServerStream | None = None
        self._body: Body | None = None
        self._keep = True
        self._abandons = False
        self._scanned = 0
        self.common = b""
        self._draining = False
        self._corked = False
        self._out: list[bytes] = []
        self._unconsumed = 0
        self._discarded = 0
        self._fresh = True
        self._since = 0.0
        self._unsent = 0

    # --- what the transport says

    def data_received(self, data: bytes) -> None:
        if self._phase >= _LINGER:
            return
        self._corked = True
        body = self._body
        if body is not None:
            position = self._take_body(body, data, 0)
            if position < len(data):
                self._go_on(data[position:])
        elif self.current is not None or self.write_paused:
            self._buffer += data
            self._pace()
        else:
            self._read(self._buffer + data if self._buffer else data)
        self._corked = False
        if self._out:
            self._flush()

    def eof_received(self) -> bool:
        # A client that half-closes is taken for gone, as nginx does: that is how abandoning a call looks like.
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._phase = _CLOSED
        self._buffer = b""
        super().connection_lost(exc)
        self._fail("the client closed the connection before the exchange was complete")
        if self._lost is not None:
            self._lost(self)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._fresh = True
        self._continue()

    # --- reading

    def _read(self, data: bytes) -> None:
        """Serve the requests in *data* up to one that is not complete, or not answered at once."""
        self._buffer = b""
        position, size = 0, len(data)
        while position < size:
            if data.startswith(b"\r\n", position):
                # An empty line before a request is forgiven (RFC 9112 section 2.2).
                position += 2
                continue
            end = data.find(b"\r\n\r\n", position + self._scanned) + 4
            if end == 3:
                self._hold(data[position:])
                return
            try:
                position = self._begin(data[position:end], data, end)
            except Refused as refused:
                self._refuse(refused)
                return
            if self._phase != _IDLE or self.write_paused:
                if self._phase <= _EXCHANGE:
                    self._buffer = data[position:]
                    self._pace()
                return
        if self._phase == _HEAD:
            self._phase = _IDLE

    def _go_on(self, data: bytes) -> None:
        """Serve what was sent ahead, now or when the exchange under way is over."""
        if self._phase <= _HEAD and not self.write_paused:
            self._read(data)
        elif self._phase == _EXCHANGE:
            self._buffer = data
            self._pace()

    def _hold(self, data: bytes) -> None:
        """Keep the beginning of a head, having made sure that it can still become one."""
        try:
            self._check_unfinished(data)
        except Refused as refused:
            self._refuse(refused)
            return
        if self._phase == _IDLE:
            self._phase = _HEAD
            self._fresh = True
        self._buffer = data
        self._scanned = max(len(data) - 3, 0)

    def _check_unfinished(self, data: bytes) -> None:
        self._check_size(data)
        if BARE_LINE_FEED.search(data, self._scanned):
            raise Refused(400, "The head has a control character or a bare line end in it.")

    def _check_size(self, head: bytes) -> None:
        size = len(head)
        if size > MAX_REQUEST_LINE and not 0 <= head.find(b"\r\n") <= MAX_REQUEST_LINE:
            raise Refused(414, f"The request line is over the limit of {MAX_REQUEST_LINE} bytes.")
        if size > self._limits.max_header_bytes:
            raise too_large(self._limits)

    def _begin(self, block: bytes, data: bytes, position: int) -> int:
        """Start the exchange whose head is *block*. Returns where in *data* the next one begins."""
        if len(block) > MAX_REQUEST_LINE:
            self._check_size(block)
        request = self._reader.request(block)
        length = request.length
        if length > self._limits.max_body_bytes:
            raise body_too_large(self._limits.max_body_bytes)
        self._phase = _EXCHANGE
        self._scanned = 0
        self._fresh = True
        self._keep = keep = request.keep_alive and not self._draining
        self.common = self._date.line if keep and request.modern else self._common_lines(request)
        stream = self.current = Http1ServerStream(self, request)
        if length == 0:
            receiver = stream.receiver = self._application(stream)
            if stream.state != VOID:
                receiver.ended(())
            return position
        self._begin_body(stream, request)
        body = self._body
        return position if body is None else self._take_body(body, data, position)

    def _common_lines(self, request: RequestHead) -> bytes:
        if not self._keep:
            return self._date.line + CLOSE
        return self._date.line + KEEP_ALIVE

    def _begin_body(self, stream: Http1ServerStream, request: RequestHead) -> None:
        limit = self._limits.max_body_bytes
        if request.length == CHUNKED:
            self._body = ChunkedBody(self._reader, self._limits, limit)
        else:
            self._body = SizedBody(request.length)
        stream.awaits_continue = request.expects_continue
        stream.receiver = self._application(stream)
        if stream.awaits_continue and stream.state == NOTHING and self.current is stream:
            stream.awaits_continue = False
            self.write(CONTINUE)

    def _take_body(self, body: Body, data: bytes, position: int) -> int:
        """Feed the body. Returns where in *data* it ends; the end of *data* where it goes on, or all is over."""
        self._fresh = True
        stream = cast(Http1ServerStream, self.current)
        try:
            end = body.feed(data, position, self._deliver)
        except Refused as refused:
            self._refuse(refused)
            return len(data)
        if self.current is not stream:
            return len(data)
        if end < 0:
            self._pace()
            return len(data)
        self._body = None
        stream.request_open = False
        answered = stream.state == DONE
        stream.receiver.ended(body.trailers)
        if answered and self.current is stream:
            self._finish(stream)
        return end

    def _deliver(self, data: bytes) -> None:
        stream = cast(Http1ServerStream, self.current)
        self._unconsumed += len(data)
        if stream.state == DONE:
            self._discarded += len(data)
            if self._discarded > _DISCARD:
                self._leave_unread(stream)
                return
        stream.receiver.data_received(data)

    def _pace(self) -> None:
        """Read on or hold the peer back, by what waits here."""
        stream = self.current
        behind = stream is not None and stream.state != DONE and self._unconsumed > self._limits.stream_window
        if behind or (len(self._buffer) > _QUEUE and (stream is not None or self.write_paused)):
            self._pause_reading()
        else:
            self._resume_reading()

    def consumed(self, size: int) -> None:
        self._unconsumed -= size
        if self._reading_paused and self._unconsumed <= self._limits.stream_window // 2:
            self._fresh = True
            self._pace()

    # --- writing

    def write(self, data: bytes) -> None:
        if self._corked:
            self._out.append(data)
        else:
            self._transport.write(data)

    def cork(self) -> bool:
        """Gather what is written until `uncork`. False if someone else gathers already, and will send it."""
        if self._corked:
            return False
        self._corked = True
        return True

    def uncork(self) -> None:
        self._corked = False
        self._flush()

    def _flush(self) -> None:
        out = self._out
        if out:
            self._out = []
            if self._phase != _CLOSED:
                self._transport.write(out[0] if len(out) == 1 else b"".join(out))

    def reconsider_keeping(self, stream: Http1ServerStream) -> None:
        """Decide, as a response starts, whether the connection can go on after it, so that the response can say so."""
        body = self._body
        if stream.state == TO_CLOSE:
            self._announce_end()
        if stream.awaits_continue or (body and (body.left or 0) > _DISCARD):
            self._abandons = True
            self._announce_end()

    def response_over(self, stream: Http1ServerStream) -> None:
        """The stream sent the end of its response."""
        if not stream.request_open:
            self._finish(stream)
            if self._buffer:
                # Never from here: the application is calling, and would be called.
                asyncio.get_running_loop().call_soon(self._continue)
        elif self._abandons:
            self._leave_unread(stream)
        else:
            # Read the rest of the request, to no purpose but keeping the connection.
            self._discarded = 0
            self._resume_reading()

    def _leave_unread(self, stream: Http1ServerStream) -> None:
        reason = "the request was answered before its body was complete, and the rest was not read"
        error = StreamClosed(reason, reached=True)
        asyncio.get_running_loop().call_soon(stream.fail_receiving, error)
        self._linger()

    def _finish(self, stream: Http1ServerStream) -> None:
        self.current = None
        self._unconsumed = 0
        self._fresh = True
        if self._keep and not self._draining:
            self._phase = _IDLE
            if self._reading_paused:
                self._pace()
        else:
            self._close()

    def _continue(self) -> None:
        """Go on with requests that were sent ahead."""
        if self._phase <= _HEAD and self._buffer and not self.write_paused:
            self._corked = True
            self._read(self._buffer)
            self.uncork()
            if self._phase <= _HEAD:
                self._pace()

    # --- ending

    def _refuse(self, refused: Refused) -> None:
        """Answer a request that cannot be accepted, if that is still possible, and give the connection up."""
        stream = self.current
        answered = stream is not None and stream.state != NOTHING
        if not answered:
            bodiless = stream is not None and stream.head.method == b"HEAD"
            self.write(problem(refused, self._date.line, bodiless=bodiless))
        complete = not answered or (stream is not None and stream.state == DONE)
        self._fail(f"the request is not acceptable: {refused.detail}")
        if complete:
            self._linger()
        else:
            self._close()

    def _fail(self, reason: str) -> None:
        stream = self.current
        self.current = None
        self._body = None
        self.wake_writers()
        if stream is not None:
            stream.fail(StreamClosed(reason, reached=True))

    def _linger(self) -> None:
        """Say that nothing more comes, and swallow what the peer still sends for a while.

        Closing with unread bytes makes the kernel send a reset, which can overtake our last response.
        """
        if self._phase < _LINGER:
            self._flush()
            self._forget(_LINGER)
            self._resume_reading()
            if self._transport.can_write_eof():
                self._transport.write_eof()

    def _close(self) -> None:
        """Close once everything written so far is sent."""
        if self._phase != _CLOSED:
            self._flush()
            self._forget(_CLOSED)
            self._transport.close()

    def _forget(self, phase: int) -> None:
        self._phase = phase
        self._fresh = True
        self._buffer = b""
        self._body = None
        self.current = None

    def give_up(self, stream: Http1ServerStream) -> None:
        """End the connection in the middle of *stream*, so that its response cannot pass for complete."""
        if self.current is stream:
            if stream.state == TO_CLOSE:
                self._forget(_CLOSED)
                self._transport.abort()
            else:
                self._close()

    def drain(self) -> None:
        """Finish the request under way, or just arriving, then close.

        A connection that has been `QUIET` is closed by the next tick. One that was active a moment ago may have the
        next request on its way already: that is answered `connection: close`.
        """
        self._draining = True
        stream = self.current
        if stream is not None and stream.state == NOTHING:
            self._announce_end()

    def _announce_end(self) -> None:
        self._keep = False
        self.common = self._date.line + CLOSE

    def close(self) -> None:
        """Close now, whatever is under way."""
        if self._phase != _CLOSED:
            self._phase = _CLOSED
            self._transport.abort()

    @property
    def idle(self) -> bool:
        """No request is under way, not even the beginning of one."""
        return self._phase == _IDLE

    # --- time

    def tick(self, now: float) -> None:
        """Enforce the limits of time; *now* in seconds on a clock that never goes back."""
        if self.write_paused:
            unsent = self._transport.get_write_buffer_size()
            if unsent != self._unsent:
                self._unsent = unsent
                self._fresh = True
        if self._fresh:
            self._fresh = False
            self._since = now
            return
        elapsed = now - self._since
        if self._draining and elapsed >= QUIET and self.idle and not self._buffer:
            self._close()
        phase = self._phase
        if self.write_paused or phase == _CLOSED:
            if elapsed >= self._limits.body_timeout:
                self._abort(f"the client took nothing of the response for {elapsed:.3g} s")
        elif phase == _IDLE:
            if elapsed >= self._limits.idle_timeout:
                self._close()
        elif phase == _HEAD:
            if elapsed >= self._limits.header_timeout:
                self._refuse(Refused(408, f"The headers were not complete after {elapsed:.3g} s."))
        elif phase == _LINGER:
            if elapsed >= LINGER:
                self._phase = _CLOSED
                self._transport.abort()
        elif self._body is not None and not self._reading_paused and elapsed >= self._limits.body_timeout:
            self._refuse(Refused(408, f"Nothing of the request body came for {elapsed:.3g} s."))

    def _abort(self, reason: str) -> None:
        self._phase = _CLOSED
        self._fail(reason)
        self._transport.abort()
