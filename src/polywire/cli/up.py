"""`polywire up`: every service of a system on this machine."""

from __future__ import annotations

import asyncio
import os
import sys
import time

import click

from polywire.cli.options import log_option, profile_option
from polywire.errors import SetupError
from polywire.net.loop import run
from polywire.system import environment
from polywire.system.file import load
from polywire.system.forking import can_fork
from polywire.system.instances import instances_of, shared_ports
from polywire.system.output import LineOutput
from polywire.system.relay import Relay
from polywire.system.shutdown import Shutdown
from polywire.system.up import fork_services, prepared, up, up_in_process
from polywire.telemetry.access_log import LogFormat


@click.command(short_help="Run a whole system on this machine.")
@click.argument("file", required=False)
@profile_option
@click.option("--only", metavar="NAMES", help="Run these services alone, with commas in between.")
@click.option("--in-process", is_flag=True, help="Run all services in one process, calling each other inside of it.")
@click.option(
    "--once-ready", metavar="COMMAND", help="Run a command once all is ready, then stop with its exit status."
)
@click.option("--reload", is_flag=True, help="Start a service anew when its code changes, without losing a call.")
@click.option("--fresh", is_flag=True, help="Start each service in a new interpreter; slower.")
@log_option
def command(
    file: str | None,
    profile: str | None,
    only: str | None,
    in_process: bool,
    once_ready: str | None,
    reload: bool,
    fresh: bool,
    log_format: LogFormat,
) -> int:
    """Run every service of a system, each as a process of its own, with their logs as one stream.

    FILE is the system file, polywire.toml by default. A service that dies is started again. Ctrl-C stops all of them
    without losing a call under way; a second Ctrl-C does not wait. With --reload, services follow their code, and all
    of them the system file.

    \b
        polywire up
        polywire up --reload
        polywire up --only orders,inventory
        polywire up --in-process --log json
    """
    began = time.monotonic()
    if reload and in_process:
        raise SetupError("--reload starts processes anew, and --in-process has only one. Leave one of the two out.")
    system = load(file, profile=profile)
    output = LineOutput(format=log_format)
    announce = output if log_format == "text" else None
    colour = log_format == "text" and sys.stdout.isatty()
    after = _Once(once_ready, system.file)
    with prepared(system, only=None if only is None else only.split(","), in_process=in_process) as made:
        if in_process:
            relay = Relay(output, list(made.apps), format=log_format, colour=colour)
            run(up_in_process(made, relay, format=log_format, announce=announce, then=after, began=began))
            return after.status
        with shared_ports(made, reload=reload) as ports:
            relay = Relay(output, list(instances_of(made, ports)), format=log_format, colour=colour)
            # A fork has the code of all services, and so could not tell which is its own.
            forks = can_fork() and not fresh and not reload
            running = up(
                made,
                ports,
                relay,
                format=log_format,
                announce=announce,
                then=after,
                began=began,
                forked=fork_services(made, ports, format=log_format) if forks else {},
                reload=system if reload else None,
            )
            # The standard loop: this process only waits and relays, and its children are what counts.
            asyncio.run(running)
    return after.status


class _Once:
    """What `--once-ready` asks for: a shell command, whose end is that of the system, and its status too."""

    def __init__(self, line: str | None, file: str) -> None:
        self.status = 0
        self._line = line
        self._file = os.path.abspath(file)
        self._tasks: set[asyncio.Task[None]] = set()

    def __call__(self, shutdown: Shutdown) -> None:
        if self._line is not None:
            self._tasks.add(asyncio.get_running_loop().create_task(self._run(self._line, shutdown)))

    async def _run(self, line: str, shutdown: Shutdown) -> None:
        try:
            environ = {**os.environ, environment.FILE: self._file}
            process = await asyncio.create_subprocess_shell(line, env=environ)
            self.status = await process.wait()
        finally:
            shutdown.ask()
