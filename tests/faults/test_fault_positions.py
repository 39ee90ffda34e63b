"""A connection that breaks off, or stands still, after each single byte of a call, on every wire."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from tests.faults.parrot_calls_support import (
    LONG,
    WHOLE,
    WIRES,
    Kind,
    Outcomes,
    Stage,
    Wire,
    called,
    client_at,
    in_lanes,
    kinds_of,
    over_http2,
    staged,
)
from tests.faults.proxy_support import Ending, Fault, Proxy, Toward, proxied

from polywire.net.stream import Limits

CASES: list[tuple[Wire, Kind]] = [(wire, kind) for wire in WIRES for kind in kinds_of(wire)]
OTHERS = (Ending.CLOSE, Ending.SERVER_FIRST, Ending.CLIENT_FIRST)
"""Besides a reset; of these, too, both sides hear sooner or later."""
TEXT = "polly " * 4
MARGIN = 4
"""Bytes by which calls of one kind may differ in length, as their timeouts do."""
SHORT = 0.15
IMPATIENT = Limits(header_timeout=0.3, body_timeout=0.3, keepalive_interval=0.2, keepalive_timeout=0.2)
PATIENCE = 8.0
STALLS_EVERY = 1 if WHOLE else 9
"""Bytes."""

ADDRESS = r"127\.0\.0\.1:\d+"
LOST = re.compile(
    rf"{ADDRESS} did not answer: "
    r"(the connection was lost|the server closed the connection (before|in the middle of) the response)"
    r"(: \[Errno \d+\] [A-Z][a-z ]+| \(\[Errno \d+\] [A-Z][a-z ]+\))?\."
)
"""All that is ever said of it."""


async def lengths(stage: Stage, wire: Wire, kind: Kind) -> dict[Toward, int]:
    """Bytes that a call takes on a connection of its own, each way."""
    async with proxied(stage.target) as (proxy, address), client_at(wire, address) as client:
        await called(client, kind, stage.nonce(), TEXT, LONG)
        await called(client, kind, stage.nonce(), TEXT, LONG)
        # Of two calls, so that what follows upon the first answer is there too.
        return {toward: size // 2 + MARGIN for toward, size in proxy.links[-1].passed.items()}


def breaks(lengths: dict[Toward, int]) -> Iterator[Fault]:
    """A reset after each byte, and another ending after every third."""
    for toward, size in lengths.items():
        for after in range(size):
            yield Fault(toward, after, Ending.RESET)
            if WHOLE:
                yield from (Fault(toward, after, ending) for ending in OTHERS)
            elif not after % 3:
                yield Fault(toward, after, OTHERS[after // 3 % 3])


@pytest.mark.slow
@pytest.mark.parametrize(("wire", "kind"), CASES)
async def test_a_connection_may_break_off_after_each_byte(wire: Wire, kind: Kind) -> None:
    outcomes = Outcomes()
    async with staged() as stage:

        async def call(proxy: Proxy, address: str, fault: Fault) -> None:
            nonce = stage.nonce()
            proxy.next_fault = lambda: fault
            async with client_at(wire, address) as client:
                await outcomes.of(called(client, kind, nonce, TEXT, LONG), nonce, LONG)

        await in_lanes(stage, 4, breaks(await lengths(stage, wire, kind)), call)
    assert set(outcomes.codes) == {"ok", "unavailable"}
    assert outcomes.codes["unavailable"] > outcomes.codes["ok"]
    assert [message for message in outcomes.messages if not LOST.fullmatch(message)] == []
    assert not outcomes.unreached & stage.service.seen


def stalls(lengths: dict[Toward, int], every: int) -> Iterator[Fault]:
    for toward, size in lengths.items():
        for after in range(0, size, every):
            yield Fault(toward, after, Ending.STALL)


@pytest.mark.slow
@pytest.mark.parametrize(("wire", "kind"), CASES)
async def test_a_call_that_stands_still_ends_at_its_deadline_and_its_late_answer_reaches_nobody(
    wire: Wire, kind: Kind
) -> None:
    outcomes = Outcomes()
    async with staged() as stage:

        async def call(proxy: Proxy, address: str, fault: Fault) -> None:
            proxy.next_fault = lambda: fault
            async with client_at(wire, address) as client:
                nonce = stage.nonce()
                await outcomes.of(called(client, kind, nonce, TEXT, SHORT), nonce, SHORT)
                proxy.resume()
                nonce = stage.nonce()
                assert await outcomes.of(called(client, kind, nonce, TEXT, LONG), nonce, LONG) == "ok", fault

        await in_lanes(stage, 24, stalls(await lengths(stage, wire, kind), STALLS_EVERY), call)
    assert set(outcomes.codes) == {"ok", "deadline_exceeded"}
    assert outcomes.codes["deadline_exceeded"] > outcomes.calls / 4


@pytest.mark.slow
async def test_a_peer_that_waits_no_longer_makes_it_unavailable() -> None:
    outcomes = Outcomes()
    async with staged(limits=IMPATIENT) as stage:

        async def call(proxy: Proxy, address: str, case: tuple[Wire, Kind, Fault]) -> None:
            wire, kind, fault = case
            nonce = stage.nonce()
            proxy.next_fault = lambda: fault
            async with client_at(wire, address, IMPATIENT) as client:
                await outcomes.of(called(client, kind, nonce, TEXT, PATIENCE), nonce, PATIENCE)

        cases: list[tuple[Wire, Kind, Fault]] = [
            (wire, kind, fault)
            for wire, kind in CASES
            for fault in stalls(await lengths(stage, wire, kind), 3 * STALLS_EVERY)
            # A client over HTTP/1.1 has nothing to go by but its deadline.
            if fault.toward is Toward.SERVER or over_http2(wire, kind)
        ]
        await in_lanes(stage, 150, cases, call)
    assert set(outcomes.codes) <= {"ok", "unavailable", "deadline_exceeded"}
    assert outcomes.codes["unavailable"] > 0.9 * outcomes.calls
    assert {re.sub(ADDRESS, "it", message) for message in outcomes.messages} == {
        "it did not answer: it gave up waiting for the rest of the request (HTTP status 408).",
        "it did not answer: the connection was ended: no SETTINGS came.",
        "it did not answer: the connection was ended: our SETTINGS were not acknowledged.",
        "it did not answer: the connection was lost.",
        "it did not answer: the peer did not answer a PING.",
        "it did not answer: the peer ends the connection: SETTINGS_TIMEOUT ('our SETTINGS were not acknowledged').",
    }
    assert not outcomes.unreached & stage.service.seen
