"""Compare the stacks in one run, alternating, and write the tables: `make bench-bus`.

Rounds go over all stacks in turn, so that noise on the machine meets all of them; the figures are medians over the
rounds. Each side is measured alone: one process sends for some seconds into a fresh queue or topic, another then
handles what is there. CPU is the process's own, all threads, per message. Brokers have the first core and workers the
second; with a file, and where latency is measured, workers have both. Growth is the same beside a backlog and in an
empty queue of the same kind, alternating.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.bus.goals import share_of
from benchmarks.bus.pile import pile_up
from benchmarks.bus.stacks import STACKS, Stack
from benchmarks.bus.tables import FIGURES, LATENCY_RATE, RESULTS, Row, tables, write_document
from servers import find
from servers.base import Server

ROOT = Path(__file__).resolve().parents[2]
BROKER_CORE, WORKER_CORE = "0", "1"
WORK = 0.001
"""Seconds that a task of the second table takes."""
MEMORY = "polywire, memory"
SHAPES = ("hot", "delayed", "low")
"""Of backlogs in a file; brokers know one."""
SETTLE = 1.0
"""Seconds after which a client that has a backlog in front of it has fetched what it fetches ahead."""
GIVE_UP = 120.0
"""Seconds for one process to say what it has to say."""

LIBRARIES = ("apsw", "celery", "confluent-kafka", "faststream", "huey", "pika", "uvloop")


class StackFailed(Exception):
    """A process of a stack ended, or said nothing, before it had a result."""


class Worker:
    """One process of `worker.py`."""

    def __init__(self, cores: str, role: str, stack: str, **options: Any) -> None:
        named = [f"--{name}={value}" for name, value in options.items() if value is not True]
        flags = [f"--{name}" for name, value in options.items() if value is True]
        command = ["taskset", "-c", cores, sys.executable, "-m", "benchmarks.bus.worker", role, stack, *named, *flags]
        self._popen = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        self._errors = threading.Thread(target=self._read_errors, daemon=True)
        self._errors.start()
        self._last_error = ""

    def _read_errors(self) -> None:
        assert self._popen.stderr is not None
        for line in self._popen.stderr:
            self._last_error = line.strip() or self._last_error

    def told(self, event: str) -> Row:
        """The next report of that name."""
        watchdog = threading.Timer(GIVE_UP, self._popen.kill)
        watchdog.start()
        assert self._popen.stdout is not None
        try:
            for line in self._popen.stdout:
                if line.startswith("{") and (found := json.loads(line))["event"] == event:
                    return dict(found)
        finally:
            watchdog.cancel()
        self._errors.join(1.0)
        raise StackFailed(f"ended with {self._popen.wait()} instead of {event!r}: {self._last_error}")

    def end(self) -> None:
        """As a worker does when it is told to: it gives back what it has not begun."""
        self._popen.terminate()
        try:
            status = self._popen.wait(GIVE_UP)
        except subprocess.TimeoutExpired:
            raise StackFailed("did not end when it was told to") from None
        if status:
            raise StackFailed(f"ended with {status}: {self._last_error}")

    def stop(self) -> None:
        self._popen.kill()
        self._popen.wait()
        self._errors.join(1.0)
        for stream in (self._popen.stdout, self._popen.stderr):
            if stream is not None:
                stream.close()


@contextmanager
def worker(stack: str, role: str, **options: Any) -> Iterator[Worker]:
    """Alone on its core where it is the only one beside a broker."""
    alone = (
        stack in STACKS
        and STACKS[stack].server != "sqlite"
        and role in ("send", "receive")
        and "latency" not in options
    )
    started = Worker(WORKER_CORE if alone else "0,1", role, stack, **options)
    try:
        yield started
    finally:
        started.stop()


class Machine:
    """The servers of a run, and fresh places on them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count(1)
        self._servers: dict[str, tuple[Server, str]] = {}

    def start(self, name: str) -> None:
        server = find(name)()
        # What it starts gets the cores that we have.
        os.sched_setaffinity(0, {int(BROKER_CORE)})
        self._servers[name] = server, server.start(self._folder / name)

    def place(self, stack: Stack) -> dict[str, str]:
        number = next(self._numbers)
        if stack.server == "sqlite":
            return {"url": f"sqlite:{self._folder / f'bus-{number}.db'}", "place": "bench"}
        return {"url": self._servers[stack.server][1], "place": f"bench-{number}"}

    def forget(self, place: dict[str, str]) -> None:
        """The files of one that nobody needs any more."""
        if place["url"].startswith("sqlite:"):
            name = Path(place["url"].removeprefix("sqlite:")).name
            for file in self._folder.glob(f"{name}*"):
                file.unlink()

    def stop(self) -> None:
        for server, _ in self._servers.values():
            server.stop()


# ---- measuring -------------------------------------------------------------------------------------------------------


