"""Those who send without pause, and write into the ledger what became of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from random import Random

from tests.torture.messages import Ledger, Mix, Place, Sent
from tests.torture.stage import Stage

from polywire.errors import MessageRefused, PublishUnknown

TIMEOUT = 5.0
"""Seconds for a confirmation."""
PAUSE = 0.03
"""Seconds at most between two batches of one sender."""
AGAIN = 0.1
"""Seconds before something is sent again."""


class Sender:
    """Sends to one place; the keys are its own, so that their order is the order in which it was told of them."""

    def __init__(self, stage: Stage, ledger: Ledger, mix: Mix, place: Place, keys: Sequence[str], dice: Random) -> None:
        self._stage = stage
        self._ledger = ledger
        self._mix = mix
        self._place = place
        self._keys = keys
        self._dice = dice
        self.stopping = False

    async def run(self, room: Callable[[], bool]) -> None:
        """Until `stopping`; while there is no *room*, it waits."""
        while not self.stopping:
            if room():
                await self._send(self._mix.batch(self._place, self._keys))
            await asyncio.sleep(self._dice.random() * PAUSE)

    async def _send(self, batch: list[Sent]) -> None:
        """Until it is known what became of each; of what nobody confirmed, half is left as it is."""
        await self._ledger.begin(batch)
        waiting = batch
        while waiting:
            results = await self._stage.send(self._place, [sent.envelope() for sent in waiting], TIMEOUT)
            again = [sent for sent, result in zip(waiting, results, strict=True) if self._note(sent, result)]
            await self._ledger.end(waiting)
            waiting = again
            if waiting:
                await asyncio.sleep(AGAIN)

    def _note(self, sent: Sent, result: Exception | None) -> bool:
        """Whether it is to be sent again, with the same id."""
        if result is None:
            sent.state = "confirmed"
            return False
        if isinstance(result, PublishUnknown):
            sent.state = "maybe"
            return self._dice.random() < 0.5
        if not isinstance(result, MessageRefused):
            raise result
        if sent.state == "sending":
            sent.state = "refused"
        return not self.stopping


def senders_for(stage: Stage, ledger: Ledger, mix: Mix, dice: Random, each: int = 2) -> list[Sender]:
    """*each* of them for each place, with its keys shared out."""
    found = []
    for place in stage.places:
        keys = [f"k{number}" for number in range(place.keys)]
        found += [Sender(stage, ledger, mix, place, keys[first::each], dice) for first in range(each)]
    return found
