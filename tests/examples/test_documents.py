"""The documents are true: their programs run, their lists are complete, their links lead somewhere."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks.bus import quote as bus_quote
from benchmarks.bus import tables as bus_tables
from benchmarks.calls import quote

import polywire

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
