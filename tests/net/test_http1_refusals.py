"""What is not HTTP/1.1 as it should be is answered with a problem document, and the connection ends."""

from __future__ import annotations

import json

import pytest
from http1_support import DATE, OK, InMemory, Recorder

TITLES = {
    400: "Bad Request",
    408: "Request Timeout",
    413: "Content Too Large",
    414: "URI Too Long",
    417: "Expectation Failed",
    431: "Request Header Fields Too Large",
    501: "Not Implemented",
    505: "HTTP Version Not Supported",
}


def problem(status: int, detail: str) -> bytes:
    title = TITLES[status]
    body = json.dumps({"type": "about:blank", "title": title, "status": status, "detail": detail}).encode()
    return (
        f"HTTP/1.1 {status} {title}\r\ncontent-type: application/problem+json\r\n"
        f"content-length: {len(body)}\r\n".encode()
        + DATE
        + b"connection: close\r\n\r\n"
        + body
    )


def host(*lines: bytes) -> bytes:
    return b"\r\n".join((b"POST / HTTP/1.1", b"Host: a", *lines, b"", b""))


CONTROL = "The head has a control character or a bare line end in it."
ONE_HOST = "The request must have exactly one Host header."
TOO_LONG = "The request body is over the limit of 1000 bytes. Send less, or raise `max_body_bytes` at its receiver."
TOO_MANY = (
    "The headers are over the limit of 100 fields or 10000 bytes. Send fewer, or raise `max_header_count` and "
    "`max_header_bytes` at their receiver."
)


