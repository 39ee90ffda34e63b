"""Who calls, whether they may, and for whom: the same on every wire, and nothing told to those who may not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, cast

import pytest
from grpc_support import SOON, grpc, untyped

from polywire import Call, Contract, Message, PermissionDenied, Server, Unauthenticated, allow, connect, current, rpc
from polywire.channel import Channel, Endpoints
from polywire.client import client_for
from polywire.connecting import RemoteWire, channel_to
from polywire.context import _current
from polywire.contract import get, post
from polywire.discovery import StaticResolver
from polywire.errors import CallError
from polywire.server import BearerTokens
from polywire.wire.local import LocalWire

health_pb2 = untyped("grpc_health.v1.health_pb2")
health_pb2_grpc = untyped("grpc_health.v1.health_pb2_grpc")
WIRES = ["local", "grpc", "connect", "http"]
NETWORK: list[RemoteWire] = ["grpc", "connect", "http"]
SECRETS = {"orders": "orders-s3cret", "reports": "reports-s3cret", "gateway": "gateway-s3cret"}


def _tokens() -> BearerTokens:
    return BearerTokens({name: lambda secret=secret: secret for name, secret in SECRETS.items()})  # type: ignore[misc]  # default binds


class Line(Message, package="trust.v1"):
    text: str = ""
    caller: str | None = None
    principal: str | None = None


class Till(Contract, package="trust.v1"):
    @rpc(post("/lines"))
    async def write(self, line: Line) -> Line:
        raise NotImplementedError

    @rpc(get("/lines/{text}"))
    async def read(self, line: Line) -> Line:
        raise NotImplementedError

    @rpc
    def watch(self, line: Line) -> AsyncIterator[Line]:
        raise NotImplementedError

    @rpc
    async def total(self, lines: AsyncIterator[Line]) -> Line:
        raise NotImplementedError

    @rpc
    def talk(self, lines: AsyncIterator[Line]) -> AsyncIterator[Line]:
        raise NotImplementedError


def told() -> Line:
    return Line(caller=current().caller, principal=current().principal)


class OpenTill(Till):
    def __init__(self) -> None:
        self.started: list[str] = []

    def begins(self) -> Line:
        self.started.append(current().method)
        return told()

    async def write(self, line: Line) -> Line:
        return self.begins()

    async def read(self, line: Line) -> Line:
        return self.begins()

    async def watch(self, line: Line) -> AsyncIterator[Line]:
        yield self.begins()

    async def total(self, lines: AsyncIterator[Line]) -> Line:
        return self.begins()

    async def talk(self, lines: AsyncIterator[Line]) -> AsyncIterator[Line]:
        yield self.begins()


@allow("orders", "gateway")
class GuardedTill(OpenTill):
    @allow("gateway")
    async def read(self, line: Line) -> Line:
        return self.begins()


class Served:
    def __init__(self, server: Server, address: str) -> None:
        self.server = server
        self.address = address
        self._channels: list[Channel] = []

    def client(self, wire: str, token: str | None = None) -> Till:
        given = None if token is None else lambda: token
        if wire == "local":
            endpoints = Endpoints(StaticResolver(["local"]), lambda _: LocalWire(self.server.services))
            channel = Channel("till", endpoints, token=given, inside=True)
        else:
            channel = channel_to(self.address, wire=cast("RemoteWire", wire), token=given, inside=True)
        self._channels.append(channel)
        return client_for(Till, channel)

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()
        await self.server.close()


@asynccontextmanager
async def serving(service: object, **options: Any) -> AsyncIterator[Served]:
    server = Server([service], **options)
    served = Served(server, await server.start("127.0.0.1:0"))
    try:
        yield served
    finally:
        await served.close()


async def one() -> AsyncIterator[Line]:
    yield Line()


async def collected(stream: AsyncIterator[Line]) -> Line:
    (only,) = [line async for line in stream]
    return only


async def all_kinds(till: Till) -> dict[str, Line | CallError]:
    """What each method of the till answers, or ends with."""
    calls: dict[str, Callable[[], Awaitable[Line]]] = {
        "Write": lambda: till.write(Line(text="a")),
        "Read": lambda: till.read(Line(text="a")),
        "Watch": lambda: collected(till.watch(Line())),
        "Total": lambda: till.total(one()),
        "Talk": lambda: collected(till.talk(one())),
    }
    found: dict[str, Line | CallError] = {}
    for method, call in calls.items():
        try:
            found[method] = await call()
        except CallError as error:
            found[method] = error
    return found


def texts(found: dict[str, Line | CallError]) -> dict[str, str]:
    return {name: answer.message if isinstance(answer, CallError) else "ok" for name, answer in found.items()}


def refusals(text: str, *methods: str) -> dict[str, str]:
    return {method: text.format(f"trust.v1.Till/{method}") for method in methods}


ALL = ("Write", "Read", "Watch", "Total", "Talk")
DENIED = "{} was refused: this caller may not call it."
MISSING = "{} was refused: it needs credentials, and none came."
WRONG = "{} was refused: the credentials are not valid here."


@pytest.mark.parametrize("wire", WIRES)
async def test_who_may_call_is_the_same_for_every_kind_of_method(wire: str) -> None:
    service = GuardedTill()
    async with serving(service, authenticator=_tokens()) as served:
        by_orders = await all_kinds(served.client(wire, SECRETS["orders"]))
        by_gateway = await all_kinds(served.client(wire, SECRETS["gateway"]))
        assert texts(by_orders) == {**dict.fromkeys(ALL, "ok"), **refusals(DENIED, "Read")}
        assert type(by_orders["Read"]) is PermissionDenied
        assert by_gateway == dict.fromkeys(ALL, Line(caller="gateway"))
        service.started.clear()
        by_reports = await all_kinds(served.client(wire, SECRETS["reports"]))
        by_nobody = await all_kinds(served.client(wire))
        by_somebody = await all_kinds(served.client(wire, "guess"))
    assert texts(by_reports) == refusals(DENIED, *ALL)
    assert {type(error) for error in by_reports.values()} == {PermissionDenied}
    assert texts(by_nobody) == refusals(MISSING, *ALL)
    assert texts(by_somebody) == refusals(WRONG, *ALL)
    assert {type(error) for error in (*by_nobody.values(), *by_somebody.values())} == {Unauthenticated}
    assert service.started == []


@pytest.mark.parametrize("wire", WIRES)
async def test_the_server_and_the_code_both_have_to_allow(wire: str) -> None:
    async with serving(GuardedTill(), authenticator=_tokens(), allow=["orders", "reports"]) as served:
        assert texts(await all_kinds(served.client(wire, SECRETS["gateway"]))) == refusals(DENIED, *ALL)
        assert texts(await all_kinds(served.client(wire, SECRETS["reports"]))) == refusals(DENIED, *ALL)
        ok = await all_kinds(served.client(wire, SECRETS["orders"]))
        assert texts(ok) == {**dict.fromkeys(ALL, "ok"), **refusals(DENIED, "Read")}


@contextmanager
def acting_for(principal: str) -> Iterator[None]:
    parent = Call("trust.v1.Test/Parent")
    parent.principal = principal
    token = _current.set(parent)
    try:
        yield
    finally:
        _current.reset(token)


@pytest.mark.parametrize("wire", WIRES)
async def test_a_principal_is_believed_from_a_proven_caller_alone_and_never_at_a_public_listener(wire: str) -> None:
    with acting_for("ann"):
        async with serving(OpenTill(), authenticator=_tokens()) as served:
            believed = await all_kinds(served.client(wire, SECRETS["orders"]))
            assert believed == dict.fromkeys(ALL, Line(caller="orders", principal="ann"))
        for options in ({}, {"authenticator": _tokens(), "public": True}):
            async with serving(OpenTill(), **options) as served:
                assert await all_kinds(served.client(wire, SECRETS["orders"])) == dict.fromkeys(ALL, Line())


@pytest.mark.parametrize("wire", NETWORK)
async def test_a_principal_is_not_told_to_what_is_outside_of_the_system(wire: RemoteWire) -> None:
    """`connect` reaches addresses, of which nobody says that they belong to the system."""
    async with serving(OpenTill(), authenticator=_tokens()) as served:
        with acting_for("ann"):
            async with connect(Till, served.address, wire=wire, token=SECRETS["orders"]) as till:
                assert await all_kinds(till) == dict.fromkeys(ALL, Line(caller="orders"))


# What strangers send is not even read, and what they are told is the same whatever they send.


async def ask(address: str, path: str, body: bytes, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """One request over HTTP/1.1, byte by byte as written here."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    head = "\r\n".join(
        [f"POST {path} HTTP/1.1", "host: a", f"content-length: {len(body)}", "connection: close", *lines]
    )
    writer.write(head.encode() + b"\r\n\r\n" + body)
    async with asyncio.timeout(SOON):
        answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    top, _, rest = answer.partition(b"\r\n\r\n")
    status, *fields = top.decode().split("\r\n")
    return int(status.split()[1]), {name: value for name, _, value in (field.partition(": ") for field in fields)}, rest


