"""Events in a file: the embedded log, for one process or several on one machine."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import apsw

from polywire.bus.backend import sqlite_events as events
from polywire.bus.backend import sqlite_messages as messages
from polywire.bus.backend.sqlite import (
    MAX_MESSAGE_BYTES,
    Room,
    dead_letters,
    drop_letters,
    failure_of,
    not_sendable,
    refused,
    revive_letters,
)
from polywire.bus.backend.sqlite_events import Share, TeamRow, TopicRow
from polywire.bus.backend.sqlite_file import (
    PATIENCE,
    FileOptions,
    NotDone,
    PerhapsDone,
    SharedFile,
    Transaction,
    Work,
    deadline_in,
)
from polywire.bus.backend.sqlite_messages import Claimed
from polywire.bus.backend.sqlite_schema import check_name, path_of
from polywire.bus.core import (
    EVERY_DEAD,
    Bury,
    DeadFilter,
    DeadLetter,
    Envelope,
    GroupSpec,
    GroupStats,
    Guarantees,
    Partition,
    Record,
    RetryAfter,
    Seek,
    TopicSpec,
    pack,
    unpack,
)
from polywire.bus.core.log import Revoking
from polywire.clock import SYSTEM_CLOCK, Clock, Timer
from polywire.errors import (
    BackendLost,
    ConsumerClosed,
    DeliveryError,
    MessageRefused,
    SetupError,
    UndecodableMessage,
)

T = TypeVar("T")

LEASE = 15.0
"""Seconds after which the partitions of a member that gives no sign of life go to others; at once where its process
can be seen to have ended."""
REBALANCE = 30.0
"""Seconds: half of them is what handlers get to finish when a partition goes to another member."""
AHEAD = 4
"""Times the limit: how far behind an event that is not done others are read."""
RETRIES = 10
"""Of a group's own retries, fetched at a time."""
FORGET_EVERY = 5.0
"""Seconds between two looks for events that are too old, while there are none."""

logger = logging.getLogger("polywire.bus.sqlite")

GUARANTEES = Guarantees(
    backend="sqlite",
    durable=True,
    shared=True,
    max_message_bytes=MAX_MESSAGE_BYTES,
    key_order=True,
    dead_letters=True,
    replay=True,
)


