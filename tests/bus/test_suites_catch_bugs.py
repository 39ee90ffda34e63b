"""The suites can fail: each planted bug in a backend is caught by the test that is there for it."""

from __future__ import annotations

import asyncio
import secrets
import unittest
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, ClassVar, TypeVar, cast

import msgspec
import pytest

from polywire.bus.backend.memory import MemoryConsumer, MemoryFanout, MemoryLog, MemoryLogConsumer, MemoryQueue
from polywire.bus.backend.memory import log as log_module
from polywire.bus.backend.memory import queue as queue_module
from polywire.bus.core import (
    Ack,
    Binding,
    Bury,
    DeadFilter,
    DeadLetter,
    Delivery,
    Envelope,
    QueueSpec,
    Record,
    RetryAfter,
    Seek,
    Settlement,
    new_id,
)
from polywire.errors import BackendLost, ConsumerClosed, NobodyListens, PolywireError
from polywire.testing.buses import BusSuite
from polywire.testing.fanouts import FanoutSuite
from polywire.testing.logs import LogSuite
from polywire.testing.queues import QueueSuite

S = TypeVar("S", bound=BusSuite)

# ---- queues ----------------------------------------------------------------------------------------------------------


class Unbroken(MemoryQueue):
    """What the bugs are planted into. It claims to be durable, and its server is one that a test can restart."""

    worker: ClassVar[type[MemoryConsumer]] = MemoryConsumer
    store: ClassVar[type[queue_module._Queue]] = queue_module._Queue

    def __init__(self, url: str, **given: Any) -> None:
        super().__init__(url, **given)
        self.guarantees = replace(self.guarantees, durable=True)

    async def declare(self, queues: Sequence[QueueSpec]) -> None:
        await super().declare(queues)
        for queue in self._space.queues.values():
            queue.__class__ = self.store

    async def consumer(self, queue: str, *, limit: int) -> MemoryConsumer:
        made = await super().consumer(queue, limit=limit)
        made.__class__ = self.worker
        return made

    def restart(self) -> None:
        self.cut()


class ConfirmsBeforeItIsKept(Unbroken):
    """Writes to its disk later."""

    def restart(self) -> None:
        super().restart()
        for name, queue in self._space.queues.items():
            self._space.queues[name] = self.store(queue.spec, self._clock)


class AcknowledgesAtReceive(Unbroken):
    class worker(MemoryConsumer):  # noqa: N801 - it stands for the attribute
        async def receive(self, limit: int) -> list[Delivery]:
            got = await super().receive(limit)
            await super().settle([Settlement(delivery, Ack()) for delivery in got])
            return got

        async def settle(
            self, settlements: Sequence[Settlement], starting: Sequence[Delivery] = ()
        ) -> Collection[Delivery]:
            return starting


class SettlesWithoutFence(Unbroken):
    """Believes whoever knows the message."""

    class worker(MemoryConsumer):  # noqa: N801
        async def settle(
            self, settlements: Sequence[Settlement], starting: Sequence[Delivery] = ()
        ) -> Collection[Delivery]:
            for settlement in settlements:
                message = settlement.delivery.token
                self._held.pop(settlement.delivery, None)
                if message.state == queue_module.HELD:
                    self._apply(message, settlement.outcome)
            return await super().settle((), starting)


class LetsAnythingStart(Unbroken):
    class worker(MemoryConsumer):  # noqa: N801
        async def settle(
            self, settlements: Sequence[Settlement], starting: Sequence[Delivery] = ()
        ) -> Collection[Delivery]:
            await super().settle(settlements, starting)
            return starting


class CountsAttemptsAtClaim(Unbroken):
    class worker(MemoryConsumer):  # noqa: N801
        async def receive(self, limit: int) -> list[Delivery]:
            got = await super().receive(limit)
            await self.settle((), got)
            return got


class LosesWhatACancelledReceiveTook(Unbroken):
    class worker(MemoryConsumer):  # noqa: N801
        async def receive(self, limit: int) -> list[Delivery]:
            got = await super().receive(limit)
            await asyncio.sleep(0.001)
            return got


class IgnoresItsLimit(Unbroken):
    class worker(MemoryConsumer):  # noqa: N801
        @property
        def room(self) -> int:
            return 1000


