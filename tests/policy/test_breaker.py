"""The breaker: when it opens, whom it lets through to try, and when it closes; against a model that remembers all."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.policy.unhurried_support import UNHURRIED

from polywire.contract.policies import Breaker
from polywire.errors import (
    BY_CODE,
    DO_NOT_RETRY,
    CallError,
    Cancelled,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from polywire.policy.breaker import REFUSED, Change, CircuitBreaker, State
from polywire.policy.evidence import Evidence, evidence
from polywire.policy.retry import is_retryable
from polywire.policy.window import CountWindow, TimeWindow

DOWN = Unavailable("x")


def breaker(**values: Any) -> CircuitBreaker:
    values = {"minimum_calls": 4, "trials": 2, "open_time": 5.0, "max_open_time": 30.0, "jitter": 0.0} | values
    return CircuitBreaker(Breaker(**values), "inventory")


def opened(at: float = 1000.0, **values: Any) -> CircuitBreaker:
    """A breaker that four failures opened at *at*."""
    found = breaker(**values)
    for _ in range(4):
        found.failed(found.admit(at), DOWN, at, 0.1)
    assert found.state is State.OPEN
    return found


def state_of(one: CircuitBreaker) -> State:
    return one.state


def test_a_permit_holds_until_the_state_that_gave_it_is_over() -> None:
    held = breaker()
    early = held.admit(1000.0)
    assert held.holds(early)
    assert not held.holds(REFUSED)
    for _ in range(4):
        held.failed(held.admit(1000.0), DOWN, 1000.0, 0.1)
    assert not held.holds(early)
    assert not held.holds(REFUSED)
    trial, other = held.admit(1005.0), held.admit(1005.0)
    assert held.holds(trial)
    held.release(trial)
    assert not held.holds(trial)
    for permit in (other, held.admit(1005.0)):
        held.succeeded(permit, 1005.0, 0.1)
    assert state_of(held) is State.CLOSED
    assert not any(map(held.holds, (early, trial, other)))
    assert held.holds(held.admit(1005.0))


# ---- the model: every call there ever was, and the rules as they are written down ----


@dataclass
class Ended:
    at: float
    failed: bool
    slow: bool


@dataclass
class Model:
    """What a breaker does, from the list of all calls; *window* is ten seconds, in whole seconds."""

    policy: Breaker
    state: str = "closed"
    era: int = 0
    calls: list[Ended] = field(default_factory=list)
    """That ended in this era."""
    under_way: list[int] = field(default_factory=list)
    """The trials that were let through and have not ended."""
    entered: float = 0.0
    """When this era began."""
    tried_since: float = 0.0
    """When the first of the trials began, counted from when there was none under way."""
    times: int = 0
    open_time: float = 0.0
    closed_at: float = float("-inf")

    def admit(self, now: float, call: int) -> bool:
        if self.state == "open" and now >= self.entered + self.open_time:
            self.enter("half_open", now)
        elif self.under_way and now >= self.tried_since + self.policy.trial_time:
            self.trip(now)
        if self.state == "half_open":
            if len(self.under_way) + len(self.calls) >= self.policy.trials:
                return False
            if not self.under_way:
                self.tried_since = now
            self.under_way.append(call)
        return self.state != "open"

    def ended(self, now: float, call: int, era: int, outcome: str, slow: bool) -> None:
        if era != self.era:
            return
        if self.state == "half_open":
            if call not in self.under_way:
                return
            self.under_way.remove(call)
        if outcome != "nothing":
            self.calls.append(Ended(now, outcome == "failed", slow))
            if self.state == "half_open":
                self.try_out(now)
            elif outcome == "failed" or slow:
                self.look_back(now)

    def try_out(self, now: float) -> None:
        if self.too_bad(self.calls, self.policy.trials):
            self.trip(now)
        elif len(self.calls) == self.policy.trials:
            self.enter("closed", now)
            self.closed_at = now

    def look_back(self, now: float) -> None:
        if self.policy.window_calls is None:
            seen = [call for call in self.calls if int(call.at) > int(now) - 10]
        else:
            seen = self.calls[-self.policy.window_calls :]
        if len(seen) >= self.policy.minimum_calls and self.too_bad(seen, len(seen)):
            self.trip(now)

    def too_bad(self, calls: list[Ended], of: int) -> bool:
        failures = sum(call.failed for call in calls)
        slow = sum(call.slow for call in calls)
        return failures / of >= self.policy.failure_rate or slow / of >= self.policy.slow_rate

    def trip(self, now: float) -> None:
        if self.state == "closed" and now - self.closed_at >= self.open_time:
            self.times = 0
        self.open_time = min(self.policy.max_open_time, self.policy.open_time * self.policy.growth**self.times)
        self.times += 1
        self.enter("open", now)

    def enter(self, state: str, now: float) -> None:
        self.state = state
        self.era += 1
        self.entered = now
        self.calls = []
        self.under_way = []


POLICIES = st.builds(
    Breaker,
    window=st.just(10.0),
    window_calls=st.sampled_from([None, 6, 9]),
    minimum_calls=st.integers(1, 6),
    failure_rate=st.sampled_from([0.25, 0.5, 1.0]),
    slow_after=st.just(1.0),
    slow_rate=st.sampled_from([0.5, 0.75, 1.0]),
    trials=st.integers(1, 4),
    trial_time=st.sampled_from([4.0, 30.0]),
    open_time=st.sampled_from([1.0, 5.0]),
    growth=st.sampled_from([1.0, 2.0]),
    max_open_time=st.just(12.0),
    jitter=st.just(0.0),
)
STEPS = st.one_of(
    st.tuples(st.just("wait"), st.sampled_from([0.25, 1.0, 3.0, 11.0]), st.just(False)),
    st.tuples(st.just("call"), st.just(0), st.just(False)),
    st.tuples(st.sampled_from(["ok", "failed", "failed", "nothing", "again"]), st.integers(0, 30), st.booleans()),
)
ERRORS: dict[str, BaseException] = {"failed": DOWN, "nothing": asyncio.CancelledError()}


@settings(UNHURRIED, max_examples=400)
@given(POLICIES, st.lists(STEPS, max_size=120))
def test_it_does_what_a_model_does_that_remembers_every_call(
    policy: Breaker, steps: list[tuple[str, Any, bool]]
) -> None:
    real, model = CircuitBreaker(policy, "x"), Model(policy)
    now, number = 1000.0, 0
    under_way: list[tuple[int, int, int]] = []
    over: list[tuple[int, int, int]] = []
    for step, which, slow in steps:
        if step == "wait":
            now += which
        elif step == "call":
            number += 1
            permit = real.admit(now)
            assert (permit != REFUSED) == model.admit(now, number)
            if permit:
                under_way.append((permit, number, model.era))
        elif step == "again" and over:
            # A result that is handed in twice while half open changes nothing; the model knows by the call's number.
            permit, call, era = over[which % len(over)]
            if model.state == "half_open":
                real.succeeded(permit, now, 0.1)
                model.ended(now, call, era, "ok", slow=False)
        elif step != "again" and under_way:
            permit, call, era = ended = under_way.pop(which % len(under_way))
            over.append(ended)
            seconds = 1.0 if slow else 0.5
            if step == "ok":
                real.succeeded(permit, now, seconds)
            else:
                real.failed(permit, ERRORS[step], now, seconds)
            model.ended(now, call, era, step, slow)
        assert real.state == model.state
        if model.state == "open":
            assert real.changes[-1].open_for == pytest.approx(model.open_time)


# ---- opening ----


def test_it_opens_at_the_failure_rate_and_not_before() -> None:
    one = breaker(minimum_calls=10, failure_rate=0.5)
    for failing in [False] * 5 + [True] * 4:
        if failing:
            one.failed(one.admit(1.0), DOWN, 1.0, 0.1)
        else:
            one.succeeded(one.admit(1.0), 1.0, 0.1)
    assert state_of(one) is State.CLOSED
    one.failed(one.admit(1.0), DOWN, 1.0, 0.1)
    assert state_of(one) is State.OPEN
    assert one.reason == "5 of 10 calls failed"


def test_slow_calls_open_it_though_they_succeed() -> None:
    one = breaker(slow_after=2.0, slow_rate=0.75)
    for seconds in (0.1, 2.0, 3.0, 2.5):
        one.succeeded(one.admit(1.0), 1.0, seconds)
    assert state_of(one) is State.OPEN
    assert one.reason == "3 of 4 calls took 2 s or more, or were not answered in time"


def test_failures_that_left_the_window_are_forgotten() -> None:
    one = breaker(window=10.0)
    for at in (1000.0, 1000.5, 1001.0, 1012.0, 1013.0, 1014.0):
        one.failed(one.admit(at), DOWN, at, 0.1)
    assert state_of(one) is State.CLOSED
    one.failed(one.admit(1015.0), DOWN, 1015.0, 0.1)
    assert state_of(one) is State.OPEN


def test_calls_end_in_any_order_and_late_ones_count_in_the_slice_that_is_on() -> None:
    one = breaker()
    one.failed(one.admit(1005.0), DOWN, 1005.0, 0.1)
    for at in (1001.0, 1002.0, 1003.0):
        one.failed(one.admit(at), DOWN, at, 0.1)
    assert state_of(one) is State.OPEN


@pytest.mark.parametrize("code", sorted(BY_CODE))
def test_what_counts_as_a_failure(code: str) -> None:
    sick = {"unavailable", "deadline_exceeded", "internal", "unknown", "data_loss"}
    silent = {"resource_exhausted", "cancelled"}
    wanted = Evidence.SICK if code in sick else Evidence.NONE if code in silent else Evidence.HEALTHY
    assert evidence(BY_CODE[code]("x")) is wanted
    assert evidence(TypeError("a mistake of ours")) is Evidence.NONE
    assert evidence(asyncio.CancelledError()) is Evidence.NONE


def test_client_errors_never_open_it() -> None:
    one = breaker()
    for error in [InvalidArgument("x"), NotFound("x")] * 50:
        one.failed(one.admit(1.0), error, 1.0, 0.1)
    assert state_of(one) is State.CLOSED


def test_what_the_target_sheds_does_not_open_it() -> None:
    one = breaker()
    for _ in range(100):
        one.failed(one.admit(1.0), ResourceExhausted("x", retry_after=0.1), 1.0, 0.001)
    assert state_of(one) is State.CLOSED


def test_the_user_decides_what_counts() -> None:
    one = CircuitBreaker(
        Breaker(minimum_calls=1), "x", judge=lambda error: Evidence.SICK if "!" in str(error) else Evidence.HEALTHY
    )
    one.failed(one.admit(1.0), DOWN, 1.0, 0.1)
    assert state_of(one) is State.CLOSED
    one.failed(one.admit(1.0), ValueError("!"), 1.0, 0.1)
    assert state_of(one) is State.OPEN


# ---- open ----


def test_while_open_it_refuses_and_says_why_and_for_how_long() -> None:
    one = opened(at=1000.0)
    assert one.admit(1003.0) == REFUSED
    error = one.refusal("shop.v1.Inventory/CheckStock", 1003.0)
    assert str(error) == (
        "shop.v1.Inventory/CheckStock was not called: the breaker of inventory is open for another 2 s, because 4 of 4 "
        "calls failed. See to what is wrong there, or declare `Fallback(...)` to answer without it."
    )
    assert error.reached == "no"
    assert error.retry_after == DO_NOT_RETRY
    assert not is_retryable(error, repeatable=True)


def test_a_call_that_comes_too_many_while_half_open_is_told_so() -> None:
    one = opened(trials=1)
    assert one.admit(1005.0)
    assert one.admit(1005.0) == REFUSED
    assert "the breaker of inventory waits for the calls that try it, because it was open for 5 s." in str(
        one.refusal("x", 1005.0)
    )


def open_times(one: CircuitBreaker, rounds: int, now: float = 1000.0) -> list[float]:
    """How long it stays open, when each trial fails."""
    found = []
    for _ in range(rounds):
        open_for = one.changes[-1].open_for
        assert open_for is not None
        found.append(open_for)
        now += open_for
        one.failed(one.admit(now), DOWN, now, 0.1)
    return found


def test_each_failed_trial_lets_it_stay_open_longer_up_to_the_cap() -> None:
    assert open_times(opened(trials=1, max_open_time=30.0), 6) == [5, 10, 20, 30, 30, 30]


def test_a_large_growth_does_not_overflow() -> None:
    assert open_times(opened(trials=1, growth=100.0, max_open_time=7.0), 200)[-1] == 7.0


def test_one_that_opens_again_soon_after_it_closed_goes_on_growing() -> None:
    one = opened(at=1000.0)
    close(one, 1005.0)
    for _ in range(4):
        one.failed(one.admit(1006.0), DOWN, 1006.0, 0.1)
    assert one.changes[-1].open_for == 10.0


def test_one_that_stayed_closed_for_a_while_begins_anew() -> None:
    one = opened(at=1000.0)
    close(one, 1005.0)
    for _ in range(4):
        one.failed(one.admit(1010.0), DOWN, 1010.0, 0.1)
    assert one.changes[-1].open_for == 5.0


def test_calls_that_are_not_answered_in_time_count_as_slow_ones() -> None:
    """A target with more to do than it can gets the time to turn some of it away (the metastability test shows why)."""
    late = DeadlineExceeded("x")
    one = breaker(minimum_calls=10)
    for now in range(7):
        one.failed(one.admit(0.1 * now), late, 0.1 * now, 0.1)
    for now in range(7, 10):
        one.succeeded(one.admit(0.1 * now), 0.1 * now, 0.1)
    assert one.state is State.CLOSED
    for _ in range(5):
        one.failed(one.admit(1.0), late, 1.0, 0.1)
    assert state_of(one) is State.OPEN
    assert one.reason == "12 of 15 calls were not answered in time"


def test_a_trial_that_is_not_answered_in_time_is_a_slow_one() -> None:
    for late, then in ((2, State.CLOSED), (3, State.OPEN)):
        one = opened(trials=3)
        trials = [one.admit(1005.0) for _ in range(3)]
        for trial in trials[late:]:
            one.succeeded(trial, 1005.0, 0.1)
        for trial in trials[:late]:
            one.failed(trial, DeadlineExceeded("x"), 1006.0, 1.0)
        assert one.state is then


@pytest.mark.parametrize("kind", [Unavailable, DeadlineExceeded])
def test_what_a_target_says_of_others_that_it_needs_is_not_held_against_it(kind: type[CallError]) -> None:
    """Their breakers are its affair: else a chain of hops would be back one after the other."""
    one = breaker(minimum_calls=1)
    for _ in range(50):
        one.failed(one.admit(1.0), kind("orders could not ask inventory", retry_after=DO_NOT_RETRY), 1.0, 0.1)
    assert one.state is State.CLOSED
    half = opened(trials=1)
    half.failed(half.admit(1005.0), kind("x", retry_after=DO_NOT_RETRY), 1005.0, 0.1)
    assert half.state is State.HALF_OPEN
    half.succeeded(half.admit(1005.0), 1005.0, 0.1)
    assert state_of(half) is State.CLOSED


def test_jitter_is_not_lost_at_the_cap() -> None:
    """As it is in stamina's backoff, whose callers all come back together once they wait for the longest time."""
    values = iter([0.0, 0.5, 0.999, 0.25])
    one = CircuitBreaker(
        Breaker(minimum_calls=1, trials=1, open_time=50.0, max_open_time=20.0, jitter=0.5),
        "x",
        dice=lambda: next(values),
    )
    one.failed(one.admit(0.0), DOWN, 0.0, 0.1)
    assert open_times(one, 3, now=0.0) == pytest.approx([20.0, 15.0, 10.01])


