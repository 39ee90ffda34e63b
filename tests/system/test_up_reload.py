"""`polywire up --reload`: real processes whose code changes under load, and not a call is lost."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from up_support import SOON, Running, alive, polywire, said

from polywire import CallDefaults, Contract, Message, calling, connect, rpc
from polywire.connecting import RemoteWire
from polywire.policy.retry import Retry

CONTRACTS = """\
from polywire import Contract, Message, rpc


class Said(Message):
    text: str
    pid: int


class Greeter(Contract, package="reload.v1"):
    @rpc
    async def greet(self) -> Said:
        raise NotImplementedError


class Front(Contract, package="reload.v1"):
    @rpc
    async def ask(self) -> Said:
        raise NotImplementedError
"""

GREETER = """\
import asyncio
import os

from contracts import Greeter, Said
from polywire import App

app = App("greeter")


@app.service
class GreeterService(Greeter):
    async def greet(self) -> Said:
        await asyncio.sleep(0.03)
        return Said(text="one", pid=os.getpid())
"""

FRONT = """\
from contracts import Front, Greeter, Said
from polywire import App

app = App("front")


@app.service
class FrontService(Front):
    def __init__(self, greeter: Greeter) -> None:
        self.greeter = greeter

    async def ask(self) -> Said:
        return await self.greeter.greet()
"""

SYSTEM = """\
[system]
name = "hello"

[services.front]
app = "front:app"

