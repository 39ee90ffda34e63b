"""Workers are ended by SIGTERM and started again, one after the other, while messages flow."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from rabbitmq_support import opened
from tests.torture.checking import CHECKS, Evidence, attempts
from tests.torture.messages import KINDS
from tests.torture.running import Run, rolling_restarts
from tests.torture.stage import Stage, kafka_stage, rabbitmq_stage, sqlite_stage
from torture_support import passes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROUNDS, WORKERS = 3, 3
SLOW_ONES = {**KINDS, "slow": 4}
"""They take longer than the grace that a worker has, so that each restart finds some to be given back."""


async def restarted(stage: Stage, directory: Path) -> Evidence:
    """Nothing is lost, effects happen once and in order, and no message that was given back paid for it."""
    run, found = await passes(
        stage, directory, rolling_restarts(ROUNDS), checks=[*CHECKS, attempts], workers=WORKERS, kinds=SLOW_ONES
    )  # fmt: skip
    assert run.crew.restarted == ROUNDS * WORKERS
    check_released(run, found)
    return found


def check_released(run: Run, found: Evidence) -> None:
    """Handlers were stopped, and what they had begun was begun again, as the same attempt."""
    again = Counter(start.id for start in found.starts if start.attempt == 1)
    stopped = [name for name, count in again.items() if count > 1]
    assert any(found.sent[name].kind == "slow" for name in stopped)
    assert found.released >= len(stopped) > 0


async def test_on_sqlite_nothing_is_lost_and_no_attempt_is_spent(tmp_path: Path) -> None:
    await restarted(sqlite_stage(tmp_path), tmp_path)


async def test_on_rabbitmq_nothing_is_lost_and_no_attempt_is_spent(rabbitmq_url: str, tmp_path: Path) -> None:
    stage = rabbitmq_stage(rabbitmq_url)
    await restarted(stage, tmp_path)
    async with opened(rabbitmq_url, *stage.queues):
        pass  # which deletes them


async def test_on_kafka_nothing_is_lost_and_no_attempt_is_spent(kafka_url: str, tmp_path: Path) -> None:
    await restarted(kafka_stage(kafka_url), tmp_path)
