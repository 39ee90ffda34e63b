"""Errors of a contract between us and others: grpcio with protoc's classes, and REST by hand."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, web
from grpc_support import grpc, untyped

from polywire import App, CallError, Contract, FailedPrecondition, Message, NotFound, connect, get, rpc, serve
from polywire.contract import service_of
from polywire.contract.details import ErrorInfo, UnknownDetail
from polywire.contract.export import proto_files
from polywire.errors import REST_STATUSES

code_pb2 = untyped("google.rpc.code_pb2")
status_pb2 = untyped("google.rpc.status_pb2")
any_pb2 = untyped("google.protobuf.any_pb2")
rpc_status = untyped("grpc_status.rpc_status")


class Overdue(FailedPrecondition, http_status=423, message="{title} is lent until {until}."):
    """Somebody has the book."""

    title: str
    until: str
    queue: list[str] = []


class Lost(NotFound, message="{title} is lost."):
    title: str


class Book(Message):
    title: str


class Shelf(Contract, package="lending.v1", raises=(Overdue,)):
    @rpc(get("/books/{title}"))
    async def lend(self, book: Book) -> Book:
        raise NotImplementedError

    @rpc
    def lend_all(self, book: Book) -> AsyncIterator[Book]:
        raise NotImplementedError


app = App("shelf")


@app.service
class ShelfService(Shelf):
    async def lend(self, book: Book) -> Book:
        raise _trouble(book)

    async def lend_all(self, book: Book) -> AsyncIterator[Book]:
        yield book
        raise _trouble(book)


def _trouble(book: Book) -> CallError:
    if book.title == "long":
        return Overdue(title="long", until="May", details=[ErrorInfo(reason="x" * 7000)])
    if book.title == "odd":
        return Overdue(title="odd", until="May", details=["no message"])
    if book.title == "Solaris":
        return Overdue(title=book.title, until="May", queue=["ada", "bob"])
    return Lost(title=book.title)


@cache
def generated() -> tuple[Any, Any]:
    """What grpcio-tools makes of the exported file: messages, the error's among them, and stubs."""
    directory = Path(tempfile.mkdtemp(prefix="polywire-lending-"))
    (text,) = proto_files([service_of(Shelf)], http=False).values()
    source = directory / "lending_generated" / "lending.proto"
    source.parent.mkdir()
    source.write_text(text)
    arguments = [f"-I{directory}", f"--python_out={directory}", f"--grpc_python_out={directory}"]
    assert untyped("grpc_tools.protoc").main(["protoc", *arguments, str(source)]) == 0
    sys.path.insert(0, str(directory))
    try:
        name = "lending_generated.lending_pb2"
        return untyped(name), untyped(f"{name}_grpc")
    finally:
        sys.path.remove(str(directory))


# They call us.


@asynccontextmanager
async def their_client() -> AsyncIterator[Any]:
    async with serve(app, "127.0.0.1:0") as address, grpc.aio.insecure_channel(address) as channel:
        yield generated()[1].ShelfStub(channel)


async def _refusal(call: Any) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (_read(call) if hasattr(call, "__aiter__") else call)
    return caught.value


async def _read(answers: Any) -> None:
    async for _ in answers:
        pass


@pytest.mark.parametrize("method", ["Lend", "LendAll"])
async def test_grpcio_reads_the_fields_with_the_classes_of_protoc(method: str) -> None:
    messages, _ = generated()
    async with their_client() as stub:
        error = await _refusal(getattr(stub, method)(messages.Book(title="Solaris")))
    assert (error.code(), error.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "Solaris is lent until May.")
    (packed,) = rpc_status.from_call(error).details
    assert packed.type_url == "type.googleapis.com/lending.v1.Overdue"
    overdue = messages.Overdue()
    assert packed.Unpack(overdue)
    assert (overdue.title, overdue.until, list(overdue.queue)) == ("Solaris", "May", ["ada", "bob"])


