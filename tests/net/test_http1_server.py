"""A request comes in over HTTP/1.1, the response goes out; one after the other."""

from __future__ import annotations

import asyncio

import pytest
from http1_support import DATE, NO_CONTENT, OK, InMemory, Recorder, Seen, ok

from polywire.net.http1.server import QUIET
from polywire.net.stream import Headers, Stream, StreamClosed

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
TEN = b"GET / HTTP/1.0\r\n\r\n"


def silent() -> Recorder:
    return Recorder(None)


def the_stream(application: Recorder) -> Stream:
    return application.last.stream


def test_a_request_is_taken_apart() -> None:
    http = InMemory()
    http.send(
        b"POST /a/b?c=d HTTP/1.1\r\nHost: example.org:80\r\nContent-Type:text/plain\r\nX-Thing: \t a b \t\r\n"
        b"Connection: keep-alive, X-Hop\r\nContent-Length: 3\r\nx-thing: c\r\n\r\nxyz"
    )
    seen = http.application.last
    head = seen.stream.head
    assert (head.method, head.path, head.authority, head.scheme) == (b"POST", b"/a/b?c=d", b"example.org:80", b"")
    assert head.fields == (
        (b"content-type", b"text/plain"),
        (b"x-thing", b"a b"),
        (b"content-length", b"3"),
        (b"x-thing", b"c"),
    )
    assert seen.stream.tail == ()
    assert seen.stream.version == "1.1"
    assert (seen.body, seen.trailers) == (b"xyz", ())


def test_a_response_says_its_date_and_length_and_the_connection_stays() -> None:
    http = InMemory()
    assert http.send(GET) == ok(b"GET / ")
    assert http.send(GET) == ok(b"GET / ")
    assert not http.transport.closed


def test_the_connection_names_its_peer() -> None:
    http = InMemory()
    http.send(GET)
    connection = http.application.last.stream.connection
    assert connection.peer == "192.0.2.1:40000"
    assert not connection.secure
    assert connection.peer_certificate is None


def test_requests_sent_ahead_are_answered_in_order_in_one_write() -> None:
    http = InMemory()
    three = b"".join(b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number for number in range(3))
    assert http.send(three) == ok(b"GET /0 ") + ok(b"GET /1 ") + ok(b"GET /2 ")


async def test_a_request_sent_ahead_waits_for_the_answer_before_it() -> None:
    application = silent()
    http = InMemory(application)
    http.send(GET + b"GET /next HTTP/1.1\r\nHost: a\r\n\r\n")
    assert len(application.seen) == 1
    the_stream(application).respond(OK, (), b"1")
    assert len(application.seen) == 1, "not called from a method of the stream"
    await asyncio.sleep(0)
    assert the_stream(application).head.path == b"/next"
    the_stream(application).respond(OK, (), b"2")
    assert http.transport.take() == ok(b"1") + ok(b"2")


async def test_reading_pauses_while_too_much_is_sent_ahead() -> None:
    application = silent()
    http = InMemory(application)
    http.send(GET)
    http.send(GET * 4000)
    assert not http.transport.reading
    application.answer = lambda seen: seen.stream.respond(OK, (), b"")
    the_stream(application).respond(OK, (), b"")
    await asyncio.sleep(0)
    assert http.transport.reading
    assert len(application.seen) == 4001
    assert http.transport.take() == ok(b"") * 4001


def test_a_body_in_chunks_comes_with_its_trailers() -> None:
    http = InMemory()
    http.send(
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3\r\nabc\r\n00A;name=value\r\n0123456789\r\n0\r\nX-Sum: 7\r\nContent-Length: 9\r\n\r\n"
    )
    seen = http.application.last
    assert (seen.body, seen.trailers) == (b"abc0123456789", ((b"x-sum", b"7"),))


def test_after_a_body_in_chunks_comes_the_next_request() -> None:
    http = InMemory()
    chunked = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
    assert http.send(chunked + GET) == ok(b"POST / abc") + ok(b"GET / ")


