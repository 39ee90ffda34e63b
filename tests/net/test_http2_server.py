"""The server's engine, judged by the `h2` library and by frames written by hand."""

from __future__ import annotations

from collections.abc import Callable

import h2.errors
import h2.events
import hpack
import pytest
from h2.settings import SettingCodes
from http2_support import (
    REQUEST,
    RESPONSE,
    TRAILERS,
    Call,
    Clock,
    Judge,
    Service,
    answering,
    block,
    client,
    ending,
    frames,
    greeted,
    of,
    request_frames,
    resets,
    server,
    start,
    talk,
    window_update,
)

from polywire.net.http2.frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    PADDED,
    PING,
    PREFACE,
    PRIORITISED,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    ErrorCode,
    frame,
    pack_setting,
    pack_u32,
)
from polywire.net.http2.server import Http2Server
from polywire.net.stream import Field, Head, Headers, Limits, Stream

GET = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"a")]


def test_a_judge_gets_headers_body_and_trailers_in_order() -> None:
    service = Service()
    judge = Judge(server(service))
    judge.h2.send_headers(1, list(REQUEST.fields))
    judge.h2.send_data(1, b"hello", end_stream=True)
    seen = judge.exchange()
    assert [type(event).__name__ for event in seen if not isinstance(event, h2.events.SettingsAcknowledged)][-4:] == [
        "ResponseReceived",
        "DataReceived",
        "TrailersReceived",
        "StreamEnded",
    ]
    assert of(h2.events.TrailersReceived, seen)[0].headers == [(b"grpc-status", b"0")]
    assert service.calls[0].events == [
        ("request", b"POST", REQUEST.fields[2][1], b"shop.test", REQUEST.fields[4:]),
        ("data", b"hello"),
        ("ended", ()),
    ]


def test_the_same_head_comes_again_as_the_same_object_and_its_memo_stays() -> None:
    heads: list[Head] = []

    def application(stream: Stream) -> Call:
        heads.append(stream.head)
        return Call(stream)

    judge = Judge(server(application))
    for sid in (1, 3, 5):
        judge.h2.send_headers(sid, [*REQUEST.fields, hpack.NeverIndexedHeaderTuple(b"grpc-timeout", b"%dS" % sid)])
        judge.exchange()
    assert heads[1] is heads[2]


@pytest.mark.parametrize("size", [0, 1, 16_384, 16_385, 65_535, 1_000_000])
def test_bodies_of_all_sizes_come_back_whole(size: int) -> None:
    judge = Judge(server())
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    judge.h2.send_headers(1, list(REQUEST.fields), end_stream=not body)
    answer, sent = b"", 0
    while True:
        room = min(judge.h2.local_flow_control_window(1), judge.h2.max_outbound_frame_size, size - sent)
        if room > 0:
            judge.h2.send_data(1, body[sent : sent + room], end_stream=sent + room == size)
            sent += room
        seen = judge.exchange()
        for event in of(h2.events.DataReceived, seen):
            answer += event.data
            judge.h2.acknowledge_received_data(event.flow_controlled_length, 1)
        if of(h2.events.StreamEnded, seen):
            break
    assert answer == body


def test_answers_to_many_streams_take_turns() -> None:
    judge = Judge(server(Service(answering(b"x" * 100_000))))
    judge.h2.increment_flow_control_window(1_000_000)
    for sid in (1, 3, 5, 7):
        judge.h2.send_headers(sid, GET, end_stream=True)
    order = [event.stream_id for event in of(h2.events.DataReceived, judge.exchange())]
    assert order[:8] == [1, 3, 5, 7] * 2


