"""The logs in a file: what the suite of all logs does not ask."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import apsw
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlite_processes_support import first_starts_out_of_order, lines, process, stopper

from polywire.bus.backend import sqlite_events as events
from polywire.bus.backend.sqlite_events import shares
from polywire.bus.backend.sqlite_log import SqliteLog
from polywire.bus.backend.sqlite_reader import SqliteLogConsumer
from polywire.bus.core import Bury, Envelope, GroupSpec, Record, RetryAfter, Seek, TopicSpec, new_id
from polywire.clock import SYSTEM_CLOCK, Clock
from polywire.errors import MessageRefused, SetupError
from polywire.testing import ManualClock
from polywire.testing.buses import Worker, worker_process


@asynccontextmanager
async def opened(
    path: Path, *specs: TopicSpec, clock: Clock = SYSTEM_CLOCK, lost_limit: int = 3
) -> AsyncIterator[SqliteLog]:
    log = SqliteLog(f"sqlite:{path / 'bus.db'}", clock=clock)
    await log.start()
    topics = specs or (TopicSpec(name="orders", partitions=4),)
    try:
        await log.declare(topics, [GroupSpec(topic=topic.name, group="g", lost_limit=lost_limit) for topic in topics])
        yield log
    finally:
        await log.close()


def made(text: str = "", **attributes: Any) -> Envelope:
    return Envelope(new_id(), "t", text.encode(), **attributes)


async def until(condition: Callable[[], bool], *, seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - of another object, which tells nobody
            await asyncio.sleep(0.01)


async def receive(consumer: SqliteLogConsumer, count: int) -> list[Record]:
    found: list[Record] = []
    async with asyncio.timeout(10):
        while len(found) < count:
            found += await consumer.receive(count - len(found))
    return found


async def test_the_partition_of_a_key_is_the_documented_hash(tmp_path: Path) -> None:
    async with opened(tmp_path, TopicSpec(name="orders", partitions=8)) as log:
        keys = ["order-1", "order-2", "größe", ""]
        await log.append("orders", [made(key, key=key) for key in keys])
        for key in keys:
            found = await log.read("orders", zlib.crc32(key.encode()) % 8, 0, 10)
            assert key in [record.envelope.key for record in found]


async def test_events_without_a_key_are_spread(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await log.append("orders", [made() for _ in range(40)])
        assert [len(await log.read("orders", part, 0, 100)) for part in range(4)] == [10, 10, 10, 10]


@given(st.lists(st.integers(1, 6), unique=True, max_size=6), st.lists(st.integers(0, 8), min_size=1, max_size=20))
def test_partitions_are_shared_evenly_and_few_of_them_move(members: list[int], before: list[int]) -> None:
    wanted: dict[int, int | None] = {part: member or None for part, member in enumerate(before)}
    after = shares(members, wanted)
    assert set(after) == set(wanted)
    if not members:
        assert set(after.values()) == {None}
        return
    counts = [list(after.values()).count(member) for member in members]
    assert max(counts) - min(counts) <= 1
    assert sum(counts) == len(before)
    # Nobody loses one that stays below the fair share.
    least = len(before) // len(members)
    for member in members:
        had = {part for part, owner in wanted.items() if owner == member}
        kept = {part for part in had if after[part] == member}
        assert len(kept) >= min(len(had), least)


async def test_members_in_two_processes_share_and_a_killed_one_is_replaced_at_once(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        consumer = await log.consumer(["orders"], "g", limit=10)
        await until(lambda: len(consumer.assigned) == 4)
        with process("read", log.path, "orders", str(tmp_path / "reader"), "0") as reader:
            await until(lambda: len(consumer.assigned) == 2)
            reader.kill()
            reader.wait()
            await until(lambda: len(consumer.assigned) == 4)
        await consumer.close()


@pytest.mark.parametrize("kills", [6, pytest.param(30, marks=pytest.mark.slow)])
async def test_killed_readers_lose_no_event_and_keep_the_order_of_keys(tmp_path: Path, kills: int) -> None:
    # No event is to blame for these deaths, also where one of them meets several by chance.
    async with opened(tmp_path, lost_limit=kills + 1) as log:
        logs = [tmp_path / f"reader-{n}" for n in range(kills + 2)]
        confirmed = tmp_path / "appender"
        pace = ("100000", "7", "0.002")
        with ExitStack() as stack:
            appender = stack.enter_context(process("append", log.path, "orders", str(confirmed), *pace))
            running = [stack.enter_context(process("read", log.path, "orders", str(one), "0.003")) for one in logs[:2]]
            for n, path in enumerate(logs[2:]):
                await until(lambda n=n: all(len(lines(one)) > 5 for one in logs[: n + 2]))  # type: ignore[misc]  # a default binds the loop's variable
                victim = running.pop(0)
                victim.kill()
                victim.wait()
                running.append(stack.enter_context(process("read", log.path, "orders", str(path), "0.003")))
            stopper(confirmed).touch()
            await until(lambda: appender.poll() is not None)
            await until(lambda: handled(logs) >= set(lines(confirmed)), seconds=60)
            await read_to_the_end(log)
        assert handled(logs) == set(lines(confirmed))
        assert any(line.split()[3] != "0" for one in logs for line in lines(one)[1:])
        assert first_starts_out_of_order(logs) == []
        assert await log.dead("orders", "g") == []


async def read_to_the_end(log: SqliteLog) -> None:
    async with asyncio.timeout(30):
        while (await log.stats("orders", "g")).lag:  # noqa: ASYNC110 - of other processes
            await asyncio.sleep(0.02)


def handled(logs: list[Path]) -> set[str]:
    return {line.split()[0] for log in logs for line in lines(log) if line != "ready"}


async def test_an_event_that_kills_its_readers_is_buried_at_the_limit(tmp_path: Path) -> None:
    async with opened(tmp_path, TopicSpec(name="orders", partitions=1)) as log:
        await log.append("orders", [made("before"), made("poison"), made("after")])
        output = tmp_path / "reader"
        for n in range(3):
            with process("read", log.path, "orders", str(output), "poison") as reader:
                await until(lambda: reader.poll() is not None)
                assert len([line for line in lines(output) if line.startswith("poison ")]) == n + 1
        consumer = await log.consumer(["orders"], "g", limit=10)
        (record,) = await receive(consumer, 1)
        assert record.envelope.body == b"after"
        (letter,) = await log.dead("orders", "g")
        assert (letter.envelope.body, letter.reason, letter.attempts) == (b"poison", "worker_lost", 3)
        assert letter.error == "The worker died 3 times while it handled this event."
        await consumer.close()


async def test_events_that_kill_their_readers_take_no_others_along(tmp_path: Path) -> None:
    """Also none that was read ahead of other partitions each time, and never begun."""
    async with opened(tmp_path, TopicSpec(name="orders", partitions=6)) as log:
        for n in range(30):
            await log.append("orders", [made("poison" if n in (5, 11) else str(n))])
        output = tmp_path / "reader"
        for _ in range(20):
            with process("read", log.path, "orders", str(output), "poison") as reader:
                await until(lambda: reader.poll() is not None or lag_of(log.path) == 0)
            if lag_of(log.path) == 0:
                break
        assert [letter.envelope.body for letter in await log.dead("orders", "g")] == [b"poison", b"poison"]
        assert handled([output]) == {str(n) for n in range(30) if n not in (5, 11)} | {"poison"}


def lag_of(path: str) -> int:
    connection = apsw.Connection(path)
    try:
        left: int = connection.execute(
            "SELECT sum(part.next - progress.next) FROM part JOIN progress ON progress.part = part.part"
        ).get
        return left
    finally:
        connection.close()


async def test_a_retried_event_is_not_mistaken_for_one_that_was_retried_before(tmp_path: Path) -> None:
    """Also when the same event was published twice: both are tried again."""
    async with opened(tmp_path, TopicSpec(name="orders", partitions=1)) as log:
        twice = made("twice")
        await log.append("orders", [twice, twice])
        consumer = await log.consumer(["orders"], "g", limit=10)
        for record in await receive(consumer, 2):
            await consumer.retry(record, RetryAfter(0.0))
        again = await receive(consumer, 2)
        assert [(record.retried, record.attempt, record.envelope) for record in again] == [(True, 2, twice)] * 2
        await consumer.retry(again[0], RetryAfter(0.0))
        await consumer.done([again[1]])
        (third,) = await receive(consumer, 1)
        assert third.attempt == 3
        await consumer.bury(third, Bury("attempts", "ValueError: no"))
        (letter,) = await log.dead("orders", "g")
        assert (letter.envelope, letter.attempts, letter.error) == (twice, 3, "ValueError: no")
        assert await log.revive("orders", "g", [letter]) == 1
        (revived,) = await receive(consumer, 1)
        assert (revived.attempt, revived.envelope.redrive_count) == (1, 1)
        await consumer.done([revived])
        await consumer.close()


# ---- forgetting ------------------------------------------------------------------------------------------------------


async def test_old_events_are_forgotten_in_steps_and_groups_go_on_behind_them(tmp_path: Path) -> None:
    clock = ManualClock()
    async with opened(tmp_path, TopicSpec(name="orders", partitions=1, retention=3600.0), clock=clock) as log:
        await log.append("orders", [made(str(n)) for n in range(2500)])
        await clock.advance(3601)
        await log.append("orders", [made("new")])
        await forgotten(log, 2500)
        assert (await log.stats("orders", "g")).lag == 1
        consumer = await log.consumer(["orders"], "g", limit=10)
        (record,) = await receive(consumer, 1)
        assert (record.offset, record.envelope.body) == (2500, b"new")
        await consumer.close()


async def test_a_topic_is_kept_within_its_bytes(tmp_path: Path) -> None:
    spec = TopicSpec(name="orders", partitions=1, retention=None, retention_bytes=100_000)
    async with opened(tmp_path, spec) as log:
        for n in range(30):
            await log.append("orders", [made("x" * 10_000, source=str(n))])
        await forgotten(log, 21)
        kept = await log.read("orders", 0, 0, 100)
        assert 90_000 <= sum(len(record.envelope.body) for record in kept) <= 100_000
        assert kept[-1].offset == 29


async def forgotten(log: SqliteLog, offset: int) -> None:
    """Until nothing before *offset* is there. An append lets the writer look, which then looks now and then."""
    async with asyncio.timeout(20):
        while (await log.read("orders", 0, 0, 1))[0].offset < offset:
            log._next_forgetting = 0.0
            log.file.writer._next_tick = 0.0
            log.file.poke("")
            await asyncio.sleep(0.01)


# ---- what is refused -------------------------------------------------------------------------------------------------


async def test_a_topic_nobody_declared_takes_no_event(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        sent = made()
        (refused,) = await log.append("other", [sent])
        assert isinstance(refused, MessageRefused)
        assert str(refused) == (
            f"The message {sent.id!r} was not sent: there is no topic 'other' in {log.path!r}; declare it first."
        )


async def test_partitions_are_not_changed(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        with pytest.raises(SetupError) as caught:
            await log.declare(
                [TopicSpec(name="orders", partitions=5), TopicSpec(name="new", partitions=0)],
                [GroupSpec(topic="nowhere", group="g")],
            )
        assert str(caught.value) == (
            f"The topics in {log.path!r} were not declared: 'orders' exists with partitions=4 instead of partitions=5; "
            "'new' asks for 0 partitions; one is the least; "
            "the group 'g' belongs to 'nowhere', and there is no such topic."
        )
        assert await log.check([TopicSpec(name="orders", partitions=4, retention=60.0), TopicSpec(name="new")]) == [
            "would change retention of 'orders' from 604800.0 to 60.0",
            "would create the topic 'new' with 8 partitions",
        ]


# ---- generations -----------------------------------------------------------------------------------------------------


def of_version_1(path: Path) -> None:
    connection = apsw.Connection(str(path / "bus.db"))
    connection.execute((Path(__file__).parent / "sqlite_bus_1.sql").read_text())
    connection.close()


async def test_a_file_of_version_1_is_upgraded_and_its_group_goes_on_where_it_was(tmp_path: Path) -> None:
    of_version_1(tmp_path)
    for generation in range(3):
        log = SqliteLog(f"sqlite:{tmp_path / 'bus.db'}")
        await log.start()
        try:
            await log.revive("orders", "billing", await log.dead("orders", "billing"))
            consumer = await log.consumer(["orders"], "billing", limit=10)
            wanted = 4 if generation else 3
            got: list[Record] = []
            while len(got) < wanted:
                got += await consumer.receive(wanted - len(got))
            await consumer.done(got)
            await consumer.close()
            found = sorted((record.envelope.id, record.retried, record.generation) for record in got)
            if generation == 0:
                assert found == [("id-1", True, 0), ("id-2", True, 0), ("id-3", False, 0)]
            else:
                assert found == [(f"id-{n}", False, generation) for n in range(4)]
            await log.seek("orders", "billing", Seek(earliest=True))
        finally:
            await log.close()


async def test_processes_that_open_an_old_file_at_once_upgrade_it_and_are_told_of_a_replay(tmp_path: Path) -> None:
    of_version_1(tmp_path)
    url = f"sqlite:{tmp_path / 'bus.db'}"
    arguments = (url, "--topic", "orders", "--group", "billing", "--limit", "10")
    log = SqliteLog(url)
    async with worker_process(*arguments) as one, worker_process(*arguments) as two:
        readers: list[Worker] = []
        while not readers:
            readers = [worker for worker in (one, two) if await worker.ask("assigned")]
        await log.start()
        try:
            await log.seek("orders", "billing", Seek(earliest=True))
        finally:
            await log.close()
        replayed: set[str] = set()
        while len(replayed) < 4:
            # Of the one that had the partition: the other one may have the retry.
            got = await readers[0].receive(1)
            replayed |= {each["id"] for each in got if each["generation"] == 1}
        assert replayed == {f"id-{n}" for n in range(4)}


async def test_an_event_that_died_in_two_generations_comes_again_in_both(tmp_path: Path) -> None:
    async with opened(tmp_path) as log:
        await log.append("orders", [made(key="k")])
        for _ in range(2):
            consumer = await log.consumer(["orders"], "g", limit=10)
            (record,) = await consumer.receive(1)
            await consumer.bury(record, Bury("rejected"))
            await consumer.close()
            await log.seek("orders", "g", Seek(earliest=True))
        await log.seek("orders", "g", Seek(latest=True))
        assert await log.revive("orders", "g", await log.dead("orders", "g")) == 2
        consumer = await log.consumer(["orders"], "g", limit=10)
        got: list[Record] = []
        while len(got) < 2:
            got += await consumer.receive(10)
        assert sorted(record.generation for record in got) == [0, 1]


async def test_an_event_that_kept_killing_its_readers_is_buried_with_its_generation(tmp_path: Path) -> None:
    topic = TopicSpec(name="orders", partitions=1)
    async with opened(tmp_path, topic) as log:
        await log.declare([topic], [GroupSpec(topic="orders", group="g", lost_limit=1)])
        await log.append("orders", [made(generation=9)])
        await log.seek("orders", "g", Seek(earliest=True))
        consumer = await log.consumer(["orders"], "g", limit=10)
        await consumer.receive(1)
        for member in consumer._members.values():
            owner = member.owner
            assert owner is not None
            await log.file.do(lambda tx, owner=owner: events.take_over(tx, owner))  # type: ignore[misc]  # a default binds the loop's variable
        (letter,) = await log.dead("orders", "g")
        assert (letter.reason, letter.envelope.generation) == ("worker_lost", 1)
