"""Accepts connections for one application: HTTP/1.1 and HTTP/2 on one port, TCP and Unix sockets, plain and TLS."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Sequence
from typing import Any, Protocol, cast

from polywire.net.address import Address, parse_addresses
from polywire.net.binding import BACKLOG, bound, open_listening
from polywire.net.http1 import Dateline, HeadReader, Http1ServerProtocol
from polywire.net.http1.server import QUIET
from polywire.net.http2_protocol import Http2ServerProtocol
from polywire.net.sharing import Accepting, SharedPort, Turn
from polywire.net.stream import Application, Limits
from polywire.net.tls import ServerTls

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DRAIN_TICK = 0.1
"""Seconds between sweeps while draining."""


_LAST_WORDS = 0.2
"""Seconds that connections closed at the end of the grace have to send their last bytes."""


log = logging.getLogger("polywire.server")


class Member(Protocol):
    """A connection of HTTP/1.1, or one whose version is not known yet, as the listener looks after it."""

    def tick(self, now: float) -> None:
        """Enforce the limits of time."""

    def drain(self) -> None:
        """Finish what is under way, then close."""

    def close(self) -> None:
        """Close now."""


class Listener:
    """Serves *application* on one or more addresses until it is drained or closed."""

    def __init__(
        self,
        application: Application,
        *,
        limits: Limits | None = None,
        tls: ServerTls | None = None,
    ) -> None:
        self._application = application
        self._limits = limits or Limits()
        self._tls = tls.context() if tls is not None else None
        self._servers: list[asyncio.AbstractServer] = []
        self._sockets: list[socket.socket] = []
        self._socket_files: list[tuple[str, int]] = []
        self._members: dict[Member, asyncio.Transport] = {}
        self._http2: dict[Http2ServerProtocol, asyncio.Transport] = {}
        """These look at the clock themselves."""
        self._reader = HeadReader(self._limits)
        self._date = Dateline()
        self._sweep: asyncio.Handle | None = None
        self._draining = False
        self._closed = False
        self._leaving: set[asyncio.Task[None]] = set()
        self._accepting: list[Accepting] = []
        self._turn: Turn | None = None
        self._arriving: dict[asyncio.Task[None], socket.socket] = {}
        """Connections that were accepted, and are not ready yet: they may have yet to agree on TLS."""
        self._empty: asyncio.Event = asyncio.Event()

    @property
    def connections(self) -> int:
        """How many are open now."""
        return len(self._members) + len(self._http2)

    async def start(self, address: str | Sequence[str]) -> str:
        """Listen on *address*, several of them with commas. Returns the same with the ports that were chosen for 0.

        Raises SetupError, saying which address cannot be listened on, and why; then none of them is.
        """
        addresses: list[str] = []
        try:
            for place in parse_addresses(address):
                addresses.append(await self._listen(place))
        except BaseException:
            self.close()
            raise
        self._schedule_sweep()
        return ",".join(addresses)

    async def _listen(self, place: Address) -> str:
        sockets = open_listening(place)
        if place.path:
            self._socket_files.append((place.path, os.stat(place.path).st_ino))
        if self._tls is not None:
            # asyncio's own server keeps connections that have not agreed on TLS yet, and nobody could close them.
            self._sockets += sockets
            self._accepting.append(Accepting(sockets, self._accepted))
            return bound(place, sockets[0])
        loop = asyncio.get_running_loop()
        listen = loop.create_unix_server if place.path else loop.create_server
        for opened in sockets:
            self._servers.append(await listen(self._sniffer, sock=opened, backlog=BACKLOG))
        return bound(place, sockets[0])

    def share(self, port: SharedPort, index: int) -> None:
        """Take connections from *port* too, in turn with the other processes; this one is number *index*."""
        self._turn = Turn(port.counts, index)
        self._turn.count(self.connections)
        self._accepting.append(Accepting((opened for _, opened in port.sockets), self._accepted, self._turn))
        self._schedule_sweep()

    def take_over(self, port: SharedPort) -> None:
        """Take connections from *port* too, as the process does whose place this one takes, until that one drains."""
        self._accepting.append(Accepting((opened for _, opened in port.sockets), self._accepted))
        self._schedule_sweep()

    def _accepted(self, connection: socket.socket) -> None:
        if self.connections + len(self._arriving) >= self._limits.max_connections:
            connection.close()
            return
        task = asyncio.get_running_loop().create_task(self._take_in(connection))
        self._arriving[task] = connection
        task.add_done_callback(self._arrived)
        self._counted()

    async def _take_in(self, connection: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._sniffer,
                connection,
                ssl=self._tls,
                ssl_handshake_timeout=self._limits.header_timeout if self._tls else None,
            )
        except OSError as error:
            # No TLS, none that we accept, or nobody there any more: this peer's own affair.
            log.debug("a connection was not taken in: %s", error)

    def _arrived(self, task: asyncio.Task[None]) -> None:
        del self._arriving[task]
        self._counted()
        self._empty.set()

    def _counted(self) -> None:
        if self._turn is not None:
            self._turn.count(self.connections + len(self._arriving))

    # --- connections

    def _sniffer(self) -> asyncio.Protocol:
        return Sniffer(self)

    def admit(self, member: Member, transport: asyncio.Transport) -> bool:
        """Count a connection in. False if there are too many, or no more are wanted."""
        if self._closed or self.connections >= self._limits.max_connections:
            return False
        self._members[member] = transport
        if self._draining:
            # It was accepted just before; its request may be on the way.
            member.drain()
        return True

    def speak_http1(self, sniffer: Member, transport: asyncio.Transport) -> asyncio.Protocol:
        """The connection of *sniffer* turned out to be of HTTP/1.1."""
        protocol = Http1ServerProtocol(
            self._application, self._limits, reader=self._reader, date=self._date, lost=self.lost
        )
        del self._members[sniffer]
        self._members[protocol] = transport
        return protocol

    def speak_http2(self, sniffer: Member, transport: asyncio.Transport) -> asyncio.Protocol:
        """The connection of *sniffer* turned out to be of HTTP/2."""
        protocol = Http2ServerProtocol(self._application, self._limits, on_close=self._lost_http2)
        del self._members[sniffer]
        self._http2[protocol] = transport
        return protocol

    def begun(self, protocol: asyncio.Protocol) -> None:
        """*protocol* has its transport now; while draining, it learns that it is to be the last."""
        if not self._draining:
            return
        if isinstance(protocol, Http2ServerProtocol):
            self._leave(protocol)
        elif isinstance(protocol, Http1ServerProtocol):
            protocol.drain()

    def _leave(self, protocol: Http2ServerProtocol) -> None:
        task = asyncio.ensure_future(protocol.drain())
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    def lost(self, member: Member) -> None:
        """The connection of *member* is gone."""
        self._members.pop(member, None)
        self._counted()
        if not self.connections:
            self._empty.set()

    def _lost_http2(self, protocol: Http2ServerProtocol) -> None:
        self._http2.pop(protocol, None)
        self._counted()
        if not self.connections:
            self._empty.set()

    @property
    def limits(self) -> Limits:
        return self._limits

    # --- time

    def _interval(self) -> float:
        if self._draining:
            return _DRAIN_TICK
        limits = self._limits
        return min(1.0, min(limits.header_timeout, limits.body_timeout, limits.idle_timeout) / 4)

    def _schedule_sweep(self) -> None:
        if self._sweep is not None:
            self._sweep.cancel()
        self._sweep = asyncio.get_running_loop().call_later(self._interval(), self._tick)

    def _tick(self) -> None:
        """Sweep once what has arrived by now was read.

        Where the loop is behind, timers come before that, and connections would look quiet whose requests wait to be
        read. What is called soon may come before it too; what that calls soon does not.
        """
        loop = asyncio.get_running_loop()

        def read_first() -> None:
            self._sweep = loop.call_soon(self._look_after_all)

        self._sweep = loop.call_soon(read_first)

    def _look_after_all(self) -> None:
        # One timer for all connections: an idle one costs nothing between two sweeps.
        self._date.refresh()
        now = asyncio.get_running_loop().time()
        for member in list(self._members):
            member.tick(now)
        self._schedule_sweep()

    # --- ending

    async def drain(self, grace: float) -> None:
        """Accept no more connections, finish what is under way, and close what is left after *grace* seconds."""
        self._draining = True
        self._stop_accepting()
        for member in list(self._members):
            member.drain()
        for protocol in list(self._http2):
            self._leave(protocol)
        if self._sweep is not None:
            self._sweep.cancel()
            self._tick()
        try:
            await self._wait_until_empty(grace)
        finally:
            self.close()
        await self.wait_closed()

    async def _wait_until_empty(self, timeout: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self.connections or self._arriving:
                    self._empty.clear()
                    await self._empty.wait()

    def close(self) -> None:
        """Close everything now. May be called twice."""
        self._draining = self._closed = True
        self._stop_accepting()
        for member in list(self._members):
            member.close()
        for task in self._leaving:
            task.cancel()
        for protocol in list(self._http2):
            protocol.close()
        for connection in self._arriving.values():
            # Its task ends by that. (Cancelled before the handshake begins, asyncio would leave it open.)
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None

    async def wait_closed(self) -> None:
        """After `close`, until all connections are gone. One whose peer does not take what is left is broken off."""
        if self._arriving:
            await asyncio.wait(self._arriving)
        await self._wait_until_empty(_LAST_WORDS)
        for transport in (*self._members.values(), *self._http2.values()):
            transport.abort()

    def _stop_accepting(self) -> None:
        accepting, self._accepting, self._turn = self._accepting, [], None
        for each in accepting:
            each.stop()
        sockets, self._sockets = self._sockets, []
        for opened in sockets:
            opened.close()
        servers, self._servers = self._servers, []
        for server in servers:
            server.close()
        files, self._socket_files = self._socket_files, []
        for path, inode in files:
            with contextlib.suppress(FileNotFoundError):
                if os.stat(path).st_ino == inode:
                    os.unlink(path)


class Sniffer(asyncio.Protocol):
    """Waits for the first bytes of a connection to learn which HTTP it speaks."""

    __slots__ = ("_buffer", "_draining", "_fresh", "_listener", "_since", "_transport")

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._buffer = b""
        self._draining = False
        self._fresh = True
        self._since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if not self._listener.admit(self, self._transport):
            self._transport.abort()
            return
        tls: Any = transport.get_extra_info("ssl_object")
        chosen = tls.selected_alpn_protocol() if tls is not None else None
        if chosen is not None:
            self._become(b"", http2=chosen == "h2")

    def data_received(self, data: bytes) -> None:
        if self._transport.is_closing():
            return
        data = self._buffer + data
        if data.startswith(_PREFACE):
            self._become(data, http2=True)
        elif _PREFACE.startswith(data):
            self._fresh = self._fresh or not self._buffer
            self._buffer = data
        else:
            self._become(data, http2=False)

    def _become(self, data: bytes, *, http2: bool) -> None:
        speak = self._listener.speak_http2 if http2 else self._listener.speak_http1
        protocol = speak(self, self._transport)
        self._transport.set_protocol(protocol)
        protocol.connection_made(self._transport)
        self._listener.begun(protocol)
        if data:
            protocol.data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._listener.lost(self)

    def tick(self, now: float) -> None:
        limits = self._listener.limits
        limit = limits.header_timeout if self._buffer else limits.idle_timeout
        if self._fresh:
            self._fresh = False
            self._since = now
        elif self._draining and not self._buffer and now - self._since >= QUIET:
            self._transport.close()
        elif now - self._since >= limit:
            self._transport.abort()

    def drain(self) -> None:
        """Give the first request a moment to come."""
        self._draining = True

    def close(self) -> None:
        self._transport.abort()
