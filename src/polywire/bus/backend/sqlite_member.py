"""A member of a group of one topic in a file: the partitions it has, what it read of them, and how far all is done."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from polywire.bus.backend import sqlite_events as events
from polywire.bus.backend import sqlite_messages as messages
from polywire.bus.backend.sqlite_events import Share, TeamRow
from polywire.bus.backend.sqlite_file import NotDone, SharedFile, Transaction, Work, deadline_in
from polywire.bus.backend.sqlite_messages import Claimed
from polywire.bus.core import Envelope, Record, unpack
from polywire.clock import Timer
from polywire.errors import BackendLost, UndecodableMessage

LEASE = 15.0
"""Seconds after which the partitions of a member that gives no sign of life go to others; at once where its process
can be seen to have ended."""
AHEAD = 4
"""Times the limit: how far behind an event that is not done others are read."""
LAST_CHANCE = 5.0
"""Seconds for which what is behind an event waits that is buried if its reader dies once more."""
RETRIES = 10
"""Of a group's own retries, fetched at a time."""

logger = logging.getLogger("polywire.bus.sqlite")


class Reader(Protocol):
    """The consumer that a member belongs to."""

    file: SharedFile

    def fetched(self, member: Member) -> None: ...

    def give_up(self, member: Member, parts: set[int]) -> None: ...

    def declared_dead(self, member: Member) -> None: ...

    def failed(self, error: Exception) -> None: ...

    def gone(self) -> BackendLost: ...

    async def do(self, function: Callable[[Transaction], None]) -> None: ...


class Lane:
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
class Request:
    """What a member has, and has room for."""

    wants: dict[int, tuple[int, int]]
    """By partition: from where to read on, and how many."""
    epochs: dict[int, int]
    giving_up: frozenset[int]
    retries: int

    def asks_for_more(self, before: Request) -> bool:
        return (self.retries > 0) > (before.retries > 0) or any(
            room > 0 and before.wants.get(part, (0, 0))[1] == 0 for part, (_, room) in self.wants.items()
        )


class Fetch(Work):
    """Look what a member has, and read on; wait where there is nothing new."""

    durable = False

    def __init__(self, member: Member, owner: int) -> None:
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
        self._wait_until(
            min((due for due in (later, self._behind_last_chance(tx.now)) if due is not None), default=None)
        )
        return False

    def _changed(self, request: Request) -> bool:
        """Something else than the member knows: partitions came, went, were sent elsewhere or are to be given up."""
        epochs = {part: share.epoch for part, share in self.shares.items()}
        return epochs != request.epochs or bool(self.unwanted - request.giving_up)

    def _read(self, tx: Transaction, request: Request, share: Share, end: int) -> None:
        team, known = self._member.team, request.epochs.get(share.part) == share.epoch
        begin, room = request.wants[share.part] if known else (share.next, self._member.limit)
        begin = max(begin, share.next)
        if room <= 0 or begin >= end or share.part in self.unwanted:
            return
        alone = share.last_chance and not self._waited(tx, share, begin)
        if alone and begin > share.next:
            return
        rows = events.read(tx.connection, team.topic.n, share.part, begin, 1 if alone else room)
        if rows:
            self.read.append((share.part, share.epoch, rows))
            if not alone:
                events.reached(tx, team.n, share.part, self._owner, rows[-1][0] + 1)

    def _waited(self, tx: Transaction, share: Share, begin: int) -> bool:
        """Whether what is behind an event with its last chance goes beside it after all, as it takes so long.

        Until then that event alone is handed out, and it is noted while its handler runs: whoever dies else did not
        die of it.
        """
        if begin == share.next:
            return False
        since = self._member.alone.setdefault((share.part, share.next), tx.now)
        return not since <= tx.now < since + LAST_CHANCE

    def _behind_last_chance(self, now: float) -> float | None:
        """When the first of those goes on that wait behind one with its last chance; forgets who waits no more."""
        alone = self._member.alone
        for part, offset in list(alone):
            share = self.shares.get(part)
            if share is None or share.next != offset:
                del alone[part, offset]
        return min((since + LAST_CHANCE for since in alone.values() if since + LAST_CHANCE > now), default=None)

    def _wait_until(self, due: float | None) -> None:
        if due != self._told and self.loop is not None:
            self._told = due
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits
                self.loop.call_soon_threadsafe(self._member.wait_until, due)

    def finish(self) -> None:
        self._member.fetched(self)

    def fail(self, error: Exception) -> None:
        self._member.failed(error)


class Commit(Work):
    """Note how far partitions are done."""

    durable = False

    def __init__(self, member: Member, owner: int) -> None:
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


class Member:
    """One consumer's part in the group of one topic."""

    def __init__(self, consumer: Reader, team: TeamRow, limit: int) -> None:
        self.team = team
        self.limit = limit
        self.lanes: dict[int, Lane] = {}
        self.giving_up: set[int] = set()
        self.owner: int | None = None
        self.retries: deque[Record] = deque()
        """Retried records that were fetched and not handed out."""
        self.held: dict[int, Record] = {}
        """All retried records that are not settled, by position."""
        self.alone: dict[tuple[int, int], float] = {}
        """Since when others wait behind an event with its last chance, by partition and offset. The writer's."""
        self._consumer = consumer
        self._file = consumer.file
        self._fetch: Fetch | None = None
        self._commit: Commit | None = None
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

    def request(self) -> Request:
        return Request(
            {part: (lane.next, lane.room(self.limit)) for part, lane in self.lanes.items()},
            {part: lane.share.epoch for part, lane in self.lanes.items()},
            frozenset(self.giving_up),
            max(0, min(RETRIES, self.limit - len(self.held))),
        )

    def ask(self) -> None:
        if self._fetch is not None or self.owner is None:
            return
        self._fetch = Fetch(self, self.owner)
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

    def fetched(self, fetch: Fetch) -> None:
        self._fetch = None
        if fetch.lost:
            self._consumer.declared_dead(self)
            return
        self._reassign(fetch.shares)
        for part, epoch, rows in fetch.read:
            self._add(self.lanes[part], epoch, fetch.shares[part].generation, rows)
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
                self.lanes[part] = Lane(share)
                self.giving_up.discard(part)

    def _add(self, lane: Lane, epoch: int, generation: int, rows: list[events.Read]) -> None:
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
            record = record_of(self.team.topic.name, lane.share.part, pos, data, epoch)
            record.lost = lane.share.lost_at(pos)
            record.attempt = record.lost + 1
            record.generation = generation
            lane.buffer.append(record)
            lane.open += 1
        lane.next = rows[-1][0] + 1

    def _add_retry(self, row: Claimed) -> None:
        _, pos, attempt, lost, data = row
        record = record_of(self.team.topic.name, -1, pos, data)
        record.retried, record.attempt, record.lost = True, attempt + 1, lost
        record.generation = record.envelope.generation
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

    def behind(self) -> list[Lane]:
        return [lane for lane in self.lanes.values() if lane.watermark > lane.committed]

    async def commit(self) -> None:
        """Once all that is done now is committed. Those who come while a commit is under way share the next one."""
        owner = self.owner
        if owner is None or not self.behind():
            return
        work = Commit(self, owner)
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


def record_of(topic: str, part: int, pos: int, data: bytes, epoch: int = 0) -> Record:
    try:
        return Record(topic, part, pos, unpack(data), epoch)
    except UndecodableMessage as error:
        return Record(topic, part, pos, Envelope("", "", data), epoch, unreadable=str(error))
