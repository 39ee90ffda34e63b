"""The seam of task queues: work handed to one of many, settled one by one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from polywire.bus.core.envelope import Envelope
from polywire.bus.core.guarantees import Guarantees


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSpec:
    """A queue as it is declared, the same by everybody who uses it."""

    name: str
    """Letters, digits, `.`, `-` and `_`."""
    keyed: bool = False
    """Messages carry keys, and those of one key are handled in order."""
    lanes: int = 8
    """Of a keyed queue, on backends that spread keys over a fixed number of queues."""
    priorities: int = 1
    """Levels, 0 being the lowest."""
    lease: float = 30.0
    """Seconds after which work of a dead consumer is given to another, where no connection tells."""
    lost_limit: int = 3
    """Starts that were never settled, after which a message is buried as `worker_lost`."""
    concurrency: int | None = None
    """Handlers at a time over all processes, where `Guarantees.shared_limits`."""
    rate: float | None = None
    """Starts per second over all processes, where `Guarantees.shared_limits`."""


@dataclass(slots=True, eq=False)
class Delivery:
    """A message that this consumer holds, until it settles it or loses it. Compared by identity."""

    queue: str
    envelope: Envelope
    attempt: int = 1
    """What the start of its handler will be: 1 for the first, released ones not counted where the backend promises."""
    lost: int = 0
    """Starts that were never settled."""
    token: Any = None
    """The backend's own: what proves that it is held."""
    position: str = ""
    """Where it stands, for people."""
    unreadable: str | None = None
    """Why the envelope could not be read; it then holds the bytes as body and is to be buried as `undecodable`."""

    @property
    def generation(self) -> int:
        """0: a queue is not replayed."""
        return 0

    @property
    def suspect(self) -> bool:
        """It was under way when a worker died: perhaps it killed it. Suspects run one at a time."""
        return self.lost > 0


@dataclass(frozen=True, slots=True)
class Ack:
    """Done: never again."""


@dataclass(frozen=True, slots=True)
class RetryAfter:
    """Failed: again after *delay* seconds."""

    delay: float
    error: str = ""


@dataclass(frozen=True, slots=True)
class Bury:
    """Given up: to the dead letters. *reason* is one of `attempts`, `rejected`, `undecodable`, `unknown_type`,
    `expired`, `worker_lost`, `parked`."""

    reason: str
    error: str = ""
    """Type and message of the last error, at most 2,000 characters."""


@dataclass(frozen=True, slots=True)
class Release:
    """Given back unharmed, by a shutdown or because nobody here knows its type: costs no attempt."""

    delay: float = 0.0


Outcome = Ack | RetryAfter | Bury | Release


@dataclass(frozen=True, slots=True)
class Settlement:
    delivery: Delivery
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueStats:
    queue: str
    ready: int
    """Could be handed out now."""
    delayed: int | None = None
    in_flight: int | None = None
    dead: int | None = None
    oldest: float | None = None
    """Seconds that the oldest ready message has waited; None where there is none or the backend cannot tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A message that was given up."""

    queue: str
    envelope: Envelope
    reason: str
    error: str
    attempts: int
    died: float
    """Seconds since the epoch."""
    position: str = ""
    """What `revive` and `drop` take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadFilter:
    """Which dead letters are meant; what is None does not matter."""

    id: str | None = None
    type: str | None = None
    reason: str | None = None
    error: str | None = None
    """A part of the error's text."""
    since: float | None = None
    until: float | None = None

    def fits(self, letter: DeadLetter) -> bool:
        return (
            (self.id is None or letter.envelope.id == self.id)
            and (self.type is None or letter.envelope.type == self.type)
            and (self.reason is None or letter.reason == self.reason)
            and (self.error is None or self.error in letter.error)
            and (self.since is None or letter.died >= self.since)
            and (self.until is None or letter.died < self.until)
        )


EVERY_DEAD = DeadFilter()


