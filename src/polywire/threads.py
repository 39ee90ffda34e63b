"""Threads for code that blocks."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

IN_THREAD = 32
"""Threads of a process for `in_thread`."""

_Job = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Any]", Callable[..., Any], tuple[Any, ...]]


class Threads:
    """At most *size* threads, started when they are needed and kept until `close`.

    They are daemons, unlike those of concurrent.futures: a handler that never returns must not keep its process from
    ending.
    """

    def __init__(self, size: int, name: str = "polywire") -> None:
        self._size = size
        self._name = name
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._started = 0
        self._open = 0
        """Jobs that wait or run."""
        self._lock = threading.Lock()

    def run(self, function: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
        """Call it in a thread. To be called from the event loop. Cancelling the future does not stop what runs."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        with self._lock:
            self._open += 1
            if self._open > self._started and self._started < self._size:
                self._started += 1
                threading.Thread(target=self._work, name=f"{self._name}-{self._started}", daemon=True).start()
        self._jobs.put((loop, future, function, arguments))
        return future

    def close(self) -> None:
        """Let the threads end once they have nothing to do."""
        with self._lock:
            started, self._started = self._started, 0
        for _ in range(started):
            self._jobs.put(None)

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            if job is None:
                return
            self._run(*job)
            # Its arguments must not live on while the thread waits for the next job.
            del job

    def _run(
        self,
        loop: asyncio.AbstractEventLoop,
        future: asyncio.Future[Any],
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
    ) -> None:
        result: Any = None
        failure: BaseException | None = None
        if not future.cancelled():
            try:
                result = function(*arguments)
            except BaseException as error:  # noqa: BLE001 - it is raised where the future is awaited
                failure = error
        with self._lock:
            self._open -= 1
        try:
            loop.call_soon_threadsafe(_tell, future, result, failure)
        except RuntimeError:
            return  # the loop is closed: nobody waits any more


_threads = Threads(IN_THREAD, "polywire-in-thread")


async def in_thread(function: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """Call *function*, which blocks, in a thread, and wait for what it returns or raises.

    It sees the context of its caller: `current()`, `calling(...)`, and every other context variable. At most 32 run at
    a time in a process; others wait for their turn. Where the caller is cancelled, by its deadline for one, it goes on
    at once: what has not begun then never does, and what runs runs on to its end, for a thread cannot be stopped.
    """
    context = contextvars.copy_context()
    result: T = await _threads.run(context.run, partial(function, *arguments, **named))
    return result


def _tell(future: asyncio.Future[Any], result: Any, failure: BaseException | None) -> None:
    if future.done():
        return
    if isinstance(failure, StopIteration):
        # A future cannot carry it, and code that lets one out failed like any other.
        failure = RuntimeError("StopIteration was raised in a thread")
    if failure is not None:
        future.set_exception(failure)
    else:
        future.set_result(result)
