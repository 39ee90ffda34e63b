"""A service that runs as several processes on one port."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from polywire.errors import SetupError
from polywire.net.sharing import SharedPort
from polywire.system.plan import Plan

VARIABLE = "POLYWIRE_INSTANCE"
"""In the process of an instance: its number, and the port it shares."""

Ports = Mapping[str, SharedPort]
"""The ports of services that run as several processes, by name of the service."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One of the processes of a service."""

    service: str
    index: int
    """From 0."""
    port: SharedPort

    @property
    def label(self) -> str:
        """As it is called in logs, `inventory#1` for the first."""
        return f"{self.service}#{self.index + 1}"

    def environ(self) -> dict[str, str]:
        """What its process has to find in its environment, besides the port's descriptors."""
        return {VARIABLE: f"{self.index}:{self.port.handed_down()}"}

    @classmethod
    def from_environment(cls, service: str) -> Instance | None:
        """The instance that this process is to be; None where it is the service's only one."""
        index, _, port = os.environ.pop(VARIABLE, "").partition(":")
        return cls(service=service, index=int(index), port=SharedPort.inherited(port)) if port else None


@contextlib.contextmanager
def shared_ports(made: Plan) -> Iterator[Ports]:
    """Listen for every service of the plan that has several instances. Raises SetupError where that cannot be."""
    ports: dict[str, SharedPort] = {}
    try:
        for name in made.apps:
            entry = made.system.services[name]
            if entry.instances > 1:
                try:
                    ports[name] = SharedPort.open(entry.listen or (), entry.instances)
                except SetupError as error:
                    raise SetupError(f"Service {name!r} did not start: {error}") from error
        yield ports
    finally:
        for port in ports.values():
            port.close(remove=True)


def instances_of(made: Plan, ports: Ports) -> dict[str, Instance | None]:
    """The processes to run, by label; None for a service that has only one."""
    found: dict[str, Instance | None] = {}
    for name in made.apps:
        if name not in ports:
            found[name] = None
            continue
        for index in range(made.system.services[name].instances):
            instance = Instance(service=name, index=index, port=ports[name])
            found[instance.label] = instance
    return found
