"""Envelopes as AMQP 0-9-1 messages: CloudEvents' binary mode in the headers, written and read without detours."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
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
    *("dataversion", "priority", "attempt", "lost", "redrivecount"),
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


def _name(name: str) -> bytes:
    encoded = name.encode()
    return bytes([len(encoded)]) + encoded + b"S"


_NAMES = {name: _name(PREFIX + name) for name in ATTRIBUTES}
"""Of CloudEvents attributes, encoded with prefix, length and type."""


def encode(envelope: Envelope, own: Mapping[str, str] | None = None) -> bytes:
    """The properties of a persistent message, as they stand in a content header frame. *own* are headers of ours."""
    parts: list[bytes] = []
    for name, value in attributes_of(envelope).items():
        text = value.encode()
        parts += (_NAMES[name], len(text).to_bytes(4, "big"), text)
    if envelope.headers:
        for name, value in envelope.headers.items():
            text = value.encode()
            parts += (_name(header_name(name)), len(text).to_bytes(4, "big"), text)
    if own:
        for name, value in own.items():
            text = value.encode()
            parts += (_name(OWN + name), len(text).to_bytes(4, "big"), text)
    table = b"".join(parts)
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


def header_name(name: str) -> str:
    """What the sender's header *name* is called on the wire."""
    return ESCAPE + name if name.startswith(("x-", OWN)) else name


def frames(channel: int, exchange: bytes, routing_key: bytes, properties: bytes, body: bytes, frame_max: int) -> bytes:
    """Basic.Publish with mandatory set, header and body frames in one block."""
    method = b"".join(
        (
            b"\x00\x3c\x00\x28\x00\x00",
            bytes((len(exchange),)),
            exchange,
            bytes((len(routing_key),)),
            routing_key,
            b"\x01",
        )
    )
    size = len(body)
    parts = [
        _HEAD.pack(1, channel, len(method)),
        method,
        b"\xce",
        _CONTENT.pack(2, channel, 12 + len(properties), 60, 0, size),
        properties,
        b"\xce",
    ]
    room = frame_max - 8
    for start in range(0, size, room):
        chunk = body if size <= room else body[start : start + room]
        parts += (_HEAD.pack(3, channel, len(chunk)), chunk, b"\xce")
    return b"".join(parts)


_HEAD = struct.Struct(">BHI")
_CONTENT = struct.Struct(">BHIHHQ")


# ---- reading -----------------------------------------------------------------------------------------------------


def decode(properties: bytes, body: bytes) -> Received:
    """Never raises: what cannot be read says why in `unreadable`."""
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


_KNOWN = {(prefix + name).encode(): name for prefix in PREFIXES for name in ATTRIBUTES}
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
        raw = encoded[at + 1 : value_at]
        if encoded[value_at] == 0x53:  # S: nearly every value is a string
            start = value_at + 5
            at = start + size_at(encoded, value_at + 1)[0]
            try:
                value: Any = encoded[start:at].decode()
            except UnicodeDecodeError:
                value = encoded[start:at].decode("utf-8", "replace")
        else:
            value, at = amqp.decode_value(encoded, value_at)
        name = known(raw)
        if name is not None:
            attributes[name] = value if type(value) is str else str(value)
        else:
            _header(raw, value, attributes, headers, received)
    if at != end:
        raise UndecodableMessage("The message's headers are cut off.")


def _header(raw: bytes, value: Any, attributes: dict[str, str], headers: dict[str, str], received: Received) -> None:
    name = raw.decode("utf-8", "replace")
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
        return f"its body has {len(envelope.body)} bytes, and at most {max_bytes} are taken. Send a reference instead"
    for what, value in (("id", envelope.id), ("type", envelope.type), ("content type", envelope.content_type)):
        if len(value.encode()) > 255:
            return f"its {what} has more than 255 bytes. Shorten it"
    return None
