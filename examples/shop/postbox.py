"""A mail server for the demo that delivers nothing: it takes every letter, and remembers whose order it was about.

python postbox.py            listens on 127.0.0.1:8025, where the shop looks for its mail server, and prints subjects
"""

from __future__ import annotations

import asyncio
import contextlib
import email
import sys
from collections import Counter
from collections.abc import AsyncIterator

MOST_BYTES = 1_000_000
"""Of a letter."""


class Postbox:
    """As much of SMTP (RFC 5321) as it takes to be given a letter."""

    def __init__(self, *, tell: bool = False) -> None:
        self.subjects: Counter[str] = Counter()
        """How many letters came with each."""
        self._tell = tell

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, from greeting to QUIT."""
        try:
            writer.write(b"220 postbox\r\n")
            while (line := await reader.readline()) and not line.upper().startswith(b"QUIT"):
                if line.upper().startswith(b"DATA"):
                    writer.write(b"354 go on\r\n")
                    writer.write(self._taken(await _letter(reader)))
                else:
                    writer.write(b"250 yes\r\n")
                await writer.drain()
            writer.write(b"221 bye\r\n")
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # whoever wrote will find out, and try again
        finally:
            writer.close()

    def _taken(self, letter: bytes) -> bytes:
        subject = str(email.message_from_bytes(letter)["Subject"])
        self.subjects[subject] += 1
        if self._tell:
            print(subject, flush=True)
        return b"250 taken\r\n"


async def _letter(reader: asyncio.StreamReader) -> bytes:
    lines: list[bytes] = []
    size = 0
    while (line := await reader.readuntil(b"\n")) not in (b".\r\n", b".\n"):
        size += len(line)
        if size > MOST_BYTES:
            raise ConnectionError("the letter is too long")
        lines.append(line.removeprefix(b"."))
    return b"".join(lines)


@contextlib.asynccontextmanager
async def open_postbox(port: int = 0) -> AsyncIterator[tuple[Postbox, str]]:
    """A postbox, and where it listens, for the length of the block."""
    postbox = Postbox()
    server = await asyncio.start_server(postbox.serve, "127.0.0.1", port)
    try:
        host, taken = server.sockets[0].getsockname()
        yield postbox, f"{host}:{taken}"
    finally:
        server.close()


async def main() -> None:
    server = await asyncio.start_server(Postbox(tell=True).serve, "127.0.0.1", 8025)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(asyncio.run(main()))
