"""Tasks in a file: the embedded queue, for one process or several on one machine."""

from __future__ import annotations

import array
import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import Any, TypeVar

import apsw
import msgspec

from polywire.bus.backend import sqlite_messages as messages
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
from polywire.bus.backend.sqlite_messages import Claimed, QueueRow
from polywire.bus.backend.sqlite_schema import check_name, path_of
from polywire.bus.core import (
    EVERY_DEAD,
    Ack,
    Bury,
    DeadFilter,
    DeadLetter,
    Delivery,
    Envelope,
    Guarantees,
    QueueSpec,
    QueueStats,
    Release,
    RetryAfter,
    Settlement,
    pack,
    unpack,
)
from polywire.clock import SYSTEM_CLOCK, Clock, Timer
from polywire.errors import (
    BackendLost,
    ConsumerClosed,
    DeliveryError,
    MessageRefused,
    PublishUnknown,
    SetupError,
    UndecodableMessage,
)

T = TypeVar("T")

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
MAX_NAME_CHARACTERS = 1024
"""Of an id and of a key."""
MAX_PENDING = 10_000
"""Messages that wait to be written; senders beyond them wait for room."""
MAX_PENDING_BYTES = 64 * 1024 * 1024
UNASKED = 1.0
"""Seconds for which messages that were fetched ahead wait for somebody to receive them; then others get them."""

logger = logging.getLogger("polywire.bus.sqlite")

GUARANTEES = Guarantees(
    backend="sqlite",
    durable=True,
    shared=True,
    max_message_bytes=MAX_MESSAGE_BYTES,
    key_order=True,
    delay=True,
    priorities=256,
    attempts="exact",
    cancel=True,
    deduplicate=True,
    dead_letters=True,
    peek=True,
    shared_limits=True,
    replay=False,
)


