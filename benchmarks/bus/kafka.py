"""CPU time of events on Kafka: µs of the client per event of 600 bytes with the full envelope, 12 headers.

    python benchmarks/bus/kafka.py [--url kafka://...] [--events 50000] [--in-flight 500] [--profile]

"append" are coroutines that send one event each and wait for its confirmation, "append 500" is one that sends as many
by a call; "receive" takes what there is and says
that it is done, commits included; "raw" is what confluent-kafka takes for the same records without any of this, with a
callback each, and `consume` with a commit per batch. Without --url a broker of its own is started for the run.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import pstats
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from confluent_kafka import Consumer, Producer
from servers.kafka import Kafka

from polywire.bus.backend.kafka import KafkaLog
from polywire.bus.backend.kafka_messages import headers_of
from polywire.bus.core import Envelope, GroupSpec, TopicSpec, new_id

ROUNDS = 3
PARTITIONS = 4


def envelope(number: int) -> Envelope:
    return Envelope(
        new_id(),
        "shop.v1.PageViewed",
        b"x" * 600,
        source="gateway",
        time=time.time(),
        version=2,
        key=f"customer-{number % 1000}",
        headers={"tenant": "a"},
        traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        tracestate="vendor=value",
        request_id="01a1fec9-0e34-7000-964b-e9c53ec273b2",
        causation_id="01a1fec9-0e34-7000-964b-e9c53ec273b3",
    )


class Stopwatch:
    """CPU and wall time of this process, threads included."""

    def __init__(self) -> None:
        self.figures: dict[str, list[tuple[float, float]]] = {}

    @contextmanager
    def timing(self, name: str, events: int) -> Iterator[None]:
        cpu, wall = time.process_time(), time.perf_counter()
        yield
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        self.figures.setdefault(name, []).append((cpu / events * 1e6, events / wall))

    def show(self) -> None:
        for name, rounds in self.figures.items():
            print(f"{name:<14} {median(r[0] for r in rounds):6.1f} µs CPU  {median(r[1] for r in rounds):9,.0f}/s")


async def append(log: KafkaLog, topic: str, envelopes: list[Envelope], in_flight: int) -> None:
    each = iter(envelopes)

    async def sender() -> None:
        for event in each:
            [error] = await log.append(topic, [event])
            if error is not None:
                raise error

    await asyncio.gather(*(sender() for _ in range(in_flight)))


async def receive(log: KafkaLog, topic: str, group: str, events: int, watch: Stopwatch) -> None:
    consumer = await log.consumer([topic], group, limit=1000)
    await consumer.done(await consumer.receive(1))
    with watch.timing("receive", events - 1):
        left = events - 1
        while left > 0:
            records = await consumer.receive(500)
            left -= len(records)
            await consumer.done(records)
    await consumer.close()


def raw_produce(servers: str, topic: str, envelopes: list[Envelope], watch: Stopwatch) -> None:
    producer = Producer({"bootstrap.servers": servers, "enable.idempotence": True, "linger.ms": 2})
    confirmed: list[object] = []
    records = [(event.body, (event.key or "").encode(), headers_of(event)) for event in envelopes]
    with watch.timing("raw produce", len(envelopes)):
        for number, (body, key, headers) in enumerate(records):
            producer.produce(topic, body, key, headers=headers, on_delivery=lambda error, _: confirmed.append(error))
            if number % 500 == 0:
                producer.poll(0)
        producer.flush()


def raw_consume(servers: str, topic: str, group: str, events: int, watch: Stopwatch) -> None:
    settings = {"bootstrap.servers": servers, "group.id": group, "enable.auto.commit": False}
    consumer = Consumer({**settings, "auto.offset.reset": "earliest"})
    consumer.subscribe([topic])
    left = events - len(consumer.consume(1, 30))
    with watch.timing("raw consume", left):
        while left > 0:
            left -= len(consumer.consume(500, 1))
            consumer.commit(asynchronous=True)
    consumer.close()


async def measure(url: str, events: int, in_flight: int, watch: Stopwatch) -> None:
    log = KafkaLog(url)
    servers = str(log._address.settings["bootstrap.servers"])
    await log.start()
    for number in range(ROUNDS):
        topic = f"bench-{time.time_ns()}"
        group = GroupSpec(topic=topic, group=f"{topic}-ours")
        await log.declare([TopicSpec(name=topic, partitions=PARTITIONS)], [group])
        envelopes = [envelope(number) for number in range(events)]
        gc.collect()
        gc.freeze()  # They are the benchmark's, and not to be looked at again and again.
        await append(log, topic, envelopes[:100], in_flight)
        with watch.timing("append", events):
            await append(log, topic, envelopes, in_flight)
        await receive(log, topic, group.group, events, watch)
        with watch.timing("append 500", events):
            for start in range(0, events, 500):
                if any(await log.append(topic, envelopes[start : start + 500])):
                    raise RuntimeError("an event was not confirmed")
        other = f"{topic}-raw"
        await log.declare([TopicSpec(name=other, partitions=PARTITIONS)])
        await asyncio.to_thread(raw_produce, servers, other, envelopes, watch)
        await asyncio.to_thread(raw_consume, servers, other, f"{other}-{number}", events, watch)
    await log.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url")
    parser.add_argument("--events", type=int, default=50_000)
    parser.add_argument("--in-flight", type=int, default=500)
    parser.add_argument("--profile", action="store_true", help="show where the event loop's thread spends its time")
    asked = parser.parse_args()
    watch, profile, server = Stopwatch(), cProfile.Profile(), Kafka()
    with tempfile.TemporaryDirectory() as directory:
        url = asked.url or server.start(Path(directory))
        try:
            if asked.profile:
                profile.enable()
            asyncio.run(measure(url, asked.events, asked.in_flight, watch))
        finally:
            profile.disable()
            server.stop()
    watch.show()
    if asked.profile:
        pstats.Stats(profile).sort_stats("tottime").print_stats(25)


if __name__ == "__main__":
    main()
