"""Runs services in this process: their resources and objects, wired to each other and to the rest of the system."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from polywire.contract import service_of
from polywire.system.app import Key
from polywire.system.assembly import Assembly
from polywire.system.wiring import Wiring, start_order
from polywire.wire.seam import Dispatcher

MakeDispatcher = Callable[[str, list[Any]], Dispatcher]
"""From the name of a service and its objects to what answers calls to them."""


@contextlib.asynccontextmanager
async def hosting(
    assemblies: Mapping[str, Assembly], wiring: Wiring, make: MakeDispatcher, *, given: Mapping[Key, Any]
) -> AsyncIterator[None]:
    """Open everything that *assemblies* (by name of the service) need, for the length of the block.

    A service starts after those it calls in this process and closes before them. The dispatchers that *make* returns
    are in `wiring.here`; whoever runs the block stops them before it ends.
    """
    needs = {name: needed_here(assembly, wiring) for name, assembly in assemblies.items()}
    for assembly in assemblies.values():
        for contract in assembly.clients:
            wiring.client(contract)  # refuses now what could not be called later
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(wiring.close)
        for name in start_order(needs):
            objects = await stack.enter_async_context(assemblies[name].running(wiring.client, given))
            wiring.here[name] = make(name, objects)
        yield


def needed_here(assembly: Assembly, wiring: Wiring) -> list[str]:
    """The services that *assembly* calls."""
    names = (service_of(contract).full_name for contract in assembly.clients)
    return [wiring.targets[name].name for name in names if name in wiring.targets]
