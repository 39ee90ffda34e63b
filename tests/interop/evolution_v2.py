"""The newer of two programs: fields, values, members, parameters and a method more, and one field less."""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any

from polywire import App
from polywire.contract import Contract, Field, Int32, Message, get, post, rpc


class State(enum.Enum):
    OPEN = "open"
    SHUT = "shut"
    MOVED = "moved"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2
    HIGHEST = 3


class Card(Message, tag="card"):
    digits: str


class Cash(Message, tag="cash"):
    amount: int = 0
    currency: str = "EUR"


class Bank(Message, tag="bank"):
    iban: str


class Part(Message):
    name: str
    state: State = State.OPEN
    maker: str = ""


class Box(Message):
    width: int
    inner: list[Part] = []


class Item(Message, reserved=(3, "note")):
    name: Annotated[str, Field(number=1)]
    count: Annotated[int, Field(number=2)] = 0
    state: Annotated[State, Field(number=4)] = State.OPEN
    states: Annotated[list[State], Field(number=5)] = []
    by_day: Annotated[dict[str, State], Field(number=6)] = {}
    level: Annotated[Level | None, Field(number=7)] = None
    payment: Annotated[Card | Cash | Bank | None, Field(numbers=(8, 9, 13))] = None
    parts: Annotated[list[Part], Field(number=10)] = []
    color: Annotated[str, Field(number=11)] = "grey"
    box: Annotated[Box | None, Field(number=12)] = None
    extras: Annotated[dict[str, int], Field(number=14)] = {}
    weight: Annotated[float | None, Field(number=15)] = None
    tags: Annotated[list[str], Field(number=16)] = []
    way: Annotated[Card | Bank | None, Field(numbers=(17, 18), names=("way_card", "way_bank"))] = None


class Search(Message):
    name: Annotated[str, Field(number=1)]
    limit: Annotated[Int32, Field(number=2)] = 20
    state: Annotated[State, Field(number=3)] = State.OPEN
    offset: Annotated[Int32, Field(number=4)] = 0
    tags: Annotated[list[str], Field(number=5)] = []


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

    @rpc(post("/items/{name}/forget"))
    async def forget(self, search: Search) -> None:
        """Only the newer one can."""
        raise NotImplementedError


app = App("store")
SENT = Item(
    name="tea",
    count=3,
    state=State.MOVED,
    states=[State.OPEN, State.MOVED, State.SHUT],
    by_day={"monday": State.MOVED},
    level=Level.HIGHEST,
    payment=Bank(iban="DE00"),
    parts=[Part(name="leaf", state=State.MOVED, maker="us")],
    color="green",
    box=Box(width=4, inner=[Part(name="lid")]),
    extras={"a": 1},
    weight=0.0,
    tags=["new"],
    way=Card(digits="1"),
)


@app.service
class StoreService(Store):
    async def keep(self, item: Item) -> Item:
        return item

    async def find(self, search: Search) -> Item:
        return Item(
            name=search.name,
            count=search.limit + search.offset,
            state=State.MOVED,
            level=Level.HIGHEST,
            payment=Bank(iban="DE00"),
            color=search.state.name,
            tags=search.tags,
        )

    async def decide(self, strict: Strict) -> Strict:
        return Strict(state=State.MOVED) if strict.state is State.SHUT else strict

    async def watch(self, search: Search) -> AsyncIterator[Item]:
        for _ in range(2):
            yield SENT

    async def load(self, items: AsyncIterator[Item]) -> Item:
        last = Item(name="none")
        async for item in items:
            last = item
        return last

    async def forget(self, search: Search) -> None:
        return None


async def _items(item: Item) -> AsyncIterator[Item]:
    for _ in range(2):
        yield item


async def _watched(client: Store) -> list[Item]:
    return [item async for item in client.watch(Search(name="tea", offset=1))]


CALLS: dict[str, Callable[[Any], Awaitable[Any]]] = {
    "keep": lambda client: client.keep(SENT),
    "keep an old member": lambda client: client.keep(Item(name="tea", payment=Cash(amount=5, currency="CHF"))),
    "find": lambda client: client.find(Search(name="tea", limit=7, state=State.SHUT, offset=2, tags=["a", "b"])),
    "find moved": lambda client: client.find(Search(name="tea", state=State.MOVED)),
    "decide": lambda client: client.decide(Strict(state=State.OPEN)),
    "decide moved": lambda client: client.decide(Strict(state=State.MOVED)),
    "watch": _watched,
    "load": lambda client: client.load(_items(SENT)),
    "forget": lambda client: client.forget(Search(name="tea")),
}
