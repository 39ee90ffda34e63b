"""Two instances of a service under load: one is asked to stop, or is killed, and the callers hardly notice."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc.aio
import pytest
from tests.faults.echo_service import Echo, Words

from polywire import CallDefaults, Unavailable, connect
from polywire.codec import codec_for
from polywire.connecting import RemoteWire

PROGRAM = Path(__file__).with_name("echo_service.py")
CALLERS = 30
SECONDS = 2.5
"""Of load; the signal comes in the middle."""


class Instance:
    def __init__(self, drain_delay: float) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAM), str(drain_delay)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=PROGRAM.parents[2],
        )
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        assert self.address, self.process.stderr and self.process.stderr.read()

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def ended(self) -> tuple[int, str]:
        _, complaints = self.process.communicate(timeout=10)
        return self.process.returncode, complaints


@contextmanager
def two_instances(drain_delay: float = 0.0) -> Iterator[tuple[Instance, Instance]]:
    instances = (Instance(drain_delay), Instance(drain_delay))
    try:
        yield instances
    finally:
        for instance in instances:
            instance.process.kill()
            instance.process.communicate()


class Load:
    """Calls without a pause; what came of them, by the instance that answered."""

    def __init__(self) -> None:
        self.answered: Counter[str] = Counter()
        self.late: Counter[str] = Counter()
        """Answers after the signal was a second old."""
        self.failures: list[BaseException] = []
        self.longest = 0.0

    async def run(self, call: Callable[[int], Awaitable[str]], strike: Callable[[], None]) -> None:
        end = time.monotonic() + SECONDS
        asyncio.get_running_loop().call_later(SECONDS / 2, strike)

        async def caller(number: int) -> None:
            while (started := time.monotonic()) < end:
                try:
                    instance = await call(number)
                except Exception as error:  # noqa: BLE001 - all failures are looked at below
                    self.failures.append(error)
                else:
                    self.answered[instance] += 1
                    if started > end - SECONDS / 2 + 1:
                        self.late[instance] += 1
                self.longest = max(self.longest, time.monotonic() - started)

        await asyncio.gather(*(caller(number) for number in range(CALLERS)))


@pytest.mark.slow
@pytest.mark.parametrize("wire", ["grpc", "connect", "http"])
async def test_our_client_loses_no_call_when_an_instance_is_asked_to_stop(wire: RemoteWire) -> None:
    with two_instances() as (leaving, staying):
        load = Load()
        async with connect(Echo, [leaving.address, staying.address], wire=wire) as echo:
            # `once` is not idempotent: what went to the leaving instance must have been answered by it.
            async def call(number: int) -> str:
                return (await echo.once(Words(words=str(number)))).instance

            await load.run(call, lambda: leaving.send(signal.SIGTERM))
        assert load.failures == []
        assert load.answered[leaving.address] > 20
        assert load.late[leaving.address] == 0
        assert load.late[staying.address] > 20
        assert leaving.ended() == (0, "")


@pytest.mark.slow
async def test_grpcio_loses_no_call_when_an_instance_is_asked_to_stop() -> None:
    codec = codec_for(Words, "proto")
    with two_instances() as (leaving, staying):
        load = Load()
        options = [("grpc.lb_policy_name", "round_robin"), ("grpc.enable_retries", 1)]
        target = f"ipv4:{leaving.address},{staying.address}"
        async with grpc.aio.insecure_channel(target, options=options) as channel:
            method = channel.unary_unary(
                "/faults.v1.Echo/Once", request_serializer=codec.encode, response_deserializer=codec.decode
            )

            async def call(number: int) -> str:
                answer: Any = await method(Words(words=str(number)), timeout=5)
                return str(answer.instance)

            await load.run(call, lambda: leaving.send(signal.SIGTERM))
        assert load.failures == []
        assert load.answered[leaving.address] > 20
        assert load.late[leaving.address] == 0
        assert leaving.ended() == (0, "")


@asynccontextmanager
async def watching(session: aiohttp.ClientSession, addresses: list[str]) -> AsyncIterator[list[str]]:
    """The instances that say they are ready, asked twenty times a second, as a load balancer does."""
    ready = list(addresses)

    async def watch() -> None:
        while True:
            for address in addresses:
                try:
                    async with session.get(f"http://{address}/readyz") as answer:
                        is_ready = answer.status == 200
                except aiohttp.ClientError:
                    is_ready = False
                if not is_ready and address in ready:
                    ready.remove(address)
            await asyncio.sleep(0.05)

    task = asyncio.create_task(watch())
    try:
        yield ready
    finally:
        task.cancel()


@pytest.mark.slow
async def test_aiohttp_loses_no_request_when_an_instance_is_asked_to_stop() -> None:
    with two_instances(drain_delay=0.4) as (leaving, staying):
        load = Load()
        async with (
            aiohttp.ClientSession() as session,
            watching(session, [leaving.address, staying.address]) as ready,
        ):

            async def call(number: int) -> str:
                address = ready[number % len(ready)]
                async with session.get(f"http://{address}/echo/{number}") as answer:
                    assert answer.status == 200, await answer.text()
                    return str((await answer.json())["instance"])

            await load.run(call, lambda: leaving.send(signal.SIGTERM))
        assert load.failures == []
        assert load.answered[leaving.address] > 20
        assert load.late[leaving.address] == 0
        assert leaving.ended() == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("wire", ["grpc", "connect", "http"])
async def test_a_killed_instance_shows_only_as_unavailable_and_nothing_hangs(wire: RemoteWire) -> None:
    with two_instances() as (killed, staying):
        load = Load()
        async with connect(Echo, [killed.address, staying.address], wire=wire) as echo:

            async def call(number: int) -> str:
                return (await echo.once(Words(words=str(number)))).instance

            await load.run(call, lambda: killed.send(signal.SIGKILL))
        # Only those that were on their way to it: everything after finds the other instance.
        assert {type(failure) for failure in load.failures} <= {Unavailable}
        assert all(isinstance(f, Unavailable) and f.reached == "maybe" for f in load.failures)
        assert len(load.failures) <= CALLERS
        assert load.late[staying.address] > 20
        assert load.longest < 5.0


@pytest.mark.slow
@pytest.mark.parametrize("wire", ["grpc", "connect", "http"])
async def test_a_killed_instance_does_not_show_at_all_where_calls_are_safe_to_repeat(wire: RemoteWire) -> None:
    with two_instances() as (killed, staying):
        load = Load()
        defaults = CallDefaults(budget_minimum=CALLERS)
        async with connect(Echo, [killed.address, staying.address], wire=wire, defaults=defaults) as echo:

            async def call(number: int) -> str:
                return (await echo.echo(Words(words=str(number)))).instance

            await load.run(call, lambda: killed.send(signal.SIGKILL))
        assert load.failures == []
        assert load.late[staying.address] > 20
        assert load.longest < 5.0
