"""Event logs in one process: partitions, groups, rebalancing, retries and dead letters per group."""

from __future__ import annotations

import asyncio
import heapq
import zlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from polywire.bus.backend.memory.space import space_at
from polywire.bus.core.checks import (
    checked_name,
    differences,
    not_there,
    refuse_differences,
    too_large,
    undeclared,
    would_create_group,
    would_create_topic,
    would_refuse,
)
from polywire.bus.core.envelope import Envelope, new_id, unpack
from polywire.bus.core.guarantees import Guarantees
from polywire.bus.core.log import GroupSpec, GroupStats, Partition, Record, Revoking, Seek, TopicSpec
from polywire.bus.core.queue import EVERY_DEAD, Bury, DeadFilter, DeadLetter, RetryAfter
from polywire.clock import SYSTEM_CLOCK, Clock, Timer
from polywire.errors import BackendLost, ConsumerClosed, MessageRefused, SetupError, UndecodableMessage

MAX_EVENTS = 1_000_000
"""Per partition; more are refused when they are appended."""
MAX_ERROR = 2000
"""Characters kept of the error of a dead letter."""
REBALANCE_TIMEOUT = 10.0
"""Seconds; half of them is what a member has to finish what it does with a partition that goes to another one."""
AHEAD = 1000
"""Records per partition that are read behind one that is not done, where `limit` is not more."""
APPENDS_PER_TURN = 16
"""Calls of `append` after which others get a turn, as nothing here ever waits for a network."""


@dataclass(slots=True)
class _Entry:
    envelope: Envelope
    time: float
    """When it was appended, in seconds since the epoch."""
    unreadable: str | None = None


class _Shelf:
    """What is kept of one partition."""

    def __init__(self) -> None:
        self.entries: list[_Entry] = []
        self.base = 0
        """The offset of the first one that is kept."""

    @property
    def end(self) -> int:
        return self.base + len(self.entries)

    def forget(self, count: int) -> int:
        """Returns how many bytes that were."""
        size = sum(len(entry.envelope.body) for entry in self.entries[:count])
        del self.entries[:count]
        self.base += count
        return size


class _Topic:
    def __init__(self, spec: TopicSpec, clock: Clock) -> None:
        self.spec = spec
        self.shelves = [_Shelf() for _ in range(spec.partitions)]
        self.groups: dict[str, _Group] = {}
        self._clock = clock
        self._bytes = 0
        self._next = 0

    def append(self, entry: _Entry) -> bool:
        """Whether there was room for it."""
        number = self._number(entry.envelope.key)
        shelf = self.shelves[number]
        if len(shelf.entries) >= MAX_EVENTS:
            self.expire()
            if len(shelf.entries) >= MAX_EVENTS:
                return False
        shelf.entries.append(entry)
        self._bytes += len(entry.envelope.body)
        if self.spec.retention_bytes is not None and self._bytes > self.spec.retention_bytes:
            self._shrink(self.spec.retention_bytes)
        for group in self.groups.values():
            owner = group.shares[number].owner
            if owner is not None:
                owner.wake()
        return True

    def _number(self, key: str | None) -> int:
        if key is not None:
            return zlib.crc32(key.encode()) % len(self.shelves)
        self._next += 1
        return self._next % len(self.shelves)

    def expire(self) -> None:
        """Forget what is older than the retention."""
        if self.spec.retention is None:
            return
        oldest = self._clock.time() - self.spec.retention
        for shelf in self.shelves:
            count = 0
            while count < len(shelf.entries) and shelf.entries[count].time < oldest:
                count += 1
            if count:
                self._bytes -= shelf.forget(count)

    def _shrink(self, limit: int) -> None:
        while self._bytes > limit:
            kept = [shelf for shelf in self.shelves if shelf.entries]
            self._bytes -= min(kept, key=lambda shelf: shelf.entries[0].time).forget(1)


