"""Policies beside the methods of a contract: which are refused, with which words, and whom they hold for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from polywire.contract import Contract, Message, rpc, service_of
from polywire.contract.policies import Balance, Breaker, Bulkhead, Fallback, Hedge, Shedding
from polywire.contract.retry import Retry
from polywire.errors import ContractError
from polywire.policy.levels import Levels, resolve


class Query(Message, package="kept.v1"):
    customer: str = ""
    since: float = 0.0


class Found(Message, package="kept.v1"):
    count: int = 0


class Search(Contract, package="kept.v1", policies=(Bulkhead(limit=9), Retry(attempts=2))):
    @rpc(idempotent=True, policies=(Hedge(after=0.1), Bulkhead(queue=1)))
    async def find(self, query: Query) -> Found:
        raise NotImplementedError

    @rpc
    async def forget(self) -> None:
        raise NotImplementedError


def test_a_method_takes_what_its_contract_says_and_adds_its_own() -> None:
    rpcs = service_of(Search).rpcs
    find, forget = (resolve(rpcs[name], Levels().of(rpcs[name])) for name in ("find", "forget"))

    assert find.policy(Bulkhead) == Bulkhead(limit=9, queue=1)
    assert find.policy(Hedge) == Hedge(after=0.1)
    assert forget.policy(Bulkhead) == Bulkhead(limit=9)
    assert forget.policy(Hedge) is None
    assert (find.retry.attempts, forget.retry.attempts) == (2, 2)


def of_method(*policies: Any, contract: bool = False) -> Callable[[], object]:
    def declare() -> object:
        class Wrong(Contract, package="kept.v1", policies=policies if contract else ()):
            @rpc(policies=() if contract else policies)
            async def find(self, query: Query) -> Found:
                raise NotImplementedError

        return service_of(Wrong)

    return declare


def of_stream() -> object:
    class Wrong(Contract, package="kept.v1"):
        @rpc(policies=(Fallback(value=Found()),))
        def watch(self, query: Query) -> AsyncIterator[Found]:
            raise NotImplementedError

    return service_of(Wrong)


def of_service() -> object:
    class SearchService(Search, policies=(Breaker(),)):
        pass

    return SearchService


WHERE = f"{of_method.__qualname__}.<locals>.declare.<locals>.Wrong.find"
REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "one of the service's own": (
        of_method(Shedding()),
        "@rpc(policies=...): Shedding is a service's own, not its callers'. Declare it where it is served.",
    ),
    "two of a kind": (
        of_method(Retry(attempts=1), Retry(base=1.0)),
        "@rpc(policies=...): there are two of Retry. Put what both say into one.",
    ),
    "a class in place of a policy": (
        of_method(Breaker),
        "@rpc(policies=...): <class 'polywire.contract.policies.Breaker'> is no policy. Give Retry, Breaker, Bulkhead, "
        "Hedge, Balance, Ejection or Fallback.",
    ),
    "the same of a contract": (
        of_method(Breaker(), Breaker(), contract=True),
        "of_method.<locals>.declare.<locals>.Wrong: policies=...: there are two of Breaker. "
        "Put what both say into one.",
    ),
    "an answer of another type": (
        of_method(Fallback(value=3)),
        f"{WHERE} falls back on 3, but answers Found.",
    ),
    "a key that there is not": (
        of_method(Balance(by="by_key", key="custmer")),
        f"{WHERE}: key='custmer' is no field of Query. Its fields are: customer, since.",
    ),
    "a field that is no key": (
        of_method(Balance(by="by_key", key="since")),
        f"{WHERE}: key='since' is annotated 'float', but a key is a str, an int, a UUID or an Enum.",
    ),
    "a fallback of a stream": (
        of_stream,
        "of_stream.<locals>.Wrong.watch has a Fallback, but answers by a stream, which nothing can stand in for.",
    ),
    "policies of an implementation": (
        of_service,
        "of_service.<locals>.SearchService implements a contract and gives policies=, but what callers keep to belongs "
        "to the contract. Move it there.",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_hold_is_refused_where_it_is_declared(name: str) -> None:
    declare, message = REFUSED[name]
    with pytest.raises(ContractError) as caught:
        declare()
    assert str(caught.value) == message


def test_a_key_belongs_to_the_balance_by_key() -> None:
    with pytest.raises(ContractError) as caught:
        Balance(key="customer")
    assert str(caught.value) == (
        "Balance(key='customer'): the name of a field of the request, together with by='by_key'."
    )


def test_a_nearer_value_replaces_a_function_further_away_and_keeps_the_last_good_answers() -> None:
    far = Fallback(function=lambda _query, _error: Found(), last_good=5.0)
    near = Fallback(value=Found(count=1)).over(far)
    assert near.given == {"value", "last_good"}
    assert Fallback(function=lambda _query, _error: None).over(near).given == {"function", "last_good"}


def test_policies_can_be_hashed_whatever_they_hold() -> None:
    one, same = Balance(by="weighted", weights={"a": 1.0}), Balance(by="weighted", weights={"a": 1.0})
    assert {one: 1}[same] == 1
    assert hash(Fallback(value=[])) == hash(Fallback(value={}))
