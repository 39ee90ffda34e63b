"""What every backend and every consumer agrees on: the envelope, the seams, what is promised."""

from polywire.bus.core.envelope import Envelope, new_id, pack, unpack
from polywire.bus.core.fanout import Binding, Fanout
from polywire.bus.core.guarantees import Guarantees
from polywire.bus.core.log import EventLog, GroupSpec, GroupStats, LogConsumer, Partition, Record, Seek, TopicSpec
from polywire.bus.core.queue import (
    EVERY_DEAD,
    Ack,
    Bury,
    DeadFilter,
    DeadLetter,
    Delivery,
    Outcome,
    QueueConsumer,
    QueueSpec,
    QueueStats,
    Release,
    RetryAfter,
    Settlement,
    TaskQueue,
)

__all__ = [
    "EVERY_DEAD",
    "Ack",
    "Binding",
    "Bury",
    "DeadFilter",
    "DeadLetter",
    "Delivery",
    "Envelope",
    "EventLog",
    "Fanout",
    "GroupSpec",
    "GroupStats",
    "Guarantees",
    "LogConsumer",
    "Outcome",
    "Partition",
    "QueueConsumer",
    "QueueSpec",
    "QueueStats",
    "Record",
    "Release",
    "RetryAfter",
    "Seek",
    "Settlement",
    "TaskQueue",
    "TopicSpec",
    "new_id",
    "pack",
    "unpack",
]
