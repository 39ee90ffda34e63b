"""Shedding: who is admitted, and that the limit finds its level; on a modelled service, in virtual time."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.policy.shedding_support import Course, simulate, simulate_bursts, simulate_cancels, simulate_turns
from tests.policy.unhurried_support import UNHURRIED

from polywire.contract.policies import Shedding
from polywire.contract.priority import Priority
from polywire.errors import ResourceExhausted
from polywire.policy.retry import is_retryable
from polywire.policy.shedding import Backlog, Limiter

CAPACITY = 200
"""Calls per second of the modelled service: 5 ms of one processor each."""


def limiter(**values: Any) -> Limiter:
    """One that starts at 100, unless *values* say otherwise."""
    return Limiter(Shedding(**{"limit": 100, **values}), dice=random.Random(1).random)


def usual() -> Limiter:
    """As a service has it of which nothing is said."""
    return Limiter(Shedding(), dice=random.Random(1).random)


# ---- admission ----


@UNHURRIED
@given(
    st.integers(1, 12),
    st.lists(st.tuples(st.sampled_from(["in", "in", "in", "out"]), st.sampled_from(list(Priority))), max_size=80),
)
def test_a_call_is_admitted_exactly_where_its_class_has_room(limit: int, steps: list[tuple[str, Priority]]) -> None:
    """Against a model that keeps the list of calls under way."""
    real = limiter(limit=limit, adaptive=False)
    rooms = {Priority.BACKGROUND: 0.6, Priority.NORMAL: 0.9, Priority.CRITICAL: 1.0}
    under_way: list[Priority] = []
    turned_away = 0
    for step, priority in steps:
        if step == "out" and under_way:
            under_way.pop()
            real.answered(0.0, 0.01)
        elif step == "in":
            room = max(1, int(limit * rooms[priority]))
            admitted = len(under_way) < room
            assert real.admit(priority) == admitted
            if admitted:
                under_way.append(priority)
            turned_away += not admitted
        assert real.in_flight == len(under_way) <= limit
        assert real.shed == turned_away
        assert real.limit == limit


def test_a_call_that_is_turned_away_is_told_when_to_come_again() -> None:
    one = Limiter(Shedding(limit=1, adaptive=False, pushback=0.1), dice=lambda: 0.5)
    assert one.admit(Priority.NORMAL)
    assert not one.admit(Priority.NORMAL)
    error = one.refusal("shop.v1.Inventory/CheckStock")
    assert isinstance(error, ResourceExhausted)
    assert str(error) == (
        "shop.v1.Inventory/CheckStock was not started: the service has as many calls under way as it can answer in "
        "time. Try again in 0.55 s."
    )
    assert error.retry_after == pytest.approx(0.1 * (1 + 9 * 0.5))
    assert is_retryable(error, repeatable=False)


@UNHURRIED
@given(st.integers(0, 100), st.floats(0, 1, exclude_max=True))
def test_pushback_grows_with_the_share_that_is_turned_away_and_is_spread_by_chance(away: int, dice: float) -> None:
    one = Limiter(Shedding(limit=1, adaptive=False, pushback=0.1), dice=lambda: dice)
    for _ in range(away + 1):
        one.admit(Priority.CRITICAL)
    again = one.refusal("m").retry_after
    assert again is not None
    assert again == pytest.approx(0.1 * (1 + 9 * away / (away + 1)) * (0.5 + dice))
    assert 0.05 <= again < 1.5


# ---- whatever happens ----


@settings(UNHURRIED, max_examples=150)
@given(st.data())
def test_the_limit_stays_between_its_bounds_and_every_place_comes_back(data: st.DataObject) -> None:
    policy = Shedding(limit=8, minimum=3, maximum=40, window=0.05, window_calls=data.draw(st.integers(1, 5)))
    one = Limiter(policy, dice=random.Random(1).random)
    dice = random.Random(data.draw(st.integers(0, 2**32)))
    now, under_way = 0.0, []
    for _ in range(data.draw(st.integers(0, 400))):
        now += dice.expovariate(100.0)
        if one.admit(dice.choice(list(Priority))):
            under_way.append(now)
        while under_way and dice.random() < 0.6:
            began = under_way.pop(dice.randrange(len(under_way)))
            end = dice.choice([one.answered, one.answered, one.cut_short])
            if dice.random() < 0.1:
                one.left()
            else:
                end(now, now - began)
        assert one.in_flight == len(under_way)
        assert policy.minimum <= one.limit <= policy.maximum
        assert len(one._samples) <= 128
    for began in under_way:
        one.answered(now, now - began)
    assert one.in_flight == 0


@pytest.mark.parametrize("before", [0.0, 0.01, 0.03, 1.0])
def test_a_walk_ends_between_the_limits_that_it_has_tried(before: float) -> None:
    """However long calls took at the one it came from: no time at all on a clock that stands still, and hardly any
    where it only looked whether less would do."""
    one = limiter(limit=28)
    one._walking, one._walk = True, (40.0, before, 1.0)
    one._walk_on(100.0, 0.0, pinned=True, slow=False)
    assert not one._walking
    assert 28 <= one.limit <= 40


# ---- overload ----


@pytest.fixture(scope="module")
def unloaded() -> float:
    """The p99 of the modelled service without load, in seconds."""
    return simulate(limiter(adaptive=False), seconds=20, rate=lambda now: 40).p99(0, 20)


@pytest.mark.parametrize("seed", range(4))
def test_at_twice_its_capacity_it_keeps_its_goodput_and_what_it_accepts_is_quick(seed: int, unloaded: float) -> None:
    course = simulate(limiter(), seconds=25, rate=lambda now: 2 * CAPACITY, seed=seed)
    assert course.goodput(5, 24) >= 0.9 * CAPACITY
    assert course.p99(5, 24) < 3 * unloaded


@settings(UNHURRIED, max_examples=12)
@given(
    st.sampled_from([0.002, 0.005, 0.02]),
    st.sampled_from([0.01, 0.05, 0.2]),
    st.sampled_from([1.2, 2.0, 4.0]),
    st.integers(0, 2**16),
)
def test_whatever_the_service_is_like_it_keeps_its_goodput(
    work: float, dependency: float, load: float, seed: int
) -> None:
    capacity = 1 / work
    course = simulate(
        limiter(), seconds=70, rate=lambda now: load * capacity, work=work, dependency=lambda now: dependency, seed=seed
    )
    # The slowest of these has 50 calls per second, and a limit to begin with at which all of them are late.
    assert course.goodput(40, 69) >= 0.85 * capacity
    # As slow as without load, and a queue that is about as long again.
    assert course.p99(40, 69) < 3 * (1.2 * dependency + 1.5 * work) + 5 * work * 4


@pytest.mark.parametrize("seed", range(3))
def test_after_the_overload_nobody_is_turned_away_any_more(seed: int) -> None:
    course = simulate(limiter(), seconds=30, rate=lambda now: 2 * CAPACITY if 5 <= now < 20 else 150, seed=seed)
    assert course.shed_between(6, 20) > 1000
    assert course.shed_between(22, 30) <= 0.02 * 150 * 8
    assert course.goodput(21, 29) >= 0.9 * 150


@pytest.mark.parametrize(("limit", "work"), [(1000, 0.005), (100, 0.02)])
def test_a_limit_that_is_far_too_high_comes_down_though_nearly_all_calls_miss_their_deadline(
    limit: int, work: float
) -> None:
    course = simulate(
        limiter(limit=limit),
        seconds=80,
        rate=lambda now: 4 / work,
        work=work,
        dependency=lambda now: 0.01,
        deadline=1.0,
        seed=3,
    )
    assert max(course.limits_between(60, 80)) < 40
    assert course.goodput(60, 79) >= 0.85 / work
    assert course.p99(60, 79) < 0.3


@pytest.mark.parametrize("seed", [1, 3])
def test_it_does_not_stay_at_its_minimum_by_looking_whether_less_would_do(seed: int) -> None:
    course = simulate(limiter(), seconds=80, rate=lambda now: 200, work=0.02, dependency=lambda now: 0.05, seed=seed)
    assert course.goodput(50, 79) >= 0.9 * 50


def test_an_overload_that_lasts_does_not_raise_the_limit_without_end() -> None:
    """Netflix/concurrency-limits#134: the long-term average follows the overload, and the limit follows that."""
    course = simulate(limiter(), seconds=200, rate=lambda now: 1.25 * CAPACITY)
    assert max(course.limits_between(100, 200)) <= 40
    assert course.p99(100, 199) < 0.2


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("load", [1.25, 2.0, 4.0])
def test_on_an_event_loop_it_keeps_its_goodput_too(load: float, seed: int) -> None:
    """Calls are read all at once between two turns of the loop, and worked off all at once: no window looks alike."""
    alone = simulate_turns(usual(), seconds=20, rate=lambda now: 40).p99(0, 20)
    course = simulate_turns(usual(), seconds=40, rate=lambda now: load * CAPACITY, seed=seed)
    assert course.goodput(5, 39) >= 0.9 * CAPACITY
    # What is read at once waits for a turn, and is worked off in the next one.
    assert course.p99(20, 39) < 6 * alone
    assert max(course.limits_between(20, 39)) < 40