class SqliteLog:
    """The topics in one file, as `polywire.bus.core.EventLog` says.

    An event with a key goes to the partition `crc32(key) % partitions`, others to all in turn. What was appended
    survives a power cut. What a group has done does not always: a power cut may have it read some events again.
    """

    def __init__(self, url: str, *, clock: Clock = SYSTEM_CLOCK, options: FileOptions | None = None) -> None:
        """*url* is `sqlite:PATH`. Raises SetupError where that is none."""
        self.path = path_of(url)
        self.guarantees = GUARANTEES
        self.clock = clock
        self._options = options or FileOptions()
        self._file: SharedFile | None = None
        self._topics: dict[str, TopicRow] = {}
        self._outgoing: _Appending | None = None
        self._room = Room()
        self._consumers: set[SqliteLogConsumer] = set()
        self._turn = 0
        self._next_forgetting = 0.0

    async def start(self) -> None:
        if self._file is not None:
            return
        file = self._file = SharedFile.open(self.path, self.clock, self._options)
        try:
            await file.started()
        except BaseException:
            self._file = None
            await file.close()
            raise
        file.takers["g"] = events.take_over
        file.chores.append(self._forget)

    async def close(self) -> None:
        for consumer in list(self._consumers):
            await consumer.close()
        file, self._file = self._file, None
        if file is not None:
            file.chores.remove(self._forget)
            await file.close()

    @property
    def connected(self) -> bool:
        return self._file is not None and self._file.connected

    @property
    def file(self) -> SharedFile:
        """Raises BackendLost before `start` and after `close`."""
        if self._file is None:
            raise BackendLost(f"The bus at {self.path!r} is not open. Call `start` first.")
        return self._file

    def _forget(self, tx: Transaction) -> None:
        """Delete what is too old, in the writer's thread."""
        now = time.monotonic()
        if now < self._next_forgetting:
            return
        more = [events.forget(tx, topic) for topic in events.all_topics(tx.connection)]
        self._next_forgetting = now if any(more) else now + FORGET_EVERY

    # ---- topics and groups ---------------------------------------------------------------------------------------

    async def declare(self, topics: Sequence[TopicSpec], groups: Sequence[GroupSpec] = ()) -> None:
        """How long events are kept is taken over; the number of partitions is never changed."""
        _check_names(topics, groups)

        def declare(tx: Transaction) -> None:
            refusals = _refusals(tx.connection, topics, groups)
            if refusals:
                raise SetupError(f"The topics in {self.path!r} were not declared: {'; '.join(refusals)}.")
            for spec in topics:
                _declare_topic(tx, spec)
            for group in groups:
                _declare_group(tx, group)

        await self._do("The topics were not declared", declare)
        self._topics.clear()

    async def check(self, topics: Sequence[TopicSpec], groups: Sequence[GroupSpec] = ()) -> list[str]:
        _check_names(topics, groups)
        return await self._look(
            "The topics were not checked",
            lambda c: [f"would refuse: {line}" for line in _refusals(c, topics, groups)] + _changes(c, topics, groups),
        )

    async def _known(self, name: str) -> TopicRow | None:
        found = self._topics.get(name)
        if found is None:
            found = await self._look("The topic was not found", lambda c: events.find_topic(c, name))
            if found is not None:
                self._topics[name] = found
        return found

    async def _topic(self, name: str) -> TopicRow:
        found = await self._known(name)
        if found is None:
            raise SetupError(f"{_unknown_topic(name, self.path)}.")
        return found

    async def _team(self, topic: str, group: str) -> TeamRow:
        row = await self._topic(topic)
        found = await self._look("The group was not found", lambda c: events.find_team(c, row, group))
        if found is None:
            raise SetupError(f"There is no group {group!r} of {topic!r} in {self.path!r}; declare it first.")
        return found

    # ---- appending -----------------------------------------------------------------------------------------------

    async def append(
        self, topic: str, envelopes: Sequence[Envelope], *, timeout: float | None = None
    ) -> list[Exception | None]:
        row = self._topics.get(topic) or await self._known(topic)
        if row is None:
            return [
                MessageRefused(f"{refused(envelope)}: {_unknown_topic(topic, self.path)}.") for envelope in envelopes
            ]
        if self._room.full and not await self._room.wait(PATIENCE if timeout is None else timeout):
            why = self._room.crowded(self.path)
            return [MessageRefused(f"{refused(envelope)}: {why}.") for envelope in envelopes]
        why_not, made = [not_sendable(envelope) for envelope in envelopes], []
        for number, envelope in enumerate(envelopes):
            if why_not[number] is None:
                try:
                    made.append((self._part(row, envelope), pack(envelope)))
                except UnicodeEncodeError as error:
                    why_not[number] = f"its texts are no Unicode: {error.reason}"
        failure = await self._appended(row, made, timeout) if made else None
        return [
            MessageRefused(f"{refused(envelope)} to {topic!r}: {why}.")
            if why is not None
            else failure and failure_of(failure, envelope, topic, self.path)
            for envelope, why in zip(envelopes, why_not, strict=True)
        ]

    def _part(self, row: TopicRow, envelope: Envelope) -> int:
        if envelope.key is not None:
            return row.partition(envelope.key)
        self._turn += 1
        return self._turn % row.partitions

    async def _appended(self, row: TopicRow, made: list[tuple[int, bytes]], timeout: float | None) -> Exception | None:
        """Write with all others that append at this moment. Returns why it failed."""
        appending = self._outgoing
        loop = asyncio.get_running_loop()
        if appending is None or appending.timeout != timeout:
            if appending is not None:
                self._flush(appending)
            appending = self._outgoing = _Appending(timeout)
            loop.call_soon(self._flush, appending)
        future: asyncio.Future[Exception | None] = loop.create_future()
        appending.add(row.n, made, future)
        count, size = len(made), sum(len(data) for _, data in made)
        self._room.enter(count, size)
        try:
            return await future
        finally:
            self._room.leave(count, size)

    def _flush(self, appending: _Appending) -> None:
        if self._outgoing is not appending:
            return  # it went when one with another time limit came
        self._outgoing = None
        try:
            self.file.submit(appending)
        except (NotDone, DeliveryError, SetupError) as error:
            appending.fail(error)

    # ---- reading -------------------------------------------------------------------------------------------------

    async def consumer(
        self, topics: Sequence[str], group: str, *, limit: int, revoking: Revoking | None = None
    ) -> SqliteLogConsumer:
        teams = [await self._team(topic, group) for topic in topics]
        made = SqliteLogConsumer(self, teams, limit, revoking)
        await made.join()
        self._consumers.add(made)
        return made

    def closed(self, consumer: SqliteLogConsumer) -> None:
        self._consumers.discard(consumer)

    async def read(self, topic: str, partition: int, offset: int, limit: int) -> list[Record]:
        row = await self._topic(topic)
        found = await self._look("Nothing was read", lambda c: events.read(c, row.n, partition, offset, limit))
        return [_record(topic, partition, pos, data) for pos, data in found]

    async def groups(self, topic: str) -> list[str]:
        row = await self._topic(topic)

        def names(connection: apsw.Connection) -> list[str]:
            found = connection.execute("SELECT name FROM team WHERE topic = ? ORDER BY name", (row.n,))
            return [str(name) for (name,) in found]

        return await self._look("The groups were not listed", names)

    async def stats(self, topic: str, group: str) -> GroupStats:
        team = await self._team(topic, group)
        now = self.clock.time()
        return await self._look("The group was not counted", lambda c: _stats(c, team, now))

    async def seek(self, topic: str, group: str, to: Seek) -> None:
        """Members that run are told, and go on from there; what they are handling is not committed any more."""
        team = await self._team(topic, group)
        _check_seek(to, team)
        await self._do("The group was not moved", lambda tx: events.seek(tx, team, _offsets(tx.connection, team, to)))

    # ---- dead letters --------------------------------------------------------------------------------------------

    async def dead(
        self, topic: str, group: str, which: DeadFilter = EVERY_DEAD, *, limit: int = 100
    ) -> list[DeadLetter]:
        team = await self._team(topic, group)
        return await self._look("The dead letters were not listed", lambda c: dead_letters(c, team.queue, which, limit))

    async def revive(self, topic: str, group: str, letters: Sequence[DeadLetter]) -> int:
        team = await self._team(topic, group)

        def revive(tx: Transaction) -> int:
            tx.changed.add(team.channel)
            return revive_letters(tx, team.queue, letters)

        return await self._do("The dead letters were not sent again", revive)

    async def drop(self, topic: str, group: str, letters: Sequence[DeadLetter]) -> int:
        team = await self._team(topic, group)
        return await self._do("The dead letters were not deleted", lambda tx: drop_letters(tx, team.queue, letters))

    async def _do(self, what: str, function: Callable[[Transaction], T]) -> T:
        return await self.file.do_or_lose(what, function)

    async def _look(self, what: str, function: Callable[[apsw.Connection], T]) -> T:
        return await self.file.read_or_lose(what, function)


