"""A service that says what it was told, in all four kinds of calls, and notes what became of its handlers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from polywire import Contract, Message, post, rpc

ANSWERS = 3
"""Messages in a stream of answers to one request."""


class Line(Message, package="faults.v1"):
    nonce: str
    part: int = 0
    text: str = ""


class Parrot(Contract, package="faults.v1"):
    @rpc(post("/say"))
    async def say(self, line: Line) -> Line:
        """The line."""
        raise NotImplementedError

    @rpc
    def repeat(self, line: Line) -> AsyncIterator[Line]:
        """The line, once for each part."""
        raise NotImplementedError

    @rpc
    async def gather(self, lines: AsyncIterator[Line]) -> Line:
        """The nonce of the lines, and how many there were."""
        raise NotImplementedError

    @rpc
    def converse(self, lines: AsyncIterator[Line]) -> AsyncIterator[Line]:
        """Each line."""
        raise NotImplementedError

    @rpc(post("/hold"))
    async def hold(self, line: Line) -> Line:
        """Never answers."""
        raise NotImplementedError

    @rpc
    def hold_repeat(self, line: Line) -> AsyncIterator[Line]:
        """The line once, and never an end."""
        raise NotImplementedError

    @rpc
    async def hold_gather(self, lines: AsyncIterator[Line]) -> Line:
        """Takes lines for ever."""
        raise NotImplementedError

    @rpc
    def hold_converse(self, lines: AsyncIterator[Line]) -> AsyncIterator[Line]:
        """Each line, and never an end."""
        raise NotImplementedError


class ParrotService(Parrot):
    def __init__(self) -> None:
        self.seen: set[str] = set()
        """Nonces that a handler has seen."""
        self.running = 0
        self.cancelled = 0
        """Handlers that were."""
        self.mixed: list[tuple[str, str]] = []
        """Pairs of nonces that came as parts of one stream."""
        self.changed = asyncio.Event()

    @contextmanager
    def _noted(self, nonce: str = "") -> Iterator[None]:
        self.running += 1
        if nonce:
            self.saw(nonce)
        try:
            yield
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
            self.changed.set()

    def saw(self, nonce: str) -> None:
        self.seen.add(nonce)
        self.changed.set()

    async def until_seen(self, nonce: str) -> None:
        while nonce not in self.seen:
            self.changed.clear()
            await self.changed.wait()

    async def until_idle(self) -> None:
        """Until no handler runs."""
        while self.running:
            self.changed.clear()
            await self.changed.wait()

    async def _told(self, lines: AsyncIterator[Line]) -> AsyncIterator[Line]:
        first = ""
        async for line in lines:
            first = first or line.nonce
            self.saw(line.nonce)
            if line.nonce != first:
                self.mixed.append((first, line.nonce))
            yield line

    async def say(self, line: Line) -> Line:
        with self._noted(line.nonce):
            return line

    async def repeat(self, line: Line) -> AsyncIterator[Line]:
        with self._noted(line.nonce):
            for part in range(ANSWERS):
                yield Line(nonce=line.nonce, part=part, text=line.text)

    async def gather(self, lines: AsyncIterator[Line]) -> Line:
        with self._noted():
            told = [line async for line in self._told(lines)]
            return Line(nonce=told[0].nonce, part=len(told), text=told[0].text)

    async def converse(self, lines: AsyncIterator[Line]) -> AsyncIterator[Line]:
        with self._noted():
            async for line in self._told(lines):
                yield line

    async def hold(self, line: Line) -> Line:
        with self._noted(line.nonce):
            await asyncio.Event().wait()
        return line

    async def hold_repeat(self, line: Line) -> AsyncIterator[Line]:
        with self._noted(line.nonce):
            yield line
            await asyncio.Event().wait()

    async def hold_gather(self, lines: AsyncIterator[Line]) -> Line:
        with self._noted():
            async for _ in self._told(lines):
                pass
            await asyncio.Event().wait()
        raise AssertionError("an event that nobody sets was set")

    async def hold_converse(self, lines: AsyncIterator[Line]) -> AsyncIterator[Line]:
        with self._noted():
            async for line in self._told(lines):
                yield line
            await asyncio.Event().wait()
