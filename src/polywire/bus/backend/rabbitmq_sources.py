"""What a consumer of RabbitMQ has received and not settled, queue by queue; in lanes, key by key."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from polywire.bus.backend import rabbitmq_topology as topology
from polywire.bus.backend.rabbitmq_connection import Asking, Incoming
from polywire.bus.core import Envelope, QueueSpec
from polywire.clock import Timer


class Kind(Enum):
    WORK = "work"
    SUSPECTS = "suspects"
    LANE = "lane"


@dataclass(slots=True, eq=False, repr=False)
class Source:
    """One queue of the broker that is consumed, over a channel of its own."""

    queue: str
    kind: Kind
    prefetch: int
    buffer: deque[Incoming] = field(default_factory=deque)
    """As it came."""
    ready: deque[Hold] = field(default_factory=deque)
    """Could be handed out."""
    keys: dict[object, deque[Hold]] = field(default_factory=dict)
    """Of a lane: all that was received of each key, the oldest first. Only the first is ready or handed out."""
    generation: int = 0
    """Of its channel: what came over earlier ones is void."""
    held: int = 0
    """Received and not settled, whether handed out or not."""
    active: bool = False
    """Of a lane: it is ours, as a message came."""
    leaving: bool = False
    """Of a lane: it is given to another consumer as soon as nothing of it is handed out."""
    expecting: float = 0.0
    """Of a level: until when the next one is waited for, on the loop's clock; it was full until just now."""
    asking: Asking | None = None
    """Only touched in the thread of the line."""

    def next(self, opened: Callable[[Source, Incoming], Hold]) -> Hold | None:
        """The next that may be handed out."""
        if self.leaving:
            return None
        if self.kind is Kind.LANE:
            while self.buffer:
                self._in_order(opened(self, self.buffer.popleft()))
        elif not self.ready and self.buffer:
            return opened(self, self.buffer.popleft())
        return self.ready.popleft() if self.ready else None

    def _in_order(self, hold: Hold) -> None:
        waiting = self.keys.setdefault(hold.key, deque())
        waiting.append(hold)
        if len(waiting) == 1:
            self.ready.append(hold)

    def done(self, hold: Hold) -> None:
        """It is settled for good: the next of its key may be handed out."""
        self.held -= 1
        if self.kind is Kind.LANE:
            waiting = self.keys[hold.key]
            waiting.popleft()
            if waiting:
                self.ready.append(waiting[0])
            else:
                del self.keys[hold.key]

    def forget(self) -> None:
        """All of it is somebody else's."""
        self.generation += 1
        self.buffer.clear()
        self.ready.clear()
        self.keys.clear()
        self.held = 0
        self.active = self.leaving = False


@dataclass(slots=True, eq=False, repr=False)
class Hold:
    """A message that the broker gave us and we did not give back."""

    source: Source
    generation: int
    tag: int
    envelope: Envelope
    unreadable: str | None
    copy: str
    """Mark of this copy; empty for the original."""
    starts: int
    """Of its handlers so far."""
    lost: int
    doubtful: bool
    """Delivered before and not settled: what the notes say about it is still to be read."""
    started: bool = False
    timer: Timer | None = None

    @property
    def key(self) -> object:
        """Those without a key do not wait for each other."""
        return self.envelope.key if self.envelope.key is not None else self

    @property
    def is_ours(self) -> bool:
        return self.generation == self.source.generation


def sources(spec: QueueSpec, limit: int) -> list[Source]:
    """The most urgent first."""
    if spec.keyed:
        # A lane is nobody else's: what is fetched ahead keeps nothing from others, and lets other keys go on.
        return [Source(lane, Kind.LANE, limit) for lane in topology.lanes(spec)]
    each = max(1, math.ceil(limit / max(spec.priorities, 1)))
    work = [Source(level, Kind.WORK, each) for level in reversed(topology.levels(spec))]
    return [Source(topology.suspects(spec.name), Kind.SUSPECTS, limit), *work]
