"""The queues in a file: what the suite of all queues does not ask."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import apsw
import pytest
from sqlite_disk_support import Disk

from polywire.bus.backend import sqlite_file, sqlite_messages, sqlite_sending
from polywire.bus.backend.sqlite import SqliteQueue
from polywire.bus.backend.sqlite_consumer import SqliteConsumer
from polywire.bus.backend.sqlite_file import FileOptions, Transaction
from polywire.bus.backend.sqlite_lock import FileLock
from polywire.bus.core import Ack, Bury, Delivery, Envelope, QueueSpec, Release, RetryAfter, Settlement, new_id
from polywire.clock import SYSTEM_CLOCK, Clock
from polywire.errors import MessageRefused, SetupError
from polywire.testing import ManualClock

WORK = QueueSpec(name="work")
KEYED = QueueSpec(name="keyed", keyed=True)


@asynccontextmanager
async def opened(
    path: Path, *specs: QueueSpec, clock: Clock = SYSTEM_CLOCK, disk: Disk | None = None
) -> AsyncIterator[SqliteQueue]:
    options = FileOptions() if disk is None else FileOptions(vfs=disk.name, exclusive=True)
    queue = SqliteQueue(f"sqlite:{path / 'bus.db'}", clock=clock, options=options)
    await queue.start()
    try:
        await queue.declare(specs or (WORK,))
        yield queue
    finally:
        await queue.close()


def made(text: str = "", **attributes: Any) -> Envelope:
    return Envelope(attributes.pop("id", None) or new_id(), "t", text.encode(), **attributes)


async def receive(consumer: SqliteConsumer, count: int) -> list[Delivery]:
    found: list[Delivery] = []
    async with asyncio.timeout(10):
        while len(found) < count:
            found += await consumer.receive(count - len(found))
    return found


async def handle(consumer: SqliteConsumer, count: int) -> list[str]:
    found = await receive(consumer, count)
    await consumer.settle([], found)
    await consumer.settle([Settlement(one, Ack()) for one in found])
    return [one.envelope.body.decode() for one in found]


# ---- durability ------------------------------------------------------------------------------------------------------


async def test_from_publish_to_handler_the_disk_is_waited_for_at_most_twice(tmp_path: Path) -> None:
    disk = Disk()
    async with opened(tmp_path, disk=disk) as queue:
        consumer = await queue.consumer("work", limit=10)
        await handled_once(queue, consumer)
        before = disk.syncs
        await queue.send("work", [made()])
        started = await consumer.settle([], await consumer.receive(10))
        assert len(started) == 1
        assert disk.syncs - before <= 2
        assert disk.syncs - before == 1, "the commit of the message itself"
        await consumer.settle([Settlement(one, Ack()) for one in started])
        assert disk.syncs - before == 1, "an acknowledgement that is lost costs a repetition, and no message"
    disk.close()


async def handled_once(queue: SqliteQueue, consumer: SqliteConsumer) -> None:
    await queue.send("work", [made()])
    await handle(consumer, 1)


async def test_an_acknowledgement_before_the_start_waits_for_the_disk(tmp_path: Path) -> None:
    disk = Disk()
    async with opened(tmp_path, disk=disk) as queue:
        consumer = await queue.consumer("work", limit=10)
        await queue.send("work", [made()])
        (once,) = await consumer.receive(1)
        before = disk.syncs
        await consumer.settle([Settlement(once, Ack())])
        assert disk.syncs - before == 1
        await queue.send("work", [made()])
        (dead,) = await consumer.receive(1)
        await consumer.settle([], [dead])
        before = disk.syncs
        await consumer.settle([Settlement(dead, Bury("rejected", "no"))])
        assert disk.syncs - before == 1
    disk.close()


async def test_many_senders_share_a_commit(tmp_path: Path) -> None:
    disk = Disk()
    async with opened(tmp_path, disk=disk) as queue:
        await queue.send("work", [made()])
        before = disk.syncs
        results = await asyncio.gather(*(queue.send("work", [made()]) for _ in range(100)))
        assert results == [[None]] * 100
        assert disk.syncs - before == 1
    disk.close()


# ---- handing out -----------------------------------------------------------------------------------------------------


async def test_what_nobody_asks_for_any_more_goes_to_others(tmp_path: Path) -> None:
    """Messages are fetched ahead while somebody receives; who stops receiving does not keep them."""
    async with opened(tmp_path) as queue:
        await queue.send("work", [made(str(n)) for n in range(40)])
        busy = await queue.consumer("work", limit=40)
        first = await receive(busy, 10)
        await busy.settle([], first)
        other = await queue.consumer("work", limit=40)
        got = await receive(other, 30)
        assert {one.envelope.body for one in got}.isdisjoint(one.envelope.body for one in first)
        assert {(one.attempt, one.lost) for one in got} == {(1, 0)}


async def test_a_message_that_is_lost_too_often_is_buried_with_its_type(tmp_path: Path) -> None:
    async with opened(tmp_path, QueueSpec(name="work", lost_limit=2)) as queue:
        await queue.send("work", [made("x", id="poison"), made("y")])
        for expected in (0, 1):
            consumer = await queue.consumer("work", limit=1)
            (one,) = await receive(consumer, 1)
            assert (one.envelope.id, one.lost, one.suspect) == ("poison", expected, expected > 0)
            await consumer.settle([], [one])
            await die(queue, consumer)
        (letter,) = await queue.dead("work")
        assert (letter.envelope.id, letter.reason, letter.attempts) == ("poison", "worker_lost", 2)
        assert letter.error == "The worker died 2 times while it handled this message."
        assert await handle(await queue.consumer("work", limit=1), 1) == ["y"]


async def die(queue: SqliteQueue, consumer: SqliteConsumer) -> None:
    """As others see it when the process of a consumer is gone."""
    owner = consumer._owner
    assert owner is not None

    def bury(tx: Transaction) -> None:
        sqlite_messages.take_over(tx, owner)
        tx.leave(owner)
        tx.changed.add(consumer.row.channel)

    await queue.file.do(bury)


async def test_a_consumer_that_was_declared_dead_begins_anew(tmp_path: Path) -> None:
    async with opened(tmp_path) as queue:
        await queue.send("work", [made("1"), made("2")])
        consumer = await queue.consumer("work", limit=10)
        first, second = await receive(consumer, 2)
        await consumer.settle([], [first])
        await die(queue, consumer)
        assert await consumer.settle([Settlement(first, Ack())], [second]) == []
        again = await receive(consumer, 2)
        assert [(one.envelope.body, one.attempt, one.lost) for one in again] == [(b"1", 2, 1), (b"2", 1, 0)]
        # What it says of the time before counts no more, though it holds the same messages.
        assert await consumer.settle([Settlement(first, Ack())], [second]) == []
        stats = await queue.stats("work")
        assert (stats.ready, stats.in_flight) == (0, 2)


async def test_a_wall_clock_that_goes_back_keeps_nothing_waiting(tmp_path: Path) -> None:
    clock = ManualClock()
    async with opened(tmp_path, QueueSpec(name="work", rate=1000.0), clock=clock) as queue:
        await queue.send("work", [made("before")])
        consumer = await queue.consumer("work", limit=1)
        assert await handle(consumer, 1) == ["before"]
        clock._epoch -= 3600
        await queue.send("work", [made("after")])
        assert await handle(consumer, 1) == ["after"]


async def test_delays_are_driven_by_the_clock(tmp_path: Path) -> None:
    clock = ManualClock()
    async with opened(tmp_path, clock=clock) as queue:
        await queue.send("work", [made("later", not_before=clock.time() + 3600), made("now")])
        consumer = await queue.consumer("work", limit=1)
        assert await handle(consumer, 1) == ["now"]
        receiving = asyncio.create_task(handle(consumer, 1))
        while not clock.sleeping:  # noqa: ASYNC110 - a clock tells nobody who sleeps
            await asyncio.sleep(0.01)
        await clock.advance(3599)
        assert not receiving.done()
        await clock.advance(2)
        async with asyncio.timeout(5):
            assert await receiving == ["later"]


# ---- what is where ---------------------------------------------------------------------------------------------------


async def test_finished_ids_are_remembered_in_two_generations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_messages, "FINISHED_KEPT", 10)
    async with opened(tmp_path) as queue:
        consumer = await queue.consumer("work", limit=100)
        for n in range(30):
            await queue.send("work", [made(id=str(n))])
            await handle(consumer, 1)
        await queue.send("work", [made(id=str(n)) for n in range(30)])
        kept = (await queue.stats("work")).ready
        assert 10 <= 30 - kept <= 20
        assert [envelope.id for envelope in await queue.peek("work", 30)] == [str(n) for n in range(kept)]


async def test_random_histories_keep_every_message_in_one_place(tmp_path: Path) -> None:
    """Sent, received, started, settled, cancelled, moved, buried and revived at random, on both kinds of queue."""
    dice = random.Random(7)
    async with opened(tmp_path, WORK, KEYED) as queue:
        for name in ("work", "keyed"):
            for _ in range(6):
                await one_history(queue, name, dice)
                assert scattered(queue.path) == []


async def one_history(queue: SqliteQueue, name: str, dice: random.Random) -> None:
    consumer = await queue.consumer(name, limit=8)
    for _ in range(25):
        await queue.send(name, [made(id=str(dice.randrange(400)), key=f"k{dice.randrange(5)}") for _ in range(3)])
        await queue.cancel(name, str(dice.randrange(400)))
        await queue.move(name, str(dice.randrange(400)), queue.clock.time() + dice.choice((-1.0, 0.005)))
        if not (await queue.stats(name)).ready:
            continue
        try:
            async with asyncio.timeout(0.05):
                got = await consumer.receive(4)
        except TimeoutError:
            continue
        started = await consumer.settle([], [one for one in got if dice.random() < 0.7])
        outcomes = (Ack(), RetryAfter(0.0), RetryAfter(0.002), Release(), Release(0.002), Bury("rejected", "x"))
        await consumer.settle([Settlement(one, dice.choice(outcomes)) for one in got if dice.random() < 0.9])
        assert set(started) <= set(got)
        await queue.revive(name, [one for one in await queue.dead(name) if dice.random() < 0.3])
    await (die(queue, consumer) if dice.random() < 0.5 else consumer.close())


def scattered(path: str) -> list[str]:
    """What is not in exactly one place, but for those that wait behind the head of their key."""
    connection = apsw.Connection(path)
    rows: Iterable[Any] = connection.execute(
        """SELECT m.id, (SELECT count(*) FROM ready r WHERE r.pos = m.pos)
        + (SELECT count(*) FROM held h WHERE h.pos = m.pos) + (SELECT count(*) FROM delayed d WHERE d.pos = m.pos),
        EXISTS (SELECT 1 FROM message e WHERE e.queue = m.queue AND e.key = m.key AND e.pos < m.pos) FROM message m
        UNION ALL SELECT 'nothing', count(*), 1 FROM (SELECT pos FROM ready UNION ALL SELECT pos FROM held
        UNION ALL SELECT pos FROM delayed) WHERE pos NOT IN (SELECT pos FROM message)"""
    )
    wrong = [f"{name} is in {places} places" for name, places, behind in rows if places != (0 if behind else 1)]
    connection.close()
    return wrong


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attributes", "why"),
    [
        ({"id": "x" * 1025}, "its id has 1025 characters, and 1 to 1024 are possible. Choose another"),
        ({"key": "x" * 1025}, "its key has 1025 characters, and 1024 are the limit. Choose a shorter one"),
    ],
)
async def test_a_message_that_cannot_be_kept_is_refused(tmp_path: Path, attributes: dict[str, Any], why: str) -> None:
    async with opened(tmp_path) as queue:
        sent = made(**attributes)
        (refused,) = await queue.send("work", [sent])
        assert isinstance(refused, MessageRefused)
        assert str(refused) == f"The message {sent.id!r} was not sent to the queue 'work': {why}."


async def test_a_text_that_is_no_unicode_is_refused_alone(tmp_path: Path) -> None:
    async with opened(tmp_path) as queue:
        good, bad = made("1"), made("2", id="\ud800")
        results = await queue.send("work", [good, bad])
        assert results[0] is None
        assert isinstance(results[1], MessageRefused)
        assert str(results[1]) == (
            "The message '\\ud800' was not sent to the queue 'work': its texts are no Unicode: surrogates not allowed."
        )


async def test_senders_wait_for_room_and_are_refused_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_sending, "MAX_PENDING", 5)
    async with opened(tmp_path) as queue:
        results = await asyncio.gather(*(queue.send("work", [made()], timeout=10) for _ in range(50)))
        assert results == [[None]] * 50
        lock = FileLock(f"{queue.path}-lock")  # another process, as far as the kernel can tell
        lock.acquire()
        try:
            first = asyncio.create_task(queue.send("work", [made() for _ in range(5)], timeout=20))  # noqa: RUF006 - it is awaited below
            await asyncio.sleep(0)
            sent = made()
            (refused,) = await queue.send("work", [sent], timeout=0.05)
            assert str(refused) == (
                f"The message {sent.id!r} was not sent: 5 messages already wait to be written to {queue.path!r}."
            )
        finally:
            lock.close()
        assert await first == [None] * 5


async def test_each_sender_has_its_own_time_limit_and_the_order_stays(tmp_path: Path) -> None:
    async with opened(tmp_path) as queue:
        lock = FileLock(f"{queue.path}-lock")
        lock.acquire()
        try:
            limits = (20, 0.1, 20, 30)
            sends = [asyncio.create_task(queue.send("work", [made(str(n))], timeout=s)) for n, s in enumerate(limits)]
            assert isinstance((await sends[1])[0], MessageRefused)
        finally:
            lock.close()
        assert [await sends[n] for n in (0, 2, 3)] == [[None]] * 3
        assert [envelope.body for envelope in await queue.peek("work", 9)] == [b"0", b"2", b"3"]


async def test_a_drained_file_gives_its_room_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_file, "FREE", 100)
    async with opened(tmp_path) as queue:
        await queue.send("work", [made("x" * 4000) for _ in range(1000)])
        consumer = await queue.consumer("work", limit=1000)
        await handle(consumer, 1000)
        async with asyncio.timeout(20):
            while await queue.file.read(lambda c: c.pragma("freelist_count")) > 100:
                queue.file.writer._next_tick = 0.0
                queue.file.poke("")
                await asyncio.sleep(0.005)
        assert await queue.file.read(lambda c: c.pragma("page_count")) < 300


async def test_what_a_queue_is_cannot_be_changed_and_how_it_is_served_can(tmp_path: Path) -> None:
    async with opened(tmp_path) as queue:
        with pytest.raises(SetupError) as caught:
            await queue.declare([QueueSpec(name="work", keyed=True, priorities=3), QueueSpec(name="new")])
        assert str(caught.value) == (
            f"The queues in {queue.path!r} were not declared: 'work' exists with keyed=False instead of keyed=True; "
            "'work' exists with priorities=1 instead of priorities=3."
        )
        faster = QueueSpec(name="work", rate=5.0)
        assert await queue.check([faster, QueueSpec(name="new")]) == [
            "would change rate of 'work' from None to 5.0",
            "would create the queue 'new'",
        ]
        await queue.declare([faster])
        assert await queue.check([faster]) == []


async def test_too_many_priorities_are_refused(tmp_path: Path) -> None:
    async with opened(tmp_path) as queue:
        with pytest.raises(SetupError) as caught:
            await queue.declare([QueueSpec(name="work", priorities=257)])
        assert str(caught.value) == (
            "The queue 'work' was not declared: it asks for 257 priorities, and a sqlite bus has 1 to 256. "
            "Declare fewer."
        )


# ---- the cost of a claim ---------------------------------------------------------------------------------------------


async def test_no_statement_that_hands_out_or_settles_looks_at_a_whole_table(tmp_path: Path) -> None:
    """Each is found by an index, whatever the backlog is like."""
    plans: dict[str, list[str]] = {}

    def watch(tx: Transaction) -> None:
        tx.connection.exec_trace = lambda cursor, sql, bindings: note(tx.connection, sql)

    def note(connection: apsw.Connection, sql: str) -> bool:
        statement = sql.strip()
        if statement not in plans and statement.split()[0] in ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH"):
            plans[statement] = []
            connection.exec_trace = None
            marks = [None] * statement.count("?")
            explained: Iterable[Any] = connection.execute(f"EXPLAIN QUERY PLAN {statement}", marks)
            plans[statement] = [row[3] for row in explained]
            connection.exec_trace = lambda cursor, sql, bindings: note(connection, sql)
        return True

    async with opened(
        tmp_path, WORK, KEYED, QueueSpec(name="slow", rate=1000.0, concurrency=10, priorities=3)
    ) as queue:
        await queue.file.do(watch)
        dice = random.Random(1)
        for name in ("work", "keyed", "slow"):
            await queue.send(name, [made(not_before=queue.clock.time() + 0.001, key="k"), made(key="k"), made(key="l")])
            await one_history(queue, name, dice)
    scans = {step for steps in plans.values() for step in steps if step.startswith("SCAN")}
    # What is looked at as a whole: arguments of the statement, and tables with a row, or one for each process.
    arguments = {
        "SCAN carray VIRTUAL TABLE INDEX 1:",
        "SCAN c VIRTUAL TABLE INDEX 1:",
        "SCAN v",
        "SCAN 2 CONSTANT ROWS",
        "SCAN CONSTANT ROW",
    }
    assert scans <= arguments | {"SCAN file", "SCAN sqlite_sequence", "SCAN owner"}
    assert len(plans) > 25
    assert any("message_key" in step for steps in plans.values() for step in steps)


BACKLOGS: dict[str, tuple[QueueSpec, dict[str, Any]]] = {
    "one hot key": (KEYED, {"key": "hot"}),
    "many keys": (KEYED, {}),
    "all delayed": (WORK, {"not_before": 4e9}),
    "all of low priority": (QueueSpec(name="levels", priorities=3), {}),
    "all ready": (WORK, {}),
}


@pytest.mark.parametrize("shape", BACKLOGS)
async def test_a_backlog_makes_nothing_dearer(tmp_path: Path, shape: str) -> None:
    """Counted in steps of SQLite's machine, which no other load changes: send, hand out, start, settle."""
    spec, attributes = BACKLOGS[shape]
    async with opened(tmp_path, spec) as queue:
        empty = await steps_of_a_cycle(queue, spec)
        for start in range(0, 20_000, 1000):
            keys = {"key": f"key-{start}"} if shape == "many keys" else {}
            await queue.send(spec.name, [made(**attributes, **keys) for _ in range(1000)])
        holder = await queue.consumer(spec.name, limit=1)
        if shape == "one hot key":
            await receive(holder, 1)
        # Where there is more, the next ten are fetched along with the last settlement.
        assert await steps_of_a_cycle(queue, spec) <= empty * 1.4


async def steps_of_a_cycle(queue: SqliteQueue, spec: QueueSpec) -> int:
    """In units of ten."""
    steps = 0

    def count() -> bool:
        nonlocal steps
        steps += 1
        return False

    async with asyncio.timeout(20):
        consumer = await queue.consumer(spec.name, limit=10)
        await queue.file.do(lambda tx: tx.connection.set_progress_handler(count, 10))
        await queue.send(spec.name, [made(key=f"{n}", priority=2) for n in range(10)])
        got = await receive(consumer, 10)
        await consumer.settle([], got)
        await consumer.settle([Settlement(one, Ack()) for one in got])
        await queue.file.do(lambda tx: tx.connection.set_progress_handler(None))
        await consumer.close()
    return steps
