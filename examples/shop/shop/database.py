"""The SQLite database of one service: created, migrated and seeded on first use, used in short transactions."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
    """

    def __init__(self, path: str | Path, *migrations: Migration, threads: bool = False) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, timeout=5.0, check_same_thread=not threads)
        self._connection.row_factory = sqlite3.Row
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
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def run(self, sql: str, *values: Value) -> int:
        """How many rows were changed."""
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

    def close(self) -> None:
        self._connection.close()


@contextmanager
def open_database(name: str, *migrations: Migration, threads: bool = False) -> Iterator[Database]:
    """The database of the service *name* in the shop's data directory."""
    directory = data_directory()
    directory.mkdir(parents=True, exist_ok=True)
    database = Database(directory / f"{name}.db", *migrations, threads=threads)
    try:
        yield database
    finally:
        database.close()
