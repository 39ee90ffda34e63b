"""What each policy costs a call that it lets through: `python benchmarks/policies.py`, CPU nanoseconds per call.

The last lines are whole calls through a channel, with all defaults, to wires that answer at once.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from timeit import Timer
from typing import Any

from polywire.channel import Channel, Endpoints
from polywire.client import client_for
from polywire.contract import Contract, Message, Rpc, rpc
from polywire.contract.policies import Breaker, Bulkhead, Ejection, Shedding
from polywire.discovery import StaticResolver
from polywire.policy.balance import LeastBusy
from polywire.policy.balance_hash import ByKey
from polywire.policy.balance_rotation import RoundRobin, Weighted
from polywire.policy.breaker import CircuitBreaker
from polywire.policy.bulkhead import Compartment
from polywire.policy.outlier import Outliers
from polywire.policy.shedding import Limiter
from polywire.wire.seam import Outgoing

CALLS = 200_000


@dataclass(eq=False)
class Endpoint:
    address: str
    in_flight: int = 0
    usable: bool = True


THREE = tuple(Endpoint(f"10.0.0.{number}:50051") for number in range(3))
NAMES = {
    "now": time.monotonic,
    "by_time": CircuitBreaker(Breaker(), "x"),
    "by_number": CircuitBreaker(Breaker(window_calls=100), "x"),
    "places": Compartment(Bulkhead(), "x"),
    "outliers": Outliers[Endpoint](Ejection()),
    "limiter": Limiter(Shedding()),
    "least_busy": LeastBusy[Endpoint](),
    "in_turn": RoundRobin[Endpoint](),
    "weighted": Weighted[Endpoint]({}),
    "by_key": ByKey[Endpoint](),
    "three": THREE,
}
STEPS = {
    "reading the clock, for comparison": "t = now()",
    "closed breaker, window of time": "t = now(); p = by_time.admit(t); by_time.succeeded(p, t, 0.01)",
    "closed breaker, window of calls": "t = now(); p = by_number.admit(t); by_number.succeeded(p, t, 0.01)",
    "bulkhead with a free place": "t = now(); places.enter(); places.leave(t, 0.01)",
    "ejection, none left out": (
        "t = now(); e = outliers.rotation(three, t)[0]; outliers.begin(e, t); outliers.succeeded(e, t, t)"
    ),
    "concurrency limit of a server": "t = now(); limiter.admit(1); limiter.answered(t, 0.01)",
    "balance: least busy of two": "least_busy.pick(three, 0.4)",
    "balance: round robin": "in_turn.pick(three, 0.4)",
    "balance: weighted": "weighted.pick(three, 0.4)",
    "balance: by key": "by_key.pick(three, 0.4, (), b'customer-17')",
}


class AtOnce(Endpoint):
    """A wire that costs nothing."""

    name = "none"

    def encode(self, rpc: Rpc, request: Message | None) -> bytes:
        return b""

    async def unary(self, outgoing: Outgoing, encoded: Any, *, wait_for_ready: bool = False) -> None:
        return None

    async def stream(self, outgoing: Outgoing, *, wait_for_ready: bool = False) -> Any:
        raise NotImplementedError

    async def drain(self) -> None:
        """Nothing is under way."""

    async def close(self) -> None:
        """Nothing is open."""


class Nothing(Contract, package="bench.v1"):
    @rpc(idempotent=True)
    async def happens(self) -> None:
        raise NotImplementedError


async def whole_calls(endpoints: int) -> float:
    """Seconds of CPU for a call to one of so many *endpoints*, the best of several."""
    resolver = StaticResolver([str(number) for number in range(endpoints)])
    channel = Channel("bench", Endpoints(resolver, AtOnce))
    client = client_for(Nothing, channel)
    took = []
    for _ in range(20):
        began = time.process_time()
        for _ in range(CALLS // 100):
            await client.happens()
        took.append(time.process_time() - began)
    await channel.close()
    return min(took) / (CALLS // 100)


def main() -> None:
    for name, statement in STEPS.items():
        # The best of several, in time of this process: other programs on the machine do not count.
        timer = Timer(statement, globals=NAMES, timer=time.process_time)
        print(f"{name:36} {min(timer.repeat(5, CALLS)) / CALLS * 1e9:6.0f} ns")
    for endpoints in (1, 3):
        name = f"a call to {endpoints} endpoint{'s' if endpoints > 1 else ''}"
        print(f"{name:36} {asyncio.run(whole_calls(endpoints)) * 1e9:6.0f} ns")


if __name__ == "__main__":
    main()
