"""HTTP/2 on asyncio: the engine between a transport, a timer and whoever owns the connection."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar, cast

from polywire.net.http2.client import Http2Client
from polywire.net.http2.engine import Http2Connection
from polywire.net.http2.frames import ErrorCode
from polywire.net.http2.server import Http2Server
from polywire.net.http2.stream import Http2Stream
from polywire.net.stream import Application, Field, Headers, Limits, Receiver, StreamClosed

TICK = 1.0
"""Seconds between two looks at the clock of a connection with exchanges. An idle one sleeps until it is too old."""
CLOSE_PATIENCE = 5.0
"""Seconds for the last bytes to be taken by the peer, before they are given up."""


def describe_peer(transport: asyncio.BaseTransport) -> str:
    """`host:port`, `[host]:port` for IPv6, or `unix:` and the path."""
    family = getattr(transport.get_extra_info("socket"), "family", None)
    name = transport.get_extra_info("peername")
    if family == getattr(socket, "AF_UNIX", None):
        path = name or transport.get_extra_info("sockname") or ""
        return "unix:" + (path.decode(errors="replace") if isinstance(path, bytes) else path)
    if not name:
        return "unknown"
    host, port = name[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


_Engine = TypeVar("_Engine", bound=Http2Connection)


class Http2Protocol(asyncio.Protocol, Generic[_Engine]):
    """What server and client share: bytes in, one write for all that they led to, and the clock."""

    engine: _Engine

    def __init__(self, *, on_close: Callable[[Any], None] | None = None) -> None:
        self._on_close = on_close
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._asleep = False
        self._closing = False
        self._lost = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not derived from asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        engine = self.engine
        engine.peer = describe_peer(transport)
        tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
        engine.secure = tls is not None
        engine.peer_certificate = (tls.getpeercert() or None) if tls is not None else None
        self._timer = self._loop.call_later(TICK, self._tick)
        engine.hand_over = self._hand_over
        self.flush()

    def data_received(self, data: bytes) -> None:
        self.engine.receive(data)
        self.flush()
        if self._asleep:
            self._wake()

    def flush(self) -> None:
        """Write all that the engine has, at once."""
        engine = self.engine
        transport = self._transport
        if transport is None:
            return
        data = engine.take()
        if data:
            transport.write(data)
        if engine.finished and not self._closing:
            self._close()

    def _hand_over(self) -> None:
        """Write what there is before the loop's next turn; what has to be decided waits for `flush`."""
        data = self.engine.take()
        if data and self._transport is not None:
            self._transport.write(data)

    def _close(self) -> None:
        self._closing = True
        transport = self._transport
        if transport is None:
            return
        if self._timer is not None:
            self._timer.cancel()
        if self.engine.overrun:
            transport.abort()
            return
        transport.close()
        self._timer = self._loop.call_later(CLOSE_PATIENCE, transport.abort)

    def eof_received(self) -> None:
        """The peer said goodbye: nothing that we send would be read to its end."""

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._transport = None
        self._closing = True
        reason = "the connection was lost" + (f": {exc}" if exc else "")
        self.engine.lost(reason)
        if not self._lost.done():
            self._lost.set_result(None)
        if self._on_close is not None:
            self._on_close(self)

    def pause_writing(self) -> None:
        self.engine.pause()

    def resume_writing(self) -> None:
        self.engine.resume()

    def _scheduled(self) -> None:
        """The engine has output that no `data_received` led to."""
        self._loop.call_soon(self.flush)

    def _tick(self) -> None:
        engine = self.engine
        now = self._loop.time()
        engine.tick(now)
        self.flush()
        if self._closing:
            return
        self._asleep = engine.idle
        delay = max(engine.idle_deadline - now, TICK) if self._asleep else TICK
        self._timer = self._loop.call_later(delay, self._tick)

    def _wake(self) -> None:
        self._asleep = False
        if self._timer is not None and not self._closing:
            self._timer.cancel()
            self._timer = self._loop.call_later(TICK, self._tick)

    def close(self) -> None:
        """Say goodbye and close now. Exchanges under way fail. May be called twice."""
        self.engine.die(ErrorCode.NO_ERROR, "this side closed the connection")
        self.flush()

    def abort(self) -> None:
        """Close at once; what is not sent yet is lost."""
        if self._transport is not None:
            self._transport.abort()

    async def wait_closed(self) -> None:
        """Until the transport is gone."""
        await asyncio.shield(self._lost)


