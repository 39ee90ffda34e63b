"""The first start of many services at once: forked from one process that has imported all of them already.

Five interpreters that each import the same things take five times as long as one. A fork is only taken where it is
safe: on Linux, before this process has a thread or an event loop of its own. Later starts use fresh interpreters, so
that a service that is started again has the code as it is then.
"""

from __future__ import annotations

import gc
import io
import os
import socket
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from polywire.errors import SetupError
from polywire.system.supervised import Supervised

Serve = Callable[[str, Supervised], None]
"""Runs the service of that name until it is told to stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forked:
    """A process that was started, as its supervisor gets hold of it."""

    pid: int
    process: int
    """A file descriptor (pidfd) that turns readable when the process ends."""
    output: int
    """A file descriptor with what it writes."""
    connection: socket.socket


def can_fork() -> bool:
    """Whether this process may be forked without taking something along that breaks in the copy."""
    if sys.platform != "linux" or not hasattr(os, "pidfd_open"):
        return False
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError:
        return False
    return len(list(Path("/proc/self/task").iterdir())) == 1


def fork_all(names: Sequence[str], serve: Serve) -> Mapping[str, Forked]:
    """Start a process for each of *names*, which runs *serve* and ends."""
    sys.stdout.flush()
    sys.stderr.flush()
    # What exists now is shared between all processes as long as nobody writes to it, which the collector would.
    gc.collect()
    gc.freeze()
    started: dict[str, Forked] = {}
    for name in names:
        ours, theirs = socket.socketpair()
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            for other in started.values():
                other.connection.close()
                os.close(other.output)
                os.close(other.process)
            ours.close()
            os.close(reading)
            _become(name, serve, theirs, writing)
        theirs.close()
        os.close(writing)
        started[name] = Forked(pid=pid, process=os.pidfd_open(pid), output=reading, connection=ours)
    gc.unfreeze()
    return started


def _become(name: str, serve: Serve, connection: socket.socket, output: int) -> NoReturn:
    status = 1
    try:
        # A group of its own: Ctrl-C reaches the supervisor alone, which then stops services in good order.
        os.setsid()
        _redirect(output)
        supervised = Supervised(connection)
        try:
            serve(name, supervised)
            status = 0
        except SetupError as error:
            supervised.failed(str(error))
    except BaseException:  # noqa: BLE001 - there is nobody above: this process ends here, and says why
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        # Whatever the supervisor had planned to do at its exit is not this process's business.
        os._exit(status)


def _redirect(output: int) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(nothing)
    os.close(output)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True)
