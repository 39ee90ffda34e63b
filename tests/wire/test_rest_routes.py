"""Requests to REST routes, by verb, and where each field of a message comes from."""

from __future__ import annotations

import asyncio
import gzip

from http_support import Answer, ask, request, served
from msgspec import json
from rest_shop import ShopService

from polywire.net.http2_protocol import open_http2
from polywire.net.stream import Field, Head, Headers, StreamClosed


async def answer(raw: bytes) -> Answer:
    async with served(ShopService()) as shop:
        return await ask(shop.address, raw)


async def body_of(raw: bytes) -> object:
    got = await answer(raw)
    assert got.status == 200, got.body
    return json.decode(got.body)


# Verbs and statuses


async def test_get_answers_200_with_json() -> None:
    got = await answer(request("GET", "/api/v1/products/a", headers={"x-request-id": "r-1"}))
    assert got.status == 200
    assert got.headers["content-type"] == "application/json"
    assert got.headers["x-request-id"] == "r-1"
    assert got.headers["content-length"] == str(len(got.body))
    assert got.body == b'{"product_id":"a","name":"","price":"0","stock":0}'


async def test_a_request_without_an_id_is_given_one() -> None:
    got = await answer(request("GET", "/api/v1/products/a"))
    assert got.headers["x-request-id"]


async def test_a_request_id_that_cannot_be_printed_is_replaced() -> None:
    got = await answer(request("GET", "/api/v1/products/a", headers={"x-request-id": "x" * 129}))
    assert got.headers["x-request-id"] != "x" * 129


async def test_head_answers_as_get_does_without_the_body() -> None:
    async with served(ShopService()) as shop:
        whole = await ask(shop.address, request("GET", "/api/v1/products/a"))
        head = await ask(shop.address, request("HEAD", "/api/v1/products/a"))
    assert head.status == 200
    assert head.body == b""
    assert head.headers["content-length"] == whole.headers["content-length"]
    assert head.headers["content-type"] == "application/json"


async def test_post_creates_with_201_a_location_and_headers_from_the_answer() -> None:
    got = await answer(request("POST", "/api/v1/products", b'{"product_id":"a b/c","name":"Lamp","stock":7}'))
    assert got.status == 201
    assert got.headers["location"] == "/api/v1/products/a%20b%2Fc"
    assert got.headers["x-stock"] == "7"
    assert json.decode(got.body) == {"product_id": "a b/c", "name": "Lamp", "price": "0", "stock": 7}


async def test_put_takes_the_parameter_from_the_path_whatever_the_body_says() -> None:
    got = await body_of(request("PUT", "/api/v1/products/a", b' { "product_id" : "b" , "name" : "Lamp" } '))
    assert got == {"product_id": "a", "name": "Lamp", "price": "0", "stock": 0}


async def test_put_with_an_empty_object_has_the_parameters_of_the_path_alone() -> None:
    assert await body_of(request("PUT", "/api/v1/products/a", b"{}")) == {
        "product_id": "a",
        "name": "",
        "price": "0",
        "stock": 0,
    }


async def test_patch_leaves_absent_fields_absent() -> None:
    got = await body_of(request("PATCH", "/api/v1/products/a", b'{"stock":3}'))
    assert got == {"product_id": "a", "name": None, "stock": 3}


async def test_patch_takes_a_merge_patch() -> None:
    headers = {"content-type": "application/merge-patch+json; charset=utf-8"}
    got = await body_of(request("PATCH", "/api/v1/products/a", b'{"stock":3}', headers=headers))
    assert got == {"product_id": "a", "name": None, "stock": 3}


async def test_delete_without_a_result_answers_204_without_a_body() -> None:
    got = await answer(request("DELETE", "/api/v1/products/a"))
    assert (got.status, got.body) == (204, b"")
    assert "content-type" not in got.headers
    assert "content-length" not in got.headers


