"""What sending to a queue and appending to a topic of a file have in common: room, time limits, and what is refused."""

from __future__ import annotations

import asyncio
from collections import deque

from polywire.bus.backend.sqlite_file import NotDone, PerhapsDone, Work, deadline_in
from polywire.bus.core import Envelope, pack
from polywire.errors import MessageRefused, PublishUnknown, SetupError

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
MAX_NAME_CHARACTERS = 1024
"""Of an id and of a key."""
MAX_PENDING = 10_000
"""Messages that wait to be written; senders beyond them wait for room."""
MAX_PENDING_BYTES = 64 * 1024 * 1024


class Room:
    """Bounds what waits to be written."""

    def __init__(self) -> None:
        self._messages = 0
        self._bytes = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def full(self) -> bool:
        return self._messages >= MAX_PENDING or self._bytes >= MAX_PENDING_BYTES

    @staticmethod
    def crowded(path: str) -> str:
        return f"{MAX_PENDING:,} messages already wait to be written to {path!r}"

    def enter(self, count: int, size: int) -> None:
        self._messages += count
        self._bytes += size

    def leave(self, count: int, size: int) -> None:
        self._messages -= count
        self._bytes -= size
        while self._waiting and not self.full:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self, timeout: float) -> bool:
        """Until there is room; False where there was none for *timeout* seconds."""
        try:
            async with asyncio.timeout(timeout):
                while self.full:
                    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                    self._waiting.append(waiter)
                    await waiter
        except TimeoutError:
            return False
        return True


class Confirming(Work):
    """What was sent in one turn of the loop, with one time limit, by many who wait."""

    def __init__(self, timeout: float | None) -> None:
        self.timeout = timeout
        self.deadline = deadline_in(timeout)
        self.futures: list[asyncio.Future[Exception | None]] = []
        """The result of each: why it failed, or None."""

    def finish(self) -> None:
        for future in self.futures:
            if not future.done():
                future.set_result(None)

    def fail(self, error: Exception) -> None:
        for future in self.futures:
            if not future.done():
                future.set_result(error)


def refused(envelope: Envelope) -> str:
    return f"The message {envelope.id!r} was not sent"


def packed(envelope: Envelope) -> bytes:
    """What is written of it. Raises ValueError that says why a file of the bus does not take the message."""
    if len(envelope.body) > MAX_MESSAGE_BYTES:
        raise ValueError(
            f"its body has {len(envelope.body)} bytes, the limit is {MAX_MESSAGE_BYTES}. Put the content where both "
            "sides reach it, and send its address"
        )
    if not envelope.id or len(envelope.id) > MAX_NAME_CHARACTERS:
        raise ValueError(
            f"its id has {len(envelope.id)} characters, and 1 to {MAX_NAME_CHARACTERS} are possible. Choose another"
        )
    if envelope.key is not None and len(envelope.key) > MAX_NAME_CHARACTERS:
        raise ValueError(
            f"its key has {len(envelope.key)} characters, and {MAX_NAME_CHARACTERS} are the limit. Choose a shorter one"
        )
    try:
        return pack(envelope)
    except UnicodeEncodeError as error:
        raise ValueError(f"its texts are no Unicode: {error.reason}") from error


def failure_of(failure: Exception, envelope: Envelope, where: str, path: str) -> Exception:
    """What `send` and `append` say about one message of a transaction that failed. Raises SetupError as it is: that
    concerns them all."""
    if isinstance(failure, SetupError):
        raise failure
    if isinstance(failure, PerhapsDone):
        return PublishUnknown(
            f"Nobody knows whether the message {envelope.id!r} reached {where!r} in {path!r}: {failure}. "
            "Send it again with the same id.",
            id=envelope.id,
        )
    if isinstance(failure, NotDone):
        return MessageRefused(f"{refused(envelope)} to {where!r} in {path!r}: {failure}. Send it again.")
    return failure
