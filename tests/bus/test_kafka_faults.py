"""Kafka dies, its clients die, its groups come and go: nothing confirmed is lost, and keys stay in order."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kafka_support import QUICK, RestartedKafkaSuite, declared, event, of_topic, only, opened
from servers.kafka import Kafka
from servers.pytest_plugin import require_server
from tests.torture.running import killing_workers
from tests.torture.stage import kafka_stage
from torture_support import passes

from polywire.bus.backend.kafka import KafkaLog
from polywire.bus.core import LogConsumer, Partition
from polywire.errors import PublishUnknown

pytestmark = pytest.mark.slow

SOON = 60.0
KEYS = 20
PARTITIONS = 6
WORKER = Path(__file__).parent / "kafka_worker.py"


@pytest.fixture(scope="module")
def own_kafka(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    """One that may be killed: the tests of others do not notice."""
    require_server(request, "kafka")
    server = Kafka()
    server.start(tmp_path_factory.mktemp("kafka"))
    yield server
    server.kill()


@only(
    "a_member_goes_on_or_hears_of_it_when_the_backend_was_restarted",
    "the_generation_outlives_a_restart_of_the_backend",
    "what_waited_while_the_backend_was_down_is_appended",
    "what_was_confirmed_is_there_after_the_backend_was_restarted",
    "while_the_backend_is_down_appending_waits_at_most_its_timeout",
)
class TestKafkaRestarted(RestartedKafkaSuite):
    @pytest.fixture(autouse=True)
    def _server(self, own_kafka: Kafka) -> None:
        type(self).address, type(self).server = own_kafka.url, own_kafka


async def until(condition: Callable[[], bool], what: str) -> None:
    give_up = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < give_up, what
        await asyncio.sleep(0.05)


async def more(count: Callable[[], int], many: int) -> None:
    """Wait until that many more are counted."""
    before = count()
    await until(lambda: count() > before + many, f"{many} more than {before}")


class Appending:
    """Goes on appending numbered events of KEYS keys, one after the other per key, each again until it is confirmed."""

    def __init__(self, log: KafkaLog, topic: str, *, pause: float = 0.0) -> None:
        self.confirmed: dict[str, list[int]] = {}
        self.unknown = 0
        self._pause = pause
        self._log = log
        self._topic = topic
        self._ending = False
        self._tasks = [asyncio.ensure_future(self._send(f"k{number}")) for number in range(KEYS)]

    async def _send(self, key: str) -> None:
        numbers = self.confirmed.setdefault(key, [])
        while not self._ending:
            sent = event(f"{len(numbers)}", key=key)
            while (error := (await self._log.append(self._topic, [sent], timeout=2.0))[0]) is not None:
                # An answer that is unknown is asked for again with the same id, as its error says.
                assert isinstance(error, PublishUnknown), error
                self.unknown += 1
            numbers.append(len(numbers))
            await asyncio.sleep(self._pause)

    @property
    def count(self) -> int:
        return sum(map(len, self.confirmed.values()))

    async def end(self) -> None:
        self._ending = True
        await asyncio.gather(*self._tasks)


def check_order(seen: dict[str, list[int]], confirmed: dict[str, list[int]]) -> None:
    """Nothing is lost, and the first time that each number was seen is in order."""
    for key, numbers in confirmed.items():
        firsts = list(dict.fromkeys(seen.get(key, [])))
        assert firsts == numbers, key


async def test_a_broker_killed_under_load_loses_nothing_that_was_confirmed(own_kafka: Kafka) -> None:
    async with opened(f"{own_kafka.url}?{QUICK}") as log:
        topic = await declared(log, "billing", partitions=PARTITIONS)
        consumer = await log.consumer([topic], of_topic(topic), limit=100)
        seen: dict[str, list[int]] = {}

        async def handle() -> None:
            while True:
                records = await consumer.receive(50)
                for record in records:
                    seen.setdefault(record.envelope.key or "", []).append(int(record.envelope.body))
                await consumer.done(records)

        handling = asyncio.ensure_future(handle())
        appending = Appending(log, topic)
        for _ in range(2):
            await more(lambda: appending.count, 500)
            own_kafka.kill()
            await until(lambda: not log.connected, "the loss is noticed")
            assert not handling.done()
            await asyncio.to_thread(own_kafka.start_again)
            await until(lambda: log.connected, "the connection is back")
        await more(lambda: appending.count, 200)
        await appending.end()
        await until(lambda: sum(len(set(n)) for n in seen.values()) == appending.count, "all is received")
        handling.cancel()
        check_order(seen, appending.confirmed)


async def test_an_event_that_nobody_confirms_is_perhaps_sent(own_kafka: Kafka) -> None:
    async with opened(f"{own_kafka.url}?{QUICK}") as log:
        topic = await declared(log)
        assert await log.append(topic, [event("0")]) == [None]
        sent = event("1")
        os.kill(own_kafka.pid, signal.SIGSTOP)
        try:
            (error,) = await log.append(topic, [sent], timeout=0.5)
        finally:
            os.kill(own_kafka.pid, signal.SIGCONT)
        assert isinstance(error, PublishUnknown)
        assert error.id == sent.id
        assert str(error) == (
            f"The message {sent.id!r} was perhaps sent to the topic {topic!r}, perhaps not: "
            f"nobody confirmed it within 0.5 s. Send it again with the same id."
        )
        # librdkafka goes on with it: what comes later is behind it, and it is there once.
        assert await log.append(topic, [event("2")]) == [None]
        assert [record.envelope.body for record in await log.read(topic, 0, 0, 10)] == [b"0", b"1", b"2"]


class Told:
    """What workers said that they are about to be done with."""

    def __init__(self) -> None:
        self.seen: dict[str, list[int]] = {}
        self.done: Counter[str] = Counter()
        """Ids of events without a key."""
        self.count = 0

    def seen_all(self, count: int) -> bool:
        return sum(len(set(numbers)) for numbers in self.seen.values()) == count

    def note(self, line: bytes) -> None:
        told = json.loads(line)
        self.count += 1
        if told["key"] is None:
            self.done[told["id"]] += told["note"] == "done"
        else:
            self.seen.setdefault(told["key"], []).append(int(told["text"]))


class WorkerProcess:
    """`kafka_worker.py`."""

    def __init__(self, process: Process, told: Told) -> None:
        self._process = process
        self._reading = asyncio.ensure_future(self._read(told))

    @classmethod
    async def start(cls, url: str, topic: str, told: Told) -> WorkerProcess:
        command = sys.executable, str(WORKER), url, topic, of_topic(topic)
        process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)
        return cls(process, told)

    async def _read(self, told: Told) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            if line.endswith(b"\n"):
                told.note(line)

    async def kill(self) -> None:
        self._process.kill()
        await self._process.wait()
        await self._reading

    async def end(self) -> None:
        """As SIGTERM would: leave the group in order."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert await asyncio.wait_for(self._process.wait(), SOON) == 0
        await self._reading


