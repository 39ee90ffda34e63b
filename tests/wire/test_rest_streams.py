"""Streams over REST: one JSON document per line, held back where the reader is slow."""

from __future__ import annotations

import asyncio

from http_support import ask, request, served
from msgspec import json
from rest_shop import ShopService

NDJSON = {"content-type": "application/x-ndjson"}


def chunks(body: bytes) -> tuple[bytes, str]:
    """The data of a chunked body, and its trailers."""
    data = b""
    while True:
        size, _, body = body.partition(b"\r\n")
        if int(size, 16) == 0:
            return data, body.decode().rstrip("\r\n")
        data += body[: int(size, 16)]
        body = body[int(size, 16) + 2 :]


async def test_a_streamed_answer_is_a_line_for_each_message_and_trailers() -> None:
    async with served(ShopService()) as shop:
        got = await ask(shop.address, request("GET", "/api/v1/numbers?count=3"))
    assert got.status == 200
    assert got.headers["content-type"] == "application/x-ndjson"
    assert got.headers["x-before"] == "first"
    assert chunks(got.body) == (b'{"number":0}\n{"number":1}\n{"number":2}\n', "x-after: last")


async def test_an_empty_streamed_answer_has_no_line() -> None:
    async with served(ShopService()) as shop:
        got = await ask(shop.address, request("GET", "/api/v1/numbers?count=0"))
    assert chunks(got.body) == (b"", "x-after: last")


async def test_an_error_before_the_first_message_has_its_status() -> None:
    async with served(ShopService()) as shop:
        got = await ask(shop.address, request("GET", "/api/v1/numbers?count=3&fail_at=0"))
    assert got.status == 429
    assert json.decode(got.body)["error"] == {
        "code": "resource_exhausted",
        "message": "no more numbers",
        "field": None,
    }


async def test_an_error_in_the_middle_is_the_last_line_and_a_trailer() -> None:
    async with served(ShopService()) as shop:
        got = await ask(
            shop.address, request("GET", "/api/v1/numbers?count=3&fail_at=2", headers={"x-request-id": "r-1"})
        )
    data, trailers = chunks(got.body)
    assert got.status == 200
    assert data == (
        b'{"number":0}\n{"number":1}\n{"type":"about:blank","title":"Too Many Requests","status":429,'
        b'"detail":"no more numbers","error":{"code":"resource_exhausted","message":"no more numbers","field":null},'
        b'"request_id":"r-1"}\n'
    )
    assert trailers == "x-after: last\r\npolywire-error: resource_exhausted"


async def test_a_stream_is_not_answered_with_json_to_those_who_want_nothing_else() -> None:
    async with served(ShopService()) as shop:
        got = await ask(shop.address, request("GET", "/api/v1/numbers?count=1", headers={"accept": "application/json"}))
    assert got.status == 406


async def test_a_reader_that_does_not_read_holds_the_handler_back_and_ends_it_by_leaving() -> None:
    service = ShopService()
    async with served(service) as shop:
        host, _, port = shop.address.rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port), limit=1024)
        writer.write(request("GET", "/api/v1/numbers?count=100000000"))
        seen, quiet = -1, 0
        while quiet < 5 or seen <= 0:
            quiet = quiet + 1 if seen == service.produced else 0
            seen = service.produced
            await asyncio.sleep(0.1)
            assert service.produced < 2_000_000
        writer.close()
        await asyncio.wait_for(service.ended.wait(), 5)
        await writer.wait_closed()


async def test_streamed_requests_are_the_lines_of_the_body() -> None:
    body = b'{"number":1}\r\n\n{"number":2}\n  \n{"number":39}'
    async with served(ShopService()) as shop:
        got = await ask(shop.address, request("POST", "/api/v1/sum", body, headers=NDJSON))
    assert (got.status, got.body) == (200, b'{"number":42}')


async def test_streamed_requests_are_read_however_they_are_cut() -> None:
    body = b"".join(b'{"number":%d}\n' % number for number in range(100))
    head = request("POST", "/api/v1/sum", headers={**NDJSON, "transfer-encoding": "chunked"})
    pieces = b"".join(b"%x\r\n%b\r\n" % (len(body[i : i + 7]), body[i : i + 7]) for i in range(0, len(body), 7))
    async with served(ShopService()) as shop:
        got = await ask(shop.address, head + pieces + b"0\r\n\r\n")
    assert got.body == b'{"number":4950}'


async def test_no_streamed_requests_are_none() -> None:
    async with served(ShopService()) as shop:
        got = await ask(shop.address, request("POST", "/api/v1/sum", headers=NDJSON))
    assert got.body == b'{"number":0}'


async def test_a_line_that_cannot_be_read_ends_the_call() -> None:
    async with served(ShopService()) as shop:
        malformed = await ask(shop.address, request("POST", "/api/v1/sum", b'{"number":1}\n{"num\n', headers=NDJSON))
        wrong = await ask(shop.address, request("POST", "/api/v1/sum", b'{"number":"x"}\n', headers=NDJSON))
    assert malformed.status == 400
    assert json.decode(malformed.body)["error"]["message"] == (
        "shop.v1.Number: the JSON is malformed (Input data was truncated)."
    )
    assert wrong.status == 422
    assert json.decode(wrong.body)["error"]["field"] == "number"


async def test_a_line_over_the_limit_is_413() -> None:
    body = b'{"number":1}\n{"number":' + b"1" * 200 + b"}\n"
    async with served(ShopService(), max_message_bytes=100) as shop:
        got = await ask(shop.address, request("POST", "/api/v1/sum", body, headers=NDJSON))
    assert got.status == 413
    assert json.decode(got.body)["error"]["message"] == (
        "A line of more than 100 bytes was not read. Split it, or raise `max_message_bytes` of the service."
    )


async def test_streamed_requests_of_another_type_are_415() -> None:
    async with served(ShopService()) as shop:
        got = await ask(shop.address, request("POST", "/api/v1/sum", b"{}"))
    assert got.status == 415
    assert got.headers["accept-post"] == "application/x-ndjson"
