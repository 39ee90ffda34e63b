"""The suite of event logs on a real Kafka, by both protocols of its groups."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from confluent_kafka import Producer
from servers.kafka import Kafka

from polywire.bus.core import GroupSpec, TopicSpec
from polywire.testing.logs import LogSuite

pytestmark = pytest.mark.slow


class KafkaSuite(LogSuite):
    patience = 20.0
    moment = 0.3
    options: ClassVar[str]
    address: ClassVar[str] = ""

    def url(self) -> str:
        return f"{self.address}?commit_interval=0.05&{self.options}"

    async def put_raw(self, backend: Any, topic: str, data: bytes) -> None:
        """As one who knows CloudEvents, but not well."""
        producer = Producer({"bootstrap.servers": self.address.removeprefix("kafka://")})
        producer.produce(topic, data, headers={"ce_specversion": "1.0"})
        assert await asyncio.to_thread(producer.flush, 10) == 0


class TestKafkaByItsNewProtocol(KafkaSuite):
    options = "group_protocol=consumer"

    @pytest.fixture(autouse=True)
    def _address(self, kafka_url: str) -> None:
        type(self).address = kafka_url


@pytest.fixture(scope="class")
def own_kafka(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    """One that may be killed: the others' tests do not see it."""
    server = Kafka()
    server.start(tmp_path_factory.mktemp("kafka"))
    yield server
    server.kill()


class TestKafkaByTheClassicProtocol(KafkaSuite):
    options = "group_protocol=classic&session_timeout=1"

    @pytest.fixture(autouse=True)
    def _address(self, kafka_url: str) -> None:
        type(self).address = kafka_url
