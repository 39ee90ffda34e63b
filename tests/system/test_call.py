"""`polywire call`, `methods` and `system`: whole outputs."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
from tests.process_support import output_of
from tiny.inventory import app as inventory_app
from up_support import environ, said, tiny

from polywire.system.serving import serve


async def run(
    *arguments: str, directory: Path, stdin: str = "", env: dict[str, str] | None = None
) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a command."""
    command = [sys.executable, "-m", "polywire.cli", *arguments]
    status, out, err = await output_of(*command, given=stdin.encode(), cwd=directory, env=environ(env))
    return status, out.decode(), err.decode()


STOCKS = '{"product_id": "a", "quantity": 1}\n\n{"product_id": "b", "quantity": 2}\n'


@pytest.mark.parametrize("wire", ["grpc", "http", "connect"])
async def test_methods_of_every_kind_are_called_over_every_wire(tmp_path: Path, wire: str) -> None:
    tiny(tmp_path)
    async with serve(inventory_app) as address:
        place = ("--address", address, "--wire", wire)
        one, several, collected, both = await asyncio.gather(
            run("call", "tiny.v1.Inventory/check_stock", "product_id=a", *place, directory=tmp_path),
            run("call", "tiny.v1.Inventory/Watch", "product_id=a", *place, directory=tmp_path),
            run("call", "tiny.v1.Inventory/AddUp", *place, directory=tmp_path, stdin=STOCKS),
            run("call", "tiny.v1.Inventory/echo", *place, directory=tmp_path, stdin=STOCKS),
        )

    status, answer, error = one
    assert (status, error) == (0, "")
    assert answer.startswith('{"product_id":"a","quantity":7,"pid":')
    assert several == (
        0,
        '{"product_id":"a","quantity":0,"pid":0}\n'
        '{"product_id":"a","quantity":1,"pid":0}\n'
        '{"product_id":"a","quantity":2,"pid":0}\n',
        "",
    )
    assert collected == (0, '{"product_id":"all","quantity":3,"pid":0}\n', "")
    assert both == (0, '{"product_id":"a","quantity":1,"pid":0}\n{"product_id":"b","quantity":2,"pid":0}\n', "")


async def test_an_error_goes_to_standard_error_with_its_code(tmp_path: Path) -> None:
    tiny(tmp_path)
    async with serve(inventory_app) as address:
        status, out, err = await run(
            "call", "tiny.v1.Inventory/check_stock", "product_id=none", "--address", address, directory=tmp_path
        )

    assert (status, out) == (1, "")
    assert err.splitlines()[0] == "Error: not_found: no product 'none'"
    assert err.splitlines()[1].startswith("  request id ")


async def test_the_request_can_be_json_and_the_contract_named_without_a_system_file(tmp_path: Path) -> None:
    tiny(tmp_path)
    (tmp_path / "polywire.toml").unlink()
    async with serve(inventory_app) as address:
        status, out, err = await run(
            "call", "tiny.v1.Inventory/check_stock", "--json", '{"product_id": "j"}', "--address", f"http://{address}",
            "--contract", "tiny.contracts:Inventory", "--metadata", "tenant=a", "--timeout", "5", "--verbose",
            directory=tmp_path,
        )  # fmt: skip

    assert status == 0
    assert out.startswith('{"product_id":"j","quantity":7,')
    assert err.splitlines()[0] == f"{address} answered after 1 attempt"