@pytest.mark.parametrize("seed", range(5))
def test_once_it_has_found_its_level_it_stays_near_it(seed: int) -> None:
    """A limit that came down by a third whenever calls were a little slow cost a tenth of the goodput."""
    course = simulate_turns(usual(), seconds=40, rate=lambda now: 2 * CAPACITY, seed=seed)
    assert min(course.goodput(second, second + 5) for second in range(5, 34)) >= 0.94 * CAPACITY
    assert course.p99(5, 39) < 0.1


@pytest.mark.parametrize("seed", range(3))
def test_on_an_event_loop_it_finds_its_level_in_a_few_seconds(seed: int) -> None:
    course = simulate_turns(usual(), seconds=10, rate=lambda now: 2 * CAPACITY, seed=seed)
    assert max(course.limits_between(5, 10)) < 40


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("load", [4.0, 8.0])
def test_on_an_event_loop_that_is_far_behind_it_comes_down_fast(load: float, seed: int) -> None:
    """Which calls are the quick ones is up to chance there, and each step lasts as long as a call takes."""
    course = simulate_turns(usual(), seconds=12, rate=lambda now: load * CAPACITY, seed=seed)
    assert max(course.limits_between(6, 12)) < 40
    assert course.goodput(6, 11) >= 0.9 * CAPACITY


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("load", [0.5, 0.85])
def test_on_an_event_loop_that_keeps_up_hardly_a_call_is_turned_away(load: float, seed: int) -> None:
    course = simulate_turns(usual(), seconds=60, rate=lambda now: load * CAPACITY, seed=seed)
    assert course.shed_between(0, 60) <= 0.01 * 60 * load * CAPACITY


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("model", [simulate, simulate_turns])
def test_as_it_is_by_default_next_to_nobody_is_turned_away_at_four_fifths_of_its_capacity(
    model: Callable[..., Course], seed: int
) -> None:
    course = model(usual(), seconds=60, rate=lambda now: 0.8 * CAPACITY, seed=seed)
    assert course.shed_between(0, 60) <= 0.001 * 60 * 0.8 * CAPACITY


