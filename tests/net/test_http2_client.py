"""The client's engine, judged by the `h2` library and by frames written by hand."""

from __future__ import annotations

import h2.events
import pytest
from http2_support import (
    REQUEST,
    RESPONSE,
    Call,
    Clock,
    Judge,
    Service,
    block,
    client,
    ending,
    frames,
    of,
    resets,
    server,
    start,
    talk,
)

from polywire.net.hpack import STATIC_TABLE
from polywire.net.http2.client import Http2Client
from polywire.net.http2.frames import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    MAX_CONCURRENT_STREAMS,
    PING,
    RST_STREAM,
    SETTINGS,
    ErrorCode,
    frame,
    pack_setting,
    pack_u32,
)
from polywire.net.stream import Field, Headers, HeadersTooLarge, Limits, StreamClosed

HEAD = Headers(((b":method", b"HEAD"), *REQUEST.fields[1:]))


def greeted(engine: Http2Client, *settings: tuple[int, int]) -> Http2Client:
    theirs = b"".join(pack_setting(*setting) for setting in settings)
    engine.receive(frame(SETTINGS, 0, 0, theirs) + frame(SETTINGS, ACK, 0))
    engine.take()
    return engine


def answer(sid: int, *fields: Field, end: bool = True) -> bytes:
    return frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), sid, block(*fields))


def test_a_judge_reads_our_request_and_we_its_answer() -> None:
    engine = client()
    judge = Judge(engine)
    call = Call()
    start(engine, call, body=b"hello")
    seen = judge.exchange()
    (request,) = of(h2.events.RequestReceived, seen)
    assert tuple(request.headers) == REQUEST.fields
    assert of(h2.events.DataReceived, seen)[0].data == b"hello"
    assert of(h2.events.StreamEnded, seen)
    judge.h2.send_headers(1, [(b":status", b"103"), (b"link", b"x")])
    judge.h2.send_headers(1, [(b":status", b"200"), (b"x", b"y")])
    judge.h2.send_data(1, b"world")
    judge.h2.send_headers(1, [(b"grpc-status", b"0")], end_stream=True)
    judge.exchange()
    assert call.events == [
        ("headers", 200, ((b"x", b"y"),)),
        ("data", b"world"),
        ("ended", ((b"grpc-status", b"0"),)),
    ]
    assert not engine.streams


def test_a_thousand_calls_to_a_judge_use_a_handful_of_bytes_for_their_headers() -> None:
    engine = client(Limits())
    judge = Judge(engine)
    judge.exchange()
    for number in range(1000):
        call = Call()
        start(engine, call, end=True)
        if number > 3:
            assert sum(len(body) for kind, _, _, body in frames(b"".join(engine.out)) if kind == HEADERS) <= 6
        (request,) = of(h2.events.RequestReceived, judge.exchange())
        judge.h2.send_headers(request.stream_id, [(b":status", b"204")], end_stream=True)
        judge.exchange()
        assert call.complete


@pytest.mark.parametrize("size", [0, 1, 16_384, 16_385, 70_000, 3_000_000])
def test_two_of_our_engines_carry_bodies_of_all_sizes_both_ways(size: int) -> None:
    ours, theirs = client(), server()
    talk(ours, theirs)
    call = Call()
    start(ours, call, body=b"x" * size)
    talk(ours, theirs)
    assert call.body == b"x" * size
    assert call.complete
    assert not ours.streams
    assert not theirs.streams


def test_a_thousand_streams_at_once_are_all_answered() -> None:
    ours, theirs = client(), server(Service(None))
    talk(ours, theirs)
    calls = [Call() for _ in range(1000)]
    for call in calls:
        start(ours, call, body=b"x" * 1000)
    talk(ours, theirs)
    assert len(theirs.streams) == 1000
    for stream in list(theirs.streams.values()):
        stream.respond(RESPONSE, (), b"y" * 3000, Headers(()))
    talk(ours, theirs)
    assert [len(call.body) for call in calls] == [3000] * 1000
    assert all(call.complete for call in calls)


