"""Tasks on RabbitMQ: what is particular to it. The suite of all queues is in test_rabbitmq_suite.py."""

from __future__ import annotations

import asyncio
import time

import pytest
from rabbitmq_support import (
    a_name,
    an_envelope,
    nothing_comes,
    opened,
    plain_channel,
    properties,
    received,
    until,
    within,
)

from polywire.bus.backend import rabbitmq_topology as topology
from polywire.bus.backend.rabbitmq import RabbitQueue
from polywire.bus.backend.rabbitmq_consumer import RabbitConsumer
from polywire.bus.core import (
    Ack,
    Bury,
    DeadFilter,
    QueueSpec,
    Release,
    RetryAfter,
    Settlement,
)
from polywire.errors import (
    BackendLost,
    ConsumerClosed,
    MessageRefused,
    SetupError,
    Unsupported,
)

# ---- sending and receiving ---------------------------------------------------------------------------------------


async def test_an_envelope_comes_back_as_it_was_sent(rabbitmq_url: str) -> None:
    name = a_name()
    sent = an_envelope(
        "hello",
        key="order-1",
        version=3,
        headers={"tenant": "a", "x-death": "mine", "x-delivery-count": "17", "polywire-dead-id": "also mine", "ü": "ß"},
        traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        tracestate="a=b",
        request_id="r",
        causation_id="c",
        principal="p",
        reply_to="inbox",
        redrive_count=2,
        content_type="application/protobuf",
        expires=4_000_000_000.5,
    )
    async with opened(rabbitmq_url, QueueSpec(name=name)) as queue:
        assert await queue.send(name, [sent]) == [None]
        consumer = await queue.consumer(name, limit=1)
        [delivery] = await received(consumer, 1)
        assert delivery.envelope == sent
        assert (delivery.attempt, delivery.lost, delivery.unreadable) == (1, 0, None)
        await consumer.settle([Settlement(delivery, Ack())])
        await consumer.close()
        assert (await queue.stats(name)).ready == 0


async def test_bodies_of_any_size_travel_in_several_frames(rabbitmq_url: str) -> None:
    name = a_name()
    async with opened(rabbitmq_url, QueueSpec(name=name)) as queue:
        bodies = [b"", b"x", bytes(131_064), bytes(131_065), bytes(1_000_000)]
        envelopes = [an_envelope() for _ in bodies]
        for envelope, body in zip(envelopes, bodies, strict=True):
            envelope.body = body
        assert await queue.send(name, envelopes) == [None] * len(bodies)
        consumer = await queue.consumer(name, limit=10)
        found = await received(consumer, len(bodies))
        assert [delivery.envelope.body for delivery in found] == bodies


async def test_a_body_over_the_limit_is_refused_and_the_others_are_sent(rabbitmq_url: str) -> None:
    name = a_name()
    async with opened(rabbitmq_url, QueueSpec(name=name)) as queue:
        limit = queue.guarantees.max_message_bytes
        large = an_envelope()
        large.body = bytes(limit + 1)
        refused, sent = await queue.send(name, [large, an_envelope()])
        assert sent is None
        assert isinstance(refused, MessageRefused)
        assert str(refused) == (
            f"Message {large.id!r} to {name!r} was not sent: its body has {limit + 1} bytes, the limit is {limit}. "
            f"Put the content where both sides reach it, and send its address."
        )


async def test_messages_are_persistent_and_readable_for_others(rabbitmq_url: str) -> None:
    name = a_name()
    sent = an_envelope(headers={"tenant": "a"})
    async with opened(rabbitmq_url, QueueSpec(name=name)) as queue:
        await queue.send(name, [sent])
        with plain_channel(rabbitmq_url) as channel:
            method, seen, body = channel.basic_get(name, auto_ack=True)
        assert method is not None
        assert seen is not None
        assert body == sent.body
        assert seen.delivery_mode == 2
        assert (seen.message_id, seen.type, seen.content_type) == (
            sent.id,
            sent.type,
            "application/json",
        )
        # The broker's own: 3.10 has it at the first delivery, 4.0 has not.
        headers = {name: value for name, value in (seen.headers or {}).items() if name != "x-delivery-count"}
        assert headers == {
            "cloudEvents:specversion": "1.0",
            "cloudEvents:id": sent.id,
            "cloudEvents:source": "tests",
            "cloudEvents:type": sent.type,
            "cloudEvents:time": "2023-11-14T22:13:20.250000Z",
            "tenant": "a",
        }


