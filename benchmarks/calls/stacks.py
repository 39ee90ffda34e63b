"""The stacks that are compared: for each, how to serve the order and how to call for it.

A stack is a module-level entry of `STACKS`. `serve(port)` runs until the process is killed; `connect(port)` is an async
context manager around two callables, `get()` (small request, order back) and `post()` (order both ways), each of which
returns the decoded, typed order. `stream(count)`, where there is one, reads a server stream of that many orders.
Every import of a stack's own libraries is inside its functions, so that no stack pays for another's.
"""

from __future__ import annotations

import asyncio
import importlib.util
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from benchmarks.calls.contract import ORDER, QUERY, Orders, OrderService, WatchQuery
from benchmarks.messages import Order


@dataclass(frozen=True, slots=True)
class Calls:
    get: Callable[[], Awaitable[Any]]
    post: Callable[[], Awaitable[Any]]
    stream: Callable[[int], Awaitable[int]] | None = None


@dataclass(frozen=True, slots=True)
class Stack:
    serve: Callable[[int], None]
    connect: Callable[[int], AbstractAsyncContextManager[Calls]]
    uvloop: bool = True


# polywire


def _serve_polywire(port: int) -> None:
    """As shipped: deadline, counters, request id and an access line per call, to a file as a log collector reads it."""
    from polywire.net.loop import run
    from polywire.server import Server

    async def main() -> None:
        server = Server([OrderService()], name="orders", access_log=_access_log())
        await server.start(f"127.0.0.1:{port}")
        await asyncio.Event().wait()

    run(main())


def _access_log() -> Any:
    """To a file that is gone with the process."""
    from polywire.telemetry.access_log import AccessLog

    file = tempfile.TemporaryFile("w")  # noqa: SIM115 - it lives as long as the process
    return AccessLog(file.write, format="json", service="orders")


def _polywire(wire: Literal["grpc", "connect", "http"]) -> Callable[[int], AbstractAsyncContextManager[Calls]]:
    @asynccontextmanager
    async def connected(port: int) -> AsyncIterator[Calls]:
        from polywire.connecting import connect

        async with connect(Orders, f"127.0.0.1:{port}", wire=wire) as orders:
            yield _calls(orders)

    return connected


def _calls(orders: Orders) -> Calls:
    async def stream(count: int) -> int:
        seen = 0
        async for _ in orders.watch(WatchQuery(order_id=ORDER.id, count=count)):
            seen += 1
        return seen

    return Calls(get=lambda: orders.get(QUERY), post=lambda: orders.put(ORDER), stream=stream)


@asynccontextmanager
async def _polywire_local(port: int) -> AsyncIterator[Calls]:
    """The client and the service in one process, over the local wire."""
    from polywire.channel import Channel, Endpoints
    from polywire.client import client_for
    from polywire.discovery import StaticResolver
    from polywire.services import Services
    from polywire.wire.local import LocalWire

    services = Services([OrderService()], access_log=_access_log())
    channel = Channel("orders", Endpoints(StaticResolver(["local"]), lambda _: LocalWire(services)))
    yield _calls(client_for(Orders, channel))
    await channel.close()


# grpcio


