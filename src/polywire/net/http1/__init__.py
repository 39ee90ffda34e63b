"""HTTP/1.1 at the server and at the client."""

from __future__ import annotations

from polywire.net.http1.client import Http1ClientConnection
from polywire.net.http1.encode import Dateline
from polywire.net.http1.heads import HeadReader
from polywire.net.http1.server import Http1ServerProtocol

__all__ = ["Dateline", "HeadReader", "Http1ClientConnection", "Http1ServerProtocol"]
