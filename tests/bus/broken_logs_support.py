"""Event logs with one bug each, and the test of the suite that is there for it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, ClassVar

from broken_queues_support import still

from polywire.bus.backend.memory import MemoryLog, MemoryLogConsumer
from polywire.bus.backend.memory import log as log_module
from polywire.bus.core import (
    Bury,
    DeadLetter,
    Envelope,
    Record,
    RetryAfter,
    Seek,
)
from polywire.errors import (
    BackendLost,
    ConsumerClosed,
    PublishUnknown,
)
from polywire.testing.logs import LogSuite


class UnbrokenLog(MemoryLog):
    member: ClassVar[type[MemoryLogConsumer]] = MemoryLogConsumer
    group: ClassVar[type[log_module._Group]] = log_module._Group
    share: ClassVar[type[log_module._Share]] = log_module._Share

    def __init__(self, url: str, **given: Any) -> None:
        super().__init__(url, **given)
        self.guarantees = replace(self.guarantees, durable=True)

    async def declare(self, topics: Any, groups: Any = ()) -> None:
        await super().declare(topics, groups)
        for group in self._space.groups:
            group.__class__ = self.group
            for share in group.shares:
                share.__class__ = self.share

    async def consumer(self, topics: Any, group: str, **given: Any) -> MemoryLogConsumer:
        made = await super().consumer(topics, group, **given)
        made.__class__ = self.member
        return made

    def restart(self) -> None:
        self.cut()

    down = False

    def stop(self) -> None:
        self.down = True

    def go_on(self) -> None:
        self.down = False

    async def append(
        self, topic: str, envelopes: Sequence[Envelope], *, timeout: float | None = None
    ) -> list[Exception | None]:
        if await still(self, timeout):
            return [PublishUnknown("The server did not answer.", id=envelope.id) for envelope in envelopes]
        return await super().append(topic, envelopes, timeout=timeout)


class AppendsWithoutEnd(UnbrokenLog):
    async def append(
        self, topic: str, envelopes: Sequence[Envelope], *, timeout: float | None = None
    ) -> list[Exception | None]:
        return await super().append(topic, envelopes)


class GivesUpAppendingAtOnce(UnbrokenLog):
    async def append(
        self, topic: str, envelopes: Sequence[Envelope], *, timeout: float | None = None
    ) -> list[Exception | None]:
        return await super().append(topic, envelopes, timeout=0.0)


class ConfirmsEventsBeforeTheyAreKept(UnbrokenLog):
    def restart(self) -> None:
        super().restart()
        for topic in self._space.topics.values():
            for shelf in topic.shelves:
                shelf.entries.clear()


class CommitsTheLastFinished(UnbrokenLog):
    class share(log_module._Share):
        def finish(self, offset: int) -> None:
            self.watermark = max(self.watermark, offset + 1)


class CommitsWhatWasReceived(UnbrokenLog):
    """At most once, as with a client that commits by itself."""

    class share(log_module._Share):
        def give_up(self) -> None:
            self.watermark = self.position
            super().give_up()


class LosesItsWatermarkOnRevoke(UnbrokenLog):
    class share(log_module._Share):
        def finish(self, offset: int) -> None:
            if not self.revoking:
                super().finish(offset)


class ReadsAheadForEver(UnbrokenLog):
    class share(log_module._Share):
        def room(self, limit: int) -> int:
            return min(limit - (self.position - self.watermark - len(self.done)), 10**9)


class IgnoresItsLimitPerPartition(UnbrokenLog):
    class share(log_module._Share):
        def room(self, limit: int) -> int:
            return 1000


class ForgetsTheDead(UnbrokenLog):
    class share(log_module._Share):
        def lose(self) -> None:
            self.give_up()


class AcceptsOldEpochs(UnbrokenLog):
    class member(MemoryLogConsumer):
        def _holds(self, record: Record) -> bool:
            return record in self._copies if record.retried else True

        async def done(self, records: Sequence[Record]) -> None:
            await super().done(records)
            for record in records:
                share = self._share(record)
                share.position = max(share.position, share.watermark)


class LosesEventsOfACancelledReceive(UnbrokenLog):
    class member(MemoryLogConsumer):
        async def receive(self, limit: int) -> list[Record]:
            got = await super().receive(limit)
            await asyncio.sleep(0.001)
            return got


class DoesNotTellWhatIsRevoked(UnbrokenLog):
    class member(MemoryLogConsumer):
        async def _tell(self, partitions: Any) -> None:
            return


class DoesNotAwaitWhoIsTold(UnbrokenLog):
    class member(MemoryLogConsumer):
        async def _tell(self, partitions: Any) -> None:
            self._told_later = asyncio.ensure_future(super()._tell(partitions))


class StaysAfterItsDeath(UnbrokenLog):
    class member(MemoryLogConsumer):
        def kill(self) -> None:
            self._end(BackendLost("dead"))


class StaysAfterClose(UnbrokenLog):
    class member(MemoryLogConsumer):
        async def close(self) -> None:
            self._end(ConsumerClosed(f"the group {self._name!r} was left"))


class IgnoresPause(UnbrokenLog):
    class member(MemoryLogConsumer):
        def pause(self, partitions: Any) -> None:
            return


class NeverResumes(UnbrokenLog):
    class member(MemoryLogConsumer):
        def resume(self, partitions: Any) -> None:
            return


class RetriesForEveryGroup(UnbrokenLog):
    class group(log_module._Group):
        def offer(self, copy: Any, *, first: bool = False) -> None:
            for group in self.topic.groups.values():
                log_module._Group.offer(group, copy, first=first)


class RetriesAtOnce(UnbrokenLog):
    class group(log_module._Group):
        def retry(self, copy: Any, delay: float) -> None:
            self.offer(copy)


class LosesRetriesOfWhoLeft(UnbrokenLog):
    class group(log_module._Group):
        def offer(self, copy: Any, *, first: bool = False) -> None:
            if not first:
                super().offer(copy)


class CountsNoAttempts(UnbrokenLog):
    class group(log_module._Group):
        def retry(self, copy: Any, delay: float) -> None:
            copy.starts = 0
            super().retry(copy, delay)


class RetriesAndDoesNotCountAsDone(UnbrokenLog):
    class member(MemoryLogConsumer):
        async def retry(self, record: Record, outcome: RetryAfter) -> None:
            entry = log_module._Entry(record.envelope, 0.0)
            copy = log_module._Copy(record.partition, record.offset, entry, record.attempt, 0)
            self._group(record.topic).retry(copy, outcome.delay)
            if record.retried:
                await self.done([record])


class CountsAsDoneAndForgetsTheCopy(UnbrokenLog):
    class member(MemoryLogConsumer):
        async def retry(self, record: Record, outcome: RetryAfter) -> None:
            await self.done([record])


class BuriesForEveryGroup(UnbrokenLog):
    class group(log_module._Group):
        def bury(self, record: Record, outcome: Bury) -> None:
            for group in self.topic.groups.values():
                log_module._Group.bury(group, record, outcome)


class RevivesForEveryGroup(UnbrokenLog):
    class group(log_module._Group):
        def revive(self, letters: Sequence[DeadLetter]) -> int:
            for letter in letters:
                if letter.position in self.dead:
                    self.topic.append(log_module._Entry(letter.envelope, 0.0))
            return super().revive(letters)


class GivesEveryPartitionToEverybody(UnbrokenLog):
    class member(MemoryLogConsumer):
        @property
        def assigned(self) -> Any:
            return frozenset(share.partition for group in self._groups for share in group.shares)


class SeeksEveryGroup(UnbrokenLog):
    class group(log_module._Group):
        def seek(self, to: Seek) -> None:
            for group in self.topic.groups.values():
                log_module._Group.seek(group, to)


class SeeksAndBelievesWhatWasReadBefore(UnbrokenLog):
    class group(log_module._Group):
        def seek(self, to: Seek) -> None:
            epochs = [share.epoch for share in self.shares]
            super().seek(to)
            for share, epoch in zip(self.shares, epochs, strict=True):
                share.epoch = epoch


class SeeksToTheNextEventOnly(UnbrokenLog):
    """Takes every time for now."""

    class group(log_module._Group):
        def seek(self, to: Seek) -> None:
            super().seek(Seek(latest=True) if to.time is not None else to)


class ForgetsToRaiseTheGeneration(UnbrokenLog):
    class group(log_module._Group):
        def raise_generation(self) -> None:
            return


class RaisesTheGenerationOfEveryGroup(UnbrokenLog):
    class group(log_module._Group):
        def raise_generation(self) -> None:
            for group in self.topic.groups.values():
                group.generation += 1


class RaisesTheGenerationOnceOnly(UnbrokenLog):
    class group(log_module._Group):
        def raise_generation(self) -> None:
            self.generation = 1


class RaisesTheGenerationOfWhatWasSoughtOnly(UnbrokenLog):
    """As where it is kept by partition."""

    class group(log_module._Group):
        def seek(self, to: Seek) -> None:
            super().seek(to)
            self.moved = range(len(self.shares)) if to.offsets is None else to.offsets

    class member(MemoryLogConsumer):
        def _record(self, share: log_module._Share, offset: int, generation: int) -> Record:
            moved = getattr(self._group(share.partition[0]), "moved", ())
            return super()._record(share, offset, generation if share.partition[1] in moved else 0)


class ForgetsTheGenerationWithItsMembers(UnbrokenLog):
    class member(MemoryLogConsumer):
        async def close(self) -> None:
            for group in self._groups:
                group.generation = 0
            await super().close()


class ForgetsTheGenerationWhenItIsRestarted(UnbrokenLog):
    def restart(self) -> None:
        super().restart()
        for group in self._space.groups:
            group.generation = 0


class RaisesTheGenerationOfWhoJoinsOnly(UnbrokenLog):
    class member(MemoryLogConsumer):
        def _record(self, share: log_module._Share, offset: int, generation: int) -> Record:
            self.joined = getattr(self, "joined", generation)
            return super()._record(share, offset, self.joined)


class GivesCopiesTheGenerationOfTheGroup(UnbrokenLog):
    class member(MemoryLogConsumer):
        def _hold(self, group: log_module._Group, copy: Any) -> Record:
            record = super()._hold(group, copy)
            record.generation = group.generation
            return record


class GivesCopiesTheGenerationOfTheirSender(UnbrokenLog):
    class member(MemoryLogConsumer):
        async def retry(self, record: Record, outcome: RetryAfter) -> None:
            record.generation = record.envelope.generation
            await super().retry(record, outcome)


class CountsTheLagToWhatWasRead(UnbrokenLog):
    class group(log_module._Group):
        def stats(self) -> Any:
            behind = {number: share.shelf.end - share.position for number, share in enumerate(self.shares)}
            return replace(super().stats(), lag=sum(behind.values()), by_partition=behind)


class BeginsWithWhatComes(UnbrokenLog):
    async def declare(self, topics: Any, groups: Any = ()) -> None:
        known = {id(group) for group in self._space.groups}
        await super().declare(topics, groups)
        for group in self._space.groups:
            if id(group) not in known:
                group.seek(Seek(latest=True))


class BeginsAlwaysWithTheEarliest(UnbrokenLog):
    async def declare(self, topics: Any, groups: Any = ()) -> None:
        known = {id(group) for group in self._space.groups}
        await super().declare(topics, groups)
        for group in self._space.groups:
            if id(group) not in known:
                group.seek(Seek(earliest=True))


class SpreadsKeys(UnbrokenLog):
    async def append(self, topic: str, envelopes: Sequence[Envelope], **given: Any) -> list[Exception | None]:
        if topic in self._space.topics:
            self._space.topics[topic]._number = lambda key: secrets.randbelow(4)  # type: ignore[method-assign]  # that is the bug
        return await super().append(topic, envelopes, **given)


class KeepsForEver(UnbrokenLog):
    async def declare(self, topics: Any, groups: Any = ()) -> None:
        await super().declare([replace(topic, retention=None) for topic in topics], groups)


class BrokenLogSuite(LogSuite):
    drives_clock = True
    patience = 120.0
    quiet = 1.0
    moment = 30.0
    kind: ClassVar[type[UnbrokenLog]] = UnbrokenLog

    def url(self) -> str:
        self.opened: list[Any] = []
        return f"memory:{secrets.token_hex(8)}"

    async def open_backend(self, url: str) -> UnbrokenLog:
        backend = self.kind(url, clock=self.clock)
        await backend.start()
        self.opened.append(backend)
        return backend

    async def kill_member(self, member: Any) -> None:
        member.kill()

    async def restart_backend(self, url: str) -> None:
        for backend in self.opened:
            backend.restart()

    @asynccontextmanager
    async def backend_down(self, url: str) -> AsyncIterator[None]:
        for backend in self.opened:
            backend.stop()
        yield
        for backend in self.opened:
            backend.go_on()


PLANTED_IN_LOGS: list[tuple[type[UnbrokenLog], str]] = [
    (ConfirmsEventsBeforeTheyAreKept, "test_what_was_confirmed_is_there_after_the_backend_was_restarted"),
    (CommitsTheLastFinished, "test_only_what_was_done_without_a_gap_is_not_read_again"),
    (CommitsTheLastFinished, "test_a_member_killed_before_done_loses_no_event"),
    (CommitsWhatWasReceived, "test_only_what_was_done_without_a_gap_is_not_read_again"),
    (CommitsWhatWasReceived, "test_done_after_close_changes_nothing"),
    (LosesItsWatermarkOnRevoke, "test_revoking_is_awaited_before_a_partition_goes_to_another_member"),
    (ReadsAheadForEver, "test_receive_does_not_go_on_far_behind_a_record_that_is_not_done"),
    (IgnoresItsLimitPerPartition, "test_a_member_holds_at_most_its_limit_per_partition"),
    (ForgetsTheDead, "test_an_event_that_kills_its_worker_is_a_suspect"),
    (AcceptsOldEpochs, "test_done_of_an_older_epoch_is_ignored"),
    (AcceptsOldEpochs, "test_done_after_close_changes_nothing"),
    (LosesEventsOfACancelledReceive, "test_a_cancelled_receive_loses_nothing"),
    (DoesNotTellWhatIsRevoked, "test_revoking_is_awaited_before_a_partition_goes_to_another_member"),
    (DoesNotAwaitWhoIsTold, "test_revoking_is_awaited_before_a_partition_goes_to_another_member"),
    (StaysAfterItsDeath, "test_a_member_killed_before_done_loses_no_event"),
    (StaysAfterClose, "test_a_member_that_leaves_leaves_its_partitions_to_the_others"),
    (IgnoresPause, "test_a_paused_partition_gives_nothing_until_it_is_resumed"),
    (NeverResumes, "test_a_paused_partition_gives_nothing_until_it_is_resumed"),
    (RetriesForEveryGroup, "test_a_retried_event_comes_again_to_its_own_group_only_and_not_early"),
    (RetriesAtOnce, "test_a_retried_event_comes_again_to_its_own_group_only_and_not_early"),
    (LosesRetriesOfWhoLeft, "test_a_retried_event_that_was_not_done_comes_to_another_member"),
    (CountsNoAttempts, "test_every_retry_counts_an_attempt"),
    (RetriesAndDoesNotCountAsDone, "test_a_retried_event_counts_as_done_in_its_topic"),
    (CountsAsDoneAndForgetsTheCopy, "test_a_retried_event_counts_as_done_in_its_topic"),
    (BuriesForEveryGroup, "test_a_buried_event_is_a_dead_letter_of_its_group_only"),
    (RevivesForEveryGroup, "test_a_revived_event_comes_again_to_its_group_and_to_no_other"),
    (GivesEveryPartitionToEverybody, "test_two_members_share_the_partitions"),
    (SeeksEveryGroup, "test_seeking_moves_one_group_only"),
    (SeeksAndBelievesWhatWasReadBefore, "test_a_running_group_is_told_where_to_go_on_or_the_seek_is_refused"),
    (SeeksToTheNextEventOnly, "test_a_group_can_be_sent_to_a_time"),
    (ForgetsToRaiseTheGeneration, "test_a_seek_raises_the_generation_of_its_group_and_of_no_other"),
    (RaisesTheGenerationOfEveryGroup, "test_a_seek_raises_the_generation_of_its_group_and_of_no_other"),
    (RaisesTheGenerationOnceOnly, "test_a_seek_raises_the_generation_of_its_group_and_of_no_other"),
    (RaisesTheGenerationOfWhatWasSoughtOnly, "test_a_seek_of_one_partition_raises_the_generation_of_all"),
    (ForgetsTheGenerationWithItsMembers, "test_the_generation_outlives_members_and_connections"),
    (ForgetsTheGenerationWhenItIsRestarted, "test_the_generation_outlives_a_restart_of_the_backend"),
    (RaisesTheGenerationOfWhoJoinsOnly, "test_members_that_run_read_in_the_new_generation_or_the_seek_is_refused"),
    (GivesCopiesTheGenerationOfTheGroup, "test_retries_dead_letters_and_redrives_keep_the_generation_of_their_event"),
    (GivesCopiesTheGenerationOfTheirSender, "test_a_generation_that_a_sender_claims_does_not_count"),
    (CountsTheLagToWhatWasRead, "test_the_lag_is_what_is_not_done_by_partition"),
    (BeginsWithWhatComes, "test_a_new_group_begins_with_the_earliest_event"),
    (BeginsAlwaysWithTheEarliest, "test_a_new_group_may_begin_with_what_comes"),
    (SpreadsKeys, "test_events_of_one_key_are_in_one_partition_in_the_order_of_the_calls"),
    (AppendsWithoutEnd, "test_while_the_backend_is_down_appending_waits_at_most_its_timeout"),
    (GivesUpAppendingAtOnce, "test_what_waited_while_the_backend_was_down_is_appended"),
    (KeepsForEver, "test_what_is_older_than_the_retention_is_forgotten_and_the_group_goes_on_behind_it"),
]
