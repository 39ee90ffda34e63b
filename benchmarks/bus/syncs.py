"""A file system for SQLite that counts how often it is told to wait for the disk."""

from __future__ import annotations

import apsw


class Counting:
    """The default one under another name, with `syncs`. Databases that are opened by its name are counted."""

    def __init__(self) -> None:
        self.name = "counting"
        self.syncs = 0
        self._vfs = _Vfs(self)


class _Vfs(apsw.VFS):
    def __init__(self, counting: Counting) -> None:
        self._counting = counting
        super().__init__(counting.name, "")

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:  # noqa: N802 - apsw's
        return _File(self._counting, name, flags)


class _File(apsw.VFSFile):
    def __init__(self, counting: Counting, name: str | apsw.URIFilename | None, flags: list[int]) -> None:
        self._counting = counting
        super().__init__("", name, flags)

    def xSync(self, flags: int) -> None:  # noqa: N802 - apsw's name
        self._counting.syncs += 1
        super().xSync(flags)
