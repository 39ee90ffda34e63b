"""aiohttp's client on REST routes: connections kept and reused, many calls at once, and callers that give up."""

from __future__ import annotations

import asyncio

import aiohttp
from test_rest_curl import notes


async def test_connections_are_kept_for_many_calls() -> None:
    connector = aiohttp.TCPConnector(limit=4)
    async with notes() as url, aiohttp.ClientSession(connector=connector) as session:

        async def one(number: int) -> None:
            async with session.get(f"{url}/notes/{number}", params={"unknown": "ü"}) as got:
                assert got.status == 200
                assert got.content_type == "application/json"
                assert await got.json() == {"note_id": str(number), "text": "hello"}

        await asyncio.gather(*(one(number) for number in range(300)))


async def test_every_verb_and_error_is_understood() -> None:
    async with notes() as url, aiohttp.ClientSession() as session:
        async with session.post(f"{url}/notes", json={"note_id": "7", "text": "ü"}) as got:
            assert (got.status, got.headers["location"]) == (201, "/api/v1/notes/7")
            assert (await got.json())["text"] == "ü"
        async with session.delete(f"{url}/notes/7") as got:
            assert (got.status, await got.read()) == (204, b"")
        async with session.head(f"{url}/notes/7") as got:
            assert (got.status, await got.read()) == (200, b"")
        async with session.get(f"{url}/notes/gone") as got:
            document = await got.json(content_type="application/problem+json")
            assert (got.status, document["error"]["code"]) == (404, "not_found")
        async with session.get(f"{url}/notes/long") as got:
            # aiohttp accepts gzip by itself.
            assert len((await got.json())["text"]) == 20_000


async def test_a_streamed_answer_is_read_line_by_line_and_let_go() -> None:
    async with notes() as url, aiohttp.ClientSession() as session:
        async with session.get(f"{url}/count?number=1000000000") as got:
            lines = []
            async for line in got.content:
                lines.append(line)
                if len(lines) == 3:
                    break
            got.close()
        assert lines == [b'{"number":0}\n', b'{"number":1}\n', b'{"number":2}\n']
        async with session.get(f"{url}/notes/1") as got:
            assert got.status == 200