async def test_grpcio_sees_an_error_that_no_contract_lists_with_its_fields() -> None:
    async with their_client() as stub:
        error = await _refusal(stub.Lend(generated()[0].Book(title="Ulysses")))
    assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "Ulysses is lost.")
    (packed,) = rpc_status.from_call(error).details
    assert (packed.type_url, packed.value) == ("type.googleapis.com/Lost", b"\x0a\x07Ulysses")


async def test_rest_answers_with_the_status_of_the_error_and_its_fields() -> None:
    async with serve(app, "127.0.0.1:0") as address, ClientSession() as session:
        async with session.get(f"http://{address}/books/Solaris") as answer:
            document = await answer.json(content_type="application/problem+json")
        async with session.get(f"http://{address}/books/Ulysses") as answer:
            lost = await answer.json(content_type="application/problem+json")
    assert document == {
        "type": "about:blank",
        "title": "Locked",
        "status": 423,
        "detail": "Solaris is lent until May.",
        "error": {
            "code": "failed_precondition",
            "message": "Solaris is lent until May.",
            "field": None,
            "reason": "OVERDUE",
            "type": "lending.v1.Overdue",
            "details": {"title": "Solaris", "until": "May", "queue": ["ada", "bob"]},
        },
        "request_id": document["request_id"],
        "details": [
            {
                "type": "lending.v1.Overdue",
                "value": "CgdTb2xhcmlzEgNNYXkaA2FkYRoDYm9i",
                "debug": {"title": "Solaris", "until": "May", "queue": ["ada", "bob"]},
            }
        ],
    }
    assert (lost["status"], lost["error"]["reason"], lost["error"]["details"]) == (404, "LOST", {"title": "Ulysses"})


async def test_connect_answers_with_the_canonical_status_and_the_fields_among_the_details() -> None:
    async with (
        serve(app, "127.0.0.1:0") as address,
        ClientSession() as session,
        session.post(f"http://{address}/lending.v1.Shelf/Lend", json={"title": "Solaris"}) as answer,
    ):
        assert answer.status == 400
        document = await answer.json()
    assert (document["code"], document["message"]) == ("failed_precondition", "Solaris is lent until May.")
    assert [detail["type"] for detail in document["details"]] == ["lending.v1.Overdue"]


@pytest.mark.parametrize("scheme", ["grpc", "http"])
@pytest.mark.parametrize(("title", "most"), [("long", 1), ("odd", 0)])
async def test_what_stands_beside_an_error_does_not_cost_it_its_class(scheme: str, title: str, most: int) -> None:
    async with serve(app, "127.0.0.1:0") as address, connect(Shelf, f"{scheme}://{address}") as shelf:
        with pytest.raises(Overdue) as caught:
            await shelf.lend(Book(title=title))
    assert (caught.value.title, caught.value.until) == (title, "May")
    assert len(caught.value.details) <= most


# We call them.