NO_BODY = {
    "HEAD": (HEAD, (b":status", b"200")),
    "204": (REQUEST, (b":status", b"204")),
    "304": (REQUEST, (b":status", b"304")),
}


@pytest.mark.parametrize("name", NO_BODY)
def test_responses_that_have_no_body_may_announce_one_but_not_send_it(name: str) -> None:
    headers, status = NO_BODY[name]
    engine, call, other = client(), Call(), Call()
    start(engine, call, headers)
    start(engine, other, headers)
    greeted(engine)
    engine.receive(answer(1, status, (b"content-length", b"7")))
    assert call.complete
    engine.receive(answer(3, status, (b"content-length", b"7"), end=False) + frame(DATA, END_STREAM, 3, b"1234567"))
    assert resets(engine.take()) == [(3, ErrorCode.PROTOCOL_ERROR)]
    assert other.failure is not None


MALFORMED: dict[str, tuple[Field, ...]] = {
    "no status": ((b"x", b"y"),),
    "a status of two digits": ((b":status", b"20"),),
    "101": ((b":status", b"101"),),
    "a path": ((b":status", b"200"), (b":path", b"/")),
    "connection": ((b":status", b"200"), (b"connection", b"close")),
    "an upper-case name": ((b":status", b"200"), (b"X", b"y")),
    "an interim response that ends": ((b":status", b"100"),),
    "a length without a body": ((b":status", b"200"), (b"content-length", b"1")),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_response_fails_its_call_alone(name: str) -> None:
    engine, call, other = client(), Call(), Call()
    start(engine, call)
    start(engine, other)
    greeted(engine)
    engine.receive(answer(1, *MALFORMED[name]))
    assert resets(engine.take()) == [(1, ErrorCode.PROTOCOL_ERROR)]
    assert call.failure is not None
    assert call.failure[1:] == (True, ErrorCode.PROTOCOL_ERROR)
    engine.receive(answer(3, (b":status", b"200")))
    assert other.complete


BREACHES = {
    "no SETTINGS first": (frame(PING, 0, 0, b"12345678"), ErrorCode.PROTOCOL_ERROR),
    "a stream that nobody opened": (frame(SETTINGS, 0, 0) + answer(5, (b":status", b"200")), ErrorCode.PROTOCOL_ERROR),
    "a stream of the server": (frame(SETTINGS, 0, 0) + answer(2, (b":status", b"200")), ErrorCode.PROTOCOL_ERROR),
    "a promise": (frame(SETTINGS, 0, 0) + frame(5, 4, 1, pack_u32(2)), ErrorCode.PROTOCOL_ERROR),
    "a server that allows push": (frame(SETTINGS, 0, 0, pack_setting(2, 1)), ErrorCode.PROTOCOL_ERROR),
}


@pytest.mark.parametrize("name", BREACHES)
def test_a_breach_of_the_protocol_fails_every_call(name: str) -> None:
    data, code = BREACHES[name]
    engine, call = client(), Call()
    start(engine, call)
    engine.take()
    engine.receive(data)
    end = ending(engine.take())
    assert end is not None
    assert end[0] == code
    assert call.failure == (f"the connection was ended: {end[1]}", True, code)
    assert engine.closed


def test_a_goaway_fails_what_the_server_did_not_take_and_lets_the_rest_end() -> None:
    engine, first, second = client(), Call(), Call()
    start(engine, first)
    start(engine, second)
    greeted(engine)
    engine.receive(frame(GOAWAY, 0, 0, pack_u32(1) + pack_u32(0) + b"moving"))
    assert second.failure == ("the peer ends the connection: NO_ERROR ('moving')", False, 0)
    assert engine.closed
    assert not engine.available
    with pytest.raises(StreamClosed) as refused:
        start(engine, Call())
    assert not refused.value.reached
    assert not engine.finished
    engine.receive(answer(1, (b":status", b"200")))
    assert first.complete
    assert engine.finished


def test_refused_streams_were_not_reached_and_others_may_have_been() -> None:
    for code, reached in ((ErrorCode.REFUSED_STREAM, False), (ErrorCode.CANCEL, True), (0x1F, True)):
        engine, call = client(), Call()
        start(engine, call)
        greeted(engine)
        engine.receive(frame(RST_STREAM, 0, 1, pack_u32(code)))
        name = code.name if isinstance(code, ErrorCode) else "error 0x1f"
        assert call.failure == (f"the peer reset the stream: {name}", reached, code)


def test_what_was_not_written_when_we_end_the_connection_never_is() -> None:
    engine, sent, unsent = client(), Call(), Call()
    start(engine, sent)
    greeted(engine)
    start(engine, unsent)
    engine.die(ErrorCode.NO_ERROR, "enough")
    assert sent.failure == ("enough", True, ErrorCode.NO_ERROR)
    assert unsent.failure == ("enough", False, ErrorCode.NO_ERROR)
    assert [kind for kind, *_ in frames(engine.take())] == [GOAWAY]


def test_a_lost_connection_says_what_was_handed_over() -> None:
    engine, sent, unsent = client(), Call(), Call()
    start(engine, sent)
    engine.take()
    start(engine, unsent)
    engine.lost("the connection was lost")
    assert sent.failure == ("the connection was lost", True, None)
    assert unsent.failure == ("the connection was lost", False, None)


def test_the_servers_limit_of_streams_is_kept() -> None:
    engine = greeted(client(), (MAX_CONCURRENT_STREAMS, 2))
    start(engine, Call())
    assert engine.available
    start(engine, Call())
    assert not engine.available
    assert not engine.closed
    with pytest.raises(StreamClosed) as refused:
        start(engine, Call())
    assert str(refused.value) == "the connection takes no more exchanges for now"
    engine.receive(answer(1, (b":status", b"200")))
    assert engine.available


def test_the_largest_stream_id_is_the_last() -> None:
    engine = greeted(client())
    engine._next = 2**31 - 3
    start(engine, Call())
    assert engine.closed


def test_a_body_waits_for_the_window_and_its_writer_can_see_that() -> None:
    engine = greeted(client())
    stream = start(engine, Call(), end=False)
    stream.send_data(b"x" * 65_535)
    assert stream.writable
    stream.send_data(b"y" * 70_000)
    assert not stream.writable
    stream.send_data(b"", end=True)
    engine.take()
    engine.receive(frame(8, 0, 1, pack_u32(100_000)) + frame(8, 0, 0, pack_u32(100_000)))
    sent = frames(engine.take())
    assert sum(len(body) for kind, _, _, body in sent if kind == DATA) == 70_000
    assert sent[-1][1] == END_STREAM
    assert stream.writable


def test_a_reset_is_sent_once_and_what_follows_is_ignored() -> None:
    engine, call = client(), Call()
    stream = start(engine, call)
    greeted(engine)
    stream.reset(ErrorCode.CANCEL)
    stream.reset(ErrorCode.CANCEL)
    assert resets(engine.take()) == [(1, ErrorCode.CANCEL)]
    engine.receive(answer(1, (b":status", b"200"), end=False) + frame(DATA, END_STREAM, 1, b"late"))
    assert engine.take() == b""
    assert call.events == []
    assert not engine.finished


def test_a_drain_waits_for_the_calls_under_way() -> None:
    engine, call = client(), Call()
    start(engine, call)
    greeted(engine)
    engine.drain()
    assert not engine.available
    assert not engine.finished
    engine.receive(answer(1, (b":status", b"200")))
    assert call.complete
    assert engine.finished


def test_a_silent_peer_is_asked_and_then_given_up() -> None:
    clock = Clock()
    engine, call = client(Limits(keepalive_interval=30, keepalive_timeout=10), clock), Call()
    start(engine, call)
    greeted(engine)
    engine.tick(1.0)
    engine.tick(30.5)
    assert engine.take() == b""
    engine.tick(31.0)
    ((kind, flags, _, payload),) = frames(engine.take())
    assert (kind, flags) == (PING, 0)
    engine.receive(frame(PING, 1, 0, payload))
    engine.tick(40.0)
    engine.tick(50.0)
    assert not engine.finished
    engine.tick(70.0)
    engine.tick(80.0)
    assert call.failure == ("the peer did not answer a PING", True, ErrorCode.NO_ERROR)


def too_large(limit: int) -> tuple[Headers, tuple[Field, ...]]:
    """Headers and a tail that are one byte more than *limit* together, and new to every table."""
    headers = Headers((*REQUEST.fields, (b"x-new", b"n")))
    size = sum(len(name) + len(value) + 32 for name, value in headers.fields)
    return headers, ((b"x-tail", b"t" * (limit + 1 - size - 38)),)


@pytest.mark.parametrize("limit", [400, 16_384])
def test_headers_over_what_the_server_takes_are_not_sent(limit: int) -> None:
    service = Service()
    ours, theirs = client(), server(service, Limits(max_header_bytes=limit))
    talk(ours, theirs)
    headers, tail = too_large(limit)
    for _ in range(3):
        with pytest.raises(HeadersTooLarge) as refused:
            ours.open(headers, tail, Call())
        assert str(refused.value) == (
            f"the headers are {limit + 1} bytes, as HTTP/2 counts them, and the other side takes {limit}"
        )
        assert not refused.value.reached
    assert ours.take() == b""
    assert not ours.streams

    # One byte less is taken, whether the headers are known by then or not, and the tables still agree.
    for _ in range(4):
        call = Call()
        call.stream = ours.open(headers, ((tail[0][0], tail[0][1][1:]),), call, body=b"hello")
        talk(ours, theirs)
        assert (call.body, call.complete) == (b"hello", True)
        with pytest.raises(HeadersTooLarge):
            ours.open(headers, tail, Call())
    assert len(service.calls) == 4


def test_the_longest_fields_that_an_octet_can_stand_for_are_within_the_quick_bound() -> None:
    # What `Encoder` counts on when it does not add sizes up.
    assert max(len(name) + len(value) + 32 for name, value in STATIC_TABLE) <= 64
    assert max((len(name) + 32 + 1) / 2 for name, _ in STATIC_TABLE) <= 64


def test_a_server_that_does_not_acknowledge_our_settings_is_given_up() -> None:
    engine, call = client(Limits(header_timeout=10)), Call()
    start(engine, call)
    engine.receive(frame(SETTINGS, 0, 0))
    engine.take()
    assert not engine.idle
    engine.tick(9.0)
    assert not engine.finished
    engine.tick(10.0)
    assert ending(engine.take()) == (ErrorCode.SETTINGS_TIMEOUT, "our SETTINGS were not acknowledged")
    assert call.failure == (
        "the connection was ended: our SETTINGS were not acknowledged", True, ErrorCode.SETTINGS_TIMEOUT
    )  # fmt: skip


def test_an_idle_connection_is_left_alone_and_ends_in_the_end() -> None:
    engine = greeted(client(Limits(idle_timeout=600)))
    engine.tick(1.0)
    assert engine.idle
    engine.tick(599.0)
    assert engine.take() == b""
    engine.tick(engine.idle_deadline)
    assert engine.finished


def test_a_reset_request_of_ours_reaches_the_server_as_one() -> None:
    service = Service(None)
    ours, theirs = client(), server(service)
    stream = start(ours, Call(), body=b"x", end=False)
    talk(ours, theirs)
    stream.reset(ErrorCode.CANCEL)
    talk(ours, theirs)
    assert service.calls[0].failure == ("the peer reset the stream: CANCEL", True, ErrorCode.CANCEL)
