"""What users write about who may call, as both type checkers accept it; checked, not run."""

from __future__ import annotations

from typing import assert_type

from polywire import App, Authenticator, Call, Contract, Message, Server, allow, current, rpc
from polywire.server import BearerTokens, Certificates


class Word(Message):
    word: str


class Till(Contract, package="typing.trust.v1"):
    @rpc
    async def charge(self, word: Word) -> Word:
        raise NotImplementedError


class Sessions:
    """An authenticator of one's own."""

    def caller_of(self, call: Call) -> str | None:
        return call.credentials


def acts_for_somebody(call: Call) -> bool:
    return call.principal is not None


app = App("till")


@app.service
@allow("orders", "gateway")
@allow(acts_for_somebody)
class TillService(Till):
    @allow(lambda call: call.caller == "orders")
    async def charge(self, word: Word) -> Word:
        assert_type(current().caller, str | None)
        current().principal = "U-17"
        return word


async def served(till: TillService) -> None:
    assert_type(await till.charge(Word(word="a")), Word)
    authenticator: Authenticator = Sessions()
    for one in (authenticator, Certificates(["orders"]), BearerTokens({"orders": lambda: ["new", "old"]})):
        Server([till], authenticator=one, allow=["orders"])
