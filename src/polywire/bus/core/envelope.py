"""What travels around a message: CloudEvents 1.0 attributes, and the marks of delivery."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import lru_cache

import msgspec

from polywire.errors import UndecodableMessage

JSON = "application/json"
PROTOBUF = "application/protobuf"

MAX_HEADERS = 64
MAX_HEADER_BYTES = 8 * 1024
"""All headers of the sender's own together, names and values."""
MAX_PACKED_BYTES = 64 * 1024 * 1024
"""Of an envelope that a backend hands us; each backend's own limit on messages is lower."""


class Envelope(msgspec.Struct, array_like=True, omit_defaults=False):
    """One message with its attributes. The names are CloudEvents' (`a` to `z` and digits) where it has one.

    Treated as a value: whoever changes one makes another with `msgspec.structs.replace`. The order of the fields is
    the packed form (`pack`); new ones go to the end, with a default.
    """

    id: str
    """Made by the sender, the same over retries and redrives."""
    type: str
    """Of an event or a task as the contract names it, `shop.v1.OrderPaid` or `shop.v1.Mail/SendConfirmation`."""
    body: bytes
    source: str = ""
    """Who sent it: the service's name."""
    time: float = 0.0
    """When it was sent first, in seconds since the epoch."""
    content_type: str = JSON
    version: int = 1
    """Of the type; `dataversion` on the wire."""
    key: str | None = None
    """`partitionkey`: messages with the same key are handled one after the other, in order."""
    headers: dict[str, str] | None = None
    """The sender's own."""
    traceparent: str | None = None
    tracestate: str | None = None
    request_id: str | None = None
    causation_id: str | None = None
    """The id of the message whose handler sent this one."""
    principal: str | None = None
    """Believed only where it is signed."""
    priority: int = 0
    """Higher is handled earlier, where the queue has levels."""
    not_before: float | None = None
    """Not handled earlier, in seconds since the epoch; `notbefore`."""
    expires: float | None = None
    """Goes to the dead letters as `expired` where no handler has started by then; `expirytime`."""
    attempt: int = 0
    """Handler starts so far, of copies that carry their own count."""
    lost: int = 0
    """Starts so far that were never settled, of copies that carry their own count."""
    redrive_count: int = 0
    reply_to: str | None = None
    """Where an answer is awaited: of requests of the queue wire, and of tasks with a result."""
    generation: int = 0
    """Of the group when it read the event, of copies among its retries and dead letters; see `Record.generation`."""


_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(Envelope).decode


def pack(envelope: Envelope) -> bytes:
    """All of it as one block (MessagePack), for backends that keep it whole."""
    return _pack(envelope)


def unpack(data: bytes) -> Envelope:
    """Raises UndecodableMessage."""
    if len(data) > MAX_PACKED_BYTES:
        raise UndecodableMessage(f"An envelope of {len(data)} bytes was not read: the limit is {MAX_PACKED_BYTES}.")
    try:
        return _unpack(data)
    except msgspec.MsgspecError as error:
        raise UndecodableMessage(f"The message is no polywire envelope: {error}.") from None


# ---- attributes: names and texts, for backends that carry headers (CloudEvents' binary mode) -------------------------

_TEXTS = {
    "id": "id",
    "type": "type",
    "source": "source",
    "partitionkey": "key",
    "traceparent": "traceparent",
    "tracestate": "tracestate",
    "requestid": "request_id",
    "causationid": "causation_id",
    "principal": "principal",
    "replyto": "reply_to",
}
_TIMES = {"time": "time", "notbefore": "not_before", "expirytime": "expires"}
_NUMBERS = {
    "dataversion": "version",
    "priority": "priority",
    "attempt": "attempt",
    "lost": "lost",
    "redrivecount": "redrive_count",
    "generation": "generation",
}


def attributes_of(envelope: Envelope) -> dict[str, str]:
    """What is set, by CloudEvents name, with `specversion`; without body, content type and the sender's own headers."""
    found = {"specversion": "1.0", "id": envelope.id, "source": envelope.source or "/", "type": envelope.type}
    found["time"] = timestamp(envelope.time)
    if envelope.key is not None:
        found["partitionkey"] = envelope.key
    if envelope.traceparent is not None:
        found["traceparent"] = envelope.traceparent
    if envelope.tracestate is not None:
        found["tracestate"] = envelope.tracestate
    if envelope.request_id is not None:
        found["requestid"] = envelope.request_id
    if envelope.causation_id is not None:
        found["causationid"] = envelope.causation_id
    if envelope.principal is not None:
        found["principal"] = envelope.principal
    if envelope.reply_to is not None:
        found["replyto"] = envelope.reply_to
    if envelope.not_before is not None:
        found["notbefore"] = timestamp(envelope.not_before)
    if envelope.expires is not None:
        found["expirytime"] = timestamp(envelope.expires)
    if envelope.version != 1:
        found["dataversion"] = str(envelope.version)
    if envelope.priority or envelope.attempt or envelope.lost or envelope.redrive_count or envelope.generation:
        _add_counts(envelope, found)
    return found


