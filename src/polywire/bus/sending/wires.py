"""Which backend a contract's tasks or a topic's events take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from polywire.errors import SetupError

Backend = TypeVar("Backend")


@dataclass(frozen=True, slots=True, kw_only=True)
class BusWires(Generic[Backend]):
    """Backends by the full name of a contract or by topic, and the one for the rest."""

    default: Backend | None = None
    by_name: Mapping[str, Backend] = field(default_factory=dict)

    def of(self, name: str, use: str) -> Backend:
        """The backend for *name*. *use* is `tasks` or `events`. Raises SetupError where there is none."""
        found = self.by_name.get(name, self.default)
        if found is None:
            raise SetupError(
                f"{name} was not sent: there is no wire for its {use}. "
                f"Name one in the system file, [wires] {use} = 'sqlite:.polywire/bus.db'."
            )
        return found

    def all(self) -> tuple[Backend, ...]:
        """Each backend once."""
        found = {id(one): one for one in (self.default, *self.by_name.values()) if one is not None}
        return tuple(found.values())
