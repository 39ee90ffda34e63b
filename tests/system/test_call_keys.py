"""`[calls]` and its like in the system file: what is read, which value wins, and what is refused where."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest
from tiny.contracts import Inventory
from up_support import tiny

from polywire.contract import service_of
from polywire.contract.policies import Balance, Breaker, Bulkhead, Ejection, Fallback, Hedge, Policy
from polywire.errors import SetupError, SystemFileError
from polywire.policy.levels import CallDefaults, Held, Level, resolve
from polywire.policy.retry import Retry
from polywire.system.file import Calls, SystemFile, load, parse
from polywire.system.plan import plan
from polywire.system.remote import wiring_of

HEAD = """\
[system]
name = "tiny"
[services.orders]
app = "tiny.orders:app"
[services.inventory]
app = "tiny.inventory:app"
"""
RPCS = service_of(Inventory).rpcs


def read(text: str, environ: dict[str, str] | None = None) -> SystemFile:
    return parse(HEAD + textwrap.dedent(text), environ=environ)


def held(system: SystemFile, method: str = "check_stock", *, call: Policy | None = None) -> Held:
    rpc = RPCS[method]
    levels = system.levels("inventory").of(rpc)
    if call is not None:
        levels.append(Level(name="call", said=CallDefaults(policies=(call,))))
    return resolve(rpc, levels)


def test_every_policy_can_be_said_in_the_file() -> None:
    system = read("""
        [calls]
        timeout = 4
        attempt_timeout = 1
        retries = 1
        breaker = { window = 20, minimum_calls = 10, failure_rate = 0.4, open_time = 1.5, jitter = 0 }
        bulkhead = { limit = 9, queue = 0, order = "lifo" }
        hedge = { after = 0.02, copies = 2 }
        ejection = { consecutive_failures = 3, panic = 0 }
        balance = { by = "weighted", weights = { "a:1" = 2, "b:1" = 0.5 } }
        fallback = { last_good = 60, remember = 7 }
        """)
    assert system.calls == Calls(
        timeout=4.0,
        attempt_timeout=1.0,
        retries=1,
        policies=(
            Breaker(window=20.0, minimum_calls=10, failure_rate=0.4, open_time=1.5, jitter=0.0),
            Bulkhead(limit=9, queue=0, order="lifo"),
            Hedge(after=0.02, copies=2),
            Ejection(consecutive_failures=3, panic=0.0),
            Balance(by="weighted", weights={"a:1": 2.0, "b:1": 0.5}),
            Fallback(last_good=60.0, remember=7),
        ),
    )


FOUR_LEVELS = """
    [services.inventory.calls]
    timeout = 5
    retries = 1
    bulkhead = { queue = 20 }

    [services.inventory.calls."tiny.v1.Inventory/check_stock"]
    timeout = 2
    bulkhead = { limit = 3 }

    [calls]
    timeout = 8
    retries = 4
    retry_base = 0.5
    bulkhead = { limit = 1, queue = 10, order = "lifo" }
    """


def test_the_nearer_level_wins_value_by_value() -> None:
    system = read(FOUR_LEVELS)

    found = held(system)
    assert found.policy(Bulkhead) == Bulkhead(limit=3, queue=20, order="lifo")
    assert (found.timeout, found.retry.attempts, found.retry.base, found.retry.cap) == (2.0, 2, 0.5, 2.0)
    assert {name: level.name for name, level in found.sources.items()} == {
        "timeout": "method",
        "retry.attempts": "service",
        "retry.base": "system",
        "bulkhead.limit": "method",
        "bulkhead.queue": "service",
        "bulkhead.order": "system",
    }
    assert held(system, call=Bulkhead(queue=0)).policy(Bulkhead) == Bulkhead(limit=3, queue=0, order="lifo")
    others = held(system, "add_up")
    assert others.policy(Bulkhead) == Bulkhead(limit=1, queue=20, order="lifo")
    assert others.timeout == 5.0


def test_streams_of_answers_take_neither_time_nor_places_from_what_is_said_of_all() -> None:
    found = held(read(FOUR_LEVELS), "watch")

    assert (found.timeout, found.policy(Bulkhead)) == (None, None)
    assert found.policy(Breaker) == Breaker()


def test_what_nobody_says_is_the_default_and_what_is_switched_off_is_off() -> None:
    found = held(read(""))
    assert (found.policy(Breaker), found.policy(Bulkhead)) == (Breaker(), Bulkhead())
    assert (found.policy(Ejection), found.policy(Balance)) == (Ejection(), Balance())
    assert (found.policy(Hedge), found.policy(Fallback)) == (None, None)
    assert (found.timeout, found.retry.attempts) == (10.0, 3)

    off = held(read("[calls]\nbreaker = { enabled = false }"))
    assert off.policy(Breaker) is None
    on = "[services.inventory.calls]\nbreaker = { enabled = true }\n[calls]\nbreaker = { enabled = false, trials = 2 }"
    assert held(read(on)).policy(Breaker) == Breaker(trials=2)


def test_a_key_said_of_all_methods_holds_where_requests_have_such_a_field() -> None:
    system = read('[calls]\nbalance = { by = "by_key", key = "product_id", load = 2 }')
    found = held(system)
    assert found.policy(Balance) == Balance(by="by_key", key="product_id", load=2.0)
    assert found.sources["balance.key"].name == "system"
    for method in ("crash", "add_up", "echo"):
        found = held(system, method)
        assert found.policy(Balance) == Balance(by="by_key", load=2.0)
        assert set(found.sources) == {"balance.by", "balance.load"}


def test_what_is_replaced_by_a_nearer_level_holds_no_longer_and_comes_from_nowhere() -> None:
    system = read("""
        [services.inventory.calls."tiny.v1.Inventory/check_stock"]
        breaker = { window = 5 }
        [calls]
        breaker = { window_calls = 50 }
        """)
    found = held(system)
    assert found.policy(Breaker) == Breaker(window=5.0)
    assert set(found.sources) == {"breaker.window"}


def test_a_variable_wins_over_the_file() -> None:
    environ = {
        "POLYWIRE__CALLS__BREAKER__OPEN_TIME": "7",
        "POLYWIRE__SERVICES__INVENTORY__CALLS__BULKHEAD": "{ limit = 4 }",
    }
    found = held(read("[calls]\nbreaker = { open_time = 1 }", environ))

    assert found.policy(Breaker) == Breaker(open_time=7.0)
    assert found.policy(Bulkhead) == Bulkhead(limit=4)


METHOD = '[services.inventory.calls."tiny.v1.Inventory/check_stock"]\n'
REFUSALS = {
    "an unknown value": (
        "[calls]\nbreaker = { open_tme = 5 }",
        "polywire.toml:8: calls.breaker.open_tme is not a key of a breaker. Did you mean 'open_time'? A breaker has: "
        "enabled, failure_rate, growth, jitter, max_open_time, minimum_calls, open_time, slow_after, slow_rate, "
        "trial_time, trials, window, window_calls.",
    ),
    "an unknown policy": (
        METHOD + "braker = { open_time = 5 }",
        'polywire.toml:8: services.inventory.calls."tiny.v1.Inventory/check_stock".braker is not a key of a method. '
        "Did you mean 'breaker'? A method has: attempt_timeout, balance, breaker, bulkhead, ejection, fallback, hedge, "
        "retries, retry_base, retry_cap, timeout, wait_for_ready.",
    ),
    "a value that cannot be": (
        "[calls]\nbreaker = { failure_rate = 2 }",
        "polywire.toml:8: calls.breaker.failure_rate cannot be: Breaker(failure_rate=2.0): a share is more than 0 and "
        "at most 1, 0.5 for one half.",
    ),
    "a value of another type": (
        "[services.inventory.calls]\nbulkhead = { limit = true }",
        "polywire.toml:8: services.inventory.calls.bulkhead.limit is true. It has to be a whole number.",
    ),
    "a choice that there is not": (
        "[calls]\nbalance = { by = 'chance' }",
        "polywire.toml:8: calls.balance.by cannot be: Balance(by='chance'): give one of 'least_busy', 'round_robin', "
        "'weighted', 'by_key'.",
    ),
    "a fallback on nothing": (
        "[calls]\nfallback = { remember = 3 }",
        "polywire.toml:8: calls.fallback cannot be: Fallback() has nothing to fall back on. Give `value=`, `function=` "
        "or `last_good=` (seconds).",
    ),
    "an answer, which only code can give": (
        "[calls]\nfallback = { value = 3 }",
        "polywire.toml:8: calls.fallback.value is not a key of a fallback. A fallback has: enabled, last_good, "
        "remember.",
    ),
    "no table": ("[calls]\nhedge = true", "polywire.toml:8: calls.hedge is true. It has to be a table."),
    "a budget of one method": (
        METHOD + "budget_share = 0.5",
        'polywire.toml:8: services.inventory.calls."tiny.v1.Inventory/check_stock".budget_share is not a key of a '
        "method. A method has: attempt_timeout, balance, breaker, bulkhead, ejection, fallback, hedge, retries, "
        "retry_base, retry_cap, timeout, wait_for_ready.",
    ),
    "an attempt without time": (
        "[calls]\nattempt_timeout = 0",
        "polywire.toml:8: calls.attempt_timeout is 0. It has to be more: a call without any time cannot be made.",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_is_refused_with_its_place(name: str) -> None:
    text, message = REFUSALS[name]
    with pytest.raises(SystemFileError) as caught:
        read(text)
    assert str(caught.value) == message


PLANS = {
    "a method that there is not": (
        '[services.inventory.calls."tiny.v1.Inventory/chek_stock"]\ntimeout = 1\n',
        'polywire.toml:7: services.inventory.calls."tiny.v1.Inventory/chek_stock" is no method. Did you mean '
        "'tiny.v1.Inventory/check_stock'? tiny.v1.Inventory has: check_stock, crash, watch, add_up, echo.",
    ),
    "a method of another service": (
        '[services.inventory.calls."tiny.v1.Orders/place"]\ntimeout = 1\n',
        'polywire.toml:7: services.inventory.calls."tiny.v1.Orders/place" is about tiny.v1.Orders, which that service '
        "does not implement. Did you mean 'tiny.v1.Inventory'? It implements: tiny.v1.Inventory.",
    ),
    "the same method twice": (
        METHOD + 'timeout = 1\n[services.inventory.calls."tiny.v1.Inventory/CheckStock"]\nretries = 1\n',
        'polywire.toml:7: services.inventory.calls."tiny.v1.Inventory/check_stock" is the same method as '
        '"tiny.v1.Inventory/CheckStock". Put what both say into one.',
    ),
    "levels that do not go together": (
        METHOD + "breaker = { window_calls = 50 }\n[calls]\nbreaker = { minimum_calls = 100 }\n",
        "polywire.toml:7: what is said about calls of tiny.v1.Inventory/CheckStock does not go together: "
        "Breaker(window_calls=50): so few calls never come to minimum_calls=100. Give that as well, or more calls.",
    ),
    "a key that is none, said of all": (
        '[calls]\ntimeout = 5\nbalance = { by = "by_key", key = "seconds" }\n',
        "polywire.toml:9: what is said about calls of tiny.v1.Orders/Slowly does not go together: "
        "tiny.v1.Orders/Slowly: key='seconds' is annotated 'float', but a key is a str, an int, a UUID or an Enum.",
    ),
    "a key that a method does not have": (
        METHOD + 'timeout = 1\nbalance = { by = "by_key", key = "customer" }\n',
        "polywire.toml:9: what is said about calls of tiny.v1.Inventory/CheckStock does not go together: "
        "tiny.v1.Inventory/CheckStock: key='customer' is no field of Query. Its fields are: product_id.",
    ),
}


@pytest.mark.parametrize("name", PLANS)
def test_what_does_not_fit_the_contracts_is_refused_before_anything_starts(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, message = PLANS[name]
    monkeypatch.chdir(tiny(tmp_path, HEAD + text))
    with pytest.raises(SetupError) as caught:
        plan(load(environ={}))
    assert str(caught.value) == message


async def test_the_calls_of_a_service_go_by_what_its_system_file_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny(tmp_path, HEAD + 'listen = "127.0.0.1:1"\n' + FOUR_LEVELS))
    wiring = wiring_of(plan(load(environ={})), "orders", ["orders"], {}, None)
    try:
        channel: Any = wiring.client(Inventory).__dict__["_channel"]
        rules = channel._book.of(RPCS["check_stock"])
        assert rules.places.policy == Bulkhead(limit=3, queue=20, order="lifo")
        assert (rules.timeout, rules.retry.attempts) == (2.0, 2)
    finally:
        await wiring.close()


def test_defaults_of_a_client_take_retries_among_the_policies() -> None:
    defaults = CallDefaults(retry=Retry(attempts=5), policies=(Retry(base=0.0),))
    found = resolve(RPCS["check_stock"], [Level(name="system", said=defaults)])
    assert (found.retry.attempts, found.retry.base) == (5, 0.0)


WRONG: list[tuple[Any, str]] = [
    ("breaker", "CallDefaults(policies=...): 'breaker' is no policy. Give Retry, Breaker, Bulkhead, Hedge, Balance, "
     "Ejection or Fallback."),
    (Breaker(), "CallDefaults(policies=...): there are two of Breaker. Put what both say into one."),
]  # fmt: skip


@pytest.mark.parametrize(("given", "message"), WRONG)
def test_what_is_no_policy_or_there_twice_is_refused(given: Any, message: str) -> None:
    with pytest.raises(SetupError) as caught:
        CallDefaults(policies=(Breaker(), given))
    assert str(caught.value) == message
