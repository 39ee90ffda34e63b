"""HTTP/2 over real sockets: connecting, backpressure, draining under load, and connections that are lost."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme
from http2_support import REQUEST, RESPONSE, TRAILERS, Call, Service, answering, echo, request_frames, window_update

from polywire.net.http2.frames import PREFACE, SETTINGS, ErrorCode, frame
from polywire.net.http2_protocol import Http2ClientProtocol, Http2ServerProtocol, open_http2
from polywire.net.stream import Application, Field, Limits, Stream, StreamClosed

SOON = 10.0


class Waiting(Call):
    """A call whose end can be awaited."""

    def __init__(self) -> None:
        super().__init__()
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def ended(self, trailers: tuple[Field, ...]) -> None:
        super().ended(trailers)
        self.done.set_result(None)

    def failed(self, error: StreamClosed) -> None:
        super().failed(error)
        if not self.done.done():
            self.done.set_exception(error)


def begin(connection: Http2ClientProtocol, body: bytes = b"hello", *, end: bool = True) -> Waiting:
    call = Waiting()
    call.stream = connection.open(REQUEST, ((b"grpc-timeout", b"1S"),), call, body=body, end=end)
    return call


async def ask(connection: Http2ClientProtocol, body: bytes = b"hello") -> bytes:
    call = begin(connection, body)
    await asyncio.wait_for(call.done, SOON)
    return call.body


class Serving:
    """A server on a free port, and the connections that it has."""

    def __init__(self, application: Application, limits: Limits) -> None:
        self.connections: list[Http2ServerProtocol] = []
        self.closed: list[Http2ServerProtocol] = []
        self.application = application
        self.limits = limits
        self.port = 0

    def make(self) -> Http2ServerProtocol:
        protocol = Http2ServerProtocol(self.application, self.limits, on_close=self.closed.append)
        self.connections.append(protocol)
        return protocol


@asynccontextmanager
async def serving(
    application: Application | None = None,
    limits: Limits | None = None,
    *,
    path: Path | None = None,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Serving]:
    served = Serving(application or Service(), limits or Limits())
    loop = asyncio.get_running_loop()
    if path is not None:
        listening = await loop.create_unix_server(served.make, str(path))
    else:
        listening = await loop.create_server(served.make, "127.0.0.1", 0, ssl=tls)
        served.port = listening.sockets[0].getsockname()[1]
    try:
        yield served
    finally:
        listening.close()
        for protocol in served.connections:
            protocol.close()
        async with asyncio.timeout(SOON):
            for protocol in served.connections:
                await protocol.wait_closed()


@asynccontextmanager
async def connected(served: Serving, limits: Limits | None = None) -> AsyncIterator[Http2ClientProtocol]:
    connection = await open_http2("127.0.0.1", served.port, limits=limits)
    try:
        yield connection
    finally:
        connection.close()
        await asyncio.wait_for(connection.wait_closed(), SOON)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON):
        while not condition():  # noqa: ASYNC110 - what is waited for happens on the other side of a socket
            await asyncio.sleep(0.002)


async def test_calls_of_all_sizes_over_tcp() -> None:
    async with serving() as served, connected(served) as connection:
        for size in (1, 20_000, 5_000_000):
            assert await ask(connection, b"x" * size) == b"x" * size
        assert connection.engine.peer == f"127.0.0.1:{served.port}"
        assert not connection.engine.secure
        assert connection.in_flight == 0


async def test_calls_over_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    async with serving(path=path) as served:
        connection = await open_http2(path=str(path))
        assert await ask(connection) == b"hello"
        assert connection.engine.peer == f"unix:{path}"
        assert served.connections[0].engine.peer == f"unix:{path}"
        await connection.drain()


def contexts(*alpn: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(server)
    authority.configure_trust(client)
    server.set_alpn_protocols(list(alpn))
    client.set_alpn_protocols(["h2"])
    return server, client


async def test_calls_over_tls_know_the_other_side() -> None:
    server, client = contexts("h2")
    async with serving(tls=server) as served:
        connection = await open_http2("127.0.0.1", served.port, ssl=client)
        assert await ask(connection, b"x" * 300_000) == b"x" * 300_000
        assert connection.engine.secure
        certificate = connection.engine.peer_certificate
        assert certificate is not None
        assert ("IP Address", "127.0.0.1") in certificate["subjectAltName"]
        await connection.drain()


async def test_a_server_that_does_not_choose_h2_is_refused() -> None:
    server, client = contexts("http/1.1")
    async with serving(tls=server) as served:
        with pytest.raises(StreamClosed) as refused:
            await open_http2("127.0.0.1", served.port, ssl=client)
        words = f"127.0.0.1:{served.port} does not speak HTTP/2: it did not choose h2 by ALPN"
        assert str(refused.value) == words


async def test_a_thousand_calls_at_once_on_one_connection() -> None:
    async with serving() as served, connected(served) as connection:
        await ask(connection)
        calls = [begin(connection, b"%d" % number) for number in range(1000)]
        assert connection.in_flight == 1000
        async with asyncio.timeout(SOON):
            for number, call in enumerate(calls):
                await call.done
                assert call.body == b"%d" % number


async def test_the_protocol_may_take_over_a_connection_that_another_has_begun() -> None:
    class Sniffing(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            protocol = Http2ServerProtocol(Service(), Limits())
            self.transport.set_protocol(protocol)
            protocol.connection_made(self.transport)
            protocol.data_received(data)

    loop = asyncio.get_running_loop()
    listening = await loop.create_server(Sniffing, "127.0.0.1", 0)
    connection = await open_http2("127.0.0.1", listening.sockets[0].getsockname()[1])
    assert await ask(connection) == b"hello"
    await connection.drain()
    listening.close()


async def test_a_drain_under_load_fails_no_call_and_loses_none() -> None:
    """Each client goes on to a new connection when its own is closed to new calls, as a pool does."""
    async with serving(Service(slowly)) as served:
        answered = refused = 0

        async def customer() -> None:
            nonlocal answered, refused
            connection = await open_http2("127.0.0.1", served.port)
            for _ in range(150):
                while True:
                    if not connection.available:
                        connection = await open_http2("127.0.0.1", served.port)
                    try:
                        await ask(connection)
                    except StreamClosed as closed:
                        if closed.reached:
                            raise
                        refused += 1
                        continue
                    break
                answered += 1
            await connection.drain()

        async with asyncio.timeout(30), asyncio.TaskGroup() as customers:
            for _ in range(8):
                customers.create_task(customer())
            for _ in range(20):
                await asyncio.sleep(0.01)
                for protocol in list(served.connections):
                    if protocol not in served.closed:
                        customers.create_task(protocol.drain())
        assert answered == 8 * 150


def slowly(call: Call) -> None:
    asyncio.get_running_loop().call_later(0.001, echo, call)


async def test_a_drain_lets_the_call_under_way_end_and_then_closes() -> None:
    service = Service(None)
    async with serving(service) as served, connected(served) as connection:
        call = begin(connection)
        await until(lambda: bool(service.calls and service.calls[0].complete))
        draining = asyncio.ensure_future(served.connections[0].drain())
        await until(lambda: connection.closed)
        assert not call.done.done()
        answering(b"last")(service.calls[0])
        await asyncio.wait_for(call.done, SOON)
        assert call.body == b"last"
        await asyncio.wait_for(draining, SOON)
        assert served.closed == served.connections


async def test_a_connection_that_is_cut_fails_its_calls_as_perhaps_reached() -> None:
    service = Service(None)
    async with serving(service) as served, connected(served) as connection:
        call = begin(connection)
        await until(lambda: bool(service.calls))
        transport = served.connections[0]._transport
        assert transport is not None
        transport.abort()
        with pytest.raises(StreamClosed) as lost:
            await asyncio.wait_for(call.done, SOON)
        assert lost.value.reached
        assert lost.value.code is None
        assert connection.closed
        assert not connection.available
        assert service.calls[0].failure == ("the connection was lost", True, None)


async def test_a_call_that_was_never_written_was_not_reached() -> None:
    async with serving() as served, connected(served) as connection:
        call = begin(connection)
        transport = connection._transport
        assert transport is not None
        connection.connection_lost(None)
        transport.abort()
        assert call.failure == ("the connection was lost", False, None)


async def test_closing_twice_and_while_busy_is_no_error() -> None:
    async with serving(Service(None)) as served:
        connection = await open_http2("127.0.0.1", served.port)
        call = begin(connection)
        connection.close()
        connection.close()
        with pytest.raises(StreamClosed):
            await call.done
        await asyncio.wait_for(connection.wait_closed(), SOON)
        with pytest.raises(StreamClosed):
            begin(connection)


async def test_a_peer_that_reads_nothing_holds_its_stream_back_and_no_other_connection() -> None:
    sent = 0

    async def produce(stream: Stream) -> None:
        nonlocal sent
        stream.send_headers(RESPONSE)
        while sent < 200:
            if not stream.writable:
                await stream.drain()
            stream.send_data(b"x" * 10_000)
            sent += 1
        stream.send_trailers(TRAILERS)

    tasks: list[asyncio.Task[None]] = []
    service = Service(lambda call: tasks.append(asyncio.ensure_future(produce(call.stream))) if call.stream else None)
    async with serving(service) as served, connected(served, Limits(stream_window=100_000)) as connection:
        call = begin(connection)
        call.reads = False
        await until(lambda: len(call.body) >= 95_000)
        assert sent < 20
        assert not tasks[0].done()
        call.reads = True
        assert call.stream is not None
        call.stream.consumed(len(call.body))
        await asyncio.wait_for(call.done, SOON)
        assert len(call.body) == 2_000_000
        await tasks[0]


async def test_a_full_socket_pauses_the_streams_until_it_is_read_and_a_lost_one_ends_the_wait() -> None:
    waiting: list[asyncio.Task[None]] = []

    async def produce(stream: Stream) -> None:
        stream.send_headers(RESPONSE)
        while True:
            await stream.drain()
            stream.send_data(b"x" * 16_384)

    service = Service(lambda call: waiting.append(asyncio.ensure_future(produce(call.stream))) if call.stream else None)
    async with serving(service) as served:
        with socket.create_connection(("127.0.0.1", served.port)) as raw:
            raw.setblocking(False)
            hello = PREFACE + frame(SETTINGS, 0, 0) + window_update(0, 1 << 30)
            raw.send(hello + request_frames(1) + window_update(1, 1 << 30))
            await until(lambda: bool(served.connections) and served.connections[0].engine.paused)
            engine = served.connections[0].engine
            await asyncio.sleep(0.05)
            (stream,) = engine.streams.values()
            assert not stream.writable
            assert stream.outbox is not None
            assert stream.outbox.size < 200_000
            # Reading makes room again: much more comes than the buffers in between can hold.
            received = 0
            async with asyncio.timeout(SOON):
                while received < 20_000_000:
                    received += len(await asyncio.get_running_loop().sock_recv(raw, 1 << 20))
        with pytest.raises(StreamClosed):
            await asyncio.wait_for(waiting[0], SOON)


async def ping_without_end(raw: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(raw, PREFACE + frame(SETTINGS, 0, 0))
    while True:
        await loop.sock_sendall(raw, frame(6, 0, 0, b"12345678") * 1000)


async def test_a_sender_that_never_waits_for_anything_else_is_told_of_a_reset() -> None:
    service = Service(None)
    async with serving(service) as served, connected(served) as connection:
        call = begin(connection)
        await until(lambda: bool(service.calls and service.calls[0].complete))
        assert call.stream is not None
        stream = service.calls[0].stream
        assert stream is not None
        call.stream.reset(ErrorCode.CANCEL)
        await until(lambda: service.calls[0].failure is not None)
        assert not stream.writable
        with pytest.raises(StreamClosed) as closed:
            await stream.drain()
        assert str(closed.value) == "the peer reset the stream: CANCEL"


async def test_a_peer_that_pings_and_does_not_read_is_dropped() -> None:
    async with serving() as served:
        with socket.create_connection(("127.0.0.1", served.port)) as raw:
            raw.setblocking(False)
            with pytest.raises(ConnectionError):
                await asyncio.wait_for(ping_without_end(raw), SOON)
        await until(lambda: bool(served.closed))


async def test_an_idle_connection_sleeps_and_wakes_for_the_next_call() -> None:
    async with serving() as served, connected(served) as connection:
        await ask(connection)
        for protocol in (connection, served.connections[0]):
            assert protocol._timer is not None
            protocol._timer.cancel()
            protocol._tick()
            assert protocol._asleep
        assert await ask(connection) == b"hello"
        assert not connection._asleep
        assert not served.connections[0]._asleep


async def test_another_protocol_is_told_and_turned_away() -> None:
    async with serving() as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        answer = await asyncio.wait_for(reader.read(), SOON)
        assert answer.endswith(bytes((0, 0, 0, ErrorCode.PROTOCOL_ERROR)) + b"the preface of HTTP/2 did not come")
        writer.close()
        await writer.wait_closed()
