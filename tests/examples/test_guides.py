"""The programs in the guides run: all Python of a page is one program, and all text is what it prints.

A block that names a file after its language is that file. A `console` block has commands after `$`, each with what it
prints; they run in one directory with the files before them.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GUIDES = sorted((ROOT / "docs/guides").glob("*.md"))


def blocks(language: str, text: str) -> str:
    return "".join(re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))


def named_blocks(text: str) -> list[tuple[str, str, str]]:
    """Language, name of the file (empty where it has none) and content of each block."""
    return re.findall(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def commands(console: str) -> list[tuple[str, str]]:
    """Each command of a block with what it prints."""
    begun, *rest = re.split(r"^\$ ", console, flags=re.MULTILINE)
    assert not begun, f"A console block begins with a command, not with {begun!r}."
    return [(command, printed) for command, _, printed in (part.partition("\n") for part in rest)]


def run_command(command: str, directory: Path, started: list[int]) -> str:
    """What *command* prints, errors among it, to a terminal in *directory* with `polywire` and `git` at hand.

    It is a process group of its own, added to *started*, as it may leave something running (`polywire up &`).
    """
    environment = {
        **os.environ,
        **dict.fromkeys(("GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME"), "ada"),
        **dict.fromkeys(("GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"), "ada@example.com"),
        "GIT_CONFIG_GLOBAL": os.devnull,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    with subprocess.Popen(
        ["sh", "-c", command],
        cwd=directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        started.append(process.pid)
        try:
            printed, _ = process.communicate(timeout=60)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # leaving the block waits for it
            raise
    return printed


@pytest.fixture
def started() -> Iterator[list[int]]:
    """Process groups, of which nothing is left at the end."""
    groups: list[int] = []
    yield groups
    for group in groups:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


def put(directory: Path, name: str, content: str) -> Path:
    place = directory / name
    assert place.resolve().is_relative_to(directory.resolve()), f"{name} is not below the page's directory."
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(content)
    return place


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_the_program_of_a_guide_prints_what_the_guide_says(guide: Path, tmp_path: Path) -> None:
    text = guide.read_text()
    program = tmp_path / "guide.py"
    program.write_text(blocks("python", text))
    run = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout == blocks("text", text)


@pytest.mark.slow
@pytest.mark.parametrize(
    "guide", [guide for guide in GUIDES if "```console" in guide.read_text()], ids=lambda p: p.stem
)
def test_the_commands_of_a_guide_print_what_the_guide_says(guide: Path, tmp_path: Path, started: list[int]) -> None:
    for language, name, content in named_blocks(guide.read_text()):
        if name:
            put(tmp_path, name, content)
        elif language == "console":
            for command, printed in commands(content):
                assert run_command(command, tmp_path, started) == printed, command


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_the_program_of_a_guide_passes_the_type_checker(guide: Path, tmp_path: Path) -> None:
    text = guide.read_text()
    program = put(tmp_path, f"{guide.stem.replace('-', '_')}.py", blocks("python", text))
    files = {
        put(tmp_path, name, content) for language, name, content in named_blocks(text) if language == "python" and name
    }
    checked = map(str, sorted({program, *files}))
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), *checked]
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
