"""Both engines in memory, receivers that write down what they are told, and raw frames."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import h2.config
import h2.connection
import h2.events
import hpack

from polywire.net.http2.client import Http2Client
from polywire.net.http2.engine import Http2Connection
from polywire.net.http2.frames import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    ErrorCode,
    frame,
    pack_setting,
    pack_u32,
    unpack_header,
)
from polywire.net.http2.server import Http2Server
from polywire.net.http2.stream import Http2Stream
from polywire.net.stream import Field, Head, Headers, Limits, Stream, StreamClosed

REQUEST = Headers(
    (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", b"/shop.v1.Inventory/CheckStock"),
        (b":authority", b"shop.test"),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    )
)
RESPONSE = Headers(((b":status", b"200"), (b"content-type", b"application/grpc")))
TRAILERS = Headers(((b"grpc-status", b"0"),))


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


class Call:
    """A receiver that writes everything down, and gives credit back if *reads*."""

    def __init__(self, stream: Stream | None = None, *, reads: bool = True) -> None:
        self.stream = stream
        self.reads = reads
        self.events: list[Any] = []
        self.on_ended: Callable[[Call], None] | None = None

    def headers_received(self, head: Head, tail: tuple[Field, ...]) -> None:
        self.events.append(("headers", head.status, head.fields + tail))

    def data_received(self, data: bytes) -> None:
        self.events.append(("data", data))
        if self.reads and self.stream is not None:
            self.stream.consumed(len(data))

    def ended(self, trailers: tuple[Field, ...]) -> None:
        self.events.append(("ended", trailers))
        if self.on_ended is not None:
            self.on_ended(self)

    def failed(self, error: StreamClosed) -> None:
        self.events.append(("failed", error.reason, error.reached, error.code))

    @property
    def body(self) -> bytes:
        return b"".join(event[1] for event in self.events if event[0] == "data")

    @property
    def complete(self) -> bool:
        return any(event[0] == "ended" for event in self.events)

    @property
    def failure(self) -> tuple[str, bool, int | None] | None:
        return next((event[1:] for event in self.events if event[0] == "failed"), None)


def echo(call: Call) -> None:
    """Answer a request with its own body."""
    assert call.stream is not None
    call.stream.respond(RESPONSE, (), call.body, TRAILERS)


def answering(body: bytes, headers: Headers = RESPONSE) -> Callable[[Call], None]:
    def answer(call: Call) -> None:
        assert call.stream is not None
        call.stream.respond(headers, (), body, TRAILERS)

    return answer


class Service:
    """An application that writes down its calls, and answers each when it is complete."""

    def __init__(self, answer: Callable[[Call], None] | None = echo, *, reads: bool = True) -> None:
        self.calls: list[Call] = []
        self.answer = answer
        self.reads = reads

    def __call__(self, stream: Stream) -> Call:
        call = Call(stream, reads=self.reads)
        head = stream.head
        call.events.append(("request", head.method, head.path, head.authority, head.fields + stream.tail))
        call.on_ended = self.answer
        self.calls.append(call)
        return call


def nothing() -> None:
    """Output is fetched by hand."""


def server(
    application: Callable[[Stream], Any] | None = None,
    limits: Limits | None = None,
    clock: Callable[[], float] | None = None,
) -> Http2Server:
    return Http2Server(application or Service(), limits or Limits(), now=clock or Clock(), on_output=nothing)


def client(limits: Limits | None = None, clock: Callable[[], float] | None = None) -> Http2Client:
    return Http2Client(limits or Limits(), now=clock or Clock(), on_output=nothing)


def start(engine: Http2Client, receiver: Call, headers: Headers = REQUEST, **options: Any) -> Http2Stream:
    stream = engine.open(headers, (), receiver, **options)
    receiver.stream = stream
    return stream


def talk(one: Http2Connection, other: Http2Connection, rounds: int = 10_000) -> None:
    """Let both sides exchange bytes until neither has any more."""
    for _ in range(rounds):
        ours, theirs = one.take(), other.take()
        if not ours and not theirs:
            return
        other.receive(ours)
        one.receive(theirs)
    raise AssertionError("the two never fell silent")


def greeted(engine: Http2Server, *settings: tuple[int, int]) -> Http2Server:
    """A server that has seen a client's preface and SETTINGS, and whose own were acknowledged."""
    theirs = b"".join(pack_setting(*setting) for setting in settings)
    engine.receive(PREFACE + frame(SETTINGS, 0, 0, theirs) + frame(SETTINGS, ACK, 0))
    engine.take()
    return engine


def block(*fields: Field) -> bytes:
    """A header block that leaves the table alone."""
    return b"".join(
        b"\x00" + bytes((len(name),)) + name + hpack.hpack.encode_integer(len(value), 7) + value
        for name, value in fields
    )


def request_frames(
    sid: int, *extra: Field, body: bytes | None = None, fields: Iterable[Field] = REQUEST.fields
) -> bytes:
    flags = END_HEADERS | (END_STREAM if body is None else 0)
    head = frame(HEADERS, flags, sid, block(*fields, *extra))
    return head if body is None else head + frame(DATA, END_STREAM, sid, body)


def frames(data: bytes) -> list[tuple[int, int, int, bytes]]:
    """(type, flags, stream, payload) of each frame."""
    found, pos = [], 0
    while pos < len(data):
        word, flags, sid = unpack_header(data, pos)
        size = word >> 8
        found.append((word & 0xFF, flags, sid, data[pos + 9 : pos + 9 + size]))
        pos += 9 + size
    return found


def ending(data: bytes) -> tuple[ErrorCode, str] | None:
    """Code and words of the GOAWAY with an error in *data*."""
    for kind, _, _, payload in frames(data):
        if kind == GOAWAY:
            return ErrorCode(int.from_bytes(payload[4:8], "big")), payload[8:].decode()
    return None


def resets(data: bytes) -> list[tuple[int, ErrorCode]]:
    return [(sid, ErrorCode(int.from_bytes(body, "big"))) for kind, _, sid, body in frames(data) if kind == RST_STREAM]


class Judge:
    """The `h2` library as the other side of one of our engines."""

    def __init__(self, engine: Http2Connection) -> None:
        self.engine = engine
        is_client = isinstance(engine, Http2Server)
        self.h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=is_client, header_encoding=None, validate_inbound_headers=True)
        )
        self.h2.initiate_connection()
        self.events: list[Any] = []

    def exchange(self) -> list[Any]:
        """Let both talk until they are silent; returns what `h2` made of our bytes."""
        seen: list[Any] = []
        while True:
            theirs = self.h2.data_to_send()
            if theirs:
                self.engine.receive(theirs)
            ours = self.engine.take()
            if ours:
                seen += self.h2.receive_data(ours)
            elif not theirs:
                self.events += seen
                return seen


def of(kind: type, events: list[Any]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def window_update(sid: int, size: int) -> bytes:
    return frame(8, 0, sid, pack_u32(size))
