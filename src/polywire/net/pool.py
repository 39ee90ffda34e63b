"""Keeps connections to one endpoint: opens them when they are needed, and again, later and later, when that fails."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections import deque
from collections.abc import Callable
from enum import StrEnum
from typing import Literal

from polywire.clock import SYSTEM_CLOCK, Clock, Timer
from polywire.net.address import Address, parse_address
from polywire.net.http1 import HeadReader, Http1ClientConnection
from polywire.net.http2_protocol import Http2ClientProtocol
from polywire.net.stream import ClientConnection, Limits, StreamClosed
from polywire.net.tls import ClientTls

Version = Literal["1.1", "2"]
_Connection = Http1ClientConnection | Http2ClientProtocol

_SHORT_LIFE = 1.0
"""Seconds. A connection lost sooner, without having answered anything, counts as a failure to connect."""

_GOODBYE = 0.2
"""Seconds that a peer has to take leave of a connection that was closed."""

_PATIENCE = 0.005
"""Seconds that calls wait for room on the HTTP/2 connections there are, before another one is opened for them."""


class PoolState(StrEnum):
    """What can be expected of an endpoint."""

    IDLE = "idle"
    """No connection, and no reason against trying."""
    CONNECTING = "connecting"
    CONNECTED = "connected"
    BACKING_OFF = "backing off"
    """Connecting failed; the next attempt is at `Pool.retry_at`."""
    CLOSED = "closed"


class Pool:
    """The connections to one endpoint, an *address* with a host or a Unix socket.

    Over HTTP/2 there is one, and another one only while the peer's limit of streams is reached; over HTTP/1.1 there are
    as many as exchanges are under way, up to *max_connections*. The connection used last is used next.

    *warm* keeps one connection open without being asked, connecting again by itself when it is lost. *on_change* is
    called whenever `state` may have changed.
    """

    def __init__(
        self,
        address: Address | str,
        *,
        version: Version = "2",
        limits: Limits | None = None,
        tls: ClientTls | None = None,
        max_connections: int = 256,
        max_waiting: int = 4096,
        connect_timeout: float = 5.0,
        first_delay: float = 0.1,
        max_delay: float = 3.0,
        warm: bool = False,
        clock: Clock = SYSTEM_CLOCK,
        on_change: Callable[[], None] | None = None,
    ) -> None:
        self.address = parse_address(address) if isinstance(address, str) else address
        self.version: Version = version
        self.error: str | None = None
        """Why the last attempt to connect failed, a sentence; None since the last one that did not."""
        self.retry_at: float | None = None
        """When the next attempt is made, on the clock's monotonic scale, while backing off."""
        self._limits = limits or Limits()
        self._max_connections = max_connections
        self._max_waiting = max_waiting
        self._connect_timeout = connect_timeout
        self._first_delay = first_delay
        self._max_delay = max_delay
        self._warm = warm
        self._clock = clock
        self._on_change = on_change
        secure = tls is not None or self.address.secure
        self._tls = (tls or ClientTls()).context(version) if secure else None
        self._server_name = (tls.server_name if tls is not None else None) or self.address.host or "localhost"
        self._reader = HeadReader(self._limits)
        self._connections: dict[_Connection, float] = {}
        """All that are open, with the time when they were opened."""
        self._free: list[_Connection] = []
        """HTTP/1.1: those without an exchange, the one used last at the end. HTTP/2: all."""
        self._waiters: deque[_Waiter] = deque()
        self._attempts: set[asyncio.Task[None]] = set()
        self._failures = 0
        self._retry: Timer | None = None
        self._sweep: Timer | None = None
        self._look: Timer | None = None
        self._gone = asyncio.Event()
        """Set whenever a connection is gone."""
        self._closed = False

    # --- what callers use

    def ready(self) -> ClientConnection | None:
        """A connection that can take an exchange right now, or None. Open the exchange before anything else happens."""
        free = self._free
        if self.version == "2":
            for connection in free:
                if connection.available:
                    return connection
            return None
        while free:
            connection = free.pop()
            if connection.available:
                return connection
        return None

    async def acquire(self, *, wait_for_ready: bool = False) -> ClientConnection:
        """Wait for a connection that can take an exchange, connecting if need be. Open the exchange at once.

        Raises StreamClosed(reached=False) where connecting fails, or failed a moment ago; with *wait_for_ready* it
        goes on trying instead. How long to wait is the caller's business.
        """
        while True:
            connection = self.ready()
            if connection is not None:
                return connection
            self._refuse_if_hopeless(wait_for_ready=wait_for_ready)
            waiter = _Waiter(wait_for_ready)
            self._waiters.append(waiter)
            self._connect_as_needed()
            try:
                handed = await waiter.future
            except asyncio.CancelledError:
                self._abandon(waiter)
                raise
            if handed is not None and handed.available:
                return handed

    def connect(self) -> None:
        """Start connecting in the background, if there is no connection and none is being made."""
        if not self._attempts and not self._closed and not self._has_open() and not self._backing_off():
            self._attempt()

    @property
    def state(self) -> PoolState:
        if self._closed:
            return PoolState.CLOSED
        if self._has_open():
            return PoolState.CONNECTED
        if self._attempts:
            return PoolState.CONNECTING
        return PoolState.BACKING_OFF if self._backing_off() else PoolState.IDLE

    @property
    def in_flight(self) -> int:
        """Exchanges under way, on all connections."""
        if self.version == "1.1":
            return len(self._connections) - len(self._free)
        return sum(connection.in_flight for connection in self._connections)

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._connections)

    async def drain(self) -> None:
        """Take no more exchanges, let those under way finish, then close."""
        self._stop("the pool was closed by this side")
        await asyncio.gather(*(connection.drain() for connection in list(self._connections)))

    def close(self) -> None:
        """Close now; exchanges under way fail. May be called twice."""
        self._stop("the pool was closed by this side")
        for connection in list(self._connections):
            connection.close()

    async def wait_closed(self) -> None:
        """After `close`, until all connections are gone. One whose peer does not say goodbye is broken off."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_GOODBYE):
                while self._connections:
                    self._gone.clear()
                    await self._gone.wait()
        for connection in list(self._connections):
            connection.abort()

    # --- waiting

    def _refuse_if_hopeless(self, *, wait_for_ready: bool) -> None:
        if self._closed:
            raise StreamClosed("the pool was closed by this side", reached=False)
        if not wait_for_ready and self.error is not None and self._backing_off() and not self._has_open():
            raise StreamClosed(self.error, reached=False)
        if len(self._waiters) >= self._max_waiting:
            raise StreamClosed(
                f"all connections to {self.address} are busy and {self._max_waiting} calls wait for one already",
                reached=False,
            )

    def _abandon(self, waiter: _Waiter) -> None:
        """The caller gave up; what it was given in the meantime goes to someone else."""
        if waiter in self._waiters:
            self._waiters.remove(waiter)
        future = waiter.future
        if future.done() and not future.cancelled() and future.exception() is None:
            connection = future.result()
            if connection is not None and connection.available:
                self._give(connection)

    def _give(self, connection: _Connection) -> None:
        """An HTTP/1.1 connection is free."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.future.done():
                waiter.future.set_result(connection)
                return
        self._free.append(connection)

    def _wake(self) -> None:
        """There may be room on an HTTP/2 connection: everyone who waits looks again."""
        waiters, self._waiters = self._waiters, deque()
        for waiter in waiters:
            if not waiter.future.done():
                waiter.future.set_result(None)

    def _look_for_room(self) -> None:
        """Calls waited a while on full HTTP/2 connections: serve them there, or open another one.

        A full connection is rare, and often one whose server did not say yet how many streams it takes.
        """
        self._look = None
        if self.ready() is not None:
            self._wake()
        elif self._waiters:
            if not self._attempts and len(self._connections) < self._max_connections and not self._backing_off():
                self._attempt()
            self._look = self._clock.call_later(_PATIENCE, self._look_for_room)

    # --- connecting

    def _connect_as_needed(self) -> None:
        if self._closed or self._backing_off():
            return
        if self.version == "2" and self._has_open():
            if self._waiters and self._look is None:
                self._look = self._clock.call_later(_PATIENCE, self._look_for_room)
            return
        wanted = len(self._waiters) if self.version == "1.1" else min(len(self._waiters), 1)
        if self._warm and not self._connections:
            wanted = max(wanted, 1)
        room = self._max_connections - len(self._connections)
        for _ in range(min(room, wanted) - len(self._attempts)):
            self._attempt()

    def _has_open(self) -> bool:
        return any(not connection.closed for connection in self._connections)

    def _backing_off(self) -> bool:
        return self.retry_at is not None and self._clock.monotonic() < self.retry_at

    def _attempt(self) -> None:
        self._attempts.add(asyncio.get_running_loop().create_task(self._connect()))
        self._changed()

    async def _connect(self) -> None:
        try:
            async with asyncio.timeout(self._connect_timeout):
                connection = await self._open()
        except (OSError, TimeoutError, ValueError, StreamClosed) as error:
            self._attempt_over()
            self._failed(f"cannot connect to {self.address}: {self._explain(error)}")
        else:
            self._attempt_over()
            self._connected(connection)

    def _attempt_over(self) -> None:
        # Not left to a callback of the task: whoever is woken by the outcome must not see it as still under way.
        task = asyncio.current_task()
        if task is not None:
            self._attempts.discard(task)

    async def _open(self) -> _Connection:
        loop = asyncio.get_running_loop()
        make = self._make_http1 if self.version == "1.1" else self._make_http2
        address = self.address
        name = self._server_name if self._tls is not None else None
        transport: asyncio.BaseTransport
        connection: _Connection
        if address.path:
            transport, connection = await loop.create_unix_connection(
                make, address.path, ssl=self._tls, server_hostname=name
            )
        else:
            transport, connection = await loop.create_connection(
                make, address.host, address.port, ssl=self._tls, server_hostname=name
            )
            if self.version == "1.1":
                # There is no ping in it: the kernel has to notice that a peer is gone.
                transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        tls = transport.get_extra_info("ssl_object")
        if tls is not None and self.version == "2" and tls.selected_alpn_protocol() != "h2":
            connection.close()
            raise StreamClosed("it does not speak HTTP/2: it did not choose h2 by ALPN", reached=False)
        return connection

    def _make_http1(self) -> Http1ClientConnection:
        return Http1ClientConnection(self._limits, reader=self._reader, released=self._released, lost=self._lost)

    def _make_http2(self) -> Http2ClientProtocol:
        return Http2ClientProtocol(self._limits, on_close=self._lost)

    def _connected(self, connection: _Connection) -> None:
        if self._closed:
            connection.close()
            return
        if connection.closed:
            # It was lost, or told to go elsewhere, before anybody here could use it.
            connection.close()
            self._failed(self._dropped())
            return
        self.error = None
        self.retry_at = None
        self._connections[connection] = self._clock.monotonic()
        if isinstance(connection, Http1ClientConnection):
            self._schedule_sweep()
            self._give(connection)
        else:
            self._free.append(connection)
            self._wake()
        self._changed()

    def _released(self, connection: Http1ClientConnection) -> None:
        """An exchange is over and *connection* can take another one."""
        if self._waiters:
            self._give(connection)
        else:
            self._free.append(connection)

    def _failed(self, reason: str) -> None:
        self.error = reason
        if not self._backing_off():
            # Attempts made side by side that fail for one reason are one failure.
            self._back_off()
        self._turn_away(reason)
        self._changed()

    def _back_off(self) -> None:
        self._failures += 1
        # Full jitter: callers that lost the same server do not come back together.
        ceiling = min(self._max_delay, self._first_delay * 2.0 ** min(self._failures - 1, 30))
        delay = ceiling * self._clock.random()
        self.retry_at = self._clock.monotonic() + delay
        if self._retry is not None:
            self._retry.cancel()
        self._retry = self._clock.call_later(delay, self._try_again)

    def _turn_away(self, reason: str) -> None:
        """Nobody waits for the next attempt who did not ask to, unless an open connection may become free."""
        if self._has_open():
            return
        patient: deque[_Waiter] = deque()
        for waiter in self._waiters:
            if waiter.patient:
                patient.append(waiter)
            elif not waiter.future.done():
                waiter.future.set_exception(StreamClosed(reason, reached=False))
        self._waiters = patient

    def _try_again(self) -> None:
        self._retry = None
        self.retry_at = None
        self._connect_as_needed()
        self._changed()

    def _lost(self, connection: _Connection) -> None:
        since = self._connections.pop(connection, None)
        self._gone.set()
        if since is None:
            return
        if connection in self._free:
            self._free.remove(connection)
        if self._clock.monotonic() - since >= _SHORT_LIFE:
            self._failures = 0
        elif self._warm and not self._closed and not self._connections:
            # A server that takes connections only to drop them must not be called in a tight loop.
            self._failed(self._dropped())
            return
        if self.error is not None and self._backing_off():
            # Those who waited for this connection to become free have nothing to wait for any more.
            self._turn_away(self.error)
        self._connect_as_needed()
        self._changed()

    def _dropped(self) -> str:
        return f"cannot keep a connection to {self.address}: the server closed it at once"

    def _explain(self, error: Exception) -> str:
        if isinstance(error, StreamClosed):
            return error.reason
        if isinstance(error, ssl.SSLCertVerificationError):
            return f"its certificate is not accepted: {error.verify_message}"
        if isinstance(error, ssl.SSLError):
            return f"the TLS handshake failed: {(error.reason or str(error)).replace('_', ' ').lower()}"
        if isinstance(error, socket.gaierror):
            return f"the host {self.address.host!r} cannot be resolved"
        if isinstance(error, OSError) and error.errno:
            return os.strerror(error.errno).lower()
        if isinstance(error, TimeoutError):
            return f"no answer within {self._connect_timeout:g} s"
        return str(error) or type(error).__name__

    # --- time and ending

    def _schedule_sweep(self) -> None:
        if self._sweep is None and not self._closed:
            interval = min(1.0, self._limits.idle_timeout / 4)
            self._sweep = self._clock.call_later(interval, self._tick)

    def _tick(self) -> None:
        self._sweep = None
        now = self._clock.monotonic()
        for connection in list(self._connections):
            if isinstance(connection, Http1ClientConnection):
                connection.tick(now)
        if self._connections:
            self._schedule_sweep()

    def _changed(self) -> None:
        if self._on_change is not None:
            self._on_change()

    def _stop(self, reason: str) -> None:
        self._closed = True
        for timer in (self._retry, self._sweep, self._look):
            if timer is not None:
                timer.cancel()
        self._retry = self._sweep = self._look = None
        for attempt in list(self._attempts):
            attempt.cancel()
        waiters, self._waiters = self._waiters, deque()
        for waiter in waiters:
            if not waiter.future.done():
                waiter.future.set_exception(StreamClosed(reason, reached=False))
        self._changed()


class _Waiter:
    __slots__ = ("future", "patient")

    def __init__(self, patient: bool) -> None:
        self.future: asyncio.Future[_Connection | None] = asyncio.get_running_loop().create_future()
        self.patient = patient
        """It goes on waiting when connecting fails."""
