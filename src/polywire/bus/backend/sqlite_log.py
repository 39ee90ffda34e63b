"""Events in a file: the embedded log, for one process or several on one machine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import apsw

from polywire.bus.backend import sqlite_admin as admin
from polywire.bus.backend import sqlite_events as events
from polywire.bus.backend.sqlite_backend import SqliteBackend
from polywire.bus.backend.sqlite_events import TeamRow, TopicRow
from polywire.bus.backend.sqlite_file import PATIENCE, FileOptions, SharedFile, Transaction
from polywire.bus.backend.sqlite_member import record_of
from polywire.bus.backend.sqlite_reader import SqliteLogConsumer
from polywire.bus.backend.sqlite_schema import check_name
from polywire.bus.backend.sqlite_sending import MAX_MESSAGE_BYTES, Confirming, failure_of, packed, refused
from polywire.bus.core import (
    EVERY_DEAD,
    DeadFilter,
    DeadLetter,
    Envelope,
    GroupSpec,
    GroupStats,
    Guarantees,
    Record,
    Seek,
    TopicSpec,
)
from polywire.bus.core.checks import would_create_group, would_create_topic, would_refuse
from polywire.bus.core.log import Revoking
from polywire.clock import SYSTEM_CLOCK, Clock
from polywire.errors import MessageRefused, SetupError

FORGET_EVERY = 5.0
"""Seconds between two looks for events that are too old, while there are none."""

GUARANTEES = Guarantees(
    backend="sqlite",
    durable=True,
    shared=True,
    max_message_bytes=MAX_MESSAGE_BYTES,
    key_order=True,
    dead_letters=True,
    replay=True,
)


class SqliteLog(SqliteBackend["_Appending", SqliteLogConsumer]):
    """The topics in one file, as `polywire.bus.core.EventLog` says.

    An event with a key goes to the partition `crc32(key) % partitions`, others to all in turn. What was appended
    survives a power cut. What a group has done does not always: a power cut may have it read some events again.
    """

    def __init__(self, url: str, *, clock: Clock = SYSTEM_CLOCK, options: FileOptions | None = None) -> None:
        """*url* is `sqlite:PATH`. Raises SetupError where that is none."""
        super().__init__(url, clock=clock, options=options)
        self.guarantees = GUARANTEES
        self._together = _Appending
        self._topics: dict[str, TopicRow] = {}
        self._turn = 0
        self._next_forgetting = 0.0

    def _opened(self, file: SharedFile) -> None:
        file.takers["g"] = events.take_over
        file.chores.append(self._forget)

    def _closing(self, file: SharedFile) -> None:
        file.chores.remove(self._forget)

    def _forget(self, tx: Transaction) -> None:
        """Delete what is too old, in the writer's thread."""
        now = time.monotonic()
        if now < self._next_forgetting:
            return
        more = [events.forget(tx, topic) for topic in events.all_topics(tx.connection)]
        self._next_forgetting = now if any(more) else now + FORGET_EVERY

    # ---- topics and groups ---------------------------------------------------------------------------------------

    async def declare(self, topics: Sequence[TopicSpec], groups: Sequence[GroupSpec] = ()) -> None:
        """How long events are kept is taken over; the number of partitions is never changed."""
        _check_names(topics, groups)

        def declare(tx: Transaction) -> None:
            refusals = _refusals(tx.connection, topics, groups)
            if refusals:
                raise SetupError(f"The topics in {self.path!r} were not declared: {'; '.join(refusals)}.")
            for spec in topics:
                _declare_topic(tx, spec)
            for group in groups:
                _declare_group(tx, group)

        await self._do("The topics were not declared", declare)
        self._topics.clear()

    async def check(self, topics: Sequence[TopicSpec], groups: Sequence[GroupSpec] = ()) -> list[str]:
        _check_names(topics, groups)
        return await self._look(
            "The topics were not checked",
            lambda c: would_refuse(_refusals(c, topics, groups)) + _changes(c, topics, groups),
        )

    async def _known(self, name: str) -> TopicRow | None:
        found = self._topics.get(name)
        if found is None:
            found = await self._look("The topic was not found", lambda c: events.find_topic(c, name))
            if found is not None:
                self._topics[name] = found
        return found

    async def _topic(self, name: str) -> TopicRow:
        found = await self._known(name)
        if found is None:
            raise SetupError(f"{_unknown_topic(name, self.path)}.")
        return found

    async def _team(self, topic: str, group: str) -> TeamRow:
        row = await self._topic(topic)
        found = await self._look("The group was not found", lambda c: events.find_team(c, row, group))
        if found is None:
            raise SetupError(f"There is no group {group!r} of {topic!r} in {self.path!r}; declare it first.")
        return found

    # ---- appending -----------------------------------------------------------------------------------------------

    async def append(
        self, topic: str, envelopes: Sequence[Envelope], *, timeout: float | None = None
    ) -> list[Exception | None]:
        row = self._topics.get(topic) or await self._known(topic)
        if row is None:
            return [
                MessageRefused(f"{refused(envelope)}: {_unknown_topic(topic, self.path)}.") for envelope in envelopes
            ]
        if self._room.full and not await self._room.wait(PATIENCE if timeout is None else timeout):
            why = self._room.crowded(self.path)
            return [MessageRefused(f"{refused(envelope)}: {why}.") for envelope in envelopes]
        made: list[tuple[int, bytes]] = []
        results: list[Exception | None] = []
        for envelope in envelopes:
            try:
                made.append((self._part(row, envelope), packed(envelope)))
                results.append(None)
            except ValueError as why_not:
                results.append(MessageRefused(f"{refused(envelope)} to the topic {topic!r}: {why_not}."))
        failure = await self._appended(row, made, timeout) if made else None
        if failure is not None:
            for number, envelope in enumerate(envelopes):
                results[number] = results[number] or failure_of(failure, envelope, topic, self.path)
        return results

    def _part(self, row: TopicRow, envelope: Envelope) -> int:
        if envelope.key is not None:
            return row.partition(envelope.key)
        self._turn += 1
        return self._turn % row.partitions

    async def _appended(self, row: TopicRow, made: list[tuple[int, bytes]], timeout: float | None) -> Exception | None:
        """Write them. Returns why that failed."""
        future: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self._gathering(timeout).add(row.n, made, future)
        return await self._written(future, len(made), sum(len(data) for _, data in made))

    # ---- reading -------------------------------------------------------------------------------------------------

    async def consumer(
        self, topics: Sequence[str], group: str, *, limit: int, revoking: Revoking | None = None
    ) -> SqliteLogConsumer:
        teams = [await self._team(topic, group) for topic in topics]
        made = SqliteLogConsumer(self.file, self.clock, teams, limit, revoking, self._consumers.discard)
        await made.join()
        self._consumers.add(made)
        return made

    async def read(self, topic: str, partition: int, offset: int, limit: int) -> list[Record]:
        row = await self._topic(topic)
        found = await self._look("Nothing was read", lambda c: events.read(c, row.n, partition, offset, limit))
        return [record_of(topic, partition, pos, data) for pos, data in found]

    async def groups(self, topic: str) -> list[str]:
        row = await self._topic(topic)

        def names(connection: apsw.Connection) -> list[str]:
            found = connection.execute("SELECT name FROM team WHERE topic = ? ORDER BY name", (row.n,))
            return [str(name) for (name,) in found]

        return await self._look("The groups were not listed", names)

    async def stats(self, topic: str, group: str) -> GroupStats:
        team = await self._team(topic, group)
        now = self.clock.time()
        return await self._look("The group was not counted", lambda c: _stats(c, team, now))

    async def seek(self, topic: str, group: str, to: Seek) -> None:
        """Members that run are told, and go on from there; what they are handling is not committed any more."""
        team = await self._team(topic, group)
        _check_seek(to, team)
        await self._do("The group was not moved", lambda tx: events.seek(tx, team, _offsets(tx.connection, team, to)))

    # ---- dead letters --------------------------------------------------------------------------------------------

    async def dead(
        self, topic: str, group: str, which: DeadFilter = EVERY_DEAD, *, limit: int = 100
    ) -> list[DeadLetter]:
        team = await self._team(topic, group)
        return await self._look(
            "The dead letters were not listed", lambda c: admin.dead_letters(c, team.queue, which, limit)
        )

    async def revive(self, topic: str, group: str, letters: Sequence[DeadLetter]) -> int:
        team = await self._team(topic, group)

        def revive(tx: Transaction) -> int:
            tx.changed.add(team.channel)
            return admin.revive_letters(tx, team.queue, letters)

        return await self._do("The dead letters were not sent again", revive)

    async def drop(self, topic: str, group: str, letters: Sequence[DeadLetter]) -> int:
        team = await self._team(topic, group)
        return await self._do(
            "The dead letters were not deleted", lambda tx: admin.drop_letters(tx, team.queue, letters)
        )


