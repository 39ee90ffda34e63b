"""Envelopes as AMQP 0-9-1 messages: CloudEvents' binary mode in the headers, written and read without detours."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pika import data as amqp
from pika.exceptions import AMQPError

from polywire.bus.core.envelope import Envelope, attributes_of, envelope_from, new_id
from polywire.errors import UndecodableMessage

PREFIX = "cloudEvents:"
PREFIXES = (PREFIX, "cloudEvents_")
"""CloudEvents' AMQP binding allows both."""
OWN = "polywire-"
"""Headers of ours that are no attributes of CloudEvents: about a death, about a lane."""
ESCAPE = "polywire-header:"
"""Before names of the sender's headers that would collide with ours or the broker's."""
DELIVERY_COUNT = "x-delivery-count"
ATTRIBUTES = (
    *("specversion", "id", "type", "source", "time", "partitionkey", "traceparent", "tracestate", "requestid"),
    *("causationid", "principal", "replyto", "notbefore", "expirytime"),
    *("dataversion", "priority", "attempt", "lost", "redrivecount", "generation"),
)
"""All that `attributes_of` makes."""

_PERSISTENT = b"\x02"
_FLAGS_WITH_HEADERS = struct.Struct(">H").pack(1 << 15 | 1 << 13 | 1 << 12 | 1 << 7 | 1 << 5)
"""content_type, headers, delivery_mode, message_id, type: in this order on the wire."""


@dataclass(slots=True)
class Received:
    """A message as it came: what our consumers read from its properties."""

    envelope: Envelope
    count: int
    """How often it was delivered before and not acknowledged, as the broker counts."""
    own: dict[str, str]
    """Our own headers, without their prefix."""
    unreadable: str | None = None
    died_by_broker: bool = False
    """The broker dead-lettered it at its delivery limit."""


# ---- writing -----------------------------------------------------------------------------------------------------


_NAMES = {name: f"{chr(len(PREFIX + name))}{PREFIX}{name}S" for name in ATTRIBUTES}
"""Of CloudEvents attributes, with prefix, length and type."""


def encode(envelope: Envelope, own: Mapping[str, str] | None = None) -> bytes:
    """The properties of a persistent message, as they stand in a content header frame. *own* are headers of ours."""
    attributes = attributes_of(envelope)
    headers = {header_name(name): value for name, value in envelope.headers.items()} if envelope.headers else {}
    if own:
        headers.update((OWN + name, value) for name, value in own.items())
    try:
        table = _short_ascii(attributes, headers).encode("ascii")
    except UnicodeEncodeError:
        table = _any(attributes, headers)
    kind = envelope.type.encode()[:255]
    identifier = envelope.id.encode()[:255]
    content_type = envelope.content_type.encode()[:255]
    return b"".join(
        (
            _FLAGS_WITH_HEADERS,
            bytes((len(content_type),)),
            content_type,
            len(table).to_bytes(4, "big"),
            table,
            _PERSISTENT,
            bytes((len(identifier),)),
            identifier,
            bytes((len(kind),)),
            kind,
        )
    )


def _short_ascii(attributes: Mapping[str, str], headers: Mapping[str, str]) -> str:
    """The headers where all is ASCII and shorter than 128 bytes, lengths included: as text, so that one conversion does
    for all of it. Where something is not, neither is its length or its text."""
    parts = [f"{_NAMES[name]}\0\0\0{chr(len(text))}{text}" for name, text in attributes.items()]
    parts += [f"{chr(len(name))}{name}S\0\0\0{chr(len(text))}{text}" for name, text in headers.items()]
    return "".join(parts)


def _any(attributes: Mapping[str, str], headers: Mapping[str, str]) -> bytes:
    parts: list[bytes] = []
    for name, text in attributes.items():
        value = text.encode()
        parts += (_NAMES[name].encode(), len(value).to_bytes(4, "big"), value)
    for name, text in headers.items():
        key, value = name.encode(), text.encode()
        parts += (bytes((len(key),)), key, b"S", len(value).to_bytes(4, "big"), value)
    return b"".join(parts)


def header_name(name: str) -> str:
    """What the sender's header *name* is called on the wire."""
    return ESCAPE + name if name.startswith(("x-", OWN)) else name


