"""Runs services in this process: their resources and objects, wired to each other and to the rest of the system."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from polywire.contract import service_of
from polywire.system.app import Key
from polywire.system.assembly import Assembly, Made
from polywire.system.wiring import Wiring, start_order
from polywire.wire.seam import Dispatcher

MakeDispatcher = Callable[[str, Made], Dispatcher]
"""From the name of a service and its objects to what answers calls to them."""


@contextlib.asynccontextmanager
async def hosting(
    assemblies: Mapping[str, Assembly],
    wirings: Mapping[str, Wiring],
    make: MakeDispatcher,
    *,
    given: Mapping[str, Mapping[Key, Any]],
) -> AsyncIterator[None]:
    """Open everything that *assemblies* need, for the length of the block; *wirings* has what each calls by, *given*
    what each gets from outside.

    A service starts after those it calls in this process and closes before them. The dispatchers that *make* returns
    are put into the wirings' `here`; whoever runs the block stops them before it ends.
    """
    needs = {name: _called(assembly, wirings[name]) for name, assembly in assemblies.items()}
    async with contextlib.AsyncExitStack() as stack:
        for wiring in {id(wiring): wiring for wiring in wirings.values()}.values():
            stack.push_async_callback(wiring.close)
        for name in start_order(needs):
            wiring = wirings[name]
            made = await stack.enter_async_context(assemblies[name].running(wiring.client, given[name]))
            wiring.here[name] = make(name, made)
        yield


def _called(assembly: Assembly, wiring: Wiring) -> list[str]:
    """The services that *assembly* calls. Raises SetupError for a call that its wiring could not make."""
    for contract in assembly.clients:
        wiring.client(contract)
    called = (wiring.targets.get(service_of(contract).full_name) for contract in assembly.clients)
    return [target.name for target in called if target is not None]
