"""What a backlog costs is measured in two places with the same past."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from benchmarks.bus.run import Machine, growth


class Kept(Machine):
    """A machine that forgets no place, so that one can look at what was left there."""

    def forget(self, place: dict[str, str]) -> None:
        pass


def left(file: Path) -> tuple[int, int, int]:
    """Messages of a file that somebody holds, that a worker was lost with, and all."""
    with sqlite3.connect(file) as connection:
        (held,) = connection.execute("SELECT count(*) FROM held").fetchone()
        (lost,) = connection.execute("SELECT count(*) FROM ready WHERE lost > 0 OR attempt > 0").fetchone()
        (count,) = connection.execute("SELECT count(*) FROM message").fetchone()
    return held, lost, count


@pytest.mark.timeout(120)
def test_beside_a_backlog_and_in_an_empty_place_workers_leave_nothing_behind(tmp_path: Path) -> None:
    machine = Kept(tmp_path)
    row = growth(machine, "polywire, sqlite", "hot", 200, 2, 0.2)
    assert all(row[f"{name}_{side}_us"] > 0 for name in ("empty", "full") for side in ("send", "receive"))
    # Who holds the one message of its key was killed in the end; who handled the others had been told to end.
    (empty, full) = (left(tmp_path / f"bus-{number}.db") for number in (1, 2))
    assert (empty[:2], full[:2]) == ((1, 0), (1, 0))
    assert full[2] >= 200
    machine.stop()
