"""Both stores of results keep what every one promises; and the suite can fail."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import ClassVar

import pytest

from polywire.bus.backend.memory_results import MemoryResults
from polywire.bus.core.results import Outcome, Results
from polywire.clock import SYSTEM_CLOCK, Clock
from polywire.durable.results import StoreResults
from polywire.durable.store.apsw import SqliteStore
from polywire.testing.results import ResultsSuite

PLENTY = 64 * 1024 * 1024


class TestMemoryResults(ResultsSuite):
    kind: ClassVar[type[MemoryResults]] = MemoryResults

    @asynccontextmanager
    async def opening(self, *, clock: Clock | None = None, bounded: bool = False) -> AsyncIterator[Results]:
        made = self.kind(
            clock=clock or SYSTEM_CLOCK,
            max_bytes=self.max_bytes,
            max_total_bytes=self.max_total if bounded else PLENTY,
        )
        await made.start()
        try:
            yield made
        finally:
            await made.close()


class TestStoreResults(ResultsSuite):
    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path) -> None:
        self.path = tmp_path / "results.db"

    @asynccontextmanager
    async def opening(self, *, clock: Clock | None = None, bounded: bool = False) -> AsyncIterator[Results]:
        async with SqliteStore(self.path, upgrade=True) as store:
            made = StoreResults(
                store,
                clock=clock or SYSTEM_CLOCK,
                max_bytes=self.max_bytes,
                max_stored_bytes=self.max_total if bounded else PLENTY,
            )
            await made.start()
            try:
                yield made
            finally:
                await made.close()


# ---- the suite can fail ----------------------------------------------------------------------------------------------


class KeepsForEver(MemoryResults):
    async def put(self, key: str, outcome: Outcome, *, ttl: float) -> None:
        await super().put(key, outcome, ttl=1e9)


class KeepsTheFirst(MemoryResults):
    async def put(self, key: str, outcome: Outcome, *, ttl: float) -> None:
        if key not in self._kept:
            await super().put(key, outcome, ttl=ttl)


class ForgetsTheDetails(MemoryResults):
    async def put(self, key: str, outcome: Outcome, *, ttl: float) -> None:
        await super().put(key, Outcome(outcome.body, outcome.content_type, outcome.code, outcome.message), ttl=ttl)


class TellsOneOfThoseWhoWait(MemoryResults):
    async def put(self, key: str, outcome: Outcome, *, ttl: float) -> None:
        waiting = self._waiting.get(key, set())
        while len(waiting) > 1:
            waiting.pop()
        await super().put(key, outcome, ttl=ttl)


class TakesAnySize(MemoryResults):
    async def put(self, key: str, outcome: Outcome, *, ttl: float) -> None:
        most, self.max_bytes = self.max_bytes, 10**9
        try:
            await super().put(key, outcome, ttl=ttl)
        finally:
            self.max_bytes = most


class KeepsAll(MemoryResults):
    def _make_room(self) -> None:
        return


class LeavesThemWaiting(MemoryResults):
    async def close(self) -> None:
        self._closed = True


@pytest.mark.parametrize(
    ("broken", "found_by"),
    [
        (KeepsForEver, "test_an_outcome_is_gone_when_its_time_is_over"),
        (KeepsTheFirst, "test_a_later_outcome_takes_the_place_of_an_earlier_one"),
        (ForgetsTheDetails, "test_an_outcome_that_was_put_is_there_with_all_its_parts"),
        (TellsOneOfThoseWhoWait, "test_all_who_wait_get_the_outcome_when_it_comes"),
        (TakesAnySize, "test_an_outcome_over_the_limit_is_refused_and_the_one_before_it_stays"),
        (KeepsAll, "test_beyond_the_limit_of_all_the_oldest_go_first"),
        (LeavesThemWaiting, "test_closing_tells_those_who_wait_and_those_who_come_later"),
    ],
)
async def test_the_suite_of_results_catches_a_broken_store(broken: type[MemoryResults], found_by: str) -> None:
    suite = type("Broken", (TestMemoryResults,), {"kind": broken, "patience": 1.0})()
    with pytest.raises((AssertionError, TimeoutError)):
        await getattr(suite, found_by)()