REFUSALS: dict[str, tuple[list[str], str]] = {
    "an unknown contract": (
        ["tiny.v1.Inventry/check_stock"],
        "Error: There is no contract 'tiny.v1.Inventry'. Did you mean 'tiny.v1.Inventory'? "
        "There are: tiny.v1.Orders, tiny.v1.Inventory.",
    ),
    "an unknown method": (
        ["tiny.v1.Orders/palce"],
        "Error: tiny.v1.Orders has no method 'palce'. Did you mean 'place'? It has: place, slowly.",
    ),
    "no method": (
        ["tiny.v1.Orders"],
        "Error: Name a method of tiny.v1.Orders: tiny.v1.Orders/place, tiny.v1.Orders/slowly.",
    ),
    "an unknown field": (
        ["tiny.v1.Orders/place", "product=a"],
        "Error: Query has no field 'product'. Did you mean 'product_id'? It has: product_id.",
    ),
    "a missing field": (
        ["tiny.v1.Orders/place"],
        "Error: The request is no Query: Object missing required field `product_id`.",
    ),
    "a wrong value": (
        ["tiny.v1.Orders/slowly", "seconds=soon"],
        "Error: The request is no Pause: Expected `float`, got `str` - at `$.seconds`.",
    ),
    "no assignment": (
        ["tiny.v1.Orders/place", "product_id"],
        "Error: 'product_id' is not KEY=VALUE. For a value in JSON write KEY:=VALUE.",
    ),
    "JSON that is none": (
        ["tiny.v1.Orders/place", "product_id:=a"],
        "Error: 'product_id:=a': what follows := is not JSON: Expecting value: line 1 column 1 (char 0).",
    ),
    "a message for a method that takes none": (
        ["tiny.v1.Inventory/crash", "now=true"],
        "Error: The method takes no message, so 'now=true' has no place in one.",
    ),
    "a service that does not run": (
        ["tiny.v1.Orders/place", "product_id=a"],
        "Error: Service 'orders' is not running: polywire.toml gives it no address, and no `polywire up` here has "
        "started it. Start it, or say where it is: `--address grpc://host:port`.",
    ),
    "two requests": (
        ["tiny.v1.Orders/place", "product_id=a", "--json", "{}"],
        "Error: Give the request as KEY=VALUE or with --json, not both.",
    ),
    "metadata without a value": (
        ["tiny.v1.Orders/place", "product_id=a", "--address", "127.0.0.1:1", "-m", "tenant"],
        "Error: --metadata 'tenant' is not KEY=VALUE.",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_called_is_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    arguments, message = REFUSALS[name]

    assert run_here(["call", *arguments], tiny(tmp_path), monkeypatch) == 1
    assert capsys.readouterr() == ("", message + "\n")


def run_here(arguments: list[str], directory: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run a command in this process; for those that import and read but do not serve."""
    from polywire.cli import main

    monkeypatch.chdir(directory)
    for name in ("POLYWIRE_SYSTEM", "POLYWIRE_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_methods_are_listed_with_what_they_take_and_where_rest_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_here(["methods"], tiny(tmp_path), monkeypatch) == 0
    assert capsys.readouterr().out == (
        "tiny.v1.Orders  [orders]\n"
        "  place   (Query) -> Stock  POST /orders\n"
        "  slowly  (Pause) -> Stock\n"
        "tiny.v1.Inventory  [inventory]\n"
        "  check_stock  (Query) -> Stock                GET /inventory/{product_id}\n"
        "  crash        () -> nothing\n"
        "  watch        (Query) -> stream Stock\n"
        "  add_up       (stream Stock) -> Stock\n"
        "  echo         (stream Stock) -> stream Stock\n"
    )


PROFILED = """\
[system]
name = "tiny"

[services.orders]
app = "tiny.orders:app"

[services.inventory]
app = "tiny.inventory:app"
limits = { max_connections = 5 }

[profiles.busy.services.inventory.limits]
max_connections = 50
"""


def test_a_system_is_shown_as_it_holds_with_where_it_was_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("POLYWIRE__SERVICES__ORDERS__LISTEN", "127.0.0.1:1")

    assert run_here(["system", "show", "--profile", "busy"], tiny(tmp_path, PROFILED), monkeypatch) == 0
    assert capsys.readouterr().out == (
        'system.name = "tiny"                            # polywire.toml:2\n'
        'services.orders.app = "tiny.orders:app"         # polywire.toml:5\n'
        'services.orders.listen = "127.0.0.1:1"          # POLYWIRE__SERVICES__ORDERS__LISTEN\n'
        'services.inventory.app = "tiny.inventory:app"   # polywire.toml:8\n'
        "services.inventory.limits.max_connections = 50  # polywire.toml:12\n"
    )


def test_a_system_is_checked_with_all_its_profiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_here(["system", "check"], tiny(tmp_path, PROFILED), monkeypatch) == 0
    assert capsys.readouterr().out == "polywire.toml is fine: 2 services, 2 contracts, and the profiles busy.\n"

    (tmp_path / "polywire.toml").write_text(PROFILED.replace("= 50", '= "many"'))
    assert run_here(["system", "check"], tmp_path, monkeypatch) == 1
    assert capsys.readouterr().err == (
        "Error: polywire.toml:12: services.inventory.limits.max_connections is the text 'many'. "
        "It has to be a whole number.\n"
    )


async def test_help_names_every_command(tmp_path: Path) -> None:
    status, output = await said("--help", directory=tmp_path)

    assert status == 0
    commands = output.partition("Commands:\n")[2]
    assert [line.split()[0] for line in commands.splitlines()] == [
        "up", "serve", "call", "methods", "explain", "system", "contract", "bus", "fault", "db",
    ]  # fmt: skip
