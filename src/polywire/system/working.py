"""What a worker process of a service loads: the service itself, without its port and its consumers."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace

from polywire.bus.consumer.processes import ProcessPool
from polywire.bus.consumer.worker import Loaded
from polywire.bus.sending import Bus
from polywire.clock import SYSTEM_CLOCK
from polywire.contract import contracts_of
from polywire.server import Certificates
from polywire.services import Services
from polywire.system.assembly import Made
from polywire.system.bus_plan import connected_bus
from polywire.system.consuming import BUS, handled_by, inbox_of, stores_among
from polywire.system.file import SystemFile
from polywire.system.file import load as load_file
from polywire.system.hosting import hosting
from polywire.system.plan import GIVEN, Plan, plan
from polywire.system.remote import wiring_of
from polywire.system.tokens import tokens_of
from polywire.wire.seam import Dispatcher

LOADER = "polywire.system.working:load"


def pool_for(made: Plan, name: str, place: str) -> ProcessPool:
    """Processes that handle what waits at *place* as service *name* would. They find the other services where this
    process does."""
    system = made.system
    addresses = {other: entry.target for other, entry in system.services.items() if entry.target}
    return ProcessPool(LOADER, [system.file, system.profile or "", name, place, json.dumps(addresses)])


@contextlib.asynccontextmanager
async def load(file: str, profile: str, name: str, place: str, addresses: str) -> AsyncIterator[Loaded]:
    """The handlers of service *name* for what waits at *place*, with the service's resources open."""
    system = _at(load_file(file, profile=profile or None), json.loads(addresses))
    made = plan(system, only=[name])
    here: dict[str, Dispatcher] = {}
    found: list[Made] = []

    def make(_name: str, its: Made) -> Dispatcher:
        found.append(its)
        callable_objects = [one for one in its.services if contracts_of(type(one))]
        # Nobody calls in here but the service itself, which is as good as its certificate.
        itself = Certificates([name])
        return Services(callable_objects, authenticator=itself, interceptors=made.assemblies[name].app.interceptors)

    async with connected_bus(system, {name: made.part(name)}) as bus:
        wiring = wiring_of(made, name, [name], here, tokens_of(system).get(name))
        wiring.sender = bus.senders[name]
        given = {name: {**GIVEN, BUS: Bus(bus.senders[name])}}
        async with hosting({name: made.assemblies[name]}, {name: wiring}, make, given=given):
            (its,) = found
            inbox = inbox_of(its.services, stores_among(its.resources), SYSTEM_CLOCK)
            topic, slash, group = place.partition("/")
            yield Loaded(
                destination=topic,
                handlings=handled_by(its.services, bus.results).at(place),
                group=group if slash else None,
                inbox=inbox,
            )


def _at(system: SystemFile, addresses: Mapping[str, Sequence[str]]) -> SystemFile:
    """The same, with the services where they are."""
    services = {
        name: replace(entry, address=tuple(addresses[name])) if name in addresses else entry
        for name, entry in system.services.items()
    }
    return replace(system, services=services)
