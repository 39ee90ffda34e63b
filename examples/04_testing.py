"""A service in a test: built by hand with a fake, or wired up in memory with one part replaced.

Prints:
    order of 2 x SKU-1 placed
    order of 1 x SKU-2 placed
"""

import asyncio

from polywire import App, Contract, Message, rpc, testing


class Reserve(Message):
    product_id: str
    quantity: int


class Reserved(Message):
    reservation_id: str


class Order(Message):
    text: str


class Stock(Contract, package="shop.v1"):
    @rpc
    async def reserve(self, request: Reserve) -> Reserved:
        raise NotImplementedError


class Orders(Contract, package="shop.v1"):
    @rpc
    async def place(self, request: Reserve) -> Order:
        raise NotImplementedError


app = App("orders")


@app.service
class OrderService(Orders):
    def __init__(self, stock: Stock) -> None:
        self.stock = stock

    async def place(self, request: Reserve) -> Order:
        await self.stock.reserve(request)
        return Order(text=f"order of {request.quantity} x {request.product_id} placed")


class FakeStock(Stock):
    async def reserve(self, request: Reserve) -> Reserved:
        return Reserved(reservation_id="r-1")


async def by_hand() -> None:
    order = await OrderService(FakeStock()).place(Reserve(product_id="SKU-1", quantity=2))
    print(order.text)


async def in_memory() -> None:
    # Calls go through the codec, deadlines and errors as on any wire, without a socket.
    async with testing.system(app, replace={Stock: FakeStock()}) as system:
        order = await system.client(Orders).place(Reserve(product_id="SKU-2", quantity=1))
        print(order.text)


asyncio.run(by_hand())
asyncio.run(in_memory())
