"""CPU time of the HTTP/1.1 engine: one exchange as each side sees it, in memory and over loopback.

    python benchmarks/http1_engine.py [exchanges]

In memory, client and server are fed by hand and timed apart. Over loopback, a server process and a client process
(32 connections, one task each) are timed by their own clocks; what the kernel does for them is included.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import multiprocessing.connection
import sys
import time
from typing import Any

from polywire.net.http1 import HeadReader, Http1ClientConnection, Http1ServerProtocol
from polywire.net.listener import Listener
from polywire.net.loop import run
from polywire.net.pool import Pool
from polywire.net.stream import Field, Head, Headers, Limits, Stream, StreamClosed

CONNECTIONS = 32
ORDER = b"x" * 987
RESPONSE = Headers([(b":status", b"200"), (b"content-type", b"application/json")])
SHARED = [
    (b":authority", b"127.0.0.1:8001"),
    (b"user-agent", b"polywire/0.1"),
    (b"accept", b"application/json"),
    (b"content-type", b"application/json"),
]
GET = Headers([(b":method", b"GET"), (b":path", b"/api/v1/products/SKU-123"), *SHARED])
POST = Headers([(b":method", b"POST"), (b":path", b"/shop.v1.Orders/Place"), *SHARED])


def tail(number: int) -> list[Field]:
    """What differs from call to call: trace, time limit and request id."""
    return [
        (b"traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-%016x-01" % number),
        (b"connect-timeout-ms", b"%d" % (1000 - number % 10)),
        (b"x-request-id", b"%032x" % number),
    ]


class Answers:
    """Answers with an order."""

    __slots__ = ("stream",)

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def headers_received(self, head: Head, tail: tuple[Field, ...]) -> None: ...

    def data_received(self, data: bytes) -> None:
        self.stream.consumed(len(data))

    def ended(self, trailers: tuple[Field, ...]) -> None:
        self.stream.respond(RESPONSE, (), ORDER)

    def failed(self, error: StreamClosed) -> None: ...


class Reads:
    """Takes an answer; *done* is set with it where somebody waits."""

    __slots__ = ("body", "done")

    def __init__(self, done: asyncio.Future[bytes] | None = None) -> None:
        self.done = done
        self.body = b""

    def headers_received(self, head: Head, tail: tuple[Field, ...]) -> None: ...

    def data_received(self, data: bytes) -> None:
        self.body = data

    def ended(self, trailers: tuple[Field, ...]) -> None:
        if self.done is not None:
            self.done.set_result(self.body)

    def failed(self, error: StreamClosed) -> None:
        raise error


class Pipe(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.write: Any = self.written.append

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def is_closing(self) -> bool:
        return False


def in_memory(headers: Headers, body: bytes, exchanges: int, *, varied: bool) -> tuple[float, float]:
    """Microseconds of the client and of the server, taking turns on many connections."""
    limits = Limits()
    requests, responses = HeadReader(limits), HeadReader(limits)
    clients = [Http1ClientConnection(limits, reader=responses) for _ in range(CONNECTIONS)]
    servers = [Http1ServerProtocol(Answers, limits, reader=requests) for _ in range(CONNECTIONS)]
    up, down = Pipe(), Pipe()
    for client, server in zip(clients, servers, strict=True):
        client.connection_made(up)
        server.connection_made(down)
    client_time = server_time = 0.0
    for start in range(0, exchanges, CONNECTIONS):
        tails = [tail(start + number) if varied else [] for number in range(CONNECTIONS)]
        began = time.process_time()
        for client, rest in zip(clients, tails, strict=True):
            client.open(headers, rest, Reads(), body=body)
        opened = time.process_time()
        for server, data in zip(servers, up.written, strict=True):
            server.data_received(data)
        answered = time.process_time()
        for client, data in zip(clients, down.written, strict=True):
            client.data_received(data)
        client_time += time.process_time() - answered + opened - began
        server_time += answered - opened
        up.written.clear()
        down.written.clear()
    return client_time / exchanges * 1e6, server_time / exchanges * 1e6


def serve(told: multiprocessing.connection.Connection) -> None:
    async def main() -> None:
        listener = Listener(Answers)
        told.send(await listener.start("127.0.0.1:0"))
        loop = asyncio.get_running_loop()
        while True:
            await loop.run_in_executor(None, told.recv)
            told.send(time.process_time())

    run(main())


def over_loopback(headers: Headers, body: bytes, exchanges: int, *, varied: bool) -> tuple[float, float, float]:
    """Microseconds of the client and of the server, and exchanges per second."""
    told, tells = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(tells,), daemon=True)
    server.start()
    address = told.recv()

    async def call(pool: Pool, count: int, first: int) -> None:
        loop = asyncio.get_running_loop()
        for number in range(first, first + count):
            connection = pool.ready() or await pool.acquire()
            done: asyncio.Future[bytes] = loop.create_future()
            connection.open(headers, tail(number) if varied else (), Reads(done), body=body)
            await done

    async def main() -> tuple[float, float, float]:
        pool = Pool(address, version="1.1")
        share = exchanges // CONNECTIONS
        await asyncio.gather(*(call(pool, share // 10, share * n) for n in range(CONNECTIONS)))
        told.send(None)
        served, began, asked = told.recv(), time.perf_counter(), time.process_time()
        await asyncio.gather(*(call(pool, share, share * n) for n in range(CONNECTIONS)))
        took, asked = time.perf_counter() - began, time.process_time() - asked
        told.send(None)
        served = told.recv() - served
        pool.close()
        count = share * CONNECTIONS
        return asked / count * 1e6, served / count * 1e6, count / took

    try:
        return run(main())
    finally:
        server.terminate()


def main() -> None:
    exchanges = int(sys.argv[1]) if len(sys.argv) > 1 else 50_000
    print(f"µs per exchange, answer of {len(ORDER)} bytes       client   server")
    for name, headers, body in (("GET", GET, b""), ("POST 987 bytes", POST, ORDER)):
        for varied in (False, True):
            what = f"{name}, {'headers that differ' if varied else 'the same headers'}"
            client, server = in_memory(headers, body, exchanges, varied=varied)
            print(f"in memory  {what:<36} {client:6.2f}   {server:6.2f}")
            client, server, rate = over_loopback(headers, body, exchanges, varied=varied)
            print(f"loopback   {what:<36} {client:6.2f}   {server:6.2f}   {rate:,.0f}/s")


if __name__ == "__main__":
    main()
