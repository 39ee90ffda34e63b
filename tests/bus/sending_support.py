"""What the tests of sending share: a shop's declarations, and backends that record what they are given."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any, cast

from polywire.bus.core import Envelope, EventLog, Fanout, Guarantees, TaskQueue
from polywire.bus.core.results import Results
from polywire.bus.sending import BusWires, Sender
from polywire.client import client_for
from polywire.clock import SYSTEM_CLOCK, Clock
from polywire.codec import Format
from polywire.contract import Contract, Event, Message, Retry, rpc, task

EVERYTHING = Guarantees(
    backend="fake",
    durable=True,
    shared=True,
    max_message_bytes=1000,
    key_order=True,
    delay=True,
    max_delay=3600.0,
    priorities=10,
    cancel=True,
    shared_limits=True,
)
NOTHING = Guarantees(backend="poor", durable=False, shared=False, max_message_bytes=1000, key_order=False)


class Confirmation(Message):
    order_id: str
    text: str = ""


class Resize(Message):
    picture: str


class Thumb(Message):
    data: bytes


class Mail(Contract, package="shop.v1"):
    @task(retry=Retry(attempts=5), timeout=30, key="order_id")
    async def send_confirmation(self, mail: Confirmation) -> None:
        """Tell the customer."""
        raise NotImplementedError


class Images(Contract, package="shop.v1"):
    @task(priorities=3, priority=1, result_ttl=60)
    async def resize(self, request: Resize) -> Thumb:
        raise NotImplementedError

    @task(priorities=3)
    async def sweep(self) -> None:
        raise NotImplementedError

    @rpc
    async def look(self, request: Resize) -> Thumb:
        raise NotImplementedError


class OrderPlaced(Event, topic="shop.orders", key="order_id", package="shop.v1", version=2):
    order_id: str
    total: Decimal = Decimal(0)


class PageView(Event, topic="shop.views"):
    page: str


class Recording:
    """A backend that keeps what it is given. `answers` are given in turn; then everything is confirmed."""

    def __init__(self, guarantees: Guarantees = EVERYTHING) -> None:
        self.guarantees = guarantees
        self.sent: list[tuple[str, Envelope]] = []
        self.timeouts: list[float | None] = []
        self.sizes: list[int] = []
        self.answers: list[Exception | None] = []
        self.waits: asyncio.Event | None = None
        """Confirms nothing before it is set."""
        self.under_way = 0
        self.cancelled: list[tuple[str, str]] = []
        self.moved: list[tuple[str, str, float]] = []
        self.known: list[str] = []
        """Groups, of a log."""
        self.asked = 0

    async def _take(
        self, place: str, envelopes: Sequence[Envelope], *, timeout: float | None = None
    ) -> list[Exception | None]:
        self.sizes.append(len(envelopes))
        self.timeouts.append(timeout)
        self.under_way += len(envelopes)
        try:
            if self.waits is not None:
                await self.waits.wait()
        finally:
            self.under_way -= len(envelopes)
        self.sent.extend((place, envelope) for envelope in envelopes)
        return [self.answers.pop(0) if self.answers else None for _ in envelopes]

    async def cancel(self, queue: str, id: str) -> bool:
        self.cancelled.append((queue, id))
        return True

    async def move(self, queue: str, id: str, not_before: float) -> bool:
        self.moved.append((queue, id, not_before))
        return True

    @property
    def envelopes(self) -> list[Envelope]:
        return [envelope for _, envelope in self.sent]


class RecordingQueue(Recording):
    async def send(self, *arguments: Any, **options: Any) -> list[Exception | None]:
        return await self._take(*arguments, **options)


class RecordingLog(Recording):
    async def append(self, *arguments: Any, **options: Any) -> list[Exception | None]:
        return await self._take(*arguments, **options)

    async def groups(self, topic: str) -> list[str]:
        self.asked += 1
        return self.known


class RecordingFanout(Recording):
    async def publish(self, *arguments: Any, **options: Any) -> list[Exception | None]:
        return await self._take(*arguments, **options)


async def until(condition: Callable[[], bool]) -> None:
    """Let others run until *condition* holds, at most for 5 s."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0)


def without(**changes: Any) -> Guarantees:
    return replace(EVERYTHING, **changes)


def sender_over(
    backend: Recording,
    *,
    clock: Clock = SYSTEM_CLOCK,
    results: Results | None = None,
    format: Format = "json",
    max_pending: int = 10_000,
    require_subscriber: bool = False,
) -> Sender:
    """A sender whose tasks and events all go to *backend*."""
    return Sender(
        "orders",
        tasks=BusWires(default=cast(TaskQueue, backend)),
        events=BusWires(default=cast("EventLog | Fanout", backend)),
        clock=clock,
        results=results,
        format=format,
        max_pending=max_pending,
        require_subscriber=require_subscriber,
    )


def mail_over(sender: Sender) -> Mail:
    return client_for(Mail, None, sender)


def images_over(sender: Sender) -> Images:
    return client_for(Images, None, sender)
