"""Fan-out in one process: topics bound to queues in memory, with every condition that a binding can have."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from polywire.bus.backend.memory.queue import MemoryQueue
from polywire.bus.backend.memory.space import space_at
from polywire.bus.core.checks import (
    checked_name,
    differences,
    refuse_differences,
    too_large,
    undeclared,
    would_create_group,
    would_create_topic,
    would_refuse,
)
from polywire.bus.core.envelope import Envelope
from polywire.bus.core.fanout import Binding
from polywire.bus.core.queue import QueueSpec, TaskQueue
from polywire.clock import SYSTEM_CLOCK, Clock
from polywire.errors import MessageRefused, NobodyListens, SetupError


@dataclass(eq=False)
class _Space:
    clock: Clock
    bindings: dict[str, dict[str, Binding]] = field(default_factory=dict)
    """Topic -> group -> what it wants."""


class MemoryFanout:
    """Fan-out in this process. Its queues are those of a MemoryQueue of the same URL."""

    def __init__(self, url: str = "memory:", *, clock: Clock = SYSTEM_CLOCK) -> None:
        self.queues: TaskQueue = MemoryQueue(url, clock=clock)
        routing = frozenset({"topic", "direct", "fanout", "headers"})
        self.guarantees = dataclasses.replace(self.queues.guarantees, routing=routing)
        self._url = url
        self._space = space_at(url, clock, _Space)

    async def start(self) -> None:
        await self.queues.start()

    async def close(self) -> None:
        """May be called twice."""
        await self.queues.close()

    async def declare(self, topics: Sequence[str], bindings: Sequence[Binding]) -> None:
        self._check_names(topics, bindings)
        refuse_differences(self._differences(bindings))
        for topic in topics:
            self._space.bindings.setdefault(topic, {})
        for binding in bindings:
            if binding.topic not in self._space.bindings:
                raise SetupError(f"The group {binding.group!r} was not bound: there is no topic {binding.topic!r}.")
        await self.queues.declare([_queue_of(binding) for binding in bindings])
        for binding in bindings:
            self._space.bindings[binding.topic].setdefault(binding.group, binding)

    async def check(self, topics: Sequence[str], bindings: Sequence[Binding]) -> list[str]:
        self._check_names(topics, bindings)
        missing = [would_create_topic(topic) for topic in topics if topic not in self._space.bindings]
        missing += [
            would_create_group(binding.group, binding.topic)
            for binding in bindings
            if binding.group not in self._space.bindings.get(binding.topic, {})
        ]
        return [*missing, *would_refuse(self._differences(bindings))]

    def _check_names(self, topics: Sequence[str], bindings: Sequence[Binding]) -> None:
        for topic in topics:
            checked_name("topic", topic)
        for binding in bindings:
            checked_name("group", binding.group)

    def _differences(self, bindings: Sequence[Binding]) -> list[str]:
        lines: list[str] = []
        for binding in bindings:
            found = self._space.bindings.get(binding.topic, {}).get(binding.group)
            where = f"group {binding.group!r} of the topic {binding.topic!r}"
            lines += [] if found is None else differences(where, binding, found)
        return lines

    async def publish(
        self, topic: str, envelopes: Sequence[Envelope], *, timeout: float | None = None
    ) -> list[Exception | None]:
        return [await self._publish(topic, envelope) for envelope in envelopes]

    async def _publish(self, topic: str, envelope: Envelope) -> Exception | None:
        if not self.queues.connected:
            return MessageRefused(
                f"The message {envelope.id!r} was not sent to the topic {topic!r}: {self._url!r} is not open."
            )
        groups = self._space.bindings.get(topic)
        if groups is None:
            return undeclared(envelope, f"topic {topic!r}")
        if refused := too_large(envelope, f"topic {topic!r}", self.guarantees.max_message_bytes):
            return refused
        wanting = [binding for binding in groups.values() if _wants(binding, envelope)]
        if not wanting:
            return NobodyListens(f"The event {envelope.id!r} was not kept: no group of the topic {topic!r} wants it.")
        results = [await self.queues.send(binding.queue, [envelope]) for binding in wanting]
        return next((error for (error,) in results if error is not None), None)


def _queue_of(binding: Binding) -> QueueSpec:
    return QueueSpec(name=binding.queue, keyed=binding.keyed)


def _wants(binding: Binding, envelope: Envelope) -> bool:
    headers = envelope.headers or {}
    return (
        (not binding.types or envelope.type in binding.types)
        and (binding.pattern is None or _words(binding.pattern).fullmatch(f".{envelope.type}") is not None)
        and all(headers.get(name) == value for name, value in binding.headers.items())
    )


@lru_cache(maxsize=1000)
def _words(pattern: str) -> re.Pattern[str]:
    """The pattern of an AMQP topic, for a type with a dot before it: `*` is one word, `#` any number of them."""
    return re.compile("".join(_WILD.get(word, r"\." + re.escape(word)) for word in pattern.split(".")))


_WILD = {"*": r"\.[^.]*", "#": r"(?:\.[^.]*)*"}
