"""Consumes a group of an event log: lanes per key, retries in place, and what is done is told in any order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

from polywire.bus.consumer.bell import Bell
from polywire.bus.consumer.handling import Handling
from polywire.bus.consumer.lanes import Lane, Lanes
from polywire.bus.consumer.limits import Alone
from polywire.bus.consumer.parks import Parks
from polywire.bus.consumer.run import MessageLog, Processes, Runs, Work
from polywire.bus.consumer.runner import CONCURRENCY, ODD_DELAY, Runner, wake_up
from polywire.bus.consumer.verdict import clean
from polywire.bus.core.inbox import Inbox
from polywire.bus.core.log import EventLog, LogConsumer, Partition, Record, ToldOfStarts
from polywire.bus.core.queue import Ack, Bury, Outcome, Release, RetryAfter
from polywire.clock import SYSTEM_CLOCK, Clock
from polywire.errors import SetupError
from polywire.threads import Threads

log = logging.getLogger("polywire.consumer")

READ_AHEAD = 256
"""Records per partition that are held."""
MOST_HELD = 20_000
"""Records over all partitions that are held."""
RECEIVE = 500
"""Records that are received at a time."""
REVOKE_PATIENCE = 30.0
"""Seconds for handlers of a partition that goes to another member, unless the backend gives them less."""
WRITE_DELAY = 1.0
"""Seconds before a retry copy or a dead letter is written again where that failed; doubled up to 30."""


class LogSession:
    """The life of one LogConsumer."""

    def __init__(self) -> None:
        self.consumer: LogConsumer
        self.held = 0
        self.done: list[Record] = []
        """To be told to the backend."""
        self.epochs: dict[Partition, int] = {}
        """The newest of which a record was seen."""
        self.fenced: dict[Partition, int] = {}
        """Records of this epoch and older ones are somebody else's."""
        self.revoking: set[Partition] = set()
        """They are about to go to another member."""


