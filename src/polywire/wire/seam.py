"""What a wire is: at a client a way to reach one endpoint, at a server whatever calls a `Dispatcher`.

A wire turns messages into its own frames and back, and its own failures into `CallError`s. It does not retry, pick
endpoints, count or log: the client above it and the dispatcher above it do that, the same for every wire.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Protocol

from polywire.context import Call, Metadata, MetadataValue
from polywire.contract import Kind, Message, Rpc, Service
from polywire.contract.priority import Priority
from polywire.errors import (
    CallError,
    DeadlineExceeded,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
)
from polywire.net.stream import Field, HeadersTooLarge, StreamClosed
from polywire.policy.shedding import Limiter

# The names that polywire itself puts beside a call, the same on every wire unless the wire's own protocol has one.
REQUEST_ID = "x-request-id"
TIMEOUT = "polywire-timeout"
"""Seconds left, as a decimal number; on REST. gRPC has `grpc-timeout`, Connect `connect-timeout-ms`."""
PREVIOUS_ATTEMPTS = "grpc-previous-rpc-attempts"
PUSHBACK = "grpc-retry-pushback-ms"
"""With an error, on every wire: milliseconds to wait before a retry, negative: do not (gRFC A6)."""
REACHED = "polywire-reached"
"""With `unavailable`, on every wire: `no` where the service turned the call away before any handler saw it."""
PRINCIPAL = "polywire-principal"
IDEMPOTENCY_KEY = "idempotency-key"
PRIORITY = "polywire-priority"
"""Of a call that its caller takes back behind others: `background` or `normal`."""
NO_PRIORITY = int(Priority.CRITICAL)
"""Of a call whose caller does not take it back."""
PRIORITIES = {"background": int(Priority.BACKGROUND), "normal": int(Priority.NORMAL)}
"""What a caller may take its call back to."""

MAX_REQUEST_ID = 128

# What belongs to a protocol or to polywire and is therefore not metadata of the caller.
_OWNED = frozenset(
    {
        "accept-encoding", "connection", "content-encoding", "content-length", "content-type", "expect", "host",
        "keep-alive", "te", "trailer", "transfer-encoding", "upgrade", "user-agent", "date", "server",
        "traceparent", "tracestate", "baggage", REQUEST_ID, TIMEOUT, PUSHBACK, REACHED, PRINCIPAL,
    }
)  # fmt: skip
_OWNED_PREFIXES = ("grpc-", "connect-", ":")


class Outgoing:
    """One attempt of one call, as a client hands it to a wire; the wire fills in what came beside the answer."""

    # One is made for every call. What hardly a call has nor asks for is a default of the class, which costs nothing to
    # set; to read, it costs more than what the instance has.
    authorization: str | None
    """The whole value of the `authorization` header, or None."""
    principal: str | None
    traceparent: str | None
    tracestate: str | None = None
    baggage: str | None
    headers: Metadata | None = None
    """Set by the wire: metadata before the answer."""
    trailers: Metadata | None = None
    """Set by the wire: metadata after it."""
    attempt_timeout: float | None = None
    """Seconds that one attempt may take of the time of the call."""
    wire: EndpointWire | None = None
    """Set by the channel: the endpoint that the attempt goes to."""
    copied_to: Sequence[EndpointWire] = ()
    """Set by the channel: those that copies of the attempt went to."""

    def __init__(
        self,
        rpc: Rpc,
        deadline: float | None = None,
        timeout: float | None = None,
        request_id: str = "",
        metadata: Sequence[tuple[str, MetadataValue]] = (),
    ) -> None:
        self.rpc = rpc
        self.deadline = deadline
        """When this attempt has to be over, on the client's `clock.monotonic()`, or None."""
        self.call_deadline = deadline
        """When the whole call has to be, all attempts together."""
        self.timeout = timeout
        """Seconds left when the attempt starts; what is put on the wire."""
        self.request_id = request_id
        self.metadata = metadata
        self.attempt = 1
        self.authorization = self.principal = self.traceparent = self.baggage = None


