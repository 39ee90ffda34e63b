"""One service in a process of its own, as its supervisor sees it."""

from __future__ import annotations

import asyncio
import enum
import os
import signal
import socket
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from polywire.system.relay import Relay, Source
from polywire.system.supervised import VARIABLE, read_messages


class State(enum.Enum):
    STARTING = "starting"
    READY = "ready"
    ENDED = "ended"


class Child:
    """One run of one service's process, from its start to its end."""

    def __init__(self, name: str, relay: Relay) -> None:
        self.name = name
        self.state = State.STARTING
        self.was_ready = False
        self.address = ""
        self.failure = ""
        """Why it could not start, in its own words."""
        self.status: int | None = None
        """The exit status, or minus the signal's number."""
        self.settled = asyncio.Event()
        """Set once it is ready, or ended without having been."""
        self.ended = asyncio.Event()
        self._relay = relay
        self._last: deque[str] = deque()
        self._transport: asyncio.SubprocessTransport | None = None
        self._ours: asyncio.Transport | None = None

    async def start(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        reading, writing = os.pipe()
        try:
            source = Source(self._relay, self.name)
            self._last = source.last
            await loop.connect_read_pipe(lambda: source, os.fdopen(reading, "rb", buffering=0))
            self._ours, _ = await loop.create_connection(lambda: _Messages(self), sock=ours)
            self._transport, _ = await loop.subprocess_exec(
                lambda: _Process(self, source),
                *command,
                stdin=None,
                stdout=writing,
                stderr=writing,
                env={**environ, VARIABLE: str(theirs.fileno())},
                pass_fds=(theirs.fileno(),),
                # A group of its own: Ctrl-C reaches the supervisor alone, which then stops services in good order.
                start_new_session=True,
            )
        except BaseException:
            self.over(None)
            raise
        finally:
            theirs.close()
            os.close(writing)

    @property
    def pid(self) -> int:
        assert self._transport is not None  # noqa: S101 - set by start, without which there is nothing to ask
        return self._transport.get_pid()

    def told(self, message: Mapping[str, str]) -> None:
        if "ready" in message:
            self.address = message["ready"]
            self.state = State.READY
            self.was_ready = True
            self.settled.set()
        elif "failed" in message:
            self.failure = message["failed"]

    def over(self, status: int | None) -> None:
        self.status = status
        self.state = State.ENDED
        if self._ours is not None:
            self._ours.close()
        self.settled.set()
        self.ended.set()

    def send(self, number: int) -> None:
        """Send a signal, if there is still somebody to get it."""
        if self._transport is not None and self.state is not State.ENDED:
            try:
                self._transport.send_signal(number)
            except ProcessLookupError:
                return

    def why(self) -> str:
        """What became of it, as a part of a sentence."""
        if self.failure:
            return self.failure
        last = f" Its last line was: {self._last[-1]}" if self._last else ""
        return f"{how(self.status)}.{last}"


def how(status: int | None) -> str:
    """An exit status in words."""
    if status is None:
        return "its process ended"
    if status >= 0:
        return f"its process ended with exit status {status}"
    try:
        return f"its process was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"its process was killed by signal {-status}"


class _Messages(asyncio.Protocol):
    """What the process tells by the socket that it shares with us."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._rest = b""

    def data_received(self, data: bytes) -> None:
        messages, self._rest = read_messages(self._rest + data)
        for message in messages:
            self._child.told(message)


class _Process(asyncio.SubprocessProtocol):
    def __init__(self, child: Child, source: Source) -> None:
        self._child = child
        self._source = source
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def process_exited(self) -> None:
        status = self._transport.get_returncode()
        # What it wrote last may still be in the pipe. Who inherited the pipe may keep it open for ever, though.
        loop = asyncio.get_running_loop()
        late = loop.call_later(0.5, self._over, status)

        def all_read(_ended: object) -> None:
            late.cancel()
            self._over(status)

        self._source.ended.add_done_callback(all_read)

    def _over(self, status: int | None) -> None:
        if self._child.state is not State.ENDED:
            self._transport.close()
            self._child.over(status)
