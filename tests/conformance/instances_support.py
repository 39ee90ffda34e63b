"""A few instances of a service over any wire, each of which does as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from polywire.channel import CallDefaults, Channel, Endpoints
from polywire.client import client_for
from polywire.connecting import channel_to
from polywire.context import current
from polywire.contract import Contract, Message, get, post, rpc
from polywire.discovery import StaticResolver
from polywire.errors import CallError, Internal, Unavailable
from polywire.policy.levels import Levels
from polywire.server import Server
from polywire.services import Services
from polywire.wire.local import LocalWire

PATIENCE = 60.0
"""Seconds in which everything here happens, many times over."""
WireName = Literal["local", "grpc", "http"]


class Ask(Message, package="instances.v1"):
    text: str = ""


class Answer(Message, package="instances.v1"):
    instance: int
    text: str = ""


class Desk(Contract, package="instances.v1"):
    """Where one asks, and is told who answered."""

    @rpc(get("/read"), idempotent=True, timeout=PATIENCE)
    async def read(self, ask: Ask) -> Answer:
        raise NotImplementedError

    @rpc(get("/look"), idempotent=True, timeout=PATIENCE)
    async def look(self, ask: Ask) -> Answer:
        """As `read`."""
        raise NotImplementedError

    @rpc(post("/write"), timeout=PATIENCE)
    async def write(self, ask: Ask) -> Answer:
        raise NotImplementedError

    @rpc
    def watch(self, ask: Ask) -> AsyncIterator[Answer]:
        """Answers without end."""
        raise NotImplementedError

    @rpc(timeout=PATIENCE)
    async def gather(self, asks: AsyncIterator[Ask]) -> Answer:
        """All texts, joined."""
        raise NotImplementedError

    @rpc
    def talk(self, asks: AsyncIterator[Ask]) -> AsyncIterator[Answer]:
        """An answer to each."""
        raise NotImplementedError


@dataclass
class DeskService(Desk):
    """One instance. It notes whom it saw, who runs, and who was cancelled."""

    number: int
    mode: str = "answer"
    """`answer`, `wait` (for the gate), `fail late` (after it), `hang`, or the code of an error to raise."""
    seen: list[str] = field(default_factory=list)
    running: set[str] = field(default_factory=set)
    cancelled: list[str] = field(default_factory=list)
    left: list[float | None] = field(default_factory=list)
    """The time that each call had left as it came."""
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    pauses: dict[str, float] = field(default_factory=dict)
    """Seconds that a call with that text takes."""

    async def read(self, ask: Ask) -> Answer:
        await self._turn(ask.text)
        return Answer(instance=self.number, text=ask.text)

    async def look(self, ask: Ask) -> Answer:
        return await self.read(ask)

    async def write(self, ask: Ask) -> Answer:
        return await self.read(ask)

    async def watch(self, ask: Ask) -> AsyncIterator[Answer]:
        self.running.add(f"stream {ask.text}")
        try:
            await self._turn(ask.text)
            while True:
                yield Answer(instance=self.number, text=ask.text)
                await asyncio.sleep(0)
        finally:
            self.running.discard(f"stream {ask.text}")

    async def gather(self, asks: AsyncIterator[Ask]) -> Answer:
        texts = [ask.text async for ask in asks]
        await self._turn(" ".join(texts))
        return Answer(instance=self.number, text=" ".join(texts))

    async def talk(self, asks: AsyncIterator[Ask]) -> AsyncIterator[Answer]:
        async for ask in asks:
            await self._turn(ask.text)
            yield Answer(instance=self.number, text=ask.text)

    async def _turn(self, text: str) -> None:
        self.seen.append(text)
        self.left.append(current().time_left())
        self.running.add(text)
        try:
            await self._behave(text)
        except asyncio.CancelledError:
            self.cancelled.append(text)
            raise
        finally:
            self.running.discard(text)

    async def _behave(self, text: str) -> None:
        if text in self.pauses:
            await asyncio.sleep(self.pauses[text])
        if self.mode == "wait":
            await self.gate.wait()
        elif self.mode == "fail late":
            await self.gate.wait()
            raise Internal("out of order")
        elif self.mode == "hang":
            await asyncio.Event().wait()
        elif self.mode == "internal":
            raise Internal("out of order")
        elif self.mode == "unavailable":
            raise Unavailable("not now")


@dataclass
class Running:
    """Instances that are served, and a client of all of them."""

    services: list[DeskService]
    channel: Channel
    desk: Desk

    @property
    def first(self) -> DeskService:
        return self.services[0]

    @property
    def seen(self) -> int:
        return sum(len(service.seen) for service in self.services)


@asynccontextmanager
async def instances(
    wire: WireName, count: int = 1, *, defaults: CallDefaults | None = None, levels: Levels | None = None
) -> AsyncIterator[Running]:
    """*count* instances over *wire*, each at an address of its own."""
    services = [DeskService(number) for number in range(count)]
    if wire == "local":
        dispatchers = {str(service.number): Services([service]) for service in services}
        endpoints = Endpoints(
            StaticResolver(list(dispatchers)), lambda name: LocalWire(dispatchers[name], address=name)
        )
        channel = Channel("desk", endpoints, defaults=defaults, levels=levels)
        stop: list[Callable[[], Awaitable[object]]] = [partial(one.finish, 0.0) for one in dispatchers.values()]
    else:
        servers = [Server([service]) for service in services]
        addresses = [await server.start("127.0.0.1:0") for server in servers]
        channel = channel_to(addresses, wire=wire, defaults=defaults, levels=levels)
        stop = [server.close for server in servers]
    try:
        yield Running(services, channel, client_for(Desk, channel))
    finally:
        await channel.close()
        for one in stop:
            await one()


async def until(true: Callable[[], object]) -> None:
    """Back once *true* is."""
    async with asyncio.timeout(PATIENCE):
        while not true():  # noqa: ASYNC110 - nobody tells when that is
            await asyncio.sleep(0.002)


async def outcomes(calls: Sequence[asyncio.Task[Answer]]) -> list[str]:
    """`ok`, or the code of its error, of each of *calls*."""
    results = await asyncio.gather(*calls, return_exceptions=True)
    return [result.code if isinstance(result, CallError) else "ok" for result in results]
