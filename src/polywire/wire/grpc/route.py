"""What a gRPC request's headers say, worked out once for all requests that begin with the same headers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from polywire.codec import codec_for
from polywire.context import NO_METADATA, Call, Metadata
from polywire.errors import CallError, InvalidArgument, Unimplemented
from polywire.net.stream import Field, Head
from polywire.wire.compression import ACCEPTED, GZIP, IDENTITY
from polywire.wire.grpc.protocol import ACCEPT_ENCODING, ENCODING, TIMEOUT, is_grpc, parse_timeout
from polywire.wire.seam import (
    NO_PRIORITY,
    PREVIOUS_ATTEMPTS,
    PRINCIPAL,
    PRIORITY,
    REQUEST_ID,
    Dispatcher,
    Handler,
    metadata_from_fields,
    priority_from,
    request_id_from,
    unknown_method,
)

REQUEST_ID_FIELD = REQUEST_ID.encode()
TRACEPARENT = b"traceparent"
TRACESTATE = b"tracestate"
BAGGAGE = b"baggage"
PREVIOUS = PREVIOUS_ATTEMPTS.encode()
PRINCIPAL_FIELD = PRINCIPAL.encode()
PRIORITY_FIELD = PRIORITY.encode()
AUTHORIZATION = b"authorization"
CONTENT_TYPE_FIELD = b"content-type"

DECISIVE = frozenset({CONTENT_TYPE_FIELD, ENCODING, ACCEPT_ENCODING, AUTHORIZATION})
"""Headers that a route is made from. Where one comes in the tail of a request, its route is made for it alone."""

_MAX_ATTEMPTS = 1000


class Route:
    """The handler for a request and everything else that its headers decide; kept in `Head.memo`."""

    __slots__ = (
        "accepts_gzip",
        "attempt",
        "baggage",
        "carries",
        "credentials",
        "decode",
        "encode",
        "fault",
        "gzip",
        "handler",
        "http_status",
        "metadata",
        "method",
        "principal",
        "priority",
        "receiver",
        "request_id",
        "timeout",
        "traceparent",
        "tracestate",
    )

    handler: Handler
    """Of a route without a fault."""
    decode: Callable[[bytes], Any]
    encode: Callable[[Any], bytes]
    receiver: Any
    """The server's class for calls of its kind."""

    def __init__(self) -> None:
        self.method = ""
        self.fault: CallError | None = None
        """Why such a request is refused, or None."""
        self.http_status = 200
        """Where not 200, the request is none of gRPC and gets this status."""
        self.timeout: float | None = None
        self.gzip = False
        """The request's messages may be compressed."""
        self.accepts_gzip = False
        self.request_id = ""
        self.credentials: str | None = None
        self.carries = False
        """Some of the following are set, apart from the metadata."""
        self.attempt = 1
        self.principal: str | None = None
        self.priority = NO_PRIORITY
        self.traceparent: str | None = None
        self.tracestate: str | None = None
        self.baggage: str | None = None
        self.metadata: Metadata = NO_METADATA

    def hand_on(self, call: Call) -> None:
        """Set what this route *carries* on a call."""
        call.attempt = self.attempt
        call.principal = self.principal
        call.priority = self.priority
        call.traceparent = self.traceparent
        call.tracestate = self.tracestate
        call.baggage = self.baggage


def read_route(dispatcher: Dispatcher, head: Head, fields: tuple[Field, ...]) -> Route:
    """The route of requests with *head* and all of *fields*."""
    route = Route()
    path = head.path.decode("latin-1")
    route.method = path.removeprefix("/")
    named = dict(fields)
    if head.method != b"POST":
        route.http_status = 405
        return route
    if not is_grpc(named.get(CONTENT_TYPE_FIELD, b"")):
        route.http_status = 415
        return route
    route.metadata = metadata_from_fields(fields)
    for name, value in fields:
        if (apply_field(route, name, value) and name != REQUEST_ID_FIELD) or name == PRIORITY_FIELD:
            route.carries = True
    authorization = named.get(AUTHORIZATION)
    route.credentials = None if authorization is None else authorization.decode("latin-1")
    route.accepts_gzip = GZIP in _names(named.get(ACCEPT_ENCODING, b""))
    encoding = named.get(ENCODING, b"identity").decode("latin-1").lower()
    route.gzip = encoding == GZIP
    handler = dispatcher.handlers.get(path)
    if handler is None:
        route.fault = unknown_method(dispatcher, path)
        return route
    route.handler = handler
    route.method = handler.rpc.full_name
    route.decode = codec_for(handler.rpc.request, "proto").decode
    route.encode = codec_for(handler.rpc.response, "proto").encode
    route.fault = _fault(route, encoding, named.get(TIMEOUT))
    return route


def _fault(route: Route, encoding: str, timeout: bytes | None) -> CallError | None:
    if encoding not in ACCEPTED:
        return Unimplemented(
            f"{route.method} was not called: its request is compressed with {encoding[:40]!r}, which is not known "
            f"here. Use {GZIP!r} or {IDENTITY!r}."
        )
    if timeout is not None:
        try:
            route.timeout = parse_timeout(timeout)
        except ValueError as error:
            return malformed_timeout(route.method, timeout, error)
    return None


def apply_field(target: Any, name: bytes, value: bytes) -> bool:
    """Take what one header says over into *target*, a Route or a Call: both have these attributes.

    False for a header that says nothing to this side, and may be metadata.
    """
    if name == REQUEST_ID_FIELD:
        target.request_id = request_id_from(value)
    elif name == TRACEPARENT:
        target.traceparent = _text(value)
    elif name == TRACESTATE:
        target.tracestate = _text(value)
    elif name == BAGGAGE:
        target.baggage = _text(value)
    elif name == PRINCIPAL_FIELD:
        target.principal = _text(value)
    elif name == PRIORITY_FIELD:
        target.priority = priority_from(value, target.priority)
        return False  # as other metadata it is the handler's to see
    elif name == PREVIOUS:
        target.attempt = 1 + min(int(value), _MAX_ATTEMPTS) if value.isdigit() and len(value) < 10 else 1
    else:
        return False
    return True


def malformed_timeout(method: str, value: bytes, error: ValueError) -> InvalidArgument:
    shown = ascii(value[:20].decode("latin-1"))
    return InvalidArgument(f"{method} was not called: its grpc-timeout {shown} is malformed; {error}.")


def _text(value: bytes) -> str | None:
    return value.decode("ascii") if value.isascii() else None


def _names(value: bytes) -> list[str]:
    return [name.strip().lower() for name in value.decode("latin-1").split(",")]
