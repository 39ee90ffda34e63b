"""One topic of a log under test, and what the tests of `polywire.testing.logs` do to it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

from polywire.bus.core import (
    DeadFilter,
    DeadLetter,
    Envelope,
    EventLog,
    GroupStats,
    Guarantees,
    LogConsumer,
    Record,
    TopicSpec,
)
from polywire.bus.core.log import Revoking
from polywire.testing.buses import Worker, worker_process

if TYPE_CHECKING:
    from polywire.testing.logs import LogSuite

GROUP = f"billing-{secrets.token_hex(4)}"
"""Who consumes where a test does not care. Of this run alone: a backend may know groups by their name, and move the
members of all that have one."""


class OpenLog:
    """One topic of a log under test, and what a test does to it."""

    def __init__(self, suite: LogSuite, url: str, backend: EventLog, spec: TopicSpec, stack: AsyncExitStack) -> None:
        self.suite = suite
        self.url = url
        self.backend = backend
        self.spec = spec
        self.topic = spec.name
        self._stack = stack

    @property
    def guarantees(self) -> Guarantees:
        return self.backend.guarantees

    async def again(self) -> OpenLog:
        """The same topic through another connection."""
        backend = await self.suite.open_backend(self.url)
        self._stack.push_async_callback(backend.close)
        return OpenLog(self.suite, self.url, backend, self.spec, self._stack)

    async def member(self, group: str = GROUP, *, limit: int = 100, revoking: Revoking | None = None) -> LogConsumer:
        """A member that has joined, with partitions where there are any left."""
        joining = self.backend.consumer([self.topic], group, limit=limit, revoking=revoking)
        made = await self.suite.within(joining, what="joining")
        self._stack.push_async_callback(made.close)
        return made

    async def only_member(self, group: str = GROUP, *, limit: int = 100) -> LogConsumer:
        """One that has all partitions."""
        made = await self.member(group, limit=limit)
        await self.until_assigned(made, self.spec.partitions)
        return made

    def reader(self, member: LogConsumer, handle: Callable[[Record], Any] | None = None) -> Reader:
        """One that goes on receiving, until the test ends at the latest."""
        made = Reader(member, handle)
        self._stack.push_async_callback(made.end)
        return made

    async def until_assigned(self, member: LogConsumer, count: int) -> None:
        async def assigned() -> bool:
            return len(member.assigned) == count

        await self.suite.until(assigned, what=f"the assignment of {count} partitions")

    async def worker(self, group: str = GROUP, limit: int = 100) -> Worker:
        """A member in a process of its own."""
        arguments = (self.url, "--topic", self.topic, "--group", group, "--limit", str(limit))
        return await self._stack.enter_async_context(worker_process(*arguments))

    async def victim(self) -> Victim:
        """A member that can be killed."""
        if self.guarantees.shared:
            return Victim(self, await self.worker(), None)
        return Victim(self, None, await self.member())

    async def append(self, *texts: str, **fields: Any) -> list[Envelope]:
        """Confirmed ones."""
        sent = [self.suite.message(text, **fields) for text in texts]
        await self.append_all(sent)
        return sent

    async def append_all(self, envelopes: Sequence[Envelope]) -> None:
        appending = self.backend.append(self.topic, envelopes, timeout=self.suite.patience)
        results = await self.suite.within(appending, what="appending")
        assert results == [None] * len(envelopes), results

    async def receive(self, member: LogConsumer, count: int = 1) -> list[Record]:
        """Exactly *count*."""
        found: list[Record] = []

        async def gather() -> None:
            while len(found) < count:
                got = await member.receive(count - len(found))
                assert 1 <= len(got) <= count - len(found)
                found.extend(got)

        try:
            await self.suite.within(gather(), what=f"receiving {count}")
        except AssertionError as error:
            raise AssertionError(f"{error}; there came {[record.position for record in found]}") from None
        return found

    async def handle(self, member: LogConsumer, count: int = 1) -> list[Record]:
        """Receive, and count as done."""
        found = await self.receive(member, count)
        await member.done(found)
        return found

    async def nothing_for(self, member: LogConsumer, *, what: str = "nothing should have come") -> None:
        await self.suite.nothing_from(member.receive(1), what=what)

    async def until_lag(self, lag: int, group: str = GROUP) -> GroupStats:
        seen: list[GroupStats] = []

        async def fits() -> bool:
            seen.append(await self.backend.stats(self.topic, group))
            return seen[-1].lag == lag

        try:
            await self.suite.until(fits, what=f"a lag of {lag}")
        except AssertionError as error:
            raise AssertionError(f"{error}; it is {seen[-1]}") from None
        return seen[-1]

    async def until_dead(self, count: int, group: str = GROUP, which: DeadFilter | None = None) -> list[DeadLetter]:
        """Wait for as many dead letters."""
        found: list[DeadLetter] = []

        async def there() -> bool:
            found[:] = await self.backend.dead(self.topic, group, which or DeadFilter())
            return len(found) >= count

        await self.suite.until(there, what=f"{count} dead letters")
        assert len(found) == count
        return found


class Victim:
    """A member in a process of its own, where the backend is shared, and killed for real there."""

    def __init__(self, log: OpenLog, worker: Worker | None, member: LogConsumer | None) -> None:
        self._log = log
        self._worker = worker
        self._member = member
        self._held: dict[str, Record] = {}

    async def receive(self, count: int = 1) -> list[str]:
        """The ids, in order."""
        if self._worker is not None:
            receiving = self._worker.receive(count)
            shown = await self._log.suite.within(receiving, what=f"receiving {count} in another process")
            return [one["id"] for one in shown]
        assert self._member is not None
        got = await self._log.receive(self._member, count)
        self._held.update((record.envelope.id, record) for record in got)
        return [record.envelope.id for record in got]

    async def done(self, ids: Sequence[str]) -> None:
        if self._worker is not None:
            await self._worker.ask("done", ids=list(ids))
        elif self._member is not None:
            await self._member.done([self._held[one] for one in ids])

    async def kill(self) -> None:
        if self._worker is not None:
            await self._worker.kill()
        elif self._member is not None:
            await self._log.suite.kill_member(self._member)


class Reader:
    """Goes on receiving for a member, and keeps what came."""

    def __init__(self, member: LogConsumer, handle: Callable[[Record], Any] | None = None) -> None:
        self.member = member
        self.records: list[Record] = []
        self._handle = handle
        self._task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        while True:
            for record in await self.member.receive(10):
                self.records.append(record)
                if self._handle is not None:
                    await self._handle(record)

    @property
    def texts(self) -> list[str]:
        return [record.envelope.body.decode() for record in self.records]

    async def stop(self) -> None:
        """Raises what receiving raised."""
        error = await self.end()
        if error is not None:
            raise error

    async def end(self) -> BaseException | None:
        """What receiving raised."""
        self._task.cancel()
        await asyncio.wait([self._task])
        return None if self._task.cancelled() else self._task.exception()
