"""Reads the head of a request or a response: first line, fields, and how the body is framed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from polywire.net.http1.grammar import (
    CHUNKED,
    HOST,
    LENGTH,
    METHODS,
    TOKEN,
    UNTIL_CLOSE,
    VERSION,
    Refused,
    lower_name,
    show,
    split_lines,
)
from polywire.net.stream import Field, Head, Limits

_CACHED_HEADS = 512
_CACHED_HEAD_BYTES = 1024

# Fields of the connection, not of the message: they end here (RFC 9110 section 7.6.1), as they do over HTTP/2.
_HOP_BY_HOP = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding"})
_FRAMING = _HOP_BY_HOP | {b"host", b"content-length", b"expect"}


@dataclass(frozen=True, slots=True)
class RequestHead:
    """A request's head and what it says about the rest of the exchange."""

    head: Head
    length: int
    """Of the body in bytes, or `CHUNKED`."""
    keep_alive: bool
    modern: bool
    """HTTP/1.1 or a later 1.x: chunks and interim responses are understood."""
    expects_continue: bool


@dataclass(frozen=True, slots=True)
class ResponseHead:
    """A response's head and what it says about the rest of the exchange."""

    head: Head
    length: int
    """Of the body in bytes, `CHUNKED` or `UNTIL_CLOSE`; not yet minding that HEAD, 204 and 304 have none."""
    keep_alive: bool


_Parsed = TypeVar("_Parsed")


class _Framing:
    """What the fields say about connection and body, gathered while they are read."""

    __slots__ = ("codings", "connection", "expect", "hosts", "lengths")

    def __init__(self) -> None:
        self.hosts: list[bytes] = []
        self.lengths: list[bytes] = []
        self.codings: list[bytes] = []
        self.connection: list[bytes] = []
        self.expect: bytes | None = None

    def add(self, name: bytes, value: bytes) -> None:
        if name == b"host":
            self.hosts.append(value)
        elif name == b"content-length":
            self.lengths.append(value)
        elif name == b"transfer-encoding":
            self.codings += _members(value)
        elif name == b"connection":
            self.connection += _members(value)
        elif name == b"expect":
            self.expect = value

    def keep_alive(self, *, modern: bool) -> bool:
        if not self.connection:
            return modern
        if b"close" in self.connection:
            return False
        return modern or b"keep-alive" in self.connection

    def length(self, *, modern: bool, without: int) -> int:
        """The body's length in bytes or `CHUNKED`; *without* where neither field is there."""
        if self.codings:
            return self._chunked(modern=modern)
        if not self.lengths:
            return without
        if len(self.lengths) > 1:
            raise Refused(400, "The message has more than one Content-Length.")
        if LENGTH.fullmatch(self.lengths[0]) is None:
            raise Refused(400, f"{show(self.lengths[0])} is not a Content-Length.")
        return int(self.lengths[0])

    def _chunked(self, *, modern: bool) -> int:
        if self.lengths:
            raise Refused(400, "The message has both Content-Length and Transfer-Encoding.")
        if not modern:
            raise Refused(400, "Transfer-Encoding does not exist in HTTP/1.0.")
        if self.codings == [b"chunked"]:
            return CHUNKED
        if self.codings.count(b"chunked") != 1 or self.codings[-1] != b"chunked":
            unknown = [coding for coding in self.codings if coding != b"chunked"]
            if unknown and b"chunked" not in self.codings:
                raise Refused(501, f"The transfer coding {show(unknown[0])} is not known; use chunked.")
            raise Refused(400, "In Transfer-Encoding, chunked must come once and last.")
        raise Refused(501, f"The transfer coding {show(self.codings[0])} is not known; use chunked alone.")


def _members(value: bytes) -> list[bytes]:
    """The elements of a comma-separated list, lower-case."""
    return [member for part in value.split(b",") if (member := part.strip(b" \t").lower())]


