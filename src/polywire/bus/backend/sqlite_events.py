"""What happens to the events of a topic in a file of the bus, as SQL: appended, assigned, read, done and forgotten."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import apsw
from msgspec.structs import replace

from polywire.bus.backend import sqlite_messages as messages
from polywire.bus.backend.sqlite_file import Transaction
from polywire.bus.backend.sqlite_messages import QueueRow
from polywire.bus.core import GroupSpec, QueueSpec, TopicSpec, pack, unpack
from polywire.errors import UndecodableMessage

FORGOTTEN = 1000
"""Events of a partition deleted in one transaction."""

_CHUNKS = (64, 8, 1)
COLUMNS = 5
"""Of an event to insert: topic, part, pos, at, envelope."""


@dataclass(frozen=True, slots=True)
class TopicRow:
    """A topic as it stands in the file."""

    n: int
    name: str
    partitions: int
    retention: float | None
    retention_bytes: int | None

    def partition(self, key: str) -> int:
        """CRC-32 (of zip and PNG) of the key in UTF-8, modulo the number of partitions."""
        return zlib.crc32(key.encode()) % self.partitions


@dataclass(frozen=True, slots=True)
class TeamRow:
    """A group of a topic as it stands in the file, with the queue of its retries and dead letters."""

    n: int
    topic: TopicRow
    name: str
    queue: QueueRow

    @property
    def channel(self) -> str:
        return f"g{self.n}"


@dataclass(slots=True)
class Share:
    """A partition in the hands of a member of a group."""

    part: int
    next: int
    epoch: int
    suspect: int
    suspects_end: int
    lost: int
    lost_limit: int
    generation: int
    """Of the group, as its members see it in the transaction that reads for them."""

    @property
    def last_chance(self) -> bool:
        """Whether the next event is buried if one more reader dies while it is under way."""
        return self.suspect == self.next and self.lost >= self.lost_limit - 1

    def lost_at(self, pos: int) -> int:
        """How often a reader died while this event was under way, as far as can be known."""
        if pos == self.suspect:
            return self.lost
        return 1 if self.suspect < pos < self.suspects_end else 0


# ---- topics and groups -----------------------------------------------------------------------------------------------


def find_topic(connection: apsw.Connection, name: str) -> TopicRow | None:
    row: Any = connection.execute(
        "SELECT n, name, partitions, retention, retention_bytes FROM topic WHERE name = ?", (name,)
    ).fetchone()
    return None if row is None else TopicRow(*row)


def all_topics(connection: apsw.Connection) -> list[TopicRow]:
    rows: Any = connection.execute("SELECT n, name, partitions, retention, retention_bytes FROM topic").fetchall()
    return [TopicRow(*row) for row in rows]


def make_topic(tx: Transaction, spec: TopicSpec) -> None:
    tx.execute(
        "INSERT INTO topic (name, partitions, retention, retention_bytes) VALUES (?, ?, ?, ?)",
        (spec.name, spec.partitions, spec.retention, spec.retention_bytes),
    )
    topic = tx.connection.last_insert_rowid()
    for part in range(spec.partitions):
        tx.execute("INSERT INTO part VALUES (?, ?, 0, 0, 0)", (topic, part))


def queue_name(topic: str, group: str) -> str:
    """Of the queue that belongs to a group. No queue that is declared can be called so."""
    return f"{topic}/{group}"


def find_team(connection: apsw.Connection, topic: TopicRow, group: str) -> TeamRow | None:
    row = connection.execute("SELECT n FROM team WHERE topic = ? AND name = ?", (topic.n, group)).fetchone()
    queue = messages.find_queue(connection, queue_name(topic.name, group))
    return None if row is None or queue is None else TeamRow(int(row[0]), topic, group, queue)


def make_team(tx: Transaction, topic: TopicRow, spec: GroupSpec) -> TeamRow:
    name = queue_name(topic.name, spec.group)
    messages.make_queue(tx, QueueSpec(name=name, lost_limit=spec.lost_limit))
    queue = messages.find_queue(tx.connection, name)
    assert queue is not None  # noqa: S101 - it was made one line above
    tx.execute("INSERT INTO team (topic, name, queue) VALUES (?, ?, ?)", (topic.n, spec.group, queue.n))
    made = TeamRow(tx.connection.last_insert_rowid(), topic, spec.group, queue)
    where = "first" if spec.start == "earliest" else "next"
    tx.execute(
        f"""INSERT INTO progress SELECT ?, part, {where}, {where}, NULL, NULL, 0, -1, -1, 0 FROM part
        WHERE topic = ?""",  # noqa: S608 - one of two names
        (made.n, topic.n),
    )
    return made


# ---- in --------------------------------------------------------------------------------------------------------------


@cache
def _insert(rows: int) -> str:
    values = ", ".join(["(?, ?, ?, ?, ?)"] * rows)
    return f"INSERT INTO event (topic, part, pos, at, envelope) VALUES {values}"  # noqa: S608 - nothing but marks


def append(tx: Transaction, parts: Mapping[tuple[int, int], Sequence[bytes]]) -> None:
    """Put events at the ends of partitions, given by topic and number."""
    values: list[Any] = []
    for (topic, part), envelopes in parts.items():
        (end,) = tx.rows(
            "UPDATE part SET next = next + ?, bytes = bytes + ? WHERE topic = ? AND part = ? RETURNING next",
            (len(envelopes), sum(map(len, envelopes)), topic, part),
        )[0]
        pos = end - len(envelopes)
        for envelope in envelopes:
            values += (topic, part, pos, tx.now, envelope)
            pos += 1
    size, done = len(values) // COLUMNS, 0
    for chunk in _CHUNKS:
        while size - done >= chunk:
            tx.execute(_insert(chunk), values[done * COLUMNS : (done + chunk) * COLUMNS])
            done += chunk
    for topic in {topic for topic, _ in parts}:
        announce(tx, topic)


def announce(tx: Transaction, topic: int) -> None:
    """All groups of the topic have something to read."""
    tx.changed.update(f"g{n}" for (n,) in tx.execute("SELECT n FROM team WHERE topic = ?", (topic,)))


# ---- who reads what --------------------------------------------------------------------------------------------------


def balance(tx: Transaction, team: int) -> None:
    """Say anew who of the members should read which partition: the same number each, moving as few as possible.

    Who has a partition that another should have gives it up when its handlers are done.
    """
    members = [n for (n,) in tx.execute("SELECT n FROM owner WHERE channel = ? ORDER BY n", (f"g{team}",))]
    parts: list[Any] = tx.rows("SELECT part, wanted FROM progress WHERE team = ? ORDER BY part", (team,))
    for part, member in shares(members, dict(parts)).items():
        tx.execute("UPDATE progress SET wanted = ? WHERE team = ? AND part = ?", (member, team, part))
    tx.changed.add(f"g{team}")


def shares(members: Sequence[int], wanted: dict[int, int | None]) -> dict[int, int | None]:
    """Who should have which partition, given who should have had it until now."""
    if not members:
        return dict.fromkeys(wanted)
    least, over = divmod(len(wanted), len(members))
    kept: dict[int, list[int]] = {member: [] for member in members}
    for part, member in wanted.items():
        if member in kept:
            kept[member].append(part)
    # Those who have most keep the odd ones.
    for rank, member in enumerate(sorted(members, key=lambda member: -len(kept[member]))):
        del kept[member][least + (rank < over) :]
    placed = {part: member for member, parts in kept.items() for part in parts}
    for part in wanted:
        if part not in placed:
            member = min(members, key=lambda member: len(kept[member]))
            kept[member].append(part)
            placed[part] = member
    return dict(placed)


def assigned(tx: Transaction, team: TeamRow, owner: int) -> tuple[dict[int, Share], set[int]]:
    """The partitions that a member has, those that it could take included; and those that it should give up."""
    tx.execute(
        "UPDATE progress SET owner = ?, epoch = epoch + 1 WHERE team = ? AND wanted = ? AND owner IS NULL",
        (owner, team.n, owner),
    )
    rows = tx.rows(
        """SELECT p.part, max(p.next, part.first), p.epoch, p.suspect, p.suspects_end, p.lost, q.lost_limit,
        t.generation, p.wanted FROM progress p JOIN team t ON t.n = p.team JOIN queue q ON q.n = t.queue
        JOIN part ON part.topic = t.topic AND part.part = p.part WHERE p.team = ? AND p.owner = ?""",
        (team.n, owner),
    )
    return {row[0]: Share(*row[:8]) for row in rows}, {row[0] for row in rows if row[8] != owner}


def leave(tx: Transaction, team: TeamRow, owner: int) -> None:
    """A member goes, having committed what it did."""
    tx.execute("UPDATE progress SET owner = NULL, reached = next WHERE team = ? AND owner = ?", (team.n, owner))
    messages.give_all_back(tx, owner, team.queue.channel)
    tx.leave(owner)
    balance(tx, team.n)


def take_over(tx: Transaction, owner: int) -> None:
    """A member is gone without a word: what was under way is suspect, and what keeps killing readers is buried."""
    rows = tx.rows(
        """SELECT p.team, p.part, p.next, p.reached, p.suspect, p.suspects_end, p.lost, q.lost_limit FROM progress p
        JOIN team t ON t.n = p.team JOIN queue q ON q.n = t.queue WHERE p.owner = ?""",
        (owner,),
    )
    for team, part, begin, reached, suspect, end, lost, limit in rows:
        lost = lost if suspect == begin else int(suspect < begin < end)
        if reached > begin:
            lost, end = lost + 1, max(end, reached)
        if lost >= limit and reached > begin:
            _bury_lost(tx, team, part, begin, lost)
            begin += 1
            lost = int(begin < end)
        tx.execute(
            """UPDATE progress SET owner = NULL, next = ?, reached = ?, suspect = ?, suspects_end = ?, lost = ?
            WHERE team = ? AND part = ?""",
            (begin, begin, begin if lost else -1, end if lost else -1, lost, team, part),
        )
    (channel,) = tx.first("SELECT channel FROM owner WHERE n = ?", (owner,))
    messages.take_over(tx, owner)
    tx.leave(owner)
    balance(tx, int(channel[1:]))


def _bury_lost(tx: Transaction, team: int, part: int, pos: int, lost: int) -> None:
    row = tx.first(
        """SELECT e.envelope, t.queue, t.generation FROM team t
        JOIN event e ON e.topic = t.topic AND e.part = ? AND e.pos = ? WHERE t.n = ?""",
        (part, pos, team),
    )
    if row is not None:
        error = f"The worker died {lost} times while it handled this event."
        bury(tx, row[1], _stamped(row[0], row[2]), "worker_lost", error, lost)


def _stamped(data: bytes, generation: int) -> bytes:
    """A packed event as copies carry it; what cannot be read is as it was."""
    try:
        envelope = unpack(data)
    except UndecodableMessage:
        return data
    return data if envelope.generation == generation else pack(replace(envelope, generation=generation))


def bury(tx: Transaction, queue: int, envelope: bytes, reason: str, error: str, attempts: int) -> None:
    """Copy an event to the dead letters of a group."""
    try:
        readable = unpack(envelope)
        name, kind = readable.id, readable.type
    except UndecodableMessage:
        name = kind = ""
    tx.execute(
        """INSERT INTO dead (queue, id, type, reason, error, attempts, died, envelope)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?)""",
        (queue, name, kind, reason, error[: messages.ERROR_CHARACTERS], attempts, tx.now, envelope),
    )


# ---- reading and committing ------------------------------------------------------------------------------------------

Read = tuple[int, bytes]
"""Offset and envelope."""


def read(connection: apsw.Connection, topic: int, part: int, offset: int, limit: int) -> list[Read]:
    rows: Any = connection.execute(
        "SELECT pos, envelope FROM event WHERE topic = ? AND part = ? AND pos >= ? ORDER BY pos LIMIT ?",
        (topic, part, offset, limit),
    ).fetchall()
    return list(rows)


def ends(connection: apsw.Connection, topic: int) -> dict[int, int]:
    """By partition, the offset that the next event will have."""
    return {part: end for part, (_, end) in first_and_next(connection, topic).items()}


def reached(tx: Transaction, team: int, part: int, owner: int, offset: int) -> None:
    """Note how far the events of a partition were handed out."""
    tx.execute("UPDATE progress SET reached = ? WHERE team = ? AND part = ? AND owner = ?", (offset, team, part, owner))


def note_under_way(
    tx: Transaction, team: int, owner: int, part: int, epoch: int, offset: int, *, under_way: bool
) -> None:
    """Whether the first event which is not done is being handled, where nothing behind it was handed out."""
    tx.execute(
        """UPDATE progress SET reached = ? WHERE team = ? AND part = ? AND owner = ? AND epoch = ? AND next = ?
        AND reached <= ?""",
        (offset + under_way, team, part, owner, epoch, offset, offset + 1),
    )


def commit(tx: Transaction, team: int, owner: int, part: int, epoch: int, next: int) -> None:
    """All before *next* is done, unless the partition is somebody else's by now."""
    rows = tx.rows(
        """UPDATE progress SET next = ?, reached = max(reached, ?) WHERE team = ? AND part = ? AND owner = ?
        AND epoch = ? RETURNING suspect""",
        (next, next, team, part, owner, epoch),
    )
    if rows and next == rows[0][0] + 1:  # what is behind an event that had its last chance may be read now
        tx.changed.add(f"g{team}")


