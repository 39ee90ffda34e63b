"""The memory backend keeps the rules of queues, logs and fan-outs, by the machine's clock and by a manual one."""

from __future__ import annotations

import secrets
from typing import Any

from polywire.bus.backend.memory import MemoryFanout
from polywire.testing.fanouts import FanoutSuite
from polywire.testing.logs import LogSuite
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


class TestMemoryLog(LogSuite):
    moment = 0.15
    quiet = 0.05

    def url(self) -> str:
        return f"memory:{secrets.token_hex(8)}"

    async def kill_member(self, member: Any) -> None:
        member.kill()

    async def put_raw(self, backend: Any, topic: str, data: bytes) -> None:
        backend.inject(topic, data)


class TestMemoryLogByManualClock(TestMemoryLog):
    drives_clock = True
    moment = 60.0
    patience = 120.0
    quiet = 1.0


class TestMemoryFanout(FanoutSuite):
    quiet = 0.05

    def url(self) -> str:
        return f"memory:{secrets.token_hex(8)}"

    async def open_backend(self, url: str) -> MemoryFanout:
        fanout = MemoryFanout(url, clock=self.clock)
        await fanout.start()
        return fanout