class _Appending(Confirming):
    """Events for any topics of the file."""

    def __init__(self, timeout: float | None) -> None:
        super().__init__(timeout)
        self._parts: dict[tuple[int, int], list[bytes]] = {}

    def add(self, topic: int, made: list[tuple[int, bytes]], future: asyncio.Future[Exception | None]) -> None:
        for part, data in made:
            self._parts.setdefault((topic, part), []).append(data)
        self.futures.append(future)

    def run(self, tx: Transaction) -> bool:
        events.append(tx, self._parts)
        return True


# ---- topics and groups -----------------------------------------------------------------------------------------------


def _unknown_topic(name: str, path: str) -> str:
    return f"there is no topic {name!r} in {path!r}; declare it first"


def _check_names(topics: Sequence[TopicSpec], groups: Sequence[GroupSpec]) -> None:
    for topic in topics:
        check_name("topic", topic.name)
    for group in groups:
        check_name("group", group.group)


def _refusals(connection: apsw.Connection, topics: Sequence[TopicSpec], groups: Sequence[GroupSpec]) -> list[str]:
    lines = []
    for spec in topics:
        row = events.find_topic(connection, spec.name)
        if spec.partitions < 1:
            lines.append(f"{spec.name!r} asks for {spec.partitions} partitions; one is the least")
        if row is not None and row.partitions != spec.partitions:
            lines.append(
                f"{spec.name!r} exists with partitions={row.partitions} instead of partitions={spec.partitions}"
            )
    names = {spec.name for spec in topics}
    for group in groups:
        if group.topic not in names and events.find_topic(connection, group.topic) is None:
            lines.append(f"the group {group.group!r} belongs to {group.topic!r}, and there is no such topic")
    return lines


