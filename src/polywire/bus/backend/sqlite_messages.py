"""What happens to the messages of a queue in a file of the bus, as SQL: in, out, back, and to the dead letters."""

from __future__ import annotations

import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import apsw

from polywire.bus.backend.sqlite_file import Transaction
from polywire.bus.core import QueueSpec, unpack
from polywire.errors import UndecodableMessage

FINISHED_KEPT = 100_000
"""Ids of finished messages that a generation holds at most; the one before it is kept too."""
FINISHED_FOR = 3600.0
"""Seconds after which a generation is full, however few it holds."""
PROMOTED = 500
"""Delayed messages made ready at a time, where more are due."""
BURST = 0.1
"""Seconds whose share of a rate may be taken at once."""
ERROR_CHARACTERS = 2000

_CHUNKS = (64, 8, 1)
"""Rows of one INSERT. Each statement lets go of the interpreter's lock, and waits to get it back."""
COLUMNS = 6
"""Of a row to insert: queue, id, key, level, due, envelope."""


@dataclass(frozen=True, slots=True)
class QueueRow:
    """A queue as it stands in the file."""

    n: int
    name: str
    keyed: bool
    priorities: int
    lease: float
    lost_limit: int
    concurrency: int | None
    rate: float | None

    @property
    def channel(self) -> str:
        return f"q{self.n}"

    @property
    def withdrawals(self) -> str:
        """The channel of those who hear of what is taken away from them."""
        return f"w{self.n}"

    @property
    def limited(self) -> bool:
        return self.concurrency is not None or self.rate is not None

    def level(self, priority: int) -> int:
        return -min(max(priority, 0), self.priorities - 1)


Claimed = tuple[int, int, int, int, bytes]
"""Level, position, attempts, lost, envelope."""


def numbers(values: Iterable[int]) -> Any:
    """For `IN (SELECT value FROM carray(?))`."""
    return apsw.carray(array.array("q", values), flags=apsw.SQLITE_CARRAY_INT64)


def texts(values: Iterable[str]) -> Any:
    return apsw.carray(tuple(values), flags=apsw.SQLITE_CARRAY_TEXT)


# ---- queues --------------------------------------------------------------------------------------------------------

_QUEUE = "SELECT n, name, keyed, priorities, lease, lost_limit, concurrency, rate FROM queue WHERE name = ?"


def find_queue(connection: apsw.Connection, name: str) -> QueueRow | None:
    row = connection.execute(_QUEUE, (name,)).fetchone()
    return None if row is None else QueueRow(row[0], row[1], bool(row[2]), *row[3:])


def make_queue(tx: Transaction, spec: QueueSpec) -> None:
    tx.execute(
        """INSERT INTO queue (name, keyed, priorities, lease, lost_limit, concurrency, rate)
        VALUES (?, ?, ?, ?, ?, ?, ?)""",
        (spec.name, spec.keyed, spec.priorities, spec.lease, spec.lost_limit, spec.concurrency, spec.rate),
    )


# ---- in --------------------------------------------------------------------------------------------------------------


@cache
def _insert(rows: int) -> str:
    values = ", ".join(["(?, ?, ?, ?, ?, ?)"] * rows)
    return f"""
        INSERT INTO message (queue, id, key, level, due, envelope, at)
        SELECT v.column1, v.column2, v.column3, v.column4, v.column5, v.column6, ? FROM (VALUES {values}) v
        WHERE NOT EXISTS (SELECT 1 FROM finished_0 f WHERE f.queue = v.column1 AND f.id = v.column2)
        AND NOT EXISTS (SELECT 1 FROM finished_1 f WHERE f.queue = v.column1 AND f.id = v.column2)
        ON CONFLICT (queue, id) DO NOTHING"""  # noqa: S608 - nothing but marks


def insert(tx: Transaction, values: Sequence[Any], *, keyed: bool, delayed: bool) -> None:
    """Put messages into their queues, COLUMNS values each, unless they are there or were finished lately.

    *keyed*, *delayed*: whether there is any such message among them.
    """
    row = tx.first("SELECT seq FROM sqlite_sequence WHERE name = 'message'")
    last = 0 if row is None else row[0]
    at, size, done = (tx.now,), len(values) // COLUMNS, 0
    for chunk in _CHUNKS:
        while size - done >= chunk:
            part = values[done * COLUMNS : (done + chunk) * COLUMNS]
            tx.execute(_insert(chunk), (*at, *part))
            done += chunk
    place(tx, last, keyed=keyed, delayed=delayed)


