"""`python -m servers install|start|stop|status NAME...`: real servers on loopback, until they are stopped."""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from servers import SERVERS, find
from servers.base import ServerError
from servers.keeper import ROOT, ensure, running, stop


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m servers", description=__doc__)
    parser.add_argument("action", choices=["install", "start", "stop", "status"])
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(SERVERS)}; all that tests require where none is named"
    )
    parser.add_argument("--directory", type=Path, default=ROOT / ".polywire" / "servers", help="where their data is")
    asked = parser.parse_args(arguments)
    act = {"install": _install, "start": _start, "stop": _stop, "status": _status}[asked.action]
    names = asked.names or [name for name in SERVERS if not find(name).optional]
    if unknown := [name for name in names if name not in SERVERS]:
        parser.error(f"{', '.join(unknown)}: no server of this project. Choose from: {', '.join(SERVERS)}.")
    if asked.action == "install":  # One after the other: they share the package manager's lock.
        return max([act(name, asked.directory) for name in names])
    with ThreadPoolExecutor(len(names)) as threads:
        return max(threads.map(lambda name: act(name, asked.directory), names))


def _install(name: str, directory: Path) -> int:
    try:
        server = find(name)
        server.install()
    except ServerError as error:
        return _failed(error)
    print(f"{name:<12} installed")
    return 0


def _start(name: str, directory: Path) -> int:
    try:
        if missing := find(name).missing():
            raise ServerError(
                f"{name} was not started: {missing} is not installed. Run `python -m servers install {name}`."
            )
        print(f"{name:<12} {ensure(name, directory)}")
    except ServerError as error:
        return _failed(error)
    return 0


def _stop(name: str, directory: Path) -> int:
    try:
        print(f"{name:<12} {'stopped' if stop(name, directory) else 'was not running'}")
    except ServerError as error:
        return _failed(error)
    return 0


def _status(name: str, directory: Path) -> int:
    missing = find(name).missing()
    print(f"{name:<12} {running(name, directory) or (f'not installed: {missing}' if missing else 'stopped')}")
    return 0


def _failed(error: Exception) -> int:
    print(error.args[0], file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