@pytest.mark.parametrize("seed", range(3))
def test_as_it_is_by_default_it_keeps_its_goodput_at_twice_its_capacity(seed: int) -> None:
    course = simulate(usual(), seconds=40, rate=lambda now: 2 * CAPACITY, seed=seed)
    assert course.goodput(2, 39) >= 0.9 * CAPACITY
    assert course.p99(20, 39) < 0.15


def test_quick_calls_are_never_taken_for_slow_ones() -> None:
    """A batch job keeps 20 calls of 0.1 ms going, then 200: each waits for the others, and nobody minds."""
    one = usual()
    now = 0.0
    for _ in range(50):
        now += 0.01
        assert one.admit(Priority.NORMAL)
        one.answered(now, 0.0001)
    began: list[float] = []
    for at_once in (20, 200):
        while len(began) < at_once:
            assert one.admit(Priority.NORMAL)
            began.append(now)
        for _ in range(20_000):
            now += 0.0001
            one.answered(now, now - began.pop(0))
            assert one.admit(Priority.NORMAL)
            began.append(now)
    assert one.shed == 0


def test_it_comes_down_to_its_minimum_and_no_lower() -> None:
    course = simulate(limiter(minimum=12), seconds=40, rate=lambda now: 4 * CAPACITY)
    assert min(course.limits_between(0, 40)) == 12


