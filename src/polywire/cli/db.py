"""`polywire db`: the schema of the stores of a system."""

from __future__ import annotations

import asyncio
import contextlib
import os

import click

from polywire.bus.backend.sqlite_schema import path_of
from polywire.cli.options import profile_option, system_option
from polywire.durable.migrations import Mode, State, Visit, visiting
from polywire.durable.store.apsw import SqliteStore
from polywire.durable.store.seam import Store
from polywire.errors import SetupError
from polywire.system.app import Resource
from polywire.system.assembly import Assembly
from polywire.system.file import SystemFile, load
from polywire.system.plan import GIVEN, plan


@click.group(short_help="Upgrade the schema of stores.")
def command() -> None:
    """Upgrade the schema of the stores that the apps of the system have as resources, and look at it."""


@command.command(short_help="Say how far each schema is.")
@system_option
@profile_option
def status(file: str | None, profile: str | None) -> int:
    """Print each store with the versions of its schema. The status is 1 where something is missing or wrong."""
    visit = asyncio.run(_visit(load(file, profile=profile), "look"))
    for store, states in visit.found:
        click.echo(f"{store.name}")
        for state in states:
            click.echo(f"  {state}")
    if not visit.found:
        click.echo("No app of the system has a store.")
    return int(any(state.missing or state.problem for _, states in visit.found for state in states))


@command.command(short_help="Apply what is missing.")
@system_option
@profile_option
def upgrade(file: str | None, profile: str | None) -> None:
    """Apply the migrations that stores lack, each store in one transaction. What is up to date is left alone."""
    visit = asyncio.run(_visit(load(file, profile=profile), "upgrade"))
    for store, states in visit.found:
        steps = [f"{state.component} {step.version} ({step.name})" for state in states for step in state.missing]
        click.echo(f"{store.name}: {'applied ' + ', '.join(steps) if steps else 'up to date'}")
    if not visit.found:
        click.echo("No app of the system has a store.")


async def _visit(system: SystemFile, mode: Mode) -> Visit:
    made = plan(system)
    with visiting(mode) as visit:
        if system.wires.schedule is not None:
            async with SqliteStore(_schedule_path(system, system.wires.schedule), name="schedule"):
                pass
        for assembly in made.assemblies.values():
            for resource in assembly.resources:
                if _is_store(resource):
                    await _open(assembly, resource)
    return Visit(mode, _each_once(visit.found))


def _schedule_path(system: SystemFile, url: str) -> str:
    path = url.partition(":")[2]
    return path_of(url) if path.startswith("/") else os.path.join(system.directory, path)


def _is_store(resource: Resource) -> bool:
    wanted = resource.key.type
    return wanted is Store or (isinstance(wanted, type) and issubclass(wanted, SqliteStore))


async def _open(assembly: Assembly, store: Resource) -> None:
    """Open one resource, and before it what it needs, and close them again."""
    async with contextlib.AsyncExitStack() as stack:
        opened: dict[Resource, object] = {}
        for resource in assembly.resources:
            if resource in _needed(assembly, store):
                opened[resource] = await stack.enter_async_context(
                    resource.open(_arguments(assembly, resource, opened))
                )


def _needed(assembly: Assembly, resource: Resource) -> list[Resource]:
    """It, and all that it needs."""
    found = [resource]
    for need in resource.needs:
        source = assembly.sources[need]
        if isinstance(source, Resource):
            found += _needed(assembly, source)
    return found


def _arguments(assembly: Assembly, resource: Resource, opened: dict[Resource, object]) -> dict[str, object]:
    arguments: dict[str, object] = {}
    for need in resource.needs:
        source = assembly.sources[need]
        if isinstance(source, Resource):
            arguments[need.parameter] = opened[source]
        elif source is None:
            arguments[need.parameter] = need.default
        elif isinstance(source, type) or GIVEN.get(source) is None:
            raise SetupError(
                f"The stores of app {assembly.app.name!r} were not looked at: its resource {resource.label!r} needs "
                f"'{need.parameter}: {need.key}', which is there only while the system runs. Let the store do without."
            )
        else:
            arguments[need.parameter] = GIVEN[source]
    return arguments


def _each_once(found: list[tuple[Store, list[State]]]) -> list[tuple[Store, list[State]]]:
    """Apps that share a file have it open one after the other; only the first one found it as it was."""
    seen: dict[object, tuple[Store, list[State]]] = {}
    for store, states in found:
        seen.setdefault(
            (getattr(store, "path", id(store)), tuple(state.component for state in states)), (store, states)
        )
    return list(seen.values())
