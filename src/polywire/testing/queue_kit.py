"""One queue under test, and what the tests of `polywire.testing.queues` do to it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from polywire.bus.core import (
    Ack,
    Bury,
    DeadFilter,
    DeadLetter,
    Delivery,
    Envelope,
    Guarantees,
    Outcome,
    QueueConsumer,
    QueueSpec,
    QueueStats,
    Settlement,
    TaskQueue,
)
from polywire.testing.buses import Worker, worker_process

if TYPE_CHECKING:
    from polywire.testing.queues import QueueSuite


class OpenQueue:
    """One queue of a backend under test, and what a test does to it."""

    def __init__(self, suite: QueueSuite, url: str, backend: TaskQueue, spec: QueueSpec, stack: AsyncExitStack) -> None:
        self.suite = suite
        self.url = url
        self.backend = backend
        self.spec = spec
        self.name = spec.name
        self._stack = stack

    @property
    def guarantees(self) -> Guarantees:
        return self.backend.guarantees

    async def again(self) -> OpenQueue:
        """The same queue through another connection."""
        backend = await self.suite.open_backend(self.url)
        self._stack.push_async_callback(backend.close)
        return OpenQueue(self.suite, self.url, backend, self.spec, self._stack)

    async def consumer(self, limit: int = 100) -> QueueConsumer:
        made = await self.backend.consumer(self.name, limit=limit)
        self._stack.push_async_callback(made.close)
        return made

    async def worker(self, limit: int = 100) -> Worker:
        """A process of its own that consumes from this queue."""
        arguments = (self.url, "--queue", self.name, "--limit", str(limit))
        return await self._stack.enter_async_context(worker_process(*arguments))

    async def victim(self, limit: int = 100) -> Victim:
        """Somebody who consumes from this queue and can be killed."""
        if self.guarantees.shared:
            return Victim(self, await self.worker(limit), None)
        return Victim(self, None, await self.consumer(limit))

    async def send(self, *texts: str, **fields: Any) -> list[Envelope]:
        """Confirmed ones."""
        sent = [self.suite.message(text, **fields) for text in texts]
        await self.send_all(sent)
        return sent

    async def send_all(self, envelopes: Sequence[Envelope]) -> None:
        sending = self.backend.send(self.name, envelopes, timeout=self.suite.patience)
        results = await self.suite.within(sending, what="sending")
        assert results == [None] * len(envelopes), results

    async def receive(self, consumer: QueueConsumer, count: int = 1, *, start: bool = False) -> list[Delivery]:
        """Exactly *count*, whose handlers begin where asked for."""

        async def gather() -> list[Delivery]:
            found: list[Delivery] = []
            while len(found) < count:
                got = await consumer.receive(count - len(found))
                assert 1 <= len(got) <= count - len(found)
                found += got
            return found

        found = await self.suite.within(gather(), what=f"receiving {count}")
        if start:
            await self.start(consumer, found)
        return found

    async def start(self, consumer: QueueConsumer, deliveries: Sequence[Delivery]) -> None:
        held = await self.suite.within(consumer.settle((), deliveries), what="starting")
        assert set(held) == set(deliveries)

    async def settle(self, consumer: QueueConsumer, deliveries: Sequence[Delivery], outcome: Outcome) -> None:
        settlements = [Settlement(delivery, outcome) for delivery in deliveries]
        assert not await self.suite.within(consumer.settle(settlements), what="settling")

    async def handle(
        self,
        consumer: QueueConsumer,
        count: int = 1,
        outcome: Outcome = Ack(),  # noqa: B008 - a value without state
    ) -> list[Delivery]:
        """Receive, start and settle."""
        found = await self.receive(consumer, count, start=True)
        await self.settle(consumer, found, outcome)
        return found

    async def nothing_for(self, consumer: QueueConsumer, *, what: str = "nothing should have come") -> None:
        await self.suite.nothing_from(consumer.receive(1), what=what)

    async def until_stats(self, **wanted: int) -> None:
        """Wait for these numbers, where the backend knows them."""
        seen: QueueStats | None = None

        async def fits() -> bool:
            nonlocal seen
            seen = await self.backend.stats(self.name)
            return all(getattr(seen, name) in (None, value) for name, value in wanted.items())

        try:
            await self.suite.until(fits, what=f"{wanted}")
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {seen}") from None

    async def bury(self, consumer: QueueConsumer, *texts: str, reason: str = "rejected", error: str = "") -> None:
        for text in texts:
            await self.send(text)
            await self.handle(consumer, 1, Bury(reason, error))

    async def until_dead(self, count: int, which: DeadFilter | None = None) -> list[DeadLetter]:
        """Wait for as many dead letters."""
        found: list[DeadLetter] = []

        async def there() -> bool:
            found[:] = await self.backend.dead(self.name, which or DeadFilter())
            return len(found) >= count

        await self.suite.until(there, what=f"{count} dead letters")
        assert len(found) == count
        return found


class Victim:
    """Consumes in a process of its own, where the backend is shared, and is killed for real there."""

    def __init__(self, queue: OpenQueue, worker: Worker | None, consumer: QueueConsumer | None) -> None:
        self._queue = queue
        self._worker = worker
        self._consumer = consumer

    async def receive(self, count: int = 1, *, start: bool = False) -> list[str]:
        """The ids, in order."""
        if self._worker is not None:
            receiving = self._worker.receive(count)
            shown = await self._queue.suite.within(receiving, what=f"receiving {count} in another process")
            ids = [one["id"] for one in shown]
            if start:
                await self._worker.start(ids)
            return ids
        assert self._consumer is not None
        got = await self._queue.receive(self._consumer, count, start=start)
        return [delivery.envelope.id for delivery in got]

    async def kill(self) -> None:
        if self._worker is not None:
            await self._worker.kill()
        elif self._consumer is not None:
            await self._queue.suite.kill_consumer(self._consumer)
