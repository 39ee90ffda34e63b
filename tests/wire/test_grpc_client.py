"""What our gRPC client makes of answers that no proper server would give."""

from __future__ import annotations

import asyncio
import gc
import gzip
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from polywire.contract import Contract, Message, rpc, service_of
from polywire.errors import (
    CallError,
    Cancelled,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    Unknown,
)
from polywire.net.listener import Listener
from polywire.net.pool import Pool
from polywire.net.stream import Field, Head, Headers, Receiver, Stream, StreamClosed
from polywire.wire.framing import framed
from polywire.wire.grpc.client import GrpcWire
from polywire.wire.grpc.protocol import format_timeout, timeout_ticks
from polywire.wire.seam import Outgoing

SOON = 10.0
GRPC = (b"content-type", b"application/grpc")
OK = ((b"grpc-status", b"0"),)
HI = framed(b"\n\x02hi")


class Text(Message):
    text: str


class Odd(Contract, package="odd.v1"):
    @rpc
    async def echo(self, text: Text) -> Text:
        raise NotImplementedError

    @rpc
    def repeat(self, text: Text) -> AsyncIterator[Text]:
        raise NotImplementedError

    @rpc
    async def join(self, texts: AsyncIterator[Text]) -> Text:
        raise NotImplementedError


RPCS = service_of(Odd).rpcs


class Request:
    """A request as the odd server sees it; *script* answers it once it is complete."""

    def __init__(self, stream: Stream, script: Callable[[Request], None]) -> None:
        self.stream = stream
        self.script = script
        self.body = b""
        self.gone = asyncio.Event()
        self.error: StreamClosed | None = None

    @property
    def fields(self) -> dict[bytes, bytes]:
        return dict(self.stream.head.fields + self.stream.tail)

    def headers_received(self, head: Head, tail: tuple[Field, ...]) -> None: ...

    def data_received(self, data: bytes) -> None:
        self.body += data
        self.stream.consumed(len(data))

    def ended(self, trailers: tuple[Field, ...]) -> None:
        self.script(self)

    def failed(self, error: StreamClosed) -> None:
        self.error = error
        self.gone.set()

    def answer(
        self, body: bytes = HI, trailers: tuple[Field, ...] | None = OK, *headers: Field, status: bytes = b"200"
    ) -> None:
        fields = ((b":status", status), *(headers or (GRPC,)))
        self.stream.respond(Headers(fields), (), body, None if trailers is None else Headers(trailers))

    def only_headers(self, *headers: Field, status: bytes = b"200") -> None:
        self.stream.send_headers(Headers(((b":status", status), *headers)), end=True)


class Rig:
    def __init__(self, wire: GrpcWire, listener: Listener, requests: list[Request]) -> None:
        self.wire = wire
        self.listener = listener
        self.requests = requests

    def outgoing(self, method: str = "echo", *, timeout: float | None = SOON, **options: Any) -> Outgoing:
        deadline = None if timeout is None else time.monotonic() + timeout
        return Outgoing(RPCS[method], deadline=deadline, timeout=timeout, request_id="id", **options)

    async def echo(self, outgoing: Outgoing | None = None) -> Any:
        call = self.wire.unary(outgoing or self.outgoing(), self.wire.encode(RPCS["echo"], Text(text="hi")))
        return await asyncio.wait_for(call, SOON)

    async def asked(self, times: int = 1) -> None:
        """Wait until so many requests are there."""
        async with asyncio.timeout(SOON):
            while len(self.requests) < times:  # noqa: ASYNC110 - others count
                await asyncio.sleep(0)

    async def fails(self, outgoing: Outgoing | None = None) -> CallError:
        with pytest.raises(CallError) as caught:
            await self.echo(outgoing)
        return caught.value


@asynccontextmanager
async def against(script: Callable[[Request], None], **options: Any) -> AsyncIterator[Rig]:
    requests: list[Request] = []

    def application(stream: Stream) -> Receiver:
        requests.append(Request(stream, script))
        return requests[-1]

    listener = Listener(application)
    wire = GrpcWire(Pool(await listener.start("127.0.0.1:0")), **options)
    try:
        yield Rig(wire, listener, requests)
    finally:
        await wire.close()
        listener.close()


