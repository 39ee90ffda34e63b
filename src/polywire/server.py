"""One process's services on a port: which wire a request is for, when the service is ready, and how it stops."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from hmac import compare_digest
from typing import Any

from polywire.admission import Authenticator
from polywire.clock import SYSTEM_CLOCK, Clock
from polywire.context import Call
from polywire.contract.policies import Shedding
from polywire.interceptor import Interceptor
from polywire.net.listener import Listener
from polywire.net.sharing import SharedPort
from polywire.net.stream import Limits, Receiver, Stream
from polywire.net.tls import ServerTls
from polywire.services import MAX_MESSAGE_BYTES, STREAM_IDLE_TIMEOUT, AccessLog, Services
from polywire.wire.grpc.health import HealthService
from polywire.wire.grpc.protocol import is_grpc
from polywire.wire.grpc.reflection import reflection_services
from polywire.wire.grpc.route import CONTENT_TYPE_FIELD, Route
from polywire.wire.grpc.server import GrpcServer
from polywire.wire.http import HttpApplication

log = logging.getLogger("polywire.server")


class Server:
    """Serves *services* over gRPC, Connect and REST, all on the same port.

    *services* are instances of classes that implement contracts. Health (`grpc.health.v1`, and `GET /livez`, `/readyz`,
    `/healthz`) is always there and needs no credentials; reflection is there unless *public*. A *public* server asks
    nobody who they are and believes no principal. *authenticator* tells who calls, and *allow* names those who may call
    anything here at all; None is everybody.

    *interceptors* are around every handler of *services*, the first one outermost. *shedding* bounds how many calls
    are worked on at once; None is the default, and `Shedding(enabled=False)` no bound at all.

    It turns ready by itself once it listens; set `ready` to take it out of its callers' rotation and back.
    """

    def __init__(
        self,
        services: Iterable[object],
        *,
        name: str = "",
        limits: Limits | None = None,
        authenticator: Authenticator | None = None,
        allow: Iterable[str] | None = None,
        public: bool = False,
        reflection: bool | None = None,
        tls: ServerTls | None = None,
        clock: Clock = SYSTEM_CLOCK,
        access_log: AccessLog | None = None,
        interceptors: Sequence[Interceptor] = (),
        shedding: Shedding | None = None,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        stream_idle_timeout: float = STREAM_IDLE_TIMEOUT,
        also_ready: Callable[[], bool] | None = None,
    ) -> None:
        self.name = name
        self._also_ready = also_ready
        self.addresses: list[str] = []
        served = list(services)
        self._health = HealthService()
        reflects = not public if reflection is None else reflection
        self.services = Services(
            served,
            internal=[self._health, *(reflection_services(served) if reflects else ())],
            authenticator=authenticator,
            allow=allow,
            public=public,
            access_log=access_log,
            interceptors=interceptors,
            shedding=shedding,
            clock=clock,
            max_message_bytes=max_message_bytes,
            stream_idle_timeout=stream_idle_timeout,
        )
        self._grpc = GrpcServer(self.services, clock=clock)
        self._http = HttpApplication(
            self.services,
            clock=clock,
            plain={"/livez": _alive, "/readyz": self._readiness, "/healthz": self._readiness},
        )
        self._listener = Listener(self, limits=limits, tls=tls)
        self._ready = False

    @property
    def ready(self) -> bool:
        """Whether callers should send requests here."""
        return self._ready

    @ready.setter
    def ready(self, ready: bool) -> None:
        self._ready = ready
        for name in ("", *self.services.services):
            self._health.set(name, ready)

    def __call__(self, stream: Stream) -> Receiver:
        """The listener's application: gRPC by its content type, everything else by its path."""
        memo = stream.head.memo
        if type(memo) is Route or (memo is None and stream.version == "2" and _is_grpc(stream)):
            return self._grpc(stream)
        return self._http(stream)

    async def start(self, address: str) -> str:
        """Listen on *address* and turn ready. Returns the address with the port that was chosen for a 0.

        Raises SetupError where it cannot be listened on, saying why.
        """
        bound = await self._listener.start(address)
        self.addresses.extend(bound.split(","))
        self.ready = True
        return bound

    def share(self, port: SharedPort, index: int) -> None:
        """Take connections from *port* too, which several processes share; this one is number *index*. Turn ready."""
        self._listener.share(port, index)
        self.addresses.extend(port.address.split(","))
        self.ready = True

    def take_over(self, port: SharedPort) -> None:
        """Take connections from *port* too, beside the process whose place this one takes. Turn ready."""
        self._listener.take_over(port)
        self.addresses.extend(port.address.split(","))
        self.ready = True

    async def drain(self, *, delay: float = 0.0, grace: float = 30.0) -> None:
        """Stop without losing a request.

        Readiness goes off at once. For *delay* seconds everything is served as before, so that whoever sends requests
        here can find out. Then no connection is accepted, those that exist are told to go elsewhere, streams without a
        deadline end as `unavailable`, and the other calls under way have *grace* seconds to end.
        """
        self.ready = False
        if delay > 0:
            await asyncio.sleep(delay)
        self._health.close()
        self.services.end_streams()
        await self._listener.drain(grace)
        await self.services.finish(0.0)

    async def close(self) -> None:
        """Stop now; calls under way fail. May be called twice."""
        self.ready = False
        self._health.close()
        self._listener.close()
        await self.services.finish(0.0)
        await self._listener.wait_closed()

    def _readiness(self) -> tuple[int, str, bytes]:
        if not self._ready:
            return 503, "application/json", b'{"status":"not ready"}\n'
        if self._also_ready is None or self._also_ready():
            return 200, "application/json", b'{"status":"ready"}\n'
        return 503, "application/json", b'{"status":"not ready","consumers":"not ready"}\n'