# ---- half open ----


def close(one: CircuitBreaker, now: float) -> None:
    """Let the trials succeed."""
    for permit in [one.admit(now) for _ in range(one.policy.trials)]:
        one.succeeded(permit, now, 0.1)
    assert state_of(one) is State.CLOSED


@pytest.mark.parametrize("trials", [1, 3, 10])
def test_of_200_concurrent_calls_exactly_the_trials_pass(trials: int) -> None:
    """purgatory, aiobreaker and hyx let all 200 through; resilience4j#1432 some more than it should at the change."""
    one = opened(trials=trials)
    permits = [one.admit(1005.0) for _ in range(200)]
    assert sum(permit != REFUSED for permit in permits) == trials
    assert [permit != REFUSED for permit in permits[:trials]] == [True] * trials


def test_a_cancelled_trial_leaves_room_for_the_next_trial() -> None:
    """resilience4j#903, #935 and #858 leaked its permit, and the breaker stayed half open for ever."""
    one = opened(trials=2)
    for _ in range(50):
        permits = [one.admit(1005.0), one.admit(1005.0)]
        assert REFUSED not in permits
        assert one.admit(1005.0) == REFUSED
        one.release(permits[0])
        one.failed(permits[1], asyncio.CancelledError(), 1005.0, 0.1)
    close(one, 1005.0)