async def test_options_names_the_verbs_of_a_path() -> None:
    got = await answer(request("OPTIONS", "/api/v1/products/a"))
    assert (got.status, got.headers["allow"]) == (204, "GET, HEAD, PUT, PATCH, DELETE, OPTIONS")


async def test_options_of_the_whole_server_is_answered() -> None:
    got = await answer(request("OPTIONS", "*"))
    assert (got.status, got.headers["allow"]) == (204, "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")


async def test_a_literal_segment_wins_over_a_parameter() -> None:
    got = await body_of(request("GET", "/api/v1/products/latest"))
    assert got == {"product_id": "the latest", "name": "", "price": "0", "stock": 0}


async def test_a_verb_that_only_the_parameter_has_is_found_behind_a_literal() -> None:
    got = await answer(request("DELETE", "/api/v1/products/latest"))
    assert got.status == 204


async def test_a_custom_verb_is_found_behind_a_parameter() -> None:
    got = await body_of(request("POST", "/api/v1/products/a%3Ab:publish"))
    assert got == {"product_id": "a:b", "name": "published", "price": "0", "stock": 0}


async def test_a_route_is_served_over_http2() -> None:
    class Kept:
        head = Head(())
        data = b""

        def headers_received(self, head: Head, tail: tuple[Field, ...]) -> None:
            self.head = head

        def data_received(self, data: bytes) -> None:
            self.data += data

        def ended(self, trailers: tuple[Field, ...]) -> None:
            done.append(self)
            if len(done) == 2:
                both.set()

        def failed(self, error: StreamClosed) -> None:
            raise error

    done: list[Kept] = []
    both = asyncio.Event()
    async with served(ShopService()) as shop:
        host, _, port = shop.address.rpartition(":")
        connection = await open_http2(host, int(port))
        for verb in (b"GET", b"HEAD"):
            fields = ((b":method", verb), (b":scheme", b"http"), (b":path", b"/api/v1/products/a"))
            connection.open(Headers((*fields, (b":authority", b"test"))), (), Kept())
        await asyncio.wait_for(both.wait(), 5)
        connection.close()
    assert [kept.head.status for kept in done] == [200, 200]
    assert [kept.data for kept in done] == [b'{"product_id":"a","name":"","price":"0","stock":0}', b""]


# Paths


async def test_a_parameter_is_percent_decoded() -> None:
    got = await body_of(request("GET", "/api/v1/products/a%20b%2Fc%C3%BC"))
    assert got == {"product_id": "a b/cü", "name": "", "price": "0", "stock": 0}


async def test_a_literal_may_be_percent_encoded() -> None:
    assert (await answer(request("GET", "/api/v1/%70roducts/a"))).status == 200


async def test_the_rest_of_a_path_is_one_parameter() -> None:
    assert await body_of(request("GET", "/api/v1/files/a/b%20c/d.txt")) == {"text": "a/b c/d.txt"}


async def test_an_encoded_slash_in_the_rest_of_a_path_stays_encoded() -> None:
    assert await body_of(request("GET", "/api/v1/files/a%2Fb/c")) == {"text": "a%2Fb/c"}


async def test_a_parameter_may_have_a_pattern_of_segments() -> None:
    async with served(ShopService()) as shop:
        fits = await ask(shop.address, request("GET", "/api/v1/shelves/shelves/3/books/7"))
        other = await ask(shop.address, request("GET", "/api/v1/shelves/racks/3/books/7"))
    assert (fits.status, fits.body) == (200, b'{"text":"shelves/3/books/7"}')
    assert other.status == 404


async def test_parameters_of_a_nested_message_are_merged_with_the_body() -> None:
    got = await body_of(request("PUT", "/api/v1/ranges/3/9", b'{"range":{"low":1},"note":"n"}'))
    assert got == {"range": {"low": 3, "high": 9}, "note": "n"}