[services.greeter]
app = "greeter:app"
"""

ONCE = CallDefaults(retry=Retry(attempts=1))
"""So that a call that is lost is seen."""


class Said(Message, package="reload.v1"):
    text: str
    pid: int


class Greeter(Contract, package="reload.v1"):
    @rpc
    async def greet(self) -> Said:
        raise NotImplementedError


class Front(Contract, package="reload.v1"):
    @rpc
    async def ask(self) -> Said:
        raise NotImplementedError


def written(directory: Path, system: str = SYSTEM) -> Path:
    for name, text in (("contracts", CONTRACTS), ("greeter", GREETER), ("front", FRONT)):
        (directory / f"{name}.py").write_text(text)
    (directory / "polywire.toml").write_text(system)
    return directory


def says(directory: Path, text: str) -> None:
    """Save the greeter as editors do: another file that takes the place of the first."""
    beside = directory / ".greeter.py.swp"
    beside.write_text(GREETER.replace('"one"', f'"{text}"'))
    os.replace(beside, directory / "greeter.py")


class Load:
    """Callers that never stop, and what they were told."""

    def __init__(self) -> None:
        self.texts: Counter[str] = Counter()
        self.pids: set[int] = set()
        self.failures: list[BaseException] = []
        self._over = False
        self._changed = asyncio.Condition()

    async def call(self, ask: Callable[[], Awaitable[Said]]) -> None:
        while not self._over:
            try:
                told = await ask()
            except Exception as error:  # noqa: BLE001 - counted
                self.failures.append(error)
                return
            self.texts[told.text] += 1
            self.pids.add(told.pid)
            async with self._changed:
                self._changed.notify_all()

    async def until(self, text: str) -> None:
        """Until callers are told *text*, and no longer anything else."""
        async with asyncio.timeout(SOON):
            while set(await self._next_hundred()) != {text}:
                pass

    async def _next_hundred(self) -> Counter[str]:
        before = self.texts.copy()
        async with self._changed:
            await self._changed.wait_for(lambda: self.texts.total() >= before.total() + 100)
        return self.texts - before

    def stop(self) -> None:
        self._over = True


@asynccontextmanager
async def loaded(front: str, greeter: str) -> AsyncIterator[Load]:
    """Callers of both services over every wire, with no second attempt; none of their calls may fail."""
    wires: list[RemoteWire] = ["grpc", "http", "connect"]
    load = Load()
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        for wire in wires:
            asked = await stack.enter_async_context(connect(Front, front, wire=wire, defaults=ONCE))
            greeted = await stack.enter_async_context(connect(Greeter, greeter, wire=wire, defaults=ONCE))
            for call in (asked.ask, asked.ask, greeted.greet, greeted.greet):
                group.create_task(load.call(call))
        try:
            yield load
        finally:
            load.stop()
    assert load.failures == []


@asynccontextmanager
async def reloading(directory: Path) -> AsyncIterator[tuple[Running, Load]]:
    async with polywire("up", "--reload", directory=directory) as up:
        front, greeter = await up.address("front"), await up.address("greeter")
        async with loaded(front, greeter) as load:
            await load.until("one")
            yield up, load
        up.interrupt()
        assert await up.ends() == 0
        assert alive(load.pids) == []


@pytest.mark.slow
async def test_a_service_follows_its_code_and_no_call_is_lost(tmp_path: Path) -> None:
    async with reloading(written(tmp_path)) as (up, load):
        for text in ("two", "three"):
            says(tmp_path, text)
            await up.until(r"polywire \| \S+Z INFO    greeter is started anew: greeter\.py changed\.$")
            await up.until(r"polywire \| \S+Z INFO    greeter runs the new code, at 127\.0\.0\.1:\d+\.$")
            await load.until(text)
        assert len(load.pids) == 3
    assert not any("front is started anew" in line for line in up.said)


@pytest.mark.slow
async def test_code_that_does_not_start_leaves_the_old_one_serving_until_it_is_mended(tmp_path: Path) -> None:
    async with reloading(written(tmp_path)) as (up, load):
        (tmp_path / "greeter.py").write_text(GREETER + "    this is no Python\n")
        await up.until(
            r"polywire \| \S+Z ERROR   greeter goes on as it was\. Service 'greeter' did not start: "
            r".*services\.greeter\.app = 'greeter:app' cannot be imported: module 'greeter' raised SyntaxError: "
            r"invalid syntax \(greeter\.py, line 15\)$"
        )
        await load.until("one")
        (tmp_path / "greeter.py").write_text("import words\n" + GREETER.replace('"one"', "words.GREETING"))
        await up.until(
            r"ERROR   greeter goes on as it was\. .* module 'greeter' imports 'words', which is not installed\.$"
        )
        # What is missing appears in a file that nobody has imported yet.
        (tmp_path / "words.py").write_text('GREETING = "mended"\n')
        await up.until(r"greeter runs the new code, at ")
        await load.until("mended")
        (tmp_path / "words.py").write_text('GREETING = "followed"\n')
        await up.until(r"greeter is started anew: words\.py changed\.$")
        await load.until("followed")
        assert len(load.pids) == 3


@pytest.mark.slow
async def test_what_does_not_start_is_tried_again_when_a_file_changes_that_only_it_imported(tmp_path: Path) -> None:
    (tmp_path / "words.py").write_text("import wrong\n\nGREETING = wrong.GREETING\n")
    (tmp_path / "wrong.py").write_text('GREETING = "mended" + 1\n')
    async with polywire("up", "--reload", directory=written(tmp_path)) as up:
        address = await up.address("greeter")
        (tmp_path / "greeter.py").write_text("import words\n" + GREETER.replace('"one"', "words.GREETING"))
        await up.until(r"ERROR   greeter goes on as it was\. .* module 'greeter' raised TypeError: ")
        (tmp_path / "wrong.py").write_text('GREETING = "mended"\nthis is no Python\n')
        await up.until(r"greeter is started anew: wrong\.py changed\.$")
        await up.until(r"ERROR   greeter goes on as it was\. .* module 'greeter' raised SyntaxError: ")
        (tmp_path / "wrong.py").write_text('GREETING = "mended"\n')
        await up.until(r"greeter is started anew: wrong\.py changed\.$")
        await up.until("greeter runs the new code")
        async with connect(Greeter, address) as greeter, asyncio.timeout(SOON):
            while (await greeter.greet()).text != "mended":
                pass
        up.interrupt()
        assert await up.ends() == 0


@pytest.mark.slow
async def test_what_services_share_is_followed_by_all_and_several_instances_one_after_another(tmp_path: Path) -> None:
    async with reloading(written(tmp_path, SYSTEM + "instances = 2\n")) as (up, load):
        (tmp_path / "contracts.py").write_text(CONTRACTS + "\n# changed\n")
        for name in ("greeter#1", "greeter#2", "front"):
            await up.until(rf"{name} is started anew: contracts\.py changed\.$")
            await up.until(rf"{name} runs the new code, at ")
        says(tmp_path, "two")
        await up.until("greeter#1 runs the new code")
        await up.until("greeter#2 runs the new code")
        await load.until("two")
        assert len(load.pids) == 6


@pytest.mark.slow
async def test_all_follow_the_system_file_as_long_as_it_can_be_read(tmp_path: Path) -> None:
    async with reloading(written(tmp_path)) as (up, load):
        (tmp_path / "polywire.toml").write_text(SYSTEM + "tiemouts = 3\n")
        await up.until(
            r"polywire \| \S+Z ERROR   Everything goes on as it was: polywire\.toml:9: services\.greeter\.tiemouts "
            r"is not a key of a service\. Did you mean 'timeouts'\? A service has: "
        )
        (tmp_path / "polywire.toml").write_text(SYSTEM + 'listen = "127.0.0.1:1"\n')
        await up.until(
            r"polywire \| \S+Z WARNING polywire\.toml changed, and everything goes on as it was: "
            r"services\.greeter\.listen is only read at the start\. Stop `polywire up` and start it again\.$"
        )
        assert len(load.pids) == 1
        (tmp_path / "polywire.toml").write_text(SYSTEM + "[calls]\ntimeout = 7\n")
        await up.until(r"greeter is started anew: polywire\.toml changed\.$")
        await up.until(r"front runs the new code")
        await load.until("one")
        assert len(load.pids) == 2


@pytest.mark.slow
async def test_the_times_of_the_system_file_hold_for_what_is_started_after_it_changed(tmp_path: Path) -> None:
    async with polywire("up", "--reload", directory=written(tmp_path)) as up:
        address = await up.address("greeter")
        (tmp_path / "polywire.toml").write_text(SYSTEM + "timeouts.start = 0.01\n")
        await up.until(
            r"ERROR   greeter goes on as it was\. Service 'greeter' did not start: it was not ready within 0\.01 s\. "
            r"Raise services\.greeter\.timeouts\.start if it needs longer\.$"
        )
        await up.until("front runs the new code")
        (tmp_path / "polywire.toml").write_text(SYSTEM + "timeouts = { grace = 0.25, drain_delay = 0.25 }\n")
        await up.until("front runs the new code")
        async with connect(Greeter, address) as greeter:
            pid = (await greeter.greet()).pid
        # One that hears of nothing any more is killed once its time, and 5 s beyond that, are over.
        os.kill(pid, signal.SIGSTOP)
        up.interrupt()
        await up.until(r"ERROR   greeter: it did not stop within 5\.5 s and is killed\.$")
        assert await up.ends() == 0


@pytest.mark.slow
async def test_one_that_dies_after_it_was_started_anew_is_started_again(tmp_path: Path) -> None:
    async with polywire("up", "--reload", directory=written(tmp_path)) as up:
        address = await up.address("greeter")
        says(tmp_path, "two")
        await up.until("greeter runs the new code")
        async with connect(Greeter, address) as greeter:
            async with asyncio.timeout(SOON):
                while (told := await greeter.greet()).text != "two":
                    pass
            os.kill(told.pid, 9)
            await up.until(r"greeter: its process was killed by SIGKILL\.")
            await up.until(rf"greeter runs again, at {address}\.$")
            again = await greeter.greet()
        assert (again.text, again.pid != told.pid) == ("two", True)
        up.interrupt()
        assert await up.ends() == 0


WAITING = """\
        print("under way", flush=True)
        while not Path("open").exists():
            await asyncio.sleep(0.02)
