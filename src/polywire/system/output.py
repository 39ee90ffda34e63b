"""Writes whole lines to a file descriptor."""

from __future__ import annotations

import os
import select


class LineOutput:
    """A sink for log lines. Lines that can go nowhere any more (the reader has gone) are dropped, as there is nobody
    left to tell."""

    def __init__(self, descriptor: int = 1) -> None:
        self._descriptor = descriptor
        self._lost = False

    def __call__(self, text: str) -> None:
        data = memoryview(text.encode("utf-8", "backslashreplace"))
        while data and not self._lost:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:
                # Somebody made the terminal non-blocking for all who share it. Wait as a blocking write would.
                select.select([], [self._descriptor], [])
            except (BrokenPipeError, OSError):
                self._lost = True
