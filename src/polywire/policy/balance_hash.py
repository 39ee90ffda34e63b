"""The same key to the same endpoint, while that can bear it."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Collection, Sequence
from hashlib import blake2b
from typing import Generic

from polywire.policy.balance import Picked, choose, eligible

POINTS = 128
"""Of each endpoint on the ring: more make the shares more even, by the root of their number."""


def place(name: bytes) -> int:
    """Where *name* is on the ring, the same in every process: Python's own hash is not."""
    return int.from_bytes(blake2b(name, digest_size=8).digest(), "big")


class ByKey(Generic[Picked]):
    """Consistent hashing with bounded loads (Mirrokni, Thorup and Zadimoghaddam, 2016).

    Endpoints and keys lie on a ring; a key belongs to the endpoint that follows. An endpoint that comes or goes moves
    only the keys next to it. One that has *load* times its even share of the calls under way is passed over, so that a
    key that everybody asks for does not take its endpoint down. Calls without a key go to the least busy of two.
    """

    def __init__(self, load: float = 1.25) -> None:
        self._load = load
        self._of: Sequence[Picked] = ()
        self._places: dict[str, list[int]] = {}
        """Of each endpoint, by address."""
        self._points: list[int] = []
        self._owners: list[Picked] = []

    def pick(
        self, endpoints: Sequence[Picked], dice: float, tried: Collection[Picked] = (), key: bytes | None = None
    ) -> Picked:
        if key is None:
            return choose(endpoints, dice, tried)
        if endpoints is not self._of:
            self._lay_out(endpoints)
        counting = eligible(endpoints, tried)
        under_way = 0
        for endpoint in counting:
            under_way += endpoint.in_flight
        most = math.ceil(self._load * (under_way + 1) / len(counting))
        start = bisect_right(self._points, place(key))
        count = len(self._points)
        for step in range(count):
            owner = self._owners[(start + step) % count]
            if owner.in_flight < most and (counting is endpoints or owner in counting):
                return owner
        raise AssertionError("one of the endpoints has no more calls under way than the mean")

    def _lay_out(self, endpoints: Sequence[Picked]) -> None:
        self._places = {endpoint.address: self._places_of(endpoint.address) for endpoint in endpoints}
        ring = [(point, number) for number, one in enumerate(endpoints) for point in self._places[one.address]]
        ring.sort()
        self._points = [point for point, _ in ring]
        self._owners = [endpoints[number] for _, number in ring]
        self._of = endpoints

    def _places_of(self, address: str) -> list[int]:
        known = self._places.get(address)
        return known if known is not None else [place(b"%s#%d" % (address.encode(), n)) for n in range(POINTS)]
