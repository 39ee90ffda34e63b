"""`polywire explain`: which policies apply to a call, and who says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import click

from polywire.cli import finding
from polywire.cli.options import profile_option, system_option
from polywire.contract import Rpc
from polywire.contract.policies import NOTHING, Fallback, Hedge, Policy
from polywire.policy.levels import ORDER, Held, Level, Levels, label, resolve
from polywire.system.file import SystemFile, load
from polywire.system.reading import dotted

Row = tuple[str, str, str, str]
"""Name, value, the level that says it, and where that stands."""

SECONDS = frozenset(
    {
        "after", "at_least", "attempt_timeout", "base", "base_time", "cap", "interval", "last_good", "max_open_time",
        "max_time", "open_time", "slow_after", "slow_floor", "timeout", "trial_time", "window",
    }
)  # fmt: skip
IN_THE_FILE = {"retry.attempts": "retries", "retry.base": "retry_base", "retry.cap": "retry_cap"}
"""What is spelled differently there."""


@click.command(short_help="Print which policies apply to a call.")
@click.argument("method", metavar="CONTRACT/METHOD")
@system_option
@profile_option
def command(method: str, file: str | None, profile: str | None) -> None:
    """Print every policy that applies to calls of a method, from caller to wire, and where each value comes from.

    A value is polywire's default, or it is said for the whole system, for the service, or for the method; the nearer
    one wins. What a single call asks for by `calling(...)` comes on top.
    """
    system = load(file, profile=profile)
    found = finding.find(finding.catalogue_of_system(system), method)
    levels = system.levels(found.service) if found.service else Levels(system=system.calls.said)
    held = resolve(found.rpc, levels.of(found.rpc))
    click.echo(_heading(found.rpc, found.service))
    rows = list(_rows(system, held, levels))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        cells = [f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)]
        click.echo("  ".join([*cells, row[3]]).rstrip())


def _heading(rpc: Rpc, service: str) -> str:
    heading = rpc.full_name + (f"  [{service}]" if service else "")
    if rpc.idempotent:
        return f"{heading}\nIdempotent: sent again wherever that may help.\n"
    return f"{heading}\nNot idempotent: sent again only where it certainly did not arrive, or was turned away.\n"


def _rows(system: SystemFile, held: Held, levels: Levels) -> Iterator[Row]:
    def row(name: str, value: str, source: str) -> Row:
        level = held.sources.get(source)
        return (name, value, "default" if level is None else level.name, _where(system, level, source))

    yield from _policy(held, Fallback, row)
    yield "deadline", "", "", ""
    yield row("  timeout", shown("timeout", held.timeout), "timeout")
    yield row("  attempt_timeout", shown("attempt_timeout", held.attempt_timeout), "attempt_timeout")
    yield row("  wait_for_ready", shown("", held.wait_for_ready), "wait_for_ready")
    yield "retry", "", "", ""
    for name in ("attempts", "base", "cap"):
        yield row(f"  {name}", shown(name, getattr(held.retry, name)), f"retry.{name}")
    yield from _budget(system, levels)
    for kind in ORDER[1:]:
        yield from _policy(held, kind, row)


def _budget(system: SystemFile, levels: Levels) -> Iterator[Row]:
    share, minimum = levels.budget()
    for name, value in (("budget_share", share), ("budget_minimum", minimum)):
        said: list[Level] = [
            Level(name=level, said=defaults, place=place)
            for level, defaults, place in (
                ("service", levels.service, levels.service_place),
                ("system", levels.system, ("calls",)),
            )
            if getattr(defaults, name) is not None
        ]
        level = said[0] if said else None
        yield (
            f"  {name}",
            f"{value:g}",
            "default" if level is None else level.name,
            _where(system, level, name),
        )


def _policy(held: Held, kind: type[Policy], row: Callable[[str, str, str], Row]) -> Iterator[Row]:
    name, found = label(kind), held.policies.get(kind)
    why = _never(held.rpc, kind)
    if why:
        yield name, "never", "", why
    elif found is None:
        yield row(name, "off", "")
    elif not found.enabled:
        yield row(name, "off", f"{name}.enabled")
    else:
        yield name, "on", "", ""
        for one in fields(found):
            value = getattr(found, one.name)
            if one.name not in ("enabled", "given") and value is not NOTHING and value != {}:
                yield row(f"  {one.name}", shown(one.name, value), f"{name}.{one.name}")


def _never(rpc: Rpc, kind: type[Policy]) -> str:
    """Why a policy cannot apply to *rpc*, whatever is declared."""
    if kind is Fallback and rpc.streams_responses:
        return "nothing can stand in for a stream"
    if kind is Hedge and not rpc.idempotent:
        return "the method is not idempotent"
    if kind is Hedge and (rpc.streams_requests or rpc.streams_responses):
        return "a stream is not sent twice"
    return ""


def _where(system: SystemFile, level: Level | None, source: str) -> str:
    if level is None:
        return ""
    if level.place is None:
        return "the contract"
    key = IN_THE_FILE.get(source)
    path = (*level.place, *((key,) if key is not None else source.split(".")))
    return f"{system.settings.where(path)}: {dotted(path)}"


def shown(name: str, value: Any) -> str:
    """A value with its unit."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"{value:g} s" if name in SECONDS else f"{value:g}"
    if isinstance(value, tuple):
        return ", ".join(one.__name__ for one in value)
    if isinstance(value, dict):
        return ", ".join(f"{key} = {one:g}" for key, one in value.items())
    return value if isinstance(value, str) else getattr(value, "__qualname__", repr(value))
