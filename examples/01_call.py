"""A contract, a service that keeps it, and two callers: one over gRPC, one over REST.

Prints:
    Stock(product_id='SKU-123', quantity=7, in_stock=True)
    Stock(product_id='SKU-123', quantity=7, in_stock=True)
"""

import asyncio

from polywire import App, Contract, Message, connect, get, rpc, serve


class StockQuery(Message):
    product_id: str


class Stock(Message):
    product_id: str
    quantity: int
    in_stock: bool


class Inventory(Contract, package="shop.v1"):
    @rpc(get("/inventory/{product_id}"), idempotent=True, timeout=0.5)
    async def check_stock(self, query: StockQuery) -> Stock:
        """Units on hand now; it may change before an order is placed."""
        raise NotImplementedError


app = App("inventory")


@app.service
class InventoryService(Inventory):
    async def check_stock(self, query: StockQuery) -> Stock:
        return Stock(product_id=query.product_id, quantity=7, in_stock=True)


async def main() -> None:
    async with serve(app, "127.0.0.1:0") as address:
        for wire in ("grpc", "http"):
            async with connect(Inventory, f"{wire}://{address}") as inventory:
                print(await inventory.check_stock(StockQuery(product_id="SKU-123")))


asyncio.run(main())
