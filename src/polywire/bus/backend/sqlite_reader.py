"""A consumer of one or more topics in a file, in the name of a group."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from polywire.bus.backend import sqlite_events as events
from polywire.bus.backend import sqlite_messages as messages
from polywire.bus.backend.sqlite_events import TeamRow
from polywire.bus.backend.sqlite_file import NotDone, PerhapsDone, SharedFile, Transaction
from polywire.bus.backend.sqlite_member import LEASE, Lane, Member
from polywire.bus.core import Bury, Envelope, Partition, Record, RetryAfter, pack
from polywire.bus.core.log import Revoking
from polywire.clock import Clock
from polywire.errors import BackendLost, ConsumerClosed

REBALANCE = 30.0
"""Seconds: half of them is what handlers get to finish when a partition goes to another member."""

logger = logging.getLogger("polywire.bus.sqlite")


class SqliteLogConsumer:
    """One member of a group, over one or more topics in a file."""

    def __init__(
        self,
        file: SharedFile,
        clock: Clock,
        teams: Sequence[TeamRow],
        limit: int,
        revoking: Revoking | None,
        closed: Callable[[SqliteLogConsumer], None],
    ) -> None:
        self.file = file
        self._clock = clock
        self._told_closed = closed
        self._members = {team.topic.name: Member(self, team, limit) for team in teams}
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
        """Note that handlers of retried records are about to run. Those of suspects wait; see `starting`."""
        for member in self._members.values():
            retried = [record for record in records if record.retried and not record.lost]
            mine = [record for record in retried if member.held.get(record.offset) is record]
            if not mine or member.owner is None:
                continue
            try:
                await self._note_started(member, member.owner, [record.offset for record in mine])
            except asyncio.CancelledError:
                self._put_back(records)
                raise

    async def _note_started(self, member: Member, owner: int, positions: list[int]) -> None:
        await self.do(lambda tx: messages.start(tx, owner, positions), durable=False)

    def _put_back(self, records: list[Record]) -> None:
        for record in reversed(records):
            member = self._members[record.topic]
            if record.retried:
                member.retries.appendleft(record)
            elif record.partition in member.lanes and member.lanes[record.partition].share.epoch == record.epoch:
                member.lanes[record.partition].buffer.appendleft(record)
        self._wake()

    def fetched(self, member: Member) -> None:
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

    async def starting(self, record: Record) -> None:
        """Note that a suspect is about to be handled. Raises BackendLost."""
        member = self._members[record.topic]
        if not record.retried:
            await self._note_under_way(record, True)
        elif member.held.get(record.offset) is record and member.owner is not None:
            await self._note_started(member, member.owner, [record.offset])

    async def stopped(self, record: Record) -> None:
        """Note that a suspect waits to be handled again. Raises BackendLost."""
        if not record.retried:
            await self._note_under_way(record, False)

    async def _note_under_way(self, record: Record, under_way: bool) -> None:
        member, owner = self._members[record.topic], self._members[record.topic].owner
        if self._lane(record) is None or owner is None:
            return

        def note(tx: Transaction) -> None:
            if tx.owns(owner):
                events.note_under_way(
                    tx, member.team.n, owner, record.partition, record.epoch, record.offset, under_way=under_way
                )

        await self.do(note, durable=False)

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

    def _lane(self, record: Record) -> Lane | None:
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
            data = envelope.body if record.unreadable is not None else pack(record.stamped)
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

    def give_up(self, member: Member, parts: set[int]) -> None:
        """Let handlers finish, commit, and leave the partitions to those who should have them."""
        member.giving_up |= parts
        for part in parts:
            lane = member.lanes[part]
            lane.closing = True
            lane.open -= len(lane.buffer)
            lane.buffer.clear()
        self._run(self._give_up(member, parts))

    async def _give_up(self, member: Member, parts: set[int]) -> None:
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

    def declared_dead(self, member: Member) -> None:
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

    async def _rejoin(self, member: Member) -> None:
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

    async def _lose(self, member: Member) -> None:
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
        self._told_closed(self)
        self._wake()
        if self._failure is None:
            for member in self._members.values():
                await self._leave(member)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _leave(self, member: Member) -> None:
        try:
            await member.leave()
        except (NotDone, PerhapsDone) as error:
            logger.warning("Partitions of %r wait until a lease ends: %s.", member.team.topic.name, error)

    def _run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _retry(tx: Transaction, team: TeamRow, record: Record, due: float | None) -> None:
    """The copy's own id names the place in the log and the generation: the same event may be published twice, or
    replayed, and both be tried again."""
    data = record.envelope.body if record.unreadable is not None else pack(record.stamped)
    name = f"{record.envelope.id}@{record.partition}/{record.offset}"
    if record.generation:
        name += f"#{record.generation}"
    messages.insert_again(tx, team.queue, name, data, record.attempt, due)
    tx.changed.add(team.channel)


def _again(tx: Transaction, team: TeamRow, owner: int, pos: int, due: float | None) -> None:
    messages.start(tx, owner, [pos])
    messages.give_back(tx, owner, pos, due, failed=True)
    tx.changed.add(team.channel)


def _bury_retry(tx: Transaction, team: TeamRow, owner: int, pos: int, envelope: Envelope, outcome: Bury) -> None:
    messages.start(tx, owner, [pos])
    messages.bury(tx, owner, pos, envelope.id, envelope.type, outcome.reason, outcome.error)
    messages.finish(tx, team.queue, owner, [pos], ())
