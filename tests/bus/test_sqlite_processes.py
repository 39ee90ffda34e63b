"""Several processes share one file: fairly, and whatever happens to any of them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import apsw
import pytest
from sqlite_processes_support import first_starts_out_of_order, lines, process, stopper
from tests.torture.checking import problems
from tests.torture.running import Run, killing_workers
from tests.torture.stage import sqlite_stage
from torture_support import passes

from polywire.bus.backend.sqlite import SqliteQueue
from polywire.bus.backend.sqlite_lock import FileLock, this_process
from polywire.bus.core import Ack, Delivery, Envelope, QueueSpec, Settlement, new_id
from polywire.errors import MessageRefused


@asynccontextmanager
async def opened(path: Path, *specs: QueueSpec) -> AsyncIterator[SqliteQueue]:
    queue = SqliteQueue(f"sqlite:{path / 'bus.db'}")
    await queue.start()
    try:
        await queue.declare(specs)
        yield queue
    finally:
        await queue.close()


def made(text: str = "", key: str | None = None) -> Envelope:
    return Envelope(new_id(), "t", text.encode(), key=key)


async def until(condition: Callable[[], bool], *, seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - of other processes, which tell nobody
            await asyncio.sleep(0.01)


async def test_four_processes_share_the_work(tmp_path: Path) -> None:
    async with opened(tmp_path, QueueSpec(name="work")) as queue:
        with ExitStack() as stack:
            logs = [tmp_path / f"worker-{n}" for n in range(4)]
            for log in logs:
                stack.enter_context(process("work", queue.path, "work", str(log), "0.001"))
            await until(lambda: all(lines(log) for log in logs))
            for n in range(40):
                assert await queue.send("work", [made(f"{n}-{i}") for i in range(50)]) == [None] * 50
            await until(lambda: sum(len(lines(log)) for log in logs) == 2000 + 4)
        shares = [(len(lines(log)) - 1) / 2000 for log in logs]
        assert min(shares) >= 0.15, shares


@pytest.mark.slow
async def test_four_busy_processes_share_the_file_with_senders(tmp_path: Path) -> None:
    """No-op handlers and senders that never pause: everybody waits for the lock all the time."""
    async with opened(tmp_path, QueueSpec(name="work")) as queue:
        with ExitStack() as stack:
            logs = [tmp_path / f"worker-{n}" for n in range(4)]
            for log in logs:
                stack.enter_context(process("work", queue.path, "work", str(log), "0"))
            await until(lambda: all(lines(log) for log in logs))
            for n in range(400):
                assert await queue.send("work", [made(f"{n}-{i}") for i in range(50)]) == [None] * 50
            await until(lambda: sum(len(lines(log)) for log in logs) == 20_000 + 4)
        shares = [(len(lines(log)) - 1) / 20_000 for log in logs]
        assert min(shares) >= 0.15, shares


async def test_a_message_wakes_a_process_that_waits(tmp_path: Path) -> None:
    """By a hint, and not by looking now and then: twenty come in less than twenty looks would take."""
    async with opened(tmp_path, QueueSpec(name="work")) as queue:
        log = tmp_path / "worker"
        with process("work", queue.path, "work", str(log), "0"):
            await until(lambda: bool(lines(log)))
            async with asyncio.timeout(6):
                for n in range(20):
                    await queue.send("work", [made(str(n))])
                    wanted = n + 2
                    await until(lambda wanted=wanted: len(lines(log)) == wanted)  # type: ignore[misc]  # a default binds the loop's variable


HOLD = """
import fcntl, os, sys, time
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.flock(file, fcntl.LOCK_EX)
os.ftruncate(file, 0)
os.pwrite(file, b"%d\\n" % os.getpid(), 0)
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def holding(path: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has the lock of the file at *path*."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, f"{path}-lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            yield holder
        finally:
            holder.kill()


async def test_who_waits_for_a_stopped_process_fails_in_time_and_names_it(tmp_path: Path) -> None:
    async with opened(tmp_path, QueueSpec(name="work")) as queue:
        with holding(queue.path) as holder:
            holder.send_signal(signal.SIGSTOP)
            await until(lambda: "stopped" in queue.file.writer.lock.holder())
            sent = made()
            (failure,) = await queue.send("work", [sent], timeout=0.5)
            assert isinstance(failure, MessageRefused)
            before, _, after = str(failure).partition(" has held its lock for ")
            assert before == (
                f"The message {sent.id!r} was not sent to 'work' in {queue.path!r}: "
                f"process {holder.pid}, which is stopped,"
            )
            assert after.endswith(" s. Send it again.")
            later = asyncio.create_task(queue.send("work", [made("later")], timeout=30))
            await asyncio.sleep(0)
            holder.send_signal(signal.SIGCONT)
            holder.kill()
            assert await later == [None]
            # What was refused was certainly not sent.
            assert [envelope.body for envelope in await queue.peek("work", 10)] == [b"later"]


async def test_nothing_is_lost_when_a_process_goes_on_that_was_stopped_in_a_transaction(tmp_path: Path) -> None:
    """Senders are stopped at random moments, some of them with the lock held."""
    dice = random.Random(4)
    async with opened(tmp_path, QueueSpec(name="work")) as queue:
        log = tmp_path / "sender"
        refused = 0
        with process("send", queue.path, "work", str(log), "1500", "0") as sender:
            await until(lambda: len(lines(log)) > 5)
            for _ in range(20):
                await asyncio.sleep(dice.random() * 0.02)
                sender.send_signal(signal.SIGSTOP)
                (failure,) = await queue.send("work", [made("probe")], timeout=0.1)
                refused += failure is not None
                sender.send_signal(signal.SIGCONT)
            await until(lambda: sender.poll() is not None)
            assert sender.returncode == 0
        stats = await queue.stats("work")
        assert stats.ready == 1500 + 20 - refused
        assert len(lines(log)) == 1500


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_fifty_killed_workers_of_the_real_consumer_lose_nothing(tmp_path: Path) -> None:
    """Effects behind the inbox once, keys in order, accounts closed; some messages fail, die, or kill their worker."""
    run, found = await passes(sqlite_stage(tmp_path), tmp_path, killing_workers(50), workers=4, deadly_every=1000)
    assert run.crew.killed == 50
    assert found.duplicates > 0


@pytest.mark.slow
async def test_four_workers_of_the_real_consumer_share_the_work(tmp_path: Path) -> None:
    run = Run(sqlite_stage(tmp_path), tmp_path, workers=4, kinds={"plain": 1}, pause=0.001)

    async def all_at_work(run: Run) -> None:
        await run.until(lambda: all(member.starts for member in run.crew.members), "work of each worker")
        begun.extend(member.starts for member in run.crew.members)
        # So many that it evens out which process the machine lets run.
        await run.more(8000)
        ended.extend(member.starts for member in run.crew.members)

    begun: list[int] = []
    ended: list[int] = []
    found = await run.through(all_at_work)
    assert problems(found) == []
    work = [after - before for before, after in zip(begun, ended, strict=True)]
    assert min(work) >= 0.15 * sum(work), work


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kills", [8])
async def test_killed_workers_lose_nothing_and_keep_the_order_of_keys(tmp_path: Path, kills: int) -> None:
    """done + dead + pending = confirmed; of each key, the first handling of each message is in order."""
    dice = random.Random(kills)
    async with opened(tmp_path, QueueSpec(name="work", keyed=True, lost_limit=1000)) as queue:
        logs = [tmp_path / f"worker-{n}" for n in range(kills + 2)]
        confirmed = tmp_path / "sender"
        with ExitStack() as stack:
            pace = ("100000", "7", "0.002")
            sender = stack.enter_context(process("send", queue.path, "work", str(confirmed), *pace))
            running = [stack.enter_context(process("work", queue.path, "work", str(log), "0.004")) for log in logs[:2]]
            for n, log in enumerate(logs[2:]):
                await until(lambda n=n: all(len(lines(one)) > 5 for one in logs[: n + 2]))  # type: ignore[misc]  # a default binds the loop's variable
                victim = running.pop(dice.randrange(2))
                victim.kill()
                victim.wait()
                running.append(stack.enter_context(process("work", queue.path, "work", str(log), "0.004")))
            stopper(confirmed).touch()
            await until(lambda: sender.poll() is not None)
            await until(lambda: handled(logs) >= set(lines(confirmed)), seconds=60)
            await settled(queue)
        stats = await queue.stats("work")
        assert (stats.ready, stats.delayed, stats.in_flight, stats.dead) == (0, 0, 0, 0)
        assert handled(logs) == set(lines(confirmed))
        assert any(line.split()[3] != "0" for log in logs for line in lines(log)[1:])
        assert first_starts_out_of_order(logs) == []


def handled(logs: list[Path]) -> set[str]:
    return {line.split()[0] for log in logs for line in lines(log) if line != "ready"}


async def settled(queue: SqliteQueue) -> None:
    async with asyncio.timeout(30):
        while (stats := await queue.stats("work")).ready or stats.in_flight:  # noqa: ASYNC110 - of other processes
            await asyncio.sleep(0.02)


async def test_a_killed_workers_messages_come_at_once_and_only_started_ones_as_lost(tmp_path: Path) -> None:
    async with opened(tmp_path, QueueSpec(name="work", lease=3600.0)) as queue:
        await queue.send("work", [made(str(n)) for n in range(20)])
        log = tmp_path / "worker"
        with process("work", queue.path, "work", str(log), "100") as worker:
            await until(lambda: len(lines(log)) == 2)
            worker.kill()
            worker.wait()
        consumer = await queue.consumer("work", limit=100)
        got: list[Delivery] = []
        async with asyncio.timeout(10):
            while len(got) < 20:
                got += await consumer.receive(100)
        # Ten were started together and ten fetched ahead.
        assert Counter((one.attempt, one.lost) for one in got) == {(2, 1): 10, (1, 0): 10}
        await consumer.close()


async def test_a_process_that_stands_still_loses_its_work_and_begins_anew(tmp_path: Path) -> None:
    async with opened(tmp_path, QueueSpec(name="work", lease=1.0)) as queue:
        await queue.send("work", [made(str(n)) for n in range(3)])
        log = tmp_path / "worker"
        with process("work", queue.path, "work", str(log), "0.05") as worker:
            await until(lambda: len(lines(log)) >= 2)
            worker.send_signal(signal.SIGSTOP)
            consumer = await queue.consumer("work", limit=100)
            got: list[Delivery] = []
            async with asyncio.timeout(20):
                got += await consumer.receive(100)
            before = len(lines(log))
            worker.send_signal(signal.SIGCONT)
            await consumer.settle([], got)
            await consumer.settle([Settlement(one, Ack()) for one in got])
            await consumer.close()
            await queue.send("work", [made("more")])
            await until(lambda: any(line.startswith("more ") for line in lines(log)[before:]))
        await settled_or_held(queue)


async def settled_or_held(queue: SqliteQueue) -> None:
    """What the worker had settled or could not settle any more leaves nothing behind that nobody owns."""
    connection = apsw.Connection(queue.path)
    try:
        orphans = connection.execute(
            "SELECT count(*) FROM held WHERE NOT EXISTS (SELECT 1 FROM owner WHERE owner.n = held.owner)"
        ).get
        assert orphans == 0
    finally:
        connection.close()


def test_a_lock_knows_whether_others_had_it(tmp_path: Path) -> None:
    path = str(tmp_path / "lock")
    mine = FileLock(path)
    mine.acquire()
    mine.release()
    mine.acquire()
    assert not mine.shared
    mine.release()
    subprocess.run([sys.executable, "-c", HOLD, path], input=b"", check=True, stdout=subprocess.DEVNULL)
    mine.acquire()
    assert mine.shared
    mine.release()
    mine.close()


def test_a_killed_child_is_gone_before_it_is_reaped() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    try:
        text = Path(f"/proc/{child.pid}/stat").read_text()
        started = text.rpartition(")")[2].split()[19]
        known = type(this_process())(this_process().host, child.pid, started)
        assert not known.is_gone()
        assert type(known)(known.host, child.pid, "1").is_gone()
        assert not type(known)("elsewhere", child.pid, "1").is_gone()
        child.kill()
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert known.is_gone()
    finally:
        child.kill()
        child.wait()
        if child.stdin is not None:
            child.stdin.close()
