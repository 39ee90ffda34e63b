"""connectrpc's client against our server, in both encodings and over both versions of HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from connect_support import Code, Encoding, connectrpc, errors, item, method, our_server, their_client
from grpc_support import generated, untyped

from polywire.net.pool import Version

both = pytest.mark.parametrize("encoding", ["proto", "json"])
versions = pytest.mark.parametrize("version", ["1.1", "2"])


async def items(*made: Any) -> AsyncIterator[Any]:
    for one in made:
        yield one


@both
@versions
async def test_a_unary_call_brings_back_message_headers_and_trailers(encoding: Encoding, version: Version) -> None:
    async with our_server() as ours, their_client(ours.address, version=version, encoding=encoding) as client:
        sent = item(text="grün ✓", number=-(2**60), data=b"\x00\xff")
        with connectrpc.ResponseMetadata() as beside:
            got = await client.execute_unary(
                request=sent, method=method("Echo"), headers={"x-echo": "7", "x-echo-bin": "AP8"}
            )
        assert got == sent
        assert beside.headers["x-echo"] == beside.trailers["x-echo"] == "7"
        assert beside.headers["x-echo-bin"] == "AP8"
        assert ours.service.calls[0].metadata["x-echo-bin"] == b"\x00\xff"
        assert ours.service.calls[0].wire == "connect"


@both
async def test_an_idempotent_call_may_be_a_get(encoding: Encoding) -> None:
    async with our_server() as ours:
        for compression in (untyped("connectrpc.compression.gzip").GzipCompression(), None):
            async with their_client(ours.address, encoding=encoding, send_compression=compression) as client:
                sent = item(text="a b&c" * 100, data=b"\x00\xff")
                assert await client.execute_unary(request=sent, method=method("Echo"), use_get=True) == sent


@both
@versions
async def test_every_code_arrives_with_its_message_and_details(encoding: Encoding, version: Version) -> None:
    pb = untyped("google.rpc.error_details_pb2")
    async with our_server() as ours, their_client(ours.address, version=version, encoding=encoding) as client:
        for code in Code:
            name = "cancelled" if code is Code.CANCELED else code.value
            with pytest.raises(errors.ConnectError) as caught:
                await client.execute_unary(request=item(text=name), method=method("Fail"))
            assert caught.value.code is code
            assert caught.value.message == f"failed with {name}: 100 % ✓"
            (detail,) = caught.value.details
            assert detail.type_name == "google.rpc.ErrorInfo"
            assert pb.ErrorInfo.FromString(detail.message_bytes) == pb.ErrorInfo(
                reason="ASKED_FOR", domain="interop.test", metadata={"text": name}
            )


async def test_a_bug_in_a_handler_is_internal() -> None:
    async with our_server() as ours, their_client(ours.address) as client:
        with pytest.raises(errors.ConnectError) as caught:
            await client.execute_unary(
                request=item(text="crash"), method=method("Fail"), headers={"x-request-id": "r-1"}
            )
        assert (caught.value.code, caught.value.message) == (Code.INTERNAL, "internal error, request id r-1")


@both
@versions
async def test_a_streamed_answer_arrives_in_order(encoding: Encoding, version: Version) -> None:
    async with our_server() as ours, their_client(ours.address, version=version, encoding=encoding) as client:
        with connectrpc.ResponseMetadata() as beside:
            answers = client.execute_server_stream(request=item(text="t" * 200, number=50), method=method("Count"))
            got = [answer async for answer in answers]
        assert got == [item(text="t" * 200, number=number) for number in range(50)]
        assert beside.headers["x-leading"] == "before"
        assert beside.trailers["x-trailing-bin"] == "AGFmdGVy"


@both
@versions
async def test_streamed_requests_are_answered(encoding: Encoding, version: Version) -> None:
    async with our_server() as ours, their_client(ours.address, version=version, encoding=encoding) as client:
        requests = items(*(item(number=number, data=b"x" * 1000) for number in range(20)))
        got = await client.execute_client_stream(request=requests, method=method("Total"))
        assert got == item(text="20000", number=190)
        assert await client.execute_client_stream(request=items(), method=method("Total")) == item(text="0")


@both
async def test_a_conversation_goes_back_and_forth(encoding: Encoding) -> None:
    answered: asyncio.Queue[Any] = asyncio.Queue()

    async def requests() -> AsyncIterator[Any]:
        for number in range(10):
            yield item(number=number)
            assert (await answered.get()).number == number

    async with our_server() as ours, their_client(ours.address, encoding=encoding) as client:
        got = []
        async for answer in client.execute_bidi_stream(request=requests(), method=method("Chat")):
            got.append(answer.number)
            answered.put_nowait(answer)
    assert got == list(range(10))


async def test_messages_without_compression_arrive() -> None:
    async with (
        our_server() as ours,
        their_client(ours.address, send_compression=None, accept_compression=()) as client,
    ):
        sent = item(text="x" * 10_000)
        assert await client.execute_unary(request=sent, method=method("Echo")) == sent
        answers = client.execute_server_stream(request=item(text="y" * 1000, number=3), method=method("Count"))
        assert len([answer async for answer in answers]) == 3


async def test_a_timeout_ends_the_handler() -> None:
    async with our_server() as ours, their_client(ours.address) as client:
        with pytest.raises(errors.ConnectError) as caught:
            await client.execute_unary(request=item(), method=method("Wait"), timeout_ms=100)
        assert caught.value.code is Code.DEADLINE_EXCEEDED
        await ours.service.until("wait cancelled")
        left = ours.service.calls[0].deadline
        assert left is not None


async def test_an_answer_over_the_limit_of_the_request_is_resource_exhausted() -> None:
    async with our_server(max_message_bytes=1000) as ours:
        for compression in (untyped("connectrpc.compression.gzip").GzipCompression(), None):
            async with their_client(ours.address, send_compression=compression) as client:
                with pytest.raises(errors.ConnectError) as caught:
                    await client.execute_unary(request=item(text="x" * 5000), method=method("Echo"))
                assert caught.value.code is Code.RESOURCE_EXHAUSTED
                with pytest.raises(errors.ConnectError) as caught:
                    await client.execute_client_stream(request=items(item(text="x" * 5000)), method=method("Total"))
                assert caught.value.code is Code.RESOURCE_EXHAUSTED


async def test_a_method_that_is_not_there_is_unimplemented() -> None:
    missing = untyped("dataclasses").replace(method("Echo"), name="Nonesuch")
    elsewhere = untyped("dataclasses").replace(method("Echo"), service_name="interop.v1.Nonesuch")
    async with our_server() as ours, their_client(ours.address) as client:
        for wanted in (missing, elsewhere):
            with pytest.raises(errors.ConnectError) as caught:
                await client.execute_unary(request=item(), method=wanted)
            assert caught.value.code is Code.UNIMPLEMENTED


async def test_a_message_of_another_type_is_invalid() -> None:
    async with our_server() as ours, their_client(ours.address, encoding="json") as client:

        class Wrong:
            @staticmethod
            def name() -> str:
                return "json"

            @staticmethod
            def encode(message: Any) -> bytes:
                return b'{"number": "many"}'

            @staticmethod
            def decode(data: bytes, message_class: Any) -> Any:
                return generated()[0].Item()

        client._codec = Wrong
        with pytest.raises(errors.ConnectError) as caught:
            await client.execute_unary(request=item(), method=method("Echo"))
        assert caught.value.code is Code.INVALID_ARGUMENT
        assert caught.value.message.startswith("number: ")
