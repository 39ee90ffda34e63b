"""A grpcio client against our server."""

from __future__ import annotations

import asyncio
import gzip
from contextlib import AsyncExitStack
from typing import Any

import pytest
from grpc_support import SOON, Load, RigService, generated, grpc, grpcio_client, our_server, untyped

from polywire import Shedding
from polywire.errors import BY_CODE
from polywire.wire.grpc.health import HealthService
from polywire.wire.grpc.reflection import reflection_services

error_details_pb2 = untyped("google.rpc.error_details_pb2")
health_pb2 = untyped("grpc_health.v1.health_pb2")
health_pb2_grpc = untyped("grpc_health.v1.health_pb2_grpc")
rpc_status = untyped("grpc_status.rpc_status")


def item(text: str = "", number: int = 0, data: bytes = b"") -> Any:
    return generated()[0].Item(text=text, number=number, data=data)


async def failure(call: Any) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(_whole(call), SOON)
    return caught.value


async def _whole(call: Any) -> Any:
    if hasattr(call, "__aiter__"):
        return [message async for message in call]
    return await call


# The four kinds.


async def test_unary_calls() -> None:
    async with our_server() as ours, grpcio_client(ours.address) as stub:
        for number in range(10):
            assert await stub.Echo(item("hé", number, b"\0\xff")) == item("hé", number, b"\0\xff")


async def test_streams_of_answers() -> None:
    async with our_server() as ours, grpcio_client(ours.address) as stub:
        call = stub.Count(item("n", 1000))
        assert [message.number async for message in call] == list(range(1000))
        assert dict(await call.initial_metadata())["x-leading"] == "before"
        assert dict(await call.trailing_metadata())["x-trailing-bin"] == b"\0after"
        assert [message async for message in stub.Count(item("n", 0))] == []


async def test_streams_of_requests() -> None:
    async with our_server() as ours, grpcio_client(ours.address) as stub:
        assert await stub.Total(iter([item("", number) for number in range(1000)])) == item("0", 499_500)
        assert await stub.Total(iter([])) == item("0", 0)


async def test_both_streams_at_once() -> None:
    async with our_server() as ours, grpcio_client(ours.address) as stub:
        call = stub.Chat()
        for number in range(100):
            await call.write(item("ping", number))
            assert (await call.read()).number == number
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF


async def test_an_answer_before_the_requests_have_ended() -> None:
    async with our_server() as ours, grpcio_client(ours.address) as stub:
        call = stub.Total()
        await call.write(item("", 1))
        await call.write(item("enough", 2))
        assert (await asyncio.wait_for(call, SOON)).number == 3


async def test_a_synchronous_client_in_a_thread() -> None:
    def work(address: str) -> list[Any]:
        with grpc.insecure_channel(address) as channel:
            stub = generated()[1].RigStub(channel)
            return [
                stub.Echo(item("a")).text,
                [message.number for message in stub.Count(item("", 3))],
                stub.Total(iter([item("", 4), item("", 5)])).number,
                [message.text for message in stub.Chat(iter([item("b"), item("c")]))],
            ]

    async with our_server() as ours:
        assert await asyncio.to_thread(work, ours.address) == ["a", [0, 1, 2], 9, ["b", "c"]]


# Deadlines and cancellation.


async def test_the_deadline_of_the_caller_reaches_the_handler() -> None:
    async with our_server() as ours, grpcio_client(ours.address) as stub:
        await stub.Echo(item(), timeout=50)
        left = ours.service.calls[0].time_left()
        assert left is not None
        # grpc-core rounds what it sends up to tenths of a second (timeout_encoding.cc).
        assert 45 < left <= 50.1
        await stub.Echo(item())
        assert ours.service.calls[1].time_left() is None


async def test_an_expired_deadline_cancels_the_handler() -> None:
    async with our_server() as ours, grpcio_client(ours.address) as stub:
        error = await failure(stub.Wait(item(), timeout=0.2))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await ours.service.until("wait cancelled")