_HEAD = """(m.key IS NULL OR NOT EXISTS
    (SELECT 1 FROM message e WHERE e.queue = m.queue AND e.key = m.key AND e.pos < m.pos))"""


def place(tx: Transaction, after: int, *, keyed: bool, delayed: bool) -> None:
    """Make what was inserted after a position ready, or let it wait for its time or for its key."""
    head = _HEAD if keyed else "true"
    tx.execute(
        f"""INSERT INTO ready SELECT m.queue, m.level, m.pos, 0, 0 FROM message m
        WHERE m.pos > ? AND m.due IS NULL AND {head}""",  # noqa: S608 - one of two constants
        (after,),
    )
    if delayed:
        tx.execute(
            f"""INSERT INTO delayed SELECT m.pos, m.queue, m.due, m.level, 0, 0 FROM message m
            WHERE m.pos > ? AND m.due IS NOT NULL AND {head}""",  # noqa: S608 - one of two constants
            (after,),
        )


# ---- out -------------------------------------------------------------------------------------------------------------


def claim(tx: Transaction, queue: QueueRow, owner: int, want: int) -> tuple[list[Claimed], float | None]:
    """Hand out the next messages, at most *want*, and when there will be more without anybody's doing."""
    later = _promote(tx, queue)
    if queue.limited:
        want, later = _allowed(tx, queue, want, later)
    if want <= 0:
        return [], later
    rows: list[Claimed] = tx.rows(
        """SELECT r.level, r.pos, r.attempt, r.lost, m.envelope FROM ready r JOIN message m ON m.pos = r.pos
        WHERE r.queue = ? ORDER BY r.level, r.pos LIMIT ?""",
        (queue.n, want),
    )
    if not rows:
        return [], later
    span = (queue.n, rows[-1][0], rows[-1][1])
    tx.execute(
        """INSERT INTO held SELECT pos, queue, level, ?, 0, attempt, lost FROM ready
        WHERE queue = ? AND (level, pos) <= (?, ?)""",
        (owner, *span),
    )
    tx.execute("DELETE FROM ready WHERE queue = ? AND (level, pos) <= (?, ?)", span)
    if queue.rate is not None:
        tx.execute("UPDATE queue SET next_start = next_start + ? WHERE n = ?", (len(rows) / queue.rate, queue.n))
    return rows, later


def next_due(connection: apsw.Connection, queue: int) -> float | None:
    row = connection.execute("SELECT due FROM delayed WHERE queue = ? ORDER BY due LIMIT 1", (queue,)).fetchone()
    return None if row is None else float(row[0])


def has_ready(connection: apsw.Connection, queue: int) -> bool:
    return connection.execute("SELECT 1 FROM ready WHERE queue = ? LIMIT 1", (queue,)).fetchone() is not None


def count_ready(connection: apsw.Connection, queue: int, most: int) -> int:
    """How many could be handed out now; *most* at most."""
    return len(connection.execute("SELECT 1 FROM ready WHERE queue = ? LIMIT ?", (queue, most)).fetchall())


def has_others(connection: apsw.Connection, queue: QueueRow, owner: int) -> bool:
    """Whether somebody else consumes from it."""
    found = connection.execute("SELECT 1 FROM owner WHERE channel = ? AND n != ? LIMIT 1", (queue.channel, owner))
    return found.fetchone() is not None


def _promote(tx: Transaction, queue: QueueRow) -> float | None:
    """Make ready what is due, and return when the next will be."""
    due = next_due(tx.connection, queue.n)
    if due is None or due > tx.now:
        return due
    positions = tx.rows(
        "SELECT pos FROM delayed WHERE queue = ? AND due <= ? ORDER BY due, pos LIMIT ?", (queue.n, tx.now, PROMOTED)
    )
    which = (numbers(pos for (pos,) in positions),)
    tx.execute(
        """INSERT INTO ready SELECT queue, level, pos, attempt, lost FROM delayed
        WHERE pos IN (SELECT value FROM carray(?))""",
        which,
    )
    tx.execute("DELETE FROM delayed WHERE pos IN (SELECT value FROM carray(?))", which)
    return next_due(tx.connection, queue.n)