class _Share:
    """What a group knows of one partition."""

    def __init__(self, partition: Partition, shelf: _Shelf, start: int) -> None:
        self.partition = partition
        self.shelf = shelf
        self.owner: MemoryLogConsumer | None = None
        self.epoch = 0
        self.revoking = False
        self.watermark = self.position = start
        """All before the first is done; the second is the next to be read."""
        self.done: set[int] = set()
        """Of what lies between them."""
        self.lost: dict[int, int] = {}
        """How often a worker died with it, by offset."""

    def room(self, limit: int) -> int:
        """How many more of it a member with this limit may hold."""
        read = self.position - self.watermark
        return min(limit - (read - len(self.done)), max(limit, AHEAD) - read)

    def skip_forgotten(self) -> None:
        """Go on at the oldest one kept, where the retention was faster than the group."""
        if self.position < self.shelf.base:
            self.position = self.shelf.base
        if self.watermark < self.shelf.base and not self.position > self.shelf.base:
            self.go_to(self.shelf.base)

    def finish(self, offset: int) -> None:
        if offset < self.watermark:
            return
        self.done.add(offset)
        while self.watermark in self.done:
            self.done.discard(self.watermark)
            self.lost.pop(self.watermark, None)
            self.watermark += 1

    def go_to(self, offset: int) -> None:
        self.watermark = self.position = offset
        self.done.clear()

    def give_to(self, member: MemoryLogConsumer) -> None:
        self.owner = member
        self.epoch += 1
        self.revoking = False

    def give_up(self) -> None:
        """What is not done is read again by the next one: all behind the watermark."""
        self.owner = None
        self.epoch += 1
        self.revoking = False
        self.go_to(self.watermark)

    def lose(self) -> None:
        """Its worker is dead, perhaps by what it held. What it held first is held against it each time, the others
        only once: they may have waited behind it."""
        held = [offset for offset in range(self.watermark, self.position) if offset not in self.done]
        for offset in held:
            self.lost[offset] = self.lost.get(offset, 0) + 1 if offset == held[0] else max(self.lost.get(offset, 0), 1)
        self.give_up()


class _Copy:
    """An event among the retries of a group."""

    __slots__ = ("due", "entry", "lost", "offset", "partition", "starts")

    def __init__(self, partition: int, offset: int, entry: _Entry, starts: int, lost: int) -> None:
        self.partition = partition
        self.offset = offset
        self.entry = entry
        self.starts = starts
        self.lost = lost
        self.due = 0.0


