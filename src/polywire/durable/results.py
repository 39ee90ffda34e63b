"""Results of tasks in a store: kept for a while, read by any process that has it open."""

from __future__ import annotations

import asyncio
import logging

import msgspec

from polywire.bus.core.results import MAX_RESULT_BYTES, Outcome
from polywire.clock import SYSTEM_CLOCK, Clock
from polywire.durable.inbox import stopped, sweeping
from polywire.durable.migrations import Migration
from polywire.durable.store.seam import Store
from polywire.errors import BackendLost, MessageRefused, StoreError, UndecodableMessage

COMPONENT = "results"
MIGRATIONS = (
    Migration(
        1,
        "the outcomes of tasks",
        """CREATE TABLE polywire_result (
            name TEXT NOT NULL PRIMARY KEY, stored DOUBLE PRECISION NOT NULL, expires DOUBLE PRECISION NOT NULL,
            size BIGINT NOT NULL, outcome BLOB NOT NULL);
        CREATE INDEX polywire_result_stored ON polywire_result (stored, size);
        CREATE INDEX polywire_result_expires ON polywire_result (expires)""",
    ),
)
MAX_STORED_BYTES = 256 * 1024 * 1024
"""Of all outcomes together, unless another limit was given."""
OVERHEAD = 200
"""Bytes that a row takes beside its outcome, near enough."""
CHECK_AFTER = 1024 * 1024
"""Bytes that this process stores between two looks at the size of all."""
CHUNK = 1000
"""Rows deleted in one transaction."""
SWEEP = 60.0
"""Seconds between two looks for outcomes whose time is over."""
SHORTEST_LOOK, LONGEST_LOOK = 0.002, 0.05
"""Seconds between two looks for outcomes that another process stores."""
LOOKED_FOR = 200
"""Outcomes looked for in one statement."""

logger = logging.getLogger("polywire.durable.results")

_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(Outcome).decode