class ForgetsToRelease(Unbroken):
    class worker(MemoryConsumer):  # noqa: N801
        async def close(self) -> None:
            self._end(ConsumerClosed(f"the queue {self._queue.spec.name!r} is closed"))


class SleepsThroughItsEnd(Unbroken):
    class worker(MemoryConsumer):  # noqa: N801
        async def close(self) -> None:
            self._receiving.clear()
            await super().close()


class CannotBeClosedTwice(Unbroken):
    class worker(MemoryConsumer):  # noqa: N801
        async def close(self) -> None:
            if self._ended is not None:
                raise RuntimeError("closed already")
            await super().close()


class NeverHearsOfALoss(Unbroken):
    class worker(MemoryConsumer):  # noqa: N801
        def cut(self) -> None:
            queue_module._lose_all(self._queue, list(self._held.values()))


class ReleaseCostsAnAttempt(Unbroken):
    class store(queue_module._Queue):  # noqa: N801
        def release(self, message: Any, delay: float) -> None:
            self._give_back(message, delay)


class NeverCountsALoss(Unbroken):
    class store(queue_module._Queue):  # noqa: N801
        def lose(self, message: Any) -> None:
            self._give_back(message, 0.0)


class CountsWhatNeverStartedAsLost(Unbroken):
    class store(queue_module._Queue):  # noqa: N801
        def lose(self, message: Any) -> None:
            message.started = True
            super().lose(message)


class LosesTheMessagesOfTheDead(Unbroken):
    class store(queue_module._Queue):  # noqa: N801
        def lose(self, message: Any) -> None:
            self.finish(message)


class RetryLetsItsKeyGoOn(Unbroken):
    class store(queue_module._Queue):  # noqa: N801
        def retry(self, message: Any, delay: float) -> None:
            if message.only:
                self._advance(message)
            super().retry(message, delay)


class ReleaseLetsItsKeyGoOn(Unbroken):
    class store(queue_module._Queue):  # noqa: N801
        def release(self, message: Any, delay: float) -> None:
            if message.only and delay:
                self._advance(message)
            super().release(message, delay)


class HandsOutSeveralOfAKey(Unbroken):
    class store(queue_module._Queue):  # noqa: N801
        def _arrive(self, message: Any) -> None:
            message.lane = ""
            super()._arrive(message)


class StopsAKeyThatWasBuried(Unbroken):
    class store(queue_module._Queue):  # noqa: N801
        def bury(self, message: Any, reason: str, error: str) -> None:
            message.only = False
            super().bury(message, reason, error)


class TurnsAKeyRound(Unbroken):
    """The newest of a key first."""

    class store(queue_module._Queue):  # noqa: N801
        def _advance(self, message: Any) -> None:
            self._behind[message.lane].reverse()
            super()._advance(message)


class DeliversTwice(Unbroken):
    class store(queue_module._Queue):  # noqa: N801
        def take(self, limit: int) -> list[Any]:
            taken = super().take(limit)
            if taken:
                twin = self._new(taken[0].envelope)
                twin.only = False
                self._offer(twin)
            return taken


class IgnoresDelays(Unbroken):
    class store(queue_module._Queue):  # noqa: N801
        def _put(self, message: Any, delay: float) -> None:
            self._arrive(message)


class IgnoresTheDelayOfARelease(Unbroken):
    class store(queue_module._Queue):  # noqa: N801
        def _give_back(self, message: Any, delay: float) -> None:
            super()._give_back(message, 0.0)


class TellsDelaysByTheOrderOfSending(Unbroken):
    """One queue for all delays, in which the first one holds up the others."""

    class store(queue_module._Queue):  # noqa: N801
        def _postpone(self, message: Any, delay: float) -> None:
            waits = max((entry[0] for entry in self._later), default=0.0) - self._clock.monotonic()
            super()._postpone(message, max(delay, waits))


class IgnoresPriorities(Unbroken):
    class store(queue_module._Queue):  # noqa: N801
        def _new(self, envelope: Envelope) -> Any:
            message = super()._new(envelope)
            message.level = 0
            return message


class ForgetsThePriorityOfARetry(Unbroken):
    class store(queue_module._Queue):  # noqa: N801
        def retry(self, message: Any, delay: float) -> None:
            message.level = 0
            super().retry(message, delay)


