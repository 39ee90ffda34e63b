"""Makes backlogs: many messages that wait, in a way that takes less time than sending them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.bus.contract import (
    BODY,
    CAUSATION_ID,
    OWN,
    REQUEST_ID,
    TRACEPARENT,
    Shape,
    mail_contract,
    mail_queue,
    order_event,
)
from benchmarks.bus.stacks import STACKS, declare_events, opened

from polywire.bus.backend import sqlite_messages
from polywire.bus.backend.opening import open_events, open_tasks
from polywire.bus.backend.sqlite import SqliteQueue
from polywire.bus.backend.sqlite_file import Transaction
from polywire.bus.backend.sqlite_messages import QueueRow
from polywire.bus.core import Envelope, new_id, pack

CHUNK = 1000
DAY = 86_400.0


def pile_up(stack: str, count: int, *, url: str, place: str, shape: Shape) -> None:
    """*count* messages that this stack's place has before anything is measured."""
    if STACKS[stack].server == "sqlite":
        asyncio.run(_in_a_file(url, place, shape, count))
    elif STACKS[stack].kind == "tasks":
        asyncio.run(_queued(url, place, count))
    else:
        asyncio.run(_appended(url, place, count))


def _envelope(type: str, shape: Shape = "plain", key: str | None = None) -> Envelope:
    return Envelope(
        new_id(),
        type,
        BODY,
        source="orders",
        time=time.time(),
        key="customer-hot" if shape == "hot" else key,
        not_before=time.time() + DAY if shape == "delayed" else None,
        headers=OWN,
        traceparent=TRACEPARENT,
        request_id=REQUEST_ID,
        causation_id=CAUSATION_ID,
    )


async def _in_a_file(url: str, place: str, shape: Shape, count: int) -> None:
    """Past the confirmation of each."""
    async with opened(SqliteQueue(url)) as bus:
        await bus.declare([mail_queue(mail_contract(place, shape))])
        row = await bus.known(place)
        for start in range(0, count, CHUNK):
            values = list(_values(row, shape, min(CHUNK, count - start)))
            await bus.file.do(lambda tx, values=values: _insert(tx, row, values), durable=False)


def _insert(tx: Transaction, row: QueueRow, values: list[object]) -> None:
    sqlite_messages.insert(tx, values, keyed=row.keyed, delayed=True)
    tx.changed.add(row.channel)


def _values(row: QueueRow, shape: Shape, count: int) -> Iterator[object]:
    for _ in range(count):
        made = _envelope("bench.v1.Mail/Send", shape)
        yield from (row.n, made.id, made.key if row.keyed else None, row.level(0), made.not_before, pack(made))


async def _queued(url: str, place: str, count: int) -> None:
    async with opened(open_tasks(url)) as queue:
        await queue.declare([mail_queue(mail_contract(place, "plain"))])
        for start in range(0, count, CHUNK):
            envelopes = [_envelope("bench.v1.Mail/Send") for _ in range(min(CHUNK, count - start))]
            _refuse_errors(await queue.send(place, envelopes))


async def _appended(url: str, place: str, count: int) -> None:
    made = order_event(place)
    events: Any
    async with opened(open_events(url)) as events:
        await declare_events(events, made)
        for start in range(0, count, CHUNK):
            some = range(start, min(start + CHUNK, count))
            envelopes = [_envelope(f"bench.v1.{made.__name__}", key=f"customer-{n % 1000}") for n in some]
            _refuse_errors(await events.append(place, envelopes))


def _refuse_errors(errors: list[Exception | None]) -> None:
    for error in errors:
        if error is not None:
            raise error
