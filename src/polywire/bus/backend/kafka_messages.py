"""An envelope as a Kafka record and back: CloudEvents' binary mode, `ce_` headers beside the sender's own."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Protocol

from polywire.bus.core.envelope import JSON, Envelope, timestamp
from polywire.errors import UndecodableMessage

Headers = list[tuple[str, str | bytes | None]]

ORIGIN = "polywire-origin"
"""Of a copy among retries or dead letters: `topic/partition@offset` of the event."""
REASON = "polywire-reason"
ERROR = "polywire-error"
ATTEMPTS = "polywire-attempts"
DIED = "polywire-died"

_OWN = "polywire-own-"
"""Before those of the sender's headers that would be taken for ours."""
_RESERVED = ("ce_", "polywire-", "content-type")
_SPEC = ("ce_specversion", b"1.0")
NO_VALUE = ""
"""The content type of an event without any value, Kafka's mark of deletion."""


class Message(Protocol):
    """What of `confluent_kafka.Message` is read here; its methods raise nothing."""

    def topic(self) -> str | None: ...
    def partition(self) -> int | None: ...
    def offset(self) -> int | None: ...
    def key(self) -> bytes | None: ...
    def value(self) -> bytes | None: ...
    def headers(self) -> Any: ...
    def timestamp(self) -> tuple[int, int]: ...


def headers_of(envelope: Envelope) -> Headers:
    """All but body and key."""
    found: Headers = [
        _SPEC,
        ("ce_id", envelope.id.encode()),
        ("ce_source", (envelope.source or "/").encode()),
        ("ce_time", timestamp(envelope.time).encode()),
        ("content-type", envelope.content_type.encode()),
    ]
    if envelope.type:
        found.append(("ce_type", envelope.type.encode()))
    if envelope.version != 1:
        found.append(("ce_dataversion", b"%d" % envelope.version))
    if envelope.traceparent is not None:
        found.append(("ce_traceparent", envelope.traceparent.encode()))
    if envelope.tracestate is not None:
        found.append(("ce_tracestate", envelope.tracestate.encode()))
    if envelope.request_id is not None:
        found.append(("ce_requestid", envelope.request_id.encode()))
    if envelope.causation_id is not None:
        found.append(("ce_causationid", envelope.causation_id.encode()))
    if envelope.principal is not None:
        found.append(("ce_principal", envelope.principal.encode()))
    if envelope.reply_to is not None:
        found.append(("ce_replyto", envelope.reply_to.encode()))
    if envelope.not_before is not None:
        found.append(("ce_notbefore", timestamp(envelope.not_before).encode()))
    if envelope.expires is not None:
        found.append(("ce_expirytime", timestamp(envelope.expires).encode()))
    if envelope.priority or envelope.attempt or envelope.lost or envelope.redrive_count:
        found += _counts(envelope)
    if envelope.headers:
        found += [(_escaped(name), value.encode()) for name, value in envelope.headers.items()]
    return found


def _counts(envelope: Envelope) -> Headers:
    counts = {
        "ce_priority": envelope.priority,
        "ce_attempt": envelope.attempt,
        "ce_lost": envelope.lost,
        "ce_redrivecount": envelope.redrive_count,
    }
    return [(name, b"%d" % count) for name, count in counts.items() if count]


def _escaped(name: str) -> str:
    return _OWN + name if name.startswith(_RESERVED) else name


def key_of(envelope: Envelope) -> bytes | None:
    return None if envelope.key is None else envelope.key.encode()


def value_of(envelope: Envelope) -> bytes | None:
    return None if envelope.content_type == NO_VALUE and not envelope.body else envelope.body