class KeepsDuplicates(Unbroken):
    class store(queue_module._Queue):  # noqa: N801
        def _known(self, id: str) -> bool:
            return False


class TakesBackWhatIsHeld(Unbroken):
    class store(queue_module._Queue):  # noqa: N801
        def cancel(self, id: str) -> bool:
            return super().cancel(id) or id in self._by_id


class RemembersWhatWasTakenBack(Unbroken):
    class store(queue_module._Queue):  # noqa: N801
        def cancel(self, id: str) -> bool:
            done = super().cancel(id)
            self._remembered.add(id)
            return done


class MovesNothing(Unbroken):
    class store(queue_module._Queue):  # noqa: N801
        def move(self, id: str, not_before: float) -> bool:
            return id in self._by_id


class PeekTakes(Unbroken):
    class store(queue_module._Queue):  # noqa: N801
        def peek(self, limit: int) -> list[Envelope]:
            return [message.envelope for message in self.take(limit)]


class CountsConcurrencyPerConsumer(Unbroken):
    class store(queue_module._Queue):  # noqa: N801
        def _allowed(self, limit: int) -> int:
            return min(limit, self.spec.concurrency or limit)


class IgnoresTheRate(Unbroken):
    class store(queue_module._Queue):  # noqa: N801
        def _allowed(self, limit: int) -> int:
            return limit


class RevivesWithAnotherId(Unbroken):
    class store(queue_module._Queue):  # noqa: N801
        def _new(self, envelope: Envelope) -> Any:
            again = msgspec.structs.replace(envelope, id=new_id()) if envelope.redrive_count else envelope
            return super()._new(again)


class RevivesAndKeepsTheLetter(Unbroken):
    class store(queue_module._Queue):  # noqa: N801
        def revive(self, letters: Sequence[DeadLetter]) -> int:
            kept = dict(self.dead)
            done = super().revive(letters)
            self.dead.update(kept)
            return done


class RevivesAll(Unbroken):
    class store(queue_module._Queue):  # noqa: N801
        def revive(self, letters: Sequence[DeadLetter]) -> int:
            return super().revive(list(self.dead.values()))


class DropsAll(Unbroken):
    class store(queue_module._Queue):  # noqa: N801
        def drop(self, letters: Sequence[DeadLetter]) -> int:
            self.dead.clear()
            return len(letters)


class ForgetsWhyItWasBuried(Unbroken):
    class store(queue_module._Queue):  # noqa: N801
        def bury(self, message: Any, reason: str, error: str) -> None:
            super().bury(message, "failed", "")


class ListsTheNewestFirst(Unbroken):
    async def dead(self, queue: str, which: DeadFilter = DeadFilter(), *, limit: int = 100) -> list[DeadLetter]:  # noqa: B008
        return (await super().dead(queue, which))[::-1][:limit]


class IgnoresTheFilter(Unbroken):
    async def dead(self, queue: str, which: DeadFilter = DeadFilter(), *, limit: int = 100) -> list[DeadLetter]:  # noqa: B008
        return await super().dead(queue, limit=limit)


class TakesAnySize(Unbroken):
    def __init__(self, url: str, **given: Any) -> None:
        super().__init__(url, **given)
        self._promised = self.guarantees

    async def send(
        self, queue: str, envelopes: Sequence[Envelope], *, timeout: float | None = None
    ) -> list[Exception | None]:
        self.guarantees = replace(self._promised, max_message_bytes=2**40)
        try:
            return await super().send(queue, envelopes, timeout=timeout)
        finally:
            self.guarantees = self._promised


class DropsWhatNobodyDeclared(Unbroken):
    """As a broker does with an unroutable message that was not mandatory."""

    async def send(
        self, queue: str, envelopes: Sequence[Envelope], *, timeout: float | None = None
    ) -> list[Exception | None]:
        if queue not in self._space.queues:
            return [None] * len(envelopes)
        return await super().send(queue, envelopes, timeout=timeout)


class FailsTheWholeCallForOne(Unbroken):
    async def send(
        self, queue: str, envelopes: Sequence[Envelope], *, timeout: float | None = None
    ) -> list[Exception | None]:
        results = await super().send(queue, envelopes, timeout=timeout)
        for error in results:
            if error is not None:
                raise error
        return results


