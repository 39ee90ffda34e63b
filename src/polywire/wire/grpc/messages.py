"""Single messages in a gRPC body: exactly one where the method says so, decompressed within bounds."""

from __future__ import annotations

import struct

from polywire.errors import CallError, Internal, ResourceExhausted
from polywire.net.stream import Stream
from polywire.wire.compression import Corrupt, TooLarge, decompress
from polywire.wire.framing import COMPRESSED, PREFIX_SIZE, Frame, Frames

_size_of = struct.Struct(">xI").unpack_from


def plain(flags: int, payload: bytes, *, gzip: bool, limit: int) -> bytes:
    """The message as it was before compression; *gzip* says whether its stream declared that encoding.

    Raises Internal for what breaks the protocol, ResourceExhausted beyond *limit* bytes.
    """
    if not flags:
        return payload
    if flags != COMPRESSED:
        raise Internal(f"A message has the flags {flags:#04x}, which gRPC does not know.")
    if not gzip:
        raise Internal("A message is marked as compressed, but no `grpc-encoding` was named for its stream.")
    try:
        return decompress(payload, limit)
    except TooLarge:
        raise ResourceExhausted(
            f"A compressed message was not read: it is larger than the limit of {limit} bytes once decompressed. "
            "Split it, or raise `max_message_bytes` at its receiver."
        ) from None
    except Corrupt as error:
        raise Internal(f"A compressed message could not be read, its gzip data is corrupt: {error}.") from error


class SingleBody:
    """The part of a receiver that takes a body of one message.

    Nearly always it comes in one piece, which is kept as it is. Otherwise the pieces are put together, within *limit*,
    giving the peer credit as they come.
    """

    __slots__ = ("_body", "_frames", "_limit", "_messages", "stream")

    stream: Stream
    _messages: list[Frame]

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._body: bytes | None = None
        """The body, where it is one whole message."""
        self._frames: Frames | None = None
        """What puts it together otherwise."""

    def data_received(self, data: bytes) -> None:
        size = len(data) - PREFIX_SIZE
        if self._body is None and self._frames is None and 0 <= size <= self._limit and _size_of(data)[0] == size:
            self._body = data
        else:
            self._gather(data)

    def _gather(self, data: bytes) -> None:
        frames = self._frames
        if frames is None:
            frames = self._frames = Frames(self._limit)
            self._messages = frames.feed(self._body) if self._body is not None else []
            self._body = None
        # Two are enough to know that there is one too many.
        self._messages += frames.feed(data)[: 2 - len(self._messages)]
        self.stream.consumed(len(data))

    def frame(self, what: str) -> Frame:
        """The only message. Raises a CallError, in which *what* names it, where there is not exactly one."""
        body = self._body
        if body is not None:
            return body[0], body[PREFIX_SIZE:]
        frames = self._frames
        if frames is None:
            raise Internal(f"{what} is missing: its body is empty.")
        if frames.fault is not None:
            raise frames.fault
        if len(self._messages) > 1:
            raise Internal(f"{what} came more than once: its body has several messages.")
        if frames.buffered:
            raise Internal(f"{what} is incomplete: its body ends after {frames.buffered} bytes of it.")
        (message,) = self._messages
        return message

    def fault_so_far(self) -> CallError | None:
        """What is known to be wrong before the body has ended."""
        return None if self._frames is None else self._frames.fault
