"""From an app to service objects: what is opened in which order, with what, and how it is undone."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from polywire.contract import Contract, service_of
from polywire.errors import SetupError
from polywire.system.app import App, Key, Need, Resource, ServiceClass

ClientFor = Callable[[type[Contract]], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """An app that runs."""

    services: list[Any]
    resources: list[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembly:
    """An app with every need met on paper; nothing is open yet."""

    app: App
    services: tuple[ServiceClass, ...]
    resources: tuple[Resource, ...]
    """In the order of opening: each after those it needs."""
    sources: Mapping[Need, Resource | Key | type[Contract] | None]
    """Where each need is met: by a resource, by something given from outside, by a client, or by its default."""
    clients: tuple[type[Contract], ...]
    """The contracts that clients are needed of."""

    @contextlib.asynccontextmanager
    async def running(self, client_for: ClientFor, given: Mapping[Key, Any]) -> AsyncIterator[Made]:
        """The service objects, for the length of the block, in the order of declaration, and what was opened for them.

        What was opened is closed in reverse order at its end, also where something fails to open. Raises SetupError
        that names the resource or service at fault.
        """
        async with contextlib.AsyncExitStack() as stack:
            opened: dict[Resource, Any] = {}

            def arguments(needs: tuple[Need, ...]) -> dict[str, Any]:
                return {need.parameter: self._value(need, opened, client_for, given) for need in needs}

            for resource in self.resources:
                with self._blamed(f"its resource {resource.label!r}"):
                    opened[resource] = await stack.enter_async_context(resource.open(arguments(resource.needs)))
            built = []
            for service in self.services:
                with self._blamed(f"its service {service.cls.__qualname__}"):
                    built.append(service.cls(**arguments(service.needs)))
            yield Made(services=built, resources=list(opened.values()))

    def _value(
        self, need: Need, opened: Mapping[Resource, Any], client_for: ClientFor, given: Mapping[Key, Any]
    ) -> Any:
        source = self.sources[need]
        if source is None:
            return need.default
        if isinstance(source, Resource):
            return opened[source]
        return given[source] if isinstance(source, Key) else client_for(source)

    @contextlib.contextmanager
    def _blamed(self, who: str) -> Any:
        try:
            yield
        except SetupError:
            raise
        except Exception as error:
            raise SetupError(
                f"app {self.app.name!r} did not start: {who} raised {type(error).__name__}: {error}"
            ) from error


def assemble(app: App, *, given: Mapping[Key, Any] | None = None, without: frozenset[Any] = frozenset()) -> Assembly:
    """Meet every need of *app* on paper.

    *given* are values from outside, which win over resources of the same type. *without* are the contracts that
    someone else implements in a test. Raises SetupError where a need cannot be met, or resources need each other in a
    circle.
    """
    given = given or {}
    all_services, all_resources = app.read()
    services = tuple(service for service in all_services if not without.intersection(service.contracts))
    resources = tuple(resource for resource in all_resources if resource.key not in given or resource.key.type is None)
    _refuse_ambiguity(app, resources)
    sources: dict[Need, Resource | Key | type[Contract] | None] = {}
    for service in services:
        for need in service.needs:
            sources[need] = _source(app, service.label, need, resources, given)
    for resource in resources:
        for need in resource.needs:
            sources[need] = _source(app, f"its resource {resource.label!r}", need, resources, given)
    clients = tuple(dict.fromkeys(source for source in sources.values() if isinstance(source, type)))
    return Assembly(
        app=app, services=services, resources=_in_order(app, resources, sources), sources=sources, clients=clients
    )


def _refuse_ambiguity(app: App, resources: tuple[Resource, ...]) -> None:
    seen: dict[Key, Resource] = {}
    for resource in resources:
        if resource.key.type is None:
            continue
        other = seen.setdefault(resource.key, resource)
        if other is not resource:
            raise SetupError(
                f"app {app.name!r} has two resources of type {resource.key}: {other.label!r} and {resource.label!r}. "
                f"Tell them apart: `-> AsyncIterator[{Key(resource.key.type, resource.label)}]`, and the same where "
                "it is asked for."
            )


def _source(
    app: App, who: str, need: Need, resources: tuple[Resource, ...], given: Mapping[Key, Any]
) -> Resource | Key | type[Contract] | None:
    if need.key in given:
        return need.key
    for resource in resources:
        if resource.key == need.key:
            return resource
    if is_contract(need.key.type):
        contract: type[Contract] = need.key.type
        return contract
    fitting = [resource for resource in resources if _fits(resource.key, need.key)]
    if len(fitting) == 1:
        return fitting[0]
    if need.optional:
        return None
    raise SetupError(_missing(app, who, need, resources, fitting))


def is_contract(wanted: Any) -> bool:
    return isinstance(wanted, type) and issubclass(wanted, Contract) and "__declared__" in vars(wanted)


def _fits(offered: Key, wanted: Key) -> bool:
    """Whether a resource of a subclass is offered where its base is asked for."""
    if offered.name != wanted.name or not isinstance(offered.type, type) or not isinstance(wanted.type, type):
        return False
    try:
        return wanted.type is not object and issubclass(offered.type, wanted.type)
    except TypeError:  # protocols that are not checkable at run time
        return False


def _missing(app: App, who: str, need: Need, resources: tuple[Resource, ...], fitting: list[Resource]) -> str:
    wanted = f"'{need.parameter}: {need.key}'"
    if fitting:
        names = " and ".join(repr(resource.label) for resource in fitting)
        return (
            f"{who} needs a {wanted}, but app {app.name!r} has more than one resource of that type: {names}. "
            "Ask for the exact type of one of them."
        )
    offered = ", ".join(f"{r.label} -> {r.key}" for r in resources if r.key.type is not None) or "none"
    advice = f"Add `@app.resource async def {need.parameter}() -> AsyncIterator[{need.key}]`."
    if isinstance(need.key.type, type) and issubclass(need.key.type, Contract):
        contract = next(base for base in need.key.type.__mro__ if is_contract(base))
        advice = f"To call a service, ask for its contract: '{need.parameter}: {contract.__qualname__}'."
    return f"{who} needs a {wanted}, but app {app.name!r} has no resource of that type. It has: {offered}. {advice}"


def _in_order(
    app: App,
    resources: tuple[Resource, ...],
    sources: Mapping[Need, Resource | Key | type[Contract] | None],
) -> tuple[Resource, ...]:
    """Resources, each after those it needs; otherwise as declared."""
    ordered: list[Resource] = []
    path: list[Resource] = []

    def visit(resource: Resource) -> None:
        if resource in ordered:
            return
        if resource in path:
            circle = " -> ".join(repr(r.label) for r in [*path[path.index(resource) :], resource])
            raise SetupError(
                f"The resources of app {app.name!r} need each other in a circle: {circle}. "
                "Merge two of them, or let one take what it needs later."
            )
        path.append(resource)
        for need in resource.needs:
            source = sources[need]
            if isinstance(source, Resource):
                visit(source)
        path.pop()
        ordered.append(resource)

    for resource in resources:
        visit(resource)
    return tuple(ordered)


def implemented(apps: Mapping[str, App]) -> dict[str, tuple[str, type[Contract]]]:
    """Who implements what: full name of the contract's service -> the name of the app in *apps*, and the contract.

    Raises SetupError where two of them implement the same contract.
    """
    found: dict[str, tuple[str, type[Contract]]] = {}
    for name, app in apps.items():
        for contract in app.contracts:
            full_name = service_of(contract).full_name
            if full_name in found and found[full_name][0] != name:
                raise SetupError(
                    f"{full_name} is implemented twice: by service {found[full_name][0]!r} and by service {name!r}. "
                    "Calls could not tell where to go; remove one of them from the system."
                )
            found[full_name] = (name, contract)
    return found