class LogRunner(Runner[LogSession, Lane, Record]):
    """Handles the events of *topics* for one group in this process.

    Events of one key are handled one after the other: one that fails is tried again in place, and its key waits.
    Without a key they run side by side, and what fails is tried again through the group's own retries. Types that the
    group does not declare are skipped. A batch is made of one partition's events in their order; an event with a key in
    it makes it stop at its first failure.
    """

    def __init__(
        self,
        events: EventLog,
        topics: Sequence[str],
        group: str,
        handlings: Sequence[Handling],
        *,
        concurrency: int = CONCURRENCY,
        read_ahead: int = READ_AHEAD,
        rate: float | None = None,
        lost_limit: int = 3,
        inbox: Inbox | None = None,
        threads: Threads | None = None,
        processes: Processes | None = None,
        message_log: MessageLog | None = None,
        alone: Alone | None = None,
        revoke_patience: float = REVOKE_PATIENCE,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        own_threads = Threads(concurrency, group) if threads is None else None
        runs = Runs(
            ", ".join(topics), group, wire="events", clock=clock, inbox=inbox,
            threads=threads or own_threads, processes=processes, message_log=message_log,
        )  # fmt: skip
        super().__init__(
            f"The group {group!r} of {', '.join(map(repr, topics))}", runs, handlings,
            concurrency=concurrency, rate=rate, threads=own_threads, alone=alone, clock=clock,
        )  # fmt: skip
        _refuse_answers(handlings)
        self.group = group
        self.topics = tuple(topics)
        self._events = events
        biggest = max(handling.batch.size if handling.batch else 1 for handling in handlings)
        self._read_ahead = max(read_ahead, biggest)
        self._lost_limit = lost_limit
        self._revoke_patience = revoke_patience
        self._lanes = Lanes()
        self._parks = Parks(events, group, clock)
        self._done_bell = Bell()
        self._telling = asyncio.Lock()
        self._sleeping: set[asyncio.Future[None]] = set()
        """Who waits to write an outcome again."""
        self._finished: list[tuple[frozenset[Partition], asyncio.Future[None]]] = []
        """Who waits until no handler of these partitions runs."""

    @property
    def ready(self) -> bool:
        """Connected, with partitions assigned, and not paused."""
        session = self._session
        connected = session is not None and self._events.connected and bool(session.consumer.assigned)
        return connected and not self._paused and not self._stopping

    async def _open(self) -> LogSession:
        session = LogSession()

        async def revoking(partitions: frozenset[Partition]) -> None:
            await self._revoke(session, partitions)

        limit, topics = self._read_ahead, self.topics
        session.consumer = await self._events.consumer(topics, self.group, limit=limit, revoking=revoking)
        return session

    def _loops(self, session: LogSession) -> list[Coroutine[Any, Any, None]]:
        return [self._launch(session), self._tell_done(session)]

    # ---- receive ---------------------------------------------------------------------------------------------------

    async def _fetch(self, session: LogSession, room: int) -> list[Record]:
        return await session.consumer.receive(room)

    def _room_for(self, session: LogSession) -> int:
        return min(RECEIVE, MOST_HELD - session.held)

    def _pause(self) -> None:
        if self._session is not None:
            self._session.consumer.pause(tuple(self._session.consumer.assigned))

    def _resume(self) -> None:
        if self._session is not None:
            self._session.consumer.resume(tuple(self._session.consumer.assigned))

    # ---- place: behind those of the same key -----------------------------------------------------------------------

    def _place(self, session: LogSession, record: Record) -> None:
        if not self._is_ours(session, record):
            session.held -= 1
            return
        envelope = record.envelope
        kind = self._kinds.get(envelope.type) or self._kind_of(envelope.type)
        if kind is None and record.unreadable is not None:
            kind = next(iter(self._kinds.values()))
        wanted = kind is not None and (record.unreadable is not None or kind.handling.wants(envelope))
        if kind is None or not wanted:
            self.counters.skipped += 1
            self._done(session, record)
            return
        lane = self._lanes.add(record, kind)
        if lane.idle:
            self._queue(lane)
        elif lane.timer is not None and self._is_full(lane):
            lane.stop_timer()
            self._queue(lane)

    def _is_ours(self, session: LogSession, record: Record) -> bool:
        """Whether it belongs to what is assigned now. A newer epoch makes all older records somebody else's."""
        if record.retried:
            return True
        partition = record.topic, record.partition
        newest = session.epochs.get(partition)
        if newest is None or record.epoch > newest:
            session.epochs[partition] = record.epoch
            if newest is not None:
                session.fenced[partition] = newest
                self._drop(session, lambda other: self._is_fenced(session, other))
        return partition not in session.revoking and not self._is_fenced(session, record)

    def _is_fenced(self, session: LogSession, record: Record) -> bool:
        return not record.retried and record.epoch <= session.fenced.get((record.topic, record.partition), -1)

    def _queue(self, lane: Lane) -> None:
        """Let it wait for its turn, or for company where it makes batches."""
        batch = lane.kind.handling.batch
        if batch is not None and lane.key is not None and not self._is_full(lane) and batch.wait > 0:
            lane.timer = self._clock.call_later(batch.wait, lambda: self._again(lane))
            return
        lane.queued = True
        self._waiting.append(lane)
        self._bell.ring()

    def _is_full(self, lane: Lane) -> bool:
        """Whether its next batch is complete; it is where its first record goes alone."""
        batch = lane.kind.handling.batch
        if batch is None:
            return False
        return len(lane.records) >= batch.size or lane.singles > 0 or bool(lane.records[0].lost)

    def _again(self, lane: Lane) -> None:
        lane.timer = None
        lane.queued = True
        self._waiting.append(lane)
        self._bell.ring()

    # ---- start -----------------------------------------------------------------------------------------------------

    async def _launch(self, session: LogSession) -> None:
        create = asyncio.get_running_loop().create_task
        while not self._drained:
            works = self._choose(session)
            for work in works:
                work.task = create(self._turn(session, work))
            if not works:
                await self._bell.wait()

    def _work_for(self, session: LogSession, entry: Lane, *, alone: bool = False) -> Work | None:
        lane = entry
        if not lane.records:  # they went to another member while it waited
            lane.queued = False
            self._lanes.forget(lane)
            return None
        first = lane.records[0]
        kind = self._kinds.get(first.envelope.type) or lane.kind
        if first.lost and not alone:
            self._suspects.append(lane)
            return None
        if kind.full and not alone:
            kind.waiting.append(lane)
            return None
        lane.queued = False
        lane.kind = kind
        items = self._batch_of(lane) if kind.handling.batch is not None else ()
        lane.under_way = len(items) or 1
        work = Work(self.runs, kind.handling, first, items, lane)
        self._take_place(work, kind)
        return work

    def _batch_of(self, lane: Lane) -> list[Record]:
        """The next records to be handled together."""
        batch, first = lane.kind.handling.batch, lane.records[0]
        if batch is None or lane.singles > 0 or first.lost or (first.retried and first.attempt > 1):
            return lane.records[:1]
        size = next((n for n, record in enumerate(lane.records[: batch.size]) if record.lost), batch.size)
        return lane.records[:size]

    # ---- a turn: one record of a lane, or one batch ----------------------------------------------------------------

    async def _turn(self, session: LogSession, work: Work) -> None:
        lane: Lane = work.origin
        records = lane.records[: lane.under_way]
        delay = 0.0
        try:
            if work.items:
                delay = await self._handle_batch(session, lane, work)
            else:
                delay = await self._handle(session, lane, work)
        except Exception:
            log.exception("a fault of the consumer itself; the event is handled again (id %s)", work.item.envelope.id)
            delay = ODD_DELAY
        finally:
            lane.under_way = 0
            self._free_place(work)
            if session is not self._session:
                lane.drop(records.__contains__)  # they came from a consumer that is gone, and are read again
            self._go_on(lane, delay)
            self._tell_revokers()

    async def _handle(self, session: LogSession, lane: Lane, work: Work) -> float:
        """Seconds until the lane goes on."""
        record = lane.records[0]
        outcome: Outcome | None = await self._without_handler(record, work.handling)
        if outcome is None:
            await self._tell_start(session, record)
        if outcome is None and work.handling.at_most_once:
            await session.consumer.done([record])
            self._count_at_most_once(await self.runs.one(work))
            self._take_out(session, lane, record)
            return 0.0
        if outcome is None:
            outcome = await self.runs.one(work)
        return await self._settle(session, lane, work, record, outcome)

    async def _tell_start(self, session: LogSession, record: Record) -> None:
        """Suspects run alone: if this process dies now, it is known of what."""
        if record.lost and isinstance(session.consumer, ToldOfStarts):
            await session.consumer.starting(record)

    async def _tell_stop(self, session: LogSession, record: Record) -> None:
        if record.lost and isinstance(session.consumer, ToldOfStarts):
            await session.consumer.stopped(record)

    async def _handle_batch(self, session: LogSession, lane: Lane, work: Work) -> float:
        records = lane.records[: lane.under_way]
        outcomes: list[Outcome | None] = [await self._without_handler(record, work.handling) for record in records]
        work.items = [record for record, outcome in zip(records, outcomes, strict=True) if outcome is None]
        if work.items:
            work.item = work.items[0]
            await self._tell_start(session, records[0])
            if work.handling.at_most_once:
                await session.consumer.done([record for record in records if record in work.items])
            found = iter(await self.runs.batch(work))
            outcomes = [next(found) if outcome is None else outcome for outcome in outcomes]
        if work.handling.at_most_once:
            outcomes = self._at_most_once(session, lane, records, outcomes, handled=set(work.items))
        lane.singles = max(0, lane.singles - len(records))
        keyed = any(record.envelope.key is not None for record in records)
        for place, (record, outcome) in enumerate(zip(records, outcomes, strict=True)):
            if outcome is None:
                continue
            delay = await self._settle(session, lane, work, record, outcome)
            if record in lane.records or (keyed and _gave_up(outcome)):
                # The handler stopped at its first failure: what comes behind it was not handled.
                lane.singles = max(lane.singles, len(records) - place)
                return delay
        return 0.0

    def _at_most_once(
        self,
        session: LogSession,
        lane: Lane,
        records: list[Record],
        outcomes: list[Outcome | None],
        handled: set[Any],
    ) -> list[Outcome | None]:
        """Count those that were handled; what is left has its outcome before any handler saw it."""
        left: list[Outcome | None] = []
        for record, outcome in zip(records, outcomes, strict=True):
            if record in handled and outcome is not None:
                self._count_at_most_once(outcome)
                self._take_out(session, lane, record)
                outcome = None
            left.append(outcome)
        return left

    async def _without_handler(self, record: Record, handling: Handling) -> Bury | None:
        """Why it is given up before any handler sees it, if it is."""
        envelope, backoff = record.envelope, handling.backoff
        if record.unreadable is not None:
            return self._given_up(record, "undecodable", record.unreadable)
        if not handling.understands(envelope):
            known = handling.versions.get(envelope.type, 1)
            return self._given_up(
                record, "undecodable", f"It has version {envelope.version}, and {handling.title} knows {known}."
            )
        if record.lost >= self._lost_limit:
            times = "once" if record.lost == 1 else f"{record.lost} times"
            return self._given_up(record, "worker_lost", f"Its worker ended {times} while it was handled.")
        if record.attempt - record.lost > backoff.attempts:
            text = f"It was started {record.attempt - 1} of {backoff.attempts} times."
            return self._given_up(record, "attempts", text)
        if envelope.expires is not None and envelope.expires <= self._clock.time():
            late = self._clock.time() - envelope.expires
            return self._given_up(record, "expired", f"No handler had started {late:.3g} s after it expired.")
        if handling.on_dead == "park_key" and await self._parks.holds(record):
            return self._given_up(record, "parked", f"An earlier event of its key {envelope.key!r} is dead.")
        return None

    def _given_up(self, record: Record, reason: str, error: str) -> Bury:
        log.error(
            "%s goes to the dead letters as %s (id %s, %s): %s",
            record.envelope.type, reason, record.envelope.id, record.position, error,
        )  # fmt: skip
        return Bury(reason, clean(error))

    # ---- settle ----------------------------------------------------------------------------------------------------

    async def _settle(self, session: LogSession, lane: Lane, work: Work, record: Record, outcome: Outcome) -> float:
        """Seconds until the lane goes on: it does with the same record, unless that was taken out of it."""
        if session is not self._session or self._is_fenced(session, record):
            self._take_out(session, lane, record, lost=session is self._session)
        elif isinstance(outcome, Ack):
            self.counters.done += 1
            self._done(session, record)
            lane.records.remove(record)
        elif isinstance(outcome, Bury):
            await self._bury(session, lane, work, record, outcome)
        elif isinstance(outcome, RetryAfter) and record.envelope.key is None:
            await self._retry(session, lane, work, record, outcome)
        else:
            await self._tell_stop(session, record)
            return self._stay(session, lane, work, record, outcome)
        return 0.0

    def _stay(self, session: LogSession, lane: Lane, work: Work, record: Record, outcome: Outcome) -> float:
        """It is handled again in place; or by somebody else, where we are about to leave."""
        if work.ended == "shutdown" or self._stopping or (record.topic, record.partition) in session.revoking:
            self.counters.released += 1
            self._take_out(session, lane, record)
            return 0.0
        if isinstance(outcome, RetryAfter):
            self.counters.retried += 1
            record.attempt += 1
            return outcome.delay
        self.counters.released += 1
        return outcome.delay if isinstance(outcome, Release) else ODD_DELAY

    async def _retry(self, session: LogSession, lane: Lane, work: Work, record: Record, outcome: RetryAfter) -> None:
        if await self._write(session, lane, record, lambda: session.consumer.retry(record, outcome)):
            self.counters.retried += 1
            self._take_out(session, lane, record)

    async def _bury(self, session: LogSession, lane: Lane, work: Work, record: Record, outcome: Bury) -> None:
        if await self._write(session, lane, record, lambda: session.consumer.bury(record, outcome)):
            self.counters.bury(outcome.reason)
            if work.handling.on_dead == "park_key":
                self._parks.add(record)
            self._take_out(session, lane, record)

    async def _write(
        self, session: LogSession, lane: Lane, record: Record, write: Callable[[], Awaitable[None]]
    ) -> bool:
        """Whether it was written. It is tried until it is, or until the record is somebody else's."""
        delay = WRITE_DELAY
        while True:
            try:
                await write()
            except Exception as error:  # noqa: BLE001 - whatever it is, the event must not be counted as done
                log.warning(
                    "the outcome of %s could not be written, which is tried again in %g s (id %s, %s): %s",
                    record.envelope.type, delay, record.envelope.id, record.position, error,
                )  # fmt: skip
            else:
                return True
            await self._sleep(delay)
            delay = min(delay * 2, 30.0)
            if session is not self._session or self._stopping or self._is_fenced(session, record):
                self.counters.released += self._stopping
                self._take_out(session, lane, record, lost=session is self._session and not self._stopping)
                return False

    async def _sleep(self, seconds: float) -> None:
        """Less, where there is no time left."""
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        timer = self._clock.call_later(seconds, lambda: wake_up(woken))
        self._sleeping.add(woken)
        try:
            await woken
        finally:
            timer.cancel()
            self._sleeping.discard(woken)

    def _hurry(self) -> None:
        for woken in self._sleeping:
            wake_up(woken)

    def _take_out(self, session: LogSession, lane: Lane, record: Record, *, lost: bool = False) -> None:
        """It is settled, or none of ours any more."""
        if record in lane.records:
            lane.records.remove(record)
        if session is self._session:
            session.held -= 1
            self._room.ring()
        if lost:
            self.counters.lost += 1

    def _done(self, session: LogSession, record: Record) -> None:
        session.held -= 1
        session.done.append(record)
        self._done_bell.ring()

    async def _tell_done(self, session: LogSession) -> None:
        """What finished in one turn of the loop is told together."""
        while True:
            if session.done:
                await self._flush(session)
            elif self._drained:
                return
            else:
                await self._done_bell.wait()

    async def _flush(self, session: LogSession) -> None:
        async with self._telling:
            done, session.done = session.done, []
            await session.consumer.done(done)
            self._room.ring()

    def _count_at_most_once(self, outcome: Outcome) -> None:
        if isinstance(outcome, Ack):
            self.counters.done += 1
        else:
            self.counters.dropped += 1

    def _go_on(self, lane: Lane, delay: float) -> None:
        """What the lane does after a turn."""
        if not lane.records:
            self._lanes.forget(lane)
        elif delay > 0:
            lane.timer = self._clock.call_later(delay, lambda: self._again(lane))
        else:
            self._queue(lane)

    # ---- leaving ---------------------------------------------------------------------------------------------------

    async def _revoke(self, session: LogSession, partitions: frozenset[Partition]) -> None:
        """Let the handlers of these partitions finish, and start none: they go to another member."""
        if session is not self._session:
            return
        session.revoking |= partitions
        self.counters.released += self._drop(session, lambda record: _is_of(record, partitions))
        try:
            await self._finish(partitions)
            await self._flush(session)
        finally:
            for partition in partitions:
                session.fenced[partition] = session.epochs.get(partition, -1)
            session.revoking -= partitions

    async def _finish(self, partitions: frozenset[Partition]) -> None:
        if not self._runs_any(partitions):
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = partitions, future
        self._finished.append(entry)
        timer = self._clock.call_later(self._revoke_patience, lambda: wake_up(future))
        try:
            await future
        finally:
            timer.cancel()
            self._finished.remove(entry)

    def _tell_revokers(self) -> None:
        for partitions, future in self._finished:
            if not self._runs_any(partitions):
                wake_up(future)

    def _runs_any(self, partitions: frozenset[Partition]) -> bool:
        return any(_is_of(item, partitions) for work in self._running for item in work.items or (work.item,))

    def _drop(self, session: LogSession, which: Callable[[Record], bool]) -> int:
        """Forget what fits and was not started."""
        count, lanes = self._lanes.drop(which)
        session.held -= count
        for lane in lanes:
            if lane.idle and not lane.records:
                self._lanes.forget(lane)
            elif lane.idle:
                self._queue(lane)
        self._room.ring()
        return count

    def _give_back(self) -> None:
        if self._session is not None:
            self.counters.released += self._drop(self._session, lambda record: True)
        self._clear()

    def _clear(self) -> None:
        self._hurry()  # what could not be written so far is for somebody else to write
        self._lanes.drop(lambda record: True)
        for entries in (self._waiting, self._suspects, *(kind.waiting for kind in set(self._kinds.values()))):
            for lane in entries:
                lane.queued = False
                self._lanes.forget(lane)
            entries.clear()
        for lane in self._lanes:
            if lane.idle:
                self._lanes.forget(lane)

    def _drain(self) -> None:
        self._done_bell.ring()


def _gave_up(outcome: Outcome) -> bool:
    """Whether a handler failed with it: what is undecodable never got to one."""
    return isinstance(outcome, Bury) and outcome.reason in ("attempts", "rejected")


def _is_of(item: Any, partitions: frozenset[Partition]) -> bool:
    """Whether a record was read from these partitions."""
    return not item.retried and (item.topic, item.partition) in partitions


def _refuse_answers(handlings: Sequence[Handling]) -> None:
    for handling in handlings:
        if handling.answers is not None:
            raise SetupError(f"{handling.title} cannot be consumed from a log: events have no results.")
