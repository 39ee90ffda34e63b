"""Torture at a size for every test run."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

from tests.torture.checking import CHECKS, Check, Evidence, problems
from tests.torture.running import Run
from tests.torture.stage import Stage


async def passes(
    stage: Stage,
    directory: Path,
    trouble: Callable[[Run], Awaitable[None]],
    *,
    checks: Iterable[Check] = CHECKS,
    **options: object,
) -> tuple[Run, Evidence]:
    """A run under *trouble* after which all is as promised."""
    run = Run(stage, directory, **options)  # type: ignore[arg-type]  # of Run
    found = await run.through(trouble)
    wrong = problems(found, checks)
    assert not wrong, "\n".join(wrong)
    assert len(found.state("confirmed")) > 100
    return run, found
