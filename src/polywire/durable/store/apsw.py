"""A store in a SQLite file: one thread writes for the whole process, and many transactions share a commit."""

from __future__ import annotations

import asyncio
import logging
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, cast

import apsw

from polywire.bus.core.inbox import UnderWay, under_way
from polywire.clock import SYSTEM_CLOCK, Clock
from polywire.context import current_or_none, transaction_open
from polywire.durable import inbox as messages_done
from polywire.durable import results, slots
from polywire.durable.migrations import (
    APP,
    TABLE,
    Applied,
    Components,
    Migration,
    State,
    check_components,
    missing_of,
    settle_schema,
    states_of,
)
from polywire.durable.store.apsw_file import SqliteFile, Synchronous, check_place
from polywire.durable.store.apsw_reader import Reader, Readers
from polywire.durable.store.apsw_writer import Kind, Op, Turn, Writer
from polywire.durable.store.seam import Arguments, Row
from polywire.errors import SetupError, StoreBusy, StoreError

T = TypeVar("T")

WAIT = 30.0
"""Seconds that a transaction waits for its turn where the current call has no deadline."""
CLOSING = 5.0
"""Seconds that closing waits for the file."""

OWN: Components = {
    messages_done.COMPONENT: messages_done.MIGRATIONS,
    results.COMPONENT: results.MIGRATIONS,
    slots.COMPONENT: slots.MIGRATIONS,
}
"""The tables that polywire has in every store."""

logger = logging.getLogger("polywire.durable.store")

_open: ContextVar[SqliteTransaction | None] = ContextVar("polywire_sqlite_transaction", default=None)
_stores: weakref.WeakSet[SqliteStore] = weakref.WeakSet()


