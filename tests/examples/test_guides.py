"""The programs in the guides run: all Python of a page is one program, and all text is what it prints."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GUIDES = sorted((ROOT / "docs/guides").glob("*.md"))


def blocks(language: str, text: str) -> str:
    return "".join(re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_the_program_of_a_guide_prints_what_the_guide_says(guide: Path, tmp_path: Path) -> None:
    text = guide.read_text()
    program = tmp_path / "guide.py"
    program.write_text(blocks("python", text))
    run = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout == blocks("text", text)


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_the_program_of_a_guide_passes_the_type_checker(guide: Path, tmp_path: Path) -> None:
    program = tmp_path / f"{guide.stem.replace('-', '_')}.py"
    program.write_text(blocks("python", guide.read_text()))
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), str(program)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert run.returncode == 0, run.stdout


def test_every_command_of_a_guide_exists() -> None:
    named = {
        command for guide in GUIDES for command in re.findall(r"`polywire ([a-z]+(?: [a-z]+)*)", guide.read_text())
    }
    assert named
    for command in sorted(named):
        words = [sys.executable, "-m", "polywire.cli", *command.split(), "--help"]
        run = subprocess.run(words, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
