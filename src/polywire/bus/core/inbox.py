"""The seam of the inbox: what was done already, and which message a transaction belongs to."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Protocol


class UnderWay:
    """A message whose handler runs, as the inbox knows it: one row per group, generation, source and id."""

    __slots__ = ("begun", "generation", "group", "id", "recorded", "source")

    def __init__(self, group: str, source: str, id: str, generation: int = 0) -> None:
        self.group = group
        """Of the subscription; the queue's name for a task."""
        self.source = source
        self.id = id
        self.generation = generation
        """Raised by each replay of the group, so that what it did once is done again; `Record.generation`. 0 for a
        task: a queue is not replayed."""
        self.begun = False
        """Set by the store: a transaction was opened for this message; a second one is an error."""
        self.recorded = False
        """Set by the store: its row was committed together with the effects."""

    def __repr__(self) -> str:
        return f"UnderWay({self.group!r}, {self.source!r}, {self.id!r}, {self.generation})"


class Inbox(Protocol):
    """Remembers what was handled. `polywire.durable` implements it, on the store that has the effects.

    A store's transaction asks `under_way()` for the message it belongs to, inserts its row, and raises AlreadyDone
    where the row is there. For handlers declared `once` the consumer asks `seen` before, and calls `record` afterwards
    where no transaction did it.
    """

    async def seen(self, message: UnderWay) -> bool:
        """Whether its row is there, so that its handler must not run."""
        ...

    async def record(self, message: UnderWay) -> None:
        """Insert its row, by itself. Nothing happens where it is there."""
        ...


_under_way: ContextVar[tuple[UnderWay, ...]] = ContextVar("polywire_under_way", default=())


def under_way() -> tuple[UnderWay, ...]:
    """The message that the running handler handles; several in a batch, none outside of a handler."""
    return _under_way.get()
