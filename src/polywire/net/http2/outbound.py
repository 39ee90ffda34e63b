"""The sending half of an HTTP/2 connection: who may send how much, in which turn, and when it is handed over."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from polywire.net.hpack import Encoder
from polywire.net.http2.frames import (
    CONTINUATION,
    DEFAULT_FRAME_SIZE,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    LARGEST_WINDOW,
    RST_STREAM,
    WINDOW_UPDATE,
    ConnectionFault,
    ErrorCode,
    StreamFault,
    pack_header,
    pack_u32,
)
from polywire.net.http2.stream import Http2Stream
from polywire.net.stream import Limits

HANDOVER_BYTES = 256 * 1024
"""About as much as is handed to the transport at once; the rest waits for the loop's next turn."""
MAX_UNREAD_CONTROL = 64 * 1024
"""Bytes of answers (acknowledgements, resets, window updates) to a peer that sends but does not read."""


class Outbound:
    """Collects what is to be written until `take` fetches it.

    Whoever owns the connection is told by *on_output* that there is something to take, once until it was taken, and
    only for what was not sent from within `receive`, after which it takes anyway.
    """

    __slots__ = (
        "_encoder",
        "_line",
        "_line_may_move",
        "_on_output",
        "_unread",
        "data_frames",
        "drainers",
        "encode",
        "hand_over",
        "limits",
        "out",
        "out_size",
        "overrun",
        "paused",
        "peer_initial_window",
        "quiet",
        "send_window",
        "stuffed",
    )

    def __init__(self, limits: Limits, on_output: Callable[[], None]) -> None:
        self.limits = limits
        self.out: list[bytes | memoryview] = []
        self.out_size = 0
        """Of the data in *out*, not counting answers that fit in one frame."""
        self.stuffed = False
        """So much waits to be handed over that producers should let the loop have its turn."""
        self.quiet = True
        """Nobody has been told yet that there is something to take."""
        self.paused = False
        """The transport asked for a pause: only answers to the peer's own frames go out."""
        self.overrun = False
        self.send_window = DEFAULT_WINDOW
        self.peer_initial_window = DEFAULT_WINDOW
        self.drainers: set[Http2Stream] = set()
        self.data_frames = 0
        """With something in them, sent and received: a measure of honest work."""
        self.hand_over: Callable[[], None] | None = None
        """Writes what there is at once; set by whoever owns the connection, if that is possible."""
        self._on_output = on_output
        self._encoder = Encoder()
        self.encode = self._encoder.encode
        self._line: deque[Http2Stream] = deque()
        self._line_may_move = False
        self._unread = 0

    def rouse(self) -> None:
        self.quiet = False
        self._on_output()

    def take(self) -> bytes:
        """All that is to be written now. Called after each `receive`, and when *on_output* said so."""
        if self._line_may_move and not self.paused:
            self._move_line()
        out = self.out
        data = b"".join(out)
        out.clear()
        self.out_size = 0
        self.stuffed = False
        self.quiet = True
        if self.drainers:
            self._wake_drainers()
        if self._line_may_move and not self.paused:
            self.rouse()
        return data

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False
        self._unread = 0
        if self._line:
            self._line_may_move = True
            if self.quiet:
                self.rouse()

    def count_out(self, size: int) -> None:
        """One frame of data was put out."""
        self.data_frames += 1
        self.out_size += size
        if self.out_size >= HANDOVER_BYTES:
            self.stuffed = True

    def answer(self, data: bytes) -> None:
        """Send a frame that is not subject to flow control. A peer that causes them and reads none is cut off."""
        self.out.append(data)
        if self.paused:
            self._unread += len(data)
            if self._unread > MAX_UNREAD_CONTROL:
                self.overrun = True
        if self.quiet:
            self.rouse()

    def send_reset(self, sid: int, code: int) -> None:
        self.answer(pack_header(4 << 8 | RST_STREAM, 0, sid) + pack_u32(code))

    def send_window_update(self, sid: int, size: int) -> None:
        self.answer(pack_header(4 << 8 | WINDOW_UPDATE, 0, sid) + pack_u32(size))

    def send_block(self, sid: int, block: bytes, end: bool) -> None:
        """HEADERS, and CONTINUATION frames where the block is longer than a frame."""
        flags = END_STREAM if end else 0
        size = len(block)
        if size <= DEFAULT_FRAME_SIZE:
            self.out.append(pack_header(size << 8 | HEADERS, flags | END_HEADERS, sid) + block)
            return
        self.out.append(pack_header(DEFAULT_FRAME_SIZE << 8 | HEADERS, flags, sid) + block[:DEFAULT_FRAME_SIZE])
        for start in range(DEFAULT_FRAME_SIZE, size, DEFAULT_FRAME_SIZE):
            piece = block[start : start + DEFAULT_FRAME_SIZE]
            last = END_HEADERS if start + DEFAULT_FRAME_SIZE >= size else 0
            self.out.append(pack_header(len(piece) << 8 | CONTINUATION, last, sid) + piece)

    def enqueue(self, stream: Http2Stream) -> None:
        """*stream* has something that it could not send at once, or may send some of it now."""
        outbox = stream.outbox
        if outbox is None or not outbox.items:
            return
        if not outbox.queued:
            outbox.queued = True
            self._line.append(stream)
        self._line_may_move = True
        if self.quiet:
            self.rouse()

    def _move_line(self) -> None:
        """One chunk of each stream in turn, until all is sent, nobody may send, or enough is out for now."""
        line = self._line
        stuck = 0
        while line and stuck < len(line):
            if self.stuffed:
                return
            stream = line.popleft()
            outbox = stream.outbox
            if outbox is None or not outbox.items:
                continue
            before = outbox.size, len(outbox.items)
            if stream.push(outbox):
                line.append(stream)
                stuck = stuck + 1 if before == (outbox.size, len(outbox.items)) else 0
            else:
                outbox.queued = False
                stuck = 0
        # What is left waits for the connection's window.
        self._line_may_move = False

    def _wake_drainers(self) -> None:
        for stream in [stream for stream in self.drainers if stream.writable]:
            self.drainers.discard(stream)
            outbox = stream.outbox
            if outbox is not None:
                outbox.wake()
                if not outbox.items and outbox.failure is None:
                    stream.outbox = None

    def widen(self, stream: Http2Stream | None, size: int) -> None:
        """The peer's WINDOW_UPDATE for one stream, or for the connection."""
        if stream is None:
            self.send_window += size
            if self.send_window > LARGEST_WINDOW:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "the connection's window overflows")
            self._line_may_move = bool(self._line)
            return
        stream.send_window += size
        if stream.send_window > LARGEST_WINDOW:
            raise StreamFault(ErrorCode.FLOW_CONTROL_ERROR, "the stream's window overflows")
        self.enqueue(stream)
