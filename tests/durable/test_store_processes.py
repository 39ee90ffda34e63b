"""Processes that share a store: killed, stopped, racing, forked."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest
from store_support import EFFECTS, lines, process, wait_for_lines

from polywire.durable.store.apsw import SqliteStore
from polywire.errors import StoreBusy, StoreError

MESSAGES = 250


async def prepare(path: Path) -> None:
    async with SqliteStore(path, migrations=EFFECTS, upgrade=True):
        pass


async def effects(path: Path) -> Counter[str]:
    async with SqliteStore(path, migrations=EFFECTS) as store, store.read() as view:
        rows = await view.fetch_all("SELECT message || '.' || step FROM effect")
    return Counter(name for (name,) in rows)


def once(count: int) -> Counter[str]:
    return Counter(f"{number}.{step}" for number in range(count) for step in (1, 2))


@pytest.mark.slow
def test_effects_happen_once_though_workers_are_killed_and_messages_come_again(tmp_path: Path) -> None:
    path, dice = tmp_path / "effects.db", random.Random(5)
    asyncio.run(prepare(path))
    for kill in range(8):
        log = tmp_path / f"{kill}.log"
        with process("handle", path, log, 0, MESSAGES) as worker:
            wait_for_lines(log, 1)
            # A random moment is what is tested; nothing is waited for.
            time.sleep(dice.random() * 0.12)
            worker.send_signal(signal.SIGKILL)
            worker.wait()
        done = asyncio.run(effects(path))
        assert done == Counter(dict.fromkeys(done, 1))
        assert {name.partition(".")[0] + ".1" for name in done} == {name for name in done if name.endswith(".1")}
    with process("handle", path, tmp_path / "last.log", 0, MESSAGES):
        wait_for_lines(tmp_path / "last.log", 2)
    assert asyncio.run(effects(path)) == once(MESSAGES)


@pytest.mark.slow
def test_processes_that_race_for_the_same_messages_do_each_once(tmp_path: Path) -> None:
    path = tmp_path / "effects.db"
    asyncio.run(prepare(path))
    with ExitStack() as stack:
        for number in range(4):
            stack.enter_context(process("handle", path, tmp_path / f"{number}.log", 0, MESSAGES))
        for number in range(4):
            wait_for_lines(tmp_path / f"{number}.log", 2)
    assert asyncio.run(effects(path)) == once(MESSAGES)


def test_who_waits_for_a_stopped_process_is_told_which_and_works_once_it_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "effects.db"

    async def work() -> None:
        await prepare(path)
        async with SqliteStore(path, migrations=EFFECTS, wait=0.1) as store:
            with process("hold", path, tmp_path / "log") as holder:
                await asyncio.to_thread(wait_for_lines, tmp_path / "log", 1)
                holder.send_signal(signal.SIGSTOP)
                until_stopped(holder.pid)
                with pytest.raises(StoreBusy) as caught:
                    await store.run(lambda db: db.execute("INSERT INTO effect VALUES ('busy', 1)"))
                assert str(caught.value) == (
                    f"A transaction of store 'effects' was not begun: process {holder.pid}, which is stopped, has had "
                    "the file for 0.1 s. Nothing was done. Keep transactions short: no calls to others in them."
                )
                async with store.read() as view:
                    assert await view.fetch_all("SELECT * FROM effect") == []
            async with asyncio.timeout(10):
                store.wait = 10.0
                await store.run(lambda db: db.execute("INSERT INTO effect VALUES ('after', 1)"))
        assert await effects(path) == Counter({"after.1": 1})

    asyncio.run(work())


def until_stopped(pid: int) -> None:
    until = time.monotonic() + 10
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < until
        time.sleep(0.005)


def test_closing_does_not_wait_for_ever_for_a_process_that_holds_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("polywire.durable.store.apsw.CLOSING", 0.2)
    path = tmp_path / "effects.db"

    async def work() -> int:
        await prepare(path)
        store = SqliteStore(path, migrations=EFFECTS)
        await store.start()
        with process("hold", path, tmp_path / "log") as holder:
            await asyncio.to_thread(wait_for_lines, tmp_path / "log", 1)
            async with asyncio.timeout(10):
                await store.close()
            return holder.pid

    pid = asyncio.run(work())
    assert caplog.messages == [
        f"Store 'effects' was left without its last checkpoint: the file is held by process {pid}."
    ]


def test_a_forked_child_is_refused_and_breaks_nothing_of_its_parent(tmp_path: Path) -> None:
    path = tmp_path / "effects.db"

    async def work() -> None:
        await prepare(path)
        async with SqliteStore(path, migrations=EFFECTS) as store:
            child = os.fork()
            if child == 0:
                os._exit(in_the_child(store, tmp_path / "child.log"))
            assert os.waitstatus_to_exitcode((await asyncio.to_thread(os.waitpid, child, 0))[1]) == 0
            assert lines(tmp_path / "child.log") == [
                "A transaction of store 'effects' was not begun: this process was forked from the one that opened it. "
                "Open it anew in the child."
            ]
            await store.run(lambda db: db.execute("INSERT INTO effect VALUES ('parent', 1)"))
        assert await effects(path) == Counter({"parent.1": 1})

    asyncio.run(work())


def in_the_child(store: SqliteStore, log: Path) -> int:
    try:
        store.transaction()
    except StoreError as error:
        log.write_text(f"{error}\n")
        return 0
    return 1


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_each_slot_is_fired_once_among_processes(tmp_path: Path, count: int) -> None:
    path, log = tmp_path / "slots.db", tmp_path / "log"
    asyncio.run(prepare_slots(path))
    with ExitStack() as stack:
        workers = [stack.enter_context(process("tick", path, log, 0.05, 2.0)) for _ in range(count)]
        for worker in workers:
            assert worker.wait(30) == 0
    fired = [line.split() for line in lines(log)]
    slots = [int(slot) for slot, _, _ in fired]
    assert sorted(slots) == list(range(min(slots), max(slots) + 1, 50_000))
    assert len(slots) >= 20
    assert len({name for _, name, _ in fired}) == len(slots)
    assert len({pid for _, _, pid in fired}) > 1


@pytest.mark.slow
def test_slots_of_killed_processes_are_fired_by_the_others(tmp_path: Path) -> None:
    path, log = tmp_path / "slots.db", tmp_path / "log"
    asyncio.run(prepare_slots(path))
    with ExitStack() as stack:
        survivor = stack.enter_context(process("tick", path, log, 0.05, 4.0))
        wait_for_lines(log, 1)
        for _ in range(3):
            before = len(lines(log))
            with process("tick", path, log, 0.05, 60.0):
                wait_for_lines(log, before + 10)
        assert survivor.wait(30) == 0
    slots = [int(line.split()[0]) for line in lines(log)]
    # A slot that was taken and not fired stays with the dead until its time is over: those may be missing yet.
    assert len(slots) == len(set(slots))
    wanted = set(range(min(slots), max(slots) + 1, 50_000))
    missing = len(wanted - set(slots))
    # Of those three, one that died between firing and saying so holds a slot that was fired.
    assert missing <= asyncio.run(held(path)) <= 3


async def prepare_slots(path: Path) -> None:
    async with SqliteStore(path, upgrade=True):
        pass


async def held(path: Path) -> int:
    async with SqliteStore(path) as store, store.read() as view:
        row = await view.fetch_one("SELECT count(*) FROM polywire_slot WHERE held_until IS NOT NULL")
    assert row is not None
    return int(row[0])