def _add_counts(envelope: Envelope, found: dict[str, str]) -> None:
    for name, count in (
        ("priority", envelope.priority),
        ("attempt", envelope.attempt),
        ("lost", envelope.lost),
        ("redrivecount", envelope.redrive_count),
        ("generation", envelope.generation),
    ):
        if count:
            found[name] = str(count)


def envelope_from(
    attributes: Mapping[str, str], *, body: bytes, content_type: str, headers: dict[str, str] | None = None
) -> Envelope:
    """The inverse of `attributes_of`. Raises UndecodableMessage where an attribute is missing or makes no sense."""
    identifier, kind = attributes.get("id"), attributes.get("type")
    if not identifier or not kind:
        missing = " and ".join(name for name in ("id", "type") if not attributes.get(name))
        raise UndecodableMessage(f"The message carries CloudEvents attributes, but no {missing}.")
    made = Envelope(identifier, kind, body, content_type=content_type, headers=headers)
    for name, text in attributes.items():
        if (field := _TEXTS.get(name)) is not None:
            setattr(made, field, text)
        elif (field := _TIMES.get(name)) is not None:
            setattr(made, field, seconds_of(name, text))
        elif (field := _NUMBERS.get(name)) is not None:
            setattr(made, field, number_of(name, text))
    return made


def timestamp(seconds: float) -> str:
    """RFC 3339 in UTC with microseconds."""
    whole, microseconds = divmod(round(seconds * 1_000_000), 1_000_000)
    return f"{_second(whole)}.{microseconds:06d}Z"


@lru_cache(maxsize=64)
def _second(seconds: int) -> str:
    # Messages sent one after the other mostly share it, and it is what costs.
    return datetime.fromtimestamp(seconds, UTC).isoformat().removesuffix("+00:00")


def seconds_of(name: str, text: str) -> float:
    """The time (Unix, seconds) that the attribute *name* says. Raises UndecodableMessage."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise UndecodableMessage(f"The message's attribute {name!r} is no RFC 3339 time.") from None
    if moment.tzinfo is None:
        raise UndecodableMessage(f"The message's attribute {name!r} has no time zone.")
    return moment.timestamp()


def number_of(name: str, text: str) -> int:
    """The count that the attribute *name* says. Raises UndecodableMessage."""
    if not text.isascii() or not text.isdecimal() or len(text) > 9:
        raise UndecodableMessage(f"The message's attribute {name!r} is no count.")
    return int(text)


# ---- identity ----------------------------------------------------------------------------------------------------

_lock = threading.Lock()
_last = 0
_head: tuple[int, str] = (-1, "")
"""A millisecond, and what ids made in it begin with."""
_tails: Iterator[str] = iter(())
"""Random ends of ids to come."""
_TAILS = 512
"""Made at a time: each call to the kernel lets another thread take the interpreter, which costs both."""


def _forget_random() -> None:
    global _tails
    _tails = iter(())


# A child process must not make the ids of its parent.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_random)


def new_id(now: float | None = None) -> str:
    """A UUIDv7 (RFC 9562), which sorts by the time it was made; ids of one process never go back."""
    global _last, _head, _tails
    milliseconds = int((time.time() if now is None else now) * 1000)
    with _lock:
        # 48 bits of time and 12 of a counter (RFC 9562, section 6.2, method 1).
        stamp = max(milliseconds << 12, _last + 1)
        _last = stamp
        if _head[0] != stamp >> 12:
            _head = stamp >> 12, _head_of(stamp >> 12)
        head = _head[1]
        tail = next(_tails, None)
        if tail is None:
            _tails = _random_tails()
            tail = next(_tails)
    return f"{head}{stamp & 0xFFF:03x}{tail}"


def _head_of(milliseconds: int) -> str:
    digits = f"{milliseconds:012x}"
    return f"{digits[:8]}-{digits[8:]}-7"


def _random_tails() -> Iterator[str]:
    """62 random bits each behind the two that say which kind of UUID it is."""
    digits = os.urandom(8 * _TAILS).hex()
    each = [digits[at : at + 16] for at in range(0, len(digits), 16)]
    return iter([f"-{_VARIANT[one[0]]}{one[1:4]}-{one[4:]}" for one in each])


_VARIANT = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}


def checked_headers(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The sender's own headers, refused with ValueError where a backend could not carry them."""
    found: dict[str, str] = {}
    size = 0
    for name, value in headers:
        found[_header_name(name)] = value
        size += len(name) + (len(value) if value.isascii() else len(value.encode()))
    if len(found) > MAX_HEADERS or size > MAX_HEADER_BYTES:
        raise ValueError(
            f"The message was not sent: its {len(found)} headers have {size} bytes; "
            f"at most {MAX_HEADERS} with {MAX_HEADER_BYTES} bytes may go along. Put the rest into the message."
        )
    return found


@lru_cache(maxsize=1024)
def _header_name(name: str) -> str:
    """In lower case. Raises ValueError; what it raised for is not kept."""
    if _HEADER_NAME(name) is None:
        raise ValueError(f"The message was not sent: {name!r} is no name of a header. Use letters, digits, '-', '_'.")
    return name.lower()


_HEADER_NAME = re.compile(r"[A-Za-z0-9_.-]+").fullmatch