def _allowed(tx: Transaction, queue: QueueRow, want: int, later: float | None) -> tuple[int, float | None]:
    """How many of *want* the limits of the queue leave, and when there may be more."""
    if queue.concurrency is not None:
        want = min(want, queue.concurrency - tx.first("SELECT count(*) FROM held WHERE queue = ?", (queue.n,))[0])
    if queue.rate is not None:
        interval, burst = 1 / queue.rate, max(0.0, BURST - 1 / queue.rate)
        (start,) = tx.first("SELECT next_start FROM queue WHERE n = ?", (queue.n,))
        if start > tx.now + 2 * interval:
            # The wall clock went back: what was taken by the old time does not count.
            start = tx.now
        start = max(start, tx.now - burst)
        tx.execute("UPDATE queue SET next_start = ? WHERE n = ?", (start, queue.n))
        allowed = int((tx.now - start) / interval) + 1 if tx.now >= start else 0
        if allowed < want:
            again = start + allowed * interval
            want, later = allowed, again if later is None else min(later, again)
    return want, later


# ---- back ------------------------------------------------------------------------------------------------------------


def start(tx: Transaction, owner: int, positions: Iterable[int]) -> None:
    """Note that handlers of these are about to run."""
    tx.execute(
        "UPDATE held SET started = 1 WHERE pos IN (SELECT value FROM carray(?)) AND owner = ?",
        (numbers(positions), owner),
    )


def finish(tx: Transaction, queue: QueueRow, owner: int, positions: Sequence[int], keys: Iterable[str]) -> None:
    """Forget messages, and let the next of their *keys* follow."""
    which = numbers(positions)
    tx.execute("DELETE FROM held WHERE pos IN (SELECT value FROM carray(?)) AND owner = ?", (which, owner))
    if tx.connection.changes() < len(positions):
        # What was taken back meanwhile is gone, and the next of its key follows already.
        left = tx.rows("SELECT key FROM message WHERE pos IN (SELECT value FROM carray(?))", (which,))
        keys = [key for (key,) in left if key is not None]
    forget(tx, queue, which, len(positions))
    follow(tx, queue, keys)
    if queue.limited:
        tx.changed.add(queue.channel)


def forget(tx: Transaction, queue: QueueRow, which: Any, count: int) -> None:
    """Delete messages, and remember their ids for a while."""
    generation, held, since = tx.rows(
        "UPDATE file SET finished_count = finished_count + ? RETURNING finished, finished_count, finished_since",
        (count,),
    )[0]
    if held > FINISHED_KEPT or not 0 <= tx.now - since < FINISHED_FOR:
        generation = 1 - generation
        tx.execute(f"DELETE FROM finished_{generation}")  # noqa: S608 - 0 or 1
        tx.execute("UPDATE file SET finished = ?, finished_count = ?, finished_since = ?", (generation, count, tx.now))
    tx.execute(
        f"""INSERT OR IGNORE INTO finished_{generation}
        SELECT queue, id FROM message WHERE pos IN (SELECT value FROM carray(?))""",  # noqa: S608 - one of two constants
        (which,),
    )
    tx.execute("DELETE FROM message WHERE pos IN (SELECT value FROM carray(?))", (which,))


_FOLLOWERS = """FROM carray(?1) c JOIN message m ON m.pos = (SELECT e.pos FROM message e
    WHERE e.queue = ?2 AND e.key = c.value ORDER BY e.pos LIMIT 1)"""


def follow(tx: Transaction, queue: QueueRow, keys: Iterable[str]) -> None:
    """The oldest message of each of these keys is its head now."""
    found = tuple(dict.fromkeys(keys))
    if not found:
        return
    arguments = (texts(found), queue.n, tx.now)
    tx.execute(
        f"""INSERT INTO ready SELECT m.queue, m.level, m.pos, 0, 0 {_FOLLOWERS}
        WHERE m.due IS NULL OR m.due <= ?3""",
        arguments,
    )
    tx.execute(
        f"INSERT INTO delayed SELECT m.pos, m.queue, m.due, m.level, 0, 0 {_FOLLOWERS} WHERE m.due > ?3",
        arguments,
    )
    tx.changed.add(queue.channel)


def put_back(tx: Transaction, queue: int, level: int, pos: int, attempt: int, lost: int, due: float | None) -> None:
    """Make a message ready, at *due* where that is to come."""
    if due is None or due <= tx.now:
        tx.execute("INSERT INTO ready VALUES (?, ?, ?, ?, ?)", (queue, level, pos, attempt, lost))
    else:
        tx.execute("INSERT INTO delayed VALUES (?, ?, ?, ?, ?, ?)", (pos, queue, due, level, attempt, lost))


