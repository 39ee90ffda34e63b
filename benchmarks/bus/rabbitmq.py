"""What a task costs its client on RabbitMQ: publishing until confirmed, and receiving until acknowledged.

`python -m benchmarks.bus.rabbitmq [URL] [--messages 20000]`; without a URL the project's own server is started. Prints
client CPU in microseconds per message (both threads) and the rate, medians of alternating rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from servers.rabbitmq import RabbitMQ

from polywire.bus.backend.rabbitmq import RabbitQueue
from polywire.bus.core import Ack, Envelope, QueueSpec, Settlement, new_id

ROUNDS = 3
SENDERS = 100
BODY = b'{"text": "' + b"x" * 600 + b'"}'


def envelope() -> Envelope:
    """Twelve headers: nine attributes, and three of the sender's own."""
    return Envelope(
        new_id(),
        "shop.v1.Mail/SendConfirmation",
        BODY,
        source="orders",
        time=time.time(),
        key="order-4711",
        traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        request_id="0192a3b4-c5d6-7e8f-9a0b-1c2d3e4f5a6b",
        causation_id="0192a3b4-c5d6-7e8f-9a0b-1c2d3e4f5a6c",
        headers={"tenant": "a", "locale": "de-DE", "channel": "web"},
    )


async def publish_one_by_one(queue: RabbitQueue, name: str, messages: int) -> None:
    """From SENDERS coroutines, each waiting for its confirmation."""

    async def sender() -> None:
        for _ in range(messages // SENDERS):
            [error] = await queue.send(name, [envelope()])
            if error is not None:
                raise error

    await asyncio.gather(*[sender() for _ in range(SENDERS)])


async def publish_in_batches(queue: RabbitQueue, name: str, messages: int) -> None:
    for _ in range(messages // SENDERS):
        if any(await queue.send(name, [envelope() for _ in range(SENDERS)])):
            raise RuntimeError("not confirmed")


async def consume(queue: RabbitQueue, name: str, messages: int) -> None:
    consumer = await queue.consumer(name, limit=200)
    done = 0
    while done < messages:
        deliveries = await consumer.receive(100)
        await consumer.settle([], deliveries)
        await consumer.settle([Settlement(delivery, Ack()) for delivery in deliveries])
        done += len(deliveries)
    await consumer.close()


async def measured(work: Callable[[], Awaitable[None]], messages: int) -> tuple[float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    await work()
    spent, took = time.process_time() - cpu, time.perf_counter() - wall
    return spent / messages * 1e6, messages / took


async def run(url: str, messages: int) -> None:
    queue = RabbitQueue(url)
    await queue.start()
    name = f"benchmark-{new_id()}"
    await queue.declare([QueueSpec(name=name)])
    kinds = {"publish, 100 coroutines": publish_one_by_one, "publish, batches of 100": publish_in_batches}
    found: dict[str, list[tuple[float, float]]] = {}
    for _ in range(ROUNDS):
        for kind, work in kinds.items():
            found.setdefault(kind, []).append(await measured(lambda w=work: w(queue, name, messages), messages))  # type: ignore[misc]  # a default binds the loop's variable
            found.setdefault("consume to ack", []).append(
                await measured(lambda: consume(queue, name, messages), messages)
            )
    for kind, results in found.items():
        cpu, rate = (statistics.median(values) for values in zip(*results, strict=True))
        print(f"{kind:<26} {cpu:6.1f} µs   {rate:8,.0f}/s")
    await queue.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", nargs="?")
    parser.add_argument("--messages", type=int, default=20_000)
    asked = parser.parse_args()
    if asked.url:
        asyncio.run(run(asked.url, asked.messages))
        return
    with TemporaryDirectory() as directory:
        server = RabbitMQ()
        try:
            asyncio.run(run(server.start(Path(directory)), asked.messages))
        finally:
            server.stop()


if __name__ == "__main__":
    main()