def side(name: str, told: Row) -> Row:
    return {f"{name}_per_second": told["count"] / told["seconds"], f"{name}_us": told["cpu"] / told["count"] * 1e6}


def declared(stack: str, **place: Any) -> None:
    """Let the place be there: what a group has no queue for is nowhere."""
    with worker(stack, "send-count", **place, count=1) as sender:
        sender.told("sent")


def flow(machine: Machine, stack: str, seconds: float) -> Row:
    """One process sends, another handles all of it."""
    if stack == MEMORY:
        with worker(stack, "memory", seconds=seconds) as alone:
            return side("send", alone.told("sent")) | side("receive", alone.told("handled"))
    place = machine.place(STACKS[stack])
    try:
        return through(stack, seconds, **place)
    finally:
        machine.forget(place)


def through(stack: str, seconds: float, behind: int = 0, *, again: bool = False, **place: Any) -> Row:
    """Where it has to take *behind* messages at most that are older, it is measured once it has some.

    *again*: whether the place will be used once more. Whoever comes after a worker that was killed pays for that.
    """
    with worker(stack, "send", **place, seconds=seconds) as sender:
        sent = sender.told("sent")
    options = {"count": behind, "settle": SETTLE} if behind else {"count": sent["total"]}
    with worker(stack, "receive", **place, **options, seconds=seconds) as handler:
        handled = handler.told("handled")
        if again:
            handler.end()
    return side("send", sent) | side("receive", handled)


def work(machine: Machine, stack: str, seconds: float) -> Row:
    """Tasks that take a millisecond."""
    place = machine.place(STACKS[stack])
    try:
        with worker(stack, "send", **place, seconds=seconds) as sender:
            total = sender.told("sent")["total"]
        with worker(stack, "receive", **place, count=total, seconds=seconds, pause=WORK) as handler:
            told = handler.told("handled")
        return {"per_second": told["count"] / told["seconds"], "us": told["cpu"] / told["count"] * 1e6}
    finally:
        machine.forget(place)


def latency(machine: Machine, stack: str, seconds: float) -> Row:
    """Milliseconds from just before sending to the start of the handler."""
    place = machine.place(STACKS[stack])
    total = int(LATENCY_RATE * seconds)
    declared(stack, **place)
    try:
        with worker(stack, "receive", **place, count=total, seconds=10 * seconds, latency=True) as handler:
            handler.told("ready")
            with worker(stack, "send-evenly", **place, seconds=seconds, rate=LATENCY_RATE) as sender:
                sender.told("sent")
                told = handler.told("handled")
        return {name: told[name] * 1e3 for name in ("p50", "p95", "p99")}
    finally:
        machine.forget(place)


def syncs(folder: Path) -> list[Row]:
    rows = []
    for senders, count in ((1, 300), (100, 10_000)):
        url = f"sqlite:{folder / f'syncs-{senders}.db'}"
        with worker("polywire, sqlite", "syncs", url=url, senders=senders, count=count) as counting:
            rows.append({"senders": senders, "per_message": counting.told("counted")["syncs"] / count})
    return rows


def growth(machine: Machine, stack: str, shape: str, count: int, rounds: int, seconds: float) -> Row:
    """The same beside *count* messages and in an empty place, alternating; both places have the same past."""
    empty, full = (machine.place(STACKS[stack]) | {"shape": shape} for _ in range(2))
    # Whoever holds the one key of the hot shape is another consumer, which is not free either: both have one.
    pile_up(stack, 1 if shape == "hot" else 0, **empty)
    pile_up(stack, count, **full)
    behind = count // rounds if shape == "plain" else 0
    found: dict[str, list[Row]] = {"full": [], "empty": []}
    try:
        with held_up(stack, **empty), held_up(stack, **full):
            for number in range(rounds):
                # Neither of them is always the one that comes after the other.
                for name in ("empty", "full") if number % 2 else ("full", "empty"):
                    place, older = (full, behind) if name == "full" else (empty, 0)
                    found[name].append(through(stack, seconds, older, again=True, **place))
    finally:
        machine.forget(empty)
        machine.forget(full)
    row: Row = {"stack": stack, "server": STACKS[stack].server, "shape": shape, "count": count}
    for name, rows in found.items():
        row |= {f"{name}_{key}": value for key, value in medians(rows).items()}
    return row


@contextmanager
def held_up(stack: str, **place: Any) -> Iterator[None]:
    """Of a backlog under one key, another process holds the first message, so that nobody gets the others."""
    if place["shape"] != "hot":
        yield
        return
    with worker(stack, "hold", **place) as holding:
        holding.told("holds")
        yield


def medians(rows: list[Row]) -> Row:
    return {key: median(row[key] for row in rows) for key in rows[0]}


# ---- a run -----------------------------------------------------------------------------------------------------------