def nothing(request: Request) -> None:
    """Never answer."""


async def test_a_whole_exchange() -> None:
    async with against(lambda request: request.answer()) as rig:
        assert await rig.echo() == Text(text="hi")
        assert rig.requests[0].body == HI
        assert rig.wire.in_flight == 0
        fields = rig.requests[0].fields
        timeout = fields.pop(b"grpc-timeout")
        assert timeout == b"10000m"
        assert fields == {
            b"content-type": b"application/grpc",
            b"te": b"trailers",
            b"user-agent": b"polywire",
            b"grpc-accept-encoding": b"gzip,identity",
            b"x-request-id": b"id",
        }


# No gRPC at all.


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, Internal),
        (401, Unauthenticated),
        (403, PermissionDenied),
        (404, Unimplemented),
        (429, Unavailable),
        (502, Unavailable),
        (503, Unavailable),
        (504, Unavailable),
        (200, Unknown),
        (500, Unknown),
        (302, Unknown),
    ],
)
async def test_an_answer_that_is_not_grpc(status: int, error: type[CallError]) -> None:
    def page(request: Request) -> None:
        request.answer(b"<html>", None, (b"content-type", b"text/html"), status=str(status).encode())

    async with against(page) as rig:
        caught = await rig.fails()
        assert type(caught) is error
        assert str(caught) == (
            f"{rig.wire.address} did not answer with gRPC but with HTTP status {status} and content type 'text/html'. "
            "Is it a gRPC server, or a proxy in front of one?"
        )


async def test_a_status_in_the_headers_counts_whatever_http_says() -> None:
    def refused(request: Request) -> None:
        request.only_headers((b"grpc-status", b"7"), (b"grpc-message", b"no%20way"), status=b"503")

    async with against(refused) as rig:
        caught = await rig.fails()
        assert (type(caught), str(caught)) == (PermissionDenied, "no way")


async def test_an_answer_without_a_status() -> None:
    for script in (
        lambda request: request.answer(HI, None),
        lambda request: request.answer(HI, ((b"x", b"y"),)),
        lambda request: request.only_headers(GRPC),
    ):
        async with against(script) as rig:
            caught = await rig.fails()
            assert type(caught) is Unknown
            assert str(caught) == (
                f"{rig.wire.address} ended its answer without a status. It, or a proxy on the way, cut it off."
            )


async def test_a_status_that_nobody_knows() -> None:
    for status in (b"99", b"x", b"-1", b"01"):
        trailers = ((b"grpc-status", status), (b"grpc-message", b"odd"))
        async with against(lambda request, trailers=trailers: request.answer(HI, trailers)) as rig:  # type: ignore[misc]  # a default binds the loop's variable
            caught = await rig.fails()
            assert type(caught) is Unknown
            assert str(caught) == f"The answer has an unknown grpc-status, {status!r}: odd"


# Messages.

ANSWER = "The answer of odd.v1.Odd/Echo"


