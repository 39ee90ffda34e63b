"""The part of the results that the README quotes: `python -m benchmarks.calls.quote` writes it there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "calls.json"
README = ROOT / "README.md"
IN_FLIGHT = 32
SECTION = re.compile(r"(?<=## What a call costs\n\n).*?(?=\n`make bench`)", re.DOTALL)


def quoted() -> str:
    """A table of the stacks with 32 calls in flight, GET-like and POST-like, and of streaming."""
    found: dict[str, Any] = json.loads(RESULTS.read_text())
    rows = {(row["stack"], row["kind"], row["in_flight"]): row for row in found["rows"]}
    about = found["about"]
    lines = [
        f"An order of 987 bytes as JSON, {IN_FLIGHT} calls in flight, client and server in Python on a core each",
        f"(CPython {about['python']}), CPU of both sides together, all stacks alternating in one run:",
        "",
        "| stack | GET-like, calls/s | µs CPU | POST-like, calls/s | µs CPU | streamed messages/s |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for stack in dict.fromkeys(row["stack"] for row in found["rows"]):
        cells = [stack]
        for kind in ("get", "post"):
            row = rows[stack, kind, IN_FLIGHT]
            cells += [f"{row['per_second']:,.0f}", f"{row['client_us'] + row['server_us']:.0f}"]
        stream = rows.get((stack, "stream", 1))
        cells.append(f"{stream['per_second']:,.0f}" if stream else "")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def section_of(text: str) -> str:
    found = SECTION.search(text)
    if found is None:
        raise SystemExit(f"{README} has no section 'What a call costs' that ends with the line on `make bench`.")
    return found[0]


def main() -> None:
    text = README.read_text()
    section_of(text)
    README.write_text(SECTION.sub(lambda _: quoted(), text))


if __name__ == "__main__":
    main()
