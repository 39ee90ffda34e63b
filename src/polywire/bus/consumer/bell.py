"""Wakes the one task that waits for something to do."""

from __future__ import annotations

import asyncio


class Bell:
    """As an asyncio.Event that clears itself, for a single waiter; ringing it costs next to nothing."""

    __slots__ = ("_rung", "_waiter")

    def __init__(self) -> None:
        self._rung = False
        self._waiter: asyncio.Future[None] | None = None

    def ring(self) -> None:
        waiter = self._waiter
        if waiter is None:
            self._rung = True
        elif not waiter.done():
            waiter.set_result(None)

    async def wait(self) -> None:
        """Return at the next ring, at once where it rang since the last time."""
        if self._rung:
            self._rung = False
            return
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
