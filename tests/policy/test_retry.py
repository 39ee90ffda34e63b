"""Retries: what may be repeated, how long to wait, and how many are affordable."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polywire import errors
from polywire.errors import (
    DO_NOT_RETRY,
    Aborted,
    CallError,
    DeadlineExceeded,
    ResourceExhausted,
    Unavailable,
)
from polywire.policy.retry import FOR_CALLS, Retry, RetryBudget, is_retryable


@pytest.mark.parametrize("code", sorted(set(errors.BY_CODE) - {"unavailable", "aborted", "deadline_exceeded"}))
def test_an_error_that_says_nothing_about_repeating_is_never_retried(code: str) -> None:
    error = errors.BY_CODE[code]("x")
    assert not is_retryable(error, repeatable=True)
    assert not is_retryable(error, repeatable=False)


def test_only_a_repeatable_call_is_retried_when_it_may_have_arrived() -> None:
    for error in (Unavailable("x", reached="maybe"), Aborted("x"), DeadlineExceeded("x")):
        assert is_retryable(error, repeatable=True)
        assert not is_retryable(error, repeatable=False)


def test_what_certainly_did_not_arrive_is_retried() -> None:
    assert is_retryable(Unavailable("x", reached="no"), repeatable=False)


def test_an_exhausted_resource_is_retried_only_where_it_says_when() -> None:
    assert not is_retryable(ResourceExhausted("x"), repeatable=True)
    assert is_retryable(ResourceExhausted("x", retry_after=0.5), repeatable=False)


@pytest.mark.parametrize("kind", list(errors.BY_CODE.values()))
def test_pushback_that_forbids_a_retry_wins_over_everything(kind: type[CallError]) -> None:
    assert not is_retryable(kind("x", retry_after=DO_NOT_RETRY), repeatable=True)


@given(retry=st.integers(1, 40), dice=st.floats(0, 1, exclude_max=True))
def test_the_wait_is_drawn_from_the_whole_of_a_growing_bounded_span(retry: int, dice: float) -> None:
    policy = Retry(base=0.1, cap=3.0).over(FOR_CALLS)
    span = min(3.0, 0.1 * 2 ** (retry - 1))
    assert 0 <= policy.delay(retry, dice) <= span
    assert policy.delay(retry, 0.0) == 0
    assert policy.delay(retry, 0.5) == pytest.approx(span / 2)


def test_without_calls_a_budget_allows_its_minimum_and_no_more() -> None:
    budget = RetryBudget(share=0.2, minimum=3.0)
    assert sum(budget.take(100.0) for _ in range(1000)) == 30


def test_a_budget_allows_its_share_of_the_calls_of_the_last_ten_seconds() -> None:
    budget = RetryBudget(share=0.2, minimum=0.0)
    for i in range(1000):
        budget.called(100.0 + i / 200)
    assert sum(budget.take(105.0) for _ in range(1000)) == 200


@given(st.lists(st.tuples(st.floats(0, 3), st.booleans()), max_size=200))
def test_over_any_ten_seconds_retries_stay_within_the_share(steps: list[tuple[float, bool]]) -> None:
    """Against a model that remembers every call: exact at the resolution of whole seconds."""
    budget = RetryBudget(share=0.5, minimum=0.3)
    now = 1000.0
    calls: list[int] = []
    retries: list[int] = []
    for step, is_retry in steps:
        now += step
        second = int(now)
        if is_retry:
            recent = sum(second - 9 <= at for at in calls)
            taken = sum(second - 9 <= at for at in retries)
            allowed = taken + 1 <= 0.5 * recent + 3.0
            assert budget.take(now) == allowed
            if allowed:
                retries.append(second)
        else:
            budget.called(now)
            calls.append(second)
