"""The bus of a system under test: in memory, with a record of what was sent, and a way to wait until all is done."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, cast

from polywire.bus.backend.memory import MemoryLog, MemoryQueue
from polywire.bus.backend.memory_results import MemoryResults
from polywire.bus.consumer import Alone
from polywire.bus.core import DeadLetter, Envelope
from polywire.bus.core.results import FORMATS
from polywire.bus.sending import Sender
from polywire.clock import Clock
from polywire.codec import codec_for
from polywire.contract import Contract, Event, Message, contracts_of, event_of, service_of
from polywire.contract.event import subscriptions_of
from polywire.durable.store.seam import Store
from polywire.errors import SetupError
from polywire.system.backends import Backends
from polywire.system.bus_wires import BackendUrls
from polywire.system.consuming import Consumers, Part, consumers_of, declare
from polywire.system.scheduling import ticker_of

E = TypeVar("E", bound=Event)

TURNS = 50
"""Of the event loop without anything having happened, after which nothing more is going to."""
PATIENCE = 30.0
"""Seconds of real time for handlers that run in threads and processes."""


class _Recorded:
    """A backend that remembers what was sent through it."""

    def __init__(self, backend: Any, method: str) -> None:
        self._backend = backend
        self.sent: list[tuple[str, Envelope]] = []
        setattr(self, method, self._send)
        self._hand_over = getattr(backend, method)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    async def _send(
        self, place: str, envelopes: Sequence[Envelope], *, timeout: float | None = None
    ) -> list[Exception | None]:
        answers: list[Exception | None] = await self._hand_over(place, envelopes, timeout=timeout)
        self.sent += [(place, each) for each, error in zip(envelopes, answers, strict=True) if error is None]
        return answers


class MemoryBus:
    """The backends, senders and consumers of a system under test. `memory_bus` makes one."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._queue = MemoryQueue("memory:", clock=clock)
        self._log = MemoryLog("memory:", clock=clock)
        self._tasks = _Recorded(self._queue, "send")
        self._events = _Recorded(self._log, "append")
        url = BackendUrls(default="memory:")
        self._backends = Backends(
            url,
            url,
            clock=clock,
            tasks_at=lambda _url: cast(Any, self._tasks),
            events_at=lambda _url: cast(Any, self._events),
        )
        self._results = MemoryResults(clock=clock)
        self._senders: list[Sender] = []
        self._consumers: list[Consumers] = []

    async def start(self) -> None:
        await self._results.start()
        await self._backends.start()

    def sender(self, name: str) -> Sender:
        made = Sender(
            name,
            tasks=self._backends.tasks,
            events=self._backends.events,
            results=self._results,
            clock=self._clock,
        )
        self._senders.append(made)
        return made

    async def declare(self, parts: Iterable[Part]) -> None:
        for part in parts:
            await declare(part, self._backends)

    async def consume(
        self, objects: Mapping[str, Sequence[object]], stores: Mapping[str, Sequence[Store]], sender: Sender
    ) -> None:
        """Handle what the *objects* of each app handle, with the stores of that app."""
        alone = Alone(self._clock)
        for name, made in objects.items():
            handled = [contract for each in made for contract in contracts_of(type(each))]
            consumers = consumers_of(
                made,
                self._backends,
                stores=stores[name],
                results={self._results.name: self._results},
                ticker=ticker_of(handled, sender, None, clock=self._clock),
                alone=alone,
                clock=self._clock,
            )
            self._consumers.append(consumers)
            await consumers.start()

    async def stop(self) -> None:
        """Handlers that still run are cancelled, and what they held is gone with the bus."""
        for consumers in self._consumers:
            await consumers.stop(0.0)

    async def close(self) -> None:
        for sender in self._senders:
            sender.close()
        await self._backends.close()
        await self._results.close()

    # ---- what a test asks ------------------------------------------------------------------------------------------

    async def settled(self) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + PATIENCE
        before, quiet = self._progress(), 0
        while quiet < TURNS:
            # Handlers in threads and processes take real time, during which there is no point in going round.
            await asyncio.sleep(0 if quiet < TURNS - 1 else 0.001)
            now = self._progress()
            busy = now != before or self._under_way()
            quiet = 0 if busy else quiet + 1
            before = now
            if loop.time() > end:
                raise AssertionError(f"The system did not settle within {PATIENCE:g} s: {await self._what()}.")

    def _progress(self) -> tuple[int, ...]:
        counted = [len(self._tasks.sent), len(self._events.sent)]
        for runner in self._runners:
            counters = runner.counters
            counted += [counters.received, counters.started, counters.done, counters.retried, counters.dead]
        return tuple(counted)

    @property
    def _runners(self) -> Sequence[Any]:
        return [runner for consumers in self._consumers for runner in consumers.runners]

    def _under_way(self) -> bool:
        return any(runner.in_flight for runner in self._runners)

    async def _what(self) -> str:
        running = [f"{runner.in_flight} handlers of {runner.what}" for runner in self._runners if runner.in_flight]
        return ", ".join(running) or "messages go round in circles"

    def published(self, event: type[E]) -> list[E]:
        declared = event_of(event)
        return [_read(event, each) for _, each in self._events.sent if each.type == declared.type]

    def enqueued(self, task: Callable[..., Any]) -> list[Any]:
        found = _task_of(task)
        return [
            None if found.request is None else _read(found.request, each)
            for _, each in self._tasks.sent
            if each.type == found.full_name
        ]

    async def dead(self, where: Callable[..., Any]) -> list[DeadLetter]:
        if hasattr(where, "__subscribed__"):
            found = []
            for topic, group in _subscribed_by(where):
                found += await self._log.dead(topic, group)
            return found
        task = _task_of(where)
        return [one for one in await self._queue.dead(task.queue) if one.envelope.type == task.full_name]


