"""Finds a method by its name, and the service that has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polywire.contract import Contract, Rpc, service_of
from polywire.errors import SetupError
from polywire.system.addresses import noted
from polywire.system.app import App
from polywire.system.file import SystemFile
from polywire.system.importing import add_to_path, load_object
from polywire.system.plan import catalogue
from polywire.system.reading import did_you_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A method, and where it is."""

    contract: type[Contract]
    rpc: Rpc
    service: str
    """The name of the service in the system; empty if no service of the system implements it."""


Catalogue = Mapping[str, tuple[type[Contract], str]]


def catalogue_of_import(path: str) -> Catalogue:
    """The contracts at `module:attribute`: a contract itself, or those of an App. Raises SetupError for others."""
    add_to_path(Path.cwd())
    found: Any = load_object(path)
    if isinstance(found, App):
        return {service_of(contract).full_name: (contract, found.name) for contract in found.contracts}
    if isinstance(found, type) and issubclass(found, Contract):
        return {service_of(found).full_name: (found, "")}
    raise SetupError(f"{path!r} is neither a contract nor an App, but a {type(found).__name__}.")


def catalogue_of_system(system: SystemFile) -> Catalogue:
    return catalogue(system)


def find(known: Catalogue, name: str) -> Found:
    """The method *name*: `shop.v1.Inventory/check_stock` or `.../CheckStock`. Raises SetupError with the choices."""
    service, slash, method = name.strip("/").partition("/")
    if not slash:
        service, _, method = name.rpartition(".")
        if service not in known and name in known:
            service, method = name, ""
    if service not in known:
        raise SetupError(
            f"There is no contract {service or name!r}. {did_you_mean(service or name, known)}"
            f"There are: {', '.join(known) or 'none'}."
        )
    contract, owner = known[service]
    for rpc in service_of(contract).rpcs.values():
        if method in (rpc.attribute, rpc.name):
            return Found(contract=contract, rpc=rpc, service=owner)
    names = list(service_of(contract).rpcs)
    raise SetupError(
        f"{service} has no method {method!r}. {did_you_mean(method, names)}It has: {', '.join(names) or 'none'}."
        if method
        else f"Name a method of {service}: {', '.join(f'{service}/{name}' for name in names)}."
    )


def address_of(system: SystemFile, found: Found) -> tuple[str, ...]:
    """Where the service runs that has the method. Raises SetupError where nobody knows."""
    if not found.service:
        raise SetupError(f"No service of {system.file} implements {found.rpc.service}. Say where it is: `--address`.")
    target = system.services[found.service].target
    if target is not None:
        return target
    running = noted(system.directory)
    if found.service in running:
        return (running[found.service],)
    raise SetupError(
        f"Service {found.service!r} is not running: {system.file} gives it no address, and no `polywire up` here has "
        "started it. Start it, or say where it is: `--address grpc://host:port`."
    )
