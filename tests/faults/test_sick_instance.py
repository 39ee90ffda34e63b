"""One of three instances fails, is slow, hangs or is killed: with the defaults hardly a call is touched by it."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.faults.moody_service import Done, Moody, Order

from polywire import connect
from polywire.connecting import RemoteWire

PROGRAM = Path(__file__).with_name("moody_service.py")
PAUSE = 0.004
"""Seconds between two calls: a calm rate, in which the machine has time for all three."""
A_SECOND = int(1 / PAUSE)
"""Of calls."""


class Instance:
    def __init__(self, address: str = "127.0.0.1:0") -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAM), address],
            stdout=subprocess.PIPE,
            text=True,
            cwd=PROGRAM.parents[2],
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        assert self.address

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextmanager
def three() -> Iterator[list[Instance]]:
    instances = [Instance() for _ in range(3)]
    try:
        yield instances
    finally:
        for instance in instances:
            instance.end()


async def calls(moody: Moody, count: int) -> list[asyncio.Task[Done]]:
    """*count* calls at that rate, whether or not those before have ended."""
    made = []
    for _ in range(count):
        made.append(asyncio.ensure_future(moody.work(Order())))
        await asyncio.sleep(PAUSE)
    return made


async def answered_by(made: list[asyncio.Task[Done]]) -> list[str]:
    """Who answered each; empty where nobody did, be it by an error or not at all."""
    await asyncio.wait(made, timeout=1.0)
    for call in made:
        call.cancel()
    results = await asyncio.gather(*made, return_exceptions=True)
    return [result.instance if isinstance(result, Done) else "" for result in results]


async def strike(instance: Instance, trouble: str, wire: RemoteWire) -> None:
    if trouble == "hanging":
        instance.process.send_signal(signal.SIGSTOP)
        return
    async with connect(Moody, instance.address, wire=wire) as direct:
        await direct.become(Order(text=trouble))


@pytest.mark.slow
@pytest.mark.parametrize(("trouble", "wire"), [("failing", "grpc"), ("slow", "http"), ("hanging", "grpc")])
async def test_at_most_one_call_in_a_hundred_is_touched_after_the_first_second(trouble: str, wire: RemoteWire) -> None:
    with three() as instances:
        sick = instances[0]
        async with connect(Moody, [instance.address for instance in instances], wire=wire) as moody:
            warm = await answered_by(await calls(moody, A_SECOND // 2))
            assert "" not in warm
            await strike(sick, trouble, wire)
            first = await calls(moody, A_SECOND)
            later = await answered_by(await calls(moody, 3 * A_SECOND))
            await answered_by(first)
        touched = sum(instance in ("", sick.address) for instance in later)
        assert touched <= len(later) / 100


@pytest.mark.slow
async def test_an_instance_that_was_killed_and_started_again_gets_its_share_back() -> None:
    with three() as instances:
        address = instances[0].address
        async with connect(Moody, [instance.address for instance in instances]) as moody:
            await answered_by(await calls(moody, A_SECOND // 2))
            instances[0].end()
            await answered_by(await calls(moody, A_SECOND))
            instances[0] = await asyncio.to_thread(Instance, address)
            back = await calls(moody, 5 * A_SECOND)
            then = await answered_by(await calls(moody, A_SECOND))
            await answered_by(back)
        assert then.count("") == 0
        assert then.count(address) >= len(then) / 4
