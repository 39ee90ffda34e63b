"""Lines about who may call that the type checkers refuse."""

from __future__ import annotations

from polywire import Call, Contract, Message, Server, allow, rpc
from polywire.server import BearerTokens


class Word(Message):
    word: str


class Till(Contract, package="typing.fails.trust.v1"):
    @rpc
    async def charge(self, word: Word) -> Word:
        raise NotImplementedError


async def later(call: Call) -> bool:
    return True


class TillService(Till):
    @allow(["orders"])  # error: names are given one by one
    async def charge(self, word: Word) -> Word:
        return word


allow(5)  # error: neither a name nor a function
allow(later)  # error: cannot be waited for
allow(lambda: True)  # error: takes the call
Server([TillService()], authenticator=lambda call: "orders")  # error: no authenticator
BearerTokens({"orders": "s3cret"})  # error: a function returns the token
