"""What both ends of an HTTP/1.1 connection do with their transport: pausing, waiting to write, naming the peer."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, cast


class Endpoint(asyncio.Protocol):
    """One end of a connection."""

    __slots__ = (
        "_high_water",
        "_reading_paused",
        "_transport",
        "_writers",
        "peer",
        "peer_certificate",
        "secure",
        "write_paused",
    )

    _transport: asyncio.Transport

    def __init__(self, high_water: int) -> None:
        self._high_water = high_water
        self._reading_paused = False
        self.write_paused = False
        """More than the high-water mark waits in the transport."""
        self._writers: list[asyncio.Future[None]] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=self._high_water)
        # Now, because a transport that is closed cannot tell.
        self.peer = _describe_peer(transport)
        tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
        self.secure = tls is not None
        self.peer_certificate: dict[str, Any] | None = (tls.getpeercert() or None) if tls is not None else None

    def connection_lost(self, exc: Exception | None) -> None:
        self.wake_writers()

    def pause_writing(self) -> None:
        self.write_paused = True

    def resume_writing(self) -> None:
        self.wake_writers()

    def wake_writers(self) -> None:
        """Let everyone go on who waits in `written`."""
        self.write_paused = False
        writers, self._writers = self._writers, []
        for writer in writers:
            if not writer.done():
                writer.set_result(None)

    async def written(self) -> None:
        """Wait until the transport wants more, or is gone."""
        if self.write_paused:
            writer = asyncio.get_running_loop().create_future()
            self._writers.append(writer)
            await writer

    def _pause_reading(self) -> None:
        if not self._reading_paused and not self._transport.is_closing():
            self._reading_paused = True
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._reading_paused:
            self._reading_paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()


def _describe_peer(transport: asyncio.BaseTransport) -> str:
    name: Any = transport.get_extra_info("peername")
    if isinstance(name, tuple):
        host, port = cast("tuple[str, int]", name[:2])
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    path: Any = name or transport.get_extra_info("sockname") or ""
    return f"unix:{path.decode(errors='replace') if isinstance(path, bytes) else path}"
