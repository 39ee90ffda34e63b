"""What the queues and the topics of a file have in common: opening and closing it, and writing together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import apsw

from polywire.bus.backend.sqlite_file import FileOptions, NotDone, SharedFile, Transaction
from polywire.bus.backend.sqlite_schema import path_of
from polywire.bus.backend.sqlite_sending import Confirming, Room
from polywire.clock import SYSTEM_CLOCK, Clock
from polywire.errors import BackendLost, DeliveryError, SetupError

T = TypeVar("T")
S = TypeVar("S", bound=Confirming)
"""What is written together, by all who send in one turn of the event loop."""
C = TypeVar("C")
"""The consumers."""


class SqliteBackend(Generic[S, C]):
    """One file, as a backend has it open."""

    _together: Callable[[float | None], S]
    """Makes an S with this time limit."""

    def __init__(self, url: str, *, clock: Clock = SYSTEM_CLOCK, options: FileOptions | None = None) -> None:
        """*url* is `sqlite:PATH`. Raises SetupError where that is none."""
        self.path = path_of(url)
        self.clock = clock
        self._options = options or FileOptions()
        self._file: SharedFile | None = None
        self._outgoing: S | None = None
        self._room = Room()
        self._consumers: set[C] = set()

    async def start(self) -> None:
        if self._file is not None:
            return
        file = self._file = SharedFile.open(self.path, self.clock, self._options)
        try:
            await file.started()
        except BaseException:
            self._file = None
            await file.close()
            raise
        self._opened(file)

    def _opened(self, file: SharedFile) -> None:
        """Tell it what it has to do for this backend."""
        raise NotImplementedError

    async def close(self) -> None:
        consumers: list[Any] = list(self._consumers)
        for consumer in consumers:
            await consumer.close()
        file, self._file = self._file, None
        if file is not None:
            self._closing(file)
            await file.close()

    def _closing(self, file: SharedFile) -> None:
        """Take that back where another backend may go on with the file."""

    @property
    def connected(self) -> bool:
        return self._file is not None and self._file.connected

    @property
    def file(self) -> SharedFile:
        """Raises BackendLost before `start` and after `close`."""
        if self._file is None:
            raise BackendLost(f"The bus at {self.path!r} is not open. Call `start` first.")
        return self._file

    def _gathering(self, timeout: float | None) -> S:
        """What is written together with all others that send at this moment with the same time limit."""
        gathering = self._outgoing
        if gathering is None or gathering.timeout != timeout:
            if gathering is not None:
                self._flush(gathering)
            gathering = self._outgoing = self._together(timeout)
            asyncio.get_running_loop().call_soon(self._flush, gathering)
        return gathering

    def _flush(self, gathering: S) -> None:
        if self._outgoing is not gathering:
            return  # it went when one with another time limit came
        self._outgoing = None
        try:
            self.file.submit(gathering)
        except (NotDone, DeliveryError, SetupError) as error:
            gathering.fail(error)

    async def _written(self, future: asyncio.Future[Exception | None], count: int, size: int) -> Exception | None:
        """Why *count* messages of *size* bytes in all were not written; None where they were."""
        self._room.enter(count, size)
        try:
            return await future
        finally:
            self._room.leave(count, size)

    async def _do(self, what: str, function: Callable[[Transaction], T]) -> T:
        return await self.file.do_or_lose(what, function)

    async def _look(self, what: str, function: Callable[[apsw.Connection], T]) -> T:
        return await self.file.read_or_lose(what, function)
