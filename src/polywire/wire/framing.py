"""Messages as gRPC and Connect put them into a body: one byte of flags, four of length, then the message."""

from __future__ import annotations

import struct

from polywire.errors import ResourceExhausted

PREFIX_SIZE = 5
COMPRESSED = 0x01
"""The only flag of gRPC; Connect adds 0x02 for its end-of-stream message."""

_pack_prefix = struct.Struct(">BI").pack
_unpack_prefix = struct.Struct(">BI").unpack_from

Frame = tuple[int, bytes]
"""Flags and payload."""

_SHORT = 4096
_PREFIXES = [_pack_prefix(0, size) for size in range(_SHORT)]
"""Of short messages that are not compressed, by size; packing one costs more than the rest of the frame."""


def framed(payload: bytes, flags: int = 0) -> bytes:
    """*payload* with its prefix."""
    size = len(payload)
    prefix = _PREFIXES[size] if size < _SHORT and not flags else _pack_prefix(flags, size)
    return prefix + payload


def whole_frame(body: bytes) -> Frame | None:
    """The frame that *body* consists of, or None where it is not exactly one."""
    if len(body) < PREFIX_SIZE:
        return None
    flags, size = _unpack_prefix(body)
    if size != len(body) - PREFIX_SIZE:
        return None
    return flags, body[PREFIX_SIZE:]


def too_large(size: int, limit: int) -> ResourceExhausted:
    return ResourceExhausted(
        f"A message of {size} bytes was not read: the limit is {limit} bytes. Split it, or raise `max_message_bytes` "
        "at its receiver."
    )


class Frames:
    """Takes a body in pieces of any size and gives back the frames that became complete.

    A frame that announces more than *limit* bytes sets *fault* before any of it is stored; frames before it are still
    given back, and everything after it is dropped. Each byte is copied at most three times, however small the pieces,
    and what is held is never more than one frame and one piece.
    """

    __slots__ = ("_buffer", "_expected", "fault", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.fault: ResourceExhausted | None = None
        self._buffer = bytearray()
        self._expected = PREFIX_SIZE

    @property
    def buffered(self) -> int:
        """Bytes held of a frame that is not complete yet."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[Frame]:
        """The frames completed by *data*. Never raises: see *fault*."""
        if self.fault is not None:
            return []
        buffer = self._buffer
        if not buffer:
            # Most messages come in a piece of their own.
            size = len(data) - PREFIX_SIZE
            if 0 <= size <= self.limit:
                flags, announced = _unpack_prefix(data)
                if announced == size:
                    return [(flags, data[PREFIX_SIZE:])]
            frames, used = self._cut(data)
            if used < len(data) and self.fault is None:
                buffer += memoryview(data)[used:] if used else data
            return frames
        buffer += data
        if len(buffer) < self._expected:
            return []
        whole = bytes(buffer)
        buffer.clear()
        frames, used = self._cut(whole)
        if used < len(whole) and self.fault is None:
            buffer += memoryview(whole)[used:]
        return frames

    def _cut(self, data: bytes) -> tuple[list[Frame], int]:
        """The frames at the beginning of *data*, and how many bytes they are."""
        frames: list[Frame] = []
        position = 0
        available = len(data)
        expected = PREFIX_SIZE
        while available - position >= PREFIX_SIZE:
            flags, size = _unpack_prefix(data, position)
            if size > self.limit:
                self.fault = too_large(size, self.limit)
                break
            expected = PREFIX_SIZE + size
            if available - position < expected:
                break
            frames.append((flags, data[position + PREFIX_SIZE : position + expected]))
            position += expected
            expected = PREFIX_SIZE
        self._expected = expected
        return frames, position
