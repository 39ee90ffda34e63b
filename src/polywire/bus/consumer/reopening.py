"""Opens a consumer again and again, with backoff, while its backend is away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

from polywire.clock import Clock
from polywire.contract.retry import Backoff
from polywire.errors import BackendLost, BackendUnreachable, ConsumerClosed, DeliveryError

log = logging.getLogger("polywire.consumer")

PAUSES = Backoff(attempts=1, base=0.2, cap=30.0)
CLOSE_PATIENCE = 5.0
"""Seconds for a consumer to close."""


class Closable(Protocol):
    async def close(self) -> None: ...


C = TypeVar("C")


class Reopening:
    """Of one runner's consumers. *what* begins the sentences that it logs, `The queue 'mail'`."""

    def __init__(self, what: str, clock: Clock) -> None:
        self._what = what
        self._clock = clock
        self._failures = 0

    async def first(self, open: Callable[[], Awaitable[C]]) -> C | None:
        """A consumer, or None where the backend is away. Raises what waiting would not help against."""
        try:
            return await open()
        except (BackendLost, BackendUnreachable, ConsumerClosed) as error:
            self.failed(error)
            return None

    async def again(self, open: Callable[[], Awaitable[C]]) -> C:
        """A consumer, as soon as the backend gives one."""
        while True:
            await self._clock.sleep(self._pause())
            try:
                consumer = await open()
            except Exception as error:  # noqa: BLE001 - a backend in trouble must not end the process
                self.failed(error)
                continue
            log.info("%s is consumed again.", self._what)
            return consumer

    def worked(self) -> None:
        """Something was received: the next trouble is a new one."""
        self._failures = 0

    def failed(self, error: Exception) -> None:
        self._failures += 1
        expected = isinstance(error, DeliveryError)
        log.warning(
            "%s is not consumed at the moment, and it is tried again: %s",
            self._what, error, exc_info=None if expected else error,
        )  # fmt: skip

    async def close(self, consumer: Closable) -> None:
        """Close it, whatever state it is in."""
        closing = asyncio.ensure_future(consumer.close())
        timer = self._clock.call_later(CLOSE_PATIENCE, closing.cancel)
        try:
            await asyncio.wait([closing])
        finally:
            timer.cancel()
            closing.cancel()
        error = None if closing.cancelled() else closing.exception()
        if error is not None:
            log.warning("%s: its consumer could not be closed: %s", self._what, error)

    def _pause(self) -> float:
        # Half of it is certain, so that a backend that refuses at once is not asked without a pause.
        most = PAUSES.delay(max(1, self._failures), 1.0)
        return most * (0.5 + self._clock.random() / 2)
