"""gRPC over TLS with grpcio on the other end, and certificates that prove who calls, on every wire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
from grpc_support import SOON, Item, Rig, RigService, generated, grpc
from test_grpc_we_call_grpcio import Servicer

from polywire import Unavailable, connect
from polywire.channel import Channel, Endpoints
from polywire.client import client_for
from polywire.connecting import RemoteWire, channel_to
from polywire.context import Call, _current, current
from polywire.contract import Contract, Message, get, rpc
from polywire.discovery import StaticResolver
from polywire.net.tls import ClientTls, ServerTls
from polywire.server import Certificates, Server
from polywire.wire.local import LocalWire

WIRES: list[RemoteWire] = ["grpc", "connect", "http"]


class Files:
    """A certificate authority, and what it and a stranger to it have signed."""

    def __init__(self, place: Path) -> None:
        authority, stranger = trustme.CA(), trustme.CA()
        self.ca = self._written(place / "ca.pem", authority.cert_pem)
        self.server = self._issued(place / "server.pem", authority, "localhost")
        self.orders = self._issued(place / "orders.pem", authority, "orders.internal", "orders")
        self.named = self._written(
            place / "named.pem",
            authority.issue_cert("127.0.0.1", common_name="payments").private_key_and_cert_chain_pem,
        )
        self.forged = self._issued(place / "forged.pem", stranger, "orders")

    @staticmethod
    def _written(path: Path, blob: trustme.Blob) -> Path:
        blob.write_to_path(str(path))
        return path

    def _issued(self, path: Path, authority: trustme.CA, *names: str) -> Path:
        return self._written(path, authority.issue_cert(*names).private_key_and_cert_chain_pem)

    def client(self, certificate: Path | None = None) -> ClientTls:
        return ClientTls(ca=self.ca, certificate=certificate)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return Files(tmp_path_factory.mktemp("certificates"))


def local(address: str) -> str:
    return "localhost:" + address.rpartition(":")[2]


@asynccontextmanager
async def serving(service: object, tls: ServerTls, **options: Any) -> AsyncIterator[str]:
    server = Server([service], tls=tls, **options)
    address = await server.start("127.0.0.1:0")
    try:
        yield local(address)
    finally:
        await server.close()


def grpcio_credentials(files: Files, certificate: Path | None = None) -> Any:
    pem = None if certificate is None else certificate.read_bytes()
    return grpc.ssl_channel_credentials(files.ca.read_bytes(), pem, pem)


# grpcio calls us


async def test_grpcio_calls_us_over_tls_in_all_four_kinds(files: Files) -> None:
    messages, _ = generated()
    async with (
        serving(RigService(), ServerTls(certificate=files.server)) as address,
        grpc.aio.secure_channel(address, grpcio_credentials(files)) as channel,
    ):
        stub = generated()[1].RigStub(channel)
        large = messages.Item(text="a", data=b"x" * 1_000_000)
        assert await stub.Echo(large, timeout=SOON) == large
        assert [item.number async for item in stub.Count(messages.Item(number=3), timeout=SOON)] == [0, 1, 2]
        items = [messages.Item(number=number) for number in range(4)]
        assert (await stub.Total(iter(items), timeout=SOON)).number == 6
        assert [item.number async for item in stub.Chat(iter(items), timeout=SOON)] == [0, 1, 2, 3]


async def test_grpcio_that_trusts_another_authority_does_not_get_through(files: Files) -> None:
    async with serving(RigService(), ServerTls(certificate=files.server)) as address:
        wrong = grpc.ssl_channel_credentials(files.forged.read_bytes())
        async with grpc.aio.secure_channel(address, wrong) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await generated()[1].RigStub(channel).Echo(generated()[0].Item(), timeout=SOON)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_the_certificate_of_grpcio_is_its_caller(files: Files) -> None:
    service = RigService()
    tls = ServerTls(certificate=files.server, client_ca=files.ca)
    async with serving(service, tls, authenticator=Certificates()) as address:
        async with grpc.aio.secure_channel(address, grpcio_credentials(files, files.orders)) as channel:
            metadata = [("polywire-principal", "ann")]
            await generated()[1].RigStub(channel).Echo(generated()[0].Item(), timeout=SOON, metadata=metadata)
        # Without one, or with that of a stranger, nobody gets in.
        for certificate in (None, files.forged):
            async with grpc.aio.secure_channel(address, grpcio_credentials(files, certificate)) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await generated()[1].RigStub(channel).Echo(generated()[0].Item(), timeout=5.0)
                # The second one where it had not given up trying by then.
                assert refused.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    assert [(call.caller, call.principal) for call in service.calls] == [("orders.internal", "ann")]


# We call grpcio


@asynccontextmanager
async def grpcio_serving(files: Files, servicer: Any, *, asks: bool) -> AsyncIterator[str]:
    server = grpc.aio.server()
    generated()[1].add_RigServicer_to_server(servicer, server)
    pem = files.server.read_bytes()
    credentials = grpc.ssl_server_credentials(
        [(pem, pem)], root_certificates=files.ca.read_bytes() if asks else None, require_client_auth=asks
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield f"localhost:{port}"
    finally:
        await server.stop(None)


async def test_we_call_grpcio_over_tls_in_all_four_kinds(files: Files) -> None:
    async with (
        grpcio_serving(files, Servicer(), asks=False) as address,
        connect(Rig, f"grpcs://{address}", tls=files.client()) as rig,
    ):
        large = Item(text="a", data=b"x" * 1_000_000)
        assert await rig.echo(large) == large
        assert [item.number async for item in rig.count(Item(text="", number=3))] == [0, 1, 2]

        async def items() -> AsyncIterator[Item]:
            for number in range(4):
                yield Item(text="", number=number)

        assert (await rig.total(items())).number == 6
        assert [item.number async for item in rig.chat(items())] == [0, 1, 2, 3]


async def test_grpcio_knows_us_by_our_certificate(files: Files) -> None:
    names: list[Any] = []

    class Asking(Servicer):
        async def Echo(self, request: Any, context: Any) -> Any:
            names.append(context.auth_context()["x509_subject_alternative_name"])
            return request

    async with grpcio_serving(files, Asking(), asks=True) as address:
        async with connect(Rig, f"grpcs://{address}", tls=files.client(files.orders)) as rig:
            await rig.echo(Item(text="a"))
        for certificate in (None, files.forged):
            async with connect(Rig, f"grpcs://{address}", tls=files.client(certificate)) as rig:
                with pytest.raises(Unavailable):
                    await rig.echo(Item(text="a"))
    assert names == [[b"orders.internal", b"orders"]]


# Certificates that change


async def test_grpcio_calls_us_while_our_authority_is_replaced_and_no_call_fails(tmp_path: Path) -> None:
    messages, _ = generated()
    old, new = trustme.CA(), trustme.CA()
    server, trusted = tmp_path / "server.pem", tmp_path / "ca.pem"
    both = old.cert_pem.bytes() + new.cert_pem.bytes()

    def issue(authority: trustme.CA) -> bytes:
        return authority.issue_cert("localhost", "orders").private_key_and_cert_chain_pem.bytes()

    server.write_bytes(issue(old))
    trusted.write_bytes(old.cert_pem.bytes())
    own = issue(old)

    async def called(pem: bytes, roots: bytes) -> str:
        """What a new channel of grpcio gets that shows *pem* and trusts *roots*."""
        credentials = grpc.ssl_channel_credentials(roots, pem, pem)
        async with grpc.aio.secure_channel(address, credentials) as channel:
            try:
                await generated()[1].RigStub(channel).Echo(messages.Item(), timeout=SOON)
            except grpc.aio.AioRpcError as error:
                return str(error.code().name)
            return "ok"

    async def until(pem: bytes, roots: bytes) -> None:
        """Wait until it gets in, while one with the old files, as long as they are to count, never does not."""
        async with asyncio.timeout(60):
            while await called(pem, roots) != "ok":
                assert await called(own, both) == "ok"

    async with (
        serving(RigService(), ServerTls(certificate=server, client_ca=trusted)) as address,
        grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(both, own, own)) as staying,
    ):
        stub = generated()[1].RigStub(staying)
        await stub.Echo(messages.Item(), timeout=SOON)
        trusted.write_bytes(both)
        await until(issue(new), both)
        server.write_bytes(issue(new))
        await until(issue(new), new.cert_pem.bytes())
        before, own = own, issue(new)
        trusted.write_bytes(new.cert_pem.bytes())
        async with asyncio.timeout(60):
            while await called(before, both) == "ok":
                assert await called(own, both) == "ok"
        await stub.Echo(messages.Item(), timeout=SOON)


# Who calls, on every wire


class Who(Message, package="interop.v1"):
    caller: str | None = None
    principal: str | None = None


class Knowing(Contract, package="interop.v1"):
    @rpc(get("/who"))
    async def who(self) -> Who:
        """Who calls, as far as that was proven."""
        raise NotImplementedError


class KnowingService(Knowing):
    async def who(self) -> Who:
        return Who(caller=current().caller, principal=current().principal)


@asynccontextmanager
async def acting_for_ann() -> AsyncIterator[None]:
    """As in the handler of a call whose principal is ann."""
    call = Call("interop.v1.Test/Ann")
    call.principal = "ann"
    token = _current.set(call)
    try:
        yield
    finally:
        _current.reset(token)


@pytest.mark.parametrize("wire", WIRES)
async def test_a_caller_is_known_by_its_certificate_and_may_speak_for_a_user(wire: RemoteWire, files: Files) -> None:
    tls = ServerTls(certificate=files.server, client_ca=files.ca)
    for known, certificate, caller in (
        ([], files.orders, "orders.internal"),
        (["orders", "payments"], files.orders, "orders"),
        (["orders", "payments"], files.named, "payments"),
    ):
        async with serving(KnowingService(), tls, authenticator=Certificates(known)) as address, acting_for_ann():
            channel = channel_to(address, wire=wire, tls=files.client(certificate), inside=True)
            assert await client_for(Knowing, channel).who() == Who(caller=caller, principal="ann")
            await channel.close()
            # What is outside of the system is not told for whom it is called.
            async with connect(Knowing, address, wire=wire, tls=files.client(certificate)) as client:
                assert await client.who() == Who(caller=caller)
            async with connect(Knowing, address, wire=wire, tls=files.client(files.forged)) as client:
                with pytest.raises(Unavailable):
                    await client.who()


@pytest.mark.parametrize("wire", WIRES)
async def test_without_a_certificate_tls_alone_proves_nothing(wire: RemoteWire, files: Files) -> None:
    async with (
        serving(KnowingService(), ServerTls(certificate=files.server)) as address,
        connect(Knowing, address, wire=wire, tls=files.client(files.orders)) as client,
        acting_for_ann(),
    ):
        assert await client.who() == Who()


async def test_a_service_of_the_same_process_is_known_without_one() -> None:
    server = Server([KnowingService()], authenticator=Certificates())

    def open_wire(caller: str | None) -> Channel:
        endpoints = Endpoints(StaticResolver(["local"]), lambda _: LocalWire(server.services, caller=caller))
        return Channel("who", endpoints, inside=True)

    async with acting_for_ann():
        assert await client_for(Knowing, open_wire("orders")).who() == Who(caller="orders", principal="ann")
    await server.close()


def test_a_certificate_without_a_name_proves_nothing() -> None:
    call = Call("interop.v1.Knowing/Who")
    assert Certificates().caller_of(call) is None
    call.peer_certificate = {"subject": (), "subjectAltName": (("IP Address", "127.0.0.1"),)}
    assert Certificates().caller_of(call) is None
    call.peer_certificate = {"subjectAltName": (("URI", "spiffe://shop/orders"), ("DNS", "orders"))}
    assert Certificates().caller_of(call) == "spiffe://shop/orders"
