"""The seam of stores: transactions on a service's own database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, Self

from polywire.durable.migrations import Applied, State

Row = tuple[Any, ...]
"""The columns in the order of the statement."""
Arguments = Sequence[Any] | Mapping[str, Any]


class Reading(Protocol):
    """Sees the database as it was when its first statement ran, whatever is written meanwhile.

    Placeholders are the database's own; `$1`, `$2` and so on, in the order in which they first appear, work on every
    store.
    """

    async def fetch_one(self, sql: str, arguments: Arguments = ()) -> Row | None:
        """The first row, if there is one."""
        ...

    async def fetch_all(self, sql: str, arguments: Arguments = ()) -> list[Row]: ...


class Transaction(Reading, Protocol):
    """What is done inside of it is done together or not at all."""

    async def execute(self, sql: str, arguments: Arguments = ()) -> int:
        """How many rows it inserted, updated or deleted."""
        ...

    def savepoint(self) -> AbstractAsyncContextManager[object]:
        """A block that is undone by itself where it raises, for going on after it."""
        ...


class Store(Protocol):
    """A database of one service. Used from one event loop. `polywire.testing.stores.StoreSuite` checks all of this.

    * The block of `transaction` commits at its end and rolls back where it raises or is cancelled. Once the block is
      left without an error, what was done in it survives the end of this process and of the machine. Nobody sees
      anything of it before.
    * Transactions that write do not overlap in what they see: each has the effects of those before it.
    * It begins with its first statement. It waits for others until the deadline of the current call, at most `wait`
      seconds; then it is StoreBusy, and nothing was done.
    * A statement that fails with ConstraintViolated inside `savepoint()` takes nothing else with it.
    * A transaction inside another one of the same store is refused: both would wait for each other.
    * In the handler of a message, the first transaction inserts the row of the inbox and raises AlreadyDone where it is
      there; a second one is refused, unless the first was rolled back. In a batch, BatchFailed has those that are not
      done yet, to come again.
    * Sending a message inside of it raises PublishInTransaction.
    * Errors of the database are StoreError, with the driver's own as `__cause__`; after one of the disk or of the
      connection, the next transaction finds the store working as soon as the database does.
    """

    name: str
    """As errors call it."""
    wait: float
    """Seconds."""

    async def start(self) -> None:
        """Open it. Raises SetupError where it cannot be opened, or its schema is not the program's."""

    async def close(self) -> None:
        """What is under way is rolled back. May be called twice."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *_: object) -> None: ...

    def transaction(self, *, inbox: bool = True) -> AbstractAsyncContextManager[Transaction]:
        """*inbox* False: not part of what the handler of a message has to do once."""
        ...

    def read(self) -> AbstractAsyncContextManager[Reading]:
        """A snapshot for reading that waits for no transaction and holds none up. It is kept short all the same: what
        it sees cannot be cleaned up."""
        ...

    async def upgrade(self) -> list[Applied]:
        """Bring the schema up to the program's; what was missing, in the order in which it was applied."""
        ...

    async def states(self) -> list[State]:
        """How far the schema of each component is."""
        ...