class StoreResults:
    """A `polywire.bus.core.results.Results` of a store, which is opened before and closed after it.

    Beyond *max_stored_bytes*, by at most a megabyte for each process, the oldest outcomes go first.
    """

    shared = True

    def __init__(
        self,
        store: Store,
        *,
        name: str | None = None,
        max_bytes: int = MAX_RESULT_BYTES,
        max_stored_bytes: int = MAX_STORED_BYTES,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.name = store.name if name is None else name
        self.max_bytes = max_bytes
        self._max_stored_bytes = max_stored_bytes
        self._store = store
        self._clock = clock
        self._waiting: dict[str, set[asyncio.Future[Outcome | None]]] = {}
        self._unchecked = 0
        self._looker: asyncio.Task[None] | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._closed = True
        self._failing = False

    async def start(self) -> None:
        self._closed = False
        self._sweeper = asyncio.create_task(
            sweeping(self.clean, SWEEP, self._clock, f"the results of store {self._store.name!r}")
        )

    async def close(self) -> None:
        self._closed = True
        sweeper, looker = self._sweeper, self._looker
        self._sweeper = self._looker = None
        await stopped(sweeper)
        await stopped(looker)
        for waiting in self._waiting.values():
            for future in waiting:
                if not future.done():
                    future.set_exception(self._lost("it was closed"))

    # ---- storing -----------------------------------------------------------------------------------------------------

    async def put(self, key: str, outcome: Outcome, *, ttl: float) -> None:
        self._check()
        if outcome.size > self.max_bytes:
            raise MessageRefused(
                f"The outcome of {key!r} was not stored: it has {outcome.size} bytes, and the results of store "
                f"{self._store.name!r} take {self.max_bytes}. Store what it refers to elsewhere, and return the place."
            )
        packed = _pack(outcome)
        now = self._clock.time()
        try:
            async with self._store.transaction(inbox=False) as tx:
                await tx.execute(
                    "INSERT INTO polywire_result (name, stored, expires, size, outcome) VALUES ($1, $2, $3, $4, $5) "
                    "ON CONFLICT (name) DO UPDATE SET stored = excluded.stored, expires = excluded.expires, "
                    "size = excluded.size, outcome = excluded.outcome",
                    (key, now, now + ttl, len(packed) + OVERHEAD, packed),
                )
        except StoreError as error:
            raise self._lost(str(error)) from error
        self._hand_out(key, outcome)
        self._unchecked += len(packed) + OVERHEAD
        if self._unchecked >= min(CHECK_AFTER, self._max_stored_bytes // 4):
            await self._shrink()

    async def _shrink(self) -> None:
        """It is stored, whatever comes of this: what fails here is done with the next one."""
        try:
            while await self._remove_oldest():
                pass
            self._unchecked = 0
        except StoreError as error:
            logger.warning("Results of store %r may be over their limit for a while: %s", self._store.name, error)

    async def _remove_oldest(self) -> bool:
        """Up to a chunk of what is too much. Whether there is more."""
        async with self._store.transaction(inbox=False) as tx:
            row = await tx.fetch_one("SELECT coalesce(sum(size), 0) FROM polywire_result")
            excess = (0 if row is None else int(row[0])) - self._max_stored_bytes
            if excess <= 0:
                return False
            oldest = await tx.fetch_all("SELECT name, size FROM polywire_result ORDER BY stored LIMIT $1", (CHUNK,))
            for name, size in oldest:
                if excess <= 0:
                    return False
                await tx.execute("DELETE FROM polywire_result WHERE name = $1", (name,))
                excess -= size
        return excess > 0

    async def clean(self) -> int:
        """Remove outcomes whose time is over, a chunk in each transaction. How many."""
        now, removed = self._clock.time(), 0
        while True:
            async with self._store.transaction(inbox=False) as tx:
                count = await tx.execute(
                    "DELETE FROM polywire_result WHERE name IN "
                    "(SELECT name FROM polywire_result WHERE expires <= $1 LIMIT $2)",
                    (now, CHUNK),
                )
            removed += count
            if count < CHUNK:
                return removed

    # ---- waiting -----------------------------------------------------------------------------------------------------

    async def wait(self, key: str, *, timeout: float | None) -> Outcome | None:
        self._check()
        future: asyncio.Future[Outcome | None] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(key, set())
        waiting.add(future)
        began = self._clock.monotonic()
        try:
            if not await self._look([key], forced=True) and not future.done() and timeout != 0:
                self._start_looking()
            return await self._in_time(future, timeout, began)
        finally:
            waiting.discard(future)
            if not waiting and self._waiting.get(key) is waiting:
                del self._waiting[key]

    async def _in_time(
        self, future: asyncio.Future[Outcome | None], timeout: float | None, began: float
    ) -> Outcome | None:
        if timeout is None or future.done():
            return await future
        left = timeout - (self._clock.monotonic() - began)
        if left <= 0:
            return None
        alarm = self._clock.call_later(left, lambda: None if future.done() else future.set_result(None))
        try:
            return await future
        finally:
            alarm.cancel()

    def _start_looking(self) -> None:
        if self._looker is None or self._looker.done():
            self._looker = asyncio.create_task(self._keep_looking())

    async def _keep_looking(self) -> None:
        """For all who wait, as long as somebody does; less often while nothing comes."""
        pause = SHORTEST_LOOK
        while self._waiting:
            await self._clock.sleep(pause)
            keys = list(self._waiting)
            found = False
            for first in range(0, len(keys), LOOKED_FOR):
                found = await self._look(keys[first : first + LOOKED_FOR]) or found
            pause = SHORTEST_LOOK if found else min(LONGEST_LOOK, pause * 1.5)

    async def _look(self, keys: list[str], *, forced: bool = False) -> bool:
        """Hand out what is there of *keys*. A store that fails is asked again, unless *forced*: then it is raised."""
        places = ", ".join(f"${number}" for number in range(2, len(keys) + 2))
        try:
            async with self._store.read() as view:
                rows = await view.fetch_all(
                    f"SELECT name, outcome FROM polywire_result WHERE expires > $1 AND name IN ({places})",  # noqa: S608 - only `$1`, `$2`...
                    (self._clock.time(), *keys),
                )
        except StoreError as error:
            if forced:
                raise self._lost(str(error)) from error
            if not self._failing:
                logger.warning("Results of store %r cannot be looked for so far: %s", self._store.name, error)
            self._failing = True
            return False
        self._failing = False
        for name, packed in rows:
            try:
                self._hand_out(name, _unpack(packed))
            except msgspec.MsgspecError as error:
                self._fail(name, UndecodableMessage(f"The outcome of {name!r} cannot be read: {error}."))
        return bool(rows)

    def _hand_out(self, key: str, outcome: Outcome) -> None:
        for future in self._waiting.get(key, ()):
            if not future.done():
                future.set_result(outcome)

    def _fail(self, key: str, error: Exception) -> None:
        for future in self._waiting.get(key, ()):
            if not future.done():
                future.set_exception(error)

    def _check(self) -> None:
        if self._closed:
            raise self._lost("it is not open")

    def _lost(self, reason: str) -> BackendLost:
        return BackendLost(f"The results of store {self._store.name!r} were not reached: {reason.rstrip('.')}.")
