"""The schedules of a service's tasks, and the store that several processes need for them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence

from polywire.bus.backend.memory_results import MemoryResults
from polywire.bus.core.results import Results
from polywire.bus.core.urls import scheme_of
from polywire.bus.schedule.slots import times_of
from polywire.bus.schedule.ticking import Firing, LocalSlots, Planned, SlotStore, Ticker
from polywire.bus.sending import Sender
from polywire.bus.sending.options import Options
from polywire.clock import SYSTEM_CLOCK, Clock
from polywire.contract import Contract, Task, service_of
from polywire.durable.results import StoreResults
from polywire.durable.slots import StoreSlots
from polywire.durable.store.apsw import SqliteStore
from polywire.durable.store.seam import Store

RESULTS = "results"
"""The name by which all processes of a system know where results are kept."""


@contextlib.asynccontextmanager
async def schedule_store(url: str | None, *, clock: Clock = SYSTEM_CLOCK) -> AsyncIterator[Store | None]:
    """The store at `[wires] schedule`, with its own tables up to date, for the length of the block."""
    if url is None:
        yield None
        return
    assert scheme_of(url) == "sqlite"  # noqa: S101 - the system file takes no other
    store = SqliteStore(url.partition(":")[2], upgrade=True, name="schedule", clock=clock)
    await store.start()
    try:
        yield store
    finally:
        await store.close()


@contextlib.asynccontextmanager
async def result_store(store: Store | None, *, clock: Clock = SYSTEM_CLOCK) -> AsyncIterator[Results]:
    """Where the results of tasks go: into *store*, or into the memory of this process where there is none."""
    results: Results = (
        MemoryResults(name=RESULTS, clock=clock) if store is None else StoreResults(store, name=RESULTS, clock=clock)
    )
    await results.start()
    try:
        yield results
    finally:
        await results.close()


def scheduled(contracts: Sequence[type[Contract]]) -> dict[str, Task]:
    """The tasks of these contracts that run by themselves, by full name."""
    return {
        task.full_name: task
        for contract in contracts
        for task in service_of(contract).tasks.values()
        if task.schedule is not None
    }


def ticker_of(
    contracts: Sequence[type[Contract]], sender: Sender, store: Store | None, *, clock: Clock = SYSTEM_CLOCK
) -> Ticker | None:
    """What sends the scheduled tasks of *contracts*, which are those that a service implements; None without any.

    Without a store, the backend has to drop the second message of one firing; `check_bus` sees to that.
    """
    tasks = scheduled(contracts)
    if not tasks:
        return None
    planned = [
        Planned(name=name, times=times_of(task.schedule), missed=task.schedule.missed)
        for name, task in tasks.items()
        if task.schedule is not None
    ]

    async def fire(firing: Firing) -> None:
        task = tasks[firing.name]
        message = None if task.request is None else task.request()
        await sender.send(task, message, Options(id=firing.id))

    slots: SlotStore = LocalSlots() if store is None else StoreSlots(store)
    return Ticker(planned, fire, slots, clock=clock)