@pytest.mark.parametrize(
    ("body", "headers", "error", "text"),
    [
        (b"", [], Internal, f"{ANSWER} is missing: its body is empty."),
        (HI + HI, [], Internal, f"{ANSWER} came more than once: its body has several messages."),
        (HI[:-1], [], Internal, f"{ANSWER} is incomplete: its body ends after 8 bytes of it."),
        (framed(b"", 4), [], Internal, "A message has the flags 0x04, which gRPC does not know."),
        (
            framed(b"", 1),
            [],
            Internal,
            "A message is marked as compressed, but no `grpc-encoding` was named for its stream.",
        ),
        (
            framed(gzip.compress(bytes(5000), mtime=0), 1),
            [(b"grpc-encoding", b"gzip")],
            ResourceExhausted,
            "A compressed message was not read: it is larger than the limit of 1000 bytes once decompressed. Split it, "
            "or raise `max_message_bytes` at its receiver.",
        ),
        (
            framed(bytes(1001)),
            [],
            ResourceExhausted,
            "A message of 1001 bytes was not read: the limit is 1000 bytes. Split it, or raise `max_message_bytes` "
            "at its receiver.",
        ),
        (
            framed(b"\xff"),
            [],
            Internal,
            "The answer of odd.v1.Odd/Echo could not be read: Text: the protobuf bytes are malformed or "
            "truncated, or hold text that is not UTF-8.",
        ),
    ],
)
@pytest.mark.parametrize("method", ["echo", "repeat", "join"])
async def test_bodies_that_are_not_one_message(
    body: bytes, headers: list[Field], error: type[CallError], text: str, method: str
) -> None:
    async with against(lambda request: request.answer(body, OK, GRPC, *headers), max_message_bytes=1000) as rig:
        if method == "echo":
            caught = await rig.fails()
        else:
            outcome = await _drain(await rig.wire.stream(rig.outgoing(method)))
            if method == "repeat" and body in (b"", HI + HI):
                assert outcome is None, "a stream may have any number of messages"
                return
            assert outcome is not None
            caught = outcome
        assert type(caught) is error
        if method == "echo" or body not in (b"", HI + HI, HI[:-1]):
            assert str(caught) == text.replace("Echo", method.title())
        assert rig.wire.in_flight == 0


async def _drain(stream: Any) -> CallError | None:
    """Read to the end; the error that was there, if one was."""
    stream.end_requests()
    try:
        while True:
            await asyncio.wait_for(stream.receive(), SOON)
    except StopAsyncIteration:
        return None
    except CallError as error:
        for _ in range(2):
            with pytest.raises(type(error)):
                await stream.receive()
        return error


async def test_an_encoding_that_was_not_offered() -> None:
    script = lambda request: request.answer(HI, OK, GRPC, (b"grpc-encoding", b"br"))  # noqa: E731 - it reads as a script
    async with against(script) as rig:
        caught = await rig.fails()
        assert type(caught) is Internal
        assert str(caught) == (
            f"{rig.wire.address} compressed its answer with 'br', although only gzip and identity were offered."
        )


async def test_details_that_cannot_be_read_do_not_hide_the_error() -> None:
    for details in (b"*", b"//8", b"CAc"):  # not base64, not protobuf, another code
        trailers = ((b"grpc-status", b"5"), (b"grpc-message", b"gone"), (b"grpc-status-details-bin", details))
        async with against(lambda request, trailers=trailers: request.answer(b"", trailers)) as rig:  # type: ignore[misc]  # a default binds the loop's variable
            caught = await rig.fails()
            assert (type(caught), str(caught), caught.details) == (NotFound, "gone", ())


async def test_metadata_of_an_error_is_that_of_headers_and_trailers() -> None:
    def script(request: Request) -> None:
        request.answer(b"", ((b"grpc-status", b"5"), (b"b", b"2")), GRPC, (b"a", b"1"), (b"c-bin", b"AAE"))

    async with against(script) as rig:
        outgoing = rig.outgoing()
        caught = await rig.fails(outgoing)
        assert caught.metadata.pairs() == (("a", "1"), ("c-bin", b"\0\1"), ("b", "2"))
        assert outgoing.headers is not None
        assert outgoing.headers.pairs() == (("a", "1"), ("c-bin", b"\0\1"))


@pytest.mark.parametrize(("reached", "expected"), [(None, "maybe"), (b"no", "no"), (b"?", "maybe")])
async def test_what_an_unavailable_service_says_of_having_been_reached(reached: bytes | None, expected: str) -> None:
    more = () if reached is None else ((b"polywire-reached", reached),)
    async with against(lambda request: request.only_headers(GRPC, (b"grpc-status", b"14"), *more)) as rig:
        caught = await rig.fails()
        assert isinstance(caught, Unavailable)
        assert caught.reached == expected


# Exchanges that break off.


