"""Endpoints of services in other processes: found by their addresses, reached over the wire that was chosen."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from polywire.channel import Endpoints
from polywire.clock import SYSTEM_CLOCK
from polywire.discovery import DnsResolver, Resolver, StaticResolver
from polywire.errors import SetupError
from polywire.net.address import Address, parse_addresses
from polywire.net.pool import Pool
from polywire.net.tls import ClientTls
from polywire.system.file import ServiceEntry, SystemFile, Wire
from polywire.system.wiring import Target
from polywire.wire.grpc.client import GrpcWire
from polywire.wire.http.connect_client import ConnectWire
from polywire.wire.http.rest_client import RestWire
from polywire.wire.seam import EndpointWire


def remote_endpoints(system: SystemFile, caller: ServiceEntry, target: Target, wire: Wire) -> Endpoints:
    """The endpoints of *target* as service *caller* reaches them over *wire*."""
    tls = _client_tls(system, caller, target)
    return open_endpoints(target.name, target.addresses, wire, tls)


def open_endpoints(name: str, addresses: Sequence[str], wire: Wire, tls: ClientTls | None) -> Endpoints:
    """The endpoints at *addresses*; a scheme that asks for TLS gets it, with the machine's own authorities."""
    places = parse_addresses(addresses)
    if tls is None and any(place.secure for place in places):
        tls = ClientTls()
    return Endpoints(resolver_of(name, places), partial(_open, wire, tls), clock=SYSTEM_CLOCK)


def resolver_of(name: str, addresses: tuple[Address, ...]) -> Resolver:
    """Who finds the endpoints: DNS for a single `dns:///` address, otherwise the list as it is."""
    if len(addresses) == 1 and addresses[0].resolve:
        return DnsResolver(addresses[0].host, addresses[0].port)
    if any(address.resolve for address in addresses):
        raise SetupError(
            f"Service {name!r} has several addresses and one of them is dns:///. Give the dns:///host:port alone, or "
            "addresses that need no look-up."
        )
    return StaticResolver([str(address) for address in addresses])


def _client_tls(system: SystemFile, caller: ServiceEntry, target: Target) -> ClientTls | None:
    """TLS as the target's entry demands it; the caller shows its own certificate."""
    served = system.services[target.name].tls
    if served is None and not parse_addresses(target.addresses)[0].secure:
        return None
    ca = served.ca if served is not None else None
    if caller.tls is None:
        return ClientTls(ca=ca)
    return ClientTls(ca=ca or caller.tls.ca, certificate=caller.tls.certificate, key=caller.tls.key)


def _open(wire: Wire, tls: ClientTls | None, address: str) -> EndpointWire:
    if wire == "grpc":
        return GrpcWire(Pool(address, version="2", tls=tls))
    streaming = Pool(address, version="2", tls=tls)
    if wire == "connect":
        return ConnectWire(streaming, secure=tls is not None)
    return RestWire(Pool(address, version="1.1", tls=tls), streaming=streaming, secure=tls is not None)
