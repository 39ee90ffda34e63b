"""Several listeners share one port: who has the fewest connections takes the next."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import pytest
from http1_support import Recorder, connect, everything, until

from polywire.errors import SetupError
from polywire.net import sharing
from polywire.net.listener import Listener
from polywire.net.sharing import Counts, SharedPort
from polywire.net.stream import Limits

REQUEST = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"
LAST = b"GET /x HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


@contextmanager
def port(size: int, *addresses: str) -> Iterator[SharedPort]:
    shared = SharedPort.open(addresses or ("127.0.0.1:0",), size)
    try:
        yield shared
    finally:
        shared.close(remove=True)


def as_elsewhere(shared: SharedPort) -> SharedPort:
    """The same port as another process would have it: with file descriptors of its own."""
    counts = Counts(os.dup(shared.counts.descriptor), shared.counts.size)
    return SharedPort([(address, listening.dup()) for address, listening in shared.sockets], counts)


@contextmanager
def sharing_in(listener: Listener, shared: SharedPort, index: int) -> Iterator[None]:
    copy = as_elsewhere(shared)
    listener.share(copy, index)
    try:
        yield
    finally:
        listener.close()
        copy.close()


@asynccontextmanager
async def listeners(shared: SharedPort, count: int, limits: Limits | None = None) -> AsyncIterator[list[Listener]]:
    made = [Listener(Recorder(), limits=limits) for _ in range(count)]
    with ExitStack() as stack:
        for index, listener in enumerate(made):
            await listener.start("127.0.0.1:0")
            stack.enter_context(sharing_in(listener, shared, index))
        yield made


async def opened(address: str) -> asyncio.StreamWriter:
    """A connection on which a request was answered."""
    reader, writer = await connect(address)
    writer.write(REQUEST)
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    return writer


async def test_connections_that_stay_are_shared_out() -> None:
    with port(3) as shared:
        async with listeners(shared, 3) as three:
            writers: list[asyncio.StreamWriter] = []
            for _ in range(30):
                writers.append(await opened(shared.address))
                # Those that left this one to others look at the port again.
                await asyncio.sleep(2 * sharing.YIELD)
            connections = [listener.connections for listener in three]
            assert connections == [10, 10, 10]
            assert [shared.counts.of(index) for index in range(3)] == connections
            # Who lost some gets the next ones.
            for writer in writers:
                writer.close()
            await until(lambda: sum(listener.connections for listener in three) == 0)
            assert [shared.counts.of(index) for index in range(3)] == [0, 0, 0]


async def test_one_that_joins_late_catches_up() -> None:
    with port(2) as shared:
        async with listeners(shared, 1) as (first,):
            kept = [await opened(shared.address) for _ in range(6)]
            second = Listener(Recorder())
            await second.start("127.0.0.1:0")
            with sharing_in(second, shared, 1):
                kept += [await opened(shared.address) for _ in range(6)]
                assert first.connections + second.connections == 12
                assert second.connections >= 5
            before = first.connections
            kept += [await opened(shared.address) for _ in range(3)]
            assert first.connections == before + 3
            assert shared.counts.of(1) == sharing.ABSENT
            for writer in kept:
                writer.close()


async def test_one_that_has_fewer_and_does_not_come_is_not_waited_for() -> None:
    with port(2) as shared:
        shared.counts.set(1, 0)  # it is there, and stuck
        async with listeners(shared, 1) as (only,):
            kept = [await opened(shared.address) for _ in range(10)]
            assert only.connections == 10
            for writer in kept:
                writer.close()


async def test_a_connection_that_waits_is_taken_by_the_others_when_one_drains() -> None:
    with port(2) as shared:
        async with listeners(shared, 2) as (first, second):
            reader, writer = await connect(shared.address)
            await first.drain(0.0)
            await second.drain(0.0)
            assert [shared.counts.of(index) for index in range(2)] == [sharing.ABSENT, sharing.ABSENT]
            # Nobody accepts now, and nobody is turned away: the sockets are not those of the two.
            late_reader, late = await connect(shared.address)
            late.write(LAST)
            third = Listener(Recorder())
            await third.start("127.0.0.1:0")
            with sharing_in(third, shared, 0):
                assert b"GET /x " in await everything(late_reader)
            for each in (writer, late):
                each.close()
            await everything(reader)


async def test_every_address_is_shared(tmp_path: Path) -> None:
    path = f"unix:{tmp_path}/s.sock"
    with port(2, path, "127.0.0.1:0") as shared:
        assert shared.address.startswith(f"{path},127.0.0.1:")
        async with listeners(shared, 2):
            for address in shared.address.split(","):
                (await opened(address.removeprefix("http://"))).close() if not address.startswith("unix:") else None
            reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s.sock"))
            writer.write(LAST)
            assert b"GET /x " in await everything(reader)
            writer.close()
    assert os.listdir(tmp_path) == []


def test_what_cannot_be_listened_on_is_said_and_nothing_stays_open(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        taken = held.getsockname()[1]
        with pytest.raises(SetupError) as caught:
            SharedPort.open(("127.0.0.1:0", f"127.0.0.1:{taken}"), 2)
    assert str(caught.value) == (
        f"cannot listen on 127.0.0.1:{taken}: the port is in use by another process. "
        "Stop it, or set `listen` of the service to another address."
    )
    with pytest.raises(SetupError) as caught:
        SharedPort.open(("dns:///a:1",), 2)
    assert str(caught.value) == (
        "cannot listen on dns:///a:1: dns:/// is for clients. Write the host and port to bind."
    )


async def test_without_file_descriptors_it_waits_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sharing, "TIRED", 0.05)
    refusals = 2

    class Exhausted(socket.socket):
        def accept(self) -> tuple[socket.socket, object]:
            nonlocal refusals
            if refusals:
                refusals -= 1
                raise OSError(errno.EMFILE, "Too many open files")
            return super().accept()

    with port(1) as shared:
        address, listening = shared.sockets[0]
        exhausted = Exhausted(fileno=os.dup(listening.fileno()))
        exhausted.setblocking(False)
        listener = Listener(Recorder())
        with exhausted:
            await listener.start("127.0.0.1:0")
            listener.share(SharedPort([(address, exhausted)], shared.counts), 0)
            (await opened(address)).close()
            listener.close()
    assert [record.getMessage() for record in caplog.records if record.name == "polywire.server"] == [
        "no connection was accepted: [Errno 24] Too many open files. The next attempt is in 0.05 s."
    ] * 2


CHILD = """
import sys
from polywire.net.sharing import SharedPort
port = SharedPort.inherited(sys.argv[1])
assert port.handed_down() == sys.argv[1]
port.counts.set(1, 7)
connection, _ = port.sockets[0][1].accept()
connection.sendall(b"hello")
"""


def test_another_process_inherits_it() -> None:
    with port(2) as shared:
        host, _, number = shared.address.rpartition(":")
        with socket.create_connection((host, int(number))) as client:
            command = [sys.executable, "-c", CHILD, shared.handed_down()]
            subprocess.run(command, pass_fds=shared.descriptors, check=True, timeout=60)
            assert client.recv(5) == b"hello"
        assert [shared.counts.of(index) for index in range(2)] == [sharing.ABSENT, 7]
        shared.absent(1)
        assert shared.counts.fewest(0) is None


def test_the_fewest_are_those_of_the_others_that_are_there() -> None:
    counts = Counts.create(4)
    try:
        assert counts.fewest(0) is None
        counts.set(0, 1)
        counts.set(2, 5)
        counts.set(3, 3)
        assert (counts.fewest(0), counts.fewest(3)) == (3, 1)
    finally:
        counts.close()
