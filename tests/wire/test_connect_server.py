"""Requests over the Connect protocol, byte by byte: what is answered, and what is refused with which body."""

from __future__ import annotations

import asyncio
import base64
import gzip
import struct
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

from http_support import Answer, ask, request, served
from msgspec import json

from polywire.context import current
from polywire.contract import Contract, Message, get, post, rpc, service_of
from polywire.contract.schema import assign_packages
from polywire.errors import NotFound, ResourceExhausted
from polywire.testing.wires import Tokens

ID = {"x-request-id": "r-1"}


class Text(Message):
    text: str = ""
    count: int = 0


class Talk(Contract, package="talk.v1"):
    @rpc(idempotent=True)
    async def echo(self, text: Text) -> Text:
        raise NotImplementedError

    @rpc(post("/store"), idempotent=True)
    async def store(self, text: Text) -> Text:
        raise NotImplementedError

    @rpc(get("/lookup"))
    async def unsafe(self, text: Text) -> Text:
        raise NotImplementedError

    @rpc
    async def nothing(self) -> None:
        raise NotImplementedError

    @rpc
    async def wait(self) -> None:
        raise NotImplementedError

    @rpc
    def repeat(self, text: Text) -> AsyncIterator[Text]:
        raise NotImplementedError

    @rpc
    async def join(self, texts: AsyncIterator[Text]) -> Text:
        raise NotImplementedError

    @rpc
    def chat(self, texts: AsyncIterator[Text]) -> AsyncIterator[Text]:
        raise NotImplementedError


assign_packages([service_of(Talk)])


class TalkService(Talk):
    def __init__(self) -> None:
        self.started = asyncio.Event()
        self.ended = asyncio.Event()

    async def echo(self, text: Text) -> Text:
        if text.text == "missing":
            current().trail_with("x-after", "last")
            raise NotFound("nothing like that", retry_after=1.5)
        return text

    async def store(self, text: Text) -> Text:
        return text

    async def unsafe(self, text: Text) -> Text:
        return text

    async def nothing(self) -> None:
        current().respond_with("x-before", "first")
        current().trail_with("x-after", "last")

    async def wait(self) -> None:
        self.started.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.set()

    async def repeat(self, text: Text) -> AsyncIterator[Text]:
        current().respond_with("x-before", "first")
        current().trail_with("x-after", "last")
        for number in range(text.count):
            if text.text == "fail" and number == 2:
                raise ResourceExhausted("enough")
            yield Text(text=text.text, count=number)

    async def join(self, texts: AsyncIterator[Text]) -> Text:
        return Text(text="".join([text.text async for text in texts]))

    async def chat(self, texts: AsyncIterator[Text]) -> AsyncIterator[Text]:
        async for text in texts:
            yield text


async def answer(raw: bytes, **options: Any) -> Answer:
    async with served(TalkService(), **options) as talk:
        return await ask(talk.address, raw)


def call(method: str, body: bytes = b"", **headers: str) -> bytes:
    """A request for *method*; header names with underscores."""
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return request("POST", f"/talk.v1.Talk/{method}", body, headers={**ID, **given})


def frame(payload: bytes, flags: int = 0) -> bytes:
    return struct.pack(">BI", flags, len(payload)) + payload


def stream(method: str, *frames: bytes, **headers: str) -> bytes:
    headers.setdefault("content_type", "application/connect+json")
    return call(method, b"".join(frames), **headers)


def frames(got: Answer) -> list[tuple[int, Any]]:
    """The messages of a streamed answer, decoded from JSON."""
    body = got.body
    if got.headers.get("transfer-encoding") == "chunked":
        body = b""
        rest = got.body
        while True:
            size, _, rest = rest.partition(b"\r\n")
            if int(size, 16) == 0:
                break
            body += rest[: int(size, 16)]
            rest = rest[int(size, 16) + 2 :]
    found = []
    while body:
        flags, size = struct.unpack_from(">BI", body)
        payload = body[5 : 5 + size]
        found.append((flags, json.decode(gzip.decompress(payload) if flags & 1 else payload)))
        body = body[5 + size :]
    return found


