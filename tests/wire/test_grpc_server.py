"""What our gRPC server answers to requests that no proper client would send, byte by byte."""

from __future__ import annotations

import asyncio
import base64
import gzip
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from polywire.codec.status import decode_status
from polywire.context import Call, current
from polywire.contract import Contract, Message, rpc
from polywire.contract.details import ErrorInfo
from polywire.errors import NotFound
from polywire.net.http2_protocol import Http2ClientProtocol, open_http2
from polywire.net.listener import Listener
from polywire.net.stream import Field, Head, Headers, Limits, StreamClosed
from polywire.services import Services
from polywire.testing.wires import Tokens
from polywire.wire.framing import framed
from polywire.wire.grpc.protocol import decode_message
from polywire.wire.grpc.server import GrpcServer

SOON = 10.0


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
    def endless(self, text: Text) -> AsyncIterator[Text]:
        raise NotImplementedError

    @rpc
    async def join(self, texts: AsyncIterator[Text]) -> Text:
        raise NotImplementedError

    @rpc
    def chat(self, texts: AsyncIterator[Text]) -> AsyncIterator[Text]:
        raise NotImplementedError


class OddService(Odd):
    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.produced = 0

    async def echo(self, text: Text) -> Text:
        call = current()
        self.calls.append(call)
        if text.text == "wait":
            await asyncio.Event().wait()
        if text.text == "long":
            raise NotFound("é" * 10_000)
        if text.text == "details":
            raise NotFound("much", details=[ErrorInfo(reason="x" * 7000)])
        if text.text == "bad details":
            raise NotFound("odd", details=["no message"])
        if text.text == "bad metadata":
            call.respond_with("x-good", "yes")
            call.respond_with("x-bad", "line\nbreak")
        return text

    async def repeat(self, text: Text) -> AsyncIterator[Text]:
        yield text
        raise NotFound("that was all")

    async def endless(self, text: Text) -> AsyncIterator[Text]:
        while True:
            yield text
            self.produced += len(framed(b"\n\x02hi"))

    async def join(self, texts: AsyncIterator[Text]) -> Text:
        return Text(text=",".join([text.text async for text in texts]))

    async def chat(self, texts: AsyncIterator[Text]) -> AsyncIterator[Text]:
        async for text in texts:
            yield text


