"""Which files this process has its code from, told to whoever would start it anew when one of them changes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from polywire.system import environment
from polywire.system.supervised import Supervised

AGAIN = 1.0
"""Seconds between two looks for modules that were imported late."""
_FOREIGN = frozenset({"site-packages", "dist-packages", "node_modules", "__pycache__"})


class LoadedCode:
    """Tells the supervisor, if it asked to be told."""

    def __init__(self, supervised: Supervised | None) -> None:
        directory = os.environ.get(environment.RELOAD, "")
        self._supervised = supervised if directory else None
        self._directory = Path(directory).resolve()
        self._modules = 0
        self._told: set[str] = set()

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """For as long as the block lasts, modules that are imported late are told of too."""
        if self._supervised is None:
            yield
            return
        task = asyncio.get_running_loop().create_task(self._go_on())
        try:
            yield
        finally:
            task.cancel()

    async def _go_on(self) -> None:
        while True:
            await asyncio.sleep(AGAIN)
            self.tell()

    def tell(self) -> None:
        if self._supervised is None or len(sys.modules) == self._modules:
            return
        self._modules = len(sys.modules)
        new = code_files(self._directory) - self._told
        if new:
            self._told |= new
            self._supervised.loaded(sorted(new))

    def tell_failure(self, error: BaseException) -> None:
        """This process does not start because of *error*: what mends it may be a change of any file that it read."""
        if self._supervised is not None:
            files = code_files(self._directory) | files_behind(error, self._directory)
            self._supervised.loaded(sorted(files))


def code_files(directory: Path) -> set[str]:
    """The files below *directory* that modules of this process came from; what was installed there is left out."""
    found: set[str] = set()
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if file is not None and _is_ours(path := Path(file).resolve(), directory):
            found.add(str(path))
    return found


def files_behind(error: BaseException, directory: Path) -> set[str]:
    """The files below *directory* whose code *error* came through; a module that raises is in no list of modules."""
    found: set[str] = set()
    seen: set[int] = set()
    ahead: list[BaseException | None] = [error]
    while ahead:
        each = ahead.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        ahead += [each.__cause__, each.__context__]
        found |= {frame.f_code.co_filename for frame, _ in traceback.walk_tb(each.__traceback__)}
        if isinstance(each, SyntaxError) and each.filename is not None:
            found.add(each.filename)
    return {str(path) for path in map(Path.resolve, map(Path, found)) if path.is_file() and _is_ours(path, directory)}


def _is_ours(path: Path, directory: Path) -> bool:
    if not path.is_relative_to(directory):
        return False
    return not any(part in _FOREIGN or part.startswith(".") for part in path.relative_to(directory).parts)