class Http2ServerProtocol(Http2Protocol[Http2Server]):
    """One connection of a listener, from its preface on.

    Usable with `loop.create_server`, or put in place of the protocol that looked at the first bytes: then call
    `transport.set_protocol`, `connection_made` and `data_received` with what has come so far.

    *on_close* is called with the protocol once the connection is gone.
    """

    def __init__(
        self,
        application: Application,
        limits: Limits,
        *,
        on_close: Callable[[Http2ServerProtocol], None] | None = None,
    ) -> None:
        super().__init__(on_close=on_close)
        self.engine = Http2Server(application, limits, now=self._loop.time, on_output=self._scheduled)

    @property
    def busy(self) -> bool:
        """True while exchanges are under way."""
        return bool(self.engine.streams)

    async def drain(self) -> None:
        """Take no more exchanges but those on their way, finish all of them, then close."""
        self.engine.drain()
        self._wake()
        await self.wait_closed()


class Http2ClientProtocol(Http2Protocol[Http2Client]):
    """A `ClientConnection` over HTTP/2; made by `open_http2`."""

    version = "2"

    def __init__(self, limits: Limits, *, on_close: Callable[[Http2ClientProtocol], None] | None = None) -> None:
        super().__init__(on_close=on_close)
        self.engine = Http2Client(limits, now=self._loop.time, on_output=self._scheduled)

    @property
    def in_flight(self) -> int:
        return len(self.engine.streams)

    @property
    def available(self) -> bool:
        return self.engine.available

    @property
    def closed(self) -> bool:
        return self.engine.closed

    def open(
        self,
        headers: Headers,
        tail: Sequence[Field],
        receiver: Receiver,
        *,
        body: bytes = b"",
        end: bool = True,
    ) -> Http2Stream:
        """See `ClientConnection.open`."""
        if self._asleep:
            self._wake()
        return self.engine.open(headers, tail, receiver, body=body, end=end)

    async def drain(self) -> None:
        """Take no more exchanges, let those under way finish, then close."""
        self.engine.drain()
        await self.wait_closed()


async def open_http2(
    host: str = "",
    port: int = 0,
    *,
    path: str | None = None,
    ssl: ssl.SSLContext | None = None,
    server_hostname: str | None = None,
    limits: Limits | None = None,
    on_close: Callable[[Http2ClientProtocol], None] | None = None,
) -> Http2ClientProtocol:
    """Connect, over TCP or to the Unix socket at *path*. Exchanges may be opened at once.

    With *ssl*, the context must offer `h2` by ALPN. Raises OSError (ssl.SSLError is one) where there is no
    connection, and StreamClosed where the server does not choose `h2`.
    """
    loop = asyncio.get_running_loop()

    def make() -> Http2ClientProtocol:
        return Http2ClientProtocol(limits or Limits(), on_close=on_close)

    if path is not None:
        transport, protocol = await loop.create_unix_connection(make, path, ssl=ssl, server_hostname=server_hostname)
    else:
        transport, protocol = await loop.create_connection(make, host, port, ssl=ssl, server_hostname=server_hostname)
    tls: Any = transport.get_extra_info("ssl_object")
    if tls is not None and tls.selected_alpn_protocol() != "h2":
        protocol.close()
        raise StreamClosed(f"{protocol.engine.peer} does not speak HTTP/2: it did not choose h2 by ALPN", reached=False)
    return protocol
