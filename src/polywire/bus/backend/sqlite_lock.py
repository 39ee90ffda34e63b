"""Who may write to a file of the bus: a lock beside it that names its holder, and which processes are still there."""

from __future__ import annotations

import fcntl
import os
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path


class FileLock:
    """An `flock` on a file of its own, held around each transaction and each checkpoint.

    SQLite's own waiting sleeps and tries again, and starves all processes but one. The holder's pid stands in the file,
    so that whoever waits in vain can say for whom. Used by one thread.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._mine = b"%d\n" % os.getpid()
        self.shared = False
        """Another process held it since we did: after giving it back, let others have it."""

    def acquire(self) -> None:
        """Wait for as long as it takes."""
        fcntl.flock(self._file, fcntl.LOCK_EX)
        if os.pread(self._file, 32, 0) == self._mine:
            self.shared = False
            return
        self.shared = True
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, self._mine, 0)

    def release(self) -> None:
        fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """In a forked child too: that closes only the child's copy, and the parent's lock stays."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def holder(self) -> str:
        """For people: who had it last, which is who has it where somebody waits. From any thread."""
        return describe(holder_pid(self.path))


def holder_pid(path: str) -> int | None:
    """Which process wrote its number into the lock file at *path*."""
    try:
        text = Path(path).read_bytes().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def describe(pid: int | None) -> str:
    if pid is None:
        return "another process"
    state = _state_and_start(pid)
    if state is None:
        return f"process {pid}"
    return f"process {pid}, which is stopped," if state[0] in ("T", "t") else f"process {pid}"


@dataclass(frozen=True, slots=True)
class Process:
    """One process among all that ever used the file: a number alone would be reused."""

    host: str
    pid: int
    started: str

    def is_gone(self) -> bool:
        """Certainly ended. False also where that cannot be seen from here, as on another host."""
        if self.host != this_process().host:
            return False
        found = _state_and_start(self.pid)
        if found is None:
            return not _answers(self.pid)
        # A killed process stays a zombie until its parent asks for it.
        return found[0] in ("Z", "X", "x") or found[1] != self.started


def this_process() -> Process:
    return _process(os.getpid())


@cache
def _process(pid: int) -> Process:
    found = _state_and_start(pid)
    return Process(_host(), pid, found[1] if found else "")


def _host() -> str:
    """Where a pid means the same process: one boot of one machine, and one namespace of pids in it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _state_and_start(pid: int) -> tuple[str, str] | None:
    """A letter and the ticks since boot, from /proc; None where there is no such process or no /proc."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return fields[0], fields[19]


def _answers(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
