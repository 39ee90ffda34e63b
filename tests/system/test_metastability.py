"""Overload that goes on by itself once what caused it is over: with the defaults it does not.

N. Bronson et al., "Metastable Failures in Distributed Systems", HotOS 2021: work that nobody waits for any more, tried
again at each hop, keeps a system as busy as the burst did that began it.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
from chain.contracts import PATIENCE, Gateway, Order
from chain.services import CAPACITY
from up_support import HERE, Running, polywire

from polywire import connect
from polywire.errors import CallError

SYSTEM = """\
[system]
name = "chain"

[services.gateway]
app = "chain.services:gateway"

[services.orders]
app = "chain.services:orders"

[services.inventory]
app = "chain.services:inventory"
"""
NOTHING_HELPS = """
[calls]
budget_share = 100.0
budget_minimum = 10000.0
breaker = { enabled = false }

[shedding]
enabled = false
"""
CALM = 0.7 * CAPACITY
BURST = 4.0 * CAPACITY
OVERLOADED = 10.0
RECOVERY = 10.0
"""Seconds, all three phases; calls come evenly, whether or not those before them are answered."""
WINDOW = 2.0
"""Seconds over which goodput is looked at: the share of orders that went well."""


async def bought(gateway: Gateway) -> bool:
    try:
        async with asyncio.timeout(PATIENCE):
            await gateway.buy(Order())
    except (CallError, TimeoutError):
        return False
    return True


async def customers(gateway: Gateway, rate: float, seconds: float) -> list[asyncio.Task[bool]]:
    """Those who come in so many *seconds*: whether they get what they order."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    buying = []
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, began + number / rate - loop.time()))
        buying.append(asyncio.ensure_future(bought(gateway)))
    return buying


def shares(outcomes: list[bool], rate: float) -> list[float]:
    """Of those that went well, in windows that overlap by half."""
    size = int(rate * WINDOW)
    return [sum(outcomes[start : start + size]) / size for start in range(0, len(outcomes) - size + 1, size // 2)]


async def goodput(up: Running) -> tuple[float, float, list[float]]:
    """Before the burst, in the second half of it, and window by window after it."""
    async with connect(Gateway, await up.address("gateway")) as gateway:
        before = await customers(gateway, CALM, 4.0)
        during = await customers(gateway, BURST, OVERLOADED)
        after = await customers(gateway, CALM, RECOVERY)
        calm = await asyncio.gather(*before)
        burst = (await asyncio.gather(*during))[len(during) // 2 :]
        return sum(calm) / len(calm), sum(burst) / len(burst), shares(await asyncio.gather(*after), CALM)


def made(directory: Path, text: str) -> Path:
    shutil.copytree(HERE / "chain", directory / "chain", ignore=shutil.ignore_patterns("__pycache__"))
    (directory / "polywire.toml").write_text(text)
    return directory


@pytest.mark.slow
async def test_with_the_defaults_goodput_is_back_when_the_burst_is_over(tmp_path: Path) -> None:
    async with polywire("up", directory=made(tmp_path, SYSTEM)) as up:
        before, during, after = await goodput(up)
    assert before >= 0.95
    assert during >= 0.7 * CAPACITY / BURST, "what it can answer it answers in the burst, too"
    assert max(after) >= 0.95 * before
    assert after[-1] >= 0.95 * before


@pytest.mark.slow
async def test_without_budgets_deadlines_and_shedding_it_stays_down(tmp_path: Path) -> None:
    """What the test above would look like without what it is about, and without breakers, which keep calls away too."""
    directory = made(tmp_path, SYSTEM + NOTHING_HELPS)
    async with polywire("up", directory=directory, env={"CHAIN_DEADLINES": "off"}) as up:
        before, during, after = await goodput(up)
    assert before >= 0.95
    assert during < 0.2 * CAPACITY / BURST
    assert max(after) < 0.2 * before
