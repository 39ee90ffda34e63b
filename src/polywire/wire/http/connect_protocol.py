"""The small grammars of the Connect protocol, the same at server and client (connectrpc.com/docs/protocol)."""

from __future__ import annotations

import re
from typing import Any, Literal

import msgspec

from polywire.context import Metadata, MetadataValue
from polywire.errors import (
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
from polywire.net.stream import Field
from polywire.wire.compression import Corrupt, TooLarge, decompress
from polywire.wire.framing import COMPRESSED
from polywire.wire.http.details import details_in_json, error_from, packed_details
from polywire.wire.http.problem import retry_fields, with_retry_fields
from polywire.wire.seam import (
    HEADERS_TOO_LARGE,
    REQUEST_TIMEOUT,
    fields_from_metadata,
    metadata_from_fields,
    refused_headers,
    refused_late,
)

Encoding = Literal["proto", "json"]

VERSION = b"connect-protocol-version"
TIMEOUT = b"connect-timeout-ms"
STREAM_ENCODING = b"connect-content-encoding"
STREAM_ACCEPT = b"connect-accept-encoding"
TRAILER = b"trailer-"
END_STREAM = 0x02
"""The flag of the last message of an answer, which says how the call ended."""

UNARY_TYPES: dict[bytes, Encoding] = {b"application/proto": "proto", b"application/json": "json"}
STREAM_TYPES: dict[bytes, Encoding] = {b"application/connect+proto": "proto", b"application/connect+json": "json"}
CODECS: dict[Encoding, Literal["proto", "protojson"]] = {"proto": "proto", "json": "protojson"}

_CANCELED = "canceled"
"""Connect's spelling of that code."""
_TIMEOUT = re.compile(rb"[0-9]{1,10}\Z")
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, Any]).decode


def parse_timeout(value: bytes) -> float:
    """Seconds. Raises ValueError."""
    if _TIMEOUT.match(value) is None:
        raise ValueError("not a number of milliseconds")
    return int(value) / 1000


def format_timeout(seconds: float) -> bytes:
    return b"%d" % min(max(int(seconds * 1000), 1), 9_999_999_999)


def media_type(value: bytes) -> bytes:
    """A content type without its parameters."""
    return value.partition(b";")[0].strip().lower() if b";" in value else value.lower()


# Errors


def error_in_json(error: CallError) -> dict[str, Any]:
    """The error object, as a unary body and inside of an end-of-stream message."""
    document: dict[str, Any] = {"code": _CANCELED if error.code == Cancelled.code else error.code}
    if error.message:
        document["message"] = error.message
    packed = packed_details(error)
    if packed:
        document["details"] = details_in_json(packed)
    return document


def error_body(error: CallError) -> bytes:
    return _encode(error_in_json(error))


_BY_STATUS: dict[int, type[CallError]] = {
    400: Internal,
    401: Unauthenticated,
    403: PermissionDenied,
    404: Unimplemented,
    429: Unavailable,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
}
"""What a status means without an error body that names a code (the protocol's own table); all else is unknown."""


def error_from_response(
    status: int, fields: tuple[Field, ...], body: bytes, address: str, content_type: bytes
) -> CallError:
    """The error that a response with a status other than 200 stands for."""
    error = None
    if content_type == b"application/json":
        try:
            error = _error_from(_decode(body))
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
            error = None
    if error is None and status == HEADERS_TOO_LARGE:
        error = refused_headers(address)
    if error is None and status == REQUEST_TIMEOUT:
        error = refused_late(address)
    if error is None:
        error = _BY_STATUS.get(status, Unknown)(
            f"{address} did not answer with Connect but with HTTP status {status}. Is the service there, or a proxy?"
        )
    return with_retry_fields(error, fields)


def _error_from(document: Any) -> CallError | None:
    if not isinstance(document, dict):
        return None
    message = document.get("message")
    try:
        code = document["code"]
        code = Cancelled.code if code == _CANCELED else code
        return error_from(code, message if isinstance(message, str) else "", document.get("details"))
    except (KeyError, TypeError):
        return None


# The end of a stream


def end_of_stream(error: CallError | None, pairs: list[tuple[str, MetadataValue]] | None) -> bytes:
    """The payload of the last message. Raises InvalidArgument for metadata that no header can carry."""
    document: dict[str, Any] = {}
    if error is not None:
        document["error"] = error_in_json(error)
    fields = fields_from_metadata(pairs) if pairs else []
    if error is not None:
        fields += retry_fields(error)
    if fields:
        metadata: dict[str, list[str]] = {}
        for name, value in fields:
            metadata.setdefault(name.decode(), []).append(value.decode())
        document["metadata"] = metadata
    return _encode(document)


def read_end_of_stream(payload: bytes) -> tuple[CallError | None, Metadata]:
    """How the call ended, and its trailers."""
    try:
        document = _decode(payload)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return Internal("The end of the stream could not be read: it is no JSON object."), Metadata()
    fields: list[Field] = []
    metadata = document.get("metadata")
    if isinstance(metadata, dict):
        for name, values in metadata.items():
            if isinstance(name, str) and isinstance(values, list):
                fields += [
                    (name.lower().encode("ascii", "replace"), value.encode("latin-1", "replace"))
                    for value in values
                    if isinstance(value, str)
                ]
    trailers = metadata_from_fields(fields)
    told = document.get("error")
    if told is None:
        return None, trailers
    error = _error_from(told) or Unknown("The stream ended with an error that could not be read.")
    error.metadata = trailers
    return with_retry_fields(error, fields), trailers


# Messages


def unpacked(flags: int, payload: bytes, coding: bytes, limit: int) -> bytes:
    """The message in a frame. Raises InvalidArgument, Internal or ResourceExhausted where there is none."""
    if flags == 0:
        return payload
    if flags != COMPRESSED:
        raise InvalidArgument(f"A message has the flags {flags:#04x}, which mean nothing here. 0x01 is compressed.")
    if coding != b"gzip":
        raise Internal("A message is compressed, but the headers of its stream name no compression.")
    return inflated(payload, limit)


def inflated(payload: bytes, limit: int) -> bytes:
    """*payload* decompressed. Raises InvalidArgument, and ResourceExhausted for more than *limit* bytes."""
    if not payload:
        return b""
    try:
        return decompress(payload, limit)
    except TooLarge:
        raise ResourceExhausted(
            f"A message was not read: decompressed it is over the limit of {limit} bytes. Split it, or raise "
            "`max_message_bytes` at its receiver."
        ) from None
    except Corrupt as error:
        raise InvalidArgument(f"A message was not read: it is not gzip: {error}.") from None