class SqliteQueue:
    """The queues in one file, as `polywire.bus.core.TaskQueue` says.

    What was sent survives a power cut: commits of it wait for the disk, many of them together. Handing out and
    acknowledging do not, so that a power cut brings back what was just acknowledged, and never loses anything; but an
    acknowledgement before the start of the handler (at most once) does wait.
    """

    def __init__(self, url: str, *, clock: Clock = SYSTEM_CLOCK, options: FileOptions | None = None) -> None:
        """*url* is `sqlite:PATH`. Raises SetupError where that is none."""
        self.path = path_of(url)
        self.guarantees = GUARANTEES
        self.clock = clock
        self._options = options or FileOptions()
        self._file: SharedFile | None = None
        self._queues: dict[str, QueueRow] = {}
        self._outgoing: _Sending | None = None
        self._room = Room()
        self._consumers: set[SqliteConsumer] = set()

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
        file.takers["q"] = messages.take_over

    async def close(self) -> None:
        for consumer in list(self._consumers):
            await consumer.close()
        file, self._file = self._file, None
        if file is not None:
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

    # ---- queues --------------------------------------------------------------------------------------------------

    async def declare(self, queues: Sequence[QueueSpec]) -> None:
        """Settings that change how work is handed out (lease, limits) are taken over; the others are not changed."""
        check_specs(queues)

        def declare(tx: Transaction) -> None:
            refused = [
                line for spec in queues for line in _refusals(spec, messages.find_queue(tx.connection, spec.name))
            ]
            if refused:
                raise SetupError(f"The queues in {self.path!r} were not declared: {'; '.join(refused)}.")
            for spec in queues:
                _declare(tx, spec)

        await self._do("The queues were not declared", declare)
        for spec in queues:
            self._queues.pop(spec.name, None)

    async def check(self, queues: Sequence[QueueSpec]) -> list[str]:
        check_specs(queues)

        def check(connection: apsw.Connection) -> list[str]:
            return [line for spec in queues for line in _differences(spec, messages.find_queue(connection, spec.name))]

        return await self._look("The queues were not checked", check)

    async def known(self, name: str) -> QueueRow | None:
        """The queue of that name; None where nobody declared it."""
        found = self._queues.get(name)
        if found is None:
            found = await self._look(
                "The queue was not found", lambda connection: messages.find_queue(connection, name)
            )
            if found is not None:
                self._queues[name] = found
        return found

    async def _queue(self, name: str) -> QueueRow:
        found = await self.known(name)
        if found is None:
            raise SetupError(f"{unknown_queue(name, self.path)}.")
        return found

    # ---- sending -------------------------------------------------------------------------------------------------

    async def send(
        self, queue: str, envelopes: Sequence[Envelope], *, timeout: float | None = None
    ) -> list[Exception | None]:
        row = self._queues.get(queue) or await self.known(queue)
        if row is None:
            return [
                MessageRefused(f"{refused(envelope)}: {unknown_queue(queue, self.path)}.") for envelope in envelopes
            ]
        if self._room.full and not await self._room.wait(PATIENCE if timeout is None else timeout):
            why = self._room.crowded(self.path)
            return [MessageRefused(f"{refused(envelope)}: {why}.") for envelope in envelopes]
        now = self.clock.time()
        made = [self._values(row, envelope, now) for envelope in envelopes]
        good = [values for values in made if not isinstance(values, MessageRefused)]
        if not good:
            return [values if isinstance(values, MessageRefused) else None for values in made]
        failure = await self._sent(row, good, timeout)
        return [
            values
            if isinstance(values, MessageRefused)
            else failure and failure_of(failure, envelope, row.name, self.path)
            for envelope, values in zip(envelopes, made, strict=True)
        ]

    def _values(self, row: QueueRow, envelope: Envelope, now: float) -> tuple[Any, ...] | MessageRefused:
        """A row of `message`."""
        why = not_sendable(envelope)
        if why is not None:
            return MessageRefused(f"{refused(envelope)} to the queue {row.name!r}: {why}.")
        due = envelope.not_before
        if due is not None and due <= now:
            due = None
        try:
            packed = pack(envelope)
        except UnicodeEncodeError as error:
            why = f"its texts are no Unicode: {error.reason}"
            return MessageRefused(f"{refused(envelope)} to the queue {row.name!r}: {why}.")
        return (
            row.n,
            envelope.id,
            envelope.key if row.keyed else None,
            row.level(envelope.priority),
            due,
            packed,
        )

    async def _sent(self, row: QueueRow, rows: list[tuple[Any, ...]], timeout: float | None) -> Exception | None:
        """Write with all others that send at this moment. Returns why it failed."""
        sending = self._outgoing
        loop = asyncio.get_running_loop()
        if sending is None or sending.timeout != timeout:
            if sending is not None:
                self._flush(sending)
            sending = self._outgoing = _Sending(self._room, timeout)
            loop.call_soon(self._flush, sending)
        future: asyncio.Future[Exception | None] = loop.create_future()
        sending.add(rows, row.keyed, future)
        try:
            return await future
        finally:
            self._room.leave(len(rows), sum(len(values[5]) for values in rows))

    def _flush(self, sending: _Sending) -> None:
        if self._outgoing is not sending:
            return  # it went when one with another time limit came
        self._outgoing = None
        try:
            self.file.submit(sending)
        except (NotDone, DeliveryError, SetupError) as error:
            sending.fail(error)

    # ---- receiving -----------------------------------------------------------------------------------------------

    async def consumer(self, queue: str, *, limit: int) -> SqliteConsumer:
        row = await self._queue(queue)
        made = SqliteConsumer(self, row, limit)
        await made.join()
        self._consumers.add(made)
        return made

    def closed(self, consumer: SqliteConsumer) -> None:
        self._consumers.discard(consumer)

    # ---- looking and changing ------------------------------------------------------------------------------------

    async def stats(self, queue: str) -> QueueStats:
        row = await self._queue(queue)
        now = self.clock.time()
        return await self._look("The queue was not counted", lambda connection: _stats(connection, row, now))

    async def cancel(self, queue: str, id: str) -> bool:
        row = await self._queue(queue)
        return await self._do("The message was not taken back", lambda tx: _cancel(tx, row, id))

    async def move(self, queue: str, id: str, not_before: float) -> bool:
        row = await self._queue(queue)
        return await self._do("The message was not moved", lambda tx: _move(tx, row, id, not_before))

    async def peek(self, queue: str, limit: int) -> list[Envelope]:
        row = await self._queue(queue)
        return await self._look("The queue was not looked at", lambda connection: _peek(connection, row, limit))

    async def dead(self, queue: str, which: DeadFilter = EVERY_DEAD, *, limit: int = 100) -> list[DeadLetter]:
        row = await self._queue(queue)
        return await self._look("The dead letters were not listed", lambda c: dead_letters(c, row, which, limit))

    async def revive(self, queue: str, letters: Sequence[DeadLetter]) -> int:
        row = await self._queue(queue)
        return await self._do("The dead letters were not sent again", lambda tx: revive_letters(tx, row, letters))

    async def drop(self, queue: str, letters: Sequence[DeadLetter]) -> int:
        row = await self._queue(queue)
        return await self._do("The dead letters were not deleted", lambda tx: drop_letters(tx, row, letters))

    async def _do(self, what: str, function: Callable[[Transaction], T]) -> T:
        return await self.file.do_or_lose(what, function)

    async def _look(self, what: str, function: Callable[[apsw.Connection], T]) -> T:
        return await self.file.read_or_lose(what, function)


