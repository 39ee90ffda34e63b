"""A small service for the fault tests: `echo_service.py DRAIN_DELAY` prints its address and serves until SIGTERM."""

from __future__ import annotations

import asyncio
import signal
import sys

from polywire import Contract, Message, Server, get, rpc
from polywire.net.loop import run


class Words(Message, package="faults.v1"):
    words: str
    instance: str = ""


class Echo(Contract, package="faults.v1"):
    @rpc(get("/echo/{words}"), idempotent=True, timeout=5)
    async def echo(self, words: Words) -> Words:
        """What was said, a little later."""
        raise NotImplementedError

    @rpc(timeout=5)
    async def once(self, words: Words) -> Words:
        """The same, but not safe to repeat."""
        raise NotImplementedError


class EchoService(Echo):
    def __init__(self) -> None:
        self.instance = ""

    async def echo(self, words: Words) -> Words:
        await asyncio.sleep(0.02)
        return Words(words=words.words, instance=self.instance)

    async def once(self, words: Words) -> Words:
        return await self.echo(words)


async def main() -> None:
    service = EchoService()
    server = Server([service])
    service.instance = await server.start("127.0.0.1:0")
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    print(service.instance, flush=True)
    await stop.wait()
    await server.drain(delay=float(sys.argv[1]), grace=5.0)


if __name__ == "__main__":
    run(main())
