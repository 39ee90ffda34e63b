"""The service that others ask."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

from polywire.errors import NotFound
from polywire.system.app import App

from .contracts import Inventory, Query, Stock

app = App("inventory")


@app.service
class StockService(Inventory):
    async def check_stock(self, query: Query) -> Stock:
        if query.product_id == "none":
            raise NotFound("no product 'none'")
        return Stock(product_id=query.product_id, quantity=7, pid=os.getpid())

    async def crash(self) -> None:
        print("going down", flush=True)
        os._exit(3)

    async def watch(self, query: Query) -> AsyncIterator[Stock]:
        for quantity in range(3):
            yield Stock(product_id=query.product_id, quantity=quantity)

    async def add_up(self, stocks: AsyncIterator[Stock]) -> Stock:
        return Stock(product_id="all", quantity=sum([stock.quantity async for stock in stocks]))

    async def echo(self, stocks: AsyncIterator[Stock]) -> AsyncIterator[Stock]:
        async for stock in stocks:
            yield stock
