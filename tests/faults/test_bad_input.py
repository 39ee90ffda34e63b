"""Whatever is wrong with a request or with the set-up, it is said in a sentence, and the next request is served."""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from http_support import ask
from tests.faults.notes_service import GOOD_JSON, GOOD_PROTO, ID, WAIT, WRITE, Strangers, strangers
from tests.process_support import output_of
from up_support import TINY, polywire, said, tiny

from polywire.net.stream import Limits
from polywire.server import BearerTokens
from polywire.wire.framing import framed


@pytest.fixture(autouse=True)
def nothing_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """A peer's mistake is the peer's: it must not fill our log."""
    yield
    assert [record.getMessage() for record in caplog.records if record.name.startswith("polywire")] == []


async def curl(address: str, *headers: str, path: str = WRITE, message: bytes | None = None) -> dict[str, str]:
    """The headers of the answer to a gRPC call with one *message* or none; grpcio cannot be made to send such headers.

    What is refused by its headers alone is called without a message: curl takes an answer that comes before the end of
    its request for an error.
    """
    options = ["--http2-prior-knowledge", "-X", "POST", "-s", "-D", "-", "-o", "/dev/null", "--max-time", "10"]
    for header in ("content-type: application/grpc", "te: trailers", f"x-request-id: {ID}", *headers):
        options += ["-H", header]
    if message is not None:
        options += ["--data-binary", "@-"]
    given = None if message is None else framed(message)
    status, out, _ = await output_of("curl", *options, f"http://{address}/{path}", given=given)
    assert status == 0
    lines = (line.partition(": ") for line in out.decode().splitlines())
    return {name.lower(): value for name, _, value in lines}


async def everywhere_by_connect(peers: Strangers, text: bytes, proto: bytes, **headers: str) -> tuple[int, str, str]:
    """What both codecs of Connect are told, which has to be the same."""
    by_json = (await peers.connect(text, codec="json", **headers)).connect_error()
    by_proto = (await peers.connect(proto, codec="proto", **headers)).connect_error()
    assert by_json == by_proto
    return by_json


# Requests


async def test_an_unknown_method() -> None:
    async with strangers() as peers:
        nope = "faults.v1.Notes/Nope"
        text = "faults.v1.Notes/Nope was not called: faults.v1.Notes has no method 'Nope'. It has: Write, Wait."
        assert await peers.grpc(b"", nope) == ("UNIMPLEMENTED", text)
        for codec in ("json", "proto"):
            answer = await peers.connect(b"", nope, codec=codec)
            assert answer.connect_error() == (404, "unimplemented", text)

        assert await peers.grpc(b"", "faults.v1.Nots/Write") == (
            "UNIMPLEMENTED",
            "faults.v1.Nots/Write was not called: there is no service 'faults.v1.Nots' here. "
            "Check the package of the contract, and the address.",
        )
        nowhere = "There is nothing at {}. Look for a typing error, or a slash at the end."
        for path in ("/faults.v1.Nots/Write", "/note"):
            answer = await peers.http("POST", path, GOOD_JSON, content_type="application/json")
            assert answer.problem() == (404, "unimplemented", nowhere.format(path), None)

        wrong_verb = await peers.http("PUT", "/notes", GOOD_JSON, content_type="application/json")
        assert wrong_verb.headers["allow"] == "POST, OPTIONS"
        assert wrong_verb.problem() == (
            405,
            "unimplemented",
            "PUT is not possible at /notes. It has POST, OPTIONS.",
            None,
        )


async def test_a_value_of_the_wrong_type() -> None:
    async with strangers() as peers:
        many = b'{"text":"a","author":{"name":"b"},"stars":"many"}'
        text = "stars: expected `int`, got `str`"
        assert (await peers.connect(many, codec="json")).connect_error() == (400, "invalid_argument", text)
        assert (await peers.rest(many)).problem() == (422, "invalid_argument", text, "stars")

        # Protobuf has no wrong types: a field of another wire type is one that we do not know. So the author, sent as
        # a number, is missing; and a value is wrong where the contract does not allow it.
        number_for_author = b"\x0a\x01a\x10\x05"
        assert await peers.grpc(number_for_author) == ("INVALID_ARGUMENT", "author: is missing")
        six_stars = GOOD_PROTO + b"\x18\x06"
        text = "stars: expected `int` <= 5"
        assert await peers.grpc(six_stars) == ("INVALID_ARGUMENT", text)
        too_many = b'{"text":"a","author":{"name":"b"},"stars":6}'
        assert await everywhere_by_connect(peers, too_many, six_stars) == (400, "invalid_argument", text)
        assert (await peers.rest(too_many)).problem() == (422, "invalid_argument", text, "stars")


