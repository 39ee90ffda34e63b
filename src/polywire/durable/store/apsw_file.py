"""A SQLite file as a store opens it: where it may lie, how it is set up, and what its errors mean."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import apsw

from polywire.errors import ConstraintViolated, SetupError, StoreBusy, StoreError

BUSY = 5.0
"""Seconds that SQLite waits for a foreign program; stores wait at the lock beside the file."""
CACHE = 8 * 1024
"""KiB of pages in memory, per connection."""
JOURNAL_LIMIT = 64 * 1024 * 1024
"""Bytes that the write-ahead log keeps on disk once it was larger."""

Synchronous = Literal["full", "normal"]

_REFUSED = (apsw.SQLITE_TRANSACTION, apsw.SQLITE_SAVEPOINT, apsw.SQLITE_ATTACH, apsw.SQLITE_DETACH)


class SqliteFile:
    """Opens connections to one file."""

    def __init__(self, name: str, path: str, *, synchronous: Synchronous, vfs: str | None) -> None:
        self.name = name
        self.path = path
        self._synchronous = synchronous
        self._vfs = vfs
        self.control = False
        """The store's own words are about to run: transactions may be begun and ended."""

    def connect(self) -> apsw.Connection:
        """For writing, with the lock held. Raises apsw.Error."""
        made = apsw.Connection(self.path, vfs=self._vfs)
        try:
            made.set_busy_timeout(int(BUSY * 1000))
            # Checkpoints are made by hand, with the lock held: never by a commit or by closing a connection.
            made.wal_autocheckpoint(0)
            made.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            made.execute("PRAGMA journal_mode = WAL")
            made.execute(
                f"PRAGMA synchronous = {self._synchronous}; PRAGMA foreign_keys = ON; PRAGMA mmap_size = 0;"
                f"PRAGMA cache_size = -{CACHE}; PRAGMA journal_size_limit = {JOURNAL_LIMIT}"
            )
            made.authorizer = self._allow
        except BaseException:
            made.close(True)
            raise
        return made

    def connect_reader(self) -> apsw.Connection:
        """For reading beside it. Raises apsw.Error."""
        made = apsw.Connection(self.path, flags=apsw.SQLITE_OPEN_READWRITE, vfs=self._vfs)
        made.set_busy_timeout(int(BUSY * 1000))
        made.wal_autocheckpoint(0)
        made.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        made.execute(f"PRAGMA query_only = ON; PRAGMA mmap_size = 0; PRAGMA cache_size = -{CACHE}")
        return made

    def _allow(self, action: int, first: str | None, *_: str | None) -> int:
        """Statements of a transaction must not end it: the block does, and others may be in the same commit."""
        return apsw.SQLITE_DENY if action in _REFUSED and not self.control else apsw.SQLITE_OK


def check_place(name: str, path: str) -> None:
    """Raises SetupError where no store can be at *path*."""
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise SetupError(
            f"Store {name!r} was not opened: there is no folder {folder!r}. Create it with `mkdir -p {folder}`."
        )
    if os.path.isdir(path):
        raise SetupError(f"Store {name!r} was not opened: {path!r} is a folder. Name a file in it.")
    if _opened_by_another_library(path):
        raise SetupError(
            f"Store {name!r} was not opened: {path!r} is open in this process already, but not by apsw. Two SQLite "
            "libraries in one process would break each other's locks and the file with them. Close the other one, or "
            "use the store for everything."
        )


def _opened_by_another_library(path: str) -> bool:
    """What can be found out: Linux tells which files are open, and whoever opens this one with apsw, store or bus, has
    the lock beside it open as well."""
    return _is_open(path) and not _is_open(path + "-lock")


def _is_open(path: str) -> bool:
    """False also where nobody tells."""
    try:
        file = os.stat(path)
        numbers = list(Path("/proc/self/fd").iterdir())
    except OSError:
        return False
    for number in numbers:
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(number), file):
                return True
    return False


def translated(name: str, error: apsw.Error, *, committed: Literal["no", "maybe"] = "no") -> StoreError:
    """Ours for the driver's, with it as the cause."""
    made = _made(name, error, committed)
    made.__cause__ = error
    return made


def _made(name: str, error: apsw.Error, committed: Literal["no", "maybe"]) -> StoreError:
    reason = str(error).rstrip(".")
    if committed == "maybe":
        return StoreError(
            f"Nobody knows whether a transaction of store {name!r} was committed: {reason}. "
            "Look before doing it again, or do it behind the inbox.",
            committed="maybe",
        )
    for kinds, make in _MEANINGS:
        if isinstance(error, kinds):
            return make(name, reason)
    return StoreError(f"Store {name!r} refused a statement: {reason}.")


def _busy(name: str, reason: str) -> StoreError:
    return StoreBusy(
        f"A transaction of store {name!r} was not begun: another program has had the file for {BUSY:g} s ({reason}). "
        "End its transaction."
    )


def _constraint(name: str, reason: str) -> StoreError:
    return ConstraintViolated(refused_row(name, reason))


def refused_row(name: str, reason: str) -> str:
    return f"Store {name!r} refused a row: {reason}."


def _denied(name: str, reason: str) -> StoreError:
    return StoreError(
        f"Store {name!r} refused a statement that begins or ends a transaction, or attaches a file. The blocks of "
        "`transaction()` and `savepoint()` do the one; for the other, open another store."
    )


def _disk(name: str, reason: str) -> StoreError:
    return StoreError(f"A transaction of store {name!r} was rolled back: {reason}.")


_MEANINGS: tuple[tuple[tuple[type[apsw.Error], ...], Callable[[str, str], StoreError]], ...] = (
    ((apsw.BusyError, apsw.LockedError), _busy),
    ((apsw.ConstraintError,), _constraint),
    ((apsw.AuthError,), _denied),
    (
        (apsw.IOError, apsw.FullError, apsw.CorruptError, apsw.NotADBError, apsw.CantOpenError, apsw.NoMemError),
        _disk,
    ),
)