@pytest.mark.parametrize(
    ("request_", "status", "detail"),
    [
        (b"nonsense\r\n\r\n", 400, "The request line is malformed: 'nonsense'."),
        (b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "The request line is malformed: 'GET  / HTTP/1.1'."),
        (b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n", 400, "The request line is malformed: 'GET / HTTP/1.1 '."),
        (b"G@T / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "'G@T' is not a method."),
        (b"GET / HTTQ/1.1\r\nHost: a\r\n\r\n", 400, "'HTTQ/1.1' is not a version of HTTP."),
        (b"GET / http/1.1\r\nHost: a\r\n\r\n", 400, "'http/1.1' is not a version of HTTP."),
        (b"GET / HTTP/3.0\r\nHost: a\r\n\r\n", 505, "'HTTP/3.0' is not spoken here in this form; use HTTP/1.1."),
        (b"GET / HTTP/0.9\r\nHost: a\r\n\r\n", 505, "'HTTP/0.9' is not spoken here in this form; use HTTP/1.1."),
        (b"GET x HTTP/1.1\r\nHost: a\r\n\r\n", 400, "'x' is not a request target; it must start with '/'."),
        (b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400, "'*' is not a request target; it must start with '/'."),
        (
            b"GET ftp://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
            400,
            "'ftp://b/' is not a request target; it must start with '/'.",
        ),
        (
            b"GET http://a b HTTP/1.1\r\nHost: a\r\n\r\n",
            400,
            "The request line is malformed: 'GET http://a b HTTP/1.1'.",
        ),
        (b"GET http://u@b/ HTTP/1.1\r\nHost: a\r\n\r\n", 400, "'u@b' is not a host."),
        (
            b"CONNECT /x HTTP/1.1\r\nHost: a\r\n\r\n",
            400,
            "'/x' is not what CONNECT can name; it needs host:port.",
        ),
        # RFC 9112 section 3.2: Host
        (b"GET / HTTP/1.1\r\n\r\n", 400, ONE_HOST),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400, ONE_HOST),
        (b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", 400, ONE_HOST),
        (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400, "'a/b' is not a host."),
        # RFC 9112 section 5: fields
        (host(b"Name : value"), 400, "A header line is malformed: 'Name ' is not a field name."),
        (host(b"N\xc3\xa4me: value"), 400, "A header line is malformed: 'N\\xc3\\xa4me' is not a field name."),
        (host(b": value"), 400, "A header line is malformed: '' is not a field name."),
        (host(b"no colon"), 400, "A header line has no colon: 'no colon'."),
        (host(b"a: b", b" folded"), 400, "A header line has no colon: ' folded'."),
        (host(b"a: b", b"\tfolded: x"), 400, "A header line is malformed: '\\tfolded' is not a field name."),
        (host(b"a: nul\0"), 400, CONTROL),
        (host(b"a: bell\x07"), 400, CONTROL),
        (host(b"a: delete\x7f"), 400, CONTROL),
        (host(b"a: one\rb: two"), 400, CONTROL),
        (host(b"a: one\nb: two"), 400, CONTROL),
        (b"GET / HTTP/1.1\nHost: a\n\n", 400, CONTROL),
        (b"GET / HTTP/1.1\r\nHost: a\n", 400, CONTROL),
        # RFC 9112 section 6: framing
        (host(b"Content-Length: 1", b"Content-Length: 1"), 400, "The message has more than one Content-Length."),
        (host(b"Content-Length: 1", b"Content-Length: 2"), 400, "The message has more than one Content-Length."),
        (host(b"Content-Length: 1, 1"), 400, "'1, 1' is not a Content-Length."),
        (host(b"Content-Length: +1"), 400, "'+1' is not a Content-Length."),
        (host(b"Content-Length: -1"), 400, "'-1' is not a Content-Length."),
        (host(b"Content-Length: 1_0"), 400, "'1_0' is not a Content-Length."),
        (host(b"Content-Length: 0x1"), 400, "'0x1' is not a Content-Length."),
        (host(b"Content-Length:"), 400, "'' is not a Content-Length."),
        (host(b"Content-Length: 9999999999999999999999"), 400, "'9999999999999999999999' is not a Content-Length."),
        (
            host(b"Content-Length: 1", b"Transfer-Encoding: chunked"),
            400,
            "The message has both Content-Length and Transfer-Encoding.",
        ),
        (host(b"Transfer-Encoding: gzip"), 501, "The transfer coding 'gzip' is not known; use chunked."),
        (host(b"Transfer-Encoding: identity"), 501, "The transfer coding 'identity' is not known; use chunked."),
        (host(b"Transfer-Encoding: xchunked"), 501, "The transfer coding 'xchunked' is not known; use chunked."),
        (host(b"Transfer-Encoding: gzip, chunked"), 501, "The transfer coding 'gzip' is not known; use chunked alone."),
        (host(b"Transfer-Encoding: chunked, gzip"), 400, "In Transfer-Encoding, chunked must come once and last."),
        (
            host(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
            400,
            "In Transfer-Encoding, chunked must come once and last.",
        ),
        (
            b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
            "Transfer-Encoding does not exist in HTTP/1.0.",
        ),
        (host(b"Expect: the-unexpected"), 417, "The expectation 'the-unexpected' is not known; 100-continue is."),
        # limits
        (host(b"Content-Length: 1001"), 413, TOO_LONG),
        (b"GET /" + b"x" * 8200, 414, "The request line is over the limit of 8192 bytes."),
        (
            b"GET /" + b"x" * 8200 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
            414,
            "The request line is over the limit of 8192 bytes.",
        ),
        (host(b"a: " + b"b" * 9950), 431, TOO_MANY),
        (host(b"a: " + b"b" * 9990)[:-2], 431, TOO_MANY),
        (host(*[b"a: b"] * 100), 431, TOO_MANY),
    ],
)
def test_a_bad_request_is_refused(request_: bytes, status: int, detail: str) -> None:
    http = InMemory(max_header_bytes=10_000, max_body_bytes=1000)
    assert http.send(request_) == problem(status, detail)
    assert http.transport.ended
    assert http.application.seen == []
    assert http.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n") == b"", "nothing after it is looked at"


CHUNKED = host(b"Transfer-Encoding: chunked")


@pytest.mark.parametrize(
    ("body", "status", "detail"),
    [
        (b"x\r\n", 400, "'x' is not the size of a chunk."),
        (b"-1\r\n", 400, "'-1' is not the size of a chunk."),
        (b"0x1\r\n", 400, "'0x1' is not the size of a chunk."),
        (b" 1\r\n", 400, "' 1' is not the size of a chunk."),
        (b"\r\n", 400, "'' is not the size of a chunk."),
        (b"fffffffffffffffff\r\n", 400, "'fffffffffffffffff' is not the size of a chunk."),
        (b"1;a=\0\r\n", 400, "'1;a=\\x00' is not the size of a chunk."),
        (b"1\nx\r\n", 400, "'1\\nx' is not the size of a chunk."),
        (b"1\nx", 400, "A line of a chunk ends in a bare line feed."),
        (b"1;" + b"x" * 300, 400, "The size line of a chunk is over 256 bytes."),
        (b"1;" + b"x" * 300 + b"\r\n", 400, "The size line of a chunk is over 256 bytes."),
        (b"1\r\nxy\r\n", 400, "A chunk is longer than its size says."),
        (b"1\r\nx\n0\r\n\r\n", 400, "A chunk is longer than its size says."),
        (b"3e9\r\n", 413, TOO_LONG),
        (b"1f4\r\n" + b"x" * 500 + b"\r\n1f5\r\n", 413, TOO_LONG),
        (b"0\r\nA: b\nC: d", 400, "A line of the trailers ends in a bare line feed."),
        (b"0\r\nA b\r\n\r\n", 400, "A header line has no colon: 'A b'."),
        (b"0\r\nA: " + b"b" * 10_000, 431, TOO_MANY),
        (b"0\r\n" + b"a: b\r\n" * 101 + b"\r\n", 431, TOO_MANY),
    ],
)
def test_a_bad_body_is_refused(body: bytes, status: int, detail: str) -> None:
    http = InMemory(max_header_bytes=10_000, max_body_bytes=1000)
    assert http.send(CHUNKED + body) == problem(status, detail)
    assert http.transport.ended
    seen = http.application.last
    assert seen.trailers is None
    assert seen.error is not None
    assert seen.error.reason == f"the request is not acceptable: {detail}"
    seen.stream.respond(OK, (), b"too late")
    assert http.transport.take() == b""


def test_a_bad_body_cuts_off_a_response_under_way() -> None:
    application = Recorder(None)
    http = InMemory(application)
    http.send(CHUNKED)
    stream = application.last.stream
    stream.send_headers(OK)
    http.transport.take()
    assert http.send(b"x\r\n") == b"", "a second response in the middle of the first would be taken for its body"
    assert http.transport.closed
    assert application.last.error is not None


def test_a_bad_request_after_good_ones_leaves_their_answers_whole() -> None:
    http = InMemory()
    answers = http.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET\r\n\r\n")
    assert answers.endswith(b"GET / " + problem(400, "The request line is malformed: 'GET'."))


def test_limits_of_size_are_exact() -> None:
    # 10000 as RFC 9113 counts: the bytes of names and values, and 32 for each; plus the request line.
    http = InMemory(max_header_bytes=10_000, max_body_bytes=1000)
    start = b"POST / HTTP/1.1\r\n"
    lines = b"Host: a\r\nContent-Length: 1000\r\n"
    room = 10_000 - len(start) - len(lines) - len(b"a: \r\n\r\n") - 3 * 28
    http.send(start + lines + b"a: " + b"x" * room + b"\r\n\r\n" + b"y" * 1000)
    assert http.application.last.body == b"y" * 1000
    http.send(start + lines + b"a: " + b"x" * (room + 1) + b"\r\n\r\n" + b"y" * 1000)
    assert http.transport.ended


# Time


@pytest.mark.parametrize("pieces", [[b"G"], [b"GET / HTTP/1.1\r\n", b"Host: a\r\n", b"x: y\r\n"]])
def test_headers_that_trickle_in_are_cut_off(pieces: list[bytes]) -> None:
    http = InMemory(header_timeout=10)
    now = 0.0
    for piece in pieces:
        http.send(piece)
        http.protocol.tick(now)
        now += 1
    http.protocol.tick(9.9)
    assert http.transport.take() == b""
    http.protocol.tick(10)
    assert http.transport.take() == problem(408, "The headers were not complete after 10 s.")
    http.protocol.tick(11)
    assert not http.transport.closed
    http.protocol.tick(13)
    assert http.transport.aborted


def test_a_body_that_makes_progress_is_waited_for_and_one_that_does_not_is_cut_off() -> None:
    http = InMemory(body_timeout=60)
    http.send(host(b"Content-Length: 100"))
    http.protocol.tick(0)
    for now in range(50, 500, 50):
        http.send(b"x")
        http.protocol.tick(now)
    http.protocol.tick(509)
    assert http.transport.take() == b""
    http.protocol.tick(510)
    assert http.transport.take() == problem(408, "Nothing of the request body came for 60 s.")
    assert http.application.last.error is not None


def test_a_body_that_we_do_not_read_is_not_held_against_the_client() -> None:
    http = InMemory(Recorder(None, consume=False), body_timeout=60, stream_window=10)
    http.send(host(b"Content-Length: 100"))
    http.send(b"x" * 20)
    http.protocol.tick(0)
    http.protocol.tick(1000)
    assert not http.transport.closed
    http.application.last.stream.consumed(20)
    http.protocol.tick(1001)
    http.protocol.tick(1060)
    assert http.transport.take() == b""
    http.protocol.tick(1061)
    assert http.transport.take() == problem(408, "Nothing of the request body came for 60 s.")


def test_a_handler_may_take_its_time() -> None:
    http = InMemory(Recorder(None), body_timeout=1, idle_timeout=1, header_timeout=1)
    http.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    http.protocol.tick(0)
    http.protocol.tick(1000)
    assert not http.transport.closed


def test_an_idle_connection_is_closed() -> None:
    http = InMemory(idle_timeout=600)
    http.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    http.protocol.tick(0)
    http.protocol.tick(599)
    assert not http.transport.closed
    http.protocol.tick(600)
    assert http.transport.closed
    assert not http.transport.aborted


def test_a_client_that_reads_nothing_is_cut_off() -> None:
    http = InMemory(Recorder(None), body_timeout=60)
    http.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    stream = http.application.last.stream
    stream.send_headers(OK)
    http.protocol.pause_writing()
    http.transport.unsent = 1000
    http.protocol.tick(0)
    http.transport.unsent = 999
    http.protocol.tick(59)
    http.protocol.tick(118)
    assert not http.transport.closed
    http.protocol.tick(119)
    assert http.transport.aborted
    error = http.application.last.error
    assert error is not None
    assert error.reason == "the client took nothing of the response for 60 s"
