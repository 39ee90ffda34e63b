"""Code that blocks the loop is found, and `in_thread` is the way out."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from polywire import App, Contract, Message, calling, connect, current, in_thread, rpc, serve
from polywire.context import calling_or_none
from polywire.telemetry import blocking
from polywire.telemetry.blocking import LoopWatch
from polywire.threads import IN_THREAD, Threads

LIMIT = 0.1
LONG = 1.5
"""Seconds: much more than the limit, for a machine that is slow itself."""


class Nap(Message, package="tests.blocking"):
    seconds: float = 0.0


class Sleeper(Contract, package="tests.blocking"):
    @rpc(timeout=60)
    async def nap(self, nap: Nap) -> None:
        raise NotImplementedError

    @rpc(timeout=60)
    async def nap_elsewhere(self, nap: Nap) -> None:
        raise NotImplementedError


class SleeperService(Sleeper):
    async def nap(self, nap: Nap) -> None:
        time.sleep(nap.seconds)  # noqa: ASYNC251 - what is looked for

    async def nap_elsewhere(self, nap: Nap) -> None:
        await in_thread(time.sleep, nap.seconds)


app = App("sleeper")
app.service(SleeperService)


@asynccontextmanager
async def sleeper() -> AsyncIterator[Sleeper]:
    async with serve(app) as address, connect(Sleeper, address) as client:
        yield client


def reports(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "polywire.blocking"]


async def test_a_handler_that_blocks_is_reported_with_its_stack(caplog: pytest.LogCaptureFixture) -> None:
    async with sleeper() as client:
        await client.nap(Nap(seconds=LONG))
    first, *rest = reports(caplog)
    assert not rest
    said, _, stack = first.partition("It is here:\n")
    assert said.startswith("tests.blocking.Sleeper/Nap has blocked the event loop for 0.")
    assert said.endswith(
        " s so far, and with it everything else that this process does. Await what can be awaited, and call what "
        "blocks by `await in_thread(function, ...)`. "
    )
    assert stack.splitlines()[-1].strip().startswith("time.sleep(nap.seconds)")
    assert len(stack.splitlines()) <= 2 * blocking.MAX_FRAMES + 2


async def test_what_waits_in_a_thread_is_not(caplog: pytest.LogCaptureFixture) -> None:
    async with sleeper() as client:
        await client.nap_elsewhere(Nap(seconds=0.8))
    assert reports(caplog) == []


@pytest.mark.slow
async def test_one_place_is_reported_once_a_minute_and_another_at_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def block_and_rest() -> None:
        time.sleep(0.8)  # noqa: ASYNC251 - what it is to find
        await asyncio.sleep(0.3)

    with LoopWatch(limit=LIMIT):
        await block_and_rest()
        await block_and_rest()
        assert len(reports(caplog)) == 1
        time.sleep(0.8)  # noqa: ASYNC251 - what it is to find
        await asyncio.sleep(0.3)
        assert len(reports(caplog)) == 2
        monkeypatch.setattr(blocking, "AGAIN", 0.0)
        await block_and_rest()
    assert len(reports(caplog)) == 3
    assert reports(caplog)[0].startswith("a task has blocked the event loop")


async def test_a_callback_is_called_one(caplog: pytest.LogCaptureFixture) -> None:
    with LoopWatch(limit=LIMIT):
        asyncio.get_running_loop().call_soon(time.sleep, 0.8)
        await asyncio.sleep(0.3)
    (said,) = reports(caplog)
    assert said.startswith("a callback has blocked the event loop")


async def test_it_can_be_switched_off_and_ends_with_its_block(caplog: pytest.LogCaptureFixture) -> None:
    def watching() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name == "polywire-blocking"]

    with LoopWatch(limit=LIMIT):
        assert watching() == ["polywire-blocking"]
    time.sleep(0.5)  # noqa: ASYNC251 - what it is to find
    assert watching() == []
    assert reports(caplog) == []


# ---- in_thread ---------------------------------------------------------------------------------------------------


async def test_it_gets_arguments_and_context_and_gives_back_results_and_errors() -> None:
    def work(one: int, *, two: int) -> tuple[int, object, bool]:
        asked = calling_or_none()
        return one + two, asked and asked.timeout, threading.current_thread() is threading.main_thread()

    with calling(timeout=7.0):
        assert await in_thread(work, 1, two=2) == (3, 7.0, False)

    def fail() -> None:
        raise KeyError("a")

    with pytest.raises(KeyError, match="a"):
        await in_thread(fail)

    def stop() -> None:
        raise StopIteration

    with pytest.raises(RuntimeError) as caught:
        await in_thread(stop)
    assert str(caught.value) == "StopIteration was raised in a thread"


async def test_it_knows_the_call_it_works_for() -> None:
    class Asking(Sleeper):
        async def nap(self, nap: Nap) -> None:
            seen.append(await in_thread(lambda: current().method))

    seen: list[str] = []
    asking = App("asking")
    asking.service(Asking)
    async with serve(asking) as address, connect(Sleeper, address) as client:
        await client.nap(Nap())
    assert seen == ["tests.blocking.Sleeper/Nap"]


async def test_a_cancelled_caller_goes_on_and_what_had_not_begun_never_does() -> None:
    threads = Threads(1)
    ran: list[str] = []
    hold = threading.Event()
    try:
        first = threads.run(hold.wait, 60.0)
        second = threads.run(ran.append, "second")
        third = threads.run(ran.append, "third")
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        hold.set()
        await asyncio.wait_for(asyncio.gather(first, third), 30.0)
        assert ran == ["third"]
    finally:
        hold.set()
        threads.close()


async def test_no_more_than_so_many_run_at_a_time() -> None:
    lock, running, most = threading.Lock(), 0, 0
    full = threading.Barrier(IN_THREAD)

    def work() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        full.wait(30.0)
        with lock:
            running -= 1

    await asyncio.gather(*(in_thread(work) for _ in range(2 * IN_THREAD)))
    assert most == IN_THREAD
