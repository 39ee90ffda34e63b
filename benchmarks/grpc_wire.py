"""CPU time of gRPC calls, client and server in one process over loopback: µs per call or per message, both sides.

    python benchmarks/grpc_wire.py [--seconds 2] [--in-flight 32] [--profile]

A GET-like call sends a small message and gets the order, a POST-like one sends and gets it. "wire" calls the wire
alone, "client" a typed client with deadlines, request ids, retry budget and counters.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import pstats
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from messages import Order, OrderQuery, order
from polywire.channel import Channel, Endpoints
from polywire.client import client_for
from polywire.contract import Contract, rpc, service_of
from polywire.discovery import StaticResolver
from polywire.net.listener import Listener
from polywire.net.loop import run
from polywire.net.pool import Pool
from polywire.services import Services
from polywire.wire.grpc.client import GrpcWire
from polywire.wire.grpc.server import GrpcServer
from polywire.wire.request_id import new_request_id
from polywire.wire.seam import Outgoing

ORDER = order()
STREAM_LENGTH = 1000
ROUNDS = 10


class Orders(Contract, package="bench.grpc.v1"):
    @rpc(idempotent=True, timeout=5)
    async def get(self, query: OrderQuery) -> Order:
        raise NotImplementedError

    @rpc(timeout=5)
    async def put(self, order: Order) -> Order:
        raise NotImplementedError

    @rpc
    def watch(self, query: OrderQuery) -> AsyncIterator[Order]:
        raise NotImplementedError


class OrderService(Orders):
    async def get(self, query: OrderQuery) -> Order:
        return ORDER

    async def put(self, order: Order) -> Order:
        return order

    async def watch(self, query: OrderQuery) -> AsyncIterator[Order]:
        for _ in range(STREAM_LENGTH):
            yield ORDER


async def measure(call: Callable[[], Awaitable[object]], in_flight: int, seconds: float) -> float:
    """µs of CPU per call: the best of several rounds, as a busy machine only ever adds to it."""
    calls = 0
    end = 0.0

    async def caller() -> None:
        nonlocal calls
        while time.perf_counter() < end:
            for _ in range(20):
                await call()
            calls += 20

    async def load(duration: float) -> None:
        nonlocal end, calls
        calls = 0
        end = time.perf_counter() + duration
        await asyncio.gather(*(caller() for _ in range(in_flight)))

    rounds = []
    for _ in range(ROUNDS):
        started = time.process_time()
        await load(seconds / ROUNDS)
        rounds.append((time.process_time() - started) / calls * 1e6)
    return min(rounds)


async def main(seconds: float, in_flight: int, profile: bool) -> None:
    services = Services([OrderService()])
    listener = Listener(GrpcServer(services))
    address = await listener.start("127.0.0.1:0")
    wire = GrpcWire(Pool(address))
    get = service_of(Orders).rpcs["get"]
    put = service_of(Orders).rpcs["put"]
    watch = service_of(Orders).rpcs["watch"]
    client = client_for(Orders, Channel("orders", Endpoints(StaticResolver([address]), lambda at: GrpcWire(Pool(at)))))
    query = OrderQuery(order_id="o-1")

    def outgoing(what: object) -> Outgoing:
        return Outgoing(what, deadline=time.monotonic() + 5, timeout=5.0, request_id=new_request_id())  # type: ignore[arg-type]  # as good as one

    async def stream() -> None:
        answers = await wire.stream(outgoing(watch))
        await answers.send(query)
        answers.end_requests()
        with suppress(StopAsyncIteration):
            while True:
                await answers.receive()

    async def codec() -> None:
        wire.encode(put, ORDER)

    cases: dict[str, tuple[Callable[[], Awaitable[object]], int]] = {
        "encoding the order": (codec, 1),
        "wire, GET-like": (lambda: wire.unary(outgoing(get), wire.encode(get, query)), 1),
        "wire, POST-like": (lambda: wire.unary(outgoing(put), wire.encode(put, ORDER)), 1),
        "client, GET-like": (lambda: client.get(query), 1),
        "client, POST-like": (lambda: client.put(ORDER), 1),
        "wire, server stream, per message": (stream, STREAM_LENGTH),
    }
    for name, (call, messages) in cases.items():
        profiler = cProfile.Profile()
        if profile:
            profiler.enable()
        micros = await measure(call, in_flight if messages == 1 else 1, seconds)
        if profile:
            profiler.disable()
        print(f"{name:36} {micros / messages:8.2f} µs")
        if profile:
            pstats.Stats(profiler).sort_stats("tottime").print_stats(32)
    await wire.close()
    listener.close()
    await services.finish(0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--in-flight", type=int, default=32)
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    run(main(arguments.seconds, arguments.in_flight, arguments.profile))
