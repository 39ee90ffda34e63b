"""One request at the client as it is sent, and the response to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from polywire.net.http1.encode import END, encode_fields, prepare_trailers
from polywire.net.stream import Field, Headers, Receiver, Stream, StreamClosed

if TYPE_CHECKING:
    from polywire.net.http1.client import Http1ClientConnection

# How far the request is: what frames the rest of its body, all of it sent, or given up.
SENT, SIZED, CHUNKS, VOID = range(4)


class Http1ClientStream(Stream):
    """One request and its response."""

    __slots__ = ("_http", "head_only", "left", "sending")

    version = "1.1"

    def __init__(self, http: Http1ClientConnection, receiver: Receiver, *, head: bool) -> None:
        self._http = http
        self.connection = http
        self.receiver = receiver
        self.head_only = head
        """The response has no body, whatever its headers say."""
        self.sending = SENT
        self.left = 0
        """Bytes of the body that the content-length announced and that were not sent yet."""

    @property
    def writable(self) -> bool:
        return not self._http.write_paused

    async def drain(self) -> None:
        http = self._http
        while http.write_paused and http.current is self:
            await http.written()
        if self.sending == VOID:
            raise StreamClosed("the connection was lost before everything was sent", reached=True)

    def send_headers(self, headers: Headers, tail: Sequence[Field] = (), *, end: bool = False) -> None:
        raise RuntimeError("The headers of a request are sent by opening the stream.")

    def send_data(self, data: bytes, *, end: bool = False) -> None:
        sending = self.sending
        if sending == CHUNKS:
            if data:
                self._http.write(b"%x\r\n%b\r\n%b" % (len(data), data, END if end else b""))
            elif end:
                self._http.write(END)
        elif sending == SIZED:
            self._check_length(len(data), end=end)
            if data:
                self._http.write(data)
        elif sending == SENT:
            raise RuntimeError("The request was ended before; nothing can be sent after its end.")
        if end and sending != VOID:
            self._sent()

    def _check_length(self, size: int, *, end: bool) -> None:
        self.left -= size
        if self.left < 0 or (end and self.left):
            self.reset(0)
            raise ValueError("The body has not the length that its content-length says; the connection was closed.")

    def send_trailers(self, trailers: Headers, tail: Sequence[Field] = ()) -> None:
        if self.sending == CHUNKS:
            self._http.write(b"0\r\n%b%b\r\n" % (prepare_trailers(trailers), encode_fields(tail)))
            self._sent()
        else:
            self.send_data(b"", end=True)

    def _sent(self) -> None:
        self.sending = SENT
        if not self._http.receiving and self._http.current is self:
            self._http.exchange_over()

    def consumed(self, size: int) -> None:
        if self._http.current is self:
            self._http.consumed(size)

    def reset(self, code: int) -> None:
        if self._http.current is self:
            self.sending = VOID
            self._http.give_up()

    def fail(self, error: StreamClosed) -> None:
        """Nothing can be sent or received any more."""
        self.sending = VOID
        self.receiver.failed(error)
