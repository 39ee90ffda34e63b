"""What the headers of a request say about the call that it carries, for REST and Connect alike."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

from polywire.clock import Clock
from polywire.context import Call, Metadata
from polywire.net.stream import Field, Stream
from polywire.wire.request_id import new_request_id
from polywire.wire.seam import (
    NO_PRIORITY,
    PREVIOUS_ATTEMPTS,
    PRINCIPAL,
    PRIORITY,
    REQUEST_ID,
    TIMEOUT,
    metadata_from_fields,
    priority_from,
    request_id_from,
)

_REQUEST_ID = REQUEST_ID.encode()
REST_TIMEOUT = TIMEOUT.encode()
_PRINCIPAL = PRINCIPAL.encode()
_PRIORITY = PRIORITY.encode()
_ATTEMPTS = PREVIOUS_ATTEMPTS.encode()

MAX_TRACESTATE = 512
MAX_BAGGAGE = 8192
_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-.*)?\Z")


class Inbound:
    """The headers of one request by name, and what follows from them. It may be shared by requests with equal heads."""

    __slots__ = (
        "_metadata",
        "authorization",
        "baggage",
        "fields",
        "named",
        "previous",
        "principal",
        "priority",
        "request_id",
        "traceparent",
        "tracestate",
    )

    def __init__(self, fields: tuple[Field, ...]) -> None:
        self.fields = fields
        named = self.named = dict(fields)
        get = named.get
        self.request_id = request_id_from(get(_REQUEST_ID))
        """Empty where the caller sent none."""
        authorization = get(b"authorization")
        self.authorization = None if authorization is None else authorization.decode("latin-1")
        self.traceparent = self.tracestate = self.baggage = None
        traceparent = get(b"traceparent")
        if traceparent is not None and _TRACEPARENT.match(traceparent):
            self.traceparent = traceparent.decode("ascii")
            self.tracestate = self._joined(b"tracestate", MAX_TRACESTATE)
        if b"baggage" in named:
            self.baggage = self._joined(b"baggage", MAX_BAGGAGE)
        principal = get(_PRINCIPAL)
        self.principal = None if principal is None else principal.decode("latin-1")
        self.priority = NO_PRIORITY
        if _PRIORITY in named:
            for name, value in fields:
                if name == _PRIORITY:
                    self.priority = priority_from(value, self.priority)
        attempts = get(_ATTEMPTS)
        self.previous = int(attempts) if attempts is not None and attempts.isdigit() and len(attempts) < 4 else 0
        self._metadata: Callable[[], Metadata] = partial(metadata_from_fields, fields)

    def _joined(self, wanted: bytes, limit: int) -> str | None:
        value = b",".join([value for name, value in self.fields if name == wanted])
        return value.decode("latin-1") if value and len(value) <= limit else None

    def call(self, method: str, stream: Stream, wire: str, timeout: float | None, clock: Clock) -> Call:
        """The call, as its handler will know it."""
        call = self._call(method, stream, wire, timeout, clock)
        if not call.request_id:
            call.request_id = new_request_id()
        return call

    def call_amended(
        self,
        method: str,
        stream: Stream,
        wire: str,
        timeout: float | None,
        clock: Clock,
        timeout_name: bytes,
        parse_timeout: Callable[[bytes], float],
    ) -> Call | None:
        """As `call`, with what the stream's tail says in the few headers that differ from call to call.

        None where the tail has others, or something that cannot be read: then all headers have to be looked at.
        """
        call = self._call(method, stream, wire, timeout, clock)
        for name, value in stream.tail:
            if name == _REQUEST_ID:
                call.request_id = request_id_from(value)
            elif name == timeout_name:
                try:
                    call.deadline = clock.monotonic() + parse_timeout(value)
                except ValueError:
                    return None
            elif name == b"traceparent":
                if b"tracestate" in self.named:
                    return None
                if _TRACEPARENT.match(value):
                    call.traceparent = value.decode("ascii")
            elif name != b"content-length":
                return None
        if not call.request_id:
            call.request_id = new_request_id()
        return call

    def _call(self, method: str, stream: Stream, wire: str, timeout: float | None, clock: Clock) -> Call:
        call = Call(
            method,
            deadline=None if timeout is None else clock.monotonic() + timeout,
            request_id=self.request_id,
            metadata=None,
            peer=stream.connection.peer,
            wire=wire,
            clock=clock,
        )
        call._metadata_source = self._metadata
        call.credentials = self.authorization
        call.peer_certificate = stream.connection.peer_certificate
        call.principal = self.principal
        if self.priority < NO_PRIORITY:
            call.priority = self.priority
        call.traceparent = self.traceparent
        call.tracestate = self.tracestate
        call.baggage = self.baggage
        if self.previous:
            call.attempt = self.previous + 1
        return call


def rest_timeout(value: bytes) -> float:
    """Seconds from the REST timeout header. Raises ValueError."""
    if _SECONDS.match(value) is None:
        raise ValueError("not a number of seconds")
    return float(value)


_SECONDS = re.compile(rb"[0-9]{1,9}(\.[0-9]{0,9})?\Z")


def accepts(header: bytes | None, *kinds: bytes) -> bool:
    """Whether an `Accept` header takes one of these media types; without the header everything is taken."""
    if header is None or header in kinds or header == b"*/*":
        return True
    best: dict[bytes, tuple[int, float]] = {}
    for part in header.split(b","):
        kind, _, parameters = part.partition(b";")
        kind = kind.strip().lower()
        quality = _quality(parameters)
        for wanted in kinds:
            # The most specific range decides (RFC 9110 section 12.5.1).
            group = wanted.partition(b"/")[0] + b"/*"
            rank = 2 if kind == wanted else 1 if kind == group else 0 if kind == b"*/*" else -1
            if rank >= 0 and rank >= best.get(wanted, (-1, 0.0))[0]:
                best[wanted] = rank, quality
    return any(quality > 0 for _, quality in best.values())


def accepts_gzip(header: bytes | None) -> bool:
    """Whether an `Accept-Encoding` header takes gzip by name."""
    if header is None:
        return False
    for part in header.split(b","):
        coding, _, parameters = part.partition(b";")
        if coding.strip().lower() == b"gzip":
            return _quality(parameters) > 0
    return False


def _quality(parameters: bytes) -> float:
    for parameter in parameters.split(b";"):
        name, _, value = parameter.partition(b"=")
        if name.strip().lower() == b"q":
            try:
                return float(value.strip()) if len(value) < 10 else 0.0
            except ValueError:
                return 0.0
    return 1.0
