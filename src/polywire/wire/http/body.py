"""The body of one request, gathered up to a limit."""

from __future__ import annotations

from polywire.net.stream import Field, Head, Stream, StreamClosed


class Gathering:
    """A receiver that keeps a body until it is complete; subclasses say what happens then.

    What is beyond *limit* is not stored: `oversized` is called once, at once, and the rest is let pass by.
    """

    __slots__ = ("_parts", "_size", "body", "limit", "stream")

    def __init__(self, stream: Stream, limit: int) -> None:
        self.stream = stream
        self.limit = limit
        self.body = b""
        self._parts: bytearray | None = None
        self._size = 0

    def headers_received(self, head: Head, tail: tuple[Field, ...]) -> None:
        """Only at a client."""

    def data_received(self, data: bytes) -> None:
        size = len(data)
        self.stream.consumed(size)
        before = self._size
        self._size = before + size
        if self._size > self.limit:
            if before <= self.limit:
                self._parts = None
                self.oversized()
        elif before:
            if self._parts is None:
                # Not a list: of single bytes it would be many times the limit.
                self._parts = bytearray(self.body)
            self._parts += data
        else:
            self.body = data

    def ended(self, trailers: tuple[Field, ...]) -> None:
        if self._size <= self.limit:
            if self._parts is not None:
                self.body = bytes(self._parts)
                self._parts = None
            self.complete()

    def oversized(self) -> None:
        raise NotImplementedError

    def complete(self) -> None:
        raise NotImplementedError

    def failed(self, error: StreamClosed) -> None:
        raise NotImplementedError


class Ignoring:
    """Takes the rest of a request that was answered already."""

    __slots__ = ("_stream",)

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def headers_received(self, head: Head, tail: tuple[Field, ...]) -> None:
        """Only at a client."""

    def data_received(self, data: bytes) -> None:
        self._stream.consumed(len(data))

    def ended(self, trailers: tuple[Field, ...]) -> None:
        """It was answered already."""

    def failed(self, error: StreamClosed) -> None:
        """It was answered already."""
