"""What every store promises, as tests: derive a class from `StoreSuite` and override `opening`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Generator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any

from polywire.bus.core.inbox import UnderWay, _under_way
from polywire.clock import Clock
from polywire.context import Call, _current, transaction_or_none
from polywire.durable.inbox import StoreInbox
from polywire.durable.migrations import Migration
from polywire.durable.store.seam import Reading, Store, Transaction
from polywire.errors import AlreadyDone, BatchFailed, ConstraintViolated, RetryLater, SetupError, StoreBusy, StoreError
from polywire.testing.clock import ManualClock

SOON = 10.0
"""Seconds within which everything here happens, many times over."""

PROBE = (
    Migration(1, "the probe", "CREATE TABLE probe (name TEXT NOT NULL PRIMARY KEY, number BIGINT NOT NULL)"),
    Migration(2, "a second table", "CREATE TABLE effect (message TEXT NOT NULL); CREATE TABLE unused (x BIGINT)"),
)


class Stop(Exception):
    """Raised inside of blocks."""


@contextmanager
def handling(*messages: UnderWay) -> Iterator[None]:
    """As the consumer does around a handler."""
    token = _under_way.set(messages)
    try:
        yield
    finally:
        _under_way.reset(token)


def message(id: str, *, group: str = "billing", source: str = "orders", generation: int = 0) -> UnderWay:
    return UnderWay(group, source, id, generation)


async def put(tx: Transaction, name: str, number: int = 0) -> None:
    await tx.execute("INSERT INTO probe (name, number) VALUES ($1, $2)", (name, number))


class _Waiting:
    """Awaits *work*, and cancels *task*, which awaits it, as soon as that waits for the n-th time."""

    def __init__(self, work: Coroutine[Any, Any, None], number: int) -> None:
        self._work = work
        self._number = number
        self.waits = 0
        self.task: asyncio.Task[None] | None = None

    def __await__(self) -> Generator[Any, Any, None]:
        steps = self._work.__await__()
        error: BaseException | None = None
        while True:
            try:
                waited = next(steps) if error is None else steps.throw(error)
            except StopIteration:
                return
            self.waits += 1
            if self.waits == self._number and self.task is not None:
                asyncio.get_running_loop().call_soon(self.task.cancel)
            error = None
            try:
                yield waited
            except BaseException as thrown:  # noqa: BLE001 - it is handed on to the work
                error = thrown


async def _cancelled_at(number: int, work: Coroutine[Any, Any, None]) -> bool:
    """Cancel *work* when it waits for the n-th time. False where it came to its end before."""
    waiting = _Waiting(work, number)

    async def run() -> None:
        await waiting

    task = waiting.task = asyncio.create_task(run())
    await asyncio.wait([task])
    if waiting.waits >= number:
        return True
    await task
    return False


async def names(store: Store) -> list[str]:
    async with store.read() as view:
        return await seen(view)


async def seen(view: Reading) -> list[str]:
    return [row[0] for row in await view.fetch_all("SELECT name FROM probe ORDER BY name")]


async def number_of(view: Reading, name: str) -> int:
    row = await view.fetch_one("SELECT number FROM probe WHERE name = $1", (name,))
    assert row is not None
    return int(row[0])


class StoreSuite:
    """Derive a test class from it. Each test gets an object of its own, and a database of its own with it."""

    def opening(
        self, *, migrations: Sequence[Migration] = PROBE, upgrade: bool = True, clock: Clock | None = None
    ) -> AbstractAsyncContextManager[Store]:
        """A store on the database of this test, open for the length of the block; each call opens it once more, as
        another process would. It is called `probe`, and *migrations* are those of its `app`."""
        raise NotImplementedError

    # ---- transactions ------------------------------------------------------------------------------------------------

    async def test_what_was_committed_is_seen_by_everybody_and_after_opening_it_again(self) -> None:
        async with self.opening() as store, self.opening() as other:
            async with store.transaction() as tx:
                assert (
                    await tx.execute("INSERT INTO probe (name, number) VALUES ($1, $2), ($3, $2)", ("a", 1, "b")) == 2
                )
                assert await seen(tx) == ["a", "b"]
            assert await names(store) == await names(other) == ["a", "b"]
        async with self.opening() as again:
            assert await names(again) == ["a", "b"]

    async def test_nobody_sees_anything_before_the_commit(self) -> None:
        async with self.opening() as store, self.opening() as other:
            async with store.transaction() as tx:
                await put(tx, "a")
                assert await names(store) == await names(other) == []
            assert await names(store) == ["a"]

    async def test_a_block_that_raises_leaves_nothing_behind(self) -> None:
        async with self.opening() as store:
            try:
                async with store.transaction() as tx:
                    await put(tx, "a")
                    raise Stop
            except Stop:
                pass
            async with store.transaction() as tx:
                assert await seen(tx) == []
            assert await names(store) == []

    async def test_a_block_that_is_cancelled_leaves_nothing_behind_and_holds_nobody_up(self) -> None:
        async with self.opening() as store:
            inside = asyncio.Event()

            async def work() -> None:
                async with store.transaction() as tx:
                    await put(tx, "a")
                    inside.set()
                    await asyncio.Event().wait()

            task = asyncio.create_task(work())
            await inside.wait()
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            async with asyncio.timeout(SOON), store.transaction() as tx:
                assert await seen(tx) == []

    async def test_cancelling_at_any_moment_leaves_all_or_nothing(self) -> None:
        async with self.opening() as store:
            for step in range(30):
                task = asyncio.create_task(self._two_rows(store, f"{step:02}"))
                for _ in range(step):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.wait([task])
            # And wherever it waits for the store.
            waits = 1
            while await _cancelled_at(waits, self._two_rows(store, f"waits-{waits:02}")):
                waits += 1
            async with store.transaction() as tx:
                found = await seen(tx)
            assert [name for name in found if name.endswith("a")] == [
                name.replace("b", "a") for name in found if name.endswith("b")
            ]

    async def _two_rows(self, store: Store, name: str) -> None:
        async with store.transaction() as tx:
            await put(tx, name + "a")
            await put(tx, name + "b")

    async def test_a_block_without_statements_does_nothing(self) -> None:
        async with self.opening() as store:
            async with store.transaction():
                pass
            assert await names(store) == []

    async def test_concurrent_transactions_lose_no_update(self) -> None:
        async with self.opening() as store, self.opening() as other:
            async with store.transaction() as tx:
                await put(tx, "counter", 0)

            async def count(mine: Store) -> None:
                for _ in range(10):
                    async with mine.transaction() as tx:
                        number = await number_of(tx, "counter")
                        await asyncio.sleep(0)
                        await tx.execute("UPDATE probe SET number = $1 WHERE name = 'counter'", (number + 1,))

            async with asyncio.timeout(SOON):
                await asyncio.gather(*(count(mine) for mine in (store, other) for _ in range(5)))
            async with store.read() as view:
                assert await number_of(view, "counter") == 100

    async def test_of_concurrent_transactions_one_fails_and_the_others_stay(self) -> None:
        async with self.opening() as store:

            async def work(number: int) -> None:
                async with store.transaction() as tx:
                    await put(tx, f"{number:02}")
                    if number % 3 == 0:
                        raise Stop

            results = await asyncio.gather(*(work(number) for number in range(30)), return_exceptions=True)
            assert [type(result) for result in results] == [Stop if n % 3 == 0 else type(None) for n in range(30)]
            assert await names(store) == [f"{n:02}" for n in range(30) if n % 3]

    async def test_a_transaction_waits_for_its_turn_until_the_deadline_of_the_call(self) -> None:
        async with self.opening() as store:
            held = asyncio.Event()
            task = asyncio.create_task(self._in_a_call(store, held))
            async with store.transaction() as tx:
                await put(tx, "a")
                held.set()
                async with asyncio.timeout(SOON):
                    assert isinstance(await task, StoreBusy)
            assert await names(store) == ["a"]

    async def _in_a_call(self, store: Store, held: asyncio.Event) -> StoreError | None:
        await held.wait()
        _current.set(Call(deadline=time.monotonic() + 0.05))
        try:
            async with store.transaction() as tx:
                await put(tx, "b")
        except StoreError as error:
            return error
        return None

    async def test_a_transaction_that_gave_up_waiting_holds_nobody_up(self) -> None:
        await self.test_a_transaction_waits_for_its_turn_until_the_deadline_of_the_call()
        async with self.opening() as store, asyncio.timeout(SOON):
            async with store.transaction() as tx:
                await put(tx, "c")
            assert await names(store) == ["a", "c"]

    async def test_a_transaction_inside_another_one_is_refused(self) -> None:
        async with self.opening() as store:
            async with store.transaction() as tx:
                await put(tx, "a")
                try:
                    async with asyncio.timeout(SOON), store.transaction():
                        raise AssertionError("it was opened")
                except StoreError as error:
                    assert not isinstance(error, StoreBusy)
            async with store.transaction() as tx:
                await put(tx, "b")
            assert await names(store) == ["a", "b"]

    async def test_a_task_that_outlives_the_block_has_transactions_of_its_own(self) -> None:
        async with self.opening() as store:
            over = asyncio.Event()

            async def later() -> None:
                await over.wait()
                async with store.transaction() as tx:
                    await put(tx, "later")

            async with store.transaction() as tx:
                await put(tx, "first")
                task = asyncio.create_task(later())
            over.set()
            await task
            assert await names(store) == ["first", "later"]

    async def test_a_transaction_that_is_over_takes_no_more_statements(self) -> None:
        async with self.opening() as store:
            async with store.transaction() as tx:
                await put(tx, "a")
            try:
                await put(tx, "b")
            except StoreError:
                pass
            else:
                raise AssertionError("it was taken")
            assert await names(store) == ["a"]

    async def test_statements_cannot_end_their_transaction(self) -> None:
        async with self.opening() as store:
            for statement in ("COMMIT", "ROLLBACK", "BEGIN"):
                try:
                    async with store.transaction() as tx:
                        await put(tx, "a")
                        await tx.execute(statement)
                except StoreError:
                    continue
                raise AssertionError(f"{statement} was taken")
            assert await names(store) == []

    async def test_sending_is_known_to_be_inside_of_a_transaction(self) -> None:
        async with self.opening() as store:
            async with store.transaction() as tx:
                await put(tx, "a")
                assert transaction_or_none() == store.name
            assert transaction_or_none() is None

    # ---- savepoints --------------------------------------------------------------------------------------------------

    async def test_a_savepoint_that_raises_is_undone_by_itself(self) -> None:
        async with self.opening() as store:
            async with store.transaction() as tx:
                await put(tx, "a")
                async with tx.savepoint():
                    await put(tx, "b")
                try:
                    async with tx.savepoint():
                        await put(tx, "c")
                        async with tx.savepoint():
                            await put(tx, "d")
                        raise Stop
                except Stop:
                    pass
                await put(tx, "e")
            assert await names(store) == ["a", "b", "e"]

    async def test_after_a_violated_rule_in_a_savepoint_the_transaction_goes_on(self) -> None:
        async with self.opening() as store:
            async with store.transaction() as tx:
                await put(tx, "a")
                try:
                    async with tx.savepoint():
                        await put(tx, "a")
                except ConstraintViolated:
                    await put(tx, "b")
            assert await names(store) == ["a", "b"]

    async def test_a_statement_that_makes_no_sense_is_a_store_error(self) -> None:
        async with self.opening() as store:
            try:
                async with store.transaction() as tx:
                    await put(tx, "a")
                    await tx.execute("INSERT INTO nowhere VALUES (1)")
            except StoreError as error:
                assert error.__cause__ is not None
                assert error.committed == "no"
            assert await names(store) == []

    # ---- reading -----------------------------------------------------------------------------------------------------

    async def test_a_snapshot_stays_as_it_was(self) -> None:
        async with self.opening() as store:
            async with store.read() as view:
                assert await seen(view) == []
                async with store.transaction() as tx:
                    await put(tx, "a")
                assert await seen(view) == []
                assert await view.fetch_one("SELECT name FROM probe") is None
            assert await names(store) == ["a"]

    async def test_a_snapshot_waits_for_no_transaction(self) -> None:
        async with self.opening() as store, store.transaction() as tx:
            await put(tx, "a")
            async with asyncio.timeout(SOON):
                assert await names(store) == []

    async def test_a_snapshot_writes_nothing(self) -> None:
        async with self.opening() as store:
            try:
                async with store.read() as view:
                    await view.fetch_all("INSERT INTO probe (name, number) VALUES ('a', 1) RETURNING name")
            except StoreError:
                pass
            assert await names(store) == []

    # ---- its life ----------------------------------------------------------------------------------------------------

    async def test_closing_rolls_back_what_is_under_way_and_can_be_repeated(self) -> None:
        async with self.opening() as store:
            try:
                async with store.transaction() as tx:
                    await put(tx, "a")
                    await store.close()
            except StoreError:
                pass
            else:
                raise AssertionError("it was committed")
            await store.close()
            try:
                async with store.transaction() as tx:
                    await put(tx, "b")
            except StoreError:
                pass
            else:
                raise AssertionError("a closed store was written to")
        async with self.opening() as again:
            assert await names(again) == []

    # ---- the schema --------------------------------------------------------------------------------------------------

    async def test_a_store_whose_schema_is_missing_is_not_opened_but_upgraded_on_demand(self) -> None:
        try:
            async with self.opening(upgrade=False):
                raise AssertionError("it was opened")
        except SetupError as error:
            assert "`polywire db upgrade`" in str(error)
        async with self.opening(upgrade=True) as store:
            assert all(not state.missing and not state.problem for state in await store.states())
            assert await store.upgrade() == []
        async with self.opening(upgrade=False) as store:
            assert await names(store) == []

    async def test_an_upgrade_goes_on_from_where_the_database_is(self) -> None:
        async with self.opening(migrations=PROBE[:1]) as store, store.transaction() as tx:
            await put(tx, "a")
        async with self.opening() as store:
            assert await names(store) == ["a"]
            async with store.transaction() as tx:
                await tx.execute("INSERT INTO effect VALUES ($1)", ("m",))

    async def test_of_two_upgrades_at_once_one_does_it(self) -> None:
        async def work() -> None:
            async with self.opening() as store:
                assert await names(store) == []

        async with asyncio.timeout(SOON):
            await asyncio.gather(*(work() for _ in range(4)))

    async def test_an_upgrade_that_fails_changes_nothing(self) -> None:
        broken = (*PROBE, Migration(3, "a mistake", "CREATE TABLE half (x BIGINT); CREATE TABLE probe (x BIGINT)"))
        try:
            async with self.opening(migrations=broken):
                raise AssertionError("it was opened")
        except SetupError:
            pass
        async with self.opening() as store:
            assert await names(store) == []

    async def test_a_schema_that_is_newer_than_the_program_is_refused(self) -> None:
        async with self.opening():
            pass
        try:
            async with self.opening(migrations=PROBE[:1]):
                raise AssertionError("it was opened")
        except SetupError as error:
            assert "has version 2 there, and this program knows version 1" in str(error)

    async def test_a_migration_that_was_edited_is_refused(self) -> None:
        async with self.opening():
            pass
        edited = (Migration(1, "another probe", PROBE[0].sql), PROBE[1])
        try:
            async with self.opening(migrations=edited):
                raise AssertionError("it was opened")
        except SetupError as error:
            assert "was applied as 'the probe', and is 'another probe'" in str(error)

    # ---- the inbox ---------------------------------------------------------------------------------------------------

    async def test_a_message_has_its_effects_once(self) -> None:
        async with self.opening() as store:
            first, again = message("m"), message("m")
            with handling(first):
                await self._effect(store, "m")
            assert first.recorded
            with handling(again):
                try:
                    await self._effect(store, "m")
                except AlreadyDone:
                    pass
                else:
                    raise AssertionError("it was handled twice")
            assert not again.recorded
            assert await self._effects(store) == ["m"]

    async def test_group_generation_and_source_tell_messages_apart(self) -> None:
        async with self.opening() as store:
            others = (message("m"), message("m", group="x"), message("m", source="x"), message("m", generation=1))
            for other in others:
                with handling(other):
                    await self._effect(store, "m")
            assert await self._effects(store) == ["m"] * 4

    async def test_a_message_whose_effects_were_rolled_back_is_handled_again(self) -> None:
        async with self.opening() as store:
            first = message("m")
            with handling(first):
                try:
                    async with store.transaction() as tx:
                        await tx.execute("INSERT INTO effect VALUES ('lost')")
                        raise Stop
                except Stop:
                    pass
                assert not first.recorded
                await self._effect(store, "m")  # of the same handler, which caught what it raised
            assert await self._effects(store) == ["m"]
            with handling(message("n")):
                await self._effect(store, "n")
            assert await self._effects(store) == ["m", "n"]

    async def test_a_second_transaction_for_the_same_message_is_refused(self) -> None:
        async with self.opening() as store:
            with handling(message("m")):
                await self._effect(store, "m")
                try:
                    await self._effect(store, "second")
                except AlreadyDone:
                    raise AssertionError("it looked like a duplicate, and would be acknowledged") from None
                except StoreError:
                    pass
                else:
                    raise AssertionError("it was opened")
                async with store.transaction(inbox=False) as tx:
                    await tx.execute("INSERT INTO effect VALUES ('outside')")
            assert await self._effects(store) == ["m", "outside"]

    async def test_of_two_who_handle_one_message_at_once_one_commits(self) -> None:
        async with self.opening() as store, self.opening() as other:

            async def work(mine: Store, id: str) -> str:
                with handling(message(id)):
                    try:
                        await self._effect(mine, id)
                    except AlreadyDone:
                        return "done"
                    return "new"

            for number in range(10):
                found = await asyncio.gather(*(work(mine, f"{number}") for mine in (store, other) for _ in range(3)))
                assert sorted(found) == ["done"] * 5 + ["new"]
            assert await self._effects(store) == sorted(f"{number}" for number in range(10))

    async def test_of_a_batch_only_what_is_new_comes_again(self) -> None:
        async with self.opening() as store:
            with handling(message("b")):
                await self._effect(store, "b")
            with handling(message("a"), message("b"), message("c")):
                try:
                    await self._effect(store, "batch")
                except BatchFailed as failed:
                    assert sorted(failed.errors) == [0, 2]
                    assert all(isinstance(e, RetryLater) and e.after == 0 for e in failed.errors.values())
                else:
                    raise AssertionError("it was handled")
            with handling(message("a"), message("c")):
                await self._effect(store, "batch")
            with handling(message("a"), message("b"), message("c")):
                try:
                    await self._effect(store, "batch")
                except AlreadyDone:
                    pass
                else:
                    raise AssertionError("it was handled twice")
            assert await self._effects(store) == ["b", "batch"]

    async def test_the_inbox_knows_what_transactions_and_the_consumer_wrote(self) -> None:
        async with self.opening() as store:
            inbox = StoreInbox(store)
            assert not await inbox.seen(message("m"))
            with handling(message("m")):
                await self._effect(store, "m")
                assert await inbox.seen(message("m"))
                other = message("n")
                await inbox.record(other)
                await inbox.record(other)
            assert other.recorded
            assert await inbox.seen(other)
            assert not await inbox.seen(message("n", generation=1))

    async def test_the_inbox_forgets_what_is_older_than_its_retention(self) -> None:
        clock = ManualClock()
        async with self.opening(clock=clock) as store:
            inbox = StoreInbox(store, retention=100.0, clock=clock)
            for old in ("old", "older"):
                await inbox.record(message(old))
            await clock.advance(60)
            await inbox.record(message("young"))
            assert await inbox.clean() == 0
            await clock.advance(60)
            assert await inbox.clean() == 2
            assert not await inbox.seen(message("old"))
            assert await inbox.seen(message("young"))

    async def _effect(self, store: Store, name: str) -> None:
        async with store.transaction() as tx:
            await tx.execute("INSERT INTO effect VALUES ($1)", (name,))

    async def _effects(self, store: Store) -> list[str]:
        async with store.read() as view:
            return [row[0] for row in await view.fetch_all("SELECT message FROM effect ORDER BY message")]
