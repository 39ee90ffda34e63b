"""CPU per call of the HTTP wires, each side in a process of its own: REST GET and POST, and Connect with protobuf.

    python -m benchmarks.http_wire [--calls 20000] [--profile server|client] [CASE ...]

A case is `rest-get`, `rest-post`, `connect-get`, `connect-post` or `rest-head` (GET with an id that never repeats).
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import itertools
import os
import pstats
import signal
import sys
import time
from collections.abc import Awaitable, Callable

from benchmarks.calls.contract import Orders
from benchmarks.messages import Order, OrderQuery, order

from polywire.channel import Channel, Endpoints
from polywire.client import client_for
from polywire.discovery import StaticResolver
from polywire.net.listener import Listener
from polywire.net.loop import run
from polywire.net.pool import Pool
from polywire.services import Services
from polywire.telemetry.access_log import AccessLog
from polywire.wire.http import ConnectWire, HttpApplication, RestWire
from polywire.wire.seam import EndpointWire

ORDER = order()
IN_FLIGHT = 32
_ids = itertools.count()


class Service(Orders):
    async def get(self, query: OrderQuery) -> Order:
        return ORDER

    async def put(self, order: Order) -> Order:
        return order


def _rest(address: str) -> EndpointWire:
    return RestWire(Pool(address, version="1.1"), streaming=Pool(address))


def _connect(address: str) -> EndpointWire:
    return ConnectWire(Pool(address))


async def _get(client: Orders) -> None:
    await client.get(OrderQuery(order_id=ORDER.id))


async def _get_another(client: Orders) -> None:
    await client.get(OrderQuery(order_id=f"ord_{next(_ids)}"))


async def _post(client: Orders) -> None:
    await client.put(ORDER)


CASES: dict[str, tuple[Callable[[str], EndpointWire], Callable[[Orders], Awaitable[None]]]] = {
    "rest-get": (_rest, _get),
    "rest-get-other": (_rest, _get_another),
    "rest-post": (_rest, _post),
    "connect-get": (_connect, _get),
    "connect-post": (_connect, _post),
}


def serve(port: int, to_parent: int, *, profile: bool) -> None:
    """The server's process: writes its CPU seconds for each line it is asked for."""

    async def main() -> None:
        null = open(os.devnull, "w")  # noqa: SIM115, ASYNC230 - open as long as the process
        log = AccessLog(null.write)
        listener = Listener(HttpApplication(Services([Service()], access_log=log)))
        address = await listener.start(f"127.0.0.1:{port}")
        os.write(to_parent, f"{address}\n".encode())
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, lambda: os.write(to_parent, f"{time.process_time()}\n".encode()))
        stop = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        await stop.wait()
        listener.close()

    _maybe_profiled(lambda: run(main()), profile=profile)


def _maybe_profiled(work: Callable[[], None], *, profile: bool) -> None:
    if not profile:
        work()
        return
    profiler = cProfile.Profile()
    profiler.runcall(work)
    pstats.Stats(profiler, stream=sys.stdout).sort_stats("tottime").print_stats(35)


async def load(case: str, address: str, calls: int, server: int, from_server: int) -> tuple[float, float, float]:
    """Seconds of CPU of the client and of the server, and of the clock, for *calls* calls."""
    open_wire, call = CASES[case]
    channel = Channel("bench", Endpoints(StaticResolver([address]), open_wire))
    client = client_for(Orders, channel)

    async def caller(count: int) -> None:
        for _ in range(count):
            await call(client)

    def server_cpu() -> float:
        os.kill(server, signal.SIGUSR1)
        return float(os.read(from_server, 100))

    await asyncio.gather(*(caller(50) for _ in range(IN_FLIGHT)))
    before, cpu, clock = server_cpu(), time.process_time(), time.perf_counter()
    await asyncio.gather(*(caller(calls // IN_FLIGHT) for _ in range(IN_FLIGHT)))
    result = time.process_time() - cpu, server_cpu() - before, time.perf_counter() - clock
    await channel.close()
    return result


def measure(case: str, calls: int, profile: str) -> None:
    from_server, to_parent = os.pipe()
    child = os.fork()
    if child == 0:
        serve(0, to_parent, profile=profile == "server")
        sys.stdout.flush()
        os._exit(0)
    address = os.read(from_server, 100).decode().strip()
    results: list[tuple[float, float, float]] = []
    _maybe_profiled(
        lambda: results.append(run(load(case, address, calls, child, from_server))), profile=profile == "client"
    )
    os.kill(child, signal.SIGTERM)
    os.waitpid(child, 0)
    ours, theirs, took = (1e6 * seconds / calls for seconds in results[0])
    both = ours + theirs
    print(f"{case:15} client {ours:6.2f} us  server {theirs:6.2f} us  both {both:6.2f} us  {1e6 / took:8.0f}/s")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="*", default=list(CASES))
    parser.add_argument("--calls", type=int, default=20_000)
    parser.add_argument("--profile", default="", choices=["", "server", "client"])
    options = parser.parse_args()
    for case in options.cases:
        measure(case, options.calls, options.profile)


if __name__ == "__main__":
    main()
