"""Deadlines of calls and attempts: nothing is later than what it is part of."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st
from tests.policy.unhurried_support import UNHURRIED

from polywire.policy.attempt import attempt_deadline, call_deadline, worth_starting

NOW = st.floats(0, 1e6)
SECONDS = st.one_of(st.none(), st.floats(0.001, 1e4))
DEADLINES = st.one_of(st.none(), st.floats(0, 2e6))


@UNHURRIED
@given(NOW, SECONDS, DEADLINES)
def test_a_call_ends_at_the_earliest_of_what_bounds_it(now: float, timeout: float | None, parent: float | None) -> None:
    """Against a model that lists all bounds."""
    bounds = ([] if timeout is None else [now + timeout]) + ([] if parent is None else [parent])
    for deadline_of in (call_deadline, attempt_deadline):
        assert deadline_of(now, timeout, parent) == (min(bounds) if bounds else None)


@UNHURRIED
@given(NOW, st.lists(st.tuples(SECONDS, SECONDS, st.floats(0, 10)), min_size=1, max_size=8))
def test_along_a_chain_no_child_and_no_attempt_ends_later_than_any_of_its_parents(
    now: float, chain: list[tuple[float | None, float | None, float]]
) -> None:
    ends: list[float] = []
    parent: float | None = None
    for timeout, attempt_timeout, later in chain:
        call = call_deadline(now, timeout, parent)
        attempt = attempt_deadline(now, attempt_timeout, call)
        ends += [end for end in (call, attempt) if end is not None]
        parent = attempt
        now += later
    assert all(earlier >= end for earlier, end in itertools.pairwise(ends))


@UNHURRIED
@given(NOW, DEADLINES, st.floats(0, 10))
def test_no_attempt_is_begun_for_which_there_is_no_time(now: float, deadline: float | None, least: float) -> None:
    assert worth_starting(now, deadline, least) == (deadline is None or now + least < deadline)


def test_a_child_ends_no_later_than_its_parent() -> None:
    assert call_deadline(10.0, 5.0, 12.0) == 12.0
    assert attempt_deadline(10.0, 5.0, 12.0) == 12.0
    assert call_deadline(10.0, 5.0, 20.0) == 15.0
    assert call_deadline(10.0, None, None) is None


def test_at_its_deadline_nothing_is_begun() -> None:
    assert not worth_starting(5.0, 5.0)
    assert worth_starting(4.999, 5.0)
    assert not worth_starting(4.0, 5.0, least=1.0)
