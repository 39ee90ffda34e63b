"""gzip for single messages, with a bound on what comes out."""

from __future__ import annotations

import zlib

GZIP = "gzip"
IDENTITY = "identity"
ACCEPTED = (GZIP, IDENTITY)
"""What this side can read, as in `grpc-accept-encoding`, best first."""

_GZIP_ONLY = 31
"""zlib's `wbits` for a gzip header and trailer, and the largest window."""
_LEVEL = 1
"""Most of the gain at a third of the CPU of zlib's default of 6."""


class Corrupt(Exception):
    """The bytes are not exactly one whole gzip stream."""


class TooLarge(Exception):
    """There is more in it than the limit allows."""


def compress(data: bytes) -> bytes:
    return zlib.compress(data, _LEVEL, _GZIP_ONLY)


def decompress(data: bytes, limit: int) -> bytes:
    """At most *limit* bytes. Raises TooLarge before more than that was produced, and Corrupt.

    Checks the stream to its end (length and CRC) and refuses bytes after it, a second gzip member included: peers write
    one, and a body of empty members would cost much for nothing.
    """
    stream = zlib.decompressobj(_GZIP_ONLY)
    try:
        plain = stream.decompress(data, limit + 1)
    except zlib.error as error:
        raise Corrupt(str(error)) from error
    if len(plain) > limit:
        raise TooLarge
    if not stream.eof:
        raise Corrupt("it ends too early")
    if stream.unused_data:
        raise Corrupt("there are bytes after its end")
    return plain
