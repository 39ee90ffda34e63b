"""One port speaks HTTP/1.1 and HTTP/2, on TCP and Unix sockets; it says clearly when it cannot, and ends in order."""

from __future__ import annotations

import asyncio
import io
import os
import re
import resource
import socket
import stat
from pathlib import Path

import aiohttp
import h2.config
import h2.connection
import h2.events
import pytest
from http1_support import OK, Recorder, Seen, ask, connect, everything, serving, until
from tests.process_support import output_of

from polywire.errors import SetupError
from polywire.net.http1 import Http1ServerProtocol
from polywire.net.http1.server import QUIET
from polywire.net.listener import Listener
from polywire.net.stream import Limits

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
LAST_GET = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


async def curl(*arguments: str) -> str:
    status, out, _ = await output_of("curl", "-s", "-m", "10", *arguments)
    assert status == 0
    return out.decode()


async def test_curl_gets_answers_over_both_versions_on_one_port() -> None:
    async with serving(Recorder()) as (_, address):
        version = ["-w", " %{http_version}"]
        assert await curl(*version, f"http://{address}/x") == "GET /x  1.1"
        assert await curl(*version, "-d", "body", f"http://{address}/x") == "POST /x body 1.1"
        assert await curl(*version, "--http2-prior-knowledge", "-d", "body", f"http://{address}/x") == "POST /x body 2"
        # It offers `Upgrade: h2c`, which is not taken.
        assert await curl(*version, "--http2", "-d", "body", f"http://{address}/x") == "POST /x body 1.1"
        assert await curl(*version, "-0", f"http://{address}/x") == "GET /x  1.1"


async def test_curl_waits_to_be_told_to_send_a_large_body(tmp_path: Path) -> None:
    body = tmp_path / "body"
    body.write_bytes(b"x" * 2_000_000)
    async with serving(Recorder()) as (_, address):
        arguments = ["-H", "Expect: 100-continue", "--data-binary", f"@{body}", f"http://{address}/"]
        assert len(await curl(*arguments)) == 2_000_007
        assert len(await curl("-H", "Transfer-Encoding: chunked", *arguments)) == 2_000_007


async def test_a_preface_that_comes_byte_by_byte_is_understood() -> None:
    async with serving(Recorder()) as (_, address):
        reader, writer = await connect(address)
        client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
        client.initiate_connection()
        headers = [(":method", "GET"), (":path", "/slow"), (":scheme", "http"), (":authority", "a")]
        client.send_headers(1, headers, end_stream=True)
        for code in client.data_to_send():
            writer.write(bytes([code]))
            await asyncio.sleep(0)
        body = b""
        async with asyncio.timeout(10):
            while True:
                events = client.receive_data(await reader.read(65536))
                body += b"".join(event.data for event in events if isinstance(event, h2.events.DataReceived))
                if any(isinstance(event, h2.events.StreamEnded) for event in events):
                    break
        assert body == b"GET /slow "
        writer.close()
        await writer.wait_closed()


async def test_a_request_that_begins_like_the_preface_is_a_request() -> None:
    async with serving(Recorder()) as (_, address):
        reader, writer = await connect(address)
        writer.write(b"P")
        await writer.drain()
        writer.write(b"RIVATE / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        async with asyncio.timeout(10):
            assert (await reader.read()).endswith(b"\r\n\r\nPRIVATE / ")
        writer.close()


async def test_several_addresses_are_served_at_once(tmp_path: Path) -> None:
    places = ["127.0.0.1:0", f"unix:{tmp_path}/s", "[::1]:0"]
    if not socket.has_ipv6:
        places.pop()
    async with serving(Recorder(), places) as (_, bound):
        addresses = bound.split(",")
        assert re.fullmatch(r"127\.0\.0\.1:\d+", addresses[0])
        assert addresses[1] == places[1]
        for address in addresses[:2]:
            assert (await ask(address, LAST_GET)).endswith(b"\r\n\r\nGET / ")
        if len(addresses) > 2:
            assert re.fullmatch(r"\[::1\]:\d+", addresses[2])
            assert (await curl("-g", f"http://{addresses[2]}/")) == "GET / "


# Unix sockets


async def test_the_file_of_a_unix_socket_is_removed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "s"
    async with serving(Recorder(), f"unix:{path}"):
        assert stat.S_ISSOCK(os.stat(path).st_mode)
    assert not path.exists()


async def test_the_peer_on_a_unix_socket_has_its_path(tmp_path: Path) -> None:
    application = Recorder()
    async with serving(application, f"unix:{tmp_path}/s") as (_, address):
        await ask(address, LAST_GET)
    assert application.last.stream.connection.peer == f"unix:{tmp_path}/s"


async def test_the_file_of_a_process_that_is_gone_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(path))
    async with serving(Recorder(), f"unix:{path}") as (_, address):
        assert (await ask(address, LAST_GET)).endswith(b"GET / ")


