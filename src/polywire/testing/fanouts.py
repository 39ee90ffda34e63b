"""What every fan-out promises, as tests: derive a class from `FanoutSuite` and override `url`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from polywire.bus.backend.opening import open_events
from polywire.bus.core import (
    Ack,
    Binding,
    Bury,
    Delivery,
    Envelope,
    Fanout,
    Guarantees,
    Outcome,
    QueueConsumer,
    RetryAfter,
    Settlement,
)
from polywire.errors import (
    BackendLost,
    BackendUnreachable,
    DeliveryError,
    MessageRefused,
    NobodyListens,
    PolywireError,
    PublishUnknown,
    SetupError,
)
from polywire.testing.buses import PASSWORD, BusSuite, raised

REFUSED_NAMES = ("", "a b", "orders/paid", "örders", "a\nb", "a'; drop table event; --", "..", "x" * 300)


class OpenFanout:
    """One topic of a fan-out under test, and what a test does to it."""

    def __init__(self, suite: FanoutSuite, url: str, backend: Fanout, topic: str, stack: AsyncExitStack) -> None:
        self.suite = suite
        self.url = url
        self.backend = backend
        self.topic = topic
        self._stack = stack

    @property
    def guarantees(self) -> Guarantees:
        return self.backend.guarantees

    async def again(self) -> OpenFanout:
        """The same topic through another connection."""
        backend = await self.suite.open_backend(self.url)
        self._stack.push_async_callback(backend.close)
        return OpenFanout(self.suite, self.url, backend, self.topic, self._stack)

    async def bind(self, group: str, **fields: Any) -> Binding:
        """A declared group. *fields* are of Binding."""
        binding = Binding(topic=self.topic, group=group, **fields)
        await self.suite.within(self.backend.declare([self.topic], [binding]), what="binding")
        self._stack.push_async_callback(self.suite.clean_up, self.backend, [], [binding])
        return binding

    async def consumer(self, binding: Binding, *, limit: int = 100) -> QueueConsumer:
        made = await self.backend.queues.consumer(binding.queue, limit=limit)
        self._stack.push_async_callback(made.close)
        return made

    async def publish(self, *texts: str, **fields: Any) -> list[Envelope]:
        """Confirmed ones."""
        sent = [self.suite.message(text, **{"type": "shop.v1.OrderPaid", **fields}) for text in texts]
        results = await self.results(sent)
        assert results == [None] * len(sent), results
        return sent

    async def results(self, envelopes: Sequence[Envelope]) -> list[Exception | None]:
        publishing = self.backend.publish(self.topic, envelopes, timeout=self.suite.patience)
        return await self.suite.within(publishing, what="publishing")

    async def receive(self, consumer: QueueConsumer, count: int = 1) -> list[Delivery]:
        """Exactly *count*."""
        found: list[Delivery] = []

        async def gather() -> None:
            while len(found) < count:
                found.extend(await consumer.receive(count - len(found)))

        await self.suite.within(gather(), what=f"receiving {count}")
        return found

    async def handle(
        self,
        consumer: QueueConsumer,
        count: int = 1,
        outcome: Outcome = Ack(),  # noqa: B008 - a value without state
    ) -> list[Delivery]:
        """Receive, start and settle."""
        found = await self.receive(consumer, count)
        held = await self.suite.within(consumer.settle((), found), what="starting")
        assert set(held) == set(found)
        settlements = [Settlement(delivery, outcome) for delivery in found]
        await self.suite.within(consumer.settle(settlements), what="settling")
        return found

    async def gets(self, binding: Binding, *ids: str) -> None:
        """Exactly these are in its queue."""
        consumer = await self.consumer(binding)
        got = await self.handle(consumer, len(ids)) if ids else []
        assert sorted(delivery.envelope.id for delivery in got) == sorted(ids)
        await self.suite.nothing_from(consumer.receive(1), what=f"the group {binding.group!r} got more")
        await consumer.close()


class FanoutSuite(BusSuite):
    """The rules of `polywire.bus.core.fanout` as tests. The queues behind it pass `QueueSuite`.

    Override `url`, and of the hooks those that the backend can do: what it lacks is skipped, with the reason.
    """

    # ---- hooks ------------------------------------------------------------------------------------------------------

    def url(self) -> str:
        """Of the backend under test; of one that nobody else uses, where that is cheap."""
        raise NotImplementedError

    async def open_backend(self, url: str) -> Fanout:
        """A started one. Called several times with one URL, for several connections."""
        backend = open_events(url, clock=self.clock)
        await backend.start()
        return backend  # type: ignore[return-value]  # what the suite's author gave

    async def clean_up(self, backend: Fanout, topics: Sequence[str], bindings: Sequence[Binding]) -> None:
        """Delete what a test leaves, where it does not go with the URL."""

    # ---- ground -----------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def fanout(self) -> AsyncIterator[OpenFanout]:
        """A declared topic that no other test uses."""
        url, topic = self.url(), self.name("orders")
        async with AsyncExitStack() as stack:
            backend = await self.within(self.open_backend(url), what="opening the backend")
            stack.push_async_callback(backend.close)
            stack.push_async_callback(self.clean_up, backend, [topic], [])
            await self.within(backend.declare([topic], []), what="declaring")
            inner = await stack.enter_async_context(AsyncExitStack())
            yield OpenFanout(self, url, backend, topic, inner)

    def need_routing(self, guarantees: Guarantees, kind: str) -> None:
        if kind not in guarantees.routing:
            self.skip(f"{guarantees.backend} does not route by {kind!r}")

    # ---- who gets what ----------------------------------------------------------------------------------------------

    async def test_an_event_arrives_as_it_was_published(self) -> None:
        async with self.fanout() as fanout:
            now = float(int(self.clock.time()))
            sent = Envelope(
                id="0199-grün",
                type="shop.v1.OrderPaid",
                body=b"\x00\xff",
                source="orders",
                time=now,
                version=3,
                key="order-1",
                headers={"tenant": "a", "note": "grün ✓"},
                traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
                request_id="r1",
                causation_id="c1",
            )
            binding = await fanout.bind("billing")
            assert await fanout.results([sent]) == [None]
            (got,) = await fanout.handle(await fanout.consumer(binding))
            assert got.envelope == sent
            assert (got.queue, got.attempt) == (f"{fanout.topic}.billing", 1)

    async def test_every_group_gets_every_event_once(self) -> None:
        async with self.fanout() as fanout:
            bindings = [await fanout.bind(group) for group in ("billing", "warehouse", "search")]
            sent = await fanout.publish("1", "2", "3")
            for binding in bindings:
                await fanout.gets(binding, *(envelope.id for envelope in sent))

    async def test_the_members_of_a_group_share_its_events(self) -> None:
        async with self.fanout() as fanout:
            binding = await fanout.bind("billing")
            first = await fanout.consumer(binding, limit=2)
            second = await (await fanout.again()).consumer(binding, limit=2)
            sent = await fanout.publish("1", "2", "3", "4")
            got = await fanout.receive(first, 2) + await fanout.receive(second, 2)
            assert sorted(d.envelope.id for d in got) == sorted(envelope.id for envelope in sent)

    async def test_what_is_published_over_one_connection_reaches_groups_bound_over_another(self) -> None:
        async with self.fanout() as fanout:
            binding = await fanout.bind("billing")
            (sent,) = await (await fanout.again()).publish("1")
            await fanout.gets(binding, sent.id)

    async def test_a_group_of_some_types_gets_only_those(self) -> None:
        async with self.fanout() as fanout:
            some = await fanout.bind("some", types=("shop.v1.OrderPaid", "shop.v1.OrderCancelled"))
            every = await fanout.bind("every")
            kinds = ("OrderPaid", "OrderCreated", "OrderCancelled", "OrderPaidTwice")
            sent = [(await fanout.publish(kind, type=f"shop.v1.{kind}"))[0] for kind in kinds]
            await fanout.gets(some, sent[0].id, sent[2].id)
            await fanout.gets(every, *(envelope.id for envelope in sent))

    async def test_a_pattern_takes_a_word_by_a_star_and_any_number_by_a_hash(self) -> None:
        async with self.fanout() as fanout:
            self.need_routing(fanout.guarantees, "topic")
            await fanout.bind("every")
            star = await fanout.bind("star", pattern="shop.v1.*")
            hash_ = await fanout.bind("hash", pattern="shop.#")
            middle = await fanout.bind("middle", pattern="*.v2.#")
            exact = await fanout.bind("exact", pattern="shop.v1.OrderPaid")
            kinds = (
                "shop.v1.OrderPaid",
                "shop.v2.OrderPaid",
                "shop.v1.orders.Paid",
                "shop",
                "bank.v2",
                "shopping.v1.A",
            )
            ids = {kind: (await fanout.publish("x", type=kind))[0].id for kind in kinds}
            await fanout.gets(star, ids["shop.v1.OrderPaid"])
            await fanout.gets(hash_, *(ids[kind] for kind in kinds[:4]))
            await fanout.gets(middle, ids["shop.v2.OrderPaid"], ids["bank.v2"])
            await fanout.gets(exact, ids["shop.v1.OrderPaid"])

    async def test_a_group_that_asks_for_headers_gets_what_has_all_of_them(self) -> None:
        async with self.fanout() as fanout:
            self.need_routing(fanout.guarantees, "headers")
            await fanout.bind("every")
            both = await fanout.bind("both", headers={"tenant": "a", "kind": "gold"})
            one = await fanout.bind("one", headers={"tenant": "a"})
            given: tuple[dict[str, str] | None, ...] = (
                {"tenant": "a", "kind": "gold", "more": "x"},
                {"tenant": "a"},
                {"tenant": "b", "kind": "gold"},
                None,
            )
            ids = [(await fanout.publish("x", headers=headers))[0].id for headers in given]
            await fanout.gets(both, ids[0])
            await fanout.gets(one, ids[0], ids[1])

    async def test_a_group_gets_what_was_published_after_its_binding_only(self) -> None:
        async with self.fanout() as fanout:
            early = await fanout.bind("early")
            (before,) = await fanout.publish("before")
            late = await fanout.bind("late")
            (after,) = await fanout.publish("after")
            await fanout.gets(late, after.id)
            await fanout.gets(early, before.id, after.id)

    async def test_an_event_that_no_group_wants_is_not_kept_and_its_sender_hears_of_it(self) -> None:
        async with self.fanout() as fanout:
            envelope = self.message("1", type="shop.v1.OrderPaid")
            (result,) = await fanout.results([envelope])
            assert type(result) is NobodyListens
            assert envelope.id in str(result)
            assert fanout.topic in str(result)
            late = await fanout.bind("late", types=("shop.v1.OrderCancelled",))
            assert type((await fanout.results([envelope]))[0]) is NobodyListens
            await fanout.gets(late)

    async def test_events_of_one_call_are_confirmed_each_for_itself(self) -> None:
        async with self.fanout() as fanout:
            limit = fanout.guarantees.max_message_bytes
            if limit > 2**28:
                self.skip(f"{fanout.guarantees.backend} takes events of {limit} bytes")
            binding = await fanout.bind("billing", types=("shop.v1.OrderPaid",))
            wanted = self.message("a", type="shop.v1.OrderPaid")
            large = self.message("b", type="shop.v1.OrderPaid")
            large.body = b"x" * (limit + 1)
            unwanted = self.message("c", type="shop.v1.OrderCancelled")
            results = await fanout.results([wanted, large, unwanted])
            assert results[0] is None
            assert type(results[1]) is MessageRefused
            assert large.id in str(results[1])
            assert type(results[2]) is NobodyListens
            await fanout.gets(binding, wanted.id)

    async def test_a_topic_that_nobody_declared_takes_no_event(self) -> None:
        async with self.fanout() as fanout:
            other = self.name("nobodys")
            publishing = fanout.backend.publish(other, [self.message()], timeout=self.patience)
            (result,) = await self.within(publishing, what="publishing")
            assert isinstance(result, MessageRefused)
            assert other in str(result)

    # ---- what one group does is no other's concern ------------------------------------------------------------------

    async def test_a_retry_comes_to_its_own_group_only(self) -> None:
        async with self.fanout() as fanout:
            billing, warehouse = await fanout.bind("billing"), await fanout.bind("warehouse")
            (sent,) = await fanout.publish("1")
            consumer = await fanout.consumer(billing)
            await fanout.handle(consumer, 1, RetryAfter(0.0, "ValueError: no"))
            (again,) = await fanout.handle(consumer)
            assert (again.envelope.id, again.attempt) == (sent.id, 2)
            await fanout.gets(warehouse, sent.id)

    async def test_a_dead_letter_belongs_to_its_group_and_is_revived_for_it_alone(self) -> None:
        async with self.fanout() as fanout:
            self.need(fanout.guarantees, "dead_letters")
            billing, warehouse = await fanout.bind("billing"), await fanout.bind("warehouse")
            (sent,) = await fanout.publish("1")
            consumer = await fanout.consumer(billing)
            await fanout.handle(consumer, 1, Bury("rejected", "ValueError: no"))

            async def dead() -> bool:
                return len(await fanout.backend.queues.dead(billing.queue)) == 1

            await self.until(dead, what="a dead letter")
            assert await fanout.backend.queues.dead(warehouse.queue) == []
            await fanout.gets(warehouse, sent.id)
            letters = await fanout.backend.queues.dead(billing.queue)
            assert await fanout.backend.queues.revive(billing.queue, letters) == 1
            (got,) = await fanout.handle(consumer)
            assert (got.envelope.id, got.envelope.redrive_count) == (sent.id, 1)
            await fanout.gets(warehouse)

    async def test_a_keyed_group_handles_the_events_of_a_key_one_after_the_other(self) -> None:
        async with self.fanout() as fanout:
            self.need(fanout.guarantees, "key_order")
            keyed = await fanout.bind("keyed", keyed=True)
            await fanout.publish("1", "2", "3", key="order-1")
            consumer = await fanout.consumer(keyed)
            for text in (b"1", b"2", b"3"):
                (got,) = await fanout.receive(consumer)
                assert got.envelope.body == text
                await self.nothing_from(consumer.receive(1), what="a second event of the key was handed out")
                await consumer.settle([Settlement(got, Ack())])

    # ---- closing and durability -------------------------------------------------------------------------------------

    async def test_it_can_be_closed_twice_and_refuses_events_then(self) -> None:
        async with self.fanout() as fanout:
            binding = await fanout.bind("billing")
            other = await fanout.again()
            await other.backend.close()
            await other.backend.close()
            try:
                (result,) = await other.results([self.message()])
            except PolywireError as error:
                result = error
            assert isinstance(result, MessageRefused | BackendLost), result
            assert not isinstance(result, NobodyListens)
            await fanout.gets(binding)

    async def test_what_was_confirmed_is_in_every_queue_after_the_backend_was_restarted(self) -> None:
        async with self.fanout() as fanout:
            self.need(fanout.guarantees, "durable")
            bindings = [await fanout.bind(group) for group in ("billing", "warehouse")]
            sent = await fanout.publish(*(str(number) for number in range(50)))
            await self.restart_backend(fanout.url)

            async def connected() -> bool:
                try:
                    await (await fanout.consumer(bindings[0])).close()
                except DeliveryError:
                    return False
                return True

            await self.until(connected, what="connecting again")
            for binding in bindings:
                await fanout.gets(binding, *(envelope.id for envelope in sent))

    async def test_while_the_backend_is_down_publishing_waits_at_most_its_timeout(self) -> None:
        async with self.fanout() as fanout:
            await fanout.bind("billing")
            async with self.backend_down(fanout.url):
                publishing = fanout.backend.publish(fanout.topic, [self.message("lost")], timeout=self.moment)
                (result,) = await self.within(publishing, what="giving up")
                assert type(result) in (MessageRefused, PublishUnknown), result

            async def published() -> bool:
                return await fanout.results([self.message("after")]) == [None]

            await self.until(published, what="publishing again")

    async def test_a_backend_that_does_not_answer_is_unreachable_and_its_password_stays_secret(self) -> None:
        error = await self.within(raised(self.open_backend(self.url_of_nobody()), BackendUnreachable), what="failing")
        assert PASSWORD not in f"{error} {error!r}"

    # ---- declaring --------------------------------------------------------------------------------------------------

    async def test_declaring_twice_changes_nothing(self) -> None:
        async with self.fanout() as fanout:
            binding = await fanout.bind("billing", types=("shop.v1.OrderPaid",))
            (sent,) = await fanout.publish("1")
            await fanout.bind("billing", types=("shop.v1.OrderPaid",))
            assert await fanout.backend.check([fanout.topic], [binding]) == []
            await fanout.gets(binding, sent.id)

    async def test_check_names_what_is_missing_and_creates_nothing(self) -> None:
        async with self.fanout() as fanout:
            missing, group = self.name("missing"), Binding(topic=fanout.topic, group="absent")
            for _ in range(2):
                for lines, new in (
                    (await fanout.backend.check([missing], []), missing),
                    (await fanout.backend.check([fanout.topic], [group]), "absent"),
                ):
                    assert any(new in line for line in lines), lines
                    assert all(line.startswith("would create the ") for line in lines), lines

    async def test_a_difference_to_what_exists_is_named(self) -> None:
        async with self.fanout() as fanout:
            await fanout.bind("billing", types=("shop.v1.OrderPaid",))
            other = Binding(topic=fanout.topic, group="billing", keyed=True)
            lines = await fanout.backend.check([fanout.topic], [other])
            assert any("billing" in line and line.startswith("would refuse: ") for line in lines), lines
            error = await raised(fanout.backend.declare([fanout.topic], [other]), SetupError)
            assert "billing" in str(error)

    async def test_a_name_that_a_backend_could_misread_is_refused(self) -> None:
        async with self.fanout() as fanout:
            for name in REFUSED_NAMES:
                error = await raised(fanout.backend.declare([name], []), SetupError)
                assert "topic" in str(error), error
                binding = Binding(topic=fanout.topic, group=name)
                error = await raised(fanout.backend.declare([fanout.topic], [binding]), SetupError)
                assert "group" in str(error), error


__all__ = ["FanoutSuite", "OpenFanout"]
