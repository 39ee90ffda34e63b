"""TLS: both versions of HTTP by ALPN, certificates on either side, and sentences for what is wrong with them."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from pathlib import Path

import aiohttp
import pytest
import trustme
from http1_support import GET, Recorder, Seen, ask, connect, everything, serving, until
from tests.process_support import output_of

from polywire.errors import SetupError
from polywire.net.listener import Listener
from polywire.net.pool import Pool, Version
from polywire.net.stream import Headers, Limits, StreamClosed
from polywire.net.tls import ClientTls, ServerTls

HTTP2_GET = Headers([(b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/"), (b":authority", b"a")])


class Authority:
    """A certificate authority with files for a server and a client."""

    def __init__(self, place: Path) -> None:
        authority = trustme.CA()
        self.ca = place / "ca.pem"
        authority.cert_pem.write_to_path(str(self.ca))
        self.server = place / "server.pem"
        self.client = place / "client.pem"
        for path, name in ((self.server, "localhost"), (self.client, "orders.internal")):
            authority.issue_cert(name).private_key_and_cert_chain_pem.write_to_path(str(path))

    def tls(self) -> ServerTls:
        return ServerTls(certificate=self.server)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


def local(address: str) -> str:
    return "localhost:" + address.rpartition(":")[2]


async def get(pool: Pool) -> bytes:
    seen = Seen()
    seen.stream = (await pool.acquire()).open(HTTP2_GET if pool.version == "2" else GET, (), seen)
    await seen.answered()
    return seen.body


@pytest.mark.parametrize("version", ["1.1", "2"])
async def test_the_version_is_chosen_by_alpn(version: Version, authority: Authority) -> None:
    application = Recorder()
    async with serving(application, tls=authority.tls()) as (_, address):
        pool = Pool(local(address), version=version, tls=ClientTls(ca=authority.ca))
        assert await get(pool) == b"GET / "
        stream = application.last.stream
        assert (stream.version, stream.connection.secure) == (version, True)
        pool.close()
        await until(lambda: pool.connections == 0)


async def test_curl_and_aiohttp_get_answers(authority: Authority) -> None:
    async with serving(Recorder(), tls=authority.tls()) as (_, address):
        for option, version in (("--http2", "2"), ("--http1.1", "1.1")):
            curl = ["curl", "-s", "-m", "10", "--cacert", str(authority.ca), option]
            _, out, _ = await output_of(*curl, "-w", " %{http_version}", f"https://{local(address)}/x")
            assert out.decode() == f"GET /x  {version}"
        trust = ssl.create_default_context(cafile=str(authority.ca))
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"https://{local(address)}/", data=b"x" * 300_000, ssl=trust) as response,
        ):
            assert await response.read() == b"POST / " + b"x" * 300_000


@pytest.mark.parametrize("version", ["1.1", "2"])
async def test_a_client_shows_its_certificate_where_the_server_asks(version: Version, authority: Authority) -> None:
    application = Recorder()
    tls = ServerTls(certificate=authority.server, client_ca=authority.ca)
    async with serving(application, tls=tls) as (_, address):
        trusted = ClientTls(ca=authority.ca, certificate=authority.client)
        pool = Pool(local(address), version=version, tls=trusted)
        await get(pool)
        certificate = application.last.stream.connection.peer_certificate
        assert certificate is not None
        assert certificate["subjectAltName"] == (("DNS", "orders.internal"),)
        pool.close()
        await until(lambda: pool.connections == 0)
        anonymous = Pool(local(address), version=version, tls=ClientTls(ca=authority.ca))
        with pytest.raises(StreamClosed):
            await get(anonymous)
        anonymous.close()
        await asyncio.sleep(0.01)


async def test_a_server_that_is_not_trusted_is_told_in_a_sentence(authority: Authority) -> None:
    async with serving(Recorder(), tls=authority.tls()) as (_, address):
        pool = Pool(local(address), tls=ClientTls())
        with pytest.raises(StreamClosed) as raised:
            await pool.acquire()
        assert raised.value.reason == (
            f"cannot connect to {local(address)}: its certificate is not accepted: "
            "unable to get local issuer certificate"
        )
        pool.close()


async def test_a_name_that_is_not_in_the_certificate_is_told_in_a_sentence(authority: Authority) -> None:
    async with serving(Recorder(), tls=authority.tls()) as (_, address):
        pool = Pool(address, tls=ClientTls(ca=authority.ca))
        with pytest.raises(StreamClosed) as raised:
            await pool.acquire()
        assert raised.value.reason == (
            f"cannot connect to {address}: its certificate is not accepted: "
            "IP address mismatch, certificate is not valid for '127.0.0.1'."
        )
        pool.close()
        named = Pool(address, tls=ClientTls(ca=authority.ca, server_name="localhost"))
        await named.acquire()
        named.close()
        await until(lambda: named.connections == 0)


async def test_a_server_without_http_2_is_told_in_a_sentence(authority: Authority) -> None:
    context = authority.tls().context()
    context.set_alpn_protocols(["http/1.1"])
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    address = f"localhost:{server.sockets[0].getsockname()[1]}"
    async with server:
        pool = Pool(address, tls=ClientTls(ca=authority.ca))
        with pytest.raises(StreamClosed) as raised:
            await pool.acquire()
        assert raised.value.reason == (
            f"cannot connect to {address}: it does not speak HTTP/2: it did not choose h2 by ALPN"
        )
        pool.close()
        await asyncio.sleep(0.01)


async def test_a_client_that_does_not_finish_its_handshake_is_cut_off(authority: Authority) -> None:
    async with serving(Recorder(), tls=authority.tls(), limits=Limits(header_timeout=0.1)) as (_, address):
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        assert await everything(reader) == b""
        writer.close()


async def test_draining_a_secure_listener_ends_idle_connections(authority: Authority) -> None:
    async with serving(Recorder(), tls=authority.tls()) as (listener, address):
        pool = Pool(local(address), version="1.1", tls=ClientTls(ca=authority.ca))
        await get(pool)
        async with asyncio.timeout(10):
            await listener.drain(5)
            await until(lambda: pool.connections == 0)
        pool.close()


@pytest.mark.parametrize("others", [0, 1])
async def test_a_connection_that_is_agreeing_on_tls_may_bring_its_first_request_while_draining(
    authority: Authority, others: int
) -> None:
    trust = ssl.create_default_context(cafile=str(authority.ca))
    async with serving(Recorder(), tls=authority.tls()) as (listener, address):
        pools = [Pool(local(address), version="1.1", tls=ClientTls(ca=authority.ca)) for _ in range(others)]
        for pool in pools:
            await get(pool)
        reader, writer = await connect(address)
        await until(lambda: len(listener._arriving) == 1)
        draining = asyncio.ensure_future(listener.drain(20))
        await until(lambda: listener.connections == 0)
        assert not draining.done()
        await writer.start_tls(trust, server_hostname="localhost")
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        answer = await everything(reader)
        assert b"\r\nconnection: close\r\n" in answer
        assert answer.endswith(b"\r\n\r\nGET / ")
        await asyncio.wait_for(draining, 20)
        writer.close()
        for pool in pools:
            pool.close()


async def test_draining_ends_once_no_peer_is_agreeing_on_tls_any_more(authority: Authority) -> None:
    async with serving(Recorder(), tls=authority.tls()) as (listener, address):
        _, writer = await connect(address)
        await until(lambda: len(listener._arriving) == 1)
        draining = asyncio.ensure_future(listener.drain(600))
        await turns()
        assert not draining.done()
        writer.close()
        await asyncio.wait_for(draining, 20)


@pytest.mark.parametrize("end", ["close", "drain"])
@pytest.mark.parametrize("begun", [b"", b"\x16\x03\x01"])
async def test_connections_that_never_agree_on_tls_end_with_the_listener(
    authority: Authority, begun: bytes, end: str
) -> None:
    listener = Listener(Recorder(), tls=authority.tls())
    address = await listener.start("127.0.0.1:0")
    peers = [await connect(address) for _ in range(3)]
    for _, writer in peers:
        writer.write(begun)
    # Two are on their way in; the last is accepted by nobody yet.
    await until(lambda: len(listener._arriving) >= 2)
    if end == "drain":
        await asyncio.wait_for(listener.drain(0.05), 20)
        assert not listener._arriving
    else:
        listener.close()
    for reader, writer in peers:
        async with asyncio.timeout(20):
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
        writer.close()
    assert listener.connections == 0


async def turns() -> None:
    """Those of the loop that it takes until everybody has heard of a transport that was broken off."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.mark.parametrize("version", ["1.1", "2"])
