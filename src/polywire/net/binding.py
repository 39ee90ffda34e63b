"""Listening sockets: opened, and explained where they cannot be."""

from __future__ import annotations

import errno
import os
import socket
import stat
from typing import Any

from polywire.errors import SetupError
from polywire.net.address import Address

BACKLOG = 1024
"""Connections that may wait to be accepted."""


def open_listening(place: Address) -> list[socket.socket]:
    """Sockets that listen on *place*, one for each address of its host. Raises SetupError saying why they cannot."""
    if place.resolve:
        raise SetupError(f"cannot listen on {place}: dns:/// is for clients. Write the host and port to bind.")
    opened: list[socket.socket] = []
    try:
        if place.path:
            remove_stale(place.path)
            opened.append(_listening(socket.AF_UNIX, place.path))
        else:
            _listen_on_host(place, opened)
    except OSError as error:
        for each in opened:
            each.close()
        raise SetupError(f"cannot listen on {place}: {explain(error, place)}") from error
    return opened


def _listen_on_host(place: Address, opened: list[socket.socket]) -> None:
    port = place.port
    found = socket.getaddrinfo(place.host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, (host, _, *rest) in dict.fromkeys((family, address) for family, _, _, _, address in found):
        opened.append(_listening(family, (host, port, *rest)))
        # A port that was chosen for 0 is that of all.
        port = opened[0].getsockname()[1]


def _listening(family: socket.AddressFamily, address: Any) -> socket.socket:
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family != socket.AF_UNIX:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # `::` is not for version 4, which may have a socket of its own.
            opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        opened.bind(address)
        opened.listen(BACKLOG)
        opened.setblocking(False)
    except BaseException:
        opened.close()
        raise
    return opened


def bound(place: Address, opened: socket.socket) -> str:
    """*place*, with the port that was chosen for a 0."""
    return str(place) if place.path else str(Address(host=place.host, port=opened.getsockname()[1]))


def remove_stale(path: str) -> None:
    """Remove the socket file of a process that is gone. Raises OSError if one is there that must stay."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EEXIST, "not a socket")
    with socket.socket(socket.AF_UNIX) as probe:
        # A live listener takes it at once, or its queue is full: both mean that someone is there.
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass
    raise OSError(errno.EADDRINUSE, "in use")


def explain(error: OSError, place: Address) -> str:
    """Why *place* cannot be listened on, and what to do."""
    what = "socket" if place.path else "port"
    if error.errno == errno.EADDRINUSE:
        return f"the {what} is in use by another process. Stop it, or set `listen` of the service to another address."
    if error.errno == errno.EEXIST:
        return "a file that is not a socket is there. Remove it, or choose another path."
    if error.errno in (errno.EACCES, errno.EPERM):
        if place.path:
            return "permission denied. Choose a directory that this user may write to."
        return "permission denied. Ports below 1024 need privileges; choose a higher one."
    if isinstance(error, socket.gaierror):
        return f"the host {place.host!r} cannot be resolved. 127.0.0.1 is this machine alone, 0.0.0.0 every interface."
    if error.errno == errno.EADDRNOTAVAIL:
        return "this machine has no such address. 127.0.0.1 is this machine alone, 0.0.0.0 every interface."
    if error.errno == errno.ENOENT:
        return "the directory does not exist. Create it, or choose another path."
    return f"{(error.strerror or str(error)).lower()}."
