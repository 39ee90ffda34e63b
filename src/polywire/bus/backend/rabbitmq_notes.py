"""What RabbitMQ keeps no mark of: which handlers were started, and how often a message in its lane was tried."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from polywire.bus.backend import rabbitmq_topology as topology
from polywire.bus.backend.rabbitmq_connection import Client
from polywire.bus.backend.rabbitmq_messages import encode
from polywire.bus.backend.rabbitmq_reading import Reading
from polywire.bus.core import Envelope, new_id
from polywire.errors import BackendLost

PATIENCE = 30.0
"""Seconds to wait for others who are reading the notes."""


class Entry(NamedTuple):
    """One message at one moment."""

    id: str
    copy: str
    """Mark of the copy, as a message that is sent again starts afresh; empty for the original."""
    running: bool
    """Its handler is about to run, or runs; otherwise it was settled, and is still in its lane."""
    starts: int
    """Of its handlers so far, this one included."""
    lost: int
    """Of them, those that were never settled; this one not included."""


class Notes:
    """Of one queue, in a queue beside it that keeps the last `topology.NOTES` ones.

    Whoever holds a message writes about it, before its handler starts and when it fails in its lane; after a crash the
    next one to hold it reads what was written last. One note is about many messages, and is one confirmed publish.
    """

    def __init__(self, client: Client, queue: str) -> None:
        self._client = client
        self._queue = topology.notes(queue)

    async def write(self, entries: Sequence[Entry]) -> None:
        """Raises BackendLost where that is not certain."""
        if not entries:
            return
        envelope = Envelope(new_id(), "polywire.notes", msgspec.json.encode(entries), time=time.time())
        message = envelope.id, "", self._queue, encode(envelope), envelope.body
        [error] = await self._client.publisher.publish([message], None)
        if error is not None:
            raise BackendLost(f"The starts of {len(entries)} handlers were not noted: {error}") from error

    async def read(self) -> dict[tuple[str, str], Entry]:
        """The last entry about each message and copy."""
        give_up = time.monotonic() + PATIENCE
        while time.monotonic() < give_up:
            reading = Reading(self._client, self._queue)
            try:
                if await reading.open():
                    notes = [msgspec.json.decode(message.body, type=list[Entry]) for message in reading.messages]
                    return {(entry.id, entry.copy): entry for note in notes for entry in note}
            finally:
                await reading.close()
            await asyncio.sleep(0.05)
        raise BackendLost(f"{self._queue!r} was not read: others have been reading it for {PATIENCE:g} s.")
