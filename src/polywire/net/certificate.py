"""When certificates end: the little of X.509 that `ssl` does not tell of a program's own certificates."""

from __future__ import annotations

import base64
import binascii
import calendar
import re
import time

_BLOCK = re.compile(rb"-----BEGIN CERTIFICATE-----(.*?)-----END CERTIFICATE-----", re.DOTALL)
_UTC_TIME, _GENERALIZED_TIME, _VERSION = 0x17, 0x18, 0xA0


def ends_of(pem: bytes) -> list[float]:
    """When the certificates of a PEM file end, in seconds since the epoch, in the order of the file.

    Raises ValueError where one of them is none.
    """
    ends = []
    for block in _BLOCK.finditer(pem):
        try:
            ends.append(_not_after(base64.b64decode(b"".join(block[1].split()), validate=True)))
        except (IndexError, binascii.Error) as error:
            raise ValueError("not a certificate") from error
    return ends


def _not_after(der: bytes) -> float:
    """Of a certificate as RFC 5280 section 4.1 has it: version, serial, signature, issuer, validity, ..."""
    _, certificate = _values(der)[0]
    _, signed = _values(certificate)[0]
    parts = [value for tag, value in _values(signed) if tag != _VERSION]
    tag, text = _values(parts[3])[1]
    return _seconds(tag, text.decode("ascii"))


def _seconds(tag: int, text: str) -> float:
    if tag == _UTC_TIME:
        text = ("20" if text < "5" else "19") + text
    elif tag != _GENERALIZED_TIME:
        raise ValueError("not a time")
    return float(calendar.timegm(time.strptime(text, "%Y%m%d%H%M%SZ")))


def _values(der: bytes) -> list[tuple[int, bytes]]:
    """The tags and values that stand one after the other in *der*. Raises ValueError where a length cannot be."""
    values = []
    position = 0
    while position < len(der):
        tag, length = der[position], der[position + 1]
        position += 2
        if length >= 0x80:
            digits = length & 0x7F
            length = int.from_bytes(der[position : position + digits], "big")
            position += digits
        if position + length > len(der):
            raise ValueError("a value is longer than what it stands in")
        values.append((tag, der[position : position + length]))
        position += length
    return values
