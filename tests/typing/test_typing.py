"""The type checkers accept what users write, and refuse exactly the lines that are wrong."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
BIN = Path(sys.executable).parent
PASSES = sorted(HERE.glob("passes*.py"))
FAILS = sorted((HERE / "fails").glob("*.py"))
MARKED = re.compile(r"# (?:(mypy|pyright) )?error: ")

Lines = set[tuple[str, int]]


def expected(checker: str) -> Lines:
    """The lines that are marked for this checker or for both, by file name and number."""
    return {
        (file.name, number)
        for file in FAILS
        for number, line in enumerate(file.read_text().splitlines(), start=1)
        if (marked := MARKED.search(line)) and marked[1] in (None, checker)
    }


def run(*command: str | Path) -> str:
    done = subprocess.run([*command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


def reported_by_mypy() -> dict[tuple[str, int], str]:
    output = run(
        BIN / "mypy",
        *("--strict", "--no-error-summary", "--hide-error-context", "--config-file", "pyproject.toml"),
        *PASSES,
        *FAILS,
    )
    found = re.findall(r"^(?:.*/)?(\w+\.py):(\d+): error: (.*)$", output, re.MULTILINE)
    return {(name, int(number)): text for name, number, text in found}


def reported_by_pyright() -> dict[tuple[str, int], str]:
    output = json.loads(run(BIN / "pyright", "-p", HERE, "--pythonpath", sys.executable, "--outputjson"))
    assert output["summary"]["filesAnalyzed"] == len(PASSES) + len(FAILS)
    return {
        (Path(found["file"]).name, found["range"]["start"]["line"] + 1): found["message"]
        for found in output["generalDiagnostics"]
        if found["severity"] == "error"
    }


@pytest.mark.slow
def test_mypy_refuses_exactly_the_lines_that_are_wrong() -> None:
    found = reported_by_mypy()
    marked = expected("mypy")
    assert {place: text for place, text in found.items() if place not in marked} == {}
    assert marked - found.keys() == set()


@pytest.mark.slow
def test_pyright_refuses_exactly_the_lines_that_are_wrong() -> None:
    found = reported_by_pyright()
    marked = expected("pyright")
    assert {place: text for place, text in found.items() if place not in marked} == {}
    assert marked - found.keys() == set()
