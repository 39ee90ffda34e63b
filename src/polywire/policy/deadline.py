"""When a call has to be over, and a cheap alarm for very many of them."""

from __future__ import annotations

import heapq
from typing import Protocol

from polywire.clock import SYSTEM_CLOCK, Clock, Timer

SLOTS_PER_SECOND = 256.0
"""The alarm's precision: it is never early, and late by at most one slot (4 ms)."""


class Expiring(Protocol):
    def expire(self) -> None:
        """The deadline has come. Must not raise."""


Slot = set[Expiring]
"""Alarms that are due together. Whoever set one takes it back by `slot.discard(item)`, also after it has gone off."""


class Deadlines:
    """Alarms for calls, of which nearly all are over before their time.

    A timer of the event loop for each call costs more than the rest of its book-keeping. Here an alarm is one entry in
    the set of its time slot, and there is a single timer for the earliest slot. Use one per event loop.
    """

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._slots: dict[int, Slot] = {}
        self._order: list[int] = []
        self._timer: Timer | None = None
        self._armed = 0

    def add(self, deadline: float, item: Expiring) -> Slot:
        """Call `item.expire()` at *deadline* on the clock's monotonic scale, unless it is taken out of the slot that is
        returned by then."""
        slot = int(deadline * SLOTS_PER_SECOND) + 1
        try:
            items = self._slots[slot]
        except KeyError:
            items = self._new_slot(slot)
        items.add(item)
        return items

    def _new_slot(self, slot: int) -> Slot:
        items = self._slots[slot] = set()
        heapq.heappush(self._order, slot)
        if self._timer is None or slot < self._armed:
            self._arm(slot)
        return items

    def __len__(self) -> int:
        return sum(len(items) for items in self._slots.values())

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._slots.clear()
        self._order.clear()

    def _arm(self, slot: int) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._armed = slot
        delay = slot / SLOTS_PER_SECOND - self._clock.monotonic()
        self._timer = self._clock.call_later(max(0.0, delay), self._ring)

    def _ring(self) -> None:
        self._timer = None
        now = self._clock.monotonic() * SLOTS_PER_SECOND
        while self._order and self._order[0] <= now:
            # An item may add or discard others while it expires, so the slot is taken out whole first.
            slot = self._slots.pop(heapq.heappop(self._order))
            for item in tuple(slot):
                item.expire()
            slot.clear()  # whoever is in it may have it as well
        while self._order and not self._slots[self._order[0]]:
            del self._slots[heapq.heappop(self._order)]
        if self._order and self._timer is None:
            self._arm(self._order[0])
