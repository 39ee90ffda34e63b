"""A service with few places, over each wire, for the tests of who is let in."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from polywire import Contract, Message, Priority, Shedding, get, post, rpc
from polywire.channel import CallDefaults, Channel, Endpoints
from polywire.client import client_for
from polywire.connecting import RemoteWire, channel_to
from polywire.contract import Retry
from polywire.discovery import StaticResolver
from polywire.errors import NotFound
from polywire.policy.shedding import Limiter
from polywire.server import Server
from polywire.services import Services
from polywire.wire.local import LocalWire

LONG = 60.0
"""Seconds within which everything here happens, on a machine that is busy with other things."""
TURNS = 100
"""Of the loop, after which a call that was let in has certainly begun."""
WIRES = ["grpc", "connect", "http", "local"]
ONCE = CallDefaults(timeout=LONG, retry=Retry(attempts=1))
"""No retries: a call that is turned away is turned away."""


class Word(Message, package="places.v1"):
    text: str = ""


async def words(*texts: str) -> AsyncIterator[Word]:
    for text in texts:
        yield Word(text=text)


async def first_of(answers: AsyncIterator[Word]) -> Word:
    async with aclosing(answers) as open_answers:  # type: ignore[type-var]  # a client's stream has aclose
        return await anext(open_answers)


class Places(Contract, package="places.v1"):
    @rpc(post("/places/hold"))
    async def hold(self, word: Word) -> Word:
        """Answer once the test opens the gate; `fail`, `bug` and `quick` do not wait."""
        raise NotImplementedError

    @rpc(priority=Priority.BACKGROUND)
    async def sweep(self, word: Word) -> Word:
        """As `hold`."""
        raise NotImplementedError

    @rpc(priority=Priority.CRITICAL)
    async def pay(self, word: Word) -> Word:
        """As `hold`."""
        raise NotImplementedError

    @rpc(get("/places/listen/{text}"))
    def listen(self, word: Word) -> AsyncIterator[Word]:
        """Nothing until the gate is open, then words without end; `now` does not wait for the first."""
        raise NotImplementedError

    @rpc(post("/places/gather"))
    async def gather(self, words: AsyncIterator[Word]) -> Word:
        raise NotImplementedError

    @rpc
    def talk(self, words: AsyncIterator[Word]) -> AsyncIterator[Word]:
        raise NotImplementedError


@dataclass
class PlacesService(Places):
    started: list[str] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def hold(self, word: Word) -> Word:
        self.started.append(word.text)
        if word.text == "fail":
            raise NotFound("no such place")
        if word.text == "bug":
            raise ZeroDivisionError
        if word.text != "quick":
            await self.gate.wait()
        return word

    async def sweep(self, word: Word) -> Word:
        return await self.hold(word)

    async def pay(self, word: Word) -> Word:
        return await self.hold(word)

    async def listen(self, word: Word) -> AsyncIterator[Word]:
        self.started.append(word.text)
        if word.text == "fail":
            raise NotFound("nothing to hear")
        if word.text == "now":
            yield word
        await self.gate.wait()
        while True:
            yield word
            await asyncio.sleep(0)

    async def gather(self, words: AsyncIterator[Word]) -> Word:
        self.started.append("gather")
        return Word(text=" ".join([word.text async for word in words]))

    async def talk(self, words: AsyncIterator[Word]) -> AsyncIterator[Word]:
        self.started.append("talk")
        async for word in words:
            yield word


class Site:
    """A service that is served, and clients of it."""

    def __init__(self, wire: str, service: PlacesService, services: Services, address: str) -> None:
        self.wire = wire
        self.service = service
        self.services = services
        self.address = address
        self._channels: list[Channel] = []

    @property
    def limiter(self) -> Limiter:
        assert self.services.limiter is not None
        return self.services.limiter

    def channel(self, *, defaults: CallDefaults = ONCE, token: str | None = None) -> Channel:
        if self.wire == "local":
            endpoints = Endpoints(StaticResolver(["local"]), lambda _: LocalWire(self.services))
            channel = Channel("places", endpoints, defaults=defaults, token=None if token is None else lambda: token)
        else:
            channel = channel_to(self.address, wire=cast(RemoteWire, self.wire), defaults=defaults, token=token)
        self._channels.append(channel)
        return channel

    def client(self, *, defaults: CallDefaults = ONCE, token: str | None = None) -> Places:
        return client_for(Places, self.channel(defaults=defaults, token=token))

    async def filled(self, count: int, client: Places | None = None) -> list[asyncio.Task[Word]]:
        """So many calls that are under way, and stay that until the gate is opened."""
        client = client or self.client()
        before = self.limiter.in_flight
        tasks = [asyncio.create_task(client.hold(Word(text=f"fill {number}"))) for number in range(count)]
        await until(lambda: sum(text.startswith("fill") for text in self.service.started) >= count)
        assert self.limiter.in_flight == before + count
        return tasks

    async def empty(self) -> None:
        """Return once no call has a place any more. Raises AssertionError where one is held by nobody."""
        idle = 0
        while (held := (self.limiter.in_flight, self.limiter.streams)) != (0, 0):
            await until(lambda: self.services.in_flight == 0)
            # A call that was let in is begun at the next turn of the loop, so that it is not counted for a moment.
            idle += 1
            assert idle < TURNS, f"no call is under way, but {held[0]} places and {held[1]} streams are taken"
            await asyncio.sleep(0)

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()


@asynccontextmanager
async def site(
    wire: str, shedding: Shedding | None, *, service: PlacesService | None = None, **options: Any
) -> AsyncIterator[Site]:
    """*shedding* over *wire*; every place is there for calls of the usual priority unless it says otherwise."""
    service = service or PlacesService()
    if wire == "local":
        services = Services([service], shedding=shedding, **options)
        found = Site(wire, service, services, "")
        try:
            yield found
        finally:
            await services.finish(0.0)
            await found.close()
        return
    server = Server([service], shedding=shedding, **options)
    found = Site(wire, service, server.services, await server.start("127.0.0.1:0"))
    try:
        yield found
    finally:
        await found.close()
        await server.close()


def fixed(limit: int, **values: Any) -> Shedding:
    """A limit that does not move, all of it for calls of the usual priority."""
    return Shedding(**{"limit": limit, "adaptive": False, "normal": 1.0, **values})


async def until(condition: Callable[[], bool]) -> None:
    """Wait until *condition* holds."""
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end, "what was waited for did not happen"
        await asyncio.sleep(0.002)
