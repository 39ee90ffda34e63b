"""One member of a Kafka group: a thread that owns librdkafka's consumer, and bounded lanes to the event loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from polywire.bus.backend.kafka_address import COPY_BYTES, ENVELOPE_BYTES, LOGGER, Address, Log
from polywire.bus.backend.kafka_lane import KafkaRecord, Lane, RetryLane
from polywire.bus.backend.kafka_marks import Mark, inherited, read
from polywire.bus.core.log import Partition, Record, Revoking
from polywire.bus.core.queue import Bury, RetryAfter
from polywire.clock import Clock, Timer
from polywire.errors import BackendLost, ConsumerClosed

BATCH = 500
"""Records taken from librdkafka at a time."""
POLL = 0.1
"""Seconds for which the thread waits for records."""
SHORT_POLL = 0.005
"""The same, while something may have to be resumed or committed at any moment."""
COMMIT_RECORDS = 2000
"""Records done after which a commit does not wait for the interval."""
ASKING = 5.0
"""Seconds for one question to the cluster."""
LEAVING = 3.0
"""Seconds that the last commit may take."""

_REFUSED = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._UNKNOWN_TOPIC,
}
"""After these a member cannot go on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """What a member joins."""

    group: str
    topics: tuple[str, ...]
    retries: Mapping[str, str]
    """Topics of the group's own retries -> whose they are."""
    latest: frozenset[str] = frozenset()
    """Topics at whose end the group begins where it never committed."""
    protocol: str = "classic"


Copy = Callable[[Record, RetryAfter | Bury], Awaitable[None]]
"""Puts a copy of a record into the group's retries or dead letters. Raises DeliveryError."""


