"""A whole system in one process and without a port, for tests of services together."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any, TypeVar

from polywire.channel import CallDefaults
from polywire.clock import SYSTEM_CLOCK, Clock
from polywire.contract import Contract, contracts_of, service_of
from polywire.errors import SetupError
from polywire.services import Services
from polywire.system.app import App, Key
from polywire.system.assembly import assemble, implemented
from polywire.system.hosting import hosting
from polywire.system.wiring import Target, Wiring
from polywire.wire.seam import Dispatcher

C = TypeVar("C", bound=Contract)
T = TypeVar("T")

FAKES = "replaced"
"""The name of the service that the fakes of a test stand for."""


class System:
    """What `testing.system` runs."""

    def __init__(self, wiring: Wiring, objects: Mapping[str, list[Any]], given: Mapping[Key, Any]) -> None:
        self._wiring = wiring
        self._objects = objects
        self._given = given

    def client(self, contract: type[C]) -> C:
        """A client of *contract*, calling as somebody outside of the system would."""
        return self._wiring.client(contract)

    def service(self, cls: type[T]) -> T:
        """The object of a service class, to look inside. Raises SetupError where there is none."""
        for objects in self._objects.values():
            for found in objects:
                if isinstance(found, cls):
                    return found
        names = ", ".join(type(found).__qualname__ for objects in self._objects.values() for found in objects)
        raise SetupError(f"No service of class {cls.__qualname__} runs in this system. It has: {names or 'none'}.")


@contextlib.asynccontextmanager
async def system(
    *apps: App,
    replace: Mapping[Any, object] | None = None,
    clock: Clock = SYSTEM_CLOCK,
    defaults: CallDefaults | None = None,
) -> AsyncIterator[System]:
    """Run *apps* in this process, calling each other over the local wire, until the end of the block.

    *replace* puts something of the test in the place of a contract's implementation (`{Payments: FakePayments()}`; the
    fake implements the contract) or of a resource (`{Ledger: Ledger(":memory:")}`, or a `Key` where it has a name).
    Deadlines and retries go by *clock*, and a service or resource that asks for a `Clock` gets it.

    Raises SetupError where a service needs something that is neither in the apps nor replaced.
    """
    fakes, given = _sorted(replace or {})
    given.setdefault(Key(Clock), clock)
    by_name = _named(apps)
    without = frozenset(fakes)
    assemblies = {name: assemble(app, given=given, without=without) for name, app in by_name.items()}
    wiring = Wiring(
        targets=_targets(by_name, fakes), always_local=True, clock=clock, defaults=defaults or CallDefaults()
    )
    objects: dict[str, list[Any]] = {}
    dispatchers: list[Services] = []

    def make(name: str, made: list[Any]) -> Dispatcher:
        objects[name] = made
        dispatchers.append(Services(made, clock=clock))
        return dispatchers[-1]

    if fakes:
        wiring.here[FAKES] = make(FAKES, list(dict.fromkeys(fakes.values())))
    async with hosting(assemblies, dict.fromkeys(assemblies, wiring), make, given=given):
        try:
            yield System(wiring, objects, given)
        finally:
            for dispatcher in reversed(dispatchers):
                await dispatcher.finish(0.0)


def _sorted(replace: Mapping[Any, object]) -> tuple[dict[type[Contract], object], dict[Key, Any]]:
    """Fakes of contracts, and values for resources."""
    fakes: dict[type[Contract], object] = {}
    given: dict[Key, Any] = {}
    for what, value in replace.items():
        if isinstance(what, type) and issubclass(what, Contract):
            if what not in contracts_of(type(value)):
                raise SetupError(
                    f"replace={{{what.__qualname__}: {type(value).__qualname__}(...)}}: the fake does not implement "
                    f"the contract. Derive it, `class {type(value).__name__}({what.__qualname__}): ...`."
                )
            fakes[what] = value
        else:
            given[what if isinstance(what, Key) else Key(what)] = value
    return fakes, given


def _named(apps: tuple[App, ...]) -> dict[str, App]:
    by_name: dict[str, App] = {}
    for app in apps:
        if by_name.setdefault(app.name, app) is not app:
            raise SetupError(f"Two apps of the system are called {app.name!r}. Give each a name of its own.")
    return by_name


def _targets(apps: Mapping[str, App], fakes: Mapping[type[Contract], object]) -> dict[str, Target]:
    targets = {full_name: Target(name=name, here=True) for full_name, (name, _contract) in implemented(apps).items()}
    targets |= {service_of(contract).full_name: Target(name=FAKES, here=True) for contract in fakes}
    return targets
