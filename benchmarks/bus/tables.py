"""The results as tables, for the terminal, `benchmarks/results/bus.md` and the README."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.bus.goals import judged, share_of

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "bus.json"
DOCUMENT = ROOT / "benchmarks" / "results" / "bus.md"
NOTES = ROOT / "benchmarks" / "results" / "bus-notes.md"
"""Why what is missed is missed, from profiles. Written by hand."""

Row = dict[str, Any]
LATENCY_RATE = 100.0
"""Messages per second at which latency is measured: what every stack carries with ease."""

FIGURES = ("per_second", "us")
SHAPE_NAMES = {
    "hot": "all of one key, which is held",
    "delayed": "all delayed",
    "low": "all of low priority",
    "plain": "in front, or unread",
}


def tables(results: dict[str, list[Row]]) -> str:
    lines = []
    for kind, title, send, receive in (
        ("tasks", "Tasks that do nothing", "enqueued/s", "processed/s"),
        ("events", "Events", "published/s", "consumed/s"),
    ):
        rows = [row for row in results["flow"] if row["kind"] == kind]
        if rows:
            lines += [
                f"\n### {title}\n",
                f"| stack | {send} | µs CPU | {receive} | µs CPU | both sides |",
                "|---" * 6 + "|",
            ]
            lines += [_flow_line(row) for row in rows]
    if results["work"]:
        lines += ["\n### Tasks that wait for 1 ms\n", "| stack | per second and worker | µs CPU |", "|---|---|---|"]
        lines += [f"| {row['stack']} | {row['per_second']:,.0f} | {row['us']:.1f} |" for row in results["work"]]
    if results["latency"]:
        lines += [f"\n### From sending to the handler, {LATENCY_RATE:g} messages per second\n"]
        lines += ["| stack | p50 ms | p95 ms | p99 ms |", "|---|---|---|---|"]
        lines += [f"| {r['stack']} | {r['p50']:.1f} | {r['p95']:.1f} | {r['p99']:.1f} |" for r in results["latency"]]
    if results["syncs"]:
        lines += ["\n### Syncs of the file per task, from sending to handled\n", "| senders | syncs |", "|---|---|"]
        lines += [f"| {row['senders']} | {row['per_message']:.3f} |" for row in results["syncs"]]
    if results["backlog"]:
        lines += [
            "\n### Beside a backlog\n",
            "Of what is done with an empty queue of the same kind: rate, and work per CPU.\n",
        ]
        lines += ["| stack | messages | backlog | send: rate | CPU | receive: rate | CPU |", "|---" * 7 + "|"]
        lines += [_backlog_line(row) for row in results["backlog"]]
    lines += ["\n### Goals\n", goals_table(results)]
    return "\n".join(lines)


def goals_table(results: dict[str, list[Row]]) -> str:
    lines = ["| goal | measured | |", "|---|---|---|"]
    lines += [f"| {one.goal} | {one.measured} | {'met' if one.met else '**missed**'} |" for one in judged(results)]
    return "\n".join(lines)


def _flow_line(row: Row) -> str:
    lost = f" (failed in {row['failed']} rounds)" if row["failed"] else ""
    return (
        f"| {row['stack']}{lost} | {row['send_per_second']:,.0f} | {row['send_us']:.1f} | "
        f"{row['receive_per_second']:,.0f} | {row['receive_us']:.1f} | {row['send_us'] + row['receive_us']:.1f} |"
    )


def _backlog_line(row: Row) -> str:
    shares = " | ".join(f"{share_of(row, s, f):.2f}" for s in ("send", "receive") for f in FIGURES)
    return f"| {row['stack']} | {row['count']:,} | {SHAPE_NAMES[row['shape']]} | {shares} |"


def document() -> str:
    """What `bus.md` says: the tables of the stored results, and the notes on them."""
    found: dict[str, Any] = json.loads(RESULTS.read_text())
    return f"Measured by `make bench-bus`: {json.dumps(found['about'])}\n{tables(found)}\n\n{NOTES.read_text()}"


def write_document() -> None:
    DOCUMENT.write_text(document())
