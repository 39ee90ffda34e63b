"""A small service to be called badly, over all wires at one port, by clients that are not ours."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import aiohttp
import grpc.aio

from polywire import Contract, Field, Message, Server, get, post, rpc
from polywire.codec import codec_for

SOON = 20.0
ID = "r-1"
"""The request id of every call."""
WRITE = "faults.v1.Notes/Write"
WAIT = "faults.v1.Notes/Wait"


class Author(Message):
    name: str


class Note(Message, package="faults.v1"):
    text: str
    author: Author
    stars: Annotated[int, Field(ge=0, le=5)] = 0


class Notes(Contract, package="faults.v1"):
    @rpc(post("/notes"), idempotent=True)
    async def write(self, note: Note) -> Note:
        """The note, once it is written."""
        raise NotImplementedError

    @rpc(get("/wait"))
    async def wait(self) -> None:
        """Never answers."""
        raise NotImplementedError


class NotesService(Notes):
    def __init__(self) -> None:
        self.written: Counter[str] = Counter()
        """Texts of notes."""

    async def write(self, note: Note) -> Note:
        self.written[note.text] += 1
        return note

    async def wait(self) -> None:
        await asyncio.Event().wait()


GOOD = Note(text="a", author=Author(name="b"))
GOOD_PROTO = codec_for(Note, "proto").encode(GOOD)
GOOD_JSON = b'{"text":"a","author":{"name":"b"}}'


@dataclass
class Answered:
    """What came back over HTTP."""

    status: int
    headers: dict[str, str]
    body: bytes

    def connect_error(self) -> tuple[int, str, str]:
        """Status, code and message; there is nothing else but details."""
        assert self.headers["content-type"] == "application/json"
        document = json.loads(self.body)
        assert set(document) <= {"code", "message", "details"}
        return self.status, document["code"], document["message"]

    def problem(self) -> tuple[int, str, str, str | None]:
        """Status, code, message and field; all the rest of the problem document follows from these."""
        assert self.headers["content-type"] == "application/problem+json"
        document = json.loads(self.body)
        error = document.pop("error")
        title = document.pop("title")
        assert title
        assert document == {
            "type": "about:blank",
            "status": self.status,
            "detail": error["message"],
            "request_id": ID,
        }
        return self.status, error["code"], error["message"], error["field"]


class Strangers:
    """A grpcio channel and an aiohttp session, each of which keeps one connection for all that it is asked to send."""

    def __init__(self, address: str, service: NotesService, channel: Any, session: aiohttp.ClientSession) -> None:
        self.address = address
        self.service = service
        self._channel = channel
        self._session = session
        self.token: str | None = None

    async def grpc(self, body: bytes, path: str = WRITE, *, timeout: float | None = None) -> tuple[str, str]:
        """The code and the message of a call by grpcio that fails."""
        metadata = [("x-request-id", ID), *self._credentials()]
        try:
            answer = await self._channel.unary_unary(f"/{path}")(body, metadata=metadata, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            return error.code().name, error.details() or ""
        raise AssertionError(f"this was answered: {answer!r}")

    async def http(self, verb: str, path: str, body: bytes = b"", **headers: str) -> Answered:
        """A request by aiohttp; of the names in *headers*, underscores become hyphens."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        url = f"http://{self.address}{path}"
        everything = {"x-request-id": ID, **dict(self._credentials()), **sent}
        async with self._session.request(verb, url, data=body, headers=everything) as answer:
            named = {name.lower(): value for name, value in answer.headers.items()}
            return Answered(answer.status, named, await answer.read())

    async def connect(self, body: bytes, path: str = WRITE, *, codec: str, **headers: str) -> Answered:
        """A Connect request in *codec*, `json` or `proto`."""
        return await self.http("POST", f"/{path}", body, content_type=f"application/{codec}", **headers)

    async def rest(self, body: bytes, **headers: str) -> Answered:
        return await self.http("POST", "/notes", body, **{"content_type": "application/json", **headers})

    def _credentials(self) -> list[tuple[str, str]]:
        return [] if self.token is None else [("authorization", self.token)]

    async def are_served(self) -> None:
        """The next good request is answered over every wire."""
        # A text of its own: a request that was given up just before may still be written.
        text = secrets.token_hex(4)
        good = Note(text=text, author=Author(name="b"))
        proto, json_ = codec_for(Note, "proto").encode(good), GOOD_JSON.replace(b'"a"', f'"{text}"'.encode())
        metadata = [("x-request-id", ID), *self._credentials()]
        assert await self._channel.unary_unary(f"/{WRITE}")(proto, metadata=metadata) == proto
        for codec, body in (("json", json_), ("proto", proto)):
            answer = await self.connect(body, codec=codec)
            assert (answer.status, answer.body) == (200, body)
        answer = await self.rest(json_)
        assert (answer.status, json.loads(answer.body)) == (200, {**json.loads(json_), "stars": 0})
        assert self.service.written[text] == 4


@asynccontextmanager
async def strangers_at(address: str, service: NotesService) -> AsyncIterator[Strangers]:
    """Peers of *service*, which is served at *address*. At the end every wire has to serve the next request."""
    local = [("grpc.use_local_subchannel_pool", 1)]
    async with (
        grpc.aio.insecure_channel(address, options=local) as channel,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as session,
    ):
        made = Strangers(address, service, channel, session)
        yield made
        async with asyncio.timeout(SOON):
            await made.are_served()


@asynccontextmanager
async def strangers(**options: Any) -> AsyncIterator[Strangers]:
    """Serve notes with the *options* of `Server`, and have peers of it."""
    service = NotesService()
    server = Server([service], **options)
    address = await server.start("127.0.0.1:0")
    try:
        async with strangers_at(address, service) as made:
            yield made
    finally:
        await server.close()
