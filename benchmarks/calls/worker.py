"""One process of the benchmark: a server, or a client that loads it. Run by `run.py`."""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import time
from typing import Any

from benchmarks.calls.stacks import STACKS, Calls


async def load(calls: Calls, kind: str, in_flight: int, seconds: float) -> dict[str, Any]:
    """Keep *in_flight* calls going for *seconds*; what they took, in seconds, and the CPU of this process."""
    if kind == "stream":
        return await _load_stream(calls, seconds)
    call = calls.get if kind == "get" else calls.post
    latencies: list[float] = []
    clock = time.perf_counter

    async def caller(until: float) -> None:
        while True:
            before = clock()
            if before >= until:
                return
            await call()
            latencies.append(clock() - before)

    await asyncio.gather(*(caller(clock() + seconds * 0.2) for _ in range(in_flight)))
    latencies.clear()
    print(json.dumps({"event": "warm"}), flush=True)
    await _line_from_stdin()
    started, cpu = clock(), time.process_time()
    await asyncio.gather(*(caller(started + seconds) for _ in range(in_flight)))
    took, spent = clock() - started, time.process_time() - cpu
    latencies.sort()
    count = len(latencies)
    return {
        "count": count,
        "seconds": took,
        "client_cpu": spent,
        **{f"p{p}": latencies[min(count - 1, int(count * p / 100))] for p in (50, 95, 99)},
    }


async def _load_stream(calls: Calls, seconds: float) -> dict[str, Any]:
    assert calls.stream is not None
    await calls.stream(2000)
    print(json.dumps({"event": "warm"}), flush=True)
    await _line_from_stdin()
    started, cpu, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - started < seconds:
        count += await calls.stream(5000)
    return {
        "count": count,
        "seconds": time.perf_counter() - started,
        "client_cpu": time.process_time() - cpu,
    }


async def _line_from_stdin() -> str:
    """The go-ahead of the runner, who reads the server's accounts in between."""
    import sys

    return await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)


async def client(stack: str, port: int, kind: str, in_flight: int, seconds: float, count: int) -> None:
    async with STACKS[stack].connect(port) as calls:
        if count:
            call = calls.get if kind == "get" else calls.post
            for _ in range(count):
                await call()
            print(json.dumps({"event": "done"}), flush=True)
            return
        result = await load(calls, kind, in_flight, seconds)
        result["client_rss"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"event": "result", **result}), flush=True)
        await _line_from_stdin()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=["server", "client"])
    parser.add_argument("stack", choices=list(STACKS))
    parser.add_argument("port", type=int)
    parser.add_argument("--kind", default="get")
    parser.add_argument("--in-flight", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--count", type=int, default=0)
    options = parser.parse_args()
    stack = STACKS[options.stack]
    if options.role == "server":
        stack.serve(options.port)
        return
    work = client(options.stack, options.port, options.kind, options.in_flight, options.seconds, options.count)
    if stack.uvloop:
        import uvloop

        uvloop.run(work)
    else:
        asyncio.run(work)


if __name__ == "__main__":
    main()