class _Group:
    """One group of one topic: who reads which partition, its retries and its dead letters."""

    def __init__(self, spec: GroupSpec, topic: _Topic, clock: Clock) -> None:
        self.spec = spec
        self.topic = topic
        self.generation = 0
        self.dead: dict[str, DeadLetter] = {}
        self.members: list[MemoryLogConsumer] = []
        self.copies: deque[_Copy] = deque()
        self._clock = clock
        self._later: list[tuple[float, int, _Copy]] = []
        self._numbers = 0
        self._timer: Timer | None = None
        self.shares = [
            _Share((topic.spec.name, number), shelf, shelf.end if spec.start == "latest" else shelf.base)
            for number, shelf in enumerate(topic.shelves)
        ]

    # ---- who reads what ---------------------------------------------------------------------------------------------

    def rebalance(self) -> None:
        """Give every member its part. What goes from one to another is revoked first, and given away after that."""
        quotas = self._quotas()
        for member, quota in quotas.items():
            surplus = self._of(member)[quota:]
            if surplus:
                for share in surplus:
                    share.revoking = True
                member.revoke(self, surplus)
        free = [share for share in self.shares if share.owner is None]
        for member, quota in quotas.items():
            missing = max(0, quota - len(self._of(member)))
            for share in free[:missing]:
                share.give_to(member)
            if missing:
                del free[:missing]
                member.wake()

    def _quotas(self) -> dict[MemoryLogConsumer, int]:
        """As even as it gets; who has more keeps more."""
        if not self.members:
            return {}
        ranked = sorted(self.members, key=lambda member: -len(self._of(member)))
        part, rest = divmod(len(self.shares), len(ranked))
        return {member: part + (place < rest) for place, member in enumerate(ranked)}

    def _of(self, member: MemoryLogConsumer) -> list[_Share]:
        return [share for share in self.shares if share.owner is member and not share.revoking]

    # ---- retries ----------------------------------------------------------------------------------------------------

    def retry(self, copy: _Copy, delay: float) -> None:
        if delay <= 0:
            self.offer(copy)
            return
        self._numbers += 1
        copy.due = self._clock.monotonic() + delay
        heapq.heappush(self._later, (copy.due, self._numbers, copy))
        self.arm()

    def offer(self, copy: _Copy, *, first: bool = False) -> None:
        if first:
            self.copies.appendleft(copy)
        else:
            self.copies.append(copy)
        for member in self.members:
            member.wake()

    def arm(self) -> None:
        self.disarm()
        if self._later:
            delay = max(self._later[0][0] - self._clock.monotonic(), 0.0)
            self._timer = self._clock.call_later(delay, self._ring)

    def disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ring(self) -> None:
        self._timer = None
        now = self._clock.monotonic()
        while self._later and self._later[0][0] <= now:
            self.offer(heapq.heappop(self._later)[2])
        self.arm()

    # ---- dead letters -----------------------------------------------------------------------------------------------

    def bury(self, record: Record, outcome: Bury) -> None:
        self._numbers += 1
        # The same event can be buried again, after a replay.
        position = f"{record.position}#{self._numbers}"
        self.dead[position] = DeadLetter(
            queue=f"{self.spec.topic}.{self.spec.group}",
            envelope=record.stamped,
            reason=outcome.reason,
            error=outcome.error[:MAX_ERROR],
            attempts=record.attempt,
            died=self._clock.time(),
            position=position,
        )

    def revive(self, letters: Sequence[DeadLetter]) -> int:
        found = [letter for letter in letters if letter.position in self.dead]
        for letter in found:
            kept = self.dead.pop(letter.position).envelope
            again = msgspec.structs.replace(kept, attempt=0, lost=0, redrive_count=kept.redrive_count + 1)
            partition, _, rest = letter.position.rpartition("/")[2].partition("@")
            offset = int(rest.partition("#")[0])
            self.offer(_Copy(int(partition), offset, _Entry(again, self._clock.time()), 0, 0))
        return len(found)

    def drop(self, letters: Sequence[DeadLetter]) -> int:
        return sum(self.dead.pop(letter.position, None) is not None for letter in letters)

    # ---- positions --------------------------------------------------------------------------------------------------

    def seek(self, to: Seek) -> None:
        goal = {n: self._offset(to, n, share.shelf) for n, share in enumerate(self.shares)}
        if any(offset is not None for offset in goal.values()):
            self.raise_generation()
        for number, share in enumerate(self.shares):
            offset = goal[number]
            if offset is None:
                continue
            share.go_to(min(max(offset, share.shelf.base), share.shelf.end))
            share.lost.clear()
            # What its member holds was read before; it shall not count any more.
            share.epoch += 1
            if share.owner is not None:
                share.owner.wake()

    def raise_generation(self) -> None:
        self.generation += 1

    def _offset(self, to: Seek, number: int, shelf: _Shelf) -> int | None:
        if to.time is not None:
            time = to.time
            return next((shelf.base + i for i, entry in enumerate(shelf.entries) if entry.time >= time), shelf.end)
        if to.offsets is not None:
            return to.offsets.get(number)
        return shelf.end if to.latest else shelf.base

    def stats(self) -> GroupStats:
        self.topic.expire()
        behind = {n: share.shelf.end - max(share.watermark, share.shelf.base) for n, share in enumerate(self.shares)}
        waiting = [
            share.shelf.entries[max(share.watermark - share.shelf.base, 0)].time
            for number, share in enumerate(self.shares)
            if behind[number]
        ]
        return GroupStats(
            topic=self.spec.topic,
            group=self.spec.group,
            lag=sum(behind.values()),
            by_partition=behind,
            members=len(self.members),
            oldest=self._clock.time() - min(waiting) if waiting else None,
        )


