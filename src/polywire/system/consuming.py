"""What a service handles of tasks and events, and the runners that consume it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polywire.bus.consumer import Alone, Handling, LogRunner, QueueRunner, event_handling, task_handling
from polywire.bus.consumer.run import MessageLog
from polywire.bus.consumer.runner import CONCURRENCY
from polywire.bus.core import QueueSpec
from polywire.bus.core.inbox import Inbox
from polywire.bus.core.results import Results
from polywire.bus.sending import Bus, queues_of, topics_of
from polywire.clock import SYSTEM_CLOCK, Clock
from polywire.contract import Contract, Task, contracts_of, service_of
from polywire.contract.event import Subscription, subscriptions_of
from polywire.errors import SetupError
from polywire.system.app import Key
from polywire.system.assembly import Assembly
from polywire.system.backends import Backends, as_fanout, as_log, is_fanout

Runner = QueueRunner | LogRunner
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


async def declare(part: Part, backends: Backends) -> None:
    """Create the queues, topics and groups that a service needs. Raises SetupError naming each difference to what
    exists."""
    contracts = tuple(dict.fromkeys((*part.handles, *part.sends)))
    await backends.declare_queues(placed_queues(contracts))
    topology = topics_of((), part.subscriptions)
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
    """The runners of one service. `start` once its objects are there, `stop` before they are closed."""

    def __init__(self, runners: Sequence[Runner]) -> None:
        self.runners = tuple(runners)

    async def start(self) -> None:
        for runner in self.runners:
            await runner.start()

    async def stop(self, grace: float) -> None:
        """What runs has *grace* seconds, all runners at a time; the rest is given back. May be called twice."""
        await asyncio.gather(*(runner.stop(grace) for runner in self.runners))

    @property
    def ready(self) -> bool:
        """All are connected, assigned and not paused."""
        return all(runner.ready for runner in self.runners)

    @property
    def in_flight(self) -> int:
        return sum(runner.in_flight for runner in self.runners)


def consumers_of(
    objects: Iterable[object],
    backends: Backends,
    *,
    inbox: Inbox | None = None,
    results: Mapping[str, Results] | None = None,
    message_log: MessageLog | None = None,
    alone: Alone | None = None,
    clock: Clock = SYSTEM_CLOCK,
) -> Consumers:
    """The runners for what *objects* handle. Raises SetupError where a task has no handler, or something it needs is
    missing."""
    objects = list(objects)
    common: dict[str, Any] = {"inbox": inbox, "message_log": message_log, "alone": alone, "clock": clock}
    runners: list[Runner] = [*_task_runners(objects, backends, results or {}, common)]
    runners += _event_runners(objects, backends, common)
    return Consumers(runners)


def _task_runners(
    objects: Sequence[object], backends: Backends, results: Mapping[str, Results], common: Mapping[str, Any]
) -> list[QueueRunner]:
    handlings: dict[str, list[Handling]] = {}
    contracts: dict[str, type[Contract]] = {}
    for instance in objects:
        for contract in contracts_of(type(instance)):
            for task in service_of(contract).tasks.values():
                function = _implementation(instance, contract, task)
                handlings.setdefault(task.queue, []).append(task_handling(task, function, results))
                contracts[task.queue] = contract
    runners = []
    for name, found in handlings.items():
        contract = contracts[name]
        spec = next(spec for spec in queues_of([contract]) if spec.name == name)
        queue = backends.tasks.of(service_of(contract).full_name, "tasks")
        runners.append(
            QueueRunner(
                queue,
                name,
                found,
                concurrency=spec.concurrency or CONCURRENCY,
                rate=spec.rate,
                keyed=spec.keyed,
                lost_limit=spec.lost_limit,
                **common,
            )
        )
    return runners


def _implementation(instance: object, contract: type[Contract], task: Task) -> Any:
    if getattr(type(instance), task.attribute) is getattr(contract, task.attribute):
        raise SetupError(
            f"{type(instance).__qualname__} implements {service_of(contract).full_name}, but not its task "
            f"{task.attribute}. Its messages would wait for ever: write the method, or leave the contract to another "
            "service."
        )
    return getattr(instance, task.attribute)


def _event_runners(objects: Sequence[object], backends: Backends, common: Mapping[str, Any]) -> list[Runner]:
    members: dict[tuple[str, str], list[tuple[Subscription, Any]]] = {}
    for instance in objects:
        for one in subscriptions_of(type(instance)):
            members.setdefault((one.topic, one.group), []).append((one, getattr(instance, one.attribute)))
    runners: list[Runner] = []
    for (topic, group), found in members.items():
        handlings = [event_handling(one, function) for one, function in found]
        backend = backends.events.of(topic, "events")
        if is_fanout(backend):
            (binding,) = topics_of((), [one for one, _ in found]).bindings
            queues = as_fanout(backend).queues
            runners.append(QueueRunner(queues, binding.queue, handlings, group=group, keyed=binding.keyed, **common))
        else:
            runners.append(LogRunner(as_log(backend), [topic], group, handlings, **common))
    return runners