class HeadReader:
    """Parses heads and remembers the recent ones: a kept-alive client repeats itself byte for byte.

    One may be shared by all connections of a listener. What it remembers is bounded, and heads in it are shared
    objects: see `Head.memo`.
    """

    __slots__ = ("_limits", "_requests", "_responses")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._requests: dict[bytes, RequestHead] = {}
        self._responses: dict[bytes, ResponseHead] = {}

    def request(self, block: bytes) -> RequestHead:
        """Read one whole head, up to and with its empty line. Raises Refused."""
        found = self._requests.get(block)
        if found is None:
            found = self._parse_request(block)
            if len(block) <= _CACHED_HEAD_BYTES:
                _remember(self._requests, block, found)
        return found

    def response(self, block: bytes) -> ResponseHead:
        """Read one whole head, up to and with its empty line. Raises Refused, with a status that means nothing."""
        found = self._responses.get(block)
        if found is None:
            found = self._parse_response(block)
            if len(block) <= _CACHED_HEAD_BYTES:
                _remember(self._responses, block, found)
        return found

    def trailers(self, block: bytes) -> tuple[Field, ...]:
        """Read the trailers of a chunked body; fields that frame a message are dropped from them."""
        lines = split_lines(block)
        fields, _ = self._fields(lines, 0, len(block))
        return tuple(field for field in fields if field[0] not in _FRAMING)

    def _parse_request(self, block: bytes) -> RequestHead:
        lines = split_lines(block)
        method, target, modern = _request_line(lines[0])
        fields, framing = self._fields(lines, 1, len(block))
        if len(framing.hosts) > 1 or (modern and not framing.hosts):
            raise Refused(400, "The request must have exactly one Host header.")
        host = framing.hosts[0] if framing.hosts else b""
        if HOST.fullmatch(host) is None:
            raise Refused(400, f"{show(host)} is not a host.")
        path, authority, scheme = _target(method, target, host)
        length = framing.length(modern=modern, without=0)
        expects = framing.expect is not None and modern
        if expects and framing.expect is not None and framing.expect.lower() != b"100-continue":
            raise Refused(417, f"The expectation {show(framing.expect)} is not known; 100-continue is.")
        head = Head(tuple(fields), method=method, path=path, scheme=scheme, authority=authority)
        # What follows a CONNECT is meant for the far end of a tunnel: it must never be taken for a request.
        keep_alive = framing.keep_alive(modern=modern) and method != b"CONNECT"
        return RequestHead(head, length, keep_alive, modern, expects and length != 0)

    def _parse_response(self, block: bytes) -> ResponseHead:
        lines = split_lines(block)
        status, modern = _status_line(lines[0])
        fields, framing = self._fields(lines, 1, len(block))
        length = framing.length(modern=modern, without=UNTIL_CLOSE)
        keep_alive = framing.keep_alive(modern=modern)
        return ResponseHead(Head(tuple(fields), status=status), length, keep_alive)

    def _fields(self, lines: list[bytes], start: int, size: int) -> tuple[list[Field], _Framing]:
        count = len(lines) - start
        limits = self._limits
        # Counted as RFC 9113 does, with 32 for each: ": " and CRLF are 4 of them.
        if count > limits.max_header_count or size + 28 * count > limits.max_header_bytes:
            raise too_large(limits)
        framing = _Framing()
        fields: list[Field] = []
        for position in range(start, len(lines)):
            name, colon, value = lines[position].partition(b":")
            if not colon:
                raise Refused(400, f"A header line has no colon: {show(name)}.")
            name = lower_name(name)
            value = value.strip(b" \t")
            if name in _FRAMING:
                framing.add(name, value)
                if name in _HOP_BY_HOP or name == b"host":
                    continue
            fields.append((name, value))
        return fields, framing


def too_large(limits: Limits) -> Refused:
    """The answer to more headers than *limits* allow."""
    return Refused(
        431,
        f"The headers are over the limit of {limits.max_header_count} fields or {limits.max_header_bytes} bytes.",
    )


def _remember(cache: dict[bytes, _Parsed], block: bytes, parsed: _Parsed) -> None:
    # Emptied when full: cheaper than keeping an order, and a peer that never repeats itself costs no more than that.
    if len(cache) >= _CACHED_HEADS:
        cache.clear()
    cache[block] = parsed


def _request_line(line: bytes) -> tuple[bytes, bytes, bool]:
    parts = line.split(b" ")
    if len(parts) != 3:
        raise Refused(400, f"The request line is malformed: {show(line)}.")
    method, target, version = parts
    if method not in METHODS and TOKEN.fullmatch(method) is None:
        raise Refused(400, f"{show(method)} is not a method.")
    if not target:
        raise Refused(400, "The request line has no target.")
    if version == b"HTTP/1.1":
        return method, target, True
    return method, target, _is_modern(version)


def _is_modern(version: bytes) -> bool:
    match = VERSION.fullmatch(version)
    if match is None:
        raise Refused(400, f"{show(version)} is not a version of HTTP.")
    if match[1] != b"1":
        raise Refused(505, f"{show(version)} is not spoken here in this form; use HTTP/1.1.")
    return match[2] != b"0"


def _status_line(line: bytes) -> tuple[int, bool]:
    version, _, rest = line.partition(b" ")
    code, _, _ = rest.partition(b" ")
    if len(code) != 3 or not code.isdigit() or not 100 <= int(code) <= 999:
        raise Refused(502, f"the status line is malformed: {show(line)}")
    return int(code), version == b"HTTP/1.1" or _is_modern(version)


def _target(method: bytes, target: bytes, host: bytes) -> tuple[bytes, bytes, bytes]:
    """Path, authority and scheme, from any of the four forms of RFC 9112 section 3.2."""
    if method == b"CONNECT":
        if HOST.fullmatch(target) is None:
            raise Refused(400, f"{show(target)} is not what CONNECT can name; it needs host:port.")
        return b"", target, b""
    if target.startswith(b"/") or (target == b"*" and method == b"OPTIONS"):
        return target, host, b""
    scheme, separator, rest = target.partition(b"://")
    if not separator or scheme.lower() not in (b"http", b"https"):
        raise Refused(400, f"{show(target)} is not a request target; it must start with '/'.")
    authority, path = _split_authority(rest)
    if not authority or HOST.fullmatch(authority) is None:
        raise Refused(400, f"{show(authority)} is not a host.")
    return path, authority, scheme.lower()


def _split_authority(rest: bytes) -> tuple[bytes, bytes]:
    for position, code in enumerate(rest):
        if code in b"/?":
            path = rest[position:]
            return rest[:position], path if path.startswith(b"/") else b"/" + path
    return rest, b"/"
