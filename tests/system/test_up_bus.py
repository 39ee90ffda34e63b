"""Tasks and events between processes of `polywire up`, over the embedded bus."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

from tinybus.contracts import Desk, Job
from up_support import HERE, SOON, Running, polywire

from polywire.connecting import connect

SYSTEM = """\
[system]
name = "tinybus"

[services.desk]
app = "tinybus.desk:app"

[services.works]
app = "tinybus.works:app"

[wires]
tasks = "sqlite:.polywire/bus.db"
events = "sqlite:.polywire/bus.db"
"""


def tinybus(directory: Path, text: str = SYSTEM) -> Path:
    shutil.copytree(HERE / "tinybus", directory / "tinybus", ignore=shutil.ignore_patterns("__pycache__"))
    (directory / "polywire.toml").write_text(text)
    return directory


async def written(directory: Path, *lines: str) -> list[str]:
    """What was noted, once all of *lines* are there."""
    async with asyncio.timeout(SOON):
        while True:
            file = directory / "done.txt"
            found = file.read_text().splitlines() if file.exists() else []
            if set(lines) <= set(found):
                return found
            await asyncio.sleep(0.02)


async def accept(running: Running, *names: str) -> None:
    async with connect(Desk, f"grpc://{await running.address('desk')}") as desk:
        for name in names:
            await desk.accept(Job(name=name))


async def test_a_task_and_an_event_reach_another_process_and_are_logged_there(tmp_path: Path) -> None:
    async with polywire("up", directory=tinybus(tmp_path)) as running:
        await accept(running, "a")
        found = await written(tmp_path, "task a 1", "event a")
        assert sorted(found) == ["event a", "task a 1"]
        await running.until(r"^works +\| \S+Z INFO    tinybus\.v1\.Work/Do \S+ ")
        running.interrupt()
        assert await running.ends() == 0


async def test_in_one_process_they_travel_as_well(tmp_path: Path) -> None:
    async with polywire("up", "--in-process", directory=tinybus(tmp_path)) as running:
        await accept(running, "a")
        await written(tmp_path, "task a 1", "event a")
        running.interrupt()
        assert await running.ends() == 0


async def test_a_task_for_a_process_runs_in_one_of_its_own(tmp_path: Path) -> None:
    async with polywire("up", "--fresh", directory=tinybus(tmp_path)) as running:
        async with connect(Desk, f"grpc://{await running.address('desk')}") as desk:
            await desk.crunch(Job(name="a"))
        await written(tmp_path, "crunched a apart=True")
        running.interrupt()
        assert await running.ends() == 0


async def test_a_task_that_kills_its_worker_is_handled_again_by_the_next_one(tmp_path: Path) -> None:
    async with polywire("up", directory=tinybus(tmp_path)) as running:
        await accept(running, "deadly", "b")
        found = await written(tmp_path, "task deadly 2", "task b 1", "event deadly", "event b")
        assert found.count("task deadly 2") == 1
        running.interrupt()
        assert await running.ends() == 0


async def test_interrupted_it_finishes_the_task_under_way(tmp_path: Path) -> None:
    async with polywire("up", directory=tinybus(tmp_path)) as running:
        await accept(running, "slow")
        await written(tmp_path, "begun slow")
        running.interrupt()
        assert await running.ends() == 0
        assert "task slow 1" in (tmp_path / "done.txt").read_text().splitlines()


async def test_what_was_sent_while_nobody_worked_is_done_later(tmp_path: Path) -> None:
    tinybus(tmp_path)
    async with polywire("up", "--only", "desk", directory=tmp_path) as running:
        await accept(running, "a", "b")
        running.interrupt()
        assert await running.ends() == 0
    assert not (tmp_path / "done.txt").exists()
    async with polywire("up", directory=tmp_path) as running:
        await written(tmp_path, "task a 1", "task b 1", "event a", "event b")
        running.interrupt()
        assert await running.ends() == 0


async def test_a_system_without_a_wire_for_its_tasks_is_refused_by_name(tmp_path: Path) -> None:
    directory = tinybus(tmp_path, SYSTEM.partition("[wires]")[0])
    async with polywire("up", directory=directory) as running:
        assert await running.ends() != 0
    assert running.said[-1] == (
        "Error: polywire.toml:4: services.desk needs the tasks of tinybus.v1.Work, but there is no wire for tasks. "
        'Add one: `[wires]` with `tasks = "sqlite:.polywire/bus.db"`.'
    )


async def test_memory_is_refused_between_processes(tmp_path: Path) -> None:
    directory = tinybus(tmp_path, SYSTEM.replace("sqlite:.polywire/bus.db", "memory:"))
    async with polywire("up", directory=directory) as running:
        assert await running.ends() != 0
    assert running.said[-1] == (
        "Error: polywire.toml:11: wires.tasks is 'memory:', which stays in one process, but service 'desk' runs in a "
        "process of its own and needs the tasks of tinybus.v1.Work. Choose another backend, for example "
        "'sqlite:.polywire/bus.db', or run the whole system in one process with `polywire up --in-process`."
    )
