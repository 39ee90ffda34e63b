"""What our own client is told of calls that cannot be, on every wire; and rules that hold for streams as well."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Annotated, Any, cast, get_args

import pytest
from tests.faults.test_bad_input import curl

from polywire import Contract, Message, Server, calling, get, post, rpc
from polywire.channel import Channel, Endpoints
from polywire.client import client_for
from polywire.connecting import RemoteWire, channel_to
from polywire.context import Call, _current, current
from polywire.contract import Field
from polywire.discovery import StaticResolver
from polywire.errors import (
    CallError,
    DeadlineExceeded,
    InvalidArgument,
    ResourceExhausted,
    Unauthenticated,
    Unimplemented,
)
from polywire.net.stream import Limits
from polywire.server import BearerTokens
from polywire.testing.wires import Amount, Probe, ProbeService
from polywire.wire.local import LocalWire

REMOTE: list[RemoteWire] = list(get_args(RemoteWire))
WIRES = ["local", *REMOTE]
TOKENS = BearerTokens({"orders": lambda: "s3cret"})


class Who(Message):
    principal: str | None = None


class Line(Message):
    text: Annotated[str, Field(max_length=5_000_000)]
    weight: Annotated[int, Field(ge=0, le=100)] = 0


class Ledger(Contract, package="rules.v1"):
    @rpc(post("/lines"), timeout=5)
    async def write(self, line: Line) -> Line:
        """The line; one with a weight of 99 comes back with ten times its text."""
        raise NotImplementedError

    @rpc(get("/me"))
    async def me(self) -> Who:
        """Whom the call is for."""
        raise NotImplementedError

    @rpc
    def mine(self, who: Who) -> AsyncIterator[Who]:
        """Whom the call is for, once."""
        raise NotImplementedError

    @rpc
    async def ours(self, all: AsyncIterator[Who]) -> Who:
        """Whom the call is for."""
        raise NotImplementedError

    @rpc
    def theirs(self, all: AsyncIterator[Who]) -> AsyncIterator[Who]:
        """Whom the call is for, once for each."""
        raise NotImplementedError


class LedgerService(Ledger):
    def __init__(self) -> None:
        self.written = 0

    async def write(self, line: Line) -> Line:
        self.written += 1
        return Line(text=line.text * 10) if line.weight == 99 else line

    async def me(self) -> Who:
        return Who(principal=current().principal)

    async def mine(self, who: Who) -> AsyncIterator[Who]:
        yield Who(principal=current().principal)

    async def ours(self, all: AsyncIterator[Who]) -> Who:
        async for _ in all:
            pass
        return Who(principal=current().principal)

    async def theirs(self, all: AsyncIterator[Who]) -> AsyncIterator[Who]:
        async for _ in all:
            yield Who(principal=current().principal)


class NewerLedger(Contract, package="rules.v1", name="Ledger"):
    """What a client of the next version knows."""

    @rpc(post("/totals"))
    async def total(self, line: Line) -> Line:
        """Not there yet."""
        raise NotImplementedError


class Books(Contract, package="rules.v1"):
    @rpc(post("/books"))
    async def open(self, line: Line) -> Line:
        """Served by nobody here."""
        raise NotImplementedError


class Served:
    def __init__(self, server: Server, address: str, wire: str) -> None:
        self.address = address
        self._server = server
        self._wire = wire
        self._channels: list[Channel] = []

    def client(self, contract: Any, token: str | None = None) -> Any:
        if self._wire == "local":
            endpoints = Endpoints(StaticResolver(["local"]), lambda _: LocalWire(self._server.services))
            channel = Channel("rules", endpoints, token=None if token is None else lambda: token, inside=True)
        else:
            channel = channel_to(self.address, wire=cast("RemoteWire", self._wire), token=token, inside=True)
        self._channels.append(channel)
        return client_for(contract, channel)

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()
        await self._server.close()


@asynccontextmanager
async def serving(wire: str, service: object | None = None, **options: Any) -> AsyncIterator[Served]:
    """A ledger, and clients of it over *wire*. Afterwards it has to serve the next call."""
    server = Server([service or LedgerService()], **options)
    served = Served(server, await server.start("127.0.0.1:0"), wire)
    try:
        yield served
        if service is None:
            token = "s3cret" if "authenticator" in options else None
            assert await served.client(Ledger, token).write(Line(text="a")) == Line(text="a")
    finally:
        await served.close()


@contextmanager
def part_of(parent: Call) -> Iterator[None]:
    """As in the handler of *parent*."""
    token = _current.set(parent)
    try:
        yield
    finally:
        _current.reset(token)


async def said(call: Any, kind: type[CallError]) -> str:
    with pytest.raises(CallError) as caught:
        await call
    assert type(caught.value) is kind
    return caught.value.message


# What a call is refused with


@pytest.mark.parametrize("wire", WIRES)
async def test_a_method_that_the_service_does_not_have_yet(wire: str) -> None:
    text = "rules.v1.Ledger/Total was not called: rules.v1.Ledger has no method 'Total'. It has: {}."
    if wire == "http":
        text = "There is nothing at /totals. Look for a typing error, or a slash at the end."
    async with serving(wire) as served:
        call = served.client(NewerLedger).total(Line(text="a"))
        assert await said(call, Unimplemented) == text.format("Write, Me, Mine, Ours, Theirs")


@pytest.mark.parametrize("wire", WIRES)
async def test_a_service_that_is_not_there(wire: str) -> None:
    async with serving(wire) as served:
        texts = {
            "http": "There is nothing at /books. Look for a typing error, or a slash at the end.",
            "connect": f"{served.address} did not answer with Connect but with HTTP status 404. Is the service there, "
            "or a proxy?",
        }
        text = (
            "rules.v1.Books/Open was not called: there is no service 'rules.v1.Books' here. Check the package of the "
            "contract, and the address."
        )
        assert await said(served.client(Books).open(Line(text="a")), Unimplemented) == texts.get(wire, text)


@pytest.mark.parametrize("wire", WIRES)
async def test_values_that_the_contract_does_not_allow_are_not_sent(wire: str) -> None:
    wrong: Any = {"text": 5}
    missing: Any = {"text": None}
    service = LedgerService()
    async with serving(wire, service) as served:
        write = served.client(Ledger).write
        for line, text in (
            (Line(**wrong), "Line.text: expected `str`, got `int`"),
            (Line(**missing), "Line.text: expected `str`, got `null`"),
            (Line(text="a", weight=101), "Line.weight: expected `int` <= 100"),
            (Line(text="\ud800"), "Line.text: expected text, got half of a surrogate pair"),
        ):
            assert await said(write(line), InvalidArgument) == text
        with pytest.raises(TypeError) as caught:
            await write(Who())
        assert str(caught.value) == "rules.v1.Ledger/Write was not called: it takes a Line, not a Who."
        assert service.written == 0
        assert await write(Line(text="a")) == Line(text="a")


@pytest.mark.parametrize("wire", WIRES)
async def test_a_request_over_the_limit(wire: str) -> None:
    split = "Split it, or raise `max_message_bytes` at its receiver."
    texts = {
        "connect": f"A message of more than 1000 bytes was not read. {split}",
        "http": "rules.v1.Ledger/Write: POST /lines was not called: its body is over the limit of 1000 bytes. Split "
        "it, or raise `max_message_bytes` of the service.",
    }
    text = f"A message of 2003 bytes was not read: the limit is 1000 bytes. {split}"
    async with serving(wire, max_message_bytes=1000) as served:
        call = served.client(Ledger).write(Line(text="a" * 2000))
        assert await said(call, ResourceExhausted) == texts.get(wire, text)


@pytest.mark.parametrize("wire", WIRES)
async def test_an_answer_over_the_limit(wire: str) -> None:
    texts: dict[str, str] = dict.fromkeys(
        ["connect", "http"],
        "The answer of rules.v1.Ledger/Write was not read: it is over the limit of 4194304 bytes. Ask for less, or "
        "raise `max_message_bytes` of the client.",
    )
    text = (
        "A message of 4500005 bytes was not read: the limit is 4194304 bytes. Split it, or raise `max_message_bytes` "
        "at its receiver."
    )
    async with serving(wire) as served:
        call = served.client(Ledger).write(Line(text="a" * 450_000, weight=99))
        assert await said(call, ResourceExhausted) == texts.get(wire, text)


@pytest.mark.parametrize("wire", REMOTE)
async def test_headers_over_the_limit(wire: RemoteWire) -> None:
    async with serving(wire, limits=Limits(max_header_bytes=2000)) as served:
        client = served.client(Ledger)
        first = (
            f"{served.address} did not take the call: its headers are over the limit there. Send less metadata, or "
            "raise `max_header_bytes` at their receiver."
        )
        with calling(metadata={"x-large": "y" * 3000}):
            assert await said(client.write(Line(text="a")), ResourceExhausted) == first
            # By now an HTTP/2 server has said how many it takes.
            second = await said(client.write(Line(text="a")), ResourceExhausted)
        size = re.sub(r"are \d+ bytes", "are N bytes", second)
        assert size == (
            first
            if wire == "http"
            else f"{served.address} was not called: the headers are N bytes, as HTTP/2 counts them, and the other side "
            "takes 2000. Send less metadata, or raise `max_header_bytes` at their receiver."
        )


@pytest.mark.parametrize("wire", WIRES)
async def test_a_deadline_that_cannot_be_kept(wire: str) -> None:
    async with serving(wire) as served:
        with calling(timeout=1e-9):
            assert await said(served.client(Ledger).write(Line(text="a")), DeadlineExceeded) == (
                "rules.v1.Ledger/Write did not answer within 1e-09 s. It may still be running there: make it "
                "idempotent before retrying, or raise `timeout=` in the contract or with `calling(timeout=...)`."
            )


@pytest.mark.parametrize("wire", WIRES)
async def test_a_token_that_is_missing_or_of_nobody(wire: str) -> None:
    async with serving(wire, authenticator=TOKENS) as served:
        assert await said(served.client(Ledger).write(Line(text="a")), Unauthenticated) == (
            "rules.v1.Ledger/Write was refused: it needs credentials, and none came."
        )
        assert await said(served.client(Ledger, "guess").write(Line(text="a")), Unauthenticated) == (
            "rules.v1.Ledger/Write was refused: the credentials are not valid here."
        )


# Rules that hold for streams as they do for single calls


async def whose(client: Any) -> list[str | None]:
    """The principals that each kind of method is told."""

    async def one() -> AsyncIterator[Who]:
        yield Who()

    return [
        (await client.me()).principal,
        *[who.principal async for who in client.mine(Who())],
        (await client.ours(one())).principal,
        *[who.principal async for who in client.theirs(one())],
    ]


@pytest.mark.parametrize("wire", WIRES)
async def test_a_principal_is_believed_only_with_proof(wire: str) -> None:
    for authenticator, token, told in ((None, None, None), (TOKENS, "s3cret", "ann")):
        service = LedgerService()
        async with serving(wire, service, authenticator=authenticator) as served:
            parent = Call("rules.v1.Test/Parent")
            parent.principal = "ann"
            with part_of(parent):
                assert await whose(served.client(Ledger, token)) == [told] * 4
            assert await whose(served.client(Ledger, token)) == [None] * 4


@pytest.mark.parametrize("wire", ["local", "grpc"])
async def test_the_principal_of_a_stream_is_believed_only_with_proof(wire: str) -> None:
    async with serving(wire) as served:
        parent = Call("rules.v1.Test/Parent")
        parent.principal = "ann"
        with part_of(parent):
            assert [who.principal async for who in served.client(Ledger).mine(Who())] == [None]


async def test_a_stream_whose_deadline_has_passed_is_not_begun() -> None:
    probe = ProbeService()
    async with serving("grpc", probe) as served:
        # A stream of requests is refused by its headers alone.
        for method, message in (("Count", b"\x08\x05"), ("Total", None), ("Chat", None)):
            path = f"polywire.probe.v1.Probe/{method}"
            got = await curl(served.address, "grpc-timeout: 1n", path=path, message=message)
            assert (got["grpc-status"], got["grpc-message"]) == (
                "4",
                f"{path} was not started: its deadline had passed when it arrived.",
            )
        assert (probe.produced, probe.ended) == (0, [])
        assert [amount.amount async for amount in served.client(Probe).count(Amount(amount=2))] == [0, 1]
