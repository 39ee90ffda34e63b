"""A consumer of a queue in a file: what it holds, what it fetches ahead, and what it says of it."""

from __future__ import annotations

import array
import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import Any

import apsw

from polywire.bus.backend import sqlite_messages as messages
from polywire.bus.backend.sqlite_file import NotDone, PerhapsDone, SharedFile, Transaction, Work, deadline_in
from polywire.bus.backend.sqlite_messages import Claimed, QueueRow
from polywire.bus.core import Ack, Bury, Delivery, Envelope, Release, RetryAfter, Settlement, unpack
from polywire.bus.core.queue import Withdrawn
from polywire.clock import Clock, Timer
from polywire.errors import BackendLost, ConsumerClosed, UndecodableMessage

UNASKED = 1.0
"""Seconds for which messages that were fetched ahead wait for somebody to receive them; then others get them."""

logger = logging.getLogger("polywire.bus.sqlite")


class _Claim(Work):
    """Fetch messages; wait for them where there are none."""

    durable = False

    def __init__(self, consumer: SqliteConsumer, owner: int, want: int) -> None:
        self._consumer = consumer
        self._owner = owner
        self._want = want
        self._queue = consumer.row
        self._told: float | None = None
        self.channel = consumer.row.channel
        self.rows: list[Claimed] = []
        self.lost = False

    def run(self, tx: Transaction) -> bool:
        self.lost = not tx.owns(self._owner)
        if self.lost:
            return True
        self.rows, later = messages.claim(tx, self._queue, self._owner, self._want)
        if self.rows:
            return True
        self._wait_until(later)
        return False

    def peek(self, connection: apsw.Connection, now: float) -> bool:
        if messages.has_ready(connection, self._queue.n):
            return True
        due = messages.next_due(connection, self._queue.n)
        self._wait_until(due)
        return due is not None and due <= now

    def _wait_until(self, due: float | None) -> None:
        if due != self._told and self.loop is not None:
            self._told = due
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits
                self.loop.call_soon_threadsafe(self._consumer.wait_until, due)

    def finish(self) -> None:
        self._consumer.claimed(self)

    def fail(self, error: Exception) -> None:
        self._consumer.failed(error)


class _Settle(Work):
    """Settle messages, start others and fetch new ones."""

    durable = False

    def __init__(self, consumer: SqliteConsumer, owner: int, want: int) -> None:
        self._consumer = consumer
        self._queue = consumer.row
        self._owner = owner
        self.want = want
        self.done = array.array("q")
        self.keys: list[str] = []
        self.buried: list[tuple[int, str, str, str, str]] = []
        self.back: list[tuple[int, float | None, bool]] = []
        self.starting: list[int] = []
        self.rows: list[Claimed] = []
        self.lost = False
        self.future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def add(self, delivery: Delivery, outcome: Ack | Bury | RetryAfter | Release, started: bool, now: float) -> None:
        pos: int = delivery.token
        if isinstance(outcome, RetryAfter | Release):
            due = now + outcome.delay if outcome.delay > 0 else None
            self.back.append((pos, due, isinstance(outcome, RetryAfter)))
            return
        self.done.append(pos)
        if self._queue.keyed and delivery.envelope.key is not None:
            self.keys.append(delivery.envelope.key)
        if isinstance(outcome, Bury):
            self.buried.append((pos, delivery.envelope.id, delivery.envelope.type, outcome.reason, outcome.error))
        if isinstance(outcome, Bury) or not started:
            # Acknowledged before it starts: at most once, which a power cut must not undo.
            self.durable = True

    def run(self, tx: Transaction) -> bool:
        self.lost = not tx.owns(self._owner)
        if self.lost:
            return True
        for buried in self.buried:
            messages.bury(tx, self._owner, *buried)
        if self.done:
            messages.finish(tx, self._queue, self._owner, self.done, self.keys)
        for pos, due, failed in self.back:
            messages.give_back(tx, self._owner, pos, due, failed=failed)
        if self.starting:
            messages.start(tx, self._owner, self.starting)
        if self.want > 0:
            self.rows, _ = messages.claim(tx, self._queue, self._owner, self._share(tx))
        return True

    def _share(self, tx: Transaction) -> int:
        """How many to fetch. Where the keys that were just let go are all that is free, the others get one of them:
        as long as there is more of each key than one consumer can do, they would never get any."""
        if not self.keys or not messages.has_others(tx.connection, self._queue, self._owner):
            return self.want
        free = messages.count_ready(tx.connection, self._queue.n, self.want + 1)
        return free - 1 if 1 < free <= self.want else self.want

    def finish(self) -> None:
        self._consumer.settled(self)
        if not self.future.done():
            self.future.set_result(not self.lost)

    def fail(self, error: Exception) -> None:
        self._consumer.failed(error)
        if not self.future.done():
            self.future.set_exception(self._consumer.gone())