def test_an_error_that_says_nothing_as_the_last_trial_does_not_leave_it_half_open() -> None:
    """resilience4j#544 and Polly#311: the last trial ended with an ignored exception, and nobody ever called again."""
    one = opened(trials=2)
    first, last = one.admit(1005.0), one.admit(1005.0)
    one.succeeded(first, 1005.0, 0.1)
    one.failed(last, Cancelled("x"), 1005.0, 0.1)
    assert state_of(one) is State.HALF_OPEN
    one.succeeded(one.admit(1006.0), 1006.0, 0.1)
    assert state_of(one) is State.CLOSED


def test_a_judge_that_raises_gives_the_permit_back() -> None:
    """resilience4j#2324."""

    def judge(error: BaseException) -> Evidence:
        if isinstance(error, Internal):
            raise ZeroDivisionError
        return evidence(error)

    one = CircuitBreaker(Breaker(minimum_calls=1, trials=1, open_time=5.0, jitter=0.0), "x", judge=judge)
    one.failed(one.admit(0.0), DOWN, 0.0, 0.1)
    for _ in range(3):
        permit = one.admit(5.0)
        with pytest.raises(ZeroDivisionError):
            one.failed(permit, Internal("x"), 5.0, 0.1)
    one.succeeded(one.admit(5.0), 5.0, 0.1)
    assert state_of(one) is State.CLOSED


