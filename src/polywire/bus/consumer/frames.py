"""What a consumer and its worker processes say to each other: frames of MessagePack on a socket."""

from __future__ import annotations

import asyncio
import socket

import msgspec

from polywire.bus.core.queue import Ack, Bury, Outcome, Release, RetryAfter

MAX_FRAME = 128 * 1024 * 1024


class Start(msgspec.Struct, tag=True, array_like=True):
    """The first thing that a process is told: what it loads."""

    path: list[str]
    """Where imports begin."""
    loader: str
    """`module:function`"""
    arguments: list[str]


class Ready(msgspec.Struct, tag=True, array_like=True):
    """It has loaded; or why it has not."""

    failed: str = ""


class Run(msgspec.Struct, tag=True, array_like=True):
    """Handle this."""

    envelope: bytes
    """Packed."""
    attempt: int
    position: str
    dice: float
    """In [0, 1), for the delay of a retry."""
    generation: int


class Extend(msgspec.Struct, tag=True, array_like=True):
    """The handler asks for more time."""

    seconds: float


class Result(msgspec.Struct, tag=True, array_like=True):
    """What came of it."""

    kind: str
    said: str
    """Its name in the log."""
    delay: float = 0.0
    reason: str = ""
    error: str = ""


Frame = Start | Ready | Run | Extend | Result
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Frame).decode


def pack_frame(frame: Frame) -> bytes:
    data = _encode(frame)
    if len(data) > MAX_FRAME:
        raise ValueError(f"A frame of {len(data)} bytes was not sent to a worker process: the limit is {MAX_FRAME}.")
    return len(data).to_bytes(4, "big") + data


async def read_frame(reader: asyncio.StreamReader) -> Frame:
    """The next one. Raises EOFError where the process is gone, ValueError where what it says is no frame."""
    size = int.from_bytes(await reader.readexactly(4), "big")
    if size > MAX_FRAME:
        raise ValueError(f"A worker process announced a frame of {size} bytes: the limit is {MAX_FRAME}.")
    return _frame(await reader.readexactly(size))


def receive_frame(connection: socket.socket) -> Frame | None:
    """The next one, in a thread that may block; None where the other end is gone."""
    head = _receive(connection, 4)
    body = None if head is None else _receive(connection, min(int.from_bytes(head, "big"), MAX_FRAME))
    return None if body is None else _frame(body)


def _receive(connection: socket.socket, size: int) -> bytes | None:
    data = bytearray()
    while len(data) < size:
        part = connection.recv(min(size - len(data), 1024 * 1024))
        if not part:
            return None
        data += part
    return bytes(data)


def _frame(data: bytes) -> Frame:
    try:
        frame: Frame = _decode(data)
    except msgspec.MsgspecError as error:
        raise ValueError(f"What came over the socket of a worker process is no frame: {error}.") from error
    return frame


def result_of(outcome: Outcome, said: str) -> Result:
    made = Result(type(outcome).__name__, said)
    if isinstance(outcome, RetryAfter | Release):
        made.delay = outcome.delay
    if isinstance(outcome, RetryAfter | Bury):
        made.error = outcome.error
    if isinstance(outcome, Bury):
        made.reason = outcome.reason
    return made


def outcome_of(result: Result) -> Outcome:
    if result.kind == "Ack":
        return Ack()
    if result.kind == "RetryAfter":
        return RetryAfter(result.delay, result.error)
    if result.kind == "Bury":
        return Bury(result.reason, result.error)
    return Release(result.delay)
