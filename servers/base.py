"""What every server has in common, and how its processes are started so that none is left behind."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

STARTING = 120.0
"""Seconds that a server may take to get ready; several may be starting on one busy core."""
STOPPING = 30.0
"""Seconds that it may take to stop before it is killed."""


class ServerError(Exception):
    """A server was not installed or not started; the text says why."""


class Server:
    """One server. It lives in a directory, keeps its data and its ports there, and answers at `url`.

    Starting it again in the same directory, after `stop` or `kill`, brings back the same data at the same address. The
    processes belong to the process that started them, and end with it at the latest.
    """

    name: ClassVar[str]
    optional: ClassVar[bool] = False
    """Only installed and started where it is named, and never required."""
    url: str = ""
    directory: Path

    @classmethod
    def missing(cls) -> str | None:
        """What has to be installed before it can be started, in words; None where all is there."""
        raise NotImplementedError

    @classmethod
    def install(cls) -> None:
        """Install what `missing` names. Raises ServerError."""
        raise NotImplementedError

    def start(self, directory: Path) -> str:
        """Start it with its data in *directory* and return its URL once it is ready. Raises ServerError."""
        raise NotImplementedError

    def stop(self) -> None:
        """End it in its own manner. Does nothing where it does not run."""
        raise NotImplementedError

    def restart(self) -> str:
        """Start it again where it was started before. Raises ServerError."""
        return self.start(self.directory)

    def kill(self) -> None:
        """End it by SIGKILL, as a crash would. Does nothing where it does not run."""
        raise NotImplementedError

    def ready(self) -> bool:
        """Whether it answers now."""
        raise NotImplementedError

    @property
    def running(self) -> bool:
        """Whether its process is there."""
        raise NotImplementedError


# ---- processes ---------------------------------------------------------------------------------------------------

_starter = ThreadPoolExecutor(1, thread_name_prefix="servers")
"""Its one thread lives as long as the process: the kernel kills a child when the thread that made it is gone."""


def spawn(
    command: Sequence[str], *, log: Path, environment: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start *command* in a session of its own (Ctrl-C does not reach it), killed by the kernel when we are gone."""
    tied = ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []

    def start() -> subprocess.Popen[bytes]:
        with log.open("ab") as output:
            return subprocess.Popen(
                [*tied, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment) if environment is not None else None,
                start_new_session=True,
            )

    return _starter.submit(start).result()


def end(process: subprocess.Popen[bytes] | None, how: signal.Signals = signal.SIGTERM) -> None:
    """Send *how* and wait until the process is gone; SIGKILL where it takes longer than STOPPING."""
    if process is None:
        return
    if process.poll() is None:
        process.send_signal(how)
    try:
        process.wait(STOPPING)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_until_ready(server: Server, log: Path, *, patience: float = STARTING) -> None:
    """Raises ServerError with the end of *log* where the server dies or takes longer than *patience* seconds."""
    give_up = time.monotonic() + patience
    while not server.ready():
        ended = not server.running
        if ended or time.monotonic() > give_up:
            reason = "its process ended" if ended else f"it did not answer within {patience:g} s"
            raise ServerError(f"{server.name} was not started: {reason}. {log} ends with:\n{tail(log)}")
        time.sleep(0.05)


def tail(log: Path, lines: int = 20) -> str:
    if not log.exists():
        return "(nothing)"
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


# ---- ports and files ---------------------------------------------------------------------------------------------


def ports(directory: Path, *names: str) -> dict[str, int]:
    """A free port of 127.0.0.1 for each name; the same ones again for a directory that has been used before."""
    noted = directory / "ports.json"
    if noted.exists():
        known: dict[str, int] = json.loads(noted.read_text())
        return known
    found: dict[str, int] = {}
    while len(found) < len(names):
        # Below what the kernel gives to outgoing connections, which could take it before the server does.
        port = random.randrange(15_000, 32_000)  # noqa: S311 - nothing to hide
        if port not in found.values() and is_free(port):
            found[names[len(found)]] = port
    directory.mkdir(parents=True, exist_ok=True)
    noted.write_text(json.dumps(found))
    return found


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def answers(port: int, say: bytes, expected: Callable[[bytes], bool]) -> bool:
    """Whether whoever listens on *port* of 127.0.0.1 reacts to *say* as expected."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2.0) as connection:
            connection.sendall(say)
            return expected(connection.recv(64))
    except OSError:
        return False


def cache() -> Path:
    """Where downloads are kept between runs."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "polywire-servers"


# ---- Debian ------------------------------------------------------------------------------------------------------


def apt_install(*packages: str) -> None:
    """Raises ServerError where this is no Debian, we are not root, or apt fails."""
    wanted = " ".join(packages)
    if shutil.which("apt-get") is None:
        raise ServerError(f"{wanted} was not installed: there is no apt-get here. Install it by hand.")
    if os.geteuid() != 0:
        raise ServerError(f"{wanted} was not installed: that needs root. Run `sudo apt-get install {wanted}`.")
    # Others may be installing something: wait for their lock. Debian starts what it installs unless told not to.
    apt = ["apt-get", "-o", "DPkg::Lock::Timeout=300", "-o", "APT::Update::Error-Mode=any", "-q"]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    for command in ([*apt, "update"], [*apt, "install", "--yes", "--no-install-recommends", *packages]):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            text = (done.stdout + done.stderr).strip()[-2000:]
            raise ServerError(f"{wanted} was not installed: `{' '.join(command)}` failed:\n{text}")
