"""What the tests on Kafka share: the suite with its hooks, a broker of their own, and topics of their own."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, ClassVar, TypeVar

from confluent_kafka import Producer
from servers.kafka import Kafka

from polywire.bus.backend.kafka import KafkaLog
from polywire.bus.core import Envelope, GroupSpec, TopicSpec, new_id
from polywire.testing.buses import PASSWORD
from polywire.testing.logs import LogSuite

S = TypeVar("S", bound="type[KafkaSuite]")
QUICK = "commit_interval=0.05"


class KafkaSuite(LogSuite):
    patience = 30.0
    moment = 0.3
    options: ClassVar[str] = "group_protocol=consumer"
    address: ClassVar[str] = ""

    def url(self) -> str:
        return f"{self.address}?{QUICK}&{self.options}"

    def url_of_nobody(self) -> str:
        return f"kafka://user:{PASSWORD}@127.0.0.1:1?connect_timeout=1"

    async def put_raw(self, backend: Any, topic: str, data: bytes) -> None:
        """As one who knows CloudEvents, but not well."""
        await put(self.address, topic, data, headers={"ce_specversion": "1.0"})


class RestartedKafkaSuite(KafkaSuite):
    """With a broker that is nobody else's."""

    patience = 60.0
    server: ClassVar[Kafka]

    @asynccontextmanager
    async def backend_down(self, url: str) -> AsyncIterator[None]:
        self.server.kill()
        try:
            yield
        finally:
            await asyncio.to_thread(self.server.start_again)


def only(*names: str) -> Callable[[S], S]:
    """Of the suite's tests."""

    def choose(suite: S) -> S:
        for name in dir(suite):
            if name.startswith("test_") and name.removeprefix("test_") not in names:
                setattr(suite, name, None)
        for name in names:
            assert callable(getattr(suite, f"test_{name}")), name
        return suite

    return choose


async def put(address: str, topic: str, value: bytes | None, **options: Any) -> None:
    """Append a record as any other client does."""
    producer = Producer({"bootstrap.servers": address.removeprefix("kafka://")})
    producer.produce(topic, value, **options)
    assert await asyncio.to_thread(producer.flush, 10) == 0


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[KafkaLog]:
    log = KafkaLog(url)
    await log.start()
    try:
        yield log
    finally:
        await log.close()


async def declared(log: KafkaLog, *groups: str, partitions: int = 1, **fields: Any) -> str:
    """A topic that no other test uses, with a group `of_topic` for each of these. *fields* are of TopicSpec."""
    name = f"kafka-{secrets.token_hex(5)}"
    specs = [GroupSpec(topic=name, group=of_topic(name, group)) for group in groups]
    await log.declare([TopicSpec(name=name, partitions=partitions, **fields)], specs)
    return name


def of_topic(topic: str, group: str = "billing") -> str:
    """The name of a group of one topic alone: Kafka knows groups by their name, and moves the members of all that have
    one."""
    return f"{group}-of-{topic}"


def event(text: str = "1", **fields: Any) -> Envelope:
    return Envelope(new_id(), "shop.v1.OrderPaid", text.encode(), "orders", **fields)
