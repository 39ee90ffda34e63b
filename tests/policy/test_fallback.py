"""Fallback: which answer comes in place of an error, for whom, and how old it may be."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.policy.unhurried_support import UNHURRIED

from polywire.contract.policies import NOTHING, Fallback
from polywire.errors import BY_CODE, InvalidArgument, Unavailable
from polywire.policy.fallback import Fallbacks, LastGood

DOWN = Unavailable("x")


@UNHURRIED
@given(
    st.integers(1, 4),
    st.lists(st.tuples(st.sampled_from(["wait", "remember", "find"]), st.integers(0, 5)), max_size=60),
)
def test_the_last_good_answers_against_a_model_that_keeps_all(size: int, steps: list[tuple[str, int]]) -> None:
    real = LastGood(size, age=10.0)
    said: list[tuple[int, float, list[int]]] = []
    now = 0.0
    for number, (step, which) in enumerate(steps):
        if step == "wait":
            now += which * 2.0
        elif step == "remember":
            real.remember(which, [number], now)
            said = [one for one in said if one[0] != which] + [(which, now, [number])]
        else:
            kept = [one for one in said[-size:] if one[0] == which]
            found = real.find(which, now)
            if kept and now - kept[0][1] <= 10.0:
                assert found == kept[0][2]
            else:
                assert found is NOTHING
                # Too old: it is given up, and makes room.
                said = [one for one in said if not (kept and one is kept[0])]
        assert len(real) <= size
        said = said[-size:]


def test_a_fixed_answer_is_each_callers_own() -> None:
    one = Fallbacks(Fallback(value=["nothing", "found"]))
    first = one.instead("key", None, DOWN, 0.0)
    first.append("spoilt")
    assert one.instead("key", None, DOWN, 0.0) == ["nothing", "found"]
    assert one.answered == 2


def test_none_is_an_answer() -> None:
    assert Fallbacks(Fallback(value=None)).instead("key", None, DOWN, 0.0) is None


def test_a_function_sees_the_request_and_the_error() -> None:
    one = Fallbacks(Fallback(function=lambda request, error: (request, error)))
    assert one.instead("key", "request", DOWN, 0.0) == ("request", DOWN)


def test_what_the_function_raises_goes_to_the_caller() -> None:
    def function(request: Any, error: Any) -> Any:
        raise InvalidArgument("not this one either") from error

    with pytest.raises(InvalidArgument, match="not this one either"):
        Fallbacks(Fallback(function=function)).instead("key", None, DOWN, 0.0)


def test_the_last_good_answer_comes_first_while_it_is_young_enough() -> None:
    one = Fallbacks(Fallback(last_good=60.0, value="the fixed one"))
    one.succeeded(b"key", "the last one", 0.0)
    assert one.instead(b"key", None, DOWN, 60.0) == "the last one"
    assert one.instead(b"key", None, DOWN, 60.1) == "the fixed one"
    assert one.instead(b"other", None, DOWN, 1.0) == "the fixed one"


def test_where_there_is_no_good_answer_the_error_stands() -> None:
    one = Fallbacks(Fallback(last_good=60.0))
    assert one.instead(b"key", None, DOWN, 0.0) is NOTHING
    assert one.answered == 0


def test_a_caller_that_changes_its_answer_does_not_change_what_others_get() -> None:
    one = Fallbacks(Fallback(last_good=60.0))
    answer = ["good"]
    one.succeeded(b"key", answer, 0.0)
    answer.append("spoilt")
    one.instead(b"key", None, DOWN, 1.0).append("spoilt")
    assert one.instead(b"key", None, DOWN, 1.0) == ["good"]


def test_the_answer_of_one_principal_is_not_given_to_another() -> None:
    one = Fallbacks(Fallback(last_good=60.0))
    one.succeeded(("ann", b"request"), "Ann's orders", 0.0)
    assert one.instead(("bob", b"request"), None, DOWN, 1.0) is NOTHING


@pytest.mark.parametrize("code", sorted(BY_CODE))
def test_only_errors_that_are_not_the_callers_fault_are_answered_for(code: str) -> None:
    trouble = {"unavailable", "deadline_exceeded", "resource_exhausted", "internal", "unknown", "data_loss"}
    found = Fallbacks(Fallback(value="instead")).instead("key", None, BY_CODE[code]("x"), 0.0)
    assert found == "instead" if code in trouble else found is NOTHING


def test_cancellation_is_never_answered_for() -> None:
    one = Fallbacks(Fallback(value="instead", on=(Exception,)))
    assert one.instead("key", None, asyncio.CancelledError(), 0.0) is NOTHING
    assert one.instead("key", None, ValueError(), 0.0) == "instead"


def test_switched_off_it_answers_for_nothing() -> None:
    assert Fallbacks(Fallback(enabled=False, value=1)).instead("key", None, DOWN, 0.0) is NOTHING


def test_its_memory_is_bounded() -> None:
    one = Fallbacks(Fallback(last_good=60.0, remember=16))
    for number in range(1000):
        one.succeeded(number, "x" * 100, number / 100)
    assert one._last_good is not None
    assert len(one._last_good) == 16
