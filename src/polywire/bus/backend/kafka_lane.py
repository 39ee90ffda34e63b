"""One partition as it is assigned to a member: what arrived, what was handed out, what is done, what to commit."""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from polywire.bus.backend.kafka_marks import Mark
from polywire.bus.backend.kafka_messages import ORIGIN, Message, envelope_of
from polywire.bus.core.envelope import Envelope
from polywire.bus.core.log import Partition, Record
from polywire.errors import UndecodableMessage

AHEAD = 1000
"""Records per partition that are read behind one that is not done, where `limit` is not more."""
BUFFERED = 2000
"""Records per partition that arrived and were not handed out, where `limit` is not more."""
BUFFERED_BYTES = 8 * 1024 * 1024
SUSPECT = 1.0
"""Seconds after which the next one may be handed out beside a suspect that is not done."""
DUE = "polywire-due"
"""Of a retry: seconds since the epoch."""


@dataclass(slots=True, eq=False)
class KafkaRecord(Record):
    """A record that knows where it came from; a retried one shows the place of its event in `topic` and `offset`."""

    lane: Any = field(default=None, repr=False)
    at: int = -1
    """Its offset in the lane's own partition."""


class Lane:
    """The records of a partition, for as long as this member has it. Its methods are called under the member's lock.

    Of what arrived, `order` keeps the offsets behind the watermark; all of them are in `buffer`, `out` or `finished`.
    """

    def __init__(self, partition: Partition, epoch: int, mark: Mark, limit: int) -> None:
        self.partition = partition
        self.epoch = epoch
        self.watermark = mark.offset
        self.open = True
        """False once it was given up, or lost."""
        self.revoking = False
        self.paused = False
        """At librdkafka: enough arrived."""
        self.committed: Mark | None = None
        """The last that was sent."""
        self.buffer: deque[Message] = deque()
        self.order: deque[int] = deque()
        self.out: set[int] = set()
        self.finished: set[int] = set()
        self._limit = limit
        self._most = max(limit, BUFFERED)
        self._bytes = 0
        self._next = mark.offset
        """Behind the last that was handed out."""
        self._covered = 0
        self._guarded = mark.guarded
        self._mark = mark
        self._handed = 0.0
        """When, on the monotonic clock, something was handed out last."""
        self._head: int | None = None
        """The first that ever arrived: it is the one that `mark.lost` is about."""

    # ---- arriving ---------------------------------------------------------------------------------------------------

    def arrive(self, message: Message, offset: int) -> None:
        if self._head is None:
            self._head = offset
            # The first batch of all is noted before it goes: else a record that kills its worker at once is not found.
            self._guarded = max(self._mark.guarded, offset + 1)
        elif self.order and offset <= self.order[-1]:
            self._rewind(offset)
        self.buffer.append(message)
        self.order.append(offset)
        self._bytes += len(message.value() or b"")

    def _rewind(self, offset: int) -> None:
        """The log was cut, and the broker starts it over: what came before does not count any more."""
        self.buffer.clear()
        self.order.clear()
        self.out.clear()
        self.finished.clear()
        self._bytes = 0
        self.watermark = self._next = offset

    @property
    def waiting(self) -> int:
        return len(self.buffer)

    @property
    def full(self) -> bool:
        return self.waiting >= self._most or self._bytes >= BUFFERED_BYTES

    @property
    def low(self) -> bool:
        return self.waiting <= self._most // 2 and self._bytes <= BUFFERED_BYTES // 2

    # ---- going out --------------------------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """How many more may be handed out."""
        handed = len(self.out) + len(self.finished)
        return min(self._limit - len(self.out), max(self._limit, AHEAD) - handed)

    def take(self, most: int, now: float) -> list[KafkaRecord]:
        taken: list[KafkaRecord] = []
        for _ in range(min(most, self.room, len(self.buffer))):
            offset = self.buffer[0].offset() or 0
            if not self._may_go(offset):
                break
            message = self.buffer.popleft()
            taken.append(self._hand_out(message, offset, *_decoded(message)))
        return taken

    def _hand_out(self, message: Message, offset: int, envelope: Envelope, unreadable: str | None) -> KafkaRecord:
        self._bytes -= len(message.value() or b"")
        self.out.add(offset)
        self._handed = time.monotonic()
        self._next = max(self._next, offset + 1)
        return self._record(message, offset, envelope, unreadable)

    def _record(self, message: Message, offset: int, envelope: Envelope, unreadable: str | None) -> KafkaRecord:
        topic, number = self.partition
        lost = self._lost(offset)
        generation = self._mark.generation
        return KafkaRecord(
            topic, number, offset, envelope, self.epoch, lost + 1, lost, False, unreadable, generation, self, offset
        )

    def _lost(self, offset: int) -> int:
        if offset == self._head:
            return self._mark.lost
        return 1 if offset < self._mark.suspects else 0

    # ---- after a crash ----------------------------------------------------------------------------------------------

    @property
    def guarding(self) -> bool:
        """Whether commits are to be made at once."""
        return bool(self.order) and self.watermark < self._guarded

    @property
    def suspecting(self) -> bool:
        return bool(self.out) and self.watermark < self._mark.suspects

    def _may_go(self, offset: int) -> bool:
        return offset >= self._guarded or offset < self._covered

    def cover(self) -> Mark | None:
        """What has to be committed so that the next ones may go; None where nothing waits for that."""
        if not self.buffer or self._may_go(head := self.buffer[0].offset() or 0):
            return None
        if head >= self._mark.suspects:
            last = self.buffer[min(len(self.buffer), self._limit) - 1]
            return self._as_mark((last.offset() or 0) + 1)
        # One at a time, so that the next crash names the culprit; one that takes long does not hold up the partition.
        alone = not self.out or time.monotonic() - self._handed > SUSPECT
        return self._as_mark(head + 1) if alone else None

    def covered(self, mark: Mark) -> None:
        self._covered = mark.started

    # ---- done -------------------------------------------------------------------------------------------------------

    def holds(self, offset: int) -> bool:
        return self.open and offset in self.out

    def finish(self, offset: int) -> None:
        if offset not in self.out:
            return
        self.out.discard(offset)
        self.finished.add(offset)
        order, finished = self.order, self.finished
        while order and order[0] in finished:
            first = order.popleft()
            finished.discard(first)
            self.watermark = first + 1

    def mark(self) -> Mark:
        """What is to be committed now. What was committed as handed out stays so: it may be at any moment."""
        return self._as_mark(max(self.watermark, self._covered))

    def last_mark(self) -> Mark:
        """What is to be committed when it is given up in order: nothing was lost by that."""
        mark = self._as_mark(self.watermark)
        return replace(mark, open=False)

    def _as_mark(self, started: int) -> Mark:
        if self.out:
            started = max(started, self._next)
        suspects, guarded = self._mark.suspects, self._mark.guarded
        return Mark(
            self.watermark,
            True,
            started,
            self._lost_first(),
            suspects if suspects > self.watermark else 0,
            guarded if guarded > self.watermark else 0,
            self._mark.generation,
        )

    def _lost_first(self) -> int:
        """Of the first record that is not done."""
        if self.order:
            return self._lost(self.order[0])
        return self._mark.lost if self._head is None else 0