def _alive() -> tuple[int, str, bytes]:
    return 200, "application/json", b'{"status":"alive"}\n'


def _is_grpc(stream: Stream) -> bool:
    for fields in (stream.head.fields, stream.tail):
        for name, value in fields:
            if name == CONTENT_TYPE_FIELD:
                return is_grpc(value)
    return False


class Certificates:
    """Tells services by the certificates that they show, where `ServerTls(client_ca=...)` asks for one.

    The names in a certificate are its DNS names and URIs, and the common name of its subject. The caller is the first
    of them that is among the *known* services; where none is, the first.
    """

    def __init__(self, known: Iterable[str] = ()) -> None:
        self._known = frozenset(known)

    def caller_of(self, call: Call) -> str | None:
        names = _names_in(call.peer_certificate or {})
        return next((name for name in names if name in self._known), names[0] if names else None)


def _names_in(certificate: Mapping[str, Any]) -> list[str]:
    names = [name for kind, name in certificate.get("subjectAltName", ()) if kind in ("DNS", "URI")]
    parts = (part for group in certificate.get("subject", ()) for part in group)
    return names + [value for kind, value in parts if kind == "commonName"]


class BearerTokens:
    """Tells services by the bearer tokens that they call with.

    *tokens* has a function for each service that returns its token now, or several while one takes the place of the
    other, so that tokens change without a restart. A token of two services proves neither.
    """

    def __init__(self, tokens: Mapping[str, Callable[[], str | Sequence[str]]]) -> None:
        self._tokens = dict(tokens)

    def caller_of(self, call: Call) -> str | None:
        scheme, _, given = (call.credentials or "").partition(" ")
        if scheme.lower() != "bearer" or not given:
            return None
        presented = given.strip().encode()
        found: set[str] = set()
        # All of them are compared, whichever matches, so that the time taken tells nothing.
        for service, tokens in self._tokens.items():
            valid = tokens()
            for token in (valid,) if isinstance(valid, str) else valid:
                expected = token.encode()
                if compare_digest(presented, expected) and expected:
                    found.add(service)
        return found.pop() if len(found) == 1 else None