# ---- sending ---------------------------------------------------------------------------------------------------------


class Room:
    """Bounds what waits to be written."""

    def __init__(self) -> None:
        self._messages = 0
        self._bytes = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def full(self) -> bool:
        return self._messages >= MAX_PENDING or self._bytes >= MAX_PENDING_BYTES

    @staticmethod
    def crowded(path: str) -> str:
        return f"{MAX_PENDING:,} messages already wait to be written to {path!r}"

    def enter(self, count: int, size: int) -> None:
        self._messages += count
        self._bytes += size

    def leave(self, count: int, size: int) -> None:
        self._messages -= count
        self._bytes -= size
        while self._waiting and not self.full:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                break

    async def wait(self, timeout: float) -> bool:
        """Until there is room; False where there was none for *timeout* seconds."""
        try:
            async with asyncio.timeout(timeout):
                while self.full:
                    waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                    self._waiting.append(waiter)
                    await waiter
        except TimeoutError:
            return False
        return True


class _Sending(Work):
    """All that was sent in one turn of the loop, with one time limit."""

    def __init__(self, room: Room, timeout: float | None) -> None:
        self.timeout = timeout
        self.deadline = deadline_in(timeout)
        self._room = room
        self._values: list[Any] = []
        self._futures: list[asyncio.Future[Exception | None]] = []
        self._channels: set[str] = set()
        self._keyed = False
        self._delayed = False

    def add(self, rows: list[tuple[Any, ...]], keyed: bool, future: asyncio.Future[Exception | None]) -> None:
        for values in rows:
            self._values += values
            self._delayed |= values[4] is not None
        self._room.enter(len(rows), sum(len(values[5]) for values in rows))
        self._keyed |= keyed
        self._channels.add(f"q{rows[0][0]}")
        self._futures.append(future)

    def run(self, tx: Transaction) -> bool:
        messages.insert(tx, self._values, keyed=self._keyed, delayed=self._delayed)
        tx.changed |= self._channels
        return True

    def finish(self) -> None:
        for future in self._futures:
            if not future.done():
                future.set_result(None)

    def fail(self, error: Exception) -> None:
        for future in self._futures:
            if not future.done():
                future.set_result(error)


def refused(envelope: Envelope) -> str:
    return f"The message {envelope.id!r} was not sent"


def unknown_queue(name: str, path: str) -> str:
    return f"there is no queue {name!r} in {path!r}; declare it first"


def not_sendable(envelope: Envelope) -> str | None:
    """Why a file of the bus does not take the message."""
    if len(envelope.body) > MAX_MESSAGE_BYTES:
        return f"its body has {len(envelope.body)} bytes, and {MAX_MESSAGE_BYTES} are the limit"
    if not envelope.id or len(envelope.id) > MAX_NAME_CHARACTERS:
        return f"its id has {len(envelope.id)} characters, and 1 to {MAX_NAME_CHARACTERS} are possible"
    if envelope.key is not None and len(envelope.key) > MAX_NAME_CHARACTERS:
        return f"its key has {len(envelope.key)} characters, and {MAX_NAME_CHARACTERS} are the limit"
    return None


def failure_of(failure: Exception, envelope: Envelope, where: str, path: str) -> Exception:
    """What `send` and `append` say about one message of a transaction that failed. Raises SetupError as it is: that
    concerns them all."""
    if isinstance(failure, SetupError):
        raise failure
    if isinstance(failure, PerhapsDone):
        return PublishUnknown(
            f"Nobody knows whether the message {envelope.id!r} reached {where!r} in {path!r}: {failure}. "
            "Send it again with the same id.",
            id=envelope.id,
        )
    if isinstance(failure, NotDone):
        return MessageRefused(f"{refused(envelope)} to {where!r} in {path!r}: {failure}. Send it again.")
    return failure


# ---- receiving -------------------------------------------------------------------------------------------------------


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
            self.rows, _ = messages.claim(tx, self._queue, self._owner, self.want)
        return True

    def finish(self) -> None:
        self._consumer.settled(self)
        if not self.future.done():
            self.future.set_result(not self.lost)

    def fail(self, error: Exception) -> None:
        self._consumer.failed(error)
        if not self.future.done():
            self.future.set_exception(self._consumer.gone())


