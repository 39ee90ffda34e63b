"""Results of tasks in a store: read from anywhere, bounded, and gone when their time is over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from polywire.bus.core.results import Outcome
from polywire.durable import results
from polywire.durable.results import StoreResults
from polywire.durable.store.apsw import SqliteStore
from polywire.errors import BackendLost, MessageRefused
from polywire.testing.clock import ManualClock

SOON = 10.0
DONE = Outcome(body=b"{}")


@asynccontextmanager
async def opened(path: Path, **options: Any) -> AsyncIterator[StoreResults]:
    async with SqliteStore(path / "results.db", upgrade=True) as store:
        made = StoreResults(store, **options)
        await made.start()
        try:
            yield made
        finally:
            await made.close()


async def test_an_outcome_that_was_put_is_there_with_all_its_parts(tmp_path: Path) -> None:
    failed = Outcome(code=5, message="no such order", details=[("type.googleapis.com/shop.v1.Gone", b"\x00\xff")])
    async with opened(tmp_path) as mine:
        await mine.put("a", DONE, ttl=60)
        await mine.put("b", failed, ttl=60)
        assert await mine.wait("a", timeout=0) == DONE
        assert await mine.wait("b", timeout=None) == failed
        await mine.put("a", failed, ttl=60)
        assert await mine.wait("a", timeout=0) == failed
        assert mine.name == "results"
        assert mine.shared


async def test_who_waits_gets_it_when_it_comes_from_this_process_or_another(tmp_path: Path) -> None:
    async with opened(tmp_path) as mine, opened(tmp_path) as other, asyncio.timeout(SOON):
        waiting = [asyncio.create_task(one.wait("a", timeout=None)) for one in (mine, mine, other, other)]
        await asyncio.sleep(0.02)
        await mine.put("a", DONE, ttl=60)
        assert await asyncio.gather(*waiting) == [DONE] * 4
        assert mine._waiting == {}
        assert other._waiting == {}


async def test_many_who_wait_are_looked_for_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "LOOKED_FOR", 7)
    async with opened(tmp_path) as mine, opened(tmp_path) as other, asyncio.timeout(SOON):
        waiting = [asyncio.create_task(other.wait(f"{n}", timeout=None)) for n in range(40)]
        for n in range(40):
            await mine.put(f"{n}", Outcome(body=b"%d" % n), ttl=60)
        assert [one.body if one else b"" for one in await asyncio.gather(*waiting)] == [b"%d" % n for n in range(40)]


async def test_waiting_ends_with_its_time_and_can_be_cancelled(tmp_path: Path) -> None:
    async with opened(tmp_path) as mine, asyncio.timeout(SOON):
        assert await mine.wait("a", timeout=0) is None
        assert await mine.wait("a", timeout=0.02) is None
        waiting = asyncio.create_task(mine.wait("a", timeout=None))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()
        assert mine._waiting == {}


async def test_looking_grows_rarer_and_ends_when_nobody_waits(tmp_path: Path) -> None:
    clock = ManualClock()
    async with opened(tmp_path, clock=clock) as mine:
        waiting = asyncio.create_task(mine.wait("a", timeout=3.0))
        await until(lambda: mine._looker is not None)
        looks = 0
        original = mine._look

        async def counted(keys: list[str], *, forced: bool = False) -> bool:
            nonlocal looks
            looks += 1
            return await original(keys, forced=forced)

        mine._look = counted  # type: ignore[method-assign]  # replaced for the test
        while not waiting.done():
            await clock.advance(0.05)
            await asyncio.sleep(0.001)  # what it looks at is read in a thread
        assert await waiting is None
        assert looks <= 60 + 10
        looker = mine._looker
        assert looker is not None
        await clock.advance(0.1)
        await until(looker.done)


async def until(condition: Any) -> None:
    async with asyncio.timeout(SOON):
        while not condition():  # noqa: ASYNC110 - of what happens elsewhere
            await asyncio.sleep(0.001)


async def test_an_outcome_is_gone_when_its_time_is_over(tmp_path: Path) -> None:
    clock = ManualClock()
    async with opened(tmp_path, clock=clock) as mine:
        await mine.put("short", DONE, ttl=10)
        await mine.put("long", DONE, ttl=100)
        await clock.advance(10)
        assert await mine.wait("short", timeout=0) is None
        assert await mine.wait("long", timeout=0) == DONE
        assert await mine.clean() == 1
        assert await count(mine) == 1


async def test_outcomes_are_removed_in_chunks_by_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "CHUNK", 3)
    clock = ManualClock()
    async with opened(tmp_path, clock=clock) as mine:
        for n in range(10):
            await mine.put(f"{n}", DONE, ttl=10)
        await until(lambda: clock.sleeping > 0)
        while await count(mine):
            await clock.advance(results.SWEEP)
            await asyncio.sleep(0.005)


async def test_what_is_too_big_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path, max_bytes=100) as mine:
        await mine.put("a", Outcome(body=b"x" * 100), ttl=60)
        with pytest.raises(MessageRefused) as caught:
            await mine.put("b", Outcome(body=b"x" * 101), ttl=60)
        assert str(caught.value) == (
            "The outcome of 'b' was not stored: it has 101 bytes, and the results of store 'results' take 100. Store "
            "what it refers to elsewhere, and return the place."
        )


async def test_beyond_the_limit_the_oldest_go_first(tmp_path: Path) -> None:
    clock = ManualClock()
    async with opened(tmp_path, max_stored_bytes=20_000, clock=clock) as mine:
        for n in range(100):
            await clock.advance(1)
            await mine.put(f"{n:02}", Outcome(body=b"x" * 800), ttl=3600)
        async with mine._store.read() as view:
            kept = [row[0] for row in await view.fetch_all("SELECT name FROM polywire_result ORDER BY name")]
            size = await view.fetch_one("SELECT sum(size) FROM polywire_result")
        assert kept == [f"{n:02}" for n in range(100 - len(kept), 100)]
        assert size is not None
        assert 10_000 <= size[0] <= 25_000


async def test_closing_tells_those_who_wait_and_those_who_come_later(tmp_path: Path) -> None:
    async with opened(tmp_path) as mine:
        waiting = asyncio.create_task(mine.wait("a", timeout=None))
        await until(lambda: mine._looker is not None)
        await mine.close()
        await mine.close()
        with pytest.raises(BackendLost) as caught:
            await waiting
        assert str(caught.value) == "The results of store 'results' were not reached: it was closed."
        with pytest.raises(BackendLost):
            await mine.put("a", DONE, ttl=60)
        with pytest.raises(BackendLost):
            await mine.wait("a", timeout=0)


async def test_a_store_that_fails_is_told_as_lost(tmp_path: Path) -> None:
    async with opened(tmp_path) as mine:
        await mine._store.close()
        with pytest.raises(BackendLost) as caught:
            await mine.put("a", DONE, ttl=60)
        assert str(caught.value) == (
            "The results of store 'results' were not reached: A transaction of store 'results' was not begun: it is "
            "not open."
        )
        with pytest.raises(BackendLost):
            await mine.wait("a", timeout=1)


async def count(mine: StoreResults) -> int:
    async with mine._store.read() as view:
        row = await view.fetch_one("SELECT count(*) FROM polywire_result")
    assert row is not None
    return int(row[0])
