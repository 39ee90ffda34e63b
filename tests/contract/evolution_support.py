"""`buf breaking` as a judge. `python tests/contract/evolution_support.py` asks it of every prepared change again."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from evolution_changes import CHANGES, Change

VERDICTS = Path(__file__).with_name("evolution_verdicts.json")
CONFIG = '{"version": "v2", "breaking": {"use": ["FILE", "PACKAGE", "WIRE_JSON", "WIRE"]}}'
Verdict = list[str]
"""What is broken: `RULE FILE:LINE` of the new files, sorted, as often as it is broken."""


def buf() -> str | None:
    """buf as it is installed beside this Python, or on the PATH."""
    beside = Path(sys.executable).parent / "buf"
    return str(beside) if beside.exists() else shutil.which("buf")


def buf_version(program: str) -> str:
    return subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.strip()


def verdict_of_buf(program: str, change: Change) -> Verdict:
    with tempfile.TemporaryDirectory() as directory:
        for side, files in (("old", change.old), ("new", change.new)):
            _write(Path(directory, side), files)
        done = subprocess.run(
            [program, "breaking", ".", "--against", "../old", "--config", CONFIG, "--error-format", "json"],
            cwd=Path(directory, "new"),
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode in (0, 100), f"{change.name}: {done.stderr}"
    said = [json.loads(line) for line in done.stdout.splitlines()]
    return sorted(spelled(entry["type"], entry.get("path", ""), entry.get("start_line", 0)) for entry in said)


def spelled(rule: str, file: str, line: int) -> str:
    return f"{rule} {file}:{line}" if file and line else f"{rule} {file}".rstrip()


def _write(directory: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def ask_all(program: str) -> dict[str, Verdict]:
    return dict(zip((change.name for change in CHANGES), verdicts_of_buf(program, CHANGES), strict=True))


def verdicts_of_buf(program: str, changes: Sequence[Change]) -> list[Verdict]:
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda change: verdict_of_buf(program, change), changes))


def main() -> None:
    program = buf()
    assert program is not None, "buf is not installed: pip install buf-bin"
    stored = {"buf": buf_version(program), "verdicts": ask_all(program)}
    VERDICTS.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {VERDICTS}")


if __name__ == "__main__":
    main()
