"""Merges what many processes write into one readable stream."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from json.encoder import encode_basestring_ascii
from typing import Any

from polywire.telemetry import names
from polywire.telemetry.access_log import LogFormat, Write, quoted, stamp

MAX_LINE = 64 * 1024
_COLOURS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)
OURS = "polywire"
"""The name before what this process says itself."""


class Relay:
    """One stream of lines, each with the service it is from: before it in text, as a field in JSON."""

    def __init__(self, write: Write, services: list[str], *, format: LogFormat = "text", colour: bool = False) -> None:
        self._write = write
        self._json = format == "json"
        width = max(len(name) for name in [*services, OURS])
        self._prefixes = {
            name: _prefix(name, width, _COLOURS[index % len(_COLOURS)] if colour else 0)
            for index, name in enumerate(services)
        }
        self._prefixes[OURS] = _prefix(OURS, width, 1 if colour else 0)

    def lines(self, service: str, text: str) -> None:
        """Pass on whole lines that *service* wrote."""
        if self._json:
            made = [line if line.startswith("{") else wrapped(service, line) for line in text.splitlines() if line]
            self._write("".join(f"{line}\n" for line in made))
        else:
            prefix = self._prefixes[service]
            self._write("".join(f"{prefix}{line}\n" for line in text.split("\n")[:-1]))

    def say(self, text: str, *, severity: str = "INFO") -> None:
        """Say something of our own."""
        if self._json:
            self._write(wrapped(OURS, text, severity) + "\n")
        else:
            now = stamp(int(time.time() * 1000))
            self._write(f"{self._prefixes[OURS]}{now} {severity:<7} {text}\n")


def _prefix(name: str, width: int, colour: int) -> str:
    text = f"{name:<{width}} | "
    return f"\x1b[{colour}m{text}\x1b[0m" if colour else text


def wrapped(service: str, line: str, severity: str = "INFO") -> str:
    """A line of text as a record in JSON, without its end."""
    now = stamp(int(time.time() * 1000))
    return (
        f'{{"{names.TIMESTAMP}":"{now}","{names.SEVERITY}":"{severity}","{names.SERVICE}":{quoted(service)},'
        f'"{names.MESSAGE}":{encode_basestring_ascii(line)}}}'
    )


class Source(asyncio.Protocol):
    """Reads what one process writes, and remembers its last lines."""

    def __init__(self, relay: Relay, service: str) -> None:
        self._relay = relay
        self._service = service
        self._rest = b""
        self.last: deque[str] = deque(maxlen=10)
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        whole, newline, rest = (self._rest + data).rpartition(b"\n")
        self._rest = rest
        if newline:
            self._pass_on(whole)
        if len(self._rest) > MAX_LINE:
            self._pass_on(self._rest)
            self._rest = b""

    def connection_lost(self, exc: Exception | None) -> None:
        if self._rest:
            self._pass_on(self._rest)
            self._rest = b""
        if not self.ended.done():
            self.ended.set_result(None)

    def _pass_on(self, data: bytes) -> None:
        text = data.decode("utf-8", "backslashreplace")
        # Only the end can matter later; splitting every line a second time would double the price of relaying.
        self.last.extend(line for line in text[-4096:].split("\n") if line.strip())
        self._relay.lines(self._service, text + "\n")

    # The rest of what a pipe's protocol needs.

    def connection_made(self, transport: Any) -> None: ...

    def eof_received(self) -> None: ...
