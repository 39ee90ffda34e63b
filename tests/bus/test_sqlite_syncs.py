"""How often the disk is waited for between a message's publisher and its handler, with the real consumer."""

from __future__ import annotations

import asyncio
from pathlib import Path

from consumer_support import GROUP, JOB, PAID, Job, handling
from sqlite_disk_support import Disk

from polywire.bus.backend.sqlite import SqliteQueue
from polywire.bus.backend.sqlite_file import FileOptions
from polywire.bus.backend.sqlite_log import SqliteLog
from polywire.bus.consumer import LogRunner, QueueRunner
from polywire.bus.core import Envelope, GroupSpec, QueueSpec, TopicSpec, new_id

MESSAGES = 20


class Syncing:
    """A handler that notes how often the disk had been waited for when it was started."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self.seen: asyncio.Queue[int] = asyncio.Queue()

    async def handle(self, job: Job) -> None:
        self.seen.put_nowait(self._disk.syncs)

    async def syncs_since(self, before: int) -> int:
        async with asyncio.timeout(60):
            return await self.seen.get() - before


def made(type: str) -> Envelope:
    return Envelope(new_id(), type, b'{"n":1}')


async def test_a_task_waits_at_most_twice_for_the_disk(tmp_path: Path) -> None:
    disk = Disk()
    queue = SqliteQueue(f"sqlite:{tmp_path / 'bus.db'}", options=FileOptions(vfs=disk.name, exclusive=True))
    await queue.start()
    await queue.declare([QueueSpec(name="work")])
    syncing = Syncing(disk)
    runner = QueueRunner(queue, "work", [handling(syncing.handle, type=JOB)])
    await runner.start()
    for _ in range(MESSAGES):
        before = disk.syncs
        assert await queue.send("work", [made(JOB)]) == [None]
        assert 1 <= await syncing.syncs_since(before) <= 2
    await runner.stop()
    await queue.close()
    disk.close()


async def test_an_event_waits_at_most_twice_for_the_disk(tmp_path: Path) -> None:
    disk = Disk()
    log = SqliteLog(f"sqlite:{tmp_path / 'bus.db'}", options=FileOptions(vfs=disk.name, exclusive=True))
    await log.start()
    await log.declare([TopicSpec(name="paid", partitions=2)], [GroupSpec(topic="paid", group=GROUP)])
    syncing = Syncing(disk)
    runner = LogRunner(log, ["paid"], GROUP, [handling(syncing.handle, type=PAID)])
    await runner.start()
    for _ in range(MESSAGES):
        before = disk.syncs
        assert await log.append("paid", [made(PAID)]) == [None]
        assert 1 <= await syncing.syncs_since(before) <= 2
    await runner.stop()
    await log.close()
    disk.close()