class QueueConsumer(Protocol):
    """Receives from one queue and settles what it received. `polywire.testing.queues.QueueSuite` checks all of this.

    * `receive` hands out what nobody else holds. Cancelling it loses nothing: what it was about to return is returned
      by the next one, or by another consumer.
    * A delivery is not started before `settle(..., starting=[it])` returned it. What was received but never started
      costs no attempt, whatever happens to the process; what was started and never settled comes back to somebody with
      `lost` and `attempt` one higher, or is buried by the backend at `QueueSpec.lost_limit` as `worker_lost`.
    * Settling what is no longer held (the lease ran out, the connection broke) changes nothing and raises nothing: the
      message is somebody else's now.
    * `settle` may be called while another `settle`, or `receive`, is under way.
    * What this consumer holds stays its own while the process lives, however long a handler blocks the event loop.
    * On a keyed queue, of each key at most one message is held by anybody at a time, and it is the oldest one.
      `RetryAfter` keeps the key waiting; so does `Release`.
    """

    async def receive(self, limit: int) -> list[Delivery]:
        """At least one and at most *limit* messages, as soon as there are any. Raises ConsumerClosed after `close`,
        BackendLost where the connection is gone and this consumer with it; what it held is then somebody else's."""
        ...

    async def settle(
        self, settlements: Sequence[Settlement], starting: Sequence[Delivery] = ()
    ) -> Collection[Delivery]:
        """Settle, and note that handlers of *starting* are about to run: in one transaction where there is one.

        Returns what of *starting* is still held; the rest must not be handled. Once it returned, `Ack` and `Bury` are
        durable as far as the backend promises. Raises BackendLost where nothing can be said.
        """
        ...

    async def close(self) -> None:
        """Release what is held and not settled, as `Release()`. May be called twice, and during `receive`, which then
        raises ConsumerClosed."""


Withdrawn = Callable[[Delivery], None]
"""Told which delivery is not held any more, as its message was taken back."""


class ToldOfWithdrawals(Protocol):
    """A consumer that hears at once of what is taken away from it. Where `Guarantees.withdraw`."""

    def when_withdrawn(self, told: Withdrawn) -> None:
        """From now on, *told* is called for each delivery whose message was taken back."""


class Withdrawing(Protocol):
    """A task queue from which messages under way can be taken back. Where `Guarantees.withdraw`.

    What its consumer still says of such a message changes nothing, as of any that it does not hold; the next message of
    its key may be handed out at once.
    """

    async def withdraw(self, queue: str, id: str) -> bool:
        """Take a message back, whether it waits or is held. False where it is done, dead, or was never there."""
        ...


class TaskQueue(Protocol):
    """A backend for tasks. Opened by `start`, used from one event loop, closed once all consumers are.

    * `send` returns, for each envelope in order, None once it is durable, or the DeliveryError that says why it is not:
      MessageRefused (certainly not sent) or PublishUnknown (perhaps). It raises only for what concerns the whole call.
    * After the connection is lost it reconnects by itself with backoff; `send` meanwhile waits for at most *timeout*.
    """

    guarantees: Guarantees

    async def start(self) -> None:
        """Connect. Raises BackendUnreachable."""

    async def close(self) -> None:
        """May be called twice."""

    async def declare(self, queues: Sequence[QueueSpec]) -> None:
        """Create what is missing. Raises SetupError naming each difference to what exists."""

    async def check(self, queues: Sequence[QueueSpec]) -> list[str]:
        """What `declare` would do or refuse, a line each; empty where all is as declared."""
        ...

    async def send(
        self, queue: str, envelopes: Sequence[Envelope], *, timeout: float | None = None
    ) -> list[Exception | None]: ...

    async def consumer(self, queue: str, *, limit: int) -> QueueConsumer:
        """Holds at most *limit* messages at a time."""
        ...

    @property
    def connected(self) -> bool: ...

    async def stats(self, queue: str) -> QueueStats: ...

    async def cancel(self, queue: str, id: str) -> bool:
        """Take a waiting message back. False where it is not waiting (any more)."""
        ...

    async def move(self, queue: str, id: str, not_before: float) -> bool:
        """Let a waiting message wait until *not_before* instead. False where it is not waiting (any more)."""
        ...

    async def peek(self, queue: str, limit: int) -> list[Envelope]:
        """The next to be handed out, without disturbing them. Raises Unsupported where that cannot be done."""
        ...

    async def dead(self, queue: str, which: DeadFilter = EVERY_DEAD, *, limit: int = 100) -> list[DeadLetter]:
        """Oldest first."""
        ...

    async def revive(self, queue: str, letters: Sequence[DeadLetter]) -> int:
        """Send dead letters to their queue again, durably before they leave the dead letters: same id, attempts counted
        afresh, `redrive_count` one higher. How many there still were."""
        ...

    async def drop(self, queue: str, letters: Sequence[DeadLetter]) -> int:
        """Delete dead letters. How many there still were."""
        ...
