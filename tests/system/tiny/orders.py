"""The service that asks."""

from __future__ import annotations

import asyncio

from polywire.system.app import App

from .contracts import Inventory, Orders, Pause, Query, Stock

app = App("orders")


@app.service
class OrderService(Orders):
    def __init__(self, inventory: Inventory) -> None:
        self.inventory = inventory

    async def place(self, query: Query) -> Stock:
        return await self.inventory.check_stock(query)

    async def slowly(self, pause: Pause) -> Stock:
        print("has begun", flush=True)
        await asyncio.sleep(pause.seconds)
        return await self.inventory.check_stock(Query(product_id="slow"))
