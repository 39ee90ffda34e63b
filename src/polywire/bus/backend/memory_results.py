"""Results kept in the memory of one process."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from polywire.bus.core.results import MAX_RESULT_BYTES, Outcome
from polywire.clock import SYSTEM_CLOCK, Clock
from polywire.errors import BackendLost, MessageRefused

MAX_RESULTS = 10_000
MAX_TOTAL_BYTES = 64 * 1024 * 1024


class MemoryResults:
    """Keeps at most *max_results* outcomes with *max_total_bytes* together; the oldest go first."""

    shared = False

    def __init__(
        self,
        name: str = "memory",
        *,
        clock: Clock = SYSTEM_CLOCK,
        max_results: int = MAX_RESULTS,
        max_bytes: int = MAX_RESULT_BYTES,
        max_total_bytes: int = MAX_TOTAL_BYTES,
    ) -> None:
        self.name = name
        self.max_bytes = max_bytes
        self._clock = clock
        self._max_results = max_results
        self._max_total = max_total_bytes
        self._kept: OrderedDict[str, tuple[Outcome, float]] = OrderedDict()
        """With the moment on the monotonic clock when it goes; in the order of arrival."""
        self._total = 0
        self._waiting: dict[str, set[asyncio.Future[Outcome | None]]] = {}
        self._closed = False

    async def start(self) -> None:
        self._closed = False

    async def close(self) -> None:
        self._closed = True
        for waiters in self._waiting.values():
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_exception(BackendLost(f"The store of results {self.name!r} was closed."))

    async def put(self, key: str, outcome: Outcome, *, ttl: float) -> None:
        self._check_open()
        if outcome.size > self.max_bytes:
            raise MessageRefused(
                f"The outcome of {key!r} was not stored: it has {outcome.size} bytes, and the results of store "
                f"{self.name!r} take {self.max_bytes}. Store what it refers to elsewhere, and return the place."
            )
        self._forget(key)
        self._kept[key] = outcome, self._clock.monotonic() + ttl
        self._total += outcome.size
        self._make_room()
        for waiter in self._waiting.get(key, ()):
            if not waiter.done():
                waiter.set_result(outcome)

    async def wait(self, key: str, *, timeout: float | None) -> Outcome | None:
        self._check_open()
        kept = self._kept.get(key)
        if kept is not None and kept[1] > self._clock.monotonic():
            return kept[0]
        if timeout is not None and timeout <= 0:
            return None
        return await self._arrival(key, timeout)

    async def _arrival(self, key: str, timeout: float | None) -> Outcome | None:
        waiter: asyncio.Future[Outcome | None] = asyncio.get_running_loop().create_future()
        waiters = self._waiting.setdefault(key, set())
        waiters.add(waiter)
        timer = None if timeout is None else self._clock.call_later(timeout, lambda: _give_up(waiter))
        try:
            return await waiter
        finally:
            if timer is not None:
                timer.cancel()
            waiters.discard(waiter)
            if not waiters and self._waiting.get(key) is waiters:
                del self._waiting[key]

    def _check_open(self) -> None:
        if self._closed:
            raise BackendLost(f"The store of results {self.name!r} was closed.")

    def _forget(self, key: str) -> None:
        gone = self._kept.pop(key, None)
        if gone is not None:
            self._total -= gone[0].size

    def _make_room(self) -> None:
        """Let go of what is over, then of the oldest. The newest outcome always stays."""
        now = self._clock.monotonic()
        while len(self._kept) > 1:
            key, (_, until) = next(iter(self._kept.items()))
            if until > now and len(self._kept) <= self._max_results and self._total <= self._max_total:
                return
            self._forget(key)


def _give_up(waiter: asyncio.Future[Outcome | None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