class DeclaresOverWhatExists(Unbroken):
    def _differences(self, spec: QueueSpec) -> list[str]:
        return []


class TakesAnyName(Unbroken):
    async def declare(self, queues: Sequence[QueueSpec]) -> None:
        for spec in queues:
            self._space.queues.setdefault(spec.name, self.store(spec, self._clock))


class StaysOpen(Unbroken):
    async def close(self) -> None:
        return


class BrokenQueueSuite(QueueSuite):
    drives_clock = True
    patience = 300.0
    quiet = 1.0
    moment = 30.0
    lease = 30.0
    kind: ClassVar[type[Unbroken]] = Unbroken

    def url(self) -> str:
        self.opened: list[Any] = []
        return f"memory:{secrets.token_hex(8)}"

    async def open_backend(self, url: str) -> Unbroken:
        backend = self.kind(url, clock=self.clock)
        await backend.start()
        self.opened.append(backend)
        return backend

    async def kill_consumer(self, consumer: Any) -> None:
        consumer.kill()

    async def cut(self, backend: Any) -> None:
        backend.cut()

    async def restart_backend(self, url: str) -> None:
        for backend in self.opened:
            backend.restart()


PLANTED_IN_QUEUES: list[tuple[type[Unbroken], str]] = [
    (ConfirmsBeforeItIsKept, "test_what_was_confirmed_is_there_after_the_backend_was_restarted"),
    (AcknowledgesAtReceive, "test_a_consumer_killed_before_ack_loses_no_message"),
    (AcknowledgesAtReceive, "test_close_releases_what_is_held_and_costs_no_attempt"),
    (SettlesWithoutFence, "test_settling_what_is_no_longer_held_changes_nothing"),
    (SettlesWithoutFence, "test_a_delivery_that_was_settled_cannot_be_settled_again_or_started"),
    (LetsAnythingStart, "test_settling_what_is_no_longer_held_changes_nothing"),
    (CountsAttemptsAtClaim, "test_what_was_received_but_never_started_costs_no_attempt"),
    (LosesWhatACancelledReceiveTook, "test_a_cancelled_receive_loses_nothing"),
    (IgnoresItsLimit, "test_a_consumer_holds_at_most_its_limit"),
    (ForgetsToRelease, "test_close_releases_what_is_held_and_costs_no_attempt"),
    (SleepsThroughItsEnd, "test_closing_ends_a_receive_under_way"),
    (CannotBeClosedTwice, "test_a_consumer_can_be_closed_twice"),
    (NeverHearsOfALoss, "test_what_a_consumer_holds_is_somebody_elses_once_the_connection_is_lost"),
    (ReleaseCostsAnAttempt, "test_a_released_message_comes_again_and_costs_no_attempt"),
    (ReleaseCostsAnAttempt, "test_close_releases_what_is_held_and_costs_no_attempt"),
    (NeverCountsALoss, "test_a_consumer_killed_after_the_start_gives_its_messages_to_another_with_the_loss_counted"),
    (NeverCountsALoss, "test_a_message_that_kills_its_workers_is_buried_at_the_limit"),
    (CountsWhatNeverStartedAsLost, "test_what_was_received_but_never_started_costs_no_attempt"),
    (LosesTheMessagesOfTheDead, "test_a_consumer_killed_before_ack_loses_no_message"),
    (RetryLetsItsKeyGoOn, "test_a_retried_message_keeps_its_key_waiting"),
    (RetryLetsItsKeyGoOn, "test_order_per_key_is_kept_by_several_consumers_with_retries_and_releases"),
    (ReleaseLetsItsKeyGoOn, "test_a_released_message_keeps_its_key_waiting"),
    (HandsOutSeveralOfAKey, "test_of_each_key_one_message_is_held_at_a_time_and_it_is_the_oldest"),
    (HandsOutSeveralOfAKey, "test_order_per_key_is_kept_when_a_consumer_is_killed"),
    (StopsAKeyThatWasBuried, "test_a_buried_message_lets_its_key_go_on"),
    (TurnsAKeyRound, "test_of_each_key_one_message_is_held_at_a_time_and_it_is_the_oldest"),
    (TurnsAKeyRound, "test_sends_of_many_at_once_keep_the_order_in_which_each_was_confirmed"),
    (DeliversTwice, "test_a_message_is_handed_to_one_consumer_only"),
    (DeliversTwice, "test_what_is_acknowledged_is_gone"),
    (IgnoresDelays, "test_delayed_messages_come_out_in_order_and_not_early"),
    (IgnoresDelays, "test_a_retry_waits_for_its_delay"),
    (IgnoresTheDelayOfARelease, "test_a_released_message_waits_for_its_delay"),
    (TellsDelaysByTheOrderOfSending, "test_delayed_messages_come_out_in_order_and_not_early"),
    (IgnoresPriorities, "test_higher_priorities_come_first"),
    (ForgetsThePriorityOfARetry, "test_a_retried_message_keeps_its_priority"),
    (KeepsDuplicates, "test_a_second_message_of_the_same_id_is_not_kept"),
    (TakesBackWhatIsHeld, "test_a_message_that_is_held_or_done_cannot_be_taken_back_or_moved"),
    (RemembersWhatWasTakenBack, "test_what_was_taken_back_can_be_sent_again"),
    (MovesNothing, "test_a_waiting_message_can_be_moved"),
    (PeekTakes, "test_peek_shows_what_comes_next_and_disturbs_nothing"),
    (CountsConcurrencyPerConsumer, "test_concurrency_holds_over_all_consumers"),
    (IgnoresTheRate, "test_a_rate_holds_over_all_consumers"),
    (RevivesWithAnotherId, "test_a_revived_message_comes_again_with_its_id_and_its_attempts_counted_afresh"),
    (RevivesAndKeepsTheLetter, "test_a_revived_message_comes_again_with_its_id_and_its_attempts_counted_afresh"),
    (RevivesAll, "test_only_the_dead_letters_named_are_revived"),
    (DropsAll, "test_a_dropped_dead_letter_is_gone"),
    (ForgetsWhyItWasBuried, "test_a_buried_message_is_a_dead_letter_with_its_reason_and_error"),
    (ListsTheNewestFirst, "test_dead_letters_are_listed_oldest_first_and_at_most_as_many_as_asked_for"),
    (IgnoresTheFilter, "test_dead_letters_are_found_by_what_is_asked_for"),
    (TakesAnySize, "test_messages_of_one_call_are_confirmed_each_for_itself"),
    (FailsTheWholeCallForOne, "test_messages_of_one_call_are_confirmed_each_for_itself"),
    (DropsWhatNobodyDeclared, "test_a_queue_that_nobody_declared_takes_no_message_and_no_consumer"),
    (DeclaresOverWhatExists, "test_a_difference_to_what_exists_is_named_and_changes_nothing"),
    (TakesAnyName, "test_a_name_that_a_backend_could_misread_is_refused"),
    (StaysOpen, "test_a_closed_backend_refuses_messages_and_consumers"),
    (StaysOpen, "test_closing_the_backend_ends_a_receive_under_way"),
]

