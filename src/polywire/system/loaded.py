"""Which files this process has its code from, told to whoever would start it anew when one of them changes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
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


def code_files(directory: Path) -> set[str]:
    """The files below *directory* that modules of this process came from; what was installed there is left out."""
    found: set[str] = set()
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if file is not None and _is_ours(path := Path(file).resolve(), directory):
            found.add(str(path))
    return found


def _is_ours(path: Path, directory: Path) -> bool:
    if not path.is_relative_to(directory):
        return False
    return not any(part in _FOREIGN or part.startswith(".") for part in path.relative_to(directory).parts)