class SqliteConsumer:
    """Receives from one queue in a file. What it holds, it holds as an owner in the file, by a number that is never
    used again: whoever takes its work over deletes that, and then nothing that it still says counts."""

    def __init__(self, queue: SqliteQueue, row: QueueRow, limit: int) -> None:
        self.row = row
        self._bus = queue
        self._file = queue.file
        self._clock = queue.clock
        self._limit = limit
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
        self._bus.closed(self)
        if self._claim is not None:
            self._claim.gone = True
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


# ---- queues ----------------------------------------------------------------------------------------------------------

_ADJUSTED = ("lease", "lost_limit", "concurrency", "rate")
"""Of a queue, settings that can be changed at any time."""


def check_specs(queues: Sequence[QueueSpec]) -> None:
    for spec in queues:
        check_name("queue", spec.name)
        if not 1 <= spec.priorities <= GUARANTEES.priorities:
            raise SetupError(
                f"The queue {spec.name!r} was not declared: it asks for {spec.priorities} priorities, and a sqlite bus "
                f"has 1 to {GUARANTEES.priorities}."
            )


def _refusals(spec: QueueSpec, row: QueueRow | None) -> list[str]:
    if row is None:
        return []
    return [
        f"{spec.name!r} exists with {name}={getattr(row, name)!r} instead of {name}={getattr(spec, name)!r}"
        for name in ("keyed", "priorities")
        if getattr(row, name) != getattr(spec, name)
    ]


def _differences(spec: QueueSpec, row: QueueRow | None) -> list[str]:
    if row is None:
        return [f"would create the queue {spec.name!r}"]
    changes = [
        f"would change {name} of {spec.name!r} from {getattr(row, name)!r} to {getattr(spec, name)!r}"
        for name in _ADJUSTED
        if getattr(row, name) != getattr(spec, name)
    ]
    return [f"would refuse: {line}" for line in _refusals(spec, row)] + changes


def _declare(tx: Transaction, spec: QueueSpec) -> None:
    if messages.find_queue(tx.connection, spec.name) is None:
        messages.make_queue(tx, spec)
    else:
        tx.execute(
            "UPDATE queue SET lease = ?, lost_limit = ?, concurrency = ?, rate = ? WHERE name = ?",
            (spec.lease, spec.lost_limit, spec.concurrency, spec.rate, spec.name),
        )


# ---- looking and changing --------------------------------------------------------------------------------------------


def _stats(connection: apsw.Connection, row: QueueRow, now: float) -> QueueStats:
    def count(table: str) -> int:
        found: int = connection.execute(f"SELECT count(*) FROM {table} WHERE queue = ?", (row.n,)).get  # noqa: S608
        return found

    connection.execute("SAVEPOINT look")  # one view of all tables
    try:
        held = count("held")
        delayed: int = connection.execute("SELECT count(*) FROM delayed WHERE queue = ? AND due > ?", (row.n, now)).get
        waiting = count("message") - held - delayed
        oldest = _oldest(connection, row, now)
        dead = count("dead")
    finally:
        connection.execute("RELEASE look")
    return QueueStats(queue=row.name, ready=waiting, delayed=delayed, in_flight=held, dead=dead, oldest=oldest)


def _oldest(connection: apsw.Connection, row: QueueRow, now: float) -> float | None:
    """Of each level only the first is looked at: it was sent before the others."""
    found = [
        connection.execute(
            """SELECT max(m.at, coalesce(m.due, m.at)) FROM ready r JOIN message m ON m.pos = r.pos
            WHERE r.queue = ? AND r.level = ? ORDER BY r.pos LIMIT 1""",
            (row.n, -priority),
        ).get
        for priority in range(row.priorities)
    ]
    since = [at for at in found if at is not None]
    return max(0.0, now - min(since)) if since else None


def _waiting(tx: Transaction, row: QueueRow, id: str) -> tuple[int, str | None] | None:
    """Position and key of a message that nobody holds."""
    found: tuple[int, str | None] | None = tx.first(
        """SELECT pos, key FROM message WHERE queue = ? AND id = ?
        AND NOT EXISTS (SELECT 1 FROM held WHERE held.pos = message.pos)""",
        (row.n, id),
    )
    return found