# ---- logs ------------------------------------------------------------------------------------------------------------


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


class ConfirmsEventsBeforeTheyAreKept(UnbrokenLog):
    def restart(self) -> None:
        super().restart()
        for topic in self._space.topics.values():
            for shelf in topic.shelves:
                shelf.entries.clear()


class CommitsTheLastFinished(UnbrokenLog):
    class share(log_module._Share):  # noqa: N801
        def finish(self, offset: int) -> None:
            self.watermark = max(self.watermark, offset + 1)


class CommitsWhatWasReceived(UnbrokenLog):
    """At most once, as with a client that commits by itself."""

    class share(log_module._Share):  # noqa: N801
        def give_up(self) -> None:
            self.watermark = self.position
            super().give_up()


class LosesItsWatermarkOnRevoke(UnbrokenLog):
    class share(log_module._Share):  # noqa: N801
        def finish(self, offset: int) -> None:
            if not self.revoking:
                super().finish(offset)


class ReadsAheadForEver(UnbrokenLog):
    class share(log_module._Share):  # noqa: N801
        def room(self, limit: int) -> int:
            return min(limit - (self.position - self.watermark - len(self.done)), 10**9)


class IgnoresItsLimitPerPartition(UnbrokenLog):
    class share(log_module._Share):  # noqa: N801
        def room(self, limit: int) -> int:
            return 1000


