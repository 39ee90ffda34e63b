"""A contract with a method of each kind that all behave alike; both we and grpcio serve it and call it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from grpc_support import SOON, grpc, until, untyped

from polywire import Contract, Message, Server, rpc
from polywire.channel import CallDefaults, Channel, Endpoints
from polywire.client import client_for
from polywire.codec import codec_for
from polywire.context import current
from polywire.contract.details import ErrorInfo
from polywire.discovery import StaticResolver
from polywire.errors import BY_CODE
from polywire.net.pool import Pool
from polywire.policy.retry import Retry
from polywire.wire.grpc.client import GrpcWire

KINDS = ["Single", "Answers", "Requests", "Both"]
"""One method of each kind: unary, server streaming, client streaming, bidirectional."""
UNLIMITED = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))

any_pb2 = untyped("google.protobuf.any_pb2")
code_pb2 = untyped("google.rpc.code_pb2")
error_details_pb2 = untyped("google.rpc.error_details_pb2")
status_pb2 = untyped("google.rpc.status_pb2")
rpc_status = untyped("grpc_status.rpc_status")


class Ask(Message, package="interop.v1"):
    text: str = ""
    data: bytes = b""


class Kinds(Contract, package="interop.v1"):
    """`wait` in the text waits for ever, `fail CODE` fails, all else comes back; so does metadata `x-echo...`."""

    @rpc
    async def single(self, ask: Ask) -> Ask:
        raise NotImplementedError

    @rpc
    def answers(self, ask: Ask) -> AsyncIterator[Ask]:
        raise NotImplementedError

    @rpc
    async def requests(self, asks: AsyncIterator[Ask]) -> Ask:
        raise NotImplementedError

    @rpc
    def both(self, asks: AsyncIterator[Ask]) -> AsyncIterator[Ask]:
        raise NotImplementedError


@dataclass
class Noted:
    """What happened to the handlers of one side."""

    started: int = 0
    cancelled: int = 0
    left: list[float | None] = field(default_factory=list)

    async def wait(self) -> None:
        self.started += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


class KindsService(Kinds):
    def __init__(self) -> None:
        self.noted = Noted()

    async def _act(self, ask: Ask) -> Ask:
        call = current()
        self.noted.left.append(call.time_left())
        for name, value in call.metadata.pairs():
            if name.startswith("x-echo"):
                call.respond_with(name, value)
                call.trail_with(name, value)
        if ask.text.startswith("fail "):
            code = ask.text.removeprefix("fail ")
            raise BY_CODE[code](f"failed: {code} ✓", details=[ErrorInfo(reason="ASKED_FOR", domain="interop.test")])
        if ask.text == "wait":
            await self.noted.wait()
        return ask

    async def single(self, ask: Ask) -> Ask:
        return await self._act(ask)

    async def answers(self, ask: Ask) -> AsyncIterator[Ask]:
        yield await self._act(ask)
        yield ask

    async def requests(self, asks: AsyncIterator[Ask]) -> Ask:
        last = Ask()
        async for ask in asks:
            last = await self._act(ask)
        return last

    async def both(self, asks: AsyncIterator[Ask]) -> AsyncIterator[Ask]:
        async for ask in asks:
            yield await self._act(ask)


class Servicer:
    """The same, as a user of grpcio writes it without generated code."""

    def __init__(self) -> None:
        self.noted = Noted()

    async def _act(self, ask: Ask, context: Any, *, first: bool = True) -> Ask:
        self.noted.left.append(context.time_remaining())
        echoed = [(name, value) for name, value in context.invocation_metadata() if name.startswith("x-echo")]
        if first and echoed:
            await context.send_initial_metadata(echoed)
            context.set_trailing_metadata(echoed)
        if ask.text.startswith("fail "):
            await context.abort_with_status(rpc_status.to_status(_status(ask.text.removeprefix("fail "))))
        if ask.text == "wait":
            await self.noted.wait()
        return ask

    async def single(self, ask: Ask, context: Any) -> Ask:
        return await self._act(ask, context)

    async def answers(self, ask: Ask, context: Any) -> AsyncIterator[Ask]:
        yield await self._act(ask, context)
        yield ask

    async def requests(self, asks: AsyncIterator[Ask], context: Any) -> Ask:
        last = Ask()
        first = True
        async for ask in asks:
            last = await self._act(ask, context, first=first)
            first = False
        return last

    async def both(self, asks: AsyncIterator[Ask], context: Any) -> AsyncIterator[Ask]:
        first = True
        async for ask in asks:
            yield await self._act(ask, context, first=first)
            first = False

    def handlers(self) -> Any:
        codec = codec_for(Ask, "proto")
        how = {"request_deserializer": codec.decode, "response_serializer": codec.encode}
        made = {
            "Single": grpc.unary_unary_rpc_method_handler(self.single, **how),
            "Answers": grpc.unary_stream_rpc_method_handler(self.answers, **how),
            "Requests": grpc.stream_unary_rpc_method_handler(self.requests, **how),
            "Both": grpc.stream_stream_rpc_method_handler(self.both, **how),
        }
        return grpc.method_handlers_generic_handler("interop.v1.Kinds", made)


def _status(code: str) -> Any:
    packed = any_pb2.Any()
    packed.Pack(error_details_pb2.ErrorInfo(reason="ASKED_FOR", domain="interop.test"))
    return status_pb2.Status(code=code_pb2.Code.Value(code.upper()), message=f"failed: {code} ✓", details=[packed])


async def several(asks: Sequence[Ask], *, open_end: bool) -> AsyncIterator[Ask]:
    for ask in asks:
        yield ask
    if open_end:
        await asyncio.Event().wait()


class Theirs:
    """grpcio's client of the kinds."""

    def __init__(self, channel: Any) -> None:
        codec = codec_for(Ask, "proto")
        how = {"request_serializer": codec.encode, "response_deserializer": codec.decode}
        makers = (channel.unary_unary, channel.unary_stream, channel.stream_unary, channel.stream_stream)
        self._methods = {
            kind: make(f"/interop.v1.Kinds/{kind}", **how) for kind, make in zip(KINDS, makers, strict=True)
        }

    def start(self, kind: str, *asks: Ask, open_end: bool = False, **options: Any) -> Any:
        """A call that has begun; *open_end* keeps a stream of requests open."""
        streams = kind in ("Requests", "Both")
        return self._methods[kind](several(asks, open_end=open_end) if streams else asks[0], **options)

    @staticmethod
    async def finish(call: Any) -> list[Ask]:
        """All answers."""
        async with asyncio.timeout(SOON):
            return [answer async for answer in call] if hasattr(call, "__aiter__") else [await call]


