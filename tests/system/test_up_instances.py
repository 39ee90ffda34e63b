"""A service that runs as several processes on one port."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from up_support import Running, alive, polywire, said

from polywire import Contract, Message, connect, rpc

APPS = """\
import os
import re
from collections import Counter

from polywire import App, Contract, Message, rpc


class Pid(Message):
    pid: int


class Count(Message):
    calls: int


class Share(Message):
    by_pid: dict[str, int]


class Who(Contract, package="who.v1"):
    @rpc(idempotent=True)
    async def is_it(self) -> Pid:
        raise NotImplementedError


class Front(Contract, package="who.v1"):
    @rpc(timeout=60)
    async def ask(self, count: Count) -> Share:
        raise NotImplementedError


who = App("who")
front = App("front")


@who.service
class WhoService(Who):
    async def is_it(self) -> Pid:
        return Pid(pid=os.getpid())


@front.service
class FrontService(Front):
    def __init__(self, who: Who) -> None:
        self.who = who

    async def ask(self, count: Count) -> Share:
        found = Counter([str((await self.who.is_it()).pid) for _ in range(count.calls)])
        return Share(by_pid=dict(found))
"""

SYSTEM = """\
[system]
name = "who"

[services.front]
app = "apps:front"

[services.who]
app = "apps:who"
instances = 3
"""

SOON = 60.0


class Pid(Message, package="who.v1"):
    pid: int


class Count(Message, package="who.v1"):
    calls: int


class Share(Message, package="who.v1"):
    by_pid: dict[str, int]


class Who(Contract, package="who.v1"):
    @rpc(idempotent=True)
    async def is_it(self) -> Pid:
        raise NotImplementedError


class Front(Contract, package="who.v1"):
    @rpc(timeout=60)
    async def ask(self, count: Count) -> Share:
        raise NotImplementedError


def written(directory: Path, system: str = SYSTEM) -> Path:
    (directory / "apps.py").write_text(APPS)
    (directory / "polywire.toml").write_text(system)
    return directory


@asynccontextmanager
async def running(directory: Path, *arguments: str) -> AsyncIterator[Running]:
    async with polywire("up", *arguments, directory=written(directory)) as up:
        yield up
        up.interrupt()
        assert await up.ends() == 0


async def pids_of(address: str, connections: int) -> Counter[int]:
    """Who answers on that many connections that stay open together."""
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(connect(Who, address)) for _ in range(connections)]
        return Counter([(await client.is_it()).pid for client in clients])


FRESH = [(), pytest.param(("--fresh",), marks=pytest.mark.slow)]


@pytest.mark.parametrize("options", FRESH)
async def test_connections_and_calls_are_shared_out_evenly(tmp_path: Path, options: tuple[str, ...]) -> None:
    async with running(tmp_path, *options) as up:
        front, who = await up.address("front"), await up.address("who")
        by_connection = await pids_of(who, 30)
        assert len(by_connection) == 3
        assert min(by_connection.values()) >= 8
        async with connect(Front, front) as client:
            share = (await client.ask(Count(calls=600))).by_pid
        assert sorted(map(int, share)) == sorted(by_connection)
        assert min(share.values()) >= 100
    assert {line.split()[0] for line in up.said if line.startswith("who#")} == {"who#1", "who#2", "who#3"}
    assert alive(by_connection) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
async def test_one_that_ends_is_replaced_and_hardly_missed(tmp_path: Path, number: signal.Signals) -> None:
    async with running(tmp_path) as up:
        front, who = await up.address("front"), await up.address("who")
        first, *others = sorted(await pids_of(who, 30))
        failures: list[BaseException] = []
        answered = 0
        over = False

        async def load() -> None:
            nonlocal answered
            async with connect(Who, who) as client:
                while not over:
                    try:
                        await client.is_it()
                        answered += 1
                    except Exception as error:  # noqa: BLE001 - counted
                        failures.append(error)

        callers = [asyncio.ensure_future(load()) for _ in range(6)]
        async with connect(Front, front) as through, asyncio.timeout(SOON):
            await through.ask(Count(calls=50))
            os.kill(first, number)
            assert sum((await through.ask(Count(calls=300))).by_pid.values()) == 300
            await up.until(r"who#\d runs again, at ")
            while True:
                by_connection = await pids_of(who, 30)
                share = (await through.ask(Count(calls=300))).by_pid
                if len(by_connection) == 3 and min(by_connection.values()) >= 8 and len(share) == 3:
                    break
        over = True
        await asyncio.gather(*callers)
        # The method is idempotent, so that not even a process that is killed is noticed.
        assert failures == []
        assert set(others) < set(by_connection)
        assert first not in by_connection


async def test_a_unix_socket_is_shared_too(tmp_path: Path) -> None:
    system = SYSTEM + f'listen = "unix:{tmp_path}/who.sock"\n'
    async with polywire("up", "--only", "who", directory=written(tmp_path, system)) as up:
        await up.until(r"^who +unix:")
        assert len(await pids_of(f"unix:{tmp_path}/who.sock", 15)) == 3
        up.interrupt()
        assert await up.ends() == 0
    assert not (tmp_path / "who.sock").exists()


async def test_in_one_process_there_is_one_of_each(tmp_path: Path) -> None:
    async with polywire("up", "--in-process", directory=written(tmp_path)) as up:
        assert set(await pids_of(await up.address("who"), 5)) == {up.process.pid}
        up.interrupt()
        assert await up.ends() == 0


async def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    held = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
    async with held:
        port = held.sockets[0].getsockname()[1]
        directory = written(tmp_path, SYSTEM + f'listen = "127.0.0.1:{port}"\n')
        assert await said("up", directory=directory) == (
            1,
            f"Error: Service 'who' did not start: cannot listen on 127.0.0.1:{port}: the port is in use by another "
            "process. Stop it, or set `listen` of the service to another address.",
        )


async def test_memory_is_refused_for_several_processes_of_one_service(tmp_path: Path) -> None:
    system = '[system]\nname = "w"\n[services.w]\napp = "work:app"\ninstances = 2\n[wires]\ntasks = "memory:"\n'
    written(tmp_path, system)
    (tmp_path / "work.py").write_text(
        "from polywire import App, Contract, task\n"
        'class Work(Contract, package="w"):\n    @task\n    async def do(self) -> None: ...\n'
        'app = App("w")\n@app.service\nclass Worker(Work):\n    async def do(self) -> None: ...\n'
    )
    status, output = await said("up", directory=tmp_path)
    assert (status, output.partition(".")[0]) == (1, "Error: polywire")
    assert re.search(
        r"tasks.* is 'memory:', which stays in one process, but service 'w' runs in a process of its own", output
    )
