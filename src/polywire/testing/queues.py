"""What every backend of tasks promises, as tests: derive a class from `QueueSuite` and override `url`."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any, ClassVar, cast

from polywire.bus.backend.opening import open_tasks
from polywire.bus.core import (
    Ack,
    Bury,
    DeadFilter,
    Delivery,
    Envelope,
    Outcome,
    QueueConsumer,
    QueueSpec,
    Release,
    RetryAfter,
    Settlement,
    TaskQueue,
)
from polywire.bus.core.queue import ToldOfWithdrawals, Withdrawing
from polywire.errors import (
    BackendLost,
    BackendUnreachable,
    ConsumerClosed,
    DeliveryError,
    MessageRefused,
    PolywireError,
    PublishUnknown,
    SetupError,
    Unsupported,
)
from polywire.testing.buses import PASSWORD, BusSuite, raised
from polywire.testing.clock import ManualClock
from polywire.testing.queue_kit import OpenQueue

REFUSED_NAMES = ("", "a b", "mails/urgent", "mäils", "a\nb", "a'; drop table job; --", "..", "x" * 300)


class QueueSuite(BusSuite):
    """The rules of `polywire.bus.core.queue` as tests, the same for every backend; `Guarantees` choose among them.

    Override `url`, and of the hooks those that the backend can do: what it lacks is skipped, with the reason.
    """

    lease: ClassVar[float] = 2.0
    """Seconds of the queues' leases, where no connection tells that a worker is dead."""

    # ---- hooks ------------------------------------------------------------------------------------------------------

    def url(self) -> str:
        """Of the backend under test; of one that nobody else uses, where that is cheap."""
        raise NotImplementedError

    async def open_backend(self, url: str) -> TaskQueue:
        """A started one. Called several times with one URL, for several connections."""
        backend = open_tasks(url, clock=self.clock)
        await backend.start()
        return backend

    async def kill_consumer(self, consumer: QueueConsumer) -> None:
        """Let it end as with its process. Only for backends that are not shared; of the others a process is killed."""
        self.skip("the suite cannot kill a consumer of this backend")

    async def cut(self, backend: TaskQueue) -> None:
        """Let *backend* lose its connections, and with them what its consumers hold, while they are there."""
        self.skip("the suite cannot cut the connections of this backend")

    async def put_raw(self, backend: TaskQueue, queue: str, data: bytes) -> None:
        """Put bytes that are no message of ours into *queue*, as a foreign sender does."""
        self.skip("the suite cannot put foreign bytes into this backend")

    async def clean_up(self, backend: TaskQueue, queues: Sequence[QueueSpec]) -> None:
        """Delete what a test leaves, where it does not go with the URL."""

    # ---- ground -----------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def queue(self, **fields: Any) -> AsyncIterator[OpenQueue]:
        """A declared queue that no other test uses. *fields* are of QueueSpec."""
        spec = QueueSpec(**{"name": self.name("work"), "lease": self.lease, "lanes": 2, **fields})
        url = self.url()
        async with AsyncExitStack() as stack:
            backend = await self.within(self.open_backend(url), what="opening the backend")
            stack.push_async_callback(backend.close)
            stack.push_async_callback(self.clean_up, backend, [spec])
            if spec.keyed:
                self.need(backend.guarantees, "key_order")
            if spec.concurrency or spec.rate:
                self.need(backend.guarantees, "shared_limits")
            if spec.priorities > backend.guarantees.priorities:
                self.skip(f"{backend.guarantees.backend} has {backend.guarantees.priorities} priorities")
            await self.within(backend.declare([spec]), what="declaring")
            inner = await stack.enter_async_context(AsyncExitStack())
            yield OpenQueue(self, url, backend, spec, inner)

    # ---- sending and receiving --------------------------------------------------------------------------------------

    async def test_a_message_arrives_as_it_was_sent(self) -> None:
        async with self.queue() as queue:
            now = float(int(self.clock.time()))
            sent = Envelope(
                id="0199-grün",
                type="shop.v1.Mail/SendConfirmation",
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
                reply_to="answers",
            )
            await queue.send_all([sent])
            (got,) = await queue.handle(await queue.consumer())
            assert got.envelope == sent
            assert (got.queue, got.attempt, got.lost, got.unreadable) == (queue.name, 1, 0, None)

    async def test_any_bytes_can_be_a_body(self) -> None:
        async with self.queue() as queue:
            bodies = [bytes(range(256)), b"", b"x" * 100_000]
            sent = [self.message() for _ in bodies]
            for envelope, body in zip(sent, bodies, strict=True):
                envelope.body = body
            await queue.send_all(sent)
            got = await queue.handle(await queue.consumer(), 3)
            assert {d.envelope.id: d.envelope.body for d in got} == {e.id: e.body for e in sent}

    async def test_messages_of_one_call_are_confirmed_each_for_itself(self) -> None:
        async with self.queue() as queue:
            limit = queue.guarantees.max_message_bytes
            if limit > 2**28:
                self.skip(f"{queue.guarantees.backend} takes messages of {limit} bytes")
            small, large, last = self.message("a"), self.message(), self.message("b")
            large.body = b"x" * (limit + 1)
            sending = queue.backend.send(queue.name, [small, large, last], timeout=self.patience)
            results = await self.within(sending, what="sending")
            assert results[0] is None
            assert results[2] is None
            assert type(results[1]) is MessageRefused
            assert large.id in str(results[1])
            assert f"{limit + 1} bytes" in str(results[1])
            got = await queue.handle(await queue.consumer(), 2)
            assert {delivery.envelope.id for delivery in got} == {small.id, last.id}

    async def test_a_queue_that_nobody_declared_takes_no_message_and_no_consumer(self) -> None:
        async with self.queue() as queue:
            other = self.name("nobodys")
            (result,) = await self.within(queue.backend.send(other, [self.message()], timeout=self.patience))
            assert isinstance(result, MessageRefused)
            assert other in str(result)
            error = await raised(queue.backend.consumer(other, limit=1), SetupError, DeliveryError)
            assert other in str(error)

    async def test_sending_nothing_is_fine(self) -> None:
        async with self.queue() as queue:
            assert await queue.backend.send(queue.name, []) == []

    async def test_receive_waits_until_there_is_something(self) -> None:
        async with self.queue() as queue:
            consumer = await queue.consumer()
            receiving = asyncio.ensure_future(consumer.receive(5))
            await self.pass_time(0.05)
            assert not receiving.done()
            (sent,) = await queue.send("late")
            (got,) = await self.within(receiving, what="receiving")
            assert got.envelope.id == sent.id

    async def test_receive_hands_out_at_most_as_many_as_asked_for(self) -> None:
        async with self.queue() as queue:
            await queue.send(*"abcdefgh")
            consumer = await queue.consumer()
            for count in (1, 2, 3):
                assert 1 <= len(await self.within(consumer.receive(count))) <= count

    async def test_a_consumer_holds_at_most_its_limit(self) -> None:
        async with self.queue() as queue:
            await queue.send(*"abcdefgh")
            consumer = await queue.consumer(limit=3)
            held = await queue.receive(consumer, 3)
            await queue.nothing_for(consumer, what="a fourth message was handed out at a limit of 3")
            await queue.start(consumer, held)
            await queue.settle(consumer, held[:1], Ack())
            await queue.receive(consumer, 1)
            await queue.nothing_for(consumer)

    async def test_a_message_is_handed_to_one_consumer_only(self) -> None:
        async with self.queue() as queue:
            await queue.send("1")
            first, second = await queue.consumer(), await (await queue.again()).consumer()
            got = await self._first_of(first, second)
            assert len(got) == 1
            await queue.nothing_for(first)
            await queue.nothing_for(second)

    async def _first_of(self, *consumers: QueueConsumer) -> list[Delivery]:
        receiving = [asyncio.ensure_future(consumer.receive(10)) for consumer in consumers]
        await self.within(asyncio.wait(receiving, return_when=asyncio.FIRST_COMPLETED), what="receiving with two")
        await self.pass_time(0.05)
        for task in receiving:
            task.cancel()
        await asyncio.wait(receiving)
        return [delivery for task in receiving if not task.cancelled() for delivery in task.result()]

    async def test_two_consumers_share_the_work(self) -> None:
        async with self.queue() as queue:
            sent = await queue.send(*"abcdef")
            first, second = await queue.consumer(limit=3), await (await queue.again()).consumer(limit=3)
            got = await queue.receive(first, 3) + await queue.receive(second, 3)
            assert sorted(delivery.envelope.id for delivery in got) == sorted(envelope.id for envelope in sent)

    async def test_what_is_acknowledged_is_gone(self) -> None:
        async with self.queue() as queue:
            await queue.send("1", "2")
            consumer = await queue.consumer()
            await queue.handle(consumer, 2)
            await queue.until_stats(ready=0, delayed=0, in_flight=0, dead=0)
            await consumer.close()
            await queue.nothing_for(await queue.consumer())

    # ---- cancelling, closing, losing --------------------------------------------------------------------------------

    async def test_a_cancelled_receive_loses_nothing(self) -> None:
        async with self.queue() as queue:
            consumer = await queue.consumer()
            dice = random.Random(1)  # noqa: S311 - dice for tests
            sent: list[str] = []
            got: list[Delivery] = []
            for _ in range(25):
                receiving = asyncio.ensure_future(consumer.receive(5))
                await asyncio.sleep(0)
                sent += [envelope.id for envelope in await queue.send("a", "b")]
                for _ in range(dice.randrange(4)):
                    await asyncio.sleep(0)
                await asyncio.sleep(dice.random() * 0.005)
                receiving.cancel()
                await asyncio.wait([receiving])
                if not receiving.cancelled():
                    got += receiving.result()
            got += await queue.receive(consumer, len(sent) - len(got)) if len(got) < len(sent) else []
            assert sorted(delivery.envelope.id for delivery in got) == sorted(sent)
            assert {delivery.attempt for delivery in got} == {1}
            await queue.start(consumer, got)
            await queue.settle(consumer, got, Ack())
            await queue.until_stats(ready=0, in_flight=0, dead=0)

    async def test_what_a_cancelled_receive_would_have_returned_comes_to_another_one_after_close(self) -> None:
        async with self.queue() as queue:
            consumer = await queue.consumer()
            receiving = asyncio.ensure_future(consumer.receive(5))
            await self.pass_time(0.05)
            receiving.cancel()
            await asyncio.wait([receiving])
            (sent,) = await queue.send("1")
            await consumer.close()
            (got,) = await queue.receive(await queue.consumer())
            assert (got.envelope.id, got.attempt) == (sent.id, 1)

    async def test_a_consumer_can_be_closed_twice(self) -> None:
        async with self.queue() as queue:
            consumer = await queue.consumer()
            await asyncio.gather(consumer.close(), consumer.close())
            await consumer.close()
            error = await raised(consumer.receive(1), ConsumerClosed)
            assert queue.name in str(error)

    async def test_closing_ends_a_receive_under_way(self) -> None:
        async with self.queue() as queue:
            consumer = await queue.consumer()
            receiving = asyncio.ensure_future(consumer.receive(1))
            await self.pass_time(0.05)
            await self.within(consumer.close(), what="closing")
            await self.within(raised(receiving, ConsumerClosed), what="the end of receive")

    async def test_close_releases_what_is_held_and_costs_no_attempt(self) -> None:
        async with self.queue() as queue:
            self.need_exact_attempts(queue.guarantees)
            sent = await queue.send("1", "2", "3")
            consumer = await queue.consumer()
            held = await queue.receive(consumer, 3)
            await queue.start(consumer, held[:2])
            await consumer.close()
            got = await queue.receive(await queue.consumer(), 3)
            assert sorted(delivery.envelope.id for delivery in got) == sorted(envelope.id for envelope in sent)
            assert {(delivery.attempt, delivery.lost) for delivery in got} == {(1, 0)}

    async def test_a_backend_can_be_closed_twice(self) -> None:
        async with self.queue() as queue:
            assert queue.backend.connected
            other = await queue.again()
            await other.backend.close()
            await other.backend.close()
            assert not other.backend.connected

    async def test_a_closed_backend_refuses_messages_and_consumers(self) -> None:
        async with self.queue() as queue:
            other = await queue.again()
            await other.backend.close()
            try:
                (result,) = await self.within(other.backend.send(queue.name, [self.message()], timeout=1.0))
            except PolywireError as error:
                result = error
            assert isinstance(result, MessageRefused | BackendLost), result
            await raised(other.backend.consumer(queue.name, limit=1), PolywireError)
            await queue.until_stats(ready=0)

    async def test_closing_the_backend_ends_a_receive_under_way(self) -> None:
        async with self.queue() as queue:
            other = await queue.again()
            consumer = await other.consumer()
            receiving = asyncio.ensure_future(consumer.receive(1))
            await self.pass_time(0.05)
            await self.within(other.backend.close(), what="closing")
            await self.within(raised(receiving, ConsumerClosed, BackendLost), what="the end of receive")

    async def test_settling_what_is_no_longer_held_changes_nothing(self) -> None:
        async with self.queue() as queue:
            await queue.send("1")
            former = await queue.consumer()
            (stale,) = await queue.receive(former, start=True)
            await former.close()
            consumer = await queue.consumer()
            (held,) = await queue.receive(consumer)
            for outcome in (Ack(), RetryAfter(0.0), Bury("rejected"), Release()):
                await self._settle_stale(former, stale, outcome)
            await queue.start(consumer, [held])
            await queue.settle(consumer, [held], RetryAfter(0.0))
            (again,) = await queue.receive(consumer)
            await self._settle_stale(former, stale, Ack())
            assert again.attempt == 2
            await queue.start(consumer, [again])
            await queue.settle(consumer, [again], Ack())
            await queue.until_stats(ready=0, in_flight=0, dead=0)

    async def _settle_stale(self, consumer: QueueConsumer, stale: Delivery, outcome: Outcome) -> None:
        """Nothing is raised but that nothing can be said, and nothing is held."""
        held: Collection[Delivery] = ()
        with suppress(BackendLost):
            held = await self.within(consumer.settle([Settlement(stale, outcome)], [stale]))
        assert not held

    async def test_a_delivery_that_was_settled_cannot_be_settled_again_or_started(self) -> None:
        async with self.queue() as queue:
            await queue.send("1")
            consumer = await queue.consumer()
            (first,) = await queue.handle(consumer, 1, RetryAfter(0.0))
            (second,) = await queue.receive(consumer)
            assert second is not first
            await self._settle_stale(consumer, first, Ack())
            await self._settle_stale(consumer, first, Bury("rejected"))
            await queue.start(consumer, [second])
            await queue.settle(consumer, [second], RetryAfter(0.0))
            (third,) = await queue.handle(consumer)
            assert third.attempt == 3
            await queue.until_stats(ready=0, in_flight=0, dead=0)

    async def test_a_consumer_killed_after_the_start_gives_its_messages_to_another_with_the_loss_counted(self) -> None:
        async with self.queue() as queue:
            self.need_exact_attempts(queue.guarantees)
            sent = await queue.send("1", "2")
            victim = await queue.victim()
            await victim.receive(2, start=True)
            await victim.kill()
            got = await queue.receive(await queue.consumer(), 2)
            assert sorted(delivery.envelope.id for delivery in got) == sorted(envelope.id for envelope in sent)
            assert {(delivery.attempt, delivery.lost) for delivery in got} == {(2, 1)}
            assert all(delivery.suspect for delivery in got)

    async def test_a_consumer_killed_before_ack_loses_no_message(self) -> None:
        async with self.queue() as queue:
            sent = await queue.send(*"abcdefghij")
            victim = await queue.victim(limit=5)
            await victim.receive(5, start=True)
            await victim.kill()
            consumer = await queue.consumer()
            got = await queue.handle(consumer, 10)
            assert sorted(delivery.envelope.id for delivery in got) == sorted(envelope.id for envelope in sent)
            await queue.until_stats(ready=0, in_flight=0, dead=0)

    async def test_what_was_received_but_never_started_costs_no_attempt(self) -> None:
        async with self.queue() as queue:
            self.need_exact_attempts(queue.guarantees)
            await queue.send("1", "2")
            for _ in range(2):
                victim = await queue.victim()
                await victim.receive(2)
                await victim.kill()
            got = await queue.receive(await queue.consumer(), 2)
            assert {(delivery.attempt, delivery.lost) for delivery in got} == {(1, 0)}

    async def test_a_message_that_kills_its_workers_is_buried_at_the_limit(self) -> None:
        async with self.queue(lost_limit=2) as queue:
            self.need_exact_attempts(queue.guarantees)
            self.need(queue.guarantees, "dead_letters")
            (sent,) = await queue.send("poison")
            for _ in range(2):
                victim = await queue.victim()
                await victim.receive(1, start=True)
                await victim.kill()
            consumer = await queue.consumer()
            receiving = asyncio.ensure_future(consumer.receive(1))
            try:
                (letter,) = await queue.until_dead(1)
            finally:
                receiving.cancel()
                await asyncio.wait([receiving])
            assert receiving.cancelled()
            assert (letter.envelope.id, letter.reason, letter.attempts) == (sent.id, "worker_lost", 2)

    async def test_a_message_stays_with_its_consumer_while_a_handler_blocks_the_event_loop(self) -> None:
        async with self.queue() as queue:
            if not queue.guarantees.shared:
                self.skip(f"{queue.guarantees.backend} has one process only")
            await queue.send("1")
            worker = await queue.worker()
            consumer = await queue.consumer()
            (held,) = await queue.receive(consumer, start=True)
            theirs = asyncio.ensure_future(worker.receive(1))
            await asyncio.sleep(0.2)
            time.sleep(2 * self.lease)  # noqa: ASYNC251 - what this test is about
            await self.nothing_from(asyncio.shield(theirs), what="another one got what is still held")
            await queue.settle(consumer, [held], Ack())
            await queue.until_stats(ready=0, in_flight=0, dead=0)
            await worker.kill()
            theirs.cancel()
            await asyncio.wait([theirs])

    async def test_what_a_consumer_holds_is_somebody_elses_once_the_connection_is_lost(self) -> None:
        async with self.queue() as queue:
            other = await queue.again()
            (sent,) = await queue.send("1")
            former = await other.consumer()
            (stale,) = await queue.receive(former, start=True)
            await self.cut(other.backend)
            await self.within(raised(former.receive(1), BackendLost), what="hearing of the loss")
            consumer = await queue.consumer()
            (held,) = await queue.receive(consumer)
            assert held.envelope.id == sent.id
            await self._settle_stale(former, stale, Ack())
            await queue.start(consumer, [held])
            await queue.settle(consumer, [held], Ack())
            await queue.until_stats(ready=0, in_flight=0, dead=0)

    async def test_a_backend_that_lost_its_connection_connects_again(self) -> None:
        async with self.queue() as queue:
            other = await queue.again()
            await self.cut(other.backend)
            (sent,) = await other.send("after")

            async def connected() -> bool:
                return other.backend.connected

            await self.until(connected, what="connecting again")
            (got,) = await queue.handle(await other.consumer())
            assert got.envelope.id == sent.id

    # ---- durability -------------------------------------------------------------------------------------------------

    async def test_what_was_confirmed_is_there_after_the_backend_was_restarted(self) -> None:
        async with self.queue() as queue:
            self.need(queue.guarantees, "durable")
            sent = await queue.send(*(str(number) for number in range(50)))
            await self.restart_backend(queue.url)
            got = await queue.handle(await self.consumer_again(queue), 50)
            assert sorted(delivery.envelope.id for delivery in got) == sorted(envelope.id for envelope in sent)

    async def test_a_consumer_hears_that_the_backend_was_restarted_and_its_messages_come_again(self) -> None:
        async with self.queue() as queue:
            self.need(queue.guarantees, "durable")
            (sent,) = await queue.send("1")
            former = await queue.consumer()
            await queue.receive(former, start=True)
            await self.restart_backend(queue.url)
            await self.within(raised(former.receive(1), BackendLost), what="hearing of the restart")
            (got,) = await queue.handle(await self.consumer_again(queue))
            assert got.envelope.id == sent.id

    async def consumer_again(self, queue: OpenQueue) -> QueueConsumer:
        """One of a backend that may still be connecting."""
        found: list[QueueConsumer] = []

        async def opened() -> bool:
            try:
                found.append(await queue.consumer())
            except DeliveryError:
                return False
            return True

        await self.until(opened, what="opening a consumer after a restart")
        return found[0]

    async def test_what_a_process_had_confirmed_is_there_after_it_was_killed(self) -> None:
        async with self.queue() as queue:
            self.need(queue.guarantees, "durable")
            self.need(queue.guarantees, "shared")
            worker = await queue.worker()
            sending = worker.ask("send", texts=[str(number) for number in range(50)])
            confirmed = await self.within(sending, what="sending in another process")
            await worker.kill()
            assert len(confirmed) == 50
            got = await queue.handle(await queue.consumer(), 50)
            assert sorted(delivery.envelope.id for delivery in got) == sorted(confirmed)

    async def test_while_the_backend_is_down_sending_waits_at_most_its_timeout(self) -> None:
        async with self.queue() as queue:
            async with self.backend_down(queue.url):
                sending = queue.backend.send(
                    queue.name, [self.message("lost"), self.message("too")], timeout=self.moment
                )
                results = await self.within(sending, what="giving up")
                kinds = {type(result) for result in results}
                assert len(results) == 2
                assert kinds <= {MessageRefused, PublishUnknown}, results
            await queue.send("after")
            consumer = await self.consumer_again(queue)
            texts: list[bytes] = []
            while b"after" not in texts:
                # What was perhaps sent may have been sent.
                texts += [delivery.envelope.body for delivery in await queue.handle(consumer)]
            assert set(texts) <= {b"lost", b"too", b"after"}

    async def test_what_waited_while_the_backend_was_down_is_sent(self) -> None:
        async with self.queue() as queue:
            sent = self.message("waited")
            async with self.backend_down(queue.url):
                sending = asyncio.ensure_future(queue.backend.send(queue.name, [sent], timeout=self.patience))
                await self.pass_time(self.moment)
                assert not sending.done()
            assert await self.within(sending, what="sending") == [None]
            (got,) = await queue.handle(await self.consumer_again(queue))
            assert got.envelope.id == sent.id

    async def test_a_backend_that_does_not_answer_is_unreachable_and_its_password_stays_secret(self) -> None:
        error = await self.within(raised(self.open_backend(self.url_of_nobody()), BackendUnreachable), what="failing")
        assert PASSWORD not in f"{error} {error!r}"

    # ---- retry, release, bury ---------------------------------------------------------------------------------------

    async def test_a_retried_message_comes_again_with_the_next_attempt(self) -> None:
        async with self.queue() as queue:
            (sent,) = await queue.send("1", key="k", headers={"a": "b"})
            consumer = await queue.consumer()
            for attempt in (1, 2, 3):
                (got,) = await queue.handle(consumer, 1, RetryAfter(0.0, "ValueError: no"))
                assert (got.envelope.id, got.attempt, got.lost) == (sent.id, attempt, 0)
                assert (got.envelope.body, got.envelope.headers) == (b"1", {"a": "b"})
            (got,) = await queue.handle(consumer)
            assert got.attempt == 4
            await queue.until_stats(ready=0, delayed=0, in_flight=0, dead=0)

    async def test_a_retry_waits_for_its_delay(self) -> None:
        async with self.queue() as queue:
            await queue.send("1")
            consumer = await queue.consumer()
            before = self.clock.time()
            await queue.handle(consumer, 1, RetryAfter(self.moment))
            (got,) = await queue.receive(consumer)
            assert self.clock.time() >= before + self.moment - 0.01
            assert got.attempt == 2

    async def test_a_released_message_comes_again_and_costs_no_attempt(self) -> None:
        async with self.queue() as queue:
            self.need_exact_attempts(queue.guarantees)
            await queue.send("1")
            consumer = await queue.consumer()
            for _ in range(3):
                (got,) = await queue.handle(consumer, 1, Release())
                assert (got.attempt, got.lost) == (1, 0)
            (got,) = await queue.handle(consumer, 1, RetryAfter(0.0))
            (got,) = await queue.handle(consumer, 1, Release())
            assert (got.attempt, got.lost) == (2, 0)
            (got,) = await queue.handle(consumer)
            assert got.attempt == 2

    async def test_a_message_can_be_released_without_a_start(self) -> None:
        async with self.queue() as queue:
            self.need_exact_attempts(queue.guarantees)
            await queue.send("1")
            consumer = await queue.consumer()
            for _ in range(3):
                (got,) = await queue.receive(consumer)
                await queue.settle(consumer, [got], Release())
                assert (got.attempt, got.lost) == (1, 0)

    async def test_a_released_message_waits_for_its_delay(self) -> None:
        async with self.queue() as queue:
            await queue.send("1")
            consumer = await queue.consumer()
            before = self.clock.time()
            await queue.handle(consumer, 1, Release(self.moment))
            await queue.receive(consumer)
            assert self.clock.time() >= before + self.moment - 0.01

    async def test_settling_and_starting_go_together(self) -> None:
        async with self.queue() as queue:
            await queue.send("1", "2", "3")
            consumer = await queue.consumer()
            first, second, third = await queue.receive(consumer, 3)
            assert set(await consumer.settle((), [first])) == {first}
            assert set(await consumer.settle([Settlement(first, Ack())], [second, third])) == {second, third}
            assert not await consumer.settle([Settlement(second, Ack()), Settlement(third, RetryAfter(0.0))])
            (again,) = await queue.receive(consumer)
            assert (again.envelope.id, again.attempt) == (third.envelope.id, 2)

    # ---- dead letters -----------------------------------------------------------------------------------------------

    async def test_a_buried_message_is_a_dead_letter_with_its_reason_and_error(self) -> None:
        async with self.queue() as queue:
            self.need(queue.guarantees, "dead_letters")
            (sent,) = await queue.send("1", headers={"tenant": "a"})
            consumer = await queue.consumer()
            await queue.handle(consumer, 1, RetryAfter(0.0))
            before = self.clock.time()
            await queue.handle(consumer, 1, Bury("attempts", "ValueError: card expired ✓"))
            (letter,) = await queue.until_dead(1)
            assert (letter.queue, letter.envelope.id, letter.envelope.body) == (queue.name, sent.id, b"1")
            assert letter.envelope.headers == {"tenant": "a"}
            assert (letter.reason, letter.error, letter.attempts) == ("attempts", "ValueError: card expired ✓", 2)
            assert before - 1 <= letter.died <= self.clock.time() + 1
            await queue.until_stats(ready=0, in_flight=0, dead=1)
            await queue.nothing_for(consumer)

    async def test_dead_letters_are_listed_oldest_first_and_at_most_as_many_as_asked_for(self) -> None:
        async with self.queue() as queue:
            self.need(queue.guarantees, "dead_letters")
            await queue.bury(await queue.consumer(), "1", "2", "3")
            letters = await queue.until_dead(3)
            assert [letter.envelope.body for letter in letters] == [b"1", b"2", b"3"]
            assert [letter.envelope.body for letter in await queue.backend.dead(queue.name, limit=2)] == [b"1", b"2"]
            again = await queue.backend.dead(queue.name)
            assert [letter.position for letter in again] == [letter.position for letter in letters]

    async def test_dead_letters_are_found_by_what_is_asked_for(self) -> None:
        async with self.queue() as queue:
            self.need(queue.guarantees, "dead_letters")
            consumer = await queue.consumer()
            await queue.bury(consumer, "1", reason="rejected", error="KeyError: 'a'")
            await queue.bury(consumer, "2", reason="attempts", error="ValueError: b")
            one, two = await queue.until_dead(2)
            for which, expected in (
                (DeadFilter(id=two.envelope.id), [b"2"]),
                (DeadFilter(type="polywire.suite.v1.Work"), [b"1", b"2"]),
                (DeadFilter(type="polywire.suite.v1.Play"), []),
                (DeadFilter(reason="rejected"), [b"1"]),
                (DeadFilter(error="ValueError"), [b"2"]),
                (DeadFilter(since=one.died - 60), [b"1", b"2"]),
                (DeadFilter(until=one.died - 60), []),
                (DeadFilter(reason="rejected", error="ValueError"), []),
            ):
                found = await queue.backend.dead(queue.name, which)
                assert [letter.envelope.body for letter in found] == expected, which

    async def test_a_revived_message_comes_again_with_its_id_and_its_attempts_counted_afresh(self) -> None:
        async with self.queue() as queue:
            self.need(queue.guarantees, "dead_letters")
            consumer = await queue.consumer()
            (sent,) = await queue.send("1")
            for redrives in (0, 1, 2):
                (got,) = await queue.handle(consumer, 1, RetryAfter(0.0))
                assert (got.envelope.id, got.attempt, got.lost) == (sent.id, 1, 0)
                assert got.envelope.redrive_count == redrives
                await queue.handle(consumer, 1, Bury("attempts", "ValueError: no"))
                letters = await queue.until_dead(1)
                assert await queue.backend.revive(queue.name, letters) == 1
                await queue.until_stats(dead=0)
                assert await queue.backend.dead(queue.name) == []
                assert await queue.backend.revive(queue.name, letters) == 0
            await queue.handle(consumer)
            await queue.until_stats(ready=0, in_flight=0, dead=0)

    async def test_only_the_dead_letters_named_are_revived(self) -> None:
        async with self.queue() as queue:
            self.need(queue.guarantees, "dead_letters")
            consumer = await queue.consumer()
            await queue.bury(consumer, "1", "2", "3")
            letters = await queue.until_dead(3)
            assert await queue.backend.revive(queue.name, letters[1:2]) == 1
            (got,) = await queue.handle(consumer)
            assert got.envelope.body == b"2"
            assert [letter.envelope.body for letter in await queue.until_dead(2)] == [b"1", b"3"]

    async def test_a_dropped_dead_letter_is_gone(self) -> None:
        async with self.queue() as queue:
            self.need(queue.guarantees, "dead_letters")
            consumer = await queue.consumer()
            await queue.bury(consumer, "1", "2")
            one, two = await queue.until_dead(2)
            assert await queue.backend.drop(queue.name, [one]) == 1
            assert await queue.backend.drop(queue.name, [one]) == 0
            (left,) = await queue.until_dead(1)
            assert left.envelope.id == two.envelope.id
            await queue.nothing_for(consumer)

    async def test_bytes_that_are_no_message_come_as_unreadable_and_can_be_buried(self) -> None:
        async with self.queue() as queue:
            data = b"\xc1 no envelope \x00\xff"
            await self.put_raw(queue.backend, queue.name, data)
            (sent,) = await queue.send("1")
            consumer = await queue.consumer()
            got = await queue.receive(consumer, 2)
            (odd,) = [delivery for delivery in got if delivery.unreadable is not None]
            assert odd.unreadable
            assert odd.envelope.body == data
            await queue.settle(consumer, [odd], Bury("undecodable", odd.unreadable))
            (good,) = [delivery for delivery in got if delivery is not odd]
            assert good.envelope.id == sent.id
            await queue.start(consumer, [good])
            await queue.settle(consumer, [good], Ack())
            (letter,) = await queue.until_dead(1)
            assert (letter.reason, letter.envelope.body) == ("undecodable", data)
            assert await queue.backend.drop(queue.name, [letter]) == 1

    # ---- order per key ----------------------------------------------------------------------------------------------

    async def test_of_each_key_one_message_is_held_at_a_time_and_it_is_the_oldest(self) -> None:
        async with self.queue(keyed=True) as queue:
            await queue.send("a1", "a2", "a3", key="a")
            consumer = await queue.consumer()
            for text in (b"a1", b"a2", b"a3"):
                (got,) = await queue.receive(consumer, start=True)
                assert got.envelope.body == text
                await queue.nothing_for(consumer, what="a second message of the key was handed out")
                await queue.settle(consumer, [got], Ack())

    async def test_messages_of_other_keys_do_not_wait(self) -> None:
        async with self.queue(keyed=True, lanes=8) as queue:
            keys = [f"key-{number}" for number in range(40)]
            await queue.send_all([self.message(key, key=key) for key in keys])
            consumer = await queue.consumer()
            got = await queue.receive(consumer, 2, start=True)
            assert got[0].envelope.key != got[1].envelope.key
            await queue.settle(consumer, got, Ack())
            await queue.handle(consumer, 38)

    async def test_a_retried_message_keeps_its_key_waiting(self) -> None:
        async with self.queue(keyed=True) as queue:
            await queue.send("a1", "a2", key="a")
            consumer = await queue.consumer()
            await queue.handle(consumer, 1, RetryAfter(self.moment))
            assert [await self._text_of_next(queue, consumer) for _ in range(2)] == ["a1", "a2"]

    async def test_a_released_message_keeps_its_key_waiting(self) -> None:
        async with self.queue(keyed=True) as queue:
            await queue.send("a1", "a2", key="a")
            consumer = await queue.consumer()
            await queue.handle(consumer, 1, Release(self.moment))
            await queue.handle(consumer, 1, Release())
            assert [await self._text_of_next(queue, consumer) for _ in range(2)] == ["a1", "a2"]

    async def _text_of_next(self, queue: OpenQueue, consumer: QueueConsumer) -> str:
        (got,) = await queue.handle(consumer)
        return got.envelope.body.decode()

    async def test_order_per_key_is_kept_when_a_consumer_is_closed(self) -> None:
        async with self.queue(keyed=True) as queue:
            await queue.send_all([self.message(f"{key}{n}", key=key) for n in range(3) for key in "ab"])
            former = await queue.consumer()
            await queue.receive(former, 2 if (await self._independent(queue)) else 1)
            await former.close()
            consumer = await queue.consumer()
            texts = [await self._text_of_next(queue, consumer) for _ in range(6)]
            for key in "ab":
                assert [text for text in texts if text[0] == key] == [f"{key}{n}" for n in range(3)]

    async def test_order_per_key_is_kept_when_a_consumer_is_closed_while_another_one_waits(self) -> None:
        async with self.queue(keyed=True) as queue:
            former = await queue.consumer(limit=2)
            sent = await queue.send("a0", "a1", "a2", "a3", key="a")
            await queue.receive(former, 1, start=True)
            other = await queue.again()
            waiting = asyncio.ensure_future(queue.receive(await other.consumer()))
            await self.pass_time(0.05)
            await self.within(former.close(), what="closing")
            (first,) = await waiting
            assert first.envelope.id == sent[0].id, "what came later was handed out first"

    async def _independent(self, queue: OpenQueue) -> bool:
        """Keys are kept apart one by one, not by lanes."""
        return queue.guarantees.backend in ("memory", "sqlite")

    async def test_order_per_key_is_kept_when_a_consumer_is_killed(self) -> None:
        async with self.queue(keyed=True) as queue:
            await queue.send("a1", "a2", "a3", key="a")
            victim = await queue.victim()
            await victim.receive(1, start=True)
            consumer = await queue.consumer()
            await queue.nothing_for(consumer, what="a message of a key was handed out while another one is held")
            await victim.kill()
            assert [await self._text_of_next(queue, consumer) for _ in range(3)] == ["a1", "a2", "a3"]

    async def test_order_per_key_is_kept_by_several_consumers_with_retries_and_releases(self) -> None:
        async with self.queue(keyed=True) as queue:
            keys, each = [f"k{number}" for number in range(5)], 12
            sent = [self.message(f"{n}", key=key) for n in range(each) for key in keys]
            await queue.send_all(sent)
            done: dict[str, list[int]] = {key: [] for key in keys}
            held: set[str] = set()
            outcomes: list[Outcome] = [Ack(), Ack(), RetryAfter(0.0), Release()]

            async def work(consumer: QueueConsumer, seed: int) -> None:
                dice = random.Random(seed)  # noqa: S311 - dice for tests
                while sum(map(len, done.values())) < len(sent):
                    for delivery in await consumer.receive(3):
                        key = delivery.envelope.key
                        assert key is not None
                        assert key not in held, f"two messages of {key!r} are held at once"
                        held.add(key)
                        assert await consumer.settle((), [delivery])
                        await asyncio.sleep(0)
                        held.discard(key)
                        outcome = dice.choice(outcomes)
                        if isinstance(outcome, Ack):
                            done[key].append(int(delivery.envelope.body))
                        await consumer.settle([Settlement(delivery, outcome)])

            consumers = [await queue.consumer(limit=4), await (await queue.again()).consumer(limit=4)]
            workers = [asyncio.ensure_future(work(consumer, seed)) for seed, consumer in enumerate(consumers)]
            try:
                finished = asyncio.wait(workers, return_when=asyncio.FIRST_COMPLETED)
                await self.within(finished, what="all of it", seconds=6 * self.patience)
                for worker in workers:
                    if worker.done():
                        worker.result()
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.wait(workers)
            assert done == {key: list(range(each)) for key in keys}

    async def test_sends_of_many_at_once_keep_the_order_in_which_each_was_confirmed(self) -> None:
        async with self.queue(keyed=True) as queue:

            async def send(key: str) -> None:
                for number in range(10):
                    await queue.send(f"{number}", key=key)

            keys = [f"k{number}" for number in range(8)]
            await asyncio.gather(*(send(key) for key in keys))
            consumer = await queue.consumer()
            seen: dict[str | None, list[int]] = {key: [] for key in keys}
            for _ in range(80):
                (got,) = await queue.handle(consumer)
                seen[got.envelope.key].append(int(got.envelope.body))
            assert seen == {key: list(range(10)) for key in keys}

    async def test_a_buried_message_lets_its_key_go_on(self) -> None:
        async with self.queue(keyed=True) as queue:
            await queue.send("a1", "a2", key="a")
            consumer = await queue.consumer()
            await queue.handle(consumer, 1, Bury("rejected", "no"))
            assert await self._text_of_next(queue, consumer) == "a2"

    # ---- delays and priorities --------------------------------------------------------------------------------------

    async def test_delayed_messages_come_out_in_order_and_not_early(self) -> None:
        async with self.queue() as queue:
            self.need(queue.guarantees, "delay")
            now = self.clock.time()
            delays = (3 * self.moment, self.moment, 2 * self.moment)
            await queue.send_all([self.message(f"{delay}", not_before=now + delay) for delay in delays])
            await queue.send("at once")
            consumer = await queue.consumer()
            assert await self._text_of_next(queue, consumer) == "at once"
            for delay in sorted(delays):
                assert await self._text_of_next(queue, consumer) == f"{delay}"
                assert self.clock.time() >= now + delay - 0.01

    async def test_a_delayed_message_of_the_past_comes_at_once(self) -> None:
        async with self.queue() as queue:
            self.need(queue.guarantees, "delay")
            await queue.send("1", not_before=self.clock.time() - 60)
            await queue.handle(await queue.consumer())

    async def test_higher_priorities_come_first(self) -> None:
        async with self.queue(priorities=3) as queue:
            for priority in (0, 2, 1, 0, 2, 1):
                await queue.send(f"{priority}", priority=priority)
            consumer = await queue.consumer(limit=1)
            texts = [await self._text_of_next(queue, consumer) for _ in range(6)]
            assert texts == ["2", "2", "1", "1", "0", "0"]

    async def test_a_retried_message_keeps_its_priority(self) -> None:
        async with self.queue(priorities=2) as queue:
            await queue.send("high", priority=1)
            consumer = await queue.consumer(limit=1)
            (got,) = await queue.receive(consumer, start=True)
            await queue.send("low", priority=0)
            await queue.settle(consumer, [got], RetryAfter(0.0))
            assert [await self._text_of_next(queue, consumer) for _ in range(2)] == ["high", "low"]

    # ---- taking back, moving, looking -------------------------------------------------------------------------------

    async def test_a_waiting_message_can_be_taken_back(self) -> None:
        async with self.queue() as queue:
            self.need(queue.guarantees, "cancel")
            ready, kept = await queue.send("1", "2")
            (later,) = await queue.send("3", not_before=self.clock.time() + 3600)
            assert await queue.backend.cancel(queue.name, ready.id)
            assert await queue.backend.cancel(queue.name, later.id)
            assert not await queue.backend.cancel(queue.name, ready.id)
            assert not await queue.backend.cancel(queue.name, "unheard of")
            consumer = await queue.consumer()
            (got,) = await queue.receive(consumer)
            assert got.envelope.id == kept.id
            await queue.nothing_for(consumer)
            await queue.until_stats(ready=0, delayed=0, in_flight=1, dead=0)

    async def test_a_message_that_is_held_or_done_cannot_be_taken_back_or_moved(self) -> None:
        async with self.queue() as queue:
            self.need(queue.guarantees, "cancel")
            (sent,) = await queue.send("1")
            consumer = await queue.consumer()
            (got,) = await queue.receive(consumer, start=True)
            for _ in range(2):
                assert not await queue.backend.cancel(queue.name, sent.id)
                assert not await queue.backend.move(queue.name, sent.id, self.clock.time() + 60)
                await queue.settle(consumer, [got], Ack())
            await queue.until_stats(ready=0, delayed=0, in_flight=0)

    async def _told_of_withdrawals(self, queue: OpenQueue, consumer: QueueConsumer) -> list[Delivery]:
        """Grows by what is taken away from *consumer*."""
        self.need(queue.guarantees, "withdraw")
        found: list[Delivery] = []
        cast(ToldOfWithdrawals, consumer).when_withdrawn(found.append)
        return found

    async def _withdraw(self, queue: OpenQueue, id: str) -> bool:
        return await self.within(cast(Withdrawing, queue.backend).withdraw(queue.name, id), what="taking it back")

    async def test_a_message_under_way_is_taken_away_from_its_consumer_which_hears_of_it(self) -> None:
        async with self.queue() as queue:
            one, two = await queue.send("1", "2")
            consumer = await queue.consumer()
            told = await self._told_of_withdrawals(queue, consumer)
            held = {got.envelope.id: got for got in await queue.receive(consumer, 2, start=True)}
            other = await queue.again()
            assert await self._withdraw(other, one.id)
            assert not await self._withdraw(other, one.id)

            async def heard() -> bool:
                return told == [held[one.id]]

            await self.until(heard, what="hearing of it")
            for outcome in (Ack(), RetryAfter(0.0), Bury("rejected"), Release()):
                await self._settle_stale(consumer, held[one.id], outcome)
            await queue.start(consumer, [held[two.id]])
            await queue.settle(consumer, [held[two.id]], Ack())
            await queue.until_stats(ready=0, delayed=0, in_flight=0, dead=0)
            await queue.nothing_for(consumer, what="what was taken back came again")
            assert not await self._withdraw(queue, two.id)

    async def test_a_message_that_waits_is_taken_back_in_the_same_way(self) -> None:
        async with self.queue() as queue:
            self.need(queue.guarantees, "withdraw")
            now, later = await queue.send("1"), await queue.send("2", not_before=self.clock.time() + 3600.0)
            for sent in (*now, *later):
                assert await self._withdraw(queue, sent.id)
            await queue.until_stats(ready=0, delayed=0)
            assert not await self._withdraw(queue, "never-sent")
            await queue.send("again", id=now[0].id)
            await queue.handle(await queue.consumer())

    async def test_what_is_settled_after_it_was_taken_away_changes_nothing_for_its_key(self) -> None:
        """Also where the consumer did not hear of it."""
        for outcome in (Ack(), Bury("rejected"), RetryAfter(0.0), Release()):
            async with self.queue(keyed=True) as queue:
                self.need(queue.guarantees, "withdraw")
                sent = await queue.send("a1", "a2", "a3", key="a")
                consumer, other = await queue.consumer(), await queue.consumer()
                (held,) = await queue.receive(consumer, start=True)
                assert await self._withdraw(queue, sent[0].id)
                (second,) = await queue.receive(other, start=True)
                await self._settle_stale(consumer, held, outcome)
                await queue.nothing_for(consumer, what="two messages of a key were handed out")
                await queue.settle(other, [second], Ack())
                assert await self._text_of_next(queue, other) == "a3"
                assert second.envelope.id == sent[1].id
                await queue.until_stats(ready=0, delayed=0, in_flight=0, dead=0)

    async def test_another_process_takes_a_message_away(self) -> None:
        async with self.queue() as queue:
            self.need(queue.guarantees, "shared")
            consumer = await queue.consumer()
            told = await self._told_of_withdrawals(queue, consumer)
            (sent,) = await queue.send("1")
            (held,) = await queue.receive(consumer, start=True)
            worker = await queue.worker()
            assert await self.within(worker.ask("withdraw", id=sent.id), what="taking it back in another process")

            async def heard() -> bool:
                return told == [held]

            await self.until(heard, what="hearing of it")
            await queue.until_stats(ready=0, in_flight=0, dead=0)

    async def test_what_was_taken_back_from_a_killed_consumer_does_not_come_again(self) -> None:
        async with self.queue() as queue:
            self.need(queue.guarantees, "withdraw")
            (sent,) = await queue.send("1")
            victim = await queue.victim()
            await victim.receive(1, start=True)
            assert await self._withdraw(queue, sent.id)
            await victim.kill()
            await self.pass_time(2 * self.lease if isinstance(self.clock, ManualClock) else self.quiet)
            await queue.nothing_for(await queue.consumer())
            await queue.until_stats(ready=0, in_flight=0, dead=0)

    async def test_what_was_taken_back_can_be_sent_again(self) -> None:
        async with self.queue() as queue:
            self.need(queue.guarantees, "cancel")
            (sent,) = await queue.send("1")
            assert await queue.backend.cancel(queue.name, sent.id)
            await queue.send_all([sent])
            (got,) = await queue.handle(await queue.consumer())
            assert got.envelope.id == sent.id

    async def test_a_message_taken_back_lets_its_key_go_on(self) -> None:
        async with self.queue(keyed=True) as queue:
            self.need(queue.guarantees, "cancel")
            first, second, third = await queue.send("a1", "a2", "a3", key="a")
            assert await queue.backend.cancel(queue.name, first.id)
            assert await queue.backend.cancel(queue.name, second.id)
            (got,) = await queue.handle(await queue.consumer())
            assert got.envelope.id == third.id

    async def test_a_waiting_message_can_be_moved(self) -> None:
        async with self.queue() as queue:
            self.need(queue.guarantees, "cancel")
            self.need(queue.guarantees, "delay")
            now = self.clock.time()
            (ready,) = await queue.send("1")
            (later,) = await queue.send("2", not_before=now + 3600)
            assert await queue.backend.move(queue.name, ready.id, now + 3 * self.moment)
            assert await queue.backend.move(queue.name, later.id, now + self.moment)
            assert not await queue.backend.move(queue.name, "unheard of", now)
            consumer = await queue.consumer()
            assert await self._text_of_next(queue, consumer) == "2"
            assert await self._text_of_next(queue, consumer) == "1"
            assert self.clock.time() >= now + 3 * self.moment - 0.01
            await queue.until_stats(ready=0, delayed=0, in_flight=0)

    async def test_peek_shows_what_comes_next_and_disturbs_nothing(self) -> None:
        async with self.queue() as queue:
            sent = await queue.send("1", "2", "3")
            if not queue.guarantees.peek:
                await raised(queue.backend.peek(queue.name, 2), Unsupported)
                return
            seen = await queue.backend.peek(queue.name, 2)
            assert [envelope.id for envelope in seen] == [sent[0].id, sent[1].id]
            assert seen[0].body == b"1"
            got = await queue.receive(await queue.consumer(), 3)
            assert sorted(delivery.envelope.id for delivery in got) == sorted(envelope.id for envelope in sent)
            assert {delivery.attempt for delivery in got} == {1}
            assert await queue.backend.peek(queue.name, 2) == []

    async def test_stats_count_what_waits_is_held_and_is_dead(self) -> None:
        async with self.queue() as queue:
            await queue.until_stats(ready=0, delayed=0, in_flight=0, dead=0)
            await queue.send(*"abcde")
            await queue.until_stats(ready=5)
            consumer = await queue.consumer(limit=3)
            held = await queue.receive(consumer, 3, start=True)
            await queue.until_stats(ready=2, in_flight=3)
            await queue.settle(consumer, held[:1], Bury("rejected"))
            await queue.settle(consumer, held[1:2], RetryAfter(3600.0))
            await queue.until_stats(ready=2, in_flight=1, dead=1, delayed=1)
            stats = await queue.backend.stats(queue.name)
            assert stats.queue == queue.name
            assert stats.oldest is None or 0 <= stats.oldest <= 10 * self.patience

    async def test_a_second_message_of_the_same_id_is_not_kept(self) -> None:
        async with self.queue() as queue:
            self.need(queue.guarantees, "deduplicate")
            (sent,) = await queue.send("1")
            await queue.send_all([sent])
            consumer = await queue.consumer()
            await queue.handle(consumer)
            await queue.send_all([sent])
            await queue.nothing_for(consumer, what="a message came twice")
            await queue.until_stats(ready=0, in_flight=0, dead=0)

    async def test_the_same_id_may_be_used_in_another_queue(self) -> None:
        async with self.queue() as queue:
            other = QueueSpec(name=self.name("other"), lease=self.lease)
            await queue.backend.declare([other])
            (sent,) = await queue.send("1")
            assert await queue.backend.send(other.name, [sent], timeout=self.patience) == [None]
            there = await queue.backend.consumer(other.name, limit=1)
            (got,) = await queue.receive(there)
            assert (got.queue, got.envelope.id) == (other.name, sent.id)
            await there.close()
            await self.clean_up(queue.backend, [other])

    # ---- limits over all consumers ----------------------------------------------------------------------------------

    async def test_concurrency_holds_over_all_consumers(self) -> None:
        async with self.queue(concurrency=2) as queue:
            self.need(queue.guarantees, "shared_limits")
            await queue.send(*"abcde")
            first, second = await queue.consumer(), await (await queue.again()).consumer()
            held = await queue.receive(first, 2, start=True)
            await queue.nothing_for(first)
            await queue.nothing_for(second, what="a third handler could run at a concurrency of 2")
            await queue.settle(first, held[:1], Ack())
            await queue.receive(second, 1, start=True)
            await queue.nothing_for(second)

    async def test_a_rate_holds_over_all_consumers(self) -> None:
        rate = 20.0
        async with self.queue(rate=rate) as queue:
            self.need(queue.guarantees, "shared_limits")
            await queue.send(*(str(number) for number in range(60)))
            consumers = [await queue.consumer(), await (await queue.again()).consumer()]
            started = self.clock.time()
            counts = [0, 0]

            async def work(place: int) -> None:
                while sum(counts) < 60:
                    got = await consumers[place].receive(10)
                    counts[place] += len(got)
                    # In the first second, what may be saved up comes on top.
                    assert sum(counts) <= rate * (self.clock.time() - started) + rate + 1
                    await consumers[place].settle((), got)
                    await consumers[place].settle([Settlement(delivery, Ack()) for delivery in got])

            workers = [asyncio.ensure_future(work(place)) for place in (0, 1)]
            finished = asyncio.wait(workers, return_when=asyncio.FIRST_COMPLETED)
            await self.within(finished, what="all of it", seconds=self.patience + 60 / rate)
            for worker in workers:
                if worker.done():
                    worker.result()
                worker.cancel()
            await asyncio.wait(workers)
            assert sum(counts) == 60

    # ---- declaring --------------------------------------------------------------------------------------------------

    async def test_declaring_twice_changes_nothing(self) -> None:
        async with self.queue() as queue:
            await queue.send("1")
            await queue.backend.declare([queue.spec])
            assert await queue.backend.check([queue.spec]) == []
            await queue.handle(await queue.consumer())

    async def test_check_names_what_is_missing_and_creates_nothing(self) -> None:
        async with self.queue() as queue:
            missing = QueueSpec(name=self.name("missing"))
            for _ in range(2):
                lines = await queue.backend.check([queue.spec, missing])
                assert lines
                assert all(missing.name in line for line in lines), lines
                assert all(line.startswith("would create the ") for line in lines), lines

    async def test_a_difference_to_what_exists_is_named_and_changes_nothing(self) -> None:
        async with self.queue() as queue:
            self.need(queue.guarantees, "key_order")
            other = QueueSpec(name=queue.name, keyed=True, lease=self.lease, lanes=2)
            lines = await queue.backend.check([other])
            assert any(queue.name in line and "keyed" in line for line in lines), lines
            error = await raised(queue.backend.declare([other]), SetupError)
            assert queue.name in str(error)
            assert "keyed" in str(error)
            assert await queue.backend.check([queue.spec]) == []

    async def test_a_name_that_a_backend_could_misread_is_refused(self) -> None:
        async with self.queue() as queue:
            for name in REFUSED_NAMES:
                error = await raised(queue.backend.declare([QueueSpec(name=name)]), SetupError)
                assert "queue" in str(error), error
                assert "\n" not in str(error), error


__all__ = ["OpenQueue", "QueueSuite"]
