"""Consumes a queue: receives, starts and settles in step with the backend."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Coroutine, Sequence
from typing import Any, cast

from polywire.bus.consumer.bell import Bell
from polywire.bus.consumer.handling import Handling
from polywire.bus.consumer.kinds import Kind
from polywire.bus.consumer.limits import Alone
from polywire.bus.consumer.run import MessageLog, Processes, Runs, Work
from polywire.bus.consumer.runner import CONCURRENCY, ODD_DELAY, Runner
from polywire.bus.consumer.verdict import ACK, RELEASE, clean
from polywire.bus.core.inbox import Inbox
from polywire.bus.core.queue import (
    Ack,
    Bury,
    Delivery,
    Outcome,
    QueueConsumer,
    Release,
    RetryAfter,
    Settlement,
    TaskQueue,
    ToldOfWithdrawals,
)
from polywire.clock import SYSTEM_CLOCK, Clock
from polywire.errors import SetupError
from polywire.threads import Threads

log = logging.getLogger("polywire.consumer")

PREFETCH_HORIZON = 0.05
"""Seconds worth of work that is held beside what runs. Whoever holds more keeps it from others that could start it."""
UNKNOWN_DELAY = 10.0
"""Seconds before a message of an unknown type is looked at again."""
MAX_UNKNOWN = 10_000
"""Messages of unknown types of which it is remembered when they were seen first."""

Entry = tuple[list[Delivery], Kind]
"""Deliveries for one run."""


class QueueSession:
    """The life of one QueueConsumer."""

    def __init__(self, consumer: QueueConsumer) -> None:
        self.consumer = consumer
        self.held = 0
        self.finished: list[Settlement] = []
        """Acknowledgements to be handed over."""
        self.others: list[Settlement] = []
        """What takes longer to settle, because something is written for it. It does not hold the others up."""
        self.untold: list[tuple[Delivery, Bury]] = []
        """Of these somebody waits for a result, who has to be told first."""
        self.others_bell = Bell()


class QueueRunner(Runner[QueueSession, Entry, Delivery]):
    """Handles the messages of one queue in this process: tasks, or the events of a group behind a Fanout.

    *concurrency* handlers run at a time, and at most *prefetch* messages more are held. *rate* is in starts per second.
    *group* is the group's name where it is one; what a group does not declare is skipped, while a task that nobody
    here knows is given back for a while. *alone* is shared by the runners of a process.
    """

    def __init__(
        self,
        queue: TaskQueue,
        name: str,
        handlings: Sequence[Handling],
        *,
        group: str | None = None,
        concurrency: int = CONCURRENCY,
        prefetch: int | None = None,
        rate: float | None = None,
        lost_limit: int = 3,
        keyed: bool = False,
        inbox: Inbox | None = None,
        threads: Threads | None = None,
        processes: Processes | None = None,
        message_log: MessageLog | None = None,
        alone: Alone | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        own_threads = Threads(concurrency, name) if threads is None else None
        runs = Runs(
            name, group, wire="tasks" if group is None else "events", clock=clock, inbox=inbox,
            threads=threads or own_threads, processes=processes, message_log=message_log,
        )  # fmt: skip
        super().__init__(
            f"The queue {name!r}", runs, handlings,
            concurrency=concurrency, rate=rate, threads=own_threads, alone=alone, clock=clock,
        )  # fmt: skip
        _refuse_parking(handlings)
        self.name = name
        self._queue = queue
        biggest = max(handling.batch.size if handling.batch else 1 for handling in handlings)
        self._prefetch = concurrency * biggest if prefetch is None else prefetch
        self._limit = concurrency * biggest + self._prefetch
        self._skips = group is not None
        self._lost_limit = lost_limit
        self._keyed = keyed
        self._unknown_after = max(handling.unknown_after for handling in handlings)
        self._unknown: dict[str, float] = {}

    @property
    def ready(self) -> bool:
        """Connected and not paused."""
        return self._session is not None and self._queue.connected and not self._paused and not self._stopping

    async def _open(self) -> QueueSession:
        session = QueueSession(await self._queue.consumer(self.name, limit=self._limit))
        if self._queue.guarantees.withdraw:
            cast(ToldOfWithdrawals, session.consumer).when_withdrawn(self._withdrawn)
        return session

    def _withdrawn(self, delivery: Delivery) -> None:
        """Its message was taken back. Its handler is told by cancellation; one that did not start will not."""
        work = next((work for work in self._running if work.item is delivery and not work.items), None)
        if work is not None and work.ended is None:
            log.info("%s was taken back while it was handled (id %s)", delivery.envelope.type, delivery.envelope.id)
            work.end("withdrawn")

    def _loops(self, session: QueueSession) -> list[Coroutine[Any, Any, None]]:
        return [self._move(session), self._settle_others(session)]

    # ---- receive ---------------------------------------------------------------------------------------------------

    async def _fetch(self, session: QueueSession, room: int) -> list[Delivery]:
        return await session.consumer.receive(room)

    def _room_for(self, session: QueueSession) -> int:
        """Fewer than allowed are not asked for while there is something to start: each time has its price."""
        allowed = self._allowed()
        room = allowed - session.held
        return room if room * 4 >= allowed or not self._waiting else 0

    def _allowed(self) -> int:
        """How many messages may be held now: fewer beyond those that run where handlers take long."""
        average = self.runs.average
        ahead = self._concurrency * PREFETCH_HORIZON / average if average > 0 else self._prefetch
        return self._limit - self._prefetch + int(min(self._prefetch, ahead))

    # ---- place: what waits to be started, and what needs no handler ------------------------------------------------

    def _place(self, session: QueueSession, delivery: Delivery) -> None:
        envelope = delivery.envelope
        kind = self._kinds.get(envelope.type) or self._kind_of(envelope.type)
        if kind is None or delivery.unreadable is not None or not kind.handling.understands(envelope):
            self._place_unknown(session, delivery)
        elif not kind.handling.wants(envelope):
            self._skip(session, delivery)
        elif delivery.lost or delivery.attempt > kind.handling.backoff.attempts:
            self._place_suspect(session, delivery, kind)
        elif kind.handling.batch is None:
            self._waiting.append(([delivery], kind))
        elif delivery.attempt > 1:
            self._waiting.append(([delivery], kind))  # it failed in company: alone it does no harm to the others
        elif kind.gather(delivery):
            self._flush(kind)
        elif kind.timer is None:
            kind.timer = self._clock.call_later(kind.handling.batch.wait, lambda: self._flush(kind))

    def _flush(self, kind: Kind) -> None:
        gathered = kind.take()
        if gathered:
            self._waiting.append((gathered, kind))
            self._bell.ring()

    def _place_unknown(self, session: QueueSession, delivery: Delivery) -> None:
        envelope = delivery.envelope
        if delivery.unreadable is not None:
            self._bury(session, delivery, "undecodable", delivery.unreadable)
        elif self._skips and envelope.type not in self._kinds:
            self._skip(session, delivery)
        else:
            self._release_unknown(session, delivery)

    def _skip(self, session: QueueSession, delivery: Delivery) -> None:
        self.counters.skipped += 1
        session.finished.append(Settlement(delivery, ACK))

    def _release_unknown(self, session: QueueSession, delivery: Delivery) -> None:
        """Perhaps it is newer than this program, and another process knows it, or this one after its next deploy."""
        envelope = delivery.envelope
        now = self._clock.monotonic()
        since = self._unknown.get(envelope.id)
        if since is None:
            if len(self._unknown) >= MAX_UNKNOWN:
                del self._unknown[next(iter(self._unknown))]
            since = self._unknown[envelope.id] = now
            log.warning(
                "%s, version %d, is not known here and given back (id %s)", envelope.type, envelope.version, envelope.id
            )
        if now - since < self._unknown_after:
            self._settle_later(session, Settlement(delivery, Release(UNKNOWN_DELAY)))
            return
        del self._unknown[envelope.id]
        self._bury(
            session, delivery, "unknown_type",
            f"No handler of the queue {self.name!r} knew {envelope.type!r}, version {envelope.version}, "
            f"for {now - since:.0f} s.",
        )  # fmt: skip

    def _place_suspect(self, session: QueueSession, delivery: Delivery, kind: Kind) -> None:
        if delivery.lost >= self._lost_limit or (delivery.lost and delivery.attempt > kind.handling.backoff.attempts):
            times = "once" if delivery.lost == 1 else f"{delivery.lost} times"
            self._bury(session, delivery, "worker_lost", f"Its worker ended {times} while it was handled.")
        elif delivery.attempt > kind.handling.backoff.attempts:
            attempts = kind.handling.backoff.attempts
            self._bury(session, delivery, "attempts", f"It was started {delivery.attempt - 1} of {attempts} times.")
        else:
            self._suspects.append(([delivery], kind))

    def _bury(self, session: QueueSession, delivery: Delivery, reason: str, error: str) -> None:
        log.error("%s goes to the dead letters as %s (id %s): %s",
            delivery.envelope.type, reason, delivery.envelope.id, error,
        )  # fmt: skip
        kind = self._kinds.get(delivery.envelope.type)
        outcome = Bury(reason, clean(error))
        if kind is not None and kind.handling.answers is not None:
            session.untold.append((delivery, outcome))
            session.others_bell.ring()
        else:
            self._settle_later(session, Settlement(delivery, outcome))

    def _pause(self) -> None:
        self._give_back()

    def _give_back(self) -> None:
        session, waiting = self._session, self._take_waiting()
        if session is not None:
            for delivery in reversed(waiting):  # where each is put back at the front, the oldest is first again
                self._settle_later(session, Settlement(delivery, RELEASE))

    def _clear(self) -> None:
        self._take_waiting()

    def _take_waiting(self) -> list[Delivery]:
        """All that waits, taken out."""
        kinds = set(self._kinds.values())
        entries = [*self._waiting, *self._suspects, *(entry for kind in kinds for entry in kind.waiting)]
        found = [delivery for deliveries, _ in entries for delivery in deliveries]
        self._waiting.clear()
        self._suspects.clear()
        for kind in kinds:
            kind.waiting.clear()
            found += kind.take()
        if self._suspect is None:
            self._alone.leave(self._wake)
        return found

    # ---- move: settle what finished and start what waits, in one call ----------------------------------------------

    async def _move(self, session: QueueSession) -> None:
        consumer = session.consumer
        while True:
            finished, session.finished = session.finished, []
            works = self._choose(session)
            if not finished and not works:
                if self._drained:
                    return
                await self._bell.wait()
                continue
            await self._start(session, consumer, finished, works)
            if finished:
                self.counters.done += len(finished)
                self._let_go(session, len(finished))

    async def _start(
        self, session: QueueSession, consumer: QueueConsumer, finished: list[Settlement], works: list[Work]
    ) -> None:
        starting = [delivery for work in works for delivery in _deliveries(work)]
        try:
            held = await consumer.settle(finished, starting)
            if len(held) < len(starting):
                works = self._still_held(session, works, held)
            works = await self._acknowledge_first(session, consumer, works)
        except BaseException:
            for work in works:
                self._free_place(work)
            raise
        create = asyncio.get_running_loop().create_task
        for work in works:
            work.task = create(self._run(work))

    def _still_held(self, session: QueueSession, works: list[Work], held: Collection[Delivery]) -> list[Work]:
        """Leave out what is somebody else's by now."""
        kept = []
        for work in works:
            left = [delivery for delivery in _deliveries(work) if delivery in held]
            gone = len(_deliveries(work)) - len(left)
            self.counters.lost += gone
            self._let_go(session, gone)
            if not left:
                self._free_place(work)
                continue
            if gone:
                work.item, work.items = left[0], left
            kept.append(work)
        return kept

    async def _acknowledge_first(self, session: QueueSession, consumer: QueueConsumer, works: list[Work]) -> list[Work]:
        """What is handled at most once is acknowledged before its handler runs."""
        first = [work for work in works if work.handling.at_most_once]
        if first:
            settled = [Settlement(delivery, ACK) for work in first for delivery in _deliveries(work)]
            await consumer.settle(settled)
            self._let_go(session, len(settled))
            for work in first:
                work.origin = None
        return works

    def _work_for(self, session: QueueSession, entry: Entry, *, alone: bool = False) -> Work | None:
        deliveries, kind = entry
        if kind.full and not alone:
            kind.waiting.append(entry)
            return None
        for delivery in deliveries:
            if delivery.envelope.expires is not None:
                deliveries = self._unexpired(session, deliveries)
                break
        if not deliveries:
            return None
        handling = kind.handling
        work = Work(self.runs, handling, deliveries[0], deliveries if handling.batch is not None else (), session)
        self._take_place(work, kind)
        return work

    def _unexpired(self, session: QueueSession, deliveries: list[Delivery]) -> list[Delivery]:
        now = self._clock.time()
        left = []
        for delivery in deliveries:
            expires = delivery.envelope.expires
            if expires is None or expires > now:
                left.append(delivery)
            else:
                self._bury(
                    session, delivery, "expired", f"No handler had started {now - expires:.3g} s after it expired."
                )
        return left

    # ---- run -------------------------------------------------------------------------------------------------------

    async def _run(self, work: Work) -> None:
        try:
            if work.items:
                outcomes = await self.runs.batch(work)
                self._finish_batch(work, outcomes)
            else:
                outcome = await self.runs.one(work)
                self._finish(work, work.item, outcome)  # type: ignore[arg-type]  # a Delivery
        except Exception:
            log.exception("a fault of the consumer itself; the message is given back (id %s)", work.item.envelope.id)
            for delivery in _deliveries(work):
                self._finish(work, delivery, Release(ODD_DELAY))
        finally:
            self._free_place(work)

    def _finish_batch(self, work: Work, outcomes: list[Outcome]) -> None:
        failed = False
        for delivery, outcome in zip(_deliveries(work), outcomes, strict=True):
            if failed and self._keyed and not isinstance(outcome, Bury):
                # The handler stopped at its first failure, so what came behind it was not handled.
                outcome = RELEASE
            failed = failed or isinstance(outcome, RetryAfter | Release) or _gave_up(outcome)
            self._finish(work, delivery, outcome)

    def _finish(self, work: Work, delivery: Delivery, outcome: Outcome) -> None:
        session: QueueSession | None = work.origin
        if session is None:
            self._count_at_most_once(outcome)
        elif session is not self._session:
            return  # counted when its consumer was lost
        elif outcome is ACK:
            session.finished.append(Settlement(delivery, ACK))
        else:
            self._settle_later(session, Settlement(delivery, outcome))

    def _count_at_most_once(self, outcome: Outcome) -> None:
        if outcome is ACK:
            self.counters.done += 1
        else:
            self.counters.dropped += 1

    # ---- settle what needs writing ---------------------------------------------------------------------------------

    def _settle_later(self, session: QueueSession, settlement: Settlement) -> None:
        session.others.append(settlement)
        session.others_bell.ring()

    async def _settle_others(self, session: QueueSession) -> None:
        while True:
            others, session.others = session.others, []
            untold, session.untold = session.untold, []
            if not others and not untold:
                if self._drained:
                    return
                await session.others_bell.wait()
                continue
            for delivery, outcome in untold:
                others.append(Settlement(delivery, await self._told(delivery, outcome)))
            await session.consumer.settle(others)
            self._count(others)
            self._let_go(session, len(others))

    async def _told(self, delivery: Delivery, outcome: Bury) -> Outcome:
        handling = self._kinds[delivery.envelope.type].handling
        return await self.runs.told(handling, delivery.envelope, outcome)

    def _count(self, settlements: list[Settlement]) -> None:
        counters = self.counters
        for settlement in settlements:
            outcome = settlement.outcome
            if isinstance(outcome, RetryAfter):
                counters.retried += 1
            elif isinstance(outcome, Bury):
                counters.bury(outcome.reason)
            elif isinstance(outcome, Release):
                counters.released += 1
            elif isinstance(outcome, Ack):
                counters.done += 1

    def _let_go(self, session: QueueSession, count: int) -> None:
        session.held -= count
        self._room.ring()

    def _drain(self) -> None:
        if self._session is not None:
            self._session.others_bell.ring()


def _refuse_parking(handlings: Sequence[Handling]) -> None:
    for handling in handlings:
        if handling.on_dead == "park_key":
            raise SetupError(
                f"{handling.title} cannot be consumed from a queue: on_dead='park_key' needs an event log. "
                "Choose on_dead='continue', or a backend that keeps a log."
            )


def _deliveries(work: Work) -> Sequence[Delivery]:
    return work.items or (work.item,)  # type: ignore[return-value]  # the items of this runner are deliveries


def _gave_up(outcome: Outcome) -> bool:
    """Whether a handler failed with it: what is undecodable never got to one."""
    return isinstance(outcome, Bury) and outcome.reason in ("attempts", "rejected")
