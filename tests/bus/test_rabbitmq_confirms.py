"""A broker that says nothing, or is away: what it did not confirm is perhaps there, and never confirmed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

from rabbitmq_support import a_name, an_envelope, opened, received, until, within

from polywire.bus.backend.rabbitmq import RabbitQueue
from polywire.bus.core import Ack, QueueSpec, Settlement
from polywire.errors import MessageRefused, PublishUnknown


class Proxy:
    """Passes bytes to the broker, and what it says back only while `heard`."""

    def __init__(self, host: str, port: int) -> None:
        self._broker = host, port
        self.away = False
        self.heard = asyncio.Event()
        self.heard.set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.away:
            writer.transport.abort()
            return
        from_broker, to_broker = await asyncio.open_connection(*self._broker)
        self._writers += [writer, to_broker]
        always = asyncio.Event()
        always.set()
        for source, target, allowed in ((reader, to_broker, always), (from_broker, writer, self.heard)):
            self._tasks.add(asyncio.create_task(self._pass_on(source, target, allowed)))

    async def _pass_on(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, allowed: asyncio.Event
    ) -> None:
        with suppress(ConnectionError):
            while data := await source.read(65_536):
                await allowed.wait()
                target.write(data)
                await target.drain()
        target.close()

    def cut(self) -> None:
        """All connections break."""
        for writer in self._writers:
            writer.transport.abort()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


@asynccontextmanager
async def proxied(url: str) -> AsyncIterator[tuple[Proxy, str]]:
    parts = urlsplit(url)
    proxy = Proxy(parts.hostname or "127.0.0.1", parts.port or 5672)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield proxy, url.replace(f":{parts.port}", f":{port}")
    finally:
        server.close()
        await proxy.close()


async def test_what_nobody_confirms_is_perhaps_sent_and_never_confirmed(rabbitmq_url: str) -> None:
    name = a_name()
    before, sent, later = an_envelope("0"), an_envelope("1"), an_envelope("2")
    async with opened(rabbitmq_url, QueueSpec(name=name)) as direct, proxied(rabbitmq_url) as (proxy, url):
        queue = RabbitQueue(url)
        await within(queue.start())
        try:
            assert await within(queue.send(name, [before])) == [None]
            proxy.heard.clear()
            [error] = await within(queue.send(name, [sent], timeout=0.5))
            assert isinstance(error, PublishUnknown)
            assert error.id == sent.id
            assert str(error) == (
                f"Message {sent.id!r} to {name!r} was not confirmed: no confirmation came in time. "
                "Perhaps it was sent; send it again with the same id."
            )
            proxy.heard.set()
            # The connection goes on, and the confirmation that comes too late is nobody else's.
            assert await within(queue.send(name, [later], timeout=20.0)) == [None]
        finally:
            proxy.heard.set()
            await within(queue.close())

        async def all_there() -> bool:
            return (await direct.stats(name)).ready == 3

        await until(all_there, "all messages")
        consumer = await direct.consumer(name, limit=10)
        found = await received(consumer, 3)
        assert [each.envelope.id for each in found] == [before.id, sent.id, later.id]
        await consumer.settle([Settlement(each, Ack()) for each in found])
        await consumer.close()


async def test_what_is_sent_while_the_broker_is_away_is_refused_in_time_and_sent_later(rabbitmq_url: str) -> None:
    name = a_name()
    before, lost, later = an_envelope("0"), an_envelope("1"), an_envelope("2")
    async with opened(rabbitmq_url, QueueSpec(name=name)) as direct, proxied(rabbitmq_url) as (proxy, url):
        queue = RabbitQueue(url)
        shown = url.replace("guest:guest", "guest:***")
        await within(queue.start())
        try:
            assert await within(queue.send(name, [before])) == [None]
            proxy.away = True
            proxy.cut()

            async def noticed() -> bool:
                return not queue.connected

            await until(noticed, "losing the connection")
            [error] = await within(queue.send(name, [lost], timeout=0.5))
            assert isinstance(error, MessageRefused)
            start, _, reason = str(error).partition(f"RabbitMQ at '{shown}' is not connected (")
            assert start == f"Message {lost.id!r} to {name!r} was not sent: "
            assert reason.endswith("). Try again later.")
            assert len(reason) > len("). Try again later."), "no reason was given"
            waiting = asyncio.create_task(queue.send(name, [later], timeout=60.0))
            proxy.away = False
            assert await within(waiting, 60.0) == [None]
        finally:
            proxy.away = False
            await within(queue.close())
        consumer = await direct.consumer(name, limit=10)
        found = await received(consumer, 2)
        assert [each.envelope.id for each in found] == [before.id, later.id]
        await consumer.settle([Settlement(each, Ack()) for each in found])
        await consumer.close()
