"""What a backend promises, as data: the suites choose their cases by it, and what it lacks is refused at start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Attempts = Literal["exact", "counted", "approximate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Guarantees:
    """Of one backend as it is configured. Nothing here depends on the state of the backend at the moment."""

    backend: str
    """As in the URL: `memory`, `sqlite`, `rabbitmq`, `kafka`, ..."""
    durable: bool
    """A confirmed message survives the end of any process, the backend's own included."""
    shared: bool
    """Other processes send to it and receive from it."""
    max_message_bytes: int
    """Of a body after encoding; more is refused when it is sent."""
    key_order: bool
    """Messages of one key are handled one after the other, in the order in which they were confirmed."""
    delay: bool = False
    """A message can be sent to be handled later."""
    max_delay: float | None = None
    """Seconds; None where there is no limit."""
    priorities: int = 1
    """Levels."""
    attempts: Attempts = "exact"
    """Of a message released unharmed: `exact`, it costs no attempt; `counted`, our own count is exact, but the broker
    has one beside it with a far limit; `approximate`, it may cost one."""
    cancel: bool = False
    """A waiting message can be taken back or moved by its id."""
    withdraw: bool = False
    """A message under way can be taken away from its consumer, which is told: its queues are `Withdrawing`."""
    deduplicate: bool = False
    """A second message of the same id and queue is not kept, for a while."""
    dead_letters: bool = True
    """They are kept by the backend itself, and can be listed, retried and dropped."""
    peek: bool = False
    """Waiting messages can be looked at without disturbing them."""
    shared_limits: bool = False
    """`concurrency=` and `rate=` of a queue hold over all processes."""
    replay: bool = False
    """A group of a log can be sent back to an offset or a time."""
    routing: frozenset[str] = frozenset()
    """Kinds of routing that a fan-out offers beside one queue per group: `topic`, `direct`, `fanout`, `headers`."""