def test_a_window_made_negative_holds_the_stream_back_until_it_is_positive_again() -> None:
    engine = greeted(server(Service(answering(b"x" * 100))), (INITIAL_WINDOW_SIZE, 60))
    engine.receive(request_frames(1))
    assert [len(body) for kind, _, _, body in frames(engine.take()) if kind == DATA] == [60]
    engine.receive(frame(SETTINGS, 0, 0, pack_setting(INITIAL_WINDOW_SIZE, 10)))
    engine.receive(window_update(1, 50))
    assert [kind for kind, *_ in frames(engine.take())] == [SETTINGS]
    engine.receive(window_update(1, 1))
    assert [len(body) for kind, _, _, body in frames(engine.take()) if kind == DATA] == [1]
    engine.receive(frame(SETTINGS, 0, 0, pack_setting(INITIAL_WINDOW_SIZE, 1000)))
    sent = frames(engine.take())
    assert [len(body) for kind, _, _, body in sent if kind == DATA] == [39]
    assert sent[-1][:2] == (HEADERS, END_HEADERS | END_STREAM)


def test_trailers_do_not_wait_for_a_window() -> None:
    engine = greeted(server(Service(answering(b"x" * 10))), (INITIAL_WINDOW_SIZE, 10))
    engine.receive(request_frames(1))
    assert [kind for kind, *_ in frames(engine.take())] == [HEADERS, DATA, HEADERS]


def test_what_the_application_does_not_consume_is_not_given_back() -> None:
    limits = Limits(stream_window=100_000, connection_window=200_000)
    service = Service(None, reads=False)
    engine = greeted(server(service, limits))
    engine.receive(frame(SETTINGS, 1, 0))
    engine.receive(frame(HEADERS, END_HEADERS, 1, block(*REQUEST.fields)))
    for _ in range(5):
        engine.receive(frame(DATA, 0, 1, b"x" * 16_384))
    assert engine.take() == b""
    stream = service.calls[0].stream
    assert stream is not None
    stream.consumed(40_000)
    assert engine.take() == b""
    stream.consumed(20_000)
    assert frames(engine.take()) == [(WINDOW_UPDATE, 0, 1, pack_u32(60_000))]
    engine.receive(frame(DATA, 0, 1, b"x" * 16_384))
    engine.receive(frame(DATA, 0, 1, b"x" * 16_384))
    stream.consumed(1 << 30)
    assert frames(engine.take()) == [(WINDOW_UPDATE, 0, 0, pack_u32(114_688)), (WINDOW_UPDATE, 0, 1, pack_u32(54_688))]


def test_more_data_than_the_streams_window_resets_the_stream() -> None:
    service = Service(None, reads=False)
    engine = greeted(server(service, Limits(stream_window=1000, connection_window=200_000)))
    engine.receive(frame(SETTINGS, 1, 0) + frame(HEADERS, END_HEADERS, 1, block(*REQUEST.fields)))
    engine.receive(frame(DATA, 0, 1, b"x" * 1001))
    assert resets(engine.take()) == [(1, ErrorCode.FLOW_CONTROL_ERROR)]
    reason = "the peer sent more data than the stream's window"
    assert service.calls[0].failure == (reason, True, ErrorCode.FLOW_CONTROL_ERROR)


def test_more_data_than_the_connections_window_ends_the_connection() -> None:
    engine = greeted(server(Service(None, reads=False), Limits(connection_window=65_535)))
    engine.receive(frame(HEADERS, END_HEADERS, 1, block(*REQUEST.fields)))
    for _ in range(4):
        engine.receive(frame(DATA, 0, 1, b"x" * 16_384))
    assert ending(engine.take()) == (ErrorCode.FLOW_CONTROL_ERROR, "more data than the connection's window")


def test_credit_of_a_stream_that_ends_unread_returns_to_the_connection() -> None:
    engine = greeted(server(Service(answering(b"ok"), reads=False), Limits(connection_window=65_536)))
    for sid in range(1, 21, 2):
        engine.receive(request_frames(sid, body=b"x" * 16_000))
    assert not engine.finished
    assert sum(kind == WINDOW_UPDATE for kind, *_ in frames(engine.take())) >= 3


def test_padding_is_taken_off_and_its_credit_given_back() -> None:
    service = Service(None, reads=False)
    engine = greeted(server(service, Limits(stream_window=65_535, connection_window=65_535)))
    padded = b"\x04" + block(*REQUEST.fields) + b"\0" * 4
    engine.receive(frame(HEADERS, END_HEADERS | PADDED, 1, padded))
    for _ in range(400):
        engine.receive(frame(DATA, PADDED, 1, b"\xff" + b"x" + b"\0" * 255))
    assert not engine.finished
    assert service.calls[0].body == b"x" * 400
    assert service.calls[0].failure is None