class MemoryLogConsumer:
    """A member of a group in memory. `kill` is for tests of what happens then."""

    def __init__(self, groups: Sequence[_Group], limit: int, revoking: Revoking | None, clock: Clock) -> None:
        self._groups = groups
        self._limit = limit
        self._told = revoking
        self._clock = clock
        self._copies: dict[Record, _Copy] = {}
        self._paused: set[Partition] = set()
        self._waiting: set[asyncio.Future[None]] = set()
        self._revocations: set[asyncio.Task[None]] = set()
        self._ended: BaseException | None = None
        self._turn = 0
        self._name = groups[0].spec.group
        for group in groups:
            group.members.append(self)
            group.rebalance()

    @property
    def assigned(self) -> frozenset[Partition]:
        return frozenset(share.partition for share in self._shares())

    def _shares(self) -> list[_Share]:
        return [share for group in self._groups for share in group.shares if share.owner is self]

    # ---- receiving --------------------------------------------------------------------------------------------------

    async def receive(self, limit: int) -> list[Record]:
        # Nothing here waits while there is work; others shall have a turn nevertheless.
        await asyncio.sleep(0)
        while self._ended is None:
            taken = self._take_copies(limit)
            taken += self._take(limit - len(taken))
            if taken:
                return taken
            await self._something()
        raise self._ended.with_traceback(None)

    async def _something(self) -> None:
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(woken)
        try:
            await woken
        finally:
            self._waiting.discard(woken)

    def wake(self) -> None:
        for woken in self._waiting:
            if not woken.done():
                woken.set_result(None)

    def _take(self, limit: int) -> list[Record]:
        shares = [share for share in self._shares() if not share.revoking and share.partition not in self._paused]
        taken: list[Record] = []
        # Each time another partition comes first, so that a busy one does not starve the others.
        self._turn += 1
        for place in range(len(shares)):
            share = shares[(place + self._turn) % len(shares)]
            share.skip_forgotten()
            count = min(limit - len(taken), share.room(self._limit), share.shelf.end - share.position)
            generation = self._group(share.partition[0]).generation
            for offset in range(share.position, share.position + count):
                if offset not in share.done:
                    taken.append(self._record(share, offset, generation))
            share.position += max(count, 0)
        return taken

    def _record(self, share: _Share, offset: int, generation: int) -> Record:
        entry = share.shelf.entries[offset - share.shelf.base]
        lost = share.lost.get(offset, 0)
        topic, number = share.partition
        return Record(
            topic, number, offset, entry.envelope, share.epoch, lost + 1, lost, False, entry.unreadable, generation
        )

    def _take_copies(self, limit: int) -> list[Record]:
        taken: list[Record] = []
        for group in self._groups:
            for _ in range(len(group.copies)):
                if len(taken) >= limit or len(self._copies) >= self._limit:
                    return taken
                copy = group.copies.popleft()
                if (group.spec.topic, copy.partition) in self._paused:
                    group.copies.append(copy)
                    continue
                taken.append(self._hold(group, copy))
        return taken

    def _hold(self, group: _Group, copy: _Copy) -> Record:
        entry = copy.entry
        envelope = msgspec.structs.replace(entry.envelope, attempt=copy.starts, lost=copy.lost)
        topic = group.spec.topic
        record = Record(topic, copy.partition, copy.offset, envelope, 0, copy.starts + 1, copy.lost, True)
        record.unreadable = entry.unreadable
        record.generation = envelope.generation
        self._copies[record] = copy
        return record

    # ---- settling ---------------------------------------------------------------------------------------------------

    async def done(self, records: Sequence[Record]) -> None:
        for record in records:
            self._finish(record)
        self.wake()

    async def retry(self, record: Record, outcome: RetryAfter) -> None:
        if not self._holds(record):
            return
        entry = _Entry(record.stamped, self._clock.time(), record.unreadable)
        copy = _Copy(record.partition, record.offset, entry, record.attempt, record.lost)
        self._group(record.topic).retry(copy, outcome.delay)
        await self.done([record])

    async def bury(self, record: Record, outcome: Bury) -> None:
        if not self._holds(record):
            return
        self._group(record.topic).bury(record, outcome)
        await self.done([record])

    def _finish(self, record: Record) -> None:
        if record.retried:
            self._copies.pop(record, None)
        elif self._holds(record):
            self._share(record).finish(record.offset)

    def _holds(self, record: Record) -> bool:
        if record.retried:
            return record in self._copies
        share = self._share(record)
        return share.owner is self and share.epoch == record.epoch and share.watermark <= record.offset

    def _share(self, record: Record) -> _Share:
        return self._group(record.topic).shares[record.partition]

    def _group(self, topic: str) -> _Group:
        return next(group for group in self._groups if group.spec.topic == topic)

    def pause(self, partitions: Sequence[Partition]) -> None:
        self._paused.update(partitions)

    def resume(self, partitions: Sequence[Partition]) -> None:
        self._paused.difference_update(partitions)
        self.wake()

    # ---- leaving ----------------------------------------------------------------------------------------------------

    def revoke(self, group: _Group, shares: Sequence[_Share]) -> None:
        """Give these up, once who reads them was told."""
        task = asyncio.get_running_loop().create_task(self._revoke(group, shares))
        self._revocations.add(task)
        task.add_done_callback(self._revocations.discard)

    async def _revoke(self, group: _Group, shares: Sequence[_Share]) -> None:
        await self._tell(frozenset(share.partition for share in shares))
        for share in shares:
            if share.owner is self and share.revoking:
                self._paused.discard(share.partition)
                share.give_up()
        group.rebalance()

    async def _tell(self, partitions: frozenset[Partition]) -> None:
        if self._told is None:
            return
        told = asyncio.ensure_future(self._told(partitions))
        timer = self._clock.call_later(REBALANCE_TIMEOUT / 2, told.cancel)
        try:
            await asyncio.wait([told])
        finally:
            timer.cancel()
            told.cancel()
        if not told.cancelled() and (error := told.exception()) is not None:
            # It is for whoever consumes: nobody else waits for what is told here.
            self._end(error)

    async def close(self) -> None:
        closed = ConsumerClosed(f"Nothing was received by the group {self._name!r}: the consumer was closed.")
        if not self._leave(closed):
            return
        own = asyncio.current_task()
        for task in [task for task in self._revocations if task is not own]:
            task.cancel()
            await asyncio.wait([task])

    def kill(self) -> None:
        """End as a killed process does, or as one whose connection breaks: nothing more is committed."""
        if self._copies:
            oldest = next(iter(self._copies.values()))
            oldest.lost += 1
            oldest.starts += 1
        died = BackendLost(f"Nothing was received by the group {self._name!r}: the worker is dead.")
        self._leave(died, dead=True)
        for task in self._revocations:
            task.cancel()

    def _leave(self, reason: BaseException, *, dead: bool = False) -> bool:
        """Whether it had not left before."""
        self._end(reason)
        if self not in self._groups[0].members:
            return False
        for share in self._shares():
            if dead:
                share.lose()
            else:
                share.give_up()
        copies, self._copies = self._copies, {}
        for record, copy in reversed(copies.items()):
            self._group(record.topic).offer(copy, first=True)
        for group in self._groups:
            group.members.remove(self)
            group.rebalance()
        return True

    def _end(self, reason: BaseException) -> None:
        """The first reason counts."""
        self._ended = self._ended or reason
        self.wake()


