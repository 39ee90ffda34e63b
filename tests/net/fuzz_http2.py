"""Feeds mutated frames to both engines and looks for what must not be: an exception, or memory without bound.

    python tests/net/fuzz_http2.py [frames] [seed]

The same seed does the same. Of a failure, the frames of the connection are printed as hex.
"""

from __future__ import annotations

import random
import resource
import sys
import time
from contextlib import suppress

import hpack

from polywire.net.http2.client import Http2Client
from polywire.net.http2.engine import Http2Connection
from polywire.net.http2.frames import (
    ACK,
    CONTINUATION,
    DATA,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
    pack_setting,
    pack_u32,
)
from polywire.net.http2.server import Http2Server
from polywire.net.http2.upkeep import MAX_REMEMBERED
from polywire.net.stream import Field, Head, Headers, HeadersTooLarge, Limits, Stream, StreamClosed

LIMITS = Limits(max_concurrent_streams=50, max_header_bytes=4096, stream_window=65_535, connection_window=200_000)
REQUEST = (
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/a.B/C"),
    (b":authority", b"a"),
    (b"te", b"trailers"),
)
ASKED = Headers(REQUEST)
ANSWER = Headers(((b":status", b"200"), (b"content-type", b"application/grpc")))
TRAILERS = Headers(((b"grpc-status", b"0"),))
EXTRA = (
    (b"content-length", b"5"),
    (b"grpc-timeout", b"1S"),
    (b"cookie", b"a=b"),
    (b"x-name", b"v" * 60),
    (b"connection", b"close"),
)
KINDS = (HEADERS, DATA, WINDOW_UPDATE, RST_STREAM, SETTINGS, PING, PRIORITY, CONTINUATION, GOAWAY, PUSH_PROMISE)
WEIGHTS = (40, 30, 8, 6, 6, 4, 4, 0.3, 0.3, 0.2)
MAX_FRAMES = 120
"""Of one connection; then a new one is begun."""
MOST_GROWTH = 64 * 1024 * 1024


class Whimsical:
    """A receiver that answers, consumes, resets or does nothing, by chance; and counts what may come once only."""

    def __init__(self, dice: random.Random, stream: Stream | None = None) -> None:
        self.dice = dice
        self.stream = stream
        self.endings = 0

    def headers_received(self, head: Head, tail: tuple[Field, ...]) -> None:
        assert self.endings == 0
        assert head.status >= 200

    def data_received(self, data: bytes) -> None:
        assert self.endings == 0
        if self.stream is not None and self.dice.random() < 0.7:
            self.stream.consumed(len(data))
        self.act(0.05)

    def ended(self, trailers: tuple[Field, ...]) -> None:
        assert self.endings == 0
        self.endings = 1
        self.act(0.9)

    def failed(self, error: StreamClosed) -> None:
        assert self.endings < 2
        self.endings = 2
        assert error.reason

    def act(self, chance: float) -> None:
        stream = self.stream
        if stream is None or self.dice.random() > chance:
            return
        whim = self.dice.random()
        if whim < 0.6:
            stream.respond(ANSWER, (), b"x" * self.dice.choice((0, 5, 30_000)), TRAILERS)
        elif whim < 0.8:
            stream.send_headers(ANSWER, ((b"x", b"y"),))
            stream.send_data(b"x" * 20_000)
        elif whim < 0.9:
            stream.reset(8)


