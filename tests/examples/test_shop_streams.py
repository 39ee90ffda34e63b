"""The shop's streams over real connections: every kind, over gRPC and over Connect."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal, get_args

import pytest
from shop.contracts import (
    ChatMessage,
    Inventory,
    Item,
    NewUser,
    ReservationId,
    Reserve,
    StockWatch,
    UserList,
    Users,
)
from shop.inventory import app as inventory
from shop.users import SEEDED
from shop.users import app as users
from shop_support import BARGAIN

from polywire import connect, serve
from polywire.errors import AlreadyExists

Remote = Literal["grpc", "connect"]
WIRES = pytest.mark.parametrize("wire", get_args(Remote))


@pytest.fixture(autouse=True)
def _databases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_DATA", str(tmp_path))


@contextlib.asynccontextmanager
async def the_users(wire: Remote) -> AsyncIterator[Users]:
    async with serve(users, "127.0.0.1:0") as address, connect(Users, address, wire=wire) as client:
        yield client


@WIRES
async def test_all_users_are_listed(wire: Remote) -> None:
    async with the_users(wire) as people:
        names = [user.user_id async for user in people.list_users(UserList())]
    assert names == [f"U-{number}" for number in range(1, SEEDED + 1)]


@WIRES
async def test_many_users_are_created_by_one_stream(wire: Remote) -> None:
    async def newcomers(count: int, *, at: str) -> AsyncIterator[NewUser]:
        for number in range(count):
            yield NewUser(name=f"New {number}", email=f"new{number}@{at}")

    async def twins() -> AsyncIterator[NewUser]:
        yield NewUser(name="One", email="twin@b.example")
        yield NewUser(name="Two", email="twin@b.example")

    async with the_users(wire) as people:
        created = await people.create_users(newcomers(250, at="a.example"))
        assert created.user_ids == [f"U-{number}" for number in range(SEEDED + 1, SEEDED + 251)]
        with pytest.raises(AlreadyExists):
            await people.create_users(twins())
        assert len([user async for user in people.list_users(UserList())]) == SEEDED + 250


@WIRES
async def test_a_chat_goes_back_and_forth(wire: Remote) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()

    async def customer() -> AsyncIterator[ChatMessage]:
        """Asks only after the agent has answered: a conversation, not two monologues."""
        yield ChatMessage(text="hello", user_id="U-1")
        assert (await heard.get()).startswith("Hello, ")
        yield ChatMessage(text="Where is ord-12ab?")
        assert await heard.get() == "Order ord-12ab is on its way. Anything else?"
        yield ChatMessage(text="bye")

    async with the_users(wire) as people:
        async for answer in people.chat(customer()):
            heard.put_nowait(answer.text)
    assert heard.get_nowait().startswith("Goodbye, ")


@WIRES
async def test_a_change_of_stock_reaches_those_who_watch(wire: Remote) -> None:
    async with (
        serve(inventory, "127.0.0.1:0") as address,
        connect(Inventory, address, wire=wire) as warehouse,
    ):
        stock = warehouse.watch(StockWatch(product_ids=[BARGAIN]))
        assert (await anext(stock)).quantity == 1
        await warehouse.reserve(Reserve(reservation_id="r", items=[Item(product_id=BARGAIN, quantity=1)]))
        assert (await anext(stock)).quantity == 0
        await warehouse.release(ReservationId(reservation_id="r"))
        assert (await anext(stock)).quantity == 1


@WIRES
async def test_a_change_that_another_instance_made_reaches_those_who_watch(wire: Remote) -> None:
    async with (
        serve(inventory, "127.0.0.1:0") as here,
        serve(inventory, "127.0.0.1:0") as there,
        connect(Inventory, here, wire=wire) as watched,
        connect(Inventory, there, wire=wire) as other,
    ):
        stock = watched.watch(StockWatch(product_ids=[BARGAIN, "SKU-123"]))
        assert [(await anext(stock)).product_id for _ in range(2)] == [BARGAIN, "SKU-123"]
        await other.reserve(Reserve(reservation_id="r", items=[Item(product_id=BARGAIN, quantity=1)]))
        async with asyncio.timeout(60):
            sold = await anext(stock)
        assert (sold.product_id, sold.quantity) == (BARGAIN, 0)
        await watched.release(ReservationId(reservation_id="r"))  # one that it made itself
        assert (await anext(stock)).quantity == 1