def give_back(tx: Transaction, owner: int, pos: int, due: float | None, *, failed: bool) -> None:
    """A held message waits again. A start counts as an attempt where it *failed*."""
    found = tx.rows(
        "DELETE FROM held WHERE pos = ? AND owner = ? RETURNING queue, level, attempt, lost, started", (pos, owner)
    )
    for queue, level, attempt, lost, started in found:
        put_back(tx, queue, level, pos, attempt + started if failed else attempt, lost, due)
        tx.changed.add(f"q{queue}")


def give_all_back(tx: Transaction, owner: int, channel: str) -> None:
    """Whatever an owner holds waits again, as if it had never been started."""
    tx.execute("INSERT INTO ready SELECT queue, level, pos, attempt, lost FROM held WHERE owner = ?", (owner,))
    tx.execute("DELETE FROM held WHERE owner = ?", (owner,))
    tx.changed.add(channel)


def bury(tx: Transaction, owner: int, pos: int, id: str, type: str, reason: str, error: str) -> None:
    """Copy a held message to the dead letters, under its own id or, where *id* is empty, that of its row. To be
    followed by `finish`."""
    tx.execute(
        """INSERT INTO dead (queue, id, type, reason, error, attempts, died, envelope)
        SELECT m.queue, coalesce(nullif(?, ''), m.id), ?, ?, ?, h.attempt + h.started, ?, m.envelope
        FROM held h JOIN message m ON m.pos = h.pos WHERE h.pos = ? AND h.owner = ?""",
        (id, type, reason, error[:ERROR_CHARACTERS], tx.now, pos, owner),
    )


def insert_again(tx: Transaction, queue: QueueRow, id: str, envelope: bytes, attempt: int, due: float | None) -> None:
    """Put a message into a queue that was there before: as a retry of an event, or out of the dead letters."""
    key, priority = None, 0
    try:
        readable = unpack(envelope)
        key, priority = readable.key if queue.keyed else None, readable.priority
    except UndecodableMessage:
        pass  # it comes back as the bytes it is
    before = tx.connection.total_changes()
    tx.execute(
        """INSERT INTO message (queue, id, key, level, due, at, envelope) VALUES (?, ?, ?, ?, ?, ?, ?)
        ON CONFLICT (queue, id) DO NOTHING""",
        (queue.n, id, key, queue.level(priority), due, tx.now, envelope),
    )
    tx.changed.add(queue.channel)
    if tx.connection.total_changes() == before:
        return  # it waits there already
    pos = tx.connection.last_insert_rowid()
    older = key is not None and tx.first(
        "SELECT 1 FROM message WHERE queue = ? AND key = ? AND pos < ?", (queue.n, key, pos)
    )
    if not older:
        put_back(tx, queue.n, queue.level(priority), pos, attempt, 0, due)


# ---- the dead --------------------------------------------------------------------------------------------------------


def take_over(tx: Transaction, owner: int) -> None:
    """Give to others what an owner held whose process is gone: what it had not started unharmed, the rest as lost."""
    tx.execute(
        "INSERT INTO ready SELECT queue, level, pos, attempt, lost FROM held WHERE owner = ? AND started = 0", (owner,)
    )
    tx.execute("DELETE FROM held WHERE owner = ? AND started = 0", (owner,))
    hopeless = tx.rows(
        """SELECT h.pos, q.name, h.lost + 1 FROM held h JOIN queue q ON q.n = h.queue
        WHERE h.owner = ? AND h.lost + 1 >= q.lost_limit""",
        (owner,),
    )
    for pos, name, lost in hopeless:
        _bury_lost(tx, owner, pos, name, lost)
    tx.execute(
        """INSERT INTO ready SELECT queue, level, pos, attempt + 1, lost + 1 FROM held WHERE owner = ?""", (owner,)
    )
    tx.execute("DELETE FROM held WHERE owner = ?", (owner,))


def _bury_lost(tx: Transaction, owner: int, pos: int, queue_name: str, lost: int) -> None:
    envelope, key = tx.first("SELECT envelope, key FROM message WHERE pos = ?", (pos,))
    try:
        readable = unpack(envelope)
        name, kind = readable.id, readable.type
    except UndecodableMessage:
        name = kind = ""
    error = f"The worker died {lost} times while it handled this message."
    bury(tx, owner, pos, name, kind, "worker_lost", error)
    queue = find_queue(tx.connection, queue_name)
    if queue is not None:
        finish(tx, queue, owner, [pos], [] if key is None else [key])
