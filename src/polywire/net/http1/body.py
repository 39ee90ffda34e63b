"""Takes the body of one message off the bytes of a connection, by its framing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from polywire.net.http1.grammar import BARE_LINE_FEED, CHUNK_SIZE, Refused, show
from polywire.net.http1.heads import HeadReader, too_large
from polywire.net.stream import Field, Limits

_CHUNK_LINE = 256
"""Bytes that a chunk's size line may have, extensions included."""

_CRLF = b"\r\n"

# What comes next in a chunked body, where it is not the rest of a chunk.
_LINE = 0
_TRAILERS = -1


class Body(Protocol):
    """The rest of a message. Feed it until it says what came after its end."""

    trailers: tuple[Field, ...]

    @property
    def left(self) -> int | None:
        """Bytes still to come, None where that is not known."""

    def feed(self, data: bytes, position: int, deliver: Callable[[bytes], None]) -> int:
        """Deliver what *data* holds from *position* on, at most once. Returns where the body ends, -1 if it goes on.

        Raises Refused where the framing is wrong.
        """
        ...


class SizedBody:
    """A body of a known length."""

    __slots__ = ("left",)
    trailers: tuple[Field, ...] = ()

    def __init__(self, length: int) -> None:
        self.left = length

    def feed(self, data: bytes, position: int, deliver: Callable[[bytes], None]) -> int:
        here = len(data) - position
        left = self.left
        if here < left:
            self.left = left - here
            if here:
                deliver(data[position:])
            return -1
        self.left = 0
        end = position + left
        deliver(data[position:end])
        return end


class EndlessBody:
    """A body that ends with the connection."""

    __slots__ = ()
    trailers: tuple[Field, ...] = ()
    left = None

    def feed(self, data: bytes, position: int, deliver: Callable[[bytes], None]) -> int:
        if position < len(data):
            deliver(data[position:])
        return -1


class ChunkedBody:
    """A body in chunks (RFC 9112 section 7.1), with trailers. *limit* is of the whole body, None for no limit."""

    __slots__ = ("_held", "_limit", "_limits", "_missing", "_reader", "_total", "trailers")
    left = None

    def __init__(self, reader: HeadReader, limits: Limits, limit: int | None) -> None:
        self._reader = reader
        self._limits = limits
        self._limit = limit
        self._held = b""
        """The beginning of a line that is not complete."""
        self._missing = _LINE
        """Bytes until the end of the chunk under way, its CRLF included; or what else is next."""
        self._total = 0
        self.trailers: tuple[Field, ...] = ()

    def feed(self, data: bytes, position: int, deliver: Callable[[bytes], None]) -> int:
        behind = 0
        if self._held:
            behind = len(self._held) - position
            data = self._held + data[position:]
            self._held = b""
            position = 0
        # All chunks of one read in one loop and one delivery, so that a peer who sends tiny ones does not multiply
        # calls; written densely because it runs once per message of a stream.
        pieces: list[bytes] = []
        missing = self._missing
        size = len(data)
        while missing != _TRAILERS:
            if missing > 2:
                end = min(position + missing - 2, size)
                if end == position:
                    break
                pieces.append(data[position:end])
                missing -= end - position
                position = end
            elif missing > 0:
                # The last two bytes of a chunk, or the second of them.
                if position == size:
                    break
                if data[position] != _CRLF[2 - missing]:
                    raise Refused(400, "A chunk is longer than its size says.")
                position += 1
                missing -= 1
                if not missing:
                    missing = _LINE
            else:
                end = data.find(b"\r\n", position, position + _CHUNK_LINE + 2)
                if end < 0:
                    self._hold_line(data[position:])
                    position = size
                    break
                missing = self._begin_chunk(data[position:end])
                position = end + 2
        self._missing = missing
        if pieces:
            deliver(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if missing != _TRAILERS:
            return -1
        end = self._end(data, position)
        return end - behind if end >= 0 else -1

    def _hold_line(self, line: bytes) -> None:
        if BARE_LINE_FEED.search(line, 0, _CHUNK_LINE + 2):
            raise Refused(400, "A line of a chunk ends in a bare line feed.")
        if len(line) > _CHUNK_LINE + 1:
            raise Refused(400, f"The size line of a chunk is over {_CHUNK_LINE} bytes.")
        self._held = line

    def _begin_chunk(self, line: bytes) -> int:
        match = CHUNK_SIZE.fullmatch(line)
        if match is None:
            raise Refused(400, f"{show(line)} is not the size of a chunk.")
        size = int(match[1], 16)
        self._total += size
        if self._limit is not None and self._total > self._limit:
            raise body_too_large(self._limit)
        return size + 2 if size else _TRAILERS

    def _end(self, data: bytes, position: int) -> int:
        if data.startswith(b"\r\n", position):
            return position + 2
        end = data.find(b"\r\n\r\n", position)
        if end < 0:
            rest = data[position:]
            if len(rest) > self._limits.max_header_bytes:
                raise too_large(self._limits)
            if BARE_LINE_FEED.search(rest):
                raise Refused(400, "A line of the trailers ends in a bare line feed.")
            self._held = rest
            return -1
        self.trailers = self._reader.trailers(data[position : end + 4])
        return end + 4


def body_too_large(limit: int) -> Refused:
    """The answer to a request body of more than *limit* bytes."""
    return Refused(
        413,
        f"The request body is over the limit of {limit} bytes. Send less, or raise `max_body_bytes` at its receiver.",
    )
