"""The schema of a store: what each component needs, step by step, and what of it the database has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from polywire.errors import SetupError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from polywire.durable.store.seam import Store

TABLE = """CREATE TABLE IF NOT EXISTS polywire_schema (
    component TEXT NOT NULL, version INTEGER NOT NULL, name TEXT NOT NULL, applied DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (component, version))"""
APP = "app"
"""The component of a service's own tables."""

Row = tuple[str, int, str]
"""Component, version, name: what the database has."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One step of a component's schema. Once it was applied somewhere it is never edited: what is to change comes in
    the next one."""

    version: int
    """1, 2, 3, and so on."""
    name: str
    """For people: `add the currency`."""
    sql: str
    """One or more statements. They run in one transaction with the other missing steps."""


@dataclass(frozen=True, slots=True)
class Applied:
    component: str
    migration: Migration


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """How far the schema of one component is."""

    component: str
    version: int
    """That of the database; 0 where it has nothing yet."""
    wanted: int
    """The program's."""
    missing: tuple[Migration, ...] = ()
    problem: str = ""
    """Why the program must not use it: a sentence or more."""

    def __str__(self) -> str:
        if self.problem:
            return f"{self.component}: {self.problem}"
        if not self.missing:
            return f"{self.component}: version {self.version}, up to date"
        steps = ", ".join(f"{step.version} ({step.name})" for step in self.missing)
        return f"{self.component}: version {self.version} of {self.wanted}, missing {steps}"


Components = Mapping[str, Sequence[Migration]]


def check_components(components: Components) -> None:
    """Raises SetupError where versions are not 1, 2, 3, ..."""
    for component, steps in components.items():
        versions = [step.version for step in steps]
        if versions != list(range(1, len(steps) + 1)):
            raise SetupError(
                f"The migrations of {component!r} have the versions {', '.join(map(str, versions))}. "
                "Number them 1, 2, 3 and so on, in order."
            )


def states_of(components: Components, rows: Iterable[Row]) -> list[State]:
    """The states of all components that the program knows; *rows* are those of the database. Others may be there:
    several programs can share one."""
    found: dict[str, dict[int, str]] = {}
    for component, version, name in rows:
        found.setdefault(component, {})[version] = name
    return [_state(component, steps, found.get(component, {})) for component, steps in components.items()]


def _state(component: str, steps: Sequence[Migration], applied: Mapping[int, str]) -> State:
    version = max(applied, default=0)
    return State(
        component=component,
        version=version,
        wanted=len(steps),
        missing=tuple(step for step in steps if step.version not in applied),
        problem=_problem(component, steps, applied),
    )


def _problem(component: str, steps: Sequence[Migration], applied: Mapping[int, str]) -> str:
    newest = max(applied, default=0)
    if newest > len(steps):
        return (
            f"The schema of {component!r} has version {newest} there, and this program knows version {len(steps)}. "
            "Start the newer program, or restore a backup from before."
        )
    for step in steps:
        name = applied.get(step.version, step.name)
        if name != step.name:
            return (
                f"Version {step.version} of the schema of {component!r} was applied as {name!r}, and is {step.name!r} "
                "in this program. Leave migrations as they were applied, and add the change as a new one."
            )
    return ""


def missing_of(store: str, states: Iterable[State]) -> list[Applied]:
    """What is to be applied, in order. Raises SetupError where the program must not use the database."""
    states = list(states)
    for state in states:
        if state.problem:
            raise SetupError(f"Store {store!r} was not opened. {state.problem}")
    return [Applied(state.component, step) for state in states for step in state.missing]


def out_of_date(store: str, missing: Sequence[Applied]) -> SetupError:
    steps = ", ".join(f"{step.component} {step.migration.version} ({step.migration.name})" for step in missing)
    return SetupError(
        f"Store {store!r} was not opened: its schema is not up to date. Missing: {steps}. "
        "Run `polywire db upgrade`, or open the store with `upgrade=True`."
    )


# ---- what opening a store does about its schema ----------------------------------------------------------------------

Mode = Literal["upgrade", "look"]


@dataclass(slots=True)
class Visit:
    """Stores that are opened only to upgrade or look at their schema, and what came of it."""

    mode: Mode
    found: list[tuple[Store, list[State]]]
    """Each store with the states that it had when it was opened."""


_visit: ContextVar[Visit | None] = ContextVar("polywire_store_visit", default=None)


@contextmanager
def visiting(mode: Mode) -> Iterator[Visit]:
    """Stores that are opened inside the block are upgraded whatever they were told, or only looked at."""
    visit = Visit(mode, [])
    token = _visit.set(visit)
    try:
        yield visit
    finally:
        _visit.reset(token)


async def settle_schema(store: Store, *, upgrade: bool) -> None:
    """What a store does about its schema when it is opened. Raises SetupError where it has to be upgraded first."""
    visit = _visit.get()
    states = await store.states()
    if visit is not None:
        visit.found.append((store, states))
        if visit.mode == "look":
            return
    missing = missing_of(store.name, states)
    if missing and not upgrade and visit is None:
        raise out_of_date(store.name, missing)
    if missing:
        await store.upgrade()
