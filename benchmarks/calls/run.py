"""Compare the stacks in one run, alternating, and write the table: `make bench`.

The server is pinned to one core and the client to another. Rounds go over all stacks in turn, so that noise on the
machine meets all of them; the figures are medians over the rounds. CPU is the processes' own (`/proc/PID/stat` for the
server, `process_time` for the client) per call: the figure that a busy machine moves least. Bytes are counted by a
relay between client and server, over 200 calls after a first one, so without connection set-up.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import select
import socket
import statistics
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
STACKS = (
    "polywire gRPC",
    "polywire Connect",
    "polywire REST",
    "polywire in-process",
    "grpcio asyncio",
    "grpcio threads",
    "aiohttp -> FastAPI",
    "httpx -> FastAPI",
    "aiohttp -> raw ASGI",
)
STREAMING = ("polywire gRPC", "polywire Connect", "grpcio asyncio")
TICK = os.sysconf("SC_CLK_TCK")


class StackFailed(Exception):
    """A server or a client of a stack ended before it had a result."""


class Process:
    """A server or client of one stack, on a core of its own."""

    def __init__(self, core: int, *arguments: str) -> None:
        command = [sys.executable, "-m", "benchmarks.calls.worker", *arguments]
        self._popen = subprocess.Popen(
            ["taskset", "-c", str(core), *command],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def event(self) -> dict[str, Any]:
        assert self._popen.stdout is not None
        line = self._popen.stdout.readline()
        if not line:
            raise StackFailed(f"{self._popen.args} ended with {self._popen.wait()}")
        event: dict[str, Any] = json.loads(line)
        return event

    def go(self) -> None:
        assert self._popen.stdin is not None
        self._popen.stdin.write("\n")
        self._popen.stdin.flush()

    @property
    def cpu(self) -> float:
        """Seconds of CPU so far."""
        fields = Path(f"/proc/{self._popen.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    @property
    def peak_memory(self) -> int:
        for line in Path(f"/proc/{self._popen.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return 0

    def stop(self) -> None:
        self._popen.kill()
        self._popen.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(port: int, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with socket.socket() as probe:
            probe.settimeout(0.5)
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise SystemExit(f"no server on port {port} after {seconds:g} s")


class Relay(threading.Thread):
    """Hands bytes on between a client and a server, and counts them."""

    def __init__(self, target: int) -> None:
        super().__init__(daemon=True)
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.count = 0

    def run(self) -> None:
        pairs: dict[socket.socket, socket.socket] = {}
        while True:
            readable, _, _ = select.select([self._listener, *pairs], [], [], 30)
            for ready in readable:
                if ready is self._listener:
                    near, _ = self._listener.accept()
                    far = socket.create_connection(("127.0.0.1", self._target))
                    pairs[near], pairs[far] = far, near
                elif data := ready.recv(1 << 16):
                    self.count += len(data)
                    pairs[ready].sendall(data)
                else:
                    other = pairs.pop(ready)
                    pairs.pop(other, None)
                    ready.close()
                    other.close()


def measure(stack: str, kind: str, in_flight: int, seconds: float) -> dict[str, Any]:
    local = stack == "polywire in-process"
    port = free_port()
    server = None if local else Process(0, "server", stack, str(port))
    if server is not None:
        wait_for(port)
    options = ("--kind", kind, "--in-flight", str(in_flight), "--seconds", str(seconds))
    client = Process(1, "client", stack, str(port), *options)
    try:
        client.event()
        before = server.cpu if server is not None else 0.0
        client.go()
        result = client.event()
        spent = (server.cpu if server is not None else 0.0) - before
        count = result["count"]
        row = {
            "stack": stack,
            "kind": kind,
            "in_flight": in_flight,
            "per_second": count / result["seconds"],
            "client_us": result["client_cpu"] / count * 1e6,
            "server_us": spent / count * 1e6,
            "client_mb": result["client_rss"] / 1e6,
            "server_mb": (server.peak_memory if server is not None else 0) / 1e6,
        }
        row |= {name: result[name] * 1e3 for name in ("p50", "p95", "p99") if name in result}
        return row
    finally:
        client.stop()
        if server is not None:
            server.stop()


def wire_bytes(stack: str, kind: str, count: int = 200) -> float | None:
    """Bytes per call in both directions, set-up excluded."""
    if stack == "polywire in-process":
        return None
    port = free_port()
    server = Process(0, "server", stack, str(port))
    try:
        wait_for(port)
        totals = []
        for calls in (1, 1 + count):
            relay = Relay(port)
            relay.start()
            client = Process(1, "client", stack, str(relay.port), "--kind", kind, "--count", str(calls))
            client.event()
            client.stop()
            totals.append(relay.count)
        return (totals[1] - totals[0]) / count
    finally:
        server.stop()


def medians(rows: list[dict[str, Any]]) -> dict[str, Any]:
    middle = {key: value for key, value in rows[0].items() if isinstance(value, str | int)}
    for key, value in rows[0].items():
        if isinstance(value, float):
            middle[key] = statistics.median(row[key] for row in rows)
    return middle


def table(rows: list[dict[str, Any]]) -> str:
    lines = []
    cases = sorted({(row["kind"], row["in_flight"]) for row in rows})
    for kind, in_flight in cases:
        lines.append(f"\n### {kind}, {in_flight} in flight\n")
        lines.append(
            "| stack | per second | p50 / p95 / p99 ms | client + server µs CPU | bytes | client / server MB |"
        )
        lines.append("| --- | --- | --- | --- | --- | --- |")
        for row in rows:
            if (row["kind"], row["in_flight"]) != (kind, in_flight):
                continue
            times = " / ".join(f"{row[p]:.2f}" for p in ("p50", "p95", "p99")) if "p50" in row else ""
            size = f"{row['bytes']:.0f}" if row.get("bytes") else ""
            rounds_lost = f" (failed in {row['failed']} rounds)" if row.get("failed") else ""
            lines.append(
                f"| {row['stack']}{rounds_lost} | {row['per_second']:,.0f} | {times} | {row['client_us']:.1f} + "
                f"{row['server_us']:.1f} = {row['client_us'] + row['server_us']:.1f} | {size} | "
                f"{row['client_mb']:.0f} / {row['server_mb']:.0f} |"
            )
    return "\n".join(lines)


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    stacks = [name for name in STACKS if not options.only or any(part in name for part in options.only)]
    cases = [(kind, n) for kind in ("get", "post") for n in options.in_flight] + [("stream", 1)]
    found: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    failed: dict[tuple[str, str, int], int] = {}
    for turn in range(options.rounds):
        for kind, in_flight in cases:
            for stack in stacks:
                if kind == "stream" and stack not in STREAMING:
                    continue
                try:
                    row = measure(stack, kind, in_flight, options.seconds)
                except StackFailed as error:
                    print(f"round {turn + 1}  {kind:6} {in_flight:3}  {stack:22} FAILED: {error}", flush=True)
                    failed[stack, kind, in_flight] = failed.get((stack, kind, in_flight), 0) + 1
                    continue
                found.setdefault((stack, kind, in_flight), []).append(row)
                print(
                    f"round {turn + 1}  {kind:6} {in_flight:3}  {stack:22} {row['per_second']:9,.0f}/s  "
                    f"{row['client_us']:6.1f} + {row['server_us']:6.1f} µs",
                    flush=True,
                )
    rows = [medians(each) | {"failed": failed.get(case, 0)} for case, each in found.items()]
    if not options.no_bytes:
        sizes = {(stack, kind): wire_bytes(stack, kind) for stack in stacks for kind in ("get", "post")}
        for row in rows:
            row["bytes"] = sizes.get((row["stack"], row["kind"]))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--in-flight", type=int, nargs="+", default=[1, 32, 256])
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--no-bytes", action="store_true")
    parser.add_argument("--save", action="store_true", help="store the results under benchmarks/results")
    options = parser.parse_args()
    rows = run(options)
    text = table(rows)
    print(text)
    if options.save:
        RESULTS.mkdir(exist_ok=True)
        about = {
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "commit": subprocess.run(
                ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
            ).stdout.strip(),
            "python": platform.python_version(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "rounds": options.rounds,
            "seconds": options.seconds,
        }
        (RESULTS / "calls.json").write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
        (RESULTS / "calls.md").write_text(f"Measured by `make bench`: {json.dumps(about)}\n{text}\n")


if __name__ == "__main__":
    main()
