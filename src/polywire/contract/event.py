"""Events: facts that are told to whoever cares, and the methods that do."""

from __future__ import annotations

import collections.abc
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, Union, Unpack, dataclass_transform, overload

import msgspec

from polywire.contract.keys import check_key
from polywire.contract.message import PACKAGE, Message, MessageMeta
from polywire.contract.retry import Retry
from polywire.contract.task import DEFAULT_TIMEOUT, RunsIn, check_name, check_once
from polywire.errors import ContractError

E = TypeVar("E", bound="Event")
Self = TypeVar("Self")
R = TypeVar("R")
Function = TypeVar("Function", bound=Callable[..., Any])
OnDead = Literal["continue", "park_key"]
Start = Literal["earliest", "latest"]

_PATTERN = re.compile(r"([A-Za-z0-9_]+|\*|#)(\.([A-Za-z0-9_]+|\*|#))*\Z")
MAX_BATCH = 10_000
MAX_BATCH_WAIT = 60.0


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class EventType:
    """One event as publishers and groups see it. `event_of(SomeEvent)` returns it. Compared by identity."""

    event: type[Event]
    type: str
    """On the wire, `shop.v1.OrderPaid`: package and name, never the Python path."""
    topic: str
    key: str | None
    """The field whose value orders the events: those of one key are handled one after the other."""
    version: int
    """Raised where old readers would misunderstand it."""
    doc: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Declared:
    """What an event's class statement says, or inherits."""

    topic: str | None
    key: str | None
    version: int


@dataclass_transform(kw_only_default=True, field_specifiers=(msgspec.field,))
class EventMeta(MessageMeta):
    """Keeps what an event's class statement says beside its fields."""

    _KEYWORDS = frozenset({"topic", "key", "version"})

    def _declared(cls, own: dict[str, Any]) -> None:  # noqa: N805 - a method of classes
        declaration = cls.__polywire__
        above = _inherited(cls.__mro__[1:])
        topic = own.get("topic", above.topic)
        key = own.get("key", above.key)
        version = own.get("version", 1)
        if topic is not None:
            check_name(cls.__qualname__, "topic", topic)
        if not isinstance(version, int) or isinstance(version, bool) or not 1 <= version < 2**31:
            raise ContractError(f"{cls.__qualname__}: version={version!r} is no version. They count from 1.")
        if key is not None:
            check_key(cls.__qualname__, typing.cast("type[Message]", cls), key)
        if declaration.package is None and topic is not None:
            # Not left to the contracts that happen to be loaded: every process has to find the same type.
            declaration.package = _package_from(cls.__qualname__, topic)
        declaration.event = _Declared(topic=topic, key=key, version=version)


def _inherited(bases: Iterable[type]) -> _Declared:
    for base in bases:
        declaration = base.__dict__.get("__polywire__")
        if declaration is not None and declaration.event is not None:
            found: _Declared = declaration.event
            return found
    return _Declared(topic=None, key=None, version=1)


def _package_from(where: str, topic: str) -> str:
    if not PACKAGE.match(topic):
        raise ContractError(
            f"{where} has no package, and its topic {topic!r} cannot stand for one in its name on the wire. "
            "Give it one, package='shop.v1'."
        )
    return topic


# Said once more for mypy, as for Message.
@dataclass_transform(kw_only_default=True, field_specifiers=(msgspec.field,))
class Event(Message, metaclass=EventMeta):
    """A fact that is told to whoever cares: a message with a topic.

    Class keywords beside those of Message: *topic*, where it is published; *key*, the field whose value orders it;
    *version*, raised where old readers would misunderstand it. On the wire it is called by *package* and *name*; the
    topic is its package where none is given, and a class is its name. Subclasses inherit topic, key and package, so
    that a base without a topic can hold what several events share.
    """

    if TYPE_CHECKING:

        def __init_subclass__(
            cls,
            *,
            topic: str | None = None,
            key: str | None = None,
            version: int = 1,
            package: str | None = None,
            name: str | None = None,
            reserved: tuple[int | str | range, ...] = (),
            transparent: bool = False,
            tag: bool | str | int | None = None,
            tag_field: str | None = None,
            frozen: bool = False,
            order: bool = False,
            **options: Any,
        ) -> None: ...


