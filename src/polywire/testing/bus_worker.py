"""A worker to be killed: `python -m polywire.testing.bus_worker URL --queue NAME` or `--topic NAME --group NAME`.

It reads one JSON object per line, does it, and answers with one per line, `{"answer": ...}` or `{"error": "..."}`:
`receive` (`count`), `start`, `ack`, `retry` and `release` (`ids`), `withdraw` (`id`), `done` (`ids`), `send` (`texts`),
`assigned`, `block` (`seconds`, with the event loop standing still), `close`. At the end of its input it ends like a
killed one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any, cast

from polywire.bus.backend.opening import open_events, open_tasks
from polywire.bus.core import (
    Ack,
    Delivery,
    Envelope,
    EventLog,
    LogConsumer,
    Outcome,
    QueueConsumer,
    Record,
    Release,
    RetryAfter,
    Settlement,
    TaskQueue,
    new_id,
)
from polywire.bus.core.queue import Withdrawing

OUTCOMES: dict[str, Outcome] = {"ack": Ack(), "retry": RetryAfter(0.0), "release": Release()}


class QueueWorker:
    def __init__(self, backend: TaskQueue, consumer: QueueConsumer, queue: str) -> None:
        self._backend = backend
        self._consumer = consumer
        self._queue = queue
        self._held: dict[str, Delivery] = {}

    async def do(self, order: dict[str, Any]) -> Any:
        name = order["do"]
        if name == "receive":
            return await self._receive(order["count"])
        if name == "start":
            held = await self._consumer.settle((), [self._held[one] for one in order["ids"]])
            return [one for one in order["ids"] if self._held[one] in held]
        if name in OUTCOMES:
            return await self._settle(order["ids"], OUTCOMES[name])
        if name == "send":
            return await _send(self._backend.send, self._queue, order["texts"])
        if name == "withdraw":
            return await cast(Withdrawing, self._backend).withdraw(self._queue, order["id"])
        if name == "close":
            return await self._consumer.close()
        raise ValueError(f"a worker of a queue cannot {name!r}")

    async def _receive(self, count: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while len(found) < count:
            for delivery in await self._consumer.receive(count - len(found)):
                self._held[delivery.envelope.id] = delivery
                found.append({**_shown(delivery.envelope), "attempt": delivery.attempt, "lost": delivery.lost})
        return found

    async def _settle(self, ids: Sequence[str], outcome: Outcome) -> int:
        await self._consumer.settle([Settlement(self._held[one], outcome) for one in ids])
        return len(ids)


class LogWorker:
    def __init__(self, backend: EventLog, consumer: LogConsumer, topic: str) -> None:
        self._backend = backend
        self._consumer = consumer
        self._topic = topic
        self._held: dict[str, Record] = {}

    async def do(self, order: dict[str, Any]) -> Any:
        name = order["do"]
        if name == "receive":
            return await self._receive(order["count"])
        if name == "done":
            return await self._consumer.done([self._held[one] for one in order["ids"]])
        if name == "send":
            return await _send(self._backend.append, self._topic, order["texts"])
        if name == "assigned":
            return sorted(number for _, number in self._consumer.assigned)
        if name == "close":
            return await self._consumer.close()
        raise ValueError(f"a worker of a log cannot {name!r}")

    async def _receive(self, count: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while len(found) < count:
            for record in await self._consumer.receive(count - len(found)):
                self._held[record.envelope.id] = record
                place = {"partition": record.partition, "offset": record.offset}
                counts = {"attempt": record.attempt, "lost": record.lost, "generation": record.generation}
                found.append({**_shown(record.envelope), **place, **counts})
        return found


def _shown(envelope: Envelope) -> dict[str, Any]:
    return {"id": envelope.id, "text": envelope.body.decode(errors="replace"), "key": envelope.key}


async def _send(send: Any, where: str, texts: Sequence[str]) -> list[str]:
    """The ids of what was confirmed."""
    now = time.time()
    envelopes = [Envelope(new_id(), "polywire.suite.v1.Work", text.encode(), "worker", now) for text in texts]
    results = await send(where, envelopes, timeout=30.0)
    return [envelope.id for envelope, result in zip(envelopes, results, strict=True) if result is None]


async def _opened(options: argparse.Namespace) -> QueueWorker | LogWorker:
    if options.queue:
        tasks = open_tasks(options.url)
        await tasks.start()
        return QueueWorker(tasks, await tasks.consumer(options.queue, limit=options.limit), options.queue)
    events = open_events(options.url)
    if not hasattr(events, "append"):
        raise SystemExit("Give --queue and the URL of tasks: a fan-out is consumed by its queues.")
    log = cast(EventLog, events)
    await log.start()
    return LogWorker(log, await log.consumer([options.topic], options.group, limit=options.limit), options.topic)


async def work(options: argparse.Namespace) -> None:
    """Until the input ends."""
    worker = await _opened(options)
    while line := await asyncio.to_thread(sys.stdin.readline):
        order = json.loads(line)
        answer: dict[str, Any]
        try:
            if order["do"] == "block":
                time.sleep(order["seconds"])  # noqa: ASYNC251 - what a handler should not do, but some do
                answer = {"answer": None}
            else:
                answer = {"answer": await worker.do(order)}
        except Exception as error:  # noqa: BLE001 - whoever asked is told, whatever it is
            answer = {"error": f"{type(error).__name__}: {error}"}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m polywire.testing.bus_worker", description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--queue")
    parser.add_argument("--topic")
    parser.add_argument("--group")
    parser.add_argument("--limit", type=int, default=10)
    options = parser.parse_args()
    if not options.queue and not (options.topic and options.group):
        parser.error("Give --queue, or --topic and --group.")
    asyncio.run(work(options))
    # Threads of clients may still run; whoever closed the input wants this process gone.
    os._exit(0)


if __name__ == "__main__":
    main()
