"""Page views on their way from the gateway to whoever counts them, beside the requests and never in front of them."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import deque
from datetime import UTC, datetime

from polywire import Bus, DeliveryError, calling
from polywire.clock import Clock
from shop.events import PageView

log = logging.getLogger("shop.gateway")

MOST_WAITING = 10_000
AT_A_TIME = 500
GATHER = 0.1
"""Seconds for which views are gathered, so that a busy shop tells of many at once."""
TELL_WITHIN = 2.0


class PageViews:
    """A view is a statistic: customers do not wait until it is told, and nobody's page fails because it cannot be.

    So those that wait are lost with the process, those that could not be told are not tried again, and where more than
    MOST_WAITING come up the oldest go. What is lost so is counted, and the log says it.
    """

    def __init__(self, bus: Bus, clock: Clock) -> None:
        self.lost = 0
        self._bus = bus
        self._clock = clock
        self._waiting: deque[PageView] = deque()
        self._some = asyncio.Event()

    def seen(self, product_id: str) -> None:
        if len(self._waiting) == MOST_WAITING:
            self._waiting.popleft()
            self.lost += 1
        now = datetime.fromtimestamp(self._clock.time(), UTC)
        self._waiting.append(PageView(view_id=uuid.uuid4().hex, product_id=product_id, at=now))
        self._some.set()

    async def keep_telling(self) -> None:
        while True:
            await self._some.wait()
            await self._clock.sleep(GATHER)
            await self.tell()

    async def tell(self) -> None:
        """Tell of those that wait now."""
        self._some.clear()
        lost = self.lost
        while self._waiting:
            views = [self._waiting.popleft() for _ in range(min(AT_A_TIME, len(self._waiting)))]
            await self._publish(views)
        if self.lost > lost:
            log.warning("%d page views will not be counted", self.lost - lost)

    async def _publish(self, views: list[PageView]) -> None:
        try:
            with calling(timeout=TELL_WITHIN):
                await self._bus.publish_all(views)
        except DeliveryError as trouble:
            # Some may have arrived: they have ids, by which no group counts them twice, but no second chance.
            self.lost += len(views)
            log.warning("page views could not be told: %s", trouble)
