"""A disk in memory whose power can be cut, which counts what it is told to keep, and which fails when told to."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import apsw

SECTOR = 512
Change = tuple[int, bytes | None]
"""Offset and bytes; or a new length, and None."""


@dataclass
class Content:
    """One file: what it holds, what of it would survive, and what was written since."""

    now: bytearray = field(default_factory=bytearray)
    kept: bytes = b""
    since: list[Change] = field(default_factory=list)

    def change(self, change: Change) -> None:
        apply(self.now, change)
        self.since.append(change)

    def sync(self) -> None:
        self.kept = bytes(self.now)
        self.since.clear()


def apply(content: bytearray, change: Change) -> None:
    offset, data = change
    if data is None:
        del content[offset:]
        content.extend(bytes(offset - len(content)))
        return
    content.extend(bytes(max(0, offset - len(content))))
    content[offset : offset + len(data)] = data


class Disk:
    """What a file system would be. Used as a VFS of SQLite by its name; one process, several threads."""

    def __init__(self, files: dict[str, bytes] | None = None) -> None:
        self.name = f"disk-{id(self)}"
        self.files = {name: Content(bytearray(data), data) for name, data in (files or {}).items()}
        self.syncs = 0
        self.lock = threading.RLock()
        self.watch: Callable[[], None] = lambda: None
        """Called before each change and each sync."""
        self.fail: Callable[[str, str], None] = lambda what, name: None
        """Called with `write` or `sync` and the file's name; may raise."""
        self._vfs = _Vfs(self)

    def close(self) -> None:
        self._vfs.unregister()

    def image(self) -> dict[str, bytes]:
        return {name: bytes(content.now) for name, content in self.files.items()}

    def after_cut(self, dice: random.Random) -> dict[str, bytes]:
        """What may be found once the power is back: what was synced, and of the rest some, in pieces."""
        return {name: _survivors(content, dice) for name, content in self.files.items()}


def _survivors(content: Content, dice: random.Random) -> bytes:
    found = bytearray(content.kept)
    share = dice.choice((0.0, 0.3, 0.7, 1.0))
    for offset, data in content.since:
        if dice.random() >= share:
            continue
        if data is not None and dice.random() < 0.2:
            data = data[: dice.randrange(0, len(data) + 1, SECTOR)]
        apply(found, (offset, data))
    return bytes(found)


class _Vfs(apsw.VFS):
    def __init__(self, disk: Disk) -> None:
        self.disk = disk
        super().__init__(disk.name, "", maxpathname=1024)

    def xOpen(self, name: object, flags: list[int]) -> _File:  # type: ignore[override]  # apsw's types say less than it does
        path = name.filename() if isinstance(name, apsw.URIFilename) else str(name)
        with self.disk.lock:
            self.disk.files.setdefault(path, Content())
        flags[1] = flags[0]
        return _File(self.disk, path)

    def xDelete(self, filename: str, syncdir: bool) -> None:
        with self.disk.lock:
            self.disk.watch()
            self.disk.files.pop(filename, None)

    def xAccess(self, pathname: str, flags: int) -> bool:
        with self.disk.lock:
            return bool(pathname in self.disk.files and self.disk.files[pathname].now)

    def xFullPathname(self, name: str) -> str:
        return name


class _File:
    def __init__(self, disk: Disk, path: str) -> None:
        self._disk = disk
        self._path = path

    @property
    def _content(self) -> Content:
        return self._disk.files[self._path]

    def xRead(self, amount: int, offset: int) -> bytes:
        with self._disk.lock:
            return bytes(self._content.now[offset : offset + amount])

    def xWrite(self, data: bytes, offset: int) -> None:
        with self._disk.lock:
            self._disk.watch()
            self._disk.fail("write", self._path)
            self._content.change((offset, bytes(data)))

    def xTruncate(self, size: int) -> None:
        with self._disk.lock:
            self._disk.watch()
            self._content.change((size, None))

    def xSync(self, flags: int) -> None:
        with self._disk.lock:
            self._disk.watch()
            self._disk.syncs += 1
            self._disk.fail("sync", self._path)
            self._content.sync()

    def xFileSize(self) -> int:
        with self._disk.lock:
            return len(self._content.now)

    def xClose(self) -> None:
        pass

    def xLock(self, level: int) -> None:
        pass

    def xUnlock(self, level: int) -> None:
        pass

    def xCheckReservedLock(self) -> bool:
        return False

    def xFileControl(self, op: int, pointer: int) -> bool:
        return False

    def xSectorSize(self) -> int:
        return SECTOR

    def xDeviceCharacteristics(self) -> int:
        return 0
