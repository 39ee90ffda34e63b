"""A power cut at any moment loses nothing that was confirmed, and breaks no file."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import apsw
import pytest
from sqlite_disk_support import Disk

from polywire.bus.backend.sqlite import SqliteQueue
from polywire.bus.backend.sqlite_consumer import SqliteConsumer
from polywire.bus.backend.sqlite_file import FileOptions
from polywire.bus.backend.sqlite_log import SqliteLog
from polywire.bus.core import Ack, Bury, Delivery, Envelope, QueueSpec, Settlement, TopicSpec, unpack

RUNS, CUTS = 100, 20
SENDERS, EACH = 8, 6


@dataclass(frozen=True)
class Cut:
    """The state of the disk at one moment, and what had been promised by then."""

    image: dict[str, bytes]
    sent: frozenset[str]
    appended: frozenset[str]
    settling: frozenset[str]
    """Acknowledged, or perhaps just being."""
    buried: frozenset[str]
    once: frozenset[str]
    """Acknowledged before they were started."""


class Ledger:
    """What was promised, and a cut now and then."""

    def __init__(self, disk: Disk, dice: random.Random) -> None:
        self._disk = disk
        self._dice = dice
        self.sent: list[str] = []
        self.appended: list[str] = []
        self.settling: list[str] = []
        self.buried: list[str] = []
        self.once: list[str] = []
        self.cuts: list[Cut] = []
        disk.watch = self._watch

    def _watch(self) -> None:
        if self._dice.random() < 0.12:
            self.cut()

    def cut(self) -> None:
        # The promises first: what is promised while the disk is looked at is not asked for.
        sent, appended = frozenset(self.sent), frozenset(self.appended)
        buried, once = frozenset(self.buried), frozenset(self.once)
        image = self._disk.after_cut(self._dice)
        self.cuts.append(Cut(image, sent, appended, frozenset(self.settling), buried, once))


async def use(path: Path, seed: int, durable: str) -> list[Cut]:
    """Send, append, acknowledge and bury, all at once; the cuts that happened on the way."""
    dice = random.Random(seed)
    disk = Disk()
    options = FileOptions(vfs=disk.name, exclusive=True, durable=durable)
    url = f"sqlite:{path / 'bus.db'}"
    queue, log = SqliteQueue(url, options=options), SqliteLog(url, options=options)
    await queue.start()
    await log.start()
    await queue.declare([QueueSpec(name="work"), QueueSpec(name="keyed", keyed=True)])
    await log.declare([TopicSpec(name="orders", partitions=2)])
    queue.file.writer._next_checkpoint = 40
    ledger = Ledger(disk, dice)
    await asyncio.gather(receive(queue, ledger), *(send(queue, log, ledger, n) for n in range(SENDERS)))
    ledger.cut()
    await queue.close()
    await log.close()
    disk.close()
    return dice.sample(ledger.cuts, min(CUTS, len(ledger.cuts)))


async def send(queue: SqliteQueue, log: SqliteLog, ledger: Ledger, n: int) -> None:
    for i in range(EACH):
        envelope = Envelope(f"{n}-{i}", "t", b"x" * 300, key=f"k{n}")
        name = "keyed" if n % 2 else "work"
        assert await queue.send(name, [envelope]) == [None]
        ledger.sent.append(f"{name}/{envelope.id}")
        assert await log.append("orders", [envelope]) == [None]
        ledger.appended.append(envelope.id)


async def receive(queue: SqliteQueue, ledger: Ledger) -> None:
    consumer = await queue.consumer("work", limit=4)
    left = SENDERS // 2 * EACH
    while left:
        for delivery in await consumer.receive(2):
            await settle(consumer, delivery, ledger)
            left -= 1
    await consumer.close()


async def settle(consumer: SqliteConsumer, delivery: Delivery, ledger: Ledger) -> None:
    name, number = f"work/{delivery.envelope.id}", int(delivery.envelope.id[2:])
    ledger.settling.append(name)
    if number % 3 == 0:
        await consumer.settle([Settlement(delivery, Ack())])
        ledger.once.append(name)
        return
    await consumer.settle([], [delivery])
    if number % 3 == 1:
        await consumer.settle([Settlement(delivery, Ack())])
    else:
        await consumer.settle([Settlement(delivery, Bury("rejected", "no"))])
        ledger.buried.append(name)


def missing(cut: Cut) -> list[str]:
    """What is wrong after the power came back."""
    disk = Disk(cut.image)
    path = next(name for name in cut.image if name.endswith("bus.db"))
    connection = apsw.Connection(path, vfs=disk.name)
    try:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        assert connection.pragma("integrity_check") == "ok"
        waiting = names(connection, "SELECT q.name || '/' || m.id FROM message m JOIN queue q ON q.n = m.queue")
        dead = names(connection, "SELECT q.name || '/' || d.id FROM dead d JOIN queue q ON q.n = d.queue")
        logged = {unpack(bytes(data)).id for (data,) in connection.execute("SELECT envelope FROM event")}
        lost = [f"{name} sent" for name in cut.sent - cut.settling - waiting]
        lost += [f"{name} buried" for name in cut.buried - dead]
        lost += [f"{name} again" for name in cut.once & waiting]
        lost += [f"{name} neither waits nor is done" for name in (cut.sent - waiting - dead) - cut.settling]
        lost += [f"{name} appended" for name in cut.appended - logged]
        return lost + scattered(connection)
    finally:
        connection.close()
        disk.close()


def names(connection: apsw.Connection, sql: str) -> frozenset[str]:
    return frozenset(str(name) for (name,) in connection.execute(sql))


def scattered(connection: apsw.Connection) -> list[str]:
    """Each message is in exactly one place, but for those that wait for their key."""
    rows = connection.execute(
        """SELECT m.id, m.key, (SELECT count(*) FROM ready r WHERE r.pos = m.pos)
        + (SELECT count(*) FROM held h WHERE h.pos = m.pos) + (SELECT count(*) FROM delayed d WHERE d.pos = m.pos),
        EXISTS (SELECT 1 FROM message e WHERE e.queue = m.queue AND e.key = m.key AND e.pos < m.pos) FROM message m"""
    )
    return [f"{name} is in {places} places" for name, key, places, behind in rows if places != (0 if behind else 1)]


def run(path: Path, seeds: Sequence[int], durable: str) -> tuple[int, list[str]]:
    """How many cuts, and all that they lost."""
    cuts = [cut for seed in seeds for cut in asyncio.run(use(path, seed, durable))]
    return len(cuts), [line for cut in cuts for line in missing(cut)]


def test_a_hundred_power_cuts_lose_nothing_confirmed(tmp_path: Path) -> None:
    cuts, lost = run(tmp_path, range(5), "FULL")
    assert lost == []
    assert cuts >= 80


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_thousand_power_cuts_lose_nothing_confirmed(tmp_path: Path) -> None:
    cuts, lost = run(tmp_path, range(5, 5 + RUNS), "FULL")
    assert lost == []
    assert cuts >= 2000


def test_without_waiting_for_the_disk_the_same_cuts_do_lose_messages(tmp_path: Path) -> None:
    """The control: these tests would notice. Which cut loses what is a matter of luck; most lose something."""
    kinds = {"sent", "appended", "buried", "again"}
    for seed in range(100):
        _, lost = run(tmp_path, [seed], "NORMAL")
        kinds -= {line.rpartition(" ")[2] for line in lost}
        if not kinds:
            return
    raise AssertionError(f"nothing of these kinds was lost: {kinds}")
