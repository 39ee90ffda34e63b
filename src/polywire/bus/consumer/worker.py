"""A process that handles messages for a consumer: what it loads, and how it ends."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

from polywire.bus.consumer.frames import Extend, Frame, Ready, Run, Start, pack_frame, receive_frame, result_of
from polywire.bus.consumer.handling import Handling, by_type
from polywire.bus.consumer.run import Runs, Work
from polywire.bus.consumer.verdict import error_text
from polywire.bus.core.envelope import Envelope, unpack
from polywire.bus.core.inbox import Inbox
from polywire.clock import SystemClock
from polywire.errors import UndecodableMessage

EXIT_PATIENCE = 5.0
"""Seconds for what was loaded to close, once nobody needs this process any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What a loader gives a worker process: as the runner of the queue or group has it."""

    destination: str
    handlings: Sequence[Handling]
    group: str | None = None
    inbox: Inbox | None = None


Loader = Callable[..., AbstractAsyncContextManager[Loaded]]


@dataclass(slots=True)
class _Sent:
    """A message as it came from the consumer."""

    envelope: Envelope
    attempt: int
    position: str
    generation: int


class _Clock(SystemClock):
    """The consumer throws the dice."""

    def __init__(self) -> None:
        self.dice = 0.0

    def random(self) -> float:
        return self.dice


class _Work(Work):
    """Its time limit is kept by the consumer, which kills this process."""

    __slots__ = ("send",)
    send: Callable[[Frame], None]

    def expire(self) -> None:
        """Not ours to end."""

    def extend(self, seconds: float) -> None:
        """Tell the consumer, which holds the alarm."""
        self.send(Extend(seconds))
        if self.call is not None and self.call.deadline is not None:
            self.call.deadline += seconds


class Worker:
    """Handles what comes over *connection*, one after the other."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._busy = False
        self._leaving = False
        """This process ends by itself: with what it said, or by an error."""
        self._sending = threading.Lock()

    def run(self) -> None:
        start = receive_frame(self._connection)
        if not isinstance(start, Start):
            return
        sys.path[:] = start.path
        try:
            asyncio.run(self._serve(start))
        finally:
            self._leaving = True

    async def _serve(self, start: Start) -> None:
        try:
            loading = _found(start.loader)(*start.arguments)
            loaded = await loading.__aenter__()
        except Exception as error:  # noqa: BLE001 - it is told to the consumer
            self._send(Ready(error_text(error)))
            return
        try:
            await self._handle_all(loaded)
        finally:
            await loading.__aexit__(None, None, None)

    async def _handle_all(self, loaded: Loaded) -> None:
        clock = _Clock()
        runs = Runs(
            loaded.destination, loaded.group, wire="tasks" if loaded.group is None else "events", clock=clock,
            inbox=loaded.inbox,
        )  # fmt: skip
        handlings = {name: _here(handling) for name, handling in by_type(list(loaded.handlings)).items()}
        frames: asyncio.Queue[Frame | None] = asyncio.Queue()
        reader = threading.Thread(target=self._read, args=(asyncio.get_running_loop(), frames), daemon=True)
        reader.start()
        self._send(Ready())
        while isinstance(frame := await frames.get(), Run):
            clock.dice = frame.dice
            await self._handle(runs, handlings, frame)
            self._busy = False
        runs.close()

    async def _handle(self, runs: Runs, handlings: dict[str, Handling], frame: Run) -> None:
        envelope = unpack(frame.envelope)
        handling = handlings.get(envelope.type)
        if handling is None:
            raise UndecodableMessage(f"{envelope.type!r} is not handled by what this process loaded.")
        work = _Work(runs, handling, _Sent(envelope, frame.attempt, frame.position, frame.generation))
        work.send = self._send
        # A task of its own, so that nothing that a handler leaves in its context meets the next message.
        work.task = asyncio.get_running_loop().create_task(runs.one(work))
        outcome = await work.task
        self._send(result_of(outcome, work.said))

    def _read(self, loop: asyncio.AbstractEventLoop, frames: asyncio.Queue[Frame | None]) -> None:
        """In a thread, which notices that the consumer is gone while a handler blocks everything else."""
        try:
            while (frame := receive_frame(self._connection)) is not None:
                self._busy = True
                loop.call_soon_threadsafe(frames.put_nowait, frame)
        except OSError:
            frame = None  # as good as closed
        if self._leaving:
            return
        if not self._busy:
            loop.call_soon_threadsafe(frames.put_nowait, None)
            threading.Event().wait(EXIT_PATIENCE)
        # Nobody waits for what is handled here any more, and somebody else may have begun with it.
        os._exit(70)

    def _send(self, frame: Frame) -> None:
        with self._sending:
            self._connection.sendall(pack_frame(frame))


def _here(handling: Handling) -> Handling:
    """The same, to be run in this process and this thread: there is nothing else to do in it."""
    function = handling.function
    if not asyncio.iscoroutinefunction(function):

        async def call(*arguments: Any) -> Any:
            return handling.function(*arguments)

        function = call
    return dataclasses.replace(handling, function=function, runs_in="loop")


def _found(path: str) -> Loader:
    module, _, name = path.partition(":")
    found: Loader = getattr(importlib.import_module(module), name)
    return found


def main() -> None:
    # Signals to a whole group or container are for the consumer: it drains, and then tells us to end.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        Worker(connection).run()


if __name__ == "__main__":
    main()
