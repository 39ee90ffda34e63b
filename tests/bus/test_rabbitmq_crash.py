"""RabbitMQ and its workers killed while messages flow: nothing confirmed is lost, and the accounts close."""

from __future__ import annotations

import asyncio
import contextlib
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from rabbitmq_support import CleanQueue, a_name, an_envelope, opened, until, within
from servers.keeper import ROOT
from servers.pytest_plugin import require_server
from servers.rabbitmq import RabbitMQ
from tests.torture.running import killing_workers
from tests.torture.stage import rabbitmq_stage
from torture_support import passes

from polywire.bus.backend.rabbitmq import RabbitQueue
from polywire.bus.core import Ack, DeadLetter, QueueSpec, Settlement
from polywire.errors import DeliveryError, MessageRefused, PublishUnknown

pytestmark = pytest.mark.slow

KILLS = 10
WORKERS = 3
SETTLED = 2.0
"""Seconds after declaring a quorum queue within which a SIGKILL leaves it registered and dead (3.10 and 4.0)."""


class Sent:
    """What became of what was sent, as far as its sender knows."""

    def __init__(self) -> None:
        self.confirmed: set[str] = set()
        self.unknown: set[str] = set()

    async def keep_sending(self, queue: RabbitQueue, name: str) -> None:
        """Until cancelled, some at a time."""
        dice = random.Random(1)
        while True:
            envelopes = [an_envelope(dice.choice(["ok"] * 8 + ["retry", "bury"])) for _ in range(5)]
            self.unknown |= {envelope.id for envelope in envelopes}  # Until it is known; perhaps nobody waits for that.
            for envelope, result in zip(envelopes, await queue.send(name, envelopes, timeout=5.0), strict=True):
                if isinstance(result, PublishUnknown):
                    continue
                assert result is None or isinstance(result, MessageRefused), result
                self.unknown.discard(envelope.id)
                if result is None:
                    self.confirmed.add(envelope.id)
            await asyncio.sleep(0.02)


def start_worker(url: str, name: str, log: Path) -> subprocess.Popen[bytes]:
    program = Path(__file__).parent / "rabbitmq_worker.py"
    return subprocess.Popen([sys.executable, str(program), url, name, str(log)], cwd=ROOT)


