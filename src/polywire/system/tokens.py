"""Bearer tokens between the services of a system, read from where they are kept."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from polywire.errors import SetupError, SystemFileError
from polywire.system.file import SystemFile

RECHECK = 1.0
"""Seconds after which a file is looked at again; how long a token that was replaced may still be used."""


class TokenSource:
    """A token in a file or in the environment. A file that changes is read again, so that tokens rotate without a
    restart."""

    def __init__(self, place: str, *, directory: Path | None = None, now: Callable[[], float] = time.monotonic) -> None:
        kind, _, name = place.partition(":")
        self._place = place
        self._variable = name if kind == "env" else None
        self._path = (directory or Path()) / name
        self._now = now
        self._due = 0.0
        self._changed = (0, 0)
        self._token = ""

    def __call__(self) -> str:
        """The token now. Raises SetupError where there is none and never was one."""
        if not self._token or (self._variable is None and self._now() >= self._due):
            self._due = self._now() + RECHECK
            self._read()
        return self._token

    def _read(self) -> None:
        if self._variable is not None:
            self._token = os.environ.get(self._variable, "").strip()
            if not self._token:
                raise SetupError(f"The token {self._place!r} is missing: {self._variable} is not in the environment.")
            return
        try:
            status = self._path.stat()
            changed = (status.st_mtime_ns, status.st_ino)
            if self._token and changed == self._changed:
                return
            token = self._path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            if self._token:  # in the middle of being replaced, perhaps: the last one stays
                return
            raise SetupError(f"The token {self._place!r} cannot be read: {error}.") from error
        if not token and not self._token:
            raise SetupError(f"The token {self._place!r} is missing: the file {str(self._path)!r} is empty.")
        if token:
            self._token, self._changed = token, changed


def token_sources(tokens: Mapping[str, str], directory: Path) -> dict[str, TokenSource]:
    """The tokens of a system's services, from where the system file says they are.

    Raises SetupError where a token is missing, and where two services have the same: it would prove neither.
    """
    sources = {name: TokenSource(place, directory=directory) for name, place in tokens.items()}
    seen: dict[str, str] = {}
    for name, source in sources.items():
        other = seen.setdefault(source(), name)
        if other != name:
            raise SystemFileError(
                f"services.{name}.token and services.{other}.token are the same, so that neither service can be told "
                "from the other. Give each a token of its own."
            )
    return sources


def tokens_of(system: SystemFile) -> dict[str, TokenSource]:
    """Those of all services of *system* that have one. Raises SetupError as `token_sources` does."""
    places = {name: entry.token for name, entry in system.services.items() if entry.token is not None}
    return token_sources(places, system.directory)
