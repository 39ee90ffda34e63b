"""What the README quotes of the results: `python -m benchmarks.bus.quote` writes it there, and `bus.md` anew."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from benchmarks.bus.goals import judged
from benchmarks.bus.tables import NOTES, RESULTS, write_document

ROOT = Path(__file__).resolve().parents[2]
BUSY = 1.0
"""Load from which on figures are not those of a quiet machine."""
README = ROOT / "README.md"
SECTION = re.compile(r"(?<=## What a message costs\n\n).*?(?=\n`make bench-bus`)", re.DOTALL)


def quoted() -> str:
    """A table of the stacks, how many goals are met, and why others are not."""
    found: dict[str, Any] = json.loads(RESULTS.read_text())
    latencies = {row["stack"]: row["p50"] for row in found["latency"]}
    lines = [
        "600 bytes with an envelope of twelve headers, sent until confirmed, then decoded, validated, handled and",
        f"acknowledged (CPython {found['about']['python']}); CPU of the client, each side by itself:",
        "",
        "| stack | sent/s | µs CPU | handled/s | µs CPU | ms to the handler |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in found["flow"]:
        latency = f"{latencies[row['stack']]:.1f}" if row["stack"] in latencies else ""
        lines.append(
            f"| {row['stack']} | {row['send_per_second']:,.0f} | {row['send_us']:.0f} | "
            f"{row['receive_per_second']:,.0f} | {row['receive_us']:.0f} | {latency} |"
        )
    if found["about"]["load"] > BUSY:
        lines += [
            "",
            f"The machine was busy with other work (load {found['about']['load']} when it began): on a quiet one",
            "messages cost less than this, and rates are higher.",
        ]
    goals = judged(found)
    lines += [
        "",
        f"Of its {len(goals)} goals {sum(one.met for one in goals)} are met;",
        "[each is held against its figure](benchmarks/results/bus.md#goals).",
    ]
    return "\n".join(lines) + "\n\n" + NOTES.read_text()


def section_of(text: str) -> str:
    found = SECTION.search(text)
    if found is None:
        raise SystemExit(f"{README} has no section 'What a message costs' that ends with the line on `make bench-bus`.")
    return found[0]


def main() -> None:
    text = README.read_text()
    section_of(text)
    write_document()
    README.write_text(SECTION.sub(lambda _: quoted(), text))


if __name__ == "__main__":
    main()
