"""Records that have to be handled one after the other, and those that need not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from polywire.bus.consumer.kinds import Kind
from polywire.bus.core.log import Record
from polywire.clock import Timer

LaneKey = tuple[Any, ...]


class Lane:
    """Records of one key, in order; of one partition where they are handled in batches; or one record by itself."""

    __slots__ = ("key", "kind", "queued", "records", "singles", "timer", "under_way")

    def __init__(self, key: LaneKey | None, kind: Kind) -> None:
        self.key = key
        """None for one record by itself."""
        self.kind = kind
        """Of the first record; others of the same key may be of another."""
        self.records: list[Record] = []
        self.under_way = 0
        """How many of the first ones are being handled."""
        self.queued = False
        """It waits to be started."""
        self.timer: Timer | None = None
        """Its first record is handled again when it rings, or its batch is complete enough."""
        self.singles = 0
        """So many of its records are handled alone, because they failed in company."""

    @property
    def idle(self) -> bool:
        """Nobody looks after it: it can be queued."""
        return not self.queued and not self.under_way and self.timer is None

    def stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def drop(self, which: Callable[[Record], bool]) -> int:
        """Take out what fits and is not being handled. How many there were."""
        kept = [r for place, r in enumerate(self.records) if place < self.under_way or not which(r)]
        dropped = len(self.records) - len(kept)
        self.records = kept
        if dropped and not self.under_way:
            self.stop_timer()
        return dropped


class Lanes:
    """All lanes with something in them."""

    def __init__(self) -> None:
        self._by_key: dict[LaneKey, Lane] = {}
        self._all: set[Lane] = set()

    def __len__(self) -> int:
        return len(self._all)

    def add(self, record: Record, kind: Kind) -> Lane:
        """Put *record* behind those it has to wait for."""
        key = _key_of(record, kind)
        lane = None if key is None else self._by_key.get(key)
        if lane is None:
            lane = Lane(key, kind)
            self._all.add(lane)
            if key is not None:
                self._by_key[key] = lane
        lane.records.append(record)
        return lane

    def forget(self, lane: Lane) -> None:
        """It is empty, and nothing of it is being handled."""
        self._all.discard(lane)
        if lane.key is not None and self._by_key.get(lane.key) is lane:
            del self._by_key[lane.key]

    def drop(self, which: Callable[[Record], bool]) -> tuple[int, list[Lane]]:
        """Take out what fits and is not being handled: how many there were, and in which lanes."""
        count = 0
        touched = []
        for lane in self._all:
            dropped = lane.drop(which)
            if dropped:
                count += dropped
                touched.append(lane)
        return count, touched

    def __iter__(self) -> Iterator[Lane]:
        return iter(tuple(self._all))


def _key_of(record: Record, kind: Kind) -> LaneKey | None:
    # What comes from the retries has no place in the order of its partition.
    key, partition = record.envelope.key, -1 if record.retried else record.partition
    if kind.handling.batch is not None and not record.retried:
        return record.topic, partition, kind
    return None if key is None else (record.topic, partition, key)
