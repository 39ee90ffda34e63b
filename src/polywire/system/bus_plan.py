"""The bus of a process, on paper and then connected: what its services need of it, and who sends for whom."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from polywire.bus.core.results import Results
from polywire.bus.core.urls import scheme_of
from polywire.bus.sending import Sender
from polywire.clock import SYSTEM_CLOCK, Clock
from polywire.contract import Contract, Event, service_of
from polywire.durable.store.seam import Store
from polywire.system.backends import Backends
from polywire.system.bus_wires import BackendUrls, beside
from polywire.system.consuming import Part, declare
from polywire.system.file import SystemFile
from polywire.system.scheduling import result_store, schedule_store

OWN = ".polywire"
EXAMPLE = f"{OWN}/bus.db"


@dataclass(slots=True, kw_only=True)
class ConnectedBus:
    """The backends of a process, and a sender for each of its services."""

    backends: Backends
    senders: Mapping[str, Sender]
    results: Mapping[str, Results]
    """Stores of results, by name."""
    schedule: Store | None
    """Where schedules are kept."""


def check_bus(system: SystemFile, parts: Mapping[str, Part], *, one_process: bool) -> None:
    """Raises SystemFileError where a service needs tasks or events, and there is nothing they could travel on."""
    for name, part in parts.items():
        for contract in (*part.handles, *part.sends):
            full_name = service_of(contract).full_name
            _check_wire(system, name, "tasks", full_name, f"the tasks of {full_name}", one_process)
            _check_schedule(system, name, contract, one_process)
        for topic in dict.fromkeys(one.topic for one in part.subscriptions):
            _check_wire(system, name, "events", topic, f"the events of topic {topic!r}", one_process)
        if part.publishes and not system.wires.events.urls:
            raise _no_wire(system, name, "events", "the bus")


def _check_wire(system: SystemFile, name: str, use: str, key: str, what: str, one_process: bool) -> None:
    urls: BackendUrls = system.wires.tasks if use == "tasks" else system.wires.events
    url = urls.of(key)
    if url is None:
        raise _no_wire(system, name, use, what)
    if scheme_of(url) == "memory" and not one_process:
        raise system.error(
            ("wires", use),
            f"is 'memory:', which stays in one process, but service {name!r} runs in a process of its own and needs "
            f"{what}. Choose another backend, for example 'sqlite:{EXAMPLE}', or run the whole system in one process "
            "with `polywire up --in-process`.",
        )


def _check_schedule(system: SystemFile, name: str, contract: type[Contract], one_process: bool) -> None:
    """Several processes need a store that all of them see."""
    if one_process or system.wires.schedule is not None:
        return
    for task in service_of(contract).tasks.values():
        if task.response is not None or task.schedule is not None:
            what = "keep the results" if task.response is not None else "fire the schedule"
            raise system.settings.error(
                ("services", name),
                f"services.{name} cannot {what} of {task.full_name}: its processes have no store in common. Add one: "
                f'`[wires]` with `schedule = "sqlite:{OWN}/schedule.db"`.',
            )


def _no_wire(system: SystemFile, name: str, use: str, what: str) -> Exception:
    return system.settings.error(
        ("services", name),
        f"services.{name} needs {what}, but there is no wire for {use}. Add one: `[wires]` with "
        f'`{use} = "sqlite:{EXAMPLE}"`.',
    )


@contextlib.asynccontextmanager
async def connected_bus(
    system: SystemFile, parts: Mapping[str, Part], *, clock: Clock = SYSTEM_CLOCK
) -> AsyncIterator[ConnectedBus]:
    """The bus of a process that runs these services, for the length of the block, with all that they need declared.

    Nothing is opened that none of them needs. Raises BackendUnreachable, and SetupError where something was declared
    differently before.
    """
    backends = backends_of(
        system,
        tasks=any(part.has_tasks for part in parts.values()),
        events=any(part.has_events for part in parts.values()),
        clock=clock,
    )
    url = system.wires.schedule if any(part.has_tasks for part in parts.values()) else None
    async with (
        schedule_store(None if url is None else beside(url, system.directory), clock=clock) as store,
        result_store(store, clock=clock) as results,
    ):
        senders = {
            name: Sender(name, tasks=backends.tasks, events=backends.events, results=results, clock=clock)
            for name in parts
        }
        try:
            await backends.start()
            for name, part in parts.items():
                await declare(part, backends, system.topics)
                senders[name].check((*part.handles, *part.sends), _events_of(part))
            yield ConnectedBus(backends=backends, senders=senders, results={results.name: results}, schedule=store)
        finally:
            for sender in senders.values():
                sender.close()
            await backends.close()


def backends_of(system: SystemFile, *, tasks: bool, events: bool, clock: Clock = SYSTEM_CLOCK) -> Backends:
    """The backends of the system file, not started: of its tasks, its events, or both."""
    of_tasks = system.wires.tasks.beside(system.directory) if tasks else BackendUrls()
    of_events = system.wires.events.beside(system.directory) if events else BackendUrls()
    schedule = () if system.wires.schedule is None else (beside(system.wires.schedule, system.directory),)
    _make_folder(system, (*of_tasks.urls, *of_events.urls, *schedule))
    return Backends(of_tasks, of_events, topics=system.topics, clock=clock)


def _make_folder(system: SystemFile, urls: Iterable[str]) -> None:
    """The folder beside the system file that is ours; any other one is somebody's own decision."""
    own = system.directory / OWN
    if any(Path(url.partition(":")[2]).parent == own for url in urls if scheme_of(url) == "sqlite"):
        own.mkdir(exist_ok=True)


def _events_of(part: Part) -> list[type[Event]]:
    return [event.event for one in part.subscriptions for event in one.events]