@pytest.mark.parametrize(
    ("code", "name", "error", "reached"),
    [
        (0x1, "PROTOCOL_ERROR", Internal, None),
        (0x2, "INTERNAL_ERROR", Internal, None),
        (0x3, "FLOW_CONTROL_ERROR", Internal, None),
        (0x7, "REFUSED_STREAM", Unavailable, "no"),
        (0x8, "CANCEL", Cancelled, None),
        (0xB, "ENHANCE_YOUR_CALM", ResourceExhausted, None),
        (0xC, "INADEQUATE_SECURITY", PermissionDenied, None),
        (0x63, "error 0x63", Unavailable, "maybe"),
    ],
)
async def test_streams_that_are_reset(code: int, name: str, error: type[CallError], reached: str | None) -> None:
    async with against(lambda request: request.stream.reset(code)) as rig:
        caught = await rig.fails()
        assert type(caught) is error
        assert str(caught) == f"{rig.wire.address} did not answer: the peer reset the stream: {name}."
        assert getattr(caught, "reached", None) == reached


async def test_a_stream_cancelled_by_a_server_at_the_deadline() -> None:
    def late(request: Request) -> None:
        asyncio.get_running_loop().call_later(0.1, request.stream.reset, 0x8)

    async with against(late) as rig:
        outgoing = rig.outgoing(timeout=0.1)
        outgoing.deadline = time.monotonic() + 0.1
        assert type(await rig.fails(outgoing)) is DeadlineExceeded


async def test_a_server_that_lets_the_deadline_pass() -> None:
    async with against(nothing) as rig:
        caught = await rig.fails(rig.outgoing(timeout=0.05))
        assert type(caught) is DeadlineExceeded
        assert str(caught) == (
            "odd.v1.Odd/Echo did not answer within 0.05 s. It may still be running there: make it idempotent before "
            "retrying, or raise `timeout=` in the contract or with `calling(timeout=...)`."
        )
        (request,) = rig.requests
        assert request.fields[b"grpc-timeout"] == b"50000u"
        await asyncio.wait_for(request.gone.wait(), SOON)
        assert request.error is not None
        assert request.error.code == 0x8
        assert rig.wire.in_flight == 0


async def test_closing_fails_the_calls_under_way_and_those_to_come() -> None:
    async with against(nothing) as rig:
        calls = [asyncio.ensure_future(rig.fails(rig.outgoing(timeout=None))) for _ in range(3)]
        stream = await rig.wire.stream(rig.outgoing("repeat"))
        await rig.asked(4)
        await rig.wire.close()
        await rig.wire.close()
        for error in await asyncio.gather(*calls):
            assert isinstance(error, Unavailable)
            assert error.reached == "maybe"
        with pytest.raises(Unavailable):
            await stream.receive()
        error = await rig.fails()
        assert isinstance(error, Unavailable)
        assert error.reached == "no"
        assert not rig.wire.usable
        assert rig.wire.in_flight == 0


async def test_a_cancelled_call_resets_its_stream() -> None:
    async with against(nothing) as rig:
        call = asyncio.ensure_future(rig.echo(rig.outgoing(timeout=None)))
        await rig.asked()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.wait_for(rig.requests[0].gone.wait(), SOON)
        assert rig.requests[0].error is not None
        assert rig.requests[0].error.code == 0x8


async def test_a_stream_that_is_dropped_or_cancelled_resets_its_stream() -> None:
    async with against(nothing) as rig:
        for drop in (True, False):
            stream = await rig.wire.stream(rig.outgoing("repeat"))
            await stream.send(Text(text="a"))
            await rig.asked()
            request = rig.requests.pop()
            if drop:
                del stream
                gc.collect()
            else:
                stream.cancel()
                stream.cancel()
                with pytest.raises(Cancelled, match=r"^odd\.v1\.Odd/Repeat was cancelled by its caller\.$"):
                    await stream.receive()
                with pytest.raises(Cancelled):
                    await stream.send(Text(text="a"))
            await asyncio.wait_for(request.gone.wait(), SOON)
            assert rig.wire.in_flight == 0


async def test_sending_waits_while_the_server_does_not_read() -> None:
    class Deaf(Request):
        def data_received(self, data: bytes) -> None:
            self.body += data

    async with against(nothing) as rig:
        stream = await rig.wire.stream(rig.outgoing("join"))
        await rig.asked()
        rig.requests[0].__class__ = Deaf
        chunk = Text(text="x" * 50_000)

        async def send() -> None:
            for _ in range(100):
                await stream.send(chunk)

        sending = asyncio.ensure_future(send())
        done, _ = await asyncio.wait([sending], timeout=0.2)
        assert not done
        size = len(rig.requests[0].body)
        assert size <= 300_000
        rig.requests[0].stream.reset(0xB)
        with pytest.raises(ResourceExhausted):
            await asyncio.wait_for(sending, SOON)


