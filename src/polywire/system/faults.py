"""Faults of a running system: which of them hold in a process, and the file by which they are switched meanwhile."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from polywire.channel import Endpoints
from polywire.clock import SYSTEM_CLOCK, Clock, Timer
from polywire.errors import SetupError
from polywire.policy.faults import FIELDS, MAX_FAULTS, Fault
from polywire.system.addresses import noted
from polywire.wire.faulty import Edge

log = logging.getLogger("polywire.system")

FILE = Path(".polywire") / "faults.json"
"""Relative to the directory of the system file."""
MAX_BYTES = 256 * 1024
LOOK = 0.2
"""Seconds between two looks at the file."""
_OPENED = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOFOLLOW", "O_CLOEXEC", "O_BINARY"))


class Unread(SetupError):
    """The file could not be read this time; the next time it may be."""


class Faults:
    """The faults that the calls of one service meet.

    Nothing is around its wires until there is one for an edge, and nothing any more once there is none.
    """

    def __init__(self, caller: str, fixed: Iterable[Fault] = (), *, clock: Clock = SYSTEM_CLOCK) -> None:
        self.caller = caller
        self._clock = clock
        self._fixed = tuple(fixed)
        self._switched: tuple[Fault, ...] = ()
        self._edges: dict[str, Edge] = {}
        self._endpoints: list[tuple[str, Endpoints]] = []

    def mind(self, target: str, endpoints: Endpoints) -> None:
        """Let faults hold for *endpoints*, by which *target* is called."""
        self._endpoints.append((target, endpoints))
        edge = self._edge(target)
        if edge.faults:
            endpoints.exchange(edge.around)

    def switch(self, faults: Iterable[Fault]) -> None:
        """Let these hold from now on, beside those of the system file, in place of those switched before."""
        self._switched = tuple(faults)
        for target, edge in self._edges.items():
            before = bool(edge.faults)
            edge.switch(self._between(target))
            if bool(edge.faults) != before:
                change = edge.around if edge.faults else edge.without
                for name, endpoints in self._endpoints:
                    if name == target:
                        endpoints.exchange(change)

    def _edge(self, target: str) -> Edge:
        edge = self._edges.get(target)
        if edge is None:
            edge = self._edges[target] = Edge(self.caller, target, clock=self._clock)
            edge.switch(self._between(target))
        return edge

    def _between(self, target: str) -> list[Fault]:
        return [fault for fault in (*self._fixed, *self._switched) if fault.between(self.caller, target)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Switched:
    """A fault that was switched on while a system ran."""

    id: str
    fault: Fault
    at: float
    """When, in seconds since the epoch."""


class FaultFile:
    """Where `polywire fault` leaves what is to hold, for every process of a system that runs from *directory*.

    It is the user's own, and nobody else's word is taken: a file of another user is not read.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory / FILE
        self._directory = directory

    def read(self) -> list[Switched]:
        """What is switched on. Raises SetupError where the file is not what it should be."""
        try:
            text = self._text()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise Unread(f"The faults in {self.path} were not switched on: it cannot be read: {error}.") from error
        return _parsed(self.path, text)

    def _text(self) -> bytes:
        # What is put in its place must not hold up the loop, as a pipe would that nobody writes to.
        descriptor = os.open(self.path, _OPENED)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise SetupError(f"The faults in {self.path} were not switched on: it is no plain file.")
            if not _trusted(status.st_uid):
                raise SetupError(f"The faults in {self.path} were not switched on: the file is another user's.")
            with open(descriptor, "rb", closefd=False) as file:
                return file.read(MAX_BYTES + 1)
        finally:
            os.close(descriptor)

    def add(self, fault: Fault) -> Switched:
        """Switch *fault* on in every process that runs now. Raises SetupError where there are too many."""
        with self._alone():
            known = self.read()
            if len(known) >= MAX_FAULTS:
                raise SetupError(
                    f"The fault was not switched on: there are {MAX_FAULTS} already. "
                    "Clear some, `polywire fault clear`."
                )
            number = 1 + max((int(one.id) for one in known), default=0)
            added = Switched(id=str(number), fault=fault, at=time.time())
            self._write([*known, added])
            return added

    def clear(self, ids: Sequence[str] = ()) -> list[Switched]:
        """Switch the faults *ids* off, or all. Returns them. Raises SetupError where there is no such fault."""
        with self._alone():
            known = {one.id: one for one in self.read()}
            for given in ids:
                if given not in known:
                    raise SetupError(f"There is no fault {given!r}. There are: {', '.join(known) or 'none'}.")
            gone = [known.pop(key) for key in dict.fromkeys(ids or known)]
            if gone:
                self._write(list(known.values()))
            return gone

    def forget(self) -> None:
        """Leave nothing behind where no system runs."""
        if not noted(self._directory):
            self.path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else changes the file meanwhile: of two that read it at once, one would undo what the other does."""
        self.path.parent.mkdir(exist_ok=True)
        if sys.platform == "win32":
            yield
            return
        import fcntl

        # The file itself is replaced at each change, so its directory is what is locked.
        place = os.open(self.path.parent, os.O_RDONLY)
        try:
            fcntl.flock(place, fcntl.LOCK_EX)
            yield
        finally:
            os.close(place)

    def _write(self, faults: Sequence[Switched]) -> None:
        content = [{"id": one.id, "at": one.at, **_said(one.fault)} for one in faults]
        with tempfile.NamedTemporaryFile("w", dir=self.path.parent, delete=False, encoding="utf-8") as file:
            json.dump(content, file, indent=1)
        os.replace(file.name, self.path)


def _trusted(owner: int) -> bool:
    return sys.platform == "win32" or owner in (0, os.geteuid())


def _said(fault: Fault) -> dict[str, Any]:
    return {key: value for key, value in asdict(fault).items() if value is not None}


def _parsed(path: Path, text: bytes) -> list[Switched]:
    problem = f"The faults in {path} were not switched on: "
    if len(text) > MAX_BYTES:
        raise SetupError(f"{problem}it has more than {MAX_BYTES} bytes.")
    try:
        content = json.loads(text)
        if not isinstance(content, list) or len(content) > MAX_FAULTS:
            raise SetupError(f"{problem}it is not a list of at most {MAX_FAULTS} faults.")
        return [_entry(each) for each in content]
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise SetupError(f"{problem}it is not as `polywire fault` writes it: {type(error).__name__}.") from error


def _entry(each: Any) -> Switched:
    if not isinstance(each, dict):
        raise TypeError("no object")
    values = {key: value for key, value in each.items() if key not in ("id", "at")}
    for key, value in values.items():
        kind = FIELDS[key]
        if isinstance(value, bool) is not (kind is bool) or not isinstance(
            value, (int, kind) if kind is float else kind
        ):
            raise TypeError(key)
        values[key] = kind(value)
    return Switched(id=str(int(each["id"])), at=float(each["at"]), fault=Fault(**values))


class FaultWatch:
    """Keeps the faults of a process in step with the file, from the start of its block to the end.

    What was switched on before that is not for this process: only the faults of the system file survive a restart.
    """

    def __init__(
        self,
        directory: Path,
        faults: Sequence[Faults],
        *,
        clock: Clock = SYSTEM_CLOCK,
        said: Callable[[str], None] = log.warning,
    ) -> None:
        self._file = FaultFile(directory)
        self._faults = faults
        self._clock = clock
        self._began = clock.time()
        self._said = said
        self._seen: tuple[int, ...] | None = None
        self._told = ""
        self._held: list[Switched] = []
        self._timer: Timer | None = None

    def __enter__(self) -> Self:
        if self._faults:
            self._tick()
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _tick(self) -> None:
        try:
            self.look()
        finally:
            self._timer = self._clock.call_later(LOOK, self._tick)

    def look(self) -> None:
        """Look now."""
        seen = _fingerprint(self._file.path)
        if seen == self._seen:
            return
        try:
            held = [one for one in self._file.read() if one.at >= self._began]
        except Unread as error:
            self._tell(str(error))
            return
        except SetupError as error:
            self._seen = seen
            self._tell(str(error))
            return
        self._seen = seen
        self._told = ""
        if held != self._held:
            self._held = held
            for faults in self._faults:
                faults.switch(one.fault for one in held)

    def _tell(self, problem: str) -> None:
        """Once, however often it is met until the file can be followed again."""
        if problem != self._told:
            self._told = problem
            self._said(problem)


def _fingerprint(path: Path) -> tuple[int, ...] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
