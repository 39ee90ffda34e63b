"""A worker to be killed: `kafka_worker.py URL TOPIC GROUP`. Prints what it is done with; ends when its input does."""

from __future__ import annotations

import asyncio
import json
import sys

from polywire.bus.backend.kafka import KafkaLog
from polywire.bus.core import Bury, LogConsumer, Record, RetryAfter


def tell(note: str, record: Record) -> None:
    envelope = record.envelope
    print(
        json.dumps({"note": note, "id": envelope.id, "key": envelope.key, "text": envelope.body.decode()}), flush=True
    )


async def handle(consumer: LogConsumer, busy: asyncio.Lock) -> None:
    while True:
        records = await consumer.receive(10)
        async with busy:
            for record in records:
                await settle(consumer, record)


async def settle(consumer: LogConsumer, record: Record) -> None:
    wanted = record.envelope.body if record.envelope.key is None else b""
    if wanted == b"bury":
        await consumer.bury(record, Bury("rejected", "ValueError: as asked"))
    elif wanted == b"retry" and not record.retried:
        await consumer.retry(record, RetryAfter(0.1, "ValueError: as asked"))
    else:
        # Said before it is done: who is killed in between does it twice, and not never.
        tell("done", record)
        await consumer.done([record])


async def main(url: str, topic: str, group: str) -> None:
    log = KafkaLog(url)
    await log.start()
    busy = asyncio.Lock()

    async def revoking(partitions: object) -> None:
        async with busy:
            pass

    consumer = await log.consumer([topic], group, limit=50, revoking=revoking)
    handling = asyncio.ensure_future(handle(consumer, busy))
    await asyncio.to_thread(sys.stdin.read)
    async with busy:
        handling.cancel()
    await asyncio.wait([handling])
    await log.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
