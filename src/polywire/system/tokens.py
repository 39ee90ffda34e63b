"""Bearer tokens between the services of a system, read from where they are kept."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from polywire.errors import SetupError, SystemFileError
from polywire.system.file import SystemFile

log = logging.getLogger("polywire.system")

RECHECK = 1.0
"""Seconds after which a file is looked at again; how long a token that was taken out of it may still be used."""
MAX_TOKENS = 8
"""In one place at a time."""
MAX_TOKEN_BYTES = 4096
"""Of a token; more does not fit into the headers of a request."""


class TokenSource:
    """The tokens of one service in a file or in the environment, with white space in between.

    The service calls with the first of them, and others take each for its proof: two are valid while one takes the
    place of the other. A file is read again when it has changed, so that tokens rotate without a restart; where it
    cannot be used then, what was read before stays.
    """

    def __init__(self, place: str, *, directory: Path | None = None, now: Callable[[], float] = time.monotonic) -> None:
        kind, _, name = place.partition(":")
        self._place = place
        self._variable = name if kind == "env" else None
        self._path = (directory or Path()) / name
        self._now = now
        self._due = 0.0
        self._problem = ""
        self._text = ""
        self._tokens: tuple[str, ...] = ()

    def __call__(self) -> str:
        """The token to call with now. Raises SetupError where there is none and never was one."""
        return self.accepted()[0]

    def accepted(self) -> tuple[str, ...]:
        """The tokens that prove the service now. Raises SetupError as a call does."""
        if not self._tokens or (self._variable is None and self._now() >= self._due):
            self._due = self._now() + RECHECK
            try:
                self._read()
                self._problem = ""
            except SetupError as error:
                if not self._tokens:
                    raise
                self._stay(str(error))
        return self._tokens

    def _stay(self, problem: str) -> None:
        """It is being replaced, perhaps: the last ones stay, and that is said once."""
        if problem != self._problem:
            log.error("%s Those read before stay in use.", problem)
        self._problem = problem

    def _read(self) -> None:
        text = self._from_file() if self._variable is None else os.environ.get(self._variable, "")
        if text == self._text and self._tokens:
            return
        tokens = tuple(dict.fromkeys(text.split()))
        if not tokens:
            where = (
                f"{self._variable} is not in the environment" if self._variable else f"the file {self._file} is empty"
            )
            raise SetupError(f"The token {self._place!r} is missing: {where}.")
        if len(tokens) > MAX_TOKENS or len(text) > MAX_TOKENS * MAX_TOKEN_BYTES:
            raise SetupError(
                f"The token {self._place!r} is more than {MAX_TOKENS} tokens of {MAX_TOKEN_BYTES} characters."
            )
        if not all(token.isascii() and token.isprintable() for token in tokens):
            raise SetupError(f"The token {self._place!r} cannot be sent: it has characters other than printable ASCII.")
        self._text, self._tokens = text, tokens

    @property
    def _file(self) -> str:
        return repr(str(self._path))

    def _from_file(self) -> str:
        try:
            with self._path.open(encoding="utf-8") as file:
                return file.read(MAX_TOKENS * MAX_TOKEN_BYTES + 1)
        except UnicodeDecodeError:
            # What it could not decode is a piece of the file, and has no place in a message.
            raise SetupError(f"The token {self._place!r} cannot be read: the file {self._file} is no text.") from None
        except OSError as error:
            raise SetupError(f"The token {self._place!r} cannot be read: {error}.") from error


def token_sources(tokens: Mapping[str, str], directory: Path) -> dict[str, TokenSource]:
    """The tokens of a system's services, from where the system file says they are.

    Raises SetupError where a token is missing, and where two services have the same: it would prove neither.
    """
    sources = {name: TokenSource(place, directory=directory) for name, place in tokens.items()}
    seen: dict[str, str] = {}
    for name, source in sources.items():
        for token in source.accepted():
            other = seen.setdefault(token, name)
            if other != name:
                raise SystemFileError(
                    f"services.{name}.token and services.{other}.token are the same, so that neither service can be "
                    "told from the other. Give each a token of its own."
                )
    return sources


def tokens_of(system: SystemFile) -> dict[str, TokenSource]:
    """Those of all services of *system* that have one. Raises SetupError as `token_sources` does."""
    places = {name: entry.token for name, entry in system.services.items() if entry.token is not None}
    return token_sources(places, system.directory)
