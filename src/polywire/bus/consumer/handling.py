"""How messages of one kind are handled: read by what, by which function, where, for how long, how often."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from polywire.bus.consumer.results import Answers, StoredAnswers
from polywire.bus.core.envelope import JSON, PROTOBUF, Envelope
from polywire.bus.core.results import Results
from polywire.codec import Format, codec_for
from polywire.codec.base import title_of
from polywire.contract.event import Batch, OnDead, Subscription, Where
from polywire.contract.message import Message
from polywire.contract.retry import FOR_MESSAGES, Backoff
from polywire.contract.task import DEFAULT_TIMEOUT, DEFAULT_UNKNOWN_AFTER, RunsIn, Task
from polywire.errors import InvalidArgument, SetupError, UndecodableMessage

_FORMATS: dict[str, Format] = {JSON: "json", PROTOBUF: "proto", "application/x-protobuf": "proto"}


class UnreadableBody(UndecodableMessage):
    """The body of a message is not what its type says."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Handling:
    """One handler and its messages. `task_handling` and `event_handling` make it from what is declared."""

    types: Mapping[str, type[Message] | None]
    """Class by type of message; None where there is nothing in it."""
    function: Callable[..., Any]
    """The bound method: `async def`, or a plain function, which runs in a thread."""
    name: str = ""
    """For people, `Warehouse.pack`."""
    versions: Mapping[str, int] = field(default_factory=dict)
    """The newest version of each type that is understood; 1 where it is not there."""
    backoff: Backoff = FOR_MESSAGES
    timeout: float = DEFAULT_TIMEOUT
    """Seconds for one run of the handler."""
    runs_in: RunsIn = "loop"
    at_most_once: bool = False
    once: bool = False
    batch: Batch | None = None
    on_dead: OnDead = "continue"
    where: Where | None = None
    concurrency: int | None = None
    """Runs at a time in this process; None leaves it to the runner."""
    unknown_after: float = DEFAULT_UNKNOWN_AFTER
    answers: Answers | None = None
    empty: bool = False
    """The function takes no argument."""
    in_thread: bool = field(default=False, init=False)
    """Whether it runs in a thread, which cannot be cancelled."""
    _decoders: dict[tuple[str, str], Callable[[bytes], Any]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        plain = not inspect.iscoroutinefunction(self.function)
        object.__setattr__(self, "in_thread", self.runs_in == "thread" or (self.runs_in == "loop" and plain))
        if self.runs_in == "thread" and not plain:
            raise SetupError(
                f"{self.title} cannot be run in a thread: it is declared `async def`, which belongs to the event loop. "
                "Declare it `def`, or leave out runs_in='thread'."
            )
        if self.batch is not None and self.runs_in == "process":
            raise SetupError(
                f"{self.title} cannot be run: a batch is not handed to another process. "
                "Leave out batch= or runs_in='process'."
            )
        if self.batch is not None and self.answers is not None:
            raise SetupError(f"{self.title} cannot be run: a batch has no results. Leave out batch=.")

    @property
    def title(self) -> str:
        return self.name or ", ".join(self.types)

    def understands(self, envelope: Envelope) -> bool:
        """Whether its version is none that this program is too old for."""
        return envelope.version <= 1 or envelope.version <= self.versions.get(envelope.type, 1)

    def wants(self, envelope: Envelope) -> bool:
        """Whether it fits the conditions that the group has."""
        return self.where is None or self.where.fits(envelope.type, envelope.headers)

    def decode(self, envelope: Envelope) -> Any:
        """The message in it, validated. Raises UnreadableBody."""
        decode = self._decoders.get((envelope.type, envelope.content_type))
        if decode is None:
            decode = self._decoder(envelope)
        try:
            return decode(envelope.body)
        except InvalidArgument as error:
            title = title_of(self._class_of(envelope))
            raise UnreadableBody(f"The body is no {title}: {error}") from None

    def _decoder(self, envelope: Envelope) -> Callable[[bytes], Any]:
        media = envelope.content_type.partition(";")[0].strip().lower()
        form = _FORMATS.get(media)
        if form is None:
            raise UnreadableBody(
                f"The body has the content type {envelope.content_type[:100]!r}, which is not read. "
                f"Send {JSON!r} or {PROTOBUF!r}."
            )
        decode = codec_for(self._class_of(envelope), form).decode
        if media == envelope.content_type and envelope.type in self.types:  # a peer must not choose how many there are
            self._decoders[envelope.type, media] = decode
        return decode

    def _class_of(self, envelope: Envelope) -> type[Message] | None:
        """By its type; a message without an envelope has none, and is what the handler takes."""
        if envelope.type in self.types:
            return self.types[envelope.type]
        return next(iter(self.types.values()))


def task_handling(task: Task, function: Callable[..., Any], stores: Mapping[str, Results] | None = None) -> Handling:
    """How *function*, the bound method that implements *task*, handles its messages. *stores* of results by name."""
    return Handling(
        types={task.full_name: task.request},
        function=function,
        name=task.full_name,
        backoff=_backoff(task),
        timeout=task.timeout,
        runs_in=task.runs_in,
        at_most_once=task.at_most_once,
        once=task.once,
        unknown_after=task.unknown_after,
        answers=StoredAnswers(task, stores or {}) if task.response is not None else None,
        empty=task.request is None,
    )


def event_handling(subscription: Subscription, function: Callable[..., Any]) -> Handling:
    """How *function*, the bound method that is subscribed, handles its events."""
    return Handling(
        types={event.type: event.event for event in subscription.events},
        function=function,
        name=subscription.name,
        versions={event.type: event.version for event in subscription.events},
        backoff=_backoff(subscription),
        timeout=subscription.timeout,
        runs_in=subscription.runs_in,
        at_most_once=subscription.at_most_once,
        once=subscription.once,
        batch=subscription.batch,
        on_dead=subscription.on_dead,
        where=subscription.where,
        concurrency=subscription.concurrency,
    )


def _backoff(declared: Task | Subscription) -> Backoff:
    backoff = declared.retry.over(FOR_MESSAGES)
    if not declared.at_most_once:
        return backoff
    return Backoff(attempts=1, base=0.0, cap=0.0, retry_on=backoff.retry_on, give_up_on=backoff.give_up_on)


def by_type(handlings: list[Handling]) -> dict[str, Handling]:
    """Each type with its handling. Raises SetupError where one has two."""
    found: dict[str, Handling] = {}
    for handling in handlings:
        for name in handling.types:
            other = found.setdefault(name, handling)
            if other is not handling:
                raise SetupError(
                    f"{name!r} cannot be consumed: it is handled by both {other.title} and {handling.title}. "
                    "Give one of them a queue or a group of its own."
                )
    return found