def assert_error(got: Answer, status: int, code: str, message: str, **more: Any) -> None:
    assert got.status == status, got.body
    assert got.headers["content-type"] == "application/json"
    assert json.decode(got.body) == {"code": code, "message": message, **more}


# Unary


async def test_json_is_protobufs_own() -> None:
    got = await answer(call("Echo", b'{"text":"a","count":"7"}', connect_protocol_version="1"))
    assert (got.status, got.headers["content-type"]) == (200, "application/json")
    assert got.headers["x-request-id"] == "r-1"
    assert got.body == b'{"text":"a","count":"7"}'


async def test_both_spellings_of_a_method_are_served() -> None:
    got = await answer(call("echo", b'{"text":"a"}'))
    assert (got.status, got.body) == (200, b'{"text":"a"}')


async def test_protobuf_is_answered_with_protobuf() -> None:
    got = await answer(call("Echo", b"\x0a\x01a\x10\x07", content_type="application/proto"))
    assert (got.headers["content-type"], got.body) == ("application/proto", b"\x0a\x01a\x10\x07")


async def test_no_message_at_all_is_an_empty_one_in_protobuf() -> None:
    got = await answer(call("Echo", content_type="application/proto"))
    assert (got.status, got.body) == (200, b"")


async def test_metadata_comes_back_as_headers_and_trailers() -> None:
    got = await answer(call("Nothing", b"{}"))
    assert got.body == b"{}"
    assert got.headers["x-before"] == "first"
    assert got.headers["trailer-x-after"] == "last"


async def test_a_compressed_request_is_read_and_a_large_answer_compressed() -> None:
    body = json.encode({"text": "x" * 20_000})
    got = await answer(call("Echo", gzip.compress(body), content_encoding="gzip", accept_encoding="gzip"))
    assert got.headers["content-encoding"] == "gzip"
    assert gzip.decompress(got.body) == body


# GET


async def test_an_idempotent_method_may_be_called_by_get() -> None:
    message = quote('{"text":"a b"}')
    zipped = quote(base64.urlsafe_b64encode(gzip.compress(b"\x0a\x01a")).rstrip(b"="))
    async with served(TalkService()) as talk:
        plain = await ask(
            talk.address, request("GET", f"/talk.v1.Talk/Echo?connect=v1&encoding=json&message={message}")
        )
        packed = await ask(
            talk.address,
            request("GET", f"/talk.v1.Talk/Echo?encoding=proto&compression=gzip&base64=1&message={zipped}"),
        )
        binary = await ask(
            talk.address, request("GET", "/talk.v1.Talk/Echo?encoding=proto&message=%0A%02%C3%BC" + "&a=b" * 500)
        )
    assert (binary.status, binary.body) == (200, b"\x0a\x02\xc3\xbc")
    assert (plain.status, plain.body) == (200, b'{"text":"a b"}')
    assert (packed.status, packed.body) == (200, b"\x0a\x01a")


async def test_what_may_change_something_is_not_called_by_get() -> None:
    async with served(TalkService()) as talk:
        for method in ("Store", "Unsafe", "Nothing", "Repeat"):
            got = await ask(
                talk.address, request("GET", f"/talk.v1.Talk/{method}?connect=v1&encoding=json&message=%7B%7D")
            )
            assert (got.status, got.headers["allow"]) == (405, "POST"), method


async def test_a_get_that_cannot_be_read_is_refused() -> None:
    async with served(TalkService()) as talk:
        missing = await ask(talk.address, request("GET", "/talk.v1.Talk/Echo?encoding=json"))
        broken = await ask(talk.address, request("GET", "/talk.v1.Talk/Echo?encoding=json&base64=1&message=*"))
        version = await ask(talk.address, request("GET", "/talk.v1.Talk/Echo?connect=v2&encoding=json&message=%7B%7D"))
        encoding = await ask(talk.address, request("GET", "/talk.v1.Talk/Echo?encoding=xml&message=1"))
    assert_error(missing, 400, "invalid_argument", "The query has no `message`.")
    assert_error(broken, 400, "invalid_argument", "The `message` of the query is not base64.")
    assert_error(
        version,
        400,
        "invalid_argument",
        "talk.v1.Talk/Echo was not called: connect-protocol-version is '2', but 1 is the only one.",
    )
    assert encoding.status == 415