class ForgetsTheDead(UnbrokenLog):
    class share(log_module._Share):  # noqa: N801
        def lose(self) -> None:
            self.give_up()


class AcceptsOldEpochs(UnbrokenLog):
    class member(MemoryLogConsumer):  # noqa: N801
        def _holds(self, record: Record) -> bool:
            return record in self._copies if record.retried else True

        async def done(self, records: Sequence[Record]) -> None:
            await super().done(records)
            for record in records:
                share = self._share(record)
                share.position = max(share.position, share.watermark)


class LosesEventsOfACancelledReceive(UnbrokenLog):
    class member(MemoryLogConsumer):  # noqa: N801
        async def receive(self, limit: int) -> list[Record]:
            got = await super().receive(limit)
            await asyncio.sleep(0.001)
            return got


class DoesNotTellWhatIsRevoked(UnbrokenLog):
    class member(MemoryLogConsumer):  # noqa: N801
        async def _tell(self, partitions: Any) -> None:
            return


class DoesNotAwaitWhoIsTold(UnbrokenLog):
    class member(MemoryLogConsumer):  # noqa: N801
        async def _tell(self, partitions: Any) -> None:
            self._told_later = asyncio.ensure_future(super()._tell(partitions))


class StaysAfterItsDeath(UnbrokenLog):
    class member(MemoryLogConsumer):  # noqa: N801
        def kill(self) -> None:
            self._end(BackendLost("dead"))


class StaysAfterClose(UnbrokenLog):
    class member(MemoryLogConsumer):  # noqa: N801
        async def close(self) -> None:
            self._end(ConsumerClosed(f"the group {self._name!r} was left"))


class IgnoresPause(UnbrokenLog):
    class member(MemoryLogConsumer):  # noqa: N801
        def pause(self, partitions: Any) -> None:
            return


class NeverResumes(UnbrokenLog):
    class member(MemoryLogConsumer):  # noqa: N801
        def resume(self, partitions: Any) -> None:
            return


class RetriesForEveryGroup(UnbrokenLog):
    class group(log_module._Group):  # noqa: N801
        def offer(self, copy: Any, *, first: bool = False) -> None:
            for group in self.topic.groups.values():
                log_module._Group.offer(group, copy, first=first)


class RetriesAtOnce(UnbrokenLog):
    class group(log_module._Group):  # noqa: N801
        def retry(self, copy: Any, delay: float) -> None:
            self.offer(copy)


class LosesRetriesOfWhoLeft(UnbrokenLog):
    class group(log_module._Group):  # noqa: N801
        def offer(self, copy: Any, *, first: bool = False) -> None:
            if not first:
                super().offer(copy)


class CountsNoAttempts(UnbrokenLog):
    class group(log_module._Group):  # noqa: N801
        def retry(self, copy: Any, delay: float) -> None:
            copy.starts = 0
            super().retry(copy, delay)


class RetriesAndDoesNotCountAsDone(UnbrokenLog):
    class member(MemoryLogConsumer):  # noqa: N801
        async def retry(self, record: Record, outcome: RetryAfter) -> None:
            entry = log_module._Entry(record.envelope, 0.0)
            copy = log_module._Copy(record.partition, record.offset, entry, record.attempt, 0)
            self._group(record.topic).retry(copy, outcome.delay)
            if record.retried:
                await self.done([record])


class CountsAsDoneAndForgetsTheCopy(UnbrokenLog):
    class member(MemoryLogConsumer):  # noqa: N801
        async def retry(self, record: Record, outcome: RetryAfter) -> None:
            await self.done([record])


class BuriesForEveryGroup(UnbrokenLog):
    class group(log_module._Group):  # noqa: N801
        def bury(self, record: Record, outcome: Bury) -> None:
            for group in self.topic.groups.values():
                log_module._Group.bury(group, record, outcome)


class RevivesForEveryGroup(UnbrokenLog):
    class group(log_module._Group):  # noqa: N801
        def revive(self, letters: Sequence[DeadLetter]) -> int:
            for letter in letters:
                if letter.position in self.dead:
                    self.topic.append(log_module._Entry(letter.envelope, 0.0))
            return super().revive(letters)


