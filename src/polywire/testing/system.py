"""A whole system in one process and without a port, for tests of services together."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import replace as replaced
from typing import Any, TypeVar

from polywire.bus.core import DeadLetter
from polywire.bus.sending import Bus, Sender
from polywire.channel import CallDefaults
from polywire.clock import SYSTEM_CLOCK, Clock
from polywire.contract import Contract, Event, contracts_of, service_of
from polywire.contract.policies import Shedding
from polywire.durable.store.seam import Store
from polywire.errors import SetupError
from polywire.policy.faults import Fault
from polywire.server import Certificates
from polywire.services import Services
from polywire.system.app import App, Key
from polywire.system.assembly import Assembly, Made, assemble, implemented
from polywire.system.consuming import BUS, part_of, stores_among
from polywire.system.fault_keys import check_calls, check_services
from polywire.system.faults import Faults
from polywire.system.hosting import hosting
from polywire.system.wiring import Target, Wiring
from polywire.testing.bus import MemoryBus, memory_bus, part_of_fakes
from polywire.wire.seam import Dispatcher

C = TypeVar("C", bound=Contract)
T = TypeVar("T")
E = TypeVar("E", bound=Event)

FAKES = "replaced"
"""The name of the service that the fakes of a test stand for."""
OUTSIDE = "test"
"""Who a test is to the services that it calls."""


class System:
    """What `testing.system` runs."""

    def __init__(
        self, wirings: Mapping[str, Wiring], objects: Mapping[str, list[Any]], bus: MemoryBus, sender: Sender
    ) -> None:
        self._wirings = dict(wirings)
        self._callers = {OUTSIDE: self._wirings[OUTSIDE]}
        self._switched: list[Fault] = []
        self._objects = objects
        self._bus = bus
        self.bus = Bus(sender)
        """To publish events as somebody outside of the system would."""

    def client(self, contract: type[C], *, caller: str = OUTSIDE) -> C:
        """A client of *contract*, calling as somebody outside of the system would, who is known as *caller*."""
        wiring = self._callers.get(caller)
        if wiring is None:
            outside = self._callers[OUTSIDE]
            faults = Faults(caller, clock=outside.clock)
            faults.switch(self._switched)
            wiring = self._callers[caller] = replaced(outside, caller=caller, faults=faults, _channels={})
        return wiring.client(contract)

    @contextlib.contextmanager
    def fault(
        self,
        caller: str,
        target: str | type[Contract],
        method: str | None = None,
        *,
        delay: float | None = None,
        error: str | None = None,
        drop: str | None = None,
        partition: bool = False,
        bandwidth: float | None = None,
        share: float = 1.0,
    ) -> Iterator[Fault]:
        """Let something go wrong with the calls of *caller* to *target* that begin inside the block.

        *caller* is the name of an app, of a client's `caller`, or `*` for all; *target* that of an app, or a contract,
        for whoever implements it; see `polywire.policy.faults.Fault` for the rest. Raises SetupError for an edge that
        there is not.
        """
        wiring = self._wirings[OUTSIDE]
        services = {one.name for one in wiring.targets.values()}
        owners = {full_name: one.name for full_name, one in wiring.targets.items()}
        name = target if isinstance(target, str) else owners.get(service_of(target).full_name, "")
        made = Fault(
            caller=caller,
            target=name or str(target),
            method=method,
            delay=delay,
            error=error,
            drop=drop,
            partition=partition,
            bandwidth=bandwidth,
            share=share,
        )
        check_services(made, sorted({*services, *self._wirings, *self._callers}))
        check_calls(made, {}, owners, {})
        self._switch([*self._switched, made])
        try:
            yield made
        finally:
            self._switch([one for one in self._switched if one is not made])

    def _switch(self, faults: list[Fault]) -> None:
        self._switched = faults
        # A client may call by the name of an app: that app meets the fault all the same.
        for wiring in (*self._wirings.values(), *self._callers.values()):
            if wiring.faults is not None:
                wiring.faults.switch(faults)

    async def _close(self) -> None:
        for wiring in self._callers.values():
            await wiring.close()

    def service(self, cls: type[T]) -> T:
        """The object of a service class, to look inside. Raises SetupError where there is none."""
        for objects in self._objects.values():
            for found in objects:
                if isinstance(found, cls):
                    return found
        names = ", ".join(type(found).__qualname__ for objects in self._objects.values() for found in objects)
        raise SetupError(f"No service of class {cls.__qualname__} runs in this system. It has: {names or 'none'}.")

    async def settled(self) -> None:
        """Return once nothing is under way: every task and event that could be handled by now was, with all that came
        of it. What waits for its time (a delay, the next attempt) waits on; let a ManualClock go on, and ask again.

        Raises AssertionError that names what is still under way where that does not end.
        """
        await self._bus.settled()

    def published(self, event: type[E]) -> list[E]:
        """The events of this class that were published so far, in order."""
        return self._bus.published(event)

    def enqueued(self, task: Callable[..., Any]) -> list[Any]:
        """What this task was sent so far, in order: `system.enqueued(Mail.send_confirmation)`. Schedules and direct
        calls count as well."""
        return self._bus.enqueued(task)

    async def dead(self, where: Callable[..., Any]) -> list[DeadLetter]:
        """The dead letters of a task (`Mail.send_confirmation`) or of a subscribed method (`Warehouse.pack`)."""
        return await self._bus.dead(where)


@contextlib.asynccontextmanager
async def system(
    *apps: App,
    replace: Mapping[Any, object] | None = None,
    clock: Clock = SYSTEM_CLOCK,
    defaults: CallDefaults | None = None,
    shedding: Shedding | None = None,
) -> AsyncIterator[System]:
    """Run *apps* in this process, calling each other over the local wire, until the end of the block.

    *replace* puts something of the test in the place of a contract's implementation (`{Payments: FakePayments()}`; the
    fake implements the contract) or of a resource (`{Ledger: Ledger(":memory:")}`, or a `Key` where it has a name).
    Deadlines and retries go by *clock*, and a service or resource that asks for a `Clock` gets it. Who calls is known:
    an app by its name, and a test as `"test"` or what it says. No call is turned away for there being many, unless
    *shedding* says so: a test that makes hundreds at once means them all.

    Raises SetupError where a service needs something that is neither in the apps nor replaced.
    """
    fakes, given = _sorted(replace or {})
    given.setdefault(Key(Clock), clock)
    given.setdefault(BUS, None)
    by_name = _named(apps)
    without = frozenset(fakes)
    assemblies = {name: assemble(app, given=given, without=without) for name, app in by_name.items()}
    wiring = Wiring(
        targets=_targets(by_name, fakes), always_local=True, clock=clock, defaults=defaults or CallDefaults()
    )
    objects: dict[str, list[Any]] = {}
    dispatchers: list[Services] = []

    stores: dict[str, list[Store]] = {}

    def make(name: str, made: Made) -> Dispatcher:
        objects[name] = made.services
        stores[name] = [*stores_among(made.resources), *stores_among(given.values())]
        callable_objects = [one for one in made.services if contracts_of(type(one))]
        interceptors = assemblies[name].app.interceptors if name in assemblies else ()
        dispatchers.append(
            Services(
                callable_objects,
                authenticator=Certificates(),
                interceptors=interceptors,
                shedding=shedding or Shedding(enabled=False),
                clock=clock,
            )
        )
        return dispatchers[-1]

    if fakes:
        wiring.here[FAKES] = make(FAKES, Made(services=list(dict.fromkeys(fakes.values())), resources=[]))
    async with memory_bus(clock) as bus:
        senders = {name: bus.sender(name) for name in (*assemblies, OUTSIDE)}
        wirings = {name: _wiring_of(name, wiring, assemblies.get(name), sender) for name, sender in senders.items()}
        await bus.declare([part_of(assembly) for assembly in assemblies.values()])
        await bus.declare([part_of_fakes(fakes)])
        with_bus = {name: {**given, BUS: Bus(senders[name])} for name in assemblies}
        async with hosting(assemblies, {name: wirings[name] for name in assemblies}, make, given=with_bus):
            made = System(wirings, objects, bus, senders[OUTSIDE])
            try:
                await bus.consume(objects, stores, senders[OUTSIDE])
                yield made
            finally:
                await bus.stop()
                for dispatcher in reversed(dispatchers):
                    await dispatcher.finish(0.0)
                await made._close()


def _wiring_of(name: str, wiring: Wiring, assembly: Assembly | None, sender: Sender) -> Wiring:
    """The wiring of one caller: an app, or whoever calls from outside of them."""
    return replaced(
        wiring,
        sender=sender,
        interceptors=() if assembly is None else assembly.app.client_interceptors,
        caller=name,
        faults=Faults(name, clock=wiring.clock),
        _channels={},
    )


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
