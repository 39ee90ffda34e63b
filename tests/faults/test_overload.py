"""A service that is asked for twice what it can do answers as many in time as it ever can: counted, on virtual time."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from polywire import Contract, Message, rpc
from polywire.channel import CallDefaults, Channel, Endpoints
from polywire.client import client_for
from polywire.contract import Retry
from polywire.contract.policies import Shedding
from polywire.discovery import StaticResolver
from polywire.errors import CallError
from polywire.services import Services
from polywire.testing import ManualClock
from polywire.wire.local import LocalWire

CAPACITY = 200
"""Calls per second: 5 ms each of the only processor."""
SECONDS = 12
COUNTED_FROM = 5
"""The limit is found before."""


class Order(Message, package="overload.v1"):
    number: int = 0


class Orders(Contract, package="overload.v1"):
    @rpc(timeout=1.0)
    async def place(self, order: Order) -> Order:
        raise NotImplementedError


class OrderService(Orders):
    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self._processor = asyncio.Lock()

    async def place(self, order: Order) -> Order:
        await self._clock.sleep(0.02)
        async with self._processor:
            await self._clock.sleep(0.005)
        return order


async def outcomes(rate: int, shedding: Shedding | None) -> Counter[str]:
    """What became of the calls, sent evenly, that do count."""
    clock = ManualClock()
    services = Services([OrderService(clock)], shedding=shedding, clock=clock)
    endpoints = Endpoints(StaticResolver(["local"]), lambda _: LocalWire(services, clock=clock), clock=clock)
    channel = Channel("orders", endpoints, defaults=CallDefaults(retry=Retry(attempts=1)), clock=clock)
    orders = client_for(Orders, channel)
    became: Counter[str] = Counter()

    async def one(number: int) -> None:
        code = "ok"
        try:
            await orders.place(Order(number=number))
        except CallError as error:
            code = error.code
        if number >= COUNTED_FROM * rate:
            became[code] += 1

    tasks = []
    for number in range(SECONDS * rate):
        tasks.append(asyncio.create_task(one(number)))
        await clock.advance(1 / rate)
    await clock.advance(2.0)
    await asyncio.gather(*tasks)
    await channel.close()
    await services.finish(0.0)
    return became


@pytest.mark.slow
async def test_at_twice_its_capacity_a_service_answers_nine_tenths_of_what_it_can_and_the_rest_at_once() -> None:
    peak = (await outcomes(CAPACITY, None))["ok"]
    assert peak >= 0.95 * CAPACITY * (SECONDS - COUNTED_FROM)
    found = await outcomes(2 * CAPACITY, None)
    assert found["ok"] >= 0.9 * peak
    assert found.keys() <= {"ok", "resource_exhausted", "deadline_exceeded"}
    assert found["deadline_exceeded"] <= 0.01 * found.total()


@pytest.mark.slow
async def test_without_shedding_it_answers_hardly_any() -> None:
    """Each call waits behind those whose time is up by then: what the test above would look like without the limit."""
    found = await outcomes(2 * CAPACITY, Shedding(enabled=False))
    assert found["resource_exhausted"] == 0
    assert found["deadline_exceeded"] > 0.4 * found.total()
