"""Messages between the connection and their reader: order, ends, cancellation, flow-control credit."""

from __future__ import annotations

import asyncio

import pytest

from polywire.errors import CallError, Cancelled, Internal, ResourceExhausted
from polywire.net.stream import Stream
from polywire.wire.framing import Frames, framed
from polywire.wire.incoming import Incoming


class Credit(Stream):
    """A stream that only remembers what was given back."""

    def __init__(self) -> None:
        self.given = 0

    def consumed(self, size: int) -> None:
        assert size > 0
        self.given += size


def text(flags: int, payload: bytes) -> str:
    if payload == b"bad":
        raise Internal("cannot be decoded")
    return f"{flags}:{payload.decode()}"


def incoming(limit: int = 1000) -> tuple[Incoming[str], Credit]:
    stream = Credit()
    return Incoming(stream, Frames(limit), text), stream


async def test_messages_come_out_in_order_and_then_it_ends() -> None:
    messages, _ = incoming()
    messages.feed(framed(b"a") + framed(b"b", 1))
    messages.feed(framed(b"c"))
    messages.end()
    assert [message async for message in messages] == ["0:a", "1:b", "0:c"]
    with pytest.raises(StopAsyncIteration):
        await anext(messages)


async def test_a_waiting_reader_is_woken() -> None:
    messages, _ = incoming()
    reader = asyncio.ensure_future(anext(messages))
    await asyncio.sleep(0)
    messages.feed(framed(b"a"))
    assert await reader == "0:a"


async def test_a_cancelled_read_loses_no_message() -> None:
    messages, _ = incoming()
    reader = asyncio.ensure_future(anext(messages))
    await asyncio.sleep(0)
    messages.feed(framed(b"a"))
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert await anext(messages) == "0:a"


async def test_a_second_reader_is_refused() -> None:
    messages, _ = incoming()
    reader = asyncio.ensure_future(anext(messages))
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match=r"a stream has one reader$"):
        await anext(messages)
    messages.end()
    with pytest.raises(StopAsyncIteration):
        await reader


async def test_an_error_comes_after_the_messages_before_it_and_stays() -> None:
    messages, _ = incoming()
    messages.feed(framed(b"a"))
    messages.fail(Cancelled("gone"))
    messages.fail(Internal("too late"))
    messages.end()
    assert await anext(messages) == "0:a"
    for _attempt in range(2):
        with pytest.raises(Cancelled, match="gone"):
            await anext(messages)


async def test_an_error_of_decoding_ends_it() -> None:
    messages, stream = incoming()
    messages.feed(framed(b"bad") + framed(b"a"))
    for _attempt in range(2):
        with pytest.raises(Internal, match="cannot be decoded"):
            await anext(messages)
    assert stream.given == len(framed(b"bad") + framed(b"a"))


async def test_a_body_that_stops_inside_a_message_is_an_error() -> None:
    messages, _ = incoming()
    messages.feed(framed(b"abc")[:-1])
    messages.end()
    with pytest.raises(CallError) as caught:
        await anext(messages)
    assert type(caught.value) is Internal
    assert str(caught.value) == (
        "The stream ended in the middle of a message: 7 bytes of it had arrived. "
        "The other side, or a proxy on the way, cut it off."
    )


async def test_a_message_over_the_limit_fails_it_after_those_before_it() -> None:
    messages, stream = incoming(limit=3)
    messages.feed(framed(b"abc") + framed(b"abcd"))
    assert await anext(messages) == "0:abc"
    with pytest.raises(ResourceExhausted):
        await anext(messages)
    messages.feed(b"more")
    assert stream.given == len(framed(b"abc") + framed(b"abcd")) + 4


async def test_credit_is_given_back_only_for_what_was_taken() -> None:
    messages, stream = incoming(limit=50_000)
    big = framed(b"x" * 20_000)
    messages.feed(big)
    messages.feed(big)
    messages.feed(big[:7])
    assert stream.given == 0
    await anext(messages)
    assert stream.given == len(big)
    await anext(messages)
    assert stream.given == 2 * len(big) + 7


async def test_a_message_larger_than_any_window_can_arrive() -> None:
    messages, stream = incoming(limit=50_000)
    big = framed(b"x" * 50_000)
    for position in range(0, len(big), 1000):
        assert stream.given == position
        messages.feed(big[position : position + 1000])
    assert stream.given == 50_000  # the rest with the message
    await anext(messages)
    assert stream.given == len(big)


async def test_what_nobody_will_read_is_given_back() -> None:
    messages, stream = incoming()
    messages.feed(framed(b"a") * 3 + b"\0\0")
    messages.discard()
    messages.feed(framed(b"b"))
    assert stream.given == 6 * 4 + 2
    with pytest.raises(StopAsyncIteration):
        await anext(messages)