# ---- appending -------------------------------------------------------------------------------------------------------


class _Appending(Work):
    """All that was appended in one turn of the loop, with one time limit."""

    def __init__(self, timeout: float | None) -> None:
        self.timeout = timeout
        self.deadline = deadline_in(timeout)
        self._parts: dict[tuple[int, int], list[bytes]] = {}
        self._futures: list[asyncio.Future[Exception | None]] = []

    def add(self, topic: int, made: list[tuple[int, bytes]], future: asyncio.Future[Exception | None]) -> None:
        for part, data in made:
            self._parts.setdefault((topic, part), []).append(data)
        self._futures.append(future)

    def run(self, tx: Transaction) -> bool:
        events.append(tx, self._parts)
        return True

    def finish(self) -> None:
        for future in self._futures:
            if not future.done():
                future.set_result(None)

    def fail(self, error: Exception) -> None:
        for future in self._futures:
            if not future.done():
                future.set_result(error)


# ---- reading ---------------------------------------------------------------------------------------------------------


class _Lane:
    """One partition as this member reads it: what is read, what of it is done, and how far all is done."""

    __slots__ = ("buffer", "closing", "committed", "done", "next", "open", "share", "watermark")

    def __init__(self, share: Share) -> None:
        self.share = share
        self.next = share.next
        """What to read next."""
        self.watermark = share.next
        """All before it is done."""
        self.committed = share.next
        self.done: set[int] = set()
        """Behind the watermark, with a gap before them."""
        self.open = 0
        """Read and not done."""
        self.buffer: deque[Record] = deque()
        self.closing = False
        """To be given up: nothing more is read or handed out."""

    def room(self, limit: int) -> int:
        if self.closing:
            return 0
        return max(0, min(limit - self.open, self.watermark + limit * AHEAD - self.next))

    def finish(self, offset: int) -> None:
        if offset < self.watermark or offset in self.done:
            return
        self.open -= 1
        self.done.add(offset)
        while self.watermark in self.done:
            self.done.remove(self.watermark)
            self.watermark += 1

    def skip_to(self, offset: int) -> None:
        """Events between were forgotten before they were read."""
        if self.watermark == self.next:
            self.watermark = offset
        else:
            self.done.update(range(self.next, offset))
        self.next = offset


@dataclass(frozen=True, slots=True)
class _Request:
    """What a member has, and has room for."""

    wants: dict[int, tuple[int, int]]
    """By partition: from where to read on, and how many."""
    epochs: dict[int, int]
    giving_up: frozenset[int]
    retries: int

    def asks_for_more(self, before: _Request) -> bool:
        return (self.retries > 0) > (before.retries > 0) or any(
            room > 0 and before.wants.get(part, (0, 0))[1] == 0 for part, (_, room) in self.wants.items()
        )