def event_of(cls: type[Event]) -> EventType:
    """What *cls* declares. Raises ContractError where it cannot be published, having no topic."""
    declaration = cls.__polywire__
    found: EventType | None = declaration.cache.get("event")
    if found is None:
        declared: _Declared = declaration.event
        if declared.topic is None:
            raise ContractError(
                f"{cls.__qualname__} has no topic, so it cannot be published or subscribed to. "
                f"Give it one, class {cls.__name__}(Event, topic='...')."
            )
        if declared.key is not None:
            check_key(cls.__qualname__, cls, declared.key)
        found = declaration.cache["event"] = EventType(
            event=cls,
            type=f"{declaration.package}.{declaration.name}" if declaration.package else declaration.name,
            topic=declared.topic,
            key=declared.key,
            version=declared.version,
            doc=inspect.cleandoc(cls.__doc__ or "") if "__doc__" in vars(cls) else "",
        )
    return found


# ---- subscribing -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Batch:
    """Hand over several events at a time: at most *size*, collected for at most *wait* seconds."""

    size: int
    wait: float = field(default=0.2, kw_only=True)

    def __post_init__(self) -> None:
        if not 1 <= self.size <= MAX_BATCH:
            raise ContractError(f"Batch({self.size!r}): a batch has 1 to {MAX_BATCH} events.")
        if not 0 <= self.wait <= MAX_BATCH_WAIT:
            raise ContractError(f"Batch(wait={self.wait!r}): it is collected for 0 to {MAX_BATCH_WAIT:g} s.")


@dataclass(frozen=True, slots=True)
class Where:
    """Which events of its topic a group wants to have: all conditions hold."""

    pattern: str | None = None
    """On the event's type, with the words of AMQP topics: `*` is one word, `#` is any number of them."""
    headers: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    """All of them have to be there, with this value; names are lower-case."""

    def __post_init__(self) -> None:
        if self.pattern is not None and not _PATTERN.match(self.pattern):
            raise ContractError(
                f"Where({self.pattern!r}) is no pattern. Write words with dots between them; '*' stands for one word "
                "and '#' for any number, as in 'shop.v1.*'."
            )
        if any(not isinstance(text, str) for pair in self.headers.items() for text in pair):
            raise ContractError(f"Where(headers={dict(self.headers)!r}): names and values of headers are text.")
        object.__setattr__(self, "headers", {name.lower(): value for name, value in self.headers.items()})

    def __hash__(self) -> int:
        return hash((self.pattern, tuple(sorted(self.headers.items()))))

    def fits(self, type: str, headers: Mapping[str, str] | None) -> bool:
        """Whether an event of *type* with *headers* is wanted, for backends that hand out everything."""
        if self.pattern is not None and not _fits(self.pattern.split("."), type.split(".")):
            return False
        return all((headers or {}).get(name) == value for name, value in self.headers.items())


def _fits(pattern: list[str], words: list[str]) -> bool:
    """AMQP's topic match, in time of the product of both lengths."""
    reached = {0}
    for part in pattern:
        if part == "#":
            reached = set(range(min(reached), len(words) + 1)) if reached else reached
        else:
            reached = {i + 1 for i in reached if i < len(words) and part in ("*", words[i])}
    return len(words) in reached


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Subscription:
    """One subscribed method of a service class. Compared and hashed by identity."""

    service: type
    attribute: str
    """The name of the Python method, `pack`."""
    events: tuple[EventType, ...]
    """All of one topic."""
    group: str
    """Every event goes to one member of each group."""
    retry: Retry
    timeout: float
    """Seconds for one run of the handler."""
    where: Where | None = None
    batch: Batch | None = None
    """The handler takes a `Sequence` of events."""
    on_dead: OnDead = "continue"
    """After a dead event with a key: go on with its key, or hold all later ones of that key back."""
    at_most_once: bool = False
    once: bool = False
    runs_in: RunsIn = "loop"
    """Where the handler runs. A plain `def` runs in a thread where this says `loop`."""
    concurrency: int | None = None
    """Handlers at a time in one process; None takes what the consumer has."""
    start: Start = "earliest"
    """Where a group begins that is new on a log."""

    @property
    def topic(self) -> str:
        return self.events[0].topic

    @property
    def name(self) -> str:
        """`Warehouse.pack`"""
        return f"{self.service.__name__}.{self.attribute}"