class SqliteStore:
    """A `Store` in the file at *path*. The resource of an app:

        @app.resource
        async def store() -> AsyncIterator[Store]:
            async with SqliteStore("orders.db", migrations=[Migration(1, "orders", "CREATE TABLE ...")]) as store:
                yield store

    Placeholders are SQLite's: `?`, `:name`, `$1`. Several processes may share the file, on one machine; a child that
    was forked opens it anew. No other SQLite library may have it open in the same process. `synchronous="normal"` makes
    commits cheaper and loses the last ones at a power cut, though not when a process dies.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        migrations: Sequence[Migration] = (),
        upgrade: bool = False,
        name: str | None = None,
        wait: float = WAIT,
        synchronous: Synchronous = "full",
        clock: Clock = SYSTEM_CLOCK,
        vfs: str | None = None,
    ) -> None:
        """*migrations* are those of the service's own tables. *upgrade* applies what is missing at the start, instead
        of leaving that to `polywire db upgrade`. *vfs* is one that was registered with apsw."""
        self.name = Path(path).stem if name is None else name
        self.path = os.path.realpath(path)
        if str(path) in ("", ":memory:"):
            raise SetupError(
                f"Store {self.name!r} was not opened: a store has its tables in a file, which several connections "
                "open. Use one in a temporary folder."
            )
        self.wait = wait
        self.clock = clock
        self.components: Components = {**OWN, APP: tuple(migrations)} if migrations else OWN
        check_components(self.components)
        self._upgrade = upgrade
        self._file = SqliteFile(self.name, self.path, synchronous=synchronous, vfs=vfs)
        self._writer: Writer | None = None
        self._readers: Readers | None = None

    def __repr__(self) -> str:
        return f"SqliteStore({self.path!r})"

    # ---- its life ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        if self._writer is not None:
            raise SetupError(f"Store {self.name!r} is open already.")
        check_place(self.name, self.path)
        try:
            self._writer = Writer(self._file)
        except OSError as error:
            raise SetupError(f"Store {self.name!r} was not opened: {error}.") from error
        self._readers = Readers(self._file)
        _stores.add(self)
        try:
            await settle_schema(self, upgrade=self._upgrade)
        except StoreError as error:
            await self.close()
            raise SetupError(f"Store {self.name!r} was not opened at {self.path!r}. {error}") from error
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        writer, self._writer = self._writer, None
        readers, self._readers = self._readers, None
        if writer is None or writer.forked:
            return
        if readers is not None:
            await readers.close(CLOSING)
        if not await writer.end(CLOSING):
            logger.warning(
                "Store %r was left without its last checkpoint: the file is held by %s.",
                self.name,
                writer.lock.holder(),
            )

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def forget(self) -> None:
        """In a forked child: let go of the parent's lock, which would not be released with the parent's end."""
        if self._writer is not None:
            self._writer.lock.close()

    # ---- transactions ------------------------------------------------------------------------------------------------

    def transaction(self, *, inbox: bool = True) -> SqliteTransaction:
        return SqliteTransaction(self, self._working("A transaction"), under_way() if inbox else ())

    def read(self) -> SqliteReading:
        self._working("A snapshot")
        return SqliteReading(self)

    async def run(self, function: Callable[[apsw.Connection], T], *, inbox: bool = True) -> T:
        """Run *function*, a plain one, in a transaction of its own: one hop to the writing thread and back, where
        `transaction` takes one for each statement. It rolls back where *function* raises.

        Nothing may be kept of the connection, a cursor that is returned is closed, and its transaction is neither ended
        nor nested by *function*.
        """
        writer = self._working("A transaction")
        self.refuse_nesting()
        messages = under_way() if inbox else ()
        if messages:
            messages_done.begin(messages, self.name)
            function = partial(_after_inbox, messages, self.clock.time(), function)
        try:
            result = await self.first(writer, Turn(), "only", function)
        except BaseException:
            for message in messages:
                message.begun = False
            raise
        for message in messages:
            message.recorded = True
        return cast("T", result)

    async def upgrade(self) -> list[Applied]:
        return await self.run(self._apply, inbox=False)

    async def states(self) -> list[State]:
        return await self.run(self._states, inbox=False)

    def _states(self, db: apsw.Connection) -> list[State]:
        there = db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'polywire_schema'").get is not None
        rows = db.execute("SELECT component, version, name FROM polywire_schema").fetchall() if there else []
        return states_of(self.components, cast("list[tuple[str, int, str]]", rows))

    def _apply(self, db: apsw.Connection) -> list[Applied]:
        missing = missing_of(self.name, self._states(db))
        db.execute(TABLE)
        for step in missing:
            try:
                db.execute(step.migration.sql).fetchall()
            except apsw.Error as error:
                raise SetupError(
                    f"Store {self.name!r} was not upgraded: {step.component} {step.migration.version} "
                    f"({step.migration.name}) failed: {str(error).rstrip('.')}. Nothing was changed."
                ) from error
            db.execute(
                "INSERT INTO polywire_schema VALUES (?, ?, ?, ?)",
                (step.component, step.migration.version, step.migration.name, self.clock.time()),
            )
        return missing

    # ---- for its transactions ----------------------------------------------------------------------------------------

    def _working(self, what: str) -> Writer:
        writer = self._writer
        if writer is None:
            raise StoreError(f"{what} of store {self.name!r} was not begun: it is not open.")
        if writer.forked:
            raise StoreError(
                f"{what} of store {self.name!r} was not begun: this process was forked from the one that opened it. "
                "Open it anew in the child."
            )
        return writer

    def refuse_nesting(self) -> None:
        """Raises StoreError where a transaction of this store is open in the same task, or in one that started it."""
        outer = _open.get()
        while outer is not None:
            if outer.store is self and outer.is_open:
                raise StoreError(
                    f"A transaction of store {self.name!r} was not begun: there is one around it already, and the two "
                    "would wait for each other. Pass `tx` on, and use `tx.savepoint()` for a part that can be undone."
                )
            outer = outer.outer

    def time_to_wait(self) -> float:
        call = current_or_none()
        left = None if call is None else call.time_left()
        return self.wait if left is None else min(self.wait, left)

    async def first(self, writer: Writer, turn: Turn, kind: Kind, function: Callable[[apsw.Connection], Any]) -> Any:
        """The first thing of a transaction, which waits for the others."""
        op = Op(kind, writer.loop.create_future(), function)
        wait = self.time_to_wait()
        alarm = writer.loop.call_later(wait, self._too_late, writer, op, wait)
        writer.put((turn, op))
        try:
            return await op.future
        finally:
            alarm.cancel()

    def _too_late(self, writer: Writer, op: Op, wait: float) -> None:
        if op.future.done() or not op.take():
            return
        who = f"{writer.lock.holder()} has" if writer.at_lock else "other transactions of this process have"
        op.future.set_exception(
            StoreBusy(
                f"A transaction of store {self.name!r} was not begun: {who} had the file for {wait:.3g} s. Nothing was "
                "done. Keep transactions short: no calls to others in them."
            )
        )

    @property
    def readers(self) -> Readers:
        if self._readers is None:
            raise StoreError(f"A snapshot of store {self.name!r} was not begun: it is not open.")
        return self._readers


def _after_inbox(
    messages: Sequence[UnderWay], now: float, function: Callable[[apsw.Connection], T], db: apsw.Connection
) -> T:
    _enter(messages, now, db)
    return function(db)


def _enter(messages: Sequence[UnderWay], now: float, db: apsw.Connection) -> None:
    new = []
    for message in messages:
        before = db.total_changes()
        db.execute(messages_done.INSERT, messages_done.row_of(message, now))
        new.append(db.total_changes() > before)
    messages_done.judge(messages, new)


class SqliteTransaction:
    """One block of `SqliteStore.transaction`. Its statements run one after the other."""

    def __init__(self, store: SqliteStore, writer: Writer, messages: Sequence[UnderWay]) -> None:
        self.store = store
        self.outer: SqliteTransaction | None = None
        self.is_open = False
        self._writer = writer
        self._messages = messages
        self._turn: Turn | None = None
        self._spoiled = ""
        """Why it can only be rolled back."""
        self._depth = 0
        self._sending: AbstractContextManager[None] = nullcontext()

    async def __aenter__(self) -> Self:
        self.store.refuse_nesting()
        if self._messages:
            messages_done.begin(self._messages, self.store.name)
        self.is_open = True
        if self._messages:
            try:
                await self._call(partial(_enter, self._messages, self.store.clock.time()))
            except BaseException:
                self._roll_back()
                raise
        self.outer = _open.get()
        _open.set(self)
        self._sending = transaction_open(self.store.name)
        self._sending.__enter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sending.__exit__(None, None, None)
        _open.set(self.outer)
        if kind is not None:
            self._roll_back()
            return
        if self._spoiled:
            self._roll_back()
            raise StoreError(f"A transaction of store {self.store.name!r} was rolled back: {self._spoiled}.")
        await self._commit()

    async def _commit(self) -> None:
        self.is_open = False
        if self._turn is None:
            return
        op = Op("commit", self._writer.loop.create_future())
        self._writer.put((self._turn, op))
        try:
            await op.future
        except StoreError:
            self._let_go()
            raise
        for message in self._messages:
            message.recorded = True

    def _roll_back(self) -> None:
        """Whatever comes after it, on whichever connection, finds it rolled back; so nobody waits for it."""
        self.is_open = False
        if self._turn is not None:
            future = self._writer.loop.create_future()
            self._writer.put((self._turn, Op("rollback", future)))
        self._let_go()

    def _let_go(self) -> None:
        for message in self._messages:
            message.begun = False

    # ---- statements --------------------------------------------------------------------------------------------------

    async def execute(self, sql: str, arguments: Arguments = ()) -> int:
        count: int = await self._call(partial(_execute, sql, arguments))
        return count

    async def fetch_one(self, sql: str, arguments: Arguments = ()) -> Row | None:
        row: Row | None = await self._call(partial(_fetch_one, sql, arguments))
        return row

    async def fetch_all(self, sql: str, arguments: Arguments = ()) -> list[Row]:
        rows: list[Row] = await self._call(partial(_fetch_all, sql, arguments))
        return rows

    def savepoint(self) -> AbstractAsyncContextManager[object]:
        return _Savepoint(self)

    async def own(self, *statements: str) -> None:
        """The store's own words."""
        await self._call(partial(_run_own, self._writer, statements))

    def own_later(self, *statements: str) -> None:
        """The same, before whatever comes next; nobody waits for it."""
        if self._turn is not None and not self._spoiled:
            op = Op("call", self._writer.loop.create_future(), partial(_run_own, self._writer, statements))
            op.future.add_done_callback(_look_at)
            self._writer.put((self._turn, op))

    async def _call(self, function: Callable[[apsw.Connection], Any]) -> Any:
        self._check()
        try:
            if self._turn is None:
                self._turn = Turn()
                return await self.store.first(self._writer, self._turn, "call", function)
            op = Op("call", self._writer.loop.create_future(), function)
            self._writer.put((self._turn, op))
            return await op.future
        except asyncio.CancelledError:
            self._spoiled = "one of its statements was cancelled, and nobody knows whether it ran"
            raise
        except StoreBusy:
            self._spoiled = "its turn did not come"
            raise

    def _check(self) -> None:
        if not self.is_open:
            raise StoreError(f"A statement was not run: the transaction of store {self.store.name!r} is over.")
        if self._spoiled:
            raise StoreError(
                f"A statement was not run: the transaction of store {self.store.name!r} can only be rolled back, "
                f"since {self._spoiled}."
            )

    @property
    def depth(self) -> int:
        return self._depth

    def deeper(self, by: int) -> int:
        self._depth += by
        return self._depth


