"""Old and new programs call each other, as processes of their own, over every wire between processes."""

from __future__ import annotations

import asyncio
import http.client
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import evolution_v1
import evolution_v2
import pytest
from grpc_support import grpc
from proto_support import classes_of, compiled_texts, file_in

from polywire.contract import service_of
from polywire.contract.breaking import breaking_changes, contracts_of_services
from polywire.contract.export import proto_files

HERE = Path(__file__).parent
PROGRAM = HERE / "evolution_program.py"
SOON = 60.0
WIRES = ("grpc", "connect", "connect+json", "http")
DEFAULTS: dict[str, Any] = {
    "v1": {"count": 0, "note": "", "state": "OPEN", "states": [], "by_day": {}, "level": None, "payment": None},
    "v2": {"count": 0, "state": "OPEN", "states": [], "by_day": {}, "level": None, "payment": None},
}
DEFAULTS["v1"] |= {"name": "tea", "parts": []}
DEFAULTS["v2"] |= {"name": "tea", "parts": [], "color": "grey", "box": None, "extras": {}, "weight": None}
DEFAULTS["v2"] |= {"tags": [], "way": None}


@contextmanager
def serving(version: str, place: Path = HERE) -> Iterator[str]:
    """The address of a program that serves *version*, which stands in *place*."""
    with subprocess.Popen(
        [sys.executable, PROGRAM, version, "serve"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(place),
    ) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().strip()
            server.communicate(timeout=SOON)  # closes its input, and so it ends
            assert server.returncode == 0
        finally:
            server.kill()


def environment(place: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(place)}


@cache
def calling(version: str, address: str) -> dict[str, dict[str, Any]]:
    """What each call of a program of *version* brought over each wire."""
    command = [sys.executable, str(PROGRAM), version, "call", address, *WIRES]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=SOON, check=False, env=environment(HERE))
    assert (ran.returncode, ran.stderr) == (0, "")
    results: dict[str, dict[str, Any]] = json.loads(ran.stdout)
    return results


@pytest.fixture(scope="module")
def old_server() -> Iterator[str]:
    with serving("v1") as address:
        yield address


@pytest.fixture(scope="module")
def new_server() -> Iterator[str]:
    with serving("v2") as address:
        yield address


def brought(version: str, address: str, wire: str) -> dict[str, Any]:
    return calling(version, address)[wire]


def item(version: str, **fields: Any) -> dict[str, Any]:
    return {**DEFAULTS[version], **fields}


# A newer client and an older server.


def returned(wire: str, name: str, *, stream: bool = False) -> str:
    """A new value of an enum, after an older program has given it back.

    It knows the number where it came as one, and the text where JSON of REST has it. A name of ProtoJSON says neither
    to who does not know it: what is given back is unspecified.
    """
    return "UNSPECIFIED" if wire == "connect+json" or (wire == "http" and stream) else name


def given_back(wire: str, *, stream: bool = False) -> dict[str, Any]:
    moved, highest = returned(wire, "MOVED", stream=stream), returned(wire, "HIGHEST", stream=stream)
    return item(
        "v2",
        count=3,
        state=moved,
        states=["OPEN", moved, "SHUT"],
        by_day={"monday": moved},
        level=highest,
        parts=[{"name": "leaf", "state": moved, "maker": ""}],
    )


@pytest.mark.parametrize("wire", WIRES)
def test_an_older_server_takes_new_fields_values_and_members_and_gives_back_what_it_knows(
    wire: str, old_server: str
) -> None:
    calls = brought("v2", old_server, wire)
    assert calls["keep"] == given_back(wire)
    assert calls["load"] == given_back(wire, stream=True)


@pytest.mark.parametrize("wire", WIRES)
def test_a_new_field_inside_of_a_member_that_it_knows_takes_its_default(wire: str, old_server: str) -> None:
    cash = {"is": "Cash", "amount": 5, "currency": "EUR"}
    assert brought("v2", old_server, wire)["keep an old member"] == item("v2", payment=cash)


@pytest.mark.parametrize("wire", WIRES)
def test_an_older_server_ignores_new_parameters_and_answers_without_new_fields(wire: str, old_server: str) -> None:
    calls = brought("v2", old_server, wire)
    assert calls["find"] == item("v2", count=7, state="SHUT")
    assert calls["find moved"] == item("v2", count=20, state=returned(wire, "MOVED"))


@pytest.mark.parametrize("wire", WIRES)
def test_a_new_value_is_refused_only_where_an_older_server_says_that_it_needs_to_know_it(
    wire: str, old_server: str
) -> None:
    calls = brought("v2", old_server, wire)
    assert calls["decide"] == {"state": "OPEN"}
    assert calls["decide moved"] == "invalid_argument: state: expected a known value of `State`"


@pytest.mark.parametrize("wire", WIRES)
def test_a_newer_client_reads_the_stream_of_an_older_server(wire: str, old_server: str) -> None:
    sent = item(
        "v2",
        count=3,
        state="SHUT",
        states=["OPEN", "SHUT"],
        by_day={"monday": "SHUT"},
        level="HIGH",
        payment={"is": "Cash", "amount": 5, "currency": "EUR"},
        parts=[{"name": "leaf", "state": "SHUT", "maker": ""}],
    )
    assert brought("v2", old_server, wire)["watch"] == [sent, sent]


