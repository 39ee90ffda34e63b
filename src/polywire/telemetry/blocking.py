"""Finds code that blocks the event loop, and says where it is."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
from types import FrameType
from typing import Protocol

log = logging.getLogger("polywire.blocking")

LIMIT = 0.1
"""Seconds that the loop may be kept from its other work before it is said."""
AGAIN = 60.0
"""Seconds before the same place is reported once more."""
MAX_PLACES = 64
MAX_FRAMES = 30


class Named(Protocol):
    """Says what a task of the loop is doing, `shop.v1.Inventory/CheckStock`; None where it does not know."""

    def __call__(self, task: asyncio.Task[object]) -> str | None: ...


class LoopWatch:
    """A thread that watches one event loop for as long as the block lasts.

    The loop says now and then that it is there; where it fails to for more than *limit* seconds, the stack it is in is
    logged as a warning, at once and not when it is over, once a minute for the same place. *named* helps to say whose
    it is. That costs 40 short wake-ups a second and nothing for each call. It does not see code that keeps the
    interpreter's lock all the time.
    """

    def __init__(self, *, limit: float = LIMIT, named: Named | None = None) -> None:
        self._limit = limit
        self._interval = limit / 2
        self._named = named
        self._seen = 0.0
        """When the loop was last there, by time.perf_counter: this is about time that really passes."""
        self._reported: dict[tuple[str, int], float] = {}
        self._over = threading.Event()

    def __enter__(self) -> LoopWatch:
        self._loop = asyncio.get_running_loop()
        self._tick()
        arguments = (threading.get_ident(),)
        threading.Thread(target=self._watch, args=arguments, name="polywire-blocking", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._timer.cancel()

    def _tick(self) -> None:
        self._seen = time.perf_counter()
        self._timer = self._loop.call_later(self._interval, self._tick)

    def _watch(self, loop_thread: int) -> None:
        said: float | None = None
        woken = time.perf_counter()
        while not self._over.wait(self._interval):
            now = time.perf_counter()
            starved = now - woken > 1.5 * self._interval
            woken = now
            seen = self._seen
            # A machine that lets this thread wait lets the loop wait too: that is nobody's fault here.
            if starved or now - seen <= self._limit + self._interval or said == seen:
                continue
            said = seen
            frame = sys._current_frames().get(loop_thread)
            if frame is not None:
                self._report(frame, now - seen - self._interval)

    def _report(self, frame: FrameType, seconds: float) -> None:
        place = (frame.f_code.co_filename, frame.f_lineno)
        now = time.perf_counter()
        if now - self._reported.get(place, -AGAIN) < AGAIN:
            return
        if len(self._reported) >= MAX_PLACES:
            self._reported.clear()
        self._reported[place] = now
        task = asyncio.current_task(self._loop)
        name = None if task is None or self._named is None else self._named(task)
        log.warning(
            "%s has blocked the event loop for %.2f s so far, and with it everything else that this process does. "
            "Await what can be awaited, and call what blocks by `await in_thread(function, ...)`. It is here:\n%s",
            name or "a task" if task is not None else "a callback",
            seconds,
            "".join(traceback.format_stack(frame)[-MAX_FRAMES:]).rstrip(),
        )
