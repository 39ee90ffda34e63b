"""Our client of REST routes: how a message becomes a request, and an answer a message or an error."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal
from uuid import UUID

import pytest
from http_support import HttpServed, rest, served
from rest_shop import (
    Failing,
    Nested,
    NewProduct,
    Number,
    Numbers,
    Product,
    ProductChange,
    ProductKey,
    ProductList,
    Range,
    Search,
    Shop,
    ShopService,
    State,
    Text,
    Upload,
)

from polywire.channel import Channel, Endpoints
from polywire.client import client_for
from polywire.context import calling, current
from polywire.contract import Contract, Message, post, rpc
from polywire.discovery import StaticResolver
from polywire.errors import CallError, DeadlineExceeded, Internal, InvalidArgument, NotFound, Unavailable, Unknown


@asynccontextmanager
async def shop() -> AsyncIterator[tuple[Shop, HttpServed]]:
    async with served(ShopService()) as made:
        yield made.client(Shop), made


async def test_every_route_is_called_and_answered() -> None:
    async with shop() as (client, _):
        with calling() as call:
            created = await client.create(NewProduct(product_id="a b/ü", name="Lamp", stock=3))
        assert created == Product(product_id="a b/ü", name="Lamp", stock=3)
        assert call.headers["location"] == "/api/v1/products/a%20b%2F%C3%BC"
        assert (await client.product(ProductKey(product_id="a b/ü?#%"))).product_id == "a b/ü?#%"
        assert (await client.product(ProductKey(product_id=".."))).product_id == ".."
        product = Product(product_id="a", name="n", price=Decimal("1.50"), stock=1)
        assert await client.replace(product) == product
        change = ProductChange(product_id="a", stock=0)
        assert await client.change(change) == change
        await client.remove(ProductKey(product_id="a"))
        assert (await client.publish(ProductKey(product_id="a:b"))).name == "published"
        assert (await client.latest()).product_id == "the latest"
        assert (await client.file(Text(text="a/b c/.d"))).text == "a/b c/.d"
        assert (await client.book(Text(text="shelves/1/books/2"))).text == "shelves/1/books/2"
        nested = Nested(range=Range(low=-1, high=5), note="n")
        assert await client.nested(nested) == nested
        upload = Upload(name="u", tenant="blue", product=product)
        assert await client.upload(upload) == upload
        page = await client.list_products(ProductList(page=2, limit=30, category="a&b"))
        assert [item.product_id for item in page.items] == [f"a&b{number}" for number in range(30, 45)]
        assert page.links["prev"] == "/api/v1/products?category=a%26b&page=1&limit=30"


async def test_every_kind_of_value_goes_into_a_query_and_back() -> None:
    search = Search(
        text="a b&c=ü",
        state=State.PAID,
        tags=["x", "y z"],
        numbers=[1, -2],
        exact=True,
        at=datetime(2026, 11, 21, 12, 30, tzinfo=UTC),
        id=UUID("12345678-1234-5678-1234-567812345678"),
        price=Decimal("12.50"),
        ratio=-1.5e300,
        blob=b"\xff\xef+/",
        range=Range(low=-5, high=7),
        labels={"a": "b"},
        ranges=[Range(low=1), Range(low=2)],
    )
    async with shop() as (client, _):
        assert await client.search(search) == search
        assert await client.search(Search()) == Search()


async def test_streams_take_their_connect_form() -> None:
    async def numbers() -> AsyncIterator[Number]:
        for number in (1, 2, 39):
            yield Number(number=number)

    async with shop() as (client, _):
        assert (await client.sum(numbers())).number == 42
        assert [n.number async for n in client.numbers(Numbers(count=3))] == [0, 1, 2]


async def test_what_does_not_fit_a_path_is_refused_before_it_is_sent() -> None:
    async with shop() as (client, _):
        with pytest.raises(InvalidArgument) as caught:
            await client.product(ProductKey(product_id=""))
        assert str(caught.value) == (
            "shop.v1.Shop/Product: GET /api/v1/products/{product_id} was not called: product_id is part of its path "
            "and "
            "must not be empty."
        )
        assert caught.value.field == "product_id"
        with pytest.raises(InvalidArgument) as caught:
            await client.book(Text(text="racks/1/books/2"))
        assert str(caught.value) == (
            "shop.v1.Shop/Book: GET /api/v1/shelves/{text=shelves/*/books/*} was not called: text is "
            "'racks/1/books/2', "
            "which does not fit the path."
        )
        with pytest.raises(InvalidArgument) as caught:
            await client.upload(Upload(name="u", tenant="blåu"))
        assert str(caught.value) == (
            "tenant travels in the header x-tenant, which has printable ASCII only, without white space around it."
        )


class Payment(Message, package="pay.v1"):
    amount: int
    key: str = ""
    tags: list[str] = []
    seen: str = ""


class Payments(Contract, package="pay.v1"):
    @rpc(post("/payments", headers={"key": "Idempotency-Key", "tags": "X-Tag"}))
    async def pay(self, payment: Payment) -> Payment:
        """What arrived, and the key among the metadata."""
        raise NotImplementedError


class PaymentsService(Payments):
    async def pay(self, payment: Payment) -> Payment:
        payment.seen = ",".join(str(value) for value in current().metadata.get_all("idempotency-key"))
        return payment


async def test_a_field_that_travels_in_a_header_wins_over_metadata_of_its_name() -> None:
    async with served(PaymentsService()) as made:
        client = made.client(Payments)
        assert await client.pay(Payment(amount=1, key="mine")) == Payment(amount=1, key="mine", seen="mine")
        with calling(idempotency_key="theirs"):
            assert await client.pay(Payment(amount=1, key="mine")) == Payment(amount=1, key="mine", seen="mine")
            # A field that was left alone says nothing, so that the key of the call fills it.
            assert await client.pay(Payment(amount=1)) == Payment(amount=1, key="theirs", seen="theirs")
        assert await client.pay(Payment(amount=1)) == Payment(amount=1)


async def test_a_list_that_travels_in_a_header_is_repeated() -> None:
    async with served(PaymentsService()) as made:
        payment = Payment(amount=1, tags=["a", "b"])
        assert await made.client(Payments).pay(payment) == payment


async def test_a_violated_constraint_is_found_before_it_is_sent() -> None:
    async with shop() as (client, _):
        with pytest.raises(InvalidArgument) as caught:
            await client.list_products(ProductList(page=0))
        assert caught.value.field == "page"


async def test_an_error_arrives_as_its_class_with_what_it_says() -> None:
    async with shop() as (client, _):
        with pytest.raises(NotFound) as caught:
            await client.product(ProductKey(product_id="gone"))
        assert str(caught.value) == "there is no product 'gone'"
        with pytest.raises(Unavailable) as unavailable:
            await client.fail(Failing(code="unavailable", retry_after=-1))
        assert unavailable.value.reached == "maybe"
        assert unavailable.value.retry_after == -1


async def test_credentials_with_a_line_end_are_not_sent() -> None:
    async with served(ShopService()) as made:
        with pytest.raises(InvalidArgument) as caught:
            await made.client(Shop, token="secret\n").latest()
    assert str(caught.value) == (
        "The authorization of the call was not sent: it has characters other than printable ASCII, or white space "
        "around "
        "it (perhaps the line end of the file that it was read from)."
    )


# Answers of something that is not our server


@asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[Shop]:
    """A client of a server that answers every request with *answer*."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    channel = Channel("shop", Endpoints(StaticResolver([f"{host}:{port}"]), rest))
    try:
        yield client_for(Shop, channel)
    finally:
        await channel.close()
        server.close()
        await server.wait_closed()


