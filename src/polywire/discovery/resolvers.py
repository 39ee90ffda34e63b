"""Resolvers: from the name of a target to the addresses of its endpoints."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol


class Resolver(Protocol):
    """Finds the endpoints of one target."""

    refresh: float | None
    """Seconds until it is worth asking again; None where the answer never changes."""

    async def resolve(self) -> Sequence[str]:
        """The addresses now, `host:port` or `unix:/path`. Raises OSError with a reason where there are none."""
        ...


class StaticResolver:
    """Addresses that were written down."""

    refresh: float | None = None

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = tuple(addresses)

    async def resolve(self) -> Sequence[str]:
        return self._addresses


Lookup = Callable[[str, int], Awaitable[Sequence[str]]]


class DnsResolver:
    """Every address that DNS has for a name, asked again and again.

    The system's resolver does not tell how long an answer holds, so it is asked every *refresh* seconds; it has a cache
    of its own.
    """

    refresh: float | None

    def __init__(self, host: str, port: int, *, refresh: float = 30.0, lookup: Lookup | None = None) -> None:
        self.refresh = refresh
        self._host = host
        self._port = port
        self._lookup = lookup or _system_lookup

    async def resolve(self) -> Sequence[str]:
        addresses = await self._lookup(self._host, self._port)
        if not addresses:
            raise OSError(f"DNS has no address for {self._host}")
        return addresses


async def _system_lookup(host: str, port: int) -> Sequence[str]:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise OSError(f"DNS has no address for {host} ({error.strerror})") from error
    addresses: dict[str, None] = {}
    for family, _, _, _, (host_found, *_) in found:
        name = str(host_found)
        addresses[f"[{name}]:{port}" if family == socket.AF_INET6 else f"{name}:{port}"] = None
    return tuple(addresses)
