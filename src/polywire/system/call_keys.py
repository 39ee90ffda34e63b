"""The keys of the system file that say what callers keep to: `[calls]`, and `calls` of a service and of its methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from polywire.contract.policies import Balance, Breaker, Bulkhead, Ejection, Fallback, Hedge, Policy, WrongValue
from polywire.errors import ContractError
from polywire.policy.levels import CallDefaults, Levels, label
from polywire.policy.retry import Retry
from polywire.system.positions import Path
from polywire.system.reading import Table

POLICIES: tuple[type[Policy], ...] = (Breaker, Bulkhead, Hedge, Ejection, Balance, Fallback)
_ONLY_IN_CODE = ("given", "value", "function", "on")
"""What no file can say, of fallbacks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calls:
    """`[calls]`: what holds for calls where contracts and callers say nothing else; None takes polywire's default."""

    timeout: float | None = None
    attempt_timeout: float | None = None
    retries: int | None = None
    retry_base: float | None = None
    retry_cap: float | None = None
    budget_share: float | None = None
    budget_minimum: float | None = None
    wait_for_ready: bool | None = None
    policies: tuple[Policy, ...] = ()

    @property
    def said(self) -> CallDefaults:
        retry = Retry(
            attempts=None if self.retries is None else self.retries + 1, base=self.retry_base, cap=self.retry_cap
        )
        return CallDefaults(
            timeout=self.timeout,
            attempt_timeout=self.attempt_timeout,
            retry=retry,
            budget_share=self.budget_share,
            budget_minimum=self.budget_minimum,
            wait_for_ready=self.wait_for_ready,
            policies=self.policies,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceCalls:
    """`[services.NAME.calls]`: what the callers of one service keep to."""

    service: Calls = field(default_factory=Calls)
    methods: Mapping[str, Calls] = field(default_factory=dict)
    """By the full name of the method, as the file spells it: `shop.v1.Inventory/check_stock`, or `.../CheckStock`."""


def read_calls(table: Table) -> Calls:
    """One table of them, with what is said of the target as a whole."""
    calls = _read(table, whole=True)
    table.done()
    return calls


def read_service_calls(table: Table) -> ServiceCalls:
    """The table of a service, with one for each method of which more is said."""
    service = _read(table, whole=True)
    methods = {}
    for name in [key for key in table.values if "/" in key]:
        inner = table.table(name, "a method")
        methods[name] = _read(inner, whole=False)
        inner.done()
    table.done()
    return ServiceCalls(service=service, methods=methods)


def _read(table: Table, *, whole: bool) -> Calls:
    """*whole*: the target has one budget for all of its methods, so that only there it is known."""
    times = {name: table.number(name) for name in ("timeout", "attempt_timeout")}
    for name, seconds in times.items():
        if seconds == 0:
            raise table.error(name, "is 0. It has to be more: a call without any time cannot be made.")
    return Calls(
        **times,
        retries=table.integer("retries", least=0),
        retry_base=table.number("retry_base"),
        retry_cap=table.number("retry_cap"),
        budget_share=table.number("budget_share") if whole else None,
        budget_minimum=table.number("budget_minimum") if whole else None,
        wait_for_ready=table.boolean("wait_for_ready"),
        policies=tuple(
            _policy(table.table(label(kind), f"{'an' if kind is Ejection else 'a'} {label(kind)}"), kind)
            for kind in POLICIES
            if _mentioned(table, label(kind))
        ),
    )


def _mentioned(table: Table, key: str) -> bool:
    table.mention(key)
    return key in table.values


def _policy(table: Table, kind: type[Policy]) -> Policy:
    """The policy that a table like `breaker = { open_time = 5 }` declares: what it does not give is left open."""
    values: dict[str, Any] = {}
    for one in fields(kind):
        if one.name in _ONLY_IN_CODE:
            continue
        value = _value(table, one.name, str(one.type))
        if value is not None:
            values[one.name] = value
    table.done()
    try:
        return kind(**values)
    except ContractError as error:
        place: Path = table.path
        if isinstance(error, WrongValue) and error.name in values:
            place = (*place, error.name)
        raise table.settings.error(place, f"{'.'.join(map(str, place))} cannot be: {error}") from None


def _value(table: Table, key: str, kind: str) -> Any:
    if kind.startswith("bool"):
        return table.boolean(key)
    if kind.startswith("int"):
        return table.integer(key, least=0)
    if kind.startswith("float"):
        return table.number(key)
    if kind.startswith("Mapping"):
        return _weights(table, key)
    return table.text(key)


def _weights(table: Table, key: str) -> dict[str, float] | None:
    if key not in table.values:
        table.mention(key)
        return None
    inner = table.table(key, "weights by address")
    weights = {address: inner.number(address) for address in inner.values}
    return {address: weight for address, weight in weights.items() if weight is not None}


def levels_of(system: Calls, calls: ServiceCalls, service: str) -> Levels:
    """What the system file says about calls to *service*, and where."""
    place = ("services", service, "calls")
    return Levels(
        system=system.said,
        service=calls.service.said,
        service_place=place,
        methods={name: one.said for name, one in calls.methods.items()},
        method_places={name: (*place, name) for name in calls.methods},
    )
