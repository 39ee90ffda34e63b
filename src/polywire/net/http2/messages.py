"""From fields to messages: which header lists are a request, a response or trailers (RFC 9113 section 8)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from polywire.net.hpack import Lead
from polywire.net.http2.frames import ErrorCode, StreamFault
from polywire.net.stream import Field, Head

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+").fullmatch
_VALUE = re.compile(rb"(?:[^\0\r\n\t ](?:[^\0\r\n]*[^\0\r\n\t ])?)?").fullmatch
"""RFC 9113 section 8.2.1: no NUL, CR or LF anywhere, no white space at either end."""
_STATUS = re.compile(rb"[1-9][0-9][0-9]").fullmatch
_LENGTH = re.compile(rb"[0-9]{1,18}").fullmatch

_CONNECTION_SPECIFIC = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"})
_REQUEST_PSEUDO = frozenset({b":method", b":scheme", b":path", b":authority"})
_SPECIAL = _CONNECTION_SPECIFIC | {b"te", b"host", b"content-length", b"cookie"}
"""Ordinary by their letters, but each with a rule of its own."""

_MAX_KNOWN = 1024
_MAX_KNOWN_LENGTH = 64
_known: set[bytes] = set()
"""Names that need no second look: tokens without a rule of their own. Shared by all connections, bounded."""


def malformed(reason: str) -> StreamFault:
    return StreamFault(ErrorCode.PROTOCOL_ERROR, reason)


def request(lead: Lead, rest: tuple[Field, ...]) -> tuple[Head, tuple[Field, ...], int]:
    """The head, the tail and the declared length of the body (-1 where there is none). Raises StreamFault."""
    head = lead.head
    if head is None and lead.fields:
        head = _lead_request(lead)
    if head is not None:
        length = _tail_length(rest, lead.length) if rest else lead.length
        if length is not None:
            return head, rest, length
    head, length = _request_head(lead.fields + rest)
    return head, (), length


def response(lead: Lead, rest: tuple[Field, ...]) -> tuple[Head, tuple[Field, ...], int]:
    """As `request`; the head of an interim response has a status below 200. Raises StreamFault."""
    head = lead.head
    if head is None and lead.fields:
        lead.head, lead.length = head, _ = _response_head(lead.fields)
    if head is not None:
        length = _tail_length(rest, lead.length) if rest else lead.length
        if length is not None:
            return head, rest, length
    head, length = _response_head(lead.fields + rest)
    return head, (), length


def trailers(lead: Lead, rest: tuple[Field, ...]) -> tuple[Field, ...]:
    """All trailers. Raises StreamFault."""
    leading = lead.trailers
    if leading is None:
        leading = lead.trailers = _ordinary(lead.fields)
    if not rest:
        return leading
    return leading + _ordinary(rest)


def _tail_length(rest: tuple[Field, ...], length: int) -> int | None:
    """The declared length of the body, where each field of *rest* stands for itself, else None: judge it as a whole.

    Raises StreamFault for a bad value.
    """
    for name, value in rest:
        if name not in _known and not _learn(name):
            # The one field with a rule that differs from call to call with the same head.
            if name != b"content-length" or length >= 0 or not _LENGTH(value):
                return None
            length = int(value)
        elif not (value.split() == [value] and 0 not in value) and not _VALUE(value):
            # The first look is for the many values without any white space, at a third of the price.
            raise malformed(f"the value of {_text(name)} contains an octet that it must not")
    return length


def _learn(name: bytes) -> bool:
    if name in _SPECIAL or not _TOKEN(name):
        return False
    if len(name) <= _MAX_KNOWN_LENGTH:
        if len(_known) >= _MAX_KNOWN:
            _known.clear()
        _known.add(name)
    return True


def _lead_request(lead: Lead) -> Head | None:
    """The head of a lead that is a request by itself. One whose pseudo-headers go on in the rest is judged whole."""
    names = {name for name, _ in lead.fields}
    if b":method" not in names or not (b":path" in names or (b":method", b"CONNECT") in lead.fields):
        return None
    if b":scheme" not in names or b"cookie" in names:
        return None
    lead.head, lead.length = _request_head(lead.fields)
    return lead.head


def _request_head(fields: tuple[Field, ...]) -> tuple[Head, int]:
    pseudo, ordinary = _split(fields, _REQUEST_PSEUDO)
    regular = _ordinary(ordinary, in_request=True)
    method = pseudo.get(b":method", b"")
    scheme = pseudo.get(b":scheme", b"")
    path = pseudo.get(b":path", b"")
    if not _METHOD(method):
        raise malformed("the request has no valid :method")
    if method == b"CONNECT":
        if scheme or path or not pseudo.get(b":authority"):
            raise malformed("a CONNECT request has :authority alone")
    elif not scheme or not (path.startswith(b"/") or (path == b"*" and method == b"OPTIONS")):
        raise malformed("the request lacks :scheme or a :path that starts with a slash")
    authority, regular = _authority(pseudo.get(b":authority"), regular)
    head = Head(_joined_cookies(regular), method=method, path=path, scheme=scheme, authority=authority)
    return head, _content_length(regular)


_METHOD = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,32}").fullmatch


def _response_head(fields: tuple[Field, ...]) -> tuple[Head, int]:
    pseudo, ordinary = _split(fields, frozenset({b":status"}))
    status = pseudo.get(b":status", b"")
    if not _STATUS(status) or status == b"101":
        raise malformed("the response has no valid :status")
    regular = _ordinary(ordinary)
    return Head(regular, status=int(status)), _content_length(regular)


def _split(fields: tuple[Field, ...], allowed: frozenset[bytes]) -> tuple[dict[bytes, bytes], tuple[Field, ...]]:
    pseudo: dict[bytes, bytes] = {}
    for position, (name, value) in enumerate(fields):
        if name[:1] != b":":
            return pseudo, fields[position:]
        if name not in allowed:
            raise malformed(f"{_text(name)} is not a pseudo-header of this message")
        if name in pseudo:
            raise malformed(f"{_text(name)} comes twice")
        if not _VALUE(value):
            raise malformed(f"the value of {_text(name)} contains an octet that it must not")
        pseudo[name] = value
    return pseudo, ()


def _ordinary(fields: tuple[Field, ...], *, in_request: bool = False) -> tuple[Field, ...]:
    """*fields*, each of them found to be right for a message over HTTP/2."""
    for name, value in fields:
        if name not in _known and not _learn(name):
            _check_special(name, value, in_request=in_request)
        if not _VALUE(value):
            raise malformed(f"the value of {_text(name)} contains an octet that it must not")
    return fields


def _check_special(name: bytes, value: bytes, *, in_request: bool) -> None:
    if name[:1] == b":":
        raise malformed(f"the pseudo-header {_text(name)} comes after an ordinary one, or in trailers")
    if name not in _SPECIAL:
        raise malformed(f"{_text(name)} is not a lower-case header name")
    if name in _CONNECTION_SPECIFIC:
        raise malformed(f"{_text(name)} has no meaning over HTTP/2")
    if in_request and name == b"te" and value.lower() != b"trailers":
        raise malformed("te may only be trailers over HTTP/2")


def _authority(pseudo: bytes | None, fields: tuple[Field, ...]) -> tuple[bytes, tuple[Field, ...]]:
    """`:authority`, or what `host` says instead, and the fields without it."""
    hosts = {value for name, value in fields if name == b"host"}
    if not hosts:
        return pseudo or b"", fields
    authority = hosts.pop() if pseudo is None else pseudo
    if hosts - {authority}:
        raise malformed("host and :authority name different servers")
    return authority, tuple([field for field in fields if field[0] != b"host"])


def _joined_cookies(fields: tuple[Field, ...]) -> tuple[Field, ...]:
    """One `cookie` field where the peer split it for better compression (RFC 9113 section 8.2.3)."""
    crumbs = [value for name, value in fields if name == b"cookie"]
    if len(crumbs) < 2:
        return fields
    return (*[field for field in fields if field[0] != b"cookie"], (b"cookie", b"; ".join(crumbs)))


def _content_length(fields: Sequence[Field]) -> int:
    lengths = {value for name, value in fields if name == b"content-length"}
    if not lengths:
        return -1
    length = lengths.pop()
    if lengths or not _LENGTH(length):
        raise malformed("content-length is not one number")
    return int(length)


def _text(name: bytes) -> str:
    """A peer's bytes for a sentence: short, and harmless in a log."""
    return ascii(name[:40].decode("latin-1"))
