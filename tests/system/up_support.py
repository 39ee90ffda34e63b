"""Runs the command line as people do: in a process, in a directory with a tiny system."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path

HERE = Path(__file__).parent
SOON = 60.0
"""Seconds; generous, as the machine may be busy with other things."""

TINY = """\
[system]
name = "tiny"

[services.orders]
app = "tiny.orders:app"

[services.inventory]
app = "tiny.inventory:app"
"""


def tiny(directory: Path, text: str = TINY) -> Path:
    """A directory with the tiny system's code and a system file."""
    shutil.copytree(HERE / "tiny", directory / "tiny", ignore=shutil.ignore_patterns("__pycache__"))
    (directory / "polywire.toml").write_text(text)
    return directory


def environ(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("POLYWIRE")}
    return {**kept, **(extra or {})}


def alive(pids: Iterable[int]) -> list[int]:
    """Those of these processes that there are still."""
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


class Running:
    """A command that runs, and what it has said so far.

    All that it says is read as it comes: a command whose output nobody reads has to wait, or to drop some of it.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.said: list[str] = []
        """Up to the line that was found last."""
        self._heard: deque[str] = deque()
        self._more = asyncio.Event()
        self._reading = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        assert self.process.stdout is not None
        try:
            while line := await self.process.stdout.readline():
                self._heard.append(line.decode().rstrip("\n"))
                self._more.set()
        finally:
            self._more.set()

    async def until(self, pattern: str) -> re.Match[str]:
        """The next line that has *pattern*."""
        async with asyncio.timeout(SOON):
            while self._heard or not self._reading.done():
                self._more.clear()
                while self._heard:
                    self.said.append(self._heard.popleft())
                    if found := re.search(pattern, self.said[-1]):
                        return found
                if not self._reading.done():
                    await self._more.wait()
        raise AssertionError(f"no line with {pattern!r} in:\n" + "\n".join(self.said))

    async def ends(self) -> int:
        """Read to the end; the exit status."""
        async with asyncio.timeout(SOON):
            await self._reading
            self.said += self._heard
            self._heard.clear()
            return await self.process.wait()

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    async def address(self, service: str) -> str:
        """From the table that is printed once all is ready."""
        return (await self.until(rf"^{service} +http://(\S+)"))[1]


@contextlib.asynccontextmanager
async def polywire(*arguments: str, directory: Path, env: Mapping[str, str] | None = None) -> AsyncIterator[Running]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "polywire.cli",
        *arguments,
        cwd=directory,
        env=environ(env),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    running = Running(process)
    try:
        yield running
    finally:
        if process.returncode is None:
            process.kill()
            await running.ends()


async def said(*arguments: str, directory: Path, env: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Exit status and everything that a command says."""
    async with polywire(*arguments, directory=directory, env=env) as running:
        status = await running.ends()
        return status, "\n".join(running.said)