@asynccontextmanager
async def their_server(detail: bytes, code: str = "FAILED_PRECONDITION") -> AsyncIterator[str]:
    """grpcio, which fails with a detail of these bytes."""
    messages, stubs = generated()
    packed = any_pb2.Any(type_url="type.googleapis.com/lending.v1.Overdue", value=detail)
    status = status_pb2.Status(code=code_pb2.Code.Value(code), message="theirs", details=[packed])

    class Servicer(stubs.ShelfServicer):  # type: ignore[misc, name-defined]  # generated
        async def Lend(self, request: Any, context: Any) -> Any:
            await context.abort_with_status(rpc_status.to_status(status))

        async def LendAll(self, request: Any, context: Any) -> AsyncIterator[Any]:
            yield messages.Book(title=request.title)
            await context.abort_with_status(rpc_status.to_status(status))

    server = grpc.aio.server()
    stubs.add_ShelfServicer_to_server(Servicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"grpc://127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def _lend(shelf: Shelf) -> object:
    return await shelf.lend(Book(title="Solaris"))


async def _lend_all(shelf: Shelf) -> object:
    return [book async for book in shelf.lend_all(Book(title="Solaris"))]


@pytest.mark.parametrize("call", [_lend, _lend_all])
async def test_an_error_of_grpcio_is_raised_as_our_class(call: Callable[[Shelf], Awaitable[object]]) -> None:
    theirs = generated()[0].Overdue(title="Solaris", until="June")
    newer = theirs.SerializeToString() + b"\x4a\x02hi"  # a field 9 that we do not have
    async with their_server(newer) as address, connect(Shelf, address) as shelf:
        with pytest.raises(Overdue) as caught:
            await call(shelf)
    assert caught.value == Overdue("theirs", title="Solaris", until="June")
    assert caught.value.details == ()


@pytest.mark.parametrize("detail", [b"\xff\xff\xff", b"\x0a\x7f", b"\x0a\x02\xff\xfe", b"\x0b\x0b\x0b"])
async def test_malformed_fields_of_grpcio_leave_the_canonical_error(detail: bytes) -> None:
    async with their_server(detail) as address, connect(Shelf, address) as shelf:
        with pytest.raises(FailedPrecondition) as caught:
            await _lend(shelf)
    assert type(caught.value) is FailedPrecondition
    assert caught.value.message == "theirs"
    assert caught.value.details == (UnknownDetail("type.googleapis.com/lending.v1.Overdue", detail),)


async def test_fields_of_grpcio_under_another_code_leave_the_canonical_error() -> None:
    detail = generated()[0].Overdue(title="Solaris").SerializeToString()
    async with their_server(detail, "NOT_FOUND") as address, connect(Shelf, address) as shelf:
        with pytest.raises(NotFound) as caught:
            await _lend(shelf)
    assert type(caught.value) is NotFound


@asynccontextmanager
async def rest_by_hand(error: object, status: int = 423) -> AsyncIterator[str]:
    """A REST service of another framework, which answers with a problem document, or with nothing."""

    async def answer(request: web.Request) -> web.Response:
        if error is None:
            return web.Response(status=status)
        return web.Response(status=status, text=json.dumps({"error": error}), content_type="application/problem+json")

    application = web.Application()
    application.router.add_get("/books/{title}", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


async def test_fields_that_a_rest_service_wrote_by_hand_are_raised_as_our_class() -> None:
    fields = {"title": "Solaris", "until": "July", "shelf": 9}
    error = {"code": "failed_precondition", "message": "by hand", "type": "lending.v1.Overdue", "details": fields}
    async with rest_by_hand(error) as address, connect(Shelf, address) as shelf:
        with pytest.raises(Overdue) as caught:
            await _lend(shelf)
    assert caught.value == Overdue("by hand", title="Solaris", until="July")


@pytest.mark.parametrize(
    "more",
    [
        {"type": "lending.v1.Overdue", "details": {"title": 5}},
        {"type": "lending.v1.Overdue", "details": ["Solaris"]},
        {"type": "lending.v1.Unheard", "details": {"title": "Solaris", "until": ""}},
        {"type": 7, "details": {}},
        {"details": {"title": "Solaris", "until": ""}},
    ],
)
async def test_fields_that_make_no_sense_leave_the_canonical_error_of_a_rest_service(more: dict[str, object]) -> None:
    error = {"code": "failed_precondition", "message": "by hand", **more}
    async with rest_by_hand(error) as address, connect(Shelf, address) as shelf:
        with pytest.raises(FailedPrecondition) as caught:
            await _lend(shelf)
    assert type(caught.value) is FailedPrecondition
    assert (caught.value.message, caught.value.details) == ("by hand", ())


OF_OTHERS = {400: "invalid_argument", 404: "not_found", 409: "aborted", 412: "failed_precondition"}
OF_OTHERS |= {413: "resource_exhausted", 422: "invalid_argument", 423: "failed_precondition"}
"""What a status means alone that several codes may have."""


@pytest.mark.parametrize(
    ("code", "status"), [(code, status) for code, statuses in REST_STATUSES.items() for status in sorted(statuses)]
)
async def test_a_status_without_a_document_is_an_error_of_its_kind(code: str, status: int) -> None:
    async with rest_by_hand(None, status) as address, connect(Shelf, address) as shelf:
        with pytest.raises(CallError) as caught:
            await _lend(shelf)
    assert caught.value.code == OF_OTHERS.get(status, code)