class _Watch(Work):
    """Wait until something that a consumer holds is taken back."""

    durable = False

    def __init__(self, consumer: SqliteConsumer, owner: int) -> None:
        self._consumer = consumer
        self._owner = owner
        self.channel = consumer.row.withdrawals
        self.missing: list[int] = []

    def run(self, tx: Transaction) -> bool:
        self._look(tx.connection)
        return bool(self.missing) or not tx.owns(self._owner)

    def peek(self, connection: apsw.Connection, now: float) -> bool:
        self._look(connection)
        return bool(self.missing)

    def _look(self, connection: apsw.Connection) -> None:
        # First what is held here: what is fetched after that is in the file, but not here.
        here = list(self._consumer.held)
        there = {pos for (pos,) in connection.execute("SELECT pos FROM held WHERE owner = ?", (self._owner,))}
        self.missing = [pos for pos in here if pos not in there]

    def finish(self) -> None:
        self._consumer.withdrawn(self)

    def fail(self, error: Exception) -> None:
        """Whoever settles or receives is told what there is to tell."""


class SqliteConsumer:
    """Receives from one queue in a file. What it holds, it holds as an owner in the file, by a number that is never
    used again: whoever takes its work over deletes that, and then nothing that it still says counts."""

    def __init__(
        self, file: SharedFile, clock: Clock, row: QueueRow, limit: int, closed: Callable[[SqliteConsumer], None]
    ) -> None:
        self.row = row
        self._file = file
        self._clock = clock
        self._limit = limit
        self._told_closed = closed
        self._owner: int | None = None
        self._held: dict[int, Delivery] = {}
        self._started: set[int] = set()
        self._buffer: deque[Delivery] = deque()
        """Held, and not returned by `receive` yet."""
        self._claim: _Claim | None = None
        self._reserved = 0
        """Places kept for what settlements under way may fetch."""
        self._appetite = 0
        self._receives = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._due: Timer | None = None
        self._unasked: Timer | None = None
        self._told: Withdrawn | None = None
        self._watch: _Watch | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._failure: str | None = None

    # ---- its number ------------------------------------------------------------------------------------------------

    async def join(self) -> None:
        """Raises BackendLost."""
        try:
            owner = await self._file.do(self._enter, durable=False)
        except (NotDone, PerhapsDone) as error:
            self._failure = str(error)
            raise self.gone() from error
        self._joined(owner)

    def _enter(self, tx: Transaction) -> int:
        return tx.join(self.row.channel, self._file.writer.address, self.row.lease)

    def _joined(self, owner: int) -> None:
        self._owner = owner
        self._watch_withdrawals()
        self._file.writer.leases[owner] = self.row.lease
        self._file.poke(self.row.channel)

    def _declared_dead(self, owner: int) -> None:
        """The process stood still for longer than the lease: others have its work now. Begin anew, with nothing."""
        if owner != self._owner:
            return
        logger.warning(
            "The consumer of %r in %r gave no sign of life for %g s: what it held was given to others.",
            self.row.name,
            self._file.path,
            self.row.lease,
        )
        self._let_go()
        self._owner = None
        self._run(self.join()).add_done_callback(self._rejoined)

    def _rejoined(self, task: asyncio.Future[None]) -> None:
        if not task.cancelled() and task.exception() is None:
            if self._closed:
                self._abandon()
            else:
                self._ask()
        self._wake()

    def _let_go(self) -> None:
        self._held.clear()
        self._started.clear()
        self._buffer.clear()
        if self._owner is not None:
            self._file.writer.leases.pop(self._owner, None)

    # ---- receiving -------------------------------------------------------------------------------------------------

    async def receive(self, limit: int) -> list[Delivery]:
        self._receives += 1
        self._appetite = limit
        while True:
            self._check()
            if self._buffer:
                return self._take(limit)
            self._ask()
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                self._gave_up(waiter)
                raise

    def _check(self) -> None:
        self._file.check_fork()
        if self._closed:
            raise ConsumerClosed(f"Nothing was received from {self.row.name!r}: this consumer was closed.")
        if self._failure is not None:
            raise self.gone()

    def _take(self, limit: int) -> list[Delivery]:
        if len(self._buffer) <= limit:
            taken = list(self._buffer)
            self._buffer.clear()
            return taken
        return [self._buffer.popleft() for _ in range(limit)]

    def _ask(self) -> None:
        """Have messages fetched, where there is room for them and nobody does so already."""
        want = min(self._appetite, self._limit - len(self._held) - self._reserved)
        if self._claim is not None or want <= 0 or self._owner is None or self._closed:
            return
        self._claim = _Claim(self, self._owner, want)
        try:
            self._file.submit(self._claim)
        except NotDone as error:
            self.failed(error)

    def _gave_up(self, waiter: asyncio.Future[None]) -> None:
        """A `receive` was cancelled; perhaps after it was woken, and then what it was woken for is for another."""
        if waiter in self._waiting:
            self._waiting.remove(waiter)
        elif self._buffer:
            self._wake()
        if not self._waiting and self._claim is not None:
            self._withdraw(self._claim)

    def _withdraw(self, claim: _Claim) -> None:
        """Nobody waits for it any more: what comes is for others. Where it was too late, it is given back unasked."""

        def withdraw(tx: Transaction) -> None:
            claim.gone = True

        async def do() -> None:
            try:
                await self._file.do(withdraw, durable=False)
            except (NotDone, PerhapsDone):
                return  # nothing will come of the claim either
            if self._claim is claim:
                self._claim = None
                if self._waiting:
                    self._ask()

        self._run(do())

    def claimed(self, claim: _Claim) -> None:
        self._claim = None
        if claim.lost:
            self._declared_dead(claim._owner)
            return
        self._add(claim.rows)

    def _add(self, rows: list[Claimed]) -> None:
        for row in rows:
            delivery = _delivery(self.row.name, row)
            self._held[row[1]] = delivery
            self._buffer.append(delivery)
        if self._buffer:
            self._wake()
            if self._unasked is None:
                self._watch_unasked()

    def _wake(self) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                if self._failure is None and not self._closed:
                    return

    def wait_until(self, due: float | None) -> None:
        """Look again at *due*, in seconds since the epoch: something will be ready then without anybody's doing."""
        if self._due is not None:
            self._due.cancel()
            self._due = None
        if due is not None and not self._closed:
            delay = max(0.0, due - self._clock.time())
            self._due = self._clock.call_later(delay, lambda: self._file.poke(self.row.channel))

    # ---- settling --------------------------------------------------------------------------------------------------

    async def settle(
        self, settlements: Sequence[Settlement], starting: Sequence[Delivery] = ()
    ) -> Collection[Delivery]:
        self._file.check_fork()
        if self._failure is not None:
            raise self.gone()
        if self._owner is None:
            return []
        work = _Settle(self, self._owner, 0)
        now = self._clock.time()
        for settlement in settlements:
            self._settle(work, settlement, now)
        begun = [delivery for delivery in starting if self._held.get(delivery.token) is delivery]
        work.starting = [delivery.token for delivery in begun]
        if not work.done and not work.back and not begun:
            return []
        self._started.update(work.starting)
        self._fetch_along(work)
        self._submit(work)
        return begun if await work.future else []

    def _settle(self, work: _Settle, settlement: Settlement, now: float) -> None:
        delivery = settlement.delivery
        if self._held.get(delivery.token) is not delivery:
            return
        del self._held[delivery.token]
        started = delivery.token in self._started
        self._started.discard(delivery.token)
        work.add(delivery, settlement.outcome, started, now)

    def _fetch_along(self, work: _Settle) -> None:
        """The next messages come with the same transaction, so that there are some once these are done."""
        if self._claim is None and not self._closed and not self.row.limited:
            room = self._limit - len(self._held) - self._reserved
            work.want = max(0, min(self._appetite - len(self._buffer), room))
            self._reserved += work.want

    def _submit(self, work: _Settle) -> None:
        work.deadline = deadline_in(None)
        try:
            self._file.submit(work)
        except NotDone as error:
            self.failed(error)
            raise self.gone() from error

    def settled(self, work: _Settle) -> None:
        self._reserved -= work.want
        if work.lost:
            self._declared_dead(work._owner)
            return
        self._add(work.rows)
        if self._waiting and not self._buffer:
            self._ask()

    def _watch_unasked(self) -> None:
        receives = self._receives

        def look() -> None:
            self._unasked = None
            if self._buffer and self._receives == receives:
                self._give_back_unasked()
            elif self._buffer:
                self._watch_unasked()

        self._unasked = self._clock.call_later(UNASKED, look)

    def _give_back_unasked(self) -> None:
        """Nobody receives here any more: handlers are busy, or the consumer pauses."""
        if self._owner is None or self._closed or self._failure is not None:
            return
        work = _Settle(self, self._owner, 0)
        self._appetite = 0
        now = self._clock.time()
        while self._buffer:
            self._settle(work, Settlement(self._buffer.popleft(), Release()), now)
        try:
            self._submit(work)
        except BackendLost:
            return  # whoever settles or receives next is told

    # ---- what is taken away ----------------------------------------------------------------------------------------

    @property
    def held(self) -> Collection[int]:
        """Positions, settlements under way not included."""
        return self._held

    def when_withdrawn(self, told: Withdrawn) -> None:
        self._told = told
        self._watch_withdrawals()

    def _watch_withdrawals(self) -> None:
        if self._told is None or self._owner is None or self._closed or self._failure is not None:
            return
        self._watch = _Watch(self, self._owner)
        with contextlib.suppress(NotDone):  # whoever settles or receives is told
            self._file.submit(self._watch)

    def withdrawn(self, watch: _Watch) -> None:
        if watch is not self._watch:
            return
        gone = [self._held.pop(pos) for pos in watch.missing if pos in self._held]
        for delivery in gone:
            self._started.discard(delivery.token)
            if delivery in self._buffer:
                self._buffer.remove(delivery)
            elif self._told is not None:
                self._told(delivery)
        if gone or watch.missing:
            self._watch_withdrawals()
        if gone and self._waiting:
            self._ask()

    # ---- the end ---------------------------------------------------------------------------------------------------

    def failed(self, error: Exception) -> None:
        """The file failed us. What we held is for others, as soon as that can be written or the lease ran out."""
        if self._failure is not None or self._closed:
            return
        self._failure = str(error)
        self._claim = None
        owner = self._owner
        self._let_go()
        if owner is not None:
            self._run(self._hand_over(owner))
        self._wake()

    async def _hand_over(self, owner: int) -> None:
        try:
            await self._file.do(lambda tx: self._lose(tx, owner), durable=False)
        except (NotDone, PerhapsDone) as error:
            logger.warning("What a consumer of %r held is held until its lease ends: %s.", self.row.name, error)

    def _lose(self, tx: Transaction, owner: int) -> None:
        if tx.owns(owner):
            messages.take_over(tx, owner)
            tx.leave(owner)
            tx.changed.add(self.row.channel)

    def gone(self) -> BackendLost:
        return BackendLost(
            f"The consumer of {self.row.name!r} lost the bus at {self._file.path!r}: {self._failure}. "
            "What it held is handed out again; open another consumer."
        )

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._told_closed(self)
        for work in (self._claim, self._watch):
            if work is not None:
                work.gone = True
        for timer in (self._due, self._unasked):
            if timer is not None:
                timer.cancel()
        self._wake()
        if self._failure is None and self._owner is not None:
            owner = self._owner
            self._let_go()
            await self._leave(owner)

    async def _leave(self, owner: int) -> None:
        def leave(tx: Transaction) -> None:
            if tx.owns(owner):
                messages.give_all_back(tx, owner, self.row.channel)
                tx.leave(owner)

        try:
            await self._file.do(leave, durable=False)
        except (NotDone, PerhapsDone) as error:
            logger.warning("What a closed consumer of %r held is held until its lease ends: %s.", self.row.name, error)

    def _run(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _abandon(self) -> None:
        owner = self._owner
        self._let_go()
        if owner is not None:
            self._run(self._leave(owner))


def _delivery(queue: str, row: Claimed) -> Delivery:
    _, pos, attempt, lost, data = row
    try:
        return Delivery(queue, unpack(data), attempt + 1, lost, pos, str(pos))
    except UndecodableMessage as error:
        return Delivery(queue, Envelope("", "", data), attempt + 1, lost, pos, str(pos), str(error))
