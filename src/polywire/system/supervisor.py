"""Runs every service of a system as a process of its own: starts them, restarts them, and stops them in good order."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from polywire.errors import SetupError
from polywire.system.child import Child, State
from polywire.system.forking import Forked
from polywire.system.instances import Instance
from polywire.system.relay import Relay
from polywire.system.shutdown import Shutdown

FIRST_DELAY = 0.25
LONGEST_DELAY = 10.0
SETTLED = 10.0
"""Seconds after which a service that runs is well again, and its next restart is quick."""
EXTRA = 5.0
"""Seconds that a process has to end itself beyond what its own timeouts allow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One process to run."""

    name: str
    """Of its service, or of one instance of that: `inventory#1`."""
    service: str
    command: Sequence[str]
    environ: Mapping[str, str]
    needs: Sequence[str]
    """The services that its service calls; they are stopped after it."""
    start_timeout: float
    stop_timeout: float
    instance: Instance | None = None
    """Where it is one of several of its service."""


class Supervisor:
    """Keeps the processes of a system running until it is asked to stop.

    Processes that were *forked* already are taken over. A service that cannot be started at first ends the whole. One
    that ends later is started again, after a quarter of a second, then twice that, up to ten seconds; after ten seconds
    of running the count begins anew.
    """

    def __init__(
        self, jobs: Sequence[Job], relay: Relay, shutdown: Shutdown, *, forked: Mapping[str, Forked] | None = None
    ) -> None:
        self._jobs = {job.name: job for job in jobs}
        self._relay = relay
        self._shutdown = shutdown
        self._forked = dict(forked or {})
        self.children: dict[str, Child] = {}

    async def run(self, ready: Callable[[Mapping[str, str]], None]) -> None:
        """Start all, call *ready* with their addresses, then keep them running until the shutdown.

        Raises SetupError saying which service did not start and why; the others are stopped by then.
        """
        keepers: list[asyncio.Task[None]] = []
        try:
            await self._start_all()
            if not self._shutdown.asked:
                ready({name: child.address for name, child in self.children.items()})
                keepers = [asyncio.create_task(self._keep(job)) for job in self._jobs.values()]
                await self._shutdown.wait()
        finally:
            for keeper in keepers:
                keeper.cancel()
            await asyncio.gather(*keepers, return_exceptions=True)
            await self._stop_all()

    def kill(self) -> None:
        """End all processes at once."""
        for child in self.children.values():
            child.send(signal.SIGKILL)

    async def _start(self, job: Job) -> None:
        """Start a service and wait until it is ready. Raises SetupError if that does not happen."""
        child = self.children[job.name] = Child(job.name, self._relay)
        forked = self._forked.pop(job.name, None)
        if forked is not None:
            await child.adopt(forked)
        else:
            await child.start(job.command, job.environ, pass_fds=job.instance.port.descriptors if job.instance else ())
        try:
            async with asyncio.timeout(job.start_timeout):
                await child.settled.wait()
        except TimeoutError:
            child.send(signal.SIGKILL)
            raise SetupError(
                f"Service {job.name!r} did not start: it was not ready within {job.start_timeout:g} s. "
                f"Raise services.{job.name}.timeouts.start if it needs longer."
            ) from None
        if child.state is State.ENDED:
            raise SetupError(f"Service {job.name!r} did not start: {child.why()}")

    async def _start_all(self) -> None:
        starting = {asyncio.create_task(self._start(job)) for job in self._jobs.values()}
        asked = asyncio.create_task(self._shutdown.wait())
        try:
            left: set[asyncio.Task[None]] = set(starting)
            while left and not self._shutdown.asked:
                done, left = await asyncio.wait([*left, asked], return_when=asyncio.FIRST_COMPLETED)
                left.discard(asked)
                for task in done - {asked}:
                    task.result()
        finally:
            for task in (asked, *starting):
                task.cancel()
            await asyncio.gather(asked, *starting, return_exceptions=True)

    async def _keep(self, job: Job) -> None:
        """Start a service again whenever it ends."""
        delay = FIRST_DELAY
        since = time.monotonic()
        while True:
            child = self.children[job.name]
            await child.ended.wait()
            if job.instance is not None:
                job.instance.port.absent(job.instance.index)
            if time.monotonic() - since >= SETTLED:
                delay = FIRST_DELAY
            if child.was_ready:
                self._relay.say(f"{job.name}: {child.why()}", severity="ERROR")
            self._relay.say(f"{job.name} is started again in {delay:g} s.")
            await asyncio.sleep(delay)
            delay = min(LONGEST_DELAY, 2 * delay)
            since = time.monotonic()
            try:
                await self._start(job)
            except SetupError as error:
                self._relay.say(str(error), severity="ERROR")
            else:
                self._relay.say(f"{job.name} runs again, at {self.children[job.name].address}.")

    async def _stop_all(self) -> None:
        """Stop every process, each once all that call it have ended."""
        running = {name: child for name, child in self.children.items() if child.state is not State.ENDED}
        await asyncio.gather(*(self._stop(name, running) for name in running))

    async def _stop(self, name: str, running: Mapping[str, Child]) -> None:
        callers = _callers(name, self._jobs)
        await asyncio.gather(*(child.ended.wait() for other, child in running.items() if other in callers))
        child = running[name]
        child.send(signal.SIGTERM)
        try:
            async with asyncio.timeout(self._jobs[name].stop_timeout + EXTRA):
                await child.ended.wait()
        except TimeoutError:
            self._relay.say(
                f"{name}: it did not stop within {self._jobs[name].stop_timeout + EXTRA:g} s and is killed.",
                severity="ERROR",
            )
            child.send(signal.SIGKILL)
            await child.ended.wait()


def _callers(name: str, jobs: Mapping[str, Job]) -> set[str]:
    """Who has to stop before *name*: those that call it, directly or not, except in a circle."""
    return {
        other for other in jobs if other != name and name in _reach(other, jobs) and other not in _reach(name, jobs)
    }


def _reach(name: str, jobs: Mapping[str, Job]) -> set[str]:
    """Every process that *name* calls, directly or through others."""
    found: set[str] = set()
    ahead = [name]
    while ahead:
        called = set(jobs[ahead.pop()].needs)
        new = {other for other, job in jobs.items() if job.service in called} - found
        found |= new
        ahead += new
    return found