class Fuzz:
    """One run. *frames* counts the mutated ones so far; more than twice as many go between them unharmed."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.frames = 0
        self.connections = 0
        self.time = 0.0
        self.fed: list[bytes] = []
        self.stream = -1
        self.encoder: hpack.Encoder | None = None

    def run(self, frames: int) -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        while self.frames < frames:
            self.fed = []
            self.stream = -1
            self.encoder = hpack.Encoder() if self.dice.random() < 0.4 else None
            try:
                self.connection()
            except BaseException:
                sys.stderr.write("".join(f"{data.hex()}\n" for data in self.fed))
                raise
            self.connections += 1
        growth = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        assert growth < MOST_GROWTH, f"{growth} bytes more than at the start"

    def connection(self) -> None:
        acknowledged = frame(SETTINGS, ACK, 0) if self.dice.random() < 0.9 else b""
        if self.dice.random() < 0.6:
            engine: Http2Connection = Http2Server(self.application, LIMITS, now=self.now, on_output=nothing)
            self.feed(engine, PREFACE + frame(SETTINGS, 0, 0) + acknowledged)
            fields: tuple[Field, ...] = REQUEST
        else:
            engine = self.client()
            self.feed(engine, frame(SETTINGS, 0, 0) + acknowledged)
            fields = ANSWER.fields
            self.stream = 11
        pending = b""
        for _ in range(MAX_FRAMES):
            data = pending + self.mutated(self.valid(fields))
            at = self.dice.randrange(len(data) + 1) if self.dice.random() < 0.2 else len(data)
            self.feed(engine, data[:at])
            pending = data[at:]
            self.whims(engine)
            engine.take()
            self.check(engine)
            if engine.finished:
                break
        engine.lost("the connection was lost")
        assert not engine.streams

    def whims(self, engine: Http2Connection) -> None:
        chance = self.dice.random()
        if chance < 0.02:
            engine.pause()
        elif chance < 0.06:
            engine.resume()
        elif chance < 0.1:
            self.time += self.dice.choice((0.1, 5.0, 61.0))
            engine.tick(self.time)
        elif chance < 0.5 and isinstance(engine, Http2Client) and engine.available:
            self.open(engine)
            self.stream += 2

    def feed(self, engine: Http2Connection, data: bytes) -> None:
        self.fed.append(data)
        engine.receive(data)
        engine.take()

    def client(self) -> Http2Client:
        engine = Http2Client(LIMITS, now=self.now, on_output=nothing)
        for _ in range(6):
            self.open(engine)
        return engine

    def open(self, engine: Http2Client) -> None:
        receiver = Whimsical(self.dice)
        body = b"x" * self.dice.choice((0, 9, 20_000))
        # The other side may have said that it takes hardly any headers.
        with suppress(HeadersTooLarge):
            stream = engine.open(ASKED, (), receiver, body=body, end=self.dice.random() < 0.8)
            if self.dice.random() < 0.5:
                receiver.stream = stream

    def application(self, stream: Stream) -> Whimsical:
        receiver = Whimsical(self.dice, stream)
        receiver.act(0.1)
        return receiver

    def now(self) -> float:
        return self.time

    def check(self, engine: Http2Connection) -> None:
        """Whatever is kept for a peer has a bound."""
        assert len(engine._partial) <= 16_393
        assert engine.unfinished_block is None or len(engine.unfinished_block) <= 4 * LIMITS.max_header_bytes + 16_384
        assert len(engine._recent) <= MAX_REMEMBERED
        assert len(engine.streams) <= 200
        assert not engine.out
        decoder = engine._decoder
        assert decoder._used <= decoder._capacity <= 4096
        assert len(decoder._leads) <= 512
        assert all(stream.send_window < 1 << 31 and stream.held >= 0 for stream in engine.streams.values())

    def valid(self, fields: tuple[Field, ...]) -> bytes:
        dice = self.dice
        kind = dice.choices(KINDS, WEIGHTS)[0] if self.stream > 0 else HEADERS
        fresh = self.stream < 0 or (kind == HEADERS and fields is REQUEST and dice.random() < 0.9)
        # Mostly a stream that was opened, and not long ago: any other use of one ends the connection.
        sid = self.next_stream() if fresh else max(self.stream - 2 * int(dice.expovariate(0.3)), 1)
        if kind == HEADERS:
            chosen = (
                [*fields, *dice.sample(EXTRA, dice.randrange(3))] if dice.random() < 0.8 else [(b"grpc-status", b"0")]
            )
            block = self.encode(chosen)
            if dice.random() < 0.2:
                half = len(block) // 2
                return frame(HEADERS, dice.choice((0, 1)), sid, block[:half]) + frame(
                    CONTINUATION, 4, sid, block[half:]
                )
            return frame(HEADERS, dice.choice((4, 5)), sid, block)
        if kind == DATA:
            if dice.random() < 0.3:
                return frame(DATA, dice.choice((8, 9)), sid, b"\x03hello\0\0\0")
            return frame(DATA, dice.choice((0, 1)), sid, b"x" * dice.choice((0, 5, 5, 5000, 16_384)))
        payload = {
            RST_STREAM: pack_u32(dice.randrange(14)),
            SETTINGS: pack_setting(dice.randrange(8), dice.choice((0, 1, 100, 65_535, 1 << 20, (1 << 31) - 1))),
            PING: dice.randbytes(8),
            WINDOW_UPDATE: pack_u32(dice.choices((0, 1, 1000, 1 << 20, (1 << 31) - 1), (1, 20, 20, 20, 1))[0]),
            CONTINUATION: b"\x82",
            PRIORITY: pack_u32(dice.randrange(20)) + b"\x10",
            GOAWAY: pack_u32(dice.randrange(20)) + pack_u32(0) + b"bye",
            PUSH_PROMISE: pack_u32(2) + b"\x82",
        }[kind]
        connection_wide = kind in (SETTINGS, PING, GOAWAY) or (kind == WINDOW_UPDATE and dice.random() < 0.5)
        return frame(kind, (4 if kind == PUSH_PROMISE else 0), 0 if connection_wide else sid, payload)

    def next_stream(self) -> int:
        self.stream += 2
        return self.stream

    def encode(self, fields: list[Field]) -> bytes:
        """With a table that a mutation soon puts out of step on some connections, without one on the others."""
        if self.encoder is not None:
            return self.encoder.encode(fields, huffman=self.dice.random() < 0.5)
        return b"".join([b"\0%c%b%c%b" % (len(name), name, len(value), value) for name, value in fields])

    def mutated(self, data: bytes) -> bytes:
        dice = self.dice
        whim = dice.random()
        if whim < 0.7:
            return data
        self.frames += 1
        whim = dice.random()
        octets = bytearray(data)
        if whim < 0.5:
            for _ in range(dice.randrange(1, 4)):
                octets[dice.randrange(len(octets))] ^= 1 << dice.randrange(8)
        elif whim < 0.7:
            at = dice.randrange(9)
            octets[at] = dice.randrange(256) if at else 0
        elif whim < 0.8:
            # A payload of another length, with a length to match.
            size = dice.randrange(40)
            octets = bytearray(frame(octets[3], octets[4], dice.randrange(8), dice.randbytes(size)))
        elif whim < 0.9:
            del octets[dice.randrange(len(octets)) :]
        else:
            octets[9:9] = dice.randbytes(dice.randrange(4))
        return bytes(octets)


def nothing() -> None:
    """Output is fetched after each read."""


def main() -> None:
    frames = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    fuzz = Fuzz(int(sys.argv[2]) if len(sys.argv) > 2 else 1)
    start = time.monotonic()
    fuzz.run(frames)
    spent = time.monotonic() - start
    print(f"{fuzz.frames} frames on {fuzz.connections} connections in {spent:.0f} s: nothing raised, nothing grew")


if __name__ == "__main__":
    main()
