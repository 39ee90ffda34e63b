"""What the file bus does when its disk fails, its file is not what it should be, or its process was forked."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import apsw
import pytest
from sqlite_disk_support import Disk

from polywire.bus.backend import sqlite_file, sqlite_schema
from polywire.bus.backend.sqlite import SqliteQueue
from polywire.bus.backend.sqlite_file import FileOptions
from polywire.bus.core import Ack, Delivery, Envelope, QueueSpec, Settlement, new_id
from polywire.errors import BackendLost, BackendUnreachable, DeliveryError, MessageRefused, PublishUnknown, SetupError


@asynccontextmanager
async def opened(path: Path, disk: Disk | None = None) -> AsyncIterator[SqliteQueue]:
    options = FileOptions(vfs=disk.name, exclusive=True) if disk is not None else FileOptions()
    queue = SqliteQueue(f"sqlite:{path / 'bus.db'}", options=options)
    await queue.start()
    try:
        await queue.declare([QueueSpec(name="work")])
        yield queue
    finally:
        await queue.close()


@pytest.fixture
def disk() -> Iterator[Disk]:
    made = Disk()
    yield made
    made.close()


def made(text: str = "") -> Envelope:
    return Envelope(new_id(), "t", text.encode())


class Failing:
    """Fails the *number*-th operation from now on, and for *times* in all."""

    def __init__(self, disk: Disk, error: type[apsw.Error], what: str, number: int = 1, times: int = 1) -> None:
        self._error = error
        self._what = what
        self._left = number
        self._times = times
        self.failed = 0
        disk.fail = self._fail

    def _fail(self, what: str, name: str) -> None:
        if what not in self._what:
            return
        self._left -= 1
        if self._left <= 0 and self.failed < self._times:
            self.failed += 1
            raise self._error("the disk is on fire")


# ---- the disk --------------------------------------------------------------------------------------------------------


async def test_a_message_whose_commit_failed_may_have_been_sent(tmp_path: Path, disk: Disk) -> None:
    async with opened(tmp_path, disk) as queue:
        first, second, third = made("1"), made("2"), made("3")
        assert await queue.send("work", [first]) == [None]
        Failing(disk, apsw.IOError, "sync")
        (failure,) = await queue.send("work", [second])
        assert isinstance(failure, PublishUnknown)
        assert failure.id == second.id
        assert str(failure) == (
            f"Nobody knows whether the message {second.id!r} reached 'work' in {queue.path!r}: SQLite said "
            "'the disk is on fire'. Send it again with the same id."
        )
        # The bus goes on, and the same message is not there twice.
        assert await queue.send("work", [second, third]) == [None, None]
        assert [envelope.body for envelope in await queue.peek("work", 10)] == [b"1", b"2", b"3"]
        assert queue.connected


async def test_a_full_disk_refuses_messages_and_serves_again_when_there_is_room(tmp_path: Path, disk: Disk) -> None:
    async with opened(tmp_path, disk) as queue:
        first, second = made("1"), made("2")
        assert await queue.send("work", [first]) == [None]
        Failing(disk, apsw.FullError, "write", times=1000)
        (failure,) = await queue.send("work", [second])
        assert isinstance(failure, MessageRefused)
        assert str(failure) == (
            f"The message {second.id!r} was not sent to 'work' in {queue.path!r}: SQLite said "
            "'the disk is on fire'. Send it again."
        )
        Failing(disk, apsw.FullError, "")
        assert await queue.send("work", [second]) == [None]
        assert [envelope.body for envelope in await queue.peek("work", 10)] == [b"1", b"2"]


async def test_a_consumer_whose_commit_failed_is_lost_and_its_messages_come_to_the_next(
    tmp_path: Path, disk: Disk
) -> None:
    async with opened(tmp_path, disk) as queue:
        await queue.send("work", [made("1"), made("2")])
        consumer = await queue.consumer("work", limit=10)
        first, second = await consumer.receive(10)
        await consumer.settle([], [first])
        Failing(disk, apsw.IOError, "write")
        with pytest.raises(BackendLost) as caught:
            await consumer.settle([Settlement(first, Ack())])
        assert str(caught.value) == (
            f"The consumer of 'work' lost the bus at {queue.path!r}: SQLite said 'the disk is on fire'. "
            "What it held is handed out again; open another consumer."
        )
        with pytest.raises(BackendLost):
            await consumer.receive(1)
        with pytest.raises(BackendLost):
            await consumer.settle([Settlement(second, Ack())])
        await consumer.close()
        other = await queue.consumer("work", limit=10)
        got: list[Delivery] = []
        async with asyncio.timeout(5):
            while len(got) < 2:
                got += await other.receive(10)
        assert [(one.envelope.body, one.attempt, one.lost) for one in got] == [(b"1", 2, 1), (b"2", 1, 0)]


@pytest.mark.parametrize("error", [apsw.IOError, apsw.FullError])
@pytest.mark.parametrize("number", [*range(1, 12), *range(12, 60, 6)])
async def test_an_error_at_any_moment_loses_nothing_confirmed(
    tmp_path: Path, disk: Disk, error: type[apsw.Error], number: int
) -> None:
    confirmed, unknown, refused = set[str](), set[str](), set[str]()
    done = set[str]()
    async with opened(tmp_path, disk) as queue:
        failing = Failing(disk, error, "write sync", number)
        for n in range(12):
            (failure,) = await queue.send("work", [made(str(n))])
            (unknown if isinstance(failure, PublishUnknown) else refused if failure else confirmed).add(str(n))
            if n % 3 == 2:
                done |= await one_handled(queue)
        assert failing.failed
        disk.fail = lambda what, name: None
        while (await queue.stats("work")).ready:
            done |= await one_handled(queue)
    assert confirmed <= done <= confirmed | unknown
    assert len(unknown) + len(refused) <= 2
    connection = apsw.Connection(queue.path, vfs=disk.name)
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    assert connection.pragma("integrity_check") == "ok"
    connection.close()


async def one_handled(queue: SqliteQueue) -> set[str]:
    """What a consumer handled for sure, and perhaps more than once over all."""
    try:
        consumer = await queue.consumer("work", limit=2)
        try:
            async with asyncio.timeout(5):
                started = await consumer.settle([], await consumer.receive(2))
                await consumer.settle([Settlement(one, Ack()) for one in started])
        finally:
            await consumer.close()
    except BackendLost:
        return set()
    return {one.envelope.body.decode() for one in started}


# ---- the file --------------------------------------------------------------------------------------------------------


def test_a_folder_that_is_missing_is_named_and_not_made(tmp_path: Path) -> None:
    path = tmp_path / "nowhere" / "bus.db"
    with pytest.raises(SetupError) as caught:
        asyncio.run(SqliteQueue(f"sqlite:{path}").start())
    assert str(caught.value) == (
        f"The bus at {str(path)!r} was not opened: there is no folder {str(path.parent)!r}. "
        f"Create it with `mkdir -p {path.parent}`."
    )
    assert not path.parent.exists()


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(SetupError) as caught:
        asyncio.run(SqliteQueue(f"sqlite:{tmp_path}").start())
    assert str(caught.value) == f"The bus at {str(tmp_path)!r} was not opened: that is a folder. Name a file in it."


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite:", "'sqlite:' was not opened: it names no file. Write 'sqlite:bus.db', or 'memory:'."),
        ("sqlite::memory:", "'sqlite::memory:' was not opened: it names no file. Write 'sqlite:bus.db', or 'memory:'."),
        (
            "sqlite://var/bus.db",
            "'sqlite://var/bus.db' was not opened: 'var' would be a host, and a file has none. "
            "Write 'sqlite:var/bus.db'.",
        ),
        (
            "sqlite:bus.db?mode=fast",
            "'sqlite:bus.db?mode=fast' was not opened: the sqlite bus takes no options. Write 'sqlite:bus.db'.",
        ),
    ],
)
def test_a_wrong_url_is_refused(url: str, message: str) -> None:
    with pytest.raises(SetupError) as caught:
        SqliteQueue(url)
    assert str(caught.value) == message


def test_urls_name_the_file_that_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    here = str(tmp_path.resolve())
    assert SqliteQueue("sqlite:bus.db").path == f"{here}/bus.db"
    assert SqliteQueue("sqlite:.polywire/a%20b.db").path == f"{here}/.polywire/a b.db"
    assert SqliteQueue("sqlite:///var/x.db").path == SqliteQueue("sqlite:/var/x.db").path == "/var/x.db"


def test_a_file_of_a_newer_polywire_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bus.db"
    with apsw.Connection(str(path)) as connection:
        connection.execute(f"PRAGMA application_id = {sqlite_schema.APPLICATION}; PRAGMA user_version = 7")
    connection.close()
    with pytest.raises(SetupError) as caught:
        asyncio.run(SqliteQueue(f"sqlite:{path}").start())
    assert str(caught.value) == (
        f"The bus at {str(path)!r} was not opened: its tables are of version 7, and this polywire knows version 2. "
        "Upgrade polywire, or name another file."
    )


def test_a_database_of_something_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "shop.db"
    connection = apsw.Connection(str(path))
    connection.execute("CREATE TABLE customer (name TEXT)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(SetupError) as caught:
        asyncio.run(SqliteQueue(f"sqlite:{path}").start())
    assert str(caught.value) == (
        f"The bus at {str(path)!r} was not opened: that file is a database of something else. Name another."
    )
    assert path.read_bytes()[100:] == before[100:]


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bus.db"
    path.write_bytes(b"no database at all\n" * 100)
    with pytest.raises(BackendUnreachable) as caught:
        asyncio.run(SqliteQueue(f"sqlite:{path}").start())
    assert str(caught.value) == f"The bus at {str(path)!r} was not opened: file is not a database."


def test_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_schema, "_file_system", lambda folder: "nfs4")
    path = str(tmp_path / "bus.db")
    with pytest.raises(SetupError) as caught:
        asyncio.run(SqliteQueue(f"sqlite:{path}").start())
    assert str(caught.value) == (
        f"The bus at {path!r} was not opened: it lies on a network file system (nfs4), where locks do not hold. "
        "Use a local disk, or another backend."
    )


def test_the_file_system_of_a_folder_is_found() -> None:
    assert sqlite_schema._file_system("/proc/self") == "proc"


# ---- processes -------------------------------------------------------------------------------------------------------

FORKING = """
import asyncio, os, sys
from polywire.bus.backend.sqlite import SqliteQueue
from polywire.bus.core import Envelope, QueueSpec
from polywire.errors import SetupError

