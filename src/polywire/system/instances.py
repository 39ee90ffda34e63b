"""A service whose port outlives its processes: because it runs as several, or because one takes another's place."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from polywire.errors import SetupError
from polywire.net.sharing import SharedPort
from polywire.system.plan import Plan

VARIABLE = "POLYWIRE_INSTANCE"
"""In the process of an instance: its number, and the ports that it shares."""
GENERATIONS = 4
"""Processes that may be there at a time for one that is reloaded: one that serves or starts, the others draining."""

Ports = Mapping[str, SharedPort]
"""The ports that outlive processes, by name of the service; and by label those that are one instance's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One of the processes of a service."""

    service: str
    index: int
    """From 0."""
    count: int
    """How many instances the service has."""
    port: SharedPort
    place: int
    """In the table of *port*; not the index where processes take each other's place."""
    own: SharedPort | None = None
    """The port of this instance alone, where processes take each other's place; otherwise it opens one itself."""

    @property
    def label(self) -> str:
        """As it is called in logs, `inventory#1` for the first of several."""
        return self.service if self.count == 1 else f"{self.service}#{self.index + 1}"

    @property
    def places(self) -> range:
        """Where in the table this instance, or its successors, may be."""
        return range(self.index, self.port.counts.size, self.count)

    def at(self, place: int) -> Instance:
        """The same for another process."""
        return replace(self, place=place)

    @property
    def descriptors(self) -> list[int]:
        """Of the files that its process needs."""
        return [*self.port.descriptors, *(() if self.own is None else self.own.descriptors)]

    def environ(self) -> dict[str, str]:
        """What its process has to find in its environment, besides the descriptors."""
        told: dict[str, int | str] = {"index": self.index, "count": self.count, "place": self.place}
        told["port"] = self.port.handed_down()
        if self.own is not None:
            told["own"] = self.own.handed_down()
        return {VARIABLE: json.dumps(told)}

    @classmethod
    def from_environment(cls, service: str) -> Instance | None:
        """The instance that this process is to be; None where its port is its own affair."""
        text = os.environ.pop(VARIABLE, "")
        if not text:
            return None
        told = json.loads(text)
        port = SharedPort.inherited(told.pop("port"))
        own = SharedPort.inherited(told.pop("own")) if "own" in told else None
        return cls(service=service, port=port, own=own, **told)


@contextlib.contextmanager
def shared_ports(made: Plan, *, reload: bool = False) -> Iterator[Ports]:
    """Listen for every service of the plan that has several instances, or for all that will be *reload*ed. Raises
    SetupError where that cannot be."""
    ports: dict[str, SharedPort] = {}
    try:
        for name in made.apps:
            entry = made.system.services[name]
            if entry.instances > 1 or reload:
                size = entry.instances * (GENERATIONS if reload else 1)
                ports[name] = _open(name, entry.listen or (), size)
            if entry.instances > 1 and reload:
                for index, address in enumerate(entry.address or ()):
                    ports[f"{name}#{index + 1}"] = _open(name, (address,), 1)
        yield ports
    finally:
        for port in ports.values():
            port.close(remove=True)


def _open(name: str, addresses: tuple[str, ...], size: int) -> SharedPort:
    try:
        return SharedPort.open(addresses, size)
    except SetupError as error:
        raise SetupError(f"Service {name!r} did not start: {error}") from error


def instances_of(made: Plan, ports: Ports) -> dict[str, Instance | None]:
    """The processes to run, by label; None for a service whose only process opens its port itself."""
    found: dict[str, Instance | None] = {}
    for name in made.apps:
        if name not in ports:
            found[name] = None
            continue
        count = made.system.services[name].instances
        for index in range(count):
            instance = Instance(service=name, index=index, count=count, port=ports[name], place=index)
            found[instance.label] = replace(instance, own=ports.get(instance.label) if count > 1 else None)
    return found
