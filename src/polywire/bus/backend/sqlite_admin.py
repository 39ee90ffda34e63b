"""What operators do with the queues in a file: declare and compare, count and look, take back, move, revive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import apsw
import msgspec

from polywire.bus.backend import sqlite_messages as messages
from polywire.bus.backend.sqlite_file import Transaction
from polywire.bus.backend.sqlite_messages import QueueRow
from polywire.bus.backend.sqlite_schema import check_name
from polywire.bus.core import DeadFilter, DeadLetter, Envelope, QueueSpec, QueueStats, pack, unpack
from polywire.bus.core.checks import would_create_queue, would_refuse
from polywire.errors import SetupError, UndecodableMessage

PRIORITIES = 256
"""Levels at most."""

_ADJUSTED = ("lease", "lost_limit", "concurrency", "rate")
"""Of a queue, settings that can be changed at any time."""


def check_specs(queues: Sequence[QueueSpec]) -> None:
    for spec in queues:
        check_name("queue", spec.name)
        if not 1 <= spec.priorities <= PRIORITIES:
            raise SetupError(
                f"The queue {spec.name!r} was not declared: it asks for {spec.priorities} priorities, and a sqlite bus "
                f"has 1 to {PRIORITIES}. Declare fewer."
            )


def refusals(spec: QueueSpec, row: QueueRow | None) -> list[str]:
    if row is None:
        return []
    return [
        f"{spec.name!r} exists with {name}={getattr(row, name)!r} instead of {name}={getattr(spec, name)!r}"
        for name in ("keyed", "priorities")
        if getattr(row, name) != getattr(spec, name)
    ]


def differences(spec: QueueSpec, row: QueueRow | None) -> list[str]:
    if row is None:
        return [would_create_queue(spec.name)]
    changes = [
        f"would change {name} of {spec.name!r} from {getattr(row, name)!r} to {getattr(spec, name)!r}"
        for name in _ADJUSTED
        if getattr(row, name) != getattr(spec, name)
    ]
    return would_refuse(refusals(spec, row)) + changes


def declare(tx: Transaction, spec: QueueSpec) -> None:
    if messages.find_queue(tx.connection, spec.name) is None:
        messages.make_queue(tx, spec)
    else:
        tx.execute(
            "UPDATE queue SET lease = ?, lost_limit = ?, concurrency = ?, rate = ? WHERE name = ?",
            (spec.lease, spec.lost_limit, spec.concurrency, spec.rate, spec.name),
        )


# ---- looking and changing --------------------------------------------------------------------------------------------


def stats(connection: apsw.Connection, row: QueueRow, now: float) -> QueueStats:
    def count(table: str) -> int:
        found: int = connection.execute(f"SELECT count(*) FROM {table} WHERE queue = ?", (row.n,)).get  # noqa: S608 - one of our own tables
        return found

    connection.execute("SAVEPOINT look")  # one view of all tables
    try:
        held = count("held")
        delayed: int = connection.execute("SELECT count(*) FROM delayed WHERE queue = ? AND due > ?", (row.n, now)).get
        waiting = count("message") - held - delayed
        oldest = _oldest(connection, row, now)
        dead = count("dead")
    finally:
        connection.execute("RELEASE look")
    return QueueStats(queue=row.name, ready=waiting, delayed=delayed, in_flight=held, dead=dead, oldest=oldest)


def _oldest(connection: apsw.Connection, row: QueueRow, now: float) -> float | None:
    """Of each level only the first is looked at: it was sent before the others."""
    found = [
        connection.execute(
            """SELECT max(m.at, coalesce(m.due, m.at)) FROM ready r JOIN message m ON m.pos = r.pos
            WHERE r.queue = ? AND r.level = ? ORDER BY r.pos LIMIT 1""",
            (row.n, -priority),
        ).get
        for priority in range(row.priorities)
    ]
    since = [at for at in found if at is not None]
    return max(0.0, now - min(since)) if since else None


def _waiting(tx: Transaction, row: QueueRow, id: str) -> tuple[int, str | None] | None:
    """Position and key of a message that nobody holds."""
    found: tuple[int, str | None] | None = tx.first(
        """SELECT pos, key FROM message WHERE queue = ? AND id = ?
        AND NOT EXISTS (SELECT 1 FROM held WHERE held.pos = message.pos)""",
        (row.n, id),
    )
    return found


def _take_out(tx: Transaction, row: QueueRow, pos: int) -> tuple[int, int, int] | None:
    """Level, attempts and lost starts of a message that is ready or delayed; None of one that waits for its key."""
    (level,) = tx.first("SELECT level FROM message WHERE pos = ?", (pos,))
    found = tx.rows(
        "DELETE FROM ready WHERE queue = ? AND level = ? AND pos = ? RETURNING level, attempt, lost",
        (row.n, level, pos),
    )
    found += tx.rows("DELETE FROM delayed WHERE pos = ? RETURNING level, attempt, lost", (pos,))
    return found[0] if found else None


def cancel(tx: Transaction, row: QueueRow, id: str) -> bool:
    found = _waiting(tx, row, id)
    if found is None:
        return False
    pos, key = found
    was_head = _take_out(tx, row, pos) is not None
    tx.execute("DELETE FROM message WHERE pos = ?", (pos,))
    if was_head and key is not None:
        messages.follow(tx, row, [key])
    return True


def withdraw(tx: Transaction, row: QueueRow, id: str) -> bool:
    """As `cancel`, from a consumer too. It does not matter whose it was: nothing that it says of it counts any more."""
    if cancel(tx, row, id):
        return True
    held = tx.rows(
        "DELETE FROM held WHERE pos = (SELECT pos FROM message WHERE queue = ? AND id = ?) RETURNING pos", (row.n, id)
    )
    if not held:
        return False
    ((pos,),) = held
    ((key,),) = tx.rows("DELETE FROM message WHERE pos = ? RETURNING key", (pos,))
    if key is not None:
        messages.follow(tx, row, [key])
    tx.changed.update((row.channel, row.withdrawals))
    return True


def move(tx: Transaction, row: QueueRow, id: str, not_before: float) -> bool:
    found = _waiting(tx, row, id)
    if found is None:
        return False
    pos = found[0]
    state = _take_out(tx, row, pos)
    tx.execute("UPDATE message SET due = ? WHERE pos = ?", (not_before if not_before > tx.now else None, pos))
    if state is not None:
        level, attempt, lost = state
        messages.put_back(tx, row.n, level, pos, attempt, lost, not_before)
    tx.changed.add(row.channel)
    return True


def peek(connection: apsw.Connection, row: QueueRow, limit: int) -> list[Envelope]:
    rows = connection.execute(
        """SELECT m.envelope FROM ready r JOIN message m ON m.pos = r.pos
        WHERE r.queue = ? ORDER BY r.level, r.pos LIMIT ?""",
        (row.n, limit),
    )
    return [readable(bytes(data)) for (data,) in rows]


# ---- dead letters ----------------------------------------------------------------------------------------------------


def readable(data: bytes, id: str = "", type: str = "") -> Envelope:
    """What the bytes say, or an envelope around them."""
    try:
        return unpack(data)
    except UndecodableMessage:
        return Envelope(id, type, data)


def dead_letters(connection: apsw.Connection, row: QueueRow, which: DeadFilter, limit: int) -> list[DeadLetter]:
    rows = connection.execute(
        """SELECT n, id, type, reason, error, attempts, died, envelope FROM dead WHERE queue = ?1
        AND (?2 IS NULL OR id = ?2) AND (?3 IS NULL OR type = ?3) AND (?4 IS NULL OR reason = ?4)
        AND (?5 IS NULL OR instr(error, ?5) > 0) AND (?6 IS NULL OR died >= ?6) AND (?7 IS NULL OR died < ?7)
        ORDER BY n LIMIT ?8""",
        (row.n, which.id, which.type, which.reason, which.error, which.since, which.until, limit),
    )
    return [_letter(row.name, found) for found in rows]


def _letter(queue: str, row: Sequence[Any]) -> DeadLetter:
    n, name, kind, reason, error, attempts, died, data = row
    envelope = readable(data, name, kind)
    return DeadLetter(
        queue=queue, envelope=envelope, reason=reason, error=error, attempts=attempts, died=died, position=str(n)
    )


def revive_letters(tx: Transaction, row: QueueRow, letters: Sequence[DeadLetter]) -> int:
    count = 0
    for letter in letters:
        found = tx.first("SELECT envelope FROM dead WHERE n = ? AND queue = ?", (_number(letter), row.n))
        if found is not None:
            _revive(tx, row, letter, found[0])
            count += 1
    tx.changed.add(row.channel)
    return count


def _revive(tx: Transaction, row: QueueRow, letter: DeadLetter, data: bytes) -> None:
    """Unlike a message that is sent, it may have an id that was finished: it did finish, among the dead."""
    try:
        envelope = unpack(data)
        data = pack(msgspec.structs.replace(envelope, redrive_count=envelope.redrive_count + 1))
    except UndecodableMessage:
        pass  # buried again, unless somebody can read it now
    name = letter.envelope.id or letter.position
    if letter.envelope.generation:  # what was replayed may be dead twice, and comes again twice
        name += f"#{letter.envelope.generation}"
    messages.insert_again(tx, row, name, data, 0, None)
    tx.execute("DELETE FROM dead WHERE n = ?", (_number(letter),))


def drop_letters(tx: Transaction, row: QueueRow, letters: Sequence[DeadLetter]) -> int:
    for_good = messages.numbers(_number(letter) for letter in letters)
    before = tx.connection.total_changes()
    tx.execute("DELETE FROM dead WHERE queue = ? AND n IN (SELECT value FROM carray(?))", (row.n, for_good))
    return tx.connection.total_changes() - before


def _number(letter: DeadLetter) -> int:
    return int(letter.position) if letter.position.isdecimal() else 0
