"""Processes that share a store, for tests that stop and kill them.

Run as a program: `python store_support.py handle|hold|tick PATH LOG [ARGUMENTS]`. Each writes what it did to a file of
its own, a line at a time.
"""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from polywire.bus.core.inbox import UnderWay, _under_way
from polywire.bus.schedule.slots import EveryTimes
from polywire.bus.schedule.ticking import Firing, Planned, Ticker
from polywire.durable.migrations import Migration
from polywire.durable.slots import StoreSlots
from polywire.durable.store.apsw import SqliteStore
from polywire.errors import AlreadyDone

EFFECTS = (Migration(1, "effects", "CREATE TABLE effect (message TEXT NOT NULL, step BIGINT NOT NULL)"),)
PATIENCE = 30.0


@contextmanager
def process(*arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    """One of them; killed at the end, if it did not end before."""
    started = subprocess.Popen([sys.executable, __file__, *map(str, arguments)])
    try:
        yield started
    finally:
        started.kill()
        started.wait()


def lines(path: Path) -> list[str]:
    """Whole lines only: the last one may be half written by a process that was killed."""
    text = path.read_text() if path.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines()


def wait_for_lines(path: Path, count: int) -> list[str]:
    until = time.monotonic() + PATIENCE
    while len(found := lines(path)) < count:
        assert time.monotonic() < until, f"{len(found)} lines of {count} after {PATIENCE:g} s"
        time.sleep(0.01)
    return found


def open_log(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)


async def handle(path: str, log: str, first: int, last: int) -> None:
    """Handle messages, some of them twice and several at a time, until killed or done."""
    output = open_log(log)
    async with SqliteStore(path, migrations=EFFECTS) as store:
        os.write(output, b"ready\n")
        numbers = [number for number in range(first, last) for _ in range(2)]
        dice = random.Random(os.getpid())
        while numbers:
            size = min(len(numbers), dice.randint(1, 8))
            await asyncio.gather(*(effect(store, f"{number}", dice) for number in numbers[:size]))
            del numbers[:size]
        os.write(output, b"done\n")


async def effect(store: SqliteStore, name: str, dice: random.Random) -> None:
    _under_way.set((UnderWay("group", "source", name),))

    def both(db: object) -> None:
        for step in (1, 2):
            db.execute("INSERT INTO effect VALUES (?, ?)", (name, step))  # type: ignore[attr-defined]  # an apsw one

    try:
        if dice.random() < 0.5:
            await store.run(both)
            return
        async with store.transaction() as tx:
            await tx.execute("INSERT INTO effect VALUES (?, 1)", (name,))
            await asyncio.sleep(dice.random() * 0.001)
            await tx.execute("INSERT INTO effect VALUES (?, 2)", (name,))
    except AlreadyDone:
        pass


async def hold(path: str, log: str) -> None:
    """Stay in a transaction until killed."""
    async with SqliteStore(path) as store, store.transaction(inbox=False) as tx:
        await tx.execute("CREATE TABLE held (x BIGINT)")
        os.write(open_log(log), b"holding\n")
        await asyncio.Event().wait()


async def tick(path: str, log: str, interval: float, seconds: float) -> None:
    """Fire every *interval* seconds into *log*, from a moment that all processes have in common."""
    output = open_log(log)

    async def fire(firing: Firing) -> None:
        os.write(output, f"{firing.slot} {firing.id} {os.getpid()}\n".encode())

    async with SqliteStore(path) as store:
        planned = Planned(name="report", times=EveryTimes(interval), missed="all")
        ticker = Ticker([planned], fire, StoreSlots(store))
        await ticker.start()
        await asyncio.sleep(seconds)
        await ticker.stop()


if __name__ == "__main__":
    what, path, log, *rest = sys.argv[1:]
    if what == "handle":
        asyncio.run(handle(path, log, int(rest[0]), int(rest[1])))
    elif what == "hold":
        asyncio.run(hold(path, log))
    else:
        asyncio.run(tick(path, log, float(rest[0]), float(rest[1])))
