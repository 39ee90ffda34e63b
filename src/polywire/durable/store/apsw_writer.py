"""The thread that writes to one SQLite file: transactions one after the other, many of them in one commit."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Literal

import apsw

from polywire.bus.backend.sqlite_lock import FileLock
from polywire.durable.store.apsw_file import SqliteFile, refused_row, translated
from polywire.durable.store.lane import Lane, deliver
from polywire.errors import ConstraintViolated, StoreError

GROUP = 64
"""Transactions in one commit, at most."""
GROUP_TIME = 0.005
"""Seconds after which a commit takes no further transaction along."""
YIELD = 0.0002
"""Seconds for which the file is left alone after a commit, where other processes want it too."""
CHECKPOINT = 1000
"""Pages of the write-ahead log after which it is copied into the file."""

logger = logging.getLogger("polywire.durable.store")

Function = Callable[[apsw.Connection], Any]


class Op:
    """One thing to do in a transaction, and who waits for it."""

    __slots__ = ("_free", "function", "future", "kind")

    def __init__(self, kind: Kind, future: asyncio.Future[Any], function: Function | None = None) -> None:
        self.kind = kind
        self.future = future
        self.function = function
        self._free = [True]

    def take(self) -> bool:
        """By the thread that begins it, or by the loop that gives it up: whoever comes first gets True."""
        try:
            return self._free.pop()
        except IndexError:
            return False


Kind = Literal["call", "only", "commit", "rollback"]
"""`only`: the transaction consists of this, and commits if it succeeds."""


class Turn:
    """One transaction as the thread sees it. It waits, holds the connection, and is over."""

    __slots__ = ("failure", "ops", "state")

    def __init__(self) -> None:
        self.state: Literal["new", "waiting", "holding", "over"] = "new"
        self.ops: deque[Op] = deque()
        self.failure: StoreError | None = None
        """The connection broke under it: all that is left is to roll back."""


class Writer(Lane[tuple[Turn, Op]]):
    """Does the work of transactions in turns, in the order of their first statements.

    What ended is committed once nobody is waiting for a turn, or after GROUP transactions or GROUP_TIME: each is a
    savepoint in one transaction of SQLite, and they share the price of its commit. Only then do they hear that they
    succeeded. Around it, the lock beside the file is held: SQLite's own waiting starves all processes but one.
    """

    def __init__(self, file: SqliteFile) -> None:
        self._file = file
        self.lock = FileLock(file.path + "-lock")
        self.at_lock = False
        """It waits for another process."""
        self._db: apsw.Connection | None = None
        self._holder: Turn | None = None
        self._waiting: deque[Turn] = deque()
        self._ended: list[tuple[Op, Any]] = []
        self._open = False
        self._opened = 0.0
        self._pages = 0
        self._next_checkpoint = CHECKPOINT
        super().__init__(f"polywire-store {file.path}")

    def refuse(self, item: tuple[Turn, Op]) -> None:
        op = item[1]
        if op.kind == "rollback":
            deliver([(op.future, None, None)])
        else:
            deliver([(op.future, None, self._closed())])

    def _closed(self) -> StoreError:
        return StoreError(f"A transaction of store {self._file.name!r} was rolled back: the store was closed.")

    # ---- turns -------------------------------------------------------------------------------------------------------

    def handle(self, item: tuple[Turn, Op]) -> None:
        turn, op = item
        turn.ops.append(op)
        if turn.state == "new":
            turn.state = "waiting"
            self._waiting.append(turn)
        if turn.state == "over":
            self._refuse(turn)
        elif turn is self._holder:
            self._go_on(turn)

    def idle(self) -> bool:
        if self._holder is not None:
            return True
        if self._waiting:
            self._next_turn()
        elif self._open:
            self._commit()
        return self._holder is not None or not (self._waiting or self._open)

    def _next_turn(self) -> None:
        if self._open and (len(self._ended) >= GROUP or time.monotonic() - self._opened >= GROUP_TIME):
            self._commit()
            return
        turn = self._waiting.popleft()
        if turn.ops[0].future.done():
            # Cancelled, or out of time, before anything was done.
            self._over(turn)
            return
        try:
            self._begin()
        except (apsw.Error, StoreError) as error:
            self._over(turn, self._told(error))
            self._close_connection()
            return
        turn.state, self._holder = "holding", turn
        first = turn.ops[0]
        # The lock may have come late: what nobody waits for any more must not be done.
        if first.future.done() or not first.take():
            self._take_back(turn, turn.ops.popleft())
        else:
            self._go_on(turn)

    def _over(self, turn: Turn, failure: StoreError | None = None) -> None:
        """*failure*: why it cannot be committed, if nobody was told yet."""
        turn.state = "over"
        turn.failure = failure
        self._refuse(turn)
        if self._holder is turn:
            self._holder = None

    def _refuse(self, turn: Turn) -> None:
        while turn.ops:
            op = turn.ops.popleft()
            if op.kind == "rollback":
                self.settle(op.future)
            else:
                self.settle(op.future, error=turn.failure or StoreError("The transaction is over."))

    def _go_on(self, turn: Turn) -> None:
        while turn.ops and turn.state == "holding":
            op = turn.ops.popleft()
            if op.kind == "rollback" or (op.kind == "commit" and op.future.done()):
                self._take_back(turn, op)
            elif op.kind == "commit":
                self._end(turn, op, None)
            else:
                self._do(turn, op)

    # ---- what is done in a turn --------------------------------------------------------------------------------------

    def _do(self, turn: Turn, op: Op) -> None:
        if op.function is None or self._db is None:
            raise RuntimeError("an operation without a function, or without a connection")
        try:
            result = op.function(self._db)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it belongs to whoever waits
            self._failed(turn, op, error)
            return
        if isinstance(result, apsw.Cursor):
            result.close(True)  # left open, it would be used from two threads
        if op.kind == "only":
            self._end(turn, op, result)
        else:
            self.settle(op.future, result)

    def _failed(self, turn: Turn, op: Op, error: BaseException) -> None:
        if self._is_broken(error):
            self._broken(error, op)
            return
        told = self._told(error) if isinstance(error, apsw.Error) else error
        if op.kind == "only":
            self._take_back(turn, op, told)
        else:
            self.settle(op.future, error=told)

    def _is_broken(self, error: BaseException) -> bool:
        """The connection cannot be used any more, or has rolled back everything by itself."""
        if isinstance(error, apsw.IOError | apsw.CorruptError | apsw.NotADBError | apsw.CantOpenError):
            return True
        return self._db is None or not self._db.in_transaction

    def _end(self, turn: Turn, op: Op, result: Any) -> None:
        if self._db is not None and self._db.status(apsw.SQLITE_DBSTATUS_DEFERRED_FKS)[0]:
            # SQLite would find out in the commit only, and fail all who share it.
            self._take_back(turn, op, ConstraintViolated(refused_row(self._file.name, "FOREIGN KEY constraint failed")))
            return
        try:
            self.own("RELEASE polywire_turn")
        except apsw.Error as error:
            self._broken(error, op)
            return
        self._ended.append((op, result))
        self._over(turn)

    def _take_back(self, turn: Turn, op: Op, told: BaseException | None = None) -> None:
        try:
            self.own("ROLLBACK TO polywire_turn")
            self.own("RELEASE polywire_turn")
        except apsw.Error as error:
            self._broken(error, op)
            return
        self.settle(op.future, error=told)
        self._over(turn)

    # ---- the transaction of SQLite -----------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Raises apsw.Error, StoreError."""
        if not self._open:
            self._lock()
            self._open, self._opened = True, time.monotonic()
            if self._db is None:
                self._db = self._file.connect()
                self._db.set_wal_hook(self._grown)
            self.own("BEGIN IMMEDIATE")
        self.own("SAVEPOINT polywire_turn")

    def own(self, sql: str) -> None:
        """Run a statement that transactions may not. Raises apsw.Error."""
        if self._db is None:
            raise RuntimeError(f"{sql} without a connection")
        self._file.control = True
        try:
            # Not from the cache of statements: what is in there needs no leave.
            self._db.execute(sql, can_cache=False)
        finally:
            self._file.control = False

    def _commit(self) -> None:
        ended, self._ended = self._ended, []
        try:
            self.own("COMMIT")
        except apsw.Error as error:
            # A frame that found no room was not written, and a commit is its last frame.
            told = self._told(error, committed="no" if isinstance(error, apsw.FullError) else "maybe")
            for op, _ in ended:
                self.settle(op.future, error=told)
            self._close_connection()
            return
        for op, result in ended:
            self.settle(op.future, result)
        self.flush()
        self._checkpoint()
        self._unlock()

    def _broken(self, error: BaseException, op: Op) -> None:
        """Nothing of the open transaction is left: tell all who took part, and begin anew with the next one."""
        told = self._told(error)
        logger.error("Store %r failed and is opened again: %s", self._file.name, error)
        self.settle(op.future, error=told)
        for ended, _ in self._ended:
            self.settle(ended.future, error=told)
        self._ended = []
        if self._holder is not None:
            self._over(self._holder, told)
        self._close_connection()

    def _close_connection(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            # A rollback comes with it. It may fail as whatever made us close it did.
            with contextlib.suppress(apsw.Error):
                db.close(True)
        self._next_checkpoint = CHECKPOINT
        if self._open:
            self._unlock()

    def _told(self, error: BaseException, *, committed: Literal["no", "maybe"] = "no") -> StoreError:
        """What is said for an error of the database, or for one that took the transaction with it."""
        if isinstance(error, StoreError):
            return error
        if isinstance(error, apsw.Error):
            return translated(self._file.name, error, committed=committed)
        told = StoreError(f"A transaction of store {self._file.name!r} was rolled back: {error}")
        told.__cause__ = error
        return told

    # ---- the lock beside the file, and the write-ahead log -----------------------------------------------------------

    def _lock(self) -> None:
        self.at_lock = True
        self.flush()
        try:
            self.lock.acquire()
        except OSError as error:
            raise StoreError(
                f"A transaction of store {self._file.name!r} was not begun: {self.lock.path!r} could not be locked, "
                f"{error}."
            ) from error
        finally:
            self.at_lock = False

    def _unlock(self) -> None:
        self._open = False
        self.lock.release()
        if self.lock.shared:
            # The lock is not fair: without this pause, whoever just had it would have it again.
            time.sleep(YIELD)

    def _grown(self, connection: apsw.Connection, name: str, pages: int) -> int:
        self._pages = pages
        return apsw.SQLITE_OK

    def _checkpoint(self) -> None:
        """Copy the log into the file as far as no reader needs it."""
        if self._pages < self._next_checkpoint or self._db is None:
            return
        try:
            total, copied = self._db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        except apsw.BusyError:
            total, copied = self._pages, 0
        except apsw.Error as error:
            # What was committed is in the log; the next connection will copy it.
            logger.error("Store %r failed in a checkpoint and is opened again: %s", self._file.name, error)
            db, self._db = self._db, None
            with contextlib.suppress(apsw.Error):
                db.close(True)
            total, copied = 0, 0
        self._next_checkpoint = CHECKPOINT if copied >= total else total + CHECKPOINT

    def finish(self) -> None:
        """Commit what ended, roll back what did not, and leave the file as small as it can be."""
        if self._holder is not None:
            with contextlib.suppress(apsw.Error):
                self.own("ROLLBACK TO polywire_turn")
            self._over(self._holder, self._closed())
        if self._open:
            self._commit()
        while self._waiting:
            self._over(self._waiting.popleft(), self._closed())
        if self._db is not None:
            self._lock()
            self._next_checkpoint = 0
            self._checkpoint()
            self._close_connection()
            self.lock.release()
        self.lock.close()
