"""`[[faults]]` of the system file, and whether the calls that a fault names are made at all."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from polywire.contract import Contract, service_of
from polywire.errors import SetupError
from polywire.net.address import parse_address
from polywire.policy.faults import ANY, FIELDS, MAX_FAULTS, Fault, WrongFault
from polywire.system.reading import Table, did_you_mean, shown


def read_faults(top: Table, services: Collection[str]) -> tuple[Fault, ...]:
    """The faults of the system file, which hold from the start. Raises SystemFileError at the key at fault."""
    said = top.raw("faults")
    if said is None:
        return ()
    if not isinstance(said, list) or not all(isinstance(one, dict) for one in said):
        raise top.error("faults", f"is {shown(said)}. It has to be an array of tables: write each as [[faults]].")
    if len(said) > MAX_FAULTS:
        raise top.error("faults", f"has {len(said)} tables. There may be {MAX_FAULTS} at most.")
    return tuple(_read(top, index, values, services) for index, values in enumerate(said))


def _read(top: Table, index: int, values: dict[str, Any], services: Collection[str]) -> Fault:
    table = Table(top.settings, ("faults", index), values, "a fault")
    found = {key: _value(table, key, kind) for key, kind in FIELDS.items()}
    table.done()
    try:
        if found["target"] is None:
            raise WrongFault("target", "is missing. Name the service that is called.")
        fault = Fault(**{key: value for key, value in found.items() if value is not None})
        check_services(fault, services)
    except WrongFault as error:
        raise table.error(error.name, error.problem) from error
    return fault


def _value(table: Table, key: str, kind: type[Any]) -> Any:
    if kind is str:
        return table.text(key)
    return table.boolean(key) if kind is bool else table.number(key)


def check_services(fault: Fault, services: Collection[str]) -> None:
    """Raise WrongFault where a fault names a service or a place that is none."""
    for name, service in (("caller", fault.caller), ("target", fault.target)):
        if service not in services and not (name == "caller" and service == ANY):
            raise WrongFault(
                name,
                f"is {service!r}, which is no service. {did_you_mean(service, services)}"
                f"There are: {', '.join(services)}.",
            )
    if fault.endpoint is not None:
        try:
            parse_address(fault.endpoint)
        except SetupError as error:
            raise WrongFault("endpoint", f"is no place: {error}") from error


def check_calls(
    fault: Fault,
    called: Mapping[str, Sequence[str]],
    owners: Mapping[str, str],
    contracts: Mapping[str, type[Contract]],
) -> None:
    """Raise WrongFault where nobody makes the calls that a fault names.

    *called* has the services that each one calls, as far as that is known here; *owners* the service that implements a
    contract, *contracts* the classes of those that are known here.
    """
    if fault.caller in called and fault.target not in called[fault.caller]:
        raise WrongFault(
            "target",
            f"is {fault.target!r}, which service {fault.caller!r} does not call. "
            f"It calls: {', '.join(called[fault.caller]) or 'none'}.",
        )
    if fault.method is None:
        return
    contract, _, method = fault.method.rpartition("/")
    implemented = [name for name, owner in owners.items() if owner == fault.target]
    if contract not in implemented:
        raise WrongFault(
            "method",
            f"is {fault.method!r}, but service {fault.target!r} does not implement {contract or fault.method!r}. "
            f"{did_you_mean(contract, implemented)}It implements: {', '.join(implemented) or 'nothing'}. "
            "Write it as contract/method.",
        )
    if contract in contracts:
        rpcs = service_of(contracts[contract]).rpcs
        if not any(method in (rpc.attribute, rpc.name) for rpc in rpcs.values()):
            raise WrongFault(
                "method",
                f"is {fault.method!r}, but {contract} has no method {method!r}. {did_you_mean(method, rpcs)}"
                f"It has: {', '.join(rpcs) or 'none'}.",
            )
