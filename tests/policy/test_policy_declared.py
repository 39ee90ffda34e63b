"""Policies as they are declared: what is refused, with which words, and how the nearer declaration wins."""

from __future__ import annotations

import ast
import math
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.policy.unhurried_support import UNHURRIED

import polywire.policy
from polywire.contract import Contract, Message, policies, rpc, service_of
from polywire.contract.policies import (
    Balance,
    Breaker,
    Bulkhead,
    Ejection,
    Fallback,
    Hedge,
    Policy,
    Shedding,
)
from polywire.errors import ContractError
from polywire.policy.levels import CallDefaults, Levels, resolve

ALL: list[type[Policy]] = [Balance, Breaker, Bulkhead, Ejection, Fallback, Hedge, Shedding]

WRONG: list[tuple[type[Policy], dict[str, Any], str]] = [
    (Breaker, {"enabled": 1}, "Breaker(enabled=1): True or False."),
    (Breaker, {"failure_rate": 0}, "Breaker(failure_rate=0): a share is more than 0 and at most 1, 0.5 for one half."),
    (Breaker, {"slow_rate": 2}, "Breaker(slow_rate=2): a share is more than 0 and at most 1, 0.5 for one half."),
    (Breaker, {"window": 0.0}, "Breaker(window=0.0): this is a number of seconds, more than 0."),
    (Breaker, {"window": "10"}, "Breaker(window='10'): this is not a number."),
    (Breaker, {"open_time": math.nan}, "Breaker(open_time=nan): this is not a number."),
    (Breaker, {"slow_after": math.inf}, "Breaker(slow_after=inf): this is not a number."),
    (Breaker, {"trials": 0}, "Breaker(trials=0): this is a whole number, 1 or more."),
    (Breaker, {"minimum_calls": 1.5}, "Breaker(minimum_calls=1.5): this is a whole number, 1 or more."),
    (Breaker, {"trials": True}, "Breaker(trials=True): this is not a number."),
    (Breaker, {"growth": 0.5}, "Breaker(growth=0.5): a factor between 1 and 100; 1 keeps the time as it is."),
    (Breaker, {"jitter": 1.0}, "Breaker(jitter=1.0): a share that is taken off is at least 0 and less than 1."),
    (
        Breaker,
        {"window_calls": 10},
        "Breaker(window_calls=10): so few calls never come to minimum_calls=20. Give that as well, or more calls.",
    ),
    (
        Breaker,
        {"window_calls": 20_000},
        "Breaker(window_calls=20000): at most 10000 calls are remembered. Give seconds by `window=`.",
    ),
    (
        Fallback,
        {},
        "Fallback() has nothing to fall back on. Give `value=`, `function=` or `last_good=` (seconds).",
    ),
    (
        Fallback,
        {"value": 1, "function": print},
        "Fallback(value=..., function=...): give one of them; a function may return the value.",
    ),
    (Fallback, {"function": 3}, "Fallback(function=3): this is not a function of a request and an error."),
    (Fallback, {"last_good": -1}, "Fallback(last_good=-1): this is a number of seconds, more than 0."),
    (
        Fallback,
        {"value": 1, "on": (BaseException,)},
        "Fallback(on=(<class 'BaseException'>,)): give a tuple of exception classes, on=(Unavailable,).",
    ),
    (Bulkhead, {"limit": 0}, "Bulkhead(limit=0): this is a whole number, 1 or more."),
    (Bulkhead, {"queue": -1}, "Bulkhead(queue=-1): this is a whole number, 0 or more."),
    (Bulkhead, {"order": "random"}, "Bulkhead(order='random'): give one of 'fifo', 'lifo'."),
    (Hedge, {"copies": 9}, "Hedge(copies=9): at most 4 besides the first; more only multiply the load."),
    (Hedge, {"after": 0}, "Hedge(after=0): this is a number of seconds, more than 0."),
    (
        Balance,
        {"by": "random"},
        "Balance(by='random'): give one of 'least_busy', 'round_robin', 'weighted', 'by_key'.",
    ),
    (
        Balance,
        {"load": 1},
        "Balance(load=1): a factor more than 1: with 1 every call that comes too many would move keys.",
    ),
    (Balance, {"weights": {"a:1": 0}}, "Balance(weights={'a:1': 0}): a weight is a number more than 0."),
    (Ejection, {"slow_factor": 0.5}, "Ejection(slow_factor=0.5): a factor is a number, 1 or more."),
    (Ejection, {"max_ejected": 0}, "Ejection(max_ejected=0): a share is more than 0 and at most 1, 0.5 for one half."),
    (Ejection, {"panic": 2}, "Ejection(panic=2): a share is at least 0 and at most 1. 0 switches the panic off."),
    (
        Shedding,
        {"limit": 2},
        "Shedding(limit=2): an adaptive limit starts between minimum=4 and maximum=2000.",
    ),
    (
        Shedding,
        {"background": 0.95},
        "Shedding(background=0.95): it is turned away first, so its share is not over normal=0.9.",
    ),
]


@pytest.mark.parametrize(("kind", "values", "message"), WRONG, ids=lambda value: str(value)[:40])
def test_what_cannot_work_is_refused_with_a_sentence(kind: type[Policy], values: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractError) as caught:
        kind(**values)
    assert str(caught.value) == message


@pytest.mark.parametrize("kind", ALL)
def test_a_policy_is_frozen_takes_keywords_only_and_can_be_switched_off(kind: type[Policy]) -> None:
    off = kind(enabled=False)
    assert not off.enabled
    with pytest.raises(FrozenInstanceError):
        off.enabled = True  # type: ignore[misc]  # that it raises is the test
    with pytest.raises(TypeError):
        kind(False)  # type: ignore[call-arg]  # wrong on purpose
    any_kind: Any = kind
    with pytest.raises(TypeError, match="unexpected keyword argument 'ofen_time'"):
        any_kind(ofen_time=1)


