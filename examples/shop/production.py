"""RabbitMQ and Kafka for the demo: real servers on loopback, started and stopped by the `servers` of the repository."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[2]
CLIENTS = {"pika": "rabbitmq", "confluent_kafka": "kafka"}
"""Package and the extra of polywire that installs it."""
URLS = {"rabbitmq": "POLYWIRE__WIRES__TASKS", "kafka": "POLYWIRE__WIRES__EVENTS"}
"""Server and the variable that says where it is."""
START_WITHIN = 180.0


class NotAvailable(Exception):
    """Something that production needs is not here."""


@contextlib.contextmanager
def servers_of_production(directory: Path) -> Iterator[Mapping[str, str]]:
    """Where the servers are, as variables, for the length of the block: those that the environment names, or ones of
    our own with their data in *directory*. Raises NotAvailable, which says what to install."""
    _check_clients()
    own = [name for name, variable in URLS.items() if variable not in os.environ]
    if not own:
        yield {}
        return
    try:
        yield _start(own, directory)
    finally:
        _run("stop", own, directory)


def _check_clients() -> None:
    missing = [extra for package, extra in CLIENTS.items() if find_spec(package) is None]
    if missing:
        raise NotAvailable(
            f"The profile 'production' needs clients that are not installed: {', '.join(missing)}. Install them with "
            f"`{os.path.relpath(sys.executable)} -m pip install -e '{os.path.relpath(ROOT)}[{','.join(missing)}]'`."
        )


def _start(names: Sequence[str], directory: Path) -> dict[str, str]:
    """Variables with their URLs."""
    started = _run("start", names, directory)
    if started.returncode != 0:
        raise NotAvailable(f"The profile 'production' needs servers that did not start. {started.stderr.strip()}")
    return {URLS[name]: url for name, url in (line.split() for line in started.stdout.splitlines())}


def _run(action: str, names: Sequence[str], directory: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "servers", action, *names, "--directory", str(directory)]
    return subprocess.run(  # noqa: S603 - our own program
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=START_WITHIN
    )
