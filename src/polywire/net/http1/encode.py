"""Writes the heads of requests and responses, remembering the prepared ones."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus

from polywire.net.http1.grammar import TOKEN, Refused, reason_of
from polywire.net.stream import Field, Headers

END = b"0\r\n\r\n"
CLOSE = b"connection: close\r\n"
KEEP_ALIVE = b"connection: keep-alive\r\n"
CHUNKED_LINE = b"transfer-encoding: chunked\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class PreparedResponse:
    """Headers as bytes: status line and fields, without what the engine adds."""

    __slots__ = ("bodiless", "sized", "special", "start", "status")

    def __init__(self, status: int, start: bytes, sized: int | None) -> None:
        self.status = status
        self.start = start
        self.sized = sized
        """The content-length that the headers bring themselves, None if they do not."""
        self.bodiless = status in (204, 304) or status < 200
        """No body follows such a status, whatever the headers say (RFC 9112 section 6.3)."""
        self.special = self.bodiless or sized is not None
        """It takes more than the headers, a content-length and the body to respond."""


class PreparedRequest:
    """Headers as bytes: request line and fields, without what the engine adds."""

    __slots__ = ("head", "sends_body", "sized", "start")

    def __init__(self, start: bytes, sized: int | None, *, head: bool, sends_body: bool) -> None:
        self.start = start
        self.sized = sized
        self.head = head
        """The method is HEAD: the response has no body."""
        self.sends_body = sends_body
        """The method gives a body a meaning, so that an empty one is announced as `content-length: 0`."""


@lru_cache(maxsize=1024)
def prepare_response(headers: Headers) -> PreparedResponse:
    """Encode *headers* once; they are found again by identity."""
    name, value = headers.fields[0] if headers.fields else (b"", b"")
    if name != b":status" or len(value) != 3 or not value.isdigit():
        raise ValueError("The headers of a response must begin with ':status' and three digits.")
    status = int(value)
    line = f"HTTP/1.1 {status} {reason_of(status)}\r\n".encode("ascii")
    return PreparedResponse(status, line + encode_fields(headers.fields[1:]), sized(headers.fields))


@lru_cache(maxsize=1024)
def prepare_request(headers: Headers) -> PreparedRequest:
    """Encode *headers* once; they are found again by identity."""
    pseudo: dict[bytes, bytes] = {}
    for name, value in headers.fields:
        if not name.startswith(b":"):
            break
        pseudo[name] = value
    method, path = pseudo.get(b":method", b""), pseudo.get(b":path", b"")
    if TOKEN.fullmatch(method) is None or not path or any(code <= 0x20 or code == 0x7F for code in path):
        raise ValueError("The headers of a request must begin with ':method' and ':path'.")
    line = b"%b %b HTTP/1.1\r\n" % (method, path)
    host = encode_fields([(b"host", pseudo.get(b":authority", b""))])
    start = line + host + encode_fields(headers.fields[len(pseudo) :])
    sends_body = method not in (b"GET", b"HEAD", b"DELETE", b"OPTIONS", b"CONNECT", b"TRACE")
    return PreparedRequest(start, sized(headers.fields), head=method == b"HEAD", sends_body=sends_body)


@lru_cache(maxsize=256)
def prepare_trailers(headers: Headers) -> bytes:
    """Encode trailers once; they are found again by identity."""
    return encode_fields(headers.fields)


def encode_fields(fields: Sequence[Field]) -> bytes:
    """Field lines. Raises ValueError for a value that would break out of its line."""
    encoded = b"".join([b"%b: %b\r\n" % field for field in fields])
    count = len(fields)
    if encoded.count(b"\n") != count or encoded.count(b"\r") != count or b"\0" in encoded:
        raise ValueError("A header has a line end or a NUL in its name or value; it was not sent.")
    return encoded


def sized(fields: Sequence[Field]) -> int | None:
    """The content-length among *fields*."""
    for name, value in fields:
        if name == b"content-length":
            return int(value)
    return None


class Dateline:
    """The `date` line of responses, kept fresh by whoever calls `refresh` about once a second."""

    __slots__ = ("_second", "line")

    def __init__(self) -> None:
        self._second = -1
        self.line = b""
        self.refresh()

    def refresh(self) -> None:
        now = int(time.time())
        if now != self._second:
            self._second = now
            self.line = f"date: {formatdate(now, usegmt=True)}\r\n".encode("ascii")


def problem(refused: Refused, date: bytes, *, bodiless: bool = False) -> bytes:
    """A whole response that says why a request was not accepted (RFC 9457), and that the connection ends here."""
    status = HTTPStatus(refused.status)
    title = {413: "Content Too Large", 414: "URI Too Long"}.get(refused.status, status.phrase)
    document = {"type": "about:blank", "title": title, "status": refused.status, "detail": refused.detail}
    body = json.dumps(document).encode()
    head = (
        f"HTTP/1.1 {refused.status} {title}\r\n"
        f"content-type: application/problem+json\r\ncontent-length: {len(body)}\r\n"
    )
    return head.encode("ascii") + date + CLOSE + b"\r\n" + (b"" if bodiless else body)