def test_empty_lines_before_a_request_are_forgiven() -> None:
    http = InMemory()
    assert http.send(b"\r\n\r\n" + GET + b"\r\n" + GET) == ok(b"GET / ") * 2


def test_a_response_of_unknown_length_goes_out_in_chunks() -> None:
    application = silent()
    http = InMemory(application)
    http.send(GET)
    stream = the_stream(application)
    stream.send_headers(OK, [(b"x-one", b"1")])
    stream.send_data(b"hello")
    stream.send_data(b"")
    stream.send_data(b"0123456789abcdef", end=True)
    assert http.transport.take() == (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\nx-one: 1\r\n" + DATE + b"transfer-encoding: chunked\r\n\r\n"
        b"5\r\nhello\r\n10\r\n0123456789abcdef\r\n0\r\n\r\n"
    )


def test_trailers_follow_the_last_chunk() -> None:
    application = silent()
    http = InMemory(application)
    http.send(GET)
    the_stream(application).respond(OK, (), b"body", Headers([(b"x-sum", b"1")]), [(b"x-more", b"2")])
    assert http.transport.take() == (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n" + DATE + b"transfer-encoding: chunked\r\n\r\n"
        b"4\r\nbody\r\n0\r\nx-sum: 1\r\nx-more: 2\r\n\r\n"
    )
    assert http.send(GET) == b""
    assert len(application.seen) == 2


def test_a_response_without_a_body_has_length_zero() -> None:
    application = silent()
    http = InMemory(application)
    http.send(GET)
    the_stream(application).send_headers(OK, end=True)
    assert http.transport.take() == ok(b"")


def test_204_and_304_have_neither_body_nor_length() -> None:
    for status, line in ((b"204", b"204 No Content"), (b"304", b"304 Not Modified")):
        application = silent()
        http = InMemory(application)
        http.send(GET)
        the_stream(application).respond(Headers([(b":status", status)]), (), b"not sent")
        assert http.transport.take() == b"HTTP/1.1 " + line + b"\r\n" + DATE + b"\r\n"
        assert not http.transport.closed


def test_the_answer_to_head_is_that_to_get_without_the_body() -> None:
    http = InMemory()
    answer = http.send(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert answer == ok(b"HEAD / ").removesuffix(b"HEAD / ")
    assert http.send(GET) == ok(b"GET / ")


def test_a_stream_answering_head_sends_no_chunks() -> None:
    application = silent()
    http = InMemory(application)
    http.send(b"HEAD / HTTP/1.1\r\nHost: a\r\n\r\n")
    stream = the_stream(application)
    stream.send_headers(OK)
    stream.send_data(b"hello")
    stream.send_trailers(Headers([(b"x", b"y")]))
    assert http.transport.take() == (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n" + DATE + b"transfer-encoding: chunked\r\n\r\n"
    )


def test_the_length_that_the_application_names_is_kept() -> None:
    application = silent()
    http = InMemory(application)
    http.send(GET)
    stream = the_stream(application)
    stream.send_headers(OK, [(b"content-length", b"4")])
    stream.send_data(b"ab")
    stream.send_data(b"cd", end=True)
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 4\r\n"
    assert http.transport.take() == head + DATE + b"\r\nabcd"
    assert not http.transport.closed


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"abcde", "The body is longer than the content-length sent; the connection was closed."),
        (b"abc", "The body is shorter than the content-length sent; the connection was closed."),
    ],
)
def test_a_body_that_has_not_its_length_closes_the_connection(body: bytes, words: str) -> None:
    application = silent()
    http = InMemory(application)
    http.send(GET)
    stream = the_stream(application)
    stream.send_headers(OK, [(b"content-length", b"4")])
    with pytest.raises(ValueError, match=r"^" + words.replace(".", r"\.") + "$"):
        stream.send_data(body, end=True)
    assert http.transport.closed


def test_a_value_with_a_line_end_is_not_sent() -> None:
    application = silent()
    http = InMemory(application)
    http.send(GET)
    with pytest.raises(ValueError, match=r"^A header has a line end or a NUL in its name or value; it was not sent\.$"):
        the_stream(application).respond(OK, [(b"x-evil", b"a\r\nset-cookie: b")], b"")
    assert http.transport.take() == b""
    the_stream(application).respond(OK, (), b"")
    assert http.transport.take() == ok(b"")


