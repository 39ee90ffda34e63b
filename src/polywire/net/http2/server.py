"""The server's end of an HTTP/2 connection: each stream is a request for the application."""

from __future__ import annotations

from collections.abc import Callable

from polywire.net.hpack import Lead
from polywire.net.http2 import messages
from polywire.net.http2.engine import DRAIN_PING, Http2Connection
from polywire.net.http2.frames import (
    GOAWAY,
    LARGEST_STREAM,
    MAX_CONCURRENT_STREAMS,
    PING,
    PREFACE,
    ConnectionFault,
    ErrorCode,
    StreamFault,
    frame,
    pack_u32,
)
from polywire.net.http2.guards import Allowance
from polywire.net.http2.stream import SILENT, Http2Stream
from polywire.net.stream import Application, Field, Head, Headers, Limits

MAX_GAPS = 32
"""Ranges of ids that the client skipped, remembered to tell a stream never opened from one long closed."""
DRAIN_PATIENCE = 2.0
"""Seconds to wait for the acknowledgement of the first GOAWAY before the last one is sent all the same."""

_TOO_LARGE = Headers(((b":status", b"431"),))
_NO_HEAD = Head(())


class Http2Server(Http2Connection):
    """Calls *application* with each request; see `Http2Connection` for the rest."""

    __slots__ = (
        "_accepts_up_to",
        "_application",
        "_drain_began",
        "_gaps",
        "_last",
        "_opened_seen",
        "_preface",
        "_resets",
    )

    def __init__(
        self,
        application: Application,
        limits: Limits,
        *,
        now: Callable[[], float],
        on_output: Callable[[], None],
    ) -> None:
        super().__init__(limits, now=now, on_output=on_output)
        self._application = application
        self._resets = Allowance(
            "streams that were reset",
            burst=max(1_000, 2 * limits.max_concurrent_streams),
            per_second=500,
            now=now,
        )
        self._opened_seen = 0
        self._last = 0
        self._gaps: list[tuple[int, int]] = []
        self._accepts_up_to = LARGEST_STREAM
        self._drain_began: float | None = None
        self._preface: bytes | None = b""
        self.out.append(self._hello((MAX_CONCURRENT_STREAMS, limits.max_concurrent_streams)))

    def receive(self, data: bytes) -> None:
        if self._preface is None:
            super().receive(data)
            return
        self.quiet = False
        if self.finished:
            return
        self._preface += data
        if not self._preface.startswith(PREFACE):
            if not PREFACE.startswith(self._preface):
                self.die(ErrorCode.PROTOCOL_ERROR, "the preface of HTTP/2 did not come")
            return
        data = self._preface[len(PREFACE) :]
        self._preface = None
        super().receive(data)

    def _header_list(self, sid: int, lead: Lead, rest: tuple[Field, ...], ended: int) -> None:
        stream = self.streams.get(sid)
        if stream is not None:
            if not stream.remote_open:
                raise StreamFault(ErrorCode.STREAM_CLOSED, "HEADERS after the end of the stream")
            self._trailers(stream, lead, rest, ended)
            return
        if not self._admit(sid):
            return
        head, tail, length = messages.request(lead, rest)
        if ended and length > 0:
            raise messages.malformed("no body where content-length announced one")
        stream = Http2Stream(self, sid, SILENT)
        stream.expected = length
        stream.head = head
        stream.tail = tail
        self.streams[sid] = stream
        receiver = self._application(stream)
        # It may have reset the stream already: then nobody is to be told anything.
        if stream.remote_open:
            stream.receiver = receiver
        if ended and stream.remote_open:
            self._end_remote(stream, ())

    def _admit(self, sid: int) -> bool:
        """True for a new stream that is to be served."""
        if not sid & 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"a request on stream {sid}")
        last = self._last
        if sid <= last:
            if any(first <= sid < end for first, end in self._gaps):
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"stream {sid} after stream {last}")
            self._stray_headers(sid)
            return False
        if sid != last + 2 and sid != 1:
            self._gaps = [*self._gaps[-MAX_GAPS + 1 :], (last + 1, sid)]
        self._last = sid
        self.opened += 1
        if sid > self._accepts_up_to:
            self.remember(sid)
            return False
        if len(self.streams) >= self.limits.max_concurrent_streams:
            self._resets.spend()
            self.remember(sid)
            self.send_reset(sid, ErrorCode.REFUSED_STREAM)
            return False
        return True

    def _too_large(self, sid: int, ended: int) -> None:
        stream = self.streams.get(sid)
        if stream is not None:
            raise StreamFault(ErrorCode.ENHANCE_YOUR_CALM, "trailers that are too large")
        if not self._admit(sid):
            return
        self._faults.spend()
        stream = Http2Stream(self, sid, SILENT)
        stream.head = _NO_HEAD
        stream.tail = ()
        self.streams[sid] = stream
        stream.send_headers(_TOO_LARGE, end=True)
        if ended:
            self._end_remote(stream, ())

    def _peer_gave_up(self) -> None:
        # Each stream that was opened and not reset makes good for one that was.
        self._resets.spend(1, earned=max(self.opened - self._opened_seen - 1, 0))
        self._opened_seen = self.opened

    def _is_idle(self, sid: int) -> bool:
        return sid > self._last or not sid & 1

    def _last_peer_stream(self) -> int:
        return min(self._last, self._accepts_up_to)

    def _was_sent(self, sid: int) -> bool:
        return True

    def _most_push(self) -> int:
        return 1

    def _goaway_received(self, last: int, code: int, reason: str) -> None:
        """The client will open no more; it may still wait for answers."""
        self.draining = True
        if not self.streams:
            self._last_stream_ended()

    # Leaving in good order: the first GOAWAY says "no more, please", the last one which requests were taken.

    def drain(self) -> None:
        """Finish the exchanges under way and those that are on their way, then end."""
        if self._drain_began is not None or self.finished:
            return
        self._drain_began = self.now()
        self.answer(frame(GOAWAY, 0, 0, pack_u32(LARGEST_STREAM) + pack_u32(ErrorCode.NO_ERROR)))
        self.answer(frame(PING, 0, 0, DRAIN_PING))

    def _drain_acknowledged(self) -> None:
        if self._drain_began is None or self._accepts_up_to != LARGEST_STREAM:
            return
        self._accepts_up_to = self._last
        self.draining = True
        self.answer(frame(GOAWAY, 0, 0, pack_u32(self._last) + pack_u32(ErrorCode.NO_ERROR)))
        if not self.streams:
            self._last_stream_ended()

    def tick(self, now: float) -> None:
        if self._drain_began is not None and now - self._drain_began >= DRAIN_PATIENCE:
            self._drain_acknowledged()
        super().tick(now)
