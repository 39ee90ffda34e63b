"""What a service handles of tasks and events, and the runners that consume it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from polywire.bus.consumer import Alone, Handling, LogRunner, QueueRunner, event_handling, task_handling
from polywire.bus.consumer.processes import ProcessPool
from polywire.bus.consumer.run import MessageLog
from polywire.bus.consumer.runner import CONCURRENCY
from polywire.bus.core import QueueSpec, TaskQueue, TopicSpec
from polywire.bus.core.results import Results
from polywire.bus.schedule.ticking import Ticker
from polywire.bus.sending import Bus, queues_of, topics_of
from polywire.clock import SYSTEM_CLOCK, Clock
from polywire.contract import Contract, Task, contracts_of, service_of
from polywire.contract.event import Subscription, subscriptions_of
from polywire.durable.inbox import StoreInbox
from polywire.durable.store.seam import Store
from polywire.errors import SetupError
from polywire.system.app import Key
from polywire.system.assembly import Assembly
from polywire.system.backends import NOT_SAID, Backends, as_fanout, as_log, is_fanout

Runner = QueueRunner | LogRunner
PoolFor = Callable[[str], ProcessPool]
"""The processes for what waits at a queue, or at `TOPIC/GROUP`."""
BUS = Key(Bus)
"""How a service asks for the bus."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one service has to do with the bus."""

    handles: tuple[type[Contract], ...]
    """Contracts with tasks that it implements."""
    sends: tuple[type[Contract], ...]
    """Contracts with tasks that it has clients of."""
    subscriptions: tuple[Subscription, ...]
    publishes: bool
    """It asks for a Bus."""

    @property
    def has_tasks(self) -> bool:
        return bool(self.handles or self.sends)

    @property
    def has_events(self) -> bool:
        return bool(self.subscriptions or self.publishes)


def part_of(assembly: Assembly) -> Part:
    implemented = [contract for service in assembly.services for contract in service.contracts]
    return Part(
        handles=tuple(contract for contract in implemented if service_of(contract).tasks),
        sends=tuple(contract for contract in assembly.clients if service_of(contract).tasks),
        subscriptions=tuple(one for service in assembly.services for one in service.subscriptions),
        publishes=BUS in assembly.sources.values(),
    )


async def declare(part: Part, backends: Backends, topics: Mapping[str, TopicSpec] = NOT_SAID) -> None:
    """Create the queues, topics and groups that a service needs; *topics* has what is said of them. Raises SetupError
    naming each difference to what exists."""
    contracts = tuple(dict.fromkeys((*part.handles, *part.sends)))
    await backends.declare_queues(placed_queues(contracts))
    topology = topics_of((), part.subscriptions, known=topics)
    await backends.declare_topics(topology.topics, topology.groups, topology.bindings)


def placed_queues(contracts: Sequence[type[Contract]]) -> list[tuple[str, QueueSpec]]:
    """Each queue with a contract that has it, whose wire it takes."""
    owner = {
        task.queue: service_of(contract).full_name
        for contract in contracts
        for task in service_of(contract).tasks.values()
    }
    return [(owner[spec.name], spec) for spec in queues_of(contracts)]


class Consumers:
    """The runners and schedules of one service. `start` once its objects are there, `stop` before they are closed."""

    def __init__(
        self,
        runners: Sequence[Runner],
        *,
        ticker: Ticker | None = None,
        inbox: StoreInbox | None = None,
        pools: Sequence[ProcessPool] = (),
    ) -> None:
        self.runners = tuple(runners)
        self._pools = tuple(pools)
        self._ticker = ticker
        self._inbox = inbox
        self._started = False

    async def start(self) -> None:
        self._started = True
        if self._inbox is not None:
            await self._inbox.start()
        for pool in self._pools:
            await pool.start()
        for runner in self.runners:
            await runner.start()
        if self._ticker is not None:
            await self._ticker.start()

    async def stop(self, grace: float) -> None:
        """What runs has *grace* seconds, all runners at a time; the rest is given back. May be called twice."""
        if not self._started:
            return
        if self._ticker is not None:
            await self._ticker.stop()
        await asyncio.gather(*(runner.stop(grace) for runner in self.runners))
        for pool in self._pools:
            await pool.close()
        if self._inbox is not None:
            await self._inbox.close()

    @property
    def ready(self) -> bool:
        """All are connected, assigned and not paused."""
        return all(runner.ready for runner in self.runners)

    @property
    def in_flight(self) -> int:
        return sum(runner.in_flight for runner in self.runners)


@dataclass(frozen=True, slots=True, kw_only=True)
class Handled:
    """What the objects of one app handle, by where it waits."""

    tasks: Mapping[str, tuple[type[Contract], list[Handling]]]
    """By queue, with the contract whose wire it takes."""
    events: Mapping[tuple[str, str], list[tuple[Subscription, Handling]]]
    """By topic and group."""

    def at(self, place: str) -> list[Handling]:
        """By the name of a queue, or `TOPIC/GROUP`."""
        topic, slash, group = place.partition("/")
        return [handling for _, handling in self.events[topic, group]] if slash else self.tasks[place][1]


