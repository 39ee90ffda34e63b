"""Our Connect client against connectrpc's server, in both encodings and over both versions of HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from connect_support import Encoding, our_client, their_server
from grpc_support import Item, until

from polywire.context import calling
from polywire.contract.details import ErrorInfo
from polywire.errors import BY_CODE, CallError, DeadlineExceeded, OutOfRange, ResourceExhausted
from polywire.net.pool import Version

both = pytest.mark.parametrize("encoding", ["proto", "json"])
versions = pytest.mark.parametrize("version", ["1.1", "2"])
compressed = pytest.mark.parametrize("compress", [False, True])


@both
@versions
@compressed
async def test_a_unary_call_brings_back_message_headers_and_trailers(
    encoding: Encoding, version: Version, compress: bool
) -> None:
    async with (
        their_server() as (address, theirs),
        our_client(address, version=version, encoding=encoding, compress=compress) as client,
    ):
        sent = Item(text="grün ✓" * 1000, number=-(2**60), data=b"\x00\xff")
        with calling(timeout=5, metadata={"tenant": "a", "token-bin": b"\x00\xff"}) as call:
            assert await client.echo(sent) == sent
        assert call.headers["x-leading"] == "before"
        assert call.trailers["x-trailing"] == "after"
        assert theirs.headers[0]["tenant"] == "a"
        assert theirs.headers[0]["token-bin"] == "AP8"
        assert theirs.headers[0]["x-request-id"]
        left = theirs.timeouts[0]
        assert left is not None
        assert 4000 < left <= 5000


@both
@versions
async def test_every_code_arrives_as_its_class(encoding: Encoding, version: Version) -> None:
    async with their_server() as (address, _), our_client(address, version=version, encoding=encoding) as client:
        for code, kind in BY_CODE.items():
            with pytest.raises(CallError) as caught:
                await client.fail(Item(text="canceled" if code == "cancelled" else code))
            assert type(caught.value) is kind
            assert caught.value.message == f"failed with {'canceled' if code == 'cancelled' else code}: 100 % ✓"
            assert caught.value.details == (ErrorInfo(reason="ASKED_FOR", domain="t"),)
            assert caught.value.metadata["x-trailing"] == "after"


@both
@versions
@compressed
async def test_a_streamed_answer_arrives_in_order(encoding: Encoding, version: Version, compress: bool) -> None:
    async with (
        their_server() as (address, _),
        our_client(address, version=version, encoding=encoding, compress=compress) as client,
    ):
        with calling() as call:
            got = [answer async for answer in client.count(Item(text="t" * 2000, number=50))]
        assert got == [Item(text="t" * 2000, number=number) for number in range(50)]
        assert call.headers["x-leading"] == "before"
        assert call.trailers["x-trailing"] == "after"


@both
async def test_an_error_comes_after_the_messages_before_it(encoding: Encoding) -> None:
    got = []
    async with their_server() as (address, _), our_client(address, encoding=encoding) as client:
        answers = client.count(Item(text="fail", number=5))
        for _ in range(2):
            got.append((await anext(answers)).number)
        with pytest.raises(OutOfRange) as caught:
            await anext(answers)
    assert got == [0, 1]
    assert caught.value.details == (ErrorInfo(reason="ASKED_FOR", domain="t"),)


@both
@versions
@compressed
async def test_streamed_requests_are_answered(encoding: Encoding, version: Version, compress: bool) -> None:
    async def requests() -> AsyncIterator[Item]:
        for number in range(20):
            yield Item(text="", number=number, data=b"x" * 2000)

    async with (
        their_server() as (address, _),
        our_client(address, version=version, encoding=encoding, compress=compress) as client,
    ):
        assert await client.total(requests()) == Item(text="40000", number=190)


@both
async def test_a_conversation_goes_back_and_forth(encoding: Encoding) -> None:
    answered: asyncio.Queue[Item] = asyncio.Queue()

    async def requests() -> AsyncIterator[Item]:
        for number in range(10):
            yield Item(text="", number=number)
            assert (await answered.get()).number == number

    got = []
    async with their_server() as (address, _), our_client(address, encoding=encoding) as client:
        async for answer in client.chat(requests()):
            got.append(answer.number)
            answered.put_nowait(answer)
    assert got == list(range(10))


async def test_a_call_ends_at_its_deadline_and_the_other_side_stops() -> None:
    async with their_server() as (address, theirs), our_client(address) as client:
        with calling(timeout=0.2), pytest.raises(DeadlineExceeded):
            await client.wait(Item(text="uvicorn loses a request whose body is empty"))
        await until(lambda: "wait ended" in theirs.events)


async def test_a_request_over_their_limit_is_resource_exhausted() -> None:
    async with their_server() as (address, _), our_client(address) as client:
        with pytest.raises(ResourceExhausted):
            await client.echo(Item(text="x" * 5_000_000))