def frames(channel: int, exchange: bytes, routing_key: bytes, properties: bytes, body: bytes, frame_max: int) -> bytes:
    """Basic.Publish with mandatory set, header and body frames in one block."""
    room = frame_max - 8
    size = len(body)
    content = _CONTENT.pack(2, channel, 12 + len(properties), 60, 0, size)
    parts = [_method(channel, exchange, routing_key), content, properties, b"\xce"]
    for start in range(0, size, room):
        chunk = body if size <= room else body[start : start + room]
        parts += (_HEAD.pack(3, channel, len(chunk)), chunk, b"\xce")
    return b"".join(parts)


@lru_cache(maxsize=256)
def _method(channel: int, exchange: bytes, routing_key: bytes) -> bytes:
    """The frame before the content. Its length says how long the names are."""
    names = bytes((len(exchange),)) + exchange + bytes((len(routing_key),)) + routing_key
    method = b"\x00\x3c\x00\x28\x00\x00" + names + b"\x01"
    return _HEAD.pack(1, channel, len(method)) + method + b"\xce"


_HEAD = struct.Struct(">BHI")
_CONTENT = struct.Struct(">BHIHHQ")


# ---- reading -----------------------------------------------------------------------------------------------------


def decode(properties: bytes, body: bytes) -> Received:
    """Never raises: what cannot be read says why in `unreadable`."""
    return _plain(properties, body) or _any_kind(properties, body)


def _plain(properties: bytes, body: bytes) -> Received | None:
    """A message as we write them, all of its headers in ASCII, so that one conversion does for all; None where it is
    anything else, or broken."""
    if properties[:2] != _FLAGS_WITH_HEADERS:
        return None
    try:
        at = 3 + properties[2]
        content_type = properties[3:at].decode()
        end = at + 4 + int.from_bytes(properties[at : at + 4], "big")
        table = properties[at + 4 : end]
        if end > len(properties) or not table.isascii():
            return None
        attributes, headers, received = _texts(table)
        received.envelope = envelope_from(attributes, body=body, content_type=content_type, headers=headers or None)
    except (UndecodableMessage, AMQPError, struct.error, ValueError, IndexError, OverflowError):
        return None
    return received


_NOBODY = Envelope("", "", b"")
_SUSPICIOUS = frozenset(name[:1] for name in (*PREFIXES, OWN, ESCAPE, "x-", ""))
"""What names begin with that may be anything but headers of the sender."""


def _texts(table: bytes) -> tuple[dict[str, str], dict[str, str], Received]:
    """Attributes, the sender's headers and what else the headers say. Raises IndexError where they are cut off."""
    attributes: dict[str, str] = {}
    headers: dict[str, str] = {}
    received = Received(_NOBODY, 0, {})
    known = _KNOWN.get
    text, at, end = table.decode("ascii"), 0, len(table)
    while at < end:
        value_at = at + 1 + table[at]
        name = text[at + 1 : value_at]
        start = value_at + 5
        if text[value_at : start - 1] == "S\0\0\0":  # shorter than 256
            at = start + table[start - 1]
            if (attribute := known(name)) is not None:
                attributes[attribute] = text[start:at]
            elif name[:1] in _SUSPICIOUS:
                _header(name, text[start:at], attributes, headers, received)
            else:
                headers[name] = text[start:at]
        else:
            value, at = amqp.decode_value(table, value_at)
            _header(name, value, attributes, headers, received)
    if at != end:
        raise IndexError(at)
    return attributes, headers, received


def _any_kind(properties: bytes, body: bytes) -> Received:
    received = Received(Envelope("", "", body, content_type="application/octet-stream"), 0, {})
    try:
        _read(properties, body, received)
    except (UndecodableMessage, AMQPError, struct.error, ValueError, IndexError, OverflowError) as error:
        received.unreadable = str(error) or repr(error)
        received.envelope.id = received.envelope.id or hashlib.sha256(properties + body).hexdigest()[:32]
    return received


def _read(properties: bytes, body: bytes, received: Received) -> None:
    """In the order of the wire; `received` keeps what was read before something could not be."""
    flags = properties[0] << 8 | properties[1]
    at = 2
    broken = received.envelope
    content_type = broken.content_type
    if flags & 1 << 15:
        content_type, at = _short(properties, at)
        broken.content_type = content_type
    if flags & 1 << 14:  # content encoding
        at += 1 + properties[at]
    attributes: dict[str, str] = {}
    headers: dict[str, str] = {}
    if flags & 1 << 13:
        size = int.from_bytes(properties[at : at + 4], "big")
        end = at + 4 + size
        broken.id, broken.type, broken.source = _rest(properties, end, flags)
        _headers(properties, at + 4, end, attributes, headers, received)
    else:
        broken.id, broken.type, broken.source = _rest(properties, at, flags)
    broken.headers = headers or None
    if attributes:
        received.envelope = envelope_from(attributes, body=body, content_type=content_type, headers=headers or None)
    elif not broken.id:
        # Not ours, and it has no id: it gets another one each time it is delivered.
        broken.id = new_id()