def test_trials_that_never_end_do_not_keep_it_half_open_for_ever() -> None:
    """Why resilience4j has maxWaitDurationInHalfOpenState."""
    one = opened(trials=2, trial_time=30.0)
    lost = [one.admit(1005.0), one.admit(1005.0)]
    assert one.admit(1034.0) == REFUSED
    assert one.admit(1035.0) == REFUSED
    assert state_of(one) is State.OPEN
    assert one.reason == "its trials came to no decision within 30 s"
    for permit in lost:
        one.succeeded(permit, 1036.0, 31.0)
    assert state_of(one) is State.OPEN
    assert one.admit(1045.0) != REFUSED


def test_it_closes_for_a_caller_that_seldom_calls() -> None:
    """Each call comes later than all trials should have ended; none of them is refused."""
    one = opened(trials=3, trial_time=30.0)
    for at in (1005.0, 1045.0, 1085.0):
        permit = one.admit(at)
        assert permit != REFUSED
        one.succeeded(permit, at + 1.0, 1.0)
    assert state_of(one) is State.CLOSED


def test_a_trial_that_begins_late_has_its_time_and_what_the_others_said_is_kept() -> None:
    one = opened(trials=2, trial_time=30.0)
    one.succeeded(one.admit(1005.0), 1006.0, 1.0)
    assert one.admit(1034.0) != REFUSED
    assert one.admit(1063.9) == REFUSED
    assert one.state is State.HALF_OPEN
    assert one.admit(1064.0) == REFUSED
    assert state_of(one) is State.OPEN


