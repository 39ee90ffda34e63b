"""Errors are classes, the same on every wire; a deadline ends a call at both ends.

Prints:
    no book 'unknown'
    InvalidArgument: copies: expected `int` >= 1
    the handler was cancelled
    library.v1.Library/Copy did not answer within 0.1 s.
"""

import asyncio
from typing import Annotated

from polywire import (
    App,
    Contract,
    DeadlineExceeded,
    Field,
    InvalidArgument,
    Message,
    NotFound,
    calling,
    connect,
    rpc,
    serve,
)


class CopyBook(Message):
    title: str
    copies: Annotated[int, Field(ge=1, le=10)] = 1


class Copies(Message):
    titles: list[str]


class Library(Contract, package="library.v1"):
    @rpc(timeout=5.0)
    async def copy(self, book: CopyBook) -> Copies:
        """Takes half a second a copy. Raises NotFound for a title that is not there."""
        raise NotImplementedError


app = App("library")


@app.service
class LibraryService(Library):
    async def copy(self, book: CopyBook) -> Copies:
        if book.title == "unknown":
            raise NotFound(f"no book {book.title!r}")
        try:
            await asyncio.sleep(0.5 * book.copies)
        except asyncio.CancelledError:
            print("the handler was cancelled")
            raise
        return Copies(titles=[book.title] * book.copies)


async def main() -> None:
    async with serve(app) as address, connect(Library, address) as library:
        try:
            await library.copy(CopyBook(title="unknown"))
        except NotFound as error:
            print(error)
        try:
            await library.copy(CopyBook(title="Emma", copies=0))
        except InvalidArgument as error:
            print(f"InvalidArgument: {error.field}: {str(error).partition(': ')[2]}")
        try:
            with calling(timeout=0.1):
                await library.copy(CopyBook(title="Emma"))
        except DeadlineExceeded as error:
            await asyncio.sleep(0.1)
            print(str(error).partition(". It may")[0] + ".")


asyncio.run(main())
