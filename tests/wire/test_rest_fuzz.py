"""Whatever is sent, the HTTP wires answer it, never with a bug of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from rest_shop import ShopService

from polywire.net.stream import Field, Head, Headers, Stream
from polywire.services import Services
from polywire.wire.http import HttpApplication


class Peer:
    """The connection of a stream that has none."""

    peer = "127.0.0.1:1"
    secure = False
    peer_certificate: dict[str, Any] | None = None


class Recording(Stream):
    """A stream that keeps the status it is answered with."""

    __slots__ = ("done", "status")

    def __init__(self, version: str, head: Head, tail: tuple[Field, ...]) -> None:
        self.version = version
        self.head = head
        self.tail = tail
        self.connection = Peer()
        self.status = 0
        self.done = asyncio.Event()

    @property
    def writable(self) -> bool:
        return True

    def send_headers(self, headers: Headers, tail: Sequence[Field] = (), *, end: bool = False) -> None:
        assert not self.status
        self.status = int(headers.fields[0][1])
        for name, value in (*headers.fields, *tail):
            assert b"\r" not in value, name
            assert b"\n" not in value, name
        if end:
            self.done.set()

    def send_data(self, data: bytes, *, end: bool = False) -> None:
        if end:
            self.done.set()

    def send_trailers(self, trailers: Headers, tail: Sequence[Field] = ()) -> None:
        self.done.set()

    def consumed(self, size: int) -> None:
        """Nobody counts."""

    def reset(self, code: int) -> None:
        raise AssertionError("the exchange was given up")


SEGMENTS = [
    "api",
    "v1",
    "products",
    "search",
    "ranges",
    "files",
    "uploads",
    "echo",
    "sum",
    "numbers",
    "shelves",
    "books",
    "shop.v1.Shop",
    "Echo",
    "Sum",
    "Numbers",
    "Search",
    "a:publish",
]
KEYS = [
    "text",
    "state",
    "tags",
    "numbers",
    "exact",
    "at",
    "id",
    "price",
    "ratio",
    "blob",
    "range",
    "range.low",
    "labels",
    "page",
    "limit",
    "count",
    "fail_at",
    "message",
    "encoding",
    "connect",
    "base64",
    "compression",
]
NAMES = b"""
    accept accept-encoding content-type content-encoding polywire-timeout x-request-id traceparent tracestate baggage
    authorization grpc-previous-rpc-attempts x-tenant connect-timeout-ms connect-protocol-version
    connect-content-encoding connect-accept-encoding x-bin idempotency-key
""".split()
VALUES = b"""
    application/json application/proto application/connect+json application/connect+proto application/x-ndjson gzip
    identity */* text/html;q=x,*/*;q=0.1 1 0 -1 1.5 1e9
""".split()

visible = st.characters(min_codepoint=0x21, max_codepoint=0xFF, exclude_characters="?#")
values = st.one_of(st.sampled_from(VALUES), st.text(visible, max_size=20).map(lambda text: text.encode("latin-1")))
segments = st.one_of(st.sampled_from(SEGMENTS), st.text(visible, max_size=8), st.just("%41"), st.integers().map(str))
pairs = st.tuples(
    st.one_of(st.sampled_from(KEYS), st.text(visible, max_size=8)),
    st.one_of(
        st.text(visible, max_size=12), st.integers().map(str), st.floats().map(str), st.just("{}"), st.just("%zz")
    ),
)
paths = st.builds(
    lambda parts, query: "/" + "/".join(parts) + ("?" + "&".join(f"{k}={v}" for k, v in query) if query else ""),
    st.one_of(
        st.lists(segments, max_size=6),
        st.lists(segments, max_size=3).map(lambda rest: ["api", "v1", *rest]),
        st.sampled_from(SEGMENTS).map(lambda name: ["shop.v1.Shop", name]),
    ),
    st.lists(pairs, max_size=5),
)
bodies = st.one_of(
    st.just(b""),
    st.binary(max_size=60),
    st.sampled_from(
        (b"{}", b'{"text":"a"}', b'{"number":1}\n{}', b"\0\0\0\0\x02{}", b"[" * 3000, b'{"range":{"low":1}}')
    ),
)


async def answered(version: str, head: Head, tail: tuple[Field, ...], pieces: list[bytes]) -> int:
    stream = Recording(version, head, tail)
    receiver = HttpApplication(Services([ShopService()], max_message_bytes=2000))(stream)
    for piece in pieces:
        receiver.data_received(piece)
    receiver.ended(())
    await asyncio.wait_for(stream.done.wait(), 10)
    return stream.status


@settings(max_examples=600)
@given(
    version=st.sampled_from(("1.1", "2")),
    method=st.sampled_from(("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS", "TRACE", "FOO")),
    path=paths,
    fields=st.lists(st.tuples(st.sampled_from(NAMES), values), max_size=6),
    cut=st.integers(0, 6),
    body=bodies,
    at=st.integers(0, 60),
)
def test_every_request_is_answered(
    version: str, method: str, path: str, fields: list[Field], cut: int, body: bytes, at: int
) -> None:
    head = Head(tuple(fields[:cut]), method=method.encode(), path=path.encode("latin-1"), authority=b"test")
    pieces = [piece for piece in (body[:at], body[at:]) if piece]
    # 501 and 504 are said of a method and of a deadline; 500 would be a bug, as no handler here has one.
    assert asyncio.run(answered(version, head, tuple(fields[cut:]), pieces)) not in (500, 503)