def _changes(connection: apsw.Connection, topics: Sequence[TopicSpec], groups: Sequence[GroupSpec]) -> list[str]:
    lines = []
    for spec in topics:
        row = events.find_topic(connection, spec.name)
        if row is None:
            lines.append(would_create_topic(spec.name, spec.partitions))
            continue
        for name in ("retention", "retention_bytes"):
            old, new = getattr(row, name), getattr(spec, name)
            if old != new:
                lines.append(f"would change {name} of {spec.name!r} from {old!r} to {new!r}")
    for group in groups:
        row = events.find_topic(connection, group.topic)
        if row is None or events.find_team(connection, row, group.group) is None:
            lines.append(would_create_group(group.group, group.topic))
    return lines


def _declare_topic(tx: Transaction, spec: TopicSpec) -> None:
    if events.find_topic(tx.connection, spec.name) is None:
        events.make_topic(tx, spec)
    else:
        tx.execute(
            "UPDATE topic SET retention = ?, retention_bytes = ? WHERE name = ?",
            (spec.retention, spec.retention_bytes, spec.name),
        )


def _declare_group(tx: Transaction, spec: GroupSpec) -> None:
    topic = events.find_topic(tx.connection, spec.topic)
    assert topic is not None  # noqa: S101 - `_refusals` looked
    team = events.find_team(tx.connection, topic, spec.group)
    if team is None:
        events.make_team(tx, topic, spec)
    else:
        tx.execute("UPDATE queue SET lost_limit = ? WHERE n = ?", (spec.lost_limit, team.queue.n))


# ---- looking ---------------------------------------------------------------------------------------------------------


def _stats(connection: apsw.Connection, team: TeamRow, now: float) -> GroupStats:
    rows: Any = connection.execute(
        """SELECT p.part, max(p.next, part.first), part.next FROM progress p
        JOIN part ON part.topic = ? AND part.part = p.part WHERE p.team = ?""",
        (team.topic.n, team.n),
    ).fetchall()
    behind = {part: end - done for part, done, end in rows}
    members: int = connection.execute("SELECT count(*) FROM owner WHERE channel = ?", (team.channel,)).get
    since = [_appended_at(connection, team, part, done) for part, done, end in rows if done < end]
    oldest = max(0.0, now - min(since)) if since else None
    lag = sum(behind.values())
    return GroupStats(
        topic=team.topic.name, group=team.name, lag=lag, by_partition=behind, members=members, oldest=oldest
    )


def _appended_at(connection: apsw.Connection, team: TeamRow, part: int, pos: int) -> float:
    found: float = connection.execute(
        "SELECT at FROM event WHERE topic = ? AND part = ? AND pos >= ? ORDER BY pos LIMIT 1", (team.topic.n, part, pos)
    ).get
    return found


def _check_seek(to: Seek, team: TeamRow) -> None:
    given = [to.time is not None, to.offsets is not None, to.earliest, to.latest]
    if sum(given) != 1:
        raise ValueError("The group was not moved: say one of time, offsets, earliest and latest.")
    unknown = [part for part in to.offsets or () if not 0 <= part < team.topic.partitions]
    if unknown:
        raise ValueError(
            f"The group was not moved: {team.topic.name!r} has the partitions 0 to {team.topic.partitions - 1}, "
            f"not {', '.join(map(str, unknown))}."
        )


def _offsets(connection: apsw.Connection, team: TeamRow, to: Seek) -> dict[int, int]:
    bounds = events.first_and_next(connection, team.topic.n)
    if to.offsets is not None:
        return {part: min(max(offset, bounds[part][0]), bounds[part][1]) for part, offset in to.offsets.items()}
    if to.time is not None:
        return {part: events.offset_at(connection, team.topic.n, part, to.time) for part in bounds}
    return {part: first if to.earliest else end for part, (first, end) in bounds.items()}
