"""The memory backend keeps the rules of queues and logs, by the machine's clock and by a manual one."""

from __future__ import annotations

import secrets
from typing import Any

from polywire.testing.queues import QueueSuite


class TestMemoryQueue(QueueSuite):
    lease = 0.2
    moment = 0.15
    quiet = 0.05

    def url(self) -> str:
        return f"memory:{secrets.token_hex(8)}"

    async def kill_consumer(self, consumer: Any) -> None:
        consumer.kill()

    async def cut(self, backend: Any) -> None:
        backend.cut()

    async def put_raw(self, backend: Any, queue: str, data: bytes) -> None:
        backend.inject(queue, data)


class TestMemoryQueueByManualClock(TestMemoryQueue):
    drives_clock = True
    lease = 30.0
    moment = 60.0
    patience = 600.0
    quiet = 20.0
