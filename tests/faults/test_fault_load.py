"""100,000 calls on connections that break off, stand still or fall silent: each gets its own answer, or an error."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from contextlib import AsyncExitStack

import pytest
from tests.faults.parrot_calls_support import (
    WHOLE,
    WIRES,
    Kind,
    Outcomes,
    Stage,
    Wire,
    called,
    client_at,
    kinds_of,
    over_http2,
    staged,
)
from tests.faults.parrot_service import Parrot
from tests.faults.proxy_support import Ending, Fault, Toward, proxied

from polywire.net.loop import run

CALLS = 250_000 if WHOLE else 25_000
"""Of each wire."""
CLIENTS = 8
CALLERS = 24
"""Of each client, on one connection where the wire allows it."""
TIMEOUT = 2.0
"""Seconds; some connections stand still for longer."""
SHORT = 0.3
"""Seconds that a tenth of the calls has, so that some certainly end while their connection stands still."""
CANCELLED_SHARE = 0.03
WEIGHTS: dict[Kind, int] = {"say": 85, "repeat": 5, "gather": 5, "converse": 5}
ENDINGS = {
    Ending.RESET: 30,
    Ending.CLOSE: 20,
    Ending.SERVER_FIRST: 15,
    Ending.CLIENT_FIRST: 15,
    Ending.STALL: 18,
    Ending.SILENCE: 1,
    Ending.CLIENT_GONE: 0.5,
    Ending.SERVER_GONE: 0.5,
}


class Load:
    """Callers that call until there were enough."""

    def __init__(self, stage: Stage, wire: Wire) -> None:
        self.outcomes = Outcomes()
        self.cancelled = 0
        self._stage = stage
        self._wire: Wire = wire
        self._dice = random.Random(f"faults of {wire}")
        self._kinds: tuple[Kind, ...] = kinds_of(wire)
        self._left = CALLS
        self._most = 40_000 if over_http2(wire, "say") else 4_000
        """Bytes until a connection is struck; over HTTP/1.1 each caller has one to itself."""

    def next_fault(self) -> Fault:
        """Of a new connection."""
        dice = self._dice
        (ending,) = dice.choices([*ENDINGS], [*ENDINGS.values()])
        # Now and then within the first call, mostly in the middle of many.
        after = dice.randrange(500 if dice.random() < 0.2 else self._most)
        return Fault(dice.choice([*Toward]), after, ending, for_a_while=dice.uniform(0.0, 1.25 * TIMEOUT))

    async def run(self, address: str) -> None:
        async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                client = await stack.enter_async_context(client_at(self._wire, address))
                for _ in range(CALLERS):
                    group.create_task(self._caller(client))

    async def _caller(self, client: Parrot) -> None:
        dice = self._dice
        while self._left:
            self._left -= 1
            (kind,) = dice.choices(self._kinds, [WEIGHTS[kind] for kind in self._kinds])
            nonce = self._stage.nonce()
            timeout = SHORT if dice.random() < 0.1 else TIMEOUT
            call = called(client, kind, nonce, "x" * dice.randrange(40), timeout)
            if dice.random() < CANCELLED_SHARE:
                await self._cancelled(call, nonce)
            else:
                await self.outcomes.of(call, nonce, timeout)

    async def _cancelled(self, call: Coroutine[None, None, None], nonce: str) -> None:
        """A caller that changes its mind a moment later."""
        task = asyncio.ensure_future(self.outcomes.of(call, nonce, TIMEOUT))
        await asyncio.wait([task], timeout=self._dice.uniform(0.0, 0.005))
        task.cancel()
        await asyncio.wait([task])
        if task.cancelled():
            self.cancelled += 1
        else:
            task.result()


@pytest.mark.slow
@pytest.mark.parametrize("wire", WIRES)
def test_25_000_calls_get_their_own_answers_or_a_plain_error(wire: Wire) -> None:
    run(loaded(wire))


async def loaded(wire: Wire) -> None:
    async with staged() as stage:
        load = Load(stage, wire)
        async with proxied(stage.target, load.next_fault) as (proxy, address):
            await load.run(address)
            opened = proxy.opened
    outcomes = load.outcomes
    assert outcomes.calls + load.cancelled >= CALLS
    assert outcomes.codes["ok"] > CALLS / 4
    assert set(outcomes.codes) == {"ok", "unavailable", "deadline_exceeded"}
    assert load.cancelled > CALLS / 100
    assert opened > 20
    assert not outcomes.unreached & stage.service.seen