async def test_a_missing_field() -> None:
    async with strangers() as peers:
        text = "author: is missing"
        assert await peers.grpc(b"\x0a\x01a") == ("INVALID_ARGUMENT", text)
        assert await everywhere_by_connect(peers, b'{"text":"a"}', b"\x0a\x01a") == (400, "invalid_argument", text)
        assert (await peers.rest(b'{"text":"a"}')).problem() == (422, "invalid_argument", text, "author")

        # Only REST can tell a missing text from an empty one.
        assert (await peers.rest(b'{"text":"a","author":{}}')).problem() == (
            422,
            "invalid_argument",
            "author.name: is missing",
            "author.name",
        )


async def test_an_oversized_body() -> None:
    async with strangers(max_message_bytes=1000) as peers:
        large = b" " * 1001
        split = "Split it, or raise `max_message_bytes` at its receiver."
        assert await peers.grpc(large) == (
            "RESOURCE_EXHAUSTED",
            f"A message of 1001 bytes was not read: the limit is 1000 bytes. {split}",
        )
        assert await everywhere_by_connect(peers, large, large) == (
            429,
            "resource_exhausted",
            f"A message of more than 1000 bytes was not read. {split}",
        )
        assert (await peers.rest(large)).problem() == (
            413,
            "resource_exhausted",
            "faults.v1.Notes/Write: POST /notes was not called: its body is over the limit of 1000 bytes. Split it, or "
            "raise `max_message_bytes` of the service.",
            None,
        )


async def test_a_body_that_is_oversized_once_decompressed() -> None:
    async with strangers(max_message_bytes=1000) as peers:
        bomb = gzip.compress(bytes(100_000))
        assert len(bomb) < 1000
        assert await everywhere_by_connect(peers, bomb, bomb, content_encoding="gzip") == (
            429,
            "resource_exhausted",
            "A message was not read: decompressed it is over the limit of 1000 bytes. Split it, or raise "
            "`max_message_bytes` at its receiver.",
        )
        assert (await peers.rest(bomb, content_encoding="gzip")).problem() == (
            413,
            "resource_exhausted",
            "faults.v1.Notes/Write: POST /notes was not called: its body is over the limit of 1000 bytes once it is "
            "decompressed. Split it, or raise `max_message_bytes` of the service.",
            None,
        )


