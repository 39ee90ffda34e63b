"""Channels: the ladder of a call, on virtual time, over wires that do as they are told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from polywire import Contract, Message, calling, rpc
from polywire.channel import CallDefaults, Channel, Endpoints
from polywire.client import client_for
from polywire.context import Call, _current
from polywire.contract import service_of
from polywire.contract.policies import Breaker, Hedge
from polywire.discovery import DnsResolver, Resolver, StaticResolver
from polywire.errors import (
    DO_NOT_RETRY,
    CallError,
    DeadlineExceeded,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)
from polywire.policy.breaker import State
from polywire.policy.retry import Retry
from polywire.testing import ManualClock, settle
from polywire.wire.seam import Outgoing


class Ping(Message, package="unit.v1"):
    text: str = ""


class Pinger(Contract, package="unit.v1"):
    @rpc(idempotent=True, timeout=2.0)
    async def safe(self, ping: Ping) -> Ping:
        raise NotImplementedError

    @rpc(timeout=2.0)
    async def unsafe(self, ping: Ping) -> Ping:
        raise NotImplementedError

    @rpc(idempotent=True, timeout=10.0, attempt_timeout=1.0)
    async def patient(self, ping: Ping) -> Ping:
        raise NotImplementedError

    @rpc(timeout=2.0)
    def watch(self, ping: Ping) -> AsyncIterator[Ping]:
        raise NotImplementedError


class Echo:
    """A stream that answers what it is sent."""

    def __init__(self) -> None:
        self.messages: list[Any] = []

    async def send(self, message: Any) -> None:
        self.messages.append(message)

    def end_requests(self) -> None:
        """It answers before that."""

    async def receive(self) -> Any:
        if not self.messages:
            raise StopAsyncIteration
        return self.messages.pop(0)

    def cancel(self) -> None:
        self.messages.clear()


class ScriptedWire:
    """Raises what its script says, one entry a call, and answers when the script is over."""

    name = "scripted"

    def __init__(self, address: str, script: list[CallError] | None = None) -> None:
        self.address = address
        self.script = script if script is not None else []
        self.in_flight = 0
        self.usable = True
        self.seen: list[tuple[float | None, int]] = []
        self.ids: list[str] = []
        self.drained = False
        self.closed = False

    def encode(self, rpc: Any, request: Any) -> Any:
        return request

    async def unary(self, outgoing: Outgoing, encoded: Any, *, wait_for_ready: bool = False) -> Any:
        self.seen.append((outgoing.timeout, outgoing.attempt))
        self.ids.append(outgoing.request_id)
        if self.script:
            raise self.script.pop(0)
        return encoded

    async def stream(self, outgoing: Outgoing, *, wait_for_ready: bool = False) -> Any:
        self.seen.append((outgoing.timeout, outgoing.attempt))
        return Echo()

    async def drain(self) -> None:
        self.drained = True

    async def close(self) -> None:
        self.closed = True


class World:
    """A channel over scripted wires, and the clock it goes by."""

    def __init__(
        self, *scripts: list[CallError], defaults: CallDefaults | None = None, resolver: Resolver | None = None
    ) -> None:
        self.clock = ManualClock()
        self.wires: dict[str, ScriptedWire] = {}
        self._scripts = dict(enumerate(scripts))
        addresses = [f"host:{number}" for number in range(len(scripts))]
        endpoints = Endpoints(resolver or StaticResolver(addresses), self._open, clock=self.clock)
        self.channel = Channel("pinger", endpoints, defaults=defaults, clock=self.clock)
        self.client = client_for(Pinger, self.channel)

    def _open(self, address: str) -> ScriptedWire:
        wire = ScriptedWire(address, self._scripts.get(len(self.wires)))
        self.wires[address] = wire
        return wire

    @property
    def calls(self) -> int:
        return sum(len(wire.seen) for wire in self.wires.values())

    async def run(self, call: Any, seconds: float = 60.0) -> Any:
        """Let *call* run to its end while time passes."""
        task = asyncio.ensure_future(call)
        await settle()
        for _ in range(int(seconds * 20)):
            if task.done():
                break
            await self.clock.advance(0.05)
        assert task.done(), "the call did not end"
        return task.result()


async def test_two_retries_are_three_attempts_and_the_last_error_forbids_more() -> None:
    world = World([Unavailable("down", reached="no") for _ in range(9)])
    with pytest.raises(Unavailable) as caught:
        await world.run(world.client.safe(Ping()))
    assert world.calls == 3
    assert [attempt for _, attempt in world.wires["host:0"].seen] == [1, 2, 3]
    assert caught.value.retry_after == DO_NOT_RETRY
    assert caught.value.attempts == 3
    assert caught.value.method == "unit.v1.Pinger/Safe"


async def test_a_call_that_is_not_safe_is_repeated_only_if_it_certainly_did_not_arrive() -> None:
    world = World([Unavailable("down", reached="no")])
    assert await world.run(world.client.unsafe(Ping(text="a"))) == Ping(text="a")
    world = World([Unavailable("lost", reached="maybe")])
    with pytest.raises(Unavailable):
        await world.run(world.client.unsafe(Ping()))
    assert world.calls == 1


async def test_what_an_earlier_attempt_may_have_reached_was_perhaps_reached() -> None:
    world = World([Unavailable("lost", reached="maybe"), *(Unavailable("down", reached="no") for _ in range(2))])
    with pytest.raises(Unavailable) as caught:
        await world.run(world.client.safe(Ping()))
    assert (world.calls, caught.value.reached) == (3, "maybe")
    world = World([Unavailable("down", reached="no") for _ in range(3)])
    with pytest.raises(Unavailable) as caught:
        await world.run(world.client.safe(Ping()))
    assert (world.calls, caught.value.reached) == (3, "no")


async def test_another_instance_is_tried_when_one_is_down() -> None:
    for _ in range(10):
        world = World([Unavailable("down", reached="no")], [])
        assert await world.run(world.client.unsafe(Ping(text="a"))) == Ping(text="a")
        first, second = world.wires.values()
        assert len(second.seen) == 1
        assert len(first.seen) <= 1


class InTurn(ScriptedWire):
    """One of several wires that share a script: an error or None each, after so many seconds."""

    def __init__(self, address: str, clock: ManualClock, turns: list[tuple[float, CallError | None]]) -> None:
        super().__init__(address)
        self.clock = clock
        self.turns = turns

    async def unary(self, outgoing: Outgoing, encoded: Any, *, wait_for_ready: bool = False) -> Any:
        self.seen.append((outgoing.timeout, outgoing.attempt))
        seconds, error = self.turns.pop(0)
        await self.clock.sleep(seconds)
        if error is not None:
            raise error
        return encoded


async def test_a_retry_goes_to_none_of_the_instances_that_copies_went_to() -> None:
    for _ in range(20):
        world = World([], [], [], defaults=CallDefaults(policies=(Hedge(after=0.1, copies=1),)))
        turns: list[tuple[float, CallError | None]] = [
            (0.5, Unavailable("down", reached="no")),
            (0.0, Unavailable("down", reached="no")),
            (0.0, None),
        ]
        wires = {name: InTurn(name, world.clock, turns) for name in ("host:0", "host:1", "host:2")}
        world.channel.endpoints._open_wire = wires.__getitem__
        assert await world.run(world.client.safe(Ping(text="a"))) == Ping(text="a")
        assert [len(wire.seen) for wire in wires.values()] == [1, 1, 1]


async def test_pushback_is_waited_for() -> None:
    world = World([ResourceExhausted("slow down", retry_after=1.5)])
    start = world.clock.monotonic()
    await world.run(world.client.unsafe(Ping()))
    assert 1.5 <= world.clock.monotonic() - start < 1.7


async def test_a_retry_that_would_come_after_the_deadline_is_not_made() -> None:
    world = World([ResourceExhausted("slow down", retry_after=2.5)])
    with pytest.raises(ResourceExhausted) as caught:
        await world.run(world.client.safe(Ping()))
    assert world.calls == 1
    assert caught.value.retry_after == 2.5


async def test_the_deadline_of_a_retry_is_what_is_left_of_the_call() -> None:
    world = World([ResourceExhausted("slow down", retry_after=0.5)])
    await world.run(world.client.safe(Ping()))
    (first, _), (second, _) = world.wires["host:0"].seen
    assert first == 2.0
    assert second is not None
    assert 1.4 < second <= 1.5


async def test_an_attempt_has_a_time_of_its_own_inside_the_call() -> None:
    world = World([DeadlineExceeded("too slow")])
    await world.run(world.client.patient(Ping()))
    assert [timeout for timeout, _ in world.wires["host:0"].seen] == [1.0, 1.0]


async def test_a_call_never_outlives_the_call_that_it_is_part_of() -> None:
    world = World([])
    parent = Call("outer", deadline=world.clock.monotonic() + 0.5, request_id="r-1", clock=world.clock)
    parent.traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    token = _current.set(parent)
    try:
        with calling(timeout=60.0):
            await world.client.safe(Ping())
        await world.clock.advance(0.5)
        with pytest.raises(DeadlineExceeded) as caught:
            await world.client.safe(Ping())
    finally:
        _current.reset(token)
    assert world.wires["host:0"].seen == [(0.5, 1)]
    assert world.wires["host:0"].ids == ["r-1"]
    assert str(caught.value) == ("unit.v1.Pinger/Safe was not called: the deadline of the call under way had passed.")


async def test_retries_stay_within_the_budget_of_the_channel() -> None:
    world = World(
        [Unavailable("down", reached="no") for _ in range(1000)],
        defaults=CallDefaults(
            budget_share=0.2,
            budget_minimum=0.0,
            retry=Retry(attempts=3, base=0.0),
            policies=(Breaker(enabled=False),),
        ),
    )
    for _ in range(100):
        with pytest.raises(Unavailable):
            await world.run(world.client.unsafe(Ping()))
    assert 110 <= world.calls <= 120


async def test_an_error_that_used_its_retries_up_is_not_retried_by_those_above() -> None:
    below = World([Unavailable("down", reached="no") for _ in range(9)])
    with pytest.raises(Unavailable) as caught:
        await below.run(below.client.safe(Ping()))
    above = World([caught.value])
    with pytest.raises(Unavailable):
        await above.run(above.client.safe(Ping()))
    assert above.calls == 1


async def test_retries_that_are_used_up_near_the_deadline_are_not_multiplied_either() -> None:
    below = World(
        [ResourceExhausted("slow down", retry_after=1.5) for _ in range(9)],
        defaults=CallDefaults(retry=Retry(attempts=2)),
    )
    with pytest.raises(ResourceExhausted) as caught:
        await below.run(below.client.safe(Ping()))
    # A third attempt would come after the deadline, which is 2 seconds after the start.
    assert (below.calls, caught.value.attempts, caught.value.retry_after) == (2, 2, DO_NOT_RETRY)
    above = World([caught.value])
    with pytest.raises(ResourceExhausted):
        await above.run(above.client.safe(Ping()))
    assert above.calls == 1


async def test_a_retry_that_the_deadline_forbids_costs_nothing_of_the_budget_and_is_left_to_those_above() -> None:
    below = World([ResourceExhausted("slow down", retry_after=2.5) for _ in range(20)])
    taken = below.channel.budget._retries
    for _ in range(20):
        with pytest.raises(ResourceExhausted) as caught:
            await below.run(below.client.safe(Ping()))
        assert caught.value.retry_after == 2.5
    assert (below.calls, sum(taken)) == (20, 0)


async def test_where_retrying_is_switched_off_it_is_left_to_those_above() -> None:
    below = World([Unavailable("down", reached="no")], defaults=CallDefaults(retry=Retry(attempts=1)))
    with pytest.raises(Unavailable) as caught:
        await below.run(below.client.safe(Ping()))
    assert (below.calls, caught.value.retry_after) == (1, None)
    above = World([caught.value])
    assert await above.run(above.client.safe(Ping(text="a"))) == Ping(text="a")
    assert above.calls == 2


async def test_cancelling_while_waiting_for_a_retry_ends_the_call() -> None:
    world = World([ResourceExhausted("slow down", retry_after=1.0)])
    call = asyncio.ensure_future(world.client.safe(Ping()))
    await settle()
    call.cancel()
    await asyncio.wait([call])
    assert call.cancelled()
    assert world.channel.counters["unit.v1.Pinger/Safe"].codes == {"ok": 0, "cancelled": 1}


async def test_counters_tell_outcomes_and_retries() -> None:
    world = World([Unavailable("down", reached="no"), InvalidArgument("wrong")])
    with pytest.raises(InvalidArgument):
        await world.run(world.client.safe(Ping()))
    await world.run(world.client.safe(Ping()))
    counters = world.channel.counters["unit.v1.Pinger/Safe"]
    assert counters.codes == {"ok": 1, "invalid_argument": 1}
    assert counters.retries == 1


async def test_a_wrong_argument_is_refused_before_anything_is_sent() -> None:
    world = World([])
    with pytest.raises(TypeError) as caught:
        await world.client.safe("hello")  # type: ignore[arg-type]  # that is the point
    assert str(caught.value) == "unit.v1.Pinger/Safe was not called: it takes a Ping, not a str."
    assert world.calls == 0


class Names:
    """A name server that answers what it was told last."""

    def __init__(self, *addresses: str) -> None:
        self.addresses: Sequence[str] = addresses
        self.asked = 0
        self.down = False

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked += 1
        if self.down:
            raise OSError(f"DNS has no address for {host}")
        return [f"{address}:{port}" for address in self.addresses]


async def test_endpoints_follow_what_dns_says_and_those_that_left_are_drained() -> None:
    names = Names("10.0.0.1", "10.0.0.2")
    world = World(resolver=DnsResolver("orders", 80, refresh=30.0, lookup=names))
    await world.client.safe(Ping())
    assert sorted(world.wires) == ["10.0.0.1:80", "10.0.0.2:80"]
    names.addresses = ("10.0.0.2", "10.0.0.3")
    await world.clock.advance(31.0)
    assert [wire.address for wire in world.channel.endpoints.current] == ["10.0.0.2:80", "10.0.0.3:80"]
    assert world.wires["10.0.0.1:80"].drained
    assert not world.wires["10.0.0.2:80"].drained
    await world.channel.close()
    assert world.wires["10.0.0.3:80"].closed


class Silence(Names):
    """A name server that does not answer before it is told to."""

    def __init__(self, *addresses: str) -> None:
        super().__init__(*addresses)
        self.gate = asyncio.Event()

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked += 1
        await self.gate.wait()
        return [f"{address}:{port}" for address in self.addresses]


async def test_calls_that_wait_for_an_endpoint_when_the_channel_is_closed_are_unavailable_and_not_cancelled() -> None:
    names = Silence("10.0.0.1")
    world = World(resolver=DnsResolver("orders", 80, refresh=30.0, lookup=names))
    with calling(Retry(attempts=1)):
        calls = [asyncio.create_task(world.client.safe(Ping())) for _ in range(2)]
    given_up = asyncio.create_task(world.client.safe(Ping()))
    await settle()
    given_up.cancel()
    await asyncio.wait([given_up])
    assert given_up.cancelled()
    assert not any(call.done() for call in calls)
    await world.channel.close()
    for error in await asyncio.gather(*calls, return_exceptions=True):
        assert type(error) is Unavailable
        assert (error.message, error.reached) == ("No endpoint was found: the channel was closed.", "no")
    with pytest.raises(Unavailable) as caught:
        await world.run(world.client.safe(Ping()))
    assert str(caught.value) == "No endpoint was found: the channel was closed."
    await world.clock.advance(100.0)
    assert (names.asked, world.wires) == (1, {})


@pytest.mark.parametrize("method", ["safe", "patient", "watch"])
async def test_the_time_of_the_first_look_up_is_not_held_against_the_endpoint(method: str) -> None:
    names = Silence("10.0.0.1")
    world = World(
        resolver=DnsResolver("orders", 80, refresh=30.0, lookup=names),
        defaults=CallDefaults(timeout=2.0, policies=(Breaker(minimum_calls=1, slow_after=0.5, slow_rate=0.1),)),
    )
    if method == "watch":
        call = asyncio.ensure_future(anext(world.client.watch(Ping(text="a"))))
    else:
        call = asyncio.ensure_future(getattr(world.client, method)(Ping(text="a")))
    await settle()
    await world.clock.advance(0.75)
    names.gate.set()
    assert await world.run(call) == Ping(text="a")
    rules = world.channel._book.of(service_of(Pinger).rpcs[method])
    assert (rules.breaker.state, rules.breaker.reason) == (State.CLOSED, "")
    # It is told of the time that is left; an attempt of its own time begins when there is somebody to call.
    assert world.wires["10.0.0.1:80"].seen == [(1.0 if method == "patient" else 1.25, 1)]


class Busy(ScriptedWire):
    """A wire with calls that do not end."""

    async def drain(self) -> None:
        await asyncio.Event().wait()


async def test_wires_that_are_still_being_drained_are_closed_with_the_channel() -> None:
    names = Names("10.0.0.1", "10.0.0.2")
    clock = ManualClock()
    wires: dict[str, Busy] = {}
    endpoints = Endpoints(
        DnsResolver("orders", 80, refresh=30.0, lookup=names),
        lambda name: wires.setdefault(name, Busy(name)),
        clock=clock,
    )
    await endpoints.find()
    names.addresses = ("10.0.0.2",)
    await clock.advance(31.0)
    assert [wire.address for wire in endpoints.current] == ["10.0.0.2:80"]
    assert not wires["10.0.0.1:80"].closed
    await endpoints.close()
    assert [wire.closed for wire in wires.values()] == [True, True]
    await endpoints.close()


async def test_a_name_server_that_is_down_does_not_take_known_endpoints_along() -> None:
    names = Names("10.0.0.1")
    world = World(resolver=DnsResolver("orders", 80, refresh=30.0, lookup=names))
    await world.client.safe(Ping())
    names.down = True
    await world.clock.advance(31.0)
    assert names.asked == 2
    assert await world.client.safe(Ping(text="still there")) == Ping(text="still there")


async def test_a_name_that_cannot_be_found_is_unavailable_and_certainly_unreached() -> None:
    names = Names()
    names.down = True
    world = World(resolver=DnsResolver("orders", 80, refresh=30.0, lookup=names))
    with pytest.raises(Unavailable) as caught:
        await world.client.safe(Ping())
    assert str(caught.value) == "No endpoint was found: DNS has no address for orders."
    assert caught.value.reached == "no"


async def test_dns_is_asked_at_once_after_an_endpoint_failed_but_not_more_than_once_a_second() -> None:
    names = Names("10.0.0.1")
    failures: list[CallError] = [Unavailable("down", reached="no") for _ in range(9)]
    world = World(failures, resolver=DnsResolver("orders", 80, refresh=30.0, lookup=names))
    for _ in range(3):
        with pytest.raises(Unavailable):
            await world.run(world.client.unsafe(Ping()))
    assert names.asked == 1
    await world.clock.advance(1.0)
    failures.append(Unavailable("down", reached="no"))
    await world.run(world.client.unsafe(Ping()))
    assert names.asked == 2
