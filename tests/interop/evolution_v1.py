"""The older of two programs: a contract, a service that keeps it, and the calls that a client makes."""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any

from polywire import App
from polywire.contract import Contract, Field, Int32, Message, get, post, rpc


class State(enum.Enum):
    OPEN = "open"
    SHUT = "shut"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Card(Message, tag="card"):
    digits: str


class Cash(Message, tag="cash"):
    amount: int = 0


class Part(Message):
    name: str
    state: State = State.OPEN


class Item(Message):
    name: Annotated[str, Field(number=1)]
    count: Annotated[int, Field(number=2)] = 0
    note: Annotated[str, Field(number=3)] = ""
    state: Annotated[State, Field(number=4)] = State.OPEN
    states: Annotated[list[State], Field(number=5)] = []
    by_day: Annotated[dict[str, State], Field(number=6)] = {}
    level: Annotated[Level | None, Field(number=7)] = None
    payment: Annotated[Card | Cash | None, Field(numbers=(8, 9))] = None
    parts: Annotated[list[Part], Field(number=10)] = []


class Search(Message):
    name: Annotated[str, Field(number=1)]
    limit: Annotated[Int32, Field(number=2)] = 20
    state: Annotated[State, Field(number=3)] = State.OPEN


class Strict(Message):
    state: Annotated[State, Field(number=1, known=True)] = State.OPEN


class Store(Contract, package="evolution.v1"):
    @rpc(post("/items"))
    async def keep(self, item: Item) -> Item:
        """What it was sent, as it understood it."""
        raise NotImplementedError

    @rpc(get("/items/{name}"), idempotent=True)
    async def find(self, search: Search) -> Item:
        """As new as the server has it."""
        raise NotImplementedError

    @rpc(post("/strict"))
    async def decide(self, strict: Strict) -> Strict:
        """Needs to know the state."""
        raise NotImplementedError

    @rpc
    def watch(self, search: Search) -> AsyncIterator[Item]:
        raise NotImplementedError

    @rpc
    async def load(self, items: AsyncIterator[Item]) -> Item:
        """The last of them."""
        raise NotImplementedError


app = App("store")
SENT = Item(
    name="tea",
    count=3,
    note="from the old one",
    state=State.SHUT,
    states=[State.OPEN, State.SHUT],
    by_day={"monday": State.SHUT},
    level=Level.HIGH,
    payment=Cash(amount=5),
    parts=[Part(name="leaf", state=State.SHUT)],
)


@app.service
class StoreService(Store):
    async def keep(self, item: Item) -> Item:
        return item

    async def find(self, search: Search) -> Item:
        return Item(name=search.name, count=search.limit, note="found", state=search.state)

    async def decide(self, strict: Strict) -> Strict:
        return strict

    async def watch(self, search: Search) -> AsyncIterator[Item]:
        for _ in range(2):
            yield SENT

    async def load(self, items: AsyncIterator[Item]) -> Item:
        last = Item(name="none")
        async for item in items:
            last = item
        return last


async def _items(item: Item) -> AsyncIterator[Item]:
    for _ in range(2):
        yield item


async def _watched(client: Store) -> list[Item]:
    return [item async for item in client.watch(Search(name="tea"))]


CALLS: dict[str, Callable[[Any], Awaitable[Any]]] = {
    "keep": lambda client: client.keep(SENT),
    "find": lambda client: client.find(Search(name="tea", limit=7, state=State.SHUT)),
    "decide": lambda client: client.decide(Strict(state=State.SHUT)),
    "watch": _watched,
    "load": lambda client: client.load(_items(SENT)),
}
