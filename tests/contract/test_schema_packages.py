"""Which package a message without one belongs to."""

from __future__ import annotations

import pytest

from polywire.contract import Contract, Message, assign_packages, rpc, schema_of, service_of
from polywire.errors import ContractError


class Line(Message):
    sku: str


class Basket(Message):
    lines: list[Line]


class Shared(Message):
    pass


class Own(Message, package="own.v1"):
    pass


class Baskets(Contract, package="baskets.v1"):
    @rpc
    async def fill(self, basket: Basket) -> Own:
        raise NotImplementedError

    @rpc
    async def share(self, shared: Shared) -> None:
        raise NotImplementedError


class Others(Contract, package="others.v1"):
    @rpc
    async def share(self) -> Shared:
        raise NotImplementedError


def test_a_message_without_a_package_takes_that_of_the_contract_using_it() -> None:
    assign_packages([service_of(Baskets)])
    assign_packages([service_of(Baskets)])
    assert schema_of(Basket).full_name == "baskets.v1.Basket"
    assert schema_of(Line).full_name == "baskets.v1.Line"
    assert schema_of(Own).full_name == "own.v1.Own"


def test_a_message_without_a_package_that_two_use_is_refused() -> None:
    with pytest.raises(ContractError) as refused:
        assign_packages([service_of(Baskets), service_of(Others)])
    assert str(refused.value) == (
        "Shared has no package of its own and is used by baskets.v1.Baskets and by others.v1.Others, which are in "
        "different packages. Say which it belongs to: class Shared(Message, package='baskets.v1')."
    )
