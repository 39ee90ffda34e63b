"""A request goes out over HTTP/1.1 and the response comes in."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from http1_support import GET, POST, MemoryTransport, Recorder, Seen, serving

from polywire.net.http1 import Http1ClientConnection
from polywire.net.pool import Pool
from polywire.net.stream import Headers, Limits, Stream, StreamClosed

HEAD = Headers([(b":method", b"HEAD"), (b":path", b"/"), (b":authority", b"test")])
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


class Client:
    """A client's end of a connection, without sockets."""

    def __init__(self, **limits: Any) -> None:
        self.transport = MemoryTransport()
        self.released: list[object] = []
        self.lost: list[object] = []
        self.connection = Http1ClientConnection(Limits(**limits), released=self.released.append, lost=self.lost.append)
        self.connection.connection_made(self.transport)

    def get(self, headers: Headers = GET, *, consume: bool = True) -> Seen:
        seen = Seen(consume=consume)
        seen.stream = self.connection.open(headers, (), seen)
        return seen

    def receive(self, data: bytes) -> None:
        self.connection.data_received(data)


async def test_a_get_has_no_body_and_no_length() -> None:
    http = Client()
    seen = Seen()
    http.connection.open(GET, [(b"x-one", b"1")], seen)
    assert http.transport.take() == b"GET / HTTP/1.1\r\nhost: test\r\nx-one: 1\r\n\r\n"


async def test_a_post_says_the_length_of_its_body_even_of_none() -> None:
    http = Client()
    seen = Seen()
    http.connection.open(POST, (), seen, body=b"abc")
    assert http.transport.take() == b"POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 3\r\n\r\nabc"
    http.receive(OK)
    http.connection.open(POST, (), Seen())
    assert http.transport.take() == b"POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 0\r\n\r\n"


async def test_a_body_that_comes_later_goes_out_in_chunks_with_trailers() -> None:
    http = Client()
    stream = http.connection.open(POST, (), Seen(), body=b"abc", end=False)
    stream.send_data(b"0123456789")
    stream.send_data(b"")
    stream.send_trailers(Headers([(b"x-sum", b"1")]), [(b"x-more", b"2")])
    assert http.transport.take() == (
        b"POST / HTTP/1.1\r\nhost: test\r\ntransfer-encoding: chunked\r\n\r\n"
        b"3\r\nabc\r\na\r\n0123456789\r\n0\r\nx-sum: 1\r\nx-more: 2\r\n\r\n"
    )
    with pytest.raises(RuntimeError, match=r"^The request was ended before; nothing can be sent after its end\.$"):
        stream.send_data(b"more")


async def test_a_length_that_the_caller_names_frames_a_body_that_comes_later() -> None:
    http = Client()
    headers = Headers([*POST.fields, (b"content-length", b"4")])
    stream = http.connection.open(headers, (), Seen(), body=b"ab", end=False)
    stream.send_data(b"cd", end=True)
    assert http.transport.take() == b"POST / HTTP/1.1\r\nhost: test\r\ncontent-length: 4\r\n\r\nabcd"
    http.receive(OK)
    with pytest.raises(
        ValueError,
        match=r"^The body has not the length that the request's content-length says; nothing was sent\.$",
    ):
        http.connection.open(headers, (), Seen(), body=b"abc")
    assert http.connection.available


@pytest.mark.parametrize(
    ("response", "status", "body", "trailers"),
    [
        (OK, 200, b"hi", ()),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", 404, b"", ()),
        (b"HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n", 200, b"", ()),
        (b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", 200, b"", ()),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b"", ()),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 100\r\n\r\n", 304, b"", ()),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nh\r\n1\r\ni\r\n0\r\nX-Sum: 2\r\n\r\n",
            200,
            b"hi",
            ((b"x-sum", b"2"),),
        ),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK, 200, b"hi", ()),
    ],
)
async def test_a_response_arrives_and_the_connection_can_be_used_again(
    response: bytes, status: int, body: bytes, trailers: tuple[tuple[bytes, bytes], ...]
) -> None:
    http = Client()
    seen = http.get()
    assert not http.connection.available
    assert http.connection.in_flight == 1
    http.receive(response)
    assert seen.head is not None
    assert (seen.head.status, seen.body, seen.trailers) == (status, body, trailers)
    assert seen.stream.head is seen.head
    assert http.connection.available
    assert http.connection.in_flight == 0
    assert http.released == [http.connection]
    http.get()


