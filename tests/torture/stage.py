"""Where a run takes place: a bus with its queues and topics, and the server behind it, if there is one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import cast

import apsw
from servers import find
from servers.base import Server
from tests.torture.messages import Place, group_of

from polywire.bus.backend.opening import open_events, open_tasks
from polywire.bus.core import (
    DeadLetter,
    Envelope,
    EventLog,
    GroupSpec,
    QueueSpec,
    TaskQueue,
    TopicSpec,
    new_id,
)
from polywire.errors import DeliveryError

MOST_DEAD = 1_000_000
LOST_LIMIT = 3
PARTITIONS = 12
"""Of each topic: as many for each of two, three or four workers, who are to get the same share of the work."""


class Stage:
    """A bus as the ones who send and the ones who check see it. Opened by `start`."""

    def __init__(self, backend: str, places: Sequence[Place], *, tasks: str = "", events: str = "") -> None:
        self.backend = backend
        self.tasks = tasks
        """URL of the queues, empty where there are none."""
        self.events = events
        self.places = tuple(places)
        self._queue: TaskQueue | None = None
        self._log: EventLog | None = None

    async def start(self) -> None:
        if self.tasks:
            self._queue = open_tasks(self.tasks)
            await self._queue.start()
            await self._queue.declare(self.queues)
        if self.events:
            self._log = cast(EventLog, open_events(self.events))
            await self._log.start()
            topics = [place.name for place in self.places if place.log]
            groups = [GroupSpec(topic=name, group=group_of(name), lost_limit=LOST_LIMIT) for name in topics]
            await self._log.declare([TopicSpec(name=name, partitions=PARTITIONS) for name in topics], groups)

    @property
    def queues(self) -> list[QueueSpec]:
        return [
            QueueSpec(name=place.name, keyed=place.keys > 0, lost_limit=LOST_LIMIT)
            for place in self.places
            if not place.log
        ]

    async def close(self) -> None:
        for backend in (self._queue, self._log):
            if backend is not None:
                await backend.close()

    async def send(self, place: Place, envelopes: Sequence[Envelope], timeout: float) -> list[Exception | None]:
        if place.log:
            return await self._events().append(place.name, envelopes, timeout=timeout)
        return await self._tasks().send(place.name, envelopes, timeout=timeout)

    async def pending(self) -> int | None:
        """Messages that wait or are held, as far as the backend tells; None where it cannot be asked now."""
        try:
            return sum([await self._pending(place) for place in self.places])
        except DeliveryError:
            return None

    async def _pending(self, place: Place) -> int:
        if place.log:
            return (await self._events().stats(place.name, group_of(place.name))).lag
        stats = await self._tasks().stats(place.name)
        return stats.ready + (stats.delayed or 0) + (stats.in_flight or 0)

    async def dead(self) -> list[DeadLetter]:
        found: list[DeadLetter] = []
        for place in self.places:
            if place.log:
                found += await self._events().dead(place.name, group_of(place.name), limit=MOST_DEAD)
            else:
                found += await self._tasks().dead(place.name, limit=MOST_DEAD)
        return found

    def _tasks(self) -> TaskQueue:
        assert self._queue is not None
        return self._queue

    def _events(self) -> EventLog:
        assert self._log is not None
        return self._log


def sqlite_stage(directory: Path) -> Stage:
    url = f"sqlite:{directory / 'bus.db'}"
    places = [
        Place(name="jobs", delays=True),
        Place(name="orders", keys=24),
        Place(name="paid", log=True, keys=24, mixed=True),
    ]
    return Stage("sqlite", places, tasks=url, events=url)


def rabbitmq_stage(url: str) -> Stage:
    mark = new_id()[-8:]
    places = [Place(name=f"torture-jobs-{mark}", delays=True), Place(name=f"torture-orders-{mark}", keys=24)]
    return Stage("rabbitmq", places, tasks=url)


def kafka_stage(url: str, options: str = "") -> Stage:
    place = Place(name=f"torture-{new_id()[-8:]}", log=True, keys=24, mixed=True)
    return Stage("kafka", [place], events=f"{url}?commit_interval=0.05{options}")


def server_of(backend: str) -> Server | None:
    """None for a backend that is none. Raises ServerError where it is not installed."""
    return None if backend == "sqlite" else find(backend)()


def versions(backend: str) -> str:
    """Of what a run rests on."""
    python = ".".join(map(str, sys.version_info[:3]))
    if backend == "sqlite":
        return f"Python {python}, SQLite {apsw.sqlite_lib_version()}"
    client = {"rabbitmq": "pika", "kafka": "confluent-kafka"}[backend]
    return f"Python {python}, {client} {version(client)}"
