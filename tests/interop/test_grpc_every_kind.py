"""What one kind of method can, all four can: with grpcio on either end."""

from __future__ import annotations

import asyncio
import gzip
from typing import Any

import pytest
from grpc_support import SOON, grpc, until, untyped
from kinds_support import KINDS, Ask, grpcio_calling_us, ours, us_calling_grpcio

from polywire.context import calling
from polywire.contract.details import ErrorInfo
from polywire.errors import CallError, Cancelled, DeadlineExceeded, FailedPrecondition, Unavailable
from polywire.server import Server
from polywire.testing.wires import ProbeService

error_details_pb2 = untyped("google.rpc.error_details_pb2")
reflection_pb2 = untyped("grpc_reflection.v1alpha.reflection_pb2")
rpc_status = untyped("grpc_status.rpc_status")

LARGE = Ask(data=gzip.compress(bytes(100))[:50] * (4 * 1024 * 1024 // 50 - 2))
"""Just below the customary limit of 4 MiB, and hard to compress."""


def expected(kind: str, *asks: Ask) -> list[Ask]:
    """What comes back of *asks*."""
    return {"Single": [asks[0]], "Answers": [asks[0]] * 2, "Requests": [asks[-1]], "Both": list(asks)}[kind]


# grpcio calls us


async def failure(theirs: Any, call: Any) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await theirs.finish(call)
    return caught.value


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
async def test_grpcio_sends_us_small_and_large_messages(kind: str, compression: Any) -> None:
    asks = [Ask(text="hé", data=b"\0\xff"), LARGE, Ask(), Ask(data=b"again " * 1000)]
    async with grpcio_calling_us() as (theirs, _, _):
        for first in (asks, asks[1:]):
            call = theirs.start(kind, *first, compression=compression)
            assert await theirs.finish(call) == expected(kind, *first)


@pytest.mark.parametrize("kind", KINDS)
async def test_grpcios_metadata_comes_back_text_and_binary(kind: str) -> None:
    metadata = [("x-echo", "text"), ("x-echo-bin", b"\0\xff"), ("x-echo", "again")]
    async with grpcio_calling_us() as (theirs, _, _):
        call = theirs.start(kind, Ask(), metadata=metadata)
        await theirs.finish(call)
        for back in (await call.initial_metadata(), await call.trailing_metadata()):
            assert sorted((n, v) for n, v in back if n.startswith("x-echo")) == sorted(metadata)


@pytest.mark.parametrize("kind", KINDS)
async def test_grpcio_is_told_an_error_with_its_details(kind: str) -> None:
    async with grpcio_calling_us() as (theirs, _, _):
        error = await failure(theirs, theirs.start(kind, Ask(text="fail failed_precondition")))
        assert (error.code().name, error.details()) == ("FAILED_PRECONDITION", "failed: failed_precondition ✓")
        info = error_details_pb2.ErrorInfo()
        assert rpc_status.from_call(error).details[0].Unpack(info)
        assert (info.reason, info.domain) == ("ASKED_FOR", "interop.test")
        assert await theirs.finish(theirs.start(kind, Ask())) == expected(kind, Ask())


@pytest.mark.parametrize("kind", KINDS)
async def test_grpcios_deadline_is_known_and_ends_our_handler(kind: str) -> None:
    async with grpcio_calling_us() as (theirs, service, server):
        error = await failure(theirs, theirs.start(kind, Ask(text="wait"), open_end=True, timeout=0.2))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: service.noted.cancelled == 1)
        assert 0 < service.noted.left[0] <= 0.25, "grpcio rounds it up"
        await until(lambda: not server.services.in_flight)


@pytest.mark.parametrize("kind", KINDS)
async def test_what_grpcio_cancels_ends_our_handler(kind: str) -> None:
    async with grpcio_calling_us() as (theirs, service, server):
        call = theirs.start(kind, Ask(text="wait"), open_end=True)
        reading = asyncio.ensure_future(theirs.finish(call))
        await until(lambda: service.noted.started == 1)
        call.cancel()
        await until(lambda: service.noted.cancelled == 1 and not server.services.in_flight)
        await asyncio.wait([reading])
        assert reading.cancelled()


@pytest.mark.parametrize("kind", KINDS)
async def test_what_our_server_ends_is_told_to_grpcio(kind: str) -> None:
    async with grpcio_calling_us() as (theirs, service, server):
        reading = asyncio.ensure_future(theirs.finish(theirs.start(kind, Ask(text="wait"), open_end=True)))
        await until(lambda: service.noted.started == 1)
        await server.drain(grace=0.05)
        await asyncio.wait([reading])
        error: Any = reading.exception()
        assert isinstance(error, grpc.aio.AioRpcError)
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert service.noted.cancelled == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_what_our_handler_cancels_is_told_to_grpcio(kind: str) -> None:
    async with grpcio_calling_us() as (theirs, _, _):
        error = await failure(theirs, theirs.start(kind, Ask(text="fail cancelled"), open_end=True))
        assert (error.code().name, error.details()) == ("CANCELLED", "failed: cancelled ✓")


# We call grpcio


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("compress", [False, True])
async def test_we_send_grpcio_small_and_large_messages(kind: str, compress: bool) -> None:
    asks = [Ask(text="hé", data=b"\0\xff"), LARGE, Ask(), Ask(data=b"again " * 1000)]
    async with us_calling_grpcio(compress=compress) as (client, _, _):
        for first in (asks, asks[1:]):
            assert await ours(client, kind, *first) == expected(kind, *first)


@pytest.mark.parametrize("kind", KINDS)
async def test_our_metadata_comes_back_from_grpcio_text_and_binary(kind: str) -> None:
    async with us_calling_grpcio() as (client, _, _):
        with calling(metadata={"x-echo": "text", "x-echo-bin": b"\0\xff"}) as call:
            await ours(client, kind, Ask())
        for back in (call.headers, call.trailers):
            assert (back["x-echo"], back["x-echo-bin"]) == ("text", b"\0\xff")


@pytest.mark.parametrize("kind", KINDS)
async def test_we_are_told_an_error_with_its_details(kind: str) -> None:
    async with us_calling_grpcio() as (client, _, _):
        with pytest.raises(FailedPrecondition) as caught:
            await ours(client, kind, Ask(text="fail failed_precondition"))
        assert caught.value.message == "failed: failed_precondition ✓"
        assert caught.value.details == (ErrorInfo(reason="ASKED_FOR", domain="interop.test"),)
        assert await ours(client, kind, Ask()) == expected(kind, Ask())


@pytest.mark.parametrize("kind", KINDS)
async def test_our_deadline_is_known_to_grpcio_and_ends_its_handler(kind: str) -> None:
    async with us_calling_grpcio() as (client, servicer, _):
        # Both sides watch it, and either may be the first to say so.
        with calling(timeout=0.2), pytest.raises(DeadlineExceeded):
            await ours(client, kind, Ask(text="wait"), open_end=True)
        await until(lambda: servicer.noted.cancelled == 1)
        left = servicer.noted.left[0]
        assert left is not None
        assert 0 < left <= 0.2


@pytest.mark.parametrize("kind", KINDS)
async def test_what_we_cancel_ends_grpcios_handler(kind: str) -> None:
    async with us_calling_grpcio() as (client, servicer, _):
        calling_it = asyncio.ensure_future(ours(client, kind, Ask(text="wait"), open_end=True))
        await until(lambda: servicer.noted.started == 1)
        calling_it.cancel()
        await asyncio.wait([calling_it])
        assert calling_it.cancelled()
        await until(lambda: servicer.noted.cancelled == 1)
        assert await ours(client, kind, Ask()) == expected(kind, Ask())


@pytest.mark.parametrize("kind", KINDS)
async def test_what_grpcios_server_ends_is_told_to_us(kind: str) -> None:
    async with us_calling_grpcio() as (client, servicer, server):
        waiting = asyncio.ensure_future(ours(client, kind, Ask(text="wait"), open_end=True))
        await until(lambda: servicer.noted.started == 1)
        await server.stop(0.05)
        with pytest.raises(CallError) as caught:
            await asyncio.wait_for(waiting, SOON)
        # It resets what it has begun with CANCEL, or its connection breaks first.
        assert type(caught.value) in (Cancelled, Unavailable)
        if isinstance(caught.value, Unavailable):
            assert caught.value.reached == "maybe"


@pytest.mark.parametrize("kind", KINDS)
async def test_what_grpcios_handler_cancels_is_told_to_us(kind: str) -> None:
    async with us_calling_grpcio() as (client, _, _):
        with pytest.raises(Cancelled) as caught:
            await ours(client, kind, Ask(text="fail cancelled"), open_end=True)
        assert caught.value.message == "failed: cancelled ✓"


# Reflection, both of its versions, spoken by grpcio (their messages are the same)


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_of_both_versions(version: str) -> None:
    server = Server([ProbeService()])
    address = await server.start("127.0.0.1:0")
    asked = reflection_pb2.ServerReflectionRequest
    questions = [
        asked(list_services=""),
        asked(file_containing_symbol="polywire.probe.v1.Probe"),
        asked(file_containing_symbol="polywire.probe.v1.Probe.Count"),
        asked(file_containing_symbol="polywire.probe.v1.Nope"),
        asked(file_by_filename="nope.proto"),
    ]
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            method = channel.stream_stream(
                f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
                request_serializer=asked.SerializeToString,
                response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
            )
            listed, file, same, *unknown = [answer async for answer in method(iter(questions), timeout=SOON)]
    finally:
        await server.close()
    assert [service.name for service in listed.list_services_response.service] == [
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
        "polywire.probe.v1.Probe",
    ]
    assert file.file_descriptor_response.file_descriptor_proto
    assert file.file_descriptor_response == same.file_descriptor_response
    assert file.original_request == questions[1]
    assert [answer.error_response.error_code for answer in unknown] == [grpc.StatusCode.NOT_FOUND.value[0]] * 2