class ClientStream(Protocol):
    """A streaming call at its client. One task sends, one receives.

    After an error every method raises that error. Dropping the object resets the stream.
    """

    async def send(self, message: Message | None) -> None:
        """Send one request message; waits while the peer holds us back. Raises the CallError that the call failed
        with; a message that breaks its contract makes it fail. Where the server ended the call early with success it
        does nothing."""

    def end_requests(self) -> None:
        """No more request messages. May be called twice."""

    async def receive(self) -> Message | None:
        """The next response message. Raises StopAsyncIteration after the last one, a CallError if the call failed.
        For methods that answer None the message is None."""
        ...

    def cancel(self) -> None:
        """Give the call up, both directions: the handler is cancelled. May be called at any time, twice."""


class EndpointWire(Protocol):
    """One endpoint (an address of a target) reached over one wire. `polywire.testing.WireSuite` checks all of this.

    * Errors are CallErrors. `Unavailable.reached` is "no" only where no handler can have seen the request.
    * The deadline of the Outgoing is kept by the wire: at that moment the call fails with DeadlineExceeded and the
      other side is told. Nothing ever hangs past it, connecting included.
    * Cancelling `unary`, or cancelling or dropping a stream, gives the connection back and cancels the handler. No
      reply meant for one call is ever handed to another.
    * `close` may be called twice, and while calls are under way: they fail with Unavailable.
    """

    name: str
    """`local`, `grpc`, `connect` or `rest`."""
    address: str

    @property
    def in_flight(self) -> int:
        """Calls under way; what balancing looks at."""
        ...

    @property
    def usable(self) -> bool:
        """False while connecting failed and is backing off: other endpoints are better."""
        ...

    def encode(self, rpc: Rpc, request: Message | None) -> Any:
        """The request as this wire sends it, once for all attempts. Raises InvalidArgument where it violates its
        contract."""
        ...

    async def unary(self, outgoing: Outgoing, encoded: Any, *, wait_for_ready: bool = False) -> Message | None:
        """One request, one answer; *encoded* comes from `encode`."""
        ...

    async def stream(self, outgoing: Outgoing, *, wait_for_ready: bool = False) -> ClientStream:
        """Open a streaming call of any kind; back once a connection took it."""
        ...

    async def drain(self) -> None:
        """Take no more calls and close once those under way have ended."""

    async def close(self) -> None: ...


class Handler:
    """One rpc of one service object, ready to be called."""

    __slots__ = ("admit", "function", "internal", "limiter", "memo", "priority", "rpc", "service", "unary")

    def __init__(self, rpc: Rpc, function: Callable[..., Any], service: Service, *, internal: bool = False) -> None:
        self.rpc = rpc
        self.function = function
        """The bound method of the service object."""
        self.internal = internal
        """True for health and reflection: exempt from authentication and from the idle limit, not logged."""
        self.service = service
        self.admit: Callable[[Call], None] | None = None
        """Tells who calls and whether they may, or raises; None where nobody is asked."""
        self.limiter: Limiter | None = None
        """Who admits calls, by how many are under way; None where all are: health and reflection always."""
        self.priority = int(rpc.priority)
        self.unary = rpc.kind is Kind.UNARY
        self.memo: Any = None
        """For the server wire's own use."""


