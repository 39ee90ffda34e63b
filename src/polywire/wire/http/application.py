"""What a listener serves over HTTP: REST routes, the Connect protocol, and a few plain paths for probes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from polywire.clock import SYSTEM_CLOCK, Clock
from polywire.errors import SetupError
from polywire.net.stream import Head, Headers, Receiver, Stream
from polywire.wire.http.body import Ignoring
from polywire.wire.http.connect_server import ConnectServer
from polywire.wire.http.rest_server import COMPRESS_ABOVE, RestServer, Target, respond
from polywire.wire.seam import Dispatcher

Plain = Callable[[], tuple[int, str, bytes]]
"""Answers a GET at once with a status, a content type and a body; it must not raise."""


class HttpApplication:
    """An `Application`: the Connect form of every rpc, its REST routes, and *plain* handlers by path (`/livez`).

    Raises SetupError where two of them claim one path. *compress_above*: answers of more bytes are compressed for
    callers that accept gzip; None never does.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        *,
        plain: Mapping[str, Plain] | None = None,
        clock: Clock = SYSTEM_CLOCK,
        compress_above: int | None = COMPRESS_ABOVE,
    ) -> None:
        self._rest = RestServer(dispatcher, clock=clock, compress_above=compress_above)
        self._connect = ConnectServer(dispatcher, clock=clock, compress_above=compress_above)
        self._plain: dict[bytes, _PlainTarget] = {}
        for path, handler in (plain or {}).items():
            self.add_plain(path, handler)

    def add_plain(self, path: str, handler: Plain) -> None:
        """Answer `GET path` (and HEAD) with what *handler* returns. Raises SetupError where a route has that path."""
        if not path.startswith("/") or not path.isascii() or any(character in path for character in "{}?#% "):
            raise SetupError(f"{path!r} cannot be served: a plain path begins with '/' and is matched as it is.")
        taken = self._rest.route_at("GET", path)
        if taken is not None or path.encode() in self._plain:
            raise SetupError(f"{path!r} cannot be served: {taken or 'it'} has that path already. Choose another one.")
        self._plain[path.encode()] = _PlainTarget(self._rest, path, handler)

    def __call__(self, stream: Stream) -> Receiver:
        head = stream.head
        target = head.memo
        if not isinstance(target, Target):
            target = head.memo = self._target(head)
        return target.begin(stream)

    def _target(self, head: Head) -> Target:
        path = head.path.partition(b"?")[0]
        plain = self._plain.get(path)
        if plain is not None:
            return plain if head.method in (b"GET", b"HEAD") else plain.refusal(head)
        return self._connect.target(head, path) or self._rest.target(head)


class _PlainTarget(Target):
    """A path answered without a call."""

    __slots__ = ("_handler", "_headers", "_path", "_rest")

    def __init__(self, rest: RestServer, path: str, handler: Plain) -> None:
        self._rest = rest
        self._path = path
        self._handler = handler
        self._headers: dict[tuple[int, str], Headers] = {}

    def refusal(self, head: Head) -> Target:
        return self._rest.not_found(head.method.decode("latin-1"), self._path, {"GET"})

    def begin(self, stream: Stream) -> Receiver:
        status, content_type, body = self._handler()
        headers = self._headers.get((status, content_type))
        if headers is None:
            fields = [(b":status", b"%d" % status), (b"content-type", content_type.encode("latin-1"))]
            headers = Headers([*fields, (b"cache-control", b"no-store")])
            if len(self._headers) < 16:
                self._headers[status, content_type] = headers
        respond(stream, headers, (), body)
        return Ignoring(stream)
