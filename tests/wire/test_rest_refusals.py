"""Requests that REST routes refuse: the whole answer says what is wrong."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Mapping
from typing import Any

from http_support import Answer, ask, request, served
from msgspec import json
from rest_shop import ShopService

from polywire.testing.wires import Tokens

ID = {"x-request-id": "r-1"}


async def answer(raw: bytes, **options: Any) -> Answer:
    async with served(ShopService(), **options) as shop:
        return await ask(shop.address, raw)


def sent(verb: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None, **more: Any) -> bytes:
    return request(verb, path, body, headers={**ID, **(headers or {})}, **more)


def problem(status: int, title: str, code: str, message: str, field: str | None = None) -> dict[str, object]:
    return {
        "type": "about:blank",
        "title": title,
        "status": status,
        "detail": message,
        "error": {"code": code, "message": message, "field": field},
        "request_id": "r-1",
    }


def assert_problem(got: Answer, status: int, title: str, code: str, message: str, field: str | None = None) -> None:
    assert got.status == status, got.body
    assert got.headers["content-type"] == "application/problem+json"
    assert got.headers["x-request-id"] == "r-1"
    assert json.decode(got.body) == problem(status, title, code, message, field)


# Nothing there


async def test_an_unknown_path_is_404() -> None:
    got = await answer(sent("GET", "/api/v3/products"))
    assert_problem(
        got,
        404,
        "Not Found",
        "unimplemented",
        "There is nothing at /api/v3/products. Look for a typing error, or a slash at the end.",
    )


async def test_a_long_unknown_path_is_cut_off_and_harmless() -> None:
    got = await answer(sent("GET", "/%3Cscript%3E" + "x" * 5000))
    assert got.status == 404
    assert len(got.body) < 1000


async def test_a_verb_that_a_path_does_not_have_is_405_with_those_that_it_has() -> None:
    async with served(ShopService()) as shop:
        for verb in ("POST", "TRACE", "PROPFIND"):
            got = await ask(shop.address, sent(verb, "/api/v1/products/a"))
            assert got.headers["allow"] == "GET, HEAD, PUT, PATCH, DELETE, OPTIONS"
            assert_problem(
                got,
                405,
                "Method Not Allowed",
                "unimplemented",
                f"{verb} is not possible at /api/v1/products/a. It has GET, HEAD, PUT, PATCH, DELETE, OPTIONS.",
            )


async def test_head_is_405_where_there_is_no_get() -> None:
    got = await answer(sent("HEAD", "/api/v1/echo"))
    assert (got.status, got.body) == (405, b"")
    assert got.headers["allow"] == "POST, OPTIONS"


async def test_connect_is_405() -> None:
    got = await answer(sent("CONNECT", "example.com:443"))
    assert got.headers["allow"] == "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"
    assert_problem(got, 405, "Method Not Allowed", "unimplemented", "CONNECT is not served here: this is no proxy.")


# What cannot be read: 400


async def test_malformed_json_is_400() -> None:
    got = await answer(sent("POST", "/api/v1/echo", b'{"text":'))
    assert_problem(
        got,
        400,
        "Bad Request",
        "invalid_argument",
        "shop.v1.Text: the JSON is malformed (Input data was truncated).",
    )


async def test_malformed_json_beside_a_path_parameter_is_400() -> None:
    async with served(ShopService()) as shop:
        for body in (
            b'{"name":"x"',
            b'{"name":"x"}}',
            b'{"name":"}',
            b'{"name":"x",}',
            b"{]",
            b'{"extra":{"a":1}',
        ):
            got = await ask(shop.address, sent("PUT", "/api/v1/products/a", body))
            assert got.status == 400, (body, got.body)


async def test_deeply_nested_json_is_400() -> None:
    got = await answer(sent("POST", "/api/v1/echo", b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"))
    assert_problem(
        got, 400, "Bad Request", "invalid_argument", "shop.v1.Text: the JSON is malformed (nested too deeply)."
    )


async def test_deeply_nested_json_in_a_field_or_merged_with_the_path_is_400() -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    async with served(ShopService()) as shop:
        field = await ask(shop.address, sent("POST", "/api/v1/uploads/u", deep))
        merged = await ask(shop.address, sent("PUT", "/api/v1/ranges/3/9", b'{"x":' + deep + b"}"))
    assert_problem(
        field,
        400,
        "Bad Request",
        "invalid_argument",
        "The body of shop.v1.Shop/Upload: POST /api/v1/uploads/{name} is not JSON: nested too deeply.",
    )
    assert_problem(
        merged,
        400,
        "Bad Request",
        "invalid_argument",
        "The body of shop.v1.Shop/Nested: PUT /api/v1/ranges/{range.low}/{range.high} is not JSON: nested too deeply.",
    )


async def test_a_field_cannot_be_smuggled_in_behind_the_body() -> None:
    got = await answer(sent("POST", "/api/v1/uploads/u", b'{"product_id":"a"},"name":"other"'))
    assert_problem(
        got,
        400,
        "Bad Request",
        "invalid_argument",
        "The body of shop.v1.Shop/Upload: POST /api/v1/uploads/{name} is not JSON: trailing characters (byte 19).",
    )


async def test_text_that_is_no_utf8_is_400() -> None:
    async with served(ShopService()) as shop:
        body = await ask(shop.address, sent("POST", "/api/v1/echo", b'{"text":"\xff"}'))
        path = await ask(shop.address, sent("GET", "/api/v1/products/%FF"))
        query = await ask(shop.address, sent("GET", "/api/v1/search?text=%FF"))
        escape = await ask(shop.address, sent("GET", "/api/v1/products/100%"))
    assert_problem(
        body,
        400,
        "Bad Request",
        "invalid_argument",
        "shop.v1.Text: the JSON is malformed (text that is not UTF-8).",
    )
    assert_problem(
        path,
        400,
        "Bad Request",
        "invalid_argument",
        "The request was not understood: the path '%FF' is not percent-encoded UTF-8.",
    )
    assert_problem(
        query,
        400,
        "Bad Request",
        "invalid_argument",
        "The query cannot be read: '%FF' is not percent-encoded UTF-8.",
    )
    assert_problem(
        escape,
        400,
        "Bad Request",
        "invalid_argument",
        "The request was not understood: the path '100%' has a percent sign that is not followed by two hexadecimal "
        "digits.",
    )


async def test_a_timeout_that_is_no_number_is_400() -> None:
    got = await answer(sent("GET", "/api/v1/products/a", headers={"polywire-timeout": "soon"}))
    assert_problem(
        got,
        400,
        "Bad Request",
        "invalid_argument",
        "shop.v1.Shop/Product: GET /api/v1/products/{product_id} was not called: the header polywire-timeout is "
        "'soon', but it has to be a number of seconds such as 1.5.",
    )


async def test_a_body_that_is_not_gzip_although_it_says_so_is_400() -> None:
    got = await answer(sent("POST", "/api/v1/echo", b"{}", headers={"content-encoding": "gzip"}))
    assert got.status == 400
    assert json.decode(got.body)["error"]["message"].startswith(
        "shop.v1.Shop/Echo: POST /api/v1/echo was not called: its body is not gzip: "
    )


# What violates the contract: 422


async def test_a_value_of_the_wrong_type_is_422() -> None:
    got = await answer(sent("POST", "/api/v1/products", b'{"product_id":"a","name":"Lamp","stock":"many"}'))
    assert_problem(
        got,
        422,
        "Unprocessable Content",
        "invalid_argument",
        "stock: expected `int`, got `str`",
        "stock",
    )


async def test_a_missing_field_is_422() -> None:
    got = await answer(sent("POST", "/api/v1/products", b'{"product_id":"a"}'))
    assert_problem(got, 422, "Unprocessable Content", "invalid_argument", "name: is missing", "name")


async def test_an_empty_body_lacks_its_fields() -> None:
    got = await answer(sent("POST", "/api/v1/products"))
    assert got.status == 422
    assert json.decode(got.body)["error"] == {
        "code": "invalid_argument",
        "message": "product_id: is missing",
        "field": "product_id",
    }


async def test_a_violated_constraint_is_422() -> None:
    got = await answer(sent("POST", "/api/v1/products", b'{"product_id":"a","name":"Lamp","stock":-1}'))
    assert_problem(got, 422, "Unprocessable Content", "invalid_argument", "stock: expected `int` >= 0", "stock")


async def test_a_body_that_is_no_object_is_422() -> None:
    got = await answer(sent("PUT", "/api/v1/products/a", b"[1]"))
    assert_problem(got, 422, "Unprocessable Content", "invalid_argument", "expected `object`, got `array`")


async def test_values_of_a_query_are_refused_with_their_name_and_what_was_given() -> None:
    wrong = {
        "numbers=1&numbers=x": ("numbers", "numbers: expected `int`, got 'x'"),
        "exact=maybe": ("exact", "exact: expected `bool` (true or false), got 'maybe'"),
        "ratio=nan": ("ratio", "ratio: expected `float`, got 'nan'"),
        "ratio=1e999": ("ratio", "ratio: expected a finite `float`, got '1e999'"),
        "range.low=" + "9" * 50: ("range.low", f"range.low: expected `int`, got '{'9' * 50}'"),
        "range.low=99999999999": ("range.low", "range.low: expected `int` <= 2147483647"),
        "range.high=x": ("range.high", "range.high: expected `int`, got 'x'"),
        "labels=x": ("labels", "labels: expected JSON, got 'x'"),
        "text=a&text=b": ("text", "text: given more than once, the last time as 'b', but it is a single value."),
        "range=%7B%7D&range.low=1": (
            "range.low",
            "range.low: range is given as a whole as well; give one of them.",
        ),
        "at=2026-11-21": ("at", "at: invalid RFC3339 encoded datetime"),
        "at=2026-11-21T12:30:00": ("at", "at: expected `datetime` with a timezone component"),
        "id=x": ("id", "id: invalid UUID"),
        "price=x": ("price", "price: invalid decimal string"),
        "blob=*": ("blob", "blob: invalid base64 encoded string"),
        "state=lost": None,
    }
    async with served(ShopService()) as shop:
        for query, expected in wrong.items():
            got = await ask(shop.address, sent("GET", f"/api/v1/search?{query}"))
            if expected is None:
                continue
            field, message = expected
            assert_problem(got, 422, "Unprocessable Content", "invalid_argument", message, field)


async def test_a_parameter_of_the_wrong_type_is_refused_every_time() -> None:
    async with served(ShopService()) as shop:
        for _ in range(2):
            got = await ask(shop.address, sent("PUT", "/api/v1/ranges/low/9", b"{}"))
            assert_problem(
                got,
                422,
                "Unprocessable Content",
                "invalid_argument",
                "range.low: expected `int`, got 'low'",
                "range.low",
            )


# Negotiation and size


async def test_a_body_of_another_type_is_415() -> None:
    form = {"content-type": "application/x-www-form-urlencoded"}
    async with served(ShopService()) as shop:
        post = await ask(shop.address, sent("POST", "/api/v1/echo", b"text=a", headers=form))
        patch = await ask(shop.address, sent("PATCH", "/api/v1/products/a", b"{}", json=False))
        brotli = await ask(shop.address, sent("POST", "/api/v1/echo", b"{}", headers={"content-encoding": "br"}))
    assert post.headers["accept-post"] == "application/json"
    assert_problem(
        post,
        415,
        "Unsupported Media Type",
        "invalid_argument",
        "shop.v1.Shop/Echo: POST /api/v1/echo was not called: its body is 'application/x-www-form-urlencoded', but it "
        "has to be application/json.",
    )
    assert patch.headers["accept-patch"] == "application/json, application/merge-patch+json"
    assert_problem(
        patch,
        415,
        "Unsupported Media Type",
        "invalid_argument",
        "shop.v1.Shop/Change: PATCH /api/v1/products/{product_id} was not called: its body has no Content-Type, but it "
        "has to be application/json, application/merge-patch+json.",
    )
    assert brotli.headers["accept-encoding"] == "gzip"
    assert_problem(
        brotli,
        415,
        "Unsupported Media Type",
        "invalid_argument",
        "shop.v1.Shop/Echo: POST /api/v1/echo was not called: its body is encoded as 'br'; gzip is known.",
    )


async def test_an_answer_that_the_caller_does_not_accept_is_406() -> None:
    async with served(ShopService()) as shop:
        for accepted in ("*/*", "application/*;q=0.1", "text/html, application/json", "APPLICATION/JSON; q=1"):
            got = await ask(shop.address, sent("GET", "/api/v1/products/a", headers={"accept": accepted}))
            assert got.status == 200, accepted
        for refused in ("text/html", "application/json;q=0, */*", "image/*;q=x"):
            got = await ask(shop.address, sent("GET", "/api/v1/products/a", headers={"accept": refused}))
            assert_problem(
                got,
                406,
                "Not Acceptable",
                "invalid_argument",
                "shop.v1.Shop/Product: GET /api/v1/products/{product_id} was not called: its answer is "
                "application/json, which the Accept header leaves out.",
            )


async def test_a_body_over_the_limit_is_413() -> None:
    message = (
        "shop.v1.Shop/Echo: POST /api/v1/echo was not called: its body is over the limit of 1000 bytes. Split it, or "
        "raise `max_message_bytes` of the service."
    )
    got = await answer(sent("POST", "/api/v1/echo", b'{"text":"' + b"x" * 1000 + b'"}'), max_message_bytes=1000)
    assert_problem(got, 413, "Content Too Large", "resource_exhausted", message)


async def test_a_small_body_that_is_large_once_decompressed_is_413() -> None:
    body = gzip.compress(b" " * 10_000_000)
    message = (
        "shop.v1.Shop/Echo: POST /api/v1/echo was not called: its body is over the limit of 100000 bytes once it is "
        "decompressed. Split it, or raise `max_message_bytes` of the service."
    )
    raw = sent("POST", "/api/v1/echo", body, headers={"content-encoding": "gzip"})
    assert_problem(
        await answer(raw, max_message_bytes=100_000), 413, "Content Too Large", "resource_exhausted", message
    )


# Errors of handlers


async def test_every_code_has_its_status_and_its_details() -> None:
    statuses = {
        "cancelled": 499,
        "unknown": 500,
        "invalid_argument": 422,
        "deadline_exceeded": 504,
        "not_found": 404,
        "already_exists": 409,
        "permission_denied": 403,
        "resource_exhausted": 429,
        "failed_precondition": 400,
        "aborted": 409,
        "out_of_range": 400,
        "unimplemented": 501,
        "internal": 500,
        "unavailable": 503,
        "data_loss": 500,
    }
    async with served(ShopService()) as shop:
        for code, status in statuses.items():
            got = await ask(shop.address, sent("POST", "/api/v1/fail", json.encode({"code": code})))
            document = json.decode(got.body)
            assert (got.status, document["status"]) == (status, status)
            assert document["error"] == {"code": code, "message": "went wrong", "field": None}
            assert document["details"] == [
                {
                    "type": "google.rpc.ErrorInfo",
                    "value": "CgVBU0tFRBIMc2hvcC5leGFtcGxlGgYKAWESAWI",
                    "debug": {"reason": "ASKED", "domain": "shop.example", "metadata": {"a": "b"}},
                }
            ]


async def test_a_bug_in_a_handler_keeps_its_secret() -> None:
    got = await answer(sent("POST", "/api/v1/fail", b'{"code":"a bug"}'))
    assert_problem(got, 500, "Internal Server Error", "internal", "internal error, request id r-1")


async def test_an_answer_that_violates_the_contract_is_the_services_fault() -> None:
    class Wrong(ShopService):
        async def product(self, key: Any) -> Any:
            return "no product at all"

    async with served(Wrong()) as shop:
        got = await ask(shop.address, sent("GET", "/api/v1/products/a"))
    assert_problem(got, 500, "Internal Server Error", "internal", "internal error, request id r-1")


async def test_when_to_try_again_is_said_in_headers() -> None:
    async with served(ShopService()) as shop:
        later = await ask(shop.address, sent("POST", "/api/v1/fail", b'{"code":"unavailable","retry_after":1.5}'))
        quota = await ask(shop.address, sent("POST", "/api/v1/fail", b'{"code":"resource_exhausted","retry_after":3}'))
        never = await ask(shop.address, sent("POST", "/api/v1/fail", b'{"code":"unavailable","retry_after":-1}'))
        lost = await ask(shop.address, sent("POST", "/api/v1/fail", b'{"code":"aborted","retry_after":2}'))
    assert (later.headers["retry-after"], later.headers["grpc-retry-pushback-ms"]) == ("2", "1500")
    assert quota.headers["retry-after"] == "3"
    assert "retry-after" not in never.headers
    assert never.headers["grpc-retry-pushback-ms"] == "-1"
    assert "retry-after" not in lost.headers
    assert lost.headers["grpc-retry-pushback-ms"] == "2000"


async def test_credentials_that_are_missing_or_wrong_are_401() -> None:
    got = await answer(sent("GET", "/api/v1/products/a"), authenticator=Tokens())
    assert got.headers["www-authenticate"] == "Bearer"
    assert_problem(
        got,
        401,
        "Unauthorized",
        "unauthenticated",
        "shop.v1.Shop/Product was refused: it needs credentials, and none came.",
    )


async def test_what_is_wrong_with_a_request_is_not_told_to_strangers() -> None:
    async with served(ShopService(), authenticator=Tokens()) as shop:
        for raw in (
            sent("POST", "/api/v1/echo", b"{"),
            sent("POST", "/api/v1/echo", b"a=b", headers={"content-type": "text/plain"}),
            sent("GET", "/api/v1/search?exact=maybe"),
        ):
            assert (await ask(shop.address, raw)).status == 401


async def test_an_expired_deadline_is_504() -> None:
    got = await answer(sent("GET", "/api/v1/products/a", headers={"polywire-timeout": "0"}))
    assert_problem(
        got,
        504,
        "Gateway Timeout",
        "deadline_exceeded",
        "shop.v1.Shop/Product was not started: its deadline had passed when it arrived.",
    )


async def test_a_deadline_ends_a_handler() -> None:
    service = ShopService()
    async with served(service) as shop:
        got = await ask(shop.address, sent("POST", "/api/v1/wait", headers={"polywire-timeout": "0.05"}))
        await asyncio.wait_for(service.ended.wait(), 5)
    assert_problem(
        got,
        504,
        "Gateway Timeout",
        "deadline_exceeded",
        "shop.v1.Shop/Wait was stopped at its deadline. It may have done part of its work.",
    )


async def test_a_caller_that_hangs_up_cancels_its_handler_and_is_counted_as_cancelled() -> None:
    service = ShopService()
    async with served(service) as shop:
        host, _, port = shop.address.rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /api/v1/wait HTTP/1.1\r\nhost: test\r\ncontent-length: 0\r\n\r\n")
        await asyncio.wait_for(service.started.wait(), 5)
        writer.close()
        await asyncio.wait_for(service.ended.wait(), 5)
        await writer.wait_closed()
    assert shop.services.counters["shop.v1.Shop/Wait"].codes == {"ok": 0, "cancelled": 1}