async def test_a_message_of_somebody_else_has_the_type_its_properties_say(rabbitmq_url: str) -> None:
    name = a_name()
    async with opened(rabbitmq_url, QueueSpec(name=name)) as queue:
        with plain_channel(rabbitmq_url) as channel:
            table = {"number": 5, "yes": True, "bytes": b"\xff", "text": "t", "nested": {"a": 1}}
            full = properties(
                type="Invoice",
                message_id="m1",
                app_id="erp",
                headers=table,
                correlation_id="c",
                timestamp=7,
                priority=1,
            )
            channel.basic_publish("", name, b"{}", full)
            channel.basic_publish("", name, b"bare")
            underlined = {"cloudEvents_id": "e1", "cloudEvents_type": "t1", "cloudEvents_source": "/s"}
            channel.basic_publish("", name, b"", properties(headers=underlined))
        consumer = await queue.consumer(name, limit=10)
        foreign, bare, event = (delivery.envelope for delivery in await received(consumer, 3))
        assert (foreign.id, foreign.type, foreign.source, foreign.body) == ("m1", "Invoice", "erp", b"{}")
        assert foreign.headers == {"number": "5", "yes": "True", "bytes": "b'\\xff'", "text": "t", "nested": "{'a': 1}"}
        assert (bare.type, bare.body, bare.content_type, bare.headers) == (
            "",
            b"bare",
            "application/octet-stream",
            None,
        )
        assert bare.id
        assert (event.id, event.type, event.source) == ("e1", "t1", "/s")


async def test_an_envelope_that_cannot_be_read_is_delivered_with_the_reason_and_can_be_buried(
    rabbitmq_url: str,
) -> None:
    name = a_name()
    async with opened(rabbitmq_url, QueueSpec(name=name)) as queue:
        with plain_channel(rabbitmq_url) as channel:
            broken = {"cloudEvents:id": "1", "cloudEvents:type": "t", "cloudEvents:time": "yesterday"}
            channel.basic_publish("", name, b"body", properties(headers=broken, message_id="m"))
        consumer = await queue.consumer(name, limit=1)
        [delivery] = await received(consumer, 1)
        assert delivery.unreadable == "The message's attribute 'time' is no RFC 3339 time."
        assert delivery.envelope.body == b"body"
        await consumer.settle([Settlement(delivery, Bury("undecodable", delivery.unreadable))])
        [letter] = await queue.dead(name)
        assert (letter.reason, letter.envelope.id, letter.envelope.body) == ("undecodable", "m", b"body")


async def test_a_message_to_a_missing_queue_is_refused(rabbitmq_url: str) -> None:
    name = a_name()
    shown = rabbitmq_url.replace("guest:guest", "guest:***")
    async with opened(rabbitmq_url) as queue:
        envelope = an_envelope()
        [error] = await queue.send(name, [envelope])
        assert isinstance(error, MessageRefused)
        assert str(error) == (
            f"Message {envelope.id!r} to {name!r} was not sent. There is no queue {name!r} at '{shown}'. Declare it "
            f"first: `polywire bus apply`."
        )


