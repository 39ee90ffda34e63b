"""Reading a SQLite file beside its writer: connections in threads of their own, each with a snapshot at a time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import apsw

from polywire.durable.store.apsw_file import SqliteFile, translated
from polywire.durable.store.lane import Lane, deliver
from polywire.errors import StoreBusy, StoreError

READERS = 4
"""Snapshots at a time; they are cheap, and what is read is copied by one processor after the other anyway."""

Item = tuple[Callable[[apsw.Connection], Any] | None, asyncio.Future[Any]]
"""What to do in the snapshot, which begins with it; None ends the snapshot."""


class Reader(Lane[Item]):
    """One connection that only reads."""

    def __init__(self, file: SqliteFile) -> None:
        self._file = file
        self._db: apsw.Connection | None = None
        super().__init__(f"polywire-store-reader {file.path}")

    def refuse(self, item: Item) -> None:
        error = StoreError(f"Store {self._file.name!r} was not read: it was closed.")
        deliver([(item[1], None, None if item[0] is None else error)])

    def handle(self, item: Item) -> None:
        function, future = item
        try:
            if function is None:
                self._end()
                self.settle(future)
            elif not future.done():
                self.settle(future, function(self._in_snapshot()))
        except apsw.Error as error:
            if not isinstance(error, apsw.SQLError | apsw.ReadOnlyError):
                self.finish()
            self.settle(future, error=translated(self._file.name, error))
        except BaseException as error:  # noqa: BLE001 - it belongs to whoever waits
            self.settle(future, error=error)

    def _in_snapshot(self) -> apsw.Connection:
        if self._db is None:
            self._db = self._file.connect_reader()
        if not self._db.in_transaction:
            self._db.execute("BEGIN")
        return self._db

    def _end(self) -> None:
        if self._db is not None and self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def finish(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            with contextlib.suppress(apsw.Error):
                db.close(True)


class Readers:
    """A few of them, made when they are needed, each lent to one block at a time."""

    def __init__(self, file: SqliteFile) -> None:
        self._file = file
        self._idle: list[Reader] = []
        self._all: list[Reader] = []
        self._places = asyncio.Semaphore(READERS)

    async def borrow(self, wait: float) -> Reader:
        """Raises StoreBusy after *wait* seconds."""
        if self._places.locked():
            try:
                await asyncio.wait_for(self._places.acquire(), wait)
            except TimeoutError:
                raise StoreBusy(
                    f"Store {self._file.name!r} was not read: {READERS} other blocks of `read()` have been open for "
                    f"{wait:.3g} s. Keep them short."
                ) from None
        else:
            await self._places.acquire()
        if not self._idle:
            self._idle.append(Reader(self._file))
            self._all.append(self._idle[-1])
        return self._idle.pop()

    def give_back(self, reader: Reader) -> None:
        """Its snapshot ends before whatever it is given next."""
        reader.put((None, reader.loop.create_future()))
        self._idle.append(reader)
        self._places.release()

    async def close(self, timeout: float) -> None:
        await asyncio.gather(*(reader.end(timeout) for reader in self._all))
        self._all.clear()
        self._idle.clear()
