"""The thread between a supervisor and the process of one service: a socket that both hold."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterable, Sequence

VARIABLE = "POLYWIRE_SUPERVISOR"
"""The number of the socket's file descriptor in the process of the service."""


class Supervised:
    """This process's end. It tells how it fares, and learns that its supervisor died by the socket's end."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    @classmethod
    def from_environment(cls) -> Supervised | None:
        """The end that a supervisor handed down, or None where nobody supervises this process."""
        descriptor = os.environ.pop(VARIABLE, "")
        if not descriptor.isdigit():
            return None
        connection = socket.socket(fileno=int(descriptor))
        connection.setblocking(True)
        os.set_inheritable(connection.fileno(), False)
        return cls(connection)

    def ready(self, address: str, *, serves: Sequence[str] = (), needs: Sequence[str] = ()) -> None:
        """It listens on *address*, and its code *serves* these contracts and *needs* these services."""
        self._tell({"serves": ",".join(serves), "needs": ",".join(needs)})
        self._tell({"ready": address})

    def loaded(self, files: Iterable[str]) -> None:
        """It has the code of these files."""
        self._tell({"files": "\n".join(files)})

    def failed(self, reason: str) -> None:
        self._tell({"failed": reason})

    def _tell(self, message: dict[str, str]) -> None:
        try:
            self._connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            return  # the supervisor has gone; `watch` finds out

    def watch(self, orphaned: Callable[[], object], *, patience: float) -> None:
        """Call *orphaned* from a thread once the supervisor has gone, and end the process *patience* seconds later.

        It is a thread so that a process goes away too whose event loop is stuck.
        """
        threading.Thread(target=self._watch, args=(orphaned, patience), name="supervisor", daemon=True).start()

    def _watch(self, orphaned: Callable[[], object], patience: float) -> None:
        with contextlib.suppress(OSError):  # an error says the same as the end: it has gone
            while self._connection.recv(64):
                pass
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process is about to end by itself
            orphaned()
        threading.Event().wait(patience)
        os._exit(1)


Message = dict[str, str]


def read_messages(data: bytes) -> tuple[list[Message], bytes]:
    """What arrived at the supervisor's end: whole messages, and the beginning of the next."""
    *lines, rest = data.split(b"\n")
    return [json.loads(line) for line in lines if line], rest