class _Fetch(Work):
    """Look what a member has, and read on; wait where there is nothing new."""

    durable = False

    def __init__(self, member: _Member, owner: int) -> None:
        self._member = member
        self._owner = owner
        self._told: float | None = None
        self.channel = member.team.channel
        self.request = member.request()
        """Replaced as a whole, while it waits, by the loop."""
        self.lost = False
        self.shares: dict[int, Share] = {}
        self.unwanted: set[int] = set()
        self.read: list[tuple[int, int, list[events.Read]]] = []
        self.again: list[Claimed] = []

    @property
    def owner(self) -> int:
        return self._owner

    def run(self, tx: Transaction) -> bool:
        self.lost = not tx.owns(self._owner)
        if self.lost:
            return True
        team = self._member.team
        request = self.request
        self.shares, self.unwanted = events.assigned(tx, team, self._owner)
        self.read = []
        ends = events.ends(tx.connection, team.topic.n)
        for part, share in self.shares.items():
            self._read(tx, request, share, ends[part])
        self.again, later = messages.claim(tx, team.queue, self._owner, request.retries)
        if self.read or self.again or self._changed(request):
            return True
        self._wait_until(later)
        return False

    def _changed(self, request: _Request) -> bool:
        """Something else than the member knows: partitions came, went, were sent elsewhere or are to be given up."""
        epochs = {part: share.epoch for part, share in self.shares.items()}
        return epochs != request.epochs or bool(self.unwanted - request.giving_up)

    def _read(self, tx: Transaction, request: _Request, share: Share, end: int) -> None:
        team, known = self._member.team, request.epochs.get(share.part) == share.epoch
        begin, room = request.wants[share.part] if known else (share.next, self._member.limit)
        begin = max(begin, share.next)
        if room <= 0 or begin >= end or share.part in self.unwanted:
            return
        rows = events.read(tx.connection, team.topic.n, share.part, begin, room)
        if rows:
            self.read.append((share.part, share.epoch, rows))
            events.reached(tx, team.n, share.part, self._owner, rows[-1][0] + 1)

    def _wait_until(self, due: float | None) -> None:
        if due != self._told and self.loop is not None:
            self._told = due
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits
                self.loop.call_soon_threadsafe(self._member.wait_until, due)

    def finish(self) -> None:
        self._member.fetched(self)

    def fail(self, error: Exception) -> None:
        self._member.failed(error)


class _Commit(Work):
    """Note how far partitions are done."""

    durable = False

    def __init__(self, member: _Member, owner: int) -> None:
        self._member = member
        self._owner = owner
        self.loop = asyncio.get_running_loop()
        self.marks = [(lane.share.part, lane.share.epoch, lane.watermark) for lane in member.behind()]
        self.future: asyncio.Future[None] = self.loop.create_future()

    def run(self, tx: Transaction) -> bool:
        if tx.owns(self._owner):
            for part, epoch, watermark in self.marks:
                events.commit(tx, self._member.team.n, self._owner, part, epoch, watermark)
        return True

    def finish(self) -> None:
        if not self.future.done():
            self.future.set_result(None)

    def fail(self, error: Exception) -> None:
        self._member.failed(error)
        if not self.future.done():
            self.future.set_exception(self._member.gone())


