"""Which channel a call of this process takes: the service that implements the contract, its address, its wire."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from polywire.bus.sending import Sender
from polywire.channel import CallDefaults, Channel, Endpoints
from polywire.client import client_for
from polywire.clock import SYSTEM_CLOCK, Clock
from polywire.connecting import RemoteWire
from polywire.contract import Contract, service_of
from polywire.errors import SetupError
from polywire.interceptor import Interceptor
from polywire.policy.levels import Levels
from polywire.system.faults import Faults
from polywire.system.file import Wire, Wires
from polywire.wire.local import LocalWire
from polywire.wire.seam import Dispatcher, EndpointWire

C = TypeVar("C", bound=Contract)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A service as its callers see it."""

    name: str
    addresses: tuple[str, ...] = ()
    """Empty where it can only be reached inside of this process."""
    here: bool = False
    """It runs in this very process."""
    inside: bool = True
    """It belongs to the system, and is told for whom it is called."""


@dataclass(slots=True, kw_only=True)
class Wiring:
    """The channels of one process: one per target and wire, shared by all its clients, opened when first used."""

    targets: Mapping[str, Target]
    """By the full name of the contract."""
    wires: Wires = field(default_factory=Wires)
    always_local: bool = False
    """What is in this process is called inside of it, whatever the wires say: a whole system in one process."""
    defaults: CallDefaults = field(default_factory=CallDefaults)
    """What holds for calls to targets that have no levels."""
    levels: Mapping[str, Levels] = field(default_factory=dict)
    """What a system says about calls to its services, by their names."""
    token: Callable[[], str] | None = None
    caller: str | None = None
    """Who calls: to others of this process, which see no certificate, that is proof enough."""
    clock: Clock = SYSTEM_CLOCK
    open_remote: Callable[[Target, RemoteWire], Endpoints] | None = None
    interceptors: Sequence[Interceptor] = ()
    """Around the calls of its clients, the first one outermost."""
    faults: Faults | None = None
    """What goes wrong with its calls, on purpose."""
    sender: Sender | None = None
    """What tasks are sent by."""
    here: dict[str, Dispatcher] = field(default_factory=dict)
    """What runs in this process so far, by name of the service; the wirings of one process share it."""
    _channels: dict[tuple[str, Wire], Channel] = field(default_factory=dict)

    def client(self, contract: type[C]) -> C:
        """A typed client of *contract*. Raises SetupError where nobody implements it, or its wire cannot get there."""
        service = service_of(contract)
        if service.tasks and not service.rpcs:
            return client_for(contract, None, self.sender)
        full_name = service.full_name
        target = self.targets.get(full_name)
        if target is None:
            raise SetupError(
                f"Nobody implements {full_name}, and a client of it is needed. "
                f"The system has: {', '.join(sorted(self.targets)) or 'none'}."
            )
        channel = self._channel(target, self.wire_of(full_name))
        return client_for(contract, channel, self.sender, self.interceptors)

    def wire_of(self, contract: str) -> Wire:
        """The wire that calls to *contract* take. Raises SetupError where it cannot get there."""
        target = self.targets[contract]
        asked = self.wires.of(contract)
        if target.here and (self.always_local or contract not in self.wires.by_contract):
            # Services of one app do not leave the process to reach each other, unless they are told to.
            return "local"
        if asked == "local" and not target.here:
            raise SetupError(local_across_processes(contract, target.name))
        if asked != "local" and not target.addresses:
            raise SetupError(
                f"{contract} cannot be called over {asked}: service {target.name!r} has no address. "
                f"Give it `listen` or `address`."
            )
        return asked

    def _channel(self, target: Target, wire: Wire) -> Channel:
        channel = self._channels.get((target.name, wire))
        if channel is None:
            endpoints = self._local(target) if wire == "local" else self._remote(target, wire)
            if self.faults is not None:
                self.faults.mind(target.name, endpoints)
            channel = self._channels[target.name, wire] = Channel(
                target.name,
                endpoints,
                levels=self.levels.get(target.name) or Levels(system=self.defaults),
                token=self.token,
                inside=target.inside,
                clock=self.clock,
            )
        return channel

    def _local(self, target: Target) -> Endpoints:
        def open_wire(name: str) -> EndpointWire:
            return LocalWire(self.here[name], caller=self.caller, clock=self.clock)

        return Endpoints(_Here(self.here, target.name), open_wire, clock=self.clock)

    def _remote(self, target: Target, wire: RemoteWire) -> Endpoints:
        if self.open_remote is None:
            raise SetupError(
                f"Service {target.name!r} is not in this process, and nothing outside of it can be called."
            )
        return self.open_remote(target, wire)

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()


class _Here:
    """Finds a service of this process, once it runs."""

    refresh: float | None = None

    def __init__(self, here: Mapping[str, Dispatcher], name: str) -> None:
        self._here = here
        self._name = name

    async def resolve(self) -> Sequence[str]:
        if self._name not in self._here:
            raise OSError(f"service {self._name!r} of this process has not started yet")
        return (self._name,)


def local_across_processes(contract: str, service: str) -> str:
    """The end of the sentence with which the local wire is refused for a service elsewhere."""
    return (
        f"{contract} cannot be called over 'local': service {service!r} runs in another process. "
        "Choose grpc, connect or http, or run the whole system in one process with `polywire up --in-process`."
    )


def start_order(needs: Mapping[str, Iterable[str]]) -> list[str]:
    """Services, each after those it calls as far as that is possible; otherwise in the order given.

    *needs* has the services that each one calls. In reverse it is the order to stop them in.
    """
    ordered: list[str] = []
    visiting: set[str] = set()

    def visit(name: str) -> None:
        if name in visiting or name in ordered or name not in needs:
            return
        visiting.add(name)
        for needed in needs[name]:
            visit(needed)
        visiting.discard(name)
        ordered.append(name)

    for name in needs:
        visit(name)
    return ordered
