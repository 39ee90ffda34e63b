"""Each named flood, over a real socket: its connection is cut off, while grpcio and aiohttp are served on theirs."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager

import pytest
from http1_support import until
from http2_support import REQUEST, Call
from test_http2_floods import FLOODS, repeated
from tests.faults.notes_service import NotesService, Strangers, strangers_at

from polywire.net.http2.frames import ACK, GOAWAY, PING, PREFACE, SETTINGS, ErrorCode, frame, unpack_header
from polywire.net.listener import Listener
from polywire.net.stream import Limits, Receiver, Stream
from polywire.server import Server

PATIENCE = 100.0
CHUNK = 64 * 1024
SLOW = dict(REQUEST.fields)[b":path"]
MOST_GROWTH = 64 * 1024 * 1024


async def reader_and_writer(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = address.rpartition(":")
    return await asyncio.open_connection(host, int(port), limit=1 << 26)


async def pour(writer: asyncio.StreamWriter, flood: Iterator[bytes]) -> None:
    """Send *flood* until the other side has had enough."""
    pieces = bytearray()
    try:
        for piece in flood:
            pieces += piece
            if len(pieces) >= CHUNK:
                writer.write(bytes(pieces))
                pieces.clear()
                await writer.drain()
    except ConnectionError:
        return
    raise AssertionError("the flood came to its end")


def reason(output: bytes) -> tuple[int, str] | None:
    """Code and words of the GOAWAY at the end of a connection; None where the reset overtook it."""
    position = 0
    while position + 9 <= len(output):
        word, _, _ = unpack_header(output, position)
        payload = output[position + 9 : position + 9 + (word >> 8)]
        if word & 0xFF == GOAWAY and payload[4:8] != bytes(4):
            return int.from_bytes(payload[4:8], "big"), payload[8:].decode()
        position += 9 + (word >> 8)
    return None


@asynccontextmanager
async def served_all_the_while(ask: Callable[[], Awaitable[object]]) -> AsyncIterator[None]:
    """*ask* goes on and on; none of it may fail."""
    served = 0

    async def go_on() -> None:
        nonlocal served
        while True:
            await ask()
            served += 1

    task = asyncio.ensure_future(go_on())
    try:
        yield
        before = served
        await until(lambda: served >= before + 3 or task.done())
    finally:
        task.cancel()
        await asyncio.wait([task])
    assert task.cancelled(), task.exception()


@asynccontextmanager
async def notes_beside_a_slow_service() -> AsyncIterator[Strangers]:
    """Peers of the notes; whatever else is asked for on their port is never answered."""
    service = NotesService()
    server = Server([service])

    def application(stream: Stream) -> Receiver:
        return Call(stream) if stream.head.path == SLOW else server(stream)

    listener = Listener(application, limits=Limits(max_concurrent_streams=1000))
    address = await listener.start("127.0.0.1:0")
    try:
        async with strangers_at(address, service) as peers:
            yield peers
    finally:
        listener.close()
        await server.close()


@pytest.mark.slow
@pytest.mark.parametrize("name", FLOODS)
async def test_a_flood_ends_its_connection_and_no_other(name: str) -> None:
    flood, words, _ = FLOODS[name]
    async with notes_beside_a_slow_service() as peers, asyncio.timeout(PATIENCE):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        async with served_all_the_while(peers.are_served):
            reader, writer = await reader_and_writer(peers.address)
            writer.write(PREFACE + frame(SETTINGS, 0, 0) + frame(SETTINGS, ACK, 0))
            pouring = asyncio.ensure_future(pour(writer, flood()))
            output = b""
            try:
                while data := await reader.read(CHUNK):
                    output += data
            except ConnectionError:
                pass
            writer.close()
            await pouring
        # The reset that follows bytes which nobody reads may overtake what was said last.
        assert reason(output) in ((ErrorCode.ENHANCE_YOUR_CALM, words), None)
        assert 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) < MOST_GROWTH


@pytest.mark.slow
async def test_a_peer_that_reads_nothing_is_cut_off_and_no_other() -> None:
    async with (
        notes_beside_a_slow_service() as peers,
        asyncio.timeout(PATIENCE),
        served_all_the_while(peers.are_served),
    ):
        _, writer = await reader_and_writer(peers.address)
        writer.transport.pause_reading()  # type: ignore[attr-defined]  # asyncio has it
        writer.write(PREFACE + frame(SETTINGS, 0, 0) + frame(SETTINGS, ACK, 0))
        await pour(writer, repeated(frame(PING, 0, 0, b"12345678"))())
        writer.close()
