"""The suites can fail: each planted bug in a backend is caught by the test that is there for it."""

from __future__ import annotations

import unittest
from collections.abc import Sequence
from typing import Any, TypeVar, cast

import pytest
from broken_fanouts_support import PLANTED_IN_FANOUTS, BrokenFanoutSuite
from broken_logs_support import PLANTED_IN_LOGS, BrokenLogSuite, UnbrokenLog
from broken_queues_support import PLANTED_IN_QUEUES, BrokenQueueSuite, Unbroken

from polywire.bus.backend.memory import MemoryFanout
from polywire.errors import (
    PolywireError,
)
from polywire.testing.buses import BusSuite

S = TypeVar("S", bound=BusSuite)


def _named(planted: Sequence[tuple[type[Any], str]]) -> list[str]:
    return [f"{kind.__name__}-{test[5:]}" for kind, test in planted]


async def _run(suite: BusSuite, test: str) -> None:
    try:
        await getattr(suite, test)()
    except unittest.SkipTest as reason:
        pytest.fail(f"{test} proves nothing: it was skipped, because {reason}")


async def _caught(suite: BusSuite, test: str) -> None:
    with pytest.raises((AssertionError, PolywireError, ValueError, RuntimeError, TimeoutError)):
        await _run(suite, test)


def _with(suite: type[S], kind: type[Any]) -> S:
    return cast(S, type(suite.__name__, (suite,), {"kind": kind})())


@pytest.mark.parametrize(("kind", "test"), PLANTED_IN_QUEUES, ids=_named(PLANTED_IN_QUEUES))
async def test_the_suite_of_queues_catches_a_broken_backend(kind: type[Unbroken], test: str) -> None:
    await _caught(_with(BrokenQueueSuite, kind), test)


@pytest.mark.parametrize(("kind", "test"), PLANTED_IN_LOGS, ids=_named(PLANTED_IN_LOGS))
async def test_the_suite_of_logs_catches_a_broken_backend(kind: type[UnbrokenLog], test: str) -> None:
    await _caught(_with(BrokenLogSuite, kind), test)


@pytest.mark.parametrize(("kind", "test"), PLANTED_IN_FANOUTS, ids=_named(PLANTED_IN_FANOUTS))
async def test_the_suite_of_fanouts_catches_a_broken_backend(kind: type[MemoryFanout], test: str) -> None:
    await _caught(_with(BrokenFanoutSuite, kind), test)


@pytest.mark.parametrize(
    ("suite", "test"),
    [
        *((BrokenQueueSuite, test) for test in sorted({test for _, test in PLANTED_IN_QUEUES})),
        *((BrokenLogSuite, test) for test in sorted({test for _, test in PLANTED_IN_LOGS})),
        *((BrokenFanoutSuite, test) for test in sorted({test for _, test in PLANTED_IN_FANOUTS})),
    ],
)
async def test_what_catches_a_bug_passes_without_one(suite: type[BusSuite], test: str) -> None:
    await _run(suite(), test)