class RetryLane(Lane):
    """A partition of the group's own retries: handed out when they are due, the earliest first.

    After a crash they go in the order of their offsets, which is the only one that a commit can speak of.
    """

    def __init__(self, partition: Partition, epoch: int, mark: Mark, limit: int, topic: str) -> None:
        super().__init__(partition, epoch, mark, limit)
        self.topic = topic
        """Whose retries they are."""
        self._due: list[tuple[float, int, Message, Envelope, str | None]] = []

    @property
    def waiting(self) -> int:
        return len(self.buffer) + len(self._due)

    def take(self, most: int, now: float) -> list[KafkaRecord]:
        taken: list[KafkaRecord] = []
        while len(taken) < most and self.room > 0:
            self._sort()
            if not self._due or self._due[0][0] > now:
                break
            _, offset, message, envelope, unreadable = heapq.heappop(self._due)
            taken.append(self._hand_out(message, offset, envelope, unreadable))
        return taken

    def next_due(self) -> float | None:
        """When the next may go, in seconds since the epoch; None where nothing waits only for that."""
        return self._due[0][0] if self._due and self.room > 0 else None

    def _sort(self) -> None:
        """From the buffer to those that wait for their time; guarded ones only when nothing is before them."""
        while self.buffer:
            message = self.buffer[0]
            offset = message.offset() or 0
            if not self._may_go(offset) or (offset < self._guarded and self._due):
                return
            self.buffer.popleft()
            envelope, unreadable = _decoded(message)
            heapq.heappush(self._due, (due_at(message), offset, message, envelope, unreadable))

    def cover(self) -> Mark | None:
        return None if self._due else super().cover()

    def _record(self, message: Message, offset: int, envelope: Envelope, unreadable: str | None) -> KafkaRecord:
        lost = envelope.lost + self._lost(offset)
        attempt = envelope.attempt + 1 + self._lost(offset)
        topic, number, at = origin_of(message) or (self.topic, 0, offset)
        return KafkaRecord(
            topic, number, at, envelope, self.epoch, attempt, lost, True, unreadable, envelope.generation, self, offset
        )


def _decoded(message: Message) -> tuple[Envelope, str | None]:
    try:
        return envelope_of(message), None
    except UndecodableMessage as error:
        return unread(message), str(error)


def unread(message: Message) -> Envelope:
    """Of a message that cannot be read: its place as the id, and its bytes."""
    place = f"{message.topic()}/{message.partition()}@{message.offset()}"
    key = message.key()
    return Envelope(
        place,
        "",
        message.value() or b"",
        key=None if key is None else key.decode(errors="backslashreplace"),
    )


def header(message: Message, name: str) -> str | None:
    found: Sequence[tuple[str, bytes | None]] = message.headers() or ()
    value = next((value for each, value in found if each == name), None)
    return None if value is None else value.decode(errors="replace")


def due_at(message: Message) -> float:
    try:
        return float(header(message, DUE) or 0)
    except ValueError:
        return 0.0


def origin_of(message: Message) -> tuple[str, int, int] | None:
    """Topic, partition and offset of the event that a copy was made of."""
    topic, slash, place = (header(message, ORIGIN) or "").rpartition("/")
    partition, _, offset = place.partition("@")
    if not slash or not partition.isdecimal() or not offset.isdecimal():
        return None
    return topic, int(partition), int(offset)
