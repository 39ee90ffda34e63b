"""A reader that has seen many heads reads the next one as a reader that has seen none, only faster."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from polywire.net.http1 import HeadReader
from polywire.net.http1.grammar import Refused
from polywire.net.stream import Limits

LIMITS = Limits(max_header_bytes=400, max_header_count=6)
FIRST_LINES = st.sampled_from(
    [b"GET / HTTP/1.1", b"GET / HTTP/1.0", b"POST /x HTTP/1.1", b"CONNECT a:1 HTTP/1.1", b"GET /"]
)
LINES = st.lists(
    st.sampled_from(
        [
            b"Host: a",
            b"Host: b",
            b"host: a/b",
            b"Accept: */*",
            b"X-Long: " + b"x" * 150,
            b"Content-Length: 3",
            b"Content-Length: x",
            b"Transfer-Encoding: chunked",
            b"Transfer-Encoding: gzip",
            b"Connection: close",
            b"Connection: keep-alive, x",
            b"Keep-Alive: timeout=5",
            b"Expect: 100-continue",
            b"Expect: more",
            b"traceparent: 1",
            b"traceparent: 2",
            b" folded",
            b"bad name: x",
            b"nul: \0",
        ]
    ),
    max_size=7,
)


def read_request(reader: HeadReader, block: bytes) -> object:
    try:
        request = reader.request(block)
    except Refused as refused:
        return refused.status, refused.detail
    head = request.head
    return (
        (head.method, head.path, head.authority, head.scheme, head.fields + request.tail),
        (request.length, request.keep_alive, request.modern, request.expects_continue),
    )


def read_response(reader: HeadReader, block: bytes) -> object:
    try:
        response = reader.response(block)
    except Refused as refused:
        return refused.status, refused.detail
    return response.head.status, response.head.fields + response.tail, response.length, response.keep_alive


def block_of(first: bytes, lines: list[bytes]) -> bytes:
    return b"\r\n".join([first, *lines, b"", b""])


@settings(max_examples=500)
@given(st.lists(st.tuples(FIRST_LINES, LINES), min_size=1, max_size=12))
def test_what_was_read_before_does_not_change_how_a_request_is_read(heads: list[tuple[bytes, list[bytes]]]) -> None:
    experienced = HeadReader(LIMITS)
    for first, lines in heads * 2:
        block = block_of(first, lines)
        assert read_request(experienced, block) == read_request(HeadReader(LIMITS), block)


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.sampled_from([b"HTTP/1.1 200 OK", b"HTTP/1.0 200 OK", b"HTTP/1.1 204 "]), LINES), max_size=12)
)
def test_what_was_read_before_does_not_change_how_a_response_is_read(heads: list[tuple[bytes, list[bytes]]]) -> None:
    experienced = HeadReader(LIMITS)
    for first, lines in heads * 2:
        block = block_of(first, lines)
        assert read_response(experienced, block) == read_response(HeadReader(LIMITS), block)


def test_what_differs_from_call_to_call_becomes_the_tail() -> None:
    reader = HeadReader(Limits())

    def request(number: int) -> bytes:
        return b"POST /x HTTP/1.1\r\nHost: a\r\nAccept: b\r\nTrace: %d\r\nContent-Length: %d\r\n\r\n" % (number, number)

    reader.request(request(1))
    second, third = reader.request(request(2)), reader.request(request(3))
    assert second.head is third.head
    assert third.head.fields == ((b"accept", b"b"),)
    assert third.tail == ((b"trace", b"3"), (b"content-length", b"3"))
    assert third.length == 3


def test_what_is_remembered_is_bounded() -> None:
    reader = HeadReader(Limits())
    for number in range(2000):
        reader.request(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number)
        reader.request(b"GET /%d HTTP/1.1\r\nHost: a\r\nX: %b\r\n\r\n" % (number, b"x" * 5000))
    assert len(reader._requests) <= 512