class _Options(TypedDict, total=False):
    retry: Retry | None
    timeout: float
    where: Where | None
    on_dead: OnDead
    at_most_once: bool
    once: bool
    runs_in: RunsIn
    concurrency: int | None
    start: Start


@dataclass(frozen=True, slots=True, kw_only=True)
class _Marked:
    """What `@subscribe(...)` says."""

    events: tuple[type[Event], ...]
    group: str
    retry: Retry
    timeout: float
    where: Where | None
    batch: Batch | None
    on_dead: OnDead
    at_most_once: bool
    once: bool
    runs_in: RunsIn
    concurrency: int | None
    start: Start


@overload
def subscribe(
    event: type[E], /, *, group: str, **options: Unpack[_Options]
) -> Callable[[Callable[[Self, E], R]], Callable[[Self, E], R]]: ...
@overload
def subscribe(
    event: type[E], /, *, group: str, batch: Batch, **options: Unpack[_Options]
) -> Callable[[Callable[[Self, Sequence[E]], R]], Callable[[Self, Sequence[E]], R]]: ...
@overload
def subscribe(
    event: type[Event],
    second: type[Event],
    /,
    *more: type[Event],
    group: str,
    batch: Batch | None = None,
    **options: Unpack[_Options],
) -> Callable[[Function], Function]: ...
def subscribe(
    *events: type[Event],
    group: str,
    retry: Retry | None = None,
    timeout: float = DEFAULT_TIMEOUT,
    where: Where | None = None,
    batch: Batch | None = None,
    on_dead: OnDead = "continue",
    at_most_once: bool = False,
    once: bool = False,
    runs_in: RunsIn = "loop",
    concurrency: int | None = None,
    start: Start = "earliest",
) -> Any:
    """Let a method of a service handle these events, all of one topic, for *group*.

    The method takes the event (a union of them where there are several), or a `Sequence` of it with *batch*. The fields
    of `Subscription` say what the options mean.
    """
    marked = _Marked(
        events=events,
        group=group,
        retry=Retry() if retry is None else retry,
        timeout=timeout,
        where=where,
        batch=batch,
        on_dead=on_dead,
        at_most_once=at_most_once,
        once=once,
        runs_in=runs_in,
        concurrency=concurrency,
        start=start,
    )
    _check(marked)

    def mark(function: Function) -> Function:
        function.__subscribed__ = (*getattr(function, "__subscribed__", ()), marked)  # type: ignore[attr-defined]  # functions take attributes
        return function

    return mark


def _check(marked: _Marked) -> None:
    for event in marked.events:
        if not (isinstance(event, type) and issubclass(event, Event)):
            raise ContractError(f"@subscribe({event!r}): that is no event. Derive it: class ...(Event, topic='...').")
    if not marked.events:
        raise ContractError("@subscribe() names no event. Give the class, @subscribe(OrderPlaced, group='warehouse').")
    check_name("@subscribe", "group", marked.group)
    if len({event_of(event).topic for event in marked.events}) > 1:
        topics = ", ".join(f"{event.__qualname__} is in {event_of(event).topic!r}" for event in marked.events)
        raise ContractError(f"@subscribe: its events have different topics ({topics}). Use a method for each topic.")
    if not 0 < marked.timeout < float("inf"):
        raise ContractError(f"@subscribe(timeout={marked.timeout!r}): a timeout is a positive number of seconds.")
    if marked.concurrency is not None and marked.concurrency < 1:
        raise ContractError(f"@subscribe(concurrency={marked.concurrency!r}): at least 1 handler has to run.")
    check_once("@subscribe", marked.at_most_once, marked.once, marked.retry)
    _check_choices(marked)


