"""Messages of a stream on their way from the connection to whoever reads them, holding the peer back meanwhile."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from polywire.errors import CallError, Internal
from polywire.net.stream import Stream
from polywire.wire.framing import PREFIX_SIZE, Frame, Frames

T = TypeVar("T")

_GIVE_BACK_AT = 16 * 1024
"""Bytes of credit gathered before they are given back while more messages are waiting to be read."""


class Incoming(Generic[T]):
    """An async iterator over the messages of one direction of one exchange.

    A Receiver feeds it (`feed`, or `put` and `received`) and ends it (`end` or `fail`), at once and without waiting.
    One task reads it. Messages are kept as they arrived, compressed perhaps, and go through *decode* when taken.
    An error waits its turn behind the messages that came before it, and is raised again for whoever asks again;
    so is a CallError from *decode*, which ends the iteration.

    Flow control: a message's bytes are given back to the peer when it is taken, those of an unfinished message only
    while nothing is waiting before it. So what is held is at most the stream's window and one message. A
    cancelled read loses nothing.
    """

    __slots__ = (
        "_decode",
        "_ended",
        "_error",
        "_frames",
        "_held",
        "_owed",
        "_queue",
        "_stream",
        "_waiter",
        "_withheld",
    )

    def __init__(self, stream: Stream, frames: Frames, decode: Callable[[int, bytes], T]) -> None:
        self._stream = stream
        self._frames = frames
        self._decode = decode
        self._queue: deque[Frame] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._error: CallError | None = None
        self._ended = False
        self._withheld = 0
        """Bytes received of which the peer has not been given credit."""
        self._held = 0
        """Of these, bytes of messages in the queue."""
        self._owed = 0
        """Of these, bytes taken by the reader and not given back yet."""

    # -- fed by a receiver

    def feed(self, data: bytes) -> None:
        """Take a piece of the body. Fails the iteration where a message is too large."""
        if self._ended:
            self._stream.consumed(len(data))
            return
        frames = self._frames
        before = frames.buffered
        complete = frames.feed(data)
        if frames.fault is not None:
            for flags, payload in complete:
                self.put(flags, payload)
            self.fail(frames.fault)
        elif complete:
            self._queue.extend(complete)
            self._held += before + len(data) - frames.buffered
        self.received(len(data))

    def put(self, flags: int, payload: bytes) -> None:
        """Add one message; for a receiver that sorts the frames itself. `received` has to follow."""
        if self._ended:
            return
        self._queue.append((flags, payload))
        self._held += PREFIX_SIZE + len(payload)

    def received(self, size: int) -> None:
        """Account for *size* bytes of the body, after their frames were `put`, and wake the reader."""
        self._withheld += size
        if self._queue:
            self._wake()
        else:
            self._give_back()

    def end(self) -> None:
        """The body is complete. Fails the iteration where its last message is not."""
        if self._ended:
            return
        if self._frames.buffered:
            self.fail(
                Internal(
                    f"The stream ended in the middle of a message: {self._frames.buffered} bytes of it had arrived. "
                    "The other side, or a proxy on the way, cut it off."
                )
            )
            return
        self._ended = True
        self._wake()

    def fail(self, error: CallError) -> None:
        """End with *error*. The first end or failure counts."""
        if self._ended:
            return
        self._ended = True
        self._error = error
        self._wake()

    def discard(self) -> None:
        """Nobody will read any more: forget what is waiting and give its credit back."""
        self._ended = True
        self._queue.clear()
        self._held = self._owed = 0
        if self._withheld:
            self._stream.consumed(self._withheld)
            self._withheld = 0

    # -- read by one task

    @property
    def finished(self) -> bool:
        """True once nothing is left to be taken but the end or the error."""
        return self._ended and not self._queue

    def __aiter__(self) -> Incoming[T]:
        return self

    async def __anext__(self) -> T:
        queue = self._queue
        while not queue:
            if self._ended:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            await self._wait()
        return self.take()

    def take(self) -> T:
        """The message at the front of the queue, which must not be empty. Raises what *decode* raises."""
        flags, payload = self._queue.popleft()
        size = PREFIX_SIZE + len(payload)
        self._held -= size
        self._owed += size
        if self._owed >= _GIVE_BACK_AT or not self._queue:
            self._give_back()
        try:
            return self._decode(flags, payload)
        except CallError as error:
            self.discard()
            self._error = error
            raise

    async def _wait(self) -> None:
        if self._waiter is not None:
            raise RuntimeError("this stream is being read by another task already; a stream has one reader")
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _give_back(self) -> None:
        size = self._withheld - self._held
        if self._queue:
            size = min(size, self._owed)
        self._owed = 0
        if size > 0:
            self._withheld -= size
            self._stream.consumed(size)