def test_priority_is_read_over() -> None:
    service = Service()
    engine = greeted(server(service))
    engine.receive(frame(PRIORITY, 0, 9, pack_u32(7) + b"\x10"))
    engine.receive(
        frame(HEADERS, END_HEADERS | END_STREAM | PRIORITISED, 1, pack_u32(0) + b"\x10" + block(*REQUEST.fields))
    )
    assert service.calls[0].complete


def test_continuations_are_put_together_whatever_their_size() -> None:
    service = Service()
    engine = greeted(server(service))
    whole = block(*REQUEST.fields)
    engine.receive(frame(HEADERS, END_STREAM, 1, whole[:10]))
    engine.receive(frame(CONTINUATION, 0, 1, b""))
    engine.receive(frame(CONTINUATION, 0, 1, whole[10:50]))
    engine.receive(frame(CONTINUATION, END_HEADERS, 1, whole[50:]))
    assert service.calls[0].complete


def test_large_answers_of_headers_are_continued() -> None:
    large = Headers((*RESPONSE.fields, (b"x-large", b"v" * 40_000)))
    engine = server(Service(answering(b"body", large)))
    judge = Judge(engine)
    judge.h2.decoder.max_header_list_size = 100_000
    judge.h2.send_headers(1, GET, end_stream=True)
    (response,) = of(h2.events.ResponseReceived, judge.exchange())
    assert response.headers[-1] == (b"x-large", b"v" * 40_000)
    assert of(h2.events.StreamEnded, judge.events)


def test_request_trailers_arrive_with_the_end() -> None:
    service = Service()
    judge = Judge(server(service))
    judge.h2.send_headers(1, list(REQUEST.fields))
    judge.h2.send_data(1, b"body")
    judge.h2.send_headers(1, [(b"x-sum", b"1")], end_stream=True)
    judge.exchange()
    assert service.calls[0].events[-1] == ("ended", ((b"x-sum", b"1"),))


def test_cookie_crumbs_are_joined_and_host_becomes_the_authority() -> None:
    service = Service()
    engine = greeted(server(service))
    fields = (*GET[:3], (b"host", b"shop.test"), (b"cookie", b"a=1"), (b"x", b"y"), (b"cookie", b"b=2"))
    engine.receive(request_frames(1, fields=fields))
    assert service.calls[0].events[0] == (
        "request",
        b"GET",
        b"/",
        b"shop.test",
        ((b"x", b"y"), (b"cookie", b"a=1; b=2")),
    )


def pseudo(**changed: bytes | None) -> tuple[Field, ...]:
    fields = {b":method": b"GET", b":scheme": b"http", b":path": b"/", b":authority": b"a"}
    for name, value in changed.items():
        key = b":" + name.encode()
        if value is None:
            del fields[key]
        else:
            fields[key] = value
    return tuple(fields.items())


