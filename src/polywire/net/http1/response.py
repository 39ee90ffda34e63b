"""One request at the server, and the response to it as it is sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from polywire.net.http1.encode import (
    CHUNKED_LINE,
    END,
    PreparedResponse,
    encode_fields,
    prepare_response,
    prepare_trailers,
    sized,
)
from polywire.net.http1.heads import RequestHead
from polywire.net.stream import Field, Headers, Stream, StreamClosed

if TYPE_CHECKING:
    from polywire.net.http1.server import Http1ServerProtocol

_JOIN = 128 * 1024
"""A body longer than this is written by itself instead of being copied behind its head."""

# How far the response is. While it is under way the state says how its body is framed; HIDDEN has none on the wire.
NOTHING, SIZED, CHUNKS, TO_CLOSE, HIDDEN, DONE, VOID = range(7)


class Http1ServerStream(Stream):
    """One request and its response."""

    __slots__ = ("_http", "_left", "_modern", "awaits_continue", "request_open", "state")

    version = "1.1"

    def __init__(self, http: Http1ServerProtocol, request: RequestHead) -> None:
        self._http = http
        self.connection = http
        self.head = request.head
        self.tail = request.tail
        self._modern = request.modern
        self._left = 0
        self.request_open = request.length != 0
        """There is more of the request's body to come."""
        self.awaits_continue = False
        """The client will not send the body before it is told to."""
        self.state = NOTHING

    @property
    def writable(self) -> bool:
        return not self._http.write_paused

    async def drain(self) -> None:
        http = self._http
        while http.write_paused and self.state != VOID:
            await http.written()
        if self.state == VOID:
            raise StreamClosed("the connection was lost before everything was sent", reached=True)

    def respond(
        self,
        headers: Headers,
        tail: Sequence[Field],
        body: bytes,
        trailers: Headers | None = None,
        trailers_tail: Sequence[Field] = (),
    ) -> None:
        prepared = prepare_response(headers)
        http = self._http
        if self.state or trailers is not None or prepared.special or self.request_open or self.head.method == b"HEAD":
            self._respond_in_steps(headers, tail, body, trailers, trailers_tail)
            return
        more = encode_fields(tail) if tail else b""
        self.state = DONE
        if len(body) > _JOIN:
            http.write(b"%b%b%bcontent-length: %d\r\n\r\n" % (prepared.start, more, http.common, len(body)))
            http.write(body)
        else:
            # One formatting and one write: this is what nearly every call takes.
            http.write(b"%b%b%bcontent-length: %d\r\n\r\n%b" % (prepared.start, more, http.common, len(body), body))
        http.response_over(self)

    def _respond_in_steps(
        self,
        headers: Headers,
        tail: Sequence[Field],
        body: bytes,
        trailers: Headers | None,
        trailers_tail: Sequence[Field],
    ) -> None:
        http = self._http
        corked = http.cork()
        try:
            if trailers is None:
                self._start(headers, tail, length=len(body))
                self.send_data(body, end=True)
            else:
                self._start(headers, tail, length=None)
                self.send_data(body)
                self.send_trailers(trailers, trailers_tail)
        finally:
            if corked:
                http.uncork()

    def send_headers(self, headers: Headers, tail: Sequence[Field] = (), *, end: bool = False) -> None:
        prepared = prepare_response(headers)
        if prepared.status < 200:
            self._send_interim(prepared, tail)
            return
        corked = self._http.cork()
        try:
            self._start(headers, tail, length=0 if end else None)
            if end:
                self._end()
        finally:
            if corked:
                self._http.uncork()

    def _send_interim(self, prepared: PreparedResponse, tail: Sequence[Field]) -> None:
        if self.state == NOTHING and self._modern:
            if prepared.status == 100:
                self.awaits_continue = False
            self._http.write(prepared.start + encode_fields(tail) + b"\r\n")

    def _start(self, headers: Headers, tail: Sequence[Field], *, length: int | None) -> None:
        """Send the head of the response, for a body of *length* bytes, or of a length that is not known."""
        if self.state:
            if self.state == VOID:
                return
            raise RuntimeError("The headers of this response were sent before; a stream has one response.")
        prepared = prepare_response(headers)
        lines = prepared.start + encode_fields(tail)
        declared = prepared.sized if prepared.sized is not None else sized(tail)
        hidden = prepared.bodiless or self.head.method == b"HEAD"
        framing = b""
        if prepared.bodiless:
            self.state = HIDDEN
        elif declared is not None:
            self.state = SIZED
            self._left = declared
        elif length is not None:
            self.state = SIZED
            self._left = length
            # What a GET would have had is not known here when a HEAD is answered without a body.
            if length or not hidden:
                framing = b"content-length: %d\r\n" % length
        elif self._modern:
            self.state = CHUNKS
            framing = CHUNKED_LINE
        else:
            self.state = TO_CLOSE
        if hidden:
            self.state = HIDDEN
        http = self._http
        if self.request_open or self.state == TO_CLOSE:
            http.reconsider_keeping(self)
        http.write(b"%b%b%b\r\n" % (lines, http.common, framing))

    def send_data(self, data: bytes, *, end: bool = False) -> None:
        state = self.state
        if state == CHUNKS:
            if end:
                self.state = DONE
                self._http.write(b"%x\r\n%b\r\n%b" % (len(data), data, END) if data else END)
                self._http.response_over(self)
            elif data:
                self._http.write(b"%x\r\n%b\r\n" % (len(data), data))
            return
        if state in (NOTHING, DONE):
            raise RuntimeError("A body can be sent only between the headers and the end of a response.")
        if state == VOID:
            return
        if state == SIZED:
            self._left -= len(data)
            if self._left < 0:
                self.reset(0)
                raise ValueError("The body is longer than the content-length sent; the connection was closed.")
        if state != HIDDEN and data:
            self._http.write(data)
        if end:
            self._end()

    def send_trailers(self, trailers: Headers, tail: Sequence[Field] = ()) -> None:
        state = self.state
        if state in (NOTHING, DONE):
            raise RuntimeError("Trailers can be sent only between the headers and the end of a response.")
        if state == CHUNKS:
            lines = b"0\r\n%b%b\r\n" % (prepare_trailers(trailers), encode_fields(tail))
            self.state = DONE
            self._http.write(lines)
            self._http.response_over(self)
        elif state != VOID:
            # Without chunks there is no place for them; HTTP/1.0 has none at all.
            self._end()

    def _end(self) -> None:
        state = self.state
        if state == VOID:
            return
        if state == SIZED and self._left:
            self.reset(0)
            raise ValueError("The body is shorter than the content-length sent; the connection was closed.")
        self.state = DONE
        self._http.response_over(self)

    def consumed(self, size: int) -> None:
        if self._http.current is self:
            self._http.consumed(size)

    def reset(self, code: int) -> None:
        if self._http.current is self:
            self._http.give_up(self)
        self.state = VOID
        self.request_open = False

    def fail(self, error: StreamClosed) -> None:
        """Nothing can be received or sent any more; tell the receiver if it did not know."""
        unfinished = self.request_open or self.state != DONE
        self.state = VOID
        self.request_open = False
        if unfinished:
            self.receiver.failed(error)

    def fail_receiving(self, error: StreamClosed) -> None:
        """The response is complete, the request will never be."""
        if self.request_open:
            self.request_open = False
            self.receiver.failed(error)