@pytest.mark.parametrize("wire", WIRES)
def test_a_method_that_an_older_server_does_not_have_is_unimplemented(wire: str, old_server: str) -> None:
    if wire == "http":
        why = "There is nothing at /items/tea/forget. Look for a typing error, or a slash at the end."
    else:
        why = (
            "evolution.v1.Store/Forget was not called: evolution.v1.Store has no method 'Forget'. It has: Keep, Find, "
            "Decide, Watch, Load."
        )
    assert brought("v2", old_server, wire)["forget"] == f"unimplemented: {why}"


# An older client and a newer server.


def unknown(wire: str, *, text: str, name: str, number: int, stream: bool = False) -> str:
    """A new value of an enum as an older program sees it."""
    if wire == "connect+json" or (wire == "http" and stream):
        return f"UNRECOGNIZED_{name}"
    return f"UNRECOGNIZED_{text}" if wire == "http" else f"UNRECOGNIZED_{number}"


def moved(wire: str, *, stream: bool = False) -> str:
    return unknown(wire, text="moved", name="STATE_MOVED", number=3, stream=stream)


def highest(wire: str, *, stream: bool = False) -> str:
    return unknown(wire, text="3", name="LEVEL_HIGHEST", number=3, stream=stream)


@pytest.mark.parametrize("wire", WIRES)
def test_a_newer_server_ignores_a_field_that_it_no_longer_has_and_sets_defaults(wire: str, new_server: str) -> None:
    calls = brought("v1", new_server, wire)
    kept = item(
        "v1",
        count=3,
        state="SHUT",
        states=["OPEN", "SHUT"],
        by_day={"monday": "SHUT"},
        level="HIGH",
        payment={"is": "Cash", "amount": 5},
        parts=[{"name": "leaf", "state": "SHUT"}],
    )
    assert calls["keep"] == kept
    assert calls["load"] == kept


@pytest.mark.parametrize("wire", WIRES)
def test_an_older_client_reads_an_answer_with_new_fields_values_and_members(wire: str, new_server: str) -> None:
    found = item("v1", count=7, state=moved(wire), level=highest(wire))
    assert brought("v1", new_server, wire)["find"] == found


@pytest.mark.parametrize("wire", WIRES)
def test_an_older_client_reads_the_stream_of_a_newer_server(wire: str, new_server: str) -> None:
    state = moved(wire, stream=True)
    sent = item(
        "v1",
        count=3,
        state=state,
        states=["OPEN", state, "SHUT"],
        by_day={"monday": state},
        level=highest(wire, stream=True),
        parts=[{"name": "leaf", "state": state}],
    )
    assert brought("v1", new_server, wire)["watch"] == [sent, sent]


@pytest.mark.parametrize("wire", WIRES)
def test_an_older_client_that_needs_to_know_a_value_fails_its_own_call(wire: str, new_server: str) -> None:
    said = brought("v1", new_server, wire)["decide"]
    assert said.startswith(
        "internal: The answer of evolution.v1.Store/Decide could not be read: state: expected a known value of `State`"
    )


# Programs of others.


def theirs(program: Any) -> Any:
    """The classes that protobuf makes of a version's `.proto` file, in a pool of their own."""
    made = compiled_texts(proto_files([service_of(program.Store)], imports=True))
    assert file_in(made, "evolution/v1/evolution.proto")
    return classes_of(made)


async def called(address: str, method: str, request: Any, answer: Any) -> Any:
    async with grpc.aio.insecure_channel(address) as channel:
        call = channel.unary_unary(
            f"/evolution.v1.Store/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        return await call(request, timeout=SOON)


def test_grpcio_with_the_older_file_calls_a_newer_server(new_server: str) -> None:
    classes = theirs(evolution_v1)
    search = classes("evolution.v1.Search")(name="tea", limit=7)
    answer = asyncio.run(called(new_server, "Find", search, classes("evolution.v1.Item")))
    assert (answer.name, answer.count, answer.state, answer.WhichOneof("payment")) == ("tea", 7, 3, None)
    # What it does not know it keeps: the newer side gets all of it back.
    newer = theirs(evolution_v2)("evolution.v1.Item").FromString(answer.SerializeToString())
    assert (newer.bank.iban, newer.color) == ("DE00", "OPEN")


def test_grpcio_with_the_newer_file_calls_an_older_server(old_server: str) -> None:
    classes = theirs(evolution_v2)
    sent = classes("evolution.v1.Item")(
        name="tea", count=3, state=3, color="red", box={"width": 1}, bank={"iban": "DE00"}, tags=["a"]
    )
    answer = asyncio.run(called(old_server, "Keep", sent, classes("evolution.v1.Item")))
    assert answer == classes("evolution.v1.Item")(name="tea", count=3, state=3)


def json_answer(address: str, path: str, body: Mapping[str, Any]) -> tuple[int, Any]:
    host, _, port = address.partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=SOON)
    try:
        connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def test_plain_json_of_a_newer_page_is_taken_by_an_older_server(old_server: str) -> None:
    sent = {"name": "tea", "state": "moved", "payment": {"type": "bank", "iban": "DE00"}, "more": [{"deep": [1, None]}]}
    status, answer = json_answer(old_server, "/items", sent)
    assert (status, answer["name"], answer["state"], answer["payment"]) == (200, "tea", "moved", None)
    sent = {"name": "tea", "state": "STATE_MOVED", "bank": {"iban": "DE00"}, "more": {"deep": [1, None]}}
    status, answer = json_answer(old_server, "/evolution.v1.Store/Keep", sent)
    assert (status, answer["name"]) == (200, "tea")


