"""However a connection's bytes are cut into reads, the same things happen."""

from __future__ import annotations

import itertools
from typing import Any

import hpack
from http2_support import REQUEST, Call, Service, client, echo, server, start
from hypothesis import given, settings
from hypothesis import strategies as st

from polywire.net.http2.frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PRIORITISED,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    frame,
    pack_setting,
    pack_u32,
)

tails = st.lists(
    st.tuples(st.sampled_from([b"grpc-timeout", b"x-tenant", b"cookie"]), st.sampled_from([b"1S", b"a", b"v" * 200])),
    max_size=3,
)
exchanges = st.fixed_dictionaries(
    {
        "tail": tails,
        "body": st.lists(st.binary(max_size=300), max_size=4),
        "padding": st.integers(0, 20),
        "pieces": st.integers(1, 4),
        "trailers": st.booleans(),
        "priority": st.booleans(),
        "noise": st.sampled_from(
            [
                b"",
                frame(PING, 0, 0, b"12345678"),
                frame(PRIORITY, 0, 77, pack_u32(1) + b"\0"),
                frame(0x55, 1, 2, b"???"),
            ]
        ),
        "reset": st.booleans(),
    }
)


def head_frames(sid: int, block: bytes, exchange: dict[str, Any], flags: int) -> bytes:
    """HEADERS with everything that may be around a block, and CONTINUATION frames."""
    size = max(len(block) // exchange["pieces"], 1)
    pieces = [block[at : at + size] for at in range(0, len(block), size)] or [b""]
    first, end = pieces[0], b""
    if exchange["priority"]:
        first, flags = pack_u32(0) + b"\x07" + first, flags | PRIORITISED
    if exchange["padding"]:
        first, flags = bytes((exchange["padding"],)) + first + bytes(exchange["padding"]), flags | PADDED
    for number, piece in enumerate(pieces[1:], 2):
        end += frame(CONTINUATION, END_HEADERS if number == len(pieces) else 0, sid, piece)
    return frame(HEADERS, flags | (END_HEADERS if len(pieces) == 1 else 0), sid, first) + end


def conversation(plan: list[dict[str, Any]], first: tuple[Any, ...]) -> bytes:
    encoder = hpack.Encoder()
    data = b""
    for number, exchange in enumerate(plan):
        sid = 2 * number + 1
        bare = not exchange["body"] and not exchange["trailers"]
        data += head_frames(sid, encoder.encode([*first, *exchange["tail"]]), exchange, END_STREAM if bare else 0)
        data += exchange["noise"]
        for at, piece in enumerate(exchange["body"]):
            last = at == len(exchange["body"]) - 1 and not exchange["trailers"]
            padded = bytes((exchange["padding"],)) + piece + bytes(exchange["padding"])
            data += frame(DATA, PADDED | (END_STREAM if last else 0), sid, padded)
        if exchange["reset"]:
            data += frame(RST_STREAM, 0, sid, pack_u32(8))
        elif exchange["trailers"]:
            data += head_frames(sid, encoder.encode([(b"x-sum", b"%d" % number)]), exchange, END_STREAM)
    return data


def cut(data: bytes, at: list[int]) -> list[bytes]:
    places = [0, *sorted({place % (len(data) + 1) for place in at}), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(places)]


def at_server(reads: list[bytes]) -> tuple[list[Any], bool, int]:
    service = Service(echo)
    engine = server(service)
    for data in reads:
        engine.receive(data)
        engine.take()
    return [call.events for call in service.calls], engine.finished, len(engine.streams)


def at_client(reads: list[bytes], count: int) -> tuple[list[Any], bool, int]:
    engine = client()
    calls = [Call() for _ in range(count)]
    for call in calls:
        start(engine, call)
    for data in reads:
        engine.receive(data)
        engine.take()
    return [call.events for call in calls], engine.finished, len(engine.streams)


@settings(max_examples=150)
@given(st.lists(exchanges, min_size=1, max_size=5), st.lists(st.integers(0, 1 << 16), max_size=30))
def test_requests_cut_anywhere_are_the_same_requests(plan: list[dict[str, Any]], places: list[int]) -> None:
    data = PREFACE + frame(SETTINGS, 0, 0, pack_setting(4, 100_000)) + conversation(plan, REQUEST.fields)
    whole = at_server([data])
    assert not whole[1]
    assert len(whole[0]) == len(plan)
    assert at_server(cut(data, places)) == whole


@settings(max_examples=150)
@given(st.lists(exchanges, min_size=1, max_size=5), st.lists(st.integers(0, 1 << 16), max_size=30))
def test_responses_cut_anywhere_are_the_same_responses(plan: list[dict[str, Any]], places: list[int]) -> None:
    data = frame(SETTINGS, 0, 0) + conversation(plan, ((b":status", b"200"), (b"content-type", b"a/b")))
    whole = at_client([data], len(plan))
    assert not whole[1]
    assert at_client(cut(data, places), len(plan)) == whole


def test_a_connection_read_octet_by_octet_is_the_same_connection() -> None:
    exchange = {
        "tail": [(b"x", b"y")],
        "body": [b"ab", b"", b"c"],
        "padding": 3,
        "pieces": 3,
        "trailers": True,
        "priority": True,
    }
    plan: list[dict[str, Any]] = [{**exchange, "noise": b"", "reset": reset} for reset in (False, True, False)]
    data = PREFACE + frame(SETTINGS, 0, 0) + conversation(plan, REQUEST.fields)
    assert at_server([bytes((octet,)) for octet in data]) == at_server([data])
