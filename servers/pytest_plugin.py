"""The servers of a test run: started when the first test needs them, shared by its workers, gone with it.

A test asks through the fixture `server_url`, as in `server_url("rabbitmq")`. Where a server is not installed its tests
are skipped and it is named in the last lines of the run; with `--require-servers` they fail instead.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from servers import SERVERS, find
from servers.keeper import ensure, stop

DIRECTORY = "POLYWIRE_TEST_SERVERS"
"""Environment variable: where the servers of this run are. Set by the process that the run was started with."""
OWNER = "POLYWIRE_TEST_OWNER"
"""Environment variable: its process id; the servers end with it."""
MISSING = "missing_server"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--require-servers", action="store_true", help="fail the tests whose server is not installed; do not skip them"
    )


def pytest_configure(config: pytest.Config) -> None:
    if not _is_worker(config):
        os.environ[DIRECTORY] = tempfile.mkdtemp(prefix="polywire-servers-")
        os.environ[OWNER] = str(os.getpid())


def pytest_unconfigure(config: pytest.Config) -> None:
    # After an interrupt too; where not even this is run, the keepers notice that the run is gone.
    if not _is_worker(config) and DIRECTORY in os.environ:
        directory = Path(os.environ.pop(DIRECTORY))
        for name in SERVERS:
            stop(name, directory)
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def server_url(request: pytest.FixtureRequest) -> Callable[[str], str]:
    """Function from the name of a server to its URL, the same for all tests of the run."""

    def find_or_skip(name: str) -> str:
        require_server(request, name)
        return ensure(name, Path(os.environ[DIRECTORY]), pid=int(os.environ[OWNER]))

    return find_or_skip


def require_server(request: pytest.FixtureRequest, name: str) -> None:
    """Skip the test where server *name* is not installed, or fail it with `--require-servers`."""
    missing = find(name).missing()
    if missing is None:
        return
    reason = f"{name} is not there: {missing} is not installed (python -m servers install {name})"
    if request.config.getoption("--require-servers") and not find(name).optional:
        pytest.fail(reason, pytrace=False)
    request.node.user_properties.append((MISSING, reason))
    pytest.skip(reason)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped: dict[str, int] = {}
    for report in terminalreporter.stats.get("skipped", []):
        for name, reason in report.user_properties:
            if name == MISSING:
                skipped[reason] = skipped.get(reason, 0) + 1
    for reason, count in skipped.items():
        terminalreporter.write_line(f"{count} tests were skipped: {reason}", yellow=True)


def _is_worker(config: pytest.Config) -> bool:
    return hasattr(config, "workerinput")
