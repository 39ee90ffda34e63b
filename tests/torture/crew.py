"""The workers of a run: started, watched through what they note, killed, and started again."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
from servers.base import spawn
from tests.torture.worker import Workplace

PATIENCE = 60.0
"""Seconds for a worker to end after SIGTERM."""


class Member:
    """One process, and what it noted so far."""

    def __init__(self, number: int, workplace: Workplace, directory: Path) -> None:
        self.notes = directory / f"worker-{number}.log"
        self.output = directory / f"worker-{number}.out"
        self.starts = 0
        self.deadly = False
        """It noted that it is about to kill itself."""
        self.ready = False
        """It consumes, and knows what SIGTERM means."""
        self._offset = 0
        own = msgspec.structs.replace(workplace, log=str(self.notes))
        command = [sys.executable, "-m", "tests.torture.worker", msgspec.json.encode(own).decode()]
        self.process: subprocess.Popen[bytes] = spawn(command, log=self.output)

    def read(self, started: set[str]) -> None:
        """Take in what it noted since, adding to the ids of what was *started*."""
        if not self.notes.exists():
            return
        with self.notes.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        data = data[: data.rfind(b"\n") + 1]
        self._offset += len(data)
        for line in data.splitlines():
            what, _, rest = line.partition(b" ")
            if what == b"start":
                self.starts += 1
                started.add(rest.partition(b" ")[0].decode())
            elif what == b"ready":
                self.ready = True
            elif what == b"deadly":
                self.deadly = True

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None


class Crew:
    """Always *size* workers, but for the moment in which one follows another."""

    def __init__(self, directory: Path, workplace: Workplace, size: int) -> None:
        self.started: set[str] = set()
        """Ids of what was started so far by anybody."""
        self.killed = 0
        self.restarted = 0
        self.own = 0
        """Workers that a deadly message killed."""
        self.strange: list[str] = []
        """Ends that nobody wanted."""
        self._directory = directory
        self._workplace = workplace
        self._count = 0
        self.members = [self._new() for _ in range(size)]

    def _new(self) -> Member:
        self._count += 1
        return Member(self._count, self._workplace, self._directory)

    def look(self) -> None:
        """Take in what was noted, and replace who died."""
        for place, member in enumerate(self.members):
            ended = member.ended
            member.read(self.started)
            if ended:
                self._judge(member)
                self.members[place] = self._new()

    def _judge(self, member: Member) -> None:
        status = member.process.returncode
        if status == -signal.SIGKILL and member.deadly:
            self.own += 1
        else:
            self.strange.append(f"a worker ended by itself with status {status}: see {member.output}")

    def kill(self, member: Member) -> None:
        """By SIGKILL, and start another one."""
        if member.ended:
            return
        member.process.kill()
        member.process.wait()
        member.read(self.started)
        self.killed += 1
        self.members[self.members.index(member)] = self._new()

    async def restart(self, member: Member) -> None:
        """By SIGTERM, and start another one once it has ended."""
        if member in self.members:
            self.restarted += 1
            await self._end(member)
            self.members[self.members.index(member)] = self._new()

    async def end(self) -> None:
        """By SIGTERM, all of them."""
        members, self.members = self.members, []
        await asyncio.gather(*(self._end(member) for member in members))

    async def _end(self, member: Member) -> None:
        member.process.terminate()
        try:
            async with asyncio.timeout(PATIENCE):
                while not member.ended:  # noqa: ASYNC110 - another process
                    await asyncio.sleep(0.01)
        except TimeoutError:
            self.strange.append(f"a worker did not end within {PATIENCE:g} s of SIGTERM: see {member.output}")
            member.process.kill()
            member.process.wait()
        member.read(self.started)
        status = member.process.returncode
        if status and not member.deadly and (member.ready or status != -signal.SIGTERM):
            self.strange.append(f"a worker ended after SIGTERM with {status}: see {member.output}")

    def abandon(self) -> None:
        """Whatever happened, none is left."""
        for member in self.members:
            member.process.kill()
            member.process.wait()
        self.members = []
