"""The bus for programs that are part of no system: a script, a cron job, a web application of another kind."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TypeVar

from polywire.bus.backend.opening import check_url
from polywire.bus.sending import Bus, Sender
from polywire.client import client_for
from polywire.clock import SYSTEM_CLOCK, Clock
from polywire.contract import Contract, service_of
from polywire.errors import SetupError
from polywire.system.bus_plan import connected_bus
from polywire.system.bus_wires import BackendUrls, check_schedule_url
from polywire.system.consuming import Part
from polywire.system.file import SystemFile, Wires
from polywire.system.reading import Settings

C = TypeVar("C", bound=Contract)


class OpenBus(Bus):
    """A bus by its addresses: publishes events as any `Bus`, and has clients for the tasks of its contracts."""

    def __init__(self, sender: Sender, contracts: tuple[type[Contract], ...]) -> None:
        super().__init__(sender)
        self._contracts = contracts

    def client(self, contract: type[C]) -> C:
        """A client whose tasks are sent here, by calling them or by `enqueue`. Its rpcs are `connect`'s."""
        if contract not in self._contracts:
            raise SetupError(
                f"There is no client of {service_of(contract).full_name} here: its queues were not looked for. Name it "
                f"where the bus is opened, `open_bus({contract.__name__}, ...)`."
            )
        return client_for(contract, None, self._sender)


@contextlib.asynccontextmanager
async def open_bus(
    *contracts: type[Contract],
    tasks: str | None = None,
    events: str | None = None,
    schedule: str | None = None,
    source: str = "outside",
    clock: Clock = SYSTEM_CLOCK,
) -> AsyncIterator[OpenBus]:
    """Send tasks of *contracts*, and publish events, for as long as the block lasts.

    *tasks*, *events* and *schedule* are URLs as `[wires]` of a system file has them; files are looked for in the
    current directory. With *schedule*, receipts have results, which are read from the store that the system's workers
    write to. *source* is what messages say of where they come from. Queues that do not exist are declared.

    Raises SetupError for a URL that cannot work or a queue that was declared otherwise, and BackendUnreachable.
    """
    for contract in contracts:
        if not service_of(contract).tasks:
            raise SetupError(f"{service_of(contract).full_name} has no tasks to send. Call its rpcs by `connect`.")
    if contracts and tasks is None:
        raise SetupError("The bus was not opened: tasks are to be sent, and nothing says by what. Give it `tasks=`.")
    if tasks is None and events is None:
        raise SetupError("The bus was not opened: it was given neither `tasks=` nor `events=`.")
    wires = wires_at(tasks=tasks, events=events, schedule=schedule)
    system = SystemFile(
        name=source,
        file="open_bus(...)",
        directory=Path.cwd(),
        services={},
        wires=wires,
        settings=Settings({}, {}, "open_bus(...)"),
    )
    part = Part(handles=(), sends=contracts, subscriptions=(), publishes=events is not None)
    async with connected_bus(system, {source: part}, clock=clock) as bus:
        yield OpenBus(bus.senders[source], contracts)


def wires_at(*, tasks: str | None, events: str | None, schedule: str | None) -> Wires:
    """`[wires]` of these URLs. Raises SetupError for one that is of no backend for its use."""
    if tasks is not None:
        check_url(tasks, "tasks")
    if events is not None:
        check_url(events, "events")
    if schedule is not None:
        check_schedule_url(schedule)
    return Wires(tasks=BackendUrls(default=tasks), events=BackendUrls(default=events), schedule=schedule)
