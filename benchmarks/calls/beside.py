"""What a call costs here beside what it costs at another commit: `python -m benchmarks.calls.beside COMMIT`.

Both are run in turn, many times and shortly: on a busy machine a process is faster or slower as a whole, so it takes
many of them, and what is compared is each pair. `--save` keeps the result under benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benchmarks" / "results" / "calls-beside.md"
MEASURE = """
import json, sys
from benchmarks.calls.run import measure
print(json.dumps(measure(*json.loads(sys.argv[1]))))
"""


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """A directory with the files of *commit*."""
    with TemporaryDirectory(prefix="polywire-beside-") as directory:
        tree = Path(directory) / "tree"
        git("worktree", "add", "--detach", "--quiet", str(tree), commit)
        try:
            yield tree
        finally:
            git("worktree", "remove", "--force", str(tree))


def git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def measured(tree: Path, case: list[Any]) -> dict[str, Any]:
    """One client process and one server process of *tree*."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, json.dumps(case)],
        cwd=tree, env=os.environ | {"PYTHONPATH": str(tree / "src")}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def pairs(trees: tuple[Path, Path], case: list[Any], rounds: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    found = []
    for turn in range(rounds):
        first, second = trees if turn % 2 == 0 else trees[::-1]
        rows = {first: measured(first, case), second: measured(second, case)}
        found.append((rows[trees[0]], rows[trees[1]]))
        print(*(f"{row['per_second']:9,.0f}/s" for row in found[-1]), flush=True)
    return found


def cpu(row: dict[str, Any]) -> float:
    return float(row["client_us"] + row["server_us"])


def named(commit: str) -> tuple[str, str]:
    """What stands for the two in the table."""
    changed = ", and what is not committed" if git("status", "--porcelain", "--untracked-files=no") else ""
    return git("rev-parse", "--short", commit), git("rev-parse", "--short", "HEAD") + changed


def verdict(names: tuple[str, str], found: list[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    rates = [here["per_second"] / there["per_second"] for there, here in found]
    costs = [cpu(here) / cpu(there) for there, here in found]
    low, _, high = quantiles(rates, n=4)
    lines = [
        f"| {len(found)} pairs, medians | calls/s | client + server µs CPU |",
        "| --- | --- | --- |",
        *(
            f"| {name} | {median(pair[side]['per_second'] for pair in found):,.0f} | "
            f"{median(cpu(pair[side]) for pair in found):.1f} |"
            for side, name in enumerate(names)
        ),
        f"| the second beside the first, pair by pair | {median(rates):.3f} (half of them {low:.3f} to {high:.3f}) | "
        f"{median(costs):.3f} |",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commit")
    parser.add_argument("--stack", default="polywire gRPC")
    parser.add_argument("--kind", default="get")
    parser.add_argument("--in-flight", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=0.7)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    case = [options.stack, options.kind, options.in_flight, options.seconds]
    with checked_out(options.commit) as tree:
        text = verdict(named(options.commit), pairs((tree, ROOT), case, options.rounds))
    print(text)
    if options.save:
        words = ["python -m benchmarks.calls.beside", *sys.argv[1:]]
        RESULT.write_text(f"Measured by `{' '.join(words)}`, {options.kind}, {options.in_flight} in flight:\n\n{text}")


if __name__ == "__main__":
    main()
