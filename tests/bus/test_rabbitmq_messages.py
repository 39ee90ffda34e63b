"""Envelopes as AMQP properties: the short way and the careful one say the same."""

from __future__ import annotations

import time
from typing import Any
from unittest import mock

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from polywire.bus.backend import rabbitmq_messages as messages
from polywire.bus.core import Envelope, new_id

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=300)
ASCII = st.text(st.characters(codec="ascii", exclude_characters="\0"), min_size=1, max_size=300)
NAMES = st.from_regex(r"[a-z0-9_.-]{1,100}", fullmatch=True) | st.sampled_from(["x-mine", "polywire-mine", "channel"])


def envelope(**changes: Any) -> Envelope:
    made = Envelope(new_id(), "shop.v1.Mail/Send", b"{}", "orders", float(int(time.time())))
    return msgspec.structs.replace(made, **changes)


@given(
    key=st.none() | TEXTS,
    tracestate=st.none() | ASCII,
    headers=st.none() | st.dictionaries(NAMES, TEXTS | ASCII, min_size=1, max_size=5),
    version=st.integers(1, 999_999_999),
    count=st.integers(0, 1000),
    own=st.dictionaries(st.sampled_from(["copy", "reason", "error"]), TEXTS | ASCII),
)
def test_what_was_written_is_read_again(
    key: str | None,
    tracestate: str | None,
    headers: dict[str, str] | None,
    version: int,
    count: int,
    own: dict[str, str],
) -> None:
    counts = dict.fromkeys(("priority", "attempt", "lost", "redrive_count", "generation"), count)
    sent = envelope(key=key, tracestate=tracestate, headers=headers, version=version, **counts)
    received = messages.decode(messages.encode(sent, own), sent.body)
    assert received == messages.Received(sent, 0, own)


@pytest.mark.parametrize("length", [1, 127, 128, 255, 256, 300, 5000])
@pytest.mark.parametrize("letter", ["a", "é", "\N{SNOWMAN}"])
def test_texts_of_every_length_arrive(length: int, letter: str) -> None:
    sent = envelope(tracestate=letter * length, headers={"tenant": letter * length})
    assert messages.decode(messages.encode(sent), sent.body).envelope == sent


def test_the_short_way_is_taken_for_what_polywire_writes() -> None:
    sent = envelope(key="customer-17", headers={"tenant": "a", "x-mine": "b"}, not_before=1_800_000_000.0)
    properties = messages.encode(sent, {"copy": "1"})
    assert messages._plain(properties, sent.body) == messages._any_kind(properties, sent.body)


def test_the_count_of_the_broker_is_read_the_short_way_too() -> None:
    properties = messages.encode(envelope())
    at = 3 + properties[2]
    count = bytes([len("x-delivery-count")]) + b"x-delivery-count" + b"l" + (7).to_bytes(8, "big")
    size = int.from_bytes(properties[at : at + 4], "big") + len(count)
    delivered = properties[:at] + size.to_bytes(4, "big") + count + properties[at + 4 :]
    short = messages._plain(delivered, b"{}")
    assert short is not None
    assert short.count == 7
    assert short == messages._any_kind(delivered, b"{}")


@given(place=st.integers(0, 400), value=st.integers(0, 255), cut=st.integers(0, 400))
@example(place=0, value=1, cut=0)  # without an id
def test_broken_properties_are_unreadable_or_read_as_the_careful_way_reads_them(
    place: int, value: int, cut: int
) -> None:
    whole = bytearray(messages.encode(envelope(id="1", headers={"tenant": "a"}), {"copy": "1"}))
    whole[place % len(whole)] = value
    broken = bytes(whole[: len(whole) - cut]) if cut < len(whole) else b""
    # What has no id gets another one each time.
    with mock.patch.object(messages, "new_id", return_value="made up"):
        short, careful = messages._plain(broken, b"{}"), messages._any_kind(broken, b"{}")
        if short is not None and careful.unreadable is None:
            assert short == careful
        assert messages.decode(broken, b"{}") == (short or careful)


@pytest.mark.parametrize("size", [0, 1, 4088, 4089, 10_000])
def test_frames_hold_the_body_in_pieces_of_the_size_that_was_agreed_on(size: int) -> None:
    body = bytes(range(256)) * (size // 256) + bytes(size % 256)
    data = messages.frames(3, b"exchange", b"queue", b"properties", body, 4096)
    found = list(_split(data))
    assert found[0] == (1, 3, b"\x00\x3c\x00\x28\x00\x00\x08exchange\x05queue\x01")
    assert found[1][:2] == (2, 3)
    assert found[1][2] == b"\x00\x3c\x00\x00" + size.to_bytes(8, "big") + b"properties"
    assert b"".join(payload for _, _, payload in found[2:]) == body
    assert all(kind == 3 and len(payload) <= 4088 for kind, _, payload in found[2:])


def _split(data: bytes) -> list[tuple[int, int, bytes]]:
    frames, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at + 3 : at + 7], "big")
        assert data[at + 7 + size] == 0xCE
        frames.append((data[at], int.from_bytes(data[at + 1 : at + 3], "big"), data[at + 7 : at + 7 + size]))
        at += 8 + size
    return frames