# Refused


async def test_an_unknown_method_is_404_and_names_those_that_there_are() -> None:
    got = await answer(call("Shout", b"{}"))
    assert_error(
        got,
        404,
        "unimplemented",
        "talk.v1.Talk/Shout was not called: talk.v1.Talk has no method 'Shout'. "
        "It has: Echo, Store, Unsafe, Nothing, Wait, Repeat, Join, Chat.",
    )


async def test_another_verb_is_405() -> None:
    async with served(TalkService()) as talk:
        put = await ask(talk.address, request("PUT", "/talk.v1.Talk/Echo", b"{}"))
        nothing = await ask(talk.address, request("DELETE", "/talk.v1.Talk/Nothing"))
    assert (put.status, put.headers["allow"], put.body) == (405, "GET, POST", b"")
    assert (nothing.status, nothing.headers["allow"]) == (405, "POST")


async def test_another_content_type_is_415() -> None:
    async with served(TalkService()) as talk:
        unary = await ask(talk.address, call("Echo", b"a=b", content_type="text/plain"))
        missing = await ask(talk.address, request("POST", "/talk.v1.Talk/Echo"))
        streamed = await ask(talk.address, call("Repeat", b"{}", content_type="application/json"))
    assert (unary.status, unary.headers["accept-post"]) == (415, "application/proto, application/json")
    assert missing.status == 415
    assert (streamed.status, streamed.headers["accept-post"]) == (
        415,
        "application/connect+proto, application/connect+json",
    )


