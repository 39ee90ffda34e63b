"""A worker to be killed: the real consumer, with effects in a store behind its inbox. `worker.py WORKPLACE` (JSON).

What it does it writes into a file of its own, a line at a time, so that nothing of it is lost when it is killed:
`ready`, `begin ID` before a start is told to the backend, `start ID ATTEMPT TIME` by the handler, `done ID`,
`duplicate ID`, `deadly ID` before it kills itself, and `ended RELEASED` after SIGTERM.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import sys
import time
from collections.abc import Collection, Sequence
from typing import Any, NoReturn, cast

import msgspec
from tests.torture.messages import ATTEMPTS, FAILURES, TYPE, Job, Place, group_of

from polywire.bus.backend.opening import open_events, open_tasks
from polywire.bus.consumer import Alone, Handling, LogRunner, QueueRunner
from polywire.bus.core import Delivery, EventLog, Record, Settlement, TaskQueue
from polywire.clock import SYSTEM_CLOCK
from polywire.context import current
from polywire.contract.retry import Backoff
from polywire.durable.migrations import Migration
from polywire.durable.store.apsw import SqliteStore
from polywire.errors import AlreadyDone, BackendUnreachable, Reject

EFFECTS = (
    Migration(
        1,
        "what handlers did, in order",
        "CREATE TABLE effect (n INTEGER PRIMARY KEY AUTOINCREMENT, message TEXT NOT NULL, place TEXT NOT NULL)",
    ),
)
TRIES_AGAIN = Backoff(attempts=ATTEMPTS, base=0.05, cap=0.2)
RECONNECT = 0.2
"""Seconds before a backend is tried again that was not there."""


class Workplace(msgspec.Struct, kw_only=True):
    places: list[Place]
    tasks: str
    events: str
    store: str
    log: str
    pause: float = 0.003
    """Seconds at most that a handler takes before its transaction, and again afterwards."""
    slow: float = 1.0
    """Seconds of a `slow` message."""
    grace: float = 0.2
    """Seconds that handlers have after SIGTERM."""
    concurrency: int = 8
    inbox: bool = True
    """False is a planted bug: effects are not tied to the inbox."""
    early: bool = False
    """True is a planted bug: messages are acknowledged before they are handled."""


class Notes:
    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def write(self, *words: object) -> None:
        os.write(self._file, (" ".join(map(str, words)) + "\n").encode())


class Hands:
    """The handlers."""

    def __init__(self, store: SqliteStore, notes: Notes, workplace: Workplace) -> None:
        self._store = store
        self._notes = notes
        self._workplace = workplace

    def handling(self, place: Place) -> Handling:
        async def handle(job: Job) -> None:
            await self._handle(job, place)

        return Handling(
            types={TYPE: Job}, function=handle, name=f"{place.name}.handle",
            backoff=TRIES_AGAIN, at_most_once=self._workplace.early,
        )  # fmt: skip

    async def _handle(self, job: Job, place: Place) -> None:
        message = current().message
        assert message is not None
        self._notes.write("start", message.id, message.attempt, time.time())
        await self._pause()
        if job.kind == "slow":
            await asyncio.sleep(self._workplace.slow)
        self._fail(job, message.id, message.attempt)
        try:
            async with self._store.transaction(inbox=self._workplace.inbox) as tx:
                await tx.execute("INSERT INTO effect (message, place) VALUES ($1, $2)", (message.id, place.name))
        except AlreadyDone:
            self._notes.write("duplicate", message.id)
            raise
        self._notes.write("done", message.id)
        await self._pause()

    async def _pause(self) -> None:
        await asyncio.sleep(random.random() * self._workplace.pause)

    def _fail(self, job: Job, id: str, attempt: int) -> None:
        """As its kind demands."""
        if job.kind == "deadly":
            self._notes.write("deadly", id)
            kill_this_process()
        if job.kind == "poison" or (job.kind == "retry" and attempt <= FAILURES):
            raise ValueError(f"as asked, in attempt {attempt}")
        if job.kind == "reject":
            raise Reject("as asked")


def kill_this_process() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("SIGKILL did not end this process")


def watched_queue(queue: TaskQueue, notes: Notes) -> TaskQueue:
    """The same, noting what is about to be started."""
    opened = queue.consumer

    async def consumer(queue: str, *, limit: int) -> Any:
        made = await opened(queue, limit=limit)
        settle = made.settle

        async def settle_noting(
            settlements: Sequence[Settlement], starting: Sequence[Delivery] = ()
        ) -> Collection[Delivery]:
            for delivery in starting:
                notes.write("begin", delivery.envelope.id)
            return await settle(settlements, starting)

        made.settle = settle_noting  # type: ignore[method-assign]  # replaced for the test
        return made

    queue.consumer = consumer  # type: ignore[method-assign]  # replaced for the test
    return queue


def watched_log(events: EventLog, notes: Notes) -> EventLog:
    """The same, noting what is handed out: of a log, nobody else knows what was started."""
    opened = events.consumer

    async def consumer(*arguments: Any, **options: Any) -> Any:
        made = await opened(*arguments, **options)
        receive = made.receive

        async def receive_noting(limit: int) -> list[Record]:
            records = await receive(limit)
            for record in records:
                notes.write("begin", record.envelope.id)
            return records

        made.receive = receive_noting  # type: ignore[method-assign]  # replaced for the test
        return made

    events.consumer = consumer  # type: ignore[method-assign]  # replaced for the test
    return events


async def started(backend: Any) -> Any:
    """As a supervisor would, which starts what ended until it goes on."""
    while True:
        try:
            await backend.start()
        except BackendUnreachable:
            await asyncio.sleep(RECONNECT)
        else:
            return backend


def runners_of(workplace: Workplace, hands: Hands, backends: dict[bool, Any]) -> list[QueueRunner | LogRunner]:
    """One for each place. *backends* by whether they are a log."""
    alone = Alone(SYSTEM_CLOCK)
    found: list[QueueRunner | LogRunner] = []
    for place in workplace.places:
        handlings, size = [hands.handling(place)], workplace.concurrency
        if place.log:
            made: QueueRunner | LogRunner = LogRunner(
                backends[True], [place.name], group_of(place.name), handlings, concurrency=size, alone=alone
            )
        else:
            made = QueueRunner(
                backends[False], place.name, handlings, concurrency=size, keyed=place.keys > 0, alone=alone
            )
        found.append(made)
    return found


async def opened_backends(workplace: Workplace, notes: Notes) -> dict[bool, Any]:
    found: dict[bool, Any] = {}
    if workplace.tasks:
        found[False] = watched_queue(await started(open_tasks(workplace.tasks)), notes)
    if workplace.events:
        found[True] = watched_log(cast(EventLog, await started(open_events(workplace.events))), notes)
    return found


async def work(workplace: Workplace) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    notes = Notes(workplace.log)
    async with SqliteStore(workplace.store, migrations=EFFECTS) as store:
        backends = await opened_backends(workplace, notes)
        runners = runners_of(workplace, Hands(store, notes, workplace), backends)
        for runner in runners:
            await runner.start()
        notes.write("ready")
        await stop.wait()
        await asyncio.gather(*(runner.stop(workplace.grace) for runner in runners))
        for backend in backends.values():
            await backend.close()
    notes.write("ended", sum(runner.counters.released for runner in runners))


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("polywire.consumer").setLevel(logging.CRITICAL)
    asyncio.run(work(msgspec.json.decode(sys.argv[1], type=Workplace)))