async def test_the_file_of_a_live_process_stays(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as alive:
        alive.bind(str(path))
        alive.listen()
        with pytest.raises(SetupError) as raised:
            await Listener(Recorder()).start(f"unix:{path}")
    assert str(raised.value) == (
        f"cannot listen on unix:{path}: the socket is in use by another process. "
        "Stop it, or set `listen` of the service to another address."
    )
    assert path.exists()


async def test_a_file_that_is_no_socket_stays(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(SetupError) as raised:
        await Listener(Recorder()).start(f"unix:{path}")
    assert str(raised.value) == (
        f"cannot listen on unix:{path}: a file that is not a socket is there. Remove it, or choose another path."
    )
    assert path.read_text() == "precious"


# What cannot be listened on


async def test_a_port_in_use_is_refused_and_nothing_is_left_listening() -> None:
    async with serving(Recorder()) as (_, address):
        listener = Listener(Recorder())
        with pytest.raises(SetupError) as raised:
            await listener.start(["127.0.0.1:0", address])
        assert str(raised.value) == (
            f"cannot listen on {address}: the port is in use by another process. "
            "Stop it, or set `listen` of the service to another address."
        )


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (
            "192.0.2.1:0",
            "cannot listen on 192.0.2.1:0: this machine has no such address. "
            "127.0.0.1 is this machine alone, 0.0.0.0 every interface.",
        ),
        ("dns:///a:1", "cannot listen on dns:///a:1: dns:/// is for clients. Write the host and port to bind."),
        (
            "unix:/nowhere/at/all",
            "cannot listen on unix:/nowhere/at/all: the directory does not exist. Create it, or choose another path.",
        ),
        (
            "nowhere.invalid:0",
            "cannot listen on nowhere.invalid:0: the host 'nowhere.invalid' cannot be resolved. "
            "127.0.0.1 is this machine alone, 0.0.0.0 every interface.",
        ),
    ],
)
async def test_an_address_that_cannot_be_bound_is_refused(address: str, words: str) -> None:
    with pytest.raises(SetupError) as raised:
        await Listener(Recorder()).start(address)
    assert str(raised.value) == words


# Limits


async def test_connections_beyond_the_limit_are_closed_at_once() -> None:
    async with serving(Recorder(), limits=Limits(max_connections=2)) as (listener, address):
        held = [await connect(address) for _ in range(2)]
        for reader, writer in held:
            writer.write(GET)
            await reader.readuntil(b"GET / ")
        assert await ask(address, GET) == b""
        assert listener.connections == 2
        for _, writer in held:
            writer.close()
            await writer.wait_closed()
        await until(lambda: not listener.connections)
        assert (await ask(address, LAST_GET)).endswith(b"GET / ")


async def test_a_slow_client_is_cut_off_while_others_are_served() -> None:
    async with serving(Recorder(), limits=Limits(header_timeout=0.6)) as (_, address):
        slow = [await connect(address) for _ in range(20)]
        for number, (_, writer) in enumerate(slow):
            # Some did not even get as far as telling which HTTP they speak.
            writer.write(b"PRI"[: number % 4] or b"GET / HTTP/1.1\r\n")

        async def trickle(writer: asyncio.StreamWriter) -> None:
            while not writer.is_closing():
                writer.write(b"x")
                await asyncio.sleep(0.01)

        trickling = [asyncio.ensure_future(trickle(writer)) for _, writer in slow]
        cut_off = asyncio.gather(*(reader.read() for reader, _ in slow), return_exceptions=True)
        served = 0
        async with asyncio.timeout(10):
            while not cut_off.done():
                assert (await ask(address, LAST_GET)).endswith(b"GET / ")
                served += 1
                await asyncio.sleep(0.005)
        assert served > 5
        for task in trickling:
            task.cancel()
        for _, writer in slow:
            writer.close()


