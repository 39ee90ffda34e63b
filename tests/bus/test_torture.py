"""The torture itself: that it passes where all is well, and that it finds what is planted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest
from tests.torture.checking import Evidence, problems
from tests.torture.messages import Mix, Place, Sent
from tests.torture.report import row, table, write
from tests.torture.running import Run, killing_workers
from tests.torture.stage import Stage, sqlite_stage

from polywire.bus.core import Envelope

KILLS = 4

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


class Forgetful(Stage):
    """Says of every tenth batch that all of it is there, and drops its first message."""

    batches = 0

    async def send(self, place: Place, envelopes: Sequence[Envelope], timeout: float) -> list[Exception | None]:
        self.batches += 1
        dropped = self.batches % 10 == 0
        return [None] * dropped + await super().send(place, envelopes[dropped:], timeout)


class Doubling(Stage):
    """Sends everything twice, with different ids: nobody has asked for the second one."""

    async def send(self, place: Place, envelopes: Sequence[Envelope], timeout: float) -> list[Exception | None]:
        strangers = [Envelope(f"{one.id}-2", one.type, one.body, source=one.source) for one in envelopes]
        assert await super().send(place, strangers, timeout) == [None] * len(strangers)
        return await super().send(place, envelopes, timeout)


class Swapping(Mix):
    """Numbers the messages of a key the other way round."""

    def _one(self, place: Place, key: str | None) -> Sent:
        sent = super()._one(place, key)
        sent.n = -sent.n
        return sent


def as_made(stage: Stage, kind: type[Stage]) -> Stage:
    return kind(stage.backend, stage.places, tasks=stage.tasks, events=stage.events)


async def tortured(run: Run, trouble: Callable[[Run], Awaitable[None]] | None = None) -> Evidence:
    return await run.through(killing_workers(KILLS) if trouble is None else trouble)


def kinds_of(wrong: list[str]) -> set[str]:
    return {sentence.partition(":")[0] for sentence in wrong}


async def more_messages(run: Run) -> None:
    await run.more(600)


async def test_what_kills_its_workers_is_dead_and_no_innocent_with_it(tmp_path: Path) -> None:
    """Nobody else kills: so whatever is dead as `worker_lost` was deadly. Its row and its table are written."""
    run = Run(sqlite_stage(tmp_path), tmp_path, workers=3, deadly_every=400)
    found = await tortured(run, more_messages)
    assert problems(found) == []
    lost = {name for name, reason in found.buried.items() if reason == "worker_lost"}
    deadly = {name for name, sent in found.sent.items() if sent.kind == "deadly"}
    assert deadly
    assert deadly <= lost
    # What always fails is dead in any case; in its last attempt perhaps beside one that is deadly.
    assert {found.sent[name].kind for name in lost - deadly} <= {"poison"}
    assert run.crew.own >= len(deadly)
    made = row(run, found, [])
    assert (made["unlucky"], made["workers_killed"], made["pending"], made["problems"]) == (0, 0, 0, 0)
    assert made["confirmed"] == made["done"] + made["dead"]
    await asyncio.to_thread(write, [made], tmp_path)
    assert table([made]) in (tmp_path / "torture.md").read_text()


async def test_a_confirmed_message_that_is_not_there_is_found(tmp_path: Path) -> None:
    run = Run(as_made(sqlite_stage(tmp_path), Forgetful), tmp_path, workers=3)
    wrong = problems(await tortured(run))
    assert {"lost", "accounts"} <= kinds_of(wrong), wrong
    assert any(sentence.endswith("was confirmed and is neither done nor dead") for sentence in wrong)


async def test_effects_that_are_not_tied_to_the_inbox_are_found(tmp_path: Path) -> None:
    run = Run(sqlite_stage(tmp_path), tmp_path, workers=3, inbox=False, pause=0.02)
    wrong = problems(await tortured(run))
    assert kinds_of(wrong) == {"twice"}, wrong


async def test_an_acknowledgement_before_the_handler_is_found(tmp_path: Path) -> None:
    run = Run(sqlite_stage(tmp_path), tmp_path, workers=3, early=True, pause=0.02)
    wrong = problems(await tortured(run))
    assert "lost" in kinds_of(wrong), wrong


async def test_messages_that_nobody_sent_and_keys_out_of_order_are_found(tmp_path: Path) -> None:
    run = Run(as_made(sqlite_stage(tmp_path), Doubling), tmp_path, workers=3)
    run.mix = Swapping(run.dice)
    wrong = problems(await tortured(run, more_messages))
    assert {"order", "accounts"} <= kinds_of(wrong), wrong
