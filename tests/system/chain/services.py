"""A gateway, the orders behind it, and an inventory whose database answers `CAPACITY` queries per second and no more.

With CHAIN_DEADLINES=off nobody hands a deadline on: each hop begins with the time that it has for itself, works on when
its caller has gone, and asks the database for what nobody waits for.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from contextvars import Context
from typing import Any, TypeVar

from polywire import App, current

from .contracts import Gateway, Inventory, Order, Orders

T = TypeVar("T")

CONNECTIONS = 2
QUERY = 0.04
"""Seconds."""
CAPACITY = CONNECTIONS / QUERY
CARRIES_DEADLINES = os.environ.get("CHAIN_DEADLINES") != "off"

gateway = App("gateway")
orders = App("orders")
inventory = App("inventory")

_adrift: set[asyncio.Future[Any]] = set()


async def hop(call: Coroutine[Any, Any, T]) -> T:
    """The next call, as a part of the one under way, or on its own."""
    if CARRIES_DEADLINES:
        return await call
    task = asyncio.get_running_loop().create_task(call, context=Context())
    _adrift.add(task)
    task.add_done_callback(_done)
    return await asyncio.shield(task)


def _done(task: asyncio.Future[Any]) -> None:
    _adrift.discard(task)
    if not task.cancelled():
        task.exception()  # whoever had asked may be gone


@gateway.service
class GatewayService(Gateway):
    def __init__(self, orders: Orders) -> None:
        self._orders = orders

    async def buy(self, order: Order) -> Order:
        return await hop(self._orders.place(order))


@orders.service
class OrderService(Orders):
    def __init__(self, inventory: Inventory) -> None:
        self._inventory = inventory

    async def place(self, order: Order) -> Order:
        return await hop(self._inventory.reserve(order))


@inventory.service
class InventoryService(Inventory):
    def __init__(self) -> None:
        self._connections = asyncio.Semaphore(CONNECTIONS)

    async def reserve(self, order: Order) -> Order:
        # Once a query is sent, the database has it: it does not hear that whoever asked has gone, only until when it
        # was wanted.
        query = asyncio.ensure_future(self._query(current().time_left() if CARRIES_DEADLINES else None))
        _adrift.add(query)
        query.add_done_callback(_done)
        await asyncio.shield(query)
        return order

    async def _query(self, wanted_for: float | None) -> None:
        loop = asyncio.get_running_loop()
        until = None if wanted_for is None else loop.time() + wanted_for
        async with self._connections:
            if until is None or loop.time() < until:
                await asyncio.sleep(QUERY)