class Reply:
    """A receiver that keeps what came."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.body = b""
        self.trailers: dict[bytes, bytes] = {}
        self.error: StreamClosed | None = None
        self.done = asyncio.Event()

    def headers_received(self, head: Head, tail: tuple[Field, ...]) -> None:
        self.status = head.status
        self.headers = dict(head.fields + tail)

    def data_received(self, data: bytes) -> None:
        self.body += data

    def ended(self, trailers: tuple[Field, ...]) -> None:
        self.trailers = dict(trailers)
        self.done.set()

    def failed(self, error: StreamClosed) -> None:
        if not self.done.is_set():
            self.error = error
            self.done.set()

    @property
    def outcome(self) -> tuple[int, str]:
        """`grpc-status` and `grpc-message`, wherever they are."""
        fields = {**self.headers, **self.trailers}
        return int(fields[b"grpc-status"]), decode_message(fields.get(b"grpc-message", b""))


class Raw:
    def __init__(self, connection: Http2ClientProtocol, services: Services, service: OddService) -> None:
        self.connection = connection
        self.services = services
        self.service = service

    async def ask(
        self,
        method: str = "Echo",
        body: bytes = framed(b"\n\x02hi"),
        *,
        verb: bytes = b"POST",
        content_type: bytes = b"application/grpc",
        headers: Sequence[Field] = (),
        tail: Sequence[Field] = (),
    ) -> Reply:
        reply = Reply()
        first = [
            (b":method", verb),
            (b":scheme", b"http"),
            (b":authority", b"test"),
            (b":path", f"/odd.v1.Odd/{method}".encode()),
            (b"content-type", content_type),
        ]
        self.connection.open(Headers((*first, *headers)), tail, reply, body=body)
        await asyncio.wait_for(reply.done.wait(), SOON)
        assert reply.error is None
        return reply


@asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[Raw]:
    service = OddService()
    services = Services([service], **options)
    listener = Listener(GrpcServer(services))
    host, _, port = (await listener.start("127.0.0.1:0")).partition(":")
    connection = await open_http2(host, int(port))
    try:
        yield Raw(connection, services, service)
    finally:
        connection.close()
        listener.close()
        await services.finish(0)


async def test_a_whole_exchange() -> None:
    async with serving() as raw:
        for _ in range(5):  # the same headers are recognised from the third time on
            reply = await raw.ask(headers=[(b"x-request-id", b"one")])
            assert reply.status == 200
            assert reply.headers == {b"content-type": b"application/grpc", b"grpc-accept-encoding": b"gzip,identity"}
            assert reply.body == framed(b"\n\x02hi")
            assert reply.trailers == {b"grpc-status": b"0"}


@pytest.mark.parametrize(
    "content_type", [b"application/grpc", b"application/grpc+proto", b"Application/gRPC; charset=utf-8"]
)
async def test_content_types_of_grpc(content_type: bytes) -> None:
    async with serving() as raw:
        reply = await raw.ask(content_type=content_type)
        assert reply.outcome == (0, "")


@pytest.mark.parametrize("content_type", [b"application/grpc+json", b"application/grpc-web", b"text/plain"])
async def test_other_content_types_are_415(content_type: bytes) -> None:
    async with serving() as raw:
        reply = await raw.ask(content_type=content_type)
        assert reply.status == 415
        assert reply.outcome == (2, "the content type is not application/grpc")


async def test_other_verbs_are_405() -> None:
    async with serving() as raw:
        reply = await raw.ask(verb=b"PUT")
        assert (reply.status, reply.headers[b"allow"]) == (405, b"POST")


@pytest.mark.parametrize("value", [b"", b"5", b"S", b"123456789S", b"-1S", b"1.5S", b"1s", b"1 S"])
@pytest.mark.parametrize("in_tail", [False, True])
async def test_a_malformed_timeout(value: bytes, in_tail: bool) -> None:
    field = [(b"grpc-timeout", value)]
    async with serving() as raw:
        reply = await (raw.ask(tail=field) if in_tail else raw.ask(headers=field))
        assert reply.outcome == (
            3,
            f"odd.v1.Odd/Echo was not called: its grpc-timeout {value.decode()!r} is malformed; "
            "a timeout is up to 8 digits and one of H, M, S, m, u, n.",
        )
        assert raw.services.counters["odd.v1.Odd/Echo"].codes["invalid_argument"] == 1


@pytest.mark.parametrize(
    ("value", "seconds"), [(b"2H", 7200), (b"3M", 180), (b"99999999m", 99_999.999), (b"50000000u", 50)]
)
async def test_the_units_of_a_timeout(value: bytes, seconds: float) -> None:
    async with serving() as raw:
        await raw.ask(tail=[(b"grpc-timeout", value)])
        left = raw.service.calls[0].time_left()
        assert left == pytest.approx(seconds, abs=5)


async def test_a_timeout_of_ages_is_none() -> None:
    async with serving() as raw:
        await raw.ask(tail=[(b"grpc-timeout", b"99999999H")])
        assert raw.service.calls[0].deadline is None


async def test_the_server_ends_a_call_at_its_deadline_by_itself() -> None:
    async with serving() as raw:
        reply = await raw.ask(body=framed(b"\n\x04wait"), tail=[(b"grpc-timeout", b"50m")])
        assert reply.outcome == (4, "odd.v1.Odd/Echo was stopped at its deadline. It may have done part of its work.")


async def test_a_call_whose_deadline_has_passed_is_not_started() -> None:
    async with serving() as raw:
        reply = await raw.ask(tail=[(b"grpc-timeout", b"0n")])
        assert reply.outcome == (4, "odd.v1.Odd/Echo was not started: its deadline had passed when it arrived.")
        assert not raw.service.calls


GZIP = [(b"grpc-encoding", b"gzip")]
REQUEST = "The request of odd.v1.Odd/Echo"


@pytest.mark.parametrize(
    ("body", "headers", "code", "text"),
    [
        (b"", [], 13, f"{REQUEST} is missing: its body is empty."),
        (framed(b"") * 2, [], 13, f"{REQUEST} came more than once: its body has several messages."),
        (framed(b"abc")[:-1], [], 13, f"{REQUEST} is incomplete: its body ends after 7 bytes of it."),
        (b"\0\0", [], 13, f"{REQUEST} is incomplete: its body ends after 2 bytes of it."),
        (
            framed(b"", 1),
            [],
            13,
            "A message is marked as compressed, but no `grpc-encoding` was named for its stream.",
        ),
        (
            framed(b"", 1),
            [(b"grpc-encoding", b"identity")],
            13,
            "A message is marked as compressed, but no `grpc-encoding` was named for its stream.",
        ),
        (framed(b"", 2), GZIP, 13, "A message has the flags 0x02, which gRPC does not know."),
        (
            framed(b"junk", 1),
            GZIP,
            13,
            "A compressed message could not be read, its gzip data is corrupt: "
            "Error -3 while decompressing data: incorrect header check.",
        ),
        (
            framed(gzip.compress(b"\n\x01x", mtime=0) + b"x", 1),
            GZIP,
            13,
            "A compressed message could not be read, its gzip data is corrupt: there are bytes after its end.",
        ),
        (
            framed(gzip.compress(bytes(2000), mtime=0), 1),
            GZIP,
            8,
            "A compressed message was not read: it is larger than the limit of 1000 bytes once decompressed. Split it, "
            "or raise `max_message_bytes` at its receiver.",
        ),
        (
            b"\0\xff\xff\xff\xff",
            [],
            8,
            "A message of 4294967295 bytes was not read: the limit is 1000 bytes. Split it, or raise "
            "`max_message_bytes` at its receiver.",
        ),
        (
            framed(b""),
            [(b"grpc-encoding", b"snappy")],
            12,
            "odd.v1.Odd/Echo was not called: its request is compressed with 'snappy', which is not known here. "
            "Use 'gzip' or 'identity'.",
        ),
    ],
)
@pytest.mark.parametrize("whole", [True, False])
async def test_bodies_that_are_not_one_message(
    body: bytes, headers: list[Field], code: int, text: str, whole: bool
) -> None:
    async with serving(max_message_bytes=1000) as raw:
        for _ in range(3):
            reply = await (raw.ask(body=body, headers=headers) if whole else raw.ask(body=body, tail=headers))
            assert reply.outcome == (code, text)
            assert reply.body == b""
            assert not raw.service.calls


async def test_a_request_compressed_by_gzip() -> None:
    async with serving() as raw:
        reply = await raw.ask(body=framed(gzip.compress(b"\n\x02hi"), 1), headers=GZIP)
        assert reply.body == framed(b"\n\x02hi"), "too short to be worth compressing"
        text = b"\n\xd0\x0f" + b"x" * 2000
        accepted = [*GZIP, (b"grpc-accept-encoding", b"identity, gzip")]
        reply = await raw.ask(body=framed(gzip.compress(text), 1), headers=accepted)
        assert reply.headers[b"grpc-encoding"] == b"gzip"
        assert reply.body[0] == 1
        assert gzip.decompress(reply.body[5:]) == text


async def test_faults_in_a_stream_of_requests() -> None:
    async with serving(max_message_bytes=1000) as raw:
        for method in ("Join", "Chat"):
            reply = await raw.ask(method, framed(b"\n\x01a") + framed(b"\n\x01b")[:-1])
            assert reply.outcome == (
                13,
                "The stream ended in the middle of a message: 7 bytes of it had arrived. "
                "The other side, or a proxy on the way, cut it off.",
            )
            reply = await raw.ask(method, framed(b"\n\x01a") + framed(b"", 1))
            assert reply.outcome[0] == 13
            reply = await raw.ask(method, framed(b"\n\x01a") + b"\0\0\0\xff\xff")
            assert reply.outcome[0] == 8


async def test_a_handler_is_held_back_while_its_caller_does_not_read() -> None:
    """It never waits for anything by itself, and its messages are small enough to share frames."""
    async with serving() as raw:
        reply = Reply()
        first = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/odd.v1.Odd/Endless")]
        fields = Headers([*first, (b"content-type", b"application/grpc")])
        stream = raw.connection.open(fields, (), reply, body=framed(b"\n\x02hi"))
        before = -1
        while raw.service.produced > before:
            before = raw.service.produced
            for _ in range(5):
                await raw.ask()
        assert raw.service.produced <= Limits().stream_window + Limits().write_high_water + 32 * 1024
        assert len(reply.body) <= Limits().stream_window
        assert reply.body[:9] == framed(b"\n\x02hi")
        stream.reset(8)
        await raw.ask()
        assert not raw.services.in_flight


async def test_messages_that_share_a_turn_arrive_whole_and_in_order() -> None:
    async with serving() as raw:
        bodies = [framed(b"\n" + bytes([size]) + b"x" * size) for size in range(1, 100)]
        reply = await raw.ask("Chat", b"".join(bodies * 5))
        assert reply.body == b"".join(bodies * 5)
        assert reply.trailers == {b"grpc-status": b"0"}


async def test_any_bytes_get_one_answer(caplog: pytest.LogCaptureFixture) -> None:
    """Whole messages, their pieces and noise in any mixture: a status comes back, and no line is logged."""
    dice = random.Random(7)
    pieces = [framed(b"\n\x02hi"), framed(b"\n\x02hi", 1), framed(gzip.compress(b"\n\x02hi"), 1), b"\0\0\0\0", b"\x01"]
    async with serving(max_message_bytes=1000) as raw:
        for number in range(400):
            parts = [dice.choice([*pieces, dice.randbytes(dice.randrange(20))]) for _ in range(dice.randrange(5))]
            method = ("Echo", "Repeat", "Join", "Chat")[number % 4]
            reply = await raw.ask(method, b"".join(parts), headers=dice.choice([[], GZIP]))
            assert reply.outcome[0] in (0, 3, 5, 8, 13)
        assert not raw.services.in_flight
    assert not caplog.records


async def test_an_error_after_messages_is_in_the_trailers() -> None:
    async with serving() as raw:
        reply = await raw.ask("Repeat")
        assert reply.body == framed(b"\n\x02hi")
        assert reply.trailers == {b"grpc-status": b"5", b"grpc-message": b"that was all"}


async def test_an_error_without_messages_is_one_block_of_headers() -> None:
    async with serving() as raw:
        reply = await raw.ask("Nope")
        assert reply.trailers == {}
        assert reply.headers[b"grpc-status"] == b"12"


async def test_a_text_too_long_for_trailers_is_cut() -> None:
    async with serving() as raw:
        reply = await raw.ask(body=framed(b"\n\x04long"))
        assert len(reply.headers[b"grpc-message"]) <= 4096
        code, text = reply.outcome
        assert code == 5
        assert text == "é" * (len(text) - 3) + "..."


async def test_details_too_large_for_trailers_are_left_out_and_it_says_so() -> None:
    async with serving() as raw:
        reply = await raw.ask(body=framed(b"\n\x07details"))
        assert reply.outcome == (5, "much (Its details were left out: 7059 bytes are too many for a trailer.)")
        assert b"grpc-status-details-bin" not in reply.headers


async def test_details_that_cannot_travel_do_not_hide_the_error(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as raw:
        reply = await raw.ask(body=framed(b"\n\x0bbad details"))
        assert reply.outcome == (5, "odd")
    assert "the details of NotFound were left out: an error's details are messages, not str." in caplog.text


async def test_metadata_of_an_answer_that_cannot_travel_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as raw:
        reply = await raw.ask(body=framed(b"\n\x0cbad metadata"), tail=[(b"x-request-id", b"r-1")])
        assert reply.outcome == (0, "")
        assert reply.headers[b"x-good"] == b"yes"
        assert b"x-bad" not in reply.headers
    assert "The metadata 'x-bad' was not sent" in caplog.text
    assert "request id r-1" in caplog.text


@pytest.mark.parametrize("in_tail", [False, True])
async def test_binary_metadata_padded_or_not_joined_or_not(in_tail: bool) -> None:
    fields = [
        (b"a-bin", base64.b64encode(b"\0")),
        (b"a-bin", base64.b64encode(b"\1").rstrip(b"=") + b"," + base64.b64encode(b"\2\3\4")),
        (b"a-bin", b"*not base64*"),
        (b"b", b"text"),
    ]
    async with serving() as raw:
        await (raw.ask(tail=fields) if in_tail else raw.ask(headers=fields))
        metadata = raw.service.calls[0].metadata
        assert metadata.get_all("a-bin") == [b"\0", b"\1", b"\2\3\4"]
        assert metadata["b"] == "text"


@pytest.mark.parametrize("in_tail", [False, True])
async def test_what_travels_beside_a_request(in_tail: bool) -> None:
    fields = [
        (b"traceparent", b"00-t-s-01"),
        (b"tracestate", b"a=b"),
        (b"baggage", b"k=v"),
        (b"grpc-previous-rpc-attempts", b"2"),
        (b"polywire-principal", b"alice"),
        (b"x-request-id", b"id-7"),
        (b"authorization", b"Bearer sredro"),
        (b"grpc-timeout", b"9S"),
    ]
    async with serving(authenticator=Tokens()) as raw:
        for _ in range(3):
            await (raw.ask(tail=fields) if in_tail else raw.ask(headers=fields))
        for call in raw.service.calls:
            assert (call.traceparent, call.tracestate, call.baggage) == ("00-t-s-01", "a=b", "k=v")
            assert (call.attempt, call.principal, call.request_id) == (3, "alice", "id-7")
            assert (call.credentials, call.wire, call.method) == ("Bearer sredro", "grpc", "odd.v1.Odd/Echo")
            assert call.peer.startswith("127.0.0.1:")
            assert call.time_left() == pytest.approx(9, abs=2)


@pytest.mark.parametrize("bad", [b"", b"x" * 129, b"with space", b"\xff"])
async def test_a_request_id_that_is_no_id_is_replaced(bad: bytes) -> None:
    async with serving() as raw:
        reply = await raw.ask(tail=[(b"x-request-id", bad)])
        assert reply.headers[b"x-request-id"].decode() == raw.service.calls[0].request_id != ""


async def test_a_service_that_is_shut_down_says_that_nothing_was_reached() -> None:
    async with serving() as raw:
        await raw.services.finish(0)
        reply = await raw.ask()
        assert reply.outcome == (14, "odd.v1.Odd/Echo was not started: the service is shutting down.")
        assert reply.headers[b"polywire-reached"] == b"no"


async def test_a_request_given_up_half_way_is_counted_as_cancelled() -> None:
    async with serving() as raw:
        reply = Reply()
        first = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/odd.v1.Odd/Echo")]
        stream = raw.connection.open(
            Headers([*first, (b"content-type", b"application/grpc")]), (), reply, body=b"\0\0\0\0\x05", end=False
        )
        await raw.ask()
        stream.reset(8)
        await raw.ask()
        assert raw.services.counters["odd.v1.Odd/Echo"].codes == {"ok": 2, "cancelled": 1}


async def test_details_are_a_google_rpc_status() -> None:
    class Picky(Contract, package="picky.v1"):
        @rpc
        async def fail(self) -> None:
            raise NotImplementedError

    class PickyService(Picky):
        async def fail(self) -> None:
            raise NotFound("gone", details=[ErrorInfo(reason="R")], retry_after=-1)

    services = Services([PickyService()])
    listener = Listener(GrpcServer(services))
    host, _, port = (await listener.start("127.0.0.1:0")).partition(":")
    connection = await open_http2(host, int(port))
    reply = Reply()
    first = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/picky.v1.Picky/fail")]
    connection.open(Headers([*first, (b"content-type", b"application/grpc")]), (), reply, body=framed(b""))
    await asyncio.wait_for(reply.done.wait(), SOON)
    encoded = reply.headers[b"grpc-status-details-bin"]
    assert decode_status(base64.b64decode(encoded + b"=" * (-len(encoded) % 4))) == (
        5,
        "gone",
        (ErrorInfo(reason="R"),),
    )
    assert reply.headers[b"grpc-retry-pushback-ms"] == b"-1"
    connection.close()
    listener.close()
    await services.finish(0)