@pytest.mark.slow
async def test_thousands_of_idle_connections_cost_memory_only() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = 2000
    if hard < 2 * count + 200:
        pytest.skip("the system allows too few open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * count + 200), hard))
    async with serving(Recorder()) as (listener, address):
        host, _, port = address.rpartition(":")
        idle = []
        for _ in range(count):
            client = socket.create_connection((host, int(port)))
            client.sendall(GET)
            idle.append(client)
            if len(idle) % 50 == 0:
                await until(lambda: listener.connections == len(idle))
        await until(lambda: listener.connections == count)
        loop = asyncio.get_running_loop()
        timers = [timer for timer in getattr(loop, "_scheduled", []) if not timer.cancelled()]
        assert len(timers) < 10, "one sweep, no timer per connection"
        assert (await ask(address, LAST_GET)).endswith(b"GET / ")
        for client in idle:
            client.close()


# Ending


async def test_draining_finishes_what_is_under_way_and_refuses_new_connections() -> None:
    application = Recorder(None)
    async with serving(application) as (listener, address):
        reader, writer = await connect(address)
        idle_reader, idle_writer = await connect(address)
        writer.write(GET)
        await until(lambda: application.seen and application.last.trailers is not None)
        draining = asyncio.ensure_future(listener.drain(10))
        assert await idle_reader.read() == b"", "an idle connection is closed"
        with pytest.raises(ConnectionError):
            await connect(address)
        assert not draining.done()
        application.last.stream.respond(OK, (), b"done")
        async with asyncio.timeout(10):
            answer = await reader.read()
            await draining
        assert b"\r\nconnection: close\r\n" in answer
        assert answer.endswith(b"\r\n\r\ndone")
        for one in (writer, idle_writer):
            one.close()
            await one.wait_closed()


async def test_a_connection_that_was_just_made_may_bring_its_first_request_while_draining() -> None:
    async with serving(Recorder()) as (listener, address):
        reader, writer = await connect(address)
        second_reader, second_writer = await connect(address)
        await until(lambda: listener.connections == 2)
        draining = asyncio.ensure_future(listener.drain(10))
        await asyncio.sleep(0)
        writer.write(GET)
        answer = await everything(reader)
        assert b"\r\nconnection: close\r\n" in answer
        assert answer.endswith(b"\r\n\r\nGET / ")
        assert await everything(second_reader) == b"", "not for ever, though"
        await draining
        for one in (writer, second_writer):
            one.close()


async def test_a_request_that_waits_to_be_read_is_answered_however_quiet_its_connection_was() -> None:
    """A loop that is behind runs its timers, and whoever drains, before it reads what has arrived meanwhile."""
    async with serving(Recorder(), limits=Limits(header_timeout=0.2)) as (listener, address):
        reader, writer = await connect(address)
        writer.write(GET)
        await reader.readuntil(b"GET / ")
        (member,) = listener._members
        assert isinstance(member, Http1ServerProtocol)
        now = asyncio.get_running_loop().time
        await until(lambda: not member._fresh and now() - member._since > 2 * QUIET)
        writer.write(GET)
        await listener.drain(10)
        answer = await everything(reader)
        assert b"\r\nconnection: close\r\n" in answer
        assert answer.endswith(b"\r\n\r\nGET / ")
        writer.close()


async def test_what_is_not_finished_at_the_end_of_the_grace_is_cut_off() -> None:
    application = Recorder(None)
    async with serving(application) as (listener, address):
        reader, writer = await connect(address)
        writer.write(GET)
        await until(lambda: application.seen)
        async with asyncio.timeout(10):
            await listener.drain(0.05)
        assert listener.connections == 0
        assert application.last.error is not None
        assert await everything(reader) == b""
        writer.close()


async def test_draining_under_load_loses_no_request() -> None:
    """Clients hammer two instances; one is drained; no request fails, though none is repeated."""

    async def later(seen: Seen) -> None:
        await asyncio.sleep(0.001)
        seen.stream.respond(OK, (), b"done")

    tasks: set[asyncio.Task[None]] = set()

    def answer(seen: Seen) -> None:
        task = asyncio.ensure_future(later(seen))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    application = Recorder(answer)
    async with serving(application) as (first, one), serving(application) as (_, other):
        target = one
        done = 0
        failures: list[BaseException] = []

        async def hammer(session: aiohttp.ClientSession) -> None:
            nonlocal done
            while done < 3000:
                try:
                    async with session.get(f"http://{target}/") as response:
                        assert await response.text() == "done"
                except aiohttp.ClientError as error:
                    failures.append(error)
                done += 1

        connector = aiohttp.TCPConnector(limit=32)
        async with aiohttp.ClientSession(connector=connector) as session:
            # Without this aiohttp would repeat a GET by itself, and hide what was lost.
            session._retry_connection = False
            hammering = [asyncio.ensure_future(hammer(session)) for _ in range(32)]
            await until(lambda: done >= 1000)
            target = other
            await first.drain(10)
            assert first.connections == 0
            await asyncio.gather(*hammering)
        assert failures == []
        assert done >= 3000


async def test_a_body_larger_than_all_buffers_arrives_whole() -> None:
    body = os.urandom(10_000_000)
    async with (
        serving(Recorder()) as (_, address),
        aiohttp.ClientSession() as session,
        session.post(f"http://{address}/", data=io.BytesIO(body)) as response,
    ):
        assert await response.read() == b"POST / " + body


async def test_a_client_that_reads_slowly_gets_everything() -> None:
    async def stream_all(seen: Seen) -> None:
        stream = seen.stream
        stream.send_headers(OK)
        for _ in range(200):
            stream.send_data(b"x" * 50_000)
            if not stream.writable:
                await stream.drain()
        stream.send_data(b"", end=True)

    tasks: list[asyncio.Task[None]] = []
    application = Recorder(lambda seen: tasks.append(asyncio.ensure_future(stream_all(seen))))
    async with serving(application) as (_, address):
        answer = await ask(address, LAST_GET)
        assert answer.count(b"x") > 200 * 50_000
        assert answer.endswith(b"\r\n0\r\n\r\n")
        await asyncio.gather(*tasks)
