"""RabbitMQ killed and started again: those tests of the public suites that need a server of their own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from rabbitmq_support import until
from servers.base import is_free, ports
from servers.pytest_plugin import require_server
from servers.rabbitmq import RabbitMQ, RabbitMQ4

from polywire.testing.buses import PASSWORD, BusSuite
from polywire.testing.fanouts import FanoutSuite
from polywire.testing.queues import QueueSuite

pytestmark = pytest.mark.slow

SETTLED = 2.0
"""Seconds after declaring a quorum queue within which a SIGKILL leaves it registered and dead (3.10 and 4.0)."""


@pytest.fixture(scope="module", params=[RabbitMQ, RabbitMQ4], ids=lambda server: server.name)
def own_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    require_server(request, request.param.name)
    server: RabbitMQ = request.param()
    server.start(tmp_path_factory.mktemp("rabbitmq"))
    yield server
    server.kill()
    server.stop()


class Restarted(BusSuite):
    """On a server that may be killed."""

    patience = 30.0
    server: RabbitMQ
    directory: Path

    @pytest.fixture(autouse=True)
    def _server(self, own_server: RabbitMQ, tmp_path: Path) -> None:
        self.server = own_server
        self.directory = tmp_path
        self.opened: list[Any] = []

    def url(self) -> str:
        return self.server.url

    async def open_backend(self, url: str) -> Any:
        backend: Any = await super().open_backend(url)  # type: ignore[misc]  # of the suite beside this class
        self.opened.append(backend)
        return backend

    @asynccontextmanager
    async def backend_down(self, url: str) -> AsyncIterator[None]:
        await asyncio.sleep(SETTLED)
        self.server.kill()
        try:
            await until(self._all_noticed, "losing the connections")
            yield
        finally:
            await asyncio.to_thread(self.server.restart)

    async def _all_noticed(self) -> bool:
        return not any(backend.connected for backend in self.opened)

    def url_of_nobody(self) -> str:
        port = ports(self.directory, "nobody")["nobody"]
        assert is_free(port)
        return f"amqp://user:{PASSWORD}@127.0.0.1:{port}/"


def only(suite: type[Any]) -> dict[str, None]:
    """Hide the tests that need no restart: they run on the server that all share."""
    mine = ("restarted", "is_down", "was_down", "does_not_answer")
    return {name: None for name in dir(suite) if name.startswith("test_") and not any(word in name for word in mine)}


TestRabbitQueueRestarted = type("TestRabbitQueueRestarted", (Restarted, QueueSuite), only(QueueSuite))
TestRabbitFanoutRestarted = type("TestRabbitFanoutRestarted", (Restarted, FanoutSuite), only(FanoutSuite))
