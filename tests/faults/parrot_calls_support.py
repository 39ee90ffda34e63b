"""Calls of the parrot over every wire through the proxy, each of which can tell its own answer from any other."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from tests.faults.parrot_service import ANSWERS, Line, Parrot, ParrotService
from tests.faults.proxy_support import Proxy, proxied

from polywire import Breaker, CallDefaults, Server, Shedding, calling
from polywire.channel import Channel, Endpoints
from polywire.client import client_for
from polywire.discovery import StaticResolver
from polywire.errors import CallError, Unavailable
from polywire.net.pool import Pool
from polywire.net.stream import Limits
from polywire.policy.retry import Retry
from polywire.wire.grpc.client import GrpcWire
from polywire.wire.http.connect_client import ConnectWire
from polywire.wire.http.rest_client import RestWire
from polywire.wire.seam import EndpointWire

T = TypeVar("T")
SOON = 60.0
"""Seconds within which everything that may not hang has to be over."""
LONG = 300.0
"""Seconds; a deadline that no call is to reach."""

Wire = Literal["grpc", "connect over HTTP/1.1", "connect over HTTP/2", "rest"]
WIRES: tuple[Wire, ...] = ("grpc", "connect over HTTP/1.1", "connect over HTTP/2", "rest")
Kind = Literal["say", "repeat", "gather", "converse"]
KINDS: tuple[Kind, ...] = ("say", "repeat", "gather", "converse")

WHOLE = os.environ.get("POLYWIRE_FAULTS") == "whole"
"""`make faults`: every ending at every byte, which takes minutes."""
EACH_CALL = CallDefaults(retry=Retry(attempts=1), policies=(Breaker(enabled=False),))
ROOMY = Shedding(limit=1000, adaptive=False)
"""Places for all callers, however slow they make the one loop that all share; calls that keep theirs run it out."""
QUICK = Limits(keepalive_interval=0.2, keepalive_timeout=0.2)
"""Peers that are gone are noticed within seconds."""


def kinds_of(wire: Wire) -> tuple[Kind, ...]:
    """What *wire* can carry."""
    return KINDS[:-1] if wire == "connect over HTTP/1.1" else KINDS


def over_http2(wire: Wire, kind: Kind) -> bool:
    return wire in ("grpc", "connect over HTTP/2") or (wire == "rest" and kind != "say")


def endpoint_of(wire: Wire, address: str, limits: Limits) -> EndpointWire:
    if wire == "grpc":
        return GrpcWire(Pool(address, version="2", limits=limits))
    if wire == "rest":
        pool = Pool(address, version="1.1", limits=limits)
        return RestWire(pool, streaming=Pool(address, version="2", limits=limits))
    return ConnectWire(Pool(address, version="2" if wire.endswith("2") else "1.1", limits=limits))


@contextlib.asynccontextmanager
async def client_at(wire: Wire, address: str, limits: Limits = QUICK) -> AsyncIterator[Parrot]:
    """A client that does not try again, nor leave any out, so that each call meets what happens to its connection."""
    endpoints = Endpoints(StaticResolver([address]), lambda at: endpoint_of(wire, at, limits))
    channel = Channel("parrot", endpoints, defaults=EACH_CALL)
    try:
        yield client_for(Parrot, channel)
    finally:
        await channel.close()


@dataclass
class Stage:
    """A parrot that is served."""

    service: ParrotService
    server: Server
    target: str
    """Where it is; to be called through proxies."""
    nonces: itertools.count[int] = field(default_factory=itertools.count)

    def nonce(self) -> str:
        """Always of one length, so that calls of one kind have one length too."""
        return f"{next(self.nonces):08}"

    async def until_quiet(self) -> None:
        """Until the server has neither calls nor connections."""
        await until(
            lambda: self.service.running == self.server.services.in_flight == self.server._listener.connections == 0,
            lambda: (
                f"{self.service.running} handlers, {self.server.services.in_flight} calls and "
                f"{self.server._listener.connections} connections are left"
            ),
        )
        limiter = self.server.services.limiter
        assert limiter is not None
        assert (limiter.in_flight, limiter.streams) == (0, 0), "places of calls that are over are kept"


async def until(holds: Callable[[], bool], otherwise: Callable[[], str]) -> None:
    """Wait for a condition; AssertionError with what is *otherwise*."""
    try:
        async with asyncio.timeout(SOON):
            while not holds():  # noqa: ASYNC110 - nobody says when a socket is gone
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(otherwise()) from None


@contextlib.asynccontextmanager
async def staged(*, limits: Limits = QUICK) -> AsyncIterator[Stage]:
    """A parrot. At the end nothing may be left of it and its callers: no handler, no place, no connection, no task, no
    file."""
    tasks, sockets = asyncio.all_tasks(), open_sockets()
    service = ParrotService()
    server = Server([service], limits=limits, shedding=ROOMY)
    target = await server.start("127.0.0.1:0")
    stage = Stage(service, server, target)
    try:
        yield stage
        await stage.until_quiet()
    finally:
        await server.close()
    await until(
        lambda: asyncio.all_tasks() <= tasks and open_sockets() <= sockets,
        lambda: f"these are left: {asyncio.all_tasks() - tasks}, {open_sockets() - sockets}",
    )
    assert service.mixed == []


def open_sockets() -> set[str]:
    """Of this process. Event loops open other files for themselves as they go along."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the directory itself, which is read here
            found.add(os.readlink(f"/proc/self/fd/{number}"))
    return {name for name in found if name.startswith("socket:")}


