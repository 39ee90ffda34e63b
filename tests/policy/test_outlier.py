"""Ejection: which endpoints are left out, for how long, and how they come back; against a model, and in a pool."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.policy.unhurried_support import UNHURRIED

from polywire.contract.policies import Ejection
from polywire.policy.balance import choose
from polywire.policy.evidence import Evidence
from polywire.policy.outlier import TRIAL_TIME, Ejected, Outliers


@dataclass(eq=False)
class Endpoint:
    address: str
    in_flight: int = 0
    usable: bool = True


def pool(count: int) -> tuple[Endpoint, ...]:
    return tuple(Endpoint(str(number)) for number in range(count))


def outliers(**values: Any) -> Outliers[Endpoint]:
    return Outliers(Ejection(**values))


def fail(one: Outliers[Endpoint], endpoint: Endpoint, now: float, times: int = 5) -> None:
    for _ in range(times):
        one.begin(endpoint, now)
        one.ended(endpoint, now, now, Evidence.SICK)


def succeed(one: Outliers[Endpoint], endpoint: Endpoint, now: float, seconds: float = 0.01) -> None:
    one.begin(endpoint, now - seconds)
    one.succeeded(endpoint, now - seconds, now)


def names(endpoints: Any) -> str:
    return "".join(endpoint.address for endpoint in endpoints)


# ---- the model: for each endpoint, all its attempts by number ----


@dataclass
class Seen:
    out: bool = False
    until: float = 0.0
    trial_since: float | None = None
    counts_from: float = -math.inf
    """The number of the first attempt that counts."""
    row: int = 0
    times: int = 0
    interval: list[tuple[bool, float]] = field(default_factory=list)
    """Of each attempt: whether it failed, and its seconds."""
    counted: list[tuple[bool, float, float]] = field(default_factory=list)
    """Of each attempt that ever counted: whether it failed, when it began, and when it ended."""

    def row_since(self) -> float:
        """When the first of its last *row* failures ended."""
        return self.counted[-self.row][2]

    def rate(self) -> float:
        return sum(failed for failed, _ in self.interval) / len(self.interval)

    def mean(self) -> float:
        good = [seconds for failed, seconds in self.interval if not failed]
        return sum(good) / len(good) if good else 0.0

    def usual(self) -> float:
        return self.mean() if any(not failed for failed, _ in self.interval) else math.inf


@dataclass
class Model:
    policy: Ejection
    count: int
    compare_at: float = -math.inf
    usual: float = math.inf

    def __post_init__(self) -> None:
        self.seen = [Seen() for _ in range(self.count)]

    def rotation(self, now: float, usable: list[bool]) -> list[int]:
        for one in self.seen:
            if one.out and one.trial_since is not None and now - one.trial_since >= TRIAL_TIME:
                self.keep_out(one, now)
        left = [
            number
            for number, one in enumerate(self.seen)
            if not one.out or (one.trial_since is None and now >= one.until)
        ]
        if not left or sum(usable[number] for number in left) / self.count < self.policy.panic:
            return list(range(self.count))
        return left

    def begin(self, number: int, now: float, attempt: int) -> None:
        one = self.seen[number]
        if one.out and one.trial_since is None and now >= one.until:
            one.trial_since = now
            one.counts_from = attempt

    def ended(self, number: int, attempt: int, now: float, how: Evidence, seconds: float) -> None:
        one = self.seen[number]
        if attempt < one.counts_from:
            return
        if one.out:
            if how is Evidence.SICK or (how is Evidence.HEALTHY and self.is_slow(seconds, self.usual)):
                self.keep_out(one, now)
            elif how is Evidence.NONE:
                one.trial_since, one.counts_from = None, math.inf
            else:
                one.out, one.trial_since, one.row, one.interval = False, None, 0, []
                one.counted.append((False, now - seconds, now))
            return
        if how is Evidence.NONE:
            return
        one.interval.append((how is Evidence.SICK, seconds))
        one.counted.append((how is Evidence.SICK, now - seconds, now))
        one.row = one.row + 1 if how is Evidence.SICK else 0
        if one.row >= self.policy.consecutive_failures and self.alone(one):
            self.eject(one, now)
        if now >= self.compare_at:
            self.compare(now)

    def alone(self, one: Seen) -> bool:
        since = one.row_since()
        others = [other for other in self.seen if other is not one and not other.out]
        meanwhile = [each for other in others for each in other.counted if each[2] >= since]
        answered = any(not failed and began >= since for failed, began, _ in meanwhile)
        return answered or (bool(others) and not any(failed for failed, _, _ in meanwhile))

    def compare(self, now: float) -> None:
        self.compare_at = now + self.policy.interval
        seen = sorted(
            (one for one in self.seen if one.interval and not one.out),
            key=lambda one: (one.rate(), one.mean()),
            reverse=True,
        )
        for one in seen:
            if self.is_worse(one, [other for other in seen if other is not one and not other.out]):
                self.eject(one, now)
            else:
                one.times = max(0, one.times - 1)
        self.usual = self.together([one for one in seen if not one.out]).usual()
        counts = [len(one.interval) for one in seen]
        least = self.policy.minimum_calls
        for one, count in zip(seen, counts, strict=True):
            if count >= 5 * least or (count >= least and sum(counts) - count >= least):
                one.interval = []

    def is_worse(self, one: Seen, others: list[Seen]) -> bool:
        together = self.together(others)
        least = self.policy.minimum_calls
        if len(one.interval) < least or len(together.interval) < least:
            return False
        worse = one.rate() - together.rate() >= self.policy.failure_rate
        return worse or self.is_slow(one.mean(), together.usual())

    def is_slow(self, seconds: float, usual: float) -> bool:
        return seconds >= self.policy.slow_floor and seconds >= self.policy.slow_factor * usual

    @staticmethod
    def together(some: list[Seen]) -> Seen:
        return Seen(interval=[attempt for one in some for attempt in one.interval])

    def eject(self, one: Seen, now: float) -> None:
        if sum(other.out for other in self.seen) + 1 <= self.policy.max_ejected * self.count:
            one.out = True
            self.keep_out(one, now)

    def keep_out(self, one: Seen, now: float) -> None:
        one.times += 1
        one.trial_since, one.counts_from = None, math.inf
        one.until = now + min(self.policy.max_time, self.policy.base_time * one.times)


POLICIES = st.builds(
    Ejection,
    consecutive_failures=st.integers(1, 4),
    interval=st.sampled_from([0.5, 2.0]),
    minimum_calls=st.integers(1, 4),
    failure_rate=st.sampled_from([0.25, 0.5]),
    slow_factor=st.just(4.0),
    slow_floor=st.just(0.5),
    base_time=st.just(1.0),
    max_time=st.sampled_from([1.0, 4.0]),
    max_ejected=st.sampled_from([0.25, 0.5, 1.0]),
    panic=st.sampled_from([0.0, 0.5, 1.0]),
)
STEPS = st.one_of(
    st.tuples(st.just("wait"), st.sampled_from([0.25, 1.0, 40.0])),
    st.tuples(st.just("usable"), st.integers(0, 9)),
    st.tuples(st.just("call"), st.integers(0, 9)),
    st.tuples(st.just("call"), st.integers(0, 9)),
    st.tuples(st.sampled_from([Evidence.SICK, Evidence.SICK, Evidence.HEALTHY, Evidence.NONE]), st.integers(0, 9)),
)


@settings(UNHURRIED, max_examples=400)
@given(POLICIES, st.integers(1, 4), st.lists(STEPS, max_size=120))
def test_it_does_what_a_model_does_that_keeps_every_attempt(
    policy: Ejection, count: int, steps: list[tuple[Any, int]]
) -> None:
    real, model, endpoints = Outliers[Endpoint](policy), Model(policy, count), pool(count)
    now, attempt = 1000.0, 0
    under_way: list[tuple[int, int, float]] = []
    for step, which in steps:
        if step == "wait":
            now += which
        elif step == "usable":
            endpoints[which % count].usable ^= True
        rotation = real.rotation(endpoints, now)
        assert [int(endpoint.address) for endpoint in rotation] == model.rotation(now, [e.usable for e in endpoints])
        if step == "call":
            attempt += 1
            endpoint = rotation[which % len(rotation)]
            real.begin(endpoint, now)
            model.begin(int(endpoint.address), now, attempt)
            under_way.append((int(endpoint.address), attempt, now))
        elif isinstance(step, Evidence) and under_way:
            number, ended, began = under_way.pop(which % len(under_way))
            real.ended(endpoints[number], began, now, step)
            model.ended(number, ended, now, step, now - began)
        assert [real.health[e].out for e in endpoints if real.health] == [s.out for s in model.seen if real.health]


# ---- leaving out ----


def test_failures_in_a_row_leave_it_out_and_a_success_in_between_does_not() -> None:
    one, (a, b, c) = outliers(), pool(3)
    one.rotation((a, b, c), 0.0)
    fail(one, a, 0.0, 4)
    succeed(one, a, 0.1)
    fail(one, a, 0.1, 4)
    assert not one.health[a].out
    fail(one, a, 0.1, 1)
    assert one.health[a].out


@pytest.mark.parametrize("count", [2, 3, 10])
def test_trouble_that_all_share_leaves_nobody_out(count: int) -> None:
    one, endpoints = outliers(), pool(count)
    one.rotation(endpoints, 0.0)
    for endpoint in endpoints:
        succeed(one, endpoint, 0.9)
        one.begin(endpoint, 0.95)
    fail(one, endpoints[0], 1.0, 1)
    for endpoint in endpoints[1:]:
        # Sent when all was well, answered later: that says nothing of now.
        one.succeeded(endpoint, 0.95, 1.001)
    dice = random.Random(count)
    for call in range(500):
        now = 1.01 + call / 100
        fail(one, endpoints[call] if call < count else choose(one.rotation(endpoints, now), dice.random()), now, 1)
    assert one.rotation(endpoints, 7.0) is endpoints


def test_one_that_fails_on_is_left_out_once_another_is_well_again() -> None:
    one, endpoints = outliers(), pool(3)
    one.rotation(endpoints, 0.0)
    for call in range(30):
        fail(one, endpoints[call % 3], call / 100, 1)
    assert one.rotation(endpoints, 0.3) is endpoints
    succeed(one, endpoints[1], 0.5)
    fail(one, endpoints[0], 0.5, 1)
    assert names(one.rotation(endpoints, 0.6)) == "12"


def test_one_that_gets_all_calls_is_left_out_though_nobody_knows_of_the_others() -> None:
    one, endpoints = outliers(), pool(2)
    one.rotation(endpoints, 0.0)
    fail(one, endpoints[0], 0.0)
    assert names(one.rotation(endpoints, 0.1)) == "1"
    fail(one, endpoints[1], 0.1, 50)
    assert names(one.rotation(endpoints, 0.2)) == "1"


def test_an_endpoint_that_fails_more_often_than_the_others_is_left_out() -> None:
    told: list[Ejected[Endpoint]] = []
    one, endpoints = Outliers(Ejection(), listen=told.append), pool(3)
    one.rotation(endpoints, 0.0)
    succeed(one, endpoints[0], 0.0)
    for call in range(20):
        for endpoint in endpoints:
            if endpoint is endpoints[1] and call % 3 == 0:
                fail(one, endpoint, 0.5, 1)
            else:
                succeed(one, endpoint, 0.5)
    succeed(one, endpoints[0], 1.5)
    assert names(one.rotation(endpoints, 1.6)) == "02"
    assert [(event.endpoint.address, event.out, event.reason, event.seconds) for event in told] == [
        ("1", True, "35% of its calls failed, and 0% of the others'", 1.0)
    ]


def test_where_all_fail_alike_none_is_an_outlier() -> None:
    one, endpoints = outliers(consecutive_failures=1000), pool(4)
    one.rotation(endpoints, 0.0)
    for call in range(200):
        for endpoint in endpoints:
            (fail if call % 2 else succeed)(one, endpoint, call / 20, 1)
    assert one.rotation(endpoints, 10.0) is endpoints


def test_an_endpoint_that_is_much_slower_than_the_others_is_left_out() -> None:
    one, endpoints = outliers(), pool(3)
    one.rotation(endpoints, 0.0)
    for _ in range(10):
        for endpoint in endpoints:
            succeed(one, endpoint, 1.0, 0.5 if endpoint is endpoints[2] else 0.02)
    succeed(one, endpoints[0], 2.5)
    assert names(one.rotation(endpoints, 2.6)) == "01"


def test_an_endpoint_with_few_calls_is_found_slow_in_time() -> None:
    calls = in_a_pool(lambda now: TROUBLES["slow"], rate=10.0, seconds=60.0)
    later = [call for call in calls if call[0] >= 15.0]
    assert sum(call[3] >= 0.1 for call in later) < 0.03 * len(later)


def test_two_that_are_called_in_turn_and_seldom_are_compared() -> None:
    """One has enough calls to be compared before the other has; that is no reason to begin anew with it."""
    one, endpoints = outliers(slow_floor=0.02), pool(2)
    one.rotation(endpoints, 0.0)
    for now in range(1, 20):
        succeed(one, endpoints[now % 2], float(now), seconds=0.5 if now % 2 else 0.01)
    assert names(one.rotation(endpoints, 19.0)) == "0"


def test_what_an_endpoint_did_long_ago_is_forgotten_though_the_others_are_never_called() -> None:
    one, endpoints = outliers(slow_floor=0.02), pool(2)
    one.rotation(endpoints, 0.0)
    for now in range(1, 101):
        succeed(one, endpoints[0], float(now))
    assert one.health[endpoints[0]].calls < 25


def test_quick_answers_are_never_slow() -> None:
    one, endpoints = outliers(slow_floor=0.02), pool(2)
    one.rotation(endpoints, 0.0)
    for _ in range(20):
        succeed(one, endpoints[0], 1.0, 0.0001)
        succeed(one, endpoints[1], 1.0, 0.0150)
    succeed(one, endpoints[0], 2.5)
    assert one.rotation(endpoints, 2.6) is endpoints


@pytest.mark.parametrize(("count", "most"), [(1, 0), (2, 1), (3, 1), (4, 2), (10, 5)])
def test_never_more_than_the_allowed_share_is_left_out(count: int, most: int) -> None:
    one, endpoints = outliers(panic=0.0), pool(count)
    one.rotation(endpoints, 0.0)
    for endpoint in endpoints:
        fail(one, endpoint, 0.0)
    assert len(one.rotation(endpoints, 0.5)) == count - most


def test_where_too_few_are_left_those_left_out_are_used_again() -> None:
    one, endpoints = outliers(), pool(4)
    one.rotation(endpoints, 0.0)
    fail(one, endpoints[0], 0.0)
    fail(one, endpoints[1], 0.0)
    assert names(one.rotation(endpoints, 0.5)) == "23"
    endpoints[2].usable = False
    assert names(one.rotation(endpoints, 0.5)) == "0123"
    endpoints[2].usable = True
    assert names(one.rotation(endpoints, 0.5)) == "23"


def test_the_rotation_is_the_same_object_while_it_is_the_same() -> None:
    one, endpoints = outliers(), pool(3)
    assert one.rotation(endpoints, 0.0) is endpoints
    fail(one, endpoints[0], 0.0)
    assert one.rotation(endpoints, 0.5) is one.rotation(endpoints, 0.6)


def test_cancelled_attempts_and_those_that_say_nothing_do_not_count() -> None:
    one, endpoints = outliers(), pool(2)
    one.rotation(endpoints, 0.0)
    for _ in range(100):
        one.ended(endpoints[0], 0.0, 0.1, Evidence.NONE)
    assert one.health[endpoints[0]].calls == 0
    assert one.rotation(endpoints, 0.2) is endpoints


# ---- coming back ----


def test_each_time_it_is_left_out_for_longer_up_to_the_most() -> None:
    one, endpoints = outliers(base_time=1.0, max_time=4.0), pool(3)
    one.rotation(endpoints, 0.0)
    fail(one, endpoints[0], 0.0)
    now, waits = 0.0, []
    for _ in range(6):
        health = one.health[endpoints[0]]
        waits.append(health.until - now)
        now = health.until
        assert names(one.rotation(endpoints, now)) == "012"
        fail(one, endpoints[0], now, 1)
    assert waits == [1, 2, 3, 4, 4, 4]


def test_one_that_comes_back_is_tried_with_a_single_call() -> None:
    one, endpoints = outliers(), pool(3)
    one.rotation(endpoints, 0.0)
    fail(one, endpoints[0], 0.0)
    assert names(one.rotation(endpoints, 1.0)) == "012"
    one.begin(endpoints[0], 1.0)
    assert names(one.rotation(endpoints, 1.0)) == "12"
    one.succeeded(endpoints[0], 1.0, 1.1)
    assert one.rotation(endpoints, 1.1) is endpoints


def test_one_that_is_still_slow_does_not_come_back() -> None:
    one, endpoints = outliers(), pool(3)
    one.rotation(endpoints, 0.0)
    for _ in range(10):
        for endpoint in endpoints:
            succeed(one, endpoint, 1.0, 0.5 if endpoint is endpoints[2] else 0.02)
    succeed(one, endpoints[0], 2.5)
    for began, seconds, out in ((4.0, 0.5, True), (8.0, 0.03, False)):
        one.begin(endpoints[2], began)
        one.succeeded(endpoints[2], began, began + seconds)
        assert one.health[endpoints[2]].out is out


def test_a_cancelled_trial_leaves_room_for_the_next_one() -> None:
    one, endpoints = outliers(), pool(3)
    one.rotation(endpoints, 0.0)
    fail(one, endpoints[0], 0.0)
    for _ in range(20):
        assert names(one.rotation(endpoints, 1.0)) == "012"
        one.begin(endpoints[0], 1.0)
        one.ended(endpoints[0], 1.0, 1.0, Evidence.NONE)
    one.begin(endpoints[0], 1.0)
    one.succeeded(endpoints[0], 1.0, 1.1)
    assert one.rotation(endpoints, 1.1) is endpoints


def test_results_of_attempts_from_before_it_was_left_out_do_not_count_as_its_trial() -> None:
    one, endpoints = outliers(), pool(3)
    one.rotation(endpoints, 0.0)
    fail(one, endpoints[0], 0.5)
    one.succeeded(endpoints[0], 0.4, 0.9)
    assert one.health[endpoints[0]].out
    one.begin(endpoints[0], 1.5)
    one.succeeded(endpoints[0], 0.4, 1.6)
    one.ended(endpoints[0], 0.4, 1.6, Evidence.NONE)
    assert one.health[endpoints[0]].trial
    one.succeeded(endpoints[0], 1.5, 1.7)
    for _ in range(10):
        one.ended(endpoints[0], 0.4, 1.8, Evidence.SICK)
    assert not one.health[endpoints[0]].out


def test_a_trial_that_never_ends_is_taken_for_failed() -> None:
    one, endpoints = outliers(), pool(3)
    one.rotation(endpoints, 0.0)
    fail(one, endpoints[0], 0.0)
    one.begin(endpoints[0], 1.0)
    assert names(one.rotation(endpoints, 1.0 + TRIAL_TIME - 0.1)) == "12"
    assert names(one.rotation(endpoints, 1.0 + TRIAL_TIME)) == "12"
    assert names(one.rotation(endpoints, 1.0 + TRIAL_TIME + 2.0)) == "012"


def test_endpoints_that_are_gone_are_forgotten_and_the_others_are_not() -> None:
    one, endpoints = outliers(), pool(3)
    one.rotation(endpoints, 0.0)
    fail(one, endpoints[0], 0.0)
    one.begin(endpoints[1], 0.1)
    fewer = endpoints[::2]
    assert names(one.rotation(fewer, 0.2)) == "2"
    one.succeeded(endpoints[1], 0.1, 0.3)
    one.ended(endpoints[1], 0.1, 0.3, Evidence.SICK)
    assert set(one.health) == set(fewer)
    assert one.rotation((endpoints[2],), 0.4) == (endpoints[2],)


# ---- in a pool of three, behind the power of two choices ----


def in_a_pool(
    bad: Callable[[float], tuple[Evidence, float]], *, seconds: float = 30.0, rate: float = 100.0, seed: int = 1
) -> list[tuple[float, int, Evidence, float]]:
    """What happens to calls to three endpoints of which the first does *bad* things: began, endpoint, end, seconds."""
    dice = random.Random(seed)
    one, endpoints = outliers(), pool(3)
    ends: list[tuple[float, int, int, Evidence]] = []
    calls: list[tuple[float, int, Evidence, float]] = []
    now = 0.0
    while now < seconds:
        now += dice.expovariate(rate)
        while ends and ends[0][0] <= now:
            at, number, which, how = heapq.heappop(ends)
            endpoints[which].in_flight -= 1
            one.ended(endpoints[which], calls[number][0], at, how)
        endpoint = choose(one.rotation(endpoints, now), dice.random())
        one.begin(endpoint, now)
        endpoint.in_flight += 1
        which = int(endpoint.address)
        how, takes = bad(now) if which == 0 else (Evidence.HEALTHY, 0.0)
        takes = takes or dice.uniform(0.01, 0.03)
        heapq.heappush(ends, (now + takes, len(calls), which, how))
        calls.append((now, which, how, takes))
    return calls


TROUBLES: dict[str, tuple[Evidence, float]] = {
    "errors at once": (Evidence.SICK, 0.0005),
    "errors": (Evidence.SICK, 0.0),
    "slow": (Evidence.HEALTHY, 0.4),
    "hangs until the deadline": (Evidence.SICK, 1.0),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("trouble", TROUBLES)
def test_one_of_three_in_trouble_touches_at_most_one_call_in_a_hundred_after_the_first_second(
    trouble: str, seed: int
) -> None:
    calls = in_a_pool(lambda now: TROUBLES[trouble], seed=seed)
    after = [call for call in calls if call[0] >= 1.0]
    touched = [call for call in after if call[2] is Evidence.SICK or call[3] >= 0.1]
    assert len(touched) <= 0.01 * len(after)


@pytest.mark.parametrize("trouble", TROUBLES)
def test_one_that_recovers_has_its_share_back_within_five_seconds(trouble: str) -> None:
    calls = in_a_pool(lambda now: TROUBLES[trouble] if now < 20 else (Evidence.HEALTHY, 0.0), seconds=40.0)
    later = [call for call in calls if call[0] >= 25.0]
    assert sum(call[1] == 0 for call in later) > 0.28 * len(later)