@contextlib.contextmanager
def workers(url: str, name: str, log: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    running = [start_worker(url, name, log) for _ in range(WORKERS)]
    try:
        yield running
    finally:
        for worker in running:
            worker.kill()
            worker.wait()


def starts(log: Path) -> list[tuple[str, int, int, int]]:
    """Id, attempt, lost and process of every handler that got to its end."""
    lines = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
    return [(identifier, int(attempt), int(lost), int(pid)) for identifier, attempt, lost, pid in lines]


async def all_dead(queue: RabbitQueue, name: str) -> list[DeadLetter]:
    return await queue.dead(name, limit=100_000)


@pytest.mark.timeout(300)
async def test_fifty_killed_workers_of_the_real_consumer_lose_nothing(rabbitmq_url: str, tmp_path: Path) -> None:
    """Effects behind the inbox once, keys in order, accounts closed; some messages fail, die, or kill their worker."""
    stage = rabbitmq_stage(rabbitmq_url)
    run, found = await passes(stage, tmp_path, killing_workers(50), workers=WORKERS, deadly_every=1000)
    assert run.crew.killed == 50
    assert found.duplicates > 0
    async with opened(rabbitmq_url, *stage.queues):
        pass  # which deletes them


async def test_killed_workers_lose_nothing_and_the_accounts_close(rabbitmq_url: str, tmp_path: Path) -> None:
    name, log, sent, dice = a_name(), tmp_path / "done", Sent(), random.Random(2)
    async with opened(rabbitmq_url, QueueSpec(name=name)) as queue:
        with workers(rabbitmq_url, name, log) as running:
            sending = asyncio.create_task(sent.keep_sending(queue, name))
            for kill in range(KILLS):
                victim = kill % WORKERS

                async def it_works(pid: int = running[victim].pid) -> bool:
                    return any(by == pid for _, _, _, by in starts(log))

                await until(it_works, f"work of the worker to be killed as number {kill + 1}", seconds=60)
                await asyncio.sleep(dice.random() * 0.05)
                running[victim].kill()
                running[victim].wait()
                running[victim] = start_worker(rabbitmq_url, name, log)
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            assert len(sent.unknown) <= 5

            async def all_accounted_for() -> bool:
                ended = {identifier for identifier, *_ in starts(log)}
                missing = sent.confirmed - ended
                return missing <= {letter.envelope.id for letter in await all_dead(queue, name)} if missing else True

            await until(all_accounted_for, "an end for every message", seconds=60)
            await until(lambda: is_empty(queue, name), "an empty queue", seconds=60)
        dead = await all_dead(queue, name)
    check_accounts(sent, starts(log), dead)


async def is_empty(queue: RabbitQueue, name: str) -> bool:
    return (await queue.stats(name)).ready == 0


def check_accounts(sent: Sent, done: list[tuple[str, int, int, int]], dead: list[DeadLetter]) -> None:
    ended = {identifier for identifier, *_ in done}
    buried = {letter.envelope.id for letter in dead}
    assert sent.confirmed <= ended | buried
    assert ended | buried <= sent.confirmed | sent.unknown
    # Nobody kills a message's worker on purpose: nearly all end at the first or second attempt.
    assert max(lost for _, _, lost, _ in done) < 3
    assert {letter.reason for letter in dead} <= {"rejected", "worker_lost"}
    lost = Counter(attempt for _, attempt, *_ in done)
    assert lost[1] > lost[3] * 10


async def test_a_broker_killed_under_load_loses_nothing_that_was_confirmed(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    require_server(request, "rabbitmq")
    server, name, sent = RabbitMQ(), a_name(), Sent()
    url = server.start(tmp_path / "server")
    queue = RabbitQueue(url)
    try:
        await queue.start()
        await queue.declare([QueueSpec(name=name)])
        got: set[str] = set()
        await asyncio.sleep(SETTLED)
        sending = asyncio.create_task(sent.keep_sending(queue, name))
        receiving = asyncio.create_task(keep_receiving(queue, name, got))
        for _ in range(2):
            await until_more(got, 100)
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.restart)
        await until_more(got, 100)
        sending.cancel()

        async def all_there() -> bool:
            return sent.confirmed <= got

        await until(all_there, "everything that was confirmed", seconds=60)
        receiving.cancel()
        await asyncio.gather(sending, receiving, return_exceptions=True)
        assert sent.confirmed <= got <= sent.confirmed | sent.unknown
        assert len(sent.confirmed) > 200
    finally:
        await queue.close()
        server.kill()
        server.stop()


async def until_more(got: set[str], count: int) -> None:
    enough = len(got) + count

    async def flows() -> bool:
        return len(got) >= enough

    await until(flows, f"{count} more messages", seconds=60)


async def keep_receiving(queue: RabbitQueue, name: str, got: set[str]) -> None:
    """Until cancelled, with a new consumer whenever the connection is lost."""
    while True:
        try:
            consumer = await queue.consumer(name, limit=20)
            while True:
                for delivery in await consumer.receive(10):
                    got.add(delivery.envelope.id)
                    await consumer.settle([Settlement(delivery, Ack())])
        except DeliveryError:
            await asyncio.sleep(0.05)


async def test_a_sender_that_is_cut_off_comes_back_by_itself(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    require_server(request, "rabbitmq")
    server, name = RabbitMQ(), a_name()
    queue = CleanQueue(server.start(tmp_path / "server"))
    shown = server.url.replace("guest:guest", "guest:***")
    try:
        await queue.start()
        await queue.declare([QueueSpec(name=name)])
        await asyncio.sleep(SETTLED)
        server.kill()
        await until(lambda: is_cut_off(queue), "losing the connection")
        envelope = an_envelope()
        [error] = await within(queue.send(name, [envelope], timeout=0.5))
        assert isinstance(error, MessageRefused)
        assert str(error) == (
            f"Message {envelope.id!r} to {name!r} was not sent: RabbitMQ at '{shown}' is not connected (Connection "
            f"refused). Try again later."
        )
        waiting = asyncio.create_task(queue.send(name, [an_envelope()], timeout=60.0))
        await asyncio.to_thread(server.restart)
        assert await within(waiting, 60.0) == [None]
    finally:
        await queue.close()
        server.kill()
        server.stop()


async def is_cut_off(queue: RabbitQueue) -> bool:
    return not queue.connected
