"""Which of several endpoints gets the next call."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Generic, Protocol, TypeVar


class Candidate(Protocol):
    @property
    def in_flight(self) -> int: ...

    @property
    def usable(self) -> bool: ...


class Addressed(Candidate, Protocol):
    address: str


Endpoint = TypeVar("Endpoint", bound=Candidate)
Picked = TypeVar("Picked", bound=Addressed)


class Balancer(Protocol[Picked]):
    """What `Balance` declares, for the calls to one target. *endpoints* are never empty, and few (hundreds).

    Endpoints that earlier attempts of the same call have *tried*, and those that are not usable, count only where there
    are no others. *dice* is in [0, 1).
    """

    def pick(
        self, endpoints: Sequence[Picked], dice: float, tried: Collection[Picked] = (), key: bytes | None = None
    ) -> Picked:
        """The endpoint of the next attempt; *key* is that of its call, where it has one."""
        ...


def eligible(endpoints: Sequence[Endpoint], tried: Collection[Endpoint]) -> Sequence[Endpoint]:
    """Those of *endpoints* that count: usable and not tried, or at least not tried, or all."""
    for endpoint in endpoints:
        if not endpoint.usable or endpoint in tried:
            break
    else:
        return endpoints
    return (
        [endpoint for endpoint in endpoints if endpoint.usable and endpoint not in tried]
        or [endpoint for endpoint in endpoints if endpoint not in tried]
        or endpoints
    )


class LeastBusy(Generic[Picked]):
    """Power of two choices with the fewest calls under way."""

    def pick(
        self, endpoints: Sequence[Picked], dice: float, tried: Collection[Picked] = (), key: bytes | None = None
    ) -> Picked:
        return choose(endpoints, dice, tried)


def choose(endpoints: Sequence[Endpoint], dice: float, tried: Collection[Endpoint] = ()) -> Endpoint:
    """Power of two choices: of two endpoints drawn at random, the one with fewer calls under way.

    Endpoints that earlier attempts of the same call have *tried*, and those that are not usable, count only where there
    are no others. *dice* is in [0, 1). *endpoints* is not empty. (Mitzenmacher, "The Power of Two Choices in Randomized
    Load Balancing", 2001.)
    """
    count = len(endpoints)
    if count == 1:
        return endpoints[0]
    best = [endpoint for endpoint in endpoints if endpoint.usable and endpoint not in tried]
    if not best:
        best = [endpoint for endpoint in endpoints if endpoint not in tried] or list(endpoints)
    count = len(best)
    if count == 1:
        return best[0]
    # One throw serves both draws: its integer part picks the first, what is left of it the second among the others.
    throw = dice * count
    first = int(throw)
    second = int((throw - first) * (count - 1))
    if second >= first:
        second += 1
    one, other = best[first], best[second]
    return one if one.in_flight <= other.in_flight else other