MALFORMED: dict[str, tuple[Field, ...]] = {
    "no method": pseudo(method=None),
    "no scheme": pseudo(scheme=None),
    "no path": pseudo(path=None),
    "an empty path": pseudo(path=b""),
    "a path without slash": pseudo(path=b"a"),
    "an asterisk that is not OPTIONS": pseudo(path=b"*"),
    "a method with a space": pseudo(method=b"GE T"),
    "CONNECT with a path": pseudo(method=b"CONNECT"),
    "a pseudo-header twice": (*pseudo(), (b":path", b"/b")),
    "an unknown pseudo-header": (*pseudo(), (b":other", b"b")),
    "a status": (*pseudo(), (b":status", b"200")),
    "a pseudo-header after a header": ((b"x", b"y"), *pseudo()),
    "an upper-case name": (*pseudo(), (b"X-Name", b"y")),
    "an empty name": (*pseudo(), (b"", b"y")),
    "a name with a space": (*pseudo(), (b"x y", b"y")),
    "a name with a colon": (*pseudo(), (b"x:y", b"y")),
    "a value with a newline": (*pseudo(), (b"x", b"a\nb")),
    "a value with a carriage return": (*pseudo(), (b"x", b"a\rb")),
    "a value with a NUL": (*pseudo(), (b"x", b"a\0b")),
    "a value that is a NUL": (*pseudo(), (b"x", b"\0")),
    "a value with a leading space": (*pseudo(), (b"x", b" a")),
    "a value with a trailing tab": (*pseudo(), (b"x", b"a\t")),
    "a path with a newline": pseudo(path=b"/\n"),
    "connection": (*pseudo(), (b"connection", b"close")),
    "keep-alive": (*pseudo(), (b"keep-alive", b"1")),
    "proxy-connection": (*pseudo(), (b"proxy-connection", b"1")),
    "transfer-encoding": (*pseudo(), (b"transfer-encoding", b"chunked")),
    "upgrade": (*pseudo(), (b"upgrade", b"h2c")),
    "te other than trailers": (*pseudo(), (b"te", b"gzip")),
    "host and authority that differ": (*pseudo(), (b"host", b"b")),
    "content-length that is no number": (*pseudo(), (b"content-length", b"-1")),
    "two content-lengths": (*pseudo(), (b"content-length", b"1"), (b"content-length", b"2")),
    "content-length without a body": (*pseudo(), (b"content-length", b"1")),
}


@pytest.mark.parametrize("known", [False, True], ids=["at once", "after a good one with the same names"])
@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_request_resets_its_stream_and_no_other(name: str, known: bool) -> None:
    service = Service()
    engine = greeted(server(service))
    encoder = hpack.Encoder()
    if known:
        engine.receive(frame(HEADERS, 5, 1, encoder.encode([*pseudo(), (b"x", b"ok"), (b"te", b"trailers")])))
        service.calls.clear()
    engine.take()
    engine.receive(frame(HEADERS, 5, 3, encoder.encode(list(MALFORMED[name]))))
    assert resets(engine.take()) == [(3, ErrorCode.PROTOCOL_ERROR)]
    assert service.calls == []
    engine.receive(frame(HEADERS, 5, 5, encoder.encode(list(pseudo()))))
    assert service.calls[0].complete


WRONG_LENGTHS = {
    "shorter": [frame(DATA, END_STREAM, 1, b"abcd")],
    "shorter, in parts": [frame(DATA, 0, 1, b"abcd"), frame(DATA, END_STREAM, 1)],
    "longer": [frame(DATA, END_STREAM, 1, b"abcdef")],
    "longer, not ended": [frame(DATA, 0, 1, b"abcdef")],
    "shorter, ended by trailers": [frame(DATA, 0, 1, b"abcd"), frame(HEADERS, 5, 1, block((b"x", b"y")))],
}


@pytest.mark.parametrize("name", WRONG_LENGTHS)
@pytest.mark.parametrize("indexed", [False, True])
def test_a_body_that_is_not_as_long_as_announced_is_refused(name: str, indexed: bool) -> None:
    service = Service()
    engine = greeted(server(service))
    fields = (*REQUEST.fields, (b"content-length", b"5"))
    encoder = hpack.Encoder()
    engine.receive(frame(HEADERS, END_HEADERS, 1, encoder.encode(list(fields)) if indexed else block(*fields)))
    for data in WRONG_LENGTHS[name]:
        engine.receive(data)
    assert (1, ErrorCode.PROTOCOL_ERROR) in resets(engine.take())
    reason = "the peer sent the body is not as long as content-length said"
    assert service.calls[0].failure == (reason, True, ErrorCode.PROTOCOL_ERROR)


