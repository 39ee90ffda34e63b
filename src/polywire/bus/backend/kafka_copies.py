"""What belongs to one group of a topic: its retries by delay, and its dead letters.

Retries of the group `g` of the topic `t` are in `t.g.retry.5s`, `.1m`, `.10m` and `.2h`, by the delay that they were
put there with, so that those who wait long are not in front of those who wait shortly. Each copy says when it is due,
and its members hold it until then.

Dead letters are in `t.g.dead`, one partition, compacted: the key of a letter is the place of its event, `t/3@1234`, its
body and headers are those of the event, and a letter that was dropped or revived is followed by a record of the same
key without a value, Kafka's mark of deletion. So any letter can be taken out, which a committed position would not
allow; the marks are seen by everybody who reads the topic; and the broker cleans both up by itself. Listing reads the
topic from its start: dead letters are few, or there is a reason to look at them. An event that dies twice in a group,
after a replay or a revival, is one letter, the last. Two operators who revive the same letter at the same moment both
send it; its id is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from confluent_kafka.cimpl import NewTopic

from polywire.bus.backend.kafka_address import COPY_BYTES, ENVELOPE_BYTES, Address
from polywire.bus.backend.kafka_lane import DUE, header, unread
from polywire.bus.backend.kafka_messages import (
    ATTEMPTS,
    DIED,
    ERROR,
    ORIGIN,
    REASON,
    Message,
    appended,
    envelope_of,
    headers_of,
)
from polywire.bus.backend.kafka_producer import Outgoing
from polywire.bus.core.envelope import Envelope
from polywire.bus.core.log import Record
from polywire.bus.core.queue import Bury, DeadLetter
from polywire.errors import UndecodableMessage

BUCKETS = ((5.0, "5s"), (60.0, "1m"), (600.0, "10m"), (float("inf"), "2h"))
"""The longest delay of each, in seconds, and what its topic ends with."""
RETRIES_KEPT = 30 * 24 * 3600
"""Seconds that a retry stays in its topic; delays and outages together have to be shorter."""
MAX_ERROR = 2000
"""Characters kept of an error."""


def retry_topics(topic: str, group: str) -> list[str]:
    return [f"{topic}.{group}.retry.{name}" for _, name in BUCKETS]


def dead_topic(topic: str, group: str) -> str:
    return f"{topic}.{group}.dead"


def group_of(name: str, topic: str) -> str | None:
    """The group of *topic* whose dead letters the topic *name* has."""
    start, end = f"{topic}.", ".dead"
    return name[len(start) : -len(end)] if name.startswith(start) and name.endswith(end) else None


def new_topics(topic: str, group: str, address: Address) -> list[NewTopic]:
    room = str(address.max_message_bytes + ENVELOPE_BYTES + COPY_BYTES)
    kept = {"retention.ms": str(RETRIES_KEPT * 1000), "max.message.bytes": room}
    compacted = {
        "cleanup.policy": "compact",
        "min.cleanable.dirty.ratio": "0.1",
        "segment.ms": str(6 * 3600 * 1000),
        "max.message.bytes": room,
    }
    retries = [NewTopic(name, 1, address.replication, config=kept) for name in retry_topics(topic, group)]
    return [*retries, NewTopic(dead_topic(topic, group), 1, address.replication, config=compacted)]


# ---- retries -------------------------------------------------------------------------------------------------------


def retry_of(record: Record, group: str, delay: float, due: float, error: str) -> tuple[str, Outgoing]:
    """The topic for it, and the copy."""
    envelope = msgspec.structs.replace(record.stamped, attempt=record.attempt, lost=record.lost)
    return _bucket(record.topic, group, delay), _retry(envelope, record.position, due, error)


def revival_of(letter: DeadLetter, topic: str, group: str, origin: str) -> tuple[str, Outgoing]:
    """The topic for it, and the copy: attempts counted afresh, due at once."""
    count = letter.envelope.redrive_count + 1
    envelope = msgspec.structs.replace(letter.envelope, attempt=0, lost=0, redrive_count=count)
    return _bucket(topic, group, 0.0), _retry(envelope, origin, 0.0, "")


def _bucket(topic: str, group: str, delay: float) -> str:
    name = next(name for most, name in BUCKETS if delay <= most)
    return f"{topic}.{group}.retry.{name}"


def _retry(envelope: Envelope, origin: str, due: float, error: str) -> Outgoing:
    return _copy(envelope, origin, None, [(DUE, repr(due)), (ERROR, error[:MAX_ERROR])])


# ---- dead letters --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Buried:
    """A dead letter with what takes it out."""

    letter: DeadLetter
    key: bytes
    origin: str


def dead_copy(record: Record, outcome: Bury, died: float) -> Outgoing:
    told = [
        (REASON, outcome.reason),
        (ERROR, outcome.error[:MAX_ERROR]),
        (ATTEMPTS, str(record.attempt)),
        (DIED, repr(died)),
    ]
    return _copy(record.stamped, record.position, record.position, told)


def taken_out(buried: Buried) -> Outgoing:
    """The mark that it is no dead letter any more."""
    return buried.letter.envelope, buried.key, None, {}


def dead_letters(messages: Sequence[Message], queue: str) -> list[Buried]:
    """What is still buried, oldest first."""
    kept: dict[bytes, Message] = {}
    for message in messages:
        key = message.key() or b""
        kept.pop(key, None)
        if message.value() is not None:
            kept[key] = message
    return [_buried(message, key, queue) for key, message in kept.items()]


def _buried(message: Message, key: bytes, queue: str) -> Buried:
    try:
        envelope = envelope_of(message)
    except UndecodableMessage:
        envelope = unread(message)
    # The record's own key is the letter's.
    envelope.key = header(message, "ce_partitionkey")
    attempts = header(message, ATTEMPTS) or ""
    died = header(message, DIED) or ""
    letter = DeadLetter(
        queue=queue,
        envelope=envelope,
        reason=header(message, REASON) or "",
        error=header(message, ERROR) or "",
        attempts=int(attempts) if attempts.isdecimal() else 0,
        died=float(died) if died.replace(".", "", 1).isdecimal() else appended(message),
        position=f"{message.topic()}/{message.partition()}@{message.offset()}",
    )
    return Buried(letter, key, header(message, ORIGIN) or key.decode(errors="replace"))


def _copy(envelope: Envelope, origin: str, key: str | None, told: list[tuple[str, str]]) -> Outgoing:
    """With a value in any case, if only an empty one: a record without is a mark of deletion."""
    headers = headers_of(envelope)
    if key is not None and envelope.key is not None:
        headers["ce_partitionkey"] = envelope.key
    headers[ORIGIN] = origin
    for name, text in told:
        headers[name] = text.encode(errors="replace")
    return envelope, envelope.key if key is None else key, envelope.body, headers
