"""A worker that is killed: handles messages of a queue, writing each into a file before it acknowledges.

`python rabbitmq_worker.py URL QUEUE FILE`. Bodies say what happens: `ok`, `retry` (fails the first time), `bury`.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys

from polywire.bus.backend.rabbitmq import RabbitQueue
from polywire.bus.core import Ack, Bury, Delivery, Outcome, RetryAfter, Settlement


async def work(url: str, name: str, path: str) -> None:
    queue = RabbitQueue(url)
    await queue.start()
    consumer = await queue.consumer(name, limit=20)
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    while True:
        deliveries = await consumer.receive(10)
        held = await consumer.settle([], deliveries)
        for delivery in deliveries:
            if delivery in held:
                await asyncio.sleep(random.random() * 0.01)
                line = f"{delivery.envelope.id} {delivery.attempt} {delivery.lost} {os.getpid()}\n"
                os.write(file, line.encode())
                await consumer.settle([Settlement(delivery, outcome(delivery))])


def outcome(delivery: Delivery) -> Outcome:
    said = delivery.envelope.body
    if said == b"bury":
        return Bury("rejected", "as it said")
    if said == b"retry" and delivery.envelope.attempt == 0:
        return RetryAfter(0.1, "as it said")
    return Ack()


if __name__ == "__main__":
    asyncio.run(work(*sys.argv[1:4]))
