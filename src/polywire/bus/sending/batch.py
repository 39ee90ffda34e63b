"""Messages that are sent together, and what became of each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from polywire.bus.core import Envelope, new_id
from polywire.bus.sending.target import Target
from polywire.clock import Clock
from polywire.errors import PartlySent

CHUNK_BYTES = 8 * 1024 * 1024
"""Of bodies that are handed to a backend at a time, but for the last one."""


class Batch:
    """Of one call, by index."""

    def __init__(self, count: int, ids: Sequence[str] | None, clock: Clock) -> None:
        if ids is not None and len(ids) != count:
            raise ValueError(f"nothing was sent: there are {len(ids)} ids for {count} messages")
        self.ids = [new_id(clock.time()) for _ in range(count)] if ids is None else list(ids)
        self.errors: dict[int, Exception] = {}
        self._added: list[tuple[int, Target, Envelope]] = []

    def add(self, index: int, target: Target, envelope: Envelope) -> None:
        self._added.append((index, target, envelope))

    def chunks(self, limit: int) -> Iterable[tuple[Target, list[int], list[Envelope]]]:
        """In order, neighbours with one target together, at most *limit* of them and about 8 MiB."""
        places: list[int] = []
        envelopes: list[Envelope] = []
        size = 0
        last: Target | None = None
        for index, target, envelope in self._added:
            full = len(places) >= limit or size >= CHUNK_BYTES
            if last is not None and (full or target is not last):
                yield last, places, envelopes
                places, envelopes, size = [], [], 0
            places.append(index)
            envelopes.append(envelope)
            size += len(envelope.body)
            last = target
        if last is not None:
            yield last, places, envelopes

    def finished(self) -> list[str]:
        """The ids. Raises PartlySent where some were not confirmed."""
        if self.errors:
            raise PartlySent(dict(sorted(self.errors.items())), ids=self.ids)
        return self.ids
