"""gRPC, Connect and REST keep the rules of a call, over real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import ClassVar, TypeVar

from polywire.channel import Channel
from polywire.client import client_for
from polywire.connecting import RemoteWire, channel_to
from polywire.contract import Contract
from polywire.server import Server
from polywire.services import Authenticator
from polywire.testing.wires import Served, WireSuite

C = TypeVar("C", bound=Contract)


class NetworkServed:
    def __init__(self, server: Server, address: str, wire: RemoteWire) -> None:
        self._server = server
        self._address = address
        self._wire: RemoteWire = wire
        self._channels: list[Channel] = []

    def client(self, contract: type[C], *, token: str | None = None) -> C:
        channel = channel_to(self._address, wire=self._wire, token=token)
        self._channels.append(channel)
        return client_for(contract, channel)

    async def cut(self) -> None:
        await self._server.close()

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()
        await self._server.close()


class NetworkWireSuite(WireSuite):
    wire: ClassVar[RemoteWire]

    @asynccontextmanager
    async def serving(self, *services: object, authenticator: Authenticator | None = None) -> AsyncIterator[Served]:
        server = Server(services, authenticator=authenticator)
        address = await server.start("127.0.0.1:0")
        served = NetworkServed(server, address, self.wire)
        try:
            yield served
        finally:
            await served.close()


class TestGrpcWire(NetworkWireSuite):
    wire: ClassVar[RemoteWire] = "grpc"


class TestConnectWire(NetworkWireSuite):
    wire: ClassVar[RemoteWire] = "connect"


class TestHttpWire(NetworkWireSuite):
    wire: ClassVar[RemoteWire] = "http"