async def test_the_answer_to_head_has_no_body_whatever_its_headers_say() -> None:
    for framing in (b"Content-Length: 5", b"Transfer-Encoding: chunked", b"X: y"):
        http = Client()
        seen = http.get(HEAD)
        http.receive(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n")
        assert seen.trailers == ()
        assert http.connection.available


async def test_a_body_without_length_ends_with_the_connection() -> None:
    http = Client()
    seen = http.get()
    http.receive(b"HTTP/1.1 200 OK\r\n\r\nhello ")
    http.receive(b"world")
    assert not seen.finished.is_set()
    http.connection.connection_lost(None)
    assert (seen.body, seen.trailers) == (b"hello world", ())
    assert seen.error is None
    assert http.connection.closed
    assert http.lost == [http.connection]


async def test_a_body_without_length_that_is_cut_off_by_an_error_fails() -> None:
    http = Client()
    seen = http.get()
    http.receive(b"HTTP/1.1 200 OK\r\n\r\nhello ")
    http.connection.connection_lost(ConnectionResetError("reset by peer"))
    assert seen.trailers is None
    assert seen.error is not None
    assert seen.error.reason == "the server closed the connection in the middle of the response (reset by peer)"


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n",
        b"HTTP/1.0 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: a,Close\r\n",
    ],
)
async def test_a_connection_that_the_server_ends_is_not_used_again(head: bytes) -> None:
    http = Client()
    seen = http.get()
    http.receive(head + b"Content-Length: 2\r\n\r\nhi")
    assert seen.trailers == ()
    assert http.connection.closed
    assert not http.connection.available
    assert http.transport.closed
    assert http.released == []
    with pytest.raises(StreamClosed, match=r"^the connection cannot take another request$") as raised:
        http.get()
    assert not raised.value.reached


async def test_http_1_0_may_keep_the_connection() -> None:
    http = Client()
    http.get()
    http.receive(b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nhi")
    assert http.connection.available


async def test_a_connection_lost_before_any_of_the_response_may_have_reached_the_server() -> None:
    http = Client()
    seen = http.get()
    http.connection.connection_lost(None)
    assert seen.error is not None
    assert seen.error.reason == "the server closed the connection before the response"
    assert seen.error.reached


async def test_a_connection_closed_between_requests_is_not_available() -> None:
    http = Client()
    http.connection.connection_lost(None)
    assert not http.connection.available
    assert http.connection.closed


async def test_bytes_that_nobody_asked_for_end_the_connection() -> None:
    http = Client()
    http.receive(b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\r\n")
    assert http.connection.closed
    http = Client()
    seen = http.get()
    http.receive(OK + b"HTTP/1.1 200 OK\r\n")
    assert seen.trailers == ()
    assert http.connection.closed


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (b"garbage\r\n\r\n", "the status line is malformed: 'garbage'"),
        (b"HTTP/1.1 20 OK\r\n\r\n", "the status line is malformed: 'HTTP/1.1 20 OK'"),
        (b"HTTP/1.1 099 OK\r\n\r\n", "the status line is malformed: 'HTTP/1.1 099 OK'"),
        (b"HTTP/2.0 200 OK\r\n\r\n", "'HTTP/2.0' is not spoken here in this form; use HTTP/1.1."),
        (b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n", "A header line is malformed: 'A ' is not a field name."),
        (b"HTTP/1.1 200 OK\nA: b\n\n", "the head has a bare line feed in it"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "The message has both Content-Length and Transfer-Encoding.",
        ),
        (
            b"HTTP/1.1 200 OK\r\nA: " + b"x" * 2000,
            "The headers are over the limit of 10 fields or 1000 bytes. Send fewer, or raise `max_header_count` and "
            "`max_header_bytes` at their receiver.",
        ),
        (
            b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 11 + b"\r\n",
            "The headers are over the limit of 10 fields or 1000 bytes. Send fewer, or raise `max_header_count` and "
            "`max_header_bytes` at their receiver.",
        ),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "it switches to a protocol that was not asked for"),
        (
            b"HTTP/1.1 100 Continue\r\n\r\n" * 17,
            "more than 16 interim responses came before the final one",
        ),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", "'x' is not the size of a chunk."),
    ],
)
async def test_a_response_that_is_not_http_fails_the_exchange(response: bytes, reason: str) -> None:
    http = Client(max_header_bytes=1000, max_header_count=10)
    seen = http.get()
    http.receive(response)
    assert seen.error is not None
    assert seen.error.reason == f"the response is not HTTP/1.1 as it should be: {reason}"
    assert seen.error.reached
    assert http.transport.aborted
    assert http.connection.closed


