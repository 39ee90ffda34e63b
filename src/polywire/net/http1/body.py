"""Takes the body of one message off the bytes of a connection, by its framing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from polywire.net.http1.grammar import BARE_LINE_FEED, CHUNK_SIZE, Refused, show
from polywire.net.http1.heads import HeadReader, too_large
from polywire.net.stream import Field, Limits

_CHUNK_LINE = 256
"""Bytes that a chunk's size line may have, extensions included."""


class Body(Protocol):
    """The rest of a message. Feed it until it says what came after its end."""

    trailers: tuple[Field, ...]

    @property
    def left(self) -> int | None:
        """Bytes still to come, None where that is not known."""

    def feed(self, data: bytes, deliver: Callable[[bytes], None]) -> bytes | None:
        """Deliver what *data* holds. Returns what follows the end of the body, None while there is more to come.

        Raises Refused where the framing is wrong.
        """


class SizedBody:
    """A body of a known length."""

    __slots__ = ("left",)
    trailers: tuple[Field, ...] = ()

    def __init__(self, length: int) -> None:
        self.left = length

    def feed(self, data: bytes, deliver: Callable[[bytes], None]) -> bytes | None:
        size = len(data)
        left = self.left
        if size < left:
            self.left = left - size
            deliver(data)
            return None
        self.left = 0
        if size == left:
            deliver(data)
            return b""
        deliver(data[:left])
        return data[left:]


class EndlessBody:
    """A body that ends with the connection."""

    __slots__ = ()
    trailers: tuple[Field, ...] = ()
    left = None

    def feed(self, data: bytes, deliver: Callable[[bytes], None]) -> bytes | None:
        deliver(data)
        return None


class ChunkedBody:
    """A body in chunks (RFC 9112 section 7.1), with trailers. *limit* is of the whole body, None for no limit."""

    __slots__ = ("_chunk", "_held", "_limit", "_limits", "_reader", "_state", "_total", "trailers")
    left = None

    _SIZE, _DATA, _DATA_END, _TRAILERS = range(4)

    def __init__(self, reader: HeadReader, limits: Limits, limit: int | None) -> None:
        self._reader = reader
        self._limits = limits
        self._limit = limit
        self._held = b""
        self._state = self._SIZE
        self._chunk = 0
        self._total = 0
        self.trailers: tuple[Field, ...] = ()

    def feed(self, data: bytes, deliver: Callable[[bytes], None]) -> bytes | None:
        if self._held:
            data = self._held + data
            self._held = b""
        # One delivery per read, so that a peer who sends chunks of one byte does not multiply calls.
        pieces: list[bytes] = []
        position = 0
        while position is not None and self._state != self._TRAILERS:
            position, moved = self._step(data, position, pieces)
            if not moved:
                break
        if pieces:
            deliver(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if self._state == self._TRAILERS:
            return self._end(data[position:])
        self._held = data[position:]
        return None

    def _step(self, data: bytes, position: int, pieces: list[bytes]) -> tuple[int, bool]:
        """Take one element at *position*. Returns where the next one starts, and whether there was enough of it."""
        if self._state == self._DATA:
            piece = data[position : position + self._chunk]
            if not piece:
                return position, False
            pieces.append(piece)
            self._chunk -= len(piece)
            if not self._chunk:
                self._state = self._DATA_END
            return position + len(piece), True
        if self._state == self._DATA_END:
            ending = data[position : position + 2]
            if not b"\r\n".startswith(ending):
                raise Refused(400, "A chunk is longer than its size says.")
            if len(ending) < 2:
                return position, False
            self._state = self._SIZE
            return position + 2, True
        end = data.find(b"\r\n", position)
        if end < 0 or end - position > _CHUNK_LINE:
            self._check_unfinished_line(data[position : position + _CHUNK_LINE + 2])
            return position, False
        self._begin_chunk(data[position:end])
        return end + 2, True

    def _check_unfinished_line(self, line: bytes) -> None:
        if BARE_LINE_FEED.search(line):
            raise Refused(400, "A line of a chunk ends in a bare line feed.")
        if len(line) > _CHUNK_LINE + 1:
            raise Refused(400, f"The size line of a chunk is over {_CHUNK_LINE} bytes.")

    def _begin_chunk(self, line: bytes) -> None:
        match = CHUNK_SIZE.fullmatch(line)
        if match is None:
            raise Refused(400, f"{show(line)} is not the size of a chunk.")
        self._chunk = int(match[1], 16)
        self._total += self._chunk
        if self._limit is not None and self._total > self._limit:
            raise body_too_large(self._limit)
        self._state = self._DATA if self._chunk else self._TRAILERS

    def _end(self, data: bytes) -> bytes | None:
        if data.startswith(b"\r\n"):
            return data[2:]
        end = data.find(b"\r\n\r\n")
        if end < 0:
            if len(data) > self._limits.max_header_bytes:
                raise too_large(self._limits)
            if BARE_LINE_FEED.search(data):
                raise Refused(400, "A line of the trailers ends in a bare line feed.")
            self._held = data
            return None
        self.trailers = self._reader.trailers(data[: end + 4])
        return data[end + 4 :]


def body_too_large(limit: int) -> Refused:
    """The answer to a request body of more than *limit* bytes."""
    return Refused(413, f"The request body is over the limit of {limit} bytes.")
