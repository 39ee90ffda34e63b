"""Lines about errors of a contract that the type checkers refuse."""

from __future__ import annotations

from polywire import Contract, FailedPrecondition, InvalidArgument, Message, NotFound, rpc


class OutOfStock(FailedPrecondition):
    product_id: str
    left: int = 0


class TooMany(InvalidArgument):
    most: int


class Request(Message):
    product_id: str


OutOfStock()  # error: a field is missing
OutOfStock("text")  # error: a field is missing
OutOfStock("text", "a")  # error: fields are given by name
OutOfStock(product_id=1)  # error: of another type
OutOfStock(product_id="a", lef=1)  # error: no such field
OutOfStock(product_id="a", field="b")  # error: only InvalidArgument has one
TooMany(most=1, field=2)  # error: of another type
NotFound("text", product_id="a")  # error: a canonical error has no fields
NotFound(5)  # error: of another type
print(OutOfStock(product_id="a").lefts)  # error: no such field


class Odd(NotFound, http_status="404"):  # error: of another type
    pass


class Orders(Contract, package="shop.v1", raises=(Request,)):  # error: no error
    @rpc(raises=(ValueError,))  # error: no error of a call
    async def place(self, request: Request) -> Request:
        raise NotImplementedError
