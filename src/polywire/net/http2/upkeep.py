"""What goes on beside the frames of a connection: streams that come and go, credit, allowances, the clock, the end."""

from __future__ import annotations

from collections.abc import Callable

from polywire.net.http2.frames import (
    DEFAULT_WINDOW,
    GOAWAY,
    PING,
    ConnectionFault,
    ErrorCode,
    StreamFault,
    frame,
    pack_u32,
)
from polywire.net.http2.guards import Allowance
from polywire.net.http2.outbound import Outbound
from polywire.net.http2.stream import SILENT, Http2Stream
from polywire.net.stream import Limits, StreamClosed

MAX_REMEMBERED = 4096
"""Streams that we reset and whose frames may still be on their way."""
ALIVE_PING = b"polyping"


class Upkeep(Outbound):
    """Keeps the streams of a connection, and ends them and it where a limit is reached."""

    __slots__ = (
        "_credit",
        "_credit_step",
        "_early",
        "_faults",
        "_heard_at",
        "_heard_opened",
        "_idle_since",
        "_nuisance",
        "_ping_sent_at",
        "_recent",
        "_started",
        "_ticks_opened",
        "_work_seen",
        "draining",
        "finished",
        "heard",
        "now",
        "opened",
        "peer_settings_seen",
        "room",
        "settings_acknowledged",
        "streams",
        "unfinished_block",
        "unfinished_since",
    )

    def __init__(self, limits: Limits, *, now: Callable[[], float], on_output: Callable[[], None]) -> None:
        super().__init__(limits, on_output)
        self.now = now
        self.streams: dict[int, Http2Stream] = {}
        self.finished = False
        self.draining = False
        """No more exchanges are begun; those under way may end."""
        self.peer_settings_seen = False
        self.settings_acknowledged = False
        """Of ours, which are sent once, at the start."""
        self.opened = 0
        """Streams so far."""
        self.heard = True
        """Something arrived since the last tick."""
        self.room = max(limits.connection_window, DEFAULT_WINDOW)
        """What the peer may send on all streams together."""
        self.unfinished_block: bytearray | None = None
        """Of a header list whose CONTINUATION frames are still to come."""
        self.unfinished_since: float | None = None
        self._credit = 0
        self._credit_step = self.room // 2
        self._recent: dict[int, None] = {}
        self._early: list[Http2Stream] = []
        self._nuisance = Allowance("frames that carry nothing", burst=10_000, per_second=1_000, now=now)
        self._faults = Allowance("faulty streams", burst=500, per_second=50, now=now)
        self._work_seen = 0
        self._heard_opened = 0
        """Streams that had been opened when something was last heard."""
        self._started = self._heard_at = self._idle_since = now()
        self._ticks_opened = 0
        self._ping_sent_at: float | None = None

    def _is_idle(self, sid: int) -> bool:
        """True for a stream that nobody has opened yet."""
        raise NotImplementedError

    def _last_peer_stream(self) -> int:
        raise NotImplementedError

    def _was_sent(self, sid: int) -> bool:
        """False where the other side cannot have seen anything of stream *sid*."""
        raise NotImplementedError

    def _drain_acknowledged(self) -> None:
        """The peer has seen our first GOAWAY."""

    def _answered(self) -> None:
        """The answer to our PING came."""
        self._ping_sent_at = None

    def give_back(self, size: int) -> None:
        """*size* bytes no longer take up room in the connection's window."""
        self._credit += size
        if self._credit >= self._credit_step:
            self.send_window_update(0, self._credit)
            self.room += self._credit
            self._credit = 0

    def forget(self, stream: Http2Stream) -> None:
        """*stream* is closed on both sides. Its receiver usually holds it, so letting go of it spares a collection."""
        self.streams.pop(stream.id, None)
        stream.receiver = SILENT
        if stream.held:
            held = stream.held
            stream.held = 0
            self.give_back(held)
        if self.draining and not self.streams:
            self._last_stream_ended()

    def _last_stream_ended(self) -> None:
        self.finished = True
        if self.quiet:
            self.rouse()

    def answered_early(self, stream: Http2Stream) -> None:
        """We are done with *stream*, the peer is not: it is asked to stop, once what arrived with this was read."""
        self._early.append(stream)
        if self.quiet:
            self.rouse()

    def reset_stream(self, stream: Http2Stream, code: int) -> None:
        stream.local_open = stream.remote_open = False
        self.forget(stream)
        self.remember(stream.id)
        self.send_reset(stream.id, code)
        stream.void(StreamClosed("this side gave the exchange up", reached=True, code=code))

    def remember(self, sid: int) -> None:
        """We reset *sid*: what the peer sent before it knew is not an error."""
        if len(self._recent) >= MAX_REMEMBERED:
            del self._recent[next(iter(self._recent))]
        self._recent[sid] = None

    def _stream_fault(self, sid: int, fault: StreamFault) -> None:
        stream = self.streams.get(sid)
        if self._is_idle(sid):
            # RST_STREAM may not be sent for a stream that nobody opened.
            self.die(fault.code, fault.reason)
            return
        try:
            self._faults.spend()
        except ConnectionFault as calm:
            self.die(calm.code, calm.reason)
            return
        self.remember(sid)
        self.send_reset(sid, fault.code)
        if stream is not None:
            self._fail(stream, StreamClosed(f"the peer sent {fault.reason}", reached=True, code=fault.code))

    def _fail(self, stream: Http2Stream, error: StreamClosed) -> None:
        receiver = stream.receiver
        stream.local_open = stream.remote_open = False
        self.forget(stream)
        stream.void(error)
        receiver.failed(error)

    def _spend(self, tokens: float) -> None:
        """A frame that moves no exchange forward. Exchanges and data earn the right to some of them."""
        work = 8 * self.opened + 4 * self.data_frames
        self._nuisance.spend(tokens, earned=work - self._work_seen)
        self._work_seen = work

    def take(self) -> bytes:
        if self._early:
            self._stop_early()
        if self.overrun and not self.finished:
            self.die(ErrorCode.ENHANCE_YOUR_CALM, "the peer causes answers and does not read them")
        return super().take()

    def _stop_early(self) -> None:
        early, self._early = self._early, []
        for stream in early:
            if stream.remote_open:
                self.remember(stream.id)
                self.send_reset(stream.id, ErrorCode.NO_ERROR)
                self._fail(
                    stream, StreamClosed("answered before the request ended", reached=True, code=ErrorCode.NO_ERROR)
                )

    # The end.

    def die(self, code: ErrorCode, reason: str, *, late: bool = False) -> None:
        """Say why, and end everything now.

        A peer that is only *late* may be one that the network keeps us from: exchanges are told that their connection
        is lost, and not the code, which would say that the peer broke the protocol.
        """
        if self.finished:
            return
        words = reason.encode("ascii", "replace")[:64]
        self.out.append(frame(GOAWAY, 0, 0, pack_u32(self._last_peer_stream()) + pack_u32(code) + words))
        why = reason if code is ErrorCode.NO_ERROR else f"the connection was ended: {reason}"
        self.lost(why, None if late else code)
        if self.quiet:
            self.rouse()

    def lost(self, reason: str, code: int | None = None) -> None:
        """The transport is gone, or is about to be."""
        self.finished = True
        self.draining = True
        streams = list(self.streams.values())
        self.streams.clear()
        for stream in streams:
            self._fail(stream, StreamClosed(reason, reached=self._was_sent(stream.id), code=code))

    # Time.

    def tick(self, now: float) -> None:
        """Look at the clock. Called every few seconds, or before long if the connection was idle.

        Progress is noted as it happens without asking for the time; here it is given one. So a limit strikes up to
        one tick later than it says.
        """
        if self.finished:
            return
        if self.heard:
            self.heard = False
            self._heard_at = now
            self._heard_opened = self.opened
            self._ping_sent_at = None
        if not self.settings_acknowledged and now - self._started >= self.limits.header_timeout:
            what = "our SETTINGS were not acknowledged" if self.peer_settings_seen else "no SETTINGS came"
            self.die(ErrorCode.SETTINGS_TIMEOUT, what, late=True)
        elif self._block_is_late(now):
            self.die(ErrorCode.ENHANCE_YOUR_CALM, "a header block took too long", late=True)
        elif self.streams or self._unheard:
            self._idle_since = now
            self._keep_alive(now)
            self._look_for_stalled(now)
        elif self.opened != self._ticks_opened:
            self._idle_since = now
        elif now - self._idle_since >= self.limits.idle_timeout:
            self.die(ErrorCode.NO_ERROR, "the connection was idle")
        self._ticks_opened = self.opened

    @property
    def idle(self) -> bool:
        """True where the next tick may wait until *idle_deadline*."""
        return not (
            self.streams
            or self._unheard
            or self.draining
            or self.unfinished_block is not None
            or not self.settings_acknowledged
        )

    @property
    def _unheard(self) -> bool:
        """Exchanges were begun, and nothing was heard since, not even if they are given up by now.

        Short calls, one now and then, may never be under way when the clock is looked at; they, too, have to find out
        that the peer is gone.
        """
        return self.opened != self._heard_opened

    @property
    def idle_deadline(self) -> float:
        return self._idle_since + self.limits.idle_timeout

    def _block_is_late(self, now: float) -> bool:
        if self.unfinished_block is None:
            return False
        if self.unfinished_since is None:
            self.unfinished_since = now
        return now - self.unfinished_since >= self.limits.header_timeout

    def _keep_alive(self, now: float) -> None:
        if self._ping_sent_at is not None:
            if now - self._ping_sent_at >= self.limits.keepalive_timeout:
                self.die(ErrorCode.NO_ERROR, "the peer did not answer a PING")
        elif now - self._heard_at >= self.limits.keepalive_interval:
            self._ping_sent_at = now
            self.answer(frame(PING, 0, 0, ALIVE_PING))

    def _look_for_stalled(self, now: float) -> None:
        for stream in list(self.streams.values()):
            if stream.moved or not self._waits_for_peer(stream):
                stream.moved = False
                stream.stalled_at = now
            elif now - stream.stalled_at >= self.limits.body_timeout:
                self.remember(stream.id)
                self.send_reset(stream.id, ErrorCode.CANCEL)
                reason = f"no progress for {self.limits.body_timeout:g} s"
                self._fail(stream, StreamClosed(reason, reached=True, code=ErrorCode.CANCEL))

    def _waits_for_peer(self, stream: Http2Stream) -> bool:
        """True where the peer owes us a byte: of a body of known length that we have room for, or of its window.

        A stream of messages may be silent for as long as it likes: that is for its deadline to say.
        """
        if stream.outbox is not None and stream.outbox.items:
            return True
        return stream.remote_open and stream.expected > 0 and not stream.held