class KafkaConsumer:
    """A member of a group. All calls of librdkafka are made by one thread, which polls for as long as it lives: neither
    slow handlers nor a blocked event loop throw the member out of its group.

    Records wait in one `Lane` per partition, bounded in number and bytes: a full one is paused at librdkafka, where
    the broker's own log then does the waiting. What is done is committed every `commit_interval` seconds and every
    COMMIT_RECORDS records; when a partition is revoked, after `revoking`; and when the member leaves.
    """

    def __init__(
        self,
        address: Address,
        membership: Membership,
        copy: Copy,
        *,
        limit: int,
        revoking: Revoking | None,
        clock: Clock,
        trouble: Callable[[KafkaError], None],
    ) -> None:
        self._address = address
        self._joined = membership
        self._copy = copy
        self._limit = limit
        self._told = revoking
        self._clock = clock
        self._trouble = trouble
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._lanes: dict[Partition, Lane] = {}
        """Shared by the thread and the loop, as is what is in them: under the lock."""
        self._epochs = 0
        self._paused: set[Partition] = set()
        self._waiting: set[asyncio.Future[None]] = set()
        self._idle: set[asyncio.Future[None]] = set()
        self._arrivals = 0
        self._turn = 0
        self._finished = 0
        """Records done since the last commit."""
        self._next_commit = 0.0
        self._unanswered = 0
        """Commits under way."""
        self._ended: Exception | None = None
        self._leaving = False
        self._gone: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._client = Consumer(_settings(address, membership, self._error, self._committed), logger=Log(address))
        threading.Thread(target=self._run, name="polywire-kafka-consumer", daemon=True).start()

    @property
    def assigned(self) -> frozenset[Partition]:
        with self._lock:
            return frozenset(partition for partition in self._lanes if partition[0] in self._joined.topics)

    @property
    def gone(self) -> bool:
        """Whether it has left its group."""
        return self._gone.done()

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
            lanes = [lane for lane in self._lanes.values() if not lane.revoking and lane.partition not in self._paused]
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

    def _wake_from_thread(self) -> None:
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
                    self._finished += 1
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
            lane, offset = self._lanes.get((record.topic, record.partition)), record.offset
        return (lane if lane is not None and lane.epoch == record.epoch else None), offset

    def pause(self, partitions: Sequence[Partition]) -> None:
        self._paused.update(partitions)

    def resume(self, partitions: Sequence[Partition]) -> None:
        self._paused.difference_update(partitions)
        self._wake()

    async def close(self) -> None:
        reason = f"Nothing was received by the group {self._joined.group!r}: the consumer was closed."
        self._end(ConsumerClosed(reason))
        await asyncio.shield(asyncio.wrap_future(self._gone))

    def _end(self, reason: Exception) -> None:
        """The first reason counts. From any thread."""
        self._ended = self._ended or reason
        self._leaving = True
        self._wake_from_thread()

    # ---- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            topics = [*self._joined.topics, *self._joined.retries]
            self._client.subscribe(topics, on_assign=self._assign, on_revoke=self._revoke, on_lost=self._lose)
            while not self._leaving:
                self._poll()
            self._leave()
        except Exception as error:  # noqa: BLE001 - whatever it is, whoever receives has to hear of it
            self._fail(error)
        finally:
            self._close_client()
            with self._lock:
                for lane in self._lanes.values():
                    lane.open = False
                self._lanes.clear()
            self._gone.set_result(None)

    def _fail(self, error: Exception) -> None:
        text = self._address.without_secrets(_text(error))
        if not isinstance(error, KafkaException):
            LOGGER.error("The member of the group %r failed.", self._joined.group, exc_info=error)
        self._end(BackendLost(f"Nothing was received by the group {self._joined.group!r}: {text}."))

    def _close_client(self) -> None:
        try:
            self._client.close()
        except (KafkaException, RuntimeError) as error:
            text = self._address.without_secrets(_text(error))
            LOGGER.warning("The member of the group %r did not leave in order: %s", self._joined.group, text)

    def _poll(self) -> None:
        """One turn."""
        messages = self._client.consume(1, SHORT_POLL if self._busy() else POLL)
        if messages:
            messages += self._client.consume(BATCH, 0)
            self._arrive(messages)
        self._regulate()
        self._cover()
        now = time.monotonic()
        if now >= self._next_commit or self._finished >= COMMIT_RECORDS:
            self._next_commit = now + self._address.commit_interval
            self._commit()

    def _busy(self) -> bool:
        """Whether room, or a hand-out that has to be committed first, can come up at any moment."""
        with self._lock:
            return any(lane.paused or (lane.guarding and lane.buffer) for lane in self._lanes.values())

    def _arrive(self, messages: list[Any]) -> None:
        with self._lock:
            for message in messages:
                error = message.error()
                if error is not None:
                    self._message_error(error)
                    continue
                lane = self._lanes.get((message.topic(), message.partition()))
                if lane is not None and not lane.revoking:
                    lane.arrive(message, message.offset())
        self._wake_from_thread()

    def _message_error(self, error: KafkaError) -> None:
        if error.fatal() or error.code() in _REFUSED:
            raise KafkaException(error)
        LOGGER.info("The group %r: %s", self._joined.group, self._address.without_secrets(error.str()))

    def _regulate(self) -> None:
        """Pause what is full, resume what is not any more."""
        with self._lock:
            full = [lane for lane in self._lanes.values() if lane.full and not lane.paused]
            low = [lane for lane in self._lanes.values() if lane.paused and lane.low]
            for lane in full:
                lane.paused = True
            for lane in low:
                lane.paused = False
        if full:
            self._client.pause([TopicPartition(*lane.partition) for lane in full])
        if low:
            self._client.resume([TopicPartition(*lane.partition) for lane in low])

    # ---- committing -------------------------------------------------------------------------------------------------

    def _commit(self) -> None:
        """Without waiting; what is not taken is committed again next time."""
        with self._lock:
            self._finished = 0
            marks = [(lane, lane.mark()) for lane in self._lanes.values()]
            changed = [(lane, mark) for lane, mark in marks if mark != lane.committed]
            for lane, mark in changed:
                lane.committed = mark
        if changed:
            self._send_commit(_offsets(changed))

    def _send_commit(self, offsets: list[TopicPartition]) -> None:
        try:
            self._client.commit(offsets=offsets, asynchronous=True)
            self._unanswered += 1
        except KafkaException as error:
            self._committed(error.args[0], offsets)

    def _committed(self, error: KafkaError | None, offsets: list[TopicPartition]) -> None:
        """librdkafka's answer to a commit."""
        self._unanswered = max(0, self._unanswered - 1)
        for offset in offsets:
            found = offset.error or error
            if found is not None:
                self._not_committed((offset.topic, offset.partition), found)

    def _not_committed(self, partition: Partition, error: KafkaError) -> None:
        # In a rebalance this is as it should be: the partition is somebody else's, who reads from what was committed.
        LOGGER.info("The group %r did not commit %s/%d: %s", self._joined.group, *partition, error.str())
        if (lane := self._lanes.get(partition)) is not None:
            lane.committed = None

    def _cover(self) -> None:
        """Commit what is about to be handed out, where a crash before calls for it, and then let it go."""
        with self._lock:
            marks = [(lane, mark) for lane in self._lanes.values() if (mark := lane.cover()) is not None]
        if marks and self._commit_and_wait(marks):
            with self._lock:
                for lane, mark in marks:
                    lane.covered(mark)
                    lane.committed = mark
            self._wake_from_thread()

    def _commit_and_wait(self, marks: list[tuple[Lane, Mark]]) -> bool:
        """Whether all of it is committed."""
        try:
            answers = self._client.commit(offsets=_offsets(marks), asynchronous=False)
        except KafkaException as error:
            for lane, _ in marks:
                self._not_committed(lane.partition, error.args[0])
            return False
        failed = [(each, each.error) for each in answers or () if each.error is not None]
        for each, error in failed:
            self._not_committed((each.topic, each.partition), error)
        return not failed

    # ---- partitions come and go -------------------------------------------------------------------------------------

    def _assign(self, client: Consumer, partitions: list[TopicPartition]) -> None:
        """Begin where the group is, and note that somebody is at it."""
        marks = self._ask(lambda: [self._begin(found) for found in client.committed(partitions, timeout=ASKING)])
        if marks is None:
            return
        lanes = [self._lane((each.topic, each.partition), mark) for each, mark in zip(partitions, marks, strict=True)]
        client.incremental_assign([TopicPartition(*lane.partition, lane.watermark) for lane in lanes])
        if lanes and self._commit_and_wait([(lane, lane.mark()) for lane in lanes]):
            for lane in lanes:
                lane.committed = lane.mark()
        with self._lock:
            self._lanes.update((lane.partition, lane) for lane in lanes)

    def _ask(self, question: Callable[[], list[Mark]]) -> list[Mark] | None:
        """Until there is an answer; None where the member is leaving. Raises what does not get better by asking."""
        while not self._leaving:
            try:
                return question()
            except KafkaException as error:
                if error.args[0].fatal() or error.args[0].code() in _REFUSED:
                    raise
                LOGGER.info("The group %r does not know its offsets yet: %s", self._joined.group, error.args[0].str())
                time.sleep(POLL)
        return None

    def _begin(self, committed: TopicPartition) -> Mark:
        if committed.error is not None:
            raise KafkaException(committed.error)
        if committed.offset >= 0:
            return inherited(read(committed.offset, committed.metadata), self._limit + 2 * COMMIT_RECORDS)
        place = TopicPartition(committed.topic, committed.partition)
        first, end = self._client.get_watermark_offsets(place, timeout=ASKING)
        return Mark(end if committed.topic in self._joined.latest else first)

    def _lane(self, partition: Partition, mark: Mark) -> Lane:
        self._epochs += 1
        if partition[0] in self._joined.retries:
            return RetryLane(partition, self._epochs, mark, self._limit, self._joined.retries[partition[0]])
        return Lane(partition, self._epochs, mark, self._limit)

    def _revoke(self, client: Consumer, partitions: list[TopicPartition]) -> None:
        """Let handlers finish, commit, and give up."""
        lanes = self._of(partitions)
        with self._lock:
            for lane in lanes:
                lane.revoking = True
        if not self._leaving:
            self._tell(lanes)
        with self._lock:
            marks = [(lane, lane.last_mark()) for lane in lanes]
        changed = [(lane, mark) for lane, mark in marks if lane.committed != mark]
        if changed:
            self._commit_and_wait(changed)
        self._drop(lanes)
        client.incremental_unassign(partitions)

    def _lose(self, client: Consumer, partitions: list[TopicPartition]) -> None:
        """They are somebody else's already: nothing is ours to commit."""
        LOGGER.warning("The group %r went on without this member, which was not heard of in time.", self._joined.group)
        self._drop(self._of(partitions))

    def _of(self, partitions: Iterable[TopicPartition]) -> list[Lane]:
        with self._lock:
            found = [self._lanes.get((each.topic, each.partition)) for each in partitions]
        return [lane for lane in found if lane is not None]

    def _drop(self, lanes: Collection[Lane]) -> None:
        with self._lock:
            for lane in lanes:
                lane.open = False
                del self._lanes[lane.partition]
                self._paused.discard(lane.partition)

    # ---- telling whoever works on them ------------------------------------------------------------------------------

    def _tell(self, lanes: list[Lane]) -> None:
        """Wait until nothing of *lanes* is worked on, for at most half of the time that the group gives us."""
        try:
            told = asyncio.run_coroutine_threadsafe(self._drain(lanes), self._loop)
        except RuntimeError:
            return  # The loop is gone, and with it whoever worked on them.
        give_up = time.monotonic() + self._address.rebalance_timeout / 2
        while not told.done() and time.monotonic() < give_up and not self._leaving:
            concurrent.futures.wait([told], timeout=POLL)
        if not told.done():
            told.cancel()
        elif (error := told.exception()) is not None:
            self._end(error if isinstance(error, Exception) else BackendLost(str(error)))

    async def _drain(self, lanes: list[Lane]) -> None:
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

    # ---- leaving ----------------------------------------------------------------------------------------------------

    def _leave(self) -> None:
        """Commit for the last time, and wait for that as long as there is hope."""
        with self._lock:
            for lane in self._lanes.values():
                lane.revoking = True
            marks = [(lane, lane.last_mark()) for lane in self._lanes.values()]
            for lane, mark in marks:
                lane.committed = mark
        if marks:
            self._send_commit(_offsets(marks))
        give_up = time.monotonic() + LEAVING
        while self._unanswered and time.monotonic() < give_up:
            self._client.consume(1, SHORT_POLL)

    # ---- errors -----------------------------------------------------------------------------------------------------

    def _error(self, error: KafkaError) -> None:
        if error.fatal():
            self._fail(KafkaException(error))
        self._trouble(error)


