"""What HTTP/1.1 allows in a head, told from what it does not, and the refusal of the rest.

Parsers that repair malformed messages are how requests are smuggled past a proxy (RFC 9112 section 11.2): a bare line
feed, a folded line, a space before the colon, two lengths. All of it is refused here.
"""

from __future__ import annotations

import re
from http import HTTPStatus

CHUNKED = -1
"""As a body's length: it comes in chunks."""
UNTIL_CLOSE = -2
"""As a body's length: it ends with the connection (responses only)."""

# Every byte that may stand in no line of a head, CR and LF included: those are accounted for by counting the lines.
CONTROLS = bytes(code for code in (*range(0x20), 0x7F) if code != 0x09)

TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
HOST = re.compile(rb"[A-Za-z0-9\-._~%!$&'()*+,;=:\[\]]*")
BARE_LINE_FEED = re.compile(rb"(?<!\r)\n")
VERSION = re.compile(rb"HTTP/([0-9])\.([0-9])")
LENGTH = re.compile(rb"[0-9]{1,18}")
CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?")

METHODS = frozenset({b"GET", b"POST", b"PUT", b"PATCH", b"DELETE", b"HEAD", b"OPTIONS"})

_COMMON = b"""
accept accept-charset accept-encoding accept-language access-control-request-headers access-control-request-method
age allow authorization baggage cache-control connect-accept-encoding connect-content-encoding
connect-protocol-version connect-timeout-ms connection content-disposition content-encoding content-language
content-length content-location content-range content-type cookie date dnt etag expect expires forwarded from
grpc-accept-encoding grpc-encoding grpc-message grpc-status grpc-timeout host http2-settings idempotency-key if-match
if-modified-since if-none-match if-range if-unmodified-since keep-alive last-event-id last-modified link location
origin pragma priority proxy-authorization proxy-connection range referer retry-after sec-fetch-dest sec-fetch-mode
sec-fetch-site sec-websocket-extensions sec-websocket-key sec-websocket-protocol sec-websocket-version server
set-cookie te trace-context traceparent tracestate trailer transfer-encoding upgrade upgrade-insecure-requests
user-agent vary via www-authenticate x-forwarded-for x-forwarded-host x-forwarded-proto x-real-ip x-request-id
""".split()
KNOWN = {spelling: name for name in _COMMON for spelling in (name, name.title())} | {
    b"ETag": b"etag",
    b"TE": b"te",
    b"DNT": b"dnt",
    b"WWW-Authenticate": b"www-authenticate",
}
"""Names in their usual spellings, to their lower-case form: found here they need no check and no copy."""


class Refused(Exception):
    """The peer's message cannot be accepted; *detail* is a sentence, *status* what a server answers."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail


def lower_name(name: bytes) -> bytes:
    """The canonical form of a field name that is not among `KNOWN`. Raises Refused if it is not one."""
    if TOKEN.fullmatch(name) is None:
        raise Refused(400, f"A header line is malformed: {show(name)} is not a field name.")
    return name.lower()


def split_lines(block: bytes) -> list[bytes]:
    """The lines of a complete head, or the rest of one, without the empty one that ends it."""
    block = block[:-4]
    lines = block.split(b"\r\n")
    if len(block.translate(None, CONTROLS)) != len(block) - 2 * len(lines) + 2:
        raise Refused(400, "The head has a control character or a bare line end in it.")
    return lines


def show(data: bytes) -> str:
    """Bytes from a peer, short, printable and in quotes, for a sentence."""
    return repr(data[:60])[1:] + ("..." if len(data) > 60 else "")


def reason_of(status: int) -> str:
    """The phrase for a status line: 'Not Found'; empty for a status nobody registered."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return {499: "Client Closed Request"}.get(status, "")