class Dispatcher(Protocol):
    """What server wires call into; `polywire.server` implements it, once for all wires.

    A wire parses its own headers into a `Call` and asks `take_place` whether there is room for it. If so it runs
    exactly one of the three coroutines below as the call's task (made by `start_task`), and writes what comes out.
    They check deadline, identity and draining before any work, decode, run the handler with `current()` set, end it at
    its deadline, translate what it raises (only CallErrors and CancelledError come out), count and log. They are to be
    cancelled through `cancel`.
    """

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """By path, both spellings: `/shop.v1.Inventory/CheckStock` and `/shop.v1.Inventory/check_stock`."""
        ...

    @property
    def services(self) -> Mapping[str, Service]:
        """By full name."""
        ...

    public: bool
    """Strangers call: they are not told which methods there are."""
    max_message_bytes: int
    """Of one request message after decompression; wires answer `resource_exhausted` beyond."""
    stream_idle_timeout: float
    """Seconds without a message in either direction, after which a stream without a deadline is ended."""

    def take_place(self, handler: Handler, call: Call) -> CallError | None:
        """Take a place for *call*, to be asked right before its task is started; or say why there is none, which the
        wire answers with, and tells `rejected`. The place is given back by the end of the call, or by `cancel`."""
        ...

    async def unary(
        self,
        handler: Handler,
        call: Call,
        decode: Callable[[Any], Any],
        body: Any,
        encode: Callable[[Any], Any],
    ) -> Any:
        """The encoded answer to one encoded request. What *encode* raises is the handler's fault: `internal`."""
        ...

    async def collect(
        self, handler: Handler, call: Call, requests: AsyncIterator[Any], encode: Callable[[Any], Any]
    ) -> Any:
        """The encoded answer to a stream of requests. *requests* raises CallErrors for what cannot be decoded."""
        ...

    async def stream(
        self,
        handler: Handler,
        call: Call,
        request: Callable[[], Any] | AsyncIterator[Any],
        send: Callable[[Any], Coroutine[Any, Any, None] | None],
    ) -> None:
        """Send each message of a streamed answer. *request* is the stream of requests, or decodes the only one.
        *send* encodes and writes; it returns something to wait for where the peer holds us back."""

    def rejected(self, call: Call, error: CallError) -> None:
        """Count and log a call that the wire itself refused (unknown method, malformed headers, ...)."""

    def cancel(self, call: Call) -> None:
        """The caller has gone: cancel the handler, as Cancelled and not as a failure."""


if sys.version_info >= (3, 12):

    def start_task(
        loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, None], call: Call | None = None
    ) -> asyncio.Task[None]:
        """Run the coroutine of *call* as its task, at once up to its first suspension."""
        return asyncio.Task(coroutine, loop=loop, eager_start=True)

else:

    def start_task(
        loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, None], call: Call | None = None
    ) -> asyncio.Task[None]:
        """Run the coroutine of *call* as its task."""
        task = loop.create_task(coroutine)
        if call is not None:
            call._task = task
        return task


def is_metadata(name: str) -> bool:
    """Whether a header of this (lower-case) name is the caller's metadata, and not a protocol's or polywire's own."""
    return name not in _OWNED and not name.startswith(_OWNED_PREFIXES)


def metadata_from_fields(fields: Iterable[Field]) -> Metadata:
    """The caller's metadata among the headers of a message. Values of `-bin` names that are not base64 are left out."""
    pairs: list[tuple[str, MetadataValue]] = []
    for raw_name, raw_value in fields:
        name = raw_name.decode("ascii", "replace")
        if not is_metadata(name):
            continue
        if not name.endswith("-bin"):
            pairs.append((name, raw_value.decode("latin-1")))
            continue
        for part in raw_value.split(b","):
            try:
                pairs.append((name, decode_binary(part)))
            except ValueError:
                continue
    return Metadata(pairs)


def fields_from_metadata(pairs: Iterable[tuple[str, MetadataValue]], *, prefix: str = "") -> list[Field]:
    """Metadata as headers. Raises InvalidArgument for what no header can carry."""
    return [(prefix.encode() + field[0], field[1]) for field in map(_field, pairs)]


def _field(pair: tuple[str, MetadataValue]) -> Field:
    name, value = pair
    name = name.lower()
    if not name or not all(c.isascii() and (c.isalnum() or c in "-_.") for c in name) or not is_metadata(name):
        raise InvalidArgument(
            f"The metadata {name!r} was not sent: that name is reserved, or has characters that a header may not have. "
            "Use letters, digits, '-', '_' and '.', and no name of HTTP, gRPC or polywire."
        )
    if isinstance(value, bytes) != name.endswith("-bin"):
        raise InvalidArgument(
            f"The metadata {name!r} was not sent: bytes need a name that ends in '-bin', and text one that does not."
        )
    if isinstance(value, bytes):
        return name.encode(), base64.b64encode(value).rstrip(b"=")
    if not value.isascii() or not value.isprintable() or value != value.strip():
        raise InvalidArgument(
            f"The metadata {name!r} was not sent: its value has characters other than printable ASCII, or white space "
            "around it. Give it a name that ends in '-bin' and send bytes."
        )
    return name.encode(), value.encode()