def test_it_opens_as_soon_as_the_trials_cannot_go_well_any_more() -> None:
    one = opened(trials=4, failure_rate=0.5)
    permits = [one.admit(1005.0) for _ in range(4)]
    one.failed(permits[0], DOWN, 1005.0, 0.1)
    assert state_of(one) is State.HALF_OPEN
    one.failed(permits[1], DOWN, 1005.0, 0.1)
    assert state_of(one) is State.OPEN
    assert one.reason == "2 of 4 calls failed when it was tried"


def test_slow_trials_open_it_again() -> None:
    one = opened(trials=1, slow_after=1.0)
    one.succeeded(one.admit(1005.0), 1007.0, 2.0)
    assert state_of(one) is State.OPEN


@pytest.mark.parametrize("late", ["ok", "failed"])
def test_results_of_an_older_state_do_not_count(late: str) -> None:
    one = breaker()
    old = [one.admit(999.0) for _ in range(10)]
    for _ in range(4):
        one.failed(one.admit(1000.0), DOWN, 1000.0, 0.1)

    def bring(permit: int) -> None:
        if late == "ok":
            one.succeeded(permit, 1005.0, 6.0)
        else:
            one.failed(permit, DOWN, 1005.0, 6.0)

    bring(old.pop())
    assert state_of(one) is State.OPEN
    trials = [one.admit(1005.0), one.admit(1005.0)]
    for permit in old[:4]:
        bring(permit)
    assert state_of(one) is State.HALF_OPEN
    for permit in trials:
        one.succeeded(permit, 1005.0, 0.1)
    for permit in old[4:]:
        bring(permit)
    assert state_of(one) is State.CLOSED


