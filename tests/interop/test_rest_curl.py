"""curl on every kind of REST route, and on Connect in JSON, over HTTP/1.1 and HTTP/2."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from connect_support import our_server as connect_server
from tests.process_support import output_of

from polywire.contract import Contract, Message, delete, get, patch, post, put, rpc
from polywire.errors import NotFound
from polywire.net.listener import Listener
from polywire.services import Services
from polywire.wire.http import HttpApplication

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


def _speaks_http2() -> bool:
    curl = shutil.which("curl")
    return curl is not None and b"HTTP2" in subprocess.run([curl, "--version"], capture_output=True, check=True).stdout


versions = pytest.mark.parametrize("version", ["--http1.1", "--http2-prior-knowledge"])


class Key(Message):
    note_id: str


class Note(Message):
    note_id: str = ""
    text: str | None = None


class Count(Message):
    number: int = 0


class Notes(Contract, package="notes.v1", prefix="/api/v1"):
    @rpc(get("/notes/{note_id}"), idempotent=True)
    async def read(self, key: Key) -> Note:
        raise NotImplementedError

    @rpc(post("/notes", status=201, location="/notes/{note_id}"))
    async def write(self, note: Note) -> Note:
        raise NotImplementedError

    @rpc(put("/notes/{note_id}"), idempotent=True)
    async def replace(self, note: Note) -> Note:
        raise NotImplementedError

    @rpc(patch("/notes/{note_id}"))
    async def change(self, note: Note) -> Note:
        raise NotImplementedError

    @rpc(delete("/notes/{note_id}"), idempotent=True)
    async def remove(self, key: Key) -> None:
        raise NotImplementedError

    @rpc(get("/count"))
    def count(self, count: Count) -> AsyncIterator[Count]:
        raise NotImplementedError

    @rpc(post("/sum"))
    async def sum(self, counts: AsyncIterator[Count]) -> Count:
        raise NotImplementedError


class NotesService(Notes):
    async def read(self, key: Key) -> Note:
        if key.note_id == "gone":
            raise NotFound("there is no note 'gone'")
        return Note(note_id=key.note_id, text="x" * 20_000 if key.note_id == "long" else "hello")

    async def write(self, note: Note) -> Note:
        return note

    async def replace(self, note: Note) -> Note:
        return note

    async def change(self, note: Note) -> Note:
        return note

    async def remove(self, key: Key) -> None:
        return None

    async def count(self, count: Count) -> AsyncIterator[Count]:
        for number in range(count.number):
            yield Count(number=number)

    async def sum(self, counts: AsyncIterator[Count]) -> Count:
        return Count(number=sum([count.number async for count in counts]))


@asynccontextmanager
async def notes() -> AsyncIterator[str]:
    listener = Listener(HttpApplication(Services([NotesService()])))
    address = await listener.start("127.0.0.1:0")
    try:
        yield f"http://{address}/api/v1"
    finally:
        listener.close()


async def curl(version: str, *arguments: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body."""
    if version == "--http2-prior-knowledge" and not _speaks_http2():
        pytest.skip("this curl was built without HTTP/2")
    curl = ["curl", "-sS", "--max-time", "20", "-D", "/dev/stderr", version]
    status, body, raw = await output_of(*curl, *arguments)
    assert status == 0, raw
    first, *lines = raw.decode().replace("\r", "").strip().split("\n\n")[0].split("\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return int(first.split()[1]), headers, body


JSON = ("-H", "content-type: application/json")


@versions
async def test_every_verb_of_a_resource(version: str) -> None:
    async with notes() as url:
        status, headers, body = await curl(version, f"{url}/notes/a%20b")
        assert (status, json.loads(body)) == (200, {"note_id": "a b", "text": "hello"})
        status, headers, body = await curl(version, *JSON, "-d", '{"note_id":"7","text":"new"}', f"{url}/notes")
        assert (status, headers["location"], json.loads(body)["text"]) == (201, "/api/v1/notes/7", "new")
        status, _, body = await curl(version, "-X", "PUT", *JSON, "-d", '{"text":"other"}', f"{url}/notes/7")
        assert (status, json.loads(body)) == (200, {"note_id": "7", "text": "other"})
        status, _, body = await curl(version, "-X", "PATCH", *JSON, "-d", "{}", f"{url}/notes/7")
        assert (status, json.loads(body)) == (200, {"note_id": "7", "text": None})
        status, _, body = await curl(version, "-X", "DELETE", f"{url}/notes/7")
        assert (status, body) == (204, b"")
        status, headers, body = await curl(version, "-I", f"{url}/notes/7")
        assert (status, headers["content-length"]) == (200, "30")
        status, headers, _ = await curl(version, "-X", "OPTIONS", f"{url}/notes/7")
        assert (status, headers["allow"]) == (204, "GET, HEAD, PUT, PATCH, DELETE, OPTIONS")


@versions
async def test_what_is_refused(version: str) -> None:
    async with notes() as url:
        expected: list[tuple[int, str, list[str]]] = [
            (404, "not_found", [f"{url}/notes/gone"]),
            (404, "unimplemented", [f"{url}/nothing"]),
            (405, "unimplemented", ["-X", "DELETE", f"{url}/notes"]),
            (405, "unimplemented", ["-X", "TRACE", f"{url}/notes"]),
            (400, "invalid_argument", [*JSON, "-d", "{", f"{url}/notes"]),
            (406, "invalid_argument", ["-H", "accept: text/html", f"{url}/notes/7"]),
            (415, "invalid_argument", ["-d", "a=b", f"{url}/notes"]),
            (422, "invalid_argument", [*JSON, "-d", '{"note_id":7}', f"{url}/notes"]),
        ]
        for status, code, arguments in expected:
            got, headers, body = await curl(version, *arguments)
            document = json.loads(body)
            assert (got, document["status"], document["error"]["code"]) == (status, status, code), arguments
            assert headers["content-type"] == "application/problem+json"


async def test_a_body_over_the_limit_is_answered_although_it_is_not_read(tmp_path: Path) -> None:
    # Over HTTP/1.1 only: curl 7.88 drops an answer that is followed by RST_STREAM while it still sends.
    large = tmp_path / "large.json"
    large.write_bytes(b" " * 6_000_000)
    async with notes() as url:
        status, _, body = await curl("--http1.1", *JSON, "-H", "expect:", "--data-binary", f"@{large}", f"{url}/notes")
    assert (status, json.loads(body)["error"]["code"]) == (413, "resource_exhausted")


@versions
async def test_a_compressed_answer_is_understood(version: str) -> None:
    async with notes() as url:
        status, headers, body = await curl(version, "--compressed", f"{url}/notes/long")
    assert (status, headers["content-encoding"]) == (200, "gzip")
    assert json.loads(body)["text"] == "x" * 20_000


@versions
async def test_streams_of_lines(version: str) -> None:
    lines = ("-H", "content-type: application/x-ndjson", "--data-binary")
    async with notes() as url:
        _, _, body = await curl(version, "-N", f"{url}/count?number=3")
        assert body == b'{"number":0}\n{"number":1}\n{"number":2}\n'
        _, _, body = await curl(version, *lines, '{"number":3}\n{"number":4}\n', f"{url}/sum")
        assert json.loads(body) == {"number": 7}


@versions
async def test_connect_in_json(version: str) -> None:
    async with connect_server() as ours:
        url = f"http://{ours.address}/interop.v1.Rig"
        status, _, body = await curl(version, *JSON, "-d", '{"text":"a","number":"7"}', f"{url}/Echo")
        assert (status, json.loads(body)) == (200, {"text": "a", "number": "7"})
        status, _, body = await curl(version, "-G", "-d", "encoding=json", "-d", "connect=v1", "--data-urlencode",
                                     'message={"text":"a"}', f"{url}/Echo")  # fmt: skip
        assert (status, json.loads(body)) == (200, {"text": "a"})
        status, _, body = await curl(version, *JSON, "-d", '{"text":"not_found"}', f"{url}/Fail")
        document = json.loads(body)
        assert (status, document["code"], document["message"]) == (404, "not_found", "failed with not_found: 100 % ✓")
