"""What a service answers in time at twice its capacity, with shedding and without: `python benchmarks/overload.py`.

The server is pinned to one core and the client to another, over gRPC on a real socket. Each call waits 20 ms for a
dependency and then takes 5 ms of what there is only one of: the processor, or (`--bound connection`) a connection to a
database, which is what can be measured while the machine is busy with other things. Calls come by chance at a given
rate (an open loop: whoever is not answered does not hold the next one up), have one second, and are not tried again.
Goodput is how many were answered in time, per second of those in which they were sent.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from polywire import CallDefaults, Contract, Message, Server, Shedding, connect, rpc
from polywire.contract import Retry
from polywire.errors import DeadlineExceeded, ResourceExhausted

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
WORK, DEPENDENCY, DEADLINE = 0.005, 0.02, 1.0
NOMINAL = 1 / WORK
SETTLING = 5.0
"""Seconds of each run that do not count: the limit is found in them."""


class Order(Message, package="overload.v1"):
    number: int = 0


class Orders(Contract, package="overload.v1"):
    @rpc(timeout=DEADLINE)
    async def place(self, order: Order) -> Order:
        raise NotImplementedError


class OrderService(Orders):
    def __init__(self, bound: str) -> None:
        self._connection = asyncio.Lock() if bound == "connection" else None

    async def place(self, order: Order) -> Order:
        await asyncio.sleep(DEPENDENCY * random.uniform(0.8, 1.2))
        if self._connection is not None:
            async with self._connection:
                await asyncio.sleep(WORK * random.uniform(0.5, 1.5))
            return order
        until = time.thread_time() + WORK * random.uniform(0.5, 1.5)
        while time.thread_time() < until:
            pass
        return order


async def serve(shedding: bool, bound: str) -> None:
    server = Server([OrderService(bound)], shedding=Shedding(enabled=shedding))
    print(await server.start("127.0.0.1:0"), flush=True)
    while True:
        await asyncio.sleep(1.0)
        limiter = server.services.limiter
        print(f"  limit {limiter.limit if limiter else 'none'}", file=sys.stderr)


async def load(address: str, rate: float, seconds: float) -> dict[str, Any]:
    """What became of the calls sent in *seconds*, after those that do not count."""
    took: list[float] = []
    shed: list[float] = []
    late = 0
    counted = 0

    async def one(client: Orders, number: int, counts: bool) -> None:
        nonlocal late
        began = time.perf_counter()
        try:
            await client.place(Order(number=number))
            if counts:
                took.append(time.perf_counter() - began)
        except ResourceExhausted:
            if counts:
                shed.append(time.perf_counter() - began)
        except DeadlineExceeded:
            late += counts

    defaults = CallDefaults(retry=Retry(attempts=1))
    async with connect(Orders, f"grpc://{address}", defaults=defaults) as client:
        tasks: set[asyncio.Task[None]] = set()
        started = due = time.perf_counter()
        number = 0
        while (now := time.perf_counter()) < started + SETTLING + seconds:
            if due > now:
                await asyncio.sleep(due - now)
            due += random.expovariate(rate)
            number += 1
            counts = now >= started + SETTLING
            counted += counts
            task = asyncio.create_task(one(client, number, counts))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        await asyncio.gather(*tasks)
    took.sort()
    shed.sort()
    return {
        "rate": counted / seconds,
        "goodput": len(took) / seconds,
        "shed": len(shed) / seconds,
        "late": late / seconds,
        "p50_ms": 1e3 * took[len(took) // 2] if took else None,
        "p99_ms": 1e3 * took[int(len(took) * 0.99)] if took else None,
        "shed_p99_ms": 1e3 * shed[int(len(shed) * 0.99)] if shed else None,
    }


def measure(shedding: bool, rate: float, seconds: float, bound: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--role"]
    options = ["--bound", bound, *(["--shedding"] if shedding else [])]
    server = subprocess.Popen(["taskset", "-c", "0", *command, "server", *options], stdout=subprocess.PIPE, text=True,
                              stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        arguments = ["client", "--address", address, "--rate", str(rate), "--seconds", str(seconds)]
        done = subprocess.run(["taskset", "-c", "1", *command, *arguments], stdout=subprocess.PIPE, check=True)
        found: dict[str, Any] = json.loads(done.stdout)
        return {"shedding": shedding, **found}
    finally:
        server.kill()
        server.wait()


def run(seconds: float, rounds: int, bound: str) -> list[dict[str, Any]]:
    """Every load with and without, in turn, so that noise on the machine meets all of them."""
    rows = []
    for turn in range(rounds):
        for load_of in (0.25, 0.6, 0.8, 1.0, 2.0, 4.0):
            for shedding in (True, False):
                row = {"round": turn, "load": load_of, **measure(shedding, load_of * NOMINAL, seconds, bound)}
                rows.append(row)
                print(
                    f"round {turn + 1}  load {load_of:4}  shedding {shedding!s:5}  "
                    + "  ".join(f"{key} {value:.1f}" for key, value in row.items() if isinstance(value, float)),
                    flush=True,
                )
    return rows


def medians(rows: list[dict[str, Any]], load_of: float, shedding: bool) -> dict[str, float | None]:
    chosen = [row for row in rows if (row["load"], row["shedding"]) == (load_of, shedding)]
    found: dict[str, float | None] = {}
    for key in ("rate", "goodput", "shed", "late", "p50_ms", "p99_ms", "shed_p99_ms"):
        values = [row[key] for row in chosen if row[key] is not None]
        found[key] = statistics.median(values) if values else None
    return found


def table(rows: list[dict[str, Any]]) -> str:
    loads = sorted({row["load"] for row in rows})
    lines = [
        "| load | shedding | sent / s | goodput / s | its least round | turned away / s | late / s | p50 / p99 ms | "
        "told no, p99 ms |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for shedding in (True, False):
        for load_of in loads:
            m = medians(rows, load_of, shedding)
            # A service that is lost in one round of three has a good median.
            least = min(row["goodput"] for row in rows if (row["load"], row["shedding"]) == (load_of, shedding))
            p50, p99, told = (
                f"{m[key]:.0f}" if m[key] is not None else "" for key in ("p50_ms", "p99_ms", "shed_p99_ms")
            )
            lines.append(
                f"| {load_of:g} | {'on' if shedding else 'off'} | {m['rate']:.0f} | {m['goodput']:.0f} | "
                f"{least:.0f} | {m['shed']:.0f} | {m['late']:.0f} | {p50} / {p99} | {told} |"
            )
    lines += ["", *(verdict(rows, loads, shedding) for shedding in (True, False))]
    return "\n".join(lines)


def verdict(rows: list[dict[str, Any]], loads: list[float], shedding: bool) -> str:
    goodput = {load_of: medians(rows, load_of, shedding)["goodput"] or 0.0 for load_of in loads}
    peak = max(goodput.values())
    unloaded = medians(rows, loads[0], shedding)["p99_ms"] or math.inf
    accepted = medians(rows, 2.0, shedding)["p99_ms"] or math.inf
    return (
        f"Shedding {'on' if shedding else 'off'}: at twice the capacity {100 * goodput[2.0] / peak:.0f} % of the peak "
        f"goodput ({goodput[2.0]:.0f} of {peak:.0f} per second); p99 of what was answered {accepted / unloaded:.1f} "
        f"times that without load ({accepted:.0f} to {unloaded:.0f} ms).\n"
    )


def save(rows: list[dict[str, Any]], seconds: float, bound: str) -> None:
    about = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": sys.version.split()[0],
        "machine": f"{os.uname().machine}, {os.cpu_count()} cores",
        "bound": bound,
        "load_average": os.getloadavg()[0],
        "seconds": seconds,
    }
    (RESULTS / "overload.json").write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    write_document()


def write_document() -> None:
    """The tables of what is stored."""
    found = json.loads((RESULTS / "overload.json").read_text())
    about = found["about"]
    text = f"Measured by `python benchmarks/overload.py --bound {about['bound']} --save`: {json.dumps(about)}\n\n"
    (RESULTS / "overload.md").write_text(f"{text}{table(found['rows'])}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--save", action="store_true", help="store the results under benchmarks/results")
    parser.add_argument("--role", choices=["server", "client"])
    parser.add_argument("--bound", choices=["processor", "connection"], default="processor")
    parser.add_argument("--shedding", action="store_true")
    parser.add_argument("--address", default="")
    parser.add_argument("--rate", type=float, default=100.0)
    options = parser.parse_args()
    if options.role == "server":
        asyncio.run(serve(options.shedding, options.bound))
    elif options.role == "client":
        print(json.dumps(asyncio.run(load(options.address, options.rate, options.seconds))))
    else:
        rows = run(options.seconds, options.rounds, options.bound)
        print(table(rows))
        if options.save:
            save(rows, options.seconds, options.bound)


if __name__ == "__main__":
    main()