@contextlib.asynccontextmanager
async def memory_bus(clock: Clock) -> AsyncIterator[MemoryBus]:
    bus = MemoryBus(clock)
    await bus.start()
    try:
        yield bus
    finally:
        await bus.close()


def part_of_fakes(fakes: Mapping[type[Contract], object]) -> Part:
    """What the fakes of a test have to do with the bus."""
    return Part(
        handles=tuple(contract for contract in fakes if service_of(contract).tasks),
        sends=(),
        subscriptions=tuple(one for fake in dict.fromkeys(fakes.values()) for one in subscriptions_of(type(fake))),
        publishes=False,
    )


def _read(message: type[Any], envelope: Envelope) -> Any:
    return codec_for(cast("type[Message]", message), FORMATS[envelope.content_type]).decode(envelope.body)


def _task_of(method: Callable[..., Any]) -> Any:
    """The declared task that *method* of a contract, of an implementing class or of a client is."""
    declared = getattr(method, "__client_method__", None)
    if declared is not None:
        return declared
    owner = getattr(method, "__self__", None)
    name = getattr(method, "__name__", "")
    for cls in _classes_of(method, owner):
        for contract in contracts_of(cls):
            for task in service_of(contract).tasks.values():
                if task.attribute == name:
                    return task
    raise SetupError(f"{getattr(method, '__qualname__', method)!r} is no task. Name it by its contract: Mail.send.")


def _classes_of(method: Any, owner: object) -> Iterable[type]:
    if owner is not None:
        return [type(owner)]
    # A function does not know its class, but contracts know their functions.
    name = getattr(method, "__name__", "")
    return [cls for cls in _all_contracts(Contract) if vars(cls).get(name) is method]


def _all_contracts(base: type[Contract]) -> Iterable[type[Contract]]:
    for cls in base.__subclasses__():
        yield cls
        yield from _all_contracts(cls)


def _subscribed_by(method: Any) -> list[tuple[str, str]]:
    """Topic and group of each subscription that a method has."""
    return [(event_of(mark.events[0]).topic, mark.group) for mark in method.__subscribed__]
