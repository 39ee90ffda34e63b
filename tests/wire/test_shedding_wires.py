"""Who is let in where there is more to do than a service can: the same over every wire, and over real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import ExitStack, aclosing
from typing import Any, cast

import pytest
from shedding_wires_support import (
    LONG,
    ONCE,
    WIRES,
    Places,
    PlacesService,
    Site,
    Word,
    first_of,
    fixed,
    site,
    until,
    words,
)

from polywire import Priority, calling
from polywire.channel import CallDefaults, Channel, Endpoints
from polywire.client import client_for
from polywire.connecting import channel_to
from polywire.context import Call, current
from polywire.contract import Retry
from polywire.contract.policies import Shedding
from polywire.discovery import StaticResolver
from polywire.errors import (
    CallError,
    Cancelled,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unauthenticated,
)
from polywire.net.http2_protocol import open_http2
from polywire.net.stream import Field, Head, Headers, StreamClosed
from polywire.policy.shedding import Backlog
from polywire.services import Services
from polywire.testing import ManualClock, settle
from polywire.testing.wires import Tokens
from polywire.wire.framing import framed
from polywire.wire.grpc.health import Health, HealthCheckRequest, ServingStatus
from polywire.wire.local import LocalWire

NOT_STARTED = "was not started: the service has as many calls under way as it can answer in time. Try again in "


KINDS: dict[str, Callable[[Places], Coroutine[Any, Any, Word]]] = {
    "hold": lambda client: client.hold(Word(text="too many")),
    "listen": lambda client: first_of(client.listen(Word(text="too many"))),
    "gather": lambda client: client.gather(words("too", "many")),
    "talk": lambda client: first_of(client.talk(words("too", "many"))),
}


# ---- above the level ----


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wire", WIRES)
async def test_above_the_level_a_call_is_turned_away_before_its_handler_runs(wire: str, kind: str) -> None:
    async with site(wire, fixed(2)) as found:
        held = await found.filled(2)
        with pytest.raises(ResourceExhausted) as told:
            await KINDS[kind](found.client())
        method = f"places.v1.Places/{kind.capitalize()}"
        assert told.value.message.startswith(f"{method} {NOT_STARTED}")
        assert told.value.message.endswith(" s.")
        assert told.value.method == method
        # Trying again is switched off here, and so left to whoever is above.
        assert told.value.retry_after is not None
        assert 0.04 < told.value.retry_after < 1.5
        assert sorted(found.service.started) == ["fill 0", "fill 1"]
        assert found.limiter.shed == 1
        # What was turned away has taken nothing, and is counted as what it was.
        assert (found.limiter.in_flight, found.limiter.streams) == (2, 0)
        assert found.services.counters[method].codes.get("resource_exhausted") == 1
        found.service.gate.set()
        assert {word.text for word in await asyncio.gather(*held)} == {"fill 0", "fill 1"}
        await found.empty()
        answer = await KINDS[kind](found.client())
        assert answer.text in ("too many", "too")
        await found.empty()


@pytest.mark.parametrize("wire", WIRES)
async def test_below_its_level_a_service_never_turns_a_call_away(wire: str) -> None:
    """The default, and a client that makes as many calls at once as its own bulkhead lets through."""
    async with site(wire, None) as found:
        client = found.client()
        for _ in range(3):
            tasks = await found.filled(256, client)
            found.service.gate.set()
            await asyncio.gather(*tasks)
            found.service.gate.clear()
            found.service.started.clear()
        assert found.limiter.shed == 0
        await found.empty()


@pytest.mark.parametrize("wire", WIRES)
async def test_switched_off_all_are_let_in(wire: str) -> None:
    async with site(wire, Shedding(enabled=False)) as found:
        assert found.services.limiter is None
        found.service.gate.set()
        client = found.client()
        await asyncio.gather(*(client.hold(Word(text=str(number))) for number in range(400)))
        assert len(found.service.started) == 400


@pytest.mark.parametrize("wire", WIRES)
async def test_who_was_turned_away_comes_again_when_it_was_told_to(wire: str) -> None:
    """Although the method is not idempotent: it is certain that no handler saw the call."""
    async with site(wire, fixed(1, pushback=0.01)) as found:
        held = await found.filled(1)
        retrying = CallDefaults(timeout=LONG, retry=Retry(attempts=5, base=0.01, cap=0.02))
        later = asyncio.create_task(found.client(defaults=retrying).hold(Word(text="later")))
        await until(lambda: found.limiter.shed >= 1)
        found.service.gate.set()
        await asyncio.gather(*held)
        assert (await later).text == "later"
        assert found.service.started == ["fill 0", "later"]


@pytest.mark.parametrize("kind", ["listen", "gather", "talk"])
@pytest.mark.parametrize("wire", WIRES)
async def test_a_stream_that_was_turned_away_is_not_opened_again_by_itself(wire: str, kind: str) -> None:
    """It is open before that is known, and its requests cannot be sent twice: whoever made it is told when to come."""
    async with site(wire, fixed(1, pushback=0.01)) as found:
        held = await found.filled(1)
        retrying = CallDefaults(timeout=LONG, retry=Retry(attempts=5, base=0.01, cap=0.02))
        with pytest.raises(ResourceExhausted) as told:
            await KINDS[kind](found.client(defaults=retrying))
        assert found.limiter.shed == 1
        assert told.value.retry_after is not None
        assert 0.004 <= told.value.retry_after < 0.15
        found.service.gate.set()
        await asyncio.gather(*held)


async def test_one_limit_holds_for_all_wires_of_a_service() -> None:
    async with site("grpc", fixed(2)) as found:
        held = await found.filled(2)
        for wire in ("connect", "http"):
            channel = channel_to(found.address, wire=wire, defaults=ONCE)
            with pytest.raises(ResourceExhausted):
                await client_for(Places, channel).hold(Word(text="too many"))
            await channel.close()
        assert found.limiter.shed == 2
        found.service.gate.set()
        await asyncio.gather(*held)


# ---- as it is written ----


async def http(address: str, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the answer to *request*, over HTTP/1.1."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        async with asyncio.timeout(LONG):
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
            body = await reader.readexactly(int(headers["content-length"]))
        return int(head[0].split()[1]), headers, body
    finally:
        writer.close()
        await writer.wait_closed()


def posted(path: str, body: bytes = b'{"text":"x"}') -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@pytest.mark.parametrize("path", ["/places/hold", "/places/listen/x"])
async def test_over_rest_it_is_a_429_with_a_problem_document_and_retry_after(path: str) -> None:
    async with site("http", fixed(1, pushback=1.5)) as found:
        held = await found.filled(1)
        request = posted(path) if path == "/places/hold" else f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode()
        status, headers, body = await http(found.address, request)
        assert status == 429
        assert headers["content-type"] == "application/problem+json"
        assert 1 <= int(headers["retry-after"]) <= 23
        assert 700 <= int(headers["grpc-retry-pushback-ms"]) <= 22_500
        told = json.loads(body)
        assert told["status"] == 429
        assert told["error"]["code"] == "resource_exhausted"
        assert NOT_STARTED in told["error"]["message"]
        assert found.service.started == ["fill 0"]
        found.service.gate.set()
        await asyncio.gather(*held)


async def test_a_stream_of_requests_over_rest_is_turned_away_before_it_is_read() -> None:
    async with site("http", fixed(1)) as found:
        held = await found.filled(1)
        body = b'{"text":"a"}\n{"text":"b"}\n'
        request = posted("/places/gather", body).replace(b"application/json", b"application/x-ndjson")
        status, headers, _ = await http(found.address, request)
        assert (status, headers["retry-after"]) == (429, "1")
        assert found.service.started == ["fill 0"]
        found.service.gate.set()
        await asyncio.gather(*held)


async def test_over_connect_it_is_a_429_with_its_own_error_body_and_pushback() -> None:
    async with site("connect", fixed(1)) as found:
        held = await found.filled(1)
        status, headers, body = await http(found.address, posted("/places.v1.Places/Hold"))
        assert status == 429
        assert 40 <= int(headers["grpc-retry-pushback-ms"]) <= 1500
        told = json.loads(body)
        assert told["code"] == "resource_exhausted"
        assert NOT_STARTED in told["message"]
        found.service.gate.set()
        await asyncio.gather(*held)


@pytest.mark.parametrize("method", ["Listen", "Gather"])
async def test_over_connect_a_stream_is_told_so_at_its_end_after_a_200(method: str) -> None:
    async with site("connect", fixed(1)) as found:
        held = await found.filled(1)
        body = framed(b'{"text":"x"}')
        request = posted(f"/places.v1.Places/{method}", body).replace(b"application/json", b"application/connect+json")
        host, _, port = found.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        async with asyncio.timeout(LONG):
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            rest = await reader.readuntil(b"\r\n0\r\n\r\n")
        writer.close()
        await writer.wait_closed()
        assert head.startswith(b"HTTP/1.1 200 ")
        assert b"transfer-encoding: chunked" in head.lower()
        told = json.loads(rest[rest.index(b"{") : rest.rindex(b"}") + 1])
        assert told["error"]["code"] == "resource_exhausted"
        assert NOT_STARTED in told["error"]["message"]
        (pushback,) = told["metadata"]["grpc-retry-pushback-ms"]
        assert 40 <= int(pushback) <= 1500
        found.service.gate.set()
        await asyncio.gather(*held)


class Reply:
    """A receiver that keeps what came."""

    def __init__(self) -> None:
        self.fields: dict[bytes, bytes] = {}
        self.done = asyncio.Event()

    def headers_received(self, head: Head, tail: tuple[Field, ...]) -> None:
        self.fields |= dict(head.fields + tail)

    def data_received(self, data: bytes) -> None:
        """No body is expected."""

    def ended(self, trailers: tuple[Field, ...]) -> None:
        self.fields |= dict(trailers)
        self.done.set()

    def failed(self, error: StreamClosed) -> None:
        self.done.set()


def grpc_headers(method: str) -> Headers:
    path = f"/places.v1.Places/{method}".encode()
    special = [(b":method", b"POST"), (b":scheme", b"http"), (b":authority", b"a"), (b":path", path)]
    return Headers([*special, (b"content-type", b"application/grpc")])


@pytest.mark.parametrize("method", ["Hold", "Listen", "Gather", "Talk"])
async def test_over_grpc_it_is_resource_exhausted_with_pushback_in_the_trailers(method: str) -> None:
    async with site("grpc", fixed(1)) as found:
        held = await found.filled(1)
        host, _, port = found.address.rpartition(":")
        connection = await open_http2(host, int(port))
        reply = Reply()
        connection.open(grpc_headers(method), (), reply, body=framed(b""))
        await asyncio.wait_for(reply.done.wait(), LONG)
        assert reply.fields[b"grpc-status"] == b"8"
        assert 40 <= int(reply.fields[b"grpc-retry-pushback-ms"]) <= 1500
        connection.close()
        found.service.gate.set()
        await asyncio.gather(*held)


# ---- classes ----


@pytest.mark.parametrize("wire", WIRES)
async def test_the_lower_class_is_turned_away_first(wire: str) -> None:
    async with site(wire, Shedding(limit=10, adaptive=False)) as found:
        client = found.client()
        held = await found.filled(5)
        held.append(asyncio.create_task(client.sweep(Word(text="the sixth"))))
        await until(lambda: found.limiter.in_flight == 6)
        with pytest.raises(ResourceExhausted):
            await client.sweep(Word(text="quick"))
        for number in range(3):
            held.append(asyncio.create_task(client.hold(Word(text=f"more {number}"))))
        await until(lambda: found.limiter.in_flight == 9)
        with pytest.raises(ResourceExhausted):
            await client.hold(Word(text="quick"))
        held.append(asyncio.create_task(client.pay(Word(text="the last place"))))
        await until(lambda: found.limiter.in_flight == 10)
        with pytest.raises(ResourceExhausted):
            await client.pay(Word(text="quick"))
        assert found.limiter.shed == 3
        found.service.gate.set()
        await asyncio.gather(*held)
        assert "quick" not in found.service.started


@pytest.mark.parametrize("wire", WIRES)
async def test_a_caller_can_stand_back_and_cannot_push_to_the_front(wire: str) -> None:
    async with site(wire, Shedding(limit=10, adaptive=False)) as found:
        client = found.client()
        held = await found.filled(6)
        with calling(priority="background"), pytest.raises(ResourceExhausted):
            await client.hold(Word(text="quick"))
        held += [asyncio.create_task(client.hold(Word(text=f"more {number}"))) for number in range(3)]
        await until(lambda: found.limiter.in_flight == 9)
        with calling(priority="normal"), pytest.raises(ResourceExhausted):
            await client.pay(Word(text="quick"))
        with calling(metadata={"polywire-priority": "critical"}), pytest.raises(ResourceExhausted):
            await client.hold(Word(text="quick"))
        found.service.gate.set()
        await asyncio.gather(*held)
        assert len(found.service.started) == 9


@pytest.mark.parametrize("wire", WIRES)
async def test_what_is_done_for_a_call_of_the_background_is_of_the_background_too(wire: str) -> None:
    class Relay(PlacesService):
        behind: Places

        async def hold(self, word: Word) -> Word:
            return await self.behind.hold(word)

        async def sweep(self, word: Word) -> Word:
            return await self.behind.hold(word)

    async with site(wire, Shedding(limit=10, adaptive=False)) as found:
        relay = Relay()
        relay.behind = found.client()
        services = Services([relay])
        channel = Channel("relay", Endpoints(StaticResolver(["local"]), lambda _: LocalWire(services)), defaults=ONCE)
        client = client_for(Places, channel)
        held = await found.filled(6)
        with pytest.raises(ResourceExhausted):
            await client.sweep(Word(text="quick"))
        with calling(priority="background"), pytest.raises(ResourceExhausted):
            await client.hold(Word(text="quick"))
        assert (await client.hold(Word(text="quick"))).text == "quick"
        found.service.gate.set()
        await asyncio.gather(*held)
        await channel.close()
        await services.finish(0.0)


class Chain(PlacesService):
    """Each handler notes what its call may claim, and the first one calls another, as one that matters."""

    behind: Places

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    async def hold(self, word: Word) -> Word:
        self.seen.append(current().priority)
        if word.text == "first":
            with calling(priority="normal"):
                await self.behind.pay(Word(text="second"))
        elif word.text == "silent first":
            await self.behind.pay(Word(text="second"))
        return word


@pytest.mark.parametrize("wire", WIRES)
async def test_what_a_call_may_claim_travels_and_never_rises_on_its_way(wire: str) -> None:
    async with site(wire, None, service=(chain := Chain())) as found:
        client = chain.behind = found.client()

        async def seen(call: Callable[[Word], Coroutine[Any, Any, Word]], text: str) -> list[int]:
            chain.seen.clear()
            await call(Word(text=text))
            return list(chain.seen)

        assert await seen(client.pay, "silent first") == [Priority.CRITICAL, Priority.CRITICAL]
        assert await seen(client.hold, "first") == [Priority.CRITICAL, Priority.NORMAL]
        assert await seen(client.sweep, "first") == [Priority.BACKGROUND, Priority.BACKGROUND]
        with calling(priority="background"):
            assert await seen(client.hold, "first") == [Priority.BACKGROUND, Priority.BACKGROUND]
        with calling(priority="normal"):
            assert await seen(client.pay, "silent first") == [Priority.NORMAL, Priority.NORMAL]


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize(
    "lines",
    [("background", "normal"), ("normal", "background"), ("normal, background",), ("loud,background", "critical")],
    ids=str,
)
async def test_of_a_priority_that_is_said_twice_the_lowest_counts(wire: str, lines: tuple[str, ...]) -> None:
    async with site(wire, None, service=(chain := Chain())) as found:
        client = found.client()
        with ExitStack() as said:
            for line in lines:
                said.enter_context(calling(metadata={"polywire-priority": line}))
            await client.pay(Word(text="last"))
        assert chain.seen == [Priority.BACKGROUND]


def test_there_are_two_ways_to_stand_back() -> None:
    with (
        pytest.raises(ValueError, match="can be taken back to 'normal' or 'background'") as told,
        calling(
            priority="critical"  # type: ignore[arg-type]  # that is the point
        ),
    ):
        pass
    assert str(told.value) == "calling(priority='critical'): a call can be taken back to 'normal' or 'background'"


# ---- health ----


@pytest.mark.parametrize("wire", ["grpc", "connect"])
async def test_health_answers_while_there_is_no_place(wire: str) -> None:
    async with site(wire, fixed(1)) as found:
        held = await found.filled(1)
        health = client_for(Health, found.channel())
        for _ in range(5):
            assert (await health.check(HealthCheckRequest())).status is ServingStatus.SERVING
        async with aclosing(health.watch(HealthCheckRequest())) as statuses:  # type: ignore[type-var]  # a client's stream has aclose
            assert (await anext(statuses)).status is ServingStatus.SERVING
        for path in ("/livez", "/readyz", "/healthz"):
            status, _, _ = await http(found.address, f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
            assert status == 200
        assert found.limiter.shed == 0
        assert (found.limiter.in_flight, found.limiter.streams) == (1, 0)
        found.service.gate.set()
        await asyncio.gather(*held)


# ---- places come back ----


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wire", WIRES)
async def test_a_cancelled_call_gives_its_place_back(wire: str, kind: str) -> None:
    async def slowly() -> AsyncIterator[Word]:
        await asyncio.Event().wait()
        yield Word()

    begin: dict[str, Callable[[Places], Coroutine[Any, Any, Any]]] = {
        **KINDS,
        "gather": lambda client: client.gather(slowly()),
        "talk": lambda client: first_of(client.talk(slowly())),
    }
    async with site(wire, fixed(1)) as found:
        client = found.client()
        for _ in range(3):
            started = len(found.service.started)
            task = asyncio.create_task(begin[kind](client))
            await until(lambda before=started: len(found.service.started) > before)  # type: ignore[misc]  # bound at once
            assert found.limiter.in_flight == 1
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await found.empty()
        assert found.limiter.shed == 0


@pytest.mark.parametrize("wire", ["grpc", "connect", "http"])
async def test_a_client_that_disconnects_gives_its_places_back(wire: str) -> None:
    async with site(wire, fixed(8)) as found:
        channel = found.channel()
        client = client_for(Places, channel)
        tasks = await found.filled(4, client)
        listening = [asyncio.create_task(first_of(client.listen(Word(text="fill")))) for _ in range(3)]
        await until(lambda: found.service.started.count("fill") == 3)
        assert (found.limiter.in_flight, found.limiter.streams) == (7, 3)
        await channel.close()
        for error in await asyncio.gather(*tasks, *listening, return_exceptions=True):
            assert isinstance(error, CallError)
        await found.empty()


@pytest.mark.parametrize("method", ["Hold", "Listen", "Gather", "Talk"])
async def test_a_call_that_is_taken_back_in_the_same_breath_gives_its_place_back(method: str) -> None:
    """Request and RST_STREAM arrive together: the task is cancelled before it has taken its first step."""
    async with site("grpc", fixed(1)) as found:
        host, _, port = found.address.rpartition(":")
        connection = await open_http2(host, int(port))
        for _ in range(3):
            stream = connection.open(grpc_headers(method), (), Reply(), body=framed(b""))
            stream.reset(8)
            # A call that comes after it on the same connection, and so is taken in after it.
            reply = Reply()
            connection.open(grpc_headers("Sweep"), (), reply, body=framed(b"\n\x05quick"))
            await asyncio.wait_for(reply.done.wait(), LONG)
            await found.empty()
        connection.close()


@pytest.mark.parametrize("wire", WIRES)
async def test_calls_that_fail_give_their_places_back(wire: str) -> None:
    async with site(wire, fixed(1)) as found:
        client = found.client()
        for text, kind in [("fail", NotFound), ("bug", Internal)] * 2:
            with pytest.raises(kind):
                await client.hold(Word(text=text))
            await found.empty()
        with pytest.raises(NotFound):
            await first_of(client.listen(Word(text="fail")))
        await found.empty()
        assert found.limiter.shed == 0


@pytest.mark.parametrize("wire", WIRES)
async def test_calls_that_are_stopped_at_their_deadline_give_their_places_back(wire: str) -> None:
    async with site(wire, fixed(9)) as found:
        client = found.client()
        for _ in range(2):
            with calling(timeout=0.02), pytest.raises(DeadlineExceeded):
                await client.hold(Word(text="until its deadline"))
            with calling(timeout=0.02), pytest.raises(DeadlineExceeded):
                await first_of(client.listen(Word(text="until its deadline")))
        assert (await client.hold(Word(text="quick"))).text == "quick"
        await found.empty()


@pytest.mark.parametrize("wire", WIRES)
async def test_who_may_not_call_takes_no_place_for_long_and_does_not_look_like_a_quick_call(wire: str) -> None:
    async with site(wire, fixed(1, window_calls=1, window=0.001), authenticator=Tokens()) as found:
        for _ in range(20):
            with pytest.raises(Unauthenticated):
                await found.client(token="wrong").hold(Word(text="quick"))
            await found.empty()
        assert found.limiter.usual == 0.0
        for _ in range(20):
            assert (await found.client(token="sredro").hold(Word(text="quick"))).text == "quick"
        assert found.limiter.usual > 0.0


async def test_a_request_that_cannot_be_read_gives_its_place_back() -> None:
    async with site("http", fixed(1)) as found:
        for path in ("/places/hold", "/places.v1.Places/Hold"):
            for _ in range(3):
                status, _, _ = await http(found.address, posted(path, b'{"text": 7}'))
                assert status in (400, 422)
                await found.empty()
        assert found.limiter.shed == 0


async def test_a_local_stream_that_ends_without_a_request_gives_its_place_back() -> None:
    async with site("local", fixed(1)) as found:
        _, stream, _ = await found.channel().open(_rpc("listen"))
        stream.end_requests()
        with pytest.raises(InvalidArgument):
            await stream.receive()
        await found.empty()
        _, stream, _ = await found.channel().open(_rpc("listen"))
        assert (found.limiter.in_flight, found.limiter.streams) == (1, 1)
        stream.cancel()
        await found.empty()


def _rpc(attribute: str) -> Any:
    from polywire.contract import service_of

    return service_of(Places).rpcs[attribute]


# ---- streams ----


@pytest.mark.parametrize("wire", WIRES)
async def test_a_stream_that_has_opened_leaves_its_place_to_others(wire: str) -> None:
    """However many listen for hours: calls are still answered."""
    async with site(wire, fixed(1)) as found:
        client = found.client()
        open_streams = []
        for number in range(1, 6):
            answers = client.listen(Word(text="now"))
            assert (await anext(answers)).text == "now"
            open_streams.append(answers)
            assert (found.limiter.in_flight, found.limiter.streams) == (0, number)
        assert (await client.hold(Word(text="quick"))).text == "quick"
        for answers in open_streams:
            await answers.aclose()  # type: ignore[attr-defined]  # a client's stream has aclose
        await found.empty()
        assert found.limiter.shed == 0


@pytest.mark.parametrize("wire", WIRES)
async def test_there_are_not_more_streams_than_allowed(wire: str) -> None:
    async with site(wire, fixed(5, streams=2)) as found:
        client = found.client()
        one, two = client.listen(Word(text="now")), client.listen(Word(text="now"))
        await anext(one)
        await anext(two)
        with pytest.raises(ResourceExhausted) as told:
            await first_of(client.listen(Word(text="now")))
        assert told.value.message.startswith(f"places.v1.Places/Listen {NOT_STARTED}")
        assert found.service.started == ["now", "now"]
        assert (await client.hold(Word(text="quick"))).text == "quick"
        await one.aclose()  # type: ignore[attr-defined]  # a client's stream has aclose
        await until(lambda: found.limiter.streams == 1)
        assert (await first_of(client.listen(Word(text="now")))).text == "now"
        await two.aclose()  # type: ignore[attr-defined]  # a client's stream has aclose
        await found.empty()


async def test_a_stream_with_nothing_to_tell_has_opened_after_a_second() -> None:
    clock = ManualClock()
    async with site("local", fixed(1), clock=clock) as found:
        client = found.client()
        listening = asyncio.create_task(first_of(client.listen(Word(text="silent"))))
        await until(lambda: found.service.started == ["silent"])
        assert (found.limiter.in_flight, found.limiter.streams) == (1, 1)
        await clock.advance(0.9)
        assert found.limiter.in_flight == 1
        await clock.advance(0.2)
        assert (found.limiter.in_flight, found.limiter.streams) == (0, 1)
        assert (await client.hold(Word(text="quick"))).text == "quick"
        found.service.gate.set()
        assert (await listening).text == "silent"
        await found.empty()


# ---- what is learnt ----


class Ends:
    """A limiter that notes how calls ended."""

    def __init__(self, found: Site) -> None:
        self.seen: list[tuple[str, float]] = []
        limiter = found.limiter
        answered, cut_short = limiter.answered, limiter.cut_short
        given_up, left = limiter.given_up, limiter.left

        def note(how: str, then: Callable[..., None]) -> Callable[..., None]:
            def noted(*times: float) -> None:
                self.seen.append((how, round(times[1], 6) if times else 0.0))
                then(*times)

            return noted

        limiter.answered = note("answered", answered)  # type: ignore[method-assign]  # replaced for the test
        limiter.cut_short = note("cut short", cut_short)  # type: ignore[method-assign]  # replaced for the test
        limiter.given_up = note("given up", given_up)  # type: ignore[method-assign]  # replaced for the test
        limiter.left = note("left", left)  # type: ignore[method-assign]  # replaced for the test


async def test_how_a_call_ended_and_what_it_took_is_told() -> None:
    clock = ManualClock()
    async with site("local", fixed(9), clock=clock, authenticator=Tokens()) as found:
        ends = Ends(found)
        client = found.client(token="sredro")

        async def ended(text: str, after: float, *, cancel: bool = False) -> None:
            task = asyncio.create_task(client.hold(Word(text=text)))
            await settle()
            await clock.advance(after)
            if cancel:
                task.cancel()
            elif after:
                found.service.gate.set()
            await asyncio.gather(task, return_exceptions=True)
            found.service.gate.clear()
            await found.empty()

        await ended("one", 0.25)
        assert ends.seen.pop() == ("answered", 0.25)
        await ended("fail", 0.0)
        assert ends.seen.pop() == ("answered", 0.0)
        await ended("bug", 0.0)
        assert ends.seen.pop() == ("answered", 0.0)
        await ended("given up", 0.5, cancel=True)
        assert ends.seen[0] == ("given up", 0.5)
        ends.seen.clear()
        with pytest.raises(Unauthenticated):
            await found.client(token="wrong").hold(Word())
        assert ends.seen == [("left", 0.0)]


async def test_the_end_of_a_call_at_its_deadline_says_that_it_would_have_taken_longer() -> None:
    clock = ManualClock()
    services = Services([PlacesService()], shedding=fixed(3), clock=clock)
    assert services.limiter is not None
    found = Site("local", PlacesService(), services, "")
    ends = Ends(found)
    handler = services.handlers["/places.v1.Places/hold"]

    async def run(call: Call) -> None:
        assert services.take_place(handler, call) is None
        task = asyncio.create_task(services.unary(handler, call, lambda _: Word(text="x"), b"", lambda word: word))
        call._task = task
        await clock.advance(2.0)
        with pytest.raises(DeadlineExceeded):
            await task

    await run(Call("places.v1.Places/Hold", clock.monotonic() + 1.5, clock=clock))
    # The slots of deadlines are 4 ms wide.
    assert ends.seen[0][0] == "cut short"
    assert ends.seen[0][1] == pytest.approx(1.5, abs=0.005)
    await found.empty()


@pytest.mark.parametrize(
    ("timeout", "unread", "after", "expected"),
    [
        (1.5, 0.0, 1.4, "cut short"),
        (0.25, 0.0, 0.23, "cut short"),
        (1.5, 0.0, 1.2, "given up"),
        (None, 0.0, 1.4, "given up"),
        # It waited in a socket: its caller's time is up when half of what we know of is left.
        (1.5, 0.75, 0.75, "cut short"),
        (1.5, 0.75, 0.5, "given up"),
    ],
)
async def test_a_caller_who_cancels_just_before_the_deadline_stops_at_it(
    timeout: float | None, unread: float, after: float, expected: str
) -> None:
    """Its clock began sooner, so that it often gets there first; other cancels may be for any reason."""
    clock = ManualClock()
    services = Services([PlacesService()], shedding=fixed(3), clock=clock)
    found = Site("local", PlacesService(), services, "")
    ends = Ends(found)
    handler = services.handlers["/places.v1.Places/hold"]
    call = Call("places.v1.Places/Hold", None if timeout is None else clock.monotonic() + timeout, clock=clock)
    assert services.take_place(handler, call) is None
    assert call._arrived is not None
    call._arrived -= unread  # as `Backlog` has it
    task = asyncio.create_task(services.unary(handler, call, lambda _: Word(text="x"), b"", lambda word: word))
    call._task = task
    await clock.advance(after)
    services.cancel(call)
    with pytest.raises(Cancelled):
        await task
    assert ends.seen[0] == (expected, unread + after)
    await found.empty()


@pytest.mark.parametrize(("unread", "expected"), [(1.4, ("cut short", 1.4)), (1.2, ("left", 0.0))])
async def test_a_caller_who_had_gone_when_the_call_was_read_stopped_at_its_deadline_if_that_was_near(
    unread: float, expected: tuple[str, float]
) -> None:
    """Both the call and its end were read at once, after a turn of the loop that took as long as the call may."""
    clock = ManualClock()
    services = Services([PlacesService()], shedding=fixed(3), clock=clock)
    found = Site("local", PlacesService(), services, "")
    ends = Ends(found)
    call = Call("places.v1.Places/Hold", clock.monotonic() + 1.5, clock=clock)
    assert services.take_place(services.handlers["/places.v1.Places/hold"], call) is None
    assert call._arrived is not None
    call._arrived -= unread
    services.cancel(call)
    assert ends.seen[0] == expected
    await found.empty()


async def test_the_first_call_after_a_busy_turn_has_waited_for_it_though_no_other_is_under_way() -> None:
    clock = ManualClock()
    services = Services([PlacesService()], shedding=fixed(3), clock=clock)
    used = 0.0
    services._backlog = Backlog(lambda: used)
    limiter = services.limiter
    assert limiter is not None
    handler = services.handlers["/places.v1.Places/hold"]
    for busy in (0.0, 0.5, 0.0):
        used += busy
        await clock.advance(0.6)
        call = Call("places.v1.Places/Hold", None, clock=clock)
        assert services.take_place(handler, call) is None
        assert limiter.in_flight == 1
        assert clock.monotonic() - cast("float", call._arrived) == pytest.approx(busy)
        assert limiter._unread == pytest.approx(0.5 if used else 0.0)
        services._backlog.turned = True  # as when its task begins
        services.cancel(call)
        assert limiter.in_flight == 0


async def test_a_call_whose_time_ran_out_before_it_could_be_started_counts_as_cut_short() -> None:
    clock = ManualClock()
    services = Services([PlacesService()], shedding=fixed(3), clock=clock)
    found = Site("local", PlacesService(), services, "")
    ends = Ends(found)
    handler = services.handlers["/places.v1.Places/hold"]
    for left, expected in ((0.5, ("cut short", 1.0)), (-0.5, ("left", 0.0))):
        call = Call("places.v1.Places/Hold", clock.monotonic() + left, clock=clock)
        assert services.take_place(handler, call) is None
        await clock.advance(1.0)
        with pytest.raises(DeadlineExceeded):
            await services.unary(handler, call, lambda _: Word(), b"", lambda word: word)
        assert ends.seen[0] == expected
        ends.seen.clear()
        await found.empty()


# ---- what is told further up ----


@pytest.mark.parametrize("wire", WIRES)
async def test_a_handler_that_was_turned_away_elsewhere_is_not_called_again_for_that(wire: str) -> None:
    """That the other service did not begin does not mean that this one did not."""

    class Relay(PlacesService):
        behind: Places

        async def hold(self, word: Word) -> Word:
            self.started.append(word.text)
            return await self.behind.hold(word)

    async with site(wire, fixed(1)) as found:
        relay = Relay()
        relay.behind = found.client(defaults=CallDefaults(timeout=0.5, retry=Retry(attempts=3)))
        services = Services([relay])
        channel = Channel("relay", Endpoints(StaticResolver(["local"]), lambda _: LocalWire(services)))
        held = await found.filled(1)
        with pytest.raises(ResourceExhausted) as told:
            await client_for(Places, channel).hold(Word(text="once"))
        assert told.value.retry_after == -1.0
        assert relay.started == ["once"]
        found.service.gate.set()
        await asyncio.gather(*held)
        await channel.close()
        await services.finish(0.0)