MALFORMED_JSON = {
    "cut off": (b'{"text":', "Input data was truncated"),
    "not JSON at all": (b"text=a", "invalid character (byte 4)"),
    "something behind it": (GOOD_JSON + b"}", "trailing characters (byte 35)"),
    "text that is no UTF-8": (b'{"text":"\xff"}', "text that is not UTF-8"),
    "lists nested deeply": (b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    "objects nested deeply": (b'{"x":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
}


@pytest.mark.parametrize("name", MALFORMED_JSON)
async def test_malformed_json(name: str) -> None:
    body, reason = MALFORMED_JSON[name]
    text = f"faults.v1.Note: the JSON is malformed ({reason})."
    async with strangers() as peers:
        assert (await peers.connect(body, codec="json")).connect_error() == (400, "invalid_argument", text)
        assert (await peers.rest(body)).problem() == (400, "invalid_argument", text, None)


async def test_malformed_protobuf() -> None:
    text = "faults.v1.Note: the protobuf bytes are malformed or truncated, or hold text that is not UTF-8."
    # No tag at all; a text that ends too early; a text that is no text; groups nested without end.
    for body in (b"\xff\xff", b"\x0a\x05a", b"\x0a\x01\xff", b"\x1b" * 100_000):
        async with strangers() as peers:
            assert await peers.grpc(body) == ("INVALID_ARGUMENT", text)
            answer = await peers.connect(body, codec="proto")
            assert answer.connect_error() == (400, "invalid_argument", text)


async def test_a_bad_header_of_a_call() -> None:
    async with strangers() as peers:
        got = await curl(peers.address, "grpc-timeout: soon")
        assert (got["grpc-status"], got["grpc-message"]) == (
            "3",
            f"{WRITE} was not called: its grpc-timeout 'soon' is malformed; a timeout is up to 8 digits and one of "
            "H, M, S, m, u, n.",
        )
        assert await everywhere_by_connect(peers, GOOD_JSON, GOOD_PROTO, connect_timeout_ms="soon") == (
            400,
            "invalid_argument",
            f"{WRITE} was not called: connect-timeout-ms is 'soon', but it has to be a number of milliseconds of at "
            "most 10 digits.",
        )
        assert await everywhere_by_connect(peers, GOOD_JSON, GOOD_PROTO, connect_protocol_version="7") == (
            400,
            "invalid_argument",
            f"{WRITE} was not called: connect-protocol-version is '7', but 1 is the only one.",
        )
        assert (await peers.rest(GOOD_JSON, polywire_timeout="soon")).problem() == (
            400,
            "invalid_argument",
            f"{WRITE}: POST /notes was not called: the header polywire-timeout is 'soon', but it has to be a number of "
            "seconds such as 1.5.",
            None,
        )


async def test_a_compression_that_nobody_knows() -> None:
    async with strangers() as peers:
        text = (
            f"{WRITE} was not called: its request is compressed with 'br', which is not known here. "
            "Use 'gzip' or 'identity'."
        )
        got = await curl(peers.address, "grpc-encoding: br")
        assert (got["grpc-status"], got["grpc-message"]) == ("12", text)
        assert await everywhere_by_connect(peers, GOOD_JSON, GOOD_PROTO, content_encoding="br") == (
            501,
            "unimplemented",
            text,
        )
        assert (await peers.rest(GOOD_JSON, content_encoding="br")).problem() == (
            415,
            "invalid_argument",
            f"{WRITE}: POST /notes was not called: its body is encoded as 'br'; gzip is known.",
            None,
        )


async def test_a_bad_header_of_the_connection() -> None:
    async with strangers(limits=Limits(max_header_bytes=2000, max_header_count=50)) as peers:
        space = await ask(peers.address, b"GET /wait HTTP/1.1\r\nhost: a\r\nbad name: b\r\n\r\n")
        assert (space.status, space.headers["connection"]) == (400, "close")
        assert json.loads(space.body) == {
            "type": "about:blank",
            "title": "Bad Request",
            "status": 400,
            "detail": "A header line is malformed: 'bad name' is not a field name.",
        }
        large = await peers.http("GET", "/wait", x="y" * 3000)
        assert json.loads(large.body) == {
            "type": "about:blank",
            "title": "Request Header Fields Too Large",
            "status": 431,
            "detail": "The headers are over the limit of 50 fields or 2000 bytes. Send fewer, or raise "
            "`max_header_count` and `max_header_bytes` at their receiver.",
        }
        assert "http/2 431 " in await curl(peers.address, "x: " + "y" * 3000)


async def test_an_expired_deadline() -> None:
    async with strangers() as peers:
        text = f"{WRITE} was not started: its deadline had passed when it arrived."
        got = await curl(peers.address, "grpc-timeout: 1n", message=GOOD_PROTO)
        assert (got["grpc-status"], got["grpc-message"]) == ("4", text)
        assert await everywhere_by_connect(peers, GOOD_JSON, GOOD_PROTO, connect_timeout_ms="0") == (
            504,
            "deadline_exceeded",
            text,
        )
        answer = await peers.rest(GOOD_JSON, polywire_timeout="0")
        assert answer.problem() == (504, "deadline_exceeded", text, None)
        assert not peers.service.written


async def test_a_deadline_that_expires_on_the_way() -> None:
    async with strangers() as peers:
        text = f"{WAIT} was stopped at its deadline. It may have done part of its work."
        got = await curl(peers.address, "grpc-timeout: 50m", path=WAIT, message=b"")
        assert (got["grpc-status"], got["grpc-message"]) == ("4", text)
        assert (await peers.grpc(b"", WAIT, timeout=0.05))[0] == "DEADLINE_EXCEEDED"
        for codec, body in (("json", b"{}"), ("proto", b"")):
            answer = await peers.connect(body, WAIT, codec=codec, connect_timeout_ms="50")
            assert answer.connect_error() == (504, "deadline_exceeded", text)
        waiting = await peers.http("GET", "/wait", polywire_timeout="0.05")
        assert waiting.problem() == (504, "deadline_exceeded", text, None)


TOKEN = "Bearer s3cret-of-orders"
WRONG_TOKENS = {
    "another token": "Bearer guess",
    "its beginning": TOKEN[:-1],
    "more than it": TOKEN + "x",
    "other letters": TOKEN.upper(),
    "another scheme": TOKEN.replace("Bearer", "Basic"),
    "no scheme": TOKEN.removeprefix("Bearer "),
}


@pytest.mark.parametrize("name", WRONG_TOKENS)
async def test_a_wrong_token(name: str) -> None:
    tokens = BearerTokens({"orders": lambda: "s3cret-of-orders", "new": lambda: ""})
    text = f"{WRITE} was refused: the credentials are not valid here."
    async with strangers(authenticator=tokens) as peers:
        peers.token = WRONG_TOKENS[name]
        assert await peers.grpc(GOOD_PROTO) == ("UNAUTHENTICATED", text)
        assert await everywhere_by_connect(peers, GOOD_JSON, GOOD_PROTO) == (401, "unauthenticated", text)
        answer = await peers.rest(GOOD_JSON)
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.problem() == (401, "unauthenticated", text, None)
        assert not peers.service.written
        peers.token = TOKEN


async def test_no_token_at_all_is_not_that_of_a_service_that_has_none_yet() -> None:
    tokens = BearerTokens({"orders": lambda: "s3cret-of-orders", "new": lambda: ""})
    async with strangers(authenticator=tokens) as peers:
        # A space that HTTP does not know as one, and so leaves in place.
        head = b"POST /notes HTTP/1.1\r\nhost: a\r\nconnection: close\r\nauthorization: Bearer \xa0\r\n"
        body = b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(GOOD_JSON), GOOD_JSON)
        refused = await ask(peers.address, head + body)
        assert refused.status == 401
        assert not peers.service.written
        peers.token = TOKEN


async def test_a_missing_token() -> None:
    text = f"{WRITE} was refused: it needs credentials, and none came."
    async with strangers(authenticator=BearerTokens({"orders": lambda: "s3cret-of-orders"})) as peers:
        assert await peers.grpc(GOOD_PROTO) == ("UNAUTHENTICATED", text)
        assert await everywhere_by_connect(peers, GOOD_JSON, GOOD_PROTO) == (401, "unauthenticated", text)
        assert (await peers.rest(GOOD_JSON)).problem() == (401, "unauthenticated", text, None)
        # What is wrong besides is not told to strangers.
        assert (await peers.rest(b"{")).problem() == (401, "unauthenticated", text, None)
        peers.token = TOKEN


# Set-up


async def test_an_unknown_key_in_the_system_file(tmp_path: Path) -> None:
    status, output = await said("up", directory=tiny(tmp_path, TINY + 'lisen = "127.0.0.1:1"\n'))
    assert (status, output) == (
        1,
        "Error: polywire.toml:9: services.inventory.lisen is not a key of a service. Did you mean 'listen'? "
        "A service has: address, allow, app, calls, instances, limits, listen, public, serves, shedding, timeouts, "
        "tls, token.",
    )


@pytest.mark.parametrize("options", [(), ("--in-process",)])
async def test_a_port_in_use(tmp_path: Path, options: tuple[str, ...]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        text = TINY.replace('"tiny.orders:app"\n', f'"tiny.orders:app"\nlisten = "{address}"\n')
        directory = tiny(tmp_path, text)
        status, output = await said("up", *options, directory=directory)
    assert status == 1
    assert output[output.index("Error: ") :] == (
        f"Error: Service 'orders' did not start: cannot listen on {address}: the port is in use by another process. "
        "Stop it, or set `listen` of the service to another address."
    )
    async with polywire("up", *options, directory=directory) as running:
        await running.address("orders")
        running.interrupt()
        assert await running.ends() == 0


FAILING = """

@app.resource
async def database() -> str:
    raise OSError("unable to open database file")
"""


async def test_a_service_that_fails_to_start(tmp_path: Path) -> None:
    directory = tiny(tmp_path)
    code = directory / "tiny" / "inventory.py"
    right = code.read_text()
    code.write_text(right + FAILING)
    status, output = await said("up", directory=directory)
    assert status == 1
    assert output[output.index("Error: ") :] == (
        "Error: Service 'inventory' did not start: app 'inventory' did not start: its resource 'database' raised "
        "OSError: unable to open database file"
    )
    # None of the others is left behind.
    for at in re.findall(r"http://(\S+)", output):
        host, _, port = at.rpartition(":")
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(host, int(port))
    code.write_text(right)
    async with polywire("up", directory=directory) as running:
        await running.address("inventory")
        running.interrupt()
        assert await running.ends() == 0