@pytest.mark.parametrize("method", ["Wait", "Count", "Total", "Chat"])
async def test_a_cancelled_call_cancels_its_handler(method: str) -> None:
    async with our_server() as ours, grpcio_client(ours.address) as stub:
        call = getattr(stub, method)(*([item("", 10**9)] if method in ("Wait", "Count") else []))
        if method in ("Total", "Chat"):
            await call.write(item())
        await ours.service.until(f"{method.lower()} started")
        call.cancel()
        await ours.service.until(f"{method.lower()} cancelled")
        assert not ours.services.in_flight


async def test_a_lost_connection_cancels_the_handler() -> None:
    async with our_server() as ours:
        async with grpcio_client(ours.address) as stub:
            waiting = asyncio.ensure_future(stub.Wait(item()))
            await ours.service.until("wait started")
        await ours.service.until("wait cancelled")
        with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
            await waiting


# Errors.


@pytest.mark.parametrize("code", sorted(BY_CODE))
async def test_every_code_with_message_and_details(code: str) -> None:
    async with our_server() as ours, grpcio_client(ours.address) as stub:
        error = await failure(stub.Fail(item(code)))
    assert error.code().value == (BY_CODE[code].number, code.replace("_", " "))
    assert error.details() == f"failed with {code}: 100 % ✓"
    status = rpc_status.from_call(error)
    assert status is not None
    assert (status.code, status.message) == (BY_CODE[code].number, f"failed with {code}: 100 % ✓")
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain, dict(info.metadata)) == ("ASKED_FOR", "interop.test", {"text": code})


async def test_an_exception_that_is_no_error_of_the_contract(caplog: pytest.LogCaptureFixture) -> None:
    async with our_server() as ours, grpcio_client(ours.address) as stub:
        error = await failure(stub.Fail(item("crash"), metadata=[("x-request-id", "id-1")]))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert error.details() == "internal error, request id id-1"
    assert "interop.v1.Rig/Fail failed" in caplog.text


async def test_pushback() -> None:
    async with our_server() as ours, grpcio_client(ours.address) as stub:
        error = await failure(stub.Fail(item("pushback")))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert dict(error.trailing_metadata())["grpc-retry-pushback-ms"] == "2500"


async def test_unknown_methods_and_services() -> None:
    async with our_server() as ours, grpc.aio.insecure_channel(ours.address) as channel:
        for path, text in [
            (
                "/interop.v1.Rig/Nope",
                "interop.v1.Rig/Nope was not called: interop.v1.Rig has no method 'Nope'. "
                "It has: Echo, Fail, Wait, Count, Total, Chat.",
            ),
            (
                "/interop.v1.Other/Echo",
                "interop.v1.Other/Echo was not called: there is no service 'interop.v1.Other' here. "
                "Check the package of the contract, and the address.",
            ),
            (
                "/odd",
                "odd was not called: there is no service '' here. Check the package of the contract, and the address.",
            ),
        ]:
            error = await failure(channel.unary_unary(path)(b""))
            assert error.code() is grpc.StatusCode.UNIMPLEMENTED
            assert error.details() == text


async def test_malformed_protobuf() -> None:
    async with our_server() as ours, grpc.aio.insecure_channel(ours.address) as channel:
        expected = "interop.v1.Item: the protobuf bytes are malformed or truncated, or hold text that is not UTF-8."
        error = await failure(channel.unary_unary("/interop.v1.Rig/Echo")(b"\xff\xff"))
        assert (error.code(), error.details()) == (grpc.StatusCode.INVALID_ARGUMENT, expected)
        error = await failure(channel.unary_stream("/interop.v1.Rig/Count")(b"\xff\xff"))
        assert (error.code(), error.details()) == (grpc.StatusCode.INVALID_ARGUMENT, expected)
        error = await failure(channel.stream_unary("/interop.v1.Rig/Total")(iter([b"\xff\xff"])))
        assert (error.code(), error.details()) == (grpc.StatusCode.INVALID_ARGUMENT, expected)