class GivesEveryPartitionToEverybody(UnbrokenLog):
    class member(MemoryLogConsumer):  # noqa: N801
        @property
        def assigned(self) -> Any:
            return frozenset(share.partition for group in self._groups for share in group.shares)


class SeeksEveryGroup(UnbrokenLog):
    class group(log_module._Group):  # noqa: N801
        def seek(self, to: Seek) -> None:
            for group in self.topic.groups.values():
                log_module._Group.seek(group, to)


class SeeksAndBelievesWhatWasReadBefore(UnbrokenLog):
    class group(log_module._Group):  # noqa: N801
        def seek(self, to: Seek) -> None:
            epochs = [share.epoch for share in self.shares]
            super().seek(to)
            for share, epoch in zip(self.shares, epochs, strict=True):
                share.epoch = epoch


class SeeksToTheNextEventOnly(UnbrokenLog):
    """Takes every time for now."""

    class group(log_module._Group):  # noqa: N801
        def seek(self, to: Seek) -> None:
            super().seek(Seek(latest=True) if to.time is not None else to)


class CountsTheLagToWhatWasRead(UnbrokenLog):
    class group(log_module._Group):  # noqa: N801
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
            self._space.topics[topic]._number = lambda key: secrets.randbelow(4)  # type: ignore[method-assign]
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
    (CountsTheLagToWhatWasRead, "test_the_lag_is_what_is_not_done_by_partition"),
    (BeginsWithWhatComes, "test_a_new_group_begins_with_the_earliest_event"),
    (BeginsAlwaysWithTheEarliest, "test_a_new_group_may_begin_with_what_comes"),
    (SpreadsKeys, "test_events_of_one_key_are_in_one_partition_in_the_order_of_the_calls"),
    (KeepsForEver, "test_what_is_older_than_the_retention_is_forgotten_and_the_group_goes_on_behind_it"),
]

# ---- fan-outs --------------------------------------------------------------------------------------------------------


class ServesTheFirstGroupOnly(MemoryFanout):
    async def _publish(self, topic: str, envelope: Envelope) -> Exception | None:
        groups = self._space.bindings.get(topic, {})
        self._space.bindings[topic] = dict(list(groups.items())[:1])
        try:
            return await super()._publish(topic, envelope)
        finally:
            self._space.bindings[topic] = groups


class IgnoresConditions(MemoryFanout):
    async def declare(self, topics: Sequence[str], bindings: Sequence[Binding]) -> None:
        await super().declare(topics, [replace(b, types=(), pattern=None, headers={}) for b in bindings])


class IsContentWithOneHeader(MemoryFanout):
    async def declare(self, topics: Sequence[str], bindings: Sequence[Binding]) -> None:
        await super().declare(topics, [replace(b, headers=dict(list(b.headers.items())[:1])) for b in bindings])


class TakesAStarForAHash(MemoryFanout):
    async def declare(self, topics: Sequence[str], bindings: Sequence[Binding]) -> None:
        await super().declare(topics, [replace(b, pattern=b.pattern and b.pattern.replace("*", "#")) for b in bindings])


class ConfirmsWhatNobodyGets(MemoryFanout):
    async def _publish(self, topic: str, envelope: Envelope) -> Exception | None:
        error = await super()._publish(topic, envelope)
        return None if isinstance(error, NobodyListens) else error


class PublishesTwice(MemoryFanout):
    async def _publish(self, topic: str, envelope: Envelope) -> Exception | None:
        await super()._publish(topic, msgspec.structs.replace(envelope, id=new_id()))
        return await super()._publish(topic, envelope)


class KeepsEventsForLateGroups(MemoryFanout):
    async def _publish(self, topic: str, envelope: Envelope) -> Exception | None:
        self._kept = [*getattr(self, "_kept", []), envelope]
        return await super()._publish(topic, envelope)

    async def declare(self, topics: Sequence[str], bindings: Sequence[Binding]) -> None:
        await super().declare(topics, bindings)
        for binding in bindings:
            await self.queues.send(binding.queue, getattr(self, "_kept", []))