async def test_a_queue_that_is_deleted_later_refuses_what_is_sent_and_ends_its_consumers(rabbitmq_url: str) -> None:
    name = a_name()
    async with opened(rabbitmq_url, QueueSpec(name=name)) as queue:
        consumer = await queue.consumer(name, limit=5)
        waiting = asyncio.create_task(consumer.receive(1))
        with plain_channel(rabbitmq_url) as channel:
            channel.queue_delete(name)
        with pytest.raises(BackendLost) as raised:
            await within(waiting)
        assert str(raised.value) == (
            f"The consumer of {name!r} lost its connection to RabbitMQ: queue {name!r} was deleted. What it held is "
            f"delivered again."
        )
        envelopes = [an_envelope(), an_envelope()]
        for error in await queue.send(name, envelopes):
            assert isinstance(error, MessageRefused)
            assert f"There is no queue {name!r}" in str(error)
        with pytest.raises(SetupError, match=f"There is no queue '{name}'"):
            await queue.consumer(name, limit=5)


async def test_many_senders_at_a_time_are_each_told_about_their_own(rabbitmq_url: str) -> None:
    name = a_name()
    async with opened(rabbitmq_url, QueueSpec(name=name)) as queue:
        results = await within(
            asyncio.gather(*[queue.send(name, [an_envelope(str(n)) for n in range(20)]) for _ in range(150)])
        )
        assert results == [[None] * 20] * 150
        await until_depth(queue, name, 3000)


async def test_more_than_can_wait_is_refused_at_once(rabbitmq_url: str) -> None:
    name = a_name()
    async with opened(rabbitmq_url, QueueSpec(name=name)) as queue:
        results = await within(queue.send(name, [an_envelope()] * 10_001))
        assert {type(result) for result in results} == {MessageRefused}
        assert str(results[0]).endswith("others are waiting already. Send more slowly, or fewer at a time.")
        assert await queue.send(name, [an_envelope()]) == [None]


async def until_depth(queue: RabbitQueue, name: str, depth: int) -> None:
    async def reached() -> bool:
        return (await queue.stats(name)).ready == depth

    await until(reached, f"{depth} ready messages in {name}")


# ---- settling ----------------------------------------------------------------------------------------------------


async def test_a_retry_counts_and_waits_through_the_delay_queues(rabbitmq_url: str) -> None:
    name = a_name()
    async with opened(rabbitmq_url, QueueSpec(name=name)) as queue:
        await queue.send(name, [an_envelope()])
        consumer = await queue.consumer(name, limit=1)
        [delivery] = await received(consumer, 1)
        before = time.time()
        await consumer.settle([Settlement(delivery, RetryAfter(1.6, "no"))])
        [again] = await received(consumer, 1)
        assert time.time() - before >= 1.6
        assert (again.attempt, again.lost, again.envelope.id) == (2, 0, delivery.envelope.id)


async def test_a_delayed_message_comes_when_it_is_due_and_not_before(rabbitmq_url: str) -> None:
    name = a_name()
    due = time.time() + 0.7
    async with opened(rabbitmq_url, QueueSpec(name=name)) as queue:
        await queue.send(name, [an_envelope(not_before=due), an_envelope("now")])
        consumer = await queue.consumer(name, limit=5)
        first, second = await received(consumer, 2)
        assert first.envelope.body == b"now"
        assert time.time() >= due
        assert second.envelope.not_before == pytest.approx(due, abs=1e-5)


async def test_a_delayed_message_whose_queue_was_deleted_is_kept_aside(rabbitmq_url: str) -> None:
    name = a_name()
    async with opened(rabbitmq_url) as queue:
        await queue.declare([QueueSpec(name=name)])
        envelope = an_envelope(not_before=time.time() + 0.6)
        await queue.send(name, [envelope])
        found: list[str | None] = []
        with plain_channel(rabbitmq_url) as channel:
            channel.queue_delete(name)

            async def kept() -> bool:
                _, seen, _ = channel.basic_get(topology.UNROUTED, auto_ack=True)
                found.append(seen.message_id if seen is not None else None)
                return envelope.id in found

            await until(kept, "the message without a queue")


