"""One of several instances for the fault tests: `moody_service.py ADDRESS` serves there until it is killed."""

from __future__ import annotations

import asyncio
import sys

from polywire import Contract, Internal, Message, Server, post, rpc
from polywire.net.loop import run


class Order(Message, package="faults.v1"):
    text: str = ""


class Done(Message, package="faults.v1"):
    instance: str


class Moody(Contract, package="faults.v1"):
    @rpc(post("/work"))
    async def work(self, order: Order) -> Done:
        """Not safe to repeat, so that no retry hides what happens."""
        raise NotImplementedError

    @rpc(post("/become"))
    async def become(self, order: Order) -> Done:
        """From now on: `well`, `failing` or `slow`."""
        raise NotImplementedError


class MoodyService(Moody):
    def __init__(self) -> None:
        self.instance = ""
        self.mood = "well"

    async def work(self, order: Order) -> Done:
        if self.mood == "failing":
            raise Internal("out of order")
        await asyncio.sleep(0.5 if self.mood == "slow" else 0.002)
        return Done(instance=self.instance)

    async def become(self, order: Order) -> Done:
        self.mood = order.text
        return Done(instance=self.instance)


async def main() -> None:
    service = MoodyService()
    server = Server([service])
    service.instance = await server.start(sys.argv[1])
    print(service.instance, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    run(main())
