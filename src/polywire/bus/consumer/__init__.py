"""Handles what backends deliver: decode > inbox > handler > ack | retry | dead letter."""

from polywire.bus.consumer.counters import Counters
from polywire.bus.consumer.handling import Handling, event_handling, task_handling
from polywire.bus.consumer.limits import Alone
from polywire.bus.consumer.log_runner import LogRunner
from polywire.bus.consumer.queue_runner import QueueRunner
from polywire.threads import Threads

__all__ = [
    "Alone",
    "Counters",
    "Handling",
    "LogRunner",
    "QueueRunner",
    "Threads",
    "event_handling",
    "task_handling",
]
