"""How much a call matters to its service when that has too much to do."""

from __future__ import annotations

from enum import IntEnum


class Priority(IntEnum):
    """Whose calls are turned away first when a service has too much to do: the lowest."""

    BACKGROUND = 0
    NORMAL = 1
    CRITICAL = 2
