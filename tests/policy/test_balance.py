"""Balance: which endpoint gets the next call."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from polywire.policy.balance import choose


@dataclass(eq=False)
class Endpoint:
    name: str
    in_flight: int = 0
    usable: bool = True


def test_of_two_endpoints_the_less_busy_one_is_chosen() -> None:
    busy, free = Endpoint("busy", 5), Endpoint("free", 1)
    assert {choose([busy, free], dice / 10).name for dice in range(10)} == {"free"}


@given(st.integers(2, 9), st.integers(0, 2**32))
def test_every_pair_of_different_endpoints_is_drawn_equally_often(count: int, seed: int) -> None:
    dice = random.Random(seed)
    endpoints = [Endpoint(str(i)) for i in range(count)]
    drawn = Counter(choose(endpoints, dice.random()).name for _ in range(count * 300))
    assert len(drawn) == count
    assert min(drawn.values()) > 300 * 0.6
    assert max(drawn.values()) < 300 * 1.5


def test_the_busiest_of_many_is_never_chosen() -> None:
    dice = random.Random(1)
    endpoints = [Endpoint("busiest", 10), *(Endpoint(str(i), i) for i in range(5))]
    assert "busiest" not in {choose(endpoints, dice.random()).name for _ in range(2000)}


def test_an_unusable_endpoint_is_left_out_while_there_is_another() -> None:
    down, up = Endpoint("down", usable=False), Endpoint("up", 100)
    assert {choose([down, up], dice / 10).name for dice in range(10)} == {"up"}
    assert choose([down], 0.5) is down


def test_an_endpoint_that_was_tried_is_left_out_while_there_is_another() -> None:
    first, second, third = Endpoint("1"), Endpoint("2"), Endpoint("3", usable=False)
    endpoints = [first, second, third]
    assert {choose(endpoints, dice / 10, [first]).name for dice in range(10)} == {"2"}
    assert choose(endpoints, 0.3, [first, second]) is third
    assert choose(endpoints, 0.3, endpoints) in endpoints
