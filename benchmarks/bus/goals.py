"""What is aimed at, beside what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Results = dict[str, Any]
"""As `bus.json` has it: `flow`, `work`, `latency`, `backlog`, `syncs`, each a list of rows."""

FIRST_SHARE = 0.9
"""Of what a side does with an empty queue, it does at least so much with a million messages in it."""


@dataclass(frozen=True, slots=True)
class Judged:
    goal: str
    measured: str
    met: bool


def judged(results: Results) -> list[Judged]:
    """The goals of which there is a figure."""
    found = []
    for stack, side, figure, limit, least in (
        ("polywire, sqlite", "send", "per_second", 40_000, True),
        ("polywire, sqlite", "send", "us", 25, False),
        ("polywire, sqlite", "receive", "per_second", 15_000, True),
        ("polywire, sqlite", "receive", "us", 40, False),
        ("polywire, RabbitMQ", "send", "us", 30, False),
        ("polywire, RabbitMQ", "receive", "us", 45, False),
        ("polywire, Kafka", "send", "us", 14, False),
        ("polywire, Kafka", "receive", "us", 18, False),
    ):
        value = _flow(results, stack, side, figure)
        if value is not None:
            found.append(_limit(f"{stack}: {_does(results, stack, side)}", figure, value, limit, least))
    found += _compared(results, "FastStream, RabbitMQ", 3, "a third")
    found += _compared(results, "Celery, RabbitMQ", 8, "an eighth")
    if results["syncs"]:
        most = max(row["per_message"] for row in results["syncs"])
        found.append(Judged("sqlite: at most 2 syncs from sending to handling", f"{most:.2f}", most <= 2))
    found += [judged for row in results["backlog"] for judged in _growth(row)]
    return found


def _does(results: Results, stack: str, side: str) -> str:
    kind = next(row["kind"] for row in results["flow"] if row["stack"] == stack)
    words = {("tasks", "send"): "enqueue", ("tasks", "receive"): "process"}
    return words.get((kind, side), "publish" if side == "send" else "consume")


def _flow(results: Results, stack: str, side: str, figure: str) -> float | None:
    for row in results["flow"]:
        if row["stack"] == stack:
            value: float = row[f"{side}_{figure}"]
            return value
    return None


def _limit(what: str, figure: str, value: float, limit: float, least: bool) -> Judged:
    met = value >= limit if least else value <= limit
    if figure == "per_second":
        return Judged(f"{what} at least {limit:,}/s", f"{value:,.0f}/s", met)
    return Judged(f"{what} at most {limit} µs", f"{value:.1f} µs", met)


def _compared(results: Results, other: str, times: int, share: str) -> list[Judged]:
    ours = _sum(results, "polywire, RabbitMQ")
    theirs = _sum(results, other)
    if ours is None or theirs is None:
        return []
    goal = f"RabbitMQ, both sides: at most {share} of the CPU of {other.partition(',')[0]}"
    return [Judged(goal, f"{ours:.0f} of {theirs:.0f} µs, 1 / {theirs / ours:.1f}", ours * times <= theirs)]


def _sum(results: Results, stack: str) -> float | None:
    send, receive = (_flow(results, stack, side, "us") for side in ("send", "receive"))
    return None if send is None or receive is None else send + receive


def _growth(row: dict[str, Any]) -> list[Judged]:
    """CPU for the brokers, whose own speed is theirs; rate and CPU for the file."""
    figures = ("per_second", "us") if row["server"] == "sqlite" else ("us",)
    found = []
    for side in ("send", "receive"):
        for figure in figures:
            share = share_of(row, side, figure)
            what = f"{row['stack']}, {row['count']:,} {row['shape']}: {side}, {_NAMES[figure]} of the empty one"
            found.append(Judged(f"{what} at least {FIRST_SHARE}", f"{share:.2f}", share >= FIRST_SHARE))
    return found


_NAMES = {"per_second": "rate", "us": "work per CPU"}


def share_of(row: dict[str, Any], side: str, figure: str) -> float:
    """How much is done beside the backlog of what is done without: 1 where it costs nothing."""
    empty: float = row[f"empty_{side}_{figure}"]
    full: float = row[f"full_{side}_{figure}"]
    return full / empty if figure == "per_second" else empty / full
