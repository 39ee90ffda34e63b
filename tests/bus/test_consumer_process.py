"""Handlers in processes of their own: they are killed at their limit, and end with whoever started them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from consumer_process_app import ASYNC, TYPE, handlings
from consumer_support import Bench, bench, envelope

from polywire.bus.consumer.processes import ProcessPool
from polywire.bus.consumer.verdict import WorkerLost
from polywire.bus.core import Envelope

LOADER = "consumer_process_app:load"


def job(n: int, do: str, note: str = "", *, type: str = TYPE) -> Envelope:
    return envelope(n, type=type, body=f'{{"do":"{do}","note":"{note}"}}'.encode(), request_id="r1")


async def eventually(condition: Any) -> None:
    """Wait on real time, as processes need it."""
    async with asyncio.timeout(30.0):
        while not condition():  # noqa: ASYNC110 - what another process does rings no event here
            await asyncio.sleep(0.01)


def gone(pid: int) -> bool:
    """Whether it ended, reaped or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@asynccontextmanager
async def pooled(directory: Path, size: int = 1) -> AsyncIterator[tuple[Bench, ProcessPool]]:
    async with bench() as b:
        pool = ProcessPool(LOADER, [str(directory)], size=size)
        try:
            yield b, pool
        finally:
            for runner in b.runners:
                await runner.stop(0.0)
            await pool.close()
    assert pool.pids == []


async def test_a_handler_in_a_process_gets_its_message_and_its_context(tmp_path: Path) -> None:
    async with pooled(tmp_path) as (b, pool):
        runner = await b.run(*handlings(str(tmp_path)), processes=pool)
        await b.send(job(1, "note", "one"), job(2, "note", "two", type=ASYNC))
        await eventually(lambda: runner.counters.done == 2)
        one, two = (tmp_path / "one").read_text().split(), (tmp_path / "two").read_text().split()
        assert one[1:] == ["m1", "1", "r1"]
        assert two[1:] == ["m2", "1", "r1"]
        assert one[0] == two[0] == str(pool.pids[0])
        assert int(one[0]) != os.getpid()
        assert await b.dead() == []
    assert (tmp_path / f"closed-{one[0]}").exists()  # what it had loaded was closed


async def test_verdicts_of_a_process_count_as_those_of_any_handler(tmp_path: Path) -> None:
    async with pooled(tmp_path) as (b, pool):
        runner = await b.run(*handlings(str(tmp_path)), processes=pool)
        await b.send(job(1, "fail"), job(2, "reject"), envelope(3, type=TYPE, body=b"{"))
        await eventually(lambda: runner.counters.dead == 3)
        letters = {letter.envelope.id: letter for letter in await b.dead()}
        assert (letters["m1"].reason, letters["m1"].error) == ("attempts", "ValueError: broken image")
        assert letters["m1"].attempts == 2
        assert (letters["m2"].reason, letters["m2"].error) == ("rejected", "no image")
        assert letters["m3"].reason == "undecodable"
        assert runner.counters.retried == 1


