"""The project's script for real servers, and the fixture that tests get them by."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from servers import SERVERS, find
from servers.base import Server, ServerError, apt_install, ports, wait_until_ready
from servers.keeper import ROOT, ensure, running, stop
from servers.pytest_plugin import require_server
from servers.rabbitmq import RabbitMQ

SOON = 60.0


def wait_for(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < give_up, "it did not come about"
        time.sleep(0.05)


@pytest.fixture
def _rabbitmq_is_here(request: pytest.FixtureRequest) -> None:
    require_server(request, "rabbitmq")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "servers", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.usefixtures("_rabbitmq_is_here")
def test_a_server_started_by_hand_is_found_again_and_stopped(tmp_path: Path) -> None:
    started = run("start", "rabbitmq", "--directory", str(tmp_path))
    try:
        assert started.returncode == 0, started.stderr
        assert started.stdout.startswith("rabbitmq     amqp://guest:guest@127.0.0.1:")
        assert run("start", "rabbitmq", "--directory", str(tmp_path)).stdout == started.stdout
        assert run("status", "rabbitmq", "--directory", str(tmp_path)).stdout == started.stdout
    finally:
        stopped = run("stop", "rabbitmq", "--directory", str(tmp_path))
    assert stopped.stdout == "rabbitmq     stopped\n"
    assert run("stop", "rabbitmq", "--directory", str(tmp_path)).stdout == "rabbitmq     was not running\n"
    assert run("status", "rabbitmq", "--directory", str(tmp_path)).stdout == "rabbitmq     stopped\n"


@pytest.mark.slow
@pytest.mark.usefixtures("_rabbitmq_is_here")
def test_a_server_ends_with_the_process_it_was_started_for_and_leaves_no_data(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "1000"]) as user:
        url = ensure("rabbitmq", tmp_path, pid=user.pid)
        assert ensure("rabbitmq", tmp_path, pid=user.pid) == url
        assert (tmp_path / "rabbitmq").exists()
        user.kill()
        wait_for(lambda: running("rabbitmq", tmp_path) is None)
        assert not (tmp_path / "rabbitmq").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("_rabbitmq_is_here")
def test_a_killed_server_comes_back_at_its_address_and_a_killed_owner_takes_it_along(tmp_path: Path) -> None:
    server = RabbitMQ()
    url = server.start(tmp_path)
    server.kill()
    assert not server.running
    assert not server.ready()
    assert server.start(tmp_path) == url
    assert server.ready()
    server.stop()
    assert not server.running

    program = f"import time; from pathlib import Path; from servers.rabbitmq import RabbitMQ; s = RabbitMQ(); \
s.start(Path({str(tmp_path)!r})); print(s._node.pid, flush=True); time.sleep(1000)"
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        owner.send_signal(signal.SIGKILL)
        wait_for(lambda: not is_alive(pid))


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that was killed and not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_an_unknown_server_is_refused_with_the_choices() -> None:
    done = run("start", "oracle")
    assert done.returncode == 2
    assert "oracle: no server of this project. Choose from: rabbitmq" in done.stderr
    with pytest.raises(KeyError, match=r"'oracle' is no server of this project\. Choose from: rabbitmq"):
        find("oracle")


def test_a_server_that_cannot_start_shows_the_end_of_its_log(tmp_path: Path) -> None:
    class Broken(RabbitMQ):
        def _command(self, directory: Path, program: list[str]) -> list[str]:
            return ["sh", "-c", "echo no such luck; exit 3"]

    broken = Broken()
    with pytest.raises(ServerError, match=r"rabbitmq was not started: its process ended\. .*") as raised:
        broken.start(tmp_path)
    broken.stop()
    assert "no such luck" in str(raised.value)


def test_a_server_that_dies_while_it_is_looked_at_has_died(tmp_path: Path) -> None:
    """(It was asked twice whether it runs, and was said to have been too slow where it died in between.)"""
    looks = iter([True, False])

    class Dying(RabbitMQ):
        def ready(self) -> bool:
            return False

        @property
        def running(self) -> bool:
            return next(looks)

    with pytest.raises(ServerError, match=r"^rabbitmq was not started: its process ended\. "):
        wait_until_ready(Dying(), tmp_path / "server.log")


def test_nothing_is_installed_without_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ServerError) as raised:
        apt_install("rabbitmq-server")
    assert str(raised.value) == (
        "rabbitmq-server was not installed: that needs root. Run `sudo apt-get install rabbitmq-server`."
    )


def test_a_directory_keeps_its_ports(tmp_path: Path) -> None:
    first = ports(tmp_path / "a", "one", "two")
    assert ports(tmp_path / "a", "one", "two") == first
    assert len(set(first.values())) == 2


def test_a_missing_server_skips_its_tests_and_is_named_at_the_end(tmp_path: Path) -> None:
    ordinary = run_without_rabbitmq(tmp_path)
    assert ordinary.returncode == 0
    last = ordinary.stdout.splitlines()
    reason = "rabbitmq is not there: a thing is not installed (python -m servers install rabbitmq)"
    assert last[-2] == f"2 tests were skipped: {reason}"
    assert "1 passed, 2 skipped" in last[-1]

    required = run_without_rabbitmq(tmp_path, "--require-servers")
    assert required.returncode == 1
    assert reason in required.stdout
    assert "1 passed, 2 errors" in required.stdout.splitlines()[-1]

    in_workers = run_without_rabbitmq(tmp_path, "-n", "2")
    assert f"2 tests were skipped: {reason}" in in_workers.stdout


def run_without_rabbitmq(directory: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Of a small run of its own, in which RabbitMQ seems not to be installed."""
    (directory / "conftest.py").write_text(
        "import servers.rabbitmq\n"
        "pytest_plugins = ['servers.pytest_plugin']\n"
        "servers.rabbitmq.RabbitMQ.missing = classmethod(lambda cls: 'a thing')\n"
        "import pytest\n"
        "@pytest.fixture\n"
        "def url(server_url): return server_url('rabbitmq')\n"
    )
    (directory / "test_it.py").write_text(
        "def test_one(url): pass\ndef test_two(url): pass\ndef test_three(): pass\n",
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "--no-header", *options, "--rootdir", "."],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_every_server_offers_what_the_script_needs() -> None:
    for name in SERVERS:
        assert issubclass(find(name), Server)
        assert find(name).name == name


def test_a_server_that_is_not_running_is_not_stopped_twice(tmp_path: Path) -> None:
    assert not stop("rabbitmq", tmp_path)
    RabbitMQ().stop()
    RabbitMQ().kill()
