"""The keys of the system file that say how many calls a service works on at once: `[shedding]`, for all or for one."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from polywire.contract.policies import Shedding, WrongValue
from polywire.system.reading import Table

_KEYS = {one.name: str(one.type) for one in fields(Shedding) if one.init}


def read_shedding(table: Table, usual: Shedding | None = None) -> Shedding:
    """What *table* says, over what is *usual*. Raises SystemFileError at the key whose value cannot be."""
    said: dict[str, Any] = {}
    for key, kind in _KEYS.items():
        value = _value(table, key, kind)
        if value is not None:
            said[key] = value
    table.done()
    if usual is not None:
        said = {**{key: getattr(usual, key) for key in usual.given}, **said}
    try:
        return Shedding(**said)
    except WrongValue as error:
        raise table.error(error.name, f"is {error.value}: {error.expected}") from error


def _value(table: Table, key: str, kind: str) -> bool | int | float | None:
    if kind == "bool":
        return table.boolean(key)
    return table.integer(key) if kind == "int" else table.number(key)
