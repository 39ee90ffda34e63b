"""Keys that are held back because an event of theirs is dead."""

from __future__ import annotations

import asyncio

from polywire.bus.core.log import EventLog, Record
from polywire.clock import Clock

MAX_LETTERS = 10_000
"""Dead letters of a topic that are looked through."""
REFRESH = 5.0
"""Seconds after which a parked key is looked up again: its dead letters may have been retried or dropped."""


class Parks:
    """Which keys of a group are parked. The group's dead letters say so: a key is parked while it has any.

    So every member knows the same after a restart or a rebalance, and retrying or dropping the dead letters lets the
    key go on.
    """

    def __init__(self, log: EventLog, group: str, clock: Clock) -> None:
        self._log = log
        self._group = group
        self._clock = clock
        self._keys: dict[str, set[str]] = {}
        self._looked: dict[str, float] = {}
        self._epochs: dict[tuple[str, int], int] = {}
        self._lock = asyncio.Lock()

    async def holds(self, record: Record) -> bool:
        """Whether the key of *record* is parked. Raises what the backend raises."""
        key = record.envelope.key
        if key is None or record.retried:
            return False
        if self._stale(record, key):
            async with self._lock:
                if self._stale(record, key):
                    await self._look(record)
        return key in self._keys[record.topic]

    def add(self, record: Record) -> None:
        if record.envelope.key is not None:
            self._keys.setdefault(record.topic, set()).add(record.envelope.key)

    def _stale(self, record: Record, key: str) -> bool:
        if self._epochs.get((record.topic, record.partition)) != record.epoch:
            return True  # another member had the partition, and may have parked it
        if key not in self._keys[record.topic]:
            return False
        return self._clock.monotonic() >= self._looked[record.topic] + REFRESH

    async def _look(self, record: Record) -> None:
        topic = record.topic
        self._keys[topic] = set()
        letters = await self._log.dead(topic, self._group, limit=MAX_LETTERS)
        # Those added meanwhile are in there already.
        self._keys[topic] |= {letter.envelope.key for letter in letters if letter.envelope.key is not None}
        self._looked[topic] = self._clock.monotonic()
        self._epochs[topic, record.partition] = record.epoch
