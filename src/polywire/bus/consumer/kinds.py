"""The messages of one handler in a runner: how many run, which wait for their turn, which gather for a batch."""

from __future__ import annotations

from collections import deque
from typing import Any

from polywire.bus.consumer.handling import Handling
from polywire.bus.core.queue import Delivery
from polywire.clock import Timer


class Kind:
    """One per handling of a runner."""

    __slots__ = ("_most", "gathered", "handling", "running", "timer", "waiting")

    def __init__(self, handling: Handling) -> None:
        self.handling = handling
        self.running = 0
        self.waiting: deque[Any] = deque()
        """What the runner wants to start, held back by the handling's own concurrency."""
        self.gathered: list[Delivery] = []
        """For the next batch of a queue."""
        self.timer: Timer | None = None
        self._most = handling.concurrency

    @property
    def full(self) -> bool:
        return self._most is not None and self.running >= self._most

    def gather(self, delivery: Delivery) -> bool:
        """Add it to the next batch; whether that is complete."""
        self.gathered.append(delivery)
        return self.handling.batch is not None and len(self.gathered) >= self.handling.batch.size

    def take(self) -> list[Delivery]:
        """The batch so far."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        gathered, self.gathered = self.gathered, []
        return gathered
