"""What the tests of HTTP/1.1, the listener and the pool share."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from polywire.net.http1 import Dateline, Http1ServerProtocol
from polywire.net.listener import Listener
from polywire.net.stream import Field, Head, Headers, Limits, Stream, StreamClosed
from polywire.net.tls import ServerTls

OK = Headers([(b":status", b"200"), (b"content-type", b"text/plain")])
NO_CONTENT = Headers([(b":status", b"204")])
GET = Headers([(b":method", b"GET"), (b":path", b"/"), (b":authority", b"test")])
POST = Headers([(b":method", b"POST"), (b":path", b"/"), (b":authority", b"test")])
DATE = b"date: Thu, 01 Jan 1970 00:00:00 GMT\r\n"


class FixedDate(Dateline):
    """The first of January 1970, for ever."""

    def refresh(self) -> None:
        self.line = DATE


class MemoryTransport(asyncio.Transport):
    """Keeps what is written, and what else was asked for."""

    def __init__(self) -> None:
        super().__init__({"peername": ("192.0.2.1", 40000)})
        self.sent = b""
        self.reading = True
        self.closed = False
        self.aborted = False
        self.ended = False
        self.unsent = 0

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        assert not self.ended, "written after the end"
        self.sent += bytes(data)

    def take(self) -> bytes:
        sent, self.sent = self.sent, b""
        return sent

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return self.unsent


class Seen:
    """A receiver that writes down what it gets, on either side."""

    def __init__(
        self,
        stream: Stream | None = None,
        answer: Callable[[Seen], None] | None = None,
        *,
        consume: bool = True,
    ) -> None:
        self._stream = stream
        self._consume = consume
        self.answer = answer
        self.head: Head | None = None
        self.body = b""
        self.trailers: tuple[Field, ...] | None = None
        self.error: StreamClosed | None = None
        self.finished = asyncio.Event()

    @property
    def stream(self) -> Stream:
        assert self._stream is not None
        return self._stream

    @stream.setter
    def stream(self, stream: Stream) -> None:
        self._stream = stream

    def headers_received(self, head: Head, tail: tuple[Field, ...]) -> None:
        assert self.head is None
        self.head = head

    def data_received(self, data: bytes) -> None:
        assert self.trailers is None
        assert data
        self.body += data
        if self._consume and self._stream is not None:
            self._stream.consumed(len(data))

    def ended(self, trailers: tuple[Field, ...]) -> None:
        assert self.trailers is None
        self.trailers = trailers
        self.finished.set()
        if self.answer is not None:
            self.answer(self)

    def failed(self, error: StreamClosed) -> None:
        assert self.error is None
        self.error = error
        self.finished.set()

    async def answered(self) -> Head:
        async with asyncio.timeout(10):
            await self.finished.wait()
        if self.error is not None:
            raise self.error
        assert self.head is not None
        return self.head


def echo(seen: Seen) -> None:
    """Answer with the method, the path and the body."""
    stream = seen.stream
    stream.respond(OK, (), stream.head.method + b" " + stream.head.path + b" " + seen.body)


class Recorder:
    """An application that keeps all exchanges; *answer* is called when a request is complete."""

    def __init__(self, answer: Callable[[Seen], None] | None = echo, *, consume: bool = True) -> None:
        self.answer = answer
        self.consume = consume
        self.seen: list[Seen] = []

    def __call__(self, stream: Stream) -> Seen:
        seen = Seen(stream, self.answer, consume=self.consume)
        self.seen.append(seen)
        return seen

    @property
    def last(self) -> Seen:
        return self.seen[-1]


class InMemory:
    """A server's end of a connection, without sockets."""

    def __init__(self, application: Any = None, **limits: Any) -> None:
        self.application: Any = application if application is not None else Recorder()
        self.transport = MemoryTransport()
        self.lost: list[Http1ServerProtocol] = []
        self.protocol = Http1ServerProtocol(self.application, Limits(**limits), date=FixedDate(), lost=self.lost.append)
        self.protocol.connection_made(self.transport)

    def send(self, data: bytes) -> bytes:
        """Let *data* arrive; returns what was written meanwhile."""
        self.protocol.data_received(data)
        return self.transport.take()


def ok(body: bytes, *lines: bytes) -> bytes:
    """The response that `respond(OK, (), body)` becomes, with further header *lines*."""
    more = b"".join(line + b"\r\n" for line in lines)
    return b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n%b%bcontent-length: %d\r\n\r\n%b" % (
        DATE,
        more,
        len(body),
        body,
    )


@asynccontextmanager
async def serving(
    application: Any,
    address: str | Sequence[str] = "127.0.0.1:0",
    *,
    limits: Limits | None = None,
    tls: ServerTls | None = None,
) -> AsyncIterator[tuple[Listener, str]]:
    listener = Listener(application, limits=limits, tls=tls)
    bound = await listener.start(address)
    try:
        yield listener, bound
    finally:
        await listener.drain(0)


async def connect(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if address.startswith("unix:"):
        return await asyncio.open_unix_connection(address.removeprefix("unix:"))
    host, _, port = address.rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def ask(address: str, request: bytes) -> bytes:
    """Send *request* on a new connection; returns everything up to the end of that."""
    reader, writer = await connect(address)
    try:
        writer.write(request)
        return await everything(reader)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def until(condition: Callable[[], object]) -> None:
    """Wait for something that happens in another task or at the other end of a socket; ten seconds at most."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - conditions of every kind, none of them an event
            await asyncio.sleep(0.001)


async def everything(reader: asyncio.StreamReader) -> bytes:
    """What comes until the connection ends, in order or by a reset."""
    received = b""
    async with asyncio.timeout(10):
        with contextlib.suppress(ConnectionError):
            while piece := await reader.read(65536):
                received += piece
    return received
