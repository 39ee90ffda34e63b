"""One HTTP exchange as the wires see it, the same over HTTP/1.1 and HTTP/2, at the server and at the client.

The engines in `polywire.net` turn bytes into calls on a `Receiver` and calls on a `Stream` into bytes. The wires in
`polywire.wire` are written against these two classes alone and never learn which engine is beneath.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Field = tuple[bytes, bytes]
"""One header: a lower-case name and a value without surrounding white space."""


class Head:
    """The part of a message's headers that may be shared between messages.

    Over HTTP/2 a peer repeats the same leading bytes of a header block call after call; the engine decodes and checks
    them once and hands out the same object again. So a `Head` is never changed, except for *memo*, where a wire keeps
    what it worked out from the head (the route, say) to find it again at the next request with the same object.
    """

    __slots__ = ("authority", "fields", "memo", "method", "path", "scheme", "status")

    def __init__(
        self,
        fields: tuple[Field, ...],
        *,
        method: bytes = b"",
        path: bytes = b"",
        scheme: bytes = b"",
        authority: bytes = b"",
        status: int = 0,
    ) -> None:
        self.fields = fields
        """The ordinary headers of this part, in order; no pseudo-headers. `host` appears as *authority*, not here."""
        self.method = method
        self.path = path
        """The request target as sent, query included."""
        self.scheme = scheme
        self.authority = authority
        self.status = status
        """Of a response; 0 on a request."""
        self.memo: Any = None


class Headers:
    """Headers that a wire sends many times, prepared once; an HTTP/2 engine remembers their encoding by identity.

    Pseudo-headers come first, in *fields*, over HTTP/1.1 too: the engine turns them into its first line.
    """

    __slots__ = ("fields",)

    def __init__(self, fields: Sequence[Field]) -> None:
        self.fields: tuple[Field, ...] = tuple(fields)


class StreamClosed(Exception):
    """The exchange ended before it was complete.

    *reached* says whether the request may have been seen by the other side's application: False only where that is
    certain (never sent, REFUSED_STREAM, a GOAWAY whose last stream is lower). *code* is the HTTP/2 error code, or None
    where the connection was lost or there is no such thing.
    """

    def __init__(self, reason: str, *, reached: bool, code: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.reached = reached
        self.code = code


class HeadersTooLarge(StreamClosed):
    """Our headers are over what the other side said it takes, so they were not sent."""


class Receiver(Protocol):
    """Takes what arrives on one exchange. The engine calls it in order, from the event loop, never reentrantly from
    a method of `Stream`; it must not raise and must not block.

    A complete message is `headers_received` (at a client only: a server's application got the request's head when it
    was asked for the receiver), any number of `data_received`, then `ended` exactly once. `failed` ends it instead,
    at any point, exactly once; after `ended` or `failed` of the receiving side, `failed` may still come once to
    say that the *sending* side is void (the peer reset the stream while we were answering).
    """

    def headers_received(self, head: Head, tail: tuple[Field, ...]) -> None:
        """A response's final headers (1xx are not reported)."""

    def data_received(self, data: bytes) -> None: ...

    def ended(self, trailers: tuple[Field, ...]) -> None: ...

    def failed(self, error: StreamClosed) -> None: ...


class Connection(Protocol):
    """What a stream can say about the connection it is on."""

    @property
    def peer(self) -> str:
        """`host:port` or `unix:` of the other side."""
        ...

    @property
    def secure(self) -> bool: ...

    @property
    def peer_certificate(self) -> dict[str, Any] | None:
        """The verified certificate of the other side, as `ssl.SSLSocket.getpeercert` has it."""