async def in_child(bus, consumer):
    uses = (
        lambda: bus.send("work", [Envelope("1", "t", b"")]),
        lambda: consumer.receive(1),
        lambda: bus.stats("work"),
        lambda: SqliteQueue("sqlite:" + sys.argv[1]).start(),
    )
    for use in uses:
        try:
            print("child", await use(), flush=True)
        except SetupError as error:
            print("child", error, flush=True)

async def main():
    bus = SqliteQueue("sqlite:" + sys.argv[1])
    await bus.start()
    await bus.declare([QueueSpec(name="work")])
    consumer = await bus.consumer("work", limit=1)
    child = os.fork()
    if not child:
        asyncio.run(in_child(bus, consumer))
        os._exit(0)
    os.waitpid(child, 0)
    print("parent", await bus.send("work", [Envelope("3", "t", b"")]), flush=True)
    print("parent", [delivery.envelope.id for delivery in await consumer.receive(1)], flush=True)
    await bus.close()

asyncio.run(main())
"""


def test_a_forked_child_is_refused_and_the_parent_goes_on(tmp_path: Path) -> None:
    path = str(tmp_path / "bus.db")
    command = [sys.executable, "-W", "ignore", "-c", FORKING, path]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60, check=True).stdout
    refused = (
        f"The bus at {path!r} was not used: this process was forked from one that had it open. "
        "Open it after forking, or start processes by 'spawn'."
    )
    assert output.splitlines() == [
        f"child {refused}",
        f"child {refused}",
        f"child {refused}",
        f"child {refused}",
        "parent [None]",
        "parent ['3']",
    ]


FOREIGN = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("writing", flush=True)
sys.stdin.readline()
connection.execute("ROLLBACK")
"""