@pytest.mark.parametrize("body", [b'{"text": "a"}', b"not JSON", b'{"text": 7}', b""])
@pytest.mark.parametrize("path", ["/trust.v1.Till/Write", "/lines"])
async def test_strangers_are_told_the_same_whatever_they_send(path: str, body: bytes) -> None:
    async with serving(GuardedTill(), authenticator=_tokens()) as served:
        expected = {
            "": (401, "unauthenticated", MISSING),
            "Bearer guess": (401, "unauthenticated", WRONG),
            "Basic b3JkZXJz": (401, "unauthenticated", WRONG),
            f"Bearer {SECRETS['reports']}": (403, "permission_denied", DENIED),
        }
        for credentials, (status, code, text) in expected.items():
            message = text.format("trust.v1.Till/Write")
            given = {"authorization": credentials} if credentials else {}
            answer = await ask(served.address, path, body, content_type="application/json", **given)
            found = json.loads(answer[2])
            assert answer[0] == status
            if path == "/lines":
                assert answer[1]["content-type"] == "application/problem+json"
                assert found["error"] == {"code": code, "message": message, "field": None}
                assert found["status"] == status
            else:
                assert found == {"code": code, "message": message}


@pytest.mark.parametrize("token", [None, "guess", SECRETS["reports"]])
async def test_grpcio_sends_rubbish_and_is_told_who_it_is_not(token: str | None) -> None:
    async with (
        serving(GuardedTill(), authenticator=_tokens()) as served,
        grpc.aio.insecure_channel(served.address) as channel,
    ):
        call = channel.unary_unary("/trust.v1.Till/Write")
        metadata = [] if token is None else [("authorization", f"Bearer {token}")]
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(b"\xff\xff\xff", metadata=metadata, timeout=SOON)
    code, text = (grpc.StatusCode.UNAUTHENTICATED, MISSING if token is None else WRONG)
    if token == SECRETS["reports"]:
        code, text = grpc.StatusCode.PERMISSION_DENIED, DENIED
    assert (refused.value.code(), refused.value.details()) == (code, text.format("trust.v1.Till/Write"))


