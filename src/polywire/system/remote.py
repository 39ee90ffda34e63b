"""Endpoints of services in other processes, as one service of the system reaches them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from polywire.channel import Endpoints
from polywire.clock import SYSTEM_CLOCK
from polywire.connecting import RemoteWire, open_endpoint, resolver_of
from polywire.net.address import parse_addresses
from polywire.net.tls import ClientTls
from polywire.system.faults import Faults
from polywire.system.file import ServiceEntry, SystemFile
from polywire.system.plan import Plan
from polywire.system.trust import client_tls
from polywire.system.wiring import Target, Wiring
from polywire.wire.seam import Dispatcher


def wiring_of(
    plan: Plan, name: str, beside: Sequence[str], here: dict[str, Dispatcher], token: Callable[[], str] | None
) -> Wiring:
    """What service *name* calls by; *beside* it in this process are others."""
    system = plan.system
    return Wiring(
        targets=plan.targets(beside),
        wires=system.wires,
        always_local=len(beside) > 1,
        levels={target: system.levels(target) for target in system.services},
        token=token,
        caller=name,
        clock=SYSTEM_CLOCK,
        open_remote=partial(remote_endpoints, system, system.services[name]),
        here=here,
        faults=Faults(name, system.faults, clock=SYSTEM_CLOCK),
        interceptors=plan.assemblies[name].app.client_interceptors,
    )


def remote_endpoints(system: SystemFile, caller: ServiceEntry, target: Target, wire: RemoteWire) -> Endpoints:
    """The endpoints of *target* as service *caller* reaches them over *wire*."""
    places = parse_addresses(target.addresses)
    tls = client_tls(system, caller, target.name)
    if tls is None and any(place.secure for place in places):
        tls = ClientTls()
    if tls is not None:
        tls.context()  # what is wrong with its files is to be known at the start, and not at the first call
    resolver = resolver_of(f"services.{target.name}", places)
    return Endpoints(resolver, partial(open_endpoint, wire, tls), clock=SYSTEM_CLOCK)
