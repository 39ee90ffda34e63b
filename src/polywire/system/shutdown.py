"""Signals: the first asks a process to stop in good order, the second ends it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Shutdown:
    """Whether this process was asked to stop.

    *at_once* is called at the second signal, before the process ends with the status that shells expect of it
    (128 and the signal's number); by default nothing is.
    """

    def __init__(self, *, at_once: Callable[[], object] | None = None) -> None:
        self._asked = asyncio.Event()
        self._at_once = at_once
        self.signal: int | None = None
        """The first signal that came."""

    @property
    def asked(self) -> bool:
        return self._asked.is_set()

    def ask(self) -> None:
        """Ask for it without a signal. More than once is the same as once."""
        self._asked.set()

    async def wait(self) -> None:
        await self._asked.wait()

    def _received(self, number: int) -> None:
        if self.signal is None:
            self.signal = number
            self._asked.set()
            return
        if self._at_once is not None:
            self._at_once()
        os._exit(128 + number)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take signals for the length of the block."""
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._received, number)
        try:
            yield
        finally:
            for number in SIGNALS:
                loop.remove_signal_handler(number)
