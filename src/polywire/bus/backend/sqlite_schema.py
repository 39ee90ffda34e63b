"""What is in a file of the bus, how it is opened, and where it may lie."""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path
from urllib.parse import unquote

import apsw

from polywire.errors import BackendUnreachable, SetupError

VERSION = 2
APPLICATION = 0x706F6C79
"""`application_id` of the file: "poly"."""
BUSY = 0.2
"""Seconds that SQLite waits for a foreign program; those of the bus wait at the lock beside the file."""
CACHE = 16 * 1024
"""KiB of pages in memory, per connection."""
JOURNAL_LIMIT = 64 * 1024 * 1024
"""Bytes that the write-ahead log keeps on disk once it was larger."""

_NETWORKS = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "lustre", "glusterfs", "fuse.sshfs"}
"""File systems on which several machines would see one file, but not each other's locks."""

SCHEMA = """
CREATE TABLE file (secret TEXT NOT NULL, finished INTEGER NOT NULL, finished_count INTEGER NOT NULL,
    finished_since REAL NOT NULL) STRICT;

CREATE TABLE owner (n INTEGER PRIMARY KEY AUTOINCREMENT, channel TEXT NOT NULL, address TEXT NOT NULL,
    host TEXT NOT NULL, pid INTEGER NOT NULL, started TEXT NOT NULL, lease REAL NOT NULL, beat INTEGER NOT NULL) STRICT;
CREATE INDEX owner_channel ON owner (channel);
CREATE INDEX owner_address ON owner (address);

CREATE TABLE queue (n INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, keyed INTEGER NOT NULL,
    priorities INTEGER NOT NULL, lease REAL NOT NULL, lost_limit INTEGER NOT NULL, concurrency INTEGER, rate REAL,
    next_start REAL NOT NULL DEFAULT 0.0) STRICT;

-- Waiting and held messages. The rest of their state is in the small tables below, so that handing a message out does
-- not write its body again. Of a keyed queue, only the oldest of each key (its head) is in one of them.
CREATE TABLE message (pos INTEGER PRIMARY KEY AUTOINCREMENT, queue INTEGER NOT NULL, id TEXT NOT NULL, key TEXT,
    level INTEGER NOT NULL, due REAL, at REAL NOT NULL, envelope BLOB NOT NULL) STRICT;
CREATE UNIQUE INDEX message_id ON message (queue, id);
CREATE INDEX message_key ON message (queue, key, pos) WHERE key IS NOT NULL;

-- level is the priority below zero, so that a plain range is in the order of handing out.
CREATE TABLE ready (queue INTEGER NOT NULL, level INTEGER NOT NULL, pos INTEGER NOT NULL, attempt INTEGER NOT NULL,
    lost INTEGER NOT NULL, PRIMARY KEY (queue, level, pos)) STRICT, WITHOUT ROWID;
CREATE TABLE delayed (pos INTEGER PRIMARY KEY, queue INTEGER NOT NULL, due REAL NOT NULL, level INTEGER NOT NULL,
    attempt INTEGER NOT NULL, lost INTEGER NOT NULL) STRICT;
CREATE INDEX delayed_due ON delayed (queue, due, pos);
CREATE TABLE held (pos INTEGER PRIMARY KEY, queue INTEGER NOT NULL, level INTEGER NOT NULL, owner INTEGER NOT NULL,
    started INTEGER NOT NULL, attempt INTEGER NOT NULL, lost INTEGER NOT NULL) STRICT;
CREATE INDEX held_owner ON held (owner);
CREATE INDEX held_queue ON held (queue);

CREATE TABLE dead (n INTEGER PRIMARY KEY AUTOINCREMENT, queue INTEGER NOT NULL, id TEXT NOT NULL, type TEXT NOT NULL,
    reason TEXT NOT NULL, error TEXT NOT NULL, attempts INTEGER NOT NULL, died REAL NOT NULL,
    envelope BLOB NOT NULL) STRICT;
CREATE INDEX dead_queue ON dead (queue, n);
CREATE INDEX dead_id ON dead (queue, id);

-- Ids of messages that are done, for refusing a second one: two generations, the older emptied as a whole.
CREATE TABLE finished_0 (queue INTEGER NOT NULL, id TEXT NOT NULL, PRIMARY KEY (queue, id)) STRICT, WITHOUT ROWID;
CREATE TABLE finished_1 (queue INTEGER NOT NULL, id TEXT NOT NULL, PRIMARY KEY (queue, id)) STRICT, WITHOUT ROWID;

CREATE TABLE topic (n INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, partitions INTEGER NOT NULL,
    retention REAL, retention_bytes INTEGER) STRICT;
CREATE TABLE part (topic INTEGER NOT NULL, part INTEGER NOT NULL, next INTEGER NOT NULL, first INTEGER NOT NULL,
    bytes INTEGER NOT NULL, PRIMARY KEY (topic, part)) STRICT, WITHOUT ROWID;
CREATE TABLE event (topic INTEGER NOT NULL, part INTEGER NOT NULL, pos INTEGER NOT NULL, at REAL NOT NULL,
    envelope BLOB NOT NULL) STRICT;
CREATE UNIQUE INDEX event_pos ON event (topic, part, pos);

-- A group of a topic. Its retries and dead letters are in the tables of the queue that belongs to it. Each replay
-- raises the generation.
CREATE TABLE team (n INTEGER PRIMARY KEY AUTOINCREMENT, topic INTEGER NOT NULL, name TEXT NOT NULL,
    queue INTEGER NOT NULL, generation INTEGER NOT NULL DEFAULT 0, UNIQUE (topic, name)) STRICT;
-- What a group has done of a partition (all before next), who reads it (owner), who should (wanted), how far it was
-- handed out (reached), and which events were under way when a reader died (suspect to suspects_end, lost times).
CREATE TABLE progress (team INTEGER NOT NULL, part INTEGER NOT NULL, next INTEGER NOT NULL, reached INTEGER NOT NULL,
    owner INTEGER, wanted INTEGER, epoch INTEGER NOT NULL, suspect INTEGER NOT NULL, suspects_end INTEGER NOT NULL,
    lost INTEGER NOT NULL, PRIMARY KEY (team, part)) STRICT, WITHOUT ROWID;
"""
UPGRADES = {1: "ALTER TABLE team ADD COLUMN generation INTEGER NOT NULL DEFAULT 0"}
"""What makes of a file of each older version one of the next. An older polywire that has the file open goes on."""


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