def _rest(properties: bytes, at: int, flags: int) -> tuple[str, str, str]:
    """message_id, type and app_id, which stand behind the headers; the other properties are of no use to us."""
    message_id = kind = app_id = ""
    at += (flags >> 12 & 1) + (flags >> 11 & 1)  # delivery mode and priority
    if flags & (1 << 10 | 1 << 9 | 1 << 8):
        for bit in (10, 9, 8):  # correlation id, reply to, expiration
            if flags & 1 << bit:
                at += 1 + properties[at]
    if flags & 1 << 7:
        message_id, at = _short(properties, at)
    at += 8 * (flags >> 6 & 1)  # timestamp
    if flags & 1 << 5:
        kind, at = _short(properties, at)
    if flags & 1 << 4:
        at += 1 + properties[at]
    if flags & 1 << 3:
        app_id, at = _short(properties, at)
    return message_id, kind, app_id


def _short(encoded: bytes, at: int) -> tuple[str, int]:
    end = at + 1 + encoded[at]
    return encoded[at + 1 : end].decode("utf-8", "replace"), end


_KNOWN = {prefix + name: name for prefix in PREFIXES for name in ATTRIBUTES}
"""Attributes as they are called on the wire, without their prefix."""
_U32 = struct.Struct(">I")


def _headers(
    encoded: bytes, at: int, end: int, attributes: dict[str, str], headers: dict[str, str], received: Received
) -> None:
    if end > len(encoded):
        raise UndecodableMessage("The message's headers are cut off.")
    known = _KNOWN.get
    size_at = _U32.unpack_from
    while at < end:
        value_at = at + 1 + encoded[at]
        name = encoded[at + 1 : value_at].decode("utf-8", "replace")
        if encoded[value_at] == 0x53:  # S: nearly every value is a string
            start = value_at + 5
            at = start + size_at(encoded, value_at + 1)[0]
            try:
                value: Any = encoded[start:at].decode()
            except UnicodeDecodeError:
                value = encoded[start:at].decode("utf-8", "replace")
        else:
            value, at = amqp.decode_value(encoded, value_at)
        attribute = known(name)
        if attribute is not None:
            attributes[attribute] = value if type(value) is str else str(value)
        else:
            _header(name, value, attributes, headers, received)
    if at != end:
        raise UndecodableMessage("The message's headers are cut off.")


def _header(name: str, value: Any, attributes: dict[str, str], headers: dict[str, str], received: Received) -> None:
    text = value if type(value) is str else str(value)
    if name[:2] != "x-" and name[:9] != OWN and name[:12] not in PREFIXES:
        headers[name] = text
    elif name == DELIVERY_COUNT:
        received.count = int(value)
    elif name.startswith(ESCAPE):
        headers[name[len(ESCAPE) :]] = text
    elif name.startswith(OWN):
        received.own[name[len(OWN) :]] = text
    elif name.startswith(PREFIXES):
        attributes[name[len(PREFIX) :]] = text  # An extension that we do not know.
    elif name == "x-death":
        received.died_by_broker = _is_delivery_limit(value)
    elif not _is_brokers(name):
        headers[name] = text


def _is_brokers(name: str) -> bool:
    return name.startswith(("x-first-death-", "x-last-death-")) or name in (
        "x-acquired-count",
        "x-opt-rabbitmq-received",
    )


def _is_delivery_limit(deaths: Any) -> bool:
    return isinstance(deaths, list) and any(
        isinstance(death, dict) and death.get("reason") == "delivery_limit" for death in deaths
    )


def refusal(envelope: Envelope, max_bytes: int) -> str | None:
    """Why the envelope cannot be sent at all; None where it can."""
    if len(envelope.body) > max_bytes:
        return (
            f"its body has {len(envelope.body)} bytes, the limit is {max_bytes}. Put the content where both sides "
            "reach it, and send its address"
        )
    for what, value in (("id", envelope.id), ("type", envelope.type), ("content type", envelope.content_type)):
        if len(value) > 63 and len(value.encode()) > 255:
            return f"its {what} has more than 255 bytes. Shorten it"
    return None
