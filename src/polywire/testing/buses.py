"""What the suites of queues, logs and fan-outs have in common: bounded waiting, names, messages, workers to kill."""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
import unittest
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import cached_property
from typing import Any, ClassVar, TypeVar

from polywire.bus.core import Envelope, Guarantees, new_id
from polywire.clock import SYSTEM_CLOCK, Clock
from polywire.testing.clock import ManualClock

T = TypeVar("T")

PASSWORD = "hunter2-of-the-suite"
"""In URLs of which no error may tell it."""

WORKER: list[str] = ["-m", "polywire.testing.bus_worker"]
"""What Python runs as a `Worker`."""


class BusSuite:
    """Ground of `QueueSuite`, `LogSuite` and `FanoutSuite`: what a backend's class sets, and how tests wait."""

    patience: ClassVar[float] = 30.0
    """Seconds within which whatever must happen happens."""
    quiet: ClassVar[float] = 0.3
    """Seconds that are watched where nothing may happen."""
    moment: ClassVar[float] = 0.5
    """Seconds of a delay."""
    drives_clock: ClassVar[bool] = False
    """The backend takes `self.clock`, which is a ManualClock then: nobody waits for real."""

    @cached_property
    def clock(self) -> Clock:
        """A new one for each test where the suite drives it."""
        return ManualClock() if self.drives_clock else SYSTEM_CLOCK

    def name(self, what: str) -> str:
        """A name that no other test uses."""
        return f"suite-{secrets.token_hex(5)}.{what}"

    def skip(self, reason: str) -> Any:
        """End the test here, skipped."""
        raise unittest.SkipTest(reason)

    def need(self, guarantees: Guarantees, promise: str) -> None:
        """Skip where the backend does not promise this: the name of a field of Guarantees."""
        if not getattr(guarantees, promise):
            self.skip(f"{guarantees.backend} does not promise {promise!r}")

    def need_exact_attempts(self, guarantees: Guarantees) -> None:
        if guarantees.attempts == "approximate":
            self.skip(f"{guarantees.backend} counts attempts only approximately")

    def message(self, text: str = "1", **fields: Any) -> Envelope:
        now = self.clock.time()
        given = {"source": "suite", "time": now, **fields}
        identifier = given.pop("id", None) or new_id()
        return Envelope(identifier, given.pop("type", "polywire.suite.v1.Work"), text.encode(), **given)

    # ---- hooks ------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def backend_down(self, url: str) -> AsyncIterator[None]:
        """Kill the server of *url*, and start it again at the end, until it accepts connections."""
        self.skip("the suite cannot stop this backend")
        yield

    async def restart_backend(self, url: str) -> None:
        """As `backend_down`, without a pause."""
        async with self.backend_down(url):
            pass

    def url_of_nobody(self) -> str:
        """One at which nothing listens, with a user and PASSWORD in it where such URLs can have them."""
        self.skip("nothing has to listen at the URL of this backend")
        raise AssertionError

    # ---- waiting ----------------------------------------------------------------------------------------------------

    async def within(self, work: Awaitable[T], *, what: str = "it", seconds: float | None = None) -> T:
        """The result of *work*, which must be there within the patience."""
        task = asyncio.ensure_future(work)
        if not await self._ended(task, self.patience if seconds is None else seconds):
            await _cancel(task)
            raise AssertionError(f"{what} did not happen within {self.patience:g} s")
        return task.result()

    async def until(self, condition: Callable[[], Awaitable[bool]], *, what: str) -> None:
        """Wait until *condition* is true."""

        async def watch() -> None:
            while not await condition():
                await self.clock.sleep(self.patience / 200)

        await self.within(watch(), what=what)

    async def nothing_from(self, work: Awaitable[Any], *, what: str) -> None:
        """*work* must not end in the next moment; it is cancelled then."""
        task = asyncio.ensure_future(work)
        if await self._ended(task, self.quiet):
            raise AssertionError(f"{what}: {task.result()!r}")
        await _cancel(task)

    async def pass_time(self, seconds: float) -> None:
        if isinstance(self.clock, ManualClock):
            await self.clock.advance(seconds)
        else:
            await asyncio.sleep(seconds)

    async def _ended(self, task: asyncio.Future[Any], seconds: float) -> bool:
        if not isinstance(self.clock, ManualClock):
            await asyncio.wait([task], timeout=seconds)
            return task.done()
        steps = 50
        for _ in range(steps):
            await self.clock.advance(0.0)
            if task.done():
                return True
            await self.clock.advance(seconds / steps)
        return task.done()


async def _cancel(task: asyncio.Future[Any]) -> None:
    task.cancel()
    await asyncio.wait([task])


async def raised(work: Awaitable[Any], *kinds: type[BaseException]) -> BaseException:
    """The error of *work*, which must be one of *kinds*."""
    try:
        result = await work
    except kinds as error:
        return error
    raise AssertionError(f"expected {' or '.join(kind.__name__ for kind in kinds)}, got {result!r}")


class Worker:
    """A process of its own that holds messages, until it is killed: `polywire.testing.bus_worker`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._turn = asyncio.Lock()

    async def ask(self, do: str, **arguments: Any) -> Any:
        """Tell it what to do, and wait for its answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        async with self._turn:
            self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            await self._process.stdin.drain()
            line = await self._process.stdout.readline()
        assert line, f"the worker ended without an answer to {do!r}"
        answer = json.loads(line)
        assert "error" not in answer, answer["error"]
        return answer["answer"]

    async def receive(self, count: int) -> list[dict[str, Any]]:
        """`id`, `attempt`, `lost` and the like of *count* messages."""
        found: list[dict[str, Any]] = await self.ask("receive", count=count)
        return found

    async def start(self, ids: Sequence[str]) -> None:
        """Let handlers of these begin."""
        held = await self.ask("start", ids=list(ids))
        assert held == list(ids), f"of {list(ids)}, only {held} are held"

    async def kill(self) -> None:
        """SIGKILL, and nothing of it is left."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()


@asynccontextmanager
async def worker_process(*arguments: str) -> AsyncIterator[Worker]:
    """Run `polywire.testing.bus_worker` with these *arguments*; killed at the end, if not before."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, *WORKER, *arguments, stdin=PIPE, stdout=PIPE, limit=2**22
    )
    worker = Worker(process)
    try:
        yield worker
    finally:
        await worker.kill()
        if process.stdin is not None:
            process.stdin.close()
