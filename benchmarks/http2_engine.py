"""CPU time of the HTTP/2 engine by itself, in memory: one unary exchange as each side sees it.

    python benchmarks/http2_engine.py [exchanges]

A client and a server run against each other in turns, 32 exchanges to each read and write, as under load; the time
of each side is taken by itself. The receivers do next to nothing, so that the figures are the engine's.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import hpack

from polywire.net.hpack import Decoder, Encoder
from polywire.net.http2.client import Http2Client
from polywire.net.http2.frames import DATA, END_HEADERS, END_STREAM, HEADERS, WINDOW_UPDATE, frame, pack_u32
from polywire.net.http2.server import Http2Server
from polywire.net.http2.stream import Silent
from polywire.net.stream import Field, Headers, Limits, Receiver, Stream

BATCH = 32
WARM_UP = 10
LIMITS = Limits()
REQUEST = Headers(
    (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", b"/shop.v1.Inventory/CheckStock"),
        (b":authority", b"127.0.0.1:8001"),
        (b"content-type", b"application/grpc+proto"),
        (b"te", b"trailers"),
        (b"user-agent", b"polywire/0.1"),
    )
)
RESPONSE = Headers(((b":status", b"200"), (b"content-type", b"application/grpc+proto")))
TRAILERS = Headers(((b"grpc-status", b"0"),))
ORDER = b"\0\0\0\2\x75" + b"x" * 629


class Answers(Silent):
    """Answers each request with its own body, as a unary handler would."""

    __slots__ = ("body", "stream")

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.body = b""

    def data_received(self, data: bytes) -> None:
        self.body = data

    def ended(self, trailers: tuple[Field, ...]) -> None:
        self.stream.respond(RESPONSE, (), self.body, TRAILERS)


class Reads(Silent):
    """A client that takes the answer as it comes. Its messages are bounded, so credit is left to the engine."""

    __slots__ = ()


def nothing() -> None:
    """Output is fetched after each batch."""


def clock() -> float:
    return 0.0


def tail(number: int) -> tuple[Field, ...]:
    """What differs from call to call: a deadline and a trace."""
    return (
        (b"grpc-timeout", b"%du" % (400_000 + number % 1000)),
        (b"traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-%016x-01" % number),
    )


def both_sides(batches: int, tails: bool) -> tuple[float, float]:
    """Microseconds per exchange at the server and at the client, which run in turns."""
    server = Http2Server(Answers, LIMITS, now=clock, on_output=nothing)
    client = Http2Client(LIMITS, now=clock, on_output=nothing)
    server.receive(client.take())
    client.receive(server.take())
    receiver: Receiver = Reads()
    now = time.process_time
    at_server = at_client = 0.0
    for batch in range(batches):
        fields = [tail(batch * BATCH + number) if tails else () for number in range(BATCH)]
        start = now()
        for own in fields:
            client.open(REQUEST, own, receiver, body=ORDER)
        asked = client.take()
        opened = now()
        server.receive(asked)
        answered = server.take()
        served = now()
        client.receive(answered)
        more = client.take()
        end = now()
        if batch >= WARM_UP:
            at_server += served - opened
            at_client += end - served + opened - start
        if more:
            server.receive(more)
    assert not client.streams
    assert not server.streams
    assert not client.finished
    exchanges = (batches - WARM_UP) * BATCH
    return at_server / exchanges * 1e6, at_client / exchanges * 1e6


def strangers(batches: int) -> float:
    """Microseconds at the server for a peer whose blocks index whatever they contain, with the Huffman code."""
    encoder = hpack.Encoder()
    server = Http2Server(Answers, LIMITS, now=clock, on_output=nothing)
    server.receive(Http2Client(LIMITS, now=clock, on_output=nothing).take())
    spent = 0.0
    for batch in range(batches):
        data = b""
        for number in range(BATCH):
            sid = 2 * (batch * BATCH + number) + 1
            block = encoder.encode([*REQUEST.fields, *tail(batch * BATCH + number)])
            data += frame(HEADERS, END_HEADERS, sid, block) + frame(DATA, END_STREAM, sid, ORDER)
        data += frame(WINDOW_UPDATE, 0, 0, pack_u32(BATCH * len(ORDER)))
        start = time.process_time()
        server.receive(data)
        server.take()
        if batch >= WARM_UP:
            spent += time.process_time() - start
    assert not server.finished
    assert not server.streams
    return spent / ((batches - WARM_UP) * BATCH) * 1e6


def block_decoding(count: int) -> tuple[float, float]:
    """Microseconds for a block of nine fields: as our client sends it, and as one that indexes everything does."""
    encoder, decoder = Encoder(), Decoder(LIMITS.max_header_bytes, LIMITS.max_header_count)
    ours = _timed(decoder.decode, [encoder.encode(REQUEST, tail(number)) for number in range(count)])
    other = hpack.Encoder()
    decoder = Decoder(LIMITS.max_header_bytes, LIMITS.max_header_count)
    indexing = [other.encode([*REQUEST.fields, *tail(number)]) for number in range(count)]
    return ours, _timed(decoder.decode, indexing)


def _timed(function: Callable[[bytes], object], blocks: list[bytes]) -> float:
    start = time.process_time()
    for block in blocks:
        function(block)
    return (time.process_time() - start) / len(blocks) * 1e6


def main() -> None:
    batches = max(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000, 1_000) // BATCH
    print("µs of CPU per unary exchange, engine only, best of 5   server  client")
    for name, tails in (("the same headers each time", False), ("two headers of its own per call", True)):
        figures = [both_sides(batches, tails) for _ in range(5)]
        server, client = (min(side) for side in zip(*figures, strict=True))
        print(f"  {name:<50} {server:8.2f} {client:7.2f}")
    print(f"  {'a peer that indexes everything':<50} {min(strangers(batches // 4) for _ in range(5)):8.2f}")
    blocks = [block_decoding(batches * BATCH // 4) for _ in range(5)]
    ours, indexing = (min(kind) for kind in zip(*blocks, strict=True))
    print("µs of CPU per header block not seen before")
    print(f"  {'seven indices and two literals':<50} {ours:8.2f}")
    print(f"  {'seven indices and two fields indexed anew':<50} {indexing:8.2f}")


if __name__ == "__main__":
    main()
