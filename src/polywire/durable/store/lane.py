"""A thread that does things one after the other for an event loop, and hands back what came of them."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Generic, TypeVar

T = TypeVar("T")

logger = logging.getLogger("polywire.durable.store")


class Lane(Generic[T]):
    """The thread and its queue. A subclass says in `handle` what it does with an item.

    Results are handed back together, once nothing else is waiting: waking the loop costs more than most statements.
    A loop that is gone ends the thread.
    """

    def __init__(self, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: SimpleQueue[T | None] = SimpleQueue()
        self._settled: list[tuple[asyncio.Future[Any], Any, BaseException | None]] = []
        self._ending = False
        self._pid = os.getpid()
        self._thread = Thread(target=self._main, name=name, daemon=True)
        self._thread.start()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    @property
    def forked(self) -> bool:
        """This is a child of the process that the thread is in."""
        return os.getpid() != self._pid

    def put(self, item: T) -> None:
        if self._ending:
            self.refuse(item)
        else:
            self._queue.put(item)

    async def end(self, timeout: float) -> bool:
        """Let it finish what it has, and stop. False where it did not within *timeout* seconds."""
        self._ending = True
        self._queue.put(None)
        ended: asyncio.Future[None] = self._loop.create_future()
        Thread(target=self._watch, args=(ended,), daemon=True).start()
        return bool((await asyncio.wait([ended], timeout=timeout))[0])

    def _watch(self, ended: asyncio.Future[None]) -> None:
        self._thread.join()
        self._call(lambda: None if ended.done() else ended.set_result(None))

    def refuse(self, item: T) -> None:
        """It came after the end."""
        raise NotImplementedError

    # ---- in the thread -----------------------------------------------------------------------------------------------

    def handle(self, item: T) -> None:
        raise NotImplementedError

    def idle(self) -> bool:
        """Nothing more is in the queue. True: there is nothing to be done before something is."""
        return True

    def finish(self) -> None:
        """The last thing it does."""

    def settle(self, future: asyncio.Future[Any], result: Any = None, error: BaseException | None = None) -> None:
        self._settled.append((future, result, error))

    def flush(self) -> None:
        """Hand back what there is."""
        if self._settled:
            settled, self._settled = self._settled, []
            self._call(lambda: deliver(settled))

    def _main(self) -> None:
        try:
            while (item := self._take()) is not None:
                self.handle(item)
        finally:
            self.finish()
            self.flush()

    def _take(self) -> T | None:
        while True:
            try:
                return self._queue.get_nowait()
            except Empty:
                if self.idle():
                    break
        self.flush()
        return self._queue.get()

    def _call(self, function: Callable[[], object]) -> None:
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError:
            # The loop was closed: nobody waits for anything any more.
            self._queue.put(None)


def deliver(settled: list[tuple[asyncio.Future[Any], Any, BaseException | None]]) -> None:
    for future, result, error in settled:
        if future.done():
            continue
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