def envelope_of(message: Message) -> Envelope:
    """Raises UndecodableMessage where it seems to be an envelope and is none.

    A message without CloudEvents headers is somebody else's: it has type "", an id made of its position, the time when
    it was appended, and all its headers. One without a value has the content type "".
    """
    found: dict[str, bytes | None] = dict(message.headers() or ())
    if "ce_id" not in found and "ce_specversion" not in found:
        return _foreign(message, found)
    take = found.pop
    take("ce_specversion", None)
    body, key = message.value(), message.key()
    content_type, copy = take("content-type", None), ORIGIN in found
    try:
        made = Envelope(
            _text(take("ce_id", None)),
            _text(take("ce_type", None)),
            b"" if body is None else body,
            _text(take("ce_source", None)),
            content_type=(JSON if body is not None else NO_VALUE) if content_type is None else content_type.decode(),
            key=None if key is None else key.decode(),
        )
        if made.source == "/":
            made.source = ""
        if (value := take("ce_time", None)) is not None:
            made.time = _seconds("time", value)
        if (value := take("ce_traceparent", None)) is not None:
            made.traceparent = value.decode()
        if (value := take("ce_requestid", None)) is not None:
            made.request_id = value.decode()
        if found:
            _rest(made, found)
    except UnicodeDecodeError:
        raise UndecodableMessage("The message carries CloudEvents attributes that are not UTF-8.") from None
    if not made.id or not (made.type or copy):
        missing = " and ".join(name for name in ("id", "type") if not getattr(made, name))
        raise UndecodableMessage(f"The message carries CloudEvents attributes, but no {missing}.")
    return made


_TEXTS = {
    "ce_tracestate": "tracestate",
    "ce_causationid": "causation_id",
    "ce_principal": "principal",
    "ce_replyto": "reply_to",
    "ce_partitionkey": "key",
}
_TIMES = {"ce_notbefore": "not_before", "ce_expirytime": "expires"}
_NUMBERS = {
    "ce_dataversion": "version",
    "ce_priority": "priority",
    "ce_attempt": "attempt",
    "ce_lost": "lost",
    "ce_redrivecount": "redrive_count",
}


def _rest(made: Envelope, found: dict[str, bytes | None]) -> None:
    """The attributes that few messages have, and the sender's own headers."""
    own: dict[str, str] = {}
    for name, value in found.items():
        if not name.startswith(_RESERVED):
            own[name] = _text(value)
        elif name.startswith(_OWN):
            own[name[len(_OWN) :]] = _text(value)
        elif name in _TEXTS:
            setattr(made, _TEXTS[name], _text(value))
        elif name in _TIMES:
            setattr(made, _TIMES[name], _seconds(name[3:], value or b""))
        elif name in _NUMBERS:
            setattr(made, _NUMBERS[name], _number(name[3:], value or b""))
    if own:
        made.headers = own


def _foreign(message: Message, found: dict[str, bytes | None]) -> Envelope:
    body, key = message.value(), message.key()
    texts = {name: b"" if value is None else value for name, value in found.items()}
    content_type = texts.pop("content-type", JSON.encode() if body is not None else NO_VALUE.encode())
    own = {name: value.decode(errors="backslashreplace") for name, value in texts.items()}
    return Envelope(
        f"{message.topic()}/{message.partition()}@{message.offset()}",
        "",
        b"" if body is None else body,
        time=appended(message),
        content_type=content_type.decode(errors="backslashreplace"),
        key=None if key is None else key.decode(errors="backslashreplace"),
        headers=own or None,
        traceparent=own.get("traceparent"),
        tracestate=own.get("tracestate"),
    )


def appended(message: Message) -> float:
    """Seconds since the epoch; 0 where the broker does not tell."""
    return max(message.timestamp()[1], 0) / 1000


def _text(value: bytes | None) -> str:
    return "" if value is None else value.decode()


def _seconds(name: str, value: bytes) -> float:
    try:
        moment = datetime.fromisoformat(value.decode())
    except ValueError:
        raise UndecodableMessage(f"The message's attribute {name!r} is no RFC 3339 time.") from None
    if moment.tzinfo is None:
        raise UndecodableMessage(f"The message's attribute {name!r} has no time zone.")
    return moment.timestamp()


def _number(name: str, value: bytes) -> int:
    if not value.isdigit() or len(value) > 9:
        raise UndecodableMessage(f"The message's attribute {name!r} is no count.")
    return int(value)
