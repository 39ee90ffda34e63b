"""The local wire keeps the rules of a call."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from polywire.channel import Channel, Endpoints
from polywire.client import client_for
from polywire.contract import Contract
from polywire.discovery import StaticResolver
from polywire.services import Authenticator, Services
from polywire.testing.wires import Served, WireSuite
from polywire.wire.local import LocalWire

C = TypeVar("C", bound=Contract)


class LocalServed:
    def __init__(self, services: Services) -> None:
        self._services = services
        self._wires: list[LocalWire] = []
        self._channels: list[Channel] = []

    def client(self, contract: type[C], *, token: str | None = None) -> C:
        channel = Channel(
            "probe", Endpoints(StaticResolver(["local"]), self._open), token=None if token is None else _says(token)
        )
        self._channels.append(channel)
        return client_for(contract, channel)

    def _open(self, address: str) -> LocalWire:
        wire = LocalWire(self._services)
        self._wires.append(wire)
        return wire

    async def cut(self) -> None:
        for wire in self._wires:
            await wire.close()

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()
        await self._services.finish(0)


def _says(token: str) -> Callable[[], str]:
    return lambda: token


class TestLocalWire(WireSuite):
    @asynccontextmanager
    async def serving(self, *services: object, authenticator: Authenticator | None = None) -> AsyncIterator[Served]:
        served = LocalServed(Services(services, authenticator=authenticator))
        try:
            yield served
        finally:
            await served.close()
