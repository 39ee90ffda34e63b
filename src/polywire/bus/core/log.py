"""The seam of event logs: append, assign, read, commit, seek."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import msgspec

from polywire.bus.core.envelope import Envelope
from polywire.bus.core.guarantees import Guarantees
from polywire.bus.core.queue import EVERY_DEAD, Bury, DeadFilter, DeadLetter, RetryAfter

Partition = tuple[str, int]
"""Topic and number."""
Revoking = Callable[[frozenset[Partition]], Awaitable[None]]
"""Told which partitions are about to go to another member."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicSpec:
    """A topic as it is declared, the same by everybody who uses it."""

    name: str
    partitions: int = 8
    retention: float | None = 7 * 24 * 3600.0
    """Seconds after which an event may be forgotten; None keeps it for ever."""
    retention_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSpec:
    """A consumer group of a topic: every event goes to one member of each group."""

    topic: str
    group: str
    start: str = "earliest"
    """Where a group begins that never committed: `earliest` or `latest`."""
    lost_limit: int = 3


@dataclass(slots=True, eq=False)
class Record:
    """An event as one group reads it. Compared by identity."""

    topic: str
    partition: int
    offset: int
    envelope: Envelope
    epoch: int = 0
    """Of the assignment under which it was read: completions of an older one do not count."""
    attempt: int = 1
    lost: int = 0
    retried: bool = False
    """It comes from the group's own retries, where it was put by `retry`; it is settled by `done`, and has no place in
    the order of its topic."""
    unreadable: str | None = None
    generation: int = 0
    """Of the group when it was read: 0 until its first `seek`, which raises it by one, as every other one does. What
    the inbox remembers of an older one does not count, so that what is replayed has its effects once more. Copies among
    retries and dead letters keep theirs."""

    @property
    def position(self) -> str:
        return f"{self.topic}/{self.partition}@{self.offset}"

    @property
    def stamped(self) -> Envelope:
        """The envelope as copies carry it: with the generation under which it was read, whatever its sender said."""
        if self.envelope.generation == self.generation:
            return self.envelope
        return msgspec.structs.replace(self.envelope, generation=self.generation)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupStats:
    topic: str
    group: str
    lag: int
    """Events not yet done, over all partitions."""
    by_partition: Mapping[int, int]
    members: int | None = None
    oldest: float | None = None
    """Seconds since the oldest event not yet done was published, None where there is none or nobody can tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seek:
    """Where a group goes on: exactly one of these. *offsets* by partition; *time* in seconds since the epoch."""

    time: float | None = None
    offsets: Mapping[int, int] | None = None
    earliest: bool = False
    latest: bool = False


class LogConsumer(Protocol):
    """One member of a group. `polywire.testing.logs.LogSuite` checks all of this.

    * Partitions are assigned to members of the group so that each is with one of them at a time, but for the moment in
      which a member that seems dead still works: the effects behind an inbox happen once nevertheless.
    * `receive` returns records of a partition in the order of their offsets. Cancelling it loses nothing.
    * Only the contiguous part of what was done is committed: `done` may come in any order, the member keeps the
      watermark per partition, and what lies behind a gap is read again after a restart.
    * `done` of an older epoch is ignored. When a partition is revoked, `revoking` is awaited first, for at most half
      the rebalance timeout, so that handlers can finish; then its watermark is committed, and it is given up. Where it
      was lost without notice nothing is committed.
    * What was read ahead is bounded per partition: `receive` does not go on far behind a record that is not done.
    """

    async def receive(self, limit: int) -> list[Record]:
        """At least one and at most *limit* records. Raises ConsumerClosed after `close`, BackendLost."""
        ...

    async def done(self, records: Sequence[Record]) -> None:
        """These need not be read again."""

    async def retry(self, record: Record, outcome: RetryAfter) -> None:
        """Put a copy into the group's own retries, durably, and then count the record as done. For records without a
        key; those with one are tried again in place."""

    async def bury(self, record: Record, outcome: Bury) -> None:
        """Put a copy into the group's dead letters, durably, and then count the record as done."""

    def pause(self, partitions: Sequence[Partition]) -> None: ...

    def resume(self, partitions: Sequence[Partition]) -> None: ...

    @property
    def assigned(self) -> frozenset[Partition]: ...

    async def close(self) -> None:
        """Commit the watermarks and leave the group. May be called twice, and during `receive`."""


@runtime_checkable
class ToldOfStarts(Protocol):
    """A LogConsumer that wants to know when suspects are handled: of a crash at any other time they are innocent."""

    async def starting(self, record: Record) -> None:
        """The handler of *record*, whose `lost` is not 0, is about to run. Raises BackendLost."""

    async def stopped(self, record: Record) -> None:
        """It failed, and waits to be handled again. Raises BackendLost."""


class EventLog(Protocol):
    """A backend for events. Opened by `start`, used from one event loop.

    * `append` puts events of one key into one partition, in the order of the calls, and returns as `TaskQueue.send`.
    * A new group starts where its GroupSpec says, with the generation 0.
    """

    guarantees: Guarantees

    async def start(self) -> None:
        """Connect. Raises BackendUnreachable."""

    async def close(self) -> None:
        """May be called twice."""

    async def declare(self, topics: Sequence[TopicSpec], groups: Sequence[GroupSpec] = ()) -> None:
        """Create what is missing, the groups' retries and dead letters included. Raises SetupError naming each
        difference to what exists."""

    async def check(self, topics: Sequence[TopicSpec], groups: Sequence[GroupSpec] = ()) -> list[str]:
        """What `declare` would do or refuse, a line each."""
        ...

    async def append(
        self, topic: str, envelopes: Sequence[Envelope], *, timeout: float | None = None
    ) -> list[Exception | None]: ...

    async def consumer(
        self, topics: Sequence[str], group: str, *, limit: int, revoking: Revoking | None = None
    ) -> LogConsumer:
        """Holds at most *limit* records per partition that are not done."""
        ...

    @property
    def connected(self) -> bool: ...

    async def stats(self, topic: str, group: str) -> GroupStats: ...

    async def groups(self, topic: str) -> list[str]: ...

    async def read(self, topic: str, partition: int, offset: int, limit: int) -> list[Record]:
        """Look, without being in any group."""
        ...

    async def seek(self, topic: str, group: str, to: Seek) -> None:
        """Let a group go on from somewhere else, and raise its generation by one, together: no record of the new place
        is read under the old one. Nothing happens where `Seek.offsets` is empty. Raises GroupRunning where its members
        cannot be told.

        The generation is that of the whole group, of all partitions of this topic, as an event that was published twice
        can be in two of them. Where only some are named in `Seek.offsets`, what a member of the others had done and not
        committed when it was killed has its effects once more, too.
        """

    async def dead(
        self, topic: str, group: str, which: DeadFilter = EVERY_DEAD, *, limit: int = 100
    ) -> list[DeadLetter]: ...

    async def revive(self, topic: str, group: str, letters: Sequence[DeadLetter]) -> int:
        """Send dead letters to their group again, and to no other."""
        ...

    async def drop(self, topic: str, group: str, letters: Sequence[DeadLetter]) -> int: ...
