"""The contract that polywire's stacks serve; `orders.proto` beside it is the same for grpcio."""

from __future__ import annotations

from collections.abc import AsyncIterator

from benchmarks.messages import Order, OrderQuery, order

from polywire.contract import Contract, Message, get, post, rpc

ORDER = order()
QUERY = OrderQuery(order_id=ORDER.id)


class WatchQuery(Message, package="bench.v1"):
    order_id: str
    count: int


class Orders(Contract, package="bench.v1"):
    """Orders, as every stack serves them."""

    @rpc(get("/orders/{order_id}"), idempotent=True, timeout=10)
    async def get(self, query: OrderQuery) -> Order:
        """GET-like: a small request, an order back."""
        raise NotImplementedError

    @rpc(post("/orders"), idempotent=True, timeout=10)
    async def put(self, order: Order) -> Order:
        """POST-like: an order both ways."""
        raise NotImplementedError

    @rpc
    def watch(self, watch: WatchQuery) -> AsyncIterator[Order]:
        """The order, again and again."""
        raise NotImplementedError


class OrderService(Orders):
    async def get(self, query: OrderQuery) -> Order:
        return ORDER

    async def put(self, order: Order) -> Order:
        return order

    async def watch(self, watch: WatchQuery) -> AsyncIterator[Order]:
        for _ in range(watch.count):
            yield ORDER
