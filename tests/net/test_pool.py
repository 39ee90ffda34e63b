"""A pool opens connections when they are needed, shares them, and backs off when that fails."""

from __future__ import annotations

import asyncio
import http.server
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from http1_support import GET, OK, POST, Recorder, Seen, serving, until

from polywire.clock import Timer
from polywire.net.pool import Pool, PoolState, Version
from polywire.net.stream import ClientConnection, Headers, Limits, StreamClosed

HTTP2_GET = Headers([(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"a")])


class Clock:
    """A clock that stands still until told; timers run when it passes them."""

    def __init__(self) -> None:
        self.now = 0.0
        self.dice = 1.0
        self.timers: list[tuple[float, Callable[[], object]]] = []

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now

    def random(self) -> float:
        return self.dice

    async def sleep(self, delay: float) -> None:
        raise NotImplementedError

    def call_later(self, delay: float, callback: Callable[[], object]) -> Timer:
        entry = (self.now + delay, callback)
        self.timers.append(entry)
        clock = self

        class Pending:
            def cancel(self) -> None:
                if entry in clock.timers:
                    clock.timers.remove(entry)

        return Pending()

    def advance(self, seconds: float) -> None:
        self.now += seconds
        for entry in sorted(self.timers, key=lambda timer: timer[0]):
            if entry[0] <= self.now and entry in self.timers:
                self.timers.remove(entry)
                entry[1]()


@asynccontextmanager
async def pooling(address: str, **options: Any) -> AsyncIterator[Pool]:
    pool = Pool(address, **options)
    try:
        yield pool
    finally:
        pool.close()
        await asyncio.sleep(0.01)