class _Member:
    """One consumer's part in the group of one topic."""

    def __init__(self, consumer: SqliteLogConsumer, team: TeamRow, limit: int) -> None:
        self.team = team
        self.limit = limit
        self.lanes: dict[int, _Lane] = {}
        self.giving_up: set[int] = set()
        self.owner: int | None = None
        self.retries: deque[Record] = deque()
        """Retried records that were fetched and not handed out."""
        self.held: dict[int, Record] = {}
        """All retried records that are not settled, by position."""
        self._consumer = consumer
        self._file = consumer.file
        self._fetch: _Fetch | None = None
        self._commit: _Commit | None = None
        self._due: Timer | None = None

    # ---- in the group ----------------------------------------------------------------------------------------------

    async def join(self) -> None:
        """Raises NotDone, PerhapsDone."""
        owner = self.owner = await self._file.do(self._enter, durable=False)
        self._file.writer.leases[owner] = LEASE

    def _enter(self, tx: Transaction) -> int:
        owner = tx.join(self.team.channel, self._file.writer.address, LEASE)
        events.balance(tx, self.team.n)
        return owner

    def gone(self) -> BackendLost:
        return self._consumer.gone()

    def failed(self, error: Exception) -> None:
        self._fetch = None
        self._consumer.failed(error)

    def let_go(self) -> None:
        """Forget everything, without a word to the file."""
        if self.owner is not None:
            self._file.writer.leases.pop(self.owner, None)
        self.lanes.clear()
        self.retries.clear()
        self.held.clear()
        if self._fetch is not None:
            self._fetch.gone = True
            self._fetch = None
        if self._due is not None:
            self._due.cancel()

    async def leave(self) -> None:
        """Commit and go. Raises NotDone, PerhapsDone."""
        owner, marks = self.owner, [(lane.share.part, lane.share.epoch, lane.watermark) for lane in self.behind()]
        self.let_go()

        def leave(tx: Transaction) -> None:
            if owner is not None and tx.owns(owner):
                for part, epoch, watermark in marks:
                    events.commit(tx, self.team.n, owner, part, epoch, watermark)
                events.leave(tx, self.team, owner)

        await self._file.do(leave, durable=False)

    async def lose(self) -> None:
        """Let others take over at once, as if this process had ended. Raises NotDone, PerhapsDone."""
        owner = self.owner
        self.let_go()

        def lose(tx: Transaction) -> None:
            if owner is not None and tx.owns(owner):
                events.take_over(tx, owner)

        await self._file.do(lose, durable=False)

    # ---- reading ---------------------------------------------------------------------------------------------------

    def request(self) -> _Request:
        return _Request(
            {part: (lane.next, lane.room(self.limit)) for part, lane in self.lanes.items()},
            {part: lane.share.epoch for part, lane in self.lanes.items()},
            frozenset(self.giving_up),
            max(0, min(RETRIES, self.limit - len(self.held))),
        )

    def ask(self) -> None:
        if self._fetch is not None or self.owner is None:
            return
        self._fetch = _Fetch(self, self.owner)
        try:
            self._file.submit(self._fetch)
        except NotDone as error:
            self.failed(error)

    def ask_anew(self) -> None:
        """Where there is room by now for what the request that waits did not ask for."""
        fetch = self._fetch
        if fetch is None:
            self.ask()
            return
        request = self.request()
        if request.asks_for_more(fetch.request):
            fetch.request = request
            self._file.poke(self.team.channel)

    def fetched(self, fetch: _Fetch) -> None:
        self._fetch = None
        if fetch.lost:
            self._consumer.declared_dead(self)
            return
        self._reassign(fetch.shares)
        for part, epoch, rows in fetch.read:
            self._add(self.lanes[part], epoch, rows)
        for row in fetch.again:
            self._add_retry(row)
        unwanted = fetch.unwanted - self.giving_up
        if unwanted:
            self._consumer.give_up(self, unwanted)
        self._consumer.fetched(self)

    def _reassign(self, shares: dict[int, Share]) -> None:
        """Take over what the file says; what is with others by now was lost without notice."""
        for part in [part for part in self.lanes if part not in shares]:
            del self.lanes[part]
            self.giving_up.discard(part)
        for part, share in shares.items():
            lane = self.lanes.get(part)
            if lane is None or lane.share.epoch != share.epoch:
                self.lanes[part] = _Lane(share)
                self.giving_up.discard(part)

    def _add(self, lane: _Lane, epoch: int, rows: list[events.Read]) -> None:
        if rows[0][0] > lane.next:
            logger.warning(
                "The group %r of %r missed %d events of partition %d: they were forgotten before it read them.",
                self.team.name,
                self.team.topic.name,
                rows[0][0] - lane.next,
                lane.share.part,
            )
            lane.skip_to(rows[0][0])
        for pos, data in rows:
            record = _record(self.team.topic.name, lane.share.part, pos, data, epoch)
            record.lost = lane.share.lost_at(pos)
            record.attempt = record.lost + 1
            lane.buffer.append(record)
            lane.open += 1
        lane.next = rows[-1][0] + 1

    def _add_retry(self, row: Claimed) -> None:
        _, pos, attempt, lost, data = row
        record = _record(self.team.topic.name, -1, pos, data)
        record.retried, record.attempt, record.lost = True, attempt + 1, lost
        self.retries.append(record)
        self.held[pos] = record

    def wait_until(self, due: float | None) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None
        if due is not None and self._fetch is not None:
            clock = self._file.clock
            delay = max(0.0, due - clock.time())
            self._due = clock.call_later(delay, lambda: self._file.poke(self.team.channel))

    # ---- committing ------------------------------------------------------------------------------------------------

    def behind(self) -> list[_Lane]:
        return [lane for lane in self.lanes.values() if lane.watermark > lane.committed]

    async def commit(self) -> None:
        """Once all that is done now is committed. Those who come while a commit is under way share the next one."""
        owner = self.owner
        if owner is None or not self.behind():
            return
        work = _Commit(self, owner)
        for lane in self.behind():
            lane.committed = lane.watermark
        work.deadline = deadline_in(None)
        try:
            self._file.submit(work)
        except NotDone as error:
            self.failed(error)
            raise self.gone() from error
        await work.future

    async def finish_retry(self, record: Record) -> None:
        await self.settle_retry(record, lambda tx, owner, pos: messages.finish(tx, self.team.queue, owner, [pos], ()))

    async def settle_retry(self, record: Record, function: Callable[[Transaction, int, int], None]) -> None:
        """Settle a retried record that is held: *function* of transaction, owner and position."""
        owner = self.owner
        if self.held.pop(record.offset, None) is not record or owner is None:
            return

        def settle(tx: Transaction) -> None:
            if tx.owns(owner):
                function(tx, owner, record.offset)

        await self._consumer.do(settle)


