"""Time and chance, handed in from outside so that tests can own them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Protocol


class Clock(Protocol):
    """Where policies get the time and their dice from."""

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back. All deadlines are on this scale."""
        ...

    def time(self) -> float:
        """Seconds since the epoch, for what people and other machines read."""
        ...

    def random(self) -> float:
        """In [0, 1)."""
        ...

    async def sleep(self, delay: float) -> None:
        """Wait *delay* seconds of this clock."""

    def call_later(self, delay: float, callback: Callable[[], object]) -> Timer:
        """Call back after *delay* seconds of this clock."""
        ...


class Timer(Protocol):
    """A pending `Clock.call_later`."""

    def cancel(self) -> None: ...


class SystemClock:
    """The machine's own time and the loop's own timers."""

    monotonic = staticmethod(time.monotonic)
    time = staticmethod(time.time)
    random = staticmethod(random.random)

    async def sleep(self, delay: float) -> None:
        import asyncio

        await asyncio.sleep(delay)

    def call_later(self, delay: float, callback: Callable[[], object]) -> Timer:
        import asyncio

        return asyncio.get_running_loop().call_later(delay, callback)


SYSTEM_CLOCK = SystemClock()