async def append_unkeyed(log: KafkaLog, topic: str, confirmed: dict[str, str], ending: asyncio.Event) -> None:
    """Events that a worker is done with, retries once, or buries.

    It ends by itself: one that is cancelled leaves an event of which nobody knows whether it was appended.
    """
    for number in itertools.count():
        if ending.is_set():
            return
        sent = event(("plain", "retry", "bury")[number % 3])
        assert await log.append(topic, [sent]) == [None]
        confirmed[sent.id] = sent.body.decode()
        await asyncio.sleep(0.02)


@pytest.mark.timeout(300)
async def test_ten_killed_workers_of_the_real_consumer_lose_nothing(kafka_url: str, tmp_path: Path) -> None:
    """Effects behind the inbox once, keys in order, accounts closed; some events fail and some die."""
    stage = kafka_stage(kafka_url, "&group_protocol=classic&session_timeout=1")
    run, found = await passes(stage, tmp_path, killing_workers(10), workers=3)
    assert run.crew.killed == 10
    assert found.duplicates > 0


async def test_killed_workers_lose_no_event_and_keep_the_order_of_keys(kafka_url: str) -> None:
    """Two workers, of which one is killed four times: in the end every event is done, or among the dead letters."""
    url = f"{kafka_url}?{QUICK}&group_protocol=classic&session_timeout=1"
    async with opened(url) as log:
        topic = await declared(log, "billing", partitions=PARTITIONS)
        told, confirmed, dice = Told(), dict[str, str](), random.Random(4)
        workers = [await WorkerProcess.start(url, topic, told) for _ in range(2)]
        appending = Appending(log, topic, pause=0.01)
        ending = asyncio.Event()
        unkeyed = asyncio.ensure_future(append_unkeyed(log, topic, confirmed, ending))
        for _ in range(4):
            await more(lambda: told.count, 50)
            place = dice.randrange(2)
            await workers[place].kill()
            workers[place] = await WorkerProcess.start(url, topic, told)
        await appending.end()
        ending.set()
        await unkeyed
        done = {each for each, text in confirmed.items() if text != "bury"}
        await until(lambda: told.seen_all(appending.count) and done <= set(told.done), "all is handled")
        # Workers say nothing of what they bury: it is looked up before they leave.
        await until_dead(log, topic, confirmed.keys() - done)
        for worker in workers:
            await worker.end()
        check_order(told.seen, appending.confirmed)
        dead = await dead_of(log, topic)
        assert dead == confirmed.keys() - done
        assert not dead & set(told.done)

        stats = await log.stats(topic, of_topic(topic))
        assert (stats.lag, stats.members) == (0, 0)