class _Savepoint:
    def __init__(self, tx: SqliteTransaction) -> None:
        self._tx = tx
        self._name = ""

    async def __aenter__(self) -> None:
        self._name = f"polywire_{self._tx.deeper(1)}"
        try:
            await self._tx.own(f"SAVEPOINT {self._name}")
        except BaseException:
            self._tx.deeper(-1)
            raise

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._tx.deeper(-1)
        if kind is None:
            await self._tx.own(f"RELEASE {self._name}")
        else:
            self._tx.own_later(f"ROLLBACK TO {self._name}", f"RELEASE {self._name}")


class SqliteReading:
    """One block of `SqliteStore.read`."""

    def __init__(self, store: SqliteStore) -> None:
        self._store = store
        self._reader: Reader | None = None

    async def __aenter__(self) -> Self:
        self._reader = await self._store.readers.borrow(self._store.time_to_wait())
        return self

    async def __aexit__(self, *_: object) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            self._store.readers.give_back(reader)

    async def fetch_one(self, sql: str, arguments: Arguments = ()) -> Row | None:
        row: Row | None = await self._call(partial(_fetch_one, sql, arguments))
        return row

    async def fetch_all(self, sql: str, arguments: Arguments = ()) -> list[Row]:
        rows: list[Row] = await self._call(partial(_fetch_all, sql, arguments))
        return rows

    async def _call(self, function: Callable[[apsw.Connection], Any]) -> Any:
        if self._reader is None:
            raise StoreError(f"A statement was not run: the snapshot of store {self._store.name!r} is over.")
        future = self._reader.loop.create_future()
        self._reader.put((function, future))
        return await future


# ---- in the threads --------------------------------------------------------------------------------------------------


def _execute(sql: str, arguments: Arguments, db: apsw.Connection) -> int:
    before = db.total_changes()
    for _ in db.execute(sql, _bound(arguments)):
        pass
    return db.changes() if db.total_changes() > before else 0


def _fetch_one(sql: str, arguments: Arguments, db: apsw.Connection) -> Row | None:
    cursor = db.execute(sql, _bound(arguments))
    row = cursor.fetchone()
    cursor.close(True)
    return cast("Row | None", row)


def _fetch_all(sql: str, arguments: Arguments, db: apsw.Connection) -> list[Row]:
    return cast("list[Row]", db.execute(sql, _bound(arguments)).fetchall())


def _bound(arguments: Arguments) -> Any:
    return arguments if isinstance(arguments, Mapping | tuple) else tuple(arguments)


def _run_own(writer: Writer, statements: Sequence[str], db: apsw.Connection) -> None:
    for statement in statements:
        writer.own(statement)


def _look_at(future: asyncio.Future[Any]) -> None:
    """An error of what nobody waits for comes out with the next statement: the transaction is broken then."""
    if not future.cancelled():
        future.exception()


def _forget_all() -> None:
    for store in _stores:
        store.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_all)
