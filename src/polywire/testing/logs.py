"""What every event log promises, as tests: derive a class from `LogSuite` and override `url`."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, ClassVar

from polywire.bus.backend.opening import open_events
from polywire.bus.core import (
    Bury,
    DeadFilter,
    Envelope,
    EventLog,
    GroupSpec,
    LogConsumer,
    Partition,
    Record,
    RetryAfter,
    Seek,
    TopicSpec,
)
from polywire.errors import (
    BackendLost,
    BackendUnreachable,
    ConsumerClosed,
    DeliveryError,
    GroupRunning,
    MessageRefused,
    PolywireError,
    PublishUnknown,
    SetupError,
)
from polywire.testing.buses import PASSWORD, BusSuite, raised
from polywire.testing.log_kit import GROUP, OpenLog, Reader

REFUSED_NAMES = ("", "a b", "orders/paid", "örders", "a\nb", "a'; drop table event; --", "..", "x" * 300)


class LogSuite(BusSuite):
    """The rules of `polywire.bus.core.log` as tests, the same for every backend; `Guarantees` choose among them.

    Override `url`, and of the hooks those that the backend can do: what it lacks is skipped, with the reason.
    """

    far: ClassVar[int] = 3000
    """Records that are more than any backend reads behind one that is not done."""

    # ---- hooks ------------------------------------------------------------------------------------------------------

    def url(self) -> str:
        """Of the backend under test; of one that nobody else uses, where that is cheap."""
        raise NotImplementedError

    async def open_backend(self, url: str) -> EventLog:
        """A started one. Called several times with one URL, for several connections."""
        backend = open_events(url, clock=self.clock)
        await backend.start()
        return backend  # type: ignore[return-value]  # what the suite's author gave

    async def kill_member(self, member: LogConsumer) -> None:
        """Let it end as with its process. Only for backends that are not shared; of the others a process is killed."""
        self.skip("the suite cannot kill a member of this backend")

    async def put_raw(self, backend: EventLog, topic: str, data: bytes) -> None:
        """Append bytes that are no message of ours to *topic*, as a foreign sender does."""
        self.skip("the suite cannot append foreign bytes to this backend")

    async def clean_up(self, backend: EventLog, topics: Sequence[TopicSpec], groups: Sequence[GroupSpec]) -> None:
        """Delete what a test leaves, where it does not go with the URL."""

    # ---- ground -----------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def log(
        self, *groups: str, partitions: int = 1, start: str = "earliest", **fields: Any
    ) -> AsyncIterator[OpenLog]:
        """A declared topic that no other test uses, with these *groups*. *fields* are of TopicSpec."""
        spec = TopicSpec(name=self.name("orders"), partitions=partitions, **fields)
        declared = [GroupSpec(topic=spec.name, group=group, start=start) for group in groups or (GROUP,)]
        url = self.url()
        async with AsyncExitStack() as stack:
            backend = await self.within(self.open_backend(url), what="opening the backend")
            stack.push_async_callback(backend.close)
            stack.push_async_callback(self.clean_up, backend, [spec], declared)
            await self.within(backend.declare([spec], declared), what="declaring")
            inner = await stack.enter_async_context(AsyncExitStack())
            yield OpenLog(self, url, backend, spec, inner)

    # ---- appending and receiving ------------------------------------------------------------------------------------

    async def test_an_event_arrives_as_it_was_appended(self) -> None:
        async with self.log() as log:
            now = float(int(self.clock.time()))
            sent = Envelope(
                id="0199-grün",
                type="shop.v1.OrderPaid",
                body=b'{"text": "gr\xc3\xbcn"}',
                source="orders",
                time=now,
                version=3,
                key="order-1",
                headers={"tenant": "a", "note": "grün ✓"},
                traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
                tracestate="a=b",
                request_id="r1",
                causation_id="c1",
                expires=now + 3600,
            )
            await log.append_all([sent])
            (got,) = await log.handle(await log.member())
            assert got.envelope == sent
            assert (got.topic, got.partition, got.offset) == (log.topic, 0, 0)
            assert (got.attempt, got.lost, got.retried, got.unreadable) == (1, 0, False, None)
            assert got.position == f"{log.topic}/0@0"

    async def test_any_bytes_can_be_a_body(self) -> None:
        async with self.log() as log:
            sent = [self.message() for _ in range(3)]
            for envelope, body in zip(sent, [bytes(range(256)), b"", b"x" * 100_000], strict=True):
                envelope.body = body
            await log.append_all(sent)
            got = await log.handle(await log.member(), 3)
            assert [record.envelope.body for record in got] == [envelope.body for envelope in sent]

    async def test_events_of_one_call_are_confirmed_each_for_itself(self) -> None:
        async with self.log() as log:
            limit = log.guarantees.max_message_bytes
            if limit > 2**28:
                self.skip(f"{log.guarantees.backend} takes events of {limit} bytes")
            small, large, last = self.message("a"), self.message(), self.message("b")
            large.body = b"x" * (limit + 1)
            appending = log.backend.append(log.topic, [small, large, last], timeout=self.patience)
            results = await self.within(appending, what="appending")
            assert results[0] is None
            assert results[2] is None
            assert type(results[1]) is MessageRefused
            assert large.id in str(results[1])
            assert str(limit) in str(results[1])
            got = await log.handle(await log.member(), 2)
            assert [record.envelope.id for record in got] == [small.id, last.id]

    async def test_a_topic_or_a_group_that_nobody_declared_is_refused(self) -> None:
        async with self.log() as log:
            other = self.name("nobodys")
            (result,) = await self.within(log.backend.append(other, [self.message()], timeout=self.patience))
            assert isinstance(result, MessageRefused)
            assert other in str(result)
            error = await raised(log.backend.consumer([other], GROUP, limit=1), SetupError, DeliveryError)
            assert other in str(error)
            error = await raised(log.backend.consumer([log.topic], "nobody", limit=1), SetupError, DeliveryError)
            assert "nobody" in str(error)

    async def test_events_of_one_key_are_in_one_partition_in_the_order_of_the_calls(self) -> None:
        async with self.log(partitions=4) as log:
            keys = [f"k{number}" for number in range(12)]
            calls = [
                log.backend.append(log.topic, [self.message(f"{n}", key=key) for key in keys], timeout=self.patience)
                for n in range(10)
            ]
            # Without waiting for one before the next: it is the order of the calls that counts.
            for results in await self.within(asyncio.gather(*calls), what="appending"):
                assert results == [None] * len(keys), results
            got = await log.handle(await log.member(limit=1000), 120)
            for key in keys:
                mine = [record for record in got if record.envelope.key == key]
                assert [record.envelope.body for record in mine] == [f"{n}".encode() for n in range(10)]
                assert len({record.partition for record in mine}) == 1
            assert len({record.partition for record in got}) > 1, "all keys are in one partition"

    async def test_records_of_a_partition_come_in_the_order_of_their_offsets(self) -> None:
        async with self.log(partitions=2) as log:
            await log.append(*(str(number) for number in range(100)))
            member = await log.member(limit=1000)
            got: list[Record] = []
            while len(got) < 100:
                got += await self.within(member.receive(7), what="receiving")
            for number in (0, 1):
                offsets = [record.offset for record in got if record.partition == number]
                assert offsets == list(range(len(offsets)))

    async def test_receive_waits_until_there_is_something(self) -> None:
        async with self.log() as log:
            member = await log.only_member()
            receiving = asyncio.ensure_future(member.receive(5))
            await self.pass_time(0.05)
            assert not receiving.done()
            (sent,) = await log.append("late")
            (got,) = await self.within(receiving, what="receiving")
            assert got.envelope.id == sent.id

    async def test_a_member_holds_at_most_its_limit_per_partition(self) -> None:
        async with self.log() as log:
            await log.append(*"abcdefgh")
            member = await log.member(limit=3)
            held = await log.receive(member, 3)
            await log.nothing_for(member, what="a fourth record was handed out at a limit of 3")
            await member.done(held[:1])
            await log.receive(member, 1)
            await log.nothing_for(member)

    async def test_receive_does_not_go_on_far_behind_a_record_that_is_not_done(self) -> None:
        async with self.log() as log:
            for _ in range(0, self.far, 500):
                await log.append(*["x"] * 500)
            member = await log.member(limit=50)
            (first,) = await log.receive(member)
            reader = log.reader(member, lambda record: member.done([record]))
            await self._until_still(reader)
            assert 0 < len(reader.records) < self.far - 1
            await reader.stop()
            seen = len(reader.records)
            await member.done([first])
            await log.receive(member, self.far - 1 - seen if self.far - 1 - seen < 50 else 50)

    async def _until_still(self, reader: Reader) -> None:
        """Wait until nothing more comes."""
        seen = -1
        while seen != len(reader.records):
            seen = len(reader.records)
            await self.pass_time(self.quiet * 2)

    async def test_every_group_gets_every_event(self) -> None:
        async with self.log("billing", "warehouse") as log:
            sent = await log.append("1", "2", "3")
            for group in ("billing", "warehouse"):
                member = await log.member(group)
                got = await log.handle(member, 3)
                assert [record.envelope.id for record in got] == [envelope.id for envelope in sent]
                await log.nothing_for(member)

    async def test_a_member_of_two_topics_gets_the_events_of_both(self) -> None:
        async with self.log() as log:
            other = TopicSpec(name=self.name("carts"), partitions=1)
            group = GroupSpec(topic=other.name, group=GROUP)
            await self.within(log.backend.declare([other], [group]), what="declaring")
            await log.append("order")
            assert await log.backend.append(other.name, [self.message("cart")], timeout=self.patience) == [None]
            member = await log.backend.consumer([log.topic, other.name], GROUP, limit=10)
            got = await log.handle(member, 2)
            assert {(record.topic, record.envelope.body) for record in got} == {
                (log.topic, b"order"),
                (other.name, b"cart"),
            }
            await member.close()
            await self.clean_up(log.backend, [other], [group])

    # ---- where a group begins and goes on ---------------------------------------------------------------------------

    async def test_a_new_group_begins_with_the_earliest_event(self) -> None:
        async with self.log() as log:
            await log.append("before")
            late = GroupSpec(topic=log.topic, group="late", start="earliest")
            await self.within(log.backend.declare([], [late]), what="declaring")
            (got,) = await log.handle(await log.member("late"))
            assert got.envelope.body == b"before"

    async def test_a_new_group_may_begin_with_what_comes(self) -> None:
        async with self.log() as log:
            await log.append("before")
            late = GroupSpec(topic=log.topic, group="late", start="latest")
            await self.within(log.backend.declare([], [late]), what="declaring")
            member = await log.only_member("late")
            await log.append("after")
            (got,) = await log.handle(member)
            assert got.envelope.body == b"after"

    async def test_a_group_goes_on_where_it_was(self) -> None:
        async with self.log() as log:
            await log.append("1", "2", "3")
            member = await log.member()
            await log.handle(member, 2)
            await member.close()
            (got,) = await log.handle(await log.member())
            assert got.envelope.body == b"3"

    async def test_only_what_was_done_without_a_gap_is_not_read_again(self) -> None:
        async with self.log() as log:
            await log.append("0", "1", "2", "3", "4")
            member = await log.member()
            held = await log.receive(member, 5)
            await member.done([held[4]])
            await member.done([held[2], held[1]])
            await member.close()
            member = await log.member()
            again = await log.receive(member, 5)
            assert [record.offset for record in again] == [0, 1, 2, 3, 4]
            await member.done([again[3]])
            await member.done([again[1], again[0]])
            await member.close()
            member = await log.member()
            again = await log.receive(member, 3)
            assert [record.offset for record in again] == [2, 3, 4]
            await member.done(again)
            await log.until_lag(0)

    async def test_done_may_come_twice(self) -> None:
        async with self.log() as log:
            await log.append("0", "1")
            member = await log.member()
            held = await log.receive(member, 2)
            await member.done([held[0], held[0]])
            await member.done([held[0]])
            await member.close()
            (again,) = await log.receive(await log.member())
            assert again.offset == 1

    # ---- cancelling and closing -------------------------------------------------------------------------------------

    async def test_a_cancelled_receive_loses_nothing(self) -> None:
        async with self.log(partitions=2) as log:
            member = await log.only_member(limit=1000)
            dice = random.Random(1)  # noqa: S311 - dice for tests
            sent: list[str] = []
            got: list[Record] = []
            for _ in range(25):
                receiving = asyncio.ensure_future(member.receive(5))
                await asyncio.sleep(0)
                sent += [envelope.id for envelope in await log.append("a", "b")]
                for _ in range(dice.randrange(4)):
                    await asyncio.sleep(0)
                await asyncio.sleep(dice.random() * 0.005)
                receiving.cancel()
                await asyncio.wait([receiving])
                if not receiving.cancelled():
                    got += receiving.result()
            if len(got) < len(sent):
                got += await log.receive(member, len(sent) - len(got))
            assert sorted(record.envelope.id for record in got) == sorted(sent)
            for number in (0, 1):
                offsets = [record.offset for record in got if record.partition == number]
                assert offsets == list(range(len(offsets)))

    async def test_a_member_can_be_closed_twice(self) -> None:
        async with self.log() as log:
            member = await log.member()
            await self.within(asyncio.gather(member.close(), member.close()), what="closing")
            await member.close()
            error = await raised(member.receive(1), ConsumerClosed)
            assert GROUP in str(error)
            assert not member.assigned

    async def test_closing_ends_a_receive_under_way(self) -> None:
        async with self.log() as log:
            member = await log.only_member()
            receiving = asyncio.ensure_future(member.receive(1))
            await self.pass_time(0.05)
            await self.within(member.close(), what="closing")
            await self.within(raised(receiving, ConsumerClosed), what="the end of receive")

    async def test_done_after_close_changes_nothing(self) -> None:
        async with self.log() as log:
            await log.append("0")
            member = await log.member()
            held = await log.receive(member)
            await member.close()
            await self._done_stale(member, held)
            (again,) = await log.receive(await log.member())
            assert again.offset == 0

    async def _done_stale(self, member: LogConsumer, records: Sequence[Record]) -> None:
        """Nothing is raised but that the member is gone."""
        try:
            await self.within(member.done(records), what="an answer")
        except (BackendLost, ConsumerClosed):
            return

    async def test_a_backend_can_be_closed_twice_and_refuses_events_then(self) -> None:
        async with self.log() as log:
            assert log.backend.connected
            other = await log.again()
            await other.backend.close()
            await other.backend.close()
            assert not other.backend.connected
            try:
                (result,) = await self.within(other.backend.append(log.topic, [self.message()], timeout=1.0))
            except PolywireError as error:
                result = error
            assert isinstance(result, MessageRefused | BackendLost), result
            await raised(other.backend.consumer([log.topic], GROUP, limit=1), PolywireError)
            assert (await log.backend.stats(log.topic, GROUP)).lag == 0

    async def test_closing_the_backend_ends_a_receive_under_way(self) -> None:
        async with self.log() as log:
            other = await log.again()
            member = await other.only_member()
            receiving = asyncio.ensure_future(member.receive(1))
            await self.pass_time(0.05)
            await self.within(other.backend.close(), what="closing")
            await self.within(raised(receiving, ConsumerClosed, BackendLost), what="the end of receive")

    # ---- several members --------------------------------------------------------------------------------------------

    async def test_two_members_share_the_partitions(self) -> None:
        async with self.log(partitions=4) as log:
            first = log.reader(await log.only_member())
            second = log.reader(await (await log.again()).member())
            await self._until_split(log, first, second)
            await log.append_all([self.message(f"{number}", key=f"k{number}") for number in range(40)])

            async def all_there() -> bool:
                return len(first.records) + len(second.records) >= 40

            await self.until(all_there, what="receiving 40 with two members")
            await first.stop()
            await second.stop()
            assert sorted(int(text) for text in first.texts + second.texts) == list(range(40))
            assert {(r.topic, r.partition) for r in first.records} <= first.member.assigned
            assert {(r.topic, r.partition) for r in second.records} <= second.member.assigned

    async def _until_split(self, log: OpenLog, first: Reader, second: Reader) -> None:
        half = log.spec.partitions // 2

        async def split() -> bool:
            assert not first.member.assigned & second.member.assigned, "a partition is with two members at once"
            return len(first.member.assigned) == len(second.member.assigned) == half

        await self.until(split, what="the rebalance")
        assert not first.member.assigned & second.member.assigned
        everything = {(log.topic, number) for number in range(log.spec.partitions)}
        assert first.member.assigned | second.member.assigned == everything

    async def test_a_member_that_leaves_leaves_its_partitions_to_the_others(self) -> None:
        async with self.log(partitions=4) as log:
            first = log.reader(await log.only_member())
            second = log.reader(await log.member())
            await self._until_split(log, first, second)
            await first.stop()
            await self.within(first.member.close(), what="leaving")
            await log.until_assigned(second.member, 4)
            await log.append_all([self.message(f"{number}", key=f"k{number}") for number in range(20)])

            async def all_there() -> bool:
                return len(second.records) >= 20

            await self.until(all_there, what="receiving all")
            await second.stop()

    async def test_members_in_two_processes_share_the_partitions_and_the_survivor_gets_all(self) -> None:
        async with self.log(partitions=4) as log:
            if not log.guarantees.shared:
                self.skip(f"{log.guarantees.backend} has one process only")
            reader = log.reader(await log.only_member())
            worker = await log.worker()

            async def split() -> bool:
                theirs = {(log.topic, number) for number in await worker.ask("assigned")}
                return len(theirs) == len(reader.member.assigned) == 2 and not theirs & reader.member.assigned

            await self.until(split, what="the rebalance between two processes")
            await worker.kill()
            await log.until_assigned(reader.member, 4)
            await log.append_all([self.message(f"{number}", key=f"k{number}") for number in range(20)])

            async def all_there() -> bool:
                return len(reader.records) >= 20

            await self.until(all_there, what="receiving all")
            await reader.stop()

    async def test_revoking_is_awaited_before_a_partition_goes_to_another_member(self) -> None:
        async with self.log(partitions=2) as log:
            may_end, told = asyncio.Event(), asyncio.Event()
            revoked: set[Partition] = set()
            members: list[LogConsumer] = []

            async def revoking(partitions: frozenset[Partition]) -> None:
                revoked.update(partitions)
                told.set()
                await may_end.wait()
                mine = [r for r in first.records if (r.topic, r.partition) in partitions]
                await members[0].done(mine)

            await log.append_all([self.message(f"k{number}", key=f"k{number}") for number in range(20)])
            members.append(await log.member(revoking=revoking))
            await log.until_assigned(members[0], 2)
            first = log.reader(members[0])

            async def all_there() -> bool:
                return len(first.records) == 20

            await self.until(all_there, what="receiving 20")
            joining = asyncio.ensure_future(log.member())
            await self.within(told.wait(), what="telling what is revoked")
            assert len(revoked) == 1
            await self.pass_time(self.quiet)
            if joining.done():
                assert not joining.result().assigned & revoked, "a partition was given away while its member works"
            may_end.set()
            second = log.reader(await self.within(joining, what="joining"))
            await self._until_split(log, first, second)
            assert second.member.assigned == revoked
            await log.append_all([self.message("new", key=f"k{number}") for number in range(20)])

            async def new_ones() -> bool:
                return (first.texts + second.texts).count("new") >= 20

            await self.until(new_ones, what="receiving 20 more")
            await first.stop()
            await second.stop()
            assert set(second.texts) == {"new"}, "what was done while revoking was read again"

    async def test_done_of_an_older_epoch_is_ignored(self) -> None:
        async with self.log(partitions=2) as log:
            await log.append_all([self.message(f"{number}", key=f"k{number}") for number in range(20)])
            first = log.reader(await log.only_member())

            async def all_there() -> bool:
                return len(first.records) == 20

            await self.until(all_there, what="receiving 20")
            second = log.reader(await log.member())
            await self._until_split(log, first, second)
            (moved,) = second.member.assigned
            stale = [record for record in first.records if (record.topic, record.partition) == moved]

            async def again() -> bool:
                return len(second.records) >= len(stale)

            await self.until(again, what="reading what was not done again")
            assert [r.envelope.id for r in second.records] == [r.envelope.id for r in stale]
            await self._done_stale(first.member, stale)
            for reader in (first, second):
                await reader.stop()
                await reader.member.close()
            third = await log.only_member()
            got = await log.receive(third, 20)
            assert {record.envelope.id for record in stale} <= {record.envelope.id for record in got}

    async def test_done_of_an_older_epoch_is_ignored_when_its_next_reader_is_killed(self) -> None:
        async with self.log(partitions=2) as log:
            self.need(log.guarantees, "shared")
            sent = [self.message(f"{number}", key=f"k{number}") for number in range(20)]
            await log.append_all(sent)
            first = log.reader(await log.only_member())

            async def all_there() -> bool:
                return len(first.records) == 20

            await self.until(all_there, what="receiving 20")
            worker = await log.worker()
            await log.until_assigned(first.member, 1)
            moved = [r for r in first.records if (r.topic, r.partition) not in first.member.assigned]
            taken = await self.within(worker.receive(len(moved)), what="receiving what moved")
            assert [one["id"] for one in taken] == [record.envelope.id for record in moved]
            await self._done_stale(first.member, moved)
            # What is its own is committed no earlier than what is not.
            await first.member.done([record for record in first.records if record not in moved])
            await log.until_lag(len(moved))
            await worker.kill()
            await first.stop()
            await first.member.close()
            again = await log.receive(await log.only_member(), len(moved))
            assert [record.envelope.id for record in again] == [record.envelope.id for record in moved]

    async def test_a_member_killed_before_done_loses_no_event(self) -> None:
        async with self.log() as log:
            sent = await log.append(*"abcdefgh")
            victim = await log.victim()
            ids = await victim.receive(5)
            assert ids == [envelope.id for envelope in sent[:5]]
            await victim.done(ids[:2])
            await victim.done(ids[3:4])
            await victim.kill()
            member = await log.member()
            (first,) = await log.receive(member)
            # What was done may have been committed, or not yet; what was not done never is.
            assert first.offset <= 2
            rest = await log.handle(member, 7 - first.offset)
            assert [record.offset for record in rest] == list(range(first.offset + 1, 8))

    async def test_an_event_that_kills_its_worker_is_a_suspect(self) -> None:
        async with self.log() as log:
            self.need_exact_attempts(log.guarantees)
            await log.append("poison")
            for _ in range(2):
                victim = await log.victim()
                await victim.receive(1)
                await victim.kill()
            (got,) = await log.receive(await log.member())
            assert (got.attempt, got.lost) == (3, 2)

    async def test_leaving_costs_no_attempt(self) -> None:
        async with self.log() as log:
            self.need_exact_attempts(log.guarantees)
            await log.append("1")
            for _ in range(2):
                member = await log.member()
                (got,) = await log.receive(member)
                assert (got.attempt, got.lost) == (1, 0)
                await member.close()

    async def test_a_paused_partition_gives_nothing_until_it_is_resumed(self) -> None:
        async with self.log(partitions=2) as log:
            member = await log.only_member()
            await log.append_all([self.message(f"{number}", key=f"k{number}") for number in range(20)])
            paused = (log.topic, 0)
            member.pause([paused])
            reader = log.reader(member)
            await self._until_still(reader)
            early = {record.partition for record in reader.records}
            # What was under way before the pause may still come, from the other partition all of it.
            assert 1 in early
            ones = len([record for record in reader.records if record.partition == 0])
            await log.append_all([self.message("late", key=f"k{number}") for number in range(20)])
            await self._until_still(reader)
            assert len([record for record in reader.records if record.partition == 0]) == ones
            member.resume([paused])

            async def all_there() -> bool:
                return len(reader.records) == 40

            await self.until(all_there, what="receiving after resuming")
            await reader.stop()
            offsets = [record.offset for record in reader.records if record.partition == 0]
            assert offsets == list(range(len(offsets)))

    # ---- durability -------------------------------------------------------------------------------------------------

    async def test_what_was_confirmed_is_there_after_the_backend_was_restarted(self) -> None:
        async with self.log() as log:
            self.need(log.guarantees, "durable")
            sent = await log.append(*(str(number) for number in range(50)))
            await self.restart_backend(log.url)
            got = await log.handle(await self._member_again(log), 50)
            assert [record.envelope.id for record in got] == [envelope.id for envelope in sent]

    async def test_a_member_goes_on_or_hears_of_it_when_the_backend_was_restarted(self) -> None:
        async with self.log() as log:
            self.need(log.guarantees, "durable")
            await log.append("0", "1")
            member = await log.member()
            held = await log.receive(member, 2)
            await member.done(held[:1])
            await self.restart_backend(log.url)
            await log.append("2")
            texts: list[bytes] = []
            while b"2" not in texts:
                try:
                    got = await self.within(member.receive(5), what="going on")
                except BackendLost:
                    await member.close()
                    member = await self._member_again(log)
                    continue
                texts += [record.envelope.body for record in got]
            await member.close()

    async def _member_again(self, log: OpenLog) -> LogConsumer:
        """One of a backend that may still be connecting."""
        found: list[LogConsumer] = []

        async def opened() -> bool:
            try:
                found.append(await log.member())
            except DeliveryError:
                return False
            return True

        await self.until(opened, what="joining after a restart")
        return found[0]

    async def test_what_a_process_had_confirmed_is_there_after_it_was_killed(self) -> None:
        async with self.log() as log:
            self.need(log.guarantees, "durable")
            self.need(log.guarantees, "shared")
            worker = await log.worker()
            appending = worker.ask("send", texts=[str(number) for number in range(50)])
            confirmed = await self.within(appending, what="appending in another process")
            await worker.kill()
            assert len(confirmed) == 50
            got = await log.handle(await log.member(), 50)
            assert [record.envelope.id for record in got] == confirmed

    async def test_while_the_backend_is_down_appending_waits_at_most_its_timeout(self) -> None:
        async with self.log() as log:
            async with self.backend_down(log.url):
                appending = log.backend.append(
                    log.topic, [self.message("lost"), self.message("too")], timeout=self.moment
                )
                results = await self.within(appending, what="giving up")
                assert len(results) == 2
                assert {type(result) for result in results} <= {MessageRefused, PublishUnknown}, results
            await log.append("after")
            member = await self._member_again(log)
            texts: list[bytes] = []
            while b"after" not in texts:
                # What was perhaps sent may have been sent.
                texts += [record.envelope.body for record in await log.handle(member)]
            assert set(texts) <= {b"lost", b"too", b"after"}

    async def test_what_waited_while_the_backend_was_down_is_appended(self) -> None:
        async with self.log() as log:
            sent = self.message("waited")
            async with self.backend_down(log.url):
                appending = asyncio.ensure_future(log.backend.append(log.topic, [sent], timeout=self.patience))
                await self.pass_time(self.moment)
                assert not appending.done()
            assert await self.within(appending, what="appending") == [None]
            (got,) = await log.handle(await self._member_again(log))
            assert got.envelope.id == sent.id

    async def test_a_backend_that_does_not_answer_is_unreachable_and_its_password_stays_secret(self) -> None:
        error = await self.within(raised(self.open_backend(self.url_of_nobody()), BackendUnreachable), what="failing")
        assert PASSWORD not in f"{error} {error!r}"

    # ---- retries and dead letters -----------------------------------------------------------------------------------

    async def test_a_retried_event_comes_again_to_its_own_group_only_and_not_early(self) -> None:
        async with self.log("billing", "warehouse") as log:
            (sent,) = await log.append("1", headers={"tenant": "a"})
            billing, warehouse = await log.member("billing"), await log.member("warehouse")
            (got,) = await log.receive(billing)
            before = self.clock.time()
            await self.within(billing.retry(got, RetryAfter(self.moment, "ValueError: no")), what="retrying")
            (again,) = await log.receive(billing)
            assert self.clock.time() >= before + self.moment - 0.01
            assert again.retried
            assert (again.envelope.id, again.attempt, again.lost) == (sent.id, 2, 0)
            assert (again.envelope.body, again.envelope.headers) == (b"1", {"tenant": "a"})
            await billing.done([again])
            await log.handle(warehouse)
            await log.nothing_for(warehouse, what="another group got the retry")
            await log.nothing_for(billing)

    async def test_every_retry_counts_an_attempt(self) -> None:
        async with self.log() as log:
            await log.append("1")
            member = await log.member()
            for attempt in (1, 2, 3):
                (got,) = await log.receive(member)
                assert (got.attempt, got.retried) == (attempt, attempt > 1)
                await self.within(member.retry(got, RetryAfter(0.0)), what="retrying")
            (got,) = await log.handle(member)
            assert got.attempt == 4

    async def test_a_retried_event_counts_as_done_in_its_topic(self) -> None:
        async with self.log() as log:
            await log.append("0", "1")
            member = await log.member()
            first, second = await log.receive(member, 2)
            await self.within(member.retry(first, RetryAfter(self.moment)), what="retrying")
            await member.done([second])
            await log.until_lag(0)
            await member.close()
            (again,) = await log.handle(await log.member())
            assert (again.retried, again.envelope.body, again.attempt) == (True, b"0", 2)

    async def test_a_retried_event_that_was_not_done_comes_to_another_member(self) -> None:
        async with self.log() as log:
            await log.append("0")
            member = await log.member()
            (got,) = await log.receive(member)
            await self.within(member.retry(got, RetryAfter(0.0)), what="retrying")
            await log.receive(member)
            await member.close()
            (again,) = await log.handle(await log.member())
            assert (again.retried, again.attempt, again.envelope.body) == (True, 2, b"0")

    async def test_a_buried_event_is_a_dead_letter_of_its_group_only(self) -> None:
        async with self.log("billing", "warehouse") as log:
            (sent,) = await log.append("1", headers={"tenant": "a"})
            billing = await log.member("billing")
            (got,) = await log.receive(billing)
            before = self.clock.time()
            burying = billing.bury(got, Bury("rejected", "ValueError: card expired ✓"))
            await self.within(burying, what="burying")
            (letter,) = await log.until_dead(1, "billing")
            assert (letter.envelope.id, letter.envelope.body) == (sent.id, b"1")
            assert letter.envelope.headers == {"tenant": "a"}
            assert (letter.reason, letter.error) == ("rejected", "ValueError: card expired ✓")
            assert letter.attempts == 1
            assert before - 1 <= letter.died <= self.clock.time() + 1
            await log.until_lag(0, "billing")
            assert await log.backend.dead(log.topic, "warehouse") == []
            await log.handle(await log.member("warehouse"))

    async def test_dead_letters_are_listed_oldest_first_and_found_by_what_is_asked_for(self) -> None:
        async with self.log() as log:
            await log.append("1", "2", "3")
            member = await log.member()
            for got, reason in zip(await log.receive(member, 3), ("rejected", "attempts", "rejected"), strict=True):
                await self.within(member.bury(got, Bury(reason, f"ValueError: {got.offset}")), what="burying")
            letters = await log.until_dead(3)
            assert [letter.envelope.body for letter in letters] == [b"1", b"2", b"3"]
            for which, expected in (
                (DeadFilter(id=letters[1].envelope.id), [b"2"]),
                (DeadFilter(reason="rejected"), [b"1", b"3"]),
                (DeadFilter(error="ValueError: 2"), [b"3"]),
                (DeadFilter(type="polywire.suite.v1.Play"), []),
                (DeadFilter(since=letters[0].died - 60), [b"1", b"2", b"3"]),
                (DeadFilter(until=letters[0].died - 60), []),
            ):
                found = await log.backend.dead(log.topic, GROUP, which)
                assert [letter.envelope.body for letter in found] == expected, which
            two = await log.backend.dead(log.topic, GROUP, limit=2)
            assert [letter.envelope.body for letter in two] == [b"1", b"2"]

    async def test_a_revived_event_comes_again_to_its_group_and_to_no_other(self) -> None:
        async with self.log("billing", "warehouse") as log:
            (sent,) = await log.append("1")
            billing, warehouse = await log.member("billing"), await log.member("warehouse")
            await log.handle(warehouse)
            (got,) = await log.receive(billing)
            await self.within(billing.bury(got, Bury("attempts", "ValueError: no")), what="burying")
            letters = await log.until_dead(1, "billing")
            assert await log.backend.revive(log.topic, "billing", letters) == 1
            (again,) = await log.handle(billing)
            assert (again.envelope.id, again.attempt, again.envelope.redrive_count) == (sent.id, 1, 1)
            assert await log.backend.dead(log.topic, "billing") == []
            assert await log.backend.revive(log.topic, "billing", letters) == 0
            await log.nothing_for(warehouse, what="another group got what was revived")

    async def test_a_dropped_dead_letter_is_gone(self) -> None:
        async with self.log() as log:
            await log.append("1", "2")
            member = await log.member()
            for got in await log.receive(member, 2):
                await self.within(member.bury(got, Bury("rejected")), what="burying")
            one, two = await log.until_dead(2)
            assert await log.backend.drop(log.topic, GROUP, [one]) == 1
            assert await log.backend.drop(log.topic, GROUP, [one]) == 0
            (left,) = await log.until_dead(1)
            assert left.envelope.id == two.envelope.id

    async def test_bytes_that_are_no_message_come_as_unreadable_and_can_be_buried(self) -> None:
        async with self.log() as log:
            data = b"\xc1 no envelope \x00\xff"
            await self.put_raw(log.backend, log.topic, data)
            (sent,) = await log.append("1")
            member = await log.member()
            odd, good = await log.receive(member, 2)
            assert odd.unreadable
            assert odd.envelope.body == data
            assert (good.unreadable, good.envelope.id) == (None, sent.id)
            await self.within(member.bury(odd, Bury("undecodable", odd.unreadable)), what="burying")
            await member.done([good])
            (letter,) = await log.until_dead(1)
            assert (letter.reason, letter.envelope.body) == ("undecodable", data)
            await log.until_lag(0)

    # ---- seeking ----------------------------------------------------------------------------------------------------

    async def test_a_group_can_be_sent_to_an_offset(self) -> None:
        async with self.log() as log:
            self.need(log.guarantees, "replay")
            await log.append("0", "1", "2", "3")
            member = await log.member()
            await log.handle(member, 4)
            await member.close()
            await self._seek(log, Seek(offsets={0: 1}))
            member = await log.member()
            assert [record.offset for record in await log.handle(member, 3)] == [1, 2, 3]
            await log.nothing_for(member)

    async def _seek(self, log: OpenLog, to: Seek) -> None:
        """A group whose members are gone, which a server may notice late."""

        async def sought() -> bool:
            try:
                await log.backend.seek(log.topic, GROUP, to)
            except GroupRunning:
                return False
            return True

        await self.until(sought, what="seeking")

    async def test_a_group_can_be_sent_to_a_time(self) -> None:
        async with self.log(partitions=2) as log:
            self.need(log.guarantees, "replay")
            await log.append_all([self.message("before", key=f"k{number}") for number in range(8)])
            await self.pass_time(0.05)
            middle = self.clock.time()
            await self.pass_time(0.05)
            await log.append_all([self.message("after", key=f"k{number}") for number in range(8)])
            await self._seek(log, Seek(time=middle))
            member = await log.member()
            assert {record.envelope.body for record in await log.handle(member, 8)} == {b"after"}
            await log.nothing_for(member)
            await member.close()
            await self._seek(log, Seek(time=middle - 60))
            assert len(await log.handle(await log.member(), 16)) == 16

    async def test_a_group_can_be_sent_to_the_earliest_and_to_the_latest_event(self) -> None:
        async with self.log() as log:
            self.need(log.guarantees, "replay")
            await log.append("0", "1")
            await self._seek(log, Seek(latest=True))
            assert (await log.backend.stats(log.topic, GROUP)).lag == 0
            member = await log.only_member()
            await log.append("2")
            assert [record.offset for record in await log.handle(member)] == [2]
            await member.close()
            await self._seek(log, Seek(earliest=True))
            assert [record.offset for record in await log.handle(await log.member(), 3)] == [0, 1, 2]

    async def test_seeking_moves_one_group_only(self) -> None:
        async with self.log(GROUP, "warehouse") as log:
            self.need(log.guarantees, "replay")
            await log.append("0", "1")
            other = await log.member("warehouse")
            await log.handle(other, 2)
            await self._seek(log, Seek(latest=True))
            await self._seek(log, Seek(earliest=True))
            await log.nothing_for(other, what="a group was sent back with another one")
            await log.handle(await log.member(), 2)

    async def test_a_running_group_is_told_where_to_go_on_or_the_seek_is_refused(self) -> None:
        async with self.log() as log:
            self.need(log.guarantees, "replay")
            await log.append("0", "1", "2")
            member = await log.only_member()
            held = await log.receive(member, 3)
            await member.done(held[:2])
            try:
                await self.within(log.backend.seek(log.topic, GROUP, Seek(earliest=True)), what="seeking")
            except GroupRunning as error:
                assert GROUP in str(error)
                return
            again = await log.receive(member, 3)
            assert [record.offset for record in again] == [0, 1, 2]
            await member.done(held)
            assert (await log.backend.stats(log.topic, GROUP)).lag == 3, "what was read before the seek was counted"
            await member.done(again)
            await log.until_lag(0)

    async def test_a_seek_names_exactly_one_place(self) -> None:
        async with self.log() as log:
            self.need(log.guarantees, "replay")
            for to in (Seek(), Seek(earliest=True, latest=True), Seek(time=1.0, offsets={0: 0})):
                await raised(log.backend.seek(log.topic, GROUP, to), ValueError)

    # ---- generations ------------------------------------------------------------------------------------------------

    async def test_a_seek_raises_the_generation_of_its_group_and_of_no_other(self) -> None:
        async with self.log(GROUP, "warehouse", partitions=2) as log:
            self.need(log.guarantees, "replay")
            await log.append_all([self.message(key=f"k{number}") for number in range(8)])
            for generation in range(3):
                member = await log.member()
                assert {record.generation for record in await log.handle(member, 8)} == {generation}
                await member.close()
                await self._seek(log, Seek(earliest=True))
            other = await log.handle(await log.member("warehouse"), 8)
            assert {record.generation for record in other} == {0}

    async def test_a_seek_of_one_partition_raises_the_generation_of_all(self) -> None:
        async with self.log(partitions=2) as log:
            self.need(log.guarantees, "replay")
            await self._seek(log, Seek(offsets={0: 0}))
            await self._seek(log, Seek(offsets={}))
            await log.append_all([self.message(key=f"k{number}") for number in range(8)])
            got = await log.handle(await log.member(), 8)
            assert {(record.partition, record.generation) for record in got} == {(0, 1), (1, 1)}

    async def test_the_generation_outlives_members_and_connections(self) -> None:
        async with self.log(partitions=2) as log:
            self.need(log.guarantees, "replay")
            await self._seek(log, Seek(latest=True))
            again = log
            for _ in range(3):
                # Each time what is committed was committed by another member.
                await again.append_all([self.message(key=f"k{number}") for number in range(8)])
                member = await again.member()
                assert {record.generation for record in await again.handle(member, 8)} == {1}
                await member.close()
                again = await again.again()

    async def test_the_generation_outlives_a_restart_of_the_backend(self) -> None:
        async with self.log() as log:
            self.need(log.guarantees, "replay")
            self.need(log.guarantees, "durable")
            await log.append("0")
            await self._seek(log, Seek(earliest=True))
            await self.restart_backend(log.url)
            (got,) = await log.handle(await self._member_again(log))
            assert got.generation == 1

    async def test_members_that_run_read_in_the_new_generation_or_the_seek_is_refused(self) -> None:
        async with self.log() as log:
            self.need(log.guarantees, "replay")
            await log.append("0", "1", "2")
            member = await log.only_member()
            assert {record.generation for record in await log.receive(member, 3)} == {0}
            try:
                await self.within(log.backend.seek(log.topic, GROUP, Seek(earliest=True)), what="seeking")
            except GroupRunning:
                await log.append("3")
                (last,) = await log.receive(member)
                assert last.generation == 0, "a seek was refused, and raised the generation"
                return
            again = await log.receive(member, 3)
            assert [(record.offset, record.generation) for record in again] == [(0, 1), (1, 1), (2, 1)]
            await member.done(again)

    async def test_retries_dead_letters_and_redrives_keep_the_generation_of_their_event(self) -> None:
        async with self.log(GROUP, "warehouse") as log:
            self.need(log.guarantees, "replay")
            await log.append("retried", "dead")
            member = await log.member()
            for one in await log.receive(member, 2):
                if one.envelope.body == b"dead":
                    await self.within(member.bury(one, Bury("rejected")), what="burying")
                else:
                    await self.within(member.retry(one, RetryAfter(0.0)), what="retrying")
            await member.close()
            await self._seek(log, Seek(earliest=True))
            await log.backend.revive(log.topic, GROUP, await log.until_dead(1))
            member = await log.member()
            got = await log.receive(member, 4)
            assert sorted((record.envelope.body, record.retried, record.generation) for record in got) == [
                (b"dead", False, 1),
                (b"dead", True, 0),
                (b"retried", False, 1),
                (b"retried", True, 0),
            ]
            # And again, of both generations.
            for record in got:
                await self.within(member.retry(record, RetryAfter(0.0)), what="retrying")
            again = await log.handle(member, 4)
            assert sorted((record.envelope.body, record.generation) for record in again) == [
                (b"dead", 0),
                (b"dead", 1),
                (b"retried", 0),
                (b"retried", 1),
            ]

    async def test_a_generation_that_a_sender_claims_does_not_count(self) -> None:
        async with self.log() as log:
            await log.append("1", generation=7)
            member = await log.member()
            (got,) = await log.receive(member)
            assert got.generation == 0
            await self.within(member.retry(got, RetryAfter(0.0)), what="retrying")
            (again,) = await log.receive(member)
            assert (again.retried, again.generation) == (True, 0)
            await self.within(member.bury(again, Bury("rejected")), what="burying")
            await log.backend.revive(log.topic, GROUP, await log.until_dead(1))
            (revived,) = await log.handle(member)
            assert revived.generation == 0

    # ---- looking ----------------------------------------------------------------------------------------------------

    async def test_the_lag_is_what_is_not_done_by_partition(self) -> None:
        async with self.log(partitions=2) as log:
            stats = await log.until_lag(0)
            assert (stats.topic, stats.group) == (log.topic, GROUP)
            assert stats.oldest is None
            await log.append_all([self.message(f"{number}", key=f"k{number}") for number in range(20)])
            stats = await log.until_lag(20)
            assert sum(stats.by_partition.values()) == 20
            assert set(stats.by_partition) == {0, 1}
            assert all(stats.by_partition.values())
            assert stats.oldest is None or 0 <= stats.oldest <= 10 * self.patience
            member = await log.only_member()
            got = await log.receive(member, 20)
            await member.done([record for record in got if record.partition == 0])
            stats = await log.until_lag(len([record for record in got if record.partition == 1]))
            assert stats.by_partition[0] == 0
            assert stats.members in (None, 1)

    async def test_the_groups_of_a_topic_are_listed(self) -> None:
        async with self.log("billing", "warehouse") as log:
            assert {"billing", "warehouse"} <= set(await log.backend.groups(log.topic))

    async def test_a_topic_can_be_read_without_being_in_a_group(self) -> None:
        async with self.log() as log:
            sent = await log.append(*"abcde")
            got = await self.within(log.backend.read(log.topic, 0, 1, 3), what="reading")
            assert [(record.offset, record.envelope.id) for record in got] == [(n, sent[n].id) for n in (1, 2, 3)]
            assert len(await self.within(log.backend.read(log.topic, 0, 3, 100), what="reading")) == 2
            assert await self.within(log.backend.read(log.topic, 0, 5, 100), what="reading") == []
            assert [record.offset for record in await log.handle(await log.member(), 5)] == [0, 1, 2, 3, 4]

    async def test_what_is_older_than_the_retention_is_forgotten_and_the_group_goes_on_behind_it(self) -> None:
        async with self.log(retention=3600.0) as log:
            if not self.drives_clock:
                self.skip("the retention of this backend goes by the machine's clock")
            await log.append("0", "1")
            await self.pass_time(3601.0)
            await log.append("2")
            (got,) = await log.receive(await log.member())
            assert (got.offset, got.envelope.body) == (2, b"2")
            assert [record.offset for record in await log.backend.read(log.topic, 0, 0, 10)] == [2]
            assert (await log.backend.stats(log.topic, GROUP)).lag == 1

    # ---- declaring --------------------------------------------------------------------------------------------------

    async def test_declaring_twice_changes_nothing(self) -> None:
        async with self.log() as log:
            await log.append("1")
            groups = [GroupSpec(topic=log.topic, group=GROUP)]
            await self.within(log.backend.declare([log.spec], groups), what="declaring")
            assert await log.backend.check([log.spec], groups) == []
            await log.handle(await log.member())

    async def test_check_names_what_is_missing_and_creates_nothing(self) -> None:
        async with self.log() as log:
            missing = TopicSpec(name=self.name("missing"), partitions=1)
            for _ in range(2):
                lines = await log.backend.check([log.spec, missing], [GroupSpec(topic=missing.name, group="new")])
                assert lines == [
                    f"would create the topic {missing.name!r} with 1 partition",
                    f"would create the group 'new' of {missing.name!r}",
                ]

    async def test_a_difference_to_what_exists_is_named_and_changes_nothing(self) -> None:
        async with self.log(partitions=2) as log:
            other = TopicSpec(name=log.topic, partitions=3)
            lines = await log.backend.check([other])
            assert any(log.topic in line and "partitions" in line for line in lines), lines
            assert all(line.startswith("would refuse: ") for line in lines), lines
            error = await raised(log.backend.declare([other]), SetupError)
            assert log.topic in str(error)
            assert "partitions" in str(error)
            assert await log.backend.check([log.spec]) == []

    async def test_a_name_that_a_backend_could_misread_is_refused(self) -> None:
        async with self.log() as log:
            for name in REFUSED_NAMES:
                error = await raised(log.backend.declare([TopicSpec(name=name, partitions=1)]), SetupError)
                assert "topic" in str(error), error
                groups = [GroupSpec(topic=log.topic, group=name)]
                error = await raised(log.backend.declare([], groups), SetupError)
                assert "group" in str(error), error


__all__ = ["LogSuite", "OpenLog", "Reader"]