async def test_a_message_that_is_too_large() -> None:
    async with our_server(max_message_bytes=1000) as ours, grpcio_client(ours.address) as stub:
        assert (await stub.Echo(item("", 0, bytes(990)))).data == bytes(990)
        for call in (
            stub.Echo(item("", 0, bytes(100_000))),
            stub.Count(item("", 1, bytes(100_000))),
            stub.Total(iter([item("", 1, bytes(100_000))])),
        ):
            error = await failure(call)
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert error.details() is not None
            assert error.details().startswith("A message of 1000")
            assert error.details().endswith(
                "was not read: the limit is 1000 bytes. Split it, or raise `max_message_bytes` at its receiver."
            )


async def test_a_bomb_is_refused_at_the_limit_after_decompression() -> None:
    async with our_server() as ours, grpcio_client(ours.address) as stub:
        bomb = item("", 0, bytes(50_000_000))
        error = await failure(stub.Echo(bomb, compression=grpc.Compression.Gzip))
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.details() == (
        "A compressed message was not read: it is larger than the limit of 4194304 bytes once decompressed. "
        "Split it, or raise `max_message_bytes` at its receiver."
    )


# Metadata.


async def test_metadata_both_ways_text_and_binary() -> None:
    async with our_server() as ours, grpcio_client(ours.address) as stub:
        sent = [("x-echo", "a"), ("x-echo", "b, c"), ("x-echo-bin", bytes(range(256))), ("x-echo-bin", b"")]
        call = stub.Echo(item(), metadata=sent)
        await call
        for received in (await call.initial_metadata(), await call.trailing_metadata()):
            assert [pair for pair in received if pair[0].startswith("x-echo")] == sent


async def test_a_request_id_is_kept_or_made() -> None:
    async with our_server() as ours, grpcio_client(ours.address) as stub:
        call = stub.Echo(item(), metadata=[("x-request-id", "my-id"), ("traceparent", "00-a-b-01")])
        await call
        assert ours.service.calls[0].request_id == "my-id"
        assert ours.service.calls[0].traceparent == "00-a-b-01"
        call = stub.Echo(item())
        await call
        made = ours.service.calls[1].request_id
        assert len(made) > 10
        assert dict(await call.initial_metadata())["x-request-id"] == made


async def test_credentials_and_previous_attempts_reach_the_call() -> None:
    async with our_server() as ours, grpcio_client(ours.address) as stub:
        await stub.Echo(item(), metadata=[("authorization", "Bearer secret")])
        assert ours.service.calls[0].credentials == "Bearer secret"
        assert ours.service.calls[0].attempt == 1


# Compression and size.


@pytest.mark.parametrize("compress", [False, True])
async def test_gzip_both_ways(compress: bool) -> None:
    async with our_server(compress=compress) as ours, grpcio_client(ours.address) as stub:
        data = b"compress me " * 1000
        call = stub.Echo(item("", 1, data), compression=grpc.Compression.Gzip)
        assert (await call).data == data
        call = stub.Chat(compression=grpc.Compression.Gzip)
        await call.write(item("", 1, data))
        assert (await call.read()).data == data
        call = stub.Echo(item("", 1, data))
        assert (await call).data == data


async def test_deflate_is_refused_with_what_is_known() -> None:
    async with our_server() as ours, grpcio_client(ours.address) as stub:
        error = await failure(stub.Echo(item("", 1, bytes(5000)), compression=grpc.Compression.Deflate))
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED
        assert error.details() == (
            "interop.v1.Rig/Echo was not called: its request is compressed with 'deflate', which is not known here. "
            "Use 'gzip' or 'identity'."
        )


