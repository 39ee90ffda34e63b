"""`polywire system`: what the system file says, and whether it can be."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from polywire.bus.core.urls import masked
from polywire.cli.options import profile_option
from polywire.system.file import SystemFile, load
from polywire.system.plan import plan
from polywire.system.positions import Path as Keys
from polywire.system.reading import dotted


@click.group(short_help="Look at the system file.")
def command() -> None:
    """Look at the system file."""


@command.command(short_help="Check that the system can start.")
@click.argument("file", required=False)
@profile_option
def check(file: str | None, profile: str | None) -> None:
    """Import every app and check that all fits together, without starting anything.

    Without a profile, each profile of the file is checked too, as far as the file itself goes.
    """
    system = load(file, profile=profile)
    made = plan(system)
    others = [] if profile is not None or system.profile is not None else _profiles(system.file)
    for other in others:
        load(file, profile=other)
    services = _counted(len(system.services), "service")
    contracts = _counted(len(made.owners), "contract")
    checked = f", and the profiles {', '.join(others)}" if others else ""
    click.echo(f"{system.file} is fine: {services}, {contracts}{checked}.")


@command.command(short_help="Print what holds.")
@click.argument("file", required=False)
@profile_option
def show(file: str | None, profile: str | None) -> None:
    """Print every key as it holds after the profile and the environment, and where it was said."""
    system = load(file, profile=profile)
    rows = [(f"{dotted(path)} = {_shown(value)}", system.settings.where(path)) for path, value in _leaves(system)]
    width = max(len(row[0]) for row in rows)
    for text, where in rows:
        click.echo(f"{text:<{width}}  # {where}")


def _shown(value: Any) -> str:
    return json.dumps(masked(value) if isinstance(value, str) else value)


def _leaves(system: SystemFile) -> Iterator[tuple[Keys, Any]]:
    def walk(values: dict[str, Any], path: Keys) -> Iterator[tuple[Keys, Any]]:
        for key, value in values.items():
            if isinstance(value, dict):
                yield from walk(value, (*path, key))
            else:
                yield (*path, key), value

    yield from walk(system.settings.values, ())


def _profiles(file: str) -> list[str]:
    return list(tomllib.loads(Path(file).read_text(encoding="utf-8")).get("profiles", {}))


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
