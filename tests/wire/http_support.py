"""Serving and calling over the HTTP wires, for their tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from polywire.channel import Channel, Endpoints
from polywire.client import client_for
from polywire.contract import Contract
from polywire.discovery import StaticResolver
from polywire.net.listener import Listener
from polywire.net.pool import Pool
from polywire.services import Authenticator, Services
from polywire.testing.wires import Served
from polywire.wire.http import ConnectWire, HttpApplication, Plain, RestWire
from polywire.wire.seam import EndpointWire

C = TypeVar("C", bound=Contract)
OpenWire = Callable[[str], EndpointWire]


class HttpServed:
    """Services on a port of this machine, and clients of them."""

    def __init__(self, services: Services, open_wire: OpenWire, plain: Mapping[str, Plain] | None = None) -> None:
        self.services = services
        self._open_wire = open_wire
        self._listener = Listener(HttpApplication(services, plain=plain))
        self._channels: list[Channel] = []
        self.address = ""

    async def start(self) -> None:
        self.address = await self._listener.start("127.0.0.1:0")

    def client(self, contract: type[C], *, token: str | None = None) -> C:
        endpoints = Endpoints(StaticResolver([self.address]), self._open_wire)
        channel = Channel("probe", endpoints, token=None if token is None else lambda: token)
        self._channels.append(channel)
        return client_for(contract, channel)

    async def cut(self) -> None:
        self._listener.close()

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()
        self._listener.close()
        await self.services.finish(0)


def rest(address: str, **options: Any) -> EndpointWire:
    return RestWire(Pool(address, version="1.1"), streaming=Pool(address, version="2"), **options)


def rest_over_http2(address: str) -> EndpointWire:
    return RestWire(Pool(address, version="2"), streaming=Pool(address, version="2"))


def connect(address: str, **options: Any) -> EndpointWire:
    return ConnectWire(Pool(address, version="2"), **options)


def connect_json_compressed(address: str) -> EndpointWire:
    return ConnectWire(Pool(address, version="2"), encoding="json", compress=True)


def connect_over_http1(address: str) -> EndpointWire:
    return ConnectWire(Pool(address, version="1.1"))


@asynccontextmanager
async def served(
    *services: object,
    over: OpenWire = rest,
    authenticator: Authenticator | None = None,
    plain: Mapping[str, Plain] | None = None,
    **options: Any,
) -> AsyncIterator[HttpServed]:
    """Serve *services* until the block ends; *options* are those of `Services`."""
    made = HttpServed(Services(services, authenticator=authenticator, **options), over, plain)
    await made.start()
    try:
        yield made
    finally:
        await made.close()


def serving(
    over: OpenWire,
) -> Callable[..., Any]:
    """What a `WireSuite` overrides, for clients made by *over*."""

    @asynccontextmanager
    async def serve(
        _suite: object, *services: object, authenticator: Authenticator | None = None
    ) -> AsyncIterator[Served]:
        async with served(*services, over=over, authenticator=authenticator) as made:
            yield made

    return serve


class Answer:
    """A whole HTTP/1.1 answer, as bytes and taken apart."""

    def __init__(self, raw: bytes) -> None:
        head, _, self.body = raw.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        self.status = int(first.split(" ")[1])
        self.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}


async def ask(address: str, request: bytes) -> Answer:
    """Send *request* as it is over a connection of its own, and read until the server closes it."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(request)
        return Answer(await asyncio.wait_for(reader.read(), 10))
    finally:
        writer.close()
        await writer.wait_closed()


def request(
    verb: str, path: str, body: bytes = b"", *, headers: Mapping[str, str] | None = None, json: bool = True
) -> bytes:
    """A request that closes the connection."""
    given = {"host": "test", "connection": "close", **(headers or {})}
    if body and json:
        given.setdefault("content-type", "application/json")
    if body:
        given.setdefault("content-length", str(len(body)))
    lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
    return f"{verb} {path} HTTP/1.1\r\n{lines}\r\n".encode("latin-1") + body
