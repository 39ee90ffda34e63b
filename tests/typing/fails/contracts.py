"""Lines about contracts and their clients that both type checkers refuse."""

from __future__ import annotations

from collections.abc import AsyncIterator

from polywire import App, Contract, Message, calling, connect, current, get, post, rpc, serve


class Query(Message):
    product_id: str


class Stock(Message):
    quantity: int


class Inventory(Contract, package="shop.v1"):
    @rpc(get("/inventory/{product_id}"), idempotent=True)
    async def check(self, query: Query) -> Stock:
        raise NotImplementedError

    @rpc
    def watch(self, query: Query) -> AsyncIterator[Stock]:
        raise NotImplementedError

    @rpc
    async def restock(self, deliveries: AsyncIterator[Stock]) -> Stock:
        raise NotImplementedError

    @rpc
    async def clear(self) -> None:
        raise NotImplementedError


class Numbered(Contract, package=1):  # error: a package is text
    pass


class Options(Contract, package="shop.v1"):
    @rpc(timeout="1s")  # error: seconds are a number
    async def slow(self) -> None: ...

    @rpc(retries=3)  # error: no such option
    async def retried(self) -> None: ...

    @rpc(get(5))  # error: a path is text
    async def numbered(self) -> None: ...

    @rpc(post("/x", status="201"))  # error: a status is a number
    async def created(self) -> None: ...

    @rpc("/x")  # error: a route is made by get, post, ...
    async def bare(self) -> None: ...


class WrongAnswer(Inventory):
    async def check(self, query: Query) -> Query:  # error: the contract says Stock
        return query


class WrongQuestion(Inventory):
    async def check(self, query: Stock) -> Stock:  # error: the contract says Query
        return query


class WrongStream(Inventory):
    async def watch(self, query: Query) -> Stock:  # error: the contract says a stream
        return Stock(quantity=1)


class WrongValue(Inventory):
    async def check(self, query: Query) -> Stock:
        return query  # error: not a Stock


class WrongYield(Inventory):
    async def watch(self, query: Query) -> AsyncIterator[Stock]:
        yield query  # error: not a Stock


async def use(inventory: Inventory, query: Query, stock: Stock) -> None:
    await inventory.check(stock)  # error: it takes a Query
    await inventory.check()  # error: it takes an argument
    await inventory.check(query, query)  # error: it takes one argument
    await inventory.clear(query)  # error: it takes none
    await inventory.missing(query)  # error: no such method
    text: str = await inventory.check(query)  # error: it is a Stock
    number: int = inventory.check(query)  # error: it has to be awaited
    await inventory.watch(query)  # error: a stream is not awaited
    for answer in inventory.watch(query):  # error: a stream takes `async for`
        print(answer)
    async for answer in inventory.watch(query):
        print(answer.colour)  # error: no such field
    await inventory.restock([stock])  # error: it takes an async iterator
    print(text, number)


async def outside() -> None:
    async with connect(Inventory, 8001) as inventory:  # error: an address is text
        await inventory.check(Query(product_id="a"))
    async with connect(Query, "127.0.0.1:1") as nothing:  # error: no contract
        print(nothing)
    async with connect(Inventory, "127.0.0.1:1", token=5) as inventory:  # error: a token is text
        await inventory.missing()  # error: no such method
    async with connect(Inventory, "127.0.0.1:1", wire="carrier pigeon") as inventory:  # error: no such wire
        pass
    async with serve("app", "127.0.0.1:0") as address:  # error: an App is served
        print(address.port)  # error: it is text
    with calling(timeout="1s"):  # error: seconds are a number
        pass
    with calling(metadata={"a": 5}):  # error: metadata is text or bytes
        pass
    print(current().tenant)  # error: no such attribute
    App()  # error: an app has a name
