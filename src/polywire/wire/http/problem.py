"""Problem documents (RFC 9457): how a REST route says what went wrong, and how a client reads it."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

import msgspec

from polywire.codec import Malformed, codec_for
from polywire.codec.failures import MAX_DETAIL_BYTES, fields_as_message
from polywire.contract.failures import name_of, reason_of, travels
from polywire.contract.message import Message, only_message_named
from polywire.errors import (
    DO_NOT_RETRY,
    Aborted,
    CallError,
    Cancelled,
    ContractError,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    OutOfRange,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    Unknown,
)
from polywire.net.stream import Field, Headers
from polywire.wire.http.details import details_in_json, error_from, packed_details
from polywire.wire.seam import (
    HEADERS_TOO_LARGE,
    PUSHBACK,
    REACHED,
    REQUEST_ID,
    REQUEST_TIMEOUT,
    refused_headers,
    refused_late,
)

log = logging.getLogger("polywire.errors")

CONTENT_TYPE = b"application/problem+json"
_TITLES = {413: "Content Too Large", 422: "Unprocessable Content", 499: "Client Closed Request"}
_PUSHBACK = PUSHBACK.encode()
_REACHED = REACHED.encode()
_REQUEST_ID = REQUEST_ID.encode()
_MAX_PUSHBACK = 2**31 - 1
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, Any]).decode


class Refusal:
    """Mixed into an error that HTTP has a status of its own for; *fields* are sent with it."""

    status = 400
    fields: tuple[Field, ...] = ()


class NoRoute(Refusal, Unimplemented):
    status = 404


class MethodNotAllowed(Refusal, Unimplemented):
    status = 405


class NotAcceptable(Refusal, InvalidArgument):
    status = 406


class BodyTooLarge(Refusal, ResourceExhausted):
    status = 413


class UnsupportedMediaType(Refusal, InvalidArgument):
    status = 415


class BadHeader(Refusal, InvalidArgument):
    status = 400


def status_of(error: CallError) -> int:
    """The HTTP status of *error* on a REST route."""
    if isinstance(error, Refusal):
        return error.status
    if error.__form__ is not None and error.__form__.rest_status is not None:
        return error.__form__.rest_status
    if isinstance(error, InvalidArgument) and not isinstance(error, Malformed):
        return 422
    return error.http_status


def title_of(status: int) -> str:
    known = _TITLES.get(status)
    if known is None:
        known = _TITLES[status] = HTTPStatus(status).phrase
    return known


_headers: dict[int, Headers] = {}


def headers_for(status: int) -> Headers:
    """The headers of every problem with that status; the same object each time."""
    found = _headers.get(status)
    if found is None:
        found = _headers[status] = Headers(((b":status", b"%d" % status), (b"content-type", CONTENT_TYPE)))
    return found


def document_of(error: CallError, request_id: str) -> bytes:
    """The body: the members of RFC 9457, then `error` with code, message and field, the request id and any details."""
    status = status_of(error)
    message = str(error)
    document: dict[str, Any] = {
        "type": "about:blank",
        "title": title_of(status),
        "status": status,
        "detail": message,
        "error": _error_object(error),
        "request_id": request_id,
    }
    details = packed_details(error, derived=False)  # what could be derived, the document says in other words
    if details:
        document["details"] = details_in_json(details)
    return _encode(document)


def _error_object(error: CallError) -> dict[str, Any]:
    """Code, message and field; of an error of a contract also its reason, type and fields."""
    told: dict[str, Any] = {"code": error.code, "message": error.message, "field": getattr(error, "field", None)}
    kind = type(error)
    if not travels(kind):
        return told
    try:
        fields = fields_as_message(error)
        written = codec_for(type(fields), "json").encode(fields)
    except (ContractError, InvalidArgument) as wrong:
        log.debug("%s has no JSON form: %s", kind.__qualname__, wrong)  # told where its details are packed
        return told
    if len(written) <= MAX_DETAIL_BYTES:
        told |= {"reason": reason_of(kind), "type": name_of(kind), "details": msgspec.Raw(written)}
    return told


def fields_of(error: CallError, request_id: str) -> list[Field]:
    """The headers that go with the document of *error*."""
    fields = list(error.fields) if isinstance(error, Refusal) else []
    if request_id:
        fields.append((_REQUEST_ID, request_id.encode()))
    fields += retry_fields(error)
    status = status_of(error)
    if status == 401:
        fields.append((b"www-authenticate", b"Bearer"))
    if status in (429, 503) and error.retry_after is not None and error.retry_after >= 0:
        fields.append((b"retry-after", b"%d" % math.ceil(min(error.retry_after, _MAX_PUSHBACK))))
    return fields


def retry_fields(error: CallError) -> list[Field]:
    """Pushback, and whether a handler saw the call; the same over Connect."""
    fields: list[Field] = []
    if error.retry_after is not None:
        seconds = error.retry_after
        fields.append((_PUSHBACK, b"-1" if seconds < 0 else b"%d" % min(round(seconds * 1000), _MAX_PUSHBACK)))
    if isinstance(error, Unavailable) and error.reached == "no":
        fields.append((_REACHED, b"no"))
    return fields


def with_retry_fields(error: CallError, fields: Iterable[Field]) -> CallError:
    """*error* with what the headers say about trying again."""
    named = dict(fields)
    pushback = named.get(_PUSHBACK)
    if pushback is not None:
        valid = pushback.isdigit() and len(pushback) <= 10
        error.retry_after = min(int(pushback), _MAX_PUSHBACK) / 1000 if valid else DO_NOT_RETRY
    elif named.get(b"retry-after", b"x").isdigit() and len(named[b"retry-after"]) <= 10:
        error.retry_after = float(named[b"retry-after"])
    if isinstance(error, Unavailable):
        error.reached = "no" if named.get(_REACHED) == b"no" else "maybe"
    return error


_BY_STATUS: dict[int, type[CallError]] = {
    400: InvalidArgument,
    401: Unauthenticated,
    402: FailedPrecondition,
    403: PermissionDenied,
    404: NotFound,
    405: Unimplemented,
    406: InvalidArgument,
    409: Aborted,
    410: NotFound,
    412: FailedPrecondition,
    413: ResourceExhausted,
    415: InvalidArgument,
    416: OutOfRange,
    422: InvalidArgument,
    423: FailedPrecondition,
    428: FailedPrecondition,
    429: ResourceExhausted,
    431: ResourceExhausted,
    451: PermissionDenied,
    499: Cancelled,
    500: Internal,
    501: Unimplemented,
    502: Unavailable,
    503: Unavailable,
    504: DeadlineExceeded,
}
"""What a status means without a document that names a code."""


def error_from_response(status: int, fields: Iterable[Field], body: bytes, address: str) -> CallError:
    """The error that a response with a status other than of success stands for."""
    fields = tuple(fields)
    error = _described(body) if dict(fields).get(b"content-type", b"").startswith(CONTENT_TYPE) else None
    if error is None and status == HEADERS_TOO_LARGE:
        error = refused_headers(address)
    if error is None and status == REQUEST_TIMEOUT:
        error = refused_late(address)
    if error is None:
        error = _BY_STATUS.get(status, Unknown)(
            f"{address} answered with HTTP status {status} and no problem document that names a code."
        )
    return with_retry_fields(error, fields)


def _described(body: bytes) -> CallError | None:
    try:
        document = _decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
    told = document.get("error")
    if not isinstance(told, dict):
        return None
    message = told.get("message")
    text = message if isinstance(message, str) else ""
    try:
        error = error_from(told.get("code", ""), text, document.get("details"), fields=_fields_told(told))
    except (KeyError, TypeError):
        return None
    field = told.get("field")
    if isinstance(error, InvalidArgument) and isinstance(field, str):
        error.field = field
    return error


def _fields_told(told: dict[str, Any]) -> Message | None:
    """The fields in `error.details`, where this program knows their type: what a service in another framework sends."""
    name, fields = told.get("type"), told.get("details")
    kind = only_message_named(name) if isinstance(name, str) and isinstance(fields, dict) else None
    if kind is None:
        return None
    try:
        read: Message = codec_for(kind, "json").decode(_encode(fields))
    except InvalidArgument as wrong:
        log.debug("the fields of %s could not be read: %s", name, wrong)
        return None
    return read
