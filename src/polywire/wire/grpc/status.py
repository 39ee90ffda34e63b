"""Errors as gRPC trailers and back, and what a failed exchange means where there are no trailers."""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Iterable

from polywire.codec.failures import own_details
from polywire.codec.status import decode_status, encode_status, error_from, status_with
from polywire.context import Metadata
from polywire.errors import (
    BY_NUMBER,
    DO_NOT_RETRY,
    CallError,
    Cancelled,
    Internal,
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    Unknown,
)
from polywire.net.stream import Field, StreamClosed
from polywire.wire.grpc.protocol import DETAILS, MESSAGE, STATUS, decode_message, encode_message, is_grpc
from polywire.wire.seam import HEADERS_TOO_LARGE, PUSHBACK, REACHED, decode_binary, refused_headers, unavailable

log = logging.getLogger("polywire.grpc")

_PUSHBACK = PUSHBACK.encode()
_REACHED = REACHED.encode()
MAX_DETAILS = 6 * 1024
"""Bytes of `google.rpc.Status` that travel in a trailer; a third is added by base64. Peers take 8 to 16 KiB."""
_MAX_PUSHBACK = 2**31 - 1

_STATUS_VALUES = {number: b"%d" % number for number in BY_NUMBER}
_NUMBERS = {value: number for number, value in _STATUS_VALUES.items()}


# Ours, on their way out.


def status_fields(error: CallError) -> list[Field]:
    """The trailers that say *error*, without metadata."""
    fields: list[Field] = [(STATUS, _STATUS_VALUES[error.number])]
    message = error.message
    details = _details(error)
    if len(details) > MAX_DETAILS:
        message += f" (Its details were left out: {len(details)} bytes are too many for a trailer.)"
        details = status_with(error, own_details(error))
        if len(details) > MAX_DETAILS:
            details = b""
    if message:
        fields.append((MESSAGE, encode_message(message)))
    if details:
        fields.append((DETAILS, base64.b64encode(details).rstrip(b"=")))
    if error.retry_after is not None:
        fields.append((_PUSHBACK, _pushback(error.retry_after)))
    if isinstance(error, Unavailable) and error.reached == "no":
        fields.append((_REACHED, b"no"))
    return fields


def _details(error: CallError) -> bytes:
    try:
        return encode_status(error)
    except (TypeError, InvalidArgument) as mistake:
        # Whoever raised the error attached something that cannot travel; the error itself still has to.
        log.error("the details of %s were left out: %s", type(error).__name__, mistake)
        return status_with(error, own_details(error))


def _pushback(seconds: float) -> bytes:
    return b"-1" if seconds < 0 else b"%d" % min(round(seconds * 1000), _MAX_PUSHBACK)


# Theirs, on the way in.


def error_from_trailers(fields: Iterable[Field]) -> CallError | None:
    """What the trailers, or the headers of an answer without a body, say: an error, or None for OK.

    Raises LookupError where there is no `grpc-status` among them.
    """
    fields = tuple(fields)
    named = dict(fields)
    status = named[STATUS]
    if status == b"0":
        return None
    message = decode_message(named.get(MESSAGE, b""))
    number = _NUMBERS.get(status)
    if number is None:
        error: CallError = Unknown(f"The answer has an unknown grpc-status, {status[:20]!r}: {message}")
    else:
        error = _detailed(number, message, named.get(DETAILS))
    if isinstance(error, Unavailable):
        error.reached = "no" if named.get(_REACHED) == b"no" else "maybe"
    if _PUSHBACK in named:
        error.retry_after = _retry_after(named[_PUSHBACK])
    return error


def _detailed(number: int, message: str, encoded: bytes | None) -> CallError:
    """The error with its details, if they are there, valid, and of the same code."""
    if encoded is not None:
        try:
            code, whole_message, details = decode_status(decode_binary(encoded))
        except (ValueError, InvalidArgument):
            # They only explain; the error that they came with counts.
            return BY_NUMBER[number](message)
        if code == number:
            return error_from(number, whole_message, details)
    return BY_NUMBER[number](message)


def _retry_after(value: bytes) -> float:
    """Seconds of pushback. What cannot be read forbids retrying, as gRFC A6 has it."""
    if value.isdigit() and len(value) <= 10:
        return min(int(value), _MAX_PUSHBACK) / 1000
    return DO_NOT_RETRY


# Where the answer was no gRPC answer at all.

_BY_HTTP_STATUS: dict[int, type[CallError]] = {
    400: Internal,
    401: Unauthenticated,
    403: PermissionDenied,
    404: Unimplemented,
    429: Unavailable,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
}
"""doc/http-grpc-status-mapping.md of gRPC; everything else is Unknown."""

_BY_RESET: dict[int, type[CallError]] = {
    0x1: Internal,
    0x2: Internal,
    0x3: Internal,
    0x4: Internal,
    0x6: Internal,
    0x8: Cancelled,
    0x9: Internal,
    0xA: Internal,
    0xB: ResourceExhausted,
    0xC: PermissionDenied,
}
"""PROTOCOL-HTTP2.md of gRPC, "Errors". Streams that were refused, and lost connections, are Unavailable."""


def error_from_http(status: int, content_type: bytes, address: str) -> CallError:
    """What an answer means that has no `grpc-status`."""
    if status == 200 and is_grpc(content_type):
        return Unknown(f"{address} ended its answer without a status. It, or a proxy on the way, cut it off.")
    if status == HEADERS_TOO_LARGE:
        return refused_headers(address)
    what = f"HTTP status {status} and content type {content_type[:60].decode('latin-1')!r}"
    return _BY_HTTP_STATUS.get(status, Unknown)(
        f"{address} did not answer with gRPC but with {what}. Is it a gRPC server, or a proxy in front of one?"
    )


def error_from_lost(closed: StreamClosed, address: str) -> CallError:
    """What an exchange that ended early means to its caller."""
    kind: Callable[[str], CallError] | None = None
    if closed.reached and closed.code is not None:
        kind = _BY_RESET.get(closed.code)
    if kind is None:
        return unavailable(closed, address)
    return kind(f"{address} did not answer: {closed.reason}.")


def with_metadata(error: CallError, leading: Metadata, trailing: Metadata) -> CallError:
    """*error* with all metadata that came with it."""
    if not leading:
        error.metadata = trailing
    elif not trailing:
        error.metadata = leading
    else:
        error.metadata = Metadata((*leading.pairs(), *trailing.pairs()))
    return error
