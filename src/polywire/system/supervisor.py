"""Runs every service of a system as a process of its own: starts them, restarts them, and stops them in good order."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace

from polywire.errors import SetupError
from polywire.system import environment
from polywire.system.child import Child, State
from polywire.system.file import SystemFile
from polywire.system.forking import Forked
from polywire.system.instances import Instance
from polywire.system.relay import Relay
from polywire.system.shutdown import Shutdown
from polywire.system.wiring import start_order

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
        """The process of each job that serves, is the only one to start, or was the last to end."""
        self.failed: dict[str, Child] = {}
        """The last process of each job that was to take another's place, and did not start."""
        self._others: dict[Child, Job] = {}
        """Processes beside these, that begin to take another's place, or whose place was taken."""
        self._turns = {job.name: asyncio.Lock() for job in jobs}
        """Who starts a process of a job."""
        self._serves: dict[str, str] = {}
        """What the code of services that were reloaded implements now."""
        self._retiring: set[asyncio.Task[None]] = set()

    async def run(
        self,
        ready: Callable[[Mapping[str, str]], None],
        beside: Callable[[Supervisor], Coroutine[None, None, None]] | None = None,
    ) -> None:
        """Start all, call *ready* with their addresses, then keep them running until the shutdown; *beside* is done
        in the meantime.

        Raises SetupError saying which service did not start and why; the others are stopped by then.
        """
        keepers: list[asyncio.Task[None]] = []
        try:
            await self._start_all()
            if not self._shutdown.asked:
                ready({name: child.address for name, child in self.children.items()})
                keepers = [asyncio.create_task(self._keep(job)) for job in self._jobs.values()]
                if beside is not None:
                    keepers.append(asyncio.create_task(beside(self)))
                for keeper in keepers:
                    keeper.add_done_callback(self._kept)
                await self._shutdown.wait()
        finally:
            for keeper in keepers:
                keeper.cancel()
            await asyncio.gather(*keepers, return_exceptions=True)
            await self._stop_all()

    def _kept(self, keeper: asyncio.Task[None]) -> None:
        error = None if keeper.cancelled() else keeper.exception()
        if error is not None:
            self._relay.say(f"Nothing is started again from here on: {type(error).__name__}: {error}", severity="ERROR")

    def kill(self) -> None:
        """End all processes at once."""
        for child in (*self.children.values(), *self._others):
            child.send(signal.SIGKILL)

    def stop_order(self) -> list[str]:
        """The jobs, each before those that it calls."""
        needs = {
            name: [other for other, one in self._jobs.items() if one.service in job.needs and other != name]
            for name, job in self._jobs.items()
        }
        return start_order(needs)[::-1]

    def follow(self, system: SystemFile) -> None:
        """Let what starts from now on have the times of *system*; what runs keeps those that it was started with."""
        for name, job in self._jobs.items():
            timeouts = system.services[job.service].timeouts
            self._jobs[name] = replace(job, start_timeout=timeouts.start, stop_timeout=timeouts.stop)

    async def replace(self, name: str) -> bool:
        """Start *name* anew, beside the process that runs; that one drains once the new one is ready.

        False, and the reason is said, where the new one did not start: then the old one goes on.
        """
        async with self._turns[name]:
            job = self._jobs[name]
            child = Child(name, self._relay, await self._free_place(job))
            self._others[child] = job
            try:
                await self._run(job, child)
            except SetupError as error:
                del self._others[child]
                self.failed[name] = child
                self._relay.say(f"{name} goes on as it was. {error}", severity="ERROR")
                return False
            del self._others[child]
            self.failed.pop(name, None)
            before, self.children[name] = self.children[name], child
            before.left.set()
            self._learn(job, child)
        self._relay.say(f"{name} runs the new code, at {child.address}.")
        self._others[before] = job
        task = asyncio.create_task(self._retire(before))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)
        return True

    async def _retire(self, child: Child) -> None:
        await self._end(child)
        self._others.pop(child, None)

    async def _free_place(self, job: Job) -> Instance | None:
        """Where the next process of *job* can be in the table of its port; waits until one that drains has ended."""
        if job.instance is None:
            return None
        while True:
            there = [child for child in (self.children.get(job.name), *self._others) if child is not None]
            taken = {
                child.instance.place
                for child in there
                if child.name == job.name and child.instance is not None and child.state is not State.ENDED
            }
            for place in job.instance.places:
                if place not in taken:
                    return job.instance.at(place)
            leaving = [asyncio.ensure_future(each.ended.wait()) for each in self._others if each.name == job.name]
            await asyncio.wait(leaving, return_when=asyncio.FIRST_COMPLETED)
            for waiting in leaving:
                waiting.cancel()

    def _learn(self, job: Job, child: Child) -> None:
        """New code may implement other contracts, and call other services."""
        self._serves[job.service] = child.serves
        self._jobs[job.name] = replace(self._jobs[job.name], needs=child.needs)

    async def _start(self, job: Job) -> None:
        """Start a service and wait until it is ready. Raises SetupError if that does not happen."""
        child = self.children[job.name] = Child(job.name, self._relay, await self._free_place(job))
        await self._run(job, child)
        self.failed.pop(job.name, None)

    async def _run(self, job: Job, child: Child) -> None:
        child.stop_timeout = job.stop_timeout
        forked = self._forked.pop(job.name, None)
        if forked is not None:
            await child.adopt(forked)
        else:
            fds = () if child.instance is None else child.instance.descriptors
            await child.start(job.command, self._environ(job, child), pass_fds=fds)
        try:
            async with asyncio.timeout(job.start_timeout):
                await child.settled.wait()
        except TimeoutError:
            child.send(signal.SIGKILL)
            raise SetupError(
                f"Service {job.name!r} did not start: it was not ready within {job.start_timeout:g} s. "
                f"Raise services.{job.service}.timeouts.start if it needs longer."
            ) from None
        if child.state is State.ENDED:
            raise SetupError(f"Service {job.name!r} did not start: {child.why()}")

    def _environ(self, job: Job, child: Child) -> dict[str, str]:
        environ = {**job.environ, **({} if child.instance is None else child.instance.environ())}
        if environment.RELOAD in environ:
            for service, serves in self._serves.items():
                # As at the start: of what implements no contract nothing is said.
                environ.pop(environment.serves(service), None)
                if serves:
                    environ[environment.serves(service)] = serves
            # What it serves itself, its code says.
            environ.pop(environment.serves(job.service), None)
        return environ

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
            await child.left.wait()
            if child is not self.children[job.name]:
                delay, since = FIRST_DELAY, time.monotonic()
                continue
            if time.monotonic() - since >= SETTLED:
                delay = FIRST_DELAY
            if child.was_ready:
                self._relay.say(f"{job.name}: {child.why()}", severity="ERROR")
            self._relay.say(f"{job.name} is started again in {delay:g} s.")
            await asyncio.sleep(delay)
            delay = min(LONGEST_DELAY, 2 * delay)
            since = time.monotonic()
            async with self._turns[job.name]:
                if child is not self.children[job.name]:
                    continue
                try:
                    await self._start(self._jobs[job.name])
                except SetupError as error:
                    self._relay.say(str(error), severity="ERROR")
                else:
                    self._relay.say(f"{job.name} runs again, at {self.children[job.name].address}.")

    async def _stop_all(self) -> None:
        """Stop every process, each once all that call it have ended."""
        running = [child for child in (*self.children.values(), *self._others) if child.state is not State.ENDED]
        await asyncio.gather(*(self._stop(child, running) for child in running if not child.asked), *self._retiring)

    async def _stop(self, child: Child, running: Sequence[Child]) -> None:
        callers = _callers(child.name, self._jobs)
        await asyncio.gather(*(other.ended.wait() for other in running if other.name in callers))
        await self._end(child)

    async def _end(self, child: Child) -> None:
        """Have a process drain, and end it where it does not end by itself."""
        if child.state is State.ENDED:
            return
        child.stop()
        patience = child.stop_timeout + EXTRA
        try:
            async with asyncio.timeout(patience):
                await child.ended.wait()
        except TimeoutError:
            self._relay.say(f"{child.name}: it did not stop within {patience:g} s and is killed.", severity="ERROR")
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
