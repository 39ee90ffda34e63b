"""Certificates that change while a listener and its clients run."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from http1_support import GET, Recorder, Seen, serving, until
from trust_support import Authority, handshake, write

from polywire.net.loop import run
from polywire.net.pool import Pool, Version
from polywire.net.stream import Headers, StreamClosed
from polywire.net.tls import RECHECK, ClientTls, LiveContext, ServerTls
from polywire.testing import ManualClock

HTTP2_GET = Headers([(b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/"), (b":authority", b"a")])
STAY = " What was loaded before stays in use until the files are right."


class Pair:
    """A server and a client of one authority, with a clock that stands still."""

    def __init__(self, place: Path) -> None:
        self.clock = ManualClock()
        self.authority = Authority(place)
        self.ca = self.authority.trusted()
        self.certificate = self.authority.issue("server.pem", "localhost", service="first")
        self.own = self.authority.issue("client.pem", "client", service="client")
        self.server = ServerTls(certificate=self.certificate, client_ca=self.ca).context(clock=self.clock)
        self.client = ClientTls(ca=self.ca, certificate=self.own).context(clock=self.clock)

    def names(self) -> tuple[str, str]:
        """The common names that the client and the server see of each other in a new connection."""
        seen, shown = handshake(self.client, self.server)
        return common_name(seen), common_name(shown)


def common_name(certificate: dict[str, tuple[tuple[tuple[str, str], ...], ...]]) -> str:
    return dict(part for group in certificate["subject"] for part in group)["commonName"]


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


async def test_a_certificate_that_was_replaced_is_shown_after_a_second(pair: Pair) -> None:
    assert pair.names() == ("first", "client")
    pair.authority.issue("server.pem", "localhost", service="second")
    pair.authority.issue("client.pem", "client", service="other")
    assert pair.names() == ("first", "client")
    await pair.clock.advance(RECHECK)
    assert pair.names() == ("second", "other")


async def test_what_was_copied_with_its_time_of_change_is_noticed(pair: Pair) -> None:
    import os

    before = pair.certificate.stat()
    pair.authority.issue("server.pem", "localhost", service="second")
    os.utime(pair.certificate, ns=(before.st_atime_ns, before.st_mtime_ns))
    await pair.clock.advance(RECHECK)
    assert pair.names() == ("second", "client")


async def test_an_authority_that_was_taken_out_is_refused_in_new_connections(pair: Pair, tmp_path: Path) -> None:
    other = Authority(tmp_path)
    pair.authority.trusted("ca.pem", other)
    await pair.clock.advance(RECHECK)
    assert pair.names() == ("first", "client")
    other.issue("client.pem", "client", service="moved")
    other.issue("server.pem", "localhost", service="moved too")
    await pair.clock.advance(RECHECK)
    assert pair.names() == ("moved too", "moved")
    other.trusted("ca.pem")
    pair.authority.issue("client.pem", "client", service="late")
    await pair.clock.advance(RECHECK)
    with pytest.raises(ssl.SSLCertVerificationError):
        pair.names()


RUBBISH: dict[str, tuple[Callable[[Pair], object], str]] = {
    "rubbish": (
        lambda pair: write(pair.certificate, b"rubbish"),
        "The certificate '{0}/server.pem' with the key in '{0}/server.pem' cannot be used: it is not in PEM form.",
    ),
    "nothing": (
        lambda pair: pair.certificate.unlink(),
        "The certificate '{0}/server.pem' cannot be read: no such file or directory.",
    ),
    "half of it": (
        lambda pair: write(pair.certificate, pair.certificate.read_bytes()[:-900]),
        "The certificate '{0}/server.pem' with the key in '{0}/server.pem' cannot be used: it is not in PEM form.",
    ),
    "a CA without one": (
        lambda pair: write(pair.ca, b""),
        "The CA file '{0}/ca.pem' cannot be used: no certificate or crl found.",
    ),
}


@pytest.mark.parametrize("what", RUBBISH)
async def test_a_broken_file_leaves_what_was_loaded_and_is_said_once(
    what: str, pair: Pair, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    breaking, message = RUBBISH[what]
    pair.client = ClientTls(ca=pair.authority.trusted("mine.pem"), certificate=pair.own).context()
    breaking(pair)
    for _ in range(3):
        await pair.clock.advance(RECHECK)
        assert pair.names() == ("first", "client")
    assert [record.getMessage() for record in caplog.records] == [message.format(tmp_path) + STAY]
    assert caplog.records[0].levelno == logging.ERROR
    assert caplog.records[0].exc_info is None


async def test_a_key_that_comes_after_its_certificate_is_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    clock, authority = ManualClock(), Authority(tmp_path)
    first, second = (authority.root.issue_cert("localhost", common_name=name) for name in ("first", "second"))
    certificate = write(tmp_path / "cert.pem", first.cert_chain_pems[0].bytes())
    key = write(tmp_path / "key.pem", first.private_key_pem.bytes())
    server = ServerTls(certificate=certificate, key=key).context(clock=clock)
    client = ClientTls(ca=authority.trusted()).context()

    write(certificate, second.cert_chain_pems[0].bytes())
    await clock.advance(RECHECK)
    assert common_name(handshake(client, server)[0]) == "first"
    write(key, second.private_key_pem.bytes())
    await clock.advance(RECHECK)
    assert common_name(handshake(client, server)[0]) == "second"
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("ERROR", f"The certificate '{certificate}' with the key '{key}' cannot be used: key values mismatch." + STAY),
        ("INFO", f"new connections use what is in {certificate}, {key} now"),
    ]


async def test_the_files_are_looked_at_once_a_second_however_many_connect(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    look = LiveContext.look

    def counted(self: LiveContext) -> None:
        nonlocal looks
        looks += 1
        look(self)

    monkeypatch.setattr(LiveContext, "look", counted)
    for _ in range(3):
        await pair.clock.advance(RECHECK)
        for _ in range(5):
            pair.names()
    assert looks == 6  # three by either side


async def test_a_context_that_was_replaced_resumes_no_session_of_before(pair: Pair, tmp_path: Path) -> None:
    """A session of TLS 1.2 would bring its client in without a look at its certificate."""
    pair.client.maximum_version = ssl.TLSVersion.TLSv1_2

    def connect(session: ssl.SSLSession | None) -> ssl.SSLObject:
        up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
        ours = pair.client.wrap_bio(down, up, server_hostname="localhost", session=session)
        theirs = pair.server.wrap_bio(up, down, server_side=True)
        for side in (ours, theirs, ours, theirs, ours):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
        return ours

    session = connect(None).session
    assert connect(session).session_reused
    pair.authority.issue("server.pem", "localhost", service="second")
    await pair.clock.advance(RECHECK)
    assert not connect(session).session_reused


async def get(pool: Pool) -> bytes:
    seen = Seen()
    seen.stream = (await pool.acquire()).open(HTTP2_GET if pool.version == "2" else GET, (), seen)
    await seen.answered()
    return seen.body


def on_asyncio(test: Awaitable[None]) -> None:
    asyncio.run(test)  # type: ignore[arg-type]  # it is a coroutine


@pytest.mark.parametrize("runner", [on_asyncio, run], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("version", ["1.1", "2"])
def test_a_listener_and_a_pool_follow_their_files(
    runner: Callable[[Awaitable[None]], object], version: Version, tmp_path: Path
) -> None:
    async def body() -> None:
        old, new = Authority(tmp_path), Authority(tmp_path)
        server, own = old.issue("server.pem", "localhost"), old.issue("client.pem", "orders")
        trusted = old.trusted()
        application = Recorder()
        tls = ServerTls(certificate=server, client_ca=trusted)
        async with serving(application, tls=tls) as (_, address):
            place = "localhost:" + address.rpartition(":")[2]
            staying = Pool(place, version=version, tls=ClientTls(ca=trusted, certificate=own))
            assert await get(staying) == b"GET / "
            new.issue("server.pem", "localhost")
            new.issue("client.pem", "orders")
            new.trusted("ca.pem")
            stranger = ClientTls(ca=new.trusted("new.pem"), certificate=old.issue("old.pem", "orders"))

            async def is_new() -> bool:
                fresh = Pool(place, version=version, tls=ClientTls(ca=tmp_path / "new.pem", certificate=own))
                try:
                    return await get(fresh) == b"GET / "
                except StreamClosed:
                    return False
                finally:
                    fresh.close()

            async with asyncio.timeout(60):
                while not await is_new():  # noqa: ASYNC110 - nothing tells of a file that was looked at
                    await asyncio.sleep(0.05)
            # The connection of before is as good as it was, and its pool connects with the new files by itself.
            assert await get(staying) == b"GET / "
            refused = Pool(place, version=version, tls=stranger)
            with pytest.raises(StreamClosed):
                await get(refused)
            for pool in (staying, refused):
                pool.close()
                await until(lambda pool=pool: pool.connections == 0)  # type: ignore[misc]  # default binds

    runner(body())