@pytest.mark.parametrize("path", ["/trust.v1.Till/Nothing", "/trust.v1.Nothing/Write", "/nothing"])
async def test_strangers_at_a_public_listener_are_not_told_which_methods_there_are(path: str) -> None:
    async with (
        serving(OpenTill(), public=True) as served,
        grpc.aio.insecure_channel(served.address) as channel,
    ):
        message = f"{path.removeprefix('/')} was not called: there is no such method here."
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await channel.unary_unary(path)(b"", timeout=SOON)
        assert (refused.value.code(), refused.value.details()) == (grpc.StatusCode.UNIMPLEMENTED, message)
        status, _, body = await ask(served.address, path, b"{}", content_type="application/json")
        assert status == 404
        assert b"Write" not in body.replace(path.encode(), b"").replace(path.removeprefix("/").encode(), b"")


async def test_health_is_asked_by_anybody() -> None:
    async with serving(GuardedTill(), authenticator=_tokens(), allow=["orders"]) as served:
        async with grpc.aio.insecure_channel(served.address) as channel:
            asked = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=SOON)
            assert (await asked).status == health_pb2.HealthCheckResponse.SERVING
        for path in ("/livez", "/readyz", "/healthz"):
            host, _, port = served.address.rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(f"GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n".encode())
            assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
            writer.close()
            await writer.wait_closed()


@pytest.mark.parametrize("wire", NETWORK)
@pytest.mark.parametrize("token", ["two\nlines", "höher", " ", "a" * 3 + "\r\nx-evil: 1"])
async def test_a_token_that_no_header_carries_is_not_sent_and_not_shown(wire: RemoteWire, token: str) -> None:
    service = OpenTill()
    async with serving(service) as served:
        for answer in (await all_kinds(served.client(wire, token))).values():
            assert isinstance(answer, CallError)
            assert (answer.code, answer.message) == (
                "invalid_argument",
                "The authorization of the call was not sent: it has characters other than printable ASCII, or white "
                "space around it (perhaps the line end of the file that it was read from).",
            )
    assert service.started == []
