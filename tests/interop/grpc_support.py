"""A contract for talking with grpcio, our two ends of it, and the stubs that grpcio generates from its `.proto`."""

from __future__ import annotations

import asyncio
import importlib
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from polywire import Breaker
from polywire.channel import CallDefaults, Channel, Endpoints
from polywire.client import client_for
from polywire.context import Call, current
from polywire.contract import Contract, Message, rpc, service_of
from polywire.contract.details import ErrorInfo
from polywire.contract.export import proto_files
from polywire.discovery import StaticResolver
from polywire.errors import BY_CODE, ResourceExhausted
from polywire.net.listener import Listener
from polywire.net.pool import Pool
from polywire.policy.retry import Retry
from polywire.services import Services
from polywire.wire.grpc.client import GrpcWire
from polywire.wire.grpc.server import GrpcServer

SOON = 20.0


def untyped(module: str) -> Any:
    """A module of grpcio's family, which comes without types, or with ones that know half of it."""
    return importlib.import_module(module)


grpc = untyped("grpc")


class Item(Message):
    text: str
    number: int = 0
    data: bytes = b""


class Rig(Contract, package="interop.v1"):
    """Methods of each kind, to be called and served by grpcio."""

    @rpc(idempotent=True)
    async def echo(self, item: Item) -> Item:
        """What it was sent; metadata of names that begin with `x-echo` comes back, before and after."""
        raise NotImplementedError

    @rpc
    async def fail(self, item: Item) -> Item:
        """Fails with the code in the text."""
        raise NotImplementedError

    @rpc
    async def wait(self, item: Item) -> Item:
        """Never answers."""
        raise NotImplementedError

    @rpc
    def count(self, item: Item) -> AsyncIterator[Item]:
        """As many items as the number says."""
        raise NotImplementedError

    @rpc
    async def total(self, items: AsyncIterator[Item]) -> Item:
        """The sum of the numbers, and the length of all data."""
        raise NotImplementedError

    @rpc
    def chat(self, items: AsyncIterator[Item]) -> AsyncIterator[Item]:
        """Each item, as it comes."""
        raise NotImplementedError


@dataclass
class RigService(Rig):
    """The rig as polywire serves it; it notes what happened to its handlers."""

    events: list[str] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    happened: asyncio.Event = field(default_factory=asyncio.Event)

    def note(self, event: str) -> None:
        self.events.append(event)
        self.happened.set()

    async def until(self, event: str) -> None:
        async with asyncio.timeout(SOON):
            while event not in self.events:
                self.happened.clear()
                await self.happened.wait()

    async def echo(self, item: Item) -> Item:
        call = current()
        self.calls.append(call)
        for name, value in call.metadata.pairs():
            if name.startswith("x-echo"):
                call.respond_with(name, value)
                call.trail_with(name, value)
        return item

    async def fail(self, item: Item) -> Item:
        details = [ErrorInfo(reason="ASKED_FOR", domain="interop.test", metadata={"text": item.text})]
        if item.text == "crash":
            raise ZeroDivisionError("a secret")
        if item.text == "pushback":
            raise ResourceExhausted("later", retry_after=2.5)
        raise BY_CODE[item.text](f"failed with {item.text}: 100 % ✓", details=details)

    async def wait(self, item: Item) -> Item:
        self.calls.append(current())
        self.note("wait started")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.note("wait cancelled")
            raise
        raise AssertionError

    async def count(self, item: Item) -> AsyncIterator[Item]:
        current().respond_with("x-leading", "before")
        current().trail_with("x-trailing-bin", b"\0after")
        try:
            for number in range(item.number):
                yield Item(text=item.text, number=number, data=item.data)
                if number == 0:
                    self.note("count started")
        except (asyncio.CancelledError, GeneratorExit):
            # The second one where it was cancelled while an item waited to be sent.
            self.note("count cancelled")
            raise
        self.note("count ended")

    async def total(self, items: AsyncIterator[Item]) -> Item:
        total = size = 0
        self.note("total started")
        try:
            async for item in items:
                total += item.number
                size += len(item.data)
                if item.text == "enough":
                    break
        except asyncio.CancelledError:
            self.note("total cancelled")
            raise
        return Item(text=str(size), number=total)

    async def chat(self, items: AsyncIterator[Item]) -> AsyncIterator[Item]:
        self.note("chat started")
        try:
            async for item in items:
                yield item
        except asyncio.CancelledError:
            self.note("chat cancelled")
            raise