def _offsets(marks: Iterable[tuple[Lane, Mark]]) -> list[TopicPartition]:
    return [TopicPartition(*lane.partition, mark.offset, metadata=mark.text) for lane, mark in marks]


def _text(error: Exception) -> str:
    if isinstance(error, KafkaException) and error.args and isinstance(error.args[0], KafkaError):
        return f"Kafka says {error.args[0].str()!r}"
    return f"{type(error).__name__}: {error}"


def _settings(
    address: Address,
    membership: Membership,
    error: Callable[[KafkaError], None],
    committed: Callable[[KafkaError | None, list[TopicPartition]], None],
) -> dict[str, Any]:
    found: dict[str, Any] = {
        **address.settings,
        "group.id": membership.group,
        "group.protocol": membership.protocol,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        # Only where what was committed is not there any more. Anything else would skip events without a word.
        "auto.offset.reset": "earliest",
        "isolation.level": "read_committed",
        "max.poll.interval.ms": int(address.rebalance_timeout * 1000),
        "fetch.message.max.bytes": max(1_048_576, address.max_message_bytes + ENVELOPE_BYTES + COPY_BYTES),
        "queued.min.messages": 5000,
        "queued.max.messages.kbytes": 16_384,
        # After the two above are reached, librdkafka looks again only after a second.
        "fetch.queue.backoff.ms": 20,
        "error_cb": error,
        "on_commit": committed,
    }
    if membership.protocol == "classic":
        found["partition.assignment.strategy"] = "cooperative-sticky"
        found["session.timeout.ms"] = int(min(address.session_timeout, address.rebalance_timeout) * 1000)
    return found
