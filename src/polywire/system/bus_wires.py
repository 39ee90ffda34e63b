"""What tasks and events travel on, as `[wires]` says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from polywire.bus.backend.opening import EVENTS, TASKS
from polywire.bus.core.urls import scheme_of
from polywire.errors import SetupError
from polywire.system.reading import Table, did_you_mean, shown


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendUrls:
    """The URL of a backend for each contract (of tasks) or topic (of events)."""

    default: str | None = None
    by_name: Mapping[str, str] = field(default_factory=dict)

    def of(self, name: str) -> str | None:
        return self.by_name.get(name, self.default)

    @property
    def urls(self) -> tuple[str, ...]:
        """Each once."""
        return tuple(dict.fromkeys(url for url in (self.default, *self.by_name.values()) if url is not None))

    def beside(self, directory: Path) -> BackendUrls:
        """The same, with the files of embedded backends looked for in *directory*."""
        return BackendUrls(
            default=None if self.default is None else beside(self.default, directory),
            by_name={name: beside(url, directory) for name, url in self.by_name.items()},
        )


def beside(url: str, directory: Path) -> str:
    """*url*, with the file of an embedded backend looked for in *directory*."""
    if scheme_of(url) != "sqlite":
        return url
    path = url.partition(":")[2]
    return url if path.startswith("/") else f"sqlite:{directory / path}"


def bus_wires(table: Table, key: str) -> BackendUrls:
    """`tasks` or `events` of `[wires]`: one URL, or a table of them with `default`."""
    value = table.raw(key)
    if value is None:
        return BackendUrls()
    if isinstance(value, dict):
        inner = Table(table.settings, (*table.path, key), value, f"[wires.{key}]")
        found = {name: _url(inner, name, key, url) for name, url in value.items()}
        return BackendUrls(default=found.pop("default", None), by_name=found)
    return BackendUrls(default=_url(table, key, key, value))


def check_schedule_url(url: str) -> None:
    """Raises SetupError where nothing of that scheme keeps schedules."""
    if scheme_of(url) != "sqlite":
        raise SetupError(f"schedule = {scheme_of(url) + ':...'!r} was not opened. Schedules are kept in 'sqlite:PATH'.")


def schedule_wire(table: Table) -> str | None:
    """`schedule` of `[wires]`: where schedules, results and the index of dead letters are kept."""
    value = table.text("schedule")
    if value is not None and scheme_of(value) != "sqlite":
        raise table.error("schedule", f"is a {scheme_of(value)!r} URL. Schedules are kept in 'sqlite:PATH'.")
    return value


def _url(table: Table, key: str, use: str, value: object) -> str:
    if not isinstance(value, str):
        raise table.error(key, f"is {shown(value)}. It has to be the URL of a backend, for example 'sqlite:bus.db'.")
    mine, others = (TASKS, EVENTS) if use == "tasks" else (EVENTS, TASKS)
    scheme = scheme_of(value)
    if scheme not in mine:
        # The rest of it may have a password.
        problem = f"carries no {use}" if scheme in others else "is no backend"
        choices = ", ".join(f"{name}:" for name in sorted(mine))
        raise table.error(
            key, f"is a {scheme!r} URL, which {problem}. {did_you_mean(scheme, mine)}Choose one of: {choices}."
        )
    return str(value)
