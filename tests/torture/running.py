"""One run: workers, senders, trouble of some kind, and in the end everything handled."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from random import Random

from servers.base import Server
from tests.torture.checking import Evidence, gather_evidence, read_effects
from tests.torture.crew import Crew, Member
from tests.torture.messages import DIES, KINDS, Ledger, Mix, read_ledger
from tests.torture.sending import senders_for
from tests.torture.stage import Stage
from tests.torture.worker import EFFECTS, Workplace

from polywire.durable.store.apsw import SqliteStore

BACKLOG = 300
"""Messages that were sent and not started, above which the senders wait."""
LOOK = 0.02
"""Seconds between looks at the workers."""
PATIENCE = 60.0
"""Seconds without any progress after which a run gives up waiting."""
QUIET = 1.0
"""Seconds in which nothing was started, and nothing waited, so that a run is over."""
WORKED = 20
"""Starts after which a worker may be killed."""
SETTLED = 2.0
"""Seconds for which a server runs before it is killed: RabbitMQ loses quorum queues declared just before that."""


class Run:
    """In *directory*, which is empty at the start."""

    def __init__(
        self,
        stage: Stage,
        directory: Path,
        *,
        workers: int = 3,
        seed: int = 1,
        kinds: Mapping[str, int] = KINDS,
        deadly_every: int = 0,
        **workplace: object,
    ) -> None:
        self.stage = stage
        self.directory = directory
        self.dice = Random(seed)
        self.seconds = 0.0
        self.server_kills = 0
        self.crew: Crew
        self.ledger: Ledger
        self._size = workers
        self.mix = Mix(self.dice, kinds, deadly_every)
        self._workplace = Workplace(
            places=list(stage.places), tasks=stage.tasks, events=stage.events,
            store=str(directory / "effects.db"), log="", **workplace,  # type: ignore[arg-type]  # its values are as they should be
        )  # fmt: skip

    async def through(self, trouble: Callable[[Run], Awaitable[None]]) -> Evidence:
        """Send while *trouble* lasts, then handle all that is left. Everything is closed in the end."""
        began = time.monotonic()
        await self.stage.start()
        try:
            async with SqliteStore(self._workplace.store, migrations=EFFECTS, upgrade=True):
                pass
            self.ledger = Ledger(self.directory / "ledger.jsonl")
            self.crew = Crew(self.directory, self._workplace, self._size)
            try:
                await self._under_load(trouble)
                return await self._finish()
            finally:
                self.crew.abandon()
                self.ledger.close()
        finally:
            await self.stage.close()
            self.seconds = time.monotonic() - began

    async def _under_load(self, trouble: Callable[[Run], Awaitable[None]]) -> None:
        senders = senders_for(self.stage, self.ledger, self.mix, self.dice)
        async with asyncio.TaskGroup() as tasks:
            for sender in senders:
                tasks.create_task(sender.run(self._has_room))
            await trouble(self)
            for sender in senders:
                sender.stopping = True

    def _has_room(self) -> bool:
        return self.ledger.count - len(self.crew.started) < BACKLOG

    # ---- waiting ---------------------------------------------------------------------------------------------------

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Raises TimeoutError where nothing was started for PATIENCE seconds and *condition* does not hold yet."""
        give_up, seen = time.monotonic() + PATIENCE, -1
        while not condition():
            self.crew.look()
            if len(self.crew.started) != seen:
                give_up, seen = time.monotonic() + PATIENCE, len(self.crew.started)
            elif time.monotonic() > give_up:
                raise TimeoutError(f"There was no {what} within {PATIENCE:g} s. See {self.directory}.")
            await asyncio.sleep(LOOK)

    async def more(self, count: int) -> None:
        """Wait until so many more messages were started."""
        enough = len(self.crew.started) + count
        await self.until(lambda: len(self.crew.started) >= enough, f"progress of {count} messages")

    async def one_that_worked(self) -> Member:
        """A worker that did something since it was started."""
        found: list[Member] = []

        def somebody() -> bool:
            found[:] = [member for member in self.crew.members if member.starts >= WORKED and not member.ended]
            return bool(found)

        await self.until(somebody, "worker that worked")
        return self.dice.choice(found)

    # ---- the end ---------------------------------------------------------------------------------------------------

    async def _finish(self) -> Evidence:
        strange = await self._drained()
        await self.crew.end()
        pending = await self.stage.pending()
        found = await gather_evidence(self.directory, await self.stage.dead(), pending)
        found.strange = strange + self.crew.strange
        return found

    async def _drained(self) -> list[str]:
        """Wait until all is done or dead. What is wrong with that."""
        expected = await asyncio.to_thread(self._must_be_done)
        give_up, since = time.monotonic() + PATIENCE, time.monotonic()
        state: tuple[int, int | None, int] | None = None
        while True:
            self.crew.look()
            missing = len(expected - set(await read_effects(self.directory)))
            now = (missing, await self.stage.pending(), sum(member.starts for member in self.crew.members))
            if now != state:
                give_up, state, since = time.monotonic() + PATIENCE, now, time.monotonic()
            if now[1] == 0 and time.monotonic() - since > (QUIET if not missing else 10 * QUIET):
                return []
            if time.monotonic() > give_up:
                return [f"{missing} messages without effects and {now[1]} pending did not move for {PATIENCE:g} s"]
            await asyncio.sleep(0.3)

    def _must_be_done(self) -> set[str]:
        sent = read_ledger(self.ledger.path)
        return {name for name, one in sent.items() if one.state == "confirmed" and one.kind not in DIES}


# ---- kinds of trouble ------------------------------------------------------------------------------------------------


def killing_workers(kills: int) -> Callable[[Run], Awaitable[None]]:
    """*kills* of them, each after it worked, and now and then all who did at once."""

    async def trouble(run: Run) -> None:
        while run.crew.killed < kills:
            victims = [await run.one_that_worked()]
            await asyncio.sleep(run.dice.random() * 0.03)
            run.crew.look()
            if run.dice.random() < 0.1:
                victims = [member for member in run.crew.members if member.starts >= WORKED]
            for victim in victims:
                if victim in run.crew.members and run.crew.killed < kills:
                    run.crew.kill(victim)
        await run.more(50)

    return trouble


def killing_server(server: Server, directory: Path, kills: int) -> Callable[[Run], Awaitable[None]]:
    """*kills* times by SIGKILL, and a worker after each."""

    async def trouble(run: Run) -> None:
        for _ in range(kills):
            await asyncio.sleep(SETTLED)
            await run.more(300)
            await asyncio.to_thread(server.kill)
            run.server_kills += 1
            await asyncio.sleep(run.dice.random())
            await asyncio.to_thread(server.start, directory)
            await run.more(100)
            run.crew.kill(await run.one_that_worked())
        await run.more(100)

    return trouble


def rolling_restarts(rounds: int) -> Callable[[Run], Awaitable[None]]:
    """All workers by SIGTERM, one after the other, *rounds* times."""

    async def trouble(run: Run) -> None:
        for _ in range(rounds):
            for member in tuple(run.crew.members):
                await run.until(lambda member=member: member.starts >= WORKED, "work of each worker")  # type: ignore[misc]  # a default binds the loop's variable
                await asyncio.sleep(run.dice.random() * 0.03)
                await run.crew.restart(member)
        await run.more(50)

    return trouble