def whole(status: str, content_type: str, body: bytes, more: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\ncontent-length: {len(body)}\r\n{more}\r\n"
    return head.encode() + body


async def failing(answer: bytes, check: Callable[[CallError], None]) -> None:
    async with answering(answer) as client:
        with pytest.raises(CallError) as caught:
            await client.create(NewProduct(product_id="a", name="b"))
        check(caught.value)


async def test_an_answer_that_violates_the_contract_is_internal() -> None:
    def check(error: CallError) -> None:
        assert type(error) is Internal
        assert str(error) == (
            "The answer of shop.v1.Shop/Create could not be read: product_id: is missing. Do both sides have the same "
            "contract?"
        )

    await failing(whole("200 OK", "application/json", b"{}"), check)


async def test_an_answer_of_another_type_is_internal() -> None:
    def check(error: CallError) -> None:
        assert type(error) is Internal
        assert "answered shop.v1.Shop/Create: POST /api/v1/products with 'text/html' instead of" in str(error)

    await failing(whole("200 OK", "text/html", b"<p>hello</p>"), check)


async def test_a_status_without_a_document_is_the_error_it_usually_stands_for() -> None:
    def unavailable(error: CallError) -> None:
        assert isinstance(error, Unavailable)
        assert error.reached == "maybe"
        assert error.retry_after == 7

    def unknown(error: CallError) -> None:
        assert type(error) is Unknown

    def missing(error: CallError) -> None:
        assert type(error) is NotFound

    await failing(whole("502 Bad Gateway", "text/html", b"<p>no</p>", "retry-after: 7\r\n"), unavailable)
    await failing(whole("302 Found", "text/html", b"", "location: /login\r\n"), unknown)
    await failing(whole("404 Not Found", "application/json", b'{"detail":"Not Found"}'), missing)
    for body in (
        b"[" * 100_000,
        b"{}",
        b'{"error":{"code":"nonsense"}}',
        b'{"error":{"code":7}}',
        b"\xff",
        b'{"error":1}',
    ):
        await failing(whole("404 Not Found", "application/problem+json", body), missing)


async def test_an_answer_over_the_limit_is_refused() -> None:
    def check(error: CallError) -> None:
        assert str(error) == (
            "The answer of shop.v1.Shop/Create was not read: it is over the limit of 4194304 bytes. Ask for less, or "
            "raise "
            "`max_message_bytes` of the client."
        )

    await failing(whole("200 OK", "application/json", b" " * (4 * 1024 * 1024 + 1)), check)


async def test_a_server_that_does_not_answer_costs_no_more_than_the_deadline() -> None:
    connected = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connected.set()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()[:2]
    channel = Channel("shop", Endpoints(StaticResolver([f"{host}:{port}"]), rest))
    with calling(timeout=0.1), pytest.raises(DeadlineExceeded):
        await client_for(Shop, channel).latest()
    assert connected.is_set()
    await channel.close()
    server.close()
    await server.wait_closed()


async def test_finished_calls_leave_nothing_to_the_garbage_collector() -> None:
    async with shop() as (client, _):
        for _ in range(3):
            await client.latest()
        gc.collect()
        gc.disable()
        gc.set_debug(gc.DEBUG_SAVEALL)
        try:
            await asyncio.gather(*(client.product(ProductKey(product_id="a")) for _ in range(20)))
            await asyncio.sleep(0)
            gc.collect()
            left = {type(thing).__name__ for thing in gc.garbage}
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
    assert left.isdisjoint({"Call", "RestCall", "Reply", "Http1ServerStream", "Http1ClientStream", "Task"})
