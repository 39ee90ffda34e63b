"""What a group's handlers receive from Kafka, and what becomes of it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Sequence

from confluent_kafka import KafkaError

from polywire.bus.backend.kafka_address import Address
from polywire.bus.backend.kafka_lane import KafkaRecord, Lane, RetryLane
from polywire.bus.backend.kafka_member import Joins, Member, Owner
from polywire.bus.core.log import Partition, Record, Revoking
from polywire.bus.core.queue import Bury, RetryAfter
from polywire.clock import Clock, Timer
from polywire.errors import ConsumerClosed

Copy = Callable[[Record, RetryAfter | Bury], Awaitable[None]]
"""Puts a copy of a record into the group's retries or dead letters. Raises DeliveryError."""


class KafkaConsumer:
    """A member of a group, and of the group that has its retries: so that each of them is spread evenly.

    Records wait in one `Lane` per partition, bounded in number and bytes: a full one is paused at librdkafka, where
    the broker's own log then does the waiting. What is done is committed every `commit_interval` seconds and every
    COMMIT_RECORDS records; when a partition is revoked, after `revoking`; and when the member leaves.
    """

    def __init__(
        self,
        address: Address,
        joins: Sequence[Joins],
        copy: Copy,
        *,
        limit: int,
        revoking: Revoking | None,
        clock: Clock,
        trouble: Callable[[KafkaError], None],
    ) -> None:
        self._group = joins[0].group
        self._copy = copy
        self._told = revoking
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._paused: set[Partition] = set()
        self._waiting: set[asyncio.Future[None]] = set()
        self._idle: set[asyncio.Future[None]] = set()
        self._arrivals = 0
        self._turn = 0
        self._ended: Exception | None = None
        owner = Owner(
            loop=self._loop,
            lock=self._lock,
            limit=limit,
            arrived=self._arrived,
            failed=self._end,
            drain=self._drain,
            trouble=trouble,
        )
        self._members: list[Member] = []
        for each in joins:
            self._members.append(Member(address, each, owner))
        if self._ended is not None:
            self._end(self._ended)  # One of them failed before the others were there.

    @property
    def assigned(self) -> frozenset[Partition]:
        with self._lock:
            return frozenset(self._members[0].lanes)

    @property
    def gone(self) -> bool:
        """Whether it has left its group."""
        return all(member.gone.done() for member in self._members)

    # ---- receiving --------------------------------------------------------------------------------------------------

    async def receive(self, limit: int) -> list[Record]:
        while True:
            if self._ended is not None:
                raise self._ended.with_traceback(None)
            arrivals = self._arrivals
            taken, due = self._take(limit)
            if taken:
                return taken
            await self._something(arrivals, due)

    def _take(self, limit: int) -> tuple[list[Record], float | None]:
        """Records, or when the next retry is due."""
        taken: list[Record] = []
        due: float | None = None
        now = self._clock.time()
        # Each time another partition comes first, so that a busy one does not starve the others.
        self._turn += 1
        with self._lock:
            lanes = [lane for member in self._members for lane in member.lanes.values()]
            lanes = [lane for lane in lanes if not lane.revoking and lane.partition not in self._paused]
            for place in range(len(lanes)):
                lane = lanes[(place + self._turn) % len(lanes)]
                taken += lane.take(limit - len(taken), now)
                if isinstance(lane, RetryLane) and (next_due := lane.next_due()) is not None:
                    due = next_due if due is None else min(due, next_due)
        return taken, due

    async def _something(self, arrivals: int, due: float | None) -> None:
        """Until there may be something to receive; *arrivals* as counted before it was looked for."""
        woken: asyncio.Future[None] = self._loop.create_future()
        self._waiting.add(woken)
        timer: Timer | None = None
        if due is not None:
            timer = self._clock.call_later(max(due - self._clock.time(), 0.0), self._wake)
        try:
            # Only now does the thread know of us: what came before that it told nobody.
            if self._arrivals == arrivals and self._ended is None:
                await woken
        finally:
            self._waiting.discard(woken)
            if timer is not None:
                timer.cancel()

    def _wake(self) -> None:
        for woken in self._waiting:
            if not woken.done():
                woken.set_result(None)

    def _arrived(self) -> None:
        """From a member's thread."""
        self._arrivals += 1
        if self._waiting:
            # A loop that is gone has nobody left who would want to know.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._wake)

    # ---- settling ---------------------------------------------------------------------------------------------------

    async def done(self, records: Sequence[Record]) -> None:
        with self._lock:
            for record in records:
                lane, offset = self._place(record)
                if lane is not None and lane.holds(offset):
                    lane.finish(offset)
        self._wake()
        for idle in self._idle:
            if not idle.done():
                idle.set_result(None)

    async def retry(self, record: Record, outcome: RetryAfter) -> None:
        await self._put_aside(record, outcome)

    async def bury(self, record: Record, outcome: Bury) -> None:
        await self._put_aside(record, outcome)

    async def _put_aside(self, record: Record, outcome: RetryAfter | Bury) -> None:
        with self._lock:
            lane, offset = self._place(record)
            if lane is None or not lane.holds(offset):
                return
        # First the copy: if we die in between, it is there twice, not gone.
        await self._copy(record, outcome)
        await self.done([record])

    def _place(self, record: Record) -> tuple[Lane | None, int]:
        """Where it came from, if that is still ours in the same assignment."""
        if isinstance(record, KafkaRecord) and record.lane is not None:
            lane, offset = record.lane, record.at
        else:
            lane, offset = self._members[0].lanes.get((record.topic, record.partition)), record.offset
        return (lane if lane is not None and lane.epoch == record.epoch else None), offset

    def pause(self, partitions: Sequence[Partition]) -> None:
        self._paused.update(partitions)

    def resume(self, partitions: Sequence[Partition]) -> None:
        self._paused.difference_update(partitions)
        self._wake()

    # ---- leaving --------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        self._end(ConsumerClosed(f"Nothing was received by the group {self._group!r}: the consumer was closed."))
        leaving = [asyncio.wrap_future(member.gone) for member in self._members]
        await asyncio.shield(asyncio.gather(*leaving))

    def _end(self, reason: Exception) -> None:
        """The first reason counts. From any thread."""
        self._ended = self._ended or reason
        for member in self._members:
            member.leave()
        self._arrived()

    async def _drain(self, lanes: list[Lane]) -> None:
        """Until nothing of *lanes* is worked on."""
        partitions = frozenset(lane.partition for lane in lanes if not isinstance(lane, RetryLane))
        if self._told is not None and partitions:
            await self._told(partitions)
        # Nobody outside knows the partitions of retries.
        retries = [lane for lane in lanes if isinstance(lane, RetryLane)]
        while any(lane.out for lane in retries):
            idle: asyncio.Future[None] = self._loop.create_future()
            self._idle.add(idle)
            try:
                await idle
            finally:
                self._idle.discard(idle)
