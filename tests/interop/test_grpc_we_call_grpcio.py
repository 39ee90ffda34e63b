"""Our client against a grpcio server."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import pytest
from grpc_support import SOON, Item, Load, generated, grpc, grpcio_server, our_client, until, untyped

from polywire.context import calling
from polywire.contract.details import BadRequest, ErrorInfo
from polywire.errors import (
    BY_CODE,
    DO_NOT_RETRY,
    CallError,
    Cancelled,
    DeadlineExceeded,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
)

any_pb2 = untyped("google.protobuf.any_pb2")
code_pb2 = untyped("google.rpc.code_pb2")
error_details_pb2 = untyped("google.rpc.error_details_pb2")
status_pb2 = untyped("google.rpc.status_pb2")
rpc_status = untyped("grpc_status.rpc_status")


class Servicer:
    """The rig as a user of grpcio writes it."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.metadata: list[tuple[str, str | bytes]] = []
        self.left: float | None = None
        self.calls = 0
        self.peers: set[str] = set()

    def item(self, text: str = "", number: int = 0, data: bytes = b"") -> Any:
        return generated()[0].Item(text=text, number=number, data=data)

    async def Echo(self, request: Any, context: Any) -> Any:
        self.calls += 1
        self.peers.add(context.peer())
        self.metadata = [(name, value) for name, value in context.invocation_metadata()]
        self.left = context.time_remaining()
        await context.send_initial_metadata([(n, v) for n, v in self.metadata if n.startswith("x-echo")])
        context.set_trailing_metadata([(n, v) for n, v in self.metadata if n.startswith("x-echo")])
        return request

    async def Fail(self, request: Any, context: Any) -> Any:
        if request.text == "bare":
            await context.abort(grpc.StatusCode.NOT_FOUND, "bare: 100 % ✓", (("x-why", "because"),))
        if request.text.startswith("pushback "):
            pushback = request.text.removeprefix("pushback ")
            await context.abort(grpc.StatusCode.UNAVAILABLE, "later", (("grpc-retry-pushback-ms", pushback),))
        if request.text == "field":
            detail = error_details_pb2.BadRequest()
            detail.field_violations.add(field="items[0].number", description="too small")
        else:
            detail = error_details_pb2.ErrorInfo(reason="ASKED_FOR", domain="interop.test")
        packed = any_pb2.Any()
        packed.Pack(detail)
        code = "INVALID_ARGUMENT" if request.text == "field" else request.text.upper()
        status = status_pb2.Status(
            code=code_pb2.Code.Value(code), message=f"failed: {request.text} ✓", details=[packed]
        )
        await context.abort_with_status(rpc_status.to_status(status))

    async def Wait(self, request: Any, context: Any) -> Any:
        self.events.append("wait started")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.events.append("wait cancelled")
            raise

    async def Count(self, request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            for number in range(request.number):
                yield self.item(request.text, number, request.data)
        except (asyncio.CancelledError, GeneratorExit):
            self.events.append("count cancelled")
            raise
        if request.text == "fail":
            await context.abort(grpc.StatusCode.ABORTED, "after all")

    async def Total(self, requests: AsyncIterator[Any], context: Any) -> Any:
        total = size = 0
        async for request in requests:
            total += request.number
            size += len(request.data)
            if request.text == "enough":
                break
            if request.text == "abort":
                await context.abort(grpc.StatusCode.ABORTED, "no more")
        return self.item(str(size), total)

    async def Chat(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        self.peers.add(context.peer())
        try:
            async for request in requests:
                yield request
        finally:
            self.events.append("chat over")


async def collect(answers: AsyncIterator[Item]) -> list[int]:
    return [item.number async for item in answers]


async def items(*numbers: int, text: str = "", data: bytes = b"") -> AsyncIterator[Item]:
    for number in numbers:
        yield Item(text=text, number=number, data=data)


# The four kinds.


async def test_unary_calls() -> None:
    async with grpcio_server(Servicer()) as (address, _), our_client(address) as rig:
        for number in range(10):
            sent = Item(text="hé", number=number, data=b"\0\xff")
            assert await rig.echo(sent) == sent


async def test_streams_of_answers() -> None:
    async with grpcio_server(Servicer()) as (address, _), our_client(address) as rig:
        received = [item.number async for item in rig.count(Item(text="n", number=1000))]
        assert received == list(range(1000))
        assert [item async for item in rig.count(Item(text="n", number=0))] == []


async def test_streams_of_requests() -> None:
    async with grpcio_server(Servicer()) as (address, _), our_client(address) as rig:
        assert (await rig.total(items(*range(1000)))).number == 499_500
        assert (await rig.total(items())).number == 0


async def test_both_streams_at_once() -> None:
    async with grpcio_server(Servicer()) as (address, _), our_client(address) as rig:
        assert [item.number async for item in rig.chat(items(*range(1000)))] == list(range(1000))


async def test_an_answer_before_the_requests_have_ended() -> None:
    async def endless() -> AsyncIterator[Item]:
        yield Item(text="", number=1)
        yield Item(text="enough", number=2)
        await asyncio.Event().wait()

    async with grpcio_server(Servicer()) as (address, _), our_client(address) as rig:
        assert (await asyncio.wait_for(rig.total(endless()), SOON)).number == 3


# Deadlines and cancellation.


async def test_the_deadline_is_told_to_the_server() -> None:
    servicer = Servicer()
    async with grpcio_server(servicer) as (address, _), our_client(address) as rig:
        for _ in range(5):  # the first ones travel behind the prepared headers, the others among them
            with calling(timeout=7.5):
                await rig.echo(Item(text=""))
            assert servicer.left is not None
            assert 7 < servicer.left <= 7.5


async def test_an_expired_deadline_cancels_the_handler() -> None:
    servicer = Servicer()
    async with grpcio_server(servicer) as (address, _), our_client(address) as rig:
        with pytest.raises(DeadlineExceeded), calling(timeout=0.2):
            await rig.wait(Item(text=""))
        await until(lambda: "wait cancelled" in servicer.events)
        with pytest.raises(DeadlineExceeded), calling(timeout=0.2):
            await collect(rig.chat(_never()))
        await until(lambda: "chat over" in servicer.events)


async def _never() -> AsyncIterator[Item]:
    await asyncio.Event().wait()
    yield Item(text="")


async def test_a_cancelled_call_cancels_the_handler() -> None:
    servicer = Servicer()
    async with grpcio_server(servicer) as (address, _), our_client(address) as rig:
        waiting = asyncio.ensure_future(rig.wait(Item(text="")))
        await until(lambda: "wait started" in servicer.events)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await until(lambda: "wait cancelled" in servicer.events)


async def test_a_stream_that_is_dropped_cancels_the_handler() -> None:
    servicer = Servicer()
    async with grpcio_server(servicer) as (address, _), our_client(address) as rig:
        async for _ in rig.count(Item(text="", number=10**6, data=bytes(1000))):
            break
        gc.collect()
        await until(lambda: "count cancelled" in servicer.events)


# Errors.


@pytest.mark.parametrize("code", sorted(BY_CODE))
async def test_every_code_with_message_and_details(code: str) -> None:
    async with grpcio_server(Servicer()) as (address, _), our_client(address) as rig:
        with pytest.raises(CallError) as caught:
            await rig.fail(Item(text=code))
    error = caught.value
    assert type(error) is BY_CODE[code]
    assert str(error) == f"failed: {code} ✓"
    assert error.details == (ErrorInfo(reason="ASKED_FOR", domain="interop.test"),)
    assert error.retry_after is None
    if isinstance(error, Unavailable):
        assert error.reached == "maybe"


async def test_an_error_without_details_keeps_its_metadata() -> None:
    async with grpcio_server(Servicer()) as (address, _), our_client(address) as rig:
        with pytest.raises(BY_CODE["not_found"]) as caught:
            await rig.fail(Item(text="bare"))
    assert str(caught.value) == "bare: 100 % ✓"
    assert caught.value.details == ()
    assert caught.value.metadata["x-why"] == "because"


async def test_the_field_at_fault() -> None:
    async with grpcio_server(Servicer()) as (address, _), our_client(address) as rig:
        with pytest.raises(InvalidArgument) as caught:
            await rig.fail(Item(text="field"))
    assert caught.value.field == "items[0].number"
    assert isinstance(caught.value.details[0], BadRequest)


@pytest.mark.parametrize(("sent", "seconds"), [("1500", 1.5), ("0", 0.0), ("-1", DO_NOT_RETRY), ("?", DO_NOT_RETRY)])
async def test_pushback(sent: str, seconds: float) -> None:
    async with grpcio_server(Servicer()) as (address, _), our_client(address) as rig:
        with pytest.raises(Unavailable) as caught:
            await rig.fail(Item(text=f"pushback {sent}"))
    assert caught.value.retry_after == seconds


async def test_a_method_that_the_server_does_not_have() -> None:
    server = grpc.aio.server()
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with our_client(f"127.0.0.1:{port}") as rig:
        with pytest.raises(Unimplemented, match="Method not found!"):
            await rig.echo(Item(text=""))
    await server.stop(None)


async def test_an_answer_that_is_too_large() -> None:
    async with grpcio_server(Servicer()) as (address, _), our_client(address, max_message_bytes=1000) as rig:
        with pytest.raises(ResourceExhausted) as caught:
            await rig.echo(Item(text="", data=bytes(5000)))
        assert str(caught.value) == (
            "A message of 5003 bytes was not read: the limit is 1000 bytes. Split it, or raise `max_message_bytes` at "
            "its receiver."
        )
        with pytest.raises(ResourceExhausted):
            await collect(rig.count(Item(text="", number=3, data=bytes(5000))))
        assert (await rig.echo(Item(text="still fine"))).text == "still fine"


async def test_an_error_after_answers_and_an_error_while_sending() -> None:
    async with grpcio_server(Servicer()) as (address, _), our_client(address) as rig:
        answers = rig.count(Item(text="fail", number=3))
        assert [(await anext(answers)).number for _ in range(3)] == [0, 1, 2]
        with pytest.raises(BY_CODE["aborted"], match="after all"):
            await anext(answers)
        with pytest.raises(BY_CODE["aborted"], match="no more"):
            await rig.total(items(1, text="abort"))


# Metadata, compression, size.


async def test_metadata_both_ways_text_and_binary() -> None:
    servicer = Servicer()
    async with grpcio_server(servicer) as (address, _), our_client(address) as rig:
        sent: dict[str, str | bytes] = {"x-echo": "a, b", "x-echo-bin": bytes(range(256))}
        with calling(metadata=sent) as call:
            await rig.echo(Item(text=""))
        assert {**call.headers} == sent
        assert {**call.trailers} == sent
        received = dict(servicer.metadata)
        assert received["x-echo-bin"] == bytes(range(256))
        assert received["user-agent"] == "polywire"
        assert received["x-request-id"]


@pytest.mark.parametrize("compress", [False, True])
async def test_gzip_both_ways(compress: bool) -> None:
    data = b"compress me " * 1000
    option = ("grpc.default_compression_algorithm", 2)
    async with grpcio_server(Servicer(), option) as (address, _), our_client(address, compress=compress) as rig:
        assert (await rig.echo(Item(text="", data=data))).data == data
        assert [len(item.data) async for item in rig.chat(items(1, 2, 3, data=data))] == [len(data)] * 3


async def test_messages_of_4_mb_both_ways() -> None:
    data = bytes(range(256)) * (4 * 4096 - 1)
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    async with grpcio_server(Servicer(), *options) as (address, _), our_client(address) as rig:
        assert (await rig.echo(Item(text="", data=data))).data == data
        assert [len(item.data) async for item in rig.count(Item(text="", number=5, data=data))] == [len(data)] * 5
        assert (await rig.total(items(1, 1, 1, data=data))).text == str(3 * len(data))


async def test_a_thousand_streams_on_one_connection() -> None:
    servicer = Servicer()
    finish = asyncio.Event()

    async def one() -> AsyncIterator[Item]:
        yield Item(text="1")
        await finish.wait()

    async with grpcio_server(servicer) as (address, _), our_client(address) as rig:
        await rig.echo(Item(text=""))
        streams = [rig.chat(one()) for _ in range(1000)]
        first = await asyncio.gather(*(anext(stream) for stream in streams))
        assert [item.text for item in first] == ["1"] * 1000
        assert len(servicer.peers) == 1
        finish.set()
        for stream in streams:
            with pytest.raises(StopAsyncIteration):
                await anext(stream)


# Connections.


async def test_goaway_under_load_fails_no_call() -> None:
    """The server says GOAWAY again and again, in good order, as servers do that limit the age of connections."""
    servicer = Servicer()
    options = [("grpc.max_connection_age_ms", 100), ("grpc.max_connection_age_grace_ms", 20_000)]
    async with grpcio_server(servicer, *options) as (address, _), our_client(address) as rig:
        load = Load(lambda: rig.echo(Item(text="x")))
        load.start()
        while len(servicer.peers) < 5:
            await load.more()
        await load.stop()


async def test_a_server_that_stops_under_load() -> None:
    """What grpcio has accepted but not begun when it stops, it cancels, for its own clients too; nothing else fails.

    Without a breaker, which would open where stopping takes as long as the load before it did.
    """
    failed: set[tuple[type[CallError], str]] = set()

    async with grpcio_server(Servicer()) as (address, server), our_client(address, breaker=False) as rig:

        async def call() -> None:
            try:
                await rig.echo(Item(text="x"))
            except CallError as error:
                failed.add((type(error), str(error)))
                await asyncio.sleep(0.01)

        load = Load(call)
        load.start()
        await load.more()
        await server.stop(SOON)
        await load.stop()
    refused = f"{address} did not answer: cannot connect to {address}: connection refused."
    assert failed <= {(Cancelled, "CANCELLED"), (Unavailable, refused)}


async def test_a_connection_killed_in_the_middle_of_a_call() -> None:
    """Between the two, something that cuts the connection without a word."""
    servicer = Servicer()
    writers: list[asyncio.StreamWriter] = []

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        try:
            while data := await reader.read(65536):
                writer.write(data)
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()

    async with grpcio_server(servicer) as (target, _):
        host, _, port = target.partition(":")

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            onward_reader, onward_writer = await asyncio.open_connection(host, int(port))
            await asyncio.gather(relay(reader, onward_writer), relay(onward_reader, writer))

        between = await asyncio.start_server(accept, "127.0.0.1", 0)
        address = "{}:{}".format(*between.sockets[0].getsockname()[:2])
        async with our_client(address) as rig:
            waiting = asyncio.ensure_future(rig.wait(Item(text="")))
            await until(lambda: "wait started" in servicer.events)
            for writer in list(writers):
                writer.transport.abort()
            with pytest.raises(Unavailable) as caught:
                await waiting
            assert caught.value.reached == "maybe"
            assert str(caught.value).startswith(f"{address} did not answer: the connection was lost")
        between.close()
        await between.wait_closed()


async def test_nobody_there_at_all() -> None:
    async with our_client("127.0.0.1:1") as rig:
        with pytest.raises(Unavailable) as caught:
            await rig.echo(Item(text=""))
    assert caught.value.reached == "no"
    assert str(caught.value) == ("127.0.0.1:1 did not answer: cannot connect to 127.0.0.1:1: connection refused.")


async def test_waiting_for_a_server_ends_at_the_deadline() -> None:
    async with our_client("127.0.0.1:1") as rig:
        with pytest.raises(DeadlineExceeded), calling(timeout=0.3, wait_for_ready=True):
            await rig.echo(Item(text=""))


async def test_calls_that_are_cancelled_by_the_server() -> None:
    async with grpcio_server(Servicer()) as (address, server), our_client(address) as rig:
        waiting = asyncio.ensure_future(rig.wait(Item(text="")))
        await asyncio.sleep(0.2)
        await server.stop(None)
        with pytest.raises((Cancelled, Unavailable)):
            await waiting
