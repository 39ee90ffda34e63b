"""A TCP proxy that does to connections what networks do: cuts them, stalls them, loses one end of them."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import socket
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import cast

_LINGER = struct.pack("ii", 1, 0)
"""Closing a socket with this sends a reset instead of a goodbye."""


class Ending(enum.Enum):
    """What becomes of a connection."""

    RESET = "both sides are reset"
    CLOSE = "both sides are closed in good order"
    SERVER_FIRST = "the server hears that the client has ended, and the client what the server makes of it"
    CLIENT_FIRST = "the client hears that the server has ended, and the server what the client makes of it"
    STALL = "nothing more goes that way until the proxy is told to go on"
    SILENCE = "nothing more goes either way, and nobody is told"
    CLIENT_GONE = "the client is reset, and the server is told nothing"
    SERVER_GONE = "the server is reset, and the client is told nothing"


class Toward(enum.Enum):
    """A direction."""

    SERVER = "server"
    CLIENT = "client"


@dataclass(frozen=True)
class Fault:
    """Strikes a connection once *after* more bytes have been passed on *toward* one side."""

    toward: Toward
    after: int
    ending: Ending
    for_a_while: float | None = None
    """Seconds after which a stall ends by itself, and the next fault is waited for."""


class Link:
    """One connection through the proxy, with a side each to the client and to the server."""

    def __init__(self, next_fault: Callable[[], Fault | None], over: Callable[[Link], None]) -> None:
        self.passed = {Toward.SERVER: 0, Toward.CLIENT: 0}
        """Bytes."""
        self.struck = False
        self.sides: dict[Toward, _Side] = {}
        self.early: bytes | None = b""
        """Of the client, before there is a way to the server; None from then on."""
        self._next_fault = next_fault
        self._fault = next_fault()
        self._since = 0
        """Bytes that had been passed on the fault's way when it was made up."""
        self._over = over
        self._stalled: set[Toward] = set()
        self._resume: asyncio.TimerHandle | None = None

    def arrived(self, toward: Toward, data: bytes) -> None:
        """Pass *data* on, as far as it may go."""
        fault = self._fault
        if self.early is not None:
            self.early += data
            return
        if toward in self._stalled:
            self.sides[toward].held += data
            return
        if fault is None or fault.toward is not toward:
            self._pass_on(toward, data)
            return
        room = self._since + fault.after - self.passed[toward]
        if len(data) < room:
            self._pass_on(toward, data)
            return
        self._fault = None
        self._pass_on(toward, data[:room])
        self.strike(fault.ending, toward, rest=data[room:], for_a_while=fault.for_a_while)

    def connected(self) -> None:
        """There is a way to the server now."""
        early, self.early = self.early, None
        if early:
            self.arrived(Toward.SERVER, early)

    def _pass_on(self, toward: Toward, data: bytes) -> None:
        if data:
            self.passed[toward] += len(data)
            self.sides[toward].write(data)

    def strike(self, ending: Ending, toward: Toward, *, rest: bytes = b"", for_a_while: float | None = None) -> None:
        """Do it now; *rest* was on its way *toward* a side."""
        self.struck = True
        to_client, to_server = self.sides[Toward.CLIENT], self.sides[Toward.SERVER]
        if ending is Ending.STALL:
            self._stall(toward, rest)
            if for_a_while is not None:
                self._resume = asyncio.get_running_loop().call_later(for_a_while, self._go_on)
        elif ending is Ending.SILENCE:
            self._stall(Toward.SERVER)
            self._stall(Toward.CLIENT)
        elif ending in (Ending.SERVER_FIRST, Ending.CLIENT_FIRST):
            (to_server if ending is Ending.SERVER_FIRST else to_client).half_close()
            # What was on its way to the other side gets there; on its way to this one it is lost.
            self._pass_on(toward, rest)
        else:
            self._end(ending, to_client, to_server)

    def _end(self, ending: Ending, to_client: _Side, to_server: _Side) -> None:
        if ending is Ending.RESET:
            to_client.reset()
            to_server.reset()
        elif ending is Ending.CLOSE:
            to_client.close()
            to_server.close()
        else:
            self._stall(Toward.SERVER)
            self._stall(Toward.CLIENT)
            gone = to_client if ending is Ending.CLIENT_GONE else to_server
            gone.reset()

    def _stall(self, toward: Toward, rest: bytes = b"") -> None:
        self._stalled.add(toward)
        side = self.sides[toward]
        side.held += rest
        side.other.pause()

    def _go_on(self) -> None:
        """End the stall; another fault is to come."""
        self.resume()
        self._fault = self._next_fault()
        if self._fault is not None:
            self._since = self.passed[self._fault.toward]

    def resume(self) -> None:
        """End the stall, and let nothing strike any more."""
        self._fault = None
        stalled, self._stalled = self._stalled, set()
        for toward in stalled:
            side = self.sides[toward]
            held, side.held = side.held, b""
            self._pass_on(toward, held)
            side.other.resume()

    def lost(self, side: _Side, error: Exception | None) -> None:
        """A side is gone; the other one hears of it as it would without a proxy."""
        if side.other.gone:
            if self._resume is not None:
                self._resume.cancel()
            self._over(self)
        elif self.passes(side.other.toward):
            if error is None:
                side.other.close()
            else:
                side.other.reset()

    def passes(self, toward: Toward) -> bool:
        return toward not in self._stalled

    def close(self) -> None:
        for side in self.sides.values():
            side.reset()