class Stream:
    """One exchange: a request and its response. Engines subclass it.

    Sending never blocks: what the peer or the socket cannot take yet is queued, and *writable* turns false until
    `drain` returns. Whoever sends more than one bounded message looks at it. After `failed`, sending does nothing.
    """

    __slots__ = ("connection", "head", "receiver", "tail", "version")

    version: str
    """`"1.1"` or `"2"`."""
    connection: Connection
    head: Head
    """At a server the request's; at a client the response's, once `headers_received` was called."""
    tail: tuple[Field, ...]
    """The headers of this very message that are not part of the shared *head*. All headers: `head.fields + tail`."""
    receiver: Receiver

    @property
    def writable(self) -> bool:
        """False while more than the high-water mark of this stream's bytes is waiting to be sent."""
        raise NotImplementedError

    async def drain(self) -> None:
        """Wait until *writable*. Raises StreamClosed if the stream fails first."""
        raise NotImplementedError

    def send_headers(self, headers: Headers, tail: Sequence[Field] = (), *, end: bool = False) -> None:
        """Send the response's headers (or 1xx ones). *tail* differs from call to call and is not remembered.

        Where the peer said that it does not take so many, the exchange is given up; the same goes for trailers.
        """
        raise NotImplementedError

    def send_data(self, data: bytes, *, end: bool = False) -> None:
        raise NotImplementedError

    def send_trailers(self, trailers: Headers, tail: Sequence[Field] = ()) -> None:
        """Send trailers and end the sending side. Over HTTP/1.1 they need a chunked body."""
        raise NotImplementedError

    def respond(
        self,
        headers: Headers,
        tail: Sequence[Field],
        body: bytes,
        trailers: Headers | None = None,
        trailers_tail: Sequence[Field] = (),
    ) -> None:
        """A whole answer in one step: headers, one body, optional trailers, end.

        Engines override it with something faster than these three calls. Without trailers, HTTP/1.1 sends
        `content-length`, so *headers* must not have it.
        """
        self.send_headers(headers, tail, end=not body and trailers is None)
        if body:
            self.send_data(body, end=trailers is None)
        if trailers is not None:
            self.send_trailers(trailers, trailers_tail)

    def consumed(self, size: int) -> None:
        """Give *size* received bytes of flow-control credit back to the peer.

        Nothing is given back otherwise: a receiver that stores what it gets and calls this only when its reader took
        it holds the peer back.
        """
        raise NotImplementedError

    def reset(self, code: int) -> None:
        """Give the exchange up, both directions, with an HTTP/2 error code (over HTTP/1.1 the connection is closed if
        anything of this exchange is still missing). Calling it on a finished stream does nothing. The receiver is
        not told."""
        raise NotImplementedError


Application = Callable[[Stream], Receiver]
"""What a listener serves: called with each request once its headers are complete, it returns who takes the body.

It may answer at once; the rest of the body then goes to a receiver that ignores it. It must not raise.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on everything that a peer can choose. Sizes in bytes, times in seconds."""

    max_header_bytes: int = 16 * 1024
    """Of one header list, counted as RFC 9113 section 6.5.2 does (name + value + 32 each)."""
    max_header_count: int = 100
    max_body_bytes: int = 16 * 1024 * 1024
    """Of one HTTP/1.1 request body; 413 beyond. Wires bound single messages by themselves."""
    max_concurrent_streams: int = 2048
    max_connections: int = 10_000
    stream_window: int = 256 * 1024
    """What one stream may send before the application consumed any of it."""
    connection_window: int = 8 * 1024 * 1024
    write_high_water: int = 64 * 1024
    """Of unsent bytes per stream, before `Stream.writable` turns false."""
    header_timeout: float = 10.0
    """From a connection's first byte (or a kept connection's next one) to the end of the headers; TLS included."""
    body_timeout: float = 60.0
    """Without one byte of progress in a body, in either direction."""
    idle_timeout: float = 600.0
    """Of a connection without an exchange."""
    keepalive_interval: float = 30.0
    """Between PINGs on a connection with exchanges under way but silent (HTTP/2)."""
    keepalive_timeout: float = 10.0
    """For the answer to a PING."""


class ClientConnection(Protocol):
    """An open connection as a client's pool and the wires see it."""

    @property
    def version(self) -> str:
        """`"1.1"` or `"2"`."""
        ...

    @property
    def in_flight(self) -> int:
        """Exchanges under way."""
        ...

    @property
    def available(self) -> bool:
        """True while another exchange may be opened right now (HTTP/1.1: none under way)."""
        ...

    @property
    def closed(self) -> bool:
        """True once it will never be available again: GOAWAY, `Connection: close`, lost, or closed by us."""
        ...

    def open(
        self,
        headers: Headers,
        tail: Sequence[Field],
        receiver: Receiver,
        *,
        body: bytes = b"",
        end: bool = True,
    ) -> Stream:
        """Start an exchange: request headers, *body* if any, and the end of the request if *end*.

        Raises StreamClosed(reached=False) where it is not *available*, HeadersTooLarge where the other side has said
        that it does not take so many headers.
        """
        ...

    async def drain(self) -> None:
        """Take no more exchanges, let those under way finish, then close."""

    def close(self) -> None:
        """Close now. Exchanges under way fail. May be called twice."""
