"""One HTTP/2 connection without I/O: the frames of RFC 9113 and the states they lead to, the same in both roles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from polywire.net.hpack import Decoder, HeaderListTooLarge, HpackError, Lead
from polywire.net.http2 import messages
from polywire.net.http2.frames import (
    ACK,
    CONTINUATION,
    DATA,
    DEFAULT_FRAME_SIZE,
    DEFAULT_WINDOW,
    ENABLE_PUSH,
    END_HEADERS,
    END_STREAM,
    FRAME_HEADER_SIZE,
    GOAWAY,
    HEADER_TABLE_SIZE,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    LARGEST_FRAME_SIZE,
    LARGEST_STREAM,
    LARGEST_WINDOW,
    MAX_CONCURRENT_STREAMS,
    MAX_FRAME_SIZE,
    MAX_HEADER_LIST_SIZE,
    PADDED,
    PING,
    PRIORITISED,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    ConnectionFault,
    ErrorCode,
    StreamFault,
    code_name,
    frame,
    iter_settings,
    pack_setting,
    pack_u32,
    unpack_header,
    unpack_u32,
)
from polywire.net.http2.stream import Http2Stream
from polywire.net.http2.upkeep import ALIVE_PING, Upkeep
from polywire.net.stream import Field, Limits, StreamClosed

MAX_CONTINUATIONS = 32
"""Frames of one header block. A block of the permitted size needs a handful."""
_BLOCK_FLAGS = PADDED | PRIORITISED | END_HEADERS
DRAIN_PING = b"polydrai"


class Http2Connection(Upkeep):
    """What both roles share. `receive` takes bytes and calls receivers, `take` gives bytes, `tick` is told the time.

    Nothing a peer sends makes `receive` raise: it ends in RST_STREAM, or in GOAWAY and *finished*, and the receivers
    concerned are told. Once *finished*, the transport is to be closed as soon as the last bytes were taken.
    """

    __slots__ = (
        "_block_ends_stream",
        "_block_fault",
        "_block_frames",
        "_block_stream",
        "_decoder",
        "_max_block",
        "_needed",
        "_partial",
        "_strict",
        "peer",
        "peer_certificate",
        "peer_max_streams",
        "receive_room",
        "secure",
        "stream_step",
        "stream_window",
    )

    def __init__(self, limits: Limits, *, now: Callable[[], float], on_output: Callable[[], None]) -> None:
        super().__init__(limits, now=now, on_output=on_output)
        self.peer = ""
        self.secure = False
        self.peer_certificate: dict[str, Any] | None = None
        self.peer_max_streams = LARGEST_STREAM
        self.stream_window = limits.stream_window
        self.stream_step = max(limits.stream_window // 2, 1)
        # Until our SETTINGS are acknowledged, the peer may go by the default.
        self.receive_room = max(limits.stream_window, DEFAULT_WINDOW)
        self._partial = bytearray()
        self._needed = 0
        # A rule about which frame must come next: SETTINGS at first, CONTINUATION within a block.
        self._strict = True
        self._block_stream = 0
        self._block_ends_stream = 0
        self._block_fault: StreamFault | None = None
        self._block_frames = 0
        self._max_block = 4 * limits.max_header_bytes
        self._decoder = Decoder(limits.max_header_bytes, limits.max_header_count)

    # What a role adds.

    def _header_list(self, sid: int, lead: Lead, rest: tuple[Field, ...], ended: int) -> None:
        raise NotImplementedError

    def _too_large(self, sid: int, ended: int) -> None:
        raise NotImplementedError

    def _goaway_received(self, last: int, code: int, reason: str) -> None:
        raise NotImplementedError

    def _peer_gave_up(self) -> None:
        """The peer resets a stream. A server may do so as often as it likes: it is the client that began them."""

    # From bytes to frames.

    def receive(self, data: bytes) -> None:
        self.quiet = False
        if self.finished:
            return
        self.heard = True
        partial = self._partial
        if partial:
            partial += data
            if len(partial) < self._needed:
                return
            data = bytes(partial)
            partial.clear()
        try:
            rest = self._frames(data)
        except ConnectionFault as fault:
            self.die(fault.code, fault.reason)
            return
        if rest < len(data) and not self.finished:
            partial += data[rest:]

    def _frames(self, data: bytes) -> int:
        """Handle all complete frames in *data*; returns where the first incomplete one starts."""
        pos = 0
        available = len(data)
        last = available - FRAME_HEADER_SIZE
        while pos <= last:
            word, flags, sid = unpack_header(data, pos)
            size = word >> 8
            if size > DEFAULT_FRAME_SIZE:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {size} bytes")
            start = pos + FRAME_HEADER_SIZE
            end = start + size
            if end > available:
                self._needed = FRAME_HEADER_SIZE + size
                return pos
            pos = end
            kind = word & 0xFF
            sid &= LARGEST_STREAM
            if self._strict:
                self._check_turn(kind, flags)
            try:
                if kind == DATA:
                    self._data(data, start, end, flags, sid)
                elif kind == HEADERS:
                    if flags & _BLOCK_FLAGS == END_HEADERS:
                        self._block_complete(sid, data[start:end], flags & END_STREAM)
                    else:
                        self._headers(data, start, end, flags, sid)
                else:
                    self._other(kind, data[start:end], flags, sid)
            except StreamFault as fault:
                self._stream_fault(sid, fault)
            if self.finished:
                return available
        self._needed = FRAME_HEADER_SIZE
        return pos

    def _check_turn(self, kind: int, flags: int) -> None:
        if self.unfinished_block is not None:
            if kind != CONTINUATION:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a header block was interrupted by another frame")
        elif kind != SETTINGS or flags & ACK:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS")
        else:
            self._strict = False
            self.peer_settings_seen = True
            # It says now how many it takes, or there is no limit.
            self.peer_max_streams = LARGEST_STREAM

    def _other(self, kind: int, payload: bytes, flags: int, sid: int) -> None:
        if kind == WINDOW_UPDATE:
            self._window_update(payload, sid)
        elif kind == RST_STREAM:
            self._rst_stream(payload, sid)
        elif kind == PING:
            self._ping(payload, flags, sid)
        elif kind == SETTINGS:
            self._settings(payload, flags, sid)
        elif kind == CONTINUATION:
            self._continuation(payload, flags, sid)
        elif kind == GOAWAY:
            self._goaway(payload, sid)
        elif kind == PRIORITY:
            self._priority(payload, sid)
        elif kind == PUSH_PROMISE:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE, which nobody allowed")
        else:
            self._spend(1)

    # DATA.

    def _data(self, data: bytes, start: int, end: int, flags: int, sid: int) -> None:
        size = end - start
        self.room -= size
        if self.room < 0:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "more data than the connection's window")
        stream = self.streams.get(sid)
        if stream is None or not stream.remote_open:
            self._stray_data(stream, sid, size)
            return
        if size > stream.room:
            self.give_back(size)
            raise StreamFault(ErrorCode.FLOW_CONTROL_ERROR, "more data than the stream's window")
        stream.room -= size
        stream.held += size
        stream.moved = True
        if flags & PADDED:
            start, end = self._without_padding(data, start, end, stream)
        if stream.expected >= 0:
            stream.expected -= end - start
            if stream.expected < 0 or (flags & END_STREAM and stream.expected):
                raise messages.malformed("the body is not as long as content-length said")
        if end > start:
            self.data_frames += 1
            stream.receiver.data_received(data[start:end])
        elif not flags & END_STREAM:
            self._spend(1)
        if flags & END_STREAM and stream.remote_open:
            stream.remote_open = False
            receiver = stream.receiver
            if not stream.local_open:
                self.forget(stream)
            receiver.ended(())

    def _without_padding(self, data: bytes, start: int, end: int, stream: Http2Stream) -> tuple[int, int]:
        if start == end or data[start] >= end - start:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a frame is all padding and more")
        padding = data[start]
        stream.consumed(padding + 1)
        return start + 1, end - padding

    def _stray_data(self, stream: Http2Stream | None, sid: int, size: int) -> None:
        """DATA for a stream that takes none. It counts for the connection's window all the same."""
        if stream is None and (not sid or self._is_idle(sid)):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"DATA on stream {sid}, which is not open")
        self.give_back(size)
        if stream is None and sid in self._recent:
            self._spend(1 if size < 64 else 0)
            return
        raise StreamFault(ErrorCode.STREAM_CLOSED, "DATA after the end of the stream")

    # HEADERS and CONTINUATION.

    def _headers(self, data: bytes, start: int, end: int, flags: int, sid: int) -> None:
        """A block with something around it, or the beginning of one."""
        fault = None
        if flags & (PADDED | PRIORITISED):
            start, end, fault = self._unwrap(data, start, end, flags, sid)
        self._block_stream = sid
        self._block_ends_stream = flags & END_STREAM
        self._block_fault = fault
        self._block_frames = 0
        self.unfinished_block = bytearray(data[start:end])
        self._strict = True
        if flags & END_HEADERS:
            self._end_block()

    def _unwrap(self, data: bytes, start: int, end: int, flags: int, sid: int) -> tuple[int, int, StreamFault | None]:
        """Where the header block is inside a frame with padding or priority, and what else is wrong with it."""
        padding = 0
        if flags & PADDED:
            if start == end:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "HEADERS too short for its padding")
            padding = data[start]
            start += 1
        fault = None
        if flags & PRIORITISED:
            if end - start < 5:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "HEADERS too short for its priority")
            if unpack_u32(data, start)[0] & LARGEST_STREAM == sid:
                # Told after the block was decoded: the table has to see it in any case.
                fault = StreamFault(ErrorCode.PROTOCOL_ERROR, "a stream that depends on itself")
            start += 5
        if padding > end - start:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a frame is all padding and more")
        return start, end - padding, fault

    def _continuation(self, payload: bytes, flags: int, sid: int) -> None:
        block = self.unfinished_block
        if block is None or sid != self._block_stream:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "CONTINUATION of nothing")
        self._block_frames += 1
        block += payload
        if len(block) > self._max_block or self._block_frames > MAX_CONTINUATIONS:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "a header block without end")
        if flags & END_HEADERS:
            self._end_block()

    def _end_block(self) -> None:
        block, fault = self.unfinished_block, self._block_fault
        self.unfinished_block = self._block_fault = self.unfinished_since = None
        self._strict = False
        if block is None:
            return
        if fault is None:
            self._block_complete(self._block_stream, bytes(block), self._block_ends_stream)
            return
        try:
            self._decoder.decode(bytes(block))
        except HpackError as error:
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, str(error)) from error
        except HeaderListTooLarge:
            # It is refused anyway.
            pass
        raise fault

    def _block_complete(self, sid: int, block: bytes, ended: int) -> None:
        try:
            lead, rest = self._decoder.decode(block)
        except HpackError as error:
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, str(error)) from error
        except HeaderListTooLarge:
            self._too_large(sid, ended)
        else:
            self._header_list(sid, lead, rest, ended)

    def _trailers(self, stream: Http2Stream, lead: Lead, rest: tuple[Field, ...], ended: int) -> None:
        if not ended:
            raise messages.malformed("trailers that do not end the stream")
        if stream.expected > 0:
            raise messages.malformed("the body is not as long as content-length said")
        self._end_remote(stream, messages.trailers(lead, rest))

    def _end_remote(self, stream: Http2Stream, trailers: tuple[Field, ...]) -> None:
        stream.remote_open = False
        stream.moved = True
        receiver = stream.receiver
        if not stream.local_open:
            self.forget(stream)
        receiver.ended(trailers)

    def _stray_headers(self, sid: int) -> None:
        """HEADERS for a stream that is closed. The table has seen them; nobody else needs to."""
        if sid not in self._recent:
            raise ConnectionFault(ErrorCode.STREAM_CLOSED, f"HEADERS on stream {sid}, which is closed")
        self._spend(1)

    # The other frames.

    def _window_update(self, payload: bytes, sid: int) -> None:
        if len(payload) != 4:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "WINDOW_UPDATE is not 4 bytes long")
        size = unpack_u32(payload)[0] & LARGEST_WINDOW
        self._spend(1)
        stream = self.streams.get(sid)
        if sid and stream is None:
            if self._is_idle(sid):
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"WINDOW_UPDATE on stream {sid}, which is not open")
            return
        if not size:
            if stream is None:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of nothing")
            raise StreamFault(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of nothing")
        self.widen(stream, size)

    def _rst_stream(self, payload: bytes, sid: int) -> None:
        if len(payload) != 4:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "RST_STREAM is not 4 bytes long")
        if self._is_idle(sid):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"RST_STREAM on stream {sid}, which is not open")
        stream = self.streams.get(sid)
        if stream is None:
            self._spend(1)
            return
        self._peer_gave_up()
        code: int = unpack_u32(payload)[0]
        reached = code != ErrorCode.REFUSED_STREAM
        self._fail(stream, StreamClosed(f"the peer reset the stream: {code_name(code)}", reached=reached, code=code))

    def _ping(self, payload: bytes, flags: int, sid: int) -> None:
        if sid:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PING on a stream")
        if len(payload) != 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "PING is not 8 bytes long")
        self._spend(1)
        if not flags & ACK:
            self.answer(frame(PING, ACK, 0, payload))
            return
        if payload == ALIVE_PING:
            self._answered()
        elif payload == DRAIN_PING:
            self._drain_acknowledged()

    def _settings(self, payload: bytes, flags: int, sid: int) -> None:
        if sid:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "SETTINGS on a stream")
        if flags & ACK:
            if payload:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "an acknowledgement of SETTINGS with a payload")
            self.settings_acknowledged = True
            self.receive_room = self.stream_window
            return
        if len(payload) % 6:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS is not a multiple of 6 bytes long")
        # A new window size is work for every open stream.
        self._spend(10 + len(payload) // 6 + len(self.streams) // 10)
        for setting, value in iter_settings(payload):
            self._apply(setting, value)
        self.answer(frame(SETTINGS, ACK, 0))

    def _apply(self, setting: int, value: int) -> None:
        if setting == INITIAL_WINDOW_SIZE:
            self._resize_windows(value)
        elif setting == HEADER_TABLE_SIZE:
            self._encoder.set_table_size(value)
        elif setting == MAX_HEADER_LIST_SIZE:
            self._encoder.set_max_list_size(value)
        elif setting == MAX_CONCURRENT_STREAMS:
            self.peer_max_streams = value
        elif setting == MAX_FRAME_SIZE:
            # We never send more than the default, which each peer must take.
            if not DEFAULT_FRAME_SIZE <= value <= LARGEST_FRAME_SIZE:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"a SETTINGS_MAX_FRAME_SIZE of {value}")
        elif setting == ENABLE_PUSH and value > self._most_push():
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"a SETTINGS_ENABLE_PUSH of {value}")

    def _most_push(self) -> int:
        """A client may say 1 or 0, a server 0 alone."""
        raise NotImplementedError

    def _resize_windows(self, size: int) -> None:
        if size > LARGEST_WINDOW:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, f"a SETTINGS_INITIAL_WINDOW_SIZE of {size}")
        difference = size - self.peer_initial_window
        self.peer_initial_window = size
        for stream in self.streams.values():
            stream.send_window += difference
            if stream.send_window > LARGEST_WINDOW:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "a stream's window overflows")
            self.enqueue(stream)

    def _priority(self, payload: bytes, sid: int) -> None:
        if not sid:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PRIORITY of the connection")
        self._spend(1)
        if len(payload) != 5:
            raise StreamFault(ErrorCode.FRAME_SIZE_ERROR, "PRIORITY is not 5 bytes long")
        if unpack_u32(payload)[0] & LARGEST_STREAM == sid:
            raise StreamFault(ErrorCode.PROTOCOL_ERROR, "a stream that depends on itself")

    def _goaway(self, payload: bytes, sid: int) -> None:
        if sid:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "GOAWAY on a stream")
        if len(payload) < 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "GOAWAY is less than 8 bytes long")
        self._spend(10)
        last = unpack_u32(payload)[0] & LARGEST_STREAM
        code: int = unpack_u32(payload, 4)[0]
        words = payload[8:72].decode("ascii", "replace")
        reason = "the peer ends the connection: " + code_name(code) + (f" ({words!r})" if words else "")
        self._goaway_received(last, code, reason)

    def _hello(self, *settings: tuple[int, int]) -> bytes:
        """Our SETTINGS, and the rest of the connection's window."""
        limits = self.limits
        ours = (
            *settings,
            (INITIAL_WINDOW_SIZE, limits.stream_window),
            (MAX_HEADER_LIST_SIZE, limits.max_header_bytes),
        )
        hello = frame(SETTINGS, 0, 0, b"".join([pack_setting(*setting) for setting in ours]))
        if self.room > DEFAULT_WINDOW:
            hello += frame(WINDOW_UPDATE, 0, 0, pack_u32(self.room - DEFAULT_WINDOW))
        return hello
