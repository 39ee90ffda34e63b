"""Writes whole lines to a file descriptor, and waits for whoever reads them, but not for long."""

from __future__ import annotations

import os
import select
import threading
import time

from polywire.system.relay import OURS, wrapped
from polywire.telemetry.access_log import LogFormat, stamp

PATIENCE = 2.0
"""Seconds that writing may be held up by a reader that does not read."""
RECOVERY = 1 / 30
"""Seconds of that patience that come back with every second, up to all of it."""
CHUNK = 4096
"""Bytes: a write of so much does not block where a pipe counts as writable (PIPE_BUF of Linux, pipe(7))."""
PAUSE = 0.001
"""Seconds until another attempt where a terminal counts as writable, and is not."""


class LineOutput:
    """A sink for log lines.

    It is called from event loops, which must not stand still because somebody paused a terminal: what cannot be written
    in time is dropped, and the number of those lines is said in their place as soon as there is somebody who reads.
    Once the reader has gone, all lines are dropped, as there is nobody left to tell. It may be called from any thread,
    and from what is collected while it writes.
    """

    def __init__(
        self, descriptor: int = 1, *, format: LogFormat = "text", service: str = OURS, patience: float = PATIENCE
    ) -> None:
        self._descriptor = _unblocked(descriptor)
        self._json = format == "json"
        self._service = service
        self._most = self._patience = patience
        self._looked = time.monotonic()
        self._dropped = 0
        self._owed = b""
        """The end of a line that was begun: it goes first, as half a line misleads."""
        self._gone = False
        self._lock = threading.RLock()
        self._writing = False
        self._meanwhile: list[str] = []
        """What was said by this very thread while it wrote: by a finalizer, for one."""

    def __call__(self, text: str) -> None:
        with self._lock:
            if self._writing:
                self._meanwhile.append(text)
                return
            self._writing = True
            try:
                self._say(text)
                while self._meanwhile:
                    self._say(self._meanwhile.pop(0))
            finally:
                self._writing = False

    def _say(self, text: str) -> None:
        if self._dropped or self._owed:
            dropped, self._dropped = self._dropped, 0
            if self._put(self._notice(dropped)):
                self._dropped = dropped
            if self._dropped or self._owed:
                self._dropped += text.count("\n")
                return
        self._dropped += self._put(text.encode("utf-8", "backslashreplace")).count(b"\n")

    def _put(self, lines: bytes) -> bytes:
        """Write what is owed, then *lines*; returns those that were not even begun."""
        data = self._owed + lines
        written = self._write(memoryview(data))
        left = data[written:]
        begun = data[written - 1 : written] != b"\n" if written else bool(self._owed)
        self._owed = b""
        if left and begun:
            end, newline, left = left.partition(b"\n")
            self._owed = end + newline
        return left

    def _write(self, data: memoryview) -> int:
        """As much as is taken in time; returns how much that was. To nobody all of it can be written."""
        written = 0
        while written < len(data) and not self._gone:
            if not self._takes_more():
                return written
            try:
                written += os.write(self._descriptor, data[written : written + CHUNK])
            except BlockingIOError:
                # Somebody who shares the terminal was faster. It must not be asked without a pause.
                time.sleep(PAUSE)
                self._patience -= PAUSE
                if self._patience <= 0:
                    return written
            except OSError:
                self._gone = True
        return len(data)

    def _takes_more(self) -> bool:
        """Wait until something can be written, while there is patience left."""
        if select.select([], [self._descriptor], [], 0)[1]:
            return True
        began = time.monotonic()
        self._patience = min(self._most, self._patience + (began - self._looked) * RECOVERY)
        ready = bool(select.select([], [self._descriptor], [], self._patience)[1])
        self._looked = time.monotonic()
        self._patience = max(0.0, self._patience - (self._looked - began))
        return ready

    def _notice(self, dropped: int) -> bytes:
        if not dropped:
            return b""
        what = f"{dropped} lines of this output were dropped here: whoever reads it did not read for too long."
        if self._json:
            line = wrapped(self._service, what, "WARNING")
        else:
            line = f"{stamp(int(time.time() * 1000))} WARNING {what}"
        return line.encode() + b"\n"


def _unblocked(descriptor: int) -> int:
    """*descriptor*, or for a terminal another one to the same, which does not block.

    A terminal counts as writable as soon as there is room for a few characters, and a blocking write waits until there
    is room for all. The descriptor itself may be shared with other programs, which would not expect a change of it.
    """
    try:
        if not os.isatty(descriptor):
            return descriptor
        return os.open(os.ttyname(descriptor), os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return descriptor  # there is no other way to it, as after `su`
