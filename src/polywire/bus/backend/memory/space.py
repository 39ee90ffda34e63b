"""What the URLs `memory:` and `memory:NAME` stand for."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any, Protocol, TypeVar
from weakref import WeakValueDictionary

from polywire.bus.core.checks import checked_name
from polywire.clock import Clock
from polywire.errors import SetupError


class Space(Protocol):
    """What several objects with one URL have in common."""

    clock: Clock


S = TypeVar("S", bound=Space)

_NAMED: MutableMapping[tuple[type, str], Any] = WeakValueDictionary()


def space_at(url: str, clock: Clock, make: Callable[[Clock], S]) -> S:
    """A new space for `memory:`, the one that is in use, or a new one, for `memory:NAME`. Raises SetupError."""
    name = url.partition(":")[2].strip("/")
    if not name:
        return make(clock)
    made = make(clock)
    found: S = _NAMED.setdefault((type(made), checked_name("memory backend", name)), made)
    if found.clock is not clock:
        raise SetupError(f"{url!r} was not opened: it is in use here with another clock. Hand the same one to both.")
    return found