def release(tx: Transaction, team: int, owner: int, parts: Sequence[int]) -> None:
    """Give partitions up, to those who should have them."""
    for part in parts:
        tx.execute(
            "UPDATE progress SET owner = NULL, reached = next WHERE team = ? AND part = ? AND owner = ?",
            (team, part, owner),
        )
    tx.changed.add(f"g{team}")


def seek(tx: Transaction, team: TeamRow, offsets: dict[int, int]) -> None:
    """Let the group go on from these offsets, in its next generation. Its members see by the epoch that they have to
    begin anew."""
    tx.execute("UPDATE team SET generation = generation + 1 WHERE n = ? AND ?", (team.n, bool(offsets)))
    for part, offset in offsets.items():
        tx.execute(
            """UPDATE progress SET next = ?, reached = ?, epoch = epoch + 1, suspect = -1, suspects_end = -1, lost = 0
            WHERE team = ? AND part = ?""",
            (offset, offset, team.n, part),
        )
    tx.changed.add(team.channel)


def offset_at(connection: apsw.Connection, topic: int, part: int, at: float) -> int:
    """Of the first event appended at or after a time, in seconds since the epoch."""
    low, high = first_and_next(connection, topic)[part]
    while low < high:
        middle = (low + high) // 2
        row: Any = connection.execute(
            "SELECT at FROM event WHERE topic = ? AND part = ? AND pos = ?", (topic, part, middle)
        ).fetchone()
        if row is not None and row[0] < at:
            low = middle + 1
        else:
            high = middle
    return low


