"""The message under way, as its handler sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from polywire.bus.consumer.run import Work

_NO_HEADERS: Mapping[str, str] = MappingProxyType({})


class Incoming:
    """`current().message`. Made for each run, so everything is read from the envelope when it is asked for."""

    __slots__ = ("_loop", "_work")

    def __init__(self, work: Work) -> None:
        self._work = work
        self._loop = None if not work.handling.in_thread else asyncio.get_running_loop()

    @property
    def id(self) -> str:
        return self._work.item.envelope.id

    @property
    def attempt(self) -> int:
        """1 for the first."""
        return self._work.item.attempt

    @property
    def key(self) -> str | None:
        return self._work.item.envelope.key

    @property
    def position(self) -> str:
        """Where it stands in its queue or topic, for people."""
        return self._work.item.position

    @property
    def published_at(self) -> float:
        """When it was sent first, in seconds since the epoch."""
        return self._work.item.envelope.time

    @property
    def headers(self) -> Mapping[str, str]:
        """The sender's own."""
        headers = self._work.item.envelope.headers
        return _NO_HEADERS if headers is None else MappingProxyType(headers)

    def extend(self, seconds: float) -> None:
        """Move the time limit of this run by *seconds*."""
        if not 0 < seconds < float("inf"):
            raise ValueError(f"extend({seconds!r}): it is a positive number of seconds.")
        if self._loop is None:
            self._work.extend(seconds)
        else:
            self._loop.call_soon_threadsafe(self._work.extend, seconds)
