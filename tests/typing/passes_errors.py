"""What users write about errors of a contract, as both type checkers accept it; checked, not run."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, assert_type

from polywire import (
    CallError,
    Contract,
    FailedPrecondition,
    Field,
    InvalidArgument,
    Message,
    NotFound,
    Unavailable,
    rpc,
)


class Request(Message):
    product_id: str


class OutOfStock(FailedPrecondition, http_status=409, message="{product_id} is out of stock"):
    product_id: str
    left: int = 0
    tried: Annotated[list[str], Field(max_length=10)] = []


class SoldOut(OutOfStock, package="shop.v1", name="Gone", reserved=(4, "until")):
    since: datetime


class Closed(Unavailable):
    """The shop is closed."""


class TooMany(InvalidArgument):
    most: int


class Orders(Contract, package="shop.v1", raises=(Closed,)):
    @rpc(raises=(OutOfStock, SoldOut, TooMany))
    async def place(self, request: Request) -> Request:
        raise NotImplementedError

    @rpc(raises=[TooMany])
    async def cancel(self, request: Request) -> None:
        raise NotImplementedError


class OrderService(Orders):
    async def place(self, request: Request) -> Request:
        raise OutOfStock(product_id=request.product_id)


def every_way_of_making_one(now: datetime) -> Sequence[CallError]:
    return [
        OutOfStock(product_id="a"),
        OutOfStock("None left.", product_id="a", left=1, tried=["b"]),
        OutOfStock(message="None left.", product_id="a", details=[Request(product_id="a")], retry_after=1.0),
        SoldOut(product_id="a", since=now),
        Closed(),
        Closed("Come back.", reached="no", retry_after=60.0),
        TooMany("too many", field="items", most=3),
        NotFound("text"),
        NotFound("text", details=(Request(product_id="a"),)),
        InvalidArgument("text", field="a.b"),
        Unavailable(reached="no"),
    ]


async def reading_one(orders: Orders, request: Request) -> None:
    try:
        await orders.place(request)
    except SoldOut as error:
        assert_type(error.since, datetime)
    except OutOfStock as error:
        assert_type(error.product_id, str)
        assert_type(error.left, int)
        assert_type(error.tried, list[str])
        assert_type(error.retry_after, float | None)
        assert_type(error.details, Sequence[Any])
    except TooMany as error:
        assert_type(error.field, str | None)
        assert_type(error.most, int)


def any_of_them(kind: type[CallError]) -> CallError:
    return kind("text", details=(), retry_after=None)
