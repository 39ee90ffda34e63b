"""The seam of fan-out: a topic bound to one queue per group, consumed as any queue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from polywire.bus.core.envelope import Envelope
from polywire.bus.core.guarantees import Guarantees
from polywire.bus.core.queue import TaskQueue


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """A group of a topic and what it wants to have. Without conditions it gets everything."""

    topic: str
    group: str
    types: tuple[str, ...] = ()
    """Of events; all where empty."""
    pattern: str | None = None
    """On the event's type with the words of AMQP topics: `shop.v1.*`, `shop.#`."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """All of them have to be there, with this value."""
    keyed: bool = False

    @property
    def queue(self) -> str:
        """What its queue is called, on every backend."""
        return f"{self.topic}.{self.group}"


class Fanout(Protocol):
    """Publishes to queues, those of `queues`. `polywire.testing.fanouts.FanoutSuite` checks all of this.

    * Once `publish` said that an envelope is durable, it is in the queue of every group that wants it.
    * A group gets what was published after its binding was declared.
    """

    guarantees: Guarantees
    queues: TaskQueue
    """Where the queues of the groups are consumed. Started and closed by this object."""

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def declare(self, topics: Sequence[str], bindings: Sequence[Binding]) -> None:
        """Create what is missing, queues included. Raises SetupError naming each difference to what exists."""

    async def check(self, topics: Sequence[str], bindings: Sequence[Binding]) -> list[str]: ...

    async def publish(
        self, topic: str, envelopes: Sequence[Envelope], *, timeout: float | None = None
    ) -> list[Exception | None]:
        """As `TaskQueue.send`. An event that no group wants is NobodyListens where the caller set
        `require_subscriber`, which it finds out by that error; it is not kept either way."""
        ...
