"""The three kinds of streams: answers that keep coming, requests that keep coming, and a conversation.

Prints:
    3 2 1
    6 words
    HELLO BYE
"""

import asyncio
from collections.abc import AsyncIterator

from polywire import App, Contract, Message, connect, rpc, serve


class Number(Message):
    number: int


class Line(Message):
    text: str


class Talk(Contract, package="talk.v1"):
    @rpc
    def count_down(self, start: Number) -> AsyncIterator[Number]:
        """From *start* to 1."""
        raise NotImplementedError

    @rpc
    async def count_words(self, lines: AsyncIterator[Line]) -> Number:
        """In all lines together."""
        raise NotImplementedError

    @rpc
    def shout(self, lines: AsyncIterator[Line]) -> AsyncIterator[Line]:
        """Each line in capitals, as it comes."""
        raise NotImplementedError


app = App("talk")


@app.service
class TalkService(Talk):
    async def count_down(self, start: Number) -> AsyncIterator[Number]:
        for number in range(start.number, 0, -1):
            yield Number(number=number)

    async def count_words(self, lines: AsyncIterator[Line]) -> Number:
        return Number(number=sum([len(line.text.split()) async for line in lines]))

    async def shout(self, lines: AsyncIterator[Line]) -> AsyncIterator[Line]:
        async for line in lines:
            yield Line(text=line.text.upper())


async def say(*texts: str) -> AsyncIterator[Line]:
    for text in texts:
        yield Line(text=text)


async def main() -> None:
    async with serve(app) as address, connect(Talk, address) as talk:
        # Leaving the loop early, or letting go of the stream, cancels the handler.
        print(*[number.number async for number in talk.count_down(Number(number=3))])
        words = await talk.count_words(say("to be or not", "to be"))
        print(words.number, "words")
        print(*[line.text async for line in talk.shout(say("hello", "bye"))])


asyncio.run(main())
