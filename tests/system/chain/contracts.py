"""What a gateway, the orders behind it and the inventory behind those say to each other."""

from __future__ import annotations

from polywire import Contract, Message, rpc

PATIENCE = 1.0
"""Seconds after which whoever ordered does not want it any more."""


class Order(Message, package="chain.v1"):
    number: int = 0


class Gateway(Contract, package="chain.v1"):
    @rpc(idempotent=True, timeout=PATIENCE)
    async def buy(self, order: Order) -> Order:
        raise NotImplementedError


class Orders(Contract, package="chain.v1"):
    @rpc(idempotent=True, attempt_timeout=0.5)
    async def place(self, order: Order) -> Order:
        raise NotImplementedError


class Inventory(Contract, package="chain.v1"):
    @rpc(idempotent=True, attempt_timeout=0.25)
    async def reserve(self, order: Order) -> Order:
        raise NotImplementedError
