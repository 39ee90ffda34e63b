"""What no backend takes, refused everywhere in the same words: names, sizes, queues and topics nobody declared."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from polywire.bus.core.envelope import Envelope
from polywire.errors import MessageRefused, SetupError

MAX_NAME = 150
"""Characters: what RabbitMQ (255 bytes) and Kafka (249) leave after our own suffixes."""

_NAME = re.compile(r"[A-Za-z0-9._-]+", re.ASCII)


def checked_name(kind: str, name: str) -> str:
    """*name* of a *kind* (`queue`, `topic`, `group`), as no backend misunderstands it. Raises SetupError."""
    if not _NAME.fullmatch(name) or not name.strip("."):
        raise SetupError(
            f"{name!r} is no name of a {kind}. Use letters from A to z, digits, '.', '-' and '_', such as 'shop.mails'."
        )
    if len(name) > MAX_NAME:
        raise SetupError(f"{name[:40] + '...'!r} is no name of a {kind}: it has {len(name)} of {MAX_NAME} characters.")
    return name


def too_large(envelope: Envelope, where: str, limit: int) -> MessageRefused | None:
    """The refusal, where the body is larger than *limit* bytes. *where* is as in `queue 'mails'`."""
    if len(envelope.body) <= limit:
        return None
    return MessageRefused(
        f"The message {envelope.id!r} was not sent to the {where}: its body has {len(envelope.body)} bytes, the limit "
        f"is {limit}. Put the content where both sides reach it, and send its address."
    )


def undeclared(envelope: Envelope, where: str) -> MessageRefused:
    """*where* is as in `queue 'mails'`."""
    return MessageRefused(
        f"The message {envelope.id!r} was not sent: there is no {where}. "
        f"Declare it, with `polywire bus apply` or when the service starts."
    )


def not_there(where: str) -> SetupError:
    """For whoever wants to receive from it or to look at it. *where* is as in `queue 'mails'`."""
    return SetupError(f"There is no {where}. Declare it, with `polywire bus apply` or when the service starts.")


def differences(where: str, wanted: Any, found: Any) -> list[str]:
    """A line for each field of two specs that is not the same."""
    return [
        f"The {where} has {field.name}={getattr(found, field.name)!r}, "
        f"but it is declared with {field.name}={getattr(wanted, field.name)!r}."
        for field in fields(wanted)
        if getattr(found, field.name) != getattr(wanted, field.name)
    ]


# ---- what `check` says, a line each, the same for every backend: `polywire bus plan` prints it ----------------------


def would_create_queue(name: str) -> str:
    return f"would create the queue {name!r}"


def would_create_topic(name: str, partitions: int | None = None) -> str:
    """Of a log, which has *partitions*, or of a fan-out."""
    if partitions is None:
        return f"would create the topic {name!r}"
    return f"would create the topic {name!r} with {partitions} partition{'' if partitions == 1 else 's'}"


def would_create_group(group: str, topic: str) -> str:
    return f"would create the group {group!r} of {topic!r}"


def would_refuse(lines: Sequence[str]) -> list[str]:
    """*lines* are differences to what exists, which `declare` would not change."""
    return [f"would refuse: {line}" for line in lines]


def refuse_differences(lines: Sequence[str]) -> None:
    """Raises SetupError with all of *lines*, where there are any."""
    if lines:
        raise SetupError("\n".join([*lines, "Declare it as it is, or delete it once it is empty and declare it anew."]))
