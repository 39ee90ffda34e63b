"""The inbox: which messages were handled already, in the store that has their effects."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

from polywire.bus.core.inbox import UnderWay
from polywire.clock import SYSTEM_CLOCK, Clock
from polywire.durable.migrations import Migration
from polywire.durable.store.seam import Store
from polywire.errors import AlreadyDone, BatchFailed, RetryLater, StoreError

COMPONENT = "inbox"
MIGRATIONS = (
    Migration(
        1,
        "the messages done",
        # The names are those that no database has as words of its own.
        """CREATE TABLE polywire_inbox (
            consumer TEXT NOT NULL, generation INTEGER NOT NULL, origin TEXT NOT NULL, message TEXT NOT NULL,
            done DOUBLE PRECISION NOT NULL, PRIMARY KEY (consumer, generation, origin, message));
        CREATE INDEX polywire_inbox_done ON polywire_inbox (done)""",
    ),
)
INSERT = (
    "INSERT INTO polywire_inbox (consumer, generation, origin, message, done) VALUES ($1, $2, $3, $4, $5) "
    "ON CONFLICT DO NOTHING"
)
SEEN = "SELECT 1 FROM polywire_inbox WHERE consumer = $1 AND generation = $2 AND origin = $3 AND message = $4"
OLDEST = "SELECT done FROM polywire_inbox WHERE done < $1 ORDER BY done LIMIT 1 OFFSET $2"
CLEAN = "DELETE FROM polywire_inbox WHERE done <= $1"

RETENTION = 30 * 24 * 3600.0
CHUNK = 1000
"""Rows deleted in one transaction, so that nobody waits long for it."""

logger = logging.getLogger("polywire.durable.inbox")


def row_of(message: UnderWay, now: float) -> tuple[Any, ...]:
    return message.group, message.generation, message.source, message.id, now


def begin(messages: Sequence[UnderWay], store: str) -> None:
    """A transaction is about to be opened for them. Raises StoreError where one was before."""
    for message in messages:
        if message.begun:
            raise StoreError(
                f"A second transaction of store {store!r} was not opened for the message {message.id!r}: what the "
                "first one did is there already, and would be without this one if the process died in between. Do it "
                "all in one transaction, or say `transaction(inbox=False)` where it may happen twice."
            )
    for message in messages:
        message.begun = True


def judge(messages: Sequence[UnderWay], new: Sequence[bool]) -> None:
    """Raise what has to be raised where not all of *messages* are *new* to the inbox."""
    if all(new):
        return
    if not any(new):
        raise AlreadyDone(_already(messages))
    # Those that were done are acknowledged by not being named; the others come again without them.
    raise BatchFailed(
        {index: RetryLater("a message of its batch was done before", after=0.0) for index, one in enumerate(new) if one}
    )


def _already(messages: Sequence[UnderWay]) -> str:
    if len(messages) > 1:
        return f"All {len(messages)} messages of the batch were handled before by {messages[0].group!r}."
    return f"The message {messages[0].id!r} was handled before by {messages[0].group!r}."


class StoreInbox:
    """The `polywire.bus.core.inbox.Inbox` of a store, for handlers declared `once`; it also forgets old rows.

    *retention*, in seconds, has to exceed the time for which a message can come again: that of the dead letters, and
    of the topics that are read.
    """

    def __init__(self, store: Store, *, retention: float = RETENTION, clock: Clock = SYSTEM_CLOCK) -> None:
        self._store = store
        self._retention = retention
        self._clock = clock
        self._sweeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Clean now and then, until `close`. The store has to be open for that long."""
        self._sweeper = asyncio.create_task(
            sweeping(self.clean, min(3600.0, self._retention / 10), self._clock, f"the inbox of {self._store.name!r}")
        )

    async def close(self) -> None:
        await stopped(self._sweeper)
        self._sweeper = None

    async def seen(self, message: UnderWay) -> bool:
        async with self._store.read() as view:
            return await view.fetch_one(SEEN, row_of(message, 0.0)[:4]) is not None

    async def record(self, message: UnderWay) -> None:
        async with self._store.transaction(inbox=False) as tx:
            await tx.execute(INSERT, row_of(message, self._clock.time()))
        message.recorded = True

    async def clean(self) -> int:
        """Forget what is older than the retention, a chunk in each transaction. How many rows."""
        before = self._clock.time() - self._retention
        removed = 0
        while True:
            async with self._store.transaction(inbox=False) as tx:
                last = await tx.fetch_one(OLDEST, (before, CHUNK - 1))
                # Rows of one moment go together; below a full chunk all that is old enough goes.
                count = await tx.execute(CLEAN, (before if last is None else last[0],))
            removed += count
            if last is None:
                return removed


async def sweeping(clean: Callable[[], Any], pause: float, clock: Clock, what: str) -> None:
    """Call *clean* now and then until cancelled. A store that is busy or away is tried again the next time."""
    while True:
        try:
            await clean()
        except StoreError as error:
            logger.warning("Old rows of %s were not removed, which is tried again in %g s: %s", what, pause, error)
        await clock.sleep(pause)


async def stopped(task: asyncio.Task[None] | None) -> None:
    """Cancel *task* and wait until it has ended."""
    if task is None:
        return
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()