async def until(condition: Callable[[], object]) -> None:
    """Wait for something that tells nobody when it happens."""
    async with asyncio.timeout(SOON):
        while not condition():  # noqa: ASYNC110 - others change what it asks for
            await asyncio.sleep(0.01)


@dataclass
class Load:
    """Twenty callers that go on and on; none of their calls may fail."""

    call: Callable[[], Awaitable[object]]
    answered: int = 0
    _stopping: bool = False
    _callers: list[asyncio.Future[None]] = field(default_factory=list)

    def start(self) -> None:
        self._callers = [asyncio.ensure_future(self._caller()) for _ in range(20)]

    async def _caller(self) -> None:
        while not self._stopping:
            await self.call()
            self.answered += 1

    async def more(self, calls: int = 200) -> None:
        """Wait until so many more were answered."""
        target = self.answered + calls
        await until(lambda: self.answered >= target or any(caller.done() for caller in self._callers))

    async def stop(self) -> None:
        """Raises what any of the calls failed with."""
        self._stopping = True
        await asyncio.wait_for(asyncio.gather(*self._callers), SOON)


@dataclass
class Ours:
    """The rig behind one of our listeners."""

    address: str
    service: RigService
    services: Services
    listener: Listener


@asynccontextmanager
async def our_server(
    *others: object,
    internal: tuple[object, ...] = (),
    address: str = "127.0.0.1:0",
    compress: bool = False,
    **options: Any,
) -> AsyncIterator[Ours]:
    rig = RigService()
    services = Services([rig, *others], internal=internal, **options)
    listener = Listener(GrpcServer(services, compress=compress))
    bound = await listener.start(address)
    try:
        yield Ours(bound, rig, services, listener)
    finally:
        listener.close()
        await services.finish(0)


@asynccontextmanager
async def our_client(
    address: str,
    *,
    retries: int = 0,
    breaker: bool = True,
    on_wire: Callable[[GrpcWire], None] | None = None,
    **options: Any,
) -> AsyncIterator[Rig]:
    def open_wire(at: str) -> GrpcWire:
        wire = GrpcWire(Pool(at), **options)
        if on_wire is not None:
            on_wire(wire)
        return wire

    endpoints = Endpoints(StaticResolver([address]), open_wire)
    defaults = CallDefaults(retry=Retry(attempts=retries + 1), policies=(Breaker(enabled=breaker),))
    channel = Channel("rig", endpoints, defaults=defaults)
    try:
        yield client_for(Rig, channel)
    finally:
        await channel.close()


@cache
def generated() -> tuple[Any, Any]:
    """What grpcio-tools makes of the rig: the module of its messages, and that of its stub and servicer."""
    directory = Path(tempfile.mkdtemp(prefix="polywire-interop-"))
    for name, text in proto_files([service_of(Rig)], http=False).items():
        path = directory / "interop_generated" / name.rpartition("/")[2]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    source = next((directory / "interop_generated").glob("*.proto"))
    arguments = [f"-I{directory}", f"--python_out={directory}", f"--grpc_python_out={directory}"]
    assert untyped("grpc_tools.protoc").main(["protoc", *arguments, str(source)]) == 0
    sys.path.insert(0, str(directory))
    try:
        name = f"interop_generated.{source.stem}_pb2"
        return untyped(name), untyped(f"{name}_grpc")
    finally:
        sys.path.remove(str(directory))


@asynccontextmanager
async def grpcio_client(address: str, *options: tuple[str, Any]) -> AsyncIterator[Any]:
    """grpcio's stub of the rig, on a connection of its own."""
    # Without this option channels in one process share their connections.
    everything = [("grpc.use_local_subchannel_pool", 1), *options]
    async with grpc.aio.insecure_channel(address, options=everything) as channel:
        yield generated()[1].RigStub(channel)


@asynccontextmanager
async def grpcio_server(servicer: Any, *options: tuple[str, Any]) -> AsyncIterator[tuple[str, Any]]:
    """The rig as grpcio serves it: its address, and the server."""
    server = grpc.aio.server(options=options)
    generated()[1].add_RigServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}", server
    finally:
        await server.stop(None)
