"""The goals of the benchmark of the bus are held against what was measured, as written."""

from __future__ import annotations

from typing import Any

import pytest
from benchmarks.bus.goals import judged
from benchmarks.bus.tables import tables


def flow(stack: str, send: tuple[float, float], receive: tuple[float, float], kind: str = "tasks") -> dict[str, Any]:
    return {
        "stack": stack,
        "kind": kind,
        "failed": 0,
        "send_per_second": send[0],
        "send_us": send[1],
        "receive_per_second": receive[0],
        "receive_us": receive[1],
    }


def results(*rows: dict[str, Any], **others: Any) -> dict[str, Any]:
    return {"flow": list(rows), "work": [], "latency": [], "syncs": [], "backlog": []} | others


@pytest.mark.parametrize(("rate", "cost", "met"), [(40_000.0, 25.0, [True, True]), (39_999.0, 25.1, [False, False])])
def test_a_rate_is_a_least_and_a_cost_a_most(rate: float, cost: float, met: list[bool]) -> None:
    found = judged(results(flow("polywire, sqlite", (rate, cost), (20_000, 30))))
    assert [one.met for one in found] == [*met, True, True]
    assert found[0].goal == "polywire, sqlite: enqueue at least 40,000/s"
    assert found[3].goal == "polywire, sqlite: process at most 40 µs"


def test_both_sides_together_are_compared_with_rivals() -> None:
    ours = flow("polywire, RabbitMQ", (1, 30), (1, 40))
    found = judged(
        results(ours, flow("FastStream, RabbitMQ", (1, 100), (1, 110)), flow("Celery, RabbitMQ", (1, 300), (1, 259)))
    )
    assert [(one.measured, one.met) for one in found[2:]] == [
        ("70 of 210 µs, 1 / 3.0", True),
        ("70 of 559 µs, 1 / 8.0", False),
    ]


def test_growth_is_judged_by_cpu_for_brokers_and_by_rate_too_for_files() -> None:
    figures = {"empty_send_per_second": 100.0, "full_send_per_second": 50.0, "empty_send_us": 9.0, "full_send_us": 10.0}
    figures |= {name.replace("send", "receive"): value for name, value in figures.items()}
    broker = {"stack": "polywire, Kafka", "server": "kafka", "shape": "plain", "count": 10} | figures
    file = {"stack": "polywire, sqlite", "server": "sqlite", "shape": "low", "count": 10} | figures
    found = judged(results(backlog=[broker, file], syncs=[{"senders": 1, "per_message": 2.01}]))
    assert [(one.measured, one.met) for one in found] == [
        ("2.01", False),
        ("0.90", True),
        ("0.90", True),
        ("0.50", False),
        ("0.90", True),
        ("0.50", False),
        ("0.90", True),
    ]


def test_a_stack_that_failed_in_some_rounds_says_so_in_its_table() -> None:
    row = flow("polywire, sqlite", (40_000, 20), (20_000, 30)) | {"failed": 1}
    assert (
        "| polywire, sqlite (failed in 1 rounds) | 40,000 | 20.0 | 20,000 | 30.0 | 50.0 |"
        in tables(results(row)).splitlines()
    )
