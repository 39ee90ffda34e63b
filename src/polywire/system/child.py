"""One service in a process of its own, as its supervisor sees it."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import os
import signal
import socket
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from polywire.system.forking import Forked
from polywire.system.instances import Instance
from polywire.system.relay import Relay, Source
from polywire.system.supervised import VARIABLE, read_messages


class State(enum.Enum):
    STARTING = "starting"
    READY = "ready"
    ENDED = "ended"


class Child:
    """One run of one service's process, from its start to its end."""

    def __init__(self, name: str, relay: Relay, instance: Instance | None = None) -> None:
        self.name = name
        self.instance = instance
        self.state = State.STARTING
        self.was_ready = False
        self.address = ""
        self.serves = ""
        """The contracts that its code implements, with commas in between."""
        self.needs: tuple[str, ...] = ()
        """The services that its code calls."""
        self.files: set[str] = set()
        """Of its code, where it tells them."""
        self.failure = ""
        """Why it could not start, in its own words."""
        self.status: int | None = None
        """The exit status, or minus the signal's number."""
        self.settled = asyncio.Event()
        """Set once it is ready, or ended without having been."""
        self.ended = asyncio.Event()
        self.left = asyncio.Event()
        """Set once it ended, or another one serves in its place."""
        self._relay = relay
        self._last: deque[str] = deque()
        self._pid: int | None = None
        self.asked = False
        self.stop_timeout = 0.0
        """Seconds that it may take to stop, as it was told at its start."""
        self._ours: asyncio.Transport | None = None
        self.began = time.time()
        """Seconds since the epoch; its code was read after that."""

    async def adopt(self, forked: Forked) -> None:
        """Look after a process that was started before there was an event loop."""
        loop = asyncio.get_running_loop()
        source = Source(self._relay, self.name)
        self._last = source.last
        self._pid = forked.pid
        await loop.connect_read_pipe(lambda: source, os.fdopen(forked.output, "rb", buffering=0))
        self._ours, _ = await loop.create_connection(lambda: _Messages(self), sock=forked.connection)

        def exited() -> None:
            loop.remove_reader(forked.process)
            os.close(forked.process)
            self.gone()
            _, status = os.waitpid(forked.pid, 0)
            _all_read(source, lambda: self.over(os.waitstatus_to_exitcode(status)))

        loop.add_reader(forked.process, exited)

    async def start(self, command: Sequence[str], environ: Mapping[str, str], *, pass_fds: Sequence[int] = ()) -> None:
        """Run *command*, which inherits *pass_fds* under the same numbers."""
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        reading, writing = os.pipe()
        try:
            source = Source(self._relay, self.name)
            self._last = source.last
            await loop.connect_read_pipe(lambda: source, os.fdopen(reading, "rb", buffering=0))
            self._ours, _ = await loop.create_connection(lambda: _Messages(self), sock=ours)
            transport, _ = await loop.subprocess_exec(
                lambda: _Process(self, source),
                *command,
                stdin=subprocess.DEVNULL,
                stdout=writing,
                stderr=writing,
                env={**environ, VARIABLE: str(theirs.fileno())},
                pass_fds=(theirs.fileno(), *pass_fds),
                # A group of its own: Ctrl-C reaches the supervisor alone, which then stops services in good order.
                start_new_session=True,
            )
            self._pid = transport.get_pid() if transport.get_returncode() is None else None
        except BaseException:
            self.over(None)
            raise
        finally:
            theirs.close()
            os.close(writing)

    def told(self, message: Mapping[str, str]) -> None:
        if "ready" in message:
            self.address = message["ready"]
            self.state = State.READY
            self.was_ready = True
            self.settled.set()
        elif "failed" in message:
            self.failure = message["failed"]
        elif "files" in message:
            self.files.update(message["files"].split("\n"))
        elif "serves" in message:
            self.serves = message["serves"]
            self.needs = tuple(filter(None, message["needs"].split(",")))

    def gone(self) -> None:
        """Its number may belong to another process from now on."""
        self._pid = None

    def over(self, status: int | None) -> None:
        self._pid = None
        self.status = status
        self.state = State.ENDED
        if self._ours is not None:
            self._ours.close()
        if self.instance is not None:
            # The others need not wait for it.
            self.instance.port.absent(self.instance.place)
        self.settled.set()
        self.ended.set()
        self.left.set()

    def send(self, number: int) -> None:
        """Send a signal, if there is still somebody to get it."""
        if self._pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, number)

    def stop(self) -> None:
        """Ask it to drain; once, as it would not wait for calls under way when it is asked again."""
        if not self.asked:
            self.asked = True
            self.send(signal.SIGTERM)

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
        self._child.gone()
        status = self._transport.get_returncode()

        def over() -> None:
            self._transport.close()
            self._child.over(status)

        _all_read(self._source, over)


def _all_read(source: Source, then: Callable[[], None]) -> None:
    """Call *then* once everything was read that a process wrote before its end.

    Who inherited its pipe may keep it open for ever, though, so that is waited for only half a second.
    """
    late = asyncio.get_running_loop().call_later(0.5, then)

    def ended(_ended: object) -> None:
        if not late.cancelled() and late.when() > asyncio.get_running_loop().time():
            late.cancel()
            then()

    source.ended.add_done_callback(ended)
