"""A thread that is a member of a Kafka group: it owns librdkafka's consumer, and fills and commits the lanes."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from polywire.bus.backend.kafka_address import COPY_BYTES, ENVELOPE_BYTES, LOGGER, Address, Log
from polywire.bus.backend.kafka_lane import Lane, RetryLane
from polywire.bus.backend.kafka_marks import Mark, inherited, read
from polywire.bus.core.log import Partition
from polywire.errors import BackendLost

BATCH = 500
"""Records taken from librdkafka at a time."""
POLL = 0.1
"""Seconds for which the thread waits for records."""
SHORT_POLL = 0.005
"""The same, while something may have to be resumed or committed at any moment."""
WAITS = 10
"""Times SHORT_POLL for which a full lane is waited for before it is paused."""
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
class Joins:
    """What a member joins."""

    group: str
    topics: tuple[str, ...]
    protocol: str
    latest: frozenset[str] = frozenset()
    """Topics at whose end the group begins where it never committed."""
    retries: Mapping[str, str] = field(default_factory=dict)
    """Of topics that are a group's own retries: whose."""
    partitions: Mapping[str, int] = field(default_factory=dict)
    """How many the group's topics had; those of its retries are not named."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Whoever handles the records, in the event loop *loop*."""

    loop: asyncio.AbstractEventLoop
    lock: threading.Lock
    """Around all that both sides do with the lanes."""
    limit: int
    arrived: Callable[[], None]
    """Called by the thread: there may be something to receive."""
    failed: Callable[[Exception], None]
    """Called by the thread: the member has ended."""
    drain: Callable[[list[Lane]], Awaitable[None]]
    """Run in the loop: ends when nothing of these lanes is worked on."""
    trouble: Callable[[KafkaError], None]


