"""The headers of a gRPC request: what repeats from call to call is prepared once, the rest goes behind it."""

from __future__ import annotations

from polywire.contract import Rpc
from polywire.errors import InvalidArgument
from polywire.net.stream import Field, Headers
from polywire.wire.compression import ACCEPTED, GZIP
from polywire.wire.grpc.protocol import (
    ACCEPT_ENCODING,
    CONTENT_TYPE,
    ENCODING,
    TIMEOUT,
    format_timeout,
    timeout_ticks,
)
from polywire.wire.grpc.route import (
    AUTHORIZATION,
    BAGGAGE,
    CONTENT_TYPE_FIELD,
    PREVIOUS,
    PRINCIPAL_FIELD,
    REQUEST_ID_FIELD,
    TRACEPARENT,
    TRACESTATE,
)
from polywire.wire.seam import Outgoing, fields_from_metadata, plain_value

USER_AGENT = b"polywire"

_WORTH_PREPARING = 3
"""How often the same timeout and credentials have to be seen before headers are prepared for them. Preparing costs room
in the peer's table, which what never comes again must not fill."""
_MAX_CANDIDATES = 64
_MAX_PREPARED = 1024

_Key = tuple[Rpc, int, str | None]
"""The rpc, the timeout in ticks (0: none) and the authorization."""


class RequestHeaders:
    """Makes the headers of calls to one endpoint."""

    def __init__(self, *, scheme: str, authority: str, gzip: bool) -> None:
        self._first: tuple[Field, ...] = (
            (b":method", b"POST"),
            (b":scheme", scheme.encode()),
            (b":authority", authority.encode()),
        )
        self._last: tuple[Field, ...] = (
            (CONTENT_TYPE_FIELD, CONTENT_TYPE),
            (b"te", b"trailers"),
            (b"user-agent", USER_AGENT),
            (ACCEPT_ENCODING, ",".join(ACCEPTED).encode()),
        )
        if gzip:
            self._last += ((ENCODING, GZIP.encode()),)
        self._prepared: dict[_Key, Headers] = {}
        self._candidates: dict[_Key, int] = {}

    def of(self, outgoing: Outgoing) -> tuple[Headers, list[Field]]:
        """The shared part, and what is this call's own. Raises InvalidArgument for metadata that cannot travel."""
        timeout = outgoing.timeout
        authorization = outgoing.authorization
        tail = [(REQUEST_ID_FIELD, outgoing.request_id.encode())] if outgoing.request_id else []
        key = (outgoing.rpc, 0 if timeout is None else timeout_ticks(timeout), authorization)
        headers = self._prepared.get(key)
        if headers is None:
            headers = self._not_prepared(key, tail)
        if outgoing.traceparent is not None:
            tail.append((TRACEPARENT, outgoing.traceparent.encode()))
            if outgoing.tracestate is not None:
                tail.append((TRACESTATE, outgoing.tracestate.encode()))
        if outgoing.baggage is not None:
            tail.append((BAGGAGE, outgoing.baggage.encode()))
        if outgoing.attempt > 1:
            tail.append((PREVIOUS, b"%d" % (outgoing.attempt - 1)))
        if outgoing.principal is not None:
            tail.append((PRINCIPAL_FIELD, _principal(outgoing.principal)))
        if outgoing.metadata:
            tail += fields_from_metadata(outgoing.metadata)
        return headers, tail

    def _not_prepared(self, key: _Key, tail: list[Field]) -> Headers:
        rpc, ticks, authorization = key
        plain = (rpc, 0, None)
        if key == plain or self._is_worth_it(key):
            if len(self._prepared) >= _MAX_PREPARED:
                self._prepared.clear()
            headers = self._prepared[key] = self._make(key)
            return headers
        if authorization is not None:
            tail.append((AUTHORIZATION, plain_value("authorization", authorization)))
        if ticks:
            tail.append((TIMEOUT, format_timeout(ticks)))
        return self._prepared.get(plain) or self._not_prepared(plain, [])

    def _is_worth_it(self, key: _Key) -> bool:
        seen = self._candidates.pop(key, 0) + 1
        if seen >= _WORTH_PREPARING:
            return True
        if len(self._candidates) >= _MAX_CANDIDATES:
            self._candidates.clear()
        self._candidates[key] = seen
        return False

    def _make(self, key: _Key) -> Headers:
        rpc, ticks, authorization = key
        fields = [*self._first, (b":path", rpc.path.encode()), *self._last]
        if authorization is not None:
            fields.append((AUTHORIZATION, plain_value("authorization", authorization)))
        if ticks:
            fields.append((TIMEOUT, format_timeout(ticks)))
        return Headers(fields)


def _principal(principal: str) -> bytes:
    if not (principal.isascii() and principal.isprintable() and principal == principal.strip()):
        raise InvalidArgument(
            f"The principal {principal!r} was not sent: it has characters other than printable ASCII, or white space "
            "around it. Use an identifier that has none."
        )
    return principal.encode()