def check_name(what: str, name: str) -> None:
    """Raises SetupError where a queue, a topic or a group cannot be called so."""
    if not _NAME.fullmatch(name):
        shown = name if len(name) <= 80 else name[:80] + "..."
        raise SetupError(
            f"The {what} {shown!r} was not declared: a name has 1 to 200 letters, digits, '.', '-' and '_', and begins "
            "with a letter or a digit."
        )


def path_of(url: str) -> str:
    """`sqlite:bus.db`, `sqlite:/var/lib/bus.db`, `sqlite:///var/lib/bus.db` -> the path. Raises SetupError."""
    _, _, rest = url.partition(":")
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        if host:
            raise SetupError(
                f"{url!r} was not opened: {host!r} would be a host, and a file has none. "
                f"Write 'sqlite:{host}{slash}{path}'."
            )
        rest = "/" + path
    path, mark, _ = rest.partition("?")
    if mark:
        raise SetupError(f"{url!r} was not opened: the sqlite bus takes no options. Write 'sqlite:{path}'.")
    if not path or path == ":memory:":
        raise SetupError(f"{url!r} was not opened: it names no file. Write 'sqlite:bus.db', or 'memory:'.")
    return os.path.realpath(unquote(path))


def check_place(path: str) -> None:
    """Raises SetupError where no bus can be at *path*."""
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise SetupError(
            f"The bus at {path!r} was not opened: there is no folder {folder!r}. Create it with `mkdir -p {folder}`."
        )
    if os.path.isdir(path):
        raise SetupError(f"The bus at {path!r} was not opened: that is a folder. Name a file in it.")
    kind = _file_system(folder)
    if kind in _NETWORKS:
        raise SetupError(
            f"The bus at {path!r} was not opened: it lies on a network file system ({kind}), where locks do not hold. "
            "Use a local disk, or another backend."
        )


