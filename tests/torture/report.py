"""The table of all runs, for people and as data."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.torture.checking import Evidence
from tests.torture.messages import DIES
from tests.torture.running import Run
from tests.torture.stage import versions

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
COLUMNS = {
    "backend": "backend",
    "workers_killed": "workers killed",
    "servers_killed": "servers killed",
    "own": "workers that a message killed",
    "confirmed": "confirmed",
    "maybe": "perhaps sent",
    "done": "done",
    "dead": "dead",
    "unlucky": "of them unlucky",
    "pending": "pending",
    "starts": "handler starts",
    "duplicates": "stopped by the inbox",
    "seconds": "seconds",
    "problems": "problems",
    "versions": "versions",
}


def row(run: Run, found: Evidence, wrong: list[str]) -> dict[str, Any]:
    """One run as data."""
    return {
        "backend": run.stage.backend,
        "workers_killed": run.crew.killed,
        "servers_killed": run.server_kills,
        "own": run.crew.own,
        "confirmed": len(found.state("confirmed")),
        "maybe": len(found.state("maybe")),
        "done": len(found.done),
        "dead": len(found.buried),
        "reasons": dict(Counter(found.buried.values())),
        "unlucky": sum(found.sent[name].kind not in DIES for name in found.buried if name in found.sent),
        "pending": found.pending,
        "starts": len(found.starts),
        "duplicates": found.duplicates,
        "seconds": round(run.seconds, 1),
        "problems": len(wrong),
        "wrong": wrong,
        "versions": versions(run.stage.backend),
    }


def table(rows: list[dict[str, Any]]) -> str:
    lines = [" | ".join(COLUMNS.values()), " | ".join(["---"] * len(COLUMNS))]
    lines += [" | ".join(_shown(each[name]) for name in COLUMNS) for each in rows]
    return "".join(f"| {line} |\n" for line in lines)


def _shown(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def write(rows: list[dict[str, Any]], directory: Path = RESULTS) -> None:
    """Into `torture.json` and `torture.md`; rows of backends that did not run this time stay."""
    if not rows:
        return
    noted = directory / "torture.json"
    old = json.loads(noted.read_text())["rows"] if noted.exists() else []
    new = {each["backend"] for each in rows}
    made = {"commit": _commit(), "machine": f"{platform.machine()}, {os.cpu_count()} cores"}
    made["made"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    rows = sorted(
        [each for each in old if each["backend"] not in new] + [{**each, **made} for each in rows],
        key=lambda each: ("sqlite", "rabbitmq", "kafka").index(each["backend"]),
    )
    noted.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    made_by = ", ".join(f"{each['backend']} {each['made']} at {each['commit']}" for each in rows)
    text = f"Measured by `make torture` ({rows[-1]['machine']}): {made_by}.\n\n{table(rows)}\n{NOTES}"
    (directory / "torture.md").write_text(text)


NOTES = """\
Every run has these checked: no confirmed message lost, effects exactly once, first effects of each key in order, done +
dead + pending = confirmed + those perhaps sent that arrived, nothing dead but what fails for good, nothing delayed too
early. *Unlucky* ones were under way in a worker that was killed, three times in a row, and are dead as `worker_lost`:
nobody can tell them from a message that kills its workers.
"""


def _commit() -> str:
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or "unknown"
