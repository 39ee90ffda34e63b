"""Interceptors are around every kind of call, on both sides, on every wire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from polywire import (
    App,
    CallDefaults,
    Contract,
    Intercepted,
    Interceptor,
    Message,
    NotFound,
    PermissionDenied,
    Retry,
    Server,
    Unavailable,
    calling,
    connect,
    current,
    rpc,
    serve,
    testing,
)
from polywire.channel import Channel, Endpoints
from polywire.client import client_for
from polywire.discovery import StaticResolver
from polywire.services import Services
from polywire.wire.local import LocalWire

WIRES = ("local", "grpc", "connect", "http")
SOON = 30.0


class Word(Message, package="tests.interceptor"):
    text: str


class Talk(Contract, package="tests.interceptor"):
    @rpc
    async def say(self, word: Word) -> Word:
        raise NotImplementedError

    @rpc(idempotent=True)
    async def ping(self) -> None:
        raise NotImplementedError

    @rpc
    async def join(self, words: AsyncIterator[Word]) -> Word:
        raise NotImplementedError

    @rpc
    def spell(self, word: Word) -> AsyncIterator[Word]:
        raise NotImplementedError

    @rpc
    def chat(self, words: AsyncIterator[Word]) -> AsyncIterator[Word]:
        raise NotImplementedError


class Speaker(Talk):
    def __init__(self) -> None:
        self.pings = 0
        self.failing = 0
        self.closed = asyncio.Event()

    async def say(self, word: Word) -> Word:
        if word.text == "nothing":
            raise NotFound("nothing to say")
        return Word(text=" ".join([word.text, *map(str, current().metadata.get_all("said-by"))]))

    async def ping(self) -> None:
        self.pings += 1
        if self.failing:
            self.failing -= 1
            raise Unavailable("not now")

    async def join(self, words: AsyncIterator[Word]) -> Word:
        return Word(text="".join([word.text async for word in words]))

    async def spell(self, word: Word) -> AsyncIterator[Word]:
        try:
            for letter in word.text:
                yield Word(text=letter)
            if word.text == "endless":
                await asyncio.Event().wait()
        finally:
            self.closed.set()

    async def chat(self, words: AsyncIterator[Word]) -> AsyncIterator[Word]:
        async for word in words:
            yield Word(text=word.text.upper())


class Notes(Interceptor):
    """Writes down what it sees, and puts its name around what is said."""

    def __init__(self, name: str, seen: list[str]) -> None:
        self.name = name
        self.seen = seen

    def note(self, call: Intercepted, what: str) -> None:
        self.seen.append(f"{self.name} {call.side} {call.method.rpartition('/')[2]} {what}")

    async def unary(self, call: Intercepted, request: Any, proceed: Callable[[Any], Awaitable[Any]]) -> Any:
        self.note(call, "begins")
        answer = await proceed(request)
        self.note(call, "ends")
        return Word(text=f"<{self.name}>{answer.text}</{self.name}>") if answer is not None else None

    async def collect(
        self, call: Intercepted, requests: AsyncIterator[Any], proceed: Callable[[AsyncIterator[Any]], Awaitable[Any]]
    ) -> Any:
        async def noted() -> AsyncIterator[Any]:
            async for request in requests:
                self.note(call, f"asks {request.text}")
                yield request

        return await proceed(noted())

    async def stream(
        self, call: Intercepted, request: Any, proceed: Callable[[Any], AsyncIterator[Any]]
    ) -> AsyncIterator[Any]:
        try:
            async for answer in proceed(request):
                self.note(call, f"answers {answer.text}")
                yield answer
        finally:
            self.note(call, "ends")


class Plain(Interceptor):
    """Overrides nothing."""


@asynccontextmanager
async def talking(
    wire: str, speaker: Talk, *, client: Sequence[Interceptor] = (), server: Sequence[Interceptor] = ()
) -> AsyncIterator[Talk]:
    defaults = CallDefaults(retry=Retry(base=0.0))
    if wire == "local":
        services = Services([speaker], interceptors=server)
        endpoints = Endpoints(StaticResolver(["local"]), lambda _: LocalWire(services))
        channel = Channel("talk", endpoints, defaults=defaults)
        try:
            yield client_for(Talk, channel, interceptors=client)
        finally:
            await channel.close()
            await services.finish(0)
        return
    served = Server([speaker], interceptors=server)
    address = await served.start("127.0.0.1:0")
    try:
        async with connect(Talk, address, wire=wire, interceptors=client, defaults=defaults) as talk:  # type: ignore[arg-type]  # a parameter, so a str
            yield talk
    finally:
        await served.close()


async def words(*texts: str) -> AsyncIterator[Word]:
    for text in texts:
        yield Word(text=text)


@pytest.mark.parametrize("wire", WIRES)
async def test_the_first_one_is_outermost_on_both_sides(wire: str) -> None:
    seen: list[str] = []
    around = [Notes("a", seen), Notes("b", seen)]
    async with talking(wire, Speaker(), client=around, server=around) as talk:
        assert await talk.say(Word(text="hello")) == Word(text="<a><b><a><b>hello</b></a></b></a>")
    assert seen == [
        "a client Say begins", "b client Say begins", "a server Say begins", "b server Say begins",
        "b server Say ends", "a server Say ends", "b client Say ends", "a client Say ends",
    ]  # fmt: skip


@pytest.mark.parametrize("wire", WIRES)
async def test_methods_that_take_and_answer_nothing(wire: str) -> None:
    seen: list[str] = []
    speaker = Speaker()
    async with talking(wire, speaker, client=[Notes("a", seen)], server=[Notes("b", seen)]) as talk:
        await talk.ping()
    assert speaker.pings == 1
    assert seen == ["a client Ping begins", "b server Ping begins", "b server Ping ends", "a client Ping ends"]


@pytest.mark.parametrize("wire", WIRES)
async def test_streams_of_requests_pass_through(wire: str) -> None:
    seen: list[str] = []
    async with talking(wire, Speaker(), client=[Notes("a", seen)], server=[Notes("b", seen)]) as talk:
        assert await talk.join(words("x", "y")) == Word(text="xy")
    assert sorted(seen) == [
        "a client Join asks x",
        "a client Join asks y",
        "b server Join asks x",
        "b server Join asks y",
    ]


@pytest.mark.parametrize("wire", WIRES)
async def test_streams_of_answers_pass_through(wire: str) -> None:
    seen: list[str] = []
    async with talking(wire, Speaker(), client=[Notes("a", seen)], server=[Notes("b", seen)]) as talk:
        assert [word.text async for word in talk.spell(Word(text="ok"))] == ["o", "k"]
        assert [word.text async for word in talk.chat(words("a", "b"))] == ["A", "B"]
    assert [line for line in seen if line.startswith("a")] == [
        "a client Spell answers o", "a client Spell answers k", "a client Spell ends",
        "a client Chat answers A", "a client Chat answers B", "a client Chat ends",
    ]  # fmt: skip
    assert [line for line in seen if line.startswith("b")] == [
        "b server Spell answers o", "b server Spell answers k", "b server Spell ends",
        "b server Chat answers A", "b server Chat answers B", "b server Chat ends",
    ]  # fmt: skip


@pytest.mark.parametrize("wire", WIRES)
async def test_one_that_overrides_nothing_changes_nothing(wire: str) -> None:
    async with talking(wire, Speaker(), client=[Plain()], server=[Plain()]) as talk:
        assert await talk.say(Word(text="hello")) == Word(text="hello")
        await talk.ping()
        assert await talk.join(words("x", "y")) == Word(text="xy")
        assert [word.text async for word in talk.spell(Word(text="ok"))] == ["o", "k"]
        assert [word.text async for word in talk.chat(words("a"))] == ["A"]
        with pytest.raises(NotFound) as caught:
            await talk.say(Word(text="nothing"))
        assert str(caught.value) == "nothing to say"


class Says(Interceptor):
    """Adds metadata to calls."""

    async def unary(self, call: Intercepted, request: Any, proceed: Callable[[Any], Awaitable[Any]]) -> Any:
        with calling(metadata={"said-by": call.target and "us"}):
            return await proceed(request)


@pytest.mark.parametrize("wire", WIRES)
async def test_metadata_is_set_by_calling(wire: str) -> None:
    async with talking(wire, Speaker(), client=[Says()]) as talk:
        assert await talk.say(Word(text="hello")) == Word(text="hello us")


class Guard(Interceptor):
    """Lets nobody through, and says what it knows of the call."""

    async def unary(self, call: Intercepted, request: Any, proceed: Callable[[Any], Awaitable[Any]]) -> Any:
        raise PermissionDenied(f"{call.rpc.attribute} of {current().method} with {request.text!r}")

    async def stream(
        self, call: Intercepted, request: Any, proceed: Callable[[Any], AsyncIterator[Any]]
    ) -> AsyncIterator[Any]:
        raise PermissionDenied("no streams")
        yield


@pytest.mark.parametrize("wire", WIRES)
async def test_a_server_s_may_answer_in_place_of_the_handler(wire: str) -> None:
    async with talking(wire, Speaker(), server=[Guard()]) as talk:
        with pytest.raises(PermissionDenied) as caught:
            await talk.say(Word(text="hello"))
        assert str(caught.value) == "say of tests.interceptor.Talk/Say with 'hello'"
        with pytest.raises(PermissionDenied) as caught:
            await anext(talk.spell(Word(text="hello")))
        assert str(caught.value) == "no streams"


class Broken(Interceptor):
    async def unary(self, call: Intercepted, request: Any, proceed: Callable[[Any], Awaitable[Any]]) -> Any:
        raise KeyError("a bug")


async def test_an_unknown_error_of_a_server_s_is_internal_and_of_a_client_s_stays_what_it_is() -> None:
    async with talking("grpc", Speaker(), server=[Broken()]) as talk:
        with pytest.raises(Exception, match="internal error, request id") as caught:
            await talk.say(Word(text="hello"))
        assert "a bug" not in str(caught.value)
    async with talking("grpc", Speaker(), client=[Broken()]) as talk:
        with pytest.raises(KeyError, match="a bug"):
            await talk.say(Word(text="hello"))


class Cache(Interceptor):
    """Answers what it knows without a call; asks again where it was told to."""

    def __init__(self) -> None:
        self.calls = 0

    async def unary(self, call: Intercepted, request: Any, proceed: Callable[[Any], Awaitable[Any]]) -> Any:
        self.calls += 1
        if request is not None and request.text == "known":
            return Word(text="from the cache")
        return await proceed(request)


async def test_a_client_s_is_around_all_attempts_and_may_make_none() -> None:
    speaker, cache = Speaker(), Cache()
    speaker.failing = 2
    async with talking("grpc", speaker, client=[cache]) as talk:
        await talk.ping()
        assert (cache.calls, speaker.pings) == (1, 3)
        assert await talk.say(Word(text="known")) == Word(text="from the cache")


async def test_what_is_not_of_the_contract_is_refused_behind_them() -> None:
    async with talking("grpc", Speaker(), client=[Plain()]) as talk:
        with pytest.raises(TypeError) as caught:
            await talk.say("hello")  # type: ignore[arg-type]  # wrong on purpose
    assert str(caught.value) == "tests.interceptor.Talk/Say was not called: it takes a Word, not a str."


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("how", ["left", "cancelled", "closed"])
async def test_a_stream_that_is_left_ends_the_handler(wire: str, how: str) -> None:
    speaker = Speaker()
    async with talking(wire, speaker, client=[Plain(), Plain()], server=[Plain()]) as talk:
        async with asyncio.timeout(SOON):
            if how == "left":
                async for _ in talk.spell(Word(text="endless")):
                    break
            elif how == "closed":
                async with aclosing(talk.spell(Word(text="endless"))) as answers:  # type: ignore[type-var]  # a client's stream has aclose
                    await anext(answers)
            else:

                async def all_of_it() -> None:
                    async for _ in talk.spell(Word(text="endless")):
                        begun.set()

                begun = asyncio.Event()
                task = asyncio.ensure_future(all_of_it())
                await begun.wait()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            await speaker.closed.wait()


class Forgetful(Interceptor):
    """Ends after the first answer, and closes nothing."""

    async def stream(
        self, call: Intercepted, request: Any, proceed: Callable[[Any], AsyncIterator[Any]]
    ) -> AsyncIterator[Any]:
        self.kept = proceed(request)
        yield await anext(self.kept)


@pytest.mark.parametrize("side", ["client", "server"])
async def test_what_it_opened_and_forgot_is_closed_after_it(side: str) -> None:
    speaker, around = Speaker(), [Forgetful()]
    client, server = (around, []) if side == "client" else ([], around)
    async with talking("grpc", speaker, client=client, server=server) as talk:
        async with asyncio.timeout(SOON):
            assert [word.text async for word in talk.spell(Word(text="endless"))] == ["e"]
            await speaker.closed.wait()


async def test_those_of_an_app() -> None:
    seen: list[str] = []

    class Front(Contract, package="tests.interceptor"):
        @rpc
        async def forward(self, word: Word) -> Word:
            raise NotImplementedError

    speaking = App("speaking", interceptors=[Notes("s", seen)])
    speaking.service(Speaker)
    fronting = App("fronting", interceptors=[Notes("f", seen)], client_interceptors=[Notes("c", seen)])

    @fronting.service
    class FrontService(Front):
        def __init__(self, talk: Talk) -> None:
            self.talk = talk

        async def forward(self, word: Word) -> Word:
            return await self.talk.say(word)

    async with testing.system(speaking, fronting) as system:
        answer = await system.client(Front).forward(Word(text="x"))
    assert answer == Word(text="<f><c><s>x</s></c></f>")

    async with (
        serve(speaking) as address,
        serve(fronting, targets={Talk: f"grpc://{address}"}) as front,
        connect(Front, front) as client,
    ):
        assert await client.forward(Word(text="y")) == Word(text="<f><c><s>y</s></c></f>")
