"""The documents are true: their programs run, their lists are complete, their links lead somewhere."""

from __future__ import annotations

import ast
import dataclasses
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from benchmarks.bus import quote as bus_quote
from benchmarks.bus import tables as bus_tables
from benchmarks.calls import quote

import polywire
from polywire import Shedding
from polywire.system.file import parse

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted(ROOT.glob("examples/[0-9][0-9]_*.py"))
DOCUMENTS = [ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")]
DOCUMENTS += sorted(ROOT.glob("docs/guides/*.md"))


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_prints_what_its_docstring_says(example: Path) -> None:
    documented = ast.get_docstring(ast.parse(example.read_text()))
    assert documented is not None
    _, _, promised = documented.partition("Prints:\n")
    run = subprocess.run([sys.executable, str(example)], capture_output=True, text=True, timeout=30, check=False)
    assert run.stderr == ""
    assert run.stdout.split() == promised.split()


def test_the_program_in_the_readme_is_the_first_example() -> None:
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert program == (ROOT / "examples/01_call.py").read_text()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_and_every_file_named_exists(document: Path) -> None:
    text = document.read_text()
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (document.parent / link).exists(), link
    for name in re.findall(r"`((?:[a-z0-9_]+/)*[a-z0-9_]+\.py|(?:[a-z0-9_]+/)+)`", text):
        rooms = ("net", "wire", "bus/consumer")
        places = (ROOT, ROOT / "src/polywire", *(ROOT / "src/polywire" / room for room in rooms))
        assert name.endswith("/yours.py") or any((place / name).exists() for place in places), name


def test_the_readme_quotes_the_stored_results_of_the_benchmark() -> None:
    assert quote.section_of(quote.README.read_text()) == quote.quoted()


def test_the_readme_quotes_the_stored_results_of_the_benchmark_of_the_bus() -> None:
    assert bus_quote.section_of(bus_quote.README.read_text()) == bus_quote.quoted()


def test_the_tables_of_the_bus_are_those_of_its_stored_results() -> None:
    assert bus_tables.DOCUMENT.read_text() == bus_tables.document()


def test_every_command_of_polywire_in_the_readme_exists() -> None:
    commands = set(re.findall(r"`polywire ([a-z]+)", (ROOT / "README.md").read_text()))
    assert commands >= {"up", "call", "contract"}
    for command in sorted(commands):
        run = subprocess.run(
            [sys.executable, "-m", "polywire.cli", command, "--help"], capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, run.stderr


def test_every_target_of_make_in_the_readme_exists() -> None:
    targets = set(re.findall(r"(?:^|`)make ([a-z-]+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert targets <= known


def test_every_exported_name_can_be_had_and_is_declared_for_type_checkers() -> None:
    source = (ROOT / "src/polywire/__init__.py").read_text()
    declared = set(re.findall(r"import \w+ as (\w+)", source))
    assert declared == set(polywire.__all__)
    for name in polywire.__all__:
        assert getattr(polywire, name) is not None
    with pytest.raises(AttributeError, match="module 'polywire' has no attribute 'nonsense'"):
        getattr(polywire, "nonsense")  # noqa: B009 - the plain form does not type-check


def test_the_readme_leads_to_every_guide_and_every_reference() -> None:
    text = (ROOT / "README.md").read_text()
    pages = [*ROOT.glob("docs/guides/*.md"), *ROOT.glob("docs/reference/*.md")]
    assert [str(page.relative_to(ROOT)) for page in pages if f"({page.relative_to(ROOT)})" not in text] == []


PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/guides/*.md")])
PARTS = [
    (page.name, part) for page in PAGES for part in re.findall(r"^```toml\n(.*?)^```", page.read_text(), re.M | re.S)
]


@pytest.mark.parametrize(("page", "part"), PARTS, ids=[page for page, _ in PARTS])
def test_a_part_of_a_system_file_that_a_page_shows_is_one(page: str, part: str) -> None:
    """(Whole ones, which have a name, are run by the tests of the guides.)"""
    said = tomllib.loads(part)
    services = said.get("services", {})
    named = {*services, *(fault[side] for fault in said.get("faults", ()) for side in ("caller", "target"))}
    rest = "" if "system" in said else '[system]\nname = "shop"\n'
    for name in sorted(named):
        if not {"app", "address"} & {*services.get(name, {})}:
            rest += f'[services.{name}]\napp = "shop.{name}:app"\n'
    parse(f"{part}\n{rest}")


def test_the_table_of_shedding_has_its_defaults() -> None:
    usual = Shedding()
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| ([^|]+) \|", (ROOT / "docs/guides/shedding.md").read_text(), re.M)
    shown: dict[str, str] = {}
    for names, values in rows:
        shown |= zip(re.findall(r"\w+", names), values.split(", "), strict=True)
    assert shown == {
        one.name: str(getattr(usual, one.name)).lower() for one in dataclasses.fields(Shedding) if one.name != "given"
    }


def test_every_check_that_is_silenced_says_why() -> None:
    bare = re.compile(r"#\s*(?:type:\s*ignore(?:\[[\w, -]*\])?|noqa(?::[\w, ]+)?)\s*$")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for room in ("src", "tests", "examples", "benchmarks", "servers")
        for path in sorted((ROOT / room).rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if bare.search(line)
    ]
    assert found == []