class SqliteLogConsumer:
    """One member of a group, over one or more topics in a file."""

    def __init__(self, log: SqliteLog, teams: Sequence[TeamRow], limit: int, revoking: Revoking | None) -> None:
        self.file = log.file
        self._log = log
        self._clock = log.clock
        self._members = {team.topic.name: _Member(self, team, limit) for team in teams}
        self._group = teams[0].name if teams else ""
        self._revoking = revoking
        self._paused: set[Partition] = set()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._failure: str | None = None

    async def join(self) -> None:
        """Raises BackendLost."""
        try:
            for member in self._members.values():
                await member.join()
        except (NotDone, PerhapsDone) as error:
            self.failed(error)
            raise self.gone() from error
        for member in self._members.values():
            member.ask()

    @property
    def assigned(self) -> frozenset[Partition]:
        return frozenset((topic, part) for topic, member in self._members.items() for part in member.lanes)

    # ---- receiving -------------------------------------------------------------------------------------------------

    async def receive(self, limit: int) -> list[Record]:
        while True:
            self._check()
            records = self._take(limit)
            if records:
                await self._start(records)
                return records
            for member in self._members.values():
                member.ask()
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter in self._waiting:
                    self._waiting.remove(waiter)
                else:
                    self._wake()  # it was woken for something that is another's now
                raise

    def _check(self) -> None:
        self.file.check_fork()
        if self._closed:
            raise ConsumerClosed(f"Nothing was received for the group {self._group!r}: this consumer was closed.")
        if self._failure is not None:
            raise self.gone()

    def _take(self, limit: int) -> list[Record]:
        found: list[Record] = []
        for topic, member in self._members.items():
            while member.retries and len(found) < limit:
                found.append(member.retries.popleft())
            for part in list(member.lanes):
                lane = member.lanes[part]
                if lane.closing or (topic, part) in self._paused:
                    continue
                while lane.buffer and len(found) < limit:
                    found.append(lane.buffer.popleft())
                if len(found) >= limit:
                    # Begin with another partition next time.
                    member.lanes[part] = member.lanes.pop(part)
                    return found
        return found

    async def _start(self, records: list[Record]) -> None:
        """Note that handlers of retried records are about to run."""
        for member in self._members.values():
            mine = [record for record in records if record.retried and member.held.get(record.offset) is record]
            if not mine or member.owner is None:
                continue
            try:
                await self._note_started(member, member.owner, [record.offset for record in mine])
            except asyncio.CancelledError:
                self._put_back(records)
                raise

    async def _note_started(self, member: _Member, owner: int, positions: list[int]) -> None:
        await self.do(lambda tx: messages.start(tx, owner, positions), durable=False)

    def _put_back(self, records: list[Record]) -> None:
        for record in reversed(records):
            member = self._members[record.topic]
            if record.retried:
                member.retries.appendleft(record)
            elif record.partition in member.lanes and member.lanes[record.partition].share.epoch == record.epoch:
                member.lanes[record.partition].buffer.appendleft(record)
        self._wake()

    def fetched(self, member: _Member) -> None:
        if member.retries or any(lane.buffer for lane in member.lanes.values()):
            self._wake()
        elif not self._closed:
            member.ask()

    def _wake(self) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                if self._failure is None and not self._closed:
                    return

    def pause(self, partitions: Sequence[Partition]) -> None:
        self._paused.update(partitions)

    def resume(self, partitions: Sequence[Partition]) -> None:
        self._paused.difference_update(partitions)
        self._wake()

    # ---- settling --------------------------------------------------------------------------------------------------

    async def done(self, records: Sequence[Record]) -> None:
        members = {record.topic: self._members[record.topic] for record in records}
        for record in records:
            if not record.retried:
                self._finish(record)
        for member in members.values():
            await member.commit()
            member.ask_anew()
        for record in records:
            if record.retried:
                await self._members[record.topic].finish_retry(record)

    def _finish(self, record: Record) -> None:
        lane = self._lane(record)
        if lane is not None:
            lane.finish(record.offset)

    def _lane(self, record: Record) -> _Lane | None:
        """None where the record was read under an assignment that is over."""
        lane = self._members[record.topic].lanes.get(record.partition)
        return lane if lane is not None and lane.share.epoch == record.epoch else None

    async def retry(self, record: Record, outcome: RetryAfter) -> None:
        member = self._members[record.topic]
        due = self._clock.time() + outcome.delay if outcome.delay > 0 else None
        if record.retried:
            await member.settle_retry(record, lambda tx, owner, pos: _again(tx, member.team, owner, pos, due))
        elif self._lane(record) is not None:
            await self.do(lambda tx: _retry(tx, member.team, record, due))
            await self.done([record])

    async def bury(self, record: Record, outcome: Bury) -> None:
        member = self._members[record.topic]
        team, envelope = member.team, record.envelope
        if record.retried:
            await member.settle_retry(
                record,
                lambda tx, owner, pos: _bury_retry(tx, team, owner, pos, envelope, outcome),
            )
        elif self._lane(record) is not None:
            data = envelope.body if record.unreadable is not None else pack(envelope)
            await self.do(lambda tx: events.bury(tx, team.queue.n, data, outcome.reason, outcome.error, record.attempt))
            await self.done([record])

    async def do(self, function: Callable[[Transaction], None], *, durable: bool = True) -> None:
        """In a transaction. Raises BackendLost, and is lost then."""
        if self._failure is not None:
            raise self.gone()
        try:
            await self.file.do(function, durable=durable)
        except (NotDone, PerhapsDone) as error:
            self.failed(error)
            raise self.gone() from error

    # ---- partitions that go ----------------------------------------------------------------------------------------

    def give_up(self, member: _Member, parts: set[int]) -> None:
        """Let handlers finish, commit, and leave the partitions to those who should have them."""
        member.giving_up |= parts
        for part in parts:
            lane = member.lanes[part]
            lane.closing = True
            lane.open -= len(lane.buffer)
            lane.buffer.clear()
        self._run(self._give_up(member, parts))

    async def _give_up(self, member: _Member, parts: set[int]) -> None:
        if self._revoking is not None:
            await self._warn(self._revoking, frozenset((member.team.topic.name, part) for part in parts))
        owner = member.owner
        if self._closed or self._failure is not None or owner is None:
            return
        marks = [(part, member.lanes[part]) for part in parts if part in member.lanes]

        def release(tx: Transaction) -> None:
            if tx.owns(owner):
                for part, lane in marks:
                    events.commit(tx, member.team.n, owner, part, lane.share.epoch, lane.watermark)
                events.release(tx, member.team.n, owner, [part for part, _ in marks])

        try:
            await self.do(release, durable=False)
        except BackendLost:
            return  # whoever receives next is told
        for part, lane in marks:
            if member.lanes.get(part) is lane:
                del member.lanes[part]
        member.giving_up -= parts
        member.ask_anew()

    async def _warn(self, revoking: Revoking, parts: frozenset[Partition]) -> None:
        try:
            async with asyncio.timeout(REBALANCE / 2):
                await revoking(parts)
        except TimeoutError:
            logger.warning("Handlers of %s did not finish in time: others repeat their work.", sorted(parts))
        except Exception:
            logger.exception("Handlers of %s could not be told that it goes to another member.", sorted(parts))

    def declared_dead(self, member: _Member) -> None:
        """The process stood still for longer than the lease: others have its partitions now. Begin anew."""
        logger.warning(
            "A member of the group %r of %r gave no sign of life for %g s: its partitions were given to others.",
            member.team.name,
            member.team.topic.name,
            LEASE,
        )
        member.let_go()
        member.owner = None
        self._run(self._rejoin(member))

    async def _rejoin(self, member: _Member) -> None:
        try:
            await member.join()
        except (NotDone, PerhapsDone) as error:
            self.failed(error)
            return
        if self._closed:
            await self._leave(member)
        else:
            member.ask()

    # ---- the end ---------------------------------------------------------------------------------------------------

    def failed(self, error: Exception) -> None:
        if self._failure is not None or self._closed:
            return
        self._failure = str(error)
        for member in self._members.values():
            self._run(self._lose(member))
        self._wake()

    async def _lose(self, member: _Member) -> None:
        try:
            await member.lose()
        except (NotDone, PerhapsDone) as error:
            logger.warning("Partitions of %r wait until a lease ends: %s.", member.team.topic.name, error)

    def gone(self) -> BackendLost:
        return BackendLost(
            f"The consumer of {', '.join(sorted(self._members))} lost the bus at {self.file.path!r}: {self._failure}. "
            "What it had not done is read again; open another consumer."
        )

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._log.closed(self)
        self._wake()
        if self._failure is None:
            for member in self._members.values():
                await self._leave(member)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _leave(self, member: _Member) -> None:
        try:
            await member.leave()
        except (NotDone, PerhapsDone) as error:
            logger.warning("Partitions of %r wait until a lease ends: %s.", member.team.topic.name, error)

    def _run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _record(topic: str, part: int, pos: int, data: bytes, epoch: int = 0) -> Record:
    try:
        return Record(topic, part, pos, unpack(data), epoch)
    except UndecodableMessage as error:
        return Record(topic, part, pos, Envelope("", "", data), epoch, unreadable=str(error))


