"""Length-prefixed messages, whatever pieces they come in."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polywire.wire.framing import Frames, framed, whole_frame


@given(
    st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=200)), max_size=8),
    st.lists(st.integers(1, 60), min_size=1, max_size=50),
)
@settings(max_examples=150)
def test_any_split_of_a_body_gives_the_same_frames(messages: list[tuple[int, bytes]], cuts: list[int]) -> None:
    body = b"".join(framed(payload, flags) for flags, payload in messages)
    frames = Frames(limit=200)
    got: list[tuple[int, bytes]] = []
    position = turn = 0
    while position < len(body):
        size = cuts[turn % len(cuts)]
        got += frames.feed(body[position : position + size])
        position += size
        turn += 1
    assert got == messages
    assert frames.buffered == 0
    assert frames.fault is None


def test_a_body_of_exactly_one_frame_is_taken_in_one_step() -> None:
    assert whole_frame(framed(b"abc", 1)) == (1, b"abc")
    assert whole_frame(framed(b"")) == (0, b"")


@pytest.mark.parametrize("body", [b"", b"\0\0\0\0", framed(b"abc")[:-1], framed(b"abc") + b"x", framed(b"a") * 2])
def test_any_other_body_is_not_one_frame(body: bytes) -> None:
    assert whole_frame(body) is None


def test_a_frame_over_the_limit_is_refused_before_its_bytes_are_stored() -> None:
    frames = Frames(limit=10)
    assert frames.feed(framed(b"0123456789") + b"\0\0\0\0\x0b" + b"x" * 5) == [(0, b"0123456789")]
    assert str(frames.fault) == (
        "A message of 11 bytes was not read: the limit is 10 bytes. Split it, or raise `max_message_bytes` "
        "at its receiver."
    )
    assert frames.feed(b"x" * 1000) == []
    assert frames.buffered == 0


def test_a_prefix_that_comes_byte_by_byte_is_still_judged_against_the_limit() -> None:
    frames = Frames(limit=10)
    for byte in b"\0\xff\xff\xff\xff":
        assert frames.feed(bytes([byte])) == []
    assert str(frames.fault) == (
        "A message of 4294967295 bytes was not read: the limit is 10 bytes. Split it, or raise `max_message_bytes` "
        "at its receiver."
    )


def test_what_is_buffered_of_an_unfinished_frame_is_known() -> None:
    frames = Frames(limit=100)
    frames.feed(framed(b"one") + framed(b"second")[:7])
    assert frames.buffered == 7


def test_a_large_message_in_small_pieces_takes_linear_time() -> None:
    payload = random.Random(1).randbytes(2_000_000)
    body = framed(payload)
    frames = Frames(limit=len(payload))
    got: list[tuple[int, bytes]] = []
    for position in range(0, len(body), 100):
        got += frames.feed(body[position : position + 100])
    assert got == [(0, payload)]
