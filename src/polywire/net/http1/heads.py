"""Reads the head of a request or a response: first line, fields, and how the body is framed."""

from __future__ import annotations

from polywire.net.http1.grammar import (
    CHUNKED,
    HOST,
    KNOWN,
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

_LEADS = 512
_LEAD_BYTES = 2048

# Fields of the connection, not of the message: they end here (RFC 9110 section 7.6.1), as they do over HTTP/2.
_HOP_BY_HOP = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding"})
_FRAMING = _HOP_BY_HOP | {b"host", b"content-length", b"expect"}
_HIDDEN = _HOP_BY_HOP | {b"host"}

_ONE_HOST = "The request must have exactly one Host header."


class RequestHead:
    """A request's head and what it says about the rest of the exchange."""

    __slots__ = ("expects_continue", "head", "keep_alive", "length", "modern", "tail")

    def __init__(self, head: Head, tail: tuple[Field, ...], length: int, keep_alive: bool, modern: bool) -> None:
        self.head = head
        self.tail = tail
        self.length = length
        """Of the body in bytes, or `CHUNKED`."""
        self.keep_alive = keep_alive
        self.modern = modern
        """HTTP/1.1 or a later 1.x: chunks and interim responses are understood."""
        self.expects_continue = False


class ResponseHead:
    """A response's head and what it says about the rest of the exchange."""

    __slots__ = ("head", "keep_alive", "length", "tail")

    def __init__(self, head: Head, tail: tuple[Field, ...], length: int, keep_alive: bool) -> None:
        self.head = head
        self.tail = tail
        self.length = length
        """Of the body in bytes, `CHUNKED` or `UNTIL_CLOSE`; not yet minding that HEAD, 204 and 304 have none."""
        self.keep_alive = keep_alive


class _Lead:
    """The lines that messages with the same first line have in common so far, parsed."""

    __slots__ = ("count", "framing", "head", "hosted", "modern", "plain", "prefix", "request", "response", "size")

    def __init__(self, prefix: bytes, head: Head, framing: list[Field], count: int, modern: bool) -> None:
        self.prefix = prefix
        self.size = len(prefix) + 2
        """Of a head that has no more lines than these."""
        self.request: RequestHead | None = None
        """What came of such a head, if there was one."""
        self.response: ResponseHead | None = None
        self.head = head
        self.framing = framing
        self.count = count
        self.modern = modern
        self.hosted = any(name == b"host" for name, _ in framing)
        """Of a request: it says for which host it is, so that its head is complete as far as it goes."""
        self.plain = modern and len(framing) == 1 and self.hosted and head.method != b"CONNECT"
        """Of a request: no body, and the connection stays, unless further fields say something else."""


class HeadReader:
    """Parses heads, and remembers their beginnings: clients and servers repeat themselves line by line.

    Of a message whose first lines were seen before, only the lines after those are parsed; they become the *tail* of
    the stream, and the `Head` is the same object again. One reader may be shared by all connections of a listener, so
    a head may be shared between connections. What is remembered is bounded.
    """

    __slots__ = ("_limits", "_requests", "_responses")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._requests: dict[bytes, _Lead] = {}
        self._responses: dict[bytes, _Lead] = {}

    def request(self, block: bytes) -> RequestHead:
        """Read one whole head, up to and with its empty line. Raises Refused."""
        line = block[: block.find(b"\r\n")]
        lead = self._requests.get(line)
        if lead is not None and not block.startswith(lead.prefix):
            lead = self._learn_request(line, _common(lead.prefix, block))
        if lead is None or not lead.hosted:
            lead = self._learn_request(line, block[:-2])
        if len(block) == lead.size and lead.request is not None:
            return lead.request
        tail, framing = self._tail(lead, block)
        if lead.plain and not framing:
            request = RequestHead(lead.head, tail, 0, True, True)
        elif lead.plain and len(framing) == 1 and framing[0][0] == b"content-length":
            request = RequestHead(lead.head, tail, _to_length(framing[0][1]), True, True)
        else:
            request = _framed_request(lead, tail, lead.framing + framing)
        if len(block) == lead.size:
            lead.request = request
        return request

    def response(self, block: bytes) -> ResponseHead:
        """Read one whole head, up to and with its empty line. Raises Refused, with a status that means nothing."""
        line = block[: block.find(b"\r\n")]
        lead = self._responses.get(line)
        if lead is not None and not block.startswith(lead.prefix):
            lead = self._learn_response(line, _common(lead.prefix, block))
        if lead is None:
            lead = self._learn_response(line, block[:-2])
        if len(block) == lead.size and lead.response is not None:
            return lead.response
        tail, framing = self._tail(lead, block)
        if lead.modern and not lead.framing and len(framing) == 1 and framing[0][0] == b"content-length":
            response = ResponseHead(lead.head, tail, _to_length(framing[0][1]), True)
        else:
            framing = lead.framing + framing
            length = _length(framing, modern=lead.modern, without=UNTIL_CLOSE)
            response = ResponseHead(lead.head, tail, length, _keep_alive(framing, lead.modern))
        if len(block) == lead.size:
            lead.response = response
        return response

    def trailers(self, block: bytes) -> tuple[Field, ...]:
        """Read the trailers of a chunked body; fields that frame a message are dropped from them."""
        lines = split_lines(block)
        self._check_size(len(block), len(lines))
        fields, _ = _fields(lines)
        return tuple(field for field in fields if field[0] not in _FRAMING)

    def _tail(self, lead: _Lead, block: bytes) -> tuple[tuple[Field, ...], list[Field]]:
        """The fields after those of *lead*, and those among them, or kept out of them, that frame the message."""
        rest = block[len(lead.prefix) :]
        if rest == b"\r\n":
            self._check_size(len(block), lead.count)
            return (), []
        lines = split_lines(rest)
        self._check_size(len(block), lead.count + len(lines))
        fields, framing = _fields(lines)
        return tuple(fields), framing

    def _check_size(self, size: int, count: int) -> None:
        limits = self._limits
        # Counted as RFC 9113 does, with 32 for each: ": " and CRLF are 4 of them.
        if count > limits.max_header_count or size + 28 * count > limits.max_header_bytes:
            raise too_large(limits)

    def _learn_request(self, line: bytes, prefix: bytes) -> _Lead:
        lines = split_lines(prefix + b"\r\n")
        method, target, modern = _request_line(lines[0])
        del lines[0]
        self._check_size(len(prefix) + 2, len(lines))
        fields, framing = _fields(lines)
        hosts = [value for name, value in framing if name == b"host"]
        host = hosts[0] if hosts else b""
        path, authority, scheme = _target(method, target, host)
        head = Head(tuple(fields), method=method, path=path, scheme=scheme, authority=authority)
        lead = _Lead(prefix, head, framing, len(lines), modern)
        if lead.hosted:
            _remember(self._requests, line, lead)
        return lead

    def _learn_response(self, line: bytes, prefix: bytes) -> _Lead:
        lines = split_lines(prefix + b"\r\n")
        status, modern = _status_line(lines[0])
        del lines[0]
        self._check_size(len(prefix) + 2, len(lines))
        fields, framing = _fields(lines)
        lead = _Lead(prefix, Head(tuple(fields), status=status), framing, len(lines), modern)
        _remember(self._responses, line, lead)
        return lead


def _remember(leads: dict[bytes, _Lead], line: bytes, lead: _Lead) -> None:
    # Emptied when full: cheaper than keeping an order, and a peer that never repeats itself costs no more than that.
    if len(lead.prefix) <= _LEAD_BYTES:
        if len(leads) >= _LEADS:
            leads.clear()
        leads[line] = lead


def _common(prefix: bytes, block: bytes) -> bytes:
    """The whole lines with which both begin."""
    common: list[bytes] = []
    for old, new in zip(prefix.split(b"\r\n"), block.split(b"\r\n"), strict=False):
        if old != new:
            break
        common.append(old)
    return b"\r\n".join([*common, b""])


def _fields(lines: list[bytes]) -> tuple[list[Field], list[Field]]:
    """The fields of *lines*, and those among them, or kept out of them, that frame the message."""
    framing: list[Field] = []
    fields: list[Field] = []
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon:
            raise Refused(400, f"A header line has no colon: {show(name)}.")
        known = KNOWN.get(name)
        if known is None:
            known = lower_name(name)
        field = (known, value.strip(b" \t"))
        if known in _FRAMING:
            framing.append(field)
            if known in _HIDDEN:
                continue
        fields.append(field)
    return fields, framing


def _framed_request(lead: _Lead, tail: tuple[Field, ...], framing: list[Field]) -> RequestHead:
    modern = lead.modern
    _check_host(framing, modern)
    length = _length(framing, modern=modern, without=0)
    # What follows a CONNECT is meant for the far end of a tunnel: it must never be taken for a request.
    keep_alive = _keep_alive(framing, modern) and lead.head.method != b"CONNECT"
    request = RequestHead(lead.head, tail, length, keep_alive, modern)
    request.expects_continue = modern and _expects_continue(framing) and length != 0
    return request


def _check_host(framing: list[Field], modern: bool) -> None:
    hosts = [value for name, value in framing if name == b"host"]
    if len(hosts) > 1 or (modern and not hosts):
        raise Refused(400, _ONE_HOST)


def _keep_alive(framing: list[Field], modern: bool) -> bool:
    options = _members(framing, b"connection")
    if not options:
        return modern
    return b"close" not in options and (modern or b"keep-alive" in options)


def _length(framing: list[Field], *, modern: bool, without: int) -> int:
    """The body's length in bytes or `CHUNKED`; *without* where neither field is there (RFC 9112 section 6.3)."""
    lengths = [value for name, value in framing if name == b"content-length"]
    codings = _members(framing, b"transfer-encoding")
    if codings:
        return _chunked(codings, lengths, modern=modern)
    if not lengths:
        return without
    if len(lengths) > 1:
        raise Refused(400, "The message has more than one Content-Length.")
    return _to_length(lengths[0])


def _to_length(value: bytes) -> int:
    if LENGTH.fullmatch(value) is None:
        raise Refused(400, f"{show(value)} is not a Content-Length.")
    return int(value)


def _chunked(codings: list[bytes], lengths: list[bytes], *, modern: bool) -> int:
    if lengths:
        raise Refused(400, "The message has both Content-Length and Transfer-Encoding.")
    if not modern:
        raise Refused(400, "Transfer-Encoding does not exist in HTTP/1.0.")
    if codings == [b"chunked"]:
        return CHUNKED
    if b"chunked" not in codings:
        raise Refused(501, f"The transfer coding {show(codings[0])} is not known; use chunked.")
    if codings.index(b"chunked") != len(codings) - 1:
        raise Refused(400, "In Transfer-Encoding, chunked must come once and last.")
    raise Refused(501, f"The transfer coding {show(codings[0])} is not known; use chunked alone.")


def _expects_continue(framing: list[Field]) -> bool:
    for name, value in framing:
        if name == b"expect":
            if value.lower() != b"100-continue":
                raise Refused(417, f"The expectation {show(value)} is not known; 100-continue is.")
            return True
    return False


def _members(framing: list[Field], wanted: bytes) -> list[bytes]:
    """The elements of all lists in fields called *wanted*, lower-case."""
    members: list[bytes] = []
    for name, value in framing:
        if name == wanted:
            members += [member for part in value.split(b",") if (member := part.strip(b" \t").lower())]
    return members


def too_large(limits: Limits) -> Refused:
    """The answer to more headers than *limits* allow."""
    return Refused(
        431,
        f"The headers are over the limit of {limits.max_header_count} fields or {limits.max_header_bytes} bytes. "
        "Send fewer, or raise `max_header_count` and `max_header_bytes` at their receiver.",
    )


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
    if HOST.fullmatch(host) is None:
        raise Refused(400, f"{show(host)} is not a host.")
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
