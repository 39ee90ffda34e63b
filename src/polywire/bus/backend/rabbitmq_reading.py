"""Reading a RabbitMQ queue from its front without taking anything, except what is then removed on purpose."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from polywire.bus.backend.rabbitmq_connection import Asking, Client, Incoming, Refused
from polywire.errors import BackendLost

MOST = 20_000
"""Messages that are looked at; what stands further back is not seen."""
PATIENCE = 10.0
"""Seconds without a message while there are some."""
QUIET = 0.03
"""Seconds in which what was handed out arrives."""
LOCKED = 405


class Reading:
    """The messages of a queue, held back from everybody else until `close`, which puts back what was not removed.

    For queues that have no consumers: each message is delivered once more, which raises the broker's count. One reader
    at a time over all processes: whoever reads holds a queue that exists for its connection alone (quorum queues know
    no exclusive consumers). Without that, a second reader would find nothing and believe that there is nothing.
    """

    def __init__(self, client: Client, queue: str) -> None:
        self._client = client
        self._queue = queue
        self._asking: Asking | None = None
        self._locked = False
        self._removed = 0
        self.messages: list[Incoming] = []
        """The oldest first."""

    async def open(self, most: int = MOST) -> bool:
        """Read. False where somebody else is reading it."""
        return await self._client.run(self._open(most))

    async def remove(self, messages: Sequence[Incoming]) -> None:
        await self._client.run(self._remove(messages))

    async def close(self) -> None:
        await self._client.run(self._close())

    # -- in the thread of the line

    async def _open(self, most: int) -> bool:
        if not await self._lock():
            return False
        asking = self._asking = await self._client.asking()
        channel = asking.channel
        connection = await self._client.publisher.link.usable(PATIENCE)
        connection.sinks[channel.channel_number] = self.messages.append
        channel.add_on_close_callback(lambda closed, _: connection.sinks.pop(closed.channel_number, None) and None)
        await asking.ask(channel.basic_qos, prefetch_count=most)
        await asking.ask(channel.basic_consume, queue=self._queue, on_message_callback=lambda *_: None)
        await self._gather(asking, most)
        return True

    async def _lock(self) -> bool:
        if self._queue in self._client.reading:
            return False  # Of this connection: the broker would not mind.
        self._client.reading.add(self._queue)
        asking = await self._client.asking()
        try:
            await asking.ask(asking.channel.queue_declare, queue=f"{self._queue}.reading", exclusive=True)
        except BaseException as error:
            self._client.reading.discard(self._queue)
            if isinstance(error, Refused) and error.code == LOCKED:
                return False
            raise
        asking.close()
        self._locked = True
        return True

    async def _gather(self, asking: Asking, most: int) -> None:
        """Until none is left there, and those on the way have arrived."""
        give_up = time.monotonic() + PATIENCE
        seen = -1
        while len(self.messages) < most:
            frame = await asking.ask(asking.channel.queue_declare, queue=self._queue, passive=True)
            if frame.method.message_count == 0 and len(self.messages) == seen:
                return
            if len(self.messages) != seen:
                give_up = time.monotonic() + PATIENCE
            elif time.monotonic() > give_up:
                raise BackendLost(f"{self._queue!r} was not read: RabbitMQ hands out nothing of what waits there.")
            seen = len(self.messages)
            await asyncio.sleep(QUIET)

    async def _remove(self, messages: Sequence[Incoming]) -> None:
        asking = self._asking
        if asking is None or not asking.channel.is_open:
            raise BackendLost(f"Nothing was removed from {self._queue!r}: the connection to RabbitMQ broke.")
        asking.acknowledge([message.tag for message in messages])
        self._removed += len(messages)

    async def _close(self) -> None:
        try:
            if self._asking is not None:
                await self._asking.closed()
                await self._put_back()
        finally:
            if self._locked:
                self._locked = False
                self._client.reading.discard(self._queue)
                asking = await self._client.asking()
                await asking.ask(asking.channel.queue_delete, queue=f"{self._queue}.reading")
                asking.close()

    async def _put_back(self) -> None:
        """Wait until the broker has: closing a channel returns before its messages have."""
        expected = len(self.messages) - self._removed
        if not expected:
            return
        asking = await self._client.asking()
        for _ in range(int(PATIENCE / QUIET)):
            frame = await asking.ask(asking.channel.queue_declare, queue=self._queue, passive=True)
            if frame.method.message_count >= expected:
                break
            await asyncio.sleep(QUIET)
        asking.close()
