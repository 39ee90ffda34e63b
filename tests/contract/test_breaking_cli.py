"""`polywire contract check`, as it is typed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from evolution_changes import SHOP
from proto_support import write

from polywire.cli import committed, main
from polywire.contract.breaking import RULES

STOCK = """\
syntax = "proto3";

package shop.v1;

service Inventory {
  rpc Check(Query) returns (Stock);
}

message Query {
  string product_id = 1;
}

message Stock {
  string product_id = 1;
  int64 quantity = 2;
}
"""
RENAMED = STOCK.replace("int64 quantity = 2", "int64 units = 2")
CONTRACTS = """\
from polywire.contract import Contract, Message, get, rpc


class Query(Message):
    product_id: str


class Stock(Message):
    product_id: str
    quantity: int


class Inventory(Contract, package="shop.v1"):
    @rpc
    async def check(self, query: Query) -> Stock:
        raise NotImplementedError
"""
NOT_COMPARED = (
    "Not compared, as .proto files do not say them: statuses, headers, required fields, defaults, limits, codes of "
    "errors, values of enums and tags of unions in REST.\n"
)
FINE = "No breaking change for protobuf (category file), ProtoJSON, REST, every wire.\n" + NOT_COMPARED
SYSTEM = """\
[system]
name = "shop"

[services.inventory]
app = "{name}:app"
"""
APP = """

from polywire.system.app import App

app = App("inventory")


@app.service
class InventoryService(Inventory):
    async def check(self, query: Query) -> Stock:
        return Stock(product_id=query.product_id, quantity=1)
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """Of a module that no other test imports."""
    return f"stock_{zlib.crc32(request.node.name.encode())}"


def check(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["contract", "check", *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def git(*arguments: str) -> None:
    environment = {
        **os.environ,
        **dict.fromkeys(("GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME"), "a"),
        **dict.fromkeys(("GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"), "a@example.com"),
        "GIT_CONFIG_GLOBAL": os.devnull,
    }
    subprocess.run(["git", *arguments], check=True, capture_output=True, env=environment)


def test_two_files_that_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, {"old.proto": STOCK, "new.proto": STOCK})
    assert check("old.proto", "new.proto") == 0
    assert capsys.readouterr() == (FINE, "")


def test_a_breaking_change_is_named_with_its_place_and_the_way_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, {"old.proto": STOCK, "new.proto": RENAMED})
    assert check("old.proto", "new.proto") == 1
    assert capsys.readouterr() == (
        "FIELD_SAME_JSON_NAME  shop.v1.Stock.units  (new.proto:15)\n"
        "  Field 2 was called 'quantity' in JSON and is called 'units' now.\n"
        "  Way out: Keep it with json_name; in Python with Field(json_name=...).\n"
        "\n"
        "FIELD_SAME_NAME  shop.v1.Stock.units  (new.proto:15)\n"
        "  Field 2 was called 'quantity' and is called 'units' now.\n"
        "  Way out: Keep the name: in Python, Field(name=...) keeps it.\n"
        "\n"
        "PROTOJSON_FIELD_NO_DELETE  shop.v1.Stock.units  (new.proto:15)\n"
        "  'quantity' is called 'units' in JSON now.\n"
        "  Way out: Put the name back: Field(json_name=...) keeps it while the field is renamed. If nobody uses it, "
        "reserve it.\n"
        "\n"
        "3 breaking changes: 2 for protobuf (category file), 1 for ProtoJSON.\n" + NOT_COMPARED,
        "",
    )


def test_json_for_machines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, {"old.proto": STOCK, "new.proto": RENAMED})
    assert check("old.proto", "new.proto", "--json", "--category", "WIRE_JSON", "--side", "protobuf") == 1
    assert json.loads(capsys.readouterr().out) == {
        "category": "wire_json",
        "sides": ["protobuf"],
        "breaking": [
            {
                "side": "protobuf",
                "rule": rule,
                "where": "shop.v1.Stock.units",
                "file": "new.proto",
                "line": 15,
                "change": f"Field 2 was called 'quantity' {place}and is called 'units' now.",
                "way_out": RULES[rule].way_out,
            }
            for rule, place in (("FIELD_SAME_JSON_NAME", "in JSON "), ("FIELD_SAME_NAME", ""))
        ],
    }


