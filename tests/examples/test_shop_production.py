"""The shop on RabbitMQ and Kafka, as its profile `production` has it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import production
import pytest
from production import NotAvailable, servers_of_production
from servers.pytest_plugin import require_server
from shop_support import SHOP

DEMO = [sys.executable, str(SHOP / "demo.py"), "--port", "0", "--customers", "60", "--once", "--profile", "production"]


@pytest.mark.slow
def test_the_demo_balances_on_rabbitmq_and_kafka_and_stops_them_afterwards(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    require_server(request, "rabbitmq")
    require_server(request, "kafka")
    environ = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(DEMO, capture_output=True, text=True, timeout=115, env=environ)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("Starting RabbitMQ and Kafka ...\n")
    assert done.stdout.endswith("The books balance.\n")
    placed = re.search(r"= (\d+) placed", done.stdout)
    assert placed is not None
    assert f"\nletters     {placed[1]} sent, {placed[1]} in the postbox\n" in done.stdout
    assert processes_below(tmp_path) == []


def processes_below(directory: Path) -> list[str]:
    """Command lines that name *directory*."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = process.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it ended in the meantime
            continue
        if str(directory) in line:
            found.append(line)
    return found


def test_clients_that_are_not_installed_are_named_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(production, "find_spec", lambda package: None)
    monkeypatch.chdir(SHOP)
    with pytest.raises(NotAvailable) as missing, servers_of_production(tmp_path):
        pass
    python = os.path.relpath(sys.executable)
    assert str(missing.value) == (
        "The profile 'production' needs clients that are not installed: rabbitmq, kafka. Install them with "
        f"`{python} -m pip install -e '../..[rabbitmq,kafka]'`."
    )


def test_a_server_that_does_not_start_is_told_in_its_own_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("POLYWIRE__WIRES__TASKS", "amqp://somewhere/")
    monkeypatch.setattr(production, "find_spec", lambda package: True)
    asked: list[tuple[str, tuple[str, ...]]] = []

    def run(action: str, names: list[str], directory: Path) -> subprocess.CompletedProcess[str]:
        asked.append((action, tuple(names)))
        return subprocess.CompletedProcess([], 1, "", "kafka was not started: java is not installed.\n")

    monkeypatch.setattr(production, "_run", run)
    with pytest.raises(NotAvailable) as missing, servers_of_production(tmp_path):
        pass
    assert str(missing.value) == (
        "The profile 'production' needs servers that did not start. kafka was not started: java is not installed."
    )
    assert asked == [("start", ("kafka",)), ("stop", ("kafka",))]


def test_servers_that_the_environment_names_are_used_as_they_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("POLYWIRE__WIRES__TASKS", "amqp://somewhere/")
    monkeypatch.setenv("POLYWIRE__WIRES__EVENTS", "kafka://somewhere")
    monkeypatch.setattr(production, "find_spec", lambda package: True)
    with servers_of_production(tmp_path) as variables:
        assert variables == {}
    assert list(tmp_path.iterdir()) == []