@pytest.mark.parametrize("seed", range(3))
def test_a_few_calls_that_become_slow_do_not_make_it_turn_away_the_next_ones(seed: int) -> None:
    """Five calls per second of a service that is held up, and twenty at once after that."""
    one = usual()
    now, dice = 0.0, random.Random(seed)
    for number in range(600):
        now += 0.2
        assert one.admit(Priority.NORMAL)
        one.answered(now, dice.choice([0.5, 0.9]) if number > 100 else 0.03)
    assert all(one.admit(Priority.NORMAL) for _ in range(20))


# ---- streams ----


def test_streams_are_counted_apart_once_they_have_opened() -> None:
    one = limiter(limit=4, minimum=1, adaptive=False, streams=10)
    for opened in range(1, 10):
        assert one.admit_stream(Priority.NORMAL)
        assert (one.in_flight, one.streams) == (1, opened)
        one.left()
    assert not one.admit_stream(Priority.NORMAL)
    assert one.admit_stream(Priority.CRITICAL)
    assert not one.admit_stream(Priority.CRITICAL)
    one.left()
    one.stream_ended()
    assert (one.in_flight, one.streams, one.shed) == (0, 9, 2)
    assert one.usual == 0.0


def test_a_stream_that_there_is_no_place_for_is_not_counted() -> None:
    one = limiter(limit=1, adaptive=False, normal=1.0)
    assert one.admit(Priority.NORMAL)
    assert not one.admit_stream(Priority.NORMAL)
    assert (one.in_flight, one.streams, one.shed) == (1, 0, 1)


# ---- what waits to be read ----


def test_calls_count_from_when_the_loop_was_busy_with_others() -> None:
    used = 0.0
    backlog = Backlog(lambda: used)
    assert backlog.turn(10.0) == 0.0  # nobody knows what was before
    used = 0.05
    assert backlog.turn(10.06) == 0.05
    assert backlog.seconds == 0.05
    used = 0.051
    assert backlog.turn(11.0) == pytest.approx(0.001)  # it was idle nearly all the time
    used = 9.0
    assert backlog.turn(11.5) == 0.5  # not longer than since the last turn


def test_what_is_read_soon_after_the_turn_before_has_not_waited() -> None:
    used = 1.0
    backlog = Backlog(lambda: used)
    assert backlog.turn(10.0) == 0.0
    used = 1.05
    assert backlog.turn(10.06) == pytest.approx(0.05)
    assert backlog.turn(10.0605) == 0.0
    assert backlog.seconds == 0.0
    used = 1.07
    assert backlog.turn(10.09) == pytest.approx(0.02)


# ---- what is no overload ----


@pytest.mark.parametrize("seed", range(3))
def test_a_dependency_that_became_slow_is_not_taken_for_load(seed: int) -> None:
    """The gradient limits take it for that, and shed nearly everything: 150 calls per second of one second each."""
    course = simulate(
        limiter(),
        seconds=45,
        rate=lambda now: 150,
        work=0.001,
        dependency=lambda now: 1.0 if 5 <= now < 30 else 0.02,
        deadline=5.0,
        seed=seed,
    )
    assert min(course.limits_between(5, 45)) >= 60
    assert course.goodput(6, 15) >= 0.5 * 150
    assert course.shed_between(15, 45) == 0


@pytest.mark.parametrize("seed", range(3))
def test_nor_is_it_right_after_an_overload(seed: int) -> None:
    """What the overload has shown says nothing of a dependency that becomes slow half a second later."""
    course = simulate(
        usual(),
        seconds=60,
        rate=lambda now: 2 * CAPACITY if 5 <= now < 20 else 150,
        dependency=lambda now: 0.02 if now < 20.5 else 0.2,
        seed=seed,
    )
    assert course.shed_between(22, 60) <= 0.015 * 150 * 38


def test_calls_that_hang_do_not_take_the_others_down() -> None:
    """Half of the calls need something that hangs until their deadline; the other half is answered as before."""
    dice = random.Random(3)
    course = simulate(
        limiter(),
        seconds=40,
        rate=lambda now: 150,
        work=0.001,
        dependency=lambda now: 3.0 if 5 <= now < 25 and dice.random() < 0.5 else 0.02,
    )
    assert course.shed_between(0, 40) == 0
    assert course.goodput(6, 24) >= 0.45 * 150


