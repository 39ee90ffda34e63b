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
        if not endpoint.usable or (tried and endpoint in tried):
            break
    else:
        return endpoints
    return (
        [endpoint for endpoint in endpoints if endpoint.usable and endpoint not in tried]
        or [endpoint for endpoint in endpoints if endpoint not in tried]
        or endpoints
    )


STIR = 7919.0
"""A throw times this, without its integer part, is as good as another throw."""


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
    if len(endpoints) == 1:
        return endpoints[0]
    one, other = _draw(endpoints, dice)
    if not (one.usable and other.usable) or (tried and (one in tried or other in tried)):
        best = eligible(endpoints, tried)
        if len(best) == 1:
            return best[0]
        # Where in [0, 1) this throw fell is known now, so that it is no fair one among fewer: stir it.
        one, other = _draw(best, dice * STIR % 1.0)
    return one if one.in_flight <= other.in_flight else other


def _draw(endpoints: Sequence[Endpoint], dice: float) -> tuple[Endpoint, Endpoint]:
    """Two different ones by one throw: its integer part picks the first, what is left of it the second."""
    count = len(endpoints)
    throw = dice * count
    first = int(throw)
    second = int((throw - first) * (count - 1))
    if second >= first:
        second += 1
    return endpoints[first], endpoints[second]
