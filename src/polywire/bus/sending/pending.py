"""How many messages may be on their way at a time."""

from __future__ import annotations

import asyncio
from collections import deque

from polywire.clock import Clock


class Pending:
    """Places for *limit* messages that are being sent and not yet confirmed. Who finds none waits, in order."""

    __slots__ = ("_clock", "_waiting", "free", "limit")

    def __init__(self, limit: int, clock: Clock) -> None:
        self.limit = limit
        self.free = limit
        self._clock = clock
        self._waiting: deque[tuple[int, asyncio.Future[bool]]] = deque()

    def take(self, count: int) -> bool:
        """Take *count* places at once. False where that has to be waited for."""
        if self._waiting or count > self.free:
            return False
        self.free -= count
        return True

    async def wait(self, count: int, timeout: float) -> bool:
        """Take *count* places as soon as they are free. False where they are not within *timeout* seconds."""
        if self.take(count):
            return True
        waiter: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        entry = (count, waiter)
        self._waiting.append(entry)
        timer = self._clock.call_later(timeout, lambda: _answer(waiter, False))
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.result():
                self.give(count)  # they were handed over in the moment in which we were cancelled
            raise
        finally:
            timer.cancel()
            if entry in self._waiting:
                self._waiting.remove(entry)
                self._hand_out()

    def give(self, count: int) -> None:
        """Give *count* places back."""
        self.free += count
        if self._waiting:
            self._hand_out()

    def _hand_out(self) -> None:
        while self._waiting and (self._waiting[0][1].done() or self._waiting[0][0] <= self.free):
            count, waiter = self._waiting.popleft()
            if not waiter.done():
                self.free -= count
                waiter.set_result(True)


def _answer(waiter: asyncio.Future[bool], answer: bool) -> None:
    if not waiter.done():
        waiter.set_result(answer)