def _retry(tx: Transaction, team: TeamRow, record: Record, due: float | None) -> None:
    """The copy's own id names the place in the log: the same event may be published twice, and both be tried again."""
    data = record.envelope.body if record.unreadable is not None else pack(record.envelope)
    name = f"{record.envelope.id}@{record.partition}/{record.offset}"
    messages.insert_again(tx, team.queue, name, data, record.attempt, due)
    tx.changed.add(team.channel)


def _again(tx: Transaction, team: TeamRow, owner: int, pos: int, due: float | None) -> None:
    messages.give_back(tx, owner, pos, due, failed=True)
    tx.changed.add(team.channel)


def _bury_retry(tx: Transaction, team: TeamRow, owner: int, pos: int, envelope: Envelope, outcome: Bury) -> None:
    messages.bury(tx, owner, pos, envelope.id, envelope.type, outcome.reason, outcome.error)
    messages.finish(tx, team.queue, owner, [pos], ())


# ---- topics and groups -----------------------------------------------------------------------------------------------


def _unknown_topic(name: str, path: str) -> str:
    return f"there is no topic {name!r} in {path!r}; declare it first"


def _check_names(topics: Sequence[TopicSpec], groups: Sequence[GroupSpec]) -> None:
    for topic in topics:
        check_name("topic", topic.name)
    for group in groups:
        check_name("group", group.group)