def _file_system(folder: str) -> str | None:
    """Its type as the kernel calls it; None where that cannot be found out."""
    try:
        lines = Path("/proc/self/mounts").read_text(errors="replace").splitlines()
    except OSError:
        return None
    found, longest = None, -1
    for line in lines:
        _, point, kind, *_ = line.split(" ")
        point = point.encode().decode("unicode_escape")
        inside = folder == point or folder.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= longest:
            found, longest = kind, len(point)
    return found


def connect(path: str, *, vfs: str | None = None, exclusive: bool = False) -> apsw.Connection:
    """A connection for writing, the tables made where the file is new. To be called with the lock held.

    *exclusive* keeps SQLite's own lock for good, for one process alone. Raises SetupError, BackendUnreachable.
    """
    try:
        made = apsw.Connection(path, vfs=vfs)
    except apsw.Error as error:
        raise unreachable(path, error) from error
    try:
        _configure(made, exclusive)
        _prepare(made, path)
    except apsw.Error as error:
        made.close(True)
        raise unreachable(path, error) from error
    except BaseException:
        made.close(True)
        raise
    return made


def connect_reader(path: str, *, vfs: str | None = None) -> apsw.Connection:
    made = apsw.Connection(path, flags=apsw.SQLITE_OPEN_READWRITE, vfs=vfs)
    made.set_busy_timeout(int(BUSY * 1000))
    made.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    made.wal_autocheckpoint(0)
    made.execute("PRAGMA query_only = ON")
    return made


def unreachable(path: str, error: BaseException) -> BackendUnreachable:
    return BackendUnreachable(f"The bus at {path!r} was not opened: {str(error).rstrip('.')}.")


def _configure(connection: apsw.Connection, exclusive: bool) -> None:
    connection.set_busy_timeout(int(BUSY * 1000))
    if exclusive:
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    if connection.pragma("user_version") == 0:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA journal_mode = WAL")
    # Checkpoints are made by hand, with the lock held: never by a commit or by closing a connection.
    connection.wal_autocheckpoint(0)
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    connection.execute(
        f"PRAGMA mmap_size = 0; PRAGMA cache_size = -{CACHE}; PRAGMA journal_size_limit = {JOURNAL_LIMIT};"
        "PRAGMA temp_store = MEMORY; PRAGMA synchronous = FULL"
    )


def _prepare(connection: apsw.Connection, path: str) -> None:
    """Make the tables of a new file, upgrade an older one; refuse a file that is something else, or newer than this
    program."""
    version, application = connection.pragma("user_version"), connection.pragma("application_id")
    if version == 0 and connection.execute("SELECT count(*) FROM sqlite_schema").get == 0:
        _create(connection)
    elif application != APPLICATION:
        raise SetupError(
            f"The bus at {path!r} was not opened: that file is a database of something else. Name another."
        )
    elif version > VERSION:
        raise SetupError(
            f"The bus at {path!r} was not opened: its tables are of version {version}, and this polywire knows "
            f"version {VERSION}. Upgrade polywire, or name another file."
        )
    elif version < VERSION:
        _upgrade(connection, version)


def _create(connection: apsw.Connection) -> None:
    with connection:
        connection.execute(SCHEMA)
        connection.execute("INSERT INTO file VALUES (?, 0, 0, 0.0)", (secrets.token_hex(16),))
        connection.execute(f"PRAGMA application_id = {APPLICATION}")
        connection.execute(f"PRAGMA user_version = {VERSION}")


def _upgrade(connection: apsw.Connection, version: int) -> None:
    with connection:
        for old in range(version, VERSION):
            connection.execute(UPGRADES[old])
        connection.execute(f"PRAGMA user_version = {VERSION}")
