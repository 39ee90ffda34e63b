"""The bus of a system as its operator sees it: every queue, topic and group that its services declare."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polywire.bus.core import (
    Binding,
    DeadFilter,
    DeadLetter,
    Envelope,
    EventLog,
    GroupSpec,
    GroupStats,
    QueueSpec,
    QueueStats,
    Seek,
    TaskQueue,
    TopicSpec,
)
from polywire.bus.sending import Sender, topics_of
from polywire.clock import SYSTEM_CLOCK
from polywire.contract import Contract, Event, Task, event_of, service_of
from polywire.errors import SetupError, Unsupported
from polywire.system.backends import as_fanout, as_log, is_fanout
from polywire.system.bus_plan import backends_of
from polywire.system.consuming import placed_queues
from polywire.system.plan import Plan
from polywire.system.reading import did_you_mean

PAGE = 100
"""Dead letters that are looked at or moved in one go."""
OPERATOR = "operator"
"""The source of what is sent from the command line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuePlace:
    """A queue: of tasks, or of a group behind a fan-out."""

    name: str
    backend: TaskQueue
    queue: str

    async def dead(self, which: DeadFilter, limit: int) -> list[DeadLetter]:
        return await self.backend.dead(self.queue, which, limit=limit)

    async def revive(self, letters: Sequence[DeadLetter]) -> int:
        return await self.backend.revive(self.queue, letters)

    async def drop(self, letters: Sequence[DeadLetter]) -> int:
        return await self.backend.drop(self.queue, letters)

    async def stats(self) -> QueueStats:
        return await self.backend.stats(self.queue)

    async def peek(self, limit: int) -> list[Envelope]:
        return await self.backend.peek(self.queue, limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupPlace:
    """A group of a log, named `TOPIC/GROUP`."""

    name: str
    backend: EventLog
    topic: str
    group: str

    async def dead(self, which: DeadFilter, limit: int) -> list[DeadLetter]:
        return await self.backend.dead(self.topic, self.group, which, limit=limit)

    async def revive(self, letters: Sequence[DeadLetter]) -> int:
        return await self.backend.revive(self.topic, self.group, letters)

    async def drop(self, letters: Sequence[DeadLetter]) -> int:
        return await self.backend.drop(self.topic, self.group, letters)

    async def stats(self) -> GroupStats:
        return await self.backend.stats(self.topic, self.group)

    async def peek(self, limit: int) -> list[Envelope]:
        """From the first event on that the group has not done, in all partitions."""
        by_partition = (await self.stats()).by_partition
        found: list[Envelope] = []
        for partition, lag in sorted(by_partition.items()):
            if lag and len(found) < limit:
                end = await _end(self.backend, self.topic, partition)
                records = await self.backend.read(self.topic, partition, max(0, end - lag), limit - len(found))
                found += [record.envelope for record in records]
        return found

    async def seek(self, to: Seek) -> None:
        await self.backend.seek(self.topic, self.group, to)


Place = QueuePlace | GroupPlace


async def _end(log: EventLog, topic: str, partition: int) -> int:
    """The offset after the last event of a partition, found by doubling: the seam has no question for it."""
    step, low = 1, 0
    while await log.read(topic, partition, low + step - 1, 1):
        low, step = low + step, step * 2
    high = low + step - 1
    while low < high:
        middle = (low + high) // 2
        if await log.read(topic, partition, middle, 1):
            low = middle + 1
        else:
            high = middle
    return low


class Operator:
    """Looks at and changes the bus of a system, from beside it. `operating` opens one."""

    def __init__(self, made: Plan) -> None:
        parts = [made.part(name) for name in made.apps]
        contracts = tuple(dict.fromkeys(one for part in parts for one in (*part.handles, *part.sends)))
        subscriptions = [one for part in parts for one in part.subscriptions]
        topology = topics_of((), subscriptions, known=made.system.topics)
        self.backends = backends_of(made.system, tasks=bool(contracts), events=any(part.has_events for part in parts))
        self.queues: Sequence[tuple[str, QueueSpec]] = placed_queues(contracts)
        self.topics: Sequence[TopicSpec] = topology.topics
        self.groups: Sequence[GroupSpec] = topology.groups
        self.bindings: Sequence[Binding] = topology.bindings
        self.tasks: Mapping[str, Task] = _tasks_of(contracts)
        self.events: Mapping[str, type[Event]] = _events_of(subscriptions)
        self.sender = Sender(OPERATOR, tasks=self.backends.tasks, events=self.backends.events, clock=SYSTEM_CLOCK)

    def places(self) -> list[Place]:
        """Every queue and group, queues first."""
        found: list[Place] = []
        for contract, spec in self.queues:
            backend = self.backends.tasks.of(contract, "tasks")
            found.append(QueuePlace(name=spec.name, backend=backend, queue=spec.name))
        for group, binding in zip(self.groups, self.bindings, strict=True):
            events = self.backends.events.of(group.topic, "events")
            name = f"{group.topic}/{group.group}"
            if is_fanout(events):
                found.append(QueuePlace(name=name, backend=as_fanout(events).queues, queue=binding.queue))
            else:
                found.append(GroupPlace(name=name, backend=as_log(events), topic=group.topic, group=group.group))
        return found

    def place(self, name: str) -> Place:
        """A queue by its name, a group by `TOPIC/GROUP`. Raises SetupError where there is none."""
        places = {place.name: place for place in self.places()}
        if name not in places:
            raise SetupError(
                f"There is no queue or group {name!r}. {did_you_mean(name, places)}There are: "
                f"{', '.join(places) or 'none'}."
            )
        return places[name]

    async def plan(self) -> list[str]:
        """What `apply` would do or refuse, a line each."""
        lines: list[str] = []
        for contract, spec in self.queues:
            lines += await self.backends.tasks.of(contract, "tasks").check([spec])
        for topic, groups, bindings in self._by_topic():
            events = self.backends.events.of(topic.name, "events")
            if is_fanout(events):
                lines += await as_fanout(events).check([topic.name], bindings)
            else:
                lines += await as_log(events).check([topic], groups)
        return lines

    async def apply(self) -> None:
        """Create what is missing. Raises SetupError naming each difference to what exists."""
        await self.backends.declare_queues(self.queues)
        await self.backends.declare_topics(self.topics, self.groups, self.bindings)

    def _by_topic(self) -> list[tuple[TopicSpec, list[GroupSpec], list[Binding]]]:
        return [
            (
                topic,
                [one for one in self.groups if one.topic == topic.name],
                [one for one in self.bindings if one.topic == topic.name],
            )
            for topic in self.topics
        ]

    async def replay(self, name: str, to: Seek) -> None:
        """Let a group go on from somewhere else. Raises Unsupported for a queue, GroupRunning."""
        place = self.place(name)
        if not isinstance(place, GroupPlace):
            raise Unsupported(
                f"{name!r} was not replayed: a queue keeps nothing that was done. Only groups of a log can be."
            )
        await place.seek(to)


@contextlib.asynccontextmanager
async def operating(made: Plan) -> AsyncIterator[Operator]:
    """An operator of the system that *made* describes, connected for the length of the block."""
    operator = Operator(made)
    await operator.backends.start()
    try:
        yield operator
    finally:
        operator.sender.close()
        await operator.backends.close()


def _tasks_of(contracts: Sequence[type[Contract]]) -> dict[str, Task]:
    """By full name on the wire and with the name of the Python method."""
    found: dict[str, Task] = {}
    for contract in contracts:
        service = service_of(contract)
        for attribute, task in service.tasks.items():
            found[f"{service.full_name}/{attribute}"] = task
            found[task.full_name] = task
    return found


def _events_of(subscriptions: Sequence[Any]) -> dict[str, type[Event]]:
    """Those that somebody is subscribed to, and those of the same modules, by their type on the wire."""
    found = {event.type: event.event for one in subscriptions for event in one.events}
    for one in _subclasses(Event):
        if one.__polywire__.event is not None and one.__polywire__.event.topic is not None:
            found.setdefault(event_of(one).type, one)
    return found


def _subclasses(base: type[Any]) -> list[type[Any]]:
    return [one for cls in base.__subclasses__() for one in (cls, *_subclasses(cls))]
