"""`polywire serve`: one service, as the whole of this process."""

from __future__ import annotations

from pathlib import Path

import click

from polywire.cli.options import log_option, profile_option, system_option
from polywire.errors import SetupError
from polywire.net.loop import run
from polywire.system.file import ServiceEntry, Wires, load
from polywire.system.importing import add_to_path, load_app
from polywire.system.instances import Instance
from polywire.system.loaded import LoadedCode
from polywire.system.outside import wires_at
from polywire.system.plan import Plan, plan
from polywire.system.process import DEFAULT_LISTEN
from polywire.system.serving import run_service, standalone
from polywire.system.supervised import Supervised
from polywire.telemetry.access_log import LogFormat


@click.command(short_help="Run one service in this process.")
@click.argument("service", metavar="SERVICE|MODULE:APP")
@click.option("--listen", metavar="ADDRESS", help="Where to listen: host:port or unix:/path.")
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="CONTRACT=ADDRESS",
    help="Where a contract is that MODULE:APP calls, as grpc://host:port or http://host:port. Repeatable.",
)
@click.option("--tasks", metavar="URL", help="What the tasks of MODULE:APP travel on, for example sqlite:bus.db.")
@click.option("--events", metavar="URL", help="What its events travel on.")
@click.option("--schedule", metavar="URL", help="Where its schedules and results are kept, sqlite:schedule.db.")
@system_option
@profile_option
@log_option
def command(
    service: str,
    listen: str | None,
    targets: tuple[str, ...],
    tasks: str | None,
    events: str | None,
    schedule: str | None,
    file: str | None,
    profile: str | None,
    log_format: LogFormat,
) -> None:
    """Run one service: SERVICE of the system file, or an app by itself.

    SIGTERM or Ctrl-C drains: calls under way are finished first. A second one ends it at once.

    \b
        polywire serve inventory
        polywire serve shop.inventory:app --listen 127.0.0.1:8001
        polywire serve shop.mail:app --tasks amqp://localhost/
    """
    supervised = Supervised.from_environment()
    try:
        if ":" in service:
            wires = wires_at(tasks=tasks, events=events, schedule=schedule)
            made, name = _app_plan(service, listen, targets, wires)
        else:
            made, name = _service_plan(service, listen, file, profile), service
        instance = Instance.from_environment(name)
        run(run_service(made, name, format=log_format, supervised=supervised, instance=instance))
    except BaseException as error:
        LoadedCode(supervised).tell_failure(error)
        if supervised is None or not isinstance(error, SetupError):
            raise
        supervised.failed(str(error))
        raise SystemExit(1) from error


def _service_plan(name: str, listen: str | None, file: str | None, profile: str | None) -> Plan:
    system = load(file, profile=profile)
    if listen is not None:
        system = system.with_listen({name: listen})
    return plan(system, only=[name])


def _app_plan(path: str, listen: str | None, targets: tuple[str, ...], bus: Wires) -> tuple[Plan, str]:
    add_to_path(Path.cwd())
    app = load_app(path)
    entry = ServiceEntry(name=app.name, app=path, listen=(listen or DEFAULT_LISTEN,))
    return standalone(app, entry, dict(_target(text) for text in targets), bus), app.name


def _target(text: str) -> tuple[str, tuple[str, ...]]:
    contract, equals, address = text.partition("=")
    if not equals or not contract or not address:
        raise SetupError(
            f"--target {text!r} is not CONTRACT=ADDRESS, for example shop.v1.Inventory=grpc://127.0.0.1:8001."
        )
    return contract, tuple(address.split(","))