def test_a_category_or_a_side_that_does_not_mind_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, {"old.proto": STOCK, "new.proto": RENAMED})
    assert check("old.proto", "new.proto", "--category", "wire", "--side", "protobuf") == 0
    assert capsys.readouterr().out == "No breaking change for protobuf (category wire).\n"
    assert check("old.proto", "new.proto", "--side", "rest") == 0
    assert check("old.proto", "new.proto", "--side", "rest", "--side", "protojson", "--json") == 1


def test_directories_are_compared_file_by_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, {"old/shop/v1/shop.proto": SHOP, "old/a.proto": 'syntax = "proto3";\nmessage A {}\n'})
    write(tmp_path, {"new/shop/v1/shop.proto": SHOP})
    assert check("old", "new") == 1
    said = capsys.readouterr().out
    assert said.startswith("FILE_NO_DELETE  a.proto\n  The file 'a.proto' is gone.\n")
    assert said.endswith("1 breaking change: 1 for protobuf (category file).\n" + NOT_COMPARED)


def test_a_module_against_a_file_of_any_name(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, {"stock.proto": STOCK, f"{name}.py": CONTRACTS})
    assert check("stock.proto", name) == 0
    assert capsys.readouterr() == (FINE, "")
    assert check("stock.proto", f"{name}:Inventory") == 0


def test_files_of_googleapis_beside_the_exported_ones_do_not_count(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, {f"{name}.py": CONTRACTS.replace("@rpc\n", '@rpc(get("/stock/{product_id}"))\n')})
    with pytest.raises(SystemExit):
        main(["contract", "export", name, "--out", "protos", "--with-imports"])
    capsys.readouterr()
    assert check("protos", name) == 0
    assert capsys.readouterr() == (FINE, "")


def test_a_field_put_in_between_is_told_which_numbers_to_write(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = CONTRACTS.replace("    quantity: int\n", "    shelf: str\n    quantity: int\n")
    write(tmp_path, {"stock.proto": STOCK, f"{name}.py": moved})
    assert check("stock.proto", name, "--side", "protobuf", "--json") == 1
    breaking = json.loads(capsys.readouterr().out)["breaking"]
    assert [entry["rule"] for entry in breaking] == ["FIELD_SAME_JSON_NAME", "FIELD_SAME_NAME", "FIELD_SAME_TYPE"]
    assert {entry["way_out"] for entry in breaking} == {
        "Numbers follow the order of declaration where none is given. Write the old ones: "
        "quantity: Annotated[..., Field(number=2)]."
    }


def test_two_modules_are_compared_whole(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rest = CONTRACTS.replace("@rpc\n", '@rpc(get("/stock/{product_id}", status=203))\n')
    write(tmp_path, {f"{name}_old.py": rest, f"{name}_new.py": rest.replace(", status=203", "")})
    assert check(f"{name}_old", f"{name}_new") == 1
    assert capsys.readouterr() == (
        "REST_STATUS_SAME  GET /stock/{product_id}\n"
        "  A success was 203 and is 200 now.\n"
        "  Way out: Put status= back.\n"
        "\n"
        "1 breaking change: 1 for REST.\n",
        "",
    )


def test_every_rule_can_be_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert check("--rules") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(RULES)
    assert "FIELD_SAME_NAME  [protobuf: file, package, wire_json]  A field keeps its name." in lines
    assert "REST_STATUS_SAME  [REST]  A success keeps its status." in lines


BAD = (
    (("old.proto",), "Two versions are compared, OLD and NEW, but 1 of them was given. "),
    ((), "Two versions are compared, OLD and NEW, but 0 of them were given. "),
)


@pytest.mark.parametrize(("arguments", "said"), BAD)
def test_one_version_alone_is_refused(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(*arguments) == 2
    assert capsys.readouterr() == ("", f"Error: {said}Name both, or compare with what is in git: --committed.\n")


def test_what_is_not_there_or_no_protobuf_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, {"stock.proto": STOCK, "bad.proto": 'syntax = "proto3";\nmessage A { B b = 1; }\n'})
    (tmp_path / "empty").mkdir()
    assert check("stock.proto", "nowhere.proto") == 2
    assert capsys.readouterr().err == "Error: nowhere.proto was not compared: there is no such file.\n"
    assert check("stock.proto", "bad.proto") == 2
    assert capsys.readouterr().err == (
        f'Error: bad.proto was not compared: protoc refuses it.\n  {tmp_path / "bad.proto"}:2:13: "B" is not defined.\n'
    )
    assert check("stock.proto", "empty") == 2
    assert capsys.readouterr().err == "Error: empty was not compared: there is no .proto file in it.\n"
    assert check("stock.proto", f"{name}.nowhere") == 2
    assert capsys.readouterr().err == (
        f"Error: '{name}.nowhere' was not compared: there is no module '{name}' in {tmp_path}, its 'src', or among "
        "what is installed.\n"
    )


def test_a_module_without_contracts_and_an_unknown_contract_are_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, {"stock.proto": STOCK, f"{name}.py": CONTRACTS, f"{name}_none.py": "answer = 42\n"})
    assert check("stock.proto", f"{name}_none") == 2
    assert capsys.readouterr().err == f"Error: '{name}_none' has no contract. It has: answer.\n"
    assert check("stock.proto", f"{name}:Orders") == 2
    assert capsys.readouterr().err == f"Error: '{name}' has no contract named 'Orders'. Its contracts: Inventory.\n"


def test_a_file_of_an_edition_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, {"old.proto": STOCK, "new.proto": 'edition = "2023";\npackage shop.v1;\nmessage Stock {}\n'})
    assert check("old.proto", "new.proto") == 2
    assert capsys.readouterr().err == (
        "Error: new.proto is written in edition 2023 of protobuf, but only proto3 and proto2 can be compared: "
        "`buf breaking` knows editions.\n"
    )