def test_plain_json_of_an_older_page_is_taken_by_a_newer_server(new_server: str) -> None:
    status, answer = json_answer(new_server, "/items", {"name": "tea", "note": "old"})
    assert (status, answer["color"], answer["box"]) == (200, "grey", None)
    status, answer = json_answer(new_server, "/evolution.v1.Store/Keep", {"name": "tea", "note": "old"})
    assert (status, answer) == (200, {"name": "tea", "state": "STATE_OPEN", "color": "grey"})


# What the check says of it.


def checked(old: Any, new: Any, category: Any) -> list[str]:
    before, after = (contracts_of_services([service_of(program.Store)]) for program in (old, new))
    found = breaking_changes(before, after, category=category)
    return [f"{finding.rule.name} {finding.where}" for finding in found]


def test_the_check_lets_pass_what_was_shown_to_work() -> None:
    assert checked(evolution_v1, evolution_v2, "wire_json") == []
    # Programs go on, but code that says `item.note` does not.
    assert checked(evolution_v1, evolution_v2, "file") == ["FIELD_NO_DELETE evolution.v1.Item.note"]


BREAKS: dict[str, tuple[tuple[str, str], list[str], dict[str, Any]]] = {
    "a renamed field is lost in JSON, and kept in protobuf": (
        ("count: Annotated", "amount: Annotated"),
        [
            "FIELD_SAME_JSON_NAME",
            "FIELD_SAME_NAME",
            "PROTOJSON_FIELD_NO_DELETE",
            "REST_REQUEST_FIELD_NO_DELETE",
            "REST_RESPONSE_FIELD_NO_DELETE",
        ],
        {"grpc": 3, "connect": 3, "connect+json": 0, "http": 0},
    ),
    "a field with another number is lost in protobuf, and kept in JSON": (
        ("count: Annotated[int, Field(number=2)]", "count: Annotated[int, Field(number=22)]"),
        ["FIELD_NO_DELETE_UNLESS_NAME_RESERVED", "FIELD_NO_DELETE_UNLESS_NUMBER_RESERVED"],
        {"grpc": 0, "connect": 0, "connect+json": 3, "http": 3},
    ),
    "a tighter limit refuses on every wire": (
        ("count: Annotated[int, Field(number=2)]", "count: Annotated[int, Field(number=2, le=2)]"),
        ["CONTRACT_REQUEST_LIMITS"],
        dict.fromkeys(WIRES, "invalid_argument: count: expected `int` <= 2"),
    ),
    "a new field without a default refuses in REST alone": (
        ("    parts: Annotated", "    size: Annotated[str, Field(number=30)]\n    parts: Annotated"),
        ["REST_REQUEST_FIELD_REQUIRED"],
        {
            **dict.fromkeys(("grpc", "connect", "connect+json"), 3),
            "http": "invalid_argument: size: is missing",
        },
    ),
    "a message that has to be there refuses on every wire": (
        ("    parts: Annotated", "    main: Annotated[Part, Field(number=30)]\n    parts: Annotated"),
        ["CONTRACT_FIELD_REQUIRED", "REST_REQUEST_FIELD_REQUIRED"],
        dict.fromkeys(WIRES, "invalid_argument: main: is missing"),
    ),
}
"""By what happens: the change, the rules that it breaks on the side of the wires, and what a client of before gets."""


@pytest.mark.parametrize("what", BREAKS)
def test_what_the_check_names_does_break_programs(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (was, now), rules, expected = BREAKS[what]
    text = (HERE / "evolution_v1.py").read_text(encoding="utf-8")
    assert text.count(was) == 1
    name = f"v3_{len(what)}"
    begin = text.index("SENT = Item(")  # only its clients send that
    changed = text.replace(text[begin : text.index("\n)\n", begin) + 3], "").replace(was, now)
    (tmp_path / f"evolution_{name}.py").write_text(changed, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    broken = checked(evolution_v1, importlib.import_module(f"evolution_{name}"), "wire_json")
    assert sorted({entry.split()[0] for entry in broken}) == rules
    with serving(name, tmp_path) as address:
        for wire in WIRES:
            kept = brought("v1", address, wire)["keep"]
            assert (kept if isinstance(kept, str) else kept["count"]) == expected[wire], wire