def _refusals(connection: apsw.Connection, topics: Sequence[TopicSpec], groups: Sequence[GroupSpec]) -> list[str]:
    lines = []
    for spec in topics:
        row = events.find_topic(connection, spec.name)
        if spec.partitions < 1:
            lines.append(f"{spec.name!r} asks for {spec.partitions} partitions; one is the least")
        if row is not None and row.partitions != spec.partitions:
            lines.append(
                f"{spec.name!r} exists with partitions={row.partitions} instead of partitions={spec.partitions}"
            )
    names = {spec.name for spec in topics}
    for group in groups:
        if group.topic not in names and events.find_topic(connection, group.topic) is None:
            lines.append(f"the group {group.group!r} belongs to {group.topic!r}, and there is no such topic")
    return lines


def _changes(connection: apsw.Connection, topics: Sequence[TopicSpec], groups: Sequence[GroupSpec]) -> list[str]:
    lines = []
    for spec in topics:
        row = events.find_topic(connection, spec.name)
        if row is None:
            lines.append(f"would create the topic {spec.name!r} with {spec.partitions} partitions")
            continue
        for name in ("retention", "retention_bytes"):
            old, new = getattr(row, name), getattr(spec, name)
            if old != new:
                lines.append(f"would change {name} of {spec.name!r} from {old!r} to {new!r}")
    for group in groups:
        row = events.find_topic(connection, group.topic)
        if row is None or events.find_team(connection, row, group.group) is None:
            lines.append(f"would create the group {group.group!r} of {group.topic!r}")
    return lines


def _declare_topic(tx: Transaction, spec: TopicSpec) -> None:
    if events.find_topic(tx.connection, spec.name) is None:
        events.make_topic(tx, spec)
    else:
        tx.execute(
            "UPDATE topic SET retention = ?, retention_bytes = ? WHERE name = ?",
            (spec.retention, spec.retention_bytes, spec.name),
        )


def _declare_group(tx: Transaction, spec: GroupSpec) -> None:
    topic = events.find_topic(tx.connection, spec.topic)
    assert topic is not None  # noqa: S101 - `_refusals` looked
    team = events.find_team(tx.connection, topic, spec.group)
    if team is None:
        events.make_team(tx, topic, spec)
    else:
        tx.execute("UPDATE queue SET lost_limit = ? WHERE n = ?", (spec.lost_limit, team.queue.n))


# ---- looking ---------------------------------------------------------------------------------------------------------


def _stats(connection: apsw.Connection, team: TeamRow, now: float) -> GroupStats:
    rows: Any = connection.execute(
        """SELECT p.part, max(p.next, part.first), part.next FROM progress p
        JOIN part ON part.topic = ? AND part.part = p.part WHERE p.team = ?""",
        (team.topic.n, team.n),
    ).fetchall()
    behind = {part: end - done for part, done, end in rows}
    members: int = connection.execute("SELECT count(*) FROM owner WHERE channel = ?", (team.channel,)).get
    since = [_appended_at(connection, team, part, done) for part, done, end in rows if done < end]
    oldest = max(0.0, now - min(since)) if since else None
    lag = sum(behind.values())
    return GroupStats(
        topic=team.topic.name, group=team.name, lag=lag, by_partition=behind, members=members, oldest=oldest
    )


def _appended_at(connection: apsw.Connection, team: TeamRow, part: int, pos: int) -> float:
    found: float = connection.execute(
        "SELECT at FROM event WHERE topic = ? AND part = ? AND pos >= ? ORDER BY pos LIMIT 1", (team.topic.n, part, pos)
    ).get
    return found


def _check_seek(to: Seek, team: TeamRow) -> None:
    given = [to.time is not None, to.offsets is not None, to.earliest, to.latest]
    if sum(given) != 1:
        raise ValueError("The group was not moved: say one of time, offsets, earliest and latest.")
    unknown = [part for part in to.offsets or () if not 0 <= part < team.topic.partitions]
    if unknown:
        raise ValueError(
            f"The group was not moved: {team.topic.name!r} has the partitions 0 to {team.topic.partitions - 1}, "
            f"not {', '.join(map(str, unknown))}."
        )


def _offsets(connection: apsw.Connection, team: TeamRow, to: Seek) -> dict[int, int]:
    bounds = events.first_and_next(connection, team.topic.n)
    if to.offsets is not None:
        return {part: min(max(offset, bounds[part][0]), bounds[part][1]) for part, offset in to.offsets.items()}
    if to.time is not None:
        return {part: events.offset_at(connection, team.topic.n, part, to.time) for part in bounds}
    return {part: first if to.earliest else end for part, (first, end) in bounds.items()}
