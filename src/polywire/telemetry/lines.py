"""Log lines that are gathered and written together, so that each costs next to nothing."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from json.encoder import encode_basestring_ascii
from typing import Any, Generic, Literal, TypeVar

from polywire.clock import SYSTEM_CLOCK, Clock, Timer
from polywire.telemetry import names

LogFormat = Literal["text", "json"]
Write = Callable[[str], object]
"""Takes one or more whole lines, each with its end. It must not raise and should not block for long."""
Record = TypeVar("Record", bound=tuple[Any, ...])

FLUSH_DELAY = 0.05
"""Seconds that a line may wait for company."""
FLUSH_COUNT = 256
"""Lines that may wait."""
MAX_VALUE = 200
"""Characters of any one value; a peer chooses some of them."""
MAX_REMEMBERED = 4096

_PLAIN = re.compile(r"[A-Za-z0-9._:/@\[\]-]+").fullmatch


class Lines(Generic[Record]):
    """Takes records and writes them as lines, in batches: a line waits for at most 50 ms or 255 others."""

    __slots__ = (
        "_clock",
        "_format",
        "_lines",
        "_now",
        "_service",
        "_stamp",
        "_stamped",
        "_timer",
        "_waiting",
        "_write",
    )

    def __init__(
        self, write: Write, *, format: LogFormat = "text", service: str = "", clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._write = write
        self._format = format
        self._lines = self._json if format == "json" else self._text
        self._service = service
        self._clock = clock
        self._now = clock.time
        self._waiting: list[Record] = []
        self._timer: Timer | None = None
        self._stamped = -1
        self._stamp = ""

    def _text(self, records: list[Record]) -> list[str]:
        raise NotImplementedError

    def _json(self, records: list[Record]) -> list[str]:
        raise NotImplementedError

    def _forget(self) -> None:
        """Drop what is remembered from line to line where it has grown too much."""

    def _added(self) -> None:
        """To be called once a record was appended to `_waiting`."""
        count = len(self._waiting)
        if count == 1:
            self._timer = self._clock.call_later(FLUSH_DELAY, self.flush)
        elif count >= FLUSH_COUNT:
            self.flush()

    def flush(self) -> None:
        """Write the lines that wait."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting = self._waiting
        if waiting:
            self._waiting = []
            self._forget()
            self._write("".join(self._lines(waiting)))

    def close(self) -> None:
        """Write what is left. It may be called twice, and lines recorded later are written all the same."""
        self.flush()

    def _new_stamp(self, now: float) -> tuple[int, str]:
        """The time as lines begin with it, and the millisecond for which that holds."""
        self._stamped = int(now * 1000)
        text = stamp(self._stamped)
        self._stamp = f'{{"{names.TIMESTAMP}":"{text}"' if self._format == "json" else text + " "
        return self._stamped, self._stamp


def plain(value: str) -> str:
    """A value as it stands where it is harmless, `-` where it is empty, quoted and escaped otherwise."""
    if not value:
        return "-"
    return value if len(value) <= MAX_VALUE and _PLAIN(value) else quoted(value)


def quoted(value: str) -> str:
    """A value in ASCII as a JSON string, cut to a bounded length."""
    return encode_basestring_ascii(value if len(value) <= MAX_VALUE else value[: MAX_VALUE - 3] + "...")


def stamp(milliseconds: int) -> str:
    """A moment since the epoch in RFC 3339, UTC."""
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(milliseconds // 1000))}.{milliseconds % 1000:03d}Z"


def trace_id(traceparent: str | None) -> str | None:
    """The trace's id in a W3C traceparent, None where it is no such thing."""
    if traceparent is not None and len(traceparent) == 55 and traceparent[3:35].isalnum() and traceparent.isascii():
        return traceparent[3:35]
    return None
