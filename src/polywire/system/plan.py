"""A system on paper: its apps imported, every need met, every call with a wire that can get there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from polywire.clock import SYSTEM_CLOCK, Clock
from polywire.contract import Contract, service_of
from polywire.errors import ContractError, SetupError
from polywire.policy.faults import WrongFault
from polywire.policy.levels import Misfit, resolve, spellings
from polywire.system.app import App, Key
from polywire.system.assembly import Assembly, assemble, is_contract
from polywire.system.bus_plan import check_bus
from polywire.system.consuming import BUS, Part, part_of
from polywire.system.fault_keys import check_calls
from polywire.system.file import ServiceEntry, SystemFile
from polywire.system.importing import add_to_path, load_app
from polywire.system.reading import did_you_mean
from polywire.system.wiring import Target, local_across_processes

GIVEN = {Key(Clock): SYSTEM_CLOCK, BUS: None}
"""What every app may ask for without providing it; the bus is there once it runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What `plan` worked out."""

    system: SystemFile
    apps: Mapping[str, App]
    """Of the services looked at, by name of the service."""
    assemblies: Mapping[str, Assembly]
    owners: Mapping[str, str]
    """Which service implements a contract, by the contract's full name."""
    contracts: Mapping[str, type[Contract]]
    """The contracts whose classes were imported, by full name."""

    def needs(self, name: str) -> list[str]:
        """The services that service *name* calls."""
        called = (self.owners.get(service_of(contract).full_name) for contract in self.assemblies[name].clients)
        return list(dict.fromkeys(owner for owner in called if owner is not None))

    def part(self, name: str) -> Part:
        """What service *name* has to do with the bus."""
        return part_of(self.assemblies[name])

    def targets(self, here: Iterable[str]) -> dict[str, Target]:
        """Every contract's service, as a process sees it that runs the services *here*."""
        inside = set(here)
        targets = {}
        for contract, name in self.owners.items():
            entry = self.system.services[name]
            targets[contract] = Target(
                name=name, addresses=entry.target or (), here=name in inside, inside=not entry.outside
            )
        return targets


def plan(
    system: SystemFile,
    *,
    only: Sequence[str] | None = None,
    in_process: bool = False,
    given: Mapping[str, App] | None = None,
) -> Plan:
    """Import the apps of *system* and check that they fit together; nothing is opened.

    With *only*, the apps of other services are imported just where nothing but their code tells what they implement.
    Apps that are *given* are not imported. Raises SetupError with the place in the system file.
    """
    given = given or {}
    add_to_path(system.directory)
    chosen = list(system.services) if only is None else _chosen(system, only)
    runnable = [name for name in chosen if system.services[name].app is not None]
    apps = {
        name: given.get(name) or _load(system, entry)
        for name, entry in system.services.items()
        if entry.app is not None and (name in chosen or entry.serves is None)
    }
    owners, contracts = _owners(system, apps)
    assemblies = {name: assemble(apps[name], given=GIVEN) for name in runnable}
    worked_out = Plan(
        system=system,
        apps={name: apps[name] for name in runnable},
        assemblies=assemblies,
        owners=owners,
        contracts=contracts,
    )
    _check_wire_names(worked_out)
    _check_calls(worked_out)
    for name in runnable:
        _check_clients(worked_out, name, in_process=in_process)
    _check_faults(worked_out)
    alone = len(runnable) == 1 and system.services[runnable[0]].instances == 1
    check_bus(system, {name: worked_out.part(name) for name in runnable}, one_process=in_process or alone)
    return worked_out


def _chosen(system: SystemFile, names: Sequence[str]) -> list[str]:
    for name in names:
        if name not in system.services:
            raise SetupError(
                f"{system.file} has no service {name!r}. {did_you_mean(name, system.services)}"
                f"It has: {', '.join(system.services)}."
            )
        if system.services[name].app is None:
            raise SetupError(
                f"Service {name!r} of {system.file} runs elsewhere ({', '.join(system.services[name].address or ())}) "
                "and cannot be started here. Give it an `app`, or leave it out."
            )
    return list(names)


def _load(system: SystemFile, entry: ServiceEntry) -> App:
    try:
        return load_app(entry.app or "")
    except SetupError as error:
        raise system.settings.error(
            ("services", entry.name, "app"), f"services.{entry.name}.app = {error}"
        ) from error.__cause__


def _owners(system: SystemFile, apps: Mapping[str, App]) -> tuple[dict[str, str], dict[str, type[Contract]]]:
    owners: dict[str, str] = {}
    contracts: dict[str, type[Contract]] = {}
    for name, entry in system.services.items():
        implemented = {
            service_of(contract).full_name: contract for contract in (apps[name].contracts if name in apps else ())
        }
        contracts |= implemented
        for contract in entry.serves or tuple(implemented):
            if contract in owners:
                raise system.error(
                    ("services", name),
                    f"implements {contract}, which services.{owners[contract]} implements already. Calls could not "
                    "tell where to go; remove one of them.",
                )
            owners[contract] = name
    return owners, contracts


