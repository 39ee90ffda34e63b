"""Environment variables that override the system file (12-factor).

`POLYWIRE__SERVICES__INVENTORY__LISTEN` is `services.inventory.listen`: two underscores between the parts, in capitals,
with one underscore for each `-` and `.` of a name. Every key of the file can be set so, after the profile was applied.
Values are text and read as the key's type: numbers, `true` or `false`, commas between the items of an array, and TOML
(`{ ... }`) for a whole table. With one underscore, `POLYWIRE_SYSTEM` names the file and `POLYWIRE_PROFILE` the profile.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from polywire.errors import SystemFileError
from polywire.system.positions import Path
from polywire.system.reading import FromEnvironment, Settings, did_you_mean, dotted, shown

PREFIX = "POLYWIRE__"
FILE = "POLYWIRE_SYSTEM"
PROFILE = "POLYWIRE_PROFILE"
RELOAD = "POLYWIRE_RELOAD"
"""In processes that `up --reload` starts: the directory whose code they tell it of."""


def spelled(path: Path) -> str:
    """The variable that overrides the key at *path*."""
    return PREFIX + "__".join(_capitals(str(part)) for part in path)


def serves(service: str) -> str:
    """The variable with the contracts that *service* implements."""
    return spelled(("services", service, "serves"))


def override(settings: Settings, environ: Mapping[str, str]) -> None:
    """Put what the environment says over *settings*. Raises SystemFileError that names the variable at fault."""
    for variable in sorted(environ):
        if variable.startswith(PREFIX):
            _set(settings, variable, environ[variable])


def _set(settings: Settings, variable: str, text: str) -> None:
    parts = variable.removeprefix(PREFIX).split("__")
    if not all(parts):
        raise SystemFileError(
            f"{variable} names no key of {settings.file}. Write two underscores between its parts, "
            f"for example {spelled(('services', 'inventory', 'listen'))}."
        )
    table = settings.values
    path: Path = ()
    for part in parts[:-1]:
        key = _find(settings, variable, table, path, part)
        inner = table.setdefault(key, {})
        if not isinstance(inner, dict):
            raise SystemFileError(
                f"{variable} wants to set a key inside of {dotted((*path, key))}, which is {shown(inner)} "
                f"({settings.where((*path, key))}). Set {spelled((*path, key))} instead."
            )
        table, path = inner, (*path, key)
    key = _find(settings, variable, table, path, parts[-1])
    value = FromEnvironment(text)
    value.variable = variable
    table[key] = value
    settings.forget((*path, key))
    settings.origins[(*path, key)] = variable


def _find(settings: Settings, variable: str, table: dict[str, Any], path: Path, part: str) -> str:
    """The key of *table* that *part* spells, or the plain spelling of a new one."""
    for key in table:
        if _capitals(key) == _capitals(part):
            return key
    if path == ("services",):
        raise SystemFileError(
            f"{variable} names the service {part.lower()!r}, which {settings.file} does not have. "
            f"{did_you_mean(part.lower(), table)}It has: {', '.join(sorted(table)) or 'none'}."
        )
    return part.lower()


def _capitals(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]", "_", text).upper()
