"""Reaching a service by its address alone: `connect`, for programs that are part of no system."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Literal, TypeVar

from polywire.channel import CallDefaults, Channel, Endpoints
from polywire.client import client_for
from polywire.clock import SYSTEM_CLOCK, Clock
from polywire.contract import Contract, service_of
from polywire.discovery import DnsResolver, Resolver, StaticResolver
from polywire.errors import SetupError
from polywire.interceptor import Interceptor
from polywire.net.address import Address, parse_addresses
from polywire.net.pool import Pool
from polywire.net.tls import ClientTls
from polywire.policy.levels import Levels
from polywire.wire.grpc.client import GrpcWire
from polywire.wire.http.connect_client import ConnectWire
from polywire.wire.http.rest_client import RestWire
from polywire.wire.seam import EndpointWire

C = TypeVar("C", bound=Contract)
RemoteWire = Literal["grpc", "http", "connect"]
"""`http` is REST for every rpc that has a route, and Connect in JSON for the others and for streams."""


@asynccontextmanager
async def connect(
    contract: type[C],
    address: str | Sequence[str],
    *,
    wire: RemoteWire | None = None,
    token: str | Callable[[], str] | None = None,
    tls: ClientTls | None = None,
    defaults: CallDefaults | None = None,
    interceptors: Sequence[Interceptor] = (),
    clock: Clock = SYSTEM_CLOCK,
) -> AsyncIterator[C]:
    """A typed client of *contract* at *address*, for as long as the block lasts.

    *address* is `host:port`, `unix:/path`, `dns:///host:port` or a list of them, with `grpc://`, `grpcs://`,
    `http://` or `https://` before it; that also says which *wire* is meant where none is given (gRPC without a scheme).
    *token* is sent as a bearer token; a function is asked at every call, so that it can change. *tls* is for
    certificates that the machine does not trust by itself, and for showing one. *interceptors* are around every call,
    the first one outermost.

    The target counts as a stranger: it is not told the principal of the call under way.

    Nothing is connected before the first call. Raises SetupError for an address or a contract that cannot work.
    """
    service_of(contract)
    channel = channel_to(address, wire=wire, token=token, tls=tls, defaults=defaults, clock=clock)
    try:
        yield client_for(contract, channel, interceptors=interceptors)
    finally:
        await channel.close()


def channel_to(
    address: str | Sequence[str],
    *,
    wire: RemoteWire | None = None,
    token: str | Callable[[], str] | None = None,
    tls: ClientTls | None = None,
    defaults: CallDefaults | None = None,
    levels: Levels | None = None,
    inside: bool = False,
    clock: Clock = SYSTEM_CLOCK,
) -> Channel:
    """A channel as `connect` makes it, for several contracts at one address; the caller closes it.

    *levels*, in place of *defaults*, is what a system says about calls to it in detail.
    *inside* says that the target belongs to the same system, and may be told the principal of the call under way.
    """
    addresses = parse_addresses(address)
    chosen = wire or wire_of(addresses)
    secure = tls if tls is not None else ClientTls() if addresses[0].secure else None
    resolver = resolver_of(",".join(map(str, addresses)), addresses)
    endpoints = Endpoints(resolver, partial(open_endpoint, chosen, secure), clock=clock)
    given = token if token is None or callable(token) else partial(str, token)
    return Channel(
        str(addresses[0]), endpoints, defaults=defaults, levels=levels, token=given, inside=inside, clock=clock
    )


def wire_of(addresses: Sequence[Address]) -> RemoteWire:
    """The wire that the schemes of *addresses* ask for; they must agree."""
    schemes = {address.scheme.removesuffix("s") for address in addresses}
    if len(schemes) > 1:
        raise SetupError(
            f"The addresses of one target have different schemes: {', '.join(map(str, addresses))}. Give all the same."
        )
    return "http" if schemes == {"http"} else "grpc"


def resolver_of(name: str, addresses: Sequence[Address]) -> Resolver:
    """Who finds the endpoints: DNS for a single `dns:///` address, otherwise the list as it is."""
    if len(addresses) == 1 and addresses[0].resolve:
        return DnsResolver(addresses[0].host, addresses[0].port)
    if any(address.resolve for address in addresses):
        raise SetupError(
            f"{name!r} has several addresses and one of them is dns:///. Give the dns:///host:port alone, or addresses "
            "that need no look-up."
        )
    return StaticResolver([str(address) for address in addresses])


def open_endpoint(wire: RemoteWire, tls: ClientTls | None, address: str) -> EndpointWire:
    """One endpoint over *wire*; nothing is connected yet."""
    secure = tls is not None
    if wire == "grpc":
        return GrpcWire(Pool(address, version="2", tls=tls), secure=secure)
    if wire == "connect":
        return ConnectWire(Pool(address, version="2", tls=tls), secure=secure)
    pool = Pool(address, version="1.1", tls=tls)
    return RestWire(pool, streaming=Pool(address, version="2", tls=tls), secure=secure)
