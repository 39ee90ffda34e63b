"""`up --reload`: looks at the files that services have their code from, and starts anew whose code changed."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from polywire.errors import SetupError
from polywire.system.child import Child
from polywire.system.file import SystemFile, load
from polywire.system.relay import Relay
from polywire.system.supervisor import Supervisor

INTERVAL = 0.25
"""Seconds between two looks; a change is acted on once a whole interval brought no other."""
MAX_FILES = 10_000
"""That are looked at."""

Mark = tuple[int, int, int]
"""What tells a file from what it was: time of change in ns, size, and inode, as editors put another in its place."""
Marks = Mapping[str, Mark | None]


class Reloading:
    """Follows the code of every service that a supervisor runs, and the system file.

    Files are looked at by their times and not by events of the operating system: that takes nothing that has to be
    installed, and works for directories that are mounted from elsewhere. They are as many as the services imported.
    """

    def __init__(self, system: SystemFile, relay: Relay) -> None:
        self._system = system
        self._file = os.path.abspath(system.file)
        self._relay = relay
        self._seen = dict(marks([self._file]))
        self._overflowed = False

    async def run(self, supervisor: Supervisor) -> None:
        """Go on for ever."""
        while True:
            changed = await self._changes(supervisor)
            names = self._concerned(supervisor, changed)
            if self._file in changed:
                new = self._followed()
                if new is not None:
                    supervisor.follow(new)
                names = set() if new is None else set(supervisor.children)
            for name in [name for name in supervisor.stop_order()[::-1] if name in names]:
                self._relay.say(f"{name} is started anew: {self._named(changed)} changed.")
                await supervisor.replace(name)

    async def _changes(self, supervisor: Supervisor) -> set[str]:
        """Wait until files changed, and then stayed as they are for a moment."""
        changed: set[str] = set()
        while True:
            await asyncio.sleep(INTERVAL)
            now = await asyncio.to_thread(marks, self._watched(supervisor))
            new = {path for path, mark in now.items() if self._differs(supervisor, path, mark)}
            self._seen = dict(now)
            changed |= new
            if changed and not new:
                return changed

    def _differs(self, supervisor: Supervisor, path: str, mark: Mark | None) -> bool:
        if path in self._seen:
            return self._seen[path] != mark
        # Its code was told of just now, and may have changed since it was read.
        began = [child.began for child in _told_by(supervisor) if path in child.files]
        return bool(began) and mark is not None and mark[0] > min(began) * 1e9

    def _watched(self, supervisor: Supervisor) -> list[str]:
        """All files, and the directories that they are in, where one may appear that was missing."""
        files = {path for child in _told_by(supervisor) for path in child.files}
        if len(files) > MAX_FILES and not self._overflowed:
            self._overflowed = True
            self._relay.say(
                f"{len(files)} files are imported below {self._system.directory}; changes of {MAX_FILES} are noticed.",
                severity="WARNING",
            )
        kept = sorted(files)[:MAX_FILES]
        return [self._file, *kept, *{os.path.dirname(path) for path in kept}]

    def _concerned(self, supervisor: Supervisor, changed: Iterable[str]) -> set[str]:
        """Jobs with code from *changed* files; what does not start is tried again whatever changed."""
        files = set(changed)
        return {name for name, child in supervisor.children.items() if child.files & files} | set(supervisor.failed)

    def _followed(self) -> SystemFile | None:
        """The system file, which changed; None where it cannot be followed, and the reason is said."""
        try:
            new = load(self._system.file, profile=self._system.profile)
        except SetupError as error:
            self._relay.say(f"Everything goes on as it was: {error}", severity="ERROR")
            return None
        fixed = _fixed(self._system, new)
        if fixed:
            self._relay.say(
                f"{self._system.file} changed, and everything goes on as it was: {fixed} is only read at the start. "
                "Stop `polywire up` and start it again.",
                severity="WARNING",
            )
            return None
        return new

    def _named(self, changed: Iterable[str]) -> str:
        """Files as people know them, the first few."""
        directory = self._system.directory.resolve()
        files = sorted(path for path in changed if not os.path.isdir(path))
        short = [
            str(Path(path).relative_to(directory)) if Path(path).is_relative_to(directory) else path for path in files
        ]
        more = f" and {len(short) - 3} more" if len(short) > 3 else ""
        return ", ".join(short[:3]) + more or "the directory of its code"


def _told_by(supervisor: Supervisor) -> list[Child]:
    """Whose files are looked at: those of what does not start, too."""
    return [*supervisor.children.values(), *supervisor.failed.values()]


def marks(paths: Iterable[str]) -> Marks:
    """What the files are like now; None for one that is not there."""
    return {path: _mark(path) for path in paths}


def _mark(path: str) -> Mark | None:
    """Of a directory only the modules in it count: databases that come and go there are nobody's code."""
    try:
        found = os.stat(path)
        if stat.S_ISDIR(found.st_mode):
            modules = frozenset(name for name in os.listdir(path) if name.endswith(".py"))
            return hash(modules), len(modules), found.st_ino
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _fixed(old: SystemFile, new: SystemFile) -> str:
    """What a new system file changes that processes cannot follow; empty if nothing."""
    for name in (*old.services, *new.services):
        if name not in old.services or name not in new.services:
            return f"which services there are (services.{name})"
        before, after = old.services[name], new.services[name]
        for key in ("listen", "address", "instances", "app"):
            if getattr(before, key) != getattr(after, key):
                return f"services.{name}.{key}"
    return ""
