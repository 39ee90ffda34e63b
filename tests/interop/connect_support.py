"""The rig of `grpc_support` spoken to, and served, by connectrpc: its client, and its server on uvicorn."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from grpc_support import SOON, Rig, RigService, generated, until, untyped

from polywire.channel import CallDefaults, Channel, Endpoints
from polywire.client import client_for
from polywire.discovery import StaticResolver
from polywire.net.listener import Listener
from polywire.net.pool import Pool, Version
from polywire.policy.retry import Retry
from polywire.services import Services
from polywire.wire.http import ConnectWire, HttpApplication

connectrpc = untyped("connectrpc.client")
codecs = untyped("connectrpc.compat")
errors = untyped("connectrpc.errors")
methods = untyped("connectrpc.method")
servers = untyped("connectrpc.server")
Code = untyped("connectrpc.code").Code
pyqwest = untyped("pyqwest")
uvicorn = untyped("uvicorn")

Encoding = Literal["proto", "json"]
SERVICE = "interop.v1.Rig"
_KINDS = {
    "Echo": "UNARY",
    "Fail": "UNARY",
    "Wait": "UNARY",
    "Count": "SERVER_STREAM",
    "Total": "CLIENT_STREAM",
    "Chat": "BIDI_STREAM",
}


def item(**fields: Any) -> Any:
    return generated()[0].Item(**fields)


def method(name: str) -> Any:
    """What connectrpc wants to know of one method of the rig."""
    levels = methods.IdempotencyLevel
    return methods.MethodInfo(
        name=name,
        service_name=SERVICE,
        input=generated()[0].Item,
        output=generated()[0].Item,
        idempotency_level=levels.NO_SIDE_EFFECTS if name == "Echo" else levels.UNKNOWN,
        stream_type=getattr(methods.StreamType, _KINDS[name]),
    )


@dataclass
class Ours:
    """The rig behind one of our listeners."""

    address: str
    service: RigService


@asynccontextmanager
async def our_server(**options: Any) -> AsyncIterator[Ours]:
    rig = RigService()
    services = Services([rig], **options)
    listener = Listener(HttpApplication(services, compress_above=100))
    bound = await listener.start("127.0.0.1:0")
    try:
        yield Ours(bound, rig)
    finally:
        listener.close()
        await services.finish(0)


def _codec(encoding: Encoding) -> Any:
    return codecs.google_protobuf_binary_codec() if encoding == "proto" else codecs.google_protobuf_json_codec()


@asynccontextmanager
async def their_client(
    address: str, *, version: Version = "2", encoding: Encoding = "proto", **options: Any
) -> AsyncIterator[Any]:
    http = pyqwest.HTTPVersion.HTTP2 if version == "2" else pyqwest.HTTPVersion.HTTP1
    transport = pyqwest.HTTPTransport(http_version=http)
    async with connectrpc.ConnectClient(
        f"http://{address}", codec=_codec(encoding), http_client=pyqwest.Client(transport), **options
    ) as client:
        yield client


@asynccontextmanager
async def our_client(
    address: str, *, version: Version = "2", encoding: Encoding = "proto", compress: bool = False
) -> AsyncIterator[Rig]:
    def open_wire(at: str) -> ConnectWire:
        return ConnectWire(Pool(at, version=version), encoding=encoding, compress=compress)

    channel = Channel(
        "rig", Endpoints(StaticResolver([address]), open_wire), defaults=CallDefaults(retry=Retry(attempts=1))
    )
    try:
        yield client_for(Rig, channel)
    finally:
        await channel.close()


@dataclass
class Theirs:
    """The rig as connectrpc's users write it."""

    events: list[str] = field(default_factory=list)
    headers: list[Mapping[str, str]] = field(default_factory=list)
    timeouts: list[float | None] = field(default_factory=list)

    def _seen(self, context: Any) -> None:
        self.headers.append(dict(context.request_headers))
        self.timeouts.append(context.timeout_ms)

    async def echo(self, request: Any, context: Any) -> Any:
        self._seen(context)
        context.response_headers["x-leading"] = "before"
        context.response_trailers["x-trailing"] = "after"
        return request

    async def fail(self, request: Any, context: Any) -> Any:
        context.response_trailers["x-trailing"] = "after"
        raise _error(request.text)

    async def wait(self, request: Any, context: Any) -> Any:
        self.events.append("wait started")
        try:
            await asyncio.Event().wait()
        finally:
            self.events.append("wait ended")

    async def count(self, request: Any, context: Any) -> AsyncIterator[Any]:
        context.response_headers["x-leading"] = "before"
        context.response_trailers["x-trailing"] = "after"
        try:
            for number in range(request.number):
                if request.text == "fail" and number == 2:
                    raise _error("out_of_range")
                yield item(text=request.text, number=number, data=request.data)
        finally:
            self.events.append("count ended")

    async def total(self, requests: AsyncIterator[Any], context: Any) -> Any:
        total = size = 0
        async for request in requests:
            total += request.number
            size += len(request.data)
        return item(text=str(size), number=total)

    async def chat(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            yield request


def _error(code: str) -> Any:
    info = untyped("protobuf.wkt").Any(
        type_url="type.googleapis.com/google.rpc.ErrorInfo",
        value=untyped("google.rpc.error_details_pb2").ErrorInfo(reason="ASKED_FOR", domain="t").SerializeToString(),
    )
    return errors.ConnectError(Code(code), f"failed with {code}: 100 % ✓", [info])


class _Application(servers.ConnectASGIApplication):  # type: ignore[misc,name-defined]  # connectrpc is taken untyped
    path = f"/{SERVICE}"

    def __init__(self, service: Theirs) -> None:
        kinds = servers.Endpoint
        makers = {
            "UNARY": kinds.unary,
            "SERVER_STREAM": kinds.server_stream,
            "CLIENT_STREAM": kinds.client_stream,
            "BIDI_STREAM": kinds.bidi_stream,
        }
        super().__init__(
            service=service,
            codecs=codecs.google_protobuf_codecs(),
            endpoints=lambda served: {
                f"/{SERVICE}/{name}": makers[kind](method=method(name), function=getattr(served, name.lower()))
                for name, kind in _KINDS.items()
            },
        )


@asynccontextmanager
async def their_server() -> AsyncIterator[tuple[str, Theirs]]:
    """The rig as connectrpc serves it, over HTTP/1.1 and HTTP/2: its address, and the service."""
    service = Theirs()
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    config = uvicorn.Config(
        _Application(service), http="zttp", http2=True, lifespan="off", log_level="critical", ws="none", loop="none"
    )
    server = uvicorn.Server(config)
    task = asyncio.ensure_future(server._serve(sockets=[listening]))
    try:
        await until(lambda: server.started or task.done())
        yield f"127.0.0.1:{listening.getsockname()[1]}", service
    finally:
        server.should_exit = server.force_exit = True
        await asyncio.wait_for(task, SOON)
        listening.close()