def handled_by(objects: Iterable[object], results: Mapping[str, Results]) -> Handled:
    """Raises SetupError where a task has no handler."""
    tasks: dict[str, tuple[type[Contract], list[Handling]]] = {}
    events: dict[tuple[str, str], list[tuple[Subscription, Handling]]] = {}
    for instance in objects:
        for contract in contracts_of(type(instance)):
            for task in service_of(contract).tasks.values():
                handling = task_handling(task, _implementation(instance, contract, task), results)
                tasks.setdefault(task.queue, (contract, []))[1].append(handling)
        for one in subscriptions_of(type(instance)):
            handling = event_handling(one, getattr(instance, one.attribute))
            events.setdefault((one.topic, one.group), []).append((one, handling))
    return Handled(tasks=tasks, events=events)


def _implementation(instance: object, contract: type[Contract], task: Task) -> Any:
    if getattr(type(instance), task.attribute) is getattr(contract, task.attribute):
        raise SetupError(
            f"{type(instance).__qualname__} implements {service_of(contract).full_name}, but not its task "
            f"{task.attribute}. Its messages would wait for ever: write the method, or leave the contract to another "
            "service."
        )
    return getattr(instance, task.attribute)


def consumers_of(
    objects: Iterable[object],
    backends: Backends,
    *,
    stores: Sequence[Store] = (),
    results: Mapping[str, Results] | None = None,
    ticker: Ticker | None = None,
    message_log: MessageLog | None = None,
    alone: Alone | None = None,
    processes: PoolFor | None = None,
    clock: Clock = SYSTEM_CLOCK,
) -> Consumers:
    """The runners for what *objects* handle, whose app has opened *stores*. Without *processes*, what is to run in a
    process of its own runs in this one. Raises SetupError where a task has no handler, or something it needs is
    missing."""
    objects = list(objects)
    handled = handled_by(objects, results or {})
    inbox = inbox_of(objects, stores, clock)
    common: dict[str, Any] = {"inbox": inbox, "message_log": message_log, "alone": alone, "clock": clock}
    pools: list[ProcessPool] = []

    def ready_to_run(place: str, handlings: Sequence[Handling]) -> tuple[list[Handling], ProcessPool | None]:
        if not any(handling.runs_in == "process" for handling in handlings):
            return list(handlings), None
        if processes is None:
            return [replace(one, runs_in="loop") if one.runs_in == "process" else one for one in handlings], None
        pools.append(processes(place))
        return list(handlings), pools[-1]

    runners: list[Runner] = []
    for name, (contract, found) in handled.tasks.items():
        spec = next(spec for spec in queues_of([contract]) if spec.name == name)
        queue = backends.tasks.of(service_of(contract).full_name, "tasks")
        handlings, pool = ready_to_run(name, found)
        runners.append(_task_runner(queue, spec, handlings, processes=pool, **common))
    for (topic, group), members in handled.events.items():
        handlings, pool = ready_to_run(f"{topic}/{group}", [handling for _, handling in members])
        backend = backends.events.of(topic, "events")
        if is_fanout(backend):
            (binding,) = topics_of((), [one for one, _ in members]).bindings
            queues = as_fanout(backend).queues
            runners.append(
                QueueRunner(
                    queues, binding.queue, handlings, group=group, keyed=binding.keyed, processes=pool, **common
                )
            )
        else:
            runners.append(LogRunner(as_log(backend), [topic], group, handlings, processes=pool, **common))
    return Consumers(runners, ticker=ticker, inbox=inbox, pools=pools)


def _task_runner(queue: TaskQueue, spec: QueueSpec, handlings: Sequence[Handling], **common: Any) -> QueueRunner:
    return QueueRunner(
        queue,
        spec.name,
        handlings,
        concurrency=spec.concurrency or CONCURRENCY,
        rate=spec.rate,
        keyed=spec.keyed,
        lost_limit=spec.lost_limit,
        **common,
    )


def stores_among(resources: Iterable[object]) -> list[Store]:
    """Those that are stores; several of one file stay several."""
    wanted = ("transaction", "read", "upgrade", "states")
    return [cast(Store, one) for one in resources if all(hasattr(one, name) for name in wanted)]


def inbox_of(objects: Sequence[object], stores: Sequence[Store], clock: Clock) -> StoreInbox | None:
    """For handlers declared `once`; a transaction of their own finds its store's inbox by itself."""
    once = [
        task.full_name
        for instance in objects
        for contract in contracts_of(type(instance))
        for task in service_of(contract).tasks.values()
        if task.once
    ] + [one.name for instance in objects for one in subscriptions_of(type(instance)) if one.once]
    if not once or not stores:
        return None
    if len(stores) > 1:
        raise SetupError(
            f"{once[0]} is declared once=True, but its app has {len(stores)} stores "
            f"({', '.join(repr(store.name) for store in stores)}), and it cannot be told which one remembers what was "
            "done. Let the handler open a transaction of the store with its effects, and leave out once=True."
        )
    return StoreInbox(stores[0], clock=clock)