async def test_a_foreign_program_that_writes_for_long_is_waited_for_in_time(tmp_path: Path) -> None:
    async with opened(tmp_path) as queue:
        command = [sys.executable, "-c", FOREIGN, queue.path]
        foreign = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        assert foreign.stdin is not None
        assert foreign.stdout is not None
        assert await foreign.stdout.readline() == b"writing\n"
        sent = made()
        (failure,) = await queue.send("work", [sent], timeout=0.7)
        assert str(failure) == (
            f"The message {sent.id!r} was not sent to 'work' in {queue.path!r}: another program writes to it. "
            "Send it again."
        )
        sending = asyncio.create_task(queue.send("work", [sent]))
        foreign.stdin.write(b"\n")
        assert await sending == [None]
        assert queue.connected
        await foreign.wait()
        foreign.stdin.close()


async def test_a_closed_bus_says_so(tmp_path: Path) -> None:
    async with opened(tmp_path) as queue:
        path = queue.path
    with pytest.raises(BackendLost) as caught:
        await queue.stats("work")
    assert str(caught.value) == f"The bus at {path!r} is not open. Call `start` first."
    assert not queue.connected


async def test_a_writer_that_fails_leaves_nobody_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where it is our own mistake."""
    async with opened(tmp_path) as queue:
        consumer = await queue.consumer("work", limit=1)
        receiving = asyncio.create_task(consumer.receive(1))
        await asyncio.sleep(0.05)

        def broken(*_: object) -> None:
            raise RuntimeError("a mistake")

        monkeypatch.setattr(sqlite_file._Writer, "_committed", broken)
        sent = made()
        (failure,) = await queue.send("work", [sent], timeout=5)
        assert isinstance(failure, PublishUnknown)
        assert str(failure) == (
            f"Nobody knows whether the message {sent.id!r} reached 'work' in {queue.path!r}: "
            "its writer failed with RuntimeError: a mistake. Send it again with the same id."
        )
        with pytest.raises(DeliveryError):
            await receiving
        (failure,) = await queue.send("work", [sent], timeout=5)
        assert isinstance(failure, MessageRefused)
        assert not queue.connected
