"""Faults between two services: each kind, on unary calls and streams, over every wire and real sockets."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from shedding_wires_support import LONG, ONCE, WIRES, Places, Site, Word, first_of, site, until, words

from polywire import calling
from polywire.channel import CallDefaults, Channel, Endpoints
from polywire.client import client_for
from polywire.connecting import open_endpoint
from polywire.contract import Retry
from polywire.contract.policies import Ejection
from polywire.discovery import StaticResolver
from polywire.errors import Aborted, CallError, DeadlineExceeded, PermissionDenied, Unavailable
from polywire.policy.evidence import Evidence
from polywire.policy.faults import Fault, WrongFault
from polywire.policy.outlier import Outliers
from polywire.system.faults import Faults
from polywire.testing import ManualClock
from polywire.wire.faulty import FaultyWire
from polywire.wire.local import LocalWire
from polywire.wire.seam import EndpointWire


class Trouble:
    """A service that is served, a client of it, and what goes wrong in between."""

    def __init__(self, found: Site, channel: Channel, faults: Faults) -> None:
        self.site = found
        self.started = found.service.started
        self.channel = channel
        self.client = client_for(Places, channel)
        self._faults = faults

    def on(self, **effects: Any) -> None:
        self._faults.switch([Fault(caller="orders", target="places", **effects)])

    def off(self) -> None:
        self._faults.switch([])


@asynccontextmanager
async def trouble(wire: str, defaults: CallDefaults = ONCE) -> AsyncIterator[Trouble]:
    async with site(wire, None) as found:
        channel = found.channel(defaults=defaults)
        faults = Faults("orders")
        faults.mind("places", channel.endpoints)
        found.service.gate.set()
        yield Trouble(found, channel, faults)
        await until(lambda: all(one.in_flight == 0 for one in channel.endpoints.current))


KINDS: dict[str, Callable[[Places], Coroutine[Any, Any, Word]]] = {
    "hold": lambda client: client.hold(Word(text="x")),
    "listen": lambda client: first_of(client.listen(Word(text="x"))),
    "gather": lambda client: client.gather(words("x")),
    "talk": lambda client: first_of(client.talk(words("x"))),
}
every_wire = pytest.mark.parametrize("wire", WIRES)
every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
@every_wire
async def test_a_delay_holds_a_call_up(wire: str, kind: str) -> None:
    async with trouble(wire) as found:
        await KINDS[kind](found.client)
        found.on(delay=0.05)
        began = time.monotonic()
        assert (await KINDS[kind](found.client)).text == "x"
        assert time.monotonic() - began >= 0.05


@every_kind
@every_wire
async def test_a_delay_ends_at_the_deadline_and_nothing_is_sent_then(wire: str, kind: str) -> None:
    async with trouble(wire) as found:
        found.on(delay=1000.0)
        with calling(timeout=0.05), pytest.raises(DeadlineExceeded):
            await KINDS[kind](found.client)
        assert found.started == []


@every_wire
async def test_what_a_delay_took_is_not_there_for_the_handler(wire: str) -> None:
    async with trouble(wire) as found:
        found.on(delay=0.2)
        left: list[float | None] = []
        hold = found.site.service.hold

        async def noted(word: Word) -> Word:
            from polywire import current

            left.append(current().time_left())
            return await hold(word)

        found.site.services.handlers["/places.v1.Places/hold"].function = noted
        with calling(timeout=LONG):
            await found.client.hold(Word(text="x"))
        assert left[0] is not None
        assert left[0] <= LONG - 0.2


@every_kind
@every_wire
async def test_an_error_takes_the_place_of_the_call(wire: str, kind: str) -> None:
    async with trouble(wire) as found:
        found.on(error="permission_denied")
        with pytest.raises(PermissionDenied) as told:
            await KINDS[kind](found.client)
        method = f"places.v1.Places/{kind.capitalize()}"
        assert str(told.value) == f"{method} failed: a fault is switched on from 'orders' to 'places'."
        assert told.value.method == method
        assert found.started == []
        found.off()
        assert (await KINDS[kind](found.client)).text == "x"


@every_kind
@every_wire
async def test_a_dropped_request_is_heard_by_nobody(wire: str, kind: str) -> None:
    async with trouble(wire) as found:
        found.on(drop="request")
        with calling(timeout=0.05), pytest.raises(DeadlineExceeded):
            await KINDS[kind](found.client)
        assert found.started == []


async def made_and_never_heard_of(wire: str, kind: str, call: Callable[[Places], Coroutine[Any, Any, Any]]) -> None:
    """*call*, which is one of that *kind*, gets to the handler, and its caller hears nothing until the deadline."""
    async with trouble(wire) as found:
        await KINDS[kind](found.client)  # so that the connection is there
        found.started.clear()
        found.on(drop="answer")
        while not found.started:  # on a busy machine the time may be up before it arrives
            with calling(timeout=0.3), pytest.raises(DeadlineExceeded):
                await call(found.client)


@every_kind
@every_wire
async def test_a_dropped_answer_is_that_of_a_call_that_was_made(wire: str, kind: str) -> None:
    await made_and_never_heard_of(wire, kind, KINDS[kind])


ENDINGS: dict[str, tuple[str, Callable[[Places], Coroutine[Any, Any, Any]]]] = {
    "an error": ("hold", lambda client: client.hold(Word(text="fail"))),
    "an error of a stream": ("listen", lambda client: first_of(client.listen(Word(text="fail")))),
    "a stream without answers": ("talk", lambda client: _all_of(client.talk(words()))),
}


async def _all_of(answers: AsyncIterator[Word]) -> list[Word]:
    return [word async for word in answers]


@pytest.mark.parametrize("ending", ENDINGS)
@every_wire
async def test_where_answers_are_dropped_no_error_and_no_end_is_heard_either(wire: str, ending: str) -> None:
    kind, call = ENDINGS[ending]
    await made_and_never_heard_of(wire, kind, call)


@pytest.mark.parametrize("kind", ["hold", "talk"])
@pytest.mark.parametrize("wire", ["grpc", "connect", "http"])
async def test_where_answers_are_dropped_a_call_that_was_never_sent_fails_as_ever(wire: str, kind: str) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # and does not listen
        endpoints = Endpoints(
            StaticResolver([f"127.0.0.1:{silent.getsockname()[1]}"]),
            lambda address: open_endpoint(wire, None, address),  # type: ignore[arg-type]  # one of the three
        )
        Faults("orders", [Fault(target="places", drop="answer")]).mind("places", endpoints)
        channel = Channel("places", endpoints, defaults=ONCE)
        with pytest.raises(Unavailable) as told:
            await KINDS[kind](client_for(Places, channel))
        assert told.value.reached == "no"
        await channel.close()


@every_kind
@every_wire
async def test_a_partition_is_unavailable_and_certainly_not_reached(wire: str, kind: str) -> None:
    async with trouble(wire) as found:
        found.on(partition=True)
        with pytest.raises(Unavailable) as told:
            await KINDS[kind](found.client)
        address = found.channel.endpoints.current[0].address
        assert str(told.value) == f"{address} was not reached: a fault keeps 'orders' and 'places' apart."
        assert told.value.reached == "no"
        assert found.started == []
        found.off()
        assert (await KINDS[kind](found.client)).text == "x"


@every_kind
@every_wire
async def test_who_waits_for_ready_waits_until_a_partition_is_over(wire: str, kind: str) -> None:
    async with trouble(wire) as found:
        await KINDS[kind](found.client)
        found.started.clear()
        found.on(partition=True)
        with calling(wait_for_ready=True, timeout=0.05), pytest.raises(DeadlineExceeded):
            await KINDS[kind](found.client)
        with calling(wait_for_ready=True):
            waiting = asyncio.create_task(KINDS[kind](found.client))
        await until(lambda: found.channel.endpoints.current[0].in_flight == 1)
        assert found.started == []
        found.off()
        assert (await waiting).text == "x"


@every_wire
async def test_calls_share_a_narrow_link_in_both_directions(wire: str) -> None:
    async with trouble(wire) as found:
        found.on(bandwidth=50_000)
        long = Word(text="x" * 1000)
        began = time.monotonic()
        await asyncio.gather(*(found.client.hold(long) for _ in range(4)))
        # 4 kB there, and 4 kB back.
        assert time.monotonic() - began >= 0.16
        with calling(timeout=0.05), pytest.raises(DeadlineExceeded):
            await found.client.hold(Word(text="x" * 100_000))


@every_wire
async def test_streams_share_a_narrow_link(wire: str) -> None:
    async with trouble(wire) as found:
        found.on(bandwidth=50_000)
        long = "x" * 1000
        began = time.monotonic()
        assert len((await found.client.gather(words(*[long] * 5))).text) == 5004
        assert time.monotonic() - began >= 0.2
        began = time.monotonic()
        answers = [answer.text async for answer in found.client.talk(words(*[long] * 5))]
        assert answers == [long] * 5
        assert time.monotonic() - began >= 0.2
        with calling(timeout=0.1), pytest.raises(DeadlineExceeded):
            await found.client.gather(words("x" * 100_000))


@every_wire
async def test_nothing_is_around_a_wire_while_no_fault_is_on_its_edge(wire: str) -> None:
    async with trouble(wire) as found:
        await found.client.hold(Word(text="x"))
        (before,) = found.channel.endpoints.current
        found.on(delay=0.001)
        (around,) = found.channel.endpoints.current
        assert isinstance(around, FaultyWire)
        assert around.inner is before
        found.on(error="internal")
        assert found.channel.endpoints.current[0] is around
        found.off()
        assert found.channel.endpoints.current[0] is before
        found._faults.switch(
            [Fault(target="inventory", delay=1000.0), Fault(caller="gateway", target="places", delay=9)]
        )
        assert found.channel.endpoints.current[0] is before
        assert (await found.client.hold(Word(text="x"))).text == "x"


@every_wire
async def test_a_fault_may_be_there_before_the_first_call(wire: str) -> None:
    async with trouble(wire) as found:
        found.on(error="internal")
        assert not list(found.channel.endpoints.current)
        with pytest.raises(CallError):
            await found.client.hold(Word(text="x"))
        assert isinstance(found.channel.endpoints.current[0], FaultyWire)


@every_wire
async def test_only_the_method_and_the_endpoint_that_are_named_are_met(wire: str) -> None:
    async with trouble(wire) as found:
        for name in ("hold", "Hold"):
            found.on(error="internal", method=f"places.v1.Places/{name}")
            with pytest.raises(CallError):
                await found.client.hold(Word(text="x"))
            assert (await found.client.sweep(Word(text="x"))).text == "x"
        found.on(error="internal", endpoint="10.0.0.1:80")
        assert (await found.client.hold(Word(text="x"))).text == "x"
        found.on(error="internal", endpoint=found.channel.endpoints.current[0].address)
        with pytest.raises(CallError):
            await found.client.hold(Word(text="x"))


@every_kind
@every_wire
async def test_a_call_that_is_held_up_can_be_cancelled(wire: str, kind: str) -> None:
    async with trouble(wire) as found:
        for effects in ({"delay": 1000.0}, {"drop": "request"}, {"bandwidth": 0.001}):
            found.on(**effects)
            task = asyncio.create_task(KINDS[kind](found.client))
            await until(lambda: bool(found.channel.endpoints.current))
            await until(lambda: found.channel.endpoints.current[0].in_flight == 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: found.channel.endpoints.current[0].in_flight == 0)


@every_wire
async def test_a_share_of_the_calls_is_met(wire: str) -> None:
    async with site(wire, None) as found:
        found.service.gate.set()
        channel = found.channel()
        faults = Faults("orders", [Fault(target="places", error="aborted", share=0.5)], clock=ManualClock())
        faults.mind("places", channel.endpoints)
        client = client_for(Places, channel)
        failed = 0
        for _ in range(60):
            with suppress(Aborted):
                await client.hold(Word(text="x"))
                failed -= 1
            failed += 1
        assert 15 < failed < 45
        assert len(found.service.started) == 60 - failed


@every_wire
async def test_an_endpoint_that_is_left_out_stays_out_when_faults_are_switched(wire: str) -> None:
    async with site(wire, None) as found:
        endpoints = Endpoints(
            StaticResolver(["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"]),
            lambda address: LocalWire(found.services) if wire == "local" else open_endpoint(wire, None, address),  # type: ignore[arg-type]  # one of the three
        )
        faults = Faults("orders")
        faults.mind("places", endpoints)
        sick, *_ = before = await endpoints.find()
        outliers: Outliers[EndpointWire] = Outliers(Ejection(consecutive_failures=1))
        assert outliers.rotation(before, 0.0) is before
        outliers.ended(sick, 0.0, 0.0, Evidence.SICK)
        for switched in ([Fault(target="places", delay=1.0)], [], [Fault(target="places", partition=True)]):
            left = outliers.rotation(endpoints.current, 0.5)
            assert [id(one) for one in left] == [id(one) for one in endpoints.current[1:]]
            tried = [left[0]]
            faults.switch(switched)
            assert {isinstance(one, FaultyWire) for one in endpoints.current} == {bool(switched)}
            assert [one in tried for one in endpoints.current] == [False, True, False]
        # An attempt that began before a fault was switched on, and ends after it, counts for the same endpoint.
        outliers.begin(sick, 1.5)
        assert outliers.rotation(endpoints.current, 1.5) == list(before[1:])
        outliers.succeeded(endpoints.current[0], 1.5, 1.5)
        assert outliers.rotation(endpoints.current, 1.5) is endpoints.current
        await endpoints.close()


@pytest.mark.parametrize("wire", ["grpc", "connect", "http"])
async def test_retries_find_the_endpoint_that_has_no_fault(wire: str) -> None:
    async with site(wire, None) as one, site(wire, None) as two:
        one.service.gate.set()
        two.service.gate.set()
        endpoints = Endpoints(
            StaticResolver([one.address, two.address]),
            lambda address: open_endpoint(wire, None, address),  # type: ignore[arg-type]  # one of the three
        )
        faults = Faults("orders", [Fault(target="places", partition=True, endpoint=one.address)])
        faults.mind("places", endpoints)
        retry = CallDefaults(timeout=LONG, retry=Retry(attempts=3, base=0.001, cap=0.002), budget_minimum=100.0)
        channel = Channel("places", endpoints, defaults=retry)
        client = client_for(Places, channel)
        for _ in range(20):
            assert (await client.hold(Word(text="x"))).text == "x"
        assert (len(one.service.started), len(two.service.started)) == (0, 20)
        await channel.close()


# ---- what cannot be ----


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({}, "its kind is missing. Give delay, error, drop, partition or bandwidth."),
        ({"target": "*", "delay": 1.0}, "its target is '*'. Name one service; `caller` may be '*'."),
        ({"caller": "", "delay": 1.0}, "its caller is empty. Name a service, or '*' for each."),
        ({"delay": 0.0}, "its delay is 0. It has to be more than 0."),
        ({"bandwidth": -1.0}, "its bandwidth is -1. It has to be more than 0."),
        ({"delay": float("inf")}, "its delay is inf. It has to be more than 0."),
        ({"delay": 1.0, "share": 1.5}, "its share is 1.5. It has to be more than 0 and at most 1."),
        ({"drop": "both"}, "its drop is 'both'. Choose one of: request, answer."),
        (
            {"error": "gone"},
            "its error is 'gone', which is no code. Choose one of: aborted, already_exists, cancelled, data_loss, "
            "deadline_exceeded, failed_precondition, internal, invalid_argument, not_found, out_of_range, "
            "permission_denied, resource_exhausted, unauthenticated, unavailable, unimplemented, unknown.",
        ),
    ],
)
def test_a_fault_that_cannot_be_is_refused(said: dict[str, Any], problem: str) -> None:
    with pytest.raises(WrongFault) as told:
        Fault(**{"target": "places", **said})
    assert str(told.value) == f"The fault was not switched on: {problem}"