async def test_connections_whose_peers_take_no_leave_are_broken_off_by_both_sides(
    version: Version, authority: Authority
) -> None:
    """Where the network swallows all, neither side waits for the goodbye of TLS, as asyncio would for 30 s."""
    pumps: list[asyncio.Task[None]] = []
    writers: list[asyncio.StreamWriter] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)

    async with serving(Recorder(), tls=authority.tls()) as (listener, address):

        async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            inner_reader, inner_writer = await connect(address)
            writers.extend((writer, inner_writer))
            pumps.extend(asyncio.ensure_future(pump(*way)) for way in ((reader, inner_writer), (inner_reader, writer)))

        async with await asyncio.start_server(tunnel, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            pool = Pool(f"localhost:{port}", version=version, tls=ClientTls(ca=authority.ca))
            assert await get(pool) == b"GET / "
            for each in pumps:
                each.cancel()
            pool.close()
            await asyncio.wait_for(pool.wait_closed(), 20)
            await turns()
            assert pool.connections == 0
            assert listener.connections == 1
            listener.close()
            await asyncio.wait_for(listener.wait_closed(), 20)
            await turns()
            assert listener.connections == 0
            for writer in writers:
                writer.close()


async def test_peers_that_have_not_agreed_on_tls_count_among_the_connections(authority: Authority) -> None:
    async with serving(Recorder(), tls=authority.tls(), limits=Limits(max_connections=2)) as (listener, address):
        held = [await connect(address) for _ in range(2)]
        await until(lambda: len(listener._arriving) == 2)
        assert await ask(address, b"") == b""
        for _, writer in held:
            writer.close()
        await until(lambda: not listener._arriving)
        trust = ssl.create_default_context(cafile=str(authority.ca))
        async with aiohttp.ClientSession() as session, session.get(f"https://{local(address)}/", ssl=trust) as answer:
            assert await answer.read() == b"GET / "


# What is wrong with the files


def test_a_missing_file_is_named(authority: Authority) -> None:
    with pytest.raises(SetupError) as raised:
        ServerTls(certificate="/nowhere.pem").context()
    assert str(raised.value) == "The certificate '/nowhere.pem' cannot be read: no such file or directory."
    with pytest.raises(SetupError) as raised:
        ServerTls(certificate=authority.server, key="/nowhere.key").context()
    assert str(raised.value) == "The key '/nowhere.key' cannot be read: no such file or directory."
    with pytest.raises(SetupError) as raised:
        ClientTls(ca="/nowhere.ca").context()
    assert str(raised.value) == "The CA file '/nowhere.ca' cannot be read: no such file or directory."


def test_a_file_with_something_else_in_it_is_named(tmp_path: Path, authority: Authority) -> None:
    rubbish = tmp_path / "rubbish.pem"
    rubbish.write_text("rubbish")
    with pytest.raises(SetupError) as raised:
        ServerTls(certificate=rubbish).context()
    assert str(raised.value) == (
        f"The certificate '{rubbish}' with the key in '{rubbish}' cannot be used: it is not in PEM form."
    )
    with pytest.raises(SetupError) as raised:
        ServerTls(certificate=authority.server, client_ca=rubbish).context()
    assert str(raised.value) == f"The CA file '{rubbish}' cannot be used: no certificate or crl found."


def test_a_key_of_another_certificate_is_named(tmp_path: Path, authority: Authority) -> None:
    key = tmp_path / "other.key"
    trustme.CA().issue_cert("localhost").private_key_pem.write_to_path(str(key))
    with pytest.raises(SetupError) as raised:
        ServerTls(certificate=authority.server, key=key).context()
    assert str(raised.value) == (
        f"The certificate '{authority.server}' with the key '{key}' cannot be used: key values mismatch."
    )


def test_a_key_with_a_pass_phrase_is_refused_without_asking(tmp_path: Path, authority: Authority) -> None:
    from cryptography.hazmat.primitives import serialization

    key = tmp_path / "locked.key"
    pem = trustme.CA().issue_cert("localhost").private_key_pem.bytes()
    private = serialization.load_pem_private_key(pem, None)
    key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(SetupError) as raised:
        ServerTls(certificate=authority.server, key=key).context()
    assert str(raised.value) == (
        f"The key '{key}' has a pass phrase. Store it without one, readable by the service alone."
    )


def test_old_versions_of_tls_are_refused(authority: Authority) -> None:
    for context in (authority.tls().context(), ClientTls(ca=authority.ca).context()):
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2
