"""RabbitMQ for tests: backends that delete what they declared, and plain pika to look from outside."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeVar

import pika
from pika.adapters.blocking_connection import BlockingChannel

from polywire.bus.backend import rabbitmq_topology as topology
from polywire.bus.backend.rabbitmq import RabbitQueue
from polywire.bus.backend.rabbitmq_connection import Client
from polywire.bus.core import Delivery, Envelope, QueueConsumer, QueueSpec, new_id
from polywire.clock import SYSTEM_CLOCK, Clock

SOON = 20.0
"""Seconds within which whatever must happen happens, on a busy machine."""
QUIET = 0.3
"""Seconds that are watched where nothing may happen."""

T = TypeVar("T")


def a_name() -> str:
    return f"test-{new_id()[-12:]}"


def an_envelope(text: str = "1", *, type: str = "shop.v1.Mail/Send", **fields: object) -> Envelope:
    made = Envelope(new_id(), type, text.encode(), source="tests", time=1_700_000_000.25)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


class CleanQueue(RabbitQueue):
    """Deletes at its end the queues that were declared through it."""

    def __init__(self, url: str, *, clock: Clock = SYSTEM_CLOCK) -> None:
        super().__init__(url, clock=clock)
        self.declared: list[QueueSpec] = []

    async def declare(self, queues: Sequence[QueueSpec]) -> None:
        await super().declare(queues)
        self.declared += queues

    async def close(self) -> None:
        if self.connected:
            for spec in self.declared:
                await delete(self, spec)
        await super().close()


async def delete(queue: RabbitQueue, spec: QueueSpec) -> None:
    names = [each.name for each in topology.of_queue(spec) if isinstance(each, topology.Queue)]
    await delete_all(queue._client, names)


async def delete_all(client: Client, queues: Sequence[str], exchanges: Sequence[str] = ()) -> None:
    async def work() -> None:
        asking = await client.asking()
        for name in queues:
            await asking.ask(asking.channel.queue_delete, queue=name)
        for name in exchanges:
            await asking.ask(asking.channel.exchange_delete, exchange=name)
        asking.close()

    await client.run(work())


@contextlib.asynccontextmanager
async def opened(url: str, *specs: QueueSpec) -> AsyncIterator[CleanQueue]:
    queue = CleanQueue(url)
    await queue.start()
    try:
        await queue.declare(specs)
        yield queue
    finally:
        await queue.close()


async def within(work: Awaitable[T], seconds: float = SOON) -> T:
    async with asyncio.timeout(seconds):
        return await work


async def received(consumer: QueueConsumer, count: int) -> list[Delivery]:
    """*count* deliveries, which must come soon."""
    found: list[Delivery] = []

    async def collect() -> None:
        while len(found) < count:
            found.extend(await consumer.receive(count - len(found)))

    await within(collect())
    return found


async def nothing_comes(consumer: QueueConsumer, seconds: float = QUIET) -> None:
    try:
        async with asyncio.timeout(seconds):
            found = await consumer.receive(1)
    except TimeoutError:
        return
    raise AssertionError(f"nothing should have come, but {found} did")


async def until(condition: Callable[[], Awaitable[bool]], what: str, seconds: float = SOON) -> None:
    give_up = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < give_up, f"{what} did not come about within {seconds:g} s"
        await asyncio.sleep(0.05)


def properties(**fields: object) -> pika.BasicProperties:
    return pika.BasicProperties(**fields)  # type: ignore[arg-type, no-untyped-call, unused-ignore]  # pika has no types of its own


@contextlib.contextmanager
def plain_channel(url: str) -> Iterator[BlockingChannel]:
    """Another client's view."""
    connection = pika.BlockingConnection(pika.URLParameters(url.rstrip("/") + "/%2F"))
    try:
        yield connection.channel()
    finally:
        connection.close()


async def cut_connections(queue: RabbitQueue) -> None:
    """Both TCP connections break, without a word to the broker."""

    async def work() -> None:
        client = queue._client
        for link in (client.publisher.link, client._consuming):
            if link is not None and link.connection is not None:
                transport: Any = link.connection._transport  # pyright: ignore  # pika's types leave it out
                transport._sock.shutdown(socket.SHUT_RDWR)

    await queue._client.run(work())
