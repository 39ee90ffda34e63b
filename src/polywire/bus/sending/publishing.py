"""What a service asks for to publish events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from polywire.bus.sending.options import Options
from polywire.bus.sending.sender import Sender
from polywire.contract import Event


class Bus:
    """Publishes events: a service asks for it in its constructor, `bus: Bus`.

    `publish` returns once the event is durable. Its options: *id*, made here if it is not given, which stays the same
    when an event is published again; *delay* in seconds; *key*, in place of the declared field's value; *expires*, in
    seconds from now, after which no handler starts any more; *headers*, which groups can choose events by.
    *require_subscriber* raises NobodyListens where no group wants it. Raises MessageRefused where it was certainly not
    sent, PublishUnknown where it perhaps was, PublishInTransaction inside of a transaction.
    """

    def __init__(self, sender: Sender) -> None:
        self._sender = sender

    async def publish(
        self,
        event: Event,
        *,
        id: str | None = None,
        delay: float | None = None,
        key: str | None = None,
        expires: float | None = None,
        headers: Mapping[str, str] | None = None,
        require_subscriber: bool | None = None,
    ) -> str:
        """Publish one event, and return its id."""
        options = Options(id=id, delay=delay, key=key, expires=expires, headers=headers)
        return await self._sender.publish(event, options, require_subscriber=require_subscriber)

    async def publish_all(
        self,
        events: Sequence[Event],
        *,
        ids: Sequence[str] | None = None,
        delay: float | None = None,
        key: str | None = None,
        expires: float | None = None,
        headers: Mapping[str, str] | None = None,
        require_subscriber: bool | None = None,
    ) -> list[str]:
        """Publish many, with the same options, and return their ids.

        Raises PartlySent where some were not confirmed, with the error of each by index.
        """
        options = Options(delay=delay, key=key, expires=expires, headers=headers)
        return await self._sender.publish_all(events, options, ids=ids, require_subscriber=require_subscriber)
