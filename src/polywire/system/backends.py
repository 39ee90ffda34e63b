"""The backends of one process: each URL is opened once, and what nobody declared is declared when it is first used."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

from polywire.bus.backend.opening import open_events, open_tasks
from polywire.bus.core import Binding, Envelope, EventLog, Fanout, GroupSpec, QueueSpec, TaskQueue, TopicSpec
from polywire.bus.sending import BusWires
from polywire.clock import SYSTEM_CLOCK, Clock
from polywire.system.bus_wires import BackendUrls

Events = EventLog | Fanout
NOT_SAID: Mapping[str, TopicSpec] = MappingProxyType({})
OpenTasks = Callable[[str], TaskQueue]
OpenEvents = Callable[[str], Events]


class Backends:
    """What the tasks and events of a process travel on. Opened by `start`; nothing is connected before."""

    def __init__(
        self,
        tasks: BackendUrls,
        events: BackendUrls,
        *,
        topics: Mapping[str, TopicSpec] = NOT_SAID,
        clock: Clock = SYSTEM_CLOCK,
        tasks_at: OpenTasks | None = None,
        events_at: OpenEvents | None = None,
    ) -> None:
        make_tasks = tasks_at or (lambda url: open_tasks(url, clock=clock))
        make_events = events_at or (lambda url: open_events(url, clock=clock))
        self._queues = {url: make_tasks(url) for url in tasks.urls}
        self._topics = {url: _declaring(make_events(url), topics) for url in events.urls}
        self.tasks: BusWires[TaskQueue] = _wires(tasks, self._queues)
        self.events: BusWires[Events] = _wires(events, self._topics)
        self._started: list[TaskQueue | Events] = []

    async def start(self) -> None:
        """Connect to all of them. Raises BackendUnreachable for the first that does not answer, with none left open."""
        try:
            for backend in (*self._queues.values(), *self._topics.values()):
                await backend.start()
                self._started.append(backend)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Close what was started, in reverse order. May be called twice."""
        while self._started:
            await self._started.pop().close()

    async def declare_queues(self, queues: Iterable[tuple[str, QueueSpec]]) -> None:
        """Each queue with the contract whose wire it takes."""
        found: dict[int, tuple[TaskQueue, dict[str, QueueSpec]]] = {}
        for contract, spec in queues:
            backend = self.tasks.of(contract, "tasks")
            found.setdefault(id(backend), (backend, {}))[1][spec.name] = spec
        for backend, specs in found.values():
            await backend.declare(list(specs.values()))

    async def declare_topics(
        self, topics: Sequence[TopicSpec], groups: Sequence[GroupSpec], bindings: Sequence[Binding]
    ) -> None:
        for topic in topics:
            backend = self.events.of(topic.name, "events")
            if is_fanout(backend):
                bound = [one for one in bindings if one.topic == topic.name]
                await as_fanout(backend).declare([topic.name], bound)
            else:
                await as_log(backend).declare([topic], [one for one in groups if one.topic == topic.name])


def is_fanout(backend: Any) -> bool:
    """Of the two kinds of event backends, only a fan-out has queues."""
    return hasattr(backend, "queues")


def as_log(backend: Events) -> EventLog:
    return cast(EventLog, backend)


def as_fanout(backend: Events) -> Fanout:
    return cast(Fanout, backend)


def _wires(urls: BackendUrls, opened: dict[str, Any]) -> BusWires[Any]:
    default = None if urls.default is None else opened[urls.default]
    return BusWires(default=default, by_name={name: opened[url] for name, url in urls.by_name.items()})


def _declaring(backend: Events, topics: Mapping[str, TopicSpec]) -> Events:
    return cast(Events, (_DeclaringFanout if is_fanout(backend) else _DeclaringLog)(backend, topics))


class _Declaring:
    """An event backend that declares a topic before the first event is put into it, unless somebody did before.

    Who publishes says nowhere what; who subscribes does.
    """

    def __init__(self, backend: Any, topics: Mapping[str, TopicSpec]) -> None:
        self._backend = backend
        self._topics = topics
        self._declared: set[str] = set()
        self._lock = asyncio.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def _note(self, topics: Iterable[str]) -> None:
        self._declared.update(topics)

    async def _ensure(self, topic: str) -> None:
        if topic in self._declared:
            return
        async with self._lock:
            if topic not in self._declared:
                await self._create(topic)
                self._declared.add(topic)

    async def _create(self, topic: str) -> None:
        raise NotImplementedError


class _DeclaringLog(_Declaring):
    async def _create(self, topic: str) -> None:
        await self._backend.declare([self._topics.get(topic) or TopicSpec(name=topic)])

    async def declare(self, topics: Sequence[TopicSpec], groups: Sequence[GroupSpec] = ()) -> None:
        await self._backend.declare(topics, groups)
        self._note(topic.name for topic in topics)

    async def append(
        self, topic: str, envelopes: Sequence[Envelope], *, timeout: float | None = None
    ) -> list[Exception | None]:
        if topic not in self._declared:
            await self._ensure(topic)
        answers: list[Exception | None] = await self._backend.append(topic, envelopes, timeout=timeout)
        return answers


class _DeclaringFanout(_Declaring):
    @property
    def queues(self) -> TaskQueue:
        queues: TaskQueue = self._backend.queues
        return queues

    async def _create(self, topic: str) -> None:
        await self._backend.declare([topic], [])

    async def declare(self, topics: Sequence[str], bindings: Sequence[Binding]) -> None:
        await self._backend.declare(topics, bindings)
        self._note(topics)

    async def publish(
        self, topic: str, envelopes: Sequence[Envelope], *, timeout: float | None = None
    ) -> list[Exception | None]:
        if topic not in self._declared:
            await self._ensure(topic)
        answers: list[Exception | None] = await self._backend.publish(topic, envelopes, timeout=timeout)
        return answers
