"""One port for several processes: they share its listening sockets, and the one with the fewest connections accepts.

The sockets belong to whoever opened them, a supervisor: a process that ends or drains takes no waiting connection with
it. (Sockets of SO_REUSEPORT have a queue each, which is lost with its process.)
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import mmap
import os
import socket
import tempfile
from collections.abc import Callable, Iterable, Sequence

from polywire.net.address import parse_addresses
from polywire.net.binding import bound, open_listening

log = logging.getLogger("polywire.server")

ABSENT = -1
YIELD = 0.005
"""Seconds that a connection waits at most for a process that has fewer of them, and may be busy."""
TIRED = 1.0
"""Seconds without accepting, where no file descriptor is left."""
MAX_PROCESSES = 256


class Counts:
    """How many connections each of some processes has, in memory that all of them share."""

    def __init__(self, descriptor: int, size: int) -> None:
        self.descriptor = descriptor
        self.size = size
        self._memory = mmap.mmap(descriptor, 8 * size)
        self._counts = memoryview(self._memory).cast("q")

    @classmethod
    def create(cls, size: int) -> Counts:
        """For *size* processes, none of which is there yet."""
        with tempfile.TemporaryFile() as file:
            file.write(ABSENT.to_bytes(8, "little", signed=True) * size)
            file.flush()
            return cls(os.dup(file.fileno()), size)

    def set(self, index: int, count: int) -> None:
        self._counts[index] = count

    def fewest(self, but: int) -> int | None:
        """Of the processes that are there, *but* one left out; None where there are no others."""
        others = (count for index, count in enumerate(self._counts) if index != but and count != ABSENT)
        return min(others, default=None)

    def of(self, index: int) -> int:
        return self._counts[index]

    def close(self) -> None:
        self._counts.release()
        self._memory.close()
        os.close(self.descriptor)


class SharedPort:
    """The listening sockets of a service that runs as several processes, and the table of their connections."""

    def __init__(self, sockets: Sequence[tuple[str, socket.socket]], counts: Counts) -> None:
        self.sockets = tuple(sockets)
        self.counts = counts

    @classmethod
    def open(cls, addresses: Sequence[str], size: int) -> SharedPort:
        """Listen on *addresses* for *size* processes. Raises SetupError saying which one cannot be listened on."""
        sockets: list[tuple[str, socket.socket]] = []
        try:
            for place in parse_addresses(addresses):
                opened = open_listening(place)
                sockets += [(bound(place, opened[0]), each) for each in opened]
        except BaseException:
            for _, each in sockets:
                each.close()
            raise
        return cls(sockets, Counts.create(size))

    @property
    def address(self) -> str:
        """All of its addresses, with the ports that were chosen for 0."""
        return ",".join(dict.fromkeys(address for address, _ in self.sockets))

    @property
    def descriptors(self) -> list[int]:
        """Of the files that a process needs to take part."""
        return [self.counts.descriptor, *(opened.fileno() for _, opened in self.sockets)]

    def handed_down(self) -> str:
        """Itself as text, for a process that inherits the `descriptors` under the same numbers."""
        sockets = ",".join(f"{opened.fileno()}={address}" for address, opened in self.sockets)
        return f"{self.counts.descriptor}:{self.counts.size}:{sockets}"

    @classmethod
    def inherited(cls, text: str) -> SharedPort:
        """The other end of `handed_down`."""
        descriptor, size, sockets = text.split(":", 2)
        found: list[tuple[str, socket.socket]] = []
        for part in sockets.split(","):
            number, _, address = part.partition("=")
            found.append((address, socket.socket(fileno=int(number))))
        for each in (int(descriptor), *(opened.fileno() for _, opened in found)):
            os.set_inheritable(each, False)
        return cls(found, Counts(int(descriptor), int(size)))

    def absent(self, index: int) -> None:
        """Process number *index* has ended: the others need not wait for it."""
        self.counts.set(index, ABSENT)

    def close(self, *, remove: bool = False) -> None:
        """Let go of it. With *remove*, which is for who opened it, socket files go too."""
        for address, opened in self.sockets:
            opened.close()
            if remove and address.startswith("unix:"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(address.removeprefix("unix:"))
        self.counts.close()


class Turn:
    """Of one process among those that share a port: how many connections it has, and whether others have fewer."""

    def __init__(self, counts: Counts, index: int) -> None:
        self._counts = counts
        self._index = index

    def count(self, count: int) -> None:
        """So many connections has this process now."""
        self._counts.set(self._index, count)

    def others_first(self) -> bool:
        fewest = self._counts.fewest(self._index)
        return fewest is not None and fewest < self._counts.of(self._index)

    def leave(self) -> None:
        """The rest is for the other processes."""
        self._counts.set(self._index, ABSENT)


class Accepting:
    """Takes connections from listening *sockets*, which stay somebody else's to close.

    *accepted* gets each of them. With a *turn*, connections are left to processes that have fewer.
    """

    def __init__(
        self, sockets: Iterable[socket.socket], accepted: Callable[[socket.socket], None], turn: Turn | None = None
    ) -> None:
        self._sockets = tuple(sockets)
        self._accepted = accepted
        self._turn = turn
        self._timers: dict[socket.socket, asyncio.TimerHandle] = {}
        self._loop = asyncio.get_running_loop()
        for opened in self._sockets:
            self._loop.add_reader(opened, self._readable, opened)

    def stop(self) -> None:
        if self._turn is not None:
            self._turn.leave()
        for opened in self._sockets:
            self._loop.remove_reader(opened)
        for timer in self._timers.values():
            timer.cancel()

    def _readable(self, opened: socket.socket) -> None:
        if self._turn is not None and self._turn.others_first():
            self._pause(opened, YIELD)
        else:
            self._accept(opened)

    def _accept(self, opened: socket.socket) -> None:
        try:
            connection, _ = opened.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another process was faster, or its peer has gone
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                raise
            log.error("no connection was accepted: %s. The next attempt is in %g s.", error, TIRED)
            self._pause(opened, TIRED)
            return
        connection.setblocking(False)
        self._accepted(connection)

    def _pause(self, opened: socket.socket, seconds: float) -> None:
        self._loop.remove_reader(opened)
        self._timers[opened] = self._loop.call_later(seconds, self._resume, opened)

    def _resume(self, opened: socket.socket) -> None:
        del self._timers[opened]
        self._loop.add_reader(opened, self._readable, opened)
        # What waits still is what the others had their chance to take.
        self._accept(opened)