def test_a_category_that_does_not_exist_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert check("old.proto", "new.proto", "--category", "all") == 2
    assert "'all' is not one of 'file', 'package', 'wire_json', 'wire'." in capsys.readouterr().err


def test_too_many_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("polywire.cli.contract_check.MAX_FILES", 1)
    write(tmp_path, {"old/a.proto": STOCK, "old/b.proto": 'syntax = "proto3";\n', "new.proto": STOCK})
    assert check("old", "new.proto") == 2
    assert capsys.readouterr().err == (
        "Error: old was not compared: it has 2 .proto files, and 1 can be compared. Name a directory further down.\n"
    )


# --committed


@pytest.fixture
def system(name: str, tmp_path: Path) -> Path:
    """A repository with a system of one service, whose contracts are exported and committed."""
    write(tmp_path, {f"{name}.py": CONTRACTS + APP, "polywire.toml": SYSTEM.format(name=name)})
    write(tmp_path, {"protos/shop/v1/shop.proto": STOCK})
    git("init", "--quiet", ".")
    git("add", ".")
    git("commit", "--quiet", "-m", "Begin")
    return tmp_path


def test_what_is_committed_is_guarded(system: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check("--committed") == 0
    assert capsys.readouterr() == (FINE, "")


def test_a_committed_file_is_meant_as_it_is_in_git_not_as_it_lies_there(
    system: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(system, {"protos/shop/v1/shop.proto": RENAMED})
    assert check("--committed") == 0
    git("commit", "--quiet", "-a", "-m", "Rename")
    assert check("--committed") == 1
    assert "FIELD_SAME_NAME  shop.v1.Stock.quantity\n" in capsys.readouterr().out
    assert check("--committed", "--ref", "HEAD~1") == 0


def test_modules_can_be_named_instead_of_a_system_file(
    system: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (system / "polywire.toml").unlink()
    assert check("--committed", name) == 0
    assert capsys.readouterr() == (FINE, "")


def test_files_of_other_packages_count_only_where_their_directory_is_named(
    system: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(system, {"protos/other/v1/other.proto": 'syntax = "proto3";\npackage other.v1;\nmessage A {}\n'})
    write(system, {"third/broken.proto": "this is no protobuf"})
    git("add", ".")
    git("commit", "--quiet", "-m", "Add another")
    assert check("--committed") == 0
    capsys.readouterr()
    assert check("--committed", "--protos", "protos") == 1
    assert capsys.readouterr().out.startswith("FILE_NO_DELETE  other/v1/other.proto\n")


def test_names_of_any_form_and_links_are_read_with_care(system: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(system, {'protos/shop/v1/a "b" ü\t.proto': 'syntax = "proto3";\npackage shop.v1;\n'})
    (system / "protos" / "link.proto").symlink_to("/etc/passwd")
    git("add", ".")
    git("commit", "--quiet", "-m", "Add odd names")
    assert check("--committed", "--protos", "protos") == 1
    assert capsys.readouterr().out.startswith('FILE_NO_DELETE  shop/v1/a "b" ü\t.proto\n')


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert check("--committed", *arguments) == 2
    said, error = capsys.readouterr()
    assert said == ""
    return error


def test_without_a_repository_it_says_so(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, {f"{name}.py": CONTRACTS})
    assert refusal(capsys, name) == (
        f"Error: {tmp_path} was not compared with what is committed: it is in no git repository.\n"
    )


def test_without_a_commit_it_says_so(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, {f"{name}.py": CONTRACTS})
    git("init", "--quiet", ".")
    assert refusal(capsys, name) == (
        f"Error: {tmp_path} was not compared with what is committed: its repository has no commit yet. "
        "Commit the .proto files first.\n"
    )


@pytest.mark.parametrize("ref", ["v9", "--all", "HEAD:protos"])
def test_an_unknown_commit_is_refused(system: Path, ref: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refusal(capsys, f"--ref={ref}") == (
        f"Error: {system} was not compared with what is committed: its repository has no commit {ref!r}. "
        "Fetch it, or name another with --ref.\n"
    )


def test_without_git_it_says_so(
    system: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    assert refusal(capsys) == (
        f"Error: {system} was not compared with what is committed: git is not installed. Install it, or compare two "
        "versions by name: polywire contract check OLD NEW.\n"
    )


def test_without_committed_files_it_says_how_to_begin(
    system: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    advice = (
        "Write them with `polywire contract export MODULE --out protos` and commit them; from then on they are "
        "guarded.\n"
    )
    (system / "empty").mkdir()
    assert refusal(capsys, "--protos", "empty") == (
        f"Error: Nothing was compared: HEAD has no .proto file at all in empty. {advice}"
    )
    write(system, {f"{name}_else.py": CONTRACTS.replace("shop.v1", "other.v1")})
    assert refusal(capsys, f"{name}_else") == (
        f"Error: Nothing was compared: HEAD has no .proto file of package 'other.v1' in {system}. {advice}"
    )
    assert refusal(capsys, "--protos", "nowhere") == "Error: nowhere, given with --protos, is no directory.\n"


def test_committed_files_that_are_too_many_are_refused(
    system: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(committed, "MAX_BYTES", 100)
    assert refusal(capsys) == (
        f"Error: {system} was not compared: HEAD has 1 .proto files of {len(STOCK)} bytes there, and 2000 of 100 bytes "
        "can be compared. Say which are meant with --protos.\n"
    )


def test_a_committed_file_that_protoc_refuses_is_told_by_its_own_name(
    system: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(system, {"protos/shop/v1/shop.proto": STOCK.replace("int64", "integer")})
    git("commit", "--quiet", "-a", "-m", "Break")
    assert refusal(capsys) == (
        "Error: In HEAD, protos/shop/v1/shop.proto was not compared: protoc refuses it.\n"
        '  protos/shop/v1/shop.proto:15:3: "integer" is not defined.\n'
    )


def test_a_system_without_contracts_and_options_of_committed_alone_are_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, {f"{name}.py": 'from polywire.system.app import App\n\napp = App("none")\n'})
    write(tmp_path, {"polywire.toml": SYSTEM.format(name=name)})
    assert refusal(capsys) == (
        "Error: No service of polywire.toml implements a contract, so there is nothing to compare.\n"
    )
    assert check("--ref", "v1", "a.proto", "b.proto") == 2
    assert capsys.readouterr().err == (
        "Error: --ref and --protos say which committed files are meant. Add --committed.\n"
    )


def test_a_compiler_that_does_not_end_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("polywire.cli.protoc._TIMEOUT", 0.001)
    write(tmp_path, {"old.proto": STOCK, "new.proto": STOCK})
    assert check("old.proto", "new.proto") == 2
    assert capsys.readouterr().err == "Error: old.proto was not compared: protoc did not end within 0.001 s.\n"
