"""What may be said of one message when it is sent, and what of it is refused."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from polywire.bus.core import Envelope
from polywire.bus.core.checks import too_large
from polywire.bus.core.envelope import checked_headers
from polywire.bus.sending.target import Target
from polywire.contract.keys import MAX_KEY_BYTES
from polywire.errors import MessageRefused, Unsupported

MAX_ID_BYTES = 255


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What is None is as declared. Times are seconds from now."""

    id: str | None = None
    delay: float | None = None
    key: str | None = None
    expires: float | None = None
    priority: int | None = None
    headers: Mapping[str, str] | None = None


PLAIN = Options()


def with_id(options: Options, id: str) -> Options:
    return msgspec.structs.replace(options, id=id)


def apply(target: Target, envelope: Envelope, options: Options, now: float) -> None:
    """Lay what the caller asks for over what is declared."""
    if options.id is not None:
        _check_text(target, "id", options.id, MAX_ID_BYTES)
    if options.key is not None:
        if not target.takes_key:
            raise Unsupported(
                f"{target.type} was not sent: key={options.key!r} would keep no order, as none is declared. "
                "Declare it with key='...', the name of a field."
            )
        envelope.key = options.key
    if options.headers:
        try:
            envelope.headers = checked_headers(options.headers.items())
        except (ValueError, AttributeError, TypeError) as error:
            raise MessageRefused(f"{target.type} was not sent: its headers cannot travel. {error}") from error
    if options.priority is not None:
        if not 0 <= options.priority < target.priorities:
            raise MessageRefused(
                f"{target.type} was not sent: priority={options.priority!r} is none of its queue's levels, which are "
                f"0 to {target.priorities - 1}. Declare more with priorities=."
            )
        envelope.priority = options.priority
    _apply_times(target, envelope, options, now)


def _apply_times(target: Target, envelope: Envelope, options: Options, now: float) -> None:
    for label, seconds in (("delay", options.delay), ("expires", options.expires)):
        if seconds is not None and not 0 <= seconds < float("inf"):
            raise MessageRefused(f"{target.type} was not sent: {label}={seconds!r} is no number of seconds from now.")
    if options.delay:
        guarantees = target.guarantees
        if not guarantees.delay:
            raise Unsupported(
                f"{target.type} was not sent: {guarantees.backend!r} cannot deliver later, and delay={options.delay:g} "
                "was asked for. Leave it out, or choose another wire."
            )
        if guarantees.max_delay is not None and options.delay > guarantees.max_delay:
            raise Unsupported(
                f"{target.type} was not sent: delay={options.delay:g} is over the {guarantees.max_delay:g} s that "
                f"{guarantees.backend!r} can wait. Make it shorter, or choose another wire."
            )
        envelope.not_before = now + options.delay
    if options.expires is not None:
        if options.expires <= (options.delay or 0.0):
            raise MessageRefused(
                f"{target.type} was not sent: it would have expired (expires={options.expires:g}) before it could be "
                f"handled (delay={options.delay or 0.0:g})."
            )
        envelope.expires = now + options.expires


def check(target: Target, envelope: Envelope) -> None:
    if len(envelope.body) > target.guarantees.max_message_bytes:
        refusal = too_large(envelope, target.place, target.guarantees.max_message_bytes)
        if refusal is not None:
            raise refusal
    if envelope.key is not None:
        _check_text(target, "key", envelope.key, MAX_KEY_BYTES)


def _check_text(target: Target, label: str, text: object, limit: int) -> None:
    """Ids and keys travel in headers: not empty, not long, and printable."""
    if not isinstance(text, str) or not text or not text.isprintable() or len(text.encode()) > limit:
        shown = repr(text) if len(repr(text)) <= 80 else repr(text)[:77] + "..."
        raise MessageRefused(
            f"{target.type} was not sent: {label}={shown} cannot travel. Take 1 to {limit} bytes of printable text."
        )
