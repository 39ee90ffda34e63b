"""Peers that mean harm are cut off, each by name; heavy but honest traffic is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from http2_support import (
    REQUEST,
    RESPONSE,
    Call,
    Clock,
    Service,
    answering,
    block,
    client,
    ending,
    frames,
    greeted,
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
    HEADERS,
    INITIAL_WINDOW_SIZE,
    PING,
    PREFACE,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    ErrorCode,
    frame,
    pack_setting,
    pack_u32,
)
from polywire.net.stream import Limits


def rapid_reset() -> Iterator[bytes]:
    for sid in range(1, 1 << 20, 2):
        yield request_frames(sid, body=None) + frame(RST_STREAM, 0, sid, pack_u32(8))


def made_you_reset() -> Iterator[bytes]:
    for sid in range(1, 1 << 20, 2):
        yield request_frames(sid) + window_update(sid, 0)


def malformed_requests() -> Iterator[bytes]:
    for sid in range(1, 1 << 20, 2):
        yield request_frames(sid, (b"connection", b"close"))


def too_many_streams() -> Iterator[bytes]:
    for sid in range(1, 1 << 20, 2):
        yield request_frames(sid)


def too_large_headers() -> Iterator[bytes]:
    for sid in range(1, 1 << 20, 2):
        yield frame(HEADERS, 5, sid, block(*REQUEST.fields) + b"\x82" * 9000)


def continuations() -> Iterator[bytes]:
    yield frame(HEADERS, 0, 1, block(*REQUEST.fields))
    while True:
        yield frame(CONTINUATION, 0, 1, block((b"x", b"y")))


def large_continuations() -> Iterator[bytes]:
    yield frame(HEADERS, 0, 1, block(*REQUEST.fields))
    while True:
        yield frame(CONTINUATION, 0, 1, block((b"x", b"y")) * 2000)


def empty_continuations() -> Iterator[bytes]:
    yield frame(HEADERS, 0, 1)
    while True:
        yield frame(CONTINUATION, 0, 1)


def repeated(data: bytes) -> Callable[[], Iterator[bytes]]:
    def flood() -> Iterator[bytes]:
        yield frame(HEADERS, END_HEADERS, 1, block(*REQUEST.fields))
        while True:
            yield data

    return flood


FLOODS = {
    "rapid reset": (rapid_reset, "too many streams that were reset", 60_000),
    "made you reset": (made_you_reset, "too many faulty streams", 2_000),
    "malformed requests": (malformed_requests, "too many faulty streams", 2_000),
    "refused streams": (too_many_streams, "too many streams that were reset", 10_000),
    "header lists too large": (too_large_headers, "too many faulty streams", 2_000),
    "continuations": (continuations, "a header block without end", 40),
    "large continuations": (large_continuations, "a header block without end", 20),
    "empty continuations": (empty_continuations, "a header block without end", 40),
    "pings": (repeated(frame(PING, 0, 0, b"12345678")), "too many frames that carry nothing", 12_000),
    "acknowledgements of pings": (
        repeated(frame(PING, 1, 0, b"12345678")),
        "too many frames that carry nothing",
        12_000,
    ),
    "settings": (repeated(frame(SETTINGS, 0, 0)), "too many frames that carry nothing", 2_000),
    "settings with windows": (
        repeated(frame(SETTINGS, 0, 0, pack_setting(INITIAL_WINDOW_SIZE, 1) * 100)),
        "too many frames that carry nothing",
        1_000,
    ),
    "empty data": (repeated(frame(DATA, 0, 1)), "too many frames that carry nothing", 12_000),
    "data that is all padding": (
        repeated(frame(DATA, 8, 1, b"\x05" + bytes(5))),
        "too many frames that carry nothing",
        24_000,
    ),
    "window updates": (repeated(window_update(1, 1)), "too many frames that carry nothing", 12_000),
    "priorities": (repeated(frame(PRIORITY, 0, 3, pack_u32(0) + b"\0")), "too many frames that carry nothing", 12_000),
    "unknown frames": (repeated(frame(0xEE, 0, 0, b"?")), "too many frames that carry nothing", 12_000),
    "resets of closed streams": (
        repeated(frame(RST_STREAM, 0, 1, pack_u32(8))),
        "too many frames that carry nothing",
        12_000,
    ),
}


@pytest.mark.parametrize("name", FLOODS)
def test_a_flood_is_cut_off_while_another_connection_is_served(name: str) -> None:
    flood, words, bound = FLOODS[name]
    limits = Limits(max_concurrent_streams=1000)
    # The service answers nobody on the flooded connection, as a slow one would.
    flooded, other = greeted(server(Service(None), limits)), server(limits=limits)
    calm = client()
    talk(calm, other)
    output = b""
    for number, data in enumerate(flood()):
        flooded.receive(data)
        output = flooded.take()
        if number % 1000 == 0:
            call = Call()
            start(calm, call, body=b"x")
            talk(calm, other)
            assert call.complete
        if flooded.finished:
            break
        assert number < bound
    assert ending(output) == (ErrorCode.ENHANCE_YOUR_CALM, words)


def test_answers_that_a_peer_does_not_read_are_bounded() -> None:
    engine = greeted(server())
    engine.pause()
    sent = 0
    while not engine.finished:
        engine.receive(frame(PING, 0, 0, b"12345678"))
        sent += len(engine.take())
        assert sent < 70_000
    assert engine.overrun


def test_answers_of_the_application_to_a_peer_that_does_not_read_wait_in_their_streams() -> None:
    engine = greeted(server(Service(answering(b"x" * 1000))))
    engine.pause()
    for sid in range(1, 401, 2):
        engine.receive(request_frames(sid))
    assert engine.take() == b""
    assert len(engine.streams) == 200
    engine.resume()
    assert sum(kind == DATA for kind, *_ in frames(engine.take())) == 66


def test_forty_thousand_tiny_calls_with_pings_and_cancellations_trip_nothing() -> None:
    """Time stands still here, so nothing is forgiven by it: the work itself must earn it."""
    theirs = greeted(server(Service(answering(b"ok"))))
    head = block(*REQUEST.fields)
    sid = 1
    for number in range(8_000):
        data = b"".join(
            frame(HEADERS, END_HEADERS, sid + step, head) + frame(DATA, END_STREAM, sid + step, b"x")
            for step in (0, 2, 4, 6, 8)
        )
        data += frame(PING, 0, 0, b"12345678") + window_update(0, 10)
        if number % 4 == 0:
            data += frame(HEADERS, END_HEADERS, sid + 10, head) + frame(RST_STREAM, 0, sid + 10, pack_u32(8))
        theirs.receive(data)
        output = theirs.take()
        assert not theirs.finished, ending(output)
        sid += 12


def test_cancelling_all_of_a_thousand_calls_at_once_trips_nothing() -> None:
    ours, theirs = client(), server(Service(None))
    talk(ours, theirs)
    for _ in range(2):
        streams = [start(ours, Call(), body=b"x") for _ in range(1000)]
        talk(ours, theirs)
        for stream in streams:
            stream.reset(ErrorCode.CANCEL)
        talk(ours, theirs)
    assert not theirs.finished


def test_a_stream_of_messages_with_a_window_update_for_each_trips_nothing() -> None:
    theirs = greeted(server(Service(None)))
    theirs.receive(request_frames(1))
    (stream,) = theirs.streams.values()
    stream.send_headers(RESPONSE)
    for _ in range(30_000):
        stream.send_data(b"message")
        theirs.take()
        theirs.receive(window_update(1, 7) + window_update(0, 7) + frame(PING, 0, 0, b"12345678"))
        assert not theirs.finished


def test_a_peer_that_never_opens_its_window_loses_the_stream() -> None:
    clock = Clock()
    service = Service(answering(b"x"))
    engine = greeted(server(service, Limits(body_timeout=60, keepalive_interval=1000), clock), (INITIAL_WINDOW_SIZE, 0))
    engine.receive(request_frames(1))
    engine.take()
    engine.tick(1.0)
    engine.tick(60.0)
    assert resets(engine.take()) == []
    engine.tick(61.0)
    assert resets(engine.take()) == [(1, ErrorCode.CANCEL)]
    assert service.calls[0].failure == ("no progress for 60 s", True, ErrorCode.CANCEL)


def test_a_body_that_stops_halfway_loses_its_stream_unless_we_held_it_back() -> None:
    for reads, given_up in ((True, [(1, ErrorCode.CANCEL)]), (False, [])):
        engine = greeted(server(Service(None, reads=reads), Limits(body_timeout=60, keepalive_interval=1000)))
        engine.receive(frame(HEADERS, END_HEADERS, 1, block(*REQUEST.fields, (b"content-length", b"10"))))
        engine.receive(frame(DATA, 0, 1, b"half"))
        engine.tick(1.0)
        engine.tick(62.0)
        assert resets(engine.take()) == given_up


def test_a_quiet_stream_of_messages_is_left_alone() -> None:
    engine = greeted(server(Service(None), Limits(body_timeout=60, keepalive_interval=1000)))
    engine.receive(frame(HEADERS, END_HEADERS, 1, block(*REQUEST.fields)))
    for second in range(0, 900, 10):
        engine.tick(float(second))
    assert engine.take() == b""


def test_a_header_block_that_takes_too_long_ends_the_connection() -> None:
    engine = greeted(server(limits=Limits(header_timeout=10)))
    engine.receive(frame(HEADERS, 0, 1, block(*REQUEST.fields)))
    engine.tick(1.0)
    engine.tick(10.0)
    assert not engine.finished
    engine.tick(11.0)
    assert ending(engine.take()) == (ErrorCode.ENHANCE_YOUR_CALM, "a header block took too long")


def test_a_peer_that_says_nothing_is_not_waited_for() -> None:
    engine = server(limits=Limits(header_timeout=10))
    engine.take()
    engine.tick(10.0)
    assert ending(engine.take()) == (ErrorCode.SETTINGS_TIMEOUT, "no SETTINGS came")


def test_a_peer_that_does_not_acknowledge_our_settings_is_not_waited_for() -> None:
    engine = server(limits=Limits(header_timeout=10))
    engine.receive(PREFACE + frame(SETTINGS, 0, 0) + request_frames(1))
    engine.tick(9.0)
    assert not engine.finished
    engine.tick(10.0)
    assert ending(engine.take()) == (ErrorCode.SETTINGS_TIMEOUT, "our SETTINGS were not acknowledged")


def test_a_bomb_of_indices_costs_no_memory() -> None:
    service = Service()
    engine = greeted(server(service))
    bomb = block(*REQUEST.fields) + b"\x40\x01x\x7f\x80\x1e" + b"v" * 3967 + b"\xbe" * 12_000
    engine.receive(frame(HEADERS, 5, 1, bomb))
    sent = frames(engine.take())
    assert [kind for kind, *_ in sent] == [HEADERS]
    assert service.calls == []
    engine.receive(request_frames(3))
    assert service.calls[0].complete
