"""The suite finds stores that break a promise: each of these does, and a named test says so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import apsw
import pytest

from polywire.bus.core.inbox import under_way
from polywire.clock import SYSTEM_CLOCK, Clock
from polywire.context import _transaction
from polywire.durable import inbox
from polywire.durable.migrations import Migration, State
from polywire.durable.store.apsw import SqliteReading, SqliteStore, SqliteTransaction, _look_at
from polywire.durable.store.apsw_writer import Op, Turn
from polywire.durable.store.seam import Store
from polywire.errors import AlreadyDone, BatchFailed
from polywire.testing.stores import PROBE, StoreSuite


class InboxInAnotherTransaction(SqliteStore):
    def transaction(self, *, inbox: bool = True) -> SqliteTransaction:
        made = super().transaction(inbox=False)
        return _InboxApart(made) if inbox else made


class _InboxApart(SqliteTransaction):
    def __init__(self, made: SqliteTransaction) -> None:
        super().__init__(made.store, made._writer, ())

    async def __aenter__(self) -> Self:
        if under_way():
            inbox.begin(under_way(), self.store.name)
            async with self.store.transaction(inbox=False) as first:
                new = [await first.execute(inbox.INSERT, inbox.row_of(one, 0.0)) == 1 for one in under_way()]
            inbox.judge(under_way(), new)
            for one in under_way():
                one.recorded = True
        return await super().__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await super().__aexit__(kind, error, trace)
        if kind is not None:
            for one in under_way():
                one.begun = False


class CommitsWhatRaised(SqliteStore):
    def transaction(self, *, inbox: bool = True) -> SqliteTransaction:
        return _Committing(self, self._working("A transaction"), ())


class _Committing(SqliteTransaction):
    def _roll_back(self) -> None:
        future = self._writer.loop.create_future()
        future.add_done_callback(_look_at)
        if self._turn is not None:
            self._writer.put((self._turn, Op("commit", future)))
        self.is_open = False


class ManyTransactionsInOne(SqliteStore):
    """All statements of the process go into whichever transaction is open."""

    def transaction(self, *, inbox: bool = True) -> SqliteTransaction:
        return _Sharing(self, self._working("A transaction"), ())


class _Sharing(SqliteTransaction):
    async def _call(self, function: Callable[[apsw.Connection], Any]) -> Any:
        return await self.store.first(self._writer, Turn(), "only", function)


class SecondTransactionsForAMessage(SqliteStore):
    def transaction(self, *, inbox: bool = True) -> SqliteTransaction:
        made = super().transaction(inbox=inbox)
        for one in made._messages:
            one.begun = False
        return made


class ForgetsTheInbox(SqliteStore):
    def transaction(self, *, inbox: bool = True) -> SqliteTransaction:
        return super().transaction(inbox=False)


class AcknowledgesAWholeBatch(SqliteStore):
    def transaction(self, *, inbox: bool = True) -> SqliteTransaction:
        return _AllOrNothing(self, self._working("A transaction"), super().transaction(inbox=inbox)._messages)


class _AllOrNothing(SqliteTransaction):
    async def __aenter__(self) -> Self:
        try:
            return await super().__aenter__()
        except BatchFailed:
            raise AlreadyDone("some of it was done") from None


class WaitsForEver(SqliteStore):
    def time_to_wait(self) -> float:
        return 5.0


class NestsAndHangs(SqliteStore):
    def refuse_nesting(self) -> None:
        pass


class ReadsWhatIsNotCommitted(SqliteStore):
    def read(self) -> SqliteReading:
        return _Dirty(self)


class _Dirty(SqliteReading):
    async def __aenter__(self) -> Self:
        return self

    async def _call(self, function: Callable[[apsw.Connection], Any]) -> Any:
        writer = self._store._writer
        assert writer is not None
        connection = writer._db
        assert connection is not None
        while True:
            try:
                return function(connection)
            except apsw.ThreadingViolationError:
                await asyncio.sleep(0.001)


class NoSnapshot(SqliteStore):
    def read(self) -> SqliteReading:
        return _Moving(self)


class _Moving(SqliteReading):
    async def _call(self, function: Callable[[apsw.Connection], Any]) -> Any:
        assert self._reader is not None
        self._reader.put((None, self._reader.loop.create_future()))
        return await super()._call(function)


class LeavesSendingAlone(SqliteStore):
    def transaction(self, *, inbox: bool = True) -> SqliteTransaction:
        return _Unknown(self, self._working("A transaction"), ())


class _Unknown(SqliteTransaction):
    async def __aenter__(self) -> Self:
        made = await super().__aenter__()
        _transaction.set(None)
        return made


class BelievesAnySchema(SqliteStore):
    def _states(self, db: apsw.Connection) -> list[State]:
        return [replace(state, problem="") for state in super()._states(db)]


class UpgradesUnasked(SqliteStore):
    async def start(self) -> None:
        self._upgrade = True
        await super().start()


class HoldsTheTurnOfTheCancelled(SqliteStore):
    def transaction(self, *, inbox: bool = True) -> SqliteTransaction:
        return _Leaking(self, self._working("A transaction"), ())


class _Leaking(SqliteTransaction):
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is asyncio.CancelledError:
            self.is_open = False
            return
        await super().__aexit__(kind, error, trace)


CASES: list[tuple[type[SqliteStore], str]] = [
    (InboxInAnotherTransaction, "test_a_message_whose_effects_were_rolled_back_is_handled_again"),
    (CommitsWhatRaised, "test_a_block_that_raises_leaves_nothing_behind"),
    (CommitsWhatRaised, "test_cancelling_at_any_moment_leaves_all_or_nothing"),
    (ManyTransactionsInOne, "test_concurrent_transactions_lose_no_update"),
    (ManyTransactionsInOne, "test_nobody_sees_anything_before_the_commit"),
    (SecondTransactionsForAMessage, "test_a_second_transaction_for_the_same_message_is_refused"),
    (ForgetsTheInbox, "test_a_message_has_its_effects_once"),
    (ForgetsTheInbox, "test_of_two_who_handle_one_message_at_once_one_commits"),
    (AcknowledgesAWholeBatch, "test_of_a_batch_only_what_is_new_comes_again"),
    (WaitsForEver, "test_a_transaction_waits_for_its_turn_until_the_deadline_of_the_call"),
    (NestsAndHangs, "test_a_transaction_inside_another_one_is_refused"),
    (ReadsWhatIsNotCommitted, "test_nobody_sees_anything_before_the_commit"),
    (NoSnapshot, "test_a_snapshot_stays_as_it_was"),
    (LeavesSendingAlone, "test_sending_is_known_to_be_inside_of_a_transaction"),
    (BelievesAnySchema, "test_a_schema_that_is_newer_than_the_program_is_refused"),
    (BelievesAnySchema, "test_a_migration_that_was_edited_is_refused"),
    (UpgradesUnasked, "test_a_store_whose_schema_is_missing_is_not_opened_but_upgraded_on_demand"),
    (HoldsTheTurnOfTheCancelled, "test_a_block_that_is_cancelled_leaves_nothing_behind_and_holds_nobody_up"),
]


@pytest.mark.parametrize(("broken", "test"), CASES, ids=lambda value: getattr(value, "__name__", value))
def test_the_suite_finds(broken: type[SqliteStore], test: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polywire.testing.stores.SOON", 1.0)

    class Suite(StoreSuite):
        path = tmp_path

        def opening(
            self, *, migrations: Sequence[Migration] = PROBE, upgrade: bool = True, clock: Clock | None = None
        ) -> AbstractAsyncContextManager[Store]:
            return broken(
                self.path,
                migrations=migrations,
                upgrade=upgrade,
                wait=3.0,
                clock=clock or SYSTEM_CLOCK,
            )

    def five_times() -> None:
        """Some of them go by chance."""
        for number in range(5):
            Suite.path = tmp_path / f"{number}.db"
            asyncio.run(getattr(Suite(), test)())

    # Whatever it raises: an assertion, or an error where there should be none.
    with pytest.raises((Exception, ExceptionGroup)):
        five_times()