def first_and_next(connection: apsw.Connection, topic: int) -> dict[int, tuple[int, int]]:
    rows: Any = connection.execute("SELECT part, first, next FROM part WHERE topic = ?", (topic,))
    return {part: (first, end) for part, first, end in rows}


# ---- forgetting ------------------------------------------------------------------------------------------------------


def forget(tx: Transaction, topic: TopicRow) -> bool:
    """Delete events that are older, or take more room, than the topic keeps; some of them. Whether any were."""
    any_left = False
    rows: list[Any] = tx.rows("SELECT part, first, bytes FROM part WHERE topic = ?", (topic.n,))
    room = None if topic.retention_bytes is None else topic.retention_bytes // topic.partitions
    for part, first, size in rows:
        end = _forgettable(tx, topic, part, first, size, room)
        if end > first:
            _delete(tx, topic.n, part, end)
            any_left = True
    return any_left


def _forgettable(tx: Transaction, topic: TopicRow, part: int, first: int, size: int, room: int | None) -> int:
    """The offset before which everything may go."""
    before = float("-inf") if topic.retention is None else tx.now - topic.retention
    end = first
    for pos, at, length in tx.execute(
        """SELECT pos, at, length(envelope) FROM event WHERE topic = ? AND part = ? AND pos >= ?
        ORDER BY pos LIMIT ?""",
        (topic.n, part, first, FORGOTTEN),
    ):
        if at >= before and (room is None or size <= room):
            break
        size -= length
        end = pos + 1
    return end


def _delete(tx: Transaction, topic: int, part: int, end: int) -> None:
    (size,) = tx.first(
        "SELECT sum(length(envelope)) FROM event WHERE topic = ? AND part = ? AND pos < ?", (topic, part, end)
    )
    tx.execute("DELETE FROM event WHERE topic = ? AND part = ? AND pos < ?", (topic, part, end))
    tx.execute(
        "UPDATE part SET first = ?, bytes = bytes - ? WHERE topic = ? AND part = ?", (end, size or 0, topic, part)
    )