"""


@pytest.mark.slow
async def test_one_that_dies_while_the_one_before_it_drains_is_started_again_at_once(tmp_path: Path) -> None:
    directory = written(tmp_path, SYSTEM + f"timeouts.grace = {SOON}\n")
    waiting = GREETER.replace("        await asyncio.sleep(0.03)\n", WAITING)
    (tmp_path / "greeter.py").write_text("from pathlib import Path\n" + waiting)
    async with polywire("up", "--reload", directory=directory) as up:
        address = await up.address("greeter")
        async with connect(Greeter, address) as first, connect(Greeter, address) as greeter:
            with calling(timeout=SOON):
                held = asyncio.create_task(first.greet())
            await up.until("under way")
            says(tmp_path, "two")
            await up.until("greeter runs the new code")
            async with asyncio.timeout(SOON):
                while (told := await greeter.greet()).text != "two":
                    pass
            os.kill(told.pid, 9)
            await up.until(rf"greeter runs again, at {address}\.$")
            assert not held.done()
            (tmp_path / "open").touch()
            assert (await held).text == "one"
        up.interrupt()
        assert await up.ends() == 0


async def test_there_is_nothing_to_start_anew_in_one_process(tmp_path: Path) -> None:
    assert await said("up", "--reload", "--in-process", directory=written(tmp_path)) == (
        1,
        "Error: --reload starts processes anew, and --in-process has only one. Leave one of the two out.",
    )


WATCHER = """\
from polywire import App

app = App("{name}")
"""


@pytest.mark.slow
async def test_services_without_contracts_that_were_started_anew_keep_no_other_from_starting(tmp_path: Path) -> None:
    system = SYSTEM + "".join(f'\n[services.{name}]\napp = "{name}:app"\n' for name in ("analytics", "warehouse"))
    for name in ("analytics", "warehouse"):
        (tmp_path / f"{name}.py").write_text(WATCHER.format(name=name))
    async with polywire("up", "--reload", directory=written(tmp_path, system)) as up:
        await up.address("front")
        for name in ("analytics", "warehouse"):
            (tmp_path / f"{name}.py").write_text(WATCHER.format(name=name) + "# changed\n")
            await up.until(rf"{name} (runs the new code|goes on as it was)")
        says(tmp_path, "two")
        found = await up.until(r"greeter (runs the new code|goes on as it was.*)")
        assert found[1] == "runs the new code"
        up.interrupt()
        assert await up.ends() == 0