@dataclass(eq=False)
class _Space:
    clock: Clock
    topics: dict[str, _Topic]
    open: int = 0

    @property
    def groups(self) -> list[_Group]:
        return [group for topic in self.topics.values() for group in topic.groups.values()]


class MemoryLog:
    """Event logs in this process. Two with the same `memory:NAME` share their topics while one of them is there."""

    def __init__(self, url: str = "memory:", *, clock: Clock = SYSTEM_CLOCK) -> None:
        self.guarantees = Guarantees(
            backend="memory",
            durable=False,
            shared=False,
            max_message_bytes=16 * 1024 * 1024,
            key_order=True,
            replay=True,
        )
        self._url = url
        self._clock = clock
        self._space = space_at(url, clock, lambda clock: _Space(clock, {}))
        self._consumers: list[MemoryLogConsumer] = []
        self._open = False
        self._appends = 0

    @property
    def connected(self) -> bool:
        return self._open

    async def start(self) -> None:
        if not self._open:
            self._open = True
            self._space.open += 1
            for group in self._space.groups:
                # A timer of another event loop rings no more.
                group.arm()

    async def close(self) -> None:
        if not self._open:
            return
        self._open = False
        for consumer in self._consumers:
            await consumer.close()
        self._space.open -= 1
        if not self._space.open:
            for group in self._space.groups:
                group.disarm()

    def cut(self) -> None:
        """Lose all connections, as when a server is killed: members hear of it, and what they held is read again."""
        for consumer in self._consumers:
            consumer.kill()
        self._consumers.clear()

    # ---- declaring --------------------------------------------------------------------------------------------------

    async def declare(self, topics: Sequence[TopicSpec], groups: Sequence[GroupSpec] = ()) -> None:
        self._check_names(topics, groups)
        refuse_differences(self._differences(topics, groups))
        for topic in topics:
            self._space.topics.setdefault(topic.name, _Topic(topic, self._clock))
        for spec in groups:
            found = self._space.topics.get(spec.topic)
            if found is None:
                raise SetupError(f"The group {spec.group!r} was not declared: there is no topic {spec.topic!r}.")
            found.groups.setdefault(spec.group, _Group(spec, found, self._clock))

    async def check(self, topics: Sequence[TopicSpec], groups: Sequence[GroupSpec] = ()) -> list[str]:
        self._check_names(topics, groups)
        new = [topic for topic in topics if topic.name not in self._space.topics]
        missing = [would_create_topic(topic.name, topic.partitions) for topic in new]
        missing += [would_create_group(spec.group, spec.topic) for spec in groups if self._found(spec) is None]
        return [*missing, *would_refuse(self._differences(topics, groups))]

    def _found(self, spec: GroupSpec) -> _Group | None:
        topic = self._space.topics.get(spec.topic)
        return None if topic is None else topic.groups.get(spec.group)

    def _check_names(self, topics: Sequence[TopicSpec], groups: Sequence[GroupSpec]) -> None:
        for topic in topics:
            checked_name("topic", topic.name)
            if topic.partitions < 1:
                raise SetupError(f"The topic {topic.name!r} was not declared: it has {topic.partitions} partitions.")
        for spec in groups:
            checked_name("group", spec.group)
            if spec.start not in ("earliest", "latest"):
                raise SetupError(
                    f"The group {spec.group!r} of the topic {spec.topic!r} was not declared: it starts at "
                    f"{spec.start!r}. Choose 'earliest' or 'latest'."
                )

    def _differences(self, topics: Sequence[TopicSpec], groups: Sequence[GroupSpec]) -> list[str]:
        lines: list[str] = []
        for topic in topics:
            kept = self._space.topics.get(topic.name)
            lines += [] if kept is None else differences(f"topic {topic.name!r}", topic, kept.spec)
        for spec in groups:
            found = self._found(spec)
            where = f"group {spec.group!r} of the topic {spec.topic!r}"
            lines += [] if found is None else differences(where, spec, found.spec)
        return lines

    # ---- appending --------------------------------------------------------------------------------------------------

    async def append(
        self, topic: str, envelopes: Sequence[Envelope], *, timeout: float | None = None
    ) -> list[Exception | None]:
        self._appends += 1
        if self._appends % APPENDS_PER_TURN == 0:
            await asyncio.sleep(0)
        found = self._space.topics.get(topic)
        now = self._clock.time()
        return [self._append(topic, found, envelope, now) for envelope in envelopes]

    def _append(self, name: str, topic: _Topic | None, envelope: Envelope, now: float) -> Exception | None:
        if not self._open:
            return MessageRefused(
                f"The message {envelope.id!r} was not sent to the topic {name!r}: {self._url!r} is not open."
            )
        if topic is None:
            return undeclared(envelope, f"topic {name!r}")
        refused = too_large(envelope, f"topic {name!r}", self.guarantees.max_message_bytes)
        if refused is None and not topic.append(_Entry(envelope, now)):
            return MessageRefused(
                f"The message {envelope.id!r} was not sent: its partition of the topic {name!r} is full, with "
                f"{MAX_EVENTS} events. Shorten the retention."
            )
        return refused

    def inject(self, topic: str, data: bytes) -> None:
        """Append bytes to a topic as a foreign sender would, readable or not."""
        now = self._clock.time()
        try:
            self._topic(topic).append(_Entry(unpack(data), now))
        except UndecodableMessage as error:
            self._topic(topic).append(_Entry(Envelope(new_id(now), "", data), now, str(error)))

    # ---- consuming and looking --------------------------------------------------------------------------------------

    async def consumer(
        self, topics: Sequence[str], group: str, *, limit: int, revoking: Revoking | None = None
    ) -> MemoryLogConsumer:
        if not topics:
            raise SetupError(f"The group {group!r} was not joined: it names no topic.")
        made = MemoryLogConsumer([self._group(topic, group) for topic in topics], limit, revoking, self._clock)
        self._consumers = [consumer for consumer in self._consumers if consumer._ended is None]
        self._consumers.append(made)
        return made

    def _topic(self, name: str) -> _Topic:
        if not self._open:
            raise BackendLost(f"The topic {name!r} was not reached: {self._url!r} is not open.")
        found = self._space.topics.get(name)
        if found is None:
            raise not_there(f"topic {name!r}")
        found.expire()
        return found

    def _group(self, topic: str, group: str) -> _Group:
        found = self._topic(topic).groups.get(group)
        if found is None:
            raise not_there(f"group {group!r} of the topic {topic!r}")
        return found

    async def stats(self, topic: str, group: str) -> GroupStats:
        return self._group(topic, group).stats()

    async def groups(self, topic: str) -> list[str]:
        return sorted(self._topic(topic).groups)

    async def read(self, topic: str, partition: int, offset: int, limit: int) -> list[Record]:
        shelves = self._topic(topic).shelves
        if not 0 <= partition < len(shelves):
            raise not_there(f"partition {partition} of the topic {topic!r}")
        shelf = shelves[partition]
        first = max(offset, shelf.base)
        kept = shelf.entries[first - shelf.base : first - shelf.base + max(limit, 0)]
        return [
            Record(topic, partition, first + place, entry.envelope, unreadable=entry.unreadable)
            for place, entry in enumerate(kept)
        ]

    async def seek(self, topic: str, group: str, to: Seek) -> None:
        given = sum((to.time is not None, to.offsets is not None, to.earliest, to.latest))
        if given != 1:
            raise ValueError(f"Seek takes exactly one of time, offsets, earliest and latest; it was given {given}.")
        self._group(topic, group).seek(to)

    async def dead(
        self, topic: str, group: str, which: DeadFilter = EVERY_DEAD, *, limit: int = 100
    ) -> list[DeadLetter]:
        return [letter for letter in self._group(topic, group).dead.values() if which.fits(letter)][:limit]

    async def revive(self, topic: str, group: str, letters: Sequence[DeadLetter]) -> int:
        return self._group(topic, group).revive(letters)

    async def drop(self, topic: str, group: str, letters: Sequence[DeadLetter]) -> int:
        return self._group(topic, group).drop(letters)