async def test_closing_a_consumer_releases_what_it_holds_and_no_attempt_is_counted(rabbitmq_url: str) -> None:
    """Also what was prefetched and never handed out: 50 of 50. `basic_cancel` alone would have had pika reject them."""
    name = a_name()
    async with opened(rabbitmq_url, QueueSpec(name=name)) as queue:
        await queue.send(name, [an_envelope(str(n)) for n in range(50)])
        first = await queue.consumer(name, limit=50)
        held = await received(first, 5)
        await first.settle([], held)
        waiting = asyncio.create_task(first.receive(1)) if len(held) == 50 else None
        await within(first.close())
        await within(first.close())
        assert waiting is None or isinstance(waiting.exception(), ConsumerClosed)
        second = await queue.consumer(name, limit=50)
        found = await received(second, 50)
        assert {(each.attempt, each.lost) for each in found} == {(1, 0)}
        assert len({each.envelope.id for each in found}) == 50
        with pytest.raises(ConsumerClosed, match=f"The consumer of '{name}' was closed."):
            await first.receive(1)


async def test_more_shutdowns_than_the_broker_counts_bury_no_message(rabbitmq_url: str) -> None:
    """It was prefetched by each of them, and handed out by none."""
    name = a_name()
    async with opened(rabbitmq_url, QueueSpec(name=name)) as queue:
        sent = an_envelope()
        await queue.send(name, [sent])
        for _ in range(topology.DELIVERY_LIMIT + 2):
            consumer = await queue.consumer(name, limit=10)

            async def prefetched(consumer: RabbitConsumer = consumer) -> bool:
                return consumer.fetched == 1

            await until(prefetched, "the prefetched message")
            await within(consumer.close())
        assert await queue.dead(name) == []
        [delivery] = await received(await queue.consumer(name, limit=10), 1)
        assert (delivery.envelope.id, delivery.attempt, delivery.lost) == (sent.id, 1, 0)


async def test_a_released_message_comes_later_and_costs_no_attempt(rabbitmq_url: str) -> None:
    name = a_name()
    async with opened(rabbitmq_url, QueueSpec(name=name)) as queue:
        await queue.send(name, [an_envelope()])
        consumer = await queue.consumer(name, limit=1)
        for delay in (0.0, 0.3, 0.0):
            [delivery] = await received(consumer, 1)
            assert (delivery.attempt, delivery.lost) == (1, 0)
            before = time.time()
            await consumer.settle([Settlement(delivery, Release(delay))])
        [delivery] = await received(consumer, 1)
        assert (delivery.attempt, delivery.lost) == (1, 0)
        assert time.time() >= before