async def dead_of(log: KafkaLog, topic: str) -> set[str]:
    return {letter.envelope.id for letter in await log.dead(topic, of_topic(topic), limit=10_000)}


async def until_dead(log: KafkaLog, topic: str, expected: set[str]) -> None:
    give_up = time.monotonic() + SOON
    while missing := expected - await dead_of(log, topic):
        assert time.monotonic() < give_up, missing
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("protocol", ["consumer", "classic&session_timeout=2"])
async def test_members_that_come_and_go_lose_nothing_and_never_share_a_partition(kafka_url: str, protocol: str) -> None:
    url = f"{kafka_url}?{QUICK}&group_protocol={protocol}"
    async with opened(url) as log:
        topic = await declared(log, "billing", partitions=PARTITIONS)
        storm = Storm(log, topic)
        appending = Appending(log, topic)
        await storm.join()
        for step in ("join", "join", "leave", "join", "leave", "leave"):
            await getattr(storm, step)()
        await appending.end()
        await until(lambda: storm.count >= appending.count, "all is handled")
        await storm.leave()
        check_order(storm.seen, appending.confirmed)
        # Everybody was told before, and left in order: nothing was handled twice.
        assert storm.seen == appending.confirmed
        assert (await log.stats(topic, of_topic(topic))).lag == 0


class Storm:
    """Members of one group that handle one event at a time per partition, and are told when they lose one."""

    def __init__(self, log: KafkaLog, topic: str) -> None:
        self.seen: dict[str, list[int]] = {}
        self._log = log
        self._topic = topic
        self._members: list[tuple[LogConsumer, asyncio.Task[None]]] = []

    @property
    def count(self) -> int:
        return sum(map(len, self.seen.values()))

    async def join(self) -> None:
        member = _StormMember(self)
        consumer = await self._log.consumer([self._topic], of_topic(self._topic), limit=50, revoking=member.revoking)
        self._members.append((consumer, asyncio.ensure_future(member.run(consumer))))
        await self._even()

    async def leave(self) -> None:
        consumer, task = self._members.pop(0)
        task.cancel()
        await asyncio.wait([task])
        await consumer.close()
        await self._even()

    async def _even(self) -> None:
        """Every member has its share, and goes on with it."""
        if not self._members:
            return
        share = PARTITIONS // len(self._members)

        def spread() -> bool:
            return all(share <= len(consumer.assigned) <= share + 1 for consumer, _ in self._members)

        await until(spread, "the partitions are spread evenly")
        await more(lambda: self.count, 50)


class _StormMember:
    def __init__(self, storm: Storm) -> None:
        self._storm = storm
        self._busy = asyncio.Lock()
        self._newest = 0
        """The highest epoch of what was received."""
        self._void: dict[Partition, int] = {}
        """What was received of a partition up to this epoch is somebody else's."""

    async def revoking(self, partitions: frozenset[Partition]) -> None:
        self._void.update(dict.fromkeys(partitions, self._newest))
        async with self._busy:
            pass

    async def run(self, consumer: LogConsumer) -> None:
        while True:
            records = await consumer.receive(20)
            self._newest = max(self._newest, *(record.epoch for record in records))
            async with self._busy:
                for record in records:
                    if record.epoch > self._void.get((record.topic, record.partition), 0):
                        self._storm.seen.setdefault(record.envelope.key or "", []).append(int(record.envelope.body))
                        await consumer.done([record])
