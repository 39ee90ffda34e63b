"""Endpoints in turn, evenly or by weight."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Generic

from polywire.policy.balance import Picked, eligible


class RoundRobin(Generic[Picked]):
    """One after the other. The first one is drawn by chance, so that many callers do not begin at the same."""

    def __init__(self) -> None:
        self._next = -1

    def pick(
        self, endpoints: Sequence[Picked], dice: float, tried: Collection[Picked] = (), key: bytes | None = None
    ) -> Picked:
        count = len(endpoints)
        if self._next < 0:
            self._next = int(dice * count)
        counting = eligible(endpoints, tried)
        # From the place where the last call went on, so that endpoints that are left out do not shift the others.
        for step in range(count):
            endpoint = endpoints[(self._next + step) % count]
            if counting is endpoints or endpoint in counting:
                self._next = (self._next + step + 1) % count
                return endpoint
        raise AssertionError("eligible() gives at least one of the endpoints")


class Weighted(Generic[Picked]):
    """In proportion to their weights, evenly interleaved: the smooth weighted round robin of nginx.

    Each time every endpoint gains its weight, and the one that has most is picked and pays for all. Weights 5, 1, 1
    give a a b a c a a, and not five times a in a row.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = dict(weights)
        self._credit: dict[str, float] = {}

    def pick(
        self, endpoints: Sequence[Picked], dice: float, tried: Collection[Picked] = (), key: bytes | None = None
    ) -> Picked:
        credit = self._credit
        if len(credit) > len(endpoints):
            known = {endpoint.address for endpoint in endpoints}
            self._credit = credit = {address: left for address, left in credit.items() if address in known}
        total = 0.0
        best: Picked | None = None
        most = 0.0
        for endpoint in eligible(endpoints, tried):
            weight = self._weights.get(endpoint.address, 1.0)
            total += weight
            left = credit[endpoint.address] = credit.get(endpoint.address, 0.0) + weight
            if best is None or left > most:
                best, most = endpoint, left
        assert best is not None  # noqa: S101 - eligible() gives at least one
        credit[best.address] -= total
        return best
