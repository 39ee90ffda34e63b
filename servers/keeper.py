"""A process that holds one server for others: it outlives who asked for it, but not what the server is there for.

`python -m servers.keeper NAME DIRECTORY PID`: ends by SIGTERM, when the server dies, or with process PID (0: no such
process); in the last case it deletes the server's data. While it lives it holds a lock, which is how others know.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TextIO

from servers import find
from servers.base import STARTING, STOPPING, ServerError, tail

ROOT = Path(__file__).parent.parent


def ensure(name: str, directory: Path, *, pid: int = 0) -> str:
    """The URL of server *name* of this directory, started if it does not run; for as long as process *pid* lives."""
    directory.mkdir(parents=True, exist_ok=True)
    with locked(directory / f"{name}.lock"):
        url = running(name, directory)
        return url or _start_keeper(name, directory, pid)


def running(name: str, directory: Path) -> str | None:
    """The URL where it runs, None where it does not."""
    noted = _note(name, directory)
    return noted.get("url") if noted else None


def stop(name: str, directory: Path) -> bool:
    """Stop it and wait until it is gone. False where it did not run."""
    if _note(name, directory) is None:
        return False
    give_up = time.monotonic() + 2 * STOPPING
    while (noted := _note(name, directory)) is not None:
        if "pid" in noted:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(noted["pid"]), signal.SIGTERM)
        if time.monotonic() > give_up:
            raise ServerError(f"{name} was not stopped: its keeper, process {noted.get('pid')}, does not end.")
        time.sleep(0.05)
    return True


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _note(name: str, directory: Path) -> dict[str, str] | None:
    """What the keeper noted; None where it is gone, whether it could say so or not."""
    alive = directory / f"{name}.alive"
    try:
        with alive.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except BlockingIOError:
        text = alive.read_text()
        noted: dict[str, str] = json.loads(text) if text else {"state": "starting"}
        return noted
    return None


def _start_keeper(name: str, directory: Path, pid: int) -> str:
    log = directory / f"{name}.log"
    with log.open("wb") as output:
        keeper = subprocess.Popen(
            [sys.executable, "-m", "servers.keeper", name, str(directory.resolve()), str(pid)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    give_up = time.monotonic() + STARTING + STOPPING
    while (url := running(name, directory)) is None:
        if keeper.poll() is not None:
            raise ServerError(tail(log, 40))
        if time.monotonic() > give_up:
            keeper.terminate()
            raise ServerError(f"{name} was not started: it did not answer within {STARTING + STOPPING:g} s.")
        time.sleep(0.05)
    keeper.returncode = 0  # It goes on without us: not ours to wait for.
    return url


# ---- the process -------------------------------------------------------------------------------------------------


def keep(name: str, directory: Path, pid: int) -> None:
    """Start the server, note where it is, and hold it until one of the reasons to end."""
    signal.signal(signal.SIGTERM, _leave)
    data = directory / name
    with (directory / f"{name}.alive").open("w") as alive:
        fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
        server = find(name)()
        try:
            _tell(alive, pid=str(os.getpid()))
            _tell(alive, pid=str(os.getpid()), url=server.start(data))
            while server.running and not _gone(pid):
                pass
        finally:
            # Who comes next must not find data of a server that is being stopped.
            server.kill() if pid else server.stop()
            server.stop()
            if pid:
                shutil.rmtree(data, ignore_errors=True)


def _tell(alive: TextIO, **noted: str) -> None:
    """In one write, so that nobody reads half of it."""
    os.pwrite(alive.fileno(), json.dumps(noted).encode(), 0)


def _leave(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(0)


def _gone(pid: int, *, patience: float = 0.3) -> bool:
    """Whether process *pid* ended, within *patience* seconds from now."""
    if pid == 0:
        time.sleep(patience)
        return False
    try:
        # Not os.kill(pid, 0): a process that was killed stays until its parent asks for it.
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], patience)[0])
    finally:
        os.close(handle)


if __name__ == "__main__":
    try:
        keep(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
    except ServerError as error:
        print(error)
        sys.exit(1)
