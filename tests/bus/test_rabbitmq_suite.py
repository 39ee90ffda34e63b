"""RabbitMQ passes the public suite of task queues, against real servers: 3.10, and 4.0 where it is installed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from rabbitmq_support import cut_connections, delete, plain_channel, properties

from polywire.bus.backend.rabbitmq import RabbitQueue
from polywire.bus.core import QueueSpec, TaskQueue
from polywire.testing.queues import QueueSuite


class TestRabbitQueue(QueueSuite):
    patience = 20.0
    server = ""

    @pytest.fixture(autouse=True)
    def _server(self, rabbitmq_url: str) -> None:
        self.server = rabbitmq_url

    def url(self) -> str:
        return self.server

    async def cut(self, backend: TaskQueue) -> None:
        assert isinstance(backend, RabbitQueue)
        await cut_connections(backend)

    async def put_raw(self, backend: TaskQueue, queue: str, data: bytes) -> None:
        # Bytes without an envelope are a foreign message; one that claims to have an envelope is unreadable.
        with plain_channel(self.server) as channel:
            channel.basic_publish("", queue, data, properties(headers={"cloudEvents:type": "shop.v1.Mail"}))

    async def clean_up(self, backend: TaskQueue, queues: Sequence[QueueSpec]) -> None:
        assert isinstance(backend, RabbitQueue)
        for spec in queues:
            await delete(backend, spec)


class TestRabbitQueueOn4(TestRabbitQueue):
    @pytest.fixture(autouse=True)
    def _server(self, server_url: Callable[[str], str]) -> None:
        self.server = server_url("rabbitmq4")