class Member:
    """Polls for as long as it lives, and makes all calls of librdkafka: neither slow handlers nor a blocked event loop
    throw it out of its group, and librdkafka's consumer does not take two calls at a time."""

    def __init__(self, address: Address, joins: Joins, owner: Owner) -> None:
        self._address = address
        self._joins = joins
        self._owner = owner
        self._lock = owner.lock
        self.lanes: dict[Partition, Lane] = {}
        self.gone: concurrent.futures.Future[None] = concurrent.futures.Future()
        """Done when it has left the group."""
        self._epochs = 0
        self._next_commit = 0.0
        self._waits = 0
        self._unanswered = 0
        """Commits under way."""
        self._leaving = False
        self._client = Consumer(_settings(address, joins, self._error, self._committed), logger=Log(address))
        threading.Thread(target=self._run, name="polywire-kafka-consumer", daemon=True).start()

    def leave(self) -> None:
        """From any thread; `gone` tells when it is done."""
        self._leaving = True

    # ---- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            topics = list(self._joins.topics)
            self._client.subscribe(topics, on_assign=self._assign, on_revoke=self._revoke, on_lost=self._lose)
            while not self._leaving:
                self._poll()
            self._leave()
        except Exception as error:  # noqa: BLE001 - whatever it is, whoever receives has to hear of it
            self._fail(error)
        finally:
            self._close_client()
            with self._lock:
                for lane in self.lanes.values():
                    lane.open = False
                self.lanes.clear()
            self.gone.set_result(None)

    def _fail(self, error: Exception) -> None:
        text = self._address.without_secrets(_text(error))
        if not isinstance(error, KafkaException):
            LOGGER.error("The member of the group %r failed.", self._joins.group, exc_info=error)
        self._leaving = True
        self._owner.failed(BackendLost(f"Nothing was received by the group {self._joins.group!r}: {text}."))

    def _close_client(self) -> None:
        try:
            self._client.close()
        except (KafkaException, RuntimeError) as error:
            text = self._address.without_secrets(_text(error))
            LOGGER.warning("The member of the group %r did not leave in order: %s", self._joins.group, text)

    def _poll(self) -> None:
        """One turn."""
        held_up = self._held_up()
        self._regulate()
        if held_up:
            time.sleep(SHORT_POLL)
        elif messages := self._client.consume(1, SHORT_POLL if self._busy() else POLL):
            messages += self._client.consume(BATCH, 0)
            self._arrive(messages)
        self._cover()
        now = time.monotonic()
        if now >= self._next_commit or self._urgent():
            self._next_commit = now + self._address.commit_interval
            self._commit()

    def _held_up(self) -> bool:
        """Whether a lane is full, for a moment only: librdkafka drops what it has of a partition that is paused."""
        with self._lock:
            full = any(lane.full and not lane.paused for lane in self.lanes.values())
        self._waits = self._waits + 1 if full else 0
        return 0 < self._waits <= WAITS

    def _busy(self) -> bool:
        """Whether room, or a hand-out that has to be committed first, can come up at any moment."""
        with self._lock:
            return any(lane.paused or lane.guarding for lane in self.lanes.values())

    def _urgent(self) -> bool:
        """Whether much is done, or suspects are out: who is done with one is not to blame for the next."""
        with self._lock:
            done = sum(lane.watermark - lane.committed.offset for lane in self.lanes.values() if lane.committed)
            return done >= COMMIT_RECORDS or any(lane.suspecting for lane in self.lanes.values())

    def _arrive(self, messages: list[Any]) -> None:
        with self._lock:
            for message in messages:
                error = message.error()
                if error is not None:
                    self._message_error(error)
                    continue
                lane = self.lanes.get((message.topic(), message.partition()))
                if lane is not None and not lane.revoking:
                    lane.arrive(message, message.offset())
        self._owner.arrived()

    def _message_error(self, error: KafkaError) -> None:
        if error.fatal() or error.code() in _REFUSED:
            raise KafkaException(error)
        LOGGER.info("The group %r: %s", self._joins.group, self._address.without_secrets(error.str()))

    def _regulate(self) -> None:
        """Pause what is full, resume what is not any more."""
        with self._lock:
            full = [lane for lane in self.lanes.values() if lane.full and not lane.paused and self._waits > WAITS]
            low = [lane for lane in self.lanes.values() if lane.paused and lane.low]
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
        if self._unanswered:
            return  # librdkafka may repeat it: it must not come after this one.
        with self._lock:
            marks = [(lane, lane.mark()) for lane in self.lanes.values()]
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
        LOGGER.info("The group %r did not commit %s/%d: %s", self._joins.group, *partition, error.str())
        if (lane := self.lanes.get(partition)) is not None:
            lane.committed = None

    def _cover(self) -> None:
        """Commit what is about to be handed out, where a crash before calls for it, and then let it go."""
        if self._unanswered:
            return
        with self._lock:
            marks = [(lane, mark) for lane in self.lanes.values() if (mark := lane.cover()) is not None]
        if marks and self._commit_and_wait(marks):
            with self._lock:
                for lane, mark in marks:
                    lane.covered(mark)
                    lane.committed = mark
            self._owner.arrived()

    def _commit_and_wait(self, marks: list[tuple[Lane, Mark]]) -> bool:
        """Whether all of it is committed."""
        try:
            answers = self._client.commit(offsets=_offsets(marks), asynchronous=False)
        except KafkaException as error:
            for lane, _ in marks:
                self._not_committed(lane.partition, error.args[0])
            return False
        failed = [(each, each.error) for each in answers or () if each.error is not None]
        for each, reason in failed:
            self._not_committed((each.topic, each.partition), reason)
        return not failed

    # ---- partitions come and go -------------------------------------------------------------------------------------

    def _assign(self, client: Consumer, partitions: list[TopicPartition]) -> None:
        """Begin where the group is."""
        marks = self._ask(lambda: self._begins(client, partitions))
        if marks is None:
            return
        lanes = [self._lane((each.topic, each.partition), mark) for each, mark in zip(partitions, marks, strict=True)]
        client.incremental_assign([TopicPartition(*lane.partition, lane.watermark) for lane in lanes])
        with self._lock:
            self.lanes.update((lane.partition, lane) for lane in lanes)

    def _ask(self, question: Callable[[], list[Mark]]) -> list[Mark] | None:
        """Until there is an answer; None where the member is leaving. Raises what does not get better by asking."""
        while not self._leaving:
            try:
                return question()
            except KafkaException as error:
                if error.args[0].fatal() or error.args[0].code() in _REFUSED:
                    raise
                LOGGER.info("The group %r does not know its offsets yet: %s", self._joins.group, error.args[0].str())
                time.sleep(POLL)
        return None

    def _begins(self, client: Consumer, partitions: list[TopicPartition]) -> list[Mark]:
        """Where to begin with each, in the group's generation, which any partition of its topic may tell."""
        mine = {(each.topic, each.partition) for each in partitions}
        known = {(topic, n) for topic, count in self._joins.partitions.items() for n in range(count)}
        others = [TopicPartition(*each) for each in known - mine]
        found = client.committed([*partitions, *others], timeout=ASKING)
        newest = dict.fromkeys(self._joins.topics, 0)
        for each in found:
            if each.error is not None:
                raise KafkaException(each.error)
            newest[each.topic] = max(newest[each.topic], read(each.offset, each.metadata).generation)
        return [replace(self._begin(each), generation=newest[each.topic]) for each in found[: len(partitions)]]

    def _begin(self, committed: TopicPartition) -> Mark:
        if committed.offset >= 0:
            return inherited(read(committed.offset, committed.metadata), self._owner.limit + 2 * COMMIT_RECORDS)
        place = TopicPartition(committed.topic, committed.partition)
        first, end = self._client.get_watermark_offsets(place, timeout=ASKING)
        return Mark(end if committed.topic in self._joins.latest else first)

    def _lane(self, partition: Partition, mark: Mark) -> Lane:
        self._epochs += 1
        if partition[0] in self._joins.retries:
            topic = self._joins.retries[partition[0]]
            lane: Lane = RetryLane(partition, self._epochs, mark, self._owner.limit, topic)
        else:
            lane = Lane(partition, self._epochs, mark, self._owner.limit)
        lane.committed = lane.mark()  # Nothing that anybody has to know yet.
        return lane

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
        LOGGER.warning("The group %r went on without this member, which was not heard of in time.", self._joins.group)
        self._drop(self._of(partitions))

    def _of(self, partitions: Iterable[TopicPartition]) -> list[Lane]:
        with self._lock:
            found = [self.lanes.get((each.topic, each.partition)) for each in partitions]
        return [lane for lane in found if lane is not None]

    def _drop(self, lanes: Collection[Lane]) -> None:
        with self._lock:
            for lane in lanes:
                lane.open = False
                del self.lanes[lane.partition]

    # ---- telling whoever works on them ------------------------------------------------------------------------------

    def _tell(self, lanes: list[Lane]) -> None:
        """Wait until nothing of *lanes* is worked on, for at most half of the time that the group gives us."""
        try:
            told = asyncio.run_coroutine_threadsafe(self._drain(lanes), self._owner.loop)
        except RuntimeError:
            return  # The loop is gone, and with it whoever worked on them.
        give_up = time.monotonic() + self._address.rebalance_timeout / 2
        while not told.done() and time.monotonic() < give_up and not self._leaving:
            concurrent.futures.wait([told], timeout=POLL)
        if not told.done():
            told.cancel()
        elif (error := told.exception()) is not None:
            self._leaving = True
            self._owner.failed(error if isinstance(error, Exception) else BackendLost(str(error)))

    async def _drain(self, lanes: list[Lane]) -> None:
        await self._owner.drain(lanes)

    # ---- leaving ----------------------------------------------------------------------------------------------------

    def _leave(self) -> None:
        """Commit for the last time, and wait for that as long as there is hope."""
        with self._lock:
            for lane in self.lanes.values():
                lane.revoking = True
            marks = [(lane, lane.last_mark()) for lane in self.lanes.values()]
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
        self._owner.trouble(error)


def _offsets(marks: Iterable[tuple[Lane, Mark]]) -> list[TopicPartition]:
    return [TopicPartition(*lane.partition, mark.offset, metadata=mark.text) for lane, mark in marks]


def _text(error: Exception) -> str:
    if isinstance(error, KafkaException) and error.args and isinstance(error.args[0], KafkaError):
        return f"Kafka says {error.args[0].str()!r}"
    return f"{type(error).__name__}: {error}"


def _settings(
    address: Address,
    joins: Joins,
    error: Callable[[KafkaError], None],
    committed: Callable[[KafkaError | None, list[TopicPartition]], None],
) -> dict[str, Any]:
    found: dict[str, Any] = {
        **address.settings,
        "group.id": joins.group,
        "group.protocol": joins.protocol,
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
    if joins.protocol == "classic":
        found["partition.assignment.strategy"] = "cooperative-sticky"
        session = min(address.session_timeout, address.rebalance_timeout)
        found["session.timeout.ms"] = int(session * 1000)
        found["heartbeat.interval.ms"] = int(min(3.0, session / 4) * 1000)
    return found
