"""Routes that could not work are refused when the server is made, by name."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from polywire.contract import Contract, Message, Route, get, post, put, rpc
from polywire.errors import SetupError
from polywire.services import Services
from polywire.wire.http import HttpApplication


class Thing(Message):
    name: str
    tags: list[str] = []
    other: Other | None = None


class Other(Message):
    size: int = 0


def refusal(*routes: Route, returns: type[Message] | None = Thing) -> str:
    """What is said about an rpc with these routes."""

    class Things(Contract, package="t.v1", prefix="/v1"):
        @rpc(*routes)
        async def use(self, thing: Thing) -> Any:
            raise NotImplementedError

    Things.use.__annotations__["return"] = returns
    return refused(Things())


def refused(*services: object) -> str:
    with pytest.raises(SetupError) as caught:
        HttpApplication(Services(services))
    return str(caught.value)


async def test_two_rpcs_with_the_same_route_are_both_named() -> None:
    class First(Contract, package="t.v1"):
        @rpc(get("/things/{name}"))
        async def one(self, thing: Thing) -> Thing:
            raise NotImplementedError

    class Second(Contract, package="t.v1"):
        @rpc(get("/things/{other.size}"))
        async def two(self, thing: Thing) -> Thing:
            raise NotImplementedError

    assert refused(First(), Second()) == (
        "t.v1.Second/Two: GET /things/{other.size} cannot be served: t.v1.First/One: GET /things/{name} takes the same "
        "requests. Change one of the paths, or give one contract a prefix of its own, `prefix='/api/v2'`."
    )


async def test_versions_stand_side_by_side_with_prefixes_of_their_own() -> None:
    class First(Contract, package="t.v1", prefix="/api/v1"):
        @rpc(get("/things/{name}"))
        async def one(self, thing: Thing) -> Thing:
            raise NotImplementedError

    class Second(Contract, package="t.v2", prefix="/api/v2"):
        @rpc(get("/things/{name}"))
        async def one(self, thing: Thing) -> Thing:
            raise NotImplementedError

    HttpApplication(Services([First(), Second()]))


async def test_a_path_names_fields_that_exist_and_are_single_values() -> None:
    assert refusal(get("/things/{nome}")) == (
        "t.v1.Things/Use: GET /v1/things/{nome} cannot be served: its path names 'nome', which Thing does not have. "
        "Its fields: name, tags, other."
    )
    assert refusal(get("/things/{tags}")) == (
        "t.v1.Things/Use: GET /v1/things/{tags} cannot be served: 'tags' in its path is no single value; only scalars "
        "can be there."
    )
    assert refusal(get("/things/{other}")) == (
        "t.v1.Things/Use: GET /v1/things/{other} cannot be served: 'other' in its path is no single value; only "
        "scalars "
        "can be there."
    )
    assert refusal(get("/things/{name.length}")) == (
        "t.v1.Things/Use: GET /v1/things/{name.length} cannot be served: its path names 'name.length', which Thing "
        "does "
        "not have. Its fields: name, tags, other."
    )


async def test_a_path_is_made_of_whole_segments() -> None:
    assert refusal(get("/things/x{name}")) == (
        "The REST path '/v1/things/x{name}' cannot be served: a parameter has to be a whole segment between slashes, "
        "as "
        "in /orders/{order_id}/items."
    )
    assert refusal(get("/things/{name=**}/more")) == (
        "The REST path '/v1/things/{name=**}/more' cannot be served: `**` has to be its last segment."
    )


async def test_body_and_headers_name_fields_that_exist() -> None:
    assert refusal(put("/things", body="thing")) == (
        "t.v1.Things/Use: PUT /v1/things cannot be served: its body names 'thing', which Thing does not have. "
        "Its fields: name, tags, other."
    )
    assert refusal(get("/things", headers={"tenant": "X-Tenant"})) == (
        "t.v1.Things/Use: GET /v1/things cannot be served: its headers names 'tenant', which Thing does not have. "
        "Its fields: name, tags, other."
    )


async def test_what_is_said_of_the_answer_fits_it() -> None:
    where = "t.v1.Things/Use: POST /v1/things cannot be served: "
    assert refusal(post("/things", location="/things/{id}")) == (
        where + "its location names 'id', which Thing does not have. Its fields: name, tags, other."
    )
    assert refusal(post("/things", location="things")) == (
        where + "location='things' is no path. Write it like '/orders/{order_id}'."
    )
    assert refusal(post("/things", location="/things/{name}"), returns=None) == (
        where + "its location names 'name', but the method returns nothing."
    )
    assert refusal(post("/things", response_headers={"tags": "X-Tags"})) == (
        where + "its response_headers names 'tags', which is no single value."
    )
    assert refusal(post("/things", response_headers={"name": "X Name"})) == (
        where + "response_headers names 'X Name', which no header can be called."
    )
    assert refusal(post("/things", status=404)) == (
        where + "status=404 is no success. Take one from 200 to 299, and raise errors for others."
    )
    assert refusal(post("/things", status=204)) == where + "status=204 has no body, but the method returns a message."


async def test_a_conversation_has_no_route() -> None:
    class Talk(Contract, package="t.v1"):
        @rpc(post("/talk"))
        def talk(self, things: AsyncIterator[Thing]) -> AsyncIterator[Thing]:
            raise NotImplementedError

    assert refused(Talk()) == (
        "t.v1.Talk/Talk: POST /talk cannot be served: REST has no conversation in both directions. Leave the route "
        "out; "
        "the method can be called over gRPC and Connect."
    )


async def test_streamed_requests_come_from_the_body_alone() -> None:
    class Sum(Contract, package="t.v1"):
        @rpc(post("/sum/{name}"))
        async def sum(self, things: AsyncIterator[Thing]) -> Thing:
            raise NotImplementedError

    assert refused(Sum()) == (
        "t.v1.Sum/Sum: POST /sum/{name} cannot be served: its requests are the lines of the body, so nothing can come "
        "from the path or headers."
    )


async def test_a_plain_path_does_not_take_the_place_of_a_route() -> None:
    class Live(Contract, package="t.v1"):
        @rpc(get("/livez"))
        async def live(self) -> Thing:
            raise NotImplementedError

    with pytest.raises(SetupError) as caught:
        HttpApplication(Services([Live()]), plain={"/livez": lambda: (200, "text/plain", b"ok")})
    assert str(caught.value) == (
        "'/livez' cannot be served: t.v1.Live/Live: GET /livez has that path already. Choose another one."
    )
    with pytest.raises(SetupError) as caught:
        HttpApplication(Services([]), plain={"/{x}": lambda: (200, "text/plain", b"ok")})
    assert str(caught.value) == ("'/{x}' cannot be served: a plain path begins with '/' and is matched as it is.")