async def ours(client: Kinds, kind: str, *asks: Ask, open_end: bool = False) -> list[Ask]:
    """All answers of a call by our client."""
    async with asyncio.timeout(SOON):
        if kind == "Single":
            return [await client.single(asks[0])]
        if kind == "Answers":
            return [answer async for answer in client.answers(asks[0])]
        if kind == "Requests":
            return [await client.requests(several(asks, open_end=open_end))]
        return [answer async for answer in client.both(several(asks, open_end=open_end))]


@asynccontextmanager
async def grpcio_calling_us(*options: tuple[str, Any], **server_options: Any) -> AsyncIterator[tuple[Theirs, Any, Any]]:
    """grpcio's client, our service, and our server."""
    service = KindsService()
    server = Server([service], **server_options)
    address = await server.start("127.0.0.1:0")
    local = [("grpc.use_local_subchannel_pool", 1), *UNLIMITED, *options]
    try:
        async with grpc.aio.insecure_channel(address, options=local) as channel:
            yield Theirs(channel), service, server
    finally:
        await server.close()


@asynccontextmanager
async def us_calling_grpcio(**wire_options: Any) -> AsyncIterator[tuple[Kinds, Servicer, Any]]:
    """Our client, grpcio's servicer, and its server."""
    servicer = Servicer()
    server = grpc.aio.server(options=UNLIMITED)
    server.add_generic_rpc_handlers((servicer.handlers(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    endpoints = Endpoints(
        StaticResolver([f"127.0.0.1:{port}"]), lambda address: GrpcWire(Pool(address), **wire_options)
    )
    channel = Channel("kinds", endpoints, defaults=CallDefaults(retry=Retry(attempts=1)))
    try:
        yield client_for(Kinds, channel), servicer, server
    finally:
        await channel.close()
        await server.stop(None)


__all__ = ["KINDS", "Ask", "Kinds", "grpcio_calling_us", "ours", "until", "us_calling_grpcio"]
