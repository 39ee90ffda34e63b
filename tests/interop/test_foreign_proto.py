"""Contracts imported from the `.proto` files of others answer clients generated from the same files."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import aiohttp
import grpc
import pytest
from foreign_support import foreign, grpcio_channel, implemented
from google.protobuf import (
    duration_pb2,
    empty_pb2,
    field_mask_pb2,
    json_format,
    struct_pb2,
    timestamp_pb2,
    wrappers_pb2,
)
from google.protobuf.message import Message as Generated

from polywire import App, NotFound, connect, serve
from polywire.contract.wellknown import Duration, Empty, Struct


async def listed(answers: Any) -> list[Any]:
    return [answer async for answer in answers]


async def each(*messages: Any) -> AsyncIterator[Any]:
    for message in messages:
        yield message


# A guide along routes, with all four kinds of calls


def route_guide() -> App:
    ours = foreign("routeguide").ours

    async def get_feature(self: Any, point: Any) -> Any:
        if point.latitude < 0:
            raise NotFound("nothing there")
        return ours.Feature(name=f"at {point.latitude}", location=point)

    async def list_features(self: Any, rectangle: Any) -> AsyncIterator[Any]:
        for latitude in range(rectangle.lo.latitude, rectangle.hi.latitude):
            yield ours.Feature(name=str(latitude), location=ours.Point(latitude=latitude))

    async def record_route(self: Any, points: AsyncIterator[Any]) -> Any:
        count = 0
        async for _ in points:
            count += 1
        return ours.RouteSummary(point_count=count)

    async def route_chat(self: Any, notes: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for note in notes:
            yield ours.RouteNote(message=note.message.upper())

    return implemented(
        ours.RouteGuide,
        get_feature=get_feature,
        list_features=list_features,
        record_route=record_route,
        route_chat=route_chat,
    )


async def test_a_grpcio_client_of_the_same_file_calls_all_four_kinds() -> None:
    theirs = foreign("routeguide")
    point = theirs.messages.Point
    async with grpcio_channel(route_guide()) as channel:
        stub = theirs.stubs.RouteGuideStub(channel)
        feature = await stub.GetFeature(point(latitude=409146138, longitude=-746188906))
        assert feature == theirs.messages.Feature(
            name="at 409146138", location=point(latitude=409146138, longitude=-746188906)
        )
        rectangle = theirs.messages.Rectangle(lo=point(latitude=1), hi=point(latitude=4))
        assert [feature.name for feature in await listed(stub.ListFeatures(rectangle))] == ["1", "2", "3"]
        summary = await stub.RecordRoute(each(point(), point(latitude=1), point(latitude=2)))
        assert summary == theirs.messages.RouteSummary(point_count=3)
        notes = [theirs.messages.RouteNote(message=text) for text in ("hello", "again")]
        assert [note.message for note in await listed(stub.RouteChat(each(*notes)))] == ["HELLO", "AGAIN"]


async def test_its_errors_arrive_as_theirs() -> None:
    theirs = foreign("routeguide")
    async with grpcio_channel(route_guide()) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await theirs.stubs.RouteGuideStub(channel).GetFeature(theirs.messages.Point(latitude=-1))
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    assert refused.value.details() == "nothing there"


async def test_our_client_of_an_imported_contract_calls_a_grpcio_server() -> None:
    theirs, ours = foreign("routeguide"), foreign("routeguide").ours

    class Servicer(theirs.stubs.RouteGuideServicer):  # type: ignore[misc, name-defined]  # made at run time
        async def GetFeature(self, request: Any, context: Any) -> Any:
            return theirs.messages.Feature(name="theirs", location=request)

        async def ListFeatures(self, request: Any, context: Any) -> AsyncIterator[Any]:
            yield theirs.messages.Feature(name="one")
            yield theirs.messages.Feature(name="two")

        async def RecordRoute(self, request_iterator: Any, context: Any) -> Any:
            return theirs.messages.RouteSummary(point_count=len(await listed(request_iterator)))

        async def RouteChat(self, request_iterator: Any, context: Any) -> AsyncIterator[Any]:
            async for note in request_iterator:
                yield note

    server = grpc.aio.server()
    theirs.stubs.add_RouteGuideServicer_to_server(Servicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with connect(ours.RouteGuide, f"grpc://127.0.0.1:{port}") as guide:
            point = ours.Point(latitude=1, longitude=-2)
            assert await guide.get_feature(point) == ours.Feature(name="theirs", location=point)
            assert [feature.name for feature in await listed(guide.list_features(ours.Rectangle()))] == ["one", "two"]
            assert await guide.record_route(each(point, point)) == ours.RouteSummary(point_count=2)
            note = ours.RouteNote(location=point, message="hi")
            assert await listed(guide.route_chat(each(note))) == [note]
    finally:
        await server.stop(None)


# Everything that proto3 can say


def everything() -> App:
    ours = foreign("everything").ours

    async def same(self: Any, request: Any) -> Any:
        return request

    async def stream(self: Any, request: Any) -> AsyncIterator[Any]:
        yield request
        yield request

    async def last(self: Any, requests: AsyncIterator[Any]) -> Any:
        return (await listed(requests))[-1]

    async def through(self: Any, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for request in requests:
            yield request

    async def nothing(self: Any) -> None:
        return None

    async def nothings(self: Any, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
        async for _ in requests:
            yield Empty()

    async def set_time(self: Any, request: Any) -> Any:
        return Duration(seconds=request.seconds, nanos=request.nanos)

    async def search(self: Any, request: Any) -> Any:
        return Struct.of({"found": request.value, "more": [1, None, {"deep": True}]})

    app = implemented(
        ours.Everything,
        unary=same,
        server_stream=stream,
        client_stream=last,
        both=through,
        nothing=nothing,
        stream_of_nothing=nothings,
        get_url=same,
        get_url_=same,
        import_=same,
        lowercase=same,
        get=same,
        set_time=set_time,
        search=search,
    )
    names = ("scalars", "optionals", "lists", "maps", "well_known", "choices", "names", "tree")
    echo: dict[str, Any] = {f"echo_{name}": same for name in names}
    app.service(type("EchoService", (ours.Echo,), {"__module__": __name__, **echo}))
    return app


async def test_every_method_of_the_largest_file_answers_a_grpcio_client() -> None:
    theirs = foreign("everything")
    thing = theirs.messages.Scalars(a_sint64=-5, a_fixed64=2**64 - 1, level=-1)
    async with grpcio_channel(everything()) as channel:
        stub = theirs.stubs.EverythingStub(channel)
        for name in ("Unary", "GetURL", "GetUrl", "Import", "lowercase", "Get"):
            assert await getattr(stub, name)(thing) == thing
        assert await listed(stub.ServerStream(thing)) == [thing, thing]
        assert await stub.ClientStream(each(theirs.messages.Scalars(), thing)) == thing
        assert await listed(stub.Both(each(thing, thing))) == [thing, thing]
        empty = empty_pb2.Empty()
        assert await stub.Nothing(empty) == empty
        assert await listed(stub.StreamOfNothing(each(empty, empty))) == [empty, empty]
        time = timestamp_pb2.Timestamp(seconds=-62135596801, nanos=999999999)
        assert await stub.SetTime(time) == duration_pb2.Duration(seconds=-62135596801, nanos=999999999)
        found = await stub.Search(wrappers_pb2.StringValue(value="tea"))
        assert json_format.MessageToDict(found) == {"found": "tea", "more": [1.0, None, {"deep": True}]}


def samples() -> list[tuple[str, Generated]]:
    """Messages that make use of everything, by the method that echoes them."""
    m = foreign("everything").messages
    at = timestamp_pb2.Timestamp(seconds=1_700_000_000, nanos=123_456_000)
    took = duration_pb2.Duration()
    took.FromTimedelta(timedelta(days=-3, microseconds=1))
    struct = struct_pb2.Struct()
    struct.update({"a": [1, "two", None, {"three": 3.5}], "b": {}})
    scalars = m.Scalars(
        a_double=-0.0,
        a_float=1.5,
        an_int32=-(2**31),
        an_int64=-(2**63),
        a_uint32=2**32 - 1,
        a_uint64=2**64 - 1,
        a_sint32=-(2**31),
        a_sint64=2**63 - 1,
        a_fixed32=1,
        a_fixed64=2**63,
        a_sfixed32=-1,
        a_sfixed64=-(2**63),
        a_bool=True,
        a_string="✓ \0 text",
        some_bytes=b"\0\xff",
        mood=m.MOOD_SAD,
        level=m.DEEP,
    )
    known = m.WellKnown(
        at=at,
        took=took,
        object=struct,
        value=struct_pb2.Value(null_value=struct_pb2.NULL_VALUE),
        list=struct_pb2.ListValue(values=[struct_pb2.Value(bool_value=True)]),
        mask=field_mask_pb2.FieldMask(paths=["a.b", "c_d"]),
        nothing=empty_pb2.Empty(),
        a_double=wrappers_pb2.DoubleValue(value=1.25),
        a_float=wrappers_pb2.FloatValue(value=0),
        an_int64=wrappers_pb2.Int64Value(value=-(2**63)),
        a_uint64=wrappers_pb2.UInt64Value(value=2**64 - 1),
        an_int32=wrappers_pb2.Int32Value(value=0),
        a_uint32=wrappers_pb2.UInt32Value(value=7),
        a_bool=wrappers_pb2.BoolValue(value=False),
        a_string=wrappers_pb2.StringValue(value=""),
        some_bytes=wrappers_pb2.BytesValue(value=b"\xfb\xff"),
    )
    choices = [
        m.Choices(card=m.Choices.Card(number="1"), first=m.Choices.Card(), only=m.Choices.Cash(), after="x"),
        m.Choices(cash=m.Choices.Cash(), second=m.Choices.Card(number="2"), figure=0),
        m.Choices(typed=m.Choices.Typed(type="t"), other_card=m.Choices.Card()),
        m.Choices(iban="", other_cash=m.Choices.Cash()),
        m.Choices(token=b""),
        m.Choices(voucher=-1),
        m.Choices(mood=m.MOOD_UNSPECIFIED),
        m.Choices(later=at),
        m.Choices(free=struct),
        m.Choices(nothing=empty_pb2.Empty()),
        m.Choices(tree=m.Tree(label="leaf")),
    ]
    names = m.Names(self="me", camelCase="c", _private="p", at=at, lower=m.lower(lower="l"), type="t", list=["a"])
    names.other_in_json, names.text_in_json = "other", "text"
    setattr(names, "class", "first")
    setattr(names, "None", "nothing")
    tree = m.Tree(label="root", left=m.Tree(right=m.Tree(label="deep")), more=[m.Tree(), m.Tree(label="b")])
    tree.named["x"].label = "named"
    maps = m.Maps(
        texts={"a": "b"},
        int32s={-1: 5},
        uint64s={2**64 - 1: True},
        sint32s={-7: b"\1"},
        fixed64s={0: m.MOOD_HAPPY},
        sfixed32s={-3: m.Scalars(a_bool=True)},
        bools={True: "yes"},
        durations={"d": took},
    )
    lists = m.Lists(
        doubles=[0.0, -1.5],
        int64s=[2**63 - 1, -1],
        sint32s=[-1, 0],
        fixed32s=[7],
        bools=[True, False],
        strings=["", "x"],
        moods=[m.MOOD_SAD, m.MOOD_UNSPECIFIED],
        scalars=[scalars],
        timestamps=[at],
        wrapped=[wrappers_pb2.StringValue(value="w")],
    )
    optionals = m.Optionals(a_double=0, an_int64=0, a_bool=False, a_string="", some_bytes=b"", mood=0)
    return [
        ("EchoScalars", scalars),
        ("EchoOptionals", optionals),
        ("EchoOptionals", m.Optionals()),
        ("EchoLists", lists),
        ("EchoMaps", maps),
        ("EchoWellKnown", known),
        *(("EchoChoices", choice) for choice in choices),
        ("EchoChoices", m.Choices()),
        ("EchoNames", names),
        ("EchoTree", tree),
    ]


async def test_messages_of_every_type_come_back_as_they_were_sent() -> None:
    async with grpcio_channel(everything()) as channel:
        stub = foreign("everything").stubs.EchoStub(channel)
        for method, message in samples():
            assert await getattr(stub, method)(message) == message


async def test_messages_of_every_type_come_back_as_protojson_says() -> None:
    async with serve(everything(), "127.0.0.1:0") as address, aiohttp.ClientSession(f"http://{address}") as session:
        for method, message in samples():
            if method == "EchoMaps":
                message.ClearField("bools")  # a list of entries in our JSON, as no JSON library knows such keys
            async with session.post(
                f"/sample.everything.v1.Echo/{method}",
                data=json_format.MessageToJson(message),
                headers={"content-type": "application/json"},
            ) as answer:
                text = await answer.text()
                assert answer.status == 200, text
            assert json_format.Parse(text, type(message)()) == message


async def test_an_any_comes_back_as_it_was_sent() -> None:
    m = foreign("everything").messages
    known = m.WellKnown()
    known.anything.Pack(m.Tree(label="packed"))
    async with grpcio_channel(everything()) as channel:
        answer = await foreign("everything").stubs.EchoStub(channel).EchoWellKnown(known)
    unpacked = m.Tree()
    assert answer.anything.Unpack(unpacked)
    assert unpacked.label == "packed"


# REST routes from google.api.http


def publisher() -> App:
    ours = foreign("pubsub").ours
    topics: dict[str, Any] = {}

    async def create_topic(self: Any, topic: Any) -> Any:
        topics[topic.name] = topic
        return topic

    async def get_topic(self: Any, request: Any) -> Any:
        if request.topic not in topics:
            raise NotFound(f"no {request.topic}")
        return topics[request.topic]

    async def update_topic(self: Any, request: Any) -> Any:
        topics[request.topic.name] = request.topic
        return request.topic

    async def publish(self: Any, request: Any) -> Any:
        return ours.PublishResponse(message_ids=[f"{request.topic}#{i}" for i, _ in enumerate(request.messages)])

    async def list_topics(self: Any, request: Any) -> Any:
        found = [topic for name, topic in topics.items() if name.startswith(request.project)]
        return ours.ListTopicsResponse(topics=found[: request.page_size], next_page_token=request.page_token)

    async def delete_topic(self: Any, request: Any) -> None:
        topics.pop(request.topic, None)

    return implemented(
        ours.Publisher,
        create_topic=create_topic,
        get_topic=get_topic,
        update_topic=update_topic,
        publish=publish,
        list_topics=list_topics,
        delete_topic=delete_topic,
    )


async def test_the_routes_of_google_api_http_answer() -> None:
    async with serve(publisher(), "127.0.0.1:0") as address, aiohttp.ClientSession(f"http://{address}") as session:

        async def ask(verb: str, path: str, body: object = None) -> tuple[int, Any]:
            async with session.request(verb, path, json=body) as answer:
                text = await answer.text()
                return answer.status, json.loads(text) if text else None

        name = "projects/p/topics/t"
        status, topic = await ask("PUT", f"/v1/{name}", {"labels": {"a": "b"}})
        assert (status, topic["name"], topic["labels"]) == (200, name, {"a": "b"})
        assert (await ask("GET", f"/v1/{name}"))[1] == topic
        assert (await ask("GET", "/v1/projects/p/topics/other"))[0] == 404
        status, listed = await ask("GET", "/v1/projects/p/topics?page_size=5&page_token=next")
        assert (status, [found["name"] for found in listed["topics"]], listed["next_page_token"]) == (
            200,
            [name],
            "next",
        )
        status, published = await ask("POST", f"/v1/{name}:publish", {"messages": [{"data": "eA=="}, {}]})
        assert (status, published) == (200, {"message_ids": [f"{name}#0", f"{name}#1"]})
        status, changed = await ask("PATCH", f"/v1/{name}", {"topic": {"kms_key_name": "k"}, "update_mask": {}})
        assert (status, changed["name"], changed["kms_key_name"]) == (200, name, "k")
        assert await ask("POST", f"/v1/{name}:delete", {}) == (204, None)
        assert (await ask("GET", f"/v1/{name}"))[0] == 404
        assert await ask("DELETE", f"/v1beta/{name}") == (204, None)


# Without a package


async def test_a_file_without_a_package_is_served_too() -> None:
    theirs, ours = foreign("helloworld"), foreign("helloworld").ours

    async def say_hello(self: Any, request: Any) -> Any:
        return ours.HelloReply(message=f"Hello {request.name}")

    async def ping(self: Any, request: Any) -> Any:
        return request

    app = implemented(ours.Greeter, say_hello=say_hello, ping=ping)
    async with grpcio_channel(app) as channel:
        stub = theirs.stubs.GreeterStub(channel)
        assert (await stub.SayHello(theirs.messages.HelloRequest(name="you"))).message == "Hello you"
        assert await stub.Ping(theirs.messages.Empty()) == theirs.messages.Empty()