def test_a_second_response_is_a_mistake() -> None:
    application = silent()
    http = InMemory(application)
    http.send(GET)
    stream = the_stream(application)
    stream.respond(OK, (), b"")
    with pytest.raises(
        RuntimeError, match=r"^The headers of this response were sent before; a stream has one response\.$"
    ):
        stream.respond(OK, (), b"")


# HTTP/1.0 and the end of the connection


def test_http_1_0_ends_the_connection() -> None:
    http = InMemory()
    assert http.send(TEN) == ok(b"GET / ", b"connection: close")
    assert http.transport.closed


def test_http_1_0_keeps_the_connection_on_request() -> None:
    http = InMemory()
    answer = http.send(b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n")
    assert answer == ok(b"GET / ", b"connection: keep-alive")
    assert not http.transport.closed


def test_to_http_1_0_a_body_of_unknown_length_ends_with_the_connection() -> None:
    application = silent()
    http = InMemory(application)
    http.send(b"GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n")
    stream = the_stream(application)
    stream.send_headers(OK)
    stream.send_data(b"hello ")
    stream.send_data(b"world")
    stream.send_trailers(Headers([(b"x", b"y")]))
    assert http.transport.take() == (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n" + DATE + b"connection: close\r\n\r\nhello world"
    )
    assert http.transport.closed
    assert not http.transport.aborted


def test_a_body_that_ends_with_the_connection_is_cut_off_by_a_reset() -> None:
    application = silent()
    http = InMemory(application)
    http.send(TEN)
    stream = the_stream(application)
    stream.send_headers(OK)
    stream.send_data(b"half")
    stream.reset(8)
    assert http.transport.aborted


def test_connection_close_is_honoured_and_repeated() -> None:
    http = InMemory()
    answer = http.send(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: x, CLOSE\r\n\r\n" + GET)
    assert answer == ok(b"GET / ", b"connection: close")
    assert http.transport.closed
    assert len(http.application.seen) == 1


def test_a_reset_ends_the_connection_without_an_end_of_the_body() -> None:
    application = silent()
    http = InMemory(application)
    http.send(GET)
    stream = the_stream(application)
    stream.send_headers(OK)
    stream.send_data(b"half")
    stream.reset(2)
    stream.reset(2)
    stream.send_data(b"more", end=True)
    assert http.transport.take().endswith(b"4\r\nhalf\r\n")
    assert http.transport.closed
    assert application.last.error is None


async def test_a_client_that_leaves_fails_the_exchange() -> None:
    application = silent()
    http = InMemory(application)
    http.send(GET)
    http.protocol.connection_lost(None)
    error = application.last.error
    assert error is not None
    assert error.reason == "the client closed the connection before the exchange was complete"
    assert error.reached
    stream = the_stream(application)
    stream.respond(OK, (), b"")
    assert http.transport.take() == b""
    assert http.lost == [http.protocol]
    with pytest.raises(StreamClosed, match=r"^the connection was lost before everything was sent$"):
        await stream.drain()


def test_a_client_that_leaves_between_requests_fails_nothing() -> None:
    http = InMemory()
    http.send(GET)
    http.protocol.connection_lost(None)
    assert http.application.last.error is None


# Expect


def test_a_body_is_asked_for_when_the_application_did_not_refuse_it() -> None:
    http = InMemory()
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-Continue\r\n\r\n"
    assert http.send(head) == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert http.send(b"abc") == ok(b"POST / abc")
    assert not http.transport.closed


async def test_a_body_that_nobody_wants_is_not_asked_for() -> None:
    class Refuses(Recorder):
        def __call__(self, stream: Stream) -> Seen:
            seen = super().__call__(stream)
            stream.respond(OK, (), b"no")
            return seen

    application = Refuses(None)
    http = InMemory(application)
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n"
    assert http.send(head) == ok(b"no", b"connection: close")
    assert http.transport.ended
    await asyncio.sleep(0)
    error = application.last.error
    assert error is not None
    assert error.reason == "the request was answered before its body was complete, and the rest was not read"


def test_an_expectation_without_a_body_asks_for_nothing() -> None:
    http = InMemory()
    assert http.send(b"GET / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n") == ok(b"GET / ")


# Early answers


class Early(Recorder):
    """Answers before the body came."""

    def __init__(self) -> None:
        super().__init__(None)

    def __call__(self, stream: Stream) -> Seen:
        seen = super().__call__(stream)
        stream.respond(OK, (), b"early")
        return seen


def test_after_an_early_answer_a_short_body_is_read_to_its_end_and_the_connection_stays() -> None:
    http = InMemory(Early())
    assert http.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n") == ok(b"early")
    http.send(b"x" * 999)
    assert http.send(b"x" + GET) == ok(b"early")
    assert http.application.seen[0].trailers == ()


async def test_after_an_early_answer_a_long_body_is_not_waited_for() -> None:
    http = InMemory(Early())
    answer = http.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000\r\n\r\n")
    assert answer == ok(b"early", b"connection: close")
    assert http.transport.ended
    assert not http.transport.closed, "closing now could destroy the answer on its way"
    http.send(b"x" * 100000)
    await asyncio.sleep(0)
    assert http.application.last.body == b""
    assert http.application.last.error is not None


async def test_after_an_early_answer_chunks_are_read_up_to_a_bound() -> None:
    http = InMemory(Early())
    http.send(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    chunk = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    for _ in range(4):
        http.send(chunk)
    assert not http.transport.ended
    http.send(chunk)
    assert http.transport.ended
    await asyncio.sleep(0)
    assert http.application.last.error is not None


# Backpressure


def test_a_body_that_is_not_consumed_holds_the_client_back() -> None:
    application = Recorder(None, consume=False)
    http = InMemory(application, stream_window=1000)
    http.send(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5000\r\n\r\n")
    http.send(b"x" * 1000)
    assert http.transport.reading
    http.send(b"x")
    assert not http.transport.reading
    stream = the_stream(application)
    stream.consumed(400)
    assert not http.transport.reading
    stream.consumed(200)
    assert http.transport.reading


async def test_a_client_that_does_not_read_makes_the_stream_unwritable() -> None:
    application = silent()
    http = InMemory(application)
    http.send(GET)
    stream = the_stream(application)
    stream.send_headers(OK)
    assert stream.writable
    http.protocol.pause_writing()
    assert not stream.writable
    draining = asyncio.ensure_future(stream.drain())
    await asyncio.sleep(0)
    assert not draining.done()
    http.protocol.resume_writing()
    await draining
    assert stream.writable


async def test_whoever_waits_to_write_hears_that_the_client_left() -> None:
    application = silent()
    http = InMemory(application)
    http.send(GET)
    stream = the_stream(application)
    stream.send_headers(OK)
    http.protocol.pause_writing()
    draining = asyncio.ensure_future(stream.drain())
    await asyncio.sleep(0)
    http.protocol.connection_lost(ConnectionResetError())
    with pytest.raises(StreamClosed, match=r"^the connection was lost before everything was sent$"):
        await draining


def test_requests_of_a_client_that_does_not_read_its_answers_wait() -> None:
    http = InMemory()
    http.protocol.pause_writing()
    assert http.send(GET * 2) == b""
    http.protocol.resume_writing()
    assert http.transport.take() == ok(b"GET / ") * 2


# Forms of the request target


@pytest.mark.parametrize(
    ("line", "path", "authority", "scheme"),
    [
        (b"GET http://b.org:8/x?y HTTP/1.1", b"/x?y", b"b.org:8", b"http"),
        (b"GET HTTPS://b.org HTTP/1.1", b"/", b"b.org", b"https"),
        (b"GET http://b.org?q HTTP/1.1", b"/?q", b"b.org", b"http"),
        (b"OPTIONS * HTTP/1.1", b"*", b"a", b""),
        (b"CONNECT b.org:443 HTTP/1.1", b"", b"b.org:443", b""),
        (b"TRACE /t HTTP/1.1", b"/t", b"a", b""),
        (b"BREW /pot HTTP/1.2", b"/pot", b"a", b""),
    ],
)
def test_every_form_of_the_target_is_understood(line: bytes, path: bytes, authority: bytes, scheme: bytes) -> None:
    http = InMemory()
    http.send(line + b"\r\nHost: a\r\n\r\n")
    head = http.application.last.stream.head
    assert (head.path, head.authority, head.scheme) == (path, authority, scheme)


def test_a_head_seen_before_is_the_same_object() -> None:
    http = InMemory()
    http.send(GET)
    http.send(GET)
    http.send(GET.replace(b"Host: a", b"Host: b"))
    first, second, third = (seen.stream.head for seen in http.application.seen)
    assert first is second
    assert third is not first


# The traps of calls.md


def test_an_offer_of_h2c_is_ignored_and_the_body_still_framed() -> None:
    http = InMemory()
    smuggled = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
    request = (
        b"POST /up HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\nContent-Length: %d\r\n\r\n%b" % (len(smuggled), smuggled)
    )
    assert http.send(request + GET) == ok(b"POST /up " + smuggled) + ok(b"GET / ")


def test_what_follows_a_connect_is_not_taken_for_a_request() -> None:
    http = InMemory()
    answer = http.send(b"CONNECT b:1 HTTP/1.1\r\nHost: b:1\r\n\r\n" + GET)
    assert answer == ok(b"CONNECT  ", b"connection: close")
    assert len(http.application.seen) == 1
    assert http.transport.closed


def test_an_upgrade_to_anything_is_an_ordinary_request() -> None:
    http = InMemory()
    upgrade = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    assert http.send(upgrade + GET) == ok(b"GET / ") * 2


def test_header_bytes_are_bounded_before_anything_is_parsed() -> None:
    http = InMemory()
    http.send(b"GET / HTTP/1.1\r\nHost: a\r\n")
    sent = 0
    while not http.transport.ended:
        http.send(b"x-%d: %b\r\n" % (sent, b"y" * 1000))
        sent += 1
        assert sent < 20
    assert sent == 17
    assert http.application.seen == []


# Draining


def test_draining_closes_a_quiet_connection_with_the_next_tick() -> None:
    http = InMemory()
    http.send(GET)
    http.protocol.tick(0)
    http.protocol.drain()
    assert not http.transport.closed
    http.protocol.tick(QUIET)
    assert http.transport.closed


def test_draining_waits_for_the_request_that_may_be_on_its_way() -> None:
    http = InMemory()
    http.send(GET)
    http.protocol.drain()
    assert not http.transport.closed
    assert http.send(GET) == ok(b"GET / ", b"connection: close")
    assert http.transport.closed


def test_a_tick_alone_does_not_make_a_connection_quiet() -> None:
    """Where the loop is behind, a tick may come right after the answer, and the drain right after that."""
    http = InMemory()
    http.send(GET)
    http.protocol.tick(5)
    http.protocol.drain()
    http.protocol.tick(5.001)
    assert not http.transport.closed
    assert http.send(GET) == ok(b"GET / ", b"connection: close")
    assert http.transport.closed


def test_draining_does_not_wait_for_ever() -> None:
    http = InMemory()
    http.send(GET)
    http.protocol.drain()
    http.protocol.tick(0)
    http.protocol.tick(0.9 * QUIET)
    assert not http.transport.closed
    http.protocol.tick(1.1 * QUIET)
    assert http.transport.closed


def test_draining_finishes_what_is_under_way() -> None:
    application = silent()
    http = InMemory(application)
    http.send(GET)
    http.protocol.tick(0)
    http.protocol.drain()
    http.protocol.tick(1)
    assert not http.transport.closed
    the_stream(application).respond(NO_CONTENT, (), b"")
    assert http.transport.take() == b"HTTP/1.1 204 No Content\r\n" + DATE + b"connection: close\r\n\r\n"
    assert http.transport.closed
