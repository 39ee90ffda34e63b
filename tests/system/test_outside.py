"""A bus by its addresses: programs that are part of no system, and apps that are served without a system file."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from polywire import (
    App,
    Contract,
    Event,
    Intercepted,
    Interceptor,
    Message,
    SetupError,
    connect,
    enqueue,
    open_bus,
    receipt,
    rpc,
    serve,
    subscribe,
    task,
)

SOON = 60.0


class Word(Message, package="tests.outside"):
    text: str


class Said(Event, topic="tests.outside"):
    text: str


class Echo(Contract, package="tests.outside"):
    @task
    async def later(self, word: Word) -> Word:
        raise NotImplementedError

    @task
    async def note(self, word: Word) -> None:
        raise NotImplementedError

    @rpc
    async def now(self, word: Word) -> Word:
        raise NotImplementedError


class Silent(Contract, package="tests.outside"):
    @rpc
    async def hush(self) -> None:
        raise NotImplementedError


class Heard:
    def __init__(self) -> None:
        self.words: list[str] = []
        self.more = asyncio.Event()

    def add(self, word: str) -> None:
        self.words.append(word)
        self.more.set()

    async def has(self, *words: str) -> None:
        async with asyncio.timeout(SOON):
            while self.words != list(words):
                self.more.clear()
                await self.more.wait()


def echo_app(heard: Heard) -> App:
    app = App("echo")

    @app.service
    class EchoService(Echo):
        async def later(self, word: Word) -> Word:
            return Word(text=word.text.upper())

        async def note(self, word: Word) -> None:
            heard.add(word.text)

        async def now(self, word: Word) -> Word:
            return word

    @app.service
    class Listener:
        @subscribe(Said, group="listener")
        async def listen(self, said: Said) -> None:
            heard.add(said.text)

    return app


def urls(directory: Path) -> dict[str, Any]:
    bus = f"sqlite:{directory / 'bus.db'}"
    return {"tasks": bus, "events": bus, "schedule": f"sqlite:{directory / 'schedule.db'}"}


async def test_what_is_sent_from_outside_is_done_by_an_app_that_is_served_alone(tmp_path: Path) -> None:
    heard = Heard()
    async with open_bus(Echo, **urls(tmp_path)) as bus:
        waiting = await enqueue(bus.client(Echo).later, Word(text="before anybody is there"))
        async with serve(echo_app(heard), **urls(tmp_path)) as address:
            assert await waiting.result(timeout=SOON) == Word(text="BEFORE ANYBODY IS THERE")
            again = receipt(bus.client(Echo).later, waiting.id)
            assert await again.result(timeout=SOON) == Word(text="BEFORE ANYBODY IS THERE")
            await bus.client(Echo).note(Word(text="noted"))
            await heard.has("noted")
            await bus.publish(Said(text="said"))
            await heard.has("noted", "said")
            async with connect(Echo, address) as echo:
                assert await echo.now(Word(text="now")) == Word(text="now")


async def test_what_it_refuses() -> None:
    async def refused(*contracts: type[Contract], **given: Any) -> str:
        with pytest.raises(SetupError) as caught:
            async with open_bus(*contracts, **given):
                pass
        return str(caught.value)

    assert await refused() == "The bus was not opened: it was given neither `tasks=` nor `events=`."
    assert await refused(Echo) == (
        "The bus was not opened: tasks are to be sent, and nothing says by what. Give it `tasks=`."
    )
    assert await refused(Silent, tasks="memory:") == (
        "tests.outside.Silent has no tasks to send. Call its rpcs by `connect`."
    )
    assert await refused(Echo, tasks="kafka://me:secret@k/") == (
        "tasks = 'kafka:...' was not opened: 'kafka' carries no tasks. "
        "Choose one of 'amqp:', 'amqps:', 'memory:', 'sqlite:'."
    )
    assert await refused(events="carrier-pigeon://me:secret@k/") == (
        "events = 'carrier-pigeon:...' was not opened: 'carrier-pigeon' is no backend. "
        "Choose one of 'amqp:', 'amqps:', 'kafka:', 'kafkas:', 'memory:', 'sqlite:'."
    )
    assert await refused(Echo, tasks="memory:", schedule="redis://me:secret@r/") == (
        "schedule = 'redis:...' was not opened. Schedules are kept in 'sqlite:PATH'."
    )
    async with open_bus(events="memory:") as bus:
        with pytest.raises(SetupError) as caught:
            bus.client(Echo)
    assert str(caught.value) == (
        "There is no client of tests.outside.Echo here: its queues were not looked for. "
        "Name it where the bus is opened, `open_bus(Echo, ...)`."
    )


class Around(Interceptor):
    async def unary(self, call: Intercepted, request: Any, proceed: Callable[[Any], Awaitable[Any]]) -> Any:
        return await proceed(request)


async def test_an_rpc_is_not_sent_as_a_task_with_an_interceptor_around_it_either() -> None:
    async with connect(Echo, "127.0.0.1:1", interceptors=[Around()]) as echo:
        with pytest.raises(TypeError) as caught:
            await enqueue(echo.now, Word(text="x"))
    assert str(caught.value) == (
        "tests.outside.Echo/Now was not sent: it is an rpc, which is called and awaited. "
        "Declare it with @task to have it done later."
    )