async def test_at_its_time_limit_the_process_is_killed_and_another_one_takes_its_place(tmp_path: Path) -> None:
    async with pooled(tmp_path) as (b, pool):
        runner = await b.run(*handlings(str(tmp_path)), processes=pool)
        await b.send(job(1, "spin", "pid"))
        pids = []
        for _ in range(2):
            await eventually(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
            pids.append(int((tmp_path / "pid").read_text()))
            (tmp_path / "pid").unlink()
            await b.clock.advance(5.1)
        await eventually(lambda: runner.counters.dead == 1)
        [letter] = await b.dead()
        assert (letter.reason, letter.attempts) == ("worker_lost", 2)
        assert letter.error == "Images.resize was killed at its time limit of 5 s, with its process."
        await eventually(lambda: all(gone(pid) for pid in pids))
        assert pids[0] != pids[1]
        await b.send(job(2, "note", "after"))
        await eventually(lambda: runner.counters.done == 1)


@pytest.mark.parametrize(("do", "how"), [("die", "SIGSEGV."), ("exit", "exit status 3.")])
async def test_a_process_that_ends_loses_only_its_own_message(tmp_path: Path, do: str, how: str) -> None:
    async with pooled(tmp_path) as (b, pool):
        runner = await b.run(*handlings(str(tmp_path)), processes=pool)
        await b.send(job(1, do))
        await eventually(lambda: runner.counters.dead == 1)
        [letter] = await b.dead()
        assert (letter.reason, letter.attempts) == ("worker_lost", 2)
        assert letter.error == f"The process that handled {TYPE} ended: {how}"
        await b.send(job(2, "note", "after"))
        await eventually(lambda: runner.counters.done == 1)


async def test_a_handler_in_a_process_may_ask_for_more_time(tmp_path: Path) -> None:
    async with pooled(tmp_path) as (b, pool):
        runner = await b.run(*handlings(str(tmp_path)), processes=pool)
        await b.send(job(1, "extend", "begun"))
        await eventually((tmp_path / "begun").exists)
        await b.clock.advance(60.0)
        assert runner.in_flight == 1
        (tmp_path / "go").write_text("")
        await eventually(lambda: runner.counters.done == 1)
        assert runner.counters.retried == 0


async def test_a_message_that_waits_for_a_process_does_not_use_up_its_time(tmp_path: Path) -> None:
    async with pooled(tmp_path) as (b, pool):
        runner = await b.run(*handlings(str(tmp_path)), processes=pool)
        await b.send(job(1, "extend", "begun"), job(2, "note", "two"))
        await eventually((tmp_path / "begun").exists)
        await b.clock.advance(50.0)
        assert runner.in_flight == 2
        (tmp_path / "go").write_text("")
        await eventually(lambda: runner.counters.done == 2)
        assert runner.counters.retried == 0


async def test_stopping_kills_the_process_and_gives_its_message_back(tmp_path: Path) -> None:
    async with pooled(tmp_path) as (b, pool):
        runner = await b.run(*handlings(str(tmp_path)), processes=pool)
        await b.send(job(1, "spin", "pid"))
        await eventually(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
        await runner.stop(0.0)
        assert (runner.counters.released, await b.dead()) == (1, [])
        await eventually(lambda: gone(int((tmp_path / "pid").read_text())))


async def test_processes_start_ahead_and_side_by_side(tmp_path: Path) -> None:
    async with pooled(tmp_path, size=2) as (_, pool):
        await pool.start()
        assert len(pool.pids) == 2
        for pid in pool.pids:  # signals to a whole group are for the consumer
            os.kill(pid, signal.SIGTERM)
            os.kill(pid, signal.SIGINT)
        async with bench() as b:
            runner = await b.run(*handlings(str(tmp_path)), processes=pool)
            await b.send(*(job(n, "note", f"n{n}") for n in range(6)))
            await eventually(lambda: runner.counters.done == 6)


@pytest.mark.parametrize(
    ("loader", "error"),
    [
        ("consumer_process_app:broken", "RuntimeError: no database"),
        ("consumer_process_nowhere:load", "ModuleNotFoundError: No module named 'consumer_process_nowhere'"),
    ],
)
async def test_a_process_that_cannot_load_says_why(loader: str, error: str) -> None:
    pool = ProcessPool(loader, size=1)
    with pytest.raises(WorkerLost) as raised:
        await pool.start()
    assert str(raised.value) == f"The process for {loader!r} did not start: {error}"
    assert pool.pids == []


PARENT = """
import asyncio, sys
from consumer_process_app import handlings
from consumer_support import bench, envelope
from polywire.bus.consumer.processes import ProcessPool

async def main(directory):
    pool = ProcessPool("consumer_process_app:load", [directory], size=2)
    await pool.start()
    async with bench() as b:
        await b.run(*handlings(directory), processes=pool)
        body = b'{"do":"spin","note":"pid"}'
        await b.send(envelope(1, type="shop.v1.Images/Resize", body=body))
        print(*pool.pids, flush=True)
        await asyncio.sleep(1000)

asyncio.run(main(sys.argv[1]))
"""


async def test_processes_end_when_their_consumer_is_killed_even_while_they_work(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(  # noqa: ASYNC220 - it is killed, not awaited
        [sys.executable, "-c", PARENT, str(tmp_path)], stdout=subprocess.PIPE, env=environment, text=True
    ) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in (await asyncio.to_thread(parent.stdout.readline)).split()]
        await eventually(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
        parent.kill()
        await asyncio.to_thread(parent.wait)
    assert len(pids) == 2
    await eventually(lambda: all(gone(pid) for pid in pids))
