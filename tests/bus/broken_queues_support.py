"""Task queues with one bug each, and the test of the suite that is there for it."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, ClassVar

import msgspec

from polywire.bus.backend.memory import MemoryConsumer, MemoryQueue
from polywire.bus.backend.memory import queue as queue_module
from polywire.bus.core import (
    Ack,
    DeadFilter,
    DeadLetter,
    Delivery,
    Envelope,
    QueueSpec,
    Settlement,
    new_id,
)
from polywire.errors import (
    BackendUnreachable,
    ConsumerClosed,
    PublishUnknown,
)
from polywire.testing.buses import PASSWORD
from polywire.testing.queues import QueueSuite


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

    down = False
    told = "The server does not answer."

    async def start(self) -> None:
        if PASSWORD in self._url:
            raise BackendUnreachable(self.told.replace("%s", self._url))
        await super().start()

    def stop(self) -> None:
        self.down = True

    def go_on(self) -> None:
        self.down = False

    async def send(
        self, queue: str, envelopes: Sequence[Envelope], *, timeout: float | None = None
    ) -> list[Exception | None]:
        if await still(self, timeout):
            return [PublishUnknown("The server did not answer.", id=envelope.id) for envelope in envelopes]
        return await super().send(queue, envelopes, timeout=timeout)


async def still(backend: Any, timeout: float | None) -> bool:
    """Wait while the server is down; whether it is down then."""
    end = backend._clock.monotonic() + (3600.0 if timeout is None else timeout)
    while backend.down:
        if backend._clock.monotonic() >= end:
            return True
        await backend._clock.sleep(0.1)
    return False


class WaitsForTheServerWithoutEnd(Unbroken):
    async def send(
        self, queue: str, envelopes: Sequence[Envelope], *, timeout: float | None = None
    ) -> list[Exception | None]:
        return await super().send(queue, envelopes)


class GivesUpAtOnce(Unbroken):
    async def send(
        self, queue: str, envelopes: Sequence[Envelope], *, timeout: float | None = None
    ) -> list[Exception | None]:
        return await super().send(queue, envelopes, timeout=0.0)


class ConfirmsWithoutAServer(Unbroken):
    async def send(
        self, queue: str, envelopes: Sequence[Envelope], *, timeout: float | None = None
    ) -> list[Exception | None]:
        if self.down:
            return [None] * len(envelopes)
        return await super().send(queue, envelopes, timeout=timeout)


class NeverComesBack(Unbroken):
    def go_on(self) -> None:
        return


class TellsThePassword(Unbroken):
    told = "%s does not answer."


class ConfirmsBeforeItIsKept(Unbroken):
    """Writes to its disk later."""

    def restart(self) -> None:
        super().restart()
        for name, queue in self._space.queues.items():
            self._space.queues[name] = self.store(queue.spec, self._clock)


class AcknowledgesAtReceive(Unbroken):
    class worker(MemoryConsumer):
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

    class worker(MemoryConsumer):
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
    class worker(MemoryConsumer):
        async def settle(
            self, settlements: Sequence[Settlement], starting: Sequence[Delivery] = ()
        ) -> Collection[Delivery]:
            await super().settle(settlements, starting)
            return starting


class CountsAttemptsAtClaim(Unbroken):
    class worker(MemoryConsumer):
        async def receive(self, limit: int) -> list[Delivery]:
            got = await super().receive(limit)
            await self.settle((), got)
            return got


class LosesWhatACancelledReceiveTook(Unbroken):
    class worker(MemoryConsumer):
        async def receive(self, limit: int) -> list[Delivery]:
            got = await super().receive(limit)
            await asyncio.sleep(0.001)
            return got


class IgnoresItsLimit(Unbroken):
    class worker(MemoryConsumer):
        @property
        def room(self) -> int:
            return 1000


class ForgetsToRelease(Unbroken):
    class worker(MemoryConsumer):
        async def close(self) -> None:
            self._end(ConsumerClosed(f"the queue {self._queue.spec.name!r} is closed"))


class SleepsThroughItsEnd(Unbroken):
    class worker(MemoryConsumer):
        async def close(self) -> None:
            self._receiving.clear()
            await super().close()


class CannotBeClosedTwice(Unbroken):
    class worker(MemoryConsumer):
        async def close(self) -> None:
            if self._ended is not None:
                raise RuntimeError("closed already")
            await super().close()


class NeverHearsOfALoss(Unbroken):
    class worker(MemoryConsumer):
        def cut(self) -> None:
            queue_module._lose_all(self._queue, list(self._held.values()))


class ReleaseCostsAnAttempt(Unbroken):
    class store(queue_module._Queue):
        def release(self, message: Any, delay: float) -> None:
            self._give_back(message, delay)


class NeverCountsALoss(Unbroken):
    class store(queue_module._Queue):
        def lose(self, message: Any) -> None:
            self._give_back(message, 0.0)


class CountsWhatNeverStartedAsLost(Unbroken):
    class store(queue_module._Queue):
        def lose(self, message: Any) -> None:
            message.started = True
            super().lose(message)


class LosesTheMessagesOfTheDead(Unbroken):
    class store(queue_module._Queue):
        def lose(self, message: Any) -> None:
            self.finish(message)


class RetryLetsItsKeyGoOn(Unbroken):
    class store(queue_module._Queue):
        def retry(self, message: Any, delay: float) -> None:
            if message.only:
                self._advance(message)
            super().retry(message, delay)


class ReleaseLetsItsKeyGoOn(Unbroken):
    class store(queue_module._Queue):
        def release(self, message: Any, delay: float) -> None:
            if message.only and delay:
                self._advance(message)
            super().release(message, delay)


class HandsOutSeveralOfAKey(Unbroken):
    class store(queue_module._Queue):
        def _arrive(self, message: Any) -> None:
            message.lane = ""
            super()._arrive(message)


class StopsAKeyThatWasBuried(Unbroken):
    class store(queue_module._Queue):
        def bury(self, message: Any, reason: str, error: str) -> None:
            message.only = False
            super().bury(message, reason, error)


class TurnsAKeyRound(Unbroken):
    """The newest of a key first."""

    class store(queue_module._Queue):
        def _advance(self, message: Any) -> None:
            self._behind[message.lane].reverse()
            super()._advance(message)


class DeliversTwice(Unbroken):
    class store(queue_module._Queue):
        def take(self, limit: int) -> list[Any]:
            taken = super().take(limit)
            if taken:
                twin = self._new(taken[0].envelope)
                twin.only = False
                self._offer(twin)
            return taken


class IgnoresDelays(Unbroken):
    class store(queue_module._Queue):
        def _put(self, message: Any, delay: float) -> None:
            self._arrive(message)


class IgnoresTheDelayOfARelease(Unbroken):
    class store(queue_module._Queue):
        def _give_back(self, message: Any, delay: float) -> None:
            super()._give_back(message, 0.0)


class TellsDelaysByTheOrderOfSending(Unbroken):
    """One queue for all delays, in which the first one holds up the others."""

    class store(queue_module._Queue):
        def _postpone(self, message: Any, delay: float) -> None:
            waits = max((entry[0] for entry in self._later), default=0.0) - self._clock.monotonic()
            super()._postpone(message, max(delay, waits))


class IgnoresPriorities(Unbroken):
    class store(queue_module._Queue):
        def _new(self, envelope: Envelope) -> Any:
            message = super()._new(envelope)
            message.level = 0
            return message


class ForgetsThePriorityOfARetry(Unbroken):
    class store(queue_module._Queue):
        def retry(self, message: Any, delay: float) -> None:
            message.level = 0
            super().retry(message, delay)


class KeepsDuplicates(Unbroken):
    class store(queue_module._Queue):
        def _known(self, id: str) -> bool:
            return False


class TakesBackWhatIsHeld(Unbroken):
    class store(queue_module._Queue):
        def cancel(self, id: str) -> bool:
            return super().cancel(id) or id in self._by_id


class TellsNobodyWhatWasTakenAway(Unbroken):
    class worker(MemoryConsumer):
        def withdrawn(self, delivery: Delivery) -> None:
            self._held.pop(delivery, None)


class HandsOutAgainWhatWasTakenAway(Unbroken):
    class store(queue_module._Queue):
        def finish(self, message: queue_module._Message) -> None:
            self.release(message, 0.0)


class TakesAwayWhatWaitsOnly(Unbroken):
    async def withdraw(self, queue: str, id: str) -> bool:
        return await self.cancel(queue, id)


class RemembersWhatWasTakenBack(Unbroken):
    class store(queue_module._Queue):
        def cancel(self, id: str) -> bool:
            done = super().cancel(id)
            self._remembered.add(id)
            return done


class MovesNothing(Unbroken):
    class store(queue_module._Queue):
        def move(self, id: str, not_before: float) -> bool:
            return id in self._by_id


class PeekTakes(Unbroken):
    class store(queue_module._Queue):
        def peek(self, limit: int) -> list[Envelope]:
            return [message.envelope for message in self.take(limit)]


class CountsConcurrencyPerConsumer(Unbroken):
    class store(queue_module._Queue):
        def _allowed(self, limit: int) -> int:
            return min(limit, self.spec.concurrency or limit)


class IgnoresTheRate(Unbroken):
    class store(queue_module._Queue):
        def _allowed(self, limit: int) -> int:
            return limit


class RevivesWithAnotherId(Unbroken):
    class store(queue_module._Queue):
        def _new(self, envelope: Envelope) -> Any:
            again = msgspec.structs.replace(envelope, id=new_id()) if envelope.redrive_count else envelope
            return super()._new(again)


class RevivesAndKeepsTheLetter(Unbroken):
    class store(queue_module._Queue):
        def revive(self, letters: Sequence[DeadLetter]) -> int:
            kept = dict(self.dead)
            done = super().revive(letters)
            self.dead.update(kept)
            return done


class RevivesAll(Unbroken):
    class store(queue_module._Queue):
        def revive(self, letters: Sequence[DeadLetter]) -> int:
            return super().revive(list(self.dead.values()))


class DropsAll(Unbroken):
    class store(queue_module._Queue):
        def drop(self, letters: Sequence[DeadLetter]) -> int:
            self.dead.clear()
            return len(letters)


class ForgetsWhyItWasBuried(Unbroken):
    class store(queue_module._Queue):
        def bury(self, message: Any, reason: str, error: str) -> None:
            super().bury(message, "failed", "")


class ListsTheNewestFirst(Unbroken):
    async def dead(self, queue: str, which: DeadFilter = DeadFilter(), *, limit: int = 100) -> list[DeadLetter]:  # noqa: B008 - it is frozen
        return (await super().dead(queue, which))[::-1][:limit]


class IgnoresTheFilter(Unbroken):
    async def dead(self, queue: str, which: DeadFilter = DeadFilter(), *, limit: int = 100) -> list[DeadLetter]:  # noqa: B008 - it is frozen
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

    @asynccontextmanager
    async def backend_down(self, url: str) -> AsyncIterator[None]:
        for backend in self.opened:
            backend.stop()
        yield
        for backend in self.opened:
            backend.go_on()

    def url_of_nobody(self) -> str:
        return f"memory:{PASSWORD}"


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
    (
        TellsNobodyWhatWasTakenAway,
        "test_a_message_under_way_is_taken_away_from_its_consumer_which_hears_of_it",
    ),
    (
        HandsOutAgainWhatWasTakenAway,
        "test_a_message_under_way_is_taken_away_from_its_consumer_which_hears_of_it",
    ),
    (TakesAwayWhatWaitsOnly, "test_a_message_under_way_is_taken_away_from_its_consumer_which_hears_of_it"),
    (TakesAwayWhatWaitsOnly, "test_what_is_settled_after_it_was_taken_away_changes_nothing_for_its_key"),
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
    (WaitsForTheServerWithoutEnd, "test_while_the_backend_is_down_sending_waits_at_most_its_timeout"),
    (ConfirmsWithoutAServer, "test_while_the_backend_is_down_sending_waits_at_most_its_timeout"),
    (NeverComesBack, "test_while_the_backend_is_down_sending_waits_at_most_its_timeout"),
    (GivesUpAtOnce, "test_what_waited_while_the_backend_was_down_is_sent"),
    (TellsThePassword, "test_a_backend_that_does_not_answer_is_unreachable_and_its_password_stays_secret"),
    (StaysOpen, "test_closing_the_backend_ends_a_receive_under_way"),
]