async def test_malformed_messages_are_invalid_arguments() -> None:
    async with served(TalkService()) as talk:
        text = await ask(talk.address, call("Echo", b'{"text":'))
        deep = await ask(talk.address, call("Echo", b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"))
        wrong = await ask(talk.address, call("Echo", b'{"count":"many"}'))
        binary = await ask(talk.address, call("Echo", b"\x0a\x05a", content_type="application/proto"))
        zipped = await ask(talk.address, call("Echo", b"{}", content_encoding="gzip"))
    assert_error(text, 400, "invalid_argument", "talk.v1.Text: the JSON is malformed (Input data was truncated).")
    assert_error(deep, 400, "invalid_argument", "talk.v1.Text: the JSON is malformed (nested too deeply).")
    assert json.decode(wrong.body)["code"] == "invalid_argument"
    assert json.decode(wrong.body)["message"].startswith("count: ")
    assert_error(
        binary,
        400,
        "invalid_argument",
        "talk.v1.Text: the protobuf bytes are malformed or truncated, or hold text that is not UTF-8.",
    )
    assert json.decode(zipped.body)["message"].startswith("A message was not read: it is not gzip: ")


async def test_headers_that_cannot_be_read_are_invalid_arguments() -> None:
    async with served(TalkService()) as talk:
        version = await ask(talk.address, call("Echo", b"{}", connect_protocol_version="2"))
        timeout = await ask(talk.address, call("Echo", b"{}", connect_timeout_ms="soon"))
        long = await ask(talk.address, call("Echo", b"{}", connect_timeout_ms="12345678901"))
        coding = await ask(talk.address, call("Echo", b"{}", content_encoding="br"))
    assert_error(
        version,
        400,
        "invalid_argument",
        "talk.v1.Talk/Echo was not called: connect-protocol-version is '2', but 1 is the only one.",
    )
    assert_error(
        timeout,
        400,
        "invalid_argument",
        "talk.v1.Talk/Echo was not called: connect-timeout-ms is 'soon', but it has to be a number of milliseconds of "
        "at most 10 digits.",
    )
    assert long.status == 400
    assert coding.headers["accept-encoding"] == "gzip"
    assert_error(
        coding,
        501,
        "unimplemented",
        "talk.v1.Talk/Echo was not called: its request is compressed with 'br', which is not known here. "
        "Use 'gzip' or 'identity'.",
    )


async def test_messages_over_the_limit_are_resource_exhausted() -> None:
    zipped = gzip.compress(b" " * 1_000_000)
    message = "A message of more than 1000 bytes was not read. Split it, or raise `max_message_bytes` at its receiver."
    inflated = (
        "A message was not read: decompressed it is over the limit of 1000 bytes. Split it, or raise "
        "`max_message_bytes` at its receiver."
    )
    large = b" " * 1001
    async with served(TalkService(), max_message_bytes=1000) as talk:
        assert_error(await ask(talk.address, call("Echo", large)), 429, "resource_exhausted", message)
        got = await ask(talk.address, call("Echo", zipped[:1000], content_encoding="gzip"))
        assert got.status in (400, 429)
        small = gzip.compress(b" " * 100_000)
        got = await ask(talk.address, call("Echo", small, content_encoding="gzip"))
        assert_error(got, 429, "resource_exhausted", inflated)
        for method in ("Repeat", "Join"):
            got = await ask(talk.address, stream(method, frame(large)))
            (end,) = frames(got)
            assert end[0] == 2
            assert end[1]["error"]["code"] == "resource_exhausted"
            got = await ask(talk.address, stream(method, frame(small, 1), connect_content_encoding="gzip"))
            assert frames(got) == [(2, {"error": {"code": "resource_exhausted", "message": inflated}})]


async def test_an_error_has_its_details_headers_and_trailers() -> None:
    got = await answer(call("Echo", b'{"text":"missing"}'))
    assert got.headers["grpc-retry-pushback-ms"] == "1500"
    assert got.headers["trailer-x-after"] == "last"
    assert_error(
        got,
        404,
        "not_found",
        "nothing like that",
        details=[{"type": "google.rpc.RetryInfo", "value": "CggIARCAyrXuAQ", "debug": {"retryDelay": "1.500s"}}],
    )


async def test_credentials_are_asked_for() -> None:
    got = await answer(call("Echo", b"{}"), authenticator=Tokens())
    assert (got.status, json.decode(got.body)["code"]) == (401, "unauthenticated")


async def test_a_deadline_ends_a_handler() -> None:
    service = TalkService()
    async with served(service) as talk:
        got = await ask(talk.address, call("Wait", b"{}", connect_timeout_ms="50"))
        await asyncio.wait_for(service.ended.wait(), 5)
    assert_error(
        got,
        504,
        "deadline_exceeded",
        "talk.v1.Talk/Wait was stopped at its deadline. It may have done part of its work.",
    )


async def test_a_caller_that_hangs_up_cancels_its_handler() -> None:
    service = TalkService()
    async with served(service) as talk:
        host, _, port = talk.address.rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(call("Wait", b"{}"))
        await asyncio.wait_for(service.started.wait(), 5)
        writer.close()
        await asyncio.wait_for(service.ended.wait(), 5)
        await writer.wait_closed()
    assert talk.services.counters["talk.v1.Talk/Wait"].codes == {"ok": 0, "cancelled": 1}


# Streams


async def test_a_streamed_answer_ends_with_its_trailers() -> None:
    got = await answer(stream("Repeat", frame(b'{"text":"a","count":"2"}')))
    assert (got.status, got.headers["content-type"]) == (200, "application/connect+json")
    assert got.headers["x-before"] == "first"
    assert frames(got) == [
        (0, {"text": "a"}),
        (0, {"text": "a", "count": "1"}),
        (2, {"metadata": {"x-after": ["last"]}}),
    ]


async def test_an_error_is_the_last_message() -> None:
    got = await answer(stream("Repeat", frame(b'{"text":"fail","count":"9"}')))
    assert frames(got) == [
        (0, {"text": "fail"}),
        (0, {"text": "fail", "count": "1"}),
        (2, {"error": {"code": "resource_exhausted", "message": "enough"}, "metadata": {"x-after": ["last"]}}),
    ]


async def test_streamed_requests_are_joined() -> None:
    got = await answer(stream("Join", frame(b'{"text":"a"}'), frame(b'{"text":"b"}'), frame(b"{}")))
    assert frames(got) == [(0, {"text": "ab"}), (2, {})]


async def test_compressed_messages_are_read_and_sent() -> None:
    text = "x" * 20_000
    one = frame(gzip.compress(json.encode({"text": text})), 1)
    got = await answer(
        stream("Join", one, frame(b'{"text":"b"}'), connect_content_encoding="gzip", connect_accept_encoding="gzip")
    )
    assert got.headers["connect-content-encoding"] == "gzip"
    assert frames(got) == [(1, {"text": text + "b"}), (2, {})]


async def test_the_wrong_number_of_messages_is_refused() -> None:
    none = await answer(stream("Repeat", content_length="0"))
    two = await answer(stream("Repeat", frame(b"{}"), frame(b"{}")))
    short = await answer(stream("Join", frame(b"{}")[:-1]))
    assert frames(none) == [
        (
            2,
            {
                "error": {
                    "code": "unimplemented",
                    "message": "talk.v1.Talk/Repeat takes exactly one message, but the request has none.",
                }
            },
        )
    ]
    assert frames(two)[0][1]["error"]["message"] == (
        "talk.v1.Talk/Repeat takes exactly one message, but the request has several, or one that is not complete."
    )
    assert frames(short)[0][1]["error"]["message"] == (
        "The stream ended in the middle of a message: 6 bytes of it had arrived. The other side, or a proxy on the "
        "way, "
        "cut it off."
    )


async def test_messages_that_cannot_be_read_are_refused() -> None:
    async with served(TalkService()) as talk:
        for method in ("Join", "Repeat"):
            flags = await ask(talk.address, stream(method, frame(b"{}", 0x40)))
            zipped = await ask(talk.address, stream(method, frame(gzip.compress(b"{}"), 1)))
            broken = await ask(talk.address, stream(method, frame(b"{}", 1), connect_content_encoding="gzip"))
            coding = await ask(talk.address, stream(method, frame(b"{}"), connect_content_encoding="br"))
            text = await ask(talk.address, stream(method, frame(b"{")))
            assert frames(flags)[0][1]["error"] == {
                "code": "invalid_argument",
                "message": "A message has the flags 0x40, which mean nothing here. 0x01 is compressed.",
            }
            assert frames(zipped)[0][1]["error"] == {
                "code": "internal",
                "message": "A message is compressed, but the headers of its stream name no compression.",
            }
            assert frames(broken)[0][1]["error"]["code"] == "invalid_argument"
            assert frames(coding)[0][1]["error"] == {
                "code": "unimplemented",
                "message": f"talk.v1.Talk/{method} was not called: its request is compressed with 'br', which is not "
                "known here. Use 'gzip' or 'identity'.",
            }
            assert frames(text)[0][1]["error"]["code"] == "invalid_argument"


async def test_a_conversation_needs_http2() -> None:
    got = await answer(stream("Chat", frame(b"{}")))
    assert (got.status, got.body) == (505, b"")


async def test_plain_paths_are_served_without_credentials() -> None:
    plain = {"/livez": lambda: (200, "text/plain", b"ok\n"), "/readyz": lambda: (503, "text/plain", b"no\n")}
    async with served(TalkService(), authenticator=Tokens(), plain=plain) as talk:
        live = await ask(talk.address, request("GET", "/livez?verbose"))
        ready = await ask(talk.address, request("HEAD", "/readyz"))
        posted = await ask(talk.address, request("POST", "/livez", b"{}", headers=ID))
    assert (live.status, live.headers["content-type"], live.headers["cache-control"], live.body) == (
        200,
        "text/plain",
        "no-store",
        b"ok\n",
    )
    assert (ready.status, ready.body) == (503, b"")
    assert (posted.status, posted.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