async def test_an_early_answer_leaves_the_rest_of_the_request_to_be_sent() -> None:
    http = Client()
    seen = Seen()
    stream = http.connection.open(POST, (), seen, body=b"a", end=False)
    http.receive(OK)
    assert seen.trailers == ()
    assert not http.connection.available
    stream.send_data(b"b", end=True)
    assert http.connection.available


async def test_an_early_answer_that_ends_the_connection_voids_the_rest_of_the_request() -> None:
    http = Client()
    seen = Seen()
    stream = http.connection.open(POST, (), seen, body=b"a", end=False)
    http.receive(b"HTTP/1.1 401 Unauthorized\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
    assert seen.trailers == ()
    assert seen.error is not None
    assert seen.error.reason == "the server answered and ended the connection before the request was complete"
    http.transport.take()
    stream.send_data(b"b", end=True)
    assert http.transport.take() == b""
    with pytest.raises(StreamClosed, match=r"^the connection was lost before everything was sent$"):
        await stream.drain()


async def test_a_reset_closes_the_connection_and_does_not_tell_the_receiver() -> None:
    http = Client()
    seen = http.get()
    seen.stream.reset(8)
    seen.stream.reset(8)
    assert http.transport.aborted
    http.connection.connection_lost(None)
    assert seen.error is None


async def test_a_reset_of_a_finished_exchange_does_nothing() -> None:
    http = Client()
    seen = http.get()
    http.receive(OK)
    seen.stream.reset(8)
    assert http.connection.available
    other = http.get()
    seen.stream.reset(8)
    http.receive(OK)
    assert other.trailers == ()


async def test_a_response_that_is_not_consumed_holds_the_server_back() -> None:
    http = Client(stream_window=1000)
    seen = http.get(consume=False)
    http.receive(b"HTTP/1.1 200 OK\r\nContent-Length: 3000\r\n\r\n" + b"x" * 1001)
    assert not http.transport.reading
    http.connection.consumed(1001)
    assert http.transport.reading
    http.receive(b"x" * 1998)
    assert not http.transport.reading
    http.receive(b"x")
    assert http.transport.reading, "otherwise the end of the connection would go unnoticed"
    assert len(seen.body) == 3000


async def test_whoever_gets_the_answer_may_ask_again_at_once() -> None:
    http = Client()
    again: list[Seen] = []
    seen = Seen(None, lambda _: again.append(http.get()))
    http.connection.open(GET, (), seen)
    http.receive(OK)
    http.receive(OK)
    assert again[0].body == b"hi"


async def test_closing_fails_what_is_under_way() -> None:
    http = Client()
    seen = http.get()
    http.connection.close()
    http.connection.close()
    assert seen.error is None, "not from a method"
    http.connection.connection_lost(None)
    assert seen.error is not None
    assert seen.error.reason == "the connection was closed by this side before the response"


async def test_draining_waits_for_the_answer() -> None:
    http = Client()
    seen = http.get()
    draining = asyncio.ensure_future(http.connection.drain())
    await asyncio.sleep(0)
    assert http.connection.closed
    assert not http.transport.closed
    http.receive(OK)
    assert seen.trailers == ()
    assert http.transport.closed
    assert not draining.done()
    http.connection.connection_lost(None)
    await draining


async def test_an_idle_connection_is_closed_after_a_while() -> None:
    http = Client(idle_timeout=60)
    http.get()
    http.connection.tick(0)
    http.connection.tick(1000)
    assert not http.connection.closed
    http.receive(OK)
    http.connection.tick(1001)
    http.connection.tick(1060)
    assert not http.connection.closed
    http.connection.tick(1061)
    assert http.connection.closed


async def test_writing_waits_for_the_server_to_read() -> None:
    received: list[Seen] = []

    class Slow(Recorder):
        def __call__(self, stream: Stream) -> Seen:
            seen = super().__call__(stream)
            received.append(seen)
            return seen

    async with serving(Slow(None, consume=False), limits=Limits(stream_window=1000)) as (_, address):
        pool = Pool(address, version="1.1")
        connection = await pool.acquire()
        seen = Seen()
        stream = connection.open(POST, (), seen, end=False)
        sent = 0
        while stream.writable:
            stream.send_data(b"x" * 65536)
            sent += 65536
            await asyncio.sleep(0)
            assert sent < 100_000_000
        draining = asyncio.ensure_future(stream.drain())
        await asyncio.sleep(0.01)
        assert not draining.done()

        async def read() -> None:
            while not draining.done():
                received[0].stream.consumed(1000)
                await asyncio.sleep(0)

        await asyncio.gather(draining, read())
        pool.close()