def run(options: argparse.Namespace, folder: Path) -> dict[str, list[Row]]:
    stacks = [name for name in (MEMORY, *STACKS) if not options.only or any(part in name for part in options.only)]
    stacks = without_missing(stacks)
    machine = Machine(folder)
    try:
        for server in dict.fromkeys(STACKS[stack].server for stack in stacks if stack != MEMORY):
            if server != "sqlite":
                machine.start(server)
        full = [name for name in stacks if name != MEMORY and not STACKS[name].raw]
        tasks = [name for name in full if STACKS[name].kind == "tasks"]
        results = {
            "flow": rounds_of("flow", stacks, options.rounds, lambda stack: flow(machine, stack, options.seconds)),
            "work": rounds_of("work", tasks, options.rounds, lambda stack: work(machine, stack, options.seconds)),
            "latency": rounds_of("latency", full, 1, lambda stack: latency(machine, stack, 2 * options.seconds)),
            "syncs": syncs(folder) if "polywire, sqlite" in stacks else [],
            "backlog": [],
        }
        if options.backlog:
            results["backlog"] = grown(machine, stacks, options)
        return results
    finally:
        machine.stop()


def without_missing(stacks: list[str]) -> list[str]:
    """Those whose server is installed."""
    needed = {STACKS[stack].server for stack in stacks if stack != MEMORY} - {"sqlite", "memory"}
    missing = {server: what for server in needed if (what := find(server).missing()) is not None}
    for server, what in missing.items():
        print(f"Without {server}: {what} is missing. Install it with `python3 -m servers install {server}`.")
    return [stack for stack in stacks if stack == MEMORY or STACKS[stack].server not in missing]


def rounds_of(table: str, stacks: list[str], rounds: int, measure: Any) -> list[Row]:
    """The medians, a row per stack. A stack that fails is said to, and does not end the run."""
    found: dict[str, list[Row]] = {stack: [] for stack in stacks}
    failed = dict.fromkeys(stacks, 0)
    for number, stack in itertools.product(range(rounds), stacks):
        try:
            row = measure(stack)
        except StackFailed as error:
            failed[stack] += 1
            print(f"{table} {number + 1}  {stack:28} FAILED: {error}", flush=True)
            continue
        found[stack].append(row)
        shown = "  ".join(f"{key} {value:,.1f}" for key, value in row.items())
        print(f"{table} {number + 1}  {stack:28} {shown}", flush=True)
    return [about(stack) | medians(rows) | {"failed": failed[stack]} for stack, rows in found.items() if rows]


def about(stack: str) -> Row:
    known = STACKS.get(stack)
    return {"stack": stack, "kind": known.kind if known else "tasks", "server": known.server if known else "memory"}


def grown(machine: Machine, stacks: list[str], options: argparse.Namespace) -> list[Row]:
    cases = [("polywire, sqlite", shape) for shape in SHAPES]
    cases += [("polywire, RabbitMQ", "plain"), ("polywire, Kafka", "plain")]
    rows = []
    for stack, shape in cases:
        if stack in stacks:
            try:
                # Two figures are compared that are nearly the same, and each is uncertain by a tenth.
                row = growth(machine, stack, shape, options.backlog, 2 * options.rounds, options.seconds)
            except StackFailed as error:
                print(f"backlog   {stack:28} {shape} FAILED: {error}", flush=True)
                continue
            rows.append(row)
            shares = "  ".join(f"{s} {f} {share_of(row, s, f):.2f}" for s in ("send", "receive") for f in FIGURES)
            print(f"backlog   {stack:28} {shape:8} {shares}", flush=True)
    return rows


# ---- what is kept ----------------------------------------------------------------------------------------------------


def save(results: dict[str, list[Row]], options: argparse.Namespace, took: float, load: float) -> None:
    made: Row = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
        ).stdout.strip(),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "libraries": {name: version(name) for name in LIBRARIES},
        "rounds": options.rounds,
        "seconds": options.seconds,
        "took": round(took),
        "load": round(load, 1),
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"about": made, **results}, indent=1) + "\n")
    write_document()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.5, help="for which each side of a stack is measured")
    parser.add_argument("--only", nargs="*", default=[], help="stacks whose name has one of these in it")
    parser.add_argument("--backlog", type=int, default=1_000_000, help="messages; 0 leaves that part out")
    parser.add_argument("--folder", help="on the disk to measure")
    parser.add_argument("--save", action="store_true", help="store the results under benchmarks/results")
    options = parser.parse_args()
    started, load = time.monotonic(), os.getloadavg()[0]
    with TemporaryDirectory(dir=options.folder, prefix="polywire-bench-") as folder:
        results = run(options, Path(folder))
    print(tables(results))
    took = time.monotonic() - started
    print(f"\n{took:.0f} s")
    if options.save:
        save(results, options, took, load)


if __name__ == "__main__":
    main()