async def test_messages_of_4_mb_both_ways() -> None:
    size = 4 * 1024 * 1024 - 100
    data = gzip.compress(bytes(100))[:50] * (size // 50)
    async with our_server() as ours:
        limits = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        async with grpcio_client(ours.address, *limits) as stub:
            assert (await stub.Echo(item("", 0, data))).data == data
            assert [len(m.data) async for m in stub.Count(item("", 5, data))] == [len(data)] * 5
            assert (await stub.Total(iter([item("", 1, data)] * 5))).text == str(5 * len(data))


async def test_a_thousand_streams_on_one_connection() -> None:
    # All of them open at once: by default some of so many would be asked to come again a little later.
    async with our_server(shedding=Shedding(limit=2_000)) as ours, grpcio_client(ours.address) as stub:
        calls = [stub.Chat() for _ in range(1000)]
        for number, call in enumerate(calls):
            await call.write(item("", number))
        assert [(await call.read()).number for call in calls] == list(range(1000))
        assert ours.listener.connections == 1
        assert ours.services.in_flight == 1000
        for call in calls:
            await call.done_writing()
        assert [await call.read() for call in calls] == [grpc.aio.EOF] * 1000


# Connections.


async def test_draining_loses_no_call() -> None:
    """Our server goes away while a client keeps calling, twice; its successor listens on the same address."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(our_server())
        stub = await stack.enter_async_context(grpcio_client(server.address))
        load = Load(lambda: stub.Echo(item("x"), timeout=SOON, wait_for_ready=True))
        load.start()
        for _ in range(2):
            await load.more()
            draining = asyncio.ensure_future(server.listener.drain(SOON))
            await asyncio.sleep(0)  # it has begun, and listens no more
            server = await stack.enter_async_context(our_server(address=server.address))
            await draining
        await load.more()
        await load.stop()


async def test_keepalive_pings_are_tolerated() -> None:
    options = [
        ("grpc.keepalive_time_ms", 1000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]
    async with our_server() as ours, grpcio_client(ours.address, *options) as stub:
        call = stub.Chat()
        for _ in range(3):
            await call.write(item("still here"))
            assert (await call.read()).text == "still here"
            await asyncio.sleep(0.4)
        call.cancel()


# Health and reflection.


async def test_health_by_grpcios_own_client() -> None:
    health = HealthService()
    health.set("", True)
    health.set("interop.v1.Rig", False)
    async with our_server(internal=(health,)) as ours, grpc.aio.insecure_channel(ours.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        async def status(name: str) -> str:
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
            return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))

        assert await status("") == "SERVING"
        assert await status("interop.v1.Rig") == "NOT_SERVING"
        error = await failure(stub.Check(health_pb2.HealthCheckRequest(service="nope")))
        assert error.code() is grpc.StatusCode.NOT_FOUND
        assert error.details() == "The health of 'nope' is unknown: there is no such service here."
        watch = stub.Watch(health_pb2.HealthCheckRequest(service="later"))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        health.set("later", True)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        health.set("later", False)
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        statuses = (await stub.List(health_pb2.HealthListRequest())).statuses
        assert {name: answer.status for name, answer in statuses.items()} == {
            "": health_pb2.HealthCheckResponse.SERVING,
            "interop.v1.Rig": health_pb2.HealthCheckResponse.NOT_SERVING,
            "later": health_pb2.HealthCheckResponse.NOT_SERVING,
        }
        health.close()
        error = await failure(watch.read())
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert error.details() == "The health is watched no longer: the service is shutting down."


async def test_reflection_by_grpcios_own_client() -> None:
    def ask(address: str) -> tuple[list[str], list[str], str]:
        with grpc.insecure_channel(address) as channel:
            reflection = untyped("grpc_reflection.v1alpha.proto_reflection_descriptor_database")
            database = reflection.ProtoReflectionDescriptorDatabase(channel)
            pool = untyped("google.protobuf.descriptor_pool").DescriptorPool(database)
            service = pool.FindServiceByName("interop.v1.Rig")
            echo = service.methods_by_name["Echo"]
            assert pool.FindMethodByName("interop.v1.Rig.Count").server_streaming
            with pytest.raises(KeyError):
                pool.FindMessageTypeByName("interop.v1.Nope")
            fields = [field.name for field in echo.input_type.fields]
            health = pool.FindServiceByName("grpc.health.v1.Health")
            return list(database.get_services()), fields, health.methods_by_name["Check"].output_type.full_name

    internal = (HealthService(), *reflection_services([RigService()]))
    async with our_server(internal=internal) as ours:
        services, fields, answer = await asyncio.to_thread(ask, ours.address)
    assert services == [
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "interop.v1.Rig",
    ]
    assert fields == ["text", "number", "data"]
    assert answer == "grpc.health.v1.HealthCheckResponse"