def _check_wire_names(worked_out: Plan) -> None:
    system = worked_out.system
    for contract in system.wires.by_contract:
        if contract not in worked_out.owners:
            raise system.settings.error(
                ("wires", "rpc", contract),
                f'wires.rpc."{contract}" names a contract that no service implements. '
                f"{did_you_mean(contract, worked_out.owners)}They implement: {', '.join(worked_out.owners) or 'none'}.",
            )


def _check_calls(worked_out: Plan) -> None:
    """Whether what the file says about methods is about methods that there are, and goes together."""
    system = worked_out.system
    called = {service_of(one).full_name: one for made in worked_out.assemblies.values() for one in made.clients}
    known = called | dict(worked_out.contracts)
    for name, entry in system.services.items():
        contracts = [contract for contract, owner in worked_out.owners.items() if owner == name]
        for spelled in entry.calls.methods:
            _check_method(system, ("services", name, "calls", spelled), contracts, known)
        for contract in contracts:
            if contract in known:
                _check_policies(system, name, known[contract])


def _check_method(
    system: SystemFile,
    place: tuple[str, ...],
    contracts: Sequence[str],
    known: Mapping[str, type[Contract]],
) -> None:
    """The key at *place* names a method of one of the *contracts* of its service; of a contract that nobody here has
    imported only its name is known."""
    contract = place[-1].partition("/")[0]
    if contract not in contracts:
        raise system.settings.error(
            place,
            f'services.{place[1]}.calls."{place[-1]}" is about {contract}, which that service does not implement. '
            f"{did_you_mean(contract, contracts)}It implements: {', '.join(contracts) or 'nothing'}.",
        )
    if contract not in known:
        return
    rpcs = service_of(known[contract]).rpcs.values()
    if not any(place[-1] in spellings(rpc) for rpc in rpcs):
        names = [spellings(rpc)[1] for rpc in rpcs]
        raise system.settings.error(
            place,
            f'services.{place[1]}.calls."{place[-1]}" is no method. {did_you_mean(place[-1], names)}'
            f"{contract} has: {', '.join(rpc.attribute for rpc in rpcs) or 'none'}.",
        )


def _check_policies(system: SystemFile, name: str, contract: type[Contract]) -> None:
    levels = system.levels(name)
    for rpc in service_of(contract).rpcs.values():
        twice = [spelled for spelled in dict.fromkeys(spellings(rpc)) if spelled in levels.methods]
        if len(twice) > 1:
            raise system.settings.error(
                levels.method_places[twice[1]],
                f'services.{name}.calls."{twice[1]}" is the same method as "{twice[0]}". Put what both say into one.',
            )
        try:
            resolve(rpc, levels.of(rpc))
        except ContractError as error:
            stands = error.place if isinstance(error, Misfit) else None
            raise system.settings.error(
                stands or (levels.method_places[twice[0]] if twice else ("services", name)),
                f"what is said about calls of {rpc.full_name} does not go together: {error}",
            ) from error


def _check_clients(worked_out: Plan, name: str, *, in_process: bool) -> None:
    system = worked_out.system
    for contract in worked_out.assemblies[name].clients:
        full_name = service_of(contract).full_name
        owner = worked_out.owners.get(full_name)
        if not service_of(contract).rpcs:
            continue  # its tasks wait for whoever comes
        if owner is None:
            raise system.settings.error(
                ("services", name),
                f"services.{name} needs a client of {full_name}, but no service implements it. "
                f"They implement: {', '.join(worked_out.owners) or 'none'}. Add the service, or "
                "`address` and `serves` of one that runs elsewhere.",
            )
        inside = owner == name or (in_process and system.services[owner].app is not None)
        if not inside and system.wires.of(full_name) == "local":
            key = full_name if full_name in system.wires.by_contract else "default"
            raise system.settings.error(
                ("wires", "rpc", key),
                f"service {name!r} calls {full_name}, but {local_across_processes(full_name, owner)}",
            )


def _check_faults(worked_out: Plan) -> None:
    called = {name: worked_out.needs(name) for name in worked_out.apps}
    for index, fault in enumerate(worked_out.system.faults):
        try:
            check_calls(fault, called, worked_out.owners, worked_out.contracts)
        except WrongFault as error:
            settings = worked_out.system.settings
            raise settings.error(
                ("faults", index, error.name), f"faults.{index}.{error.name} {error.problem}"
            ) from error


def catalogue(system: SystemFile) -> dict[str, tuple[type[Contract], str]]:
    """Every contract that the system's code knows, by full name, with the service that implements it (empty if none
    does)."""
    add_to_path(system.directory)
    apps = {name: _load(system, entry) for name, entry in system.services.items() if entry.app is not None}
    owners, contracts = _owners(system, apps)
    for app in apps.values():
        services, resources = app.read()
        for need in [need for one in services for need in one.needs] + [n for one in resources for n in one.needs]:
            if is_contract(need.key.type):
                contracts.setdefault(service_of(need.key.type).full_name, need.key.type)
    return {name: (contract, owners.get(name, "")) for name, contract in contracts.items()}