VALUES = st.fixed_dictionaries(
    {},
    optional={
        "enabled": st.booleans(),
        "window": st.floats(1, 100),
        "trials": st.integers(1, 9),
        "failure_rate": st.floats(0.1, 1),
        "slow_after": st.one_of(st.none(), st.floats(1, 9)),
    },
)


@UNHURRIED
@given(VALUES, VALUES, VALUES)
def test_of_several_declarations_the_nearest_that_gives_a_value_wins(
    method: dict[str, Any], service: dict[str, Any], system: dict[str, Any]
) -> None:
    made = Breaker(**method).over(Breaker(**service)).over(Breaker(**system))
    for found in (made, Breaker(**method).over(Breaker(**service).over(Breaker(**system)))):
        assert found == Breaker(**(system | service | method))
        assert found.given == set(system) | set(service) | set(method)


def test_a_nearer_level_may_say_something_else_in_place_of_what_is_said_further_away() -> None:
    by_key = Balance(by="by_key", key="customer", load=2.0)
    for by in ("round_robin", "least_busy", "weighted"):
        found = Balance(by=by).over(by_key)
        assert (found.by, found.key, found.load) == (by, None, 2.0)
    assert Balance(by="by_key").over(by_key) == by_key
    assert Balance(load=3.0).over(by_key) == Balance(by="by_key", key="customer", load=3.0)

    by_calls = Breaker(window_calls=50, trials=2)
    assert Breaker(window=5).over(by_calls) == Breaker(window=5, trials=2)
    assert Breaker(window=5, window_calls=30).over(by_calls).window_calls == 30
    assert Breaker(trials=1).over(by_calls).window_calls == 50
    assert Breaker(window_calls=50).over(Breaker(window=5)).window_calls == 50


class Parcel(Message):
    customer: str
    weight: float


def test_a_key_of_a_contract_can_be_a_key_where_its_requests_have_it() -> None:
    class Parcels(Contract, package="declared.v1", policies=(Balance(by="by_key", key="customer"),)):
        @rpc
        async def send(self, parcel: Parcel) -> None:
            raise NotImplementedError

        @rpc
        async def count(self) -> None:
            raise NotImplementedError

    class Weights(Contract, package="declared.v1", policies=(Balance(by="by_key", key="weight"),)):
        @rpc
        async def send(self, parcel: Parcel) -> None:
            raise NotImplementedError

    assert set(service_of(Parcels).rpcs) == {"send", "count"}
    with pytest.raises(ContractError) as caught:
        service_of(Weights)
    assert str(caught.value) == (
        f"{Weights.__qualname__}.send: key='weight' is annotated 'float', but a key is a str, an int, a UUID or an "
        "Enum."
    )


def test_on_one_level_the_system_file_is_nearer_than_the_contract() -> None:
    class Stops(Contract, package="declared.v1", policies=(Breaker(trials=1, minimum_calls=1),)):
        @rpc(policies=(Bulkhead(limit=1, queue=1),))
        async def stop(self) -> None:
            raise NotImplementedError

    stop = service_of(Stops).rpcs["stop"]
    levels = Levels(
        system=CallDefaults(policies=(Breaker(minimum_calls=3, open_time=3.0), Bulkhead(limit=3, order="lifo"))),
        service=CallDefaults(policies=(Breaker(trials=2), Bulkhead(limit=2, queue=2))),
        methods={stop.full_name: CallDefaults(policies=(Bulkhead(limit=4),))},
    )
    found = resolve(stop, levels.of(stop))
    assert found.policy(Breaker) == Breaker(trials=2, minimum_calls=1, open_time=3.0)
    assert found.policy(Bulkhead) == Bulkhead(limit=4, queue=1, order="lifo")


def test_a_value_that_is_given_wins_though_it_is_the_default() -> None:
    usual = Breaker(open_time=9.0)
    assert Breaker(open_time=2.0).over(usual).open_time == Breaker().open_time == 2.0
    assert Breaker().over(usual).open_time == 9.0


def test_equal_policies_are_equal_whatever_was_given() -> None:
    assert Breaker(open_time=2.0) == Breaker()
    assert "given" not in repr(Breaker())


@pytest.mark.parametrize("kind", ALL)
def test_every_value_is_told_what_it_is(kind: type[Policy]) -> None:
    """In a docstring under it, or in that of its class: `polywire explain` and the docs print them."""
    source = Path(policies.__file__).read_text()
    declared = next(
        node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == kind.__name__
    )
    assert ast.get_docstring(declared)
    assert {field.name for field in fields(kind)} - {"given", "enabled"} == {
        node.target.id
        for node in declared.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


WAITING = {"bulkhead.py", "hedge.py"}
"""These have a thin layer that waits; nothing else does."""


def test_no_policy_asks_for_the_time_or_waits_by_itself() -> None:
    """purgatory, hyx and aiobreaker ask the wall clock, and break when it is set."""
    files = sorted(Path(polywire.policy.__path__[0]).glob("*.py"))
    assert len(files) > 12
    for file in files:
        imported = {
            name.name
            for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in ([ast.alias(node.module or "")] if isinstance(node, ast.ImportFrom) else node.names)
        }
        assert not imported & {"time", "datetime", "threading", "socket"}, file.name
        assert "asyncio" not in imported or file.name in WAITING, file.name
