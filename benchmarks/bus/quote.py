"""The part of the results that the README quotes: `python -m benchmarks.bus.quote` writes it there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from benchmarks.bus.goals import judged

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "bus.json"
NOTES = ROOT / "benchmarks" / "results" / "bus-notes.md"
"""Why what is missed is missed, from profiles. Written by hand."""
README = ROOT / "README.md"
SECTION = re.compile(r"(?<=## What a message costs\n\n).*?(?=\n`make bench-bus`)", re.DOTALL)


def quoted() -> str:
    """A table of the stacks, what is missed of the goals, and why."""
    found: dict[str, Any] = json.loads(RESULTS.read_text())
    latencies = {row["stack"]: row["p50"] for row in found["latency"]}
    lines = [
        "600 bytes with an envelope of twelve headers, sent until confirmed, then decoded, validated, handled and",
        f"acknowledged (CPython {found['about']['python']}); CPU of the client, each side by itself, all stacks",
        "alternating in one run:",
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
    goals = judged(found)
    missed = [one for one in goals if not one.met]
    lines += ["", f"Of {len(goals)} goals {len(goals) - len(missed)} are met."]
    if missed:
        lines += ["Missed are:", "", *(f"* {one.goal}: {one.measured}" for one in missed)]
    return "\n".join(lines) + "\n\n" + NOTES.read_text()


def section_of(text: str) -> str:
    found = SECTION.search(text)
    if found is None:
        raise SystemExit(f"{README} has no section 'What a message costs' that ends with the line on `make bench-bus`.")
    return found[0]


def main() -> None:
    text = README.read_text()
    section_of(text)
    README.write_text(SECTION.sub(lambda _: quoted(), text))


if __name__ == "__main__":
    main()
