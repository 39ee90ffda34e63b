"""Connections that end, or of which one end is gone, while handlers run: both sides find out, on every wire."""

from __future__ import annotations

import asyncio

import pytest
from tests.faults.parrot_calls_support import (
    LONG,
    SOON,
    WIRES,
    Kind,
    Outcomes,
    Wire,
    called,
    client_at,
    held,
    in_lanes,
    kinds_of,
    over_http2,
    staged,
)
from tests.faults.proxy_support import Ending, Fault, Proxy, Toward, proxied

from polywire.net.stream import Limits

CASES: list[tuple[Wire, Kind]] = [(wire, kind) for wire in WIRES for kind in kinds_of(wire)]
HEARD = (Ending.RESET, Ending.CLOSE, Ending.SERVER_FIRST, Ending.CLIENT_FIRST)
UNHEARD = (Ending.SILENCE, Ending.CLIENT_GONE, Ending.SERVER_GONE)
IMPATIENT = Limits(header_timeout=0.3, body_timeout=0.3)
Case = tuple[Wire, Kind, Ending]


async def ended(cases: list[Case], timeout_of: dict[bool, float]) -> dict[Case, str]:
    """What becomes of calls that handlers are busy with as their connections end. *timeout_of* is by whether the call
    is over HTTP/2, where peers are asked whether they are there."""
    codes: dict[Case, str] = {}
    async with staged() as stage:

        async def call(proxy: Proxy, address: str, case: Case) -> None:
            wire, kind, ending = case
            nonce, timeout = stage.nonce(), timeout_of[over_http2(wire, kind)]
            async with client_at(wire, address) as client:
                calling = asyncio.ensure_future(Outcomes().of(held(client, kind, nonce, timeout), nonce, timeout))
                async with asyncio.timeout(SOON):
                    await stage.service.until_seen(nonce)
                proxy.strike(ending)
                codes[case] = await calling

        await in_lanes(stage, len(cases), cases, call)
        await stage.until_quiet()
        assert stage.service.cancelled == len(cases)
    return codes


async def test_a_connection_that_ends_cancels_its_handlers_and_is_unavailable() -> None:
    cases: list[Case] = [(wire, kind, ending) for wire, kind in CASES for ending in HEARD]
    codes = await ended(cases, {True: LONG, False: LONG})
    assert codes == dict.fromkeys(cases, "unavailable")


@pytest.mark.slow
async def test_a_connection_with_one_end_is_found_out_by_both() -> None:
    cases: list[Case] = [(wire, kind, ending) for wire, kind in CASES for ending in UNHEARD]
    codes = await ended(cases, {True: LONG, False: 2.0})
    assert codes == {
        (wire, kind, ending): "unavailable"
        if over_http2(wire, kind) or ending is Ending.CLIENT_GONE
        else "deadline_exceeded"
        for wire, kind, ending in cases
    }


@pytest.mark.slow
@pytest.mark.parametrize("wire", ["grpc", "connect over HTTP/2"])
async def test_calls_that_are_few_and_short_find_out_too_that_nobody_is_there(wire: Wire) -> None:
    outcomes = Outcomes()
    async with staged() as stage, proxied(stage.target) as (proxy, address), client_at(wire, address) as client:
        await called(client, "say", stage.nonce(), "", LONG)
        proxy.strike(Ending.SILENCE)
        async with asyncio.timeout(SOON):
            nonce = stage.nonce()
            while await outcomes.of(called(client, "say", nonce, "", 0.1), nonce, 0.1) != "ok":
                # Between two calls the connection has nothing under way.
                await asyncio.sleep(1.2)
                nonce = stage.nonce()
        assert proxy.opened == 2
    assert set(outcomes.codes) == {"deadline_exceeded", "ok"}
    assert outcomes.codes["ok"] == 1


@pytest.mark.parametrize("wire", ["connect over HTTP/1.1", "rest"])
@pytest.mark.parametrize("share", [0.2, 0.99], ids=["in the headers", "in the body"])
async def test_a_request_that_does_not_arrive_in_time_is_unavailable(wire: Wire, share: float) -> None:
    outcomes = Outcomes()
    async with staged(limits=IMPATIENT) as stage, proxied(stage.target) as (proxy, address):
        async with client_at(wire, address) as client:
            await called(client, "say", stage.nonce(), "", LONG)
            whole = proxy.links[0].passed[Toward.SERVER]
        proxy.next_fault = lambda: Fault(Toward.SERVER, int(whole * share), Ending.STALL)
        async with client_at(wire, address) as client:
            nonce = stage.nonce()
            assert await outcomes.of(called(client, "say", nonce, "", LONG), nonce, LONG) == "unavailable"
        assert nonce not in stage.service.seen
    assert outcomes.messages == {
        f"{address} did not answer: it gave up waiting for the rest of the request (HTTP status 408)."
    }
