"""Addresses for services that were given none, and a note of where each one is for whoever asks later."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

NOTE = Path(".polywire") / "up.json"
"""Relative to the directory of the system file."""


class Reservations:
    """Free ports of this machine, kept from others until `close`.

    On Linux a socket that is bound but does not listen keeps its port while the service binds to it as well, each time
    it starts. Elsewhere that is refused, so the port is only chosen here, and free again before the service starts.
    """

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []

    def reserve(self, host: str = "127.0.0.1") -> str:
        held = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind((host, 0))
        self._sockets.append(held)
        return f"{host}:{held.getsockname()[1]}"

    def release_where_needed(self) -> None:
        """To be called once all are reserved, before the first service starts."""
        if not os.path.exists("/proc/self/ns"):
            self.close()

    def close(self) -> None:
        for held in self._sockets:
            held.close()
        self._sockets.clear()


def write_note(directory: Path, addresses: Mapping[str, str]) -> None:
    """Tell others on this machine where the services are that this process runs."""
    path = directory / NOTE
    path.parent.mkdir(exist_ok=True)
    kept = {name: place for name, place in _read(path).items() if _alive(place) and name not in addresses}
    kept |= {name: {"address": address, "pid": os.getpid()} for name, address in addresses.items()}
    _replace(path, kept)


def remove_note(directory: Path) -> None:
    """Take back what `write_note` of this process told."""
    path = directory / NOTE
    kept = {name: place for name, place in _read(path).items() if place.get("pid") != os.getpid() and _alive(place)}
    with contextlib.suppress(OSError):
        if kept:
            _replace(path, kept)
        else:
            path.unlink(missing_ok=True)


def noted(directory: Path) -> dict[str, str]:
    """Where services run now that some `polywire up` started from *directory*, by name."""
    return {name: str(place["address"]) for name, place in _read(directory / NOTE).items() if _alive(place)}


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {name: place for name, place in content.items() if isinstance(place, dict) and "address" in place}


def _replace(path: Path, content: Mapping[str, Any]) -> None:
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
        json.dump(content, file, indent=1)
    os.replace(file.name, path)


def _alive(place: Mapping[str, Any]) -> bool:
    pid = place.get("pid")
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def urls(address: str, *, secure: bool) -> Iterable[str]:
    """A bound address as people paste it."""
    for part in address.split(","):
        if part.startswith("unix:"):
            yield part
        else:
            host, _, port = part.rpartition(":")
            shown = "127.0.0.1" if host in ("0.0.0.0", "[::]") else host
            yield f"{'https' if secure else 'http'}://{shown}:{port}"