class _Side(asyncio.Protocol):
    """The end of a link *toward* the client or the server; what arrives here goes to the other one."""

    def __init__(self, link: Link, toward: Toward) -> None:
        self.link = link
        self.toward = toward
        self.held = b""
        """Arrived for this side, and not passed on while it is stalled."""
        self.gone = False
        self._ended = False
        self._said_end = False
        self._transport: asyncio.Transport | None = None
        self._away = Toward.CLIENT if toward is Toward.SERVER else Toward.SERVER
        link.sides[toward] = self

    @property
    def other(self) -> _Side:
        return self.link.sides[self._away]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.link.arrived(self._away, data)

    def eof_received(self) -> bool:
        self._ended = True
        other = self.other
        if not self.link.passes(self._away):
            return True
        if other._ended:
            other.close()
            return False
        other.half_close()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True
        self.link.lost(self, exc)

    def pause_writing(self) -> None:
        self.other.pause()

    def resume_writing(self) -> None:
        if self.link.passes(self.toward):
            self.other.resume()

    def write(self, data: bytes) -> None:
        if self._open is not None and not self._said_end:
            self._open.write(data)

    @property
    def _open(self) -> asyncio.Transport | None:
        transport = self._transport
        return None if transport is None or transport.is_closing() else transport

    def pause(self) -> None:
        if self._open is not None:
            self._open.pause_reading()

    def resume(self) -> None:
        if self._open is not None:
            self._open.resume_reading()

    def half_close(self) -> None:
        """Say that nothing more comes, and listen on."""
        if self._open is not None and not self._said_end:
            self._said_end = True
            self._open.write_eof()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def reset(self) -> None:
        transport = self._transport
        if transport is not None and not self.gone:
            with contextlib.suppress(OSError):  # the other side may have been faster
                transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
            transport.abort()


class Proxy:
    """Listens for one server. Each connection gets the faults that `next_fault` has for it, or None."""

    def __init__(self, target: str, next_fault: Callable[[], Fault | None] = lambda: None) -> None:
        host, _, port = target.rpartition(":")
        self._target = host, int(port)
        self.next_fault = next_fault
        self.links: list[Link] = []
        """Those that are open, the newest at the end."""
        self.opened = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._empty = asyncio.Event()
        self._server: asyncio.Server | None = None

    async def start(self) -> str:
        self._server = await asyncio.get_running_loop().create_server(self._accepted, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        return f"{host}:{port}"

    def _accepted(self) -> asyncio.Protocol:
        self.opened += 1
        link = Link(self.next_fault, self._over)
        side, away = _Side(link, Toward.CLIENT), _Side(link, Toward.SERVER)
        self.links.append(link)
        task = asyncio.get_running_loop().create_task(self._connect(side, away))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return side

    async def _connect(self, side: _Side, away: _Side) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: away, *self._target)
        except OSError:
            away.gone = True
            side.reset()
            return
        if side.gone:
            away.close()
        side.link.connected()

    def _over(self, link: Link) -> None:
        self.links.remove(link)
        if not self.links:
            self._empty.set()

    def strike(self, ending: Ending, toward: Toward = Toward.CLIENT) -> None:
        """Do it to every connection that there is."""
        for link in list(self.links):
            link.strike(ending, toward)

    def resume(self) -> None:
        """End all stalls, and let nothing strike any more."""
        self.next_fault = lambda: None
        for link in self.links:
            link.resume()

    def cut(self) -> None:
        """Reset all connections."""
        for link in list(self.links):
            link.close()

    async def close(self) -> None:
        """Reset all connections, and wait until nothing is left of them."""
        if self._server is not None:
            self._server.close()
        while self._tasks:
            await asyncio.wait(self._tasks)
        while self.links:
            self._empty.clear()
            self.cut()
            await self._empty.wait()


@contextlib.asynccontextmanager
async def proxied(
    target: str, next_fault: Callable[[], Fault | None] = lambda: None
) -> AsyncIterator[tuple[Proxy, str]]:
    """A proxy before *target*, and its address."""
    proxy = Proxy(target, next_fault)
    address = await proxy.start()
    try:
        yield proxy, address
    finally:
        await proxy.close()