async def test_a_slash_at_the_end_is_another_path() -> None:
    assert (await answer(request("GET", "/api/v1/products/"))).status == 404
    assert (await answer(request("GET", "/api/v1/products/a/"))).status == 404


async def test_an_empty_parameter_is_no_parameter() -> None:
    assert (await answer(request("GET", "/api/v1/files/"))).status == 404


# Queries


async def test_every_kind_of_value_is_read_from_a_query() -> None:
    query = (
        "text=a+b%26c&state=paid&tags=x&tags=y&numbers=1&numbers=-2&exact=true&at=2026-11-21T12:30:00+01:00"
        "&id=12345678-1234-5678-1234-567812345678&price=12.50&ratio=-1.5e3&blob=_-8&range.low=-5&range.high=7"
        "&labels=%7B%22a%22%3A%22b%22%7D&ranges=[%7B%22low%22:1%7D]"
    )
    assert await body_of(request("GET", f"/api/v1/search?{query}")) == {
        "text": "a b&c",
        "state": "paid",
        "tags": ["x", "y"],
        "numbers": [1, -2],
        "exact": True,
        "at": "2026-11-21T12:30:00+01:00",
        "id": "12345678-1234-5678-1234-567812345678",
        "price": "12.50",
        "ratio": -1500.0,
        "blob": "/+8=",
        "range": {"low": -5, "high": 7},
        "labels": {"a": "b"},
        "ranges": [{"low": 1, "high": 100}],
    }


async def test_a_nested_message_may_be_given_as_json() -> None:
    got = await body_of(request("GET", "/api/v1/search?range=%7B%22low%22:4%7D"))
    assert isinstance(got, dict)
    assert got["range"] == {"low": 4, "high": 100}


async def test_unknown_and_empty_keys_are_ignored() -> None:
    got = await body_of(request("GET", "/api/v1/search?nonsense=1&&=&text=a"))
    assert isinstance(got, dict)
    assert got["text"] == "a"


async def test_a_body_that_a_route_has_no_use_for_is_ignored() -> None:
    got = await body_of(request("GET", "/api/v1/products/a", b"what is this", json=False))
    assert isinstance(got, dict)


# Bodies and headers


async def test_a_field_may_be_the_body_and_another_a_header() -> None:
    body = b'{"product_id":"a","stock":3}'
    got = await body_of(request("POST", "/api/v1/uploads/u?tenant=ignored", body, headers={"X-Tenant": "blue"}))
    assert got == {
        "name": "u",
        "tenant": "blue",
        "product": {"product_id": "a", "name": "", "price": "0", "stock": 3},
    }


async def test_a_field_that_is_the_body_may_be_left_out() -> None:
    assert await body_of(request("POST", "/api/v1/uploads/u")) == {"name": "u", "tenant": "", "product": None}


async def test_a_compressed_body_is_read() -> None:
    body = gzip.compress(b'{"text":"hello"}')
    assert await body_of(request("POST", "/api/v1/echo", body, headers={"content-encoding": "gzip"})) == {
        "text": "hello"
    }


async def test_a_large_answer_is_compressed_for_those_who_accept_it() -> None:
    text = "x" * 20_000
    body = json.encode({"text": text})
    async with served(ShopService()) as shop:
        zipped = await ask(shop.address, request("POST", "/api/v1/echo", body, headers={"accept-encoding": "br, gzip"}))
        plain = await ask(shop.address, request("POST", "/api/v1/echo", body))
        unwanted = await ask(
            shop.address, request("POST", "/api/v1/echo", body, headers={"accept-encoding": "gzip;q=0"})
        )
        small = await ask(shop.address, request("GET", "/api/v1/products/a", headers={"accept-encoding": "gzip"}))
    assert zipped.headers["content-encoding"] == "gzip"
    assert gzip.decompress(zipped.body) == body
    assert zipped.headers["vary"] == plain.headers["vary"] == "accept-encoding"
    assert plain.body == unwanted.body == body
    assert "content-encoding" not in small.headers


