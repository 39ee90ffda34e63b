"""An envelope as a Kafka record and back: CloudEvents' binary mode, `ce_` headers beside the sender's own."""

from __future__ import annotations

from typing import Any, Protocol

from polywire.bus.core.envelope import JSON, Envelope, number_of, seconds_of, timestamp
from polywire.errors import UndecodableMessage

Headers = dict[str, str | bytes | None]

ORIGIN = "polywire-origin"
"""Of a copy among retries or dead letters: `topic/partition@offset` of the event."""
REASON = "polywire-reason"
ERROR = "polywire-error"
ATTEMPTS = "polywire-attempts"
DIED = "polywire-died"

_OWN = "polywire-own-"
"""Before those of the sender's headers that would be taken for ours."""
_RESERVED = ("ce_", "polywire-", "content-type")
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
    found: Headers = {
        "ce_specversion": "1.0",
        "ce_id": envelope.id,
        "ce_source": envelope.source or "/",
        "ce_time": timestamp(envelope.time),
        "content-type": envelope.content_type,
    }
    if envelope.type:
        found["ce_type"] = envelope.type
    if envelope.version != 1:
        found["ce_dataversion"] = str(envelope.version)
    if envelope.traceparent is not None:
        found["ce_traceparent"] = envelope.traceparent
    if envelope.tracestate is not None:
        found["ce_tracestate"] = envelope.tracestate
    if envelope.request_id is not None:
        found["ce_requestid"] = envelope.request_id
    if envelope.causation_id is not None:
        found["ce_causationid"] = envelope.causation_id
    if envelope.principal is not None:
        found["ce_principal"] = envelope.principal
    if envelope.reply_to is not None:
        found["ce_replyto"] = envelope.reply_to
    if envelope.not_before is not None:
        found["ce_notbefore"] = timestamp(envelope.not_before)
    if envelope.expires is not None:
        found["ce_expirytime"] = timestamp(envelope.expires)
    if envelope.priority or envelope.attempt or envelope.lost or envelope.redrive_count or envelope.generation:
        _count(envelope, found)
    if envelope.headers:
        for name, value in envelope.headers.items():
            found[_escaped(name)] = value
    return found


def _count(envelope: Envelope, found: Headers) -> None:
    for name, count in (
        ("ce_priority", envelope.priority),
        ("ce_attempt", envelope.attempt),
        ("ce_lost", envelope.lost),
        ("ce_redrivecount", envelope.redrive_count),
        ("ce_generation", envelope.generation),
    ):
        if count:
            found[name] = str(count)


def _escaped(name: str) -> str:
    return _OWN + name if name.startswith(_RESERVED) else name


def value_of(envelope: Envelope) -> bytes | None:
    return None if envelope.content_type == NO_VALUE and not envelope.body else envelope.body


def envelope_of(message: Message) -> Envelope:
    """Raises UndecodableMessage where it seems to be an envelope and is none.

    A message without CloudEvents headers is somebody else's: it has type "", an id made of its position, the time when
    it was appended, and all its headers. One without a value has the content type "".
    """
    headers: list[tuple[str, bytes | None]] = message.headers() or []
    names = {name for name, _ in headers}
    if "ce_id" not in names and "ce_specversion" not in names:
        return _foreign(message, headers)
    body = message.value()
    made = Envelope("", "", b"" if body is None else body, content_type=NO_VALUE if body is None else JSON)
    own: dict[str, str] = {}
    try:
        if (key := message.key()) is not None:
            made.key = key.decode()
        for name, value in headers:
            text = "" if value is None else value.decode()
            attribute = _TEXTS.get(name)
            if attribute is not None:
                setattr(made, attribute, text)
            elif name[:3] == "ce_":
                _set(made, name, text)
            elif name[:9] != "polywire-":
                own[name] = text
            elif name.startswith(_OWN):
                own[name[len(_OWN) :]] = text
    except UnicodeDecodeError:
        raise UndecodableMessage("The message carries CloudEvents attributes that are not UTF-8.") from None
    if own:
        made.headers = own
    if made.source == "/":
        made.source = ""
    if not made.id or not (made.type or ORIGIN in names):
        missing = " and ".join(name for name in ("id", "type") if not getattr(made, name))
        raise UndecodableMessage(f"The message carries CloudEvents attributes, but no {missing}.")
    return made


_TEXTS = {
    "ce_id": "id",
    "ce_source": "source",
    "ce_type": "type",
    "content-type": "content_type",
    "ce_traceparent": "traceparent",
    "ce_tracestate": "tracestate",
    "ce_requestid": "request_id",
    "ce_causationid": "causation_id",
    "ce_principal": "principal",
    "ce_replyto": "reply_to",
    "ce_partitionkey": "key",
}
_TIMES = {"ce_time": "time", "ce_notbefore": "not_before", "ce_expirytime": "expires"}
_NUMBERS = {
    "ce_dataversion": "version",
    "ce_priority": "priority",
    "ce_attempt": "attempt",
    "ce_lost": "lost",
    "ce_redrivecount": "redrive_count",
    "ce_generation": "generation",
}


def _set(made: Envelope, name: str, text: str) -> None:
    """A time or a count. Extensions that we do not know are dropped, as CloudEvents allows."""
    if (attribute := _TIMES.get(name)) is not None:
        setattr(made, attribute, seconds_of(name[3:], text))
    elif (attribute := _NUMBERS.get(name)) is not None:
        setattr(made, attribute, number_of(name[3:], text))


def _foreign(message: Message, headers: list[tuple[str, bytes | None]]) -> Envelope:
    body, key = message.value(), message.key()
    own = {name: (value or b"").decode(errors="backslashreplace") for name, value in headers}
    content_type = own.pop("content-type", JSON if body is not None else NO_VALUE)
    return Envelope(
        f"{message.topic()}/{message.partition()}@{message.offset()}",
        "",
        b"" if body is None else body,
        time=appended(message),
        content_type=content_type,
        key=None if key is None else key.decode(errors="backslashreplace"),
        headers=own or None,
        traceparent=own.get("traceparent"),
        tracestate=own.get("tracestate"),
    )


def appended(message: Message) -> float:
    """Seconds since the epoch; 0 where the broker does not tell."""
    return max(message.timestamp()[1], 0) / 1000
