"""Where the messages of one type go, and what may be asked for on the way."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from polywire.bus.core import Envelope, EventLog, Fanout, Guarantees, TaskQueue
from polywire.bus.core.results import CONTENT_TYPES
from polywire.bus.sending.specs import queue_spec, unkept
from polywire.codec import Format, codec_for
from polywire.contract import EventType, Message, Task
from polywire.contract.keys import key_reader
from polywire.errors import SetupError

Answers = list[Exception | None]


class Send(Protocol):
    """As `TaskQueue.send`, with the queue or topic settled."""

    def __call__(self, envelopes: Sequence[Envelope], timeout: float, /) -> Awaitable[Answers]: ...


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Target:
    """One type of message on its way to one queue or topic. Made at first use, and kept."""

    message: type[Message] | None
    type: str
    """On the wire."""
    version: int
    place: str
    """For people: `queue 'shop.v1.Mail'`, `topic 'shop.orders'`."""
    guarantees: Guarantees
    content_type: str
    encode: Callable[[Any], bytes]
    read_key: Callable[[Any], str | None] | None
    takes_key: bool
    """A key at the call orders its message."""
    priority: int
    priorities: int
    send: Send
    topic: str | None = None
    log: EventLog | None = None
    """Where a topic's groups can be asked for."""


def task_target(task: Task, queue: TaskQueue, format: Format) -> Target:
    """Raises SetupError where the backend does not keep what *task* declares."""
    guarantees = queue.guarantees
    missing = unkept(queue_spec(task), guarantees)
    if missing:
        raise SetupError(
            f"{task.full_name} cannot be sent to queue {task.queue!r}: {'; '.join(missing)}. "
            "Change what @task(...) asks for, or the wire of its tasks."
        )

    def send(envelopes: Sequence[Envelope], timeout: float, /) -> Awaitable[Answers]:
        return queue.send(task.queue, envelopes, timeout=timeout)

    return Target(
        type=task.full_name,
        message=task.request,
        version=1,
        place=f"queue {task.queue!r}",
        guarantees=guarantees,
        content_type=CONTENT_TYPES[format],
        encode=codec_for(task.request, format).encode,
        read_key=None if task.key is None else key_reader(task.key),
        takes_key=task.key is not None,
        priority=task.priority,
        priorities=task.priorities,
        send=send,
    )


def event_target(event: EventType, wire: EventLog | Fanout, format: Format) -> Target:
    """Raises SetupError where the backend does not keep what *event* declares."""
    guarantees = wire.guarantees
    if event.key is not None and not guarantees.key_order:
        raise SetupError(
            f"{event.type} cannot be published to topic {event.topic!r}: {guarantees.backend!r} keeps no order by key. "
            "Leave out key=, or change the wire of its events."
        )
    either: Any = wire  # which of the two it is shows in its methods
    log: EventLog | None = None if hasattr(wire, "publish") else either
    hand_over = either.publish if log is None else log.append

    def send(envelopes: Sequence[Envelope], timeout: float, /) -> Awaitable[Answers]:
        answers: Awaitable[Answers] = hand_over(event.topic, envelopes, timeout=timeout)
        return answers

    return Target(
        type=event.type,
        message=event.event,
        version=event.version,
        place=f"topic {event.topic!r}",
        guarantees=guarantees,
        content_type=CONTENT_TYPES[format],
        encode=codec_for(event.event, format).encode,
        read_key=None if event.key is None else key_reader(event.key),
        # The queues of a fan-out's groups are keyed by what is declared; a log orders every key.
        takes_key=guarantees.key_order and (event.key is not None or log is not None),
        priority=0,
        priorities=1,
        send=send,
        topic=event.topic,
        log=log,
    )