def _grpc_modules() -> tuple[ModuleType, ModuleType]:
    """The generated code for `orders.proto`, made once per process."""
    import grpc_tools
    from grpc_tools import protoc

    target = tempfile.mkdtemp(prefix="polywire-bench-")
    source = Path(__file__).parent
    known = Path(grpc_tools.__file__).parent / "_proto"
    arguments = [
        "protoc",
        f"-I{source}",
        f"-I{known}",
        f"--python_out={target}",
        f"--grpc_python_out={target}",
        "orders.proto",
    ]
    if protoc.main(arguments):
        raise SystemExit("protoc failed")
    sys.path.insert(0, target)
    found = []
    for name in ("orders_pb2", "orders_pb2_grpc"):
        spec = importlib.util.spec_from_file_location(name, Path(target) / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        found.append(module)
    return found[0], found[1]


def _pb_order(pb: Any) -> Any:
    """The same order as a message of the generated code, through its bytes."""
    from polywire.codec import codec_for

    return pb.Order.FromString(codec_for(Order, "proto").encode(ORDER))


def _serve_grpc_aio(port: int) -> None:
    import grpc.aio

    pb, stubs = _grpc_modules()
    order = _pb_order(pb)

    class Service(stubs.OrdersServicer):  # type: ignore[name-defined,misc]  # generated at run time
        async def Get(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's spelling
            return order

        async def Put(self, request: Any, context: Any) -> Any:  # noqa: N802 - grpcio's names
            return request

        async def Watch(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802 - grpcio's names
            for _ in range(request.count):
                yield order

    async def main() -> None:
        server = grpc.aio.server()
        stubs.add_OrdersServicer_to_server(Service(), server)
        server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        await server.wait_for_termination()

    asyncio.run(main())


def _serve_grpc_threads(port: int) -> None:
    from concurrent.futures import ThreadPoolExecutor

    import grpc

    pb, stubs = _grpc_modules()
    order = _pb_order(pb)

    class Service(stubs.OrdersServicer):  # type: ignore[name-defined,misc]  # generated at run time
        def Get(self, request: Any, context: Any) -> Any:  # noqa: N802 - grpcio's names
            return order

        def Put(self, request: Any, context: Any) -> Any:  # noqa: N802 - grpcio's names
            return request

    server = grpc.server(ThreadPoolExecutor(max_workers=16))
    stubs.add_OrdersServicer_to_server(Service(), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    server.wait_for_termination()


@asynccontextmanager
async def _grpc_aio(port: int) -> AsyncIterator[Calls]:
    import grpc.aio

    pb, stubs = _grpc_modules()
    order = _pb_order(pb)
    query = pb.OrderQuery(order_id=ORDER.id)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = stubs.OrdersStub(channel)

        async def stream(count: int) -> int:
            seen = 0
            async for _ in stub.Watch(pb.WatchQuery(order_id=ORDER.id, count=count)):
                seen += 1
            return seen

        yield Calls(get=lambda: stub.Get(query, timeout=10), post=lambda: stub.Put(order, timeout=10), stream=stream)


# JSON over HTTP/1.1


def _serve_fastapi(port: int) -> None:
    import uvicorn
    from benchmarks.calls.fastapi_app import app

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False, timeout_keep_alive=75)


def _serve_asgi(port: int) -> None:
    import msgspec
    import uvicorn

    encode = msgspec.json.Encoder().encode
    decode = msgspec.json.Decoder(Order).decode
    headers = [(b"content-type", b"application/json")]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        answer: Order = ORDER
        if scope["method"] == "POST":
            message = await receive()
            body = message["body"]
            while message.get("more_body"):
                message = await receive()
                body += message["body"]
            answer = decode(body)
        body = encode(answer)
        length = (b"content-length", str(len(body)).encode())
        await send({"type": "http.response.start", "status": 200, "headers": [*headers, length]})
        await send({"type": "http.response.body", "body": body})

    uvicorn.run(
        app, host="127.0.0.1", port=port, log_level="warning", access_log=False, lifespan="off", timeout_keep_alive=75
    )


@asynccontextmanager
async def _aiohttp(port: int) -> AsyncIterator[Calls]:
    import aiohttp
    import msgspec

    encode = msgspec.json.Encoder().encode
    decode = msgspec.json.Decoder(Order).decode
    base = f"http://127.0.0.1:{port}/orders"
    headers = {"content-type": "application/json"}
    timeout = aiohttp.ClientTimeout(total=10)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:

        async def get() -> Order:
            async with session.get(f"{base}/{ORDER.id}") as response:
                return decode(await response.read())

        async def post() -> Order:
            async with session.post(base, data=encode(ORDER), headers=headers) as response:
                return decode(await response.read())

        yield Calls(get=get, post=post)


@asynccontextmanager
async def _httpx(port: int) -> AsyncIterator[Calls]:
    import httpx
    import msgspec

    encode = msgspec.json.Encoder().encode
    decode = msgspec.json.Decoder(Order).decode
    base = f"http://127.0.0.1:{port}/orders"
    headers = {"content-type": "application/json"}
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(timeout=10, limits=limits) as client:

        async def get() -> Order:
            return decode((await client.get(f"{base}/{ORDER.id}")).content)

        async def post() -> Order:
            return decode((await client.post(base, content=encode(ORDER), headers=headers)).content)

        yield Calls(get=get, post=post)


def _serve_nothing(port: int) -> None:
    raise SystemExit("the local wire has no server")


STACKS: dict[str, Stack] = {
    "polywire gRPC": Stack(_serve_polywire, _polywire("grpc")),
    "polywire Connect": Stack(_serve_polywire, _polywire("connect")),
    "polywire REST": Stack(_serve_polywire, _polywire("http")),
    "polywire in-process": Stack(_serve_nothing, _polywire_local),
    "grpcio asyncio": Stack(_serve_grpc_aio, _grpc_aio, uvloop=False),
    "grpcio threads": Stack(_serve_grpc_threads, _grpc_aio, uvloop=False),
    "aiohttp -> FastAPI": Stack(_serve_fastapi, _aiohttp),
    "httpx -> FastAPI": Stack(_serve_fastapi, _httpx),
    "aiohttp -> raw ASGI": Stack(_serve_asgi, _aiohttp),
}
