"""A system small enough to start in every test: orders asks inventory."""

from __future__ import annotations

from collections.abc import AsyncIterator

from polywire.contract import Contract, Message, get, post, rpc


class Query(Message):
    product_id: str


class Stock(Message):
    product_id: str
    quantity: int
    pid: int = 0


class Pause(Message):
    seconds: float


class Count(Message):
    to: int


class Inventory(Contract, package="tiny.v1"):
    """What is in stock."""

    @rpc(get("/inventory/{product_id}"), idempotent=True)
    async def check_stock(self, query: Query) -> Stock:
        """Units on hand now."""
        raise NotImplementedError

    @rpc
    async def crash(self) -> None:
        """End the process, as a bug would."""
        raise NotImplementedError

    @rpc
    def watch(self, query: Query) -> AsyncIterator[Stock]:
        """The stock, again and again."""
        raise NotImplementedError

    @rpc
    async def add_up(self, stocks: AsyncIterator[Stock]) -> Stock:
        """All of them together."""
        raise NotImplementedError

    @rpc
    def echo(self, stocks: AsyncIterator[Stock]) -> AsyncIterator[Stock]:
        """Each as it comes."""
        raise NotImplementedError


class Orders(Contract, package="tiny.v1"):
    @rpc(post("/orders"))
    async def place(self, query: Query) -> Stock:
        raise NotImplementedError

    @rpc
    async def slowly(self, pause: Pause) -> Stock:
        """Answers after a while, with what inventory said at the end."""
        raise NotImplementedError