def test_when_everything_hung_it_is_back_soon_after() -> None:
    course = simulate(
        limiter(), seconds=40, rate=lambda now: 150, work=0.001, dependency=lambda now: 3.0 if 5 <= now < 25 else 0.02
    )
    assert course.goodput(28, 39) >= 0.95 * 150
    assert course.shed_between(29, 40) <= 30


@pytest.mark.parametrize("seed", range(3))
def test_it_does_not_ratchet_down_by_the_noise_of_its_own_queue(seed: int) -> None:
    """At 85 % of the capacity queues come and go by chance; hardly a call is turned away, early or late."""
    course = simulate(limiter(), seconds=120, rate=lambda now: 0.85 * CAPACITY, seed=seed)
    assert course.shed_between(0, 120) <= 0.015 * 120 * 170
    assert course.shed_between(90, 120) <= 0.02 * 30 * 170


def test_bursts_of_calls_that_have_become_slow_are_not_turned_away_for_good() -> None:
    """A dependency became slow while there was little to do: the limit came near, and is in the way of what comes."""
    one = usual()
    shed = simulate_bursts(
        one,
        seconds=600,
        burst=lambda now: 10 if now < 60 else 30 if now < 90 else 75,
        every=0.2,
        took=lambda now: 0.02 if now < 60 else 0.045,
    )
    assert shed[1] < 0.1
    assert [shed[minute] for minute in range(2, 10)] == [0.0] * 8
    assert one.usual == pytest.approx(0.045)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("size", "every", "between"), [(75, 1.0, 100.0), (75, 0.5, 50.0), (100, 1.0, 300.0), (75, 2.0, 20.0)]
)
def test_nor_are_they_where_others_come_between_the_bursts(size: int, every: float, between: float, seed: int) -> None:
    """Windows with a burst in them and windows without one: in those nobody is turned away."""
    shed = simulate_bursts(
        usual(),
        seconds=300,
        burst=lambda now: 0 if now < 60 else size,
        every=every,
        took=lambda now: 0.02 if now < 60 else 0.045,
        between=between,
        seed=seed,
    )
    assert shed[1] < 0.5
    assert [shed[minute] for minute in (2, 3, 4)] == [0.0] * 3


def test_experiments_cost_a_service_that_only_waits_little() -> None:
    """It is held back by its highest limit, so that it is looked at now and then whether less would do."""
    course = simulate(
        limiter(limit=50, maximum=50), seconds=200, rate=lambda now: 300, work=0.0005, dependency=lambda now: 0.2
    )
    most = 45 / 0.2
    assert course.goodput(10, 199) >= 0.93 * most


def test_callers_that_give_up_early_do_not_move_the_limit() -> None:
    """Netflix/concurrency-limits#146: cancelled calls were taken for overload."""
    one = limiter(limit=10, window_calls=5)
    now = 0.0
    for _ in range(50):
        now += 0.01
        assert one.admit(Priority.NORMAL)
        one.answered(now + 0.02, 0.02)
    before = one.limit
    for _ in range(500):
        now += 0.01
        assert one.admit(Priority.NORMAL)
        one.cut_short(now, 0.001)
    assert one.limit == before
    assert one.usual == pytest.approx(0.02)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("rate", "least", "most", "share"), [(5000, 0.005, 0.015, 0.2), (1500, 0.02, 0.06, 0.26), (1500, 0.02, 0.06, 0.6)]
)
def test_callers_that_cancel_for_reasons_of_their_own_make_nobody_be_turned_away(
    rate: float, least: float, most: float, share: float, seed: int
) -> None:
    """However many there are: calls take what they take, and nothing waits for anything."""
    services, shed = simulate_cancels(
        seconds=15, rate=rate, took=lambda now, dice: dice.uniform(least, most), cancelled=share, seed=seed
    )
    assert sum(shed.values()) == 0
    assert services.limiter is not None
    assert services.limiter.limit >= 300
    assert least <= services.limiter.usual < 1.2 * least


