"""`polywire contract export` and `import`, as they are typed."""

from __future__ import annotations

import sys
import zlib
from pathlib import Path

import pytest
from proto_support import PROTOS, compiled, compiled_texts, file_in, without_comments, write

from polywire.cli import main
from polywire.contract import service_of
from polywire.contract.export import file_descriptors

CONTRACTS = '''\
from __future__ import annotations

import enum

from polywire.contract import Contract, Message, enum_form, get, rpc


class Query(Message):
    product_id: str


class Inventory(Contract, package="{package}.v1"):
    @rpc(get("/stock/{{product_id}}"))
    async def check(self, query: Query) -> Query:
        raise NotImplementedError


class Orders(Contract, package="{package}.v1"):
    @rpc
    async def place(self, query: Query) -> Query:
        raise NotImplementedError


class InventoryService(Inventory):
    pass


class Later(Message, package="{package}.v1"):
    """Used by nobody yet."""


@enum_form(package="{package}.v1")
class Unused(enum.Enum):
    ONE = 1


class Inner(Message):
    """Not exported: nobody uses it, and it has no package."""
'''

TEXT = """\
syntax = "proto3";

package {package}.v1;

import "google/api/annotations.proto";

service Inventory {{
  rpc Check(Query) returns (Query) {{
    option (google.api.http) = {{get: "/stock/{{product_id}}"}};
  }}
}}

service Orders {{
  rpc Place(Query) returns (Query);
}}

message Query {{
  string product_id = 1;
}}

// Used by nobody yet.
message Later {{}}

enum Unused {{
  UNUSED_UNSPECIFIED = 0;
  UNUSED_ONE = 1;
}}
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A package of contracts in the current directory, under a name that no other test imports."""
    name = f"shop_{zlib.crc32(request.node.name.encode())}"
    write(tmp_path, {f"{name}/__init__.py": "", f"{name}/contracts.py": CONTRACTS.format(package=name)})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return name


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["contract", *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_a_module_is_exported_with_all_its_contracts(package: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("export", f"{package}.contracts") == 0
    assert capsys.readouterr() == (TEXT.format(package=package), "")


def test_one_contract_is_exported_with_what_it_uses(package: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("export", f"{package}.contracts:Orders") == 0
    assert capsys.readouterr().out == (
        f'syntax = "proto3";\n\npackage {package}.v1;\n\n'
        "service Orders {\n  rpc Place(Query) returns (Query);\n}\n\nmessage Query {\n  string product_id = 1;\n}\n"
    )


def test_files_are_written_where_out_says(package: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run("export", f"{package}.contracts", "--out", "protos", "--with-imports") == 0
    names = [f"{package}/v1/{package}.proto", "google/api/http.proto", "google/api/annotations.proto"]
    assert capsys.readouterr().out == "".join(f"wrote protos/{name}\n" for name in names)
    assert (tmp_path / "protos" / names[0]).read_text() == TEXT.format(package=package)
    assert compiled(tmp_path / "protos", names[:1])


def test_several_files_are_printed_with_their_names(package: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("export", f"{package}.contracts", "--with-imports") == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f'// {package}/v1/{package}.proto\n\nsyntax = "proto3";\n')
    assert '}\n\n// google/api/http.proto\n\nsyntax = "proto3";\n' in printed


def test_no_http_leaves_the_routes_out(package: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("export", f"{package}.contracts:Inventory", "--no-http") == 0
    assert "google" not in capsys.readouterr().out


def test_a_contract_named_twice_is_exported_once(package: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("export", f"{package}.contracts", f"{package}.contracts:Orders") == 0
    assert capsys.readouterr().out == TEXT.format(package=package)


def test_the_shop_is_exported_as_protoc_understands_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("export", "shop.contracts") == 0
    text = capsys.readouterr().out
    made = compiled_texts({"shop/v1/shop.proto": text})
    contracts = sys.modules["shop.contracts"]
    names = [service.name for service in file_in(made, "shop/v1/shop.proto").service]
    (described,) = file_descriptors([service_of(getattr(contracts, name)) for name in names])
    assert without_comments(file_in(made, "shop/v1/shop.proto")) == without_comments(described)


def test_a_module_without_a_contract_is_refused(
    package: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / package / "empty.py").write_text(
        "from polywire.contract import Message\n\n\nclass Query(Message): ...\n"
    )
    assert run("export", f"{package}.empty") == 1
    assert capsys.readouterr() == ("", f"Error: '{package}.empty' has no contract. It has: Message, Query.\n")


def test_a_contract_that_is_not_there_is_refused(package: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("export", f"{package}.contracts:InventoryService") == 1
    assert capsys.readouterr().err == (
        f"Error: '{package}.contracts' has no contract named 'InventoryService'. Its contracts: Inventory, Orders.\n"
    )


def test_a_module_that_is_not_there_is_refused(
    package: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run("export", f"{package}.nowhere:Orders") == 1
    assert capsys.readouterr().err == (
        f"Error: '{package}.nowhere:Orders' was not exported: there is no module '{package}.nowhere' in {tmp_path}, "
        "its 'src', or among what is installed.\n"
    )


def test_a_module_that_cannot_be_imported_is_refused(
    package: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / package / "broken.py").write_text("import surely_not_there\n")
    (tmp_path / package / "failing.py").write_text("1 / 0\n")
    assert run("export", f"{package}.broken") == 1
    assert run("export", f"{package}.failing") == 1
    assert capsys.readouterr().err == (
        f"Error: '{package}.broken' was not exported: '{package}.broken' imports 'surely_not_there', "
        "which is missing.\n"
        f"Error: '{package}.failing' was not exported: importing '{package}.failing' raised ZeroDivisionError: "
        "division by zero.\n"
    )


def test_a_file_that_cannot_be_written_is_named(
    package: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "protos").write_text("a file")
    assert run("export", f"{package}.contracts", "--out", "protos") == 1
    assert capsys.readouterr().err == f"Error: protos/{package}/v1/{package}.proto was not written: Not a directory.\n"


# import


def test_an_import_is_printed_or_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = tmp_path / "new" / "guide.py"
    assert run("import", str(PROTOS / "routeguide.proto")) == 0
    printed = capsys.readouterr().out
    assert run("import", "-I", str(PROTOS), "routeguide.proto", "--out", str(module)) == 0
    assert capsys.readouterr().out == f"wrote {module}\n"
    assert module.read_text() == printed
    assert printed.startswith('"""What routeguide.proto declares."""\n')


def test_what_is_imported_exports_as_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert run("import", str(PROTOS / "everything.proto"), "--out", "imported_everything.py") == 0
    assert run("export", "imported_everything", "--out", "once") == 0
    once = tmp_path / "once/sample/everything/v1/everything.proto"
    assert run("import", str(once), "--out", "imported_again.py") == 0
    assert run("export", "imported_again", "--out", "twice") == 0
    assert (tmp_path / "twice/sample/everything/v1/everything.proto").read_text() == once.read_text()


def test_a_file_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("import", "nowhere.proto") == 1
    assert capsys.readouterr().err == "Error: nowhere.proto was not imported: there is no such file.\n"


def test_what_protoc_refuses_is_told_in_its_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.proto"
    bad.write_text('syntax = "proto3";\nmessage M { Missing x = 1; }\n')
    assert run("import", str(bad)) == 1
    assert capsys.readouterr().err == (
        f'Error: {bad} was not imported: protoc refuses it.\n  {bad}:2:13: "Missing" is not defined.\n'
    )


def test_an_import_that_is_not_found_is_told_with_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.proto"
    bad.write_text('syntax = "proto3";\nimport "other/thing.proto";\n')
    assert run("import", str(bad)) == 1
    assert capsys.readouterr().err == (
        f"Error: {bad} was not imported: protoc refuses it.\n"
        "  other/thing.proto: File not found.\n"
        f'  {bad}:2:1: Import "other/thing.proto" was not found or had errors.\n'
        "Say where other/thing.proto is looked for with -I DIR.\n"
    )


def test_a_file_outside_of_the_include_directories_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "elsewhere").mkdir()
    file = PROTOS / "eliza.proto"
    assert run("import", "-I", str(tmp_path / "elsewhere"), str(file)) == 1
    assert run("import", "-I", str(tmp_path / "nowhere"), str(file)) == 1
    assert capsys.readouterr().err == (
        f"Error: {file} was not imported: it is in none of the directories given with -I ({tmp_path / 'elsewhere'}). "
        f"Add -I {file.parent}.\n"
        f"Error: {file} was not imported: {tmp_path / 'nowhere'}, given with -I, is no directory.\n"
    )


def test_without_protoc_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "grpc_tools.protoc", None)
    assert run("import", str(PROTOS / "eliza.proto")) == 1
    assert capsys.readouterr().err == (
        f"Error: {PROTOS / 'eliza.proto'} was not imported: that takes protoc, which is not installed. "
        "Run pip install 'polywire[proto]'.\n"
    )
