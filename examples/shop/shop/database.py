"""The SQLite database of one service: created, migrated and seeded on first use, used in short transactions."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from polywire import Unavailable

Row = sqlite3.Row
Value = str | int | float | bytes | None
Migration = Callable[["Database"], None]


def data_directory() -> Path:
    """Where the databases are: $SHOP_DATA, or `.polywire/shop` beside the system file."""
    return Path(os.environ.get("SHOP_DATA") or Path(__file__).parents[1] / ".polywire" / "shop")


class Database:
    """One connection, used from the event loop without a thread in between.

    A transaction of this shop takes 30 µs, which is less than handing it to a thread and back; and since nothing else
    runs between its first statement and its last, the code reads as it happens. A service with queries of more than a
    millisecond would have to move them to a thread.

    Killing the process loses nothing that was committed. A power cut may lose the last moments, as commits do not wait
    for the disk (`synchronous = NORMAL`); a shop that takes real money would set FULL and pay 0.2 to 10 ms for each.

    With *threads*, handlers in threads may use it too: statement by statement, which SQLite puts one after the other,
    but not in transactions, which others would join.

    With *turns*, several processes may write to the file: they take turns.
    """

    def __init__(
        self, path: str | Path, *migrations: Migration, threads: bool = False, turns: Turns | None = None
    ) -> None:
        self._turns = turns
        self._connection = sqlite3.connect(path, isolation_level=None, timeout=5.0, check_same_thread=not threads)
        self._connection.row_factory = sqlite3.Row
        with self._turn():
            for setting in ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON"):
                self._connection.execute(f"PRAGMA {setting}")
        self._migrate(migrations)

    def _migrate(self, migrations: tuple[Migration, ...]) -> None:
        """Run those that this file has not seen. The lock comes first, so that two instances cannot both do it."""
        with self.transaction():
            version: int = self._connection.execute("PRAGMA user_version").fetchone()[0]
            for migration in migrations[version:]:
                migration(self)
            self._connection.execute(f"PRAGMA user_version = {len(migrations)}")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of the block or nothing of it. Do not `await` inside: other calls would join the transaction."""
        with self._turn():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if self._turns is None or self._connection.in_transaction:
            yield
            return
        self._turns.take()
        try:
            yield
        finally:
            self._turns.give_back()

    def run(self, sql: str, *values: Value) -> int:
        """How many rows were changed."""
        with self._turn():
            return self._connection.execute(sql, values).rowcount

    def run_many(self, sql: str, rows: list[tuple[Value, ...]]) -> None:
        self._connection.executemany(sql, rows)

    def all(self, sql: str, *values: Value) -> list[Row]:
        return self._connection.execute(sql, values).fetchall()

    def one(self, sql: str, *values: Value) -> Row | None:
        row: Row | None = self._connection.execute(sql, values).fetchone()
        return row

    def value(self, sql: str, *values: Value) -> Any:
        """The first column of the first row, which has to be there."""
        return self._connection.execute(sql, values).fetchone()[0]

    def version(self) -> int:
        """Another number whenever another process has changed something."""
        return int(self.value("PRAGMA data_version"))

    def close(self) -> None:
        with self._turn():  # the last one to close empties the log of the others
            self._connection.close()


class Turns:
    """Which of several processes may write to a database: a lock on a file beside it.

    SQLite lets them write too, one after the other, but before 3.51.3 a file in WAL mode may be damaged where one
    writes just while another begins its log anew; and its own way of waiting leaves some of them waiting for seconds.
    The lock goes with the process that has it, so that killing one stops nobody.
    """

    def __init__(self, path: Path, *, wait: float = 5.0) -> None:
        self._path = path
        self._wait = wait
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def take(self) -> None:
        """Wait for the turn, which is a matter of microseconds. Raises Unavailable where nobody gives it back."""
        until = time.monotonic() + self._wait
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > until:
                    raise Unavailable(
                        f"Nothing was written to {self._path.stem!r}: another process has been writing to it for "
                        f"{self._wait:g} s. Ask again; if that goes on, look for a process that is stopped.",
                        reached="no",
                    ) from None
                time.sleep(0.0002)
            else:
                return

    def give_back(self) -> None:
        fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        os.close(self._file)


@contextmanager
def open_database(
    name: str, *migrations: Migration, threads: bool = False, processes: bool = False
) -> Iterator[Database]:
    """The database of the service *name* in the shop's data directory; with *processes*, several may write to it."""
    directory = data_directory()
    directory.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        turns = None
        if processes:
            turns = Turns(directory / f"{name}.lock")
            stack.callback(turns.close)
        database = Database(directory / f"{name}.db", *migrations, threads=threads, turns=turns)
        stack.callback(database.close)
        yield database