def _check_choices(marked: _Marked) -> None:
    for label, value, choices in (
        ("on_dead", marked.on_dead, ("continue", "park_key")),
        ("runs_in", marked.runs_in, ("loop", "thread", "process")),
        ("start", marked.start, ("earliest", "latest")),
    ):
        if value not in choices:
            raise ContractError(f"@subscribe({label}={value!r}): choose one of {', '.join(map(repr, choices))}.")
    if marked.on_dead == "park_key" and any(event_of(event).key is None for event in marked.events):
        keyless = next(event for event in marked.events if event_of(event).key is None)
        raise ContractError(
            f"@subscribe(on_dead='park_key'): {keyless.__qualname__} has no key that could be parked. "
            "Give it one, key='...'."
        )


def subscriptions_of(cls: type) -> tuple[Subscription, ...]:
    """What the methods of *cls* subscribe to, in the order of declaration, those of its bases first.

    Raises ContractError where a method's argument is not what it subscribes to, or where two methods of one group would
    get the same event.
    """
    found: dict[str, tuple[_Marked, ...]] = {}
    for base in reversed(cls.__mro__):
        for attribute, value in vars(base).items():
            marks = getattr(value, "__subscribed__", None)
            if marks is not None:
                found[attribute] = marks
    read = tuple(
        _read(cls, attribute, getattr(cls, attribute), marked) for attribute, marks in found.items() for marked in marks
    )
    _refuse_two_for_one(read)
    return read


def _refuse_two_for_one(subscriptions: Sequence[Subscription]) -> None:
    taken: dict[tuple[str, str], Subscription] = {}
    for one in subscriptions:
        for event in one.events:
            other = taken.setdefault((one.group, event.type), one)
            if other is not one:
                raise ContractError(
                    f"{other.name} and {one.name} both handle {event.type} for the group {one.group!r}, but an event "
                    "goes to one handler of a group. Give one of them a group of its own."
                )


def _read(cls: type, attribute: str, function: Any, marked: _Marked) -> Subscription:
    where = f"{cls.__qualname__}.{attribute}"
    _check_signature(where, function, marked)
    return Subscription(
        service=cls,
        attribute=attribute,
        events=tuple(event_of(event) for event in marked.events),
        group=marked.group,
        retry=marked.retry,
        timeout=marked.timeout,
        where=marked.where,
        batch=marked.batch,
        on_dead=marked.on_dead,
        at_most_once=marked.at_most_once,
        once=marked.once,
        runs_in=marked.runs_in,
        concurrency=marked.concurrency,
        start=marked.start,
    )


def _check_signature(where: str, function: Any, marked: _Marked) -> None:
    parameters = list(inspect.signature(function).parameters.values())[1:]
    if len(parameters) != 1:
        raise ContractError(f"{where} takes {len(parameters)} arguments; a subscribed method takes the event alone.")
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        raise ContractError(f"{where} is a generator; a subscribed method returns nothing.")
    try:
        hint = typing.get_type_hints(function).get(parameters[0].name)
    except NameError as error:
        raise ContractError(
            f"{where} names a type that its module does not have: {error}. "
            "Import it outside of `if TYPE_CHECKING`, at the top of the module."
        ) from error
    _check_argument(where, parameters[0].name, hint, marked)


def _check_argument(where: str, name: str, hint: Any, marked: _Marked) -> None:
    named = " | ".join(event.__qualname__ for event in marked.events)
    wanted = f"Sequence[{named}]" if marked.batch is not None else named
    if marked.batch is not None:
        is_sequence = typing.get_origin(hint) in (collections.abc.Sequence, Sequence, list)
        hint = typing.get_args(hint)[0] if is_sequence else None
    parts = typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)
    classes = tuple(part for part in parts if isinstance(part, type))
    if len(classes) != len(parts) or not all(issubclass(event, classes) for event in marked.events):
        raise ContractError(f"{where}: its argument {name!r} has to be annotated {wanted}, which it subscribes to.")
