"""Balance by turn, by weight and by key: even shares, few moves, and nobody overrun."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.policy.unhurried_support import UNHURRIED

from polywire.contract.policies import Balance
from polywire.policy.balance import LeastBusy, choose, eligible
from polywire.policy.balance_hash import ByKey, place
from polywire.policy.balance_kinds import balancer_of
from polywire.policy.balance_rotation import RoundRobin, Weighted


@dataclass(eq=False)
class Endpoint:
    address: str
    in_flight: int = 0
    usable: bool = True


def endpoints(count: int) -> list[Endpoint]:
    return [Endpoint(f"10.0.0.{number}:50051") for number in range(count)]


def keys(count: int) -> list[bytes]:
    return [b"customer-%d" % number for number in range(count)]


@pytest.mark.parametrize(
    ("policy", "kind"),
    [
        (Balance(), LeastBusy),
        (Balance(by="round_robin"), RoundRobin),
        (Balance(by="weighted", weights={"a": 2}), Weighted),
        (Balance(by="by_key"), ByKey),
        (Balance(by="by_key", enabled=False), LeastBusy),
    ],
)
def test_what_is_declared_is_what_balances(policy: Balance, kind: type[Any]) -> None:
    assert type(balancer_of(policy)) is kind


KINDS = [Balance(by=by) for by in ("least_busy", "round_robin", "weighted", "by_key")]


@pytest.mark.parametrize("policy", KINDS, ids=lambda policy: policy.by)
@UNHURRIED
@given(data=st.data())
def test_whatever_balances_takes_a_usable_endpoint_that_was_not_tried_while_there_is_one(
    policy: Balance, data: st.DataObject
) -> None:
    balancer = balancer_of(policy)
    all_of_them = endpoints(data.draw(st.integers(1, 6)))
    for _ in range(5):
        for endpoint in all_of_them:
            endpoint.usable = data.draw(st.booleans())
            endpoint.in_flight = data.draw(st.integers(0, 5))
        tried = data.draw(st.lists(st.sampled_from(all_of_them), max_size=4))
        picked = balancer.pick(all_of_them, data.draw(st.floats(0, 1, exclude_max=True)), tried, b"key")
        untried = [endpoint for endpoint in all_of_them if endpoint not in tried]
        best = [endpoint for endpoint in untried if endpoint.usable] or untried or all_of_them
        assert picked in best
        assert list(eligible(all_of_them, tried)) == best


@UNHURRIED
@given(st.integers(4, 9), st.data())
def test_the_power_of_two_choices_is_even_among_those_that_count(count: int, data: st.DataObject) -> None:
    all_of_them = endpoints(count)
    for endpoint in data.draw(st.lists(st.sampled_from(all_of_them), max_size=count - 3, unique=True)):
        endpoint.usable = False
    tried = data.draw(st.lists(st.sampled_from(all_of_them), max_size=1))
    best = eligible(all_of_them, tried)
    dice = random.Random(data.draw(st.integers(0, 2**32)))
    drawn = Counter(choose(all_of_them, dice.random(), tried).address for _ in range(len(best) * 300))
    assert set(drawn) == {endpoint.address for endpoint in best}
    assert min(drawn.values()) > 300 * 0.6
    assert max(drawn.values()) < 300 * 1.5


# ---- in turn ----


def test_each_gets_its_turn() -> None:
    three, robin = endpoints(3), RoundRobin[Endpoint]()
    order = [three.index(robin.pick(three, 0.5)) for _ in range(7)]
    assert order == [1, 2, 0, 1, 2, 0, 1]


def test_an_endpoint_that_is_left_out_does_not_double_the_share_of_its_neighbour_alone() -> None:
    four, robin = endpoints(4), RoundRobin[Endpoint]()
    four[1].usable = False
    order = [four.index(robin.pick(four, 0.0)) for _ in range(6)]
    assert order == [0, 2, 3, 0, 2, 3]


@UNHURRIED
@given(st.lists(st.integers(1, 6), min_size=1, max_size=40))
def test_turns_stay_even_while_endpoints_come_and_go(counts: list[int]) -> None:
    robin = RoundRobin[Endpoint]()
    pool = endpoints(6)
    for count in counts:
        seen = Counter(robin.pick(pool[:count], 0.3).address for _ in range(count * 3))
        assert set(seen.values()) == {3}


# ---- by weight ----


def test_weights_are_interleaved_as_nginx_does() -> None:
    three = [Endpoint("a"), Endpoint("b"), Endpoint("c")]
    weighted = Weighted[Endpoint]({"a": 5})
    assert "".join(weighted.pick(three, 0.0).address for _ in range(14)) == "aabacaa" * 2


@UNHURRIED
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 60))
def test_at_no_time_is_a_share_more_than_one_call_per_endpoint_away_from_its_weight(
    weights: list[int], calls: int
) -> None:
    pool = endpoints(len(weights))
    weighted = Weighted[Endpoint]({one.address: weight for one, weight in zip(pool, weights, strict=True)})
    seen = Counter(weighted.pick(pool, 0.0).address for _ in range(calls))
    for one, weight in zip(pool, weights, strict=True):
        assert abs(seen[one.address] - calls * weight / sum(weights)) < len(weights)


def test_endpoints_that_are_gone_are_forgotten() -> None:
    weighted = Weighted[Endpoint]({})
    for number in range(1000):
        weighted.pick([Endpoint(f"a{number}"), Endpoint(f"b{number}")], 0.0)
    assert len(weighted._credit) <= 4


# ---- by key ----


def owners(balancer: ByKey[Endpoint], pool: Sequence[Endpoint], names: Sequence[bytes]) -> dict[bytes, str]:
    return {name: balancer.pick(pool, 0.5, (), name).address for name in names}


def test_a_key_stays_with_its_endpoint_in_every_process_and_order() -> None:
    pool = endpoints(5)
    first = owners(ByKey(), pool, keys(300))
    assert owners(ByKey(), list(reversed(pool)), keys(300)) == first
    line = "from polywire.policy.balance_hash import place; print(place(b'customer-1'))"
    for seed in ("1", "2"):
        told = subprocess.run(
            [sys.executable, "-c", line], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        )
        assert int(told.stdout) == place(b"customer-1")


@settings(UNHURRIED, max_examples=30)
@given(st.integers(2, 9), st.data())
def test_an_endpoint_that_leaves_moves_its_own_keys_and_no_others(count: int, data: st.DataObject) -> None:
    pool = endpoints(count)
    before = owners(ByKey(), pool, keys(400))
    gone = data.draw(st.sampled_from(pool))
    after = owners(ByKey(), [endpoint for endpoint in pool if endpoint is not gone], keys(400))
    assert all(after[key] == owner for key, owner in before.items() if owner != gone.address)


@settings(UNHURRIED, max_examples=30)
@given(st.integers(1, 9))
def test_an_endpoint_that_joins_takes_keys_and_moves_none_between_others(count: int) -> None:
    pool = endpoints(count + 1)
    before, after = owners(ByKey(), pool[:-1], keys(400)), owners(ByKey(), pool, keys(400))
    moved = {key for key in before if before[key] != after[key]}
    assert {after[key] for key in moved} <= {pool[-1].address}
    assert len(moved) < 400 / (count + 1) * 2


def test_the_same_balancer_follows_endpoints_that_come_and_go() -> None:
    pool, balancer = endpoints(4), ByKey[Endpoint]()
    for some in (pool, pool[:2], pool, pool[1:]):
        assert owners(balancer, some, keys(50)) == owners(ByKey(), some, keys(50))
    assert len(balancer._places) == 3


def test_keys_are_spread_evenly() -> None:
    shares = Counter(owners(ByKey(), endpoints(5), keys(5000)).values())
    assert min(shares.values()) > 1000 * 0.7
    assert max(shares.values()) < 1000 * 1.35


@settings(UNHURRIED, max_examples=50)
@given(st.integers(2, 8), st.sampled_from([1.1, 1.25, 2.0]), st.integers(0, 2**32))
def test_no_endpoint_bears_more_than_its_bounded_share_of_one_hot_key(count: int, load: float, seed: int) -> None:
    pool, balancer, dice = endpoints(count), ByKey[Endpoint](load), random.Random(seed)
    for under_way in range(200):
        picked = balancer.pick(pool, 0.5, (), b"hot" if dice.random() < 0.8 else b"%d" % under_way)
        picked.in_flight += 1
        assert picked.in_flight <= math.ceil(load * (under_way + 1) / count)
    assert sum(endpoint.in_flight for endpoint in pool) == 200


def test_while_nobody_is_overrun_a_hot_key_stays_where_it_belongs() -> None:
    pool, balancer = endpoints(4), ByKey[Endpoint]()
    home = balancer.pick(pool, 0.5, (), b"hot")
    for endpoint in pool:
        endpoint.in_flight = 10
    assert balancer.pick(pool, 0.5, (), b"hot") is home
    home.in_flight = 30
    assert balancer.pick(pool, 0.5, (), b"hot") is not home


def test_a_call_without_a_key_goes_to_the_less_busy_of_two() -> None:
    busy, free = Endpoint("a", 9), Endpoint("b", 1)
    assert {ByKey[Endpoint]().pick([busy, free], dice / 10).address for dice in range(10)} == {"b"}