@dataclass
class Outcomes:
    """What became of many calls."""

    codes: Counter[str] = field(default_factory=Counter)
    unreached: set[str] = field(default_factory=set)
    """Nonces of calls that are said to have reached nobody."""
    messages: set[str] = field(default_factory=set)
    """Of `unavailable`."""

    @property
    def calls(self) -> int:
        return self.codes.total()

    async def of(self, call: Awaitable[None], nonce: str, timeout: float) -> str:
        """How *call* ended; anything but its own answer and documented errors is raised."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(timeout + SOON):
                await call
        except CallError as error:
            self._failed(error, nonce, time.monotonic() - began, timeout)
            code = error.code
        else:
            code = "ok"
        self.codes[code] += 1
        return code

    def _failed(self, error: CallError, nonce: str, took: float, timeout: float) -> None:
        if error.code == "deadline_exceeded":
            assert took >= timeout - 0.01, f"{error} after {took:.3f} s of {timeout:g} s"
        elif isinstance(error, Unavailable):
            assert error.reached in ("no", "maybe")
            if error.reached == "no":
                self.unreached.add(nonce)
            self.messages.add(error.message)
        else:
            raise AssertionError(f"{error.code} is not for a fault of the network: {error!r}") from error


async def lines_of(nonce: str, text: str, parts: int = ANSWERS) -> AsyncIterator[Line]:
    for part in range(parts):
        yield Line(nonce=nonce, part=part, text=text)


async def called(client: Parrot, kind: Kind, nonce: str, text: str, timeout: float | None) -> None:
    """One call of *kind*; asserts that its answer is its own."""
    with calling(timeout=timeout):
        if kind == "say":
            assert await client.say(Line(nonce=nonce, text=text)) == Line(nonce=nonce, text=text)
        elif kind == "gather":
            answer = await client.gather(lines_of(nonce, text))
            assert answer == Line(nonce=nonce, part=ANSWERS, text=text)
        else:
            line = Line(nonce=nonce, text=text)
            answers = client.repeat(line) if kind == "repeat" else client.converse(lines_of(nonce, text))
            parts = 0
            async for answer in answers:
                assert answer == Line(nonce=nonce, part=parts, text=text)
                parts += 1
            assert parts == ANSWERS


async def held(client: Parrot, kind: Kind, nonce: str, timeout: float | None) -> None:
    """One call of *kind* that never ends by itself."""
    with calling(timeout=timeout):
        if kind == "say":
            await client.hold(Line(nonce=nonce))
        elif kind == "gather":
            await client.hold_gather(_lines_without_end(nonce))
        else:
            line = Line(nonce=nonce)
            answers = client.hold_repeat(line) if kind == "repeat" else client.hold_converse(_lines_without_end(nonce))
            async for answer in answers:
                assert answer == line
    raise AssertionError(f"a call without an end has ended: {kind} {nonce}")


async def _lines_without_end(nonce: str) -> AsyncIterator[Line]:
    yield Line(nonce=nonce)
    await asyncio.Event().wait()


async def in_lanes(
    stage: Stage, lanes: int, things: Iterable[T], do: Callable[[Proxy, str, T], Coroutine[None, None, None]]
) -> None:
    """Do it with each of *things*, several at once, which have a proxy and its address to themselves."""
    left = iter(things)

    async def lane() -> None:
        async with proxied(stage.target) as (proxy, address):
            for thing in left:
                await do(proxy, address, thing)

    async with asyncio.TaskGroup() as group:
        for _ in range(lanes):
            group.create_task(lane())
