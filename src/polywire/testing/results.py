"""What every store of results promises, as tests: derive a class from `ResultsSuite` and override `opening`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import ClassVar, TypeVar

from polywire.bus.core.results import Outcome, Results
from polywire.clock import Clock
from polywire.errors import BackendLost, MessageRefused
from polywire.testing.buses import raised
from polywire.testing.clock import ManualClock

T = TypeVar("T")

DONE = Outcome(body=b"{}")
FAILED = Outcome(code=5, message="no such order ✓", details=[("type.googleapis.com/shop.v1.Gone", b"\x00\xff")])


class ResultsSuite:
    """The rules of `polywire.bus.core.results.Results` as tests, the same for every store."""

    patience: ClassVar[float] = 30.0
    """Seconds within which whatever must happen happens."""
    max_bytes: ClassVar[int] = 1000
    """Of one outcome, in the stores that `opening` opens."""
    max_total: ClassVar[int] = 20_000
    """Of all of them, where that is asked for; more than a few times as much is never kept."""

    def opening(self, *, clock: Clock | None = None, bounded: bool = False) -> AbstractAsyncContextManager[Results]:
        """A started store that takes outcomes of `max_bytes`; *bounded*: `max_total` together. Several opened in one
        test are the same store, where the store is shared."""
        raise NotImplementedError

    async def within(self, work: Awaitable[T]) -> T:
        async with asyncio.timeout(self.patience):
            return await work

    async def waiting(self, results: Results, key: str) -> asyncio.Task[Outcome | None]:
        """Somebody who waits for it already."""
        task = asyncio.create_task(results.wait(key, timeout=None))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not task.done()
        return task

    async def test_an_outcome_that_was_put_is_there_with_all_its_parts(self) -> None:
        async with self.opening() as results:
            await results.put("a", DONE, ttl=60.0)
            await results.put("b", FAILED, ttl=60.0)
            assert await self.within(results.wait("a", timeout=0.0)) == DONE
            assert await self.within(results.wait("b", timeout=None)) == FAILED
            assert await self.within(results.wait("b", timeout=5.0)) == FAILED

    async def test_a_later_outcome_takes_the_place_of_an_earlier_one(self) -> None:
        async with self.opening() as results:
            await results.put("a", DONE, ttl=60.0)
            await results.put("a", FAILED, ttl=60.0)
            assert await self.within(results.wait("a", timeout=0.0)) == FAILED

    async def test_all_who_wait_get_the_outcome_when_it_comes(self) -> None:
        async with self.opening() as results:
            waiting = [await self.waiting(results, "a") for _ in range(3)]
            other = await self.waiting(results, "b")
            await results.put("a", DONE, ttl=60.0)
            assert await self.within(asyncio.gather(*waiting)) == [DONE] * 3
            assert not other.done()
            await results.put("b", FAILED, ttl=60.0)
            assert await self.within(other) == FAILED

    async def test_who_waits_elsewhere_gets_it_where_the_store_is_shared(self) -> None:
        async with self.opening() as mine, self.opening() as other:
            if not mine.shared:
                await mine.put("a", DONE, ttl=60.0)
                assert await self.within(other.wait("a", timeout=0.0)) is None
                return
            waiting = await self.waiting(other, "a")
            await mine.put("a", DONE, ttl=60.0)
            assert await self.within(waiting) == DONE
            assert await self.within(other.wait("a", timeout=0.0)) == DONE

    async def test_waiting_ends_with_its_time(self) -> None:
        async with self.opening() as results:
            for timeout in (0.0, -1.0, 0.02):
                assert await self.within(results.wait("a", timeout=timeout)) is None

    async def test_waiting_can_be_cancelled_and_disturbs_nobody(self) -> None:
        async with self.opening() as results:
            one, two = await self.waiting(results, "a"), await self.waiting(results, "a")
            one.cancel()
            await asyncio.wait([one])
            assert one.cancelled()
            await results.put("a", DONE, ttl=60.0)
            assert await self.within(two) == DONE

    async def test_an_outcome_is_gone_when_its_time_is_over(self) -> None:
        clock = ManualClock()
        async with self.opening(clock=clock) as results:
            await results.put("short", DONE, ttl=10.0)
            await results.put("long", FAILED, ttl=3600.0)
            await clock.advance(9.0)
            assert await self.within(results.wait("short", timeout=0.0)) == DONE
            await clock.advance(2.0)
            assert await self.within(results.wait("short", timeout=0.0)) is None
            assert await self.within(results.wait("long", timeout=0.0)) == FAILED

    async def test_an_outcome_over_the_limit_is_refused_and_the_one_before_it_stays(self) -> None:
        async with self.opening() as results:
            assert results.max_bytes == self.max_bytes
            most = Outcome(body=b"x" * self.max_bytes)
            await results.put("a", most, ttl=60.0)
            error = await raised(results.put("a", Outcome(body=b"x" * (self.max_bytes + 1)), ttl=60.0), MessageRefused)
            assert str(error) == (
                f"The outcome of 'a' was not stored: it has {self.max_bytes + 1} bytes, and the results of store "
                f"{results.name!r} take {self.max_bytes}. Store what it refers to elsewhere, and return the place."
            )
            assert await self.within(results.wait("a", timeout=0.0)) == most

    async def test_beyond_the_limit_of_all_the_oldest_go_first(self) -> None:
        clock = ManualClock()
        async with self.opening(clock=clock, bounded=True) as results:
            count = 5 * self.max_total // 800
            for number in range(count):
                await clock.advance(1.0)
                await results.put(f"{number}", Outcome(body=b"x" * 800), ttl=36_000.0)
            kept = [n for n in range(count) if await self.within(results.wait(f"{n}", timeout=0.0)) is not None]
            assert kept == list(range(count - len(kept), count)), "others than the oldest went"
            assert 800 <= 800 * len(kept) <= 2 * self.max_total

    async def test_closing_tells_those_who_wait_and_those_who_come_later(self) -> None:
        async with self.opening() as results:
            waiting = await self.waiting(results, "a")
            await results.close()
            await results.close()
            works: list[Callable[[], Awaitable[object]]] = [
                lambda: waiting,
                lambda: results.put("a", DONE, ttl=60.0),
                lambda: results.wait("a", timeout=0.0),
            ]
            for work in works:
                error = await self.within(raised(work(), BackendLost))
                assert repr(results.name) in str(error)
                assert "closed" in str(error) or "not open" in str(error)