BREACHES: dict[str, tuple[bytes, ErrorCode]] = {
    "a wrong preface": (b"GET / HTTP/1.1\r\n", ErrorCode.PROTOCOL_ERROR),
    "no SETTINGS first": (PREFACE + frame(PING, 0, 0, b"12345678"), ErrorCode.PROTOCOL_ERROR),
    "an acknowledgement first": (PREFACE + frame(SETTINGS, 1, 0), ErrorCode.PROTOCOL_ERROR),
    "HEADERS on stream 0": (request_frames(0), ErrorCode.PROTOCOL_ERROR),
    "HEADERS on an even stream": (request_frames(2), ErrorCode.PROTOCOL_ERROR),
    "a stream below the last": (request_frames(5) + request_frames(3), ErrorCode.PROTOCOL_ERROR),
    "a stream again": (request_frames(1) + request_frames(1), ErrorCode.STREAM_CLOSED),
    "DATA on stream 0": (frame(DATA, 0, 0, b"x"), ErrorCode.PROTOCOL_ERROR),
    "DATA on an idle stream": (frame(DATA, 0, 1, b"x"), ErrorCode.PROTOCOL_ERROR),
    "RST_STREAM on an idle stream": (frame(RST_STREAM, 0, 1, pack_u32(8)), ErrorCode.PROTOCOL_ERROR),
    "RST_STREAM on stream 0": (frame(RST_STREAM, 0, 0, pack_u32(8)), ErrorCode.PROTOCOL_ERROR),
    "a short RST_STREAM": (frame(RST_STREAM, 0, 1, b"123"), ErrorCode.FRAME_SIZE_ERROR),
    "WINDOW_UPDATE on an idle stream": (window_update(1, 1), ErrorCode.PROTOCOL_ERROR),
    "WINDOW_UPDATE of nothing": (window_update(0, 0), ErrorCode.PROTOCOL_ERROR),
    "a window that overflows": (window_update(0, 2**31 - 1), ErrorCode.FLOW_CONTROL_ERROR),
    "a short WINDOW_UPDATE": (frame(WINDOW_UPDATE, 0, 0, b"123"), ErrorCode.FRAME_SIZE_ERROR),
    "a short PING": (frame(PING, 0, 0, b"1234567"), ErrorCode.FRAME_SIZE_ERROR),
    "PING on a stream": (frame(PING, 0, 1, b"12345678"), ErrorCode.PROTOCOL_ERROR),
    "SETTINGS on a stream": (frame(SETTINGS, 0, 1), ErrorCode.PROTOCOL_ERROR),
    "SETTINGS cut short": (frame(SETTINGS, 0, 0, b"12345"), ErrorCode.FRAME_SIZE_ERROR),
    "an acknowledgement with a payload": (frame(SETTINGS, 1, 0, pack_setting(1, 1)), ErrorCode.FRAME_SIZE_ERROR),
    "a push setting of 2": (frame(SETTINGS, 0, 0, pack_setting(2, 2)), ErrorCode.PROTOCOL_ERROR),
    "a window of 2^31": (frame(SETTINGS, 0, 0, pack_setting(4, 2**31)), ErrorCode.FLOW_CONTROL_ERROR),
    "a frame size too small": (frame(SETTINGS, 0, 0, pack_setting(5, 16_383)), ErrorCode.PROTOCOL_ERROR),
    "a frame size too large": (frame(SETTINGS, 0, 0, pack_setting(5, 1 << 24)), ErrorCode.PROTOCOL_ERROR),
    "a frame too large": (frame(DATA, 0, 1, b"x" * 16_385)[:9], ErrorCode.FRAME_SIZE_ERROR),
    "PUSH_PROMISE": (frame(PUSH_PROMISE, 4, 1, pack_u32(2)), ErrorCode.PROTOCOL_ERROR),
    "CONTINUATION of nothing": (frame(CONTINUATION, 4, 1), ErrorCode.PROTOCOL_ERROR),
    "a block interrupted": (frame(HEADERS, 0, 1, b"\x82") + frame(PING, 0, 0, b"12345678"), ErrorCode.PROTOCOL_ERROR),
    "a block continued elsewhere": (
        frame(HEADERS, 0, 1, b"\x82") + frame(CONTINUATION, 4, 3),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "padding longer than the frame": (frame(HEADERS, 12, 1, b"\x05\x82"), ErrorCode.PROTOCOL_ERROR),
    "DATA that is all padding": (
        frame(HEADERS, 4, 1, block(*REQUEST.fields)) + frame(DATA, 8, 1, b"\x01"),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "a padded HEADERS without a length": (frame(HEADERS, 12, 1), ErrorCode.FRAME_SIZE_ERROR),
    "HEADERS too short for a priority": (frame(HEADERS, 0x24, 1, b"1234"), ErrorCode.FRAME_SIZE_ERROR),
    "a stream that depends on itself": (
        frame(HEADERS, 0x25, 1, pack_u32(1) + b"\0" + block(*GET)),
        ErrorCode.PROTOCOL_ERROR,
    ),
    "PRIORITY of stream 0": (frame(PRIORITY, 0, 0, b"12345"), ErrorCode.PROTOCOL_ERROR),
    "GOAWAY on a stream": (frame(GOAWAY, 0, 1, b"\0" * 8), ErrorCode.PROTOCOL_ERROR),
    "a short GOAWAY": (frame(GOAWAY, 0, 0, b"\0" * 7), ErrorCode.FRAME_SIZE_ERROR),
    "a block that is not HPACK": (frame(HEADERS, 5, 1, b"\x80"), ErrorCode.COMPRESSION_ERROR),
    "a lone 0x40": (frame(HEADERS, 5, 1, b"\x40"), ErrorCode.COMPRESSION_ERROR),
    "a table that was not allowed": (frame(HEADERS, 5, 1, b"\x3f\xe2\x1f\x82"), ErrorCode.COMPRESSION_ERROR),
}


@pytest.mark.parametrize("name", BREACHES)
def test_a_breach_of_the_protocol_ends_the_connection_with_its_code(name: str) -> None:
    data, code = BREACHES[name]
    engine = server()
    if not data.startswith((b"PRI", b"GET")):
        greeted(engine)
    engine.receive(data)
    end = ending(engine.take())
    assert end is not None
    assert end[0] == code
    assert engine.finished


def test_what_comes_after_the_end_of_a_connection_is_ignored() -> None:
    engine = greeted(server())
    engine.receive(frame(PING, 0, 1, b"12345678"))
    engine.take()
    engine.receive(request_frames(1))
    assert engine.take() == b""


def test_frames_for_a_stream_that_was_reset_are_ignored_but_counted_and_decoded() -> None:
    service = Service(None)
    engine = greeted(server(service, Limits(connection_window=65_535)))
    encoder = hpack.Encoder()
    engine.receive(frame(HEADERS, END_HEADERS, 1, encoder.encode(list(REQUEST.fields))))
    stream = service.calls[0].stream
    assert stream is not None
    stream.reset(ErrorCode.CANCEL)
    for _ in range(4):
        engine.receive(frame(DATA, 0, 1, b"x" * 10_000))
    engine.receive(frame(HEADERS, 5, 1, encoder.encode([(b"x-taught", b"1")])))
    sent = engine.take()
    assert resets(sent) == [(1, ErrorCode.CANCEL)]
    assert (WINDOW_UPDATE, 0, 0, pack_u32(40_000)) in frames(sent)
    engine.receive(frame(HEADERS, 5, 3, encoder.encode([*REQUEST.fields, (b"x-taught", b"1")])))
    assert service.calls[1].events[0][4][-1] == (b"x-taught", b"1")
    assert service.calls[0].failure is None


def test_data_after_the_end_of_the_stream_resets_it() -> None:
    service = Service(None)
    engine = greeted(server(service))
    engine.receive(request_frames(1) + frame(DATA, 0, 1, b"x"))
    assert resets(engine.take()) == [(1, ErrorCode.STREAM_CLOSED)]
    assert service.calls[0].failure == ("the peer sent DATA after the end of the stream", True, ErrorCode.STREAM_CLOSED)


def test_a_reset_by_the_peer_is_told_even_after_the_request_ended() -> None:
    service = Service(None)
    engine = greeted(server(service))
    engine.receive(request_frames(1) + frame(RST_STREAM, 0, 1, pack_u32(8)))
    assert service.calls[0].failure == ("the peer reset the stream: CANCEL", True, ErrorCode.CANCEL)
    call = service.calls[0]
    assert call.stream is not None
    call.stream.respond(RESPONSE, (), b"late", TRAILERS)
    call.stream.reset(2)
    assert engine.take() == b""


def test_a_request_answered_before_its_end_is_stopped_without_an_error() -> None:
    def application(stream: Stream) -> Call:
        stream.respond(RESPONSE, (), b"no", TRAILERS)
        return calls[0]

    calls = [Call()]
    engine = greeted(server(application))
    engine.receive(frame(HEADERS, END_HEADERS, 1, block(*REQUEST.fields)))
    assert resets(engine.take()) == [(1, ErrorCode.NO_ERROR)]
    assert calls[0].events == [("failed", "answered before the request ended", True, ErrorCode.NO_ERROR)]
    engine.receive(frame(DATA, END_STREAM, 1, b"late"))
    assert engine.take() == b""


def test_a_request_answered_early_whose_end_comes_in_the_same_read_is_not_reset() -> None:
    def application(stream: Stream) -> Call:
        stream.respond(RESPONSE, (), b"no", TRAILERS)
        return Call()

    engine = greeted(server(application))
    engine.receive(request_frames(1, body=b"body"))
    assert resets(engine.take()) == []
    assert not engine.streams


def test_more_streams_than_allowed_are_refused() -> None:
    service = Service(None)
    engine = greeted(server(service, Limits(max_concurrent_streams=2)))
    engine.receive(request_frames(1) + request_frames(3) + request_frames(5, body=b"x"))
    assert resets(engine.take()) == [(5, ErrorCode.REFUSED_STREAM)]
    assert len(service.calls) == 2


def test_a_header_list_too_large_is_answered_431_and_the_table_stays_right() -> None:
    service = Service()
    judge = Judge(server(service, Limits(max_header_bytes=1000)))
    judge.exchange()
    judge.h2.remote_settings._settings[SettingCodes.MAX_HEADER_LIST_SIZE].clear()
    judge.h2.send_headers(1, [*GET, (b"x-large", b"v" * 1200)], end_stream=True)
    (response,) = of(h2.events.ResponseReceived, judge.exchange())
    assert response.headers == [(b":status", b"431")]
    judge.h2.send_headers(3, [*GET, (b"x-small", b"v")], end_stream=True)
    judge.exchange()
    assert [call.events[0][4] for call in service.calls] == [((b"x-small", b"v"),)]


NEW = Headers((*RESPONSE.fields, (b"x-new", b"n")))
LARGE = ((b"x-tail", b"t" * 500),)


def at_once(stream: Stream, *, headers: bool) -> None:
    stream.respond(NEW, LARGE if headers else (), b"hello", TRAILERS, () if headers else LARGE)


def in_steps(stream: Stream, *, headers: bool) -> None:
    stream.send_headers(NEW, LARGE if headers else ())
    stream.send_data(b"hello")
    stream.send_trailers(TRAILERS, () if headers else LARGE)


def held_up(stream: Stream, *, headers: bool) -> None:
    """All of it waits in the outbox."""
    engine = stream.connection
    assert isinstance(engine, Http2Server)
    engine.pause()
    in_steps(stream, headers=headers)
    engine.resume()


@pytest.mark.parametrize("way", [at_once, in_steps, held_up])
@pytest.mark.parametrize("headers", [True, False])
def test_an_answer_whose_headers_are_over_what_the_client_takes_is_given_up(
    way: Callable[..., None], headers: bool
) -> None:
    def answer(call: Call) -> None:
        assert call.stream is not None
        if len(service.calls) == 1:
            way(call.stream, headers=headers)
        else:
            call.stream.respond(NEW, (), b"hello", TRAILERS)

    service = Service(answer)
    ours, theirs = client(Limits(max_header_bytes=400)), server(service)
    talk(ours, theirs)
    first = Call()
    start(ours, first, body=b"x")
    talk(ours, theirs)
    assert first.failure == ("the peer reset the stream: INTERNAL_ERROR", True, ErrorCode.INTERNAL_ERROR)
    assert not theirs.streams
    # The tables still agree.
    for _ in range(3):
        call = Call()
        start(ours, call, body=b"x")
        talk(ours, theirs)
        assert call.events[0] == ("headers", 200, NEW.fields[1:])
        assert call.complete


def test_trailers_without_an_end_or_with_pseudo_headers_are_malformed() -> None:
    for flags, field in ((END_HEADERS, (b"x", b"y")), (END_HEADERS | END_STREAM, (b":path", b"/"))):
        engine = greeted(server())
        engine.receive(frame(HEADERS, END_HEADERS, 1, block(*REQUEST.fields)))
        engine.receive(frame(HEADERS, flags, 1, block(field)))
        assert resets(engine.take()) == [(1, ErrorCode.PROTOCOL_ERROR)]


def test_settings_and_pings_are_acknowledged() -> None:
    engine = greeted(server())
    engine.receive(
        frame(PING, 0, 0, b"12345678") + frame(SETTINGS, 0, 0, pack_setting(0x99, 7)) + frame(0x77, 0, 3, b"?")
    )
    assert frames(engine.take()) == [(PING, 1, 0, b"12345678"), (SETTINGS, 1, 0, b"")]


def test_a_drain_lets_requests_on_their_way_in_and_then_ends() -> None:
    service = Service(None)
    engine = greeted(server(service))
    engine.receive(request_frames(1))
    engine.drain()
    first, ping = frames(engine.take())
    assert first == (GOAWAY, 0, 0, pack_u32(2**31 - 1) + pack_u32(0))
    engine.receive(request_frames(3))
    engine.receive(frame(PING, 1, 0, ping[3]))
    assert frames(engine.take()) == [(GOAWAY, 0, 0, pack_u32(3) + pack_u32(0))]
    engine.receive(request_frames(5))
    assert [call.events[0][0] for call in service.calls] == ["request", "request"]
    for call in service.calls:
        assert not engine.finished
        answering(b"x")(call)
    assert engine.finished


def test_the_last_goaway_names_the_last_request_that_was_taken() -> None:
    for drained in (False, True):
        engine = greeted(server(Service(None)))
        engine.receive(request_frames(1) + request_frames(3))
        if drained:
            engine.drain()
            engine.receive(frame(PING, 1, 0, b"polydrai"))
            engine.receive(request_frames(5))
        engine.take()
        engine.receive(frame(PING, 0, 1, b"12345678"))
        assert frames(engine.take())[-1][3][:8] == pack_u32(3) + pack_u32(ErrorCode.PROTOCOL_ERROR)


def test_a_drain_does_not_wait_for_ever_for_the_answer_to_its_ping() -> None:
    clock = Clock()
    engine = greeted(server(clock=clock))
    engine.drain()
    engine.take()
    clock.time = 3.0
    engine.tick(3.0)
    assert frames(engine.take()) == [(GOAWAY, 0, 0, pack_u32(0) + pack_u32(0))]
    assert engine.finished


def test_writing_pauses_and_goes_on_where_it_stopped() -> None:
    service = Service(None)
    engine = greeted(server(service))
    engine.receive(request_frames(1))
    stream = service.calls[0].stream
    assert stream is not None
    engine.pause()
    stream.send_headers(RESPONSE)
    stream.send_data(b"x" * 100_000)
    assert not stream.writable
    assert engine.take() == b""
    engine.resume()
    sent = frames(engine.take())
    assert sent[0][0] == HEADERS
    assert sum(len(body) for kind, _, _, body in sent if kind == DATA) == 65_535
    engine.receive(window_update(0, 100_000) + window_update(1, 100_000))
    stream.send_trailers(TRAILERS)
    sent = frames(engine.take())
    assert sum(len(body) for kind, _, _, body in sent if kind == DATA) == 100_000 - 65_535
    assert sent[-1][1] == END_HEADERS | END_STREAM
    assert stream.writable
