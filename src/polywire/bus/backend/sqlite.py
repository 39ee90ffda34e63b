"""Tasks in a file: the embedded queue, for one process or several on one machine."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import apsw

from polywire.bus.backend import sqlite_admin as admin
from polywire.bus.backend import sqlite_messages as messages
from polywire.bus.backend.sqlite_backend import SqliteBackend
from polywire.bus.backend.sqlite_consumer import SqliteConsumer
from polywire.bus.backend.sqlite_file import PATIENCE, FileOptions, SharedFile, Transaction
from polywire.bus.backend.sqlite_messages import QueueRow
from polywire.bus.backend.sqlite_sending import MAX_MESSAGE_BYTES, Confirming, failure_of, packed, refused
from polywire.bus.core import (
    EVERY_DEAD,
    DeadFilter,
    DeadLetter,
    Envelope,
    Guarantees,
    QueueSpec,
    QueueStats,
)
from polywire.clock import SYSTEM_CLOCK, Clock
from polywire.errors import MessageRefused, SetupError

GUARANTEES = Guarantees(
    backend="sqlite",
    durable=True,
    shared=True,
    max_message_bytes=MAX_MESSAGE_BYTES,
    key_order=True,
    delay=True,
    priorities=admin.PRIORITIES,
    attempts="exact",
    cancel=True,
    withdraw=True,
    deduplicate=True,
    dead_letters=True,
    peek=True,
    shared_limits=True,
)


class SqliteQueue(SqliteBackend["_Sending", SqliteConsumer]):
    """The queues in one file, as `polywire.bus.core.TaskQueue` says.

    What was sent survives a power cut: commits of it wait for the disk, many of them together. Handing out and
    acknowledging do not, so that a power cut brings back what was just acknowledged, and never loses anything; but an
    acknowledgement before the start of the handler (at most once) does wait.
    """

    def __init__(self, url: str, *, clock: Clock = SYSTEM_CLOCK, options: FileOptions | None = None) -> None:
        """*url* is `sqlite:PATH`. Raises SetupError where that is none."""
        super().__init__(url, clock=clock, options=options)
        self.guarantees = GUARANTEES
        self._together = _Sending
        self._queues: dict[str, QueueRow] = {}

    def _opened(self, file: SharedFile) -> None:
        file.takers["q"] = messages.take_over

    # ---- queues --------------------------------------------------------------------------------------------------

    async def declare(self, queues: Sequence[QueueSpec]) -> None:
        """Settings that change how work is handed out (lease, limits) are taken over; the others are not changed."""
        admin.check_specs(queues)

        def declare(tx: Transaction) -> None:
            refused = [
                line for spec in queues for line in admin.refusals(spec, messages.find_queue(tx.connection, spec.name))
            ]
            if refused:
                raise SetupError(f"The queues in {self.path!r} were not declared: {'; '.join(refused)}.")
            for spec in queues:
                admin.declare(tx, spec)

        await self._do("The queues were not declared", declare)
        for spec in queues:
            self._queues.pop(spec.name, None)

    async def check(self, queues: Sequence[QueueSpec]) -> list[str]:
        admin.check_specs(queues)

        def check(connection: apsw.Connection) -> list[str]:
            return [
                line for spec in queues for line in admin.differences(spec, messages.find_queue(connection, spec.name))
            ]

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
            raise SetupError(f"{_unknown(name, self.path)}.")
        return found

    # ---- sending -------------------------------------------------------------------------------------------------

    async def send(
        self, queue: str, envelopes: Sequence[Envelope], *, timeout: float | None = None
    ) -> list[Exception | None]:
        row = self._queues.get(queue) or await self.known(queue)
        if row is None:
            return [MessageRefused(f"{refused(envelope)}: {_unknown(queue, self.path)}.") for envelope in envelopes]
        if self._room.full and not await self._room.wait(PATIENCE if timeout is None else timeout):
            why = self._room.crowded(self.path)
            return [MessageRefused(f"{refused(envelope)}: {why}.") for envelope in envelopes]
        now = self.clock.time()
        made = [self._values(row, envelope, now) for envelope in envelopes]
        good = [values for values in made if not isinstance(values, MessageRefused)]
        failure = await self._sent(row, good, timeout) if good else None
        if failure is None and len(good) == len(made):
            return [None] * len(made)
        return [
            values
            if isinstance(values, MessageRefused)
            else failure and failure_of(failure, envelope, row.name, self.path)
            for envelope, values in zip(envelopes, made, strict=True)
        ]

    def _values(self, row: QueueRow, envelope: Envelope, now: float) -> tuple[Any, ...] | MessageRefused:
        """A row of `message`."""
        try:
            data = packed(envelope)
        except ValueError as why:
            return MessageRefused(f"{refused(envelope)} to the queue {row.name!r}: {why}.")
        due = envelope.not_before
        if due is not None and due <= now:
            due = None
        level = row.level(envelope.priority) if envelope.priority else 0
        return row.n, envelope.id, envelope.key if row.keyed else None, level, due, data

    async def _sent(self, row: QueueRow, rows: list[tuple[Any, ...]], timeout: float | None) -> Exception | None:
        """Write them. Returns why that failed."""
        future: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        size = self._gathering(timeout).add(rows, row, future)
        return await self._written(future, len(rows), size)

    # ---- receiving -----------------------------------------------------------------------------------------------

    async def consumer(self, queue: str, *, limit: int) -> SqliteConsumer:
        row = await self._queue(queue)
        made = SqliteConsumer(self.file, self.clock, row, limit, self._consumers.discard)
        await made.join()
        self._consumers.add(made)
        return made

    # ---- looking and changing ------------------------------------------------------------------------------------

    async def stats(self, queue: str) -> QueueStats:
        row = await self._queue(queue)
        now = self.clock.time()
        return await self._look("The queue was not counted", lambda connection: admin.stats(connection, row, now))

    async def cancel(self, queue: str, id: str) -> bool:
        row = await self._queue(queue)
        return await self._do("The message was not taken back", lambda tx: admin.cancel(tx, row, id))

    async def withdraw(self, queue: str, id: str) -> bool:
        row = await self._queue(queue)
        return await self._do("The message was not taken back", lambda tx: admin.withdraw(tx, row, id))

    async def move(self, queue: str, id: str, not_before: float) -> bool:
        row = await self._queue(queue)
        return await self._do("The message was not moved", lambda tx: admin.move(tx, row, id, not_before))

    async def peek(self, queue: str, limit: int) -> list[Envelope]:
        row = await self._queue(queue)
        return await self._look("The queue was not looked at", lambda connection: admin.peek(connection, row, limit))

    async def dead(self, queue: str, which: DeadFilter = EVERY_DEAD, *, limit: int = 100) -> list[DeadLetter]:
        row = await self._queue(queue)
        return await self._look("The dead letters were not listed", lambda c: admin.dead_letters(c, row, which, limit))

    async def revive(self, queue: str, letters: Sequence[DeadLetter]) -> int:
        row = await self._queue(queue)
        return await self._do("The dead letters were not sent again", lambda tx: admin.revive_letters(tx, row, letters))

    async def drop(self, queue: str, letters: Sequence[DeadLetter]) -> int:
        row = await self._queue(queue)
        return await self._do("The dead letters were not deleted", lambda tx: admin.drop_letters(tx, row, letters))


class _Sending(Confirming):
    """Messages for any queues of the file."""

    def __init__(self, timeout: float | None) -> None:
        super().__init__(timeout)
        self._values: list[Any] = []
        self._channels: set[str] = set()
        self._keyed = False
        self._delayed = False

    def add(self, rows: list[tuple[Any, ...]], row: QueueRow, future: asyncio.Future[Exception | None]) -> int:
        """How many bytes they are."""
        size = 0
        for values in rows:
            self._values += values
            size += len(values[5])
            if values[4] is not None:
                self._delayed = True
        self._keyed = self._keyed or row.keyed
        self._channels.add(row.channel)
        self.futures.append(future)
        return size

    def run(self, tx: Transaction) -> bool:
        messages.insert(tx, self._values, keyed=self._keyed, delayed=self._delayed)
        tx.changed |= self._channels
        return True


def _unknown(name: str, path: str) -> str:
    return f"there is no queue {name!r} in {path!r}; declare it first"
