"""The gRPC wire keeps the rules of a call that every wire keeps."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from polywire.channel import Channel, Endpoints
from polywire.client import client_for
from polywire.contract import Contract
from polywire.discovery import StaticResolver
from polywire.net.listener import Listener
from polywire.net.pool import Pool
from polywire.services import Authenticator, Services
from polywire.testing.wires import Served, WireSuite
from polywire.wire.grpc.client import GrpcWire
from polywire.wire.grpc.server import GrpcServer

C = TypeVar("C", bound=Contract)


class GrpcServed:
    def __init__(self, services: Services) -> None:
        self._services = services
        self._listener = Listener(GrpcServer(services))
        self._channels: list[Channel] = []
        self._address = ""

    async def start(self) -> None:
        self._address = await self._listener.start("127.0.0.1:0")

    def client(self, contract: type[C], *, token: str | None = None) -> C:
        endpoints = Endpoints(StaticResolver([self._address]), lambda address: GrpcWire(Pool(address)))
        channel = Channel("probe", endpoints, token=None if token is None else _says(token))
        self._channels.append(channel)
        return client_for(contract, channel)

    async def cut(self) -> None:
        self._listener.close()

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()
        self._listener.close()
        await self._services.finish(0)


def _says(token: str) -> Callable[[], str]:
    return lambda: token


class TestGrpcWire(WireSuite):
    @asynccontextmanager
    async def serving(self, *services: object, authenticator: Authenticator | None = None) -> AsyncIterator[Served]:
        served = GrpcServed(Services(services, authenticator=authenticator))
        await served.start()
        try:
            yield served
        finally:
            await served.close()