@pytest.mark.parametrize("share", [0.2, 0.4])
def test_nor_do_they_where_a_dependency_has_become_slow(share: float) -> None:
    _, shed = simulate_cancels(
        seconds=40,
        rate=1000,
        took=lambda now, dice: dice.uniform(0.02, 0.06) * (4 if now > 10 else 1),
        cancelled=share,
    )
    assert sum(shed.values()) == 0


def test_quick_calls_that_end_at_their_deadlines_are_no_overload_either() -> None:
    """Whoever has 15 ms for what takes 5 to 25 often stops in vain; fewer at once would not make it quicker."""
    one = usual()
    dice, now, shed = random.Random(1), 0.0, 0
    ends: list[tuple[float, float]] = []
    while now < 15:
        now += dice.expovariate(3000)
        ends.sort()
        while ends and ends[0][0] <= now:
            at, seconds = ends.pop(0)
            (one.cut_short if seconds == 0.015 else one.answered)(at, seconds)
        if one.admit(Priority.NORMAL):
            seconds = min(0.015, dice.uniform(0.005, 0.025))
            ends.append((now + seconds, seconds))
        else:
            shed += 1
    assert shed == 0


@pytest.mark.parametrize("seed", range(3))
def test_callers_that_all_leave_at_a_deadline_that_they_keep_to_themselves_show_overload(seed: int) -> None:
    """A browser, or a proxy, sends no deadline: the service hears of it when they go, and then of nothing else."""
    free_at = 0.0

    def queued(now: float, dice: random.Random) -> float:
        """Seconds of the one database, which works off what nobody waits for as well."""
        nonlocal free_at
        free_at = max(free_at, now + 0.02) + dice.uniform(0.5, 1.5) / CAPACITY
        return free_at - now

    services, shed = simulate_cancels(
        seconds=60, rate=4 * CAPACITY, took=queued, cancelled=0.0, timeout=None, patience=1.0, seed=seed
    )
    answered = services.counters["restless.v1.Restless/Get"].codes["ok"]
    assert answered >= 0.8 * 60 * CAPACITY
    assert sum(shed.values()) >= 2.5 * 60 * CAPACITY


def test_calls_that_were_turned_away_are_not_taken_for_quick_ones() -> None:
    """Netflix/concurrency-limits#176: their time is nearly none."""
    one = limiter(limit=4, minimum=1, window_calls=5)
    now = 0.0
    for _ in range(200):
        now += 0.05
        admitted = [one.admit(Priority.CRITICAL) for _ in range(100)]
        for _ in range(sum(admitted)):
            one.answered(now, 0.05)
    assert one.usual == pytest.approx(0.05)


def test_calls_that_came_under_a_higher_limit_are_not_measured_for_a_lower_one() -> None:
    """Envoy#11579: they kept raising what was taken for the time without load."""
    one = limiter(limit=100, minimum=4)
    for _ in range(20):
        assert one.admit(Priority.CRITICAL)
        one.answered(0.2, 0.01)
    assert one.usual == 0.01
    # A queue that is always full: each call takes 5 ms, and waits for those before it.
    now, began = 0.2, []
    for _ in range(4000):
        while one.admit(Priority.CRITICAL):
            began.append(now)
        now += 0.005
        one.answered(now, now - began.pop(0))
        assert one.usual <= 0.025
    assert one.limit < 10


# ---- classes ----


def test_critical_calls_are_the_last_to_be_turned_away_and_background_the_first() -> None:
    course = simulate(
        limiter(),
        seconds=30,
        rate=lambda now: 2 * CAPACITY,
        priority=lambda dice: dice.choice([0, 0, 0, 1, 1, 1, 1, 1, 1, 2]),
    )
    shares = [course.turned_away[priority] / course.came[priority] for priority in Priority]
    assert shares[Priority.BACKGROUND] > shares[Priority.NORMAL] > shares[Priority.CRITICAL]
    assert shares[Priority.BACKGROUND] > 0.7
    assert shares[Priority.CRITICAL] < 0.15


def test_a_static_limit_does_not_move() -> None:
    course = simulate(limiter(limit=10, adaptive=False), seconds=10, rate=lambda now: 2 * CAPACITY)
    assert set(course.limits_between(0, 10)) == {10}
    assert course.goodput(2, 9) >= 0.9 * CAPACITY