async def test_the_copy_of_a_retry_is_confirmed_before_the_original_is_acknowledged(
    rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = a_name()
    async with opened(rabbitmq_url, QueueSpec(name=name)) as queue:
        await queue.send(name, [an_envelope()])
        consumer = await queue.consumer(name, limit=1)
        [delivery] = await received(consumer, 1)

        async def nothing_is_confirmed(*_: object) -> list[Exception | None]:
            return [MessageRefused("not today")]

        with monkeypatch.context() as patched:
            patched.setattr(queue._client.publisher, "publish", nothing_is_confirmed)
            with pytest.raises(BackendLost) as raised:
                await consumer.settle([Settlement(delivery, RetryAfter(60.0, "no"))])
        assert str(raised.value) == f"1 messages of '{name}' were not settled: not today"
        other = await queue.consumer(name, limit=1)
        await consumer.close()
        [again] = await received(other, 1)
        assert again.envelope.id == delivery.envelope.id


async def test_a_cancelled_settlement_is_carried_to_its_end(rabbitmq_url: str) -> None:
    name = a_name()
    async with opened(rabbitmq_url, QueueSpec(name=name)) as queue:
        await queue.send(name, [an_envelope()])
        consumer = await queue.consumer(name, limit=1)
        [delivery] = await received(consumer, 1)
        settling = asyncio.create_task(consumer.settle([Settlement(delivery, Bury("rejected", "no"))]))
        await asyncio.sleep(0)
        settling.cancel()
        assert isinstance((await asyncio.gather(settling, return_exceptions=True))[0], asyncio.CancelledError)

        async def buried() -> bool:
            return len(await queue.dead(name)) == 1

        await until(buried, "the dead letter")
        await consumer.close()
        assert (await queue.stats(name)).ready == 0


# ---- dead letters ------------------------------------------------------------------------------------------------


async def test_dead_letters_are_listed_revived_and_dropped_and_the_others_stay_in_order(rabbitmq_url: str) -> None:
    name = a_name()
    async with opened(rabbitmq_url, QueueSpec(name=name)) as queue:
        envelopes = [an_envelope(str(n)) for n in range(5)]
        await queue.send(name, envelopes)
        consumer = await queue.consumer(name, limit=5)
        found = await received(consumer, 5)
        reasons = ["rejected", "attempts", "expired", "rejected", "attempts"]
        await consumer.settle(
            [
                Settlement(each, Bury(reason, f"ValueError: {reason} " + "x" * 5000))
                for each, reason in zip(found, reasons, strict=True)
            ]
        )
        letters = await queue.dead(name)
        assert [letter.envelope.body for letter in letters] == [b"0", b"1", b"2", b"3", b"4"]
        assert [letter.reason for letter in letters] == reasons
        assert {letter.attempts for letter in letters} == {0}
        assert {len(letter.error) for letter in letters} == {2000}
        assert all(abs(letter.died - time.time()) < 60 for letter in letters)
        assert len(await queue.dead(name, limit=2)) == 2
        rejected = await queue.dead(name, DeadFilter(reason="rejected", error="ValueError"))
        assert await queue.revive(name, rejected) == 2
        assert await queue.revive(name, rejected) == 0
        assert await queue.drop(name, [letters[2]]) == 1
        assert await queue.drop(name, [letters[2]]) == 0
        assert [letter.position for letter in await queue.dead(name)] == [letters[1].position, letters[4].position]
        again = await received(consumer, 2)
        assert {(each.envelope.id, each.attempt, each.envelope.redrive_count) for each in again} == {
            (envelopes[0].id, 1, 1),
            (envelopes[3].id, 1, 1),
        }
        assert (await queue.stats(name)).dead == 2


async def test_two_who_read_the_dead_letters_do_not_mix_them_up(rabbitmq_url: str) -> None:
    from polywire.bus.backend.rabbitmq_reading import Reading

    name = a_name()
    async with opened(rabbitmq_url, QueueSpec(name=name)) as queue:
        await queue.send(name, [an_envelope()])
        consumer = await queue.consumer(name, limit=1)
        [delivery] = await received(consumer, 1)
        await consumer.settle([Settlement(delivery, Bury("rejected"))])
        reading = Reading(queue._client, f"{name}.dead")
        assert await reading.open()
        with pytest.raises(Unsupported) as raised:
            await queue.dead(name)
        assert str(raised.value) == f"'{name}.dead' was not read: somebody else is reading it. Try again."
        await reading.close()
        assert len(await queue.dead(name)) == 1


async def test_dead_letters_of_a_missing_queue_are_a_setup_error(rabbitmq_url: str) -> None:
    async with opened(rabbitmq_url) as queue:
        with pytest.raises(SetupError, match=r"There is no queue 'nothing' at .*polywire bus apply"):
            await queue.dead("nothing")


# ---- priorities and keys -----------------------------------------------------------------------------------------


async def test_what_is_urgent_comes_first_and_the_rest_is_clamped_to_the_levels(rabbitmq_url: str) -> None:
    name = a_name()
    async with opened(rabbitmq_url, QueueSpec(name=name, priorities=3)) as queue:
        await queue.send(name, [an_envelope(str(p), priority=p) for p in (0, 1, 2, 9)])
        consumer = await queue.consumer(name, limit=6)

        async def all_there() -> bool:
            return sum(len(source.buffer) for source in consumer._sources) == 4

        await until(all_there, "all messages in the buffers")
        found = await received(consumer, 4)
        assert [each.envelope.priority for each in found] == [2, 9, 1, 0]


async def test_of_a_key_one_message_is_held_at_a_time_and_a_failing_one_holds_up_its_lane(rabbitmq_url: str) -> None:
    name = a_name()
    async with opened(rabbitmq_url, QueueSpec(name=name, keyed=True, lanes=2)) as queue:
        await queue.send(name, [an_envelope(str(n), key="a") for n in range(3)])
        consumer = await queue.consumer(name, limit=10)
        [first] = await received(consumer, 1)
        await nothing_comes(consumer)
        await consumer.settle([Settlement(first, RetryAfter(0.5, "no"))])
        before = time.monotonic()
        [again] = await received(consumer, 1)
        assert time.monotonic() - before > 0.3
        assert (again.envelope.body, again.attempt) == (b"0", 2)
        seen = [again]
        for _ in range(2):
            await consumer.settle([Settlement(seen[-1], Ack())])
            seen += await received(consumer, 1)
        assert [each.envelope.body for each in seen] == [b"0", b"1", b"2"]


async def test_a_failing_head_of_a_lane_keeps_its_count_over_a_restart_and_its_place(rabbitmq_url: str) -> None:
    name = a_name()
    async with opened(rabbitmq_url, QueueSpec(name=name, keyed=True, lanes=2)) as queue:
        await queue.send(name, [an_envelope(str(n), key="a") for n in range(3)])
        for attempt in (1, 2, 3):
            consumer = await queue.consumer(name, limit=10)
            [head] = await received(consumer, 1)
            assert (head.envelope.body, head.attempt, head.lost) == (b"0", attempt, 0)
            assert await consumer.settle([], [head])
            await consumer.settle([Settlement(head, RetryAfter(600.0, "no"))])
            await consumer.close()
        consumer = await queue.consumer(name, limit=10)
        [head] = await received(consumer, 1)
        await consumer.settle([Settlement(head, Bury("attempts", "no"))])
        rest = await received(consumer, 1)
        await consumer.settle([Settlement(rest[0], Ack())])
        rest += await received(consumer, 1)
        assert [(each.envelope.body, each.attempt) for each in rest] == [(b"1", 1), (b"2", 1)]
        [letter] = await queue.dead(name)
        assert (letter.envelope.key, letter.attempts) == ("a", 3)


async def test_lanes_are_shared_out_among_consumers(rabbitmq_url: str) -> None:
    name = a_name()
    async with opened(rabbitmq_url, QueueSpec(name=name, keyed=True, lanes=4)) as queue:
        first = await queue.consumer(name, limit=10)
        second = await queue.consumer(name, limit=10)
        counts = {id(first): 0, id(second): 0}

        async def work(consumer: object) -> None:
            assert consumer in (first, second)
            mine = first if consumer is first else second
            while True:
                for each in await mine.receive(10):
                    counts[id(mine)] += 1
                    await mine.settle([Settlement(each, Ack())])

        tasks = [asyncio.create_task(work(first)), asyncio.create_task(work(second))]

        async def both_work() -> bool:
            await queue.send(name, [an_envelope(key=str(n)) for n in range(20)])
            return min(counts.values()) > 0

        await until(both_work, "work for both consumers")
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await first.close()
        await second.close()


# ---- what exists -------------------------------------------------------------------------------------------------


async def test_differences_are_named_and_nothing_is_made_beside_them(rabbitmq_url: str) -> None:
    name, other = a_name(), a_name()
    shown = rabbitmq_url.replace("guest:guest", "guest:***")
    async with opened(rabbitmq_url, QueueSpec(name=name, keyed=True, lanes=4)) as queue:
        assert await queue.check([QueueSpec(name=name, keyed=True, lanes=4)]) == []
        wrong = {
            QueueSpec(name=name): f"queue '{name}' is keyed",
            QueueSpec(name=name, keyed=True, lanes=2): f"queue '{name}' has more than 2 lanes",
            QueueSpec(name=name, keyed=True, lanes=8): f"queue '{name}' has fewer than 8 lanes",
        }
        for spec, line in wrong.items():
            assert await queue.check([spec]) == [f"would refuse: {line}"]
            with pytest.raises(SetupError) as raised:
                await RabbitQueue.declare(queue, [spec])
            assert str(raised.value) == (
                f"The queues at '{shown}' are not as declared: {line}. Delete what is different once it is empty, or "
                f"declare it under another name."
            )
        with plain_channel(rabbitmq_url) as channel:
            channel.queue_declare(other, durable=True)
            assert await queue.check([QueueSpec(name=other)]) == [
                f"would create the queue '{other}.dead'",
                f"would create the queue '{other}.notes'",
                f"would refuse: queue '{other}' has x-dead-letter-exchange none, not ''",
                f"would create the queue '{other}.suspects'",
            ]
            channel.queue_delete(other)


async def test_more_priorities_than_declared_are_a_difference(rabbitmq_url: str) -> None:
    name = a_name()
    async with opened(rabbitmq_url, QueueSpec(name=name, priorities=3)) as queue:
        assert await queue.check([QueueSpec(name=name, priorities=2)]) == [
            f"would refuse: queue '{name}' has more than 2 priorities"
        ]
        assert await queue.check([QueueSpec(name=name, priorities=4)]) == [f"would create the queue '{name}.p3'"]


async def test_what_the_backend_cannot_keep_is_refused(rabbitmq_url: str) -> None:
    async with opened(rabbitmq_url) as queue:
        for spec, reason in (
            (QueueSpec(name="a b"), "its name has to be a letter or digit, and up to 199 more of letters, digits"),
            (QueueSpec(name="q", keyed=True, lanes=65), "lanes=65 is not from 1 to 64."),
            (QueueSpec(name="q", priorities=11), "it has 11 priorities, and RabbitMQ queues have at most 10"),
            (QueueSpec(name="q", concurrency=1), "RabbitMQ cannot keep concurrency= over all processes."),
            (QueueSpec(name="q", rate=1.0), "RabbitMQ cannot keep rate= over all processes."),
        ):
            with pytest.raises(SetupError) as raised:
                await queue.declare([spec])
            assert str(raised.value).startswith(f"The queue {spec.name!r} was not declared: {reason}")
        for work in (queue.cancel("q", "1"), queue.move("q", "1", 0.0), queue.peek("q", 1)):
            with pytest.raises(
                Unsupported, match=r"^RabbitMQ cannot .*, so nothing was done to 'q'\. A sqlite backend"
            ):
                await work


async def test_a_queue_is_used_by_who_did_not_declare_it(rabbitmq_url: str) -> None:
    plain, keyed = QueueSpec(name=a_name(), priorities=2), QueueSpec(name=a_name(), keyed=True, lanes=3)
    async with opened(rabbitmq_url, plain, keyed), opened(rabbitmq_url) as stranger:
        assert await stranger.send(plain.name, [an_envelope(priority=1)]) == [None]
        assert await stranger.send(keyed.name, [an_envelope(key=str(n)) for n in range(9)]) == [None] * 9
        assert await stranger.spec(plain.name) == plain
        assert await stranger.spec(keyed.name) == keyed
        assert (await stranger.stats(keyed.name)).ready == 9


async def test_closing_twice_and_while_busy_answers_everybody(rabbitmq_url: str) -> None:
    name = a_name()
    async with opened(rabbitmq_url, QueueSpec(name=name)):
        queue = RabbitQueue(rabbitmq_url)
        await queue.start()
        await queue.declare([QueueSpec(name=name)])
        consumer = await queue.consumer(name, limit=1)
        receiving = asyncio.create_task(consumer.receive(1))
        sending = [asyncio.create_task(queue.send(name, [an_envelope()] * 5)) for _ in range(50)]
        await asyncio.sleep(0)
        await within(consumer.close())
        await within(queue.close())
        await within(queue.close())
        assert not queue.connected
        assert isinstance((await asyncio.gather(receiving, return_exceptions=True))[0], ConsumerClosed)
        for results in await within(asyncio.gather(*sending)):
            assert all(result is None or isinstance(result, Exception) for result in results)


def test_the_lane_of_a_key_is_the_same_for_ever() -> None:
    assert [topology.lane_of(key, 8) for key in ("a", "order-1", "ü", "", None)] == [3, 7, 5, 0, 0]
