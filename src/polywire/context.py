"""The call or message under way: its deadline, request id, trace, metadata and identity, wherever the code runs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal, Protocol, cast

from polywire.clock import SYSTEM_CLOCK, Clock

MetadataValue = str | bytes


class Metadata(Mapping[str, MetadataValue]):
    """Named values that travel beside a request or an answer; names are lower-case and may repeat.

    Values are ASCII text, or bytes where the name ends in `-bin` (gRPC's rule, kept on every wire). `metadata[name]` is
    the first value; `get_all` has them all, in order.
    """

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[str, MetadataValue] | Iterable[tuple[str, MetadataValue]] = ()) -> None:
        if isinstance(items, Mapping):
            items = cast("Mapping[str, MetadataValue]", items).items()
        self._items: tuple[tuple[str, MetadataValue], ...] = tuple(items)

    def __getitem__(self, name: str) -> MetadataValue:
        for key, value in self._items:
            if key == name:
                return value
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(name for name, _ in self._items))

    def __len__(self) -> int:
        return len({name for name, _ in self._items})

    def get_all(self, name: str) -> list[MetadataValue]:
        return [value for key, value in self._items if key == name]

    def pairs(self) -> tuple[tuple[str, MetadataValue], ...]:
        return self._items

    def __repr__(self) -> str:
        return f"Metadata({sorted(self)})"  # values may be secrets


NO_METADATA = Metadata()


class MessageUnderWay(Protocol):
    """What the handler of a task or an event may know about its message. `current().message` returns it."""

    @property
    def id(self) -> str:
        """Made by its sender, the same over retries and redrives."""
        ...

    @property
    def attempt(self) -> int:
        """1 for the first start of a handler."""
        ...

    @property
    def key(self) -> str | None: ...

    @property
    def position(self) -> str:
        """Where it stood in its queue or topic, for people."""
        ...

    @property
    def published_at(self) -> float:
        """When it was sent first, in seconds since the epoch."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """The sender's own."""
        ...

    def extend(self, seconds: float) -> None:
        """Move the time limit of the running handler by *seconds*."""


class Call:
    """What a handler may know about the call it is answering, and say beside its answer. `current()` returns it."""

    # One is made for every call. What hardly a call has nor asks for is a default of the class, which costs nothing to
    # set; to read, it costs more than what the instance has.
    attempt: int
    """1 for the first attempt of the caller, counted up by its retries."""
    credentials: str | None = None
    """The raw `authorization` of the request, for the authenticator; never logged."""
    peer_certificate: dict[str, Any] | None = None
    """The verified certificate that the other end of this hop showed, as `ssl.SSLSocket.getpeercert` has it."""
    caller: str | None
    """The service proven by token or certificate on this hop, or None."""
    principal: str | None
    """The user acted for, believed only from an authenticated caller."""
    traceparent: str | None
    tracestate: str | None = None
    baggage: str | None = None
    priority: int
    """The `Priority` that its caller lets it have at most; 0 where it is of the background, also by its method."""
    response_metadata: list[tuple[str, MetadataValue]] | None
    trailing_metadata: list[tuple[str, MetadataValue]] | None
    ended_by: str | None
    """Why the handler was cancelled: `deadline`, `caller`, `idle` or `shutdown`; None while it may go on."""
    message: MessageUnderWay | None = None
    """The task or event that is handled; None in calls."""
    _metadata_source: Any = None
    _task: asyncio.Task[Any] | None = None
    _arrived: float | None = None
    """When it took its place among the calls under way, on its clock; None while it has none."""
    _opening: bool = False
    """A stream that has not opened yet, and takes the place of a call."""

    def __init__(
        self,
        method: str = "",
        deadline: float | None = None,
        request_id: str = "",
        metadata: Metadata | None = NO_METADATA,
        peer: str = "",
        wire: str = "",
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.method = method
        """The full name, `shop.v1.Inventory/CheckStock`."""
        self.deadline = deadline
        """When the caller stops waiting, on `clock.monotonic()`; None if it never does."""
        self.request_id = request_id
        self._metadata = metadata
        self.peer = peer
        """The address on the other end of this hop."""
        self.wire = wire
        """`local`, `grpc`, `connect` or `rest`; `tasks` or `events` for a message."""
        self.clock = clock
        self.attempt = 1
        self.priority = 2
        self.caller = self.principal = self.traceparent = self.ended_by = None
        self.response_metadata = self.trailing_metadata = None

    @property
    def metadata(self) -> Metadata:
        """What the caller sent beside the request."""
        if self._metadata is None:
            self._metadata = self._metadata_source()
        return self._metadata

    def time_left(self) -> float | None:
        """Seconds until the deadline, never below 0; None without one."""
        if self.deadline is None:
            return None
        return max(0.0, self.deadline - self.clock.monotonic())

    def expire(self) -> None:
        """The deadline has come: cancel the handler."""
        self.end("deadline")

    def end(self, reason: str) -> None:
        """Cancel the handler, once, for *reason*."""
        if self.ended_by is None:
            self.ended_by = reason
            if self._task is not None:
                self._task.cancel()

    def respond_with(self, name: str, value: MetadataValue) -> None:
        """Add metadata before the answer (a response header). Too late once a stream's first message was sent."""
        self.response_metadata = [*(self.response_metadata or ()), (name.lower(), value)]

    def trail_with(self, name: str, value: MetadataValue) -> None:
        """Add metadata after the answer (a trailer; on REST a header, as there is no after)."""
        self.trailing_metadata = [*(self.trailing_metadata or ()), (name.lower(), value)]


_current: ContextVar[Call | None] = ContextVar("polywire_call", default=None)


def current() -> Call:
    """The call that the running handler answers.

    Raises LookupError outside of one. Tasks that a handler starts inherit it.
    """
    call = _current.get()
    if call is None:
        raise LookupError(
            "current() was asked for outside of a handler: there is no call under way here. "
            "Use it inside a service's method, or `calling(...)` to describe calls that you make."
        )
    return call


def current_or_none() -> Call | None:
    return _current.get()


class CallPolicy(Protocol):
    """What may be given to `calling`: `Retry`, `Breaker`, `Fallback` and their like."""

    def over(self, usual: Any, /) -> Any:
        """This policy, with what it does not say taken from *usual*."""
        ...


class Calling:
    """What `calling(...)` asks of the calls made inside it, and what came of the last of them."""

    __slots__ = (
        "attempt_timeout",
        "attempts",
        "endpoint",
        "fallback",
        "headers",
        "idempotency_key",
        "metadata",
        "policies",
        "priority",
        "timeout",
        "trailers",
        "wait_for_ready",
    )

    def __init__(
        self,
        *policies: CallPolicy,
        timeout: float | None = None,
        attempt_timeout: float | None = None,
        metadata: Mapping[str, MetadataValue] | None = None,
        wait_for_ready: bool | None = None,
        idempotency_key: str | None = None,
        priority: Literal["background", "normal"] | None = None,
    ) -> None:
        self.policies = policies
        self.timeout = timeout
        self.attempt_timeout = attempt_timeout
        self.metadata: tuple[tuple[str, MetadataValue], ...] = tuple((metadata or {}).items())
        self.wait_for_ready = wait_for_ready
        self.idempotency_key = idempotency_key
        self.priority = priority
        self.headers = NO_METADATA
        """Metadata that came before the answer of the last call."""
        self.trailers = NO_METADATA
        """Metadata that came after it."""
        self.attempts = 0
        self.endpoint = ""
        """The address that answered."""
        self.fallback = False
        """The last call failed, and its answer is that of a fallback."""


_calling: ContextVar[Calling | None] = ContextVar("polywire_calling", default=None)


@contextmanager
def calling(
    *policies: CallPolicy,
    timeout: float | None = None,
    attempt_timeout: float | None = None,
    metadata: Mapping[str, MetadataValue] | None = None,
    wait_for_ready: bool | None = None,
    idempotency_key: str | None = None,
    priority: Literal["background", "normal"] | None = None,
) -> Iterator[Calling]:
    """Let the calls made inside the block differ, without changing their signatures.

    *timeout* in seconds replaces the contract's; the deadline of a surrounding call still holds. *attempt_timeout*
    bounds one attempt inside it. *policies*, `calling(Fallback(value=NONE), Retry(attempts=1))`, hold by value over
    what the contract and the system say. *metadata* is sent with each. *wait_for_ready* waits for a connection until
    the deadline instead of failing at once. *idempotency_key* makes a call safe to retry that is not declared
    idempotent; the handler finds it in its metadata. *priority* lets calls that matter more go first where a service
    has too much to do; it holds for what the service calls as well.
    An inner block adds to an outer one.
    """
    for name, seconds in (("timeout", timeout), ("attempt_timeout", attempt_timeout)):
        if seconds is not None and not seconds > 0:
            raise ValueError(f"calling({name}={seconds!r}): a timeout is a positive number of seconds")
    for one in policies:
        if not callable(getattr(one, "over", None)):
            raise ValueError(f"calling({one!r}): this is no policy. Give Retry, Breaker, Fallback or another of them.")
    if priority not in (None, "background", "normal"):
        raise ValueError(f"calling(priority={priority!r}): a call can be taken back to 'normal' or 'background'")
    outer = _calling.get()
    call = Calling(
        *policies,
        timeout=timeout,
        attempt_timeout=attempt_timeout,
        metadata=metadata,
        wait_for_ready=wait_for_ready,
        idempotency_key=idempotency_key,
        priority=priority,
    )
    if outer is not None:
        call.policies = (*outer.policies, *call.policies)
        if call.attempt_timeout is None:
            call.attempt_timeout = outer.attempt_timeout
        call.timeout = call.timeout if call.timeout is not None else outer.timeout
        call.metadata = (*outer.metadata, *call.metadata)
        call.wait_for_ready = call.wait_for_ready if call.wait_for_ready is not None else outer.wait_for_ready
        call.idempotency_key = call.idempotency_key or outer.idempotency_key
        call.priority = call.priority or outer.priority
    token = _calling.set(call)
    try:
        yield call
    finally:
        _calling.reset(token)


def calling_or_none() -> Calling | None:
    return _calling.get()


class transaction_open:  # noqa: N801 - used as a function, in `with transaction_open(...)`
    """Let nothing be sent inside the block: a transaction of *store* is open that could still be rolled back.

    Tasks that are started inside inherit it, until it is over.
    """

    __slots__ = ("_outer", "_over", "store")

    def __init__(self, store: str) -> None:
        self.store = store
        self._outer: transaction_open | None = None
        self._over = False

    def __enter__(self) -> None:
        self._outer = _transaction.get()
        _transaction.set(self)

    def __exit__(self, *_: object) -> None:
        self._over = True
        _transaction.set(self._outer)

    def innermost(self) -> transaction_open | None:
        """It, or the next one around it that is not over."""
        found: transaction_open | None = self
        while found is not None and found._over:
            found = found._outer
        return found


_transaction: ContextVar[transaction_open | None] = ContextVar("polywire_transaction", default=None)


def transaction_or_none() -> str | None:
    """The name of the store whose transaction is open here."""
    found = _transaction.get()
    if found is not None:
        found = found.innermost()
    return None if found is None else found.store
