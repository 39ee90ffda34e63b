"""Hints between processes that share a file of the bus: a datagram that says where to look."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import sys
from collections.abc import Collection

_LONGEST = 100
"""Bytes of a socket's path; the systems allow 104 to 108."""
_READ = 64
"""Hints taken at once; what is left wakes us again."""


class Doorbell:
    """Where one process hears that something may have come for it.

    A hint may be lost, come late or lie: whoever waits looks for itself now and then. On Linux the sockets have names
    without files; elsewhere they are files beside the bus, and those of processes that are gone are removed.
    """

    def __init__(self, path: str, secret: str) -> None:
        """*secret* is the file's own, so that nobody rings who cannot read it."""
        self._prefix = f"\0polywire-bus-{secret}-" if sys.platform == "linux" else f"{path}-wake-"
        self.name = f"{os.getpid()}-{secrets.token_hex(4)}"
        self.socket: socket.socket | None = None
        self._sender: socket.socket | None = None
        if len(os.fsencode(self._prefix + self.name)) <= _LONGEST:
            self._open()

    def _open(self) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        self.socket.bind(self._prefix + self.name)
        self._sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sender.setblocking(False)

    def ring(self, names: Collection[str], channel: str) -> None:
        """Tell those to look at *channel*. Never waits: a full socket has hints enough."""
        if self._sender is None:
            return
        hint = channel.encode()
        for name in names:
            try:
                self._sender.sendto(hint, self._prefix + name)
            except (ConnectionRefusedError, FileNotFoundError):
                self._remove(name)
            except OSError:
                continue

    def heard(self) -> set[str]:
        """The channels that were hinted at since the last time."""
        found: set[str] = set()
        if self.socket is None:
            return found
        with contextlib.suppress(BlockingIOError):
            for _ in range(_READ):
                found.add(self.socket.recv(64).decode("ascii", "replace"))
        return found

    def close(self) -> None:
        if self.socket is not None:
            self._remove(self.name)
        self.drop()

    def drop(self) -> None:
        """Close our copies only, as a forked child does."""
        for opened in (self.socket, self._sender):
            if opened is not None:
                opened.close()
        self.socket = self._sender = None

    def _remove(self, name: str) -> None:
        if not self._prefix.startswith("\0"):
            with contextlib.suppress(OSError):
                os.unlink(self._prefix + name)