# What is sent.


async def test_timeouts_and_credentials_that_repeat_are_prepared_and_others_are_not() -> None:
    async with against(lambda request: request.answer()) as rig:
        for number in range(200):
            outgoing = rig.outgoing(timeout=5 + number / 100)
            outgoing.authorization = f"Bearer {number}"
            await rig.echo(outgoing)
        assert len(rig.wire._headers._prepared) == 1
        for _ in range(5):
            outgoing = rig.outgoing(timeout=2.5)
            outgoing.authorization = "Bearer same"
            await rig.echo(outgoing)
            fields = rig.requests[-1].fields
            assert (fields[b"grpc-timeout"], fields[b"authorization"]) == (b"2500m", b"Bearer same")
        assert len(rig.wire._headers._prepared) == 2


async def test_what_travels_beside_a_request() -> None:
    async with against(lambda request: request.answer()) as rig:
        outgoing = rig.outgoing(metadata=[("x-a", "1"), ("x-b-bin", b"\0\1")])
        outgoing.attempt = 3
        outgoing.traceparent, outgoing.tracestate, outgoing.baggage = "00-t-s-01", "a=b", "k=v"
        outgoing.principal = "alice"
        await rig.echo(outgoing)
        fields = rig.requests[0].fields
        assert fields[b"traceparent"] == b"00-t-s-01"
        assert fields[b"tracestate"] == b"a=b"
        assert fields[b"baggage"] == b"k=v"
        assert fields[b"grpc-previous-rpc-attempts"] == b"2"
        assert fields[b"polywire-principal"] == b"alice"
        assert fields[b"x-a"] == b"1"
        assert fields[b"x-b-bin"] == b"AAE"


async def test_what_no_header_can_carry_is_refused_before_anything_is_sent() -> None:
    async with against(lambda request: request.answer()) as rig:
        for metadata in ([("x", "line\nbreak")], [("grpc-status", "0")], [("x-bin", "text")], [("x", b"bytes")]):
            with pytest.raises(InvalidArgument, match=r"^The metadata '[a-z-]+' was not sent: "):
                await rig.echo(rig.outgoing(metadata=metadata))
        outgoing = rig.outgoing()
        outgoing.principal = "a\nb"
        caught = await rig.fails(outgoing)
        assert str(caught) == (
            "The principal 'a\\nb' was not sent: it has characters other than printable ASCII, or white space around "
            "it. Use an identifier that has none."
        )
        assert not rig.requests
        assert rig.wire.in_flight == 0


async def test_requests_are_compressed_where_that_is_switched_on() -> None:
    async with against(
        lambda request: request.answer(request.body, OK, GRPC, (b"grpc-encoding", b"gzip")), compress=True
    ) as rig:
        long = Text(text="x" * 5000)
        answer = await rig.wire.unary(rig.outgoing(), rig.wire.encode(RPCS["echo"], long))
        assert answer == long
        assert rig.requests[0].fields[b"grpc-encoding"] == b"gzip"
        assert rig.requests[0].body[0] == 1
        assert len(rig.requests[0].body) < 200
        assert await rig.echo() == Text(text="hi"), "a short one is sent as it is"
        assert rig.requests[1].body == HI


@pytest.mark.parametrize(
    ("seconds", "sent"),
    [
        (-1.0, b"1u"),
        (0.0, b"1u"),
        (0.000_5, b"500u"),
        (0.099, b"99000u"),
        (0.1, b"100m"),
        (0.5 - 1e-9, b"500m"),
        (1.2345, b"1234m"),
        (99_999.999, b"99999999m"),
        (200_000.0, b"200000S"),
        (1e12, b"99999999S"),
    ],
)
def test_how_a_timeout_is_written(seconds: float, sent: bytes) -> None:
    assert format_timeout(timeout_ticks(seconds)) == sent