def plain_value(name: str, value: str) -> bytes:
    """What a header of polywire's own carries. Raises InvalidArgument, without the value, for what none can."""
    if not (value.isascii() and value.isprintable() and value == value.strip()):
        raise InvalidArgument(
            f"The {name} of the call was not sent: it has characters other than printable ASCII, or white space around "
            "it (perhaps the line end of the file that it was read from)."
        )
    return value.encode()


def decode_binary(value: bytes) -> bytes:
    """A `-bin` value, padded or not. Raises ValueError."""
    value = value.strip()
    try:
        return base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError("not base64") from error


def priority_from(value: bytes, known: int = NO_PRIORITY) -> int:
    """How much a call matters to its caller by what a header says; what is not known changes nothing.

    *known* is what the headers before it said: where it is repeated, be it in one line, the lowest counts.
    """
    for part in value.split(b","):
        known = min(known, PRIORITIES.get(part.strip().decode("latin-1"), NO_PRIORITY))
    return known


def request_id_from(value: bytes | None) -> str:
    """A request id that came from outside, or an empty string where it is missing, too long or not printable."""
    if value is None or not 0 < len(value) <= MAX_REQUEST_ID:
        return ""
    if value.isalnum():  # as ours are: ASCII, of bytes
        return value.decode("latin-1")
    text = value.decode("latin-1")
    return text if text.isascii() and text.isprintable() and " " not in text else ""


def unknown_method(dispatcher: Dispatcher, path: str) -> Unimplemented:
    """What is said of a call of *path*, which nobody here handles."""
    name = path[:300].removeprefix("/")
    if dispatcher.public:
        return Unimplemented(f"{name} was not called: there is no such method here.")
    service, _, method = name.rpartition("/")
    known = dispatcher.services.get(service)
    if known is None:
        return Unimplemented(
            f"{name} was not called: there is no service {service!r} here. "
            "Check the package of the contract, and the address."
        )
    names = ", ".join(rpc.name for rpc in known.rpcs.values())
    return Unimplemented(f"{name} was not called: {service} has no method {method!r}. It has: {names or 'none'}.")


HEADERS_TOO_LARGE = 431


def refused_headers(address: str) -> ResourceExhausted:
    """What HTTP status 431 means: the headers that were too large were seen by nobody who knows the wire."""
    return ResourceExhausted(
        f"{address} did not take the call: its headers are over the limit there. "
        "Send less metadata, or raise `max_header_bytes` at their receiver."
    )


REQUEST_TIMEOUT = 408


def refused_late(address: str) -> Unavailable:
    """What HTTP status 408 means: what there was of the request did not arrive in time, and the caller's own deadline
    has not come. A stream of requests may have had a handler all the same."""
    return Unavailable(
        f"{address} did not answer: it gave up waiting for the rest of the request (HTTP status 408).", reached="maybe"
    )


def unavailable(error: StreamClosed, address: str) -> Unavailable | ResourceExhausted:
    """A lost exchange as the caller sees it, or one that could not be begun."""
    if isinstance(error, HeadersTooLarge):
        return ResourceExhausted(
            f"{address} was not called: {error.reason}. "
            "Send less metadata, or raise `max_header_bytes` at their receiver."
        )
    return Unavailable(f"{address} did not answer: {error.reason}.", reached="maybe" if error.reached else "no")


def not_in_time(outgoing: Outgoing) -> DeadlineExceeded:
    """What a caller gets when its own clock says that the time is up."""
    timeout = outgoing.timeout or 0.0
    return DeadlineExceeded(
        f"{outgoing.rpc.full_name} did not answer within {timeout:.4g} s. It may still be running there: "
        "make it idempotent before retrying, or raise `timeout=` in the contract or with `calling(timeout=...)`."
    )