def nobody() -> str:
    """An address where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


async def get(pool: Pool, headers: Headers = GET) -> bytes:
    connection = pool.ready() or await pool.acquire()
    seen = Seen()
    seen.stream = connection.open(headers, (), seen)
    await seen.answered()
    return seen.body


async def test_a_connection_is_used_again_and_again() -> None:
    application = Recorder()
    async with serving(application) as (listener, address), pooling(address, version="1.1") as pool:
        assert pool.state == PoolState.IDLE
        assert pool.ready() is None
        for _ in range(5):
            assert await get(pool) == b"GET / "
        assert (pool.connections, listener.connections, pool.state) == (1, 1, PoolState.CONNECTED)


async def test_http_1_1_opens_a_connection_for_each_exchange_up_to_a_limit() -> None:
    waiting: list[Seen] = []
    async with (
        serving(Recorder(waiting.append)) as (_, address),
        pooling(address, version="1.1", max_connections=3) as pool,
    ):
        calls = [asyncio.ensure_future(get(pool)) for _ in range(7)]
        await until(lambda: len(waiting) == 3)
        assert pool.connections == 3
        assert pool.in_flight == 3
        for done in range(7):
            await until(lambda done=done: len(waiting) > done)  # type: ignore[misc]  # a default binds the loop's variable
            waiting[done].stream.respond(OK, (), b"done")
        assert await asyncio.gather(*calls) == [b"done"] * 7
        assert pool.connections == 3


async def test_the_connection_used_last_is_used_next() -> None:
    async with serving(Recorder()) as (_, address), pooling(address, version="1.1") as pool:
        first, second = await pool.acquire(), await pool.acquire()
        assert first is not second
        for connection in (first, second):
            seen = Seen()
            connection.open(GET, (), seen)
            await seen.answered()
        assert pool.ready() is second


async def test_http_2_shares_one_connection() -> None:
    waiting: list[Seen] = []
    async with serving(Recorder(waiting.append)) as (listener, address), pooling(address) as pool:
        calls = [asyncio.ensure_future(get(pool, HTTP2_GET)) for _ in range(50)]
        await until(lambda: len(waiting) == 50)
        assert (pool.connections, listener.connections) == (1, 1)
        for seen in waiting:
            seen.stream.respond(OK, (), b"done")
        assert await asyncio.gather(*calls) == [b"done"] * 50


async def test_http_2_opens_another_connection_when_the_first_one_is_full() -> None:
    waiting: list[Seen] = []
    async with (
        serving(Recorder(waiting.append), limits=Limits(max_concurrent_streams=10)) as (_, address),
        pooling(address) as pool,
    ):
        seen = Seen()
        (await pool.acquire()).open(HTTP2_GET, (), seen)
        await until(lambda: waiting)
        calls = [asyncio.ensure_future(get(pool, HTTP2_GET)) for _ in range(14)]
        await until(lambda: len(waiting) == 15)
        assert pool.connections == 2
        for one in waiting:
            one.stream.respond(OK, (), b"done")
        assert await asyncio.gather(*calls) == [b"done"] * 14


async def test_a_burst_waits_for_the_servers_word_on_streams_instead_of_opening_many_connections() -> None:
    async with serving(Recorder()) as (_, address), pooling(address) as pool:
        calls = [asyncio.ensure_future(get(pool, HTTP2_GET)) for _ in range(1000)]
        await asyncio.gather(*calls)
        assert pool.connections <= 2


async def test_a_connection_that_the_server_closed_meanwhile_is_not_given_out() -> None:
    async with pooling("127.0.0.1:1", version="1.1") as pool:
        async with serving(Recorder()) as (_, address):
            pool.address = type(pool.address)(host="127.0.0.1", port=int(address.rpartition(":")[2]))
            assert await get(pool) == b"GET / "
        await until(lambda: pool.connections == 0)
        assert pool.ready() is None
        assert pool.state == PoolState.IDLE


async def test_idle_connections_are_closed() -> None:
    clock = Clock()
    async with (
        serving(Recorder()) as (listener, address),
        pooling(address, version="1.1", limits=Limits(idle_timeout=60), clock=clock) as pool,
    ):
        await get(pool)
        clock.advance(1)
        clock.advance(61)
        await until(lambda: listener.connections == 0)
        await until(lambda: pool.connections == 0)
        assert pool.ready() is None


# Failing to connect


async def test_a_refused_connection_is_told_in_a_sentence() -> None:
    address = nobody()
    async with pooling(address, version="1.1") as pool:
        with pytest.raises(StreamClosed) as raised:
            await pool.acquire()
        assert raised.value.reason == f"cannot connect to {address}: connection refused"
        assert not raised.value.reached


async def test_a_missing_socket_is_told_in_a_sentence(tmp_path: Path) -> None:
    async with pooling(f"unix:{tmp_path}/s") as pool:
        with pytest.raises(StreamClosed) as raised:
            await pool.acquire()
        assert raised.value.reason == f"cannot connect to unix:{tmp_path}/s: no such file or directory"


async def test_an_unknown_host_is_told_in_a_sentence() -> None:
    async with pooling("nowhere.invalid:80") as pool:
        with pytest.raises(StreamClosed) as raised:
            await pool.acquire()
        assert raised.value.reason == (
            "cannot connect to nowhere.invalid:80: the host 'nowhere.invalid' cannot be resolved"
        )


async def test_a_server_that_does_not_answer_is_given_up() -> None:
    with socket.socket() as full:
        # A queue that is full: the kernel drops what else comes.
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        host, port = full.getsockname()
        waiting = [socket.socket() for _ in range(2)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex((host, port))
        async with pooling(f"{host}:{port}", connect_timeout=0.1) as pool:
            with pytest.raises(StreamClosed) as raised:
                await pool.acquire()
            assert raised.value.reason == f"cannot connect to {host}:{port}: no answer within 0.1 s"
        for one in waiting:
            one.close()


async def test_after_a_failure_calls_fail_at_once_until_it_is_time_to_try_again() -> None:
    clock = Clock()
    changes: list[PoolState] = []
    address = nobody()
    async with pooling(address, clock=clock, first_delay=1.0, max_delay=5.0) as pool:
        pool._on_change = lambda: changes.append(pool.state)
        for delay in (1.0, 2.0, 4.0, 5.0, 5.0):
            with pytest.raises(StreamClosed, match="connection refused"):
                await pool.acquire()
            assert pool.state == PoolState.BACKING_OFF
            assert pool.retry_at == clock.now + delay
            clock.advance(delay - 0.1)
            with pytest.raises(StreamClosed, match="connection refused"):
                await pool.acquire()
            assert pool.retry_at == pytest.approx(clock.now + 0.1), "no attempt was made"
            clock.advance(0.2)
        clock.dice = 0.25
        with pytest.raises(StreamClosed, match="connection refused"):
            await pool.acquire()
        assert pool.retry_at == clock.now + 1.25, "jitter takes any part of the delay"
        assert changes[:3] == [PoolState.CONNECTING, PoolState.BACKING_OFF, PoolState.IDLE]


async def test_whoever_waits_for_a_busy_connection_is_told_when_it_is_lost_and_no_other_can_be_had() -> None:
    clock = Clock()
    accepted: list[asyncio.StreamWriter] = []

    async def hold(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.append(writer)

    server = await asyncio.start_server(hold, "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with pooling(address, version="1.1", first_delay=1.0, clock=clock) as pool:
        (await pool.acquire()).open(GET, (), Seen())
        await until(lambda: accepted)
        server.close()
        waiting = [asyncio.ensure_future(pool.acquire()) for _ in range(5)]
        await until(lambda: pool.error is not None and not pool._attempts)
        assert pool.retry_at == 1.0, "attempts made side by side that fail are one failure"
        assert not any(waiter.done() for waiter in waiting)
        accepted[0].close()
        async with asyncio.timeout(5):
            told = await asyncio.gather(*waiting, return_exceptions=True)
    assert [str(error) for error in told] == [f"cannot connect to {address}: connection refused"] * 5


async def test_whoever_waits_for_readiness_gets_the_connection_when_the_server_comes_up() -> None:
    address = nobody()
    async with pooling(address, version="1.1", first_delay=0.001, max_delay=0.01) as pool:
        patient = asyncio.ensure_future(pool.acquire(wait_for_ready=True))
        with pytest.raises(StreamClosed):
            await pool.acquire()
        await asyncio.sleep(0.02)
        assert not patient.done()
        async with serving(Recorder(), address):
            connection = await patient
            assert connection.available
            assert pool.error is None


async def test_calls_that_wait_share_one_attempt() -> None:
    attempts = 0

    async with serving(Recorder()) as (_, address), pooling(address) as pool:

        def count() -> None:
            nonlocal attempts
            attempts += pool.state == PoolState.CONNECTING

        pool._on_change = count
        connections = await asyncio.gather(*(pool.acquire() for _ in range(20)))
        assert len(set(connections)) == 1
        assert attempts == 1


async def test_too_many_waiting_calls_are_refused() -> None:
    async with (
        serving(Recorder(None)) as (_, address),
        pooling(address, version="1.1", max_connections=1, max_waiting=2) as pool,
    ):
        (await pool.acquire()).open(GET, (), Seen())
        waiting = [asyncio.ensure_future(pool.acquire()) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(StreamClosed) as raised:
            await pool.acquire()
        assert raised.value.reason == f"all connections to {address} are busy and 2 calls wait for one already"
        for task in waiting:
            task.cancel()


async def test_a_warm_pool_connects_and_reconnects_by_itself() -> None:
    address = nobody()
    async with pooling(address, warm=True, first_delay=0.001, max_delay=0.01) as pool:
        pool.connect()
        await until(lambda: pool.state == PoolState.BACKING_OFF)
        async with serving(Recorder(), address):
            await until(lambda: pool.state == PoolState.CONNECTED)
        await until(lambda: pool.state != PoolState.CONNECTED)
        async with serving(Recorder(), address):
            await until(lambda: pool.state == PoolState.CONNECTED)


async def test_a_server_that_takes_connections_only_to_drop_them_is_not_called_in_a_loop() -> None:
    accepted = 0

    async def drop(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal accepted
        accepted += 1
        writer.close()

    server = await asyncio.start_server(drop, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    clock = Clock()
    async with server, pooling(f"{host}:{port}", warm=True, clock=clock) as pool:
        pool.connect()
        await until(lambda: pool.state == PoolState.BACKING_OFF)
        assert pool.error == f"cannot keep a connection to {host}:{port}: the server closed it at once"
        assert accepted == 1


@pytest.mark.parametrize("version", ["1.1", "2"])
async def test_a_connection_that_is_lost_before_the_pool_hears_of_it_is_a_failure_to_connect(version: Version) -> None:
    """(It was kept for ever, so that a warm pool never connected again.)"""

    class Slow(Pool):
        async def _open(self) -> Any:
            connection = await super()._open()
            await until(lambda: connection.closed)
            return connection

    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    pool = Slow(f"{host}:{port}", version=version, warm=True, clock=Clock())
    async with server:
        with pytest.raises(StreamClosed, match="the server closed it at once") as refused:
            await pool.acquire()
        assert not refused.value.reached
        assert (pool.connections, pool.state) == (0, PoolState.BACKING_OFF)
        pool.close()
        await pool.wait_closed()


# Giving up and ending


async def test_a_caller_that_gives_up_takes_nothing_with_it() -> None:
    async with (
        serving(Recorder(None)) as (_, address),
        pooling(address, version="1.1", max_connections=1) as pool,
    ):
        held = await pool.acquire()
        first, second = (asyncio.ensure_future(pool.acquire()) for _ in range(2))
        await asyncio.sleep(0)
        pool._give(held)  # type: ignore[arg-type]  # it is one of its own
        first.cancel()
        assert await second is held, "given to the one who left, and passed on"
        with pytest.raises(asyncio.CancelledError):
            await first


async def test_closing_while_connecting_leaks_no_socket() -> None:
    async with serving(Recorder()) as (listener, address):
        for turns in range(6):
            pool = Pool(address, version="1.1")
            waiting = asyncio.ensure_future(pool.acquire())
            for _ in range(turns):
                await asyncio.sleep(0)
            pool.close()
            if turns < 3:
                with pytest.raises(StreamClosed, match=r"^the pool was closed by this side$"):
                    await waiting
            else:
                await asyncio.wait([waiting])
                assert not waiting.cancelled()
                waiting.exception()
            assert pool.state == PoolState.CLOSED
        await until(lambda: listener.connections == 0)


async def test_a_closed_pool_gives_nothing() -> None:
    async with serving(Recorder()) as (_, address):
        pool = Pool(address)
        await pool.acquire()
        pool.close()
        pool.close()
        with pytest.raises(StreamClosed, match=r"^the pool was closed by this side$"):
            await pool.acquire()
        await until(lambda: pool.connections == 0)


@pytest.mark.parametrize(("version", "headers"), [("1.1", GET), ("2", HTTP2_GET)])
async def test_draining_lets_exchanges_finish(version: str, headers: Headers) -> None:
    waiting: list[Seen] = []
    async with serving(Recorder(waiting.append)) as (_, address), pooling(address, version=version) as pool:
        call = asyncio.ensure_future(get(pool, headers))
        await until(lambda: waiting)
        draining = asyncio.ensure_future(pool.drain())
        await asyncio.sleep(0.01)
        assert not draining.done()
        waiting[0].stream.respond(OK, (), b"done")
        assert await call == b"done"
        async with asyncio.timeout(10):
            await draining
        assert pool.connections == 0


# Servers that others wrote


@pytest.mark.parametrize("protocol", ["HTTP/1.0", "HTTP/1.1"])
async def test_pythons_own_server_answers(protocol: str) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = protocol

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            if protocol == "HTTP/1.1":
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        async with pooling(f"127.0.0.1:{server.server_port}", version="1.1") as pool:
            for body in (b"one", b"two" * 100_000):
                connection: ClientConnection = await pool.acquire()
                seen = Seen()
                seen.stream = connection.open(POST, (), seen, body=body)
                await seen.answered()
                assert seen.body == body
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


async def test_aiohttps_server_answers_in_every_form() -> None:
    async def echo(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        if request.method == "GET":
            return web.Response(status=204)
        response = web.StreamResponse()
        await response.prepare(request)
        for start in range(0, len(body), 10_000):
            await response.write(body[start : start + 10_000])
        await response.write_eof()
        return response

    app = web.Application()
    app.router.add_route("*", "/", echo)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    async with pooling(f"{host}:{port}", version="1.1") as pool:
        for _ in range(2):
            assert await get(pool) == b""
            assert await get(pool, Headers([(b":method", b"HEAD"), *GET.fields[1:]])) == b""
            seen = Seen()
            stream = seen.stream = (await pool.acquire()).open(POST, (), seen, body=b"first ", end=False)
            for _ in range(20):
                stream.send_data(b"x" * 10_000)
            stream.send_data(b" last", end=True)
            await seen.answered()
            assert seen.body == b"first " + b"x" * 200_000 + b" last"
        assert pool.connections == 1
    await runner.cleanup()