def _take_out(tx: Transaction, row: QueueRow, pos: int) -> tuple[int, int, int] | None:
    """Level, attempts and lost starts of a message that is ready or delayed; None of one that waits for its key."""
    (level,) = tx.first("SELECT level FROM message WHERE pos = ?", (pos,))
    found = tx.rows(
        "DELETE FROM ready WHERE queue = ? AND level = ? AND pos = ? RETURNING level, attempt, lost",
        (row.n, level, pos),
    )
    found += tx.rows("DELETE FROM delayed WHERE pos = ? RETURNING level, attempt, lost", (pos,))
    return found[0] if found else None


def _cancel(tx: Transaction, row: QueueRow, id: str) -> bool:
    found = _waiting(tx, row, id)
    if found is None:
        return False
    pos, key = found
    was_head = _take_out(tx, row, pos) is not None
    tx.execute("DELETE FROM message WHERE pos = ?", (pos,))
    if was_head and key is not None:
        messages.follow(tx, row, [key])
    return True


def _move(tx: Transaction, row: QueueRow, id: str, not_before: float) -> bool:
    found = _waiting(tx, row, id)
    if found is None:
        return False
    pos = found[0]
    state = _take_out(tx, row, pos)
    tx.execute("UPDATE message SET due = ? WHERE pos = ?", (not_before if not_before > tx.now else None, pos))
    if state is not None:
        level, attempt, lost = state
        messages.put_back(tx, row.n, level, pos, attempt, lost, not_before)
    tx.changed.add(row.channel)
    return True


def _peek(connection: apsw.Connection, row: QueueRow, limit: int) -> list[Envelope]:
    rows = connection.execute(
        """SELECT r.level, r.pos, r.attempt, r.lost, m.envelope FROM ready r JOIN message m ON m.pos = r.pos
        WHERE r.queue = ? ORDER BY r.level, r.pos LIMIT ?""",
        (row.n, limit),
    )
    return [_delivery(row.name, found).envelope for found in rows]


# ---- dead letters ----------------------------------------------------------------------------------------------------


def dead_letters(connection: apsw.Connection, row: QueueRow, which: DeadFilter, limit: int) -> list[DeadLetter]:
    rows = connection.execute(
        """SELECT n, id, type, reason, error, attempts, died, envelope FROM dead WHERE queue = ?1
        AND (?2 IS NULL OR id = ?2) AND (?3 IS NULL OR type = ?3) AND (?4 IS NULL OR reason = ?4)
        AND (?5 IS NULL OR instr(error, ?5) > 0) AND (?6 IS NULL OR died >= ?6) AND (?7 IS NULL OR died < ?7)
        ORDER BY n LIMIT ?8""",
        (row.n, which.id, which.type, which.reason, which.error, which.since, which.until, limit),
    )
    return [_letter(row.name, found) for found in rows]


def _letter(queue: str, row: Sequence[Any]) -> DeadLetter:
    n, name, kind, reason, error, attempts, died, data = row
    try:
        envelope = unpack(data)
    except UndecodableMessage:
        envelope = Envelope(name, kind, data)
    return DeadLetter(
        queue=queue, envelope=envelope, reason=reason, error=error, attempts=attempts, died=died, position=str(n)
    )


def revive_letters(tx: Transaction, row: QueueRow, letters: Sequence[DeadLetter]) -> int:
    count = 0
    for letter in letters:
        found = tx.first("SELECT envelope FROM dead WHERE n = ? AND queue = ?", (_number(letter), row.n))
        if found is not None:
            _revive(tx, row, letter, found[0])
            count += 1
    tx.changed.add(row.channel)
    return count


def _revive(tx: Transaction, row: QueueRow, letter: DeadLetter, data: bytes) -> None:
    """Unlike a message that is sent, it may have an id that was finished: it did finish, among the dead."""
    try:
        envelope = unpack(data)
        data = pack(msgspec.structs.replace(envelope, redrive_count=envelope.redrive_count + 1))
    except UndecodableMessage:
        pass  # buried again, unless somebody can read it now
    messages.insert_again(tx, row, letter.envelope.id or letter.position, data, 0, None)
    tx.execute("DELETE FROM dead WHERE n = ?", (_number(letter),))


def drop_letters(tx: Transaction, row: QueueRow, letters: Sequence[DeadLetter]) -> int:
    for_good = messages.numbers(_number(letter) for letter in letters)
    before = tx.connection.total_changes()
    tx.execute("DELETE FROM dead WHERE queue = ? AND n IN (SELECT value FROM carray(?))", (row.n, for_good))
    return tx.connection.total_changes() - before


def _number(letter: DeadLetter) -> int:
    return int(letter.position) if letter.position.isdecimal() else 0