def test_a_permit_that_is_handed_back_twice_counts_once() -> None:
    one = opened(trials=2)
    permit = one.admit(1005.0)
    one.succeeded(permit, 1005.0, 0.1)
    one.succeeded(permit, 1005.0, 0.1)
    one.release(permit)
    assert state_of(one) is State.HALF_OPEN
    assert sum(one.admit(1005.0) != REFUSED for _ in range(10)) == 1


# ---- bugs of other libraries ----


def test_cancellations_never_open_it() -> None:
    """Three opened purgatory's."""
    one = breaker(minimum_calls=1)
    for _ in range(100):
        one.failed(one.admit(1.0), asyncio.CancelledError(), 1.0, 0.1)
    assert state_of(one) is State.CLOSED


def test_a_failure_rate_of_80_percent_opens_it_though_few_failures_are_in_a_row() -> None:
    """purgatory and hyx count only failures in a row, and stayed closed."""
    one = breaker(minimum_calls=20)
    for call in range(20):
        if call % 5 == 0:
            one.succeeded(one.admit(1.0), 1.0, 0.1)
        else:
            one.failed(one.admit(1.0), DOWN, 1.0, 0.1)
    assert state_of(one) is State.OPEN


def test_the_error_of_a_call_is_left_as_it_is() -> None:
    """aiobreaker raises an error of its own in its place."""
    one, error = breaker(minimum_calls=1), DeadlineExceeded("the one")
    one.failed(one.admit(1.0), error, 1.0, 0.1)
    assert str(error) == "the one"
    assert error.retry_after is None


# ---- events and bounds ----


def test_each_change_is_told_with_its_reason_after_it_was_made() -> None:
    told: list[tuple[Change, State]] = []
    policy = Breaker(minimum_calls=1, trials=1, open_time=5.0, jitter=0.0)
    one = CircuitBreaker(policy, "inventory", listen=lambda change: told.append((change, one.state)))
    one.failed(one.admit(1.0), DOWN, 1.0, 0.1)
    one.succeeded(one.admit(6.0), 6.5, 0.5)
    assert [change for change, _ in told] == list(one.changes)
    assert [(change.old.value, change.new.value, change.reason, change.at) for change, _ in told] == [
        ("closed", "open", "1 of 1 calls failed", 1.0),
        ("open", "half_open", "it was open for 5 s", 6.0),
        ("half_open", "closed", "1 calls were let through to try it, and went well", 6.5),
    ]
    assert all(change.new is state for change, state in told)


def test_its_memory_is_bounded() -> None:
    one = breaker(trials=1, window=1.0, open_time=0.5, max_open_time=1.0)
    now = 1000.0
    for _ in range(2000):
        now += 0.05
        permit = one.admit(now)
        if permit:
            one.failed(permit, DOWN, now, 0.1)
    assert len(one.changes) == 32
    assert len(one._window._earlier) < 10  # type: ignore[attr-defined]  # a window of time
    assert len(one._trials) <= 1


def test_a_window_of_calls_looks_at_the_last_ones_only() -> None:
    one = breaker(window_calls=4, minimum_calls=4, failure_rate=0.75)
    for failing in (True, True, False, False, True, False, True, True):
        assert state_of(one) is State.CLOSED
        if failing:
            one.failed(one.admit(1.0), DOWN, 1.0, 0.1)
        else:
            one.succeeded(one.admit(1.0), 1.0, 0.1)
    assert state_of(one) is State.OPEN
    assert one.reason == "3 of 4 calls failed"


@UNHURRIED
@given(
    st.integers(1, 12),
    st.lists(st.tuples(st.sampled_from([0.0, 0.25, 1.0, 4.0, 20.0]), st.booleans(), st.booleans()), max_size=60),
)
def test_windows_count_what_a_list_of_all_calls_says(size: int, calls: list[tuple[float, bool, bool]]) -> None:
    by_number, by_time = CountWindow(size), TimeWindow(10.0)
    all_of_them: list[tuple[float, bool, bool]] = []
    now = 1000.0
    for step, failed, slow in calls:
        now += step
        all_of_them.append((now, failed, slow))
        for window in (by_number, by_time):
            if failed or slow:
                window.add(now, failed, slow)
            else:
                window.good(now)
        recent = [call for call in all_of_them if int(call[0]) > int(now) - 10]
        for found, seen in ((by_number.tally(now), all_of_them[-size:]), (by_time.tally(now), recent)):
            assert found == (len(seen), sum(call[1] for call in seen), sum(call[2] for call in seen))
