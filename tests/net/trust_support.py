"""Certificate authorities with files, and handshakes without sockets."""

from __future__ import annotations

import datetime
import os
import ssl
import time
from pathlib import Path
from typing import Any

import trustme


class Authority:
    """Signs certificates into the files of a directory. A certificate's file has its key too."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.root = trustme.CA()

    def trusted(self, name: str = "ca.pem", *others: Authority) -> Path:
        """A CA file with this authority, and *others*."""
        pem = b"".join(authority.root.cert_pem.bytes() for authority in (self, *others))
        return write(self.place / name, pem)

    def issue(
        self, file: str, *names: str, service: str | None = None, days: float = 30.0, at: float | None = None
    ) -> Path:
        """A certificate for the hosts *names* that proves *service* by its common name, with its key.

        It ends *days* after *at*, the time (Unix, seconds), which is now where none is given.
        """
        begin = datetime.datetime.fromtimestamp(time.time() if at is None else at, datetime.UTC)
        end = begin + datetime.timedelta(days=days)
        leaf = self.root.issue_cert(*names, common_name=service, not_after=end)
        return write(self.place / file, leaf.private_key_and_cert_chain_pem.bytes())


def write(path: Path, data: bytes) -> Path:
    """Put *data* in the place of *path* at once, readable by its owner alone, as whoever rotates should."""
    fresh = path.with_suffix(".new")
    fresh.write_bytes(data)
    fresh.chmod(0o600)
    os.replace(fresh, path)
    return path


def handshake(client: ssl.SSLContext, server: ssl.SSLContext, name: str = "localhost") -> tuple[Any, Any]:
    """The certificates that either side saw of the other. Raises SSLError where one refused."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(down, up, server_side=False, server_hostname=name)
    theirs = server.wrap_bio(up, down, server_side=True)
    for side in (ours, theirs, ours, theirs):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    return ours.getpeercert(), theirs.getpeercert()
