"""The small grammars of gRPC over HTTP/2: content types, timeouts, messages in a header, and what may travel there."""

from __future__ import annotations

import re
from urllib.parse import quote, unquote

CONTENT_TYPE = b"application/grpc"
TIMEOUT = b"grpc-timeout"
ENCODING = b"grpc-encoding"
ACCEPT_ENCODING = b"grpc-accept-encoding"
STATUS = b"grpc-status"
MESSAGE = b"grpc-message"
DETAILS = b"grpc-status-details-bin"

MAX_STATUS_MESSAGE = 4096
"""Bytes of an error's text that travel, encoded. Peers refuse trailers beyond 8 to 16 KiB, and the error with them."""

_TIMEOUT = re.compile(rb"[0-9]{1,8}[HMSmun]").fullmatch
_SECONDS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_FOREVER = 1e9
"""Seconds, some thirty years: a timeout beyond it is none."""
_LARGEST = 99_999_999
_BROKEN_ESCAPE = re.compile(rb"%.?\Z")
_SAFE = " !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~"
"""What `grpc-message` has in it as it is: printable ASCII without the percent sign."""


def is_grpc(content_type: bytes) -> bool:
    """Whether *content_type* means gRPC with protobuf; parameters after a semicolon do not matter."""
    kind = content_type.partition(b";")[0].strip().lower()
    return kind in (CONTENT_TYPE, b"application/grpc+proto")


def parse_timeout(value: bytes) -> float | None:
    """Seconds; None for one that will not end in anybody's lifetime. Raises ValueError where it is malformed."""
    if not _TIMEOUT(value):
        raise ValueError("a timeout is up to 8 digits and one of H, M, S, m, u, n")
    seconds = int(value[:-1]) * _SECONDS[value[-1:]]
    return seconds if seconds < _FOREVER else None


def timeout_ticks(seconds: float) -> int:
    """A timeout rounded down to what is sent: positive milliseconds, or negative microseconds below 0.1 s.

    Whole milliseconds repeat from call to call where the exact time left does not, so their encoding can be shared.
    """
    if seconds >= 0.1:
        return int(seconds * 1e3 + 1e-3)
    return min(-1, -int(seconds * 1e6 + 1e-3))


def format_timeout(ticks: int) -> bytes:
    """`grpc-timeout` for what `timeout_ticks` returned."""
    if ticks < 0:
        return b"%du" % -ticks
    if ticks <= _LARGEST:
        return b"%dm" % ticks
    return b"%dS" % min(ticks // 1000, _LARGEST)


def encode_message(text: str) -> bytes:
    """The text of an error as `grpc-message`, cut off where it is very long."""
    encoded = quote(text.strip(), safe=_SAFE, errors="replace").encode("ascii")
    if len(encoded) <= MAX_STATUS_MESSAGE:
        return encoded
    return _BROKEN_ESCAPE.sub(b"", encoded[: MAX_STATUS_MESSAGE - 3]).rstrip() + b"..."


def decode_message(value: bytes) -> str:
    """The reverse; what is not properly encoded is kept as it is rather than lost."""
    return unquote(value.decode("utf-8", "replace"), errors="replace")