class IgnoresKeys(MemoryFanout):
    async def declare(self, topics: Sequence[str], bindings: Sequence[Binding]) -> None:
        await super().declare(topics, [replace(b, keyed=False) for b in bindings])


class RebindsSilently(MemoryFanout):
    def _differences(self, bindings: Sequence[Binding]) -> list[str]:
        return []


class BrokenFanoutSuite(FanoutSuite):
    drives_clock = True
    patience = 120.0
    quiet = 1.0
    kind: ClassVar[type[MemoryFanout]] = MemoryFanout

    def url(self) -> str:
        return f"memory:{secrets.token_hex(8)}"

    async def open_backend(self, url: str) -> MemoryFanout:
        backend = self.kind(url, clock=self.clock)
        await backend.start()
        return backend


PLANTED_IN_FANOUTS: list[tuple[type[MemoryFanout], str]] = [
    (ServesTheFirstGroupOnly, "test_every_group_gets_every_event_once"),
    (IgnoresConditions, "test_a_group_of_some_types_gets_only_those"),
    (IgnoresConditions, "test_a_pattern_takes_a_word_by_a_star_and_any_number_by_a_hash"),
    (IsContentWithOneHeader, "test_a_group_that_asks_for_headers_gets_what_has_all_of_them"),
    (TakesAStarForAHash, "test_a_pattern_takes_a_word_by_a_star_and_any_number_by_a_hash"),
    (ConfirmsWhatNobodyGets, "test_an_event_that_no_group_wants_is_not_kept_and_its_sender_hears_of_it"),
    (PublishesTwice, "test_every_group_gets_every_event_once"),
    (KeepsEventsForLateGroups, "test_a_group_gets_what_was_published_after_its_binding_only"),
    (IgnoresKeys, "test_a_keyed_group_handles_the_events_of_a_key_one_after_the_other"),
    (RebindsSilently, "test_a_difference_to_what_exists_is_named"),
]

# ---- the proof -------------------------------------------------------------------------------------------------------


def _named(planted: Sequence[tuple[type[Any], str]]) -> list[str]:
    return [f"{kind.__name__}-{test[5:]}" for kind, test in planted]


async def _run(suite: BusSuite, test: str) -> None:
    try:
        await getattr(suite, test)()
    except unittest.SkipTest as reason:
        pytest.fail(f"{test} proves nothing: it was skipped, because {reason}")


async def _caught(suite: BusSuite, test: str) -> None:
    with pytest.raises((AssertionError, PolywireError, ValueError, RuntimeError, TimeoutError)):
        await _run(suite, test)


def _with(suite: type[S], kind: type[Any]) -> S:
    return cast(S, type(suite.__name__, (suite,), {"kind": kind})())


@pytest.mark.parametrize(("kind", "test"), PLANTED_IN_QUEUES, ids=_named(PLANTED_IN_QUEUES))
async def test_the_suite_of_queues_catches_a_broken_backend(kind: type[Unbroken], test: str) -> None:
    await _caught(_with(BrokenQueueSuite, kind), test)


@pytest.mark.parametrize(("kind", "test"), PLANTED_IN_LOGS, ids=_named(PLANTED_IN_LOGS))
async def test_the_suite_of_logs_catches_a_broken_backend(kind: type[UnbrokenLog], test: str) -> None:
    await _caught(_with(BrokenLogSuite, kind), test)


@pytest.mark.parametrize(("kind", "test"), PLANTED_IN_FANOUTS, ids=_named(PLANTED_IN_FANOUTS))
async def test_the_suite_of_fanouts_catches_a_broken_backend(kind: type[MemoryFanout], test: str) -> None:
    await _caught(_with(BrokenFanoutSuite, kind), test)


@pytest.mark.parametrize(
    ("suite", "test"),
    [
        *((BrokenQueueSuite, test) for test in sorted({test for _, test in PLANTED_IN_QUEUES})),
        *((BrokenLogSuite, test) for test in sorted({test for _, test in PLANTED_IN_LOGS})),
        *((BrokenFanoutSuite, test) for test in sorted({test for _, test in PLANTED_IN_FANOUTS})),
    ],
)
async def test_what_catches_a_bug_passes_without_one(suite: type[BusSuite], test: str) -> None:
    await _run(suite(), test)
