"""Processes for handlers that keep a core busy, or that may take their process down."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Coroutine, Sequence

from polywire.bus.consumer.frames import Extend, Ready, Result, Run, Start, outcome_of, pack_frame, read_frame
from polywire.bus.consumer.run import Work
from polywire.bus.consumer.verdict import WorkerLost
from polywire.bus.core.envelope import pack
from polywire.bus.core.queue import Outcome

log = logging.getLogger("polywire.consumer")

START_PATIENCE = 60.0
"""Seconds for a process to load its app."""
CLOSE_PATIENCE = 5.0
"""Seconds for a process to end that has nothing to do."""


class ProcessPool:
    """At most *size* processes that import what handles messages by name, and get the messages encoded.

    *loader* is `module:function` of a function that takes *arguments* and returns an async context manager of
    `worker.Loaded`. A process handles one message at a time. Where its handler is cancelled, it is killed; another one
    takes its place. It ends when this process does, however that ends.
    """

    def __init__(self, loader: str, arguments: Sequence[str] = (), *, size: int | None = None) -> None:
        self._loader = loader
        self._arguments = list(arguments)
        self._size = size or os.cpu_count() or 1
        self._idle: list[_Process] = []
        self._all: set[_Process] = set()
        self._places = asyncio.Semaphore(self._size)
        self._closing: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Start all processes ahead of the first message, so that it does not wait for them. Raises WorkerLost where
        one cannot load."""
        started = await asyncio.gather(*(self._started() for _ in range(self._size)), return_exceptions=True)
        self._idle += [process for process in started if isinstance(process, _Process)]
        for problem in started:
            if isinstance(problem, BaseException):
                await self.close()
                raise problem

    async def run(self, work: Work, dice: float) -> tuple[Outcome, str]:
        """Handle a message. Returns what came of it and its name in the log; raises WorkerLost where the process ended.

        Its time begins when a process has it. Cancelling this kills the process.
        """
        work.hold()
        async with self._places:
            process = self._idle.pop() if self._idle else await self._started()
            work.begin()
            try:
                result = await process.handle(work, dice)
            except BaseException:
                self._drop(process)
                raise
            self._idle.append(process)
            return outcome_of(result), result.said

    async def close(self) -> None:
        """End all processes; those that still handle something are killed. May be called twice."""
        idle, self._idle = self._idle, []
        for process in idle:
            self._later(self._end(process))
        for process in self._all.difference(idle):
            process.kill()
        if self._closing:
            await asyncio.wait(self._closing)

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._all]

    async def _started(self) -> _Process:
        process = await _Process.start()
        self._all.add(process)
        try:
            await process.load(self._loader, self._arguments)
        except BaseException:
            self._drop(process)
            raise
        return process

    def _drop(self, process: _Process) -> None:
        process.kill()
        self._later(self._end(process))

    async def _end(self, process: _Process) -> None:
        try:
            await process.end()
        finally:
            self._all.discard(process)

    def _later(self, ending: Coroutine[object, object, None]) -> None:
        task = asyncio.get_running_loop().create_task(ending)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)


class _Process:
    """One process, and our end of the socket to it."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer

    @classmethod
    async def start(cls) -> _Process:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-P", "-m", "polywire.bus.consumer.worker", str(theirs.fileno()),
                    pass_fds=[theirs.fileno()],
                    stdin=asyncio.subprocess.DEVNULL,
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(part for part in sys.path if part)},
                    # A signal for the terminal's whole group is for us: we let it finish first.
                    start_new_session=True,
                )  # fmt: skip
            except BaseException:
                ours.close()
                raise
        reader, writer = await asyncio.open_connection(sock=ours)
        return cls(process, reader, writer)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def load(self, loader: str, arguments: list[str]) -> None:
        """Let it import what it needs. Raises WorkerLost where it cannot."""
        try:
            async with asyncio.timeout(START_PATIENCE):
                await self._send(pack_frame(Start(sys.path, loader, arguments)))
                answer = await read_frame(self._reader)
        except TimeoutError:
            raise WorkerLost(
                f"The process for {loader!r} was killed: it had not loaded after {START_PATIENCE:g} s."
            ) from None
        except (EOFError, OSError):
            raise WorkerLost(f"The process for {loader!r} did not start: {await self._how_it_ended()}") from None
        if not isinstance(answer, Ready) or answer.failed:
            failed = answer.failed if isinstance(answer, Ready) else "it did not say that it is ready."
            raise WorkerLost(f"The process for {loader!r} did not start: {failed}")

    async def handle(self, work: Work, dice: float) -> Result:
        item = work.item
        try:
            await self._send(pack_frame(Run(pack(item.envelope), item.attempt, item.position, dice, item.generation)))
            while True:
                frame = await read_frame(self._reader)
                if isinstance(frame, Result):
                    return frame
                if isinstance(frame, Extend):
                    work.extend(frame.seconds)
        except (EOFError, OSError):
            kind = item.envelope.type
            raise WorkerLost(f"The process that handled {kind} ended: {await self._how_it_ended()}") from None

    async def _send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def _how_it_ended(self) -> str:
        try:
            async with asyncio.timeout(CLOSE_PATIENCE):
                code = await self._process.wait()
        except TimeoutError:
            return "it closed its connection."
        if code >= 0:
            return f"exit status {code}."
        with contextlib.suppress(ValueError):
            return f"{signal.Signals(-code).name}."
        return f"signal {-code}."

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    async def end(self) -> None:
        """Close its socket, upon which it ends; or make it."""
        self._writer.close()
        try:
            async with asyncio.timeout(CLOSE_PATIENCE):
                await self._process.wait()
        except TimeoutError:
            self.kill()
            await self._process.wait()
        finally:
            self.kill()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()