async def test_what_travels_beside_a_request_reaches_the_handler() -> None:
    headers = {
        "polywire-timeout": "1.5",
        "idempotency-key": '"k1"',
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "tracestate": "a=b",
        "baggage": "user=7",
    }
    got = await answer(request("GET", "/api/v1/seen", headers=headers))
    assert json.decode(got.body) == {
        "text": 'shop.v1.Shop/Seen rest in time "k1" 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01 a=b user=7'
    }
    assert got.headers["x-answer"] == "42"
    assert got.headers["x-trailer"] == "43"


async def test_without_such_headers_the_handler_knows_nothing_of_the_kind() -> None:
    got = await body_of(request("GET", "/api/v1/seen", headers={"traceparent": "nonsense", "tracestate": "a=b"}))
    assert got == {"text": "shop.v1.Shop/Seen rest no deadline None None None None"}


async def test_requests_on_one_connection_are_told_apart_by_what_differs() -> None:
    raw = b"".join(
        b"GET /api/v1/seen HTTP/1.1\r\nhost: test\r\nx-request-id: r-%d\r\n%b\r\n" % (number, more)
        for number, more in enumerate((b"", b"", b"idempotency-key: k\r\n", b"polywire-timeout: 1\r\n"))
    )
    raw += b"GET /api/v1/seen HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n"
    async with served(ShopService()) as shop:
        host, _, port = shop.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(raw)
        got = await reader.read()
        writer.close()
        await writer.wait_closed()
    assert [f"x-request-id: r-{number}\r\n".encode() in got for number in range(4)] == [True] * 4
    seen = [part.partition(b'"}')[0] for part in got.split(b'"text":"')[1:]]
    assert seen == [
        b"shop.v1.Shop/Seen rest no deadline None None None None",
        b"shop.v1.Shop/Seen rest no deadline None None None None",
        b"shop.v1.Shop/Seen rest no deadline k None None None",
        b"shop.v1.Shop/Seen rest in time None None None None",
        b"shop.v1.Shop/Seen rest no deadline None None None None",
    ]


# Pages


async def test_a_page_says_where_the_others_are_in_its_body_and_in_a_header() -> None:
    got = await answer(request("GET", "/api/v1/products?category=a%20b&page=2&limit=20"))
    page = json.decode(got.body)
    assert [item["product_id"] for item in page["items"]] == [f"a b{number}" for number in range(20, 40)]
    here = "/api/v1/products?category=a%20b"
    assert {name: page[name] for name in ("total", "page", "limit", "pages", "links")} == {
        "total": 45,
        "page": 2,
        "limit": 20,
        "pages": 3,
        "links": {
            "first": f"{here}&page=1&limit=20",
            "prev": f"{here}&page=1&limit=20",
            "next": f"{here}&page=3&limit=20",
            "last": f"{here}&page=3&limit=20",
        },
    }
    assert got.headers["link"] == (
        f'<{here}&page=1&limit=20>; rel="first", <{here}&page=1&limit=20>; rel="prev", '
        f'<{here}&page=3&limit=20>; rel="next", <{here}&page=3&limit=20>; rel="last"'
    )


async def test_the_first_page_is_the_default_and_has_none_before_it() -> None:
    got = await answer(request("GET", "/api/v1/products"))
    assert got.headers["link"] == (
        '</api/v1/products?page=1&limit=20>; rel="first", </api/v1/products?page=2&limit=20>; rel="next", '
        '</api/v1/products?page=3&limit=20>; rel="last"'
    )


async def test_a_page_behind_the_last_one_points_back() -> None:
    got = await answer(request("GET", "/api/v1/products?page=9"))
    page = json.decode(got.body)
    assert page["items"] == []
    assert page["links"] == {
        "first": "/api/v1/products?page=1&limit=20",
        "prev": "/api/v1/products?page=3&limit=20",
        "last": "/api/v1/products?page=3&limit=20",
    }
