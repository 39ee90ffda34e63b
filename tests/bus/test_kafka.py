"""What is special about Kafka: its records as others see them, its limits, its errors, a blocked event loop."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from kafka_support import QUICK, declared, event, of_topic, opened, put

from polywire.bus.backend import kafka_producer
from polywire.bus.backend.kafka import KafkaLog
from polywire.bus.backend.kafka_lane import BUFFERED
from polywire.bus.backend.kafka_member import BATCH
from polywire.bus.core import Bury, Envelope, GroupSpec, Record, RetryAfter, Seek, TopicSpec
from polywire.errors import GroupRunning, MessageRefused, SetupError

pytestmark = pytest.mark.slow

SOON = 30.0


async def record_of(log: KafkaLog, topic: str, offset: int = 0) -> Record:
    (found,) = await log.read(topic, 0, offset, 1)
    return found


async def raw(address: str, topic: str) -> Any:
    """The first record, as any other client sees it."""

    def read() -> Any:
        servers = {"bootstrap.servers": address.removeprefix("kafka://")}
        client = Consumer({**servers, "group.id": "raw", "enable.auto.commit": False})
        client.assign([TopicPartition(topic, 0, 0)])
        found = client.poll(SOON)
        client.close()
        return found

    return await asyncio.to_thread(read)


# ---- records -------------------------------------------------------------------------------------------------------


async def test_an_event_is_a_cloudevent_in_binary_mode(kafka_url: str) -> None:
    async with opened(kafka_url) as log:
        topic = await declared(log)
        sent = Envelope(
            "id-1",
            "shop.v1.OrderPaid",
            b'{"total": 1}',
            "orders",
            1_700_000_000.25,
            key="order-1",
            version=2,
            headers={"tenant": "a"},
            traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        )
        assert await log.append(topic, [sent]) == [None]
        found = await raw(kafka_url, topic)
        assert (found.key(), found.value()) == (b"order-1", b'{"total": 1}')
        assert dict(found.headers()) == {
            "ce_specversion": b"1.0",
            "ce_id": b"id-1",
            "ce_source": b"orders",
            "ce_type": b"shop.v1.OrderPaid",
            "ce_time": b"2023-11-14T22:13:20.250000Z",
            "ce_dataversion": b"2",
            "ce_traceparent": b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "content-type": b"application/json",
            "tenant": b"a",
        }
        assert (await record_of(log, topic)).envelope == sent


async def test_all_attributes_and_headers_that_look_like_ours_come_back(kafka_url: str) -> None:
    async with opened(kafka_url) as log:
        topic = await declared(log)
        sent = Envelope(
            "id-1",
            "shop.v1.OrderPaid",
            b"\x00\xff",
            "",
            1_700_000_000.5,
            "application/protobuf",
            3,
            "grün",
            {"ce_id": "mine", "content-type": "mine too", "polywire-origin": "x", "polywire-own-a": "y", "plain": ""},
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "a=b",
            "request",
            "cause",
            "principal",
            1,
            1_700_000_001.25,
            1_700_000_002.75,
            4,
            5,
            6,
            "reply",
        )
        assert await log.append(topic, [sent]) == [None]
        assert (await record_of(log, topic)).envelope == sent


async def test_a_message_of_somebody_else_is_read_as_it_is(kafka_url: str) -> None:
    async with opened(kafka_url) as log:
        topic = await declared(log, "billing")
        trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
        headers = {"tenant": "a", "traceparent": trace, "odd": b"\xff", "none": None, "content-type": "text/plain"}
        await put(kafka_url, topic, b"hello", key=b"\xfe1", headers=headers)
        consumer = await log.consumer([topic], of_topic(topic), limit=10)
        (record,) = await consumer.receive(10)
        envelope = record.envelope
        assert (envelope.id, envelope.type, envelope.body) == (f"{topic}/0@0", "", b"hello")
        assert (envelope.key, envelope.content_type, envelope.traceparent) == ("\\xfe1", "text/plain", trace)
        assert envelope.headers == {"tenant": "a", "traceparent": trace, "odd": "\\xff", "none": ""}
        assert abs(envelope.time - time.time()) < 60
        # It is put aside and comes back as any other.
        await consumer.retry(record, RetryAfter(0.0))
        (record,) = await consumer.receive(10)
        assert (record.envelope.id, record.envelope.type, record.attempt) == (f"{topic}/0@0", "", 2)
        await consumer.bury(record, Bury("rejected"))
        (letter,) = await log.dead(topic, of_topic(topic))
        assert (letter.envelope.type, letter.envelope.headers) == ("", envelope.headers)


async def test_an_event_without_a_value_is_a_mark_of_deletion_and_stays_one(kafka_url: str) -> None:
    async with opened(kafka_url) as log:
        topic = await declared(log, "billing")
        await put(kafka_url, topic, None, key=b"order-1")
        assert await log.append(topic, [event("", key="order-2", content_type="")]) == [None]
        first, second = await log.read(topic, 0, 0, 10)
        assert [(r.envelope.key, r.envelope.body, r.envelope.content_type) for r in (first, second)] == [
            ("order-1", b"", ""),
            ("order-2", b"", ""),
        ]
        consumer = await log.consumer([topic], of_topic(topic), limit=10)
        for record in await consumer.receive(10):
            await consumer.bury(record, Bury("rejected"))
        letters = await log.dead(topic, of_topic(topic))
        assert [letter.envelope.key for letter in letters] == ["order-1", "order-2"]


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"ce_id": "1"}, "The message carries CloudEvents attributes, but no type."),
        ({"ce_specversion": "1.0"}, "The message carries CloudEvents attributes, but no id and type."),
        ({"ce_id": "1", "ce_type": "a", "ce_time": "noon"}, "The message's attribute 'time' is no RFC 3339 time."),
        ({"ce_id": "1", "ce_type": "a", "ce_attempt": "-1"}, "The message's attribute 'attempt' is no count."),
        ({"ce_id": "1", "ce_type": b"\xff"}, "The message carries CloudEvents attributes that are not UTF-8."),
    ],
)
async def test_an_envelope_that_is_none_is_unreadable(kafka_url: str, headers: dict[str, Any], reason: str) -> None:
    async with opened(kafka_url) as log:
        topic = await declared(log)
        await put(kafka_url, topic, b"body", headers=headers)
        record = await record_of(log, topic)
        assert record.unreadable == reason
        assert (record.envelope.id, record.envelope.body) == (f"{topic}/0@0", b"body")


def murmur2(data: bytes) -> int:
    """As Java's clients hash keys."""
    m, mask = 0x5BD1E995, 0xFFFFFFFF
    h = 0x9747B28C ^ len(data)
    for i in range(0, len(data) & ~3, 4):
        k = int.from_bytes(data[i : i + 4], "little") * m & mask
        h = (h * m & mask) ^ ((k ^ k >> 24) * m & mask)
    if tail := data[len(data) & ~3 :]:
        h = (h ^ int.from_bytes(tail, "little")) * m & mask
    h = (h ^ h >> 13) * m & mask
    return (h ^ h >> 15) & 0x7FFFFFFF


async def test_keys_are_spread_as_by_javas_clients(kafka_url: str) -> None:
    assert murmur2(b"21") == -973932308 & 0x7FFFFFFF, "as in the tests of Apache Kafka"
    async with opened(kafka_url) as log:
        topic = await declared(log, partitions=7)
        keys = [f"customer-{number}" for number in range(40)]
        assert await log.append(topic, [event(key=key) for key in keys]) == [None] * 40
        for partition in range(7):
            for record in await log.read(topic, partition, 0, 100):
                assert murmur2((record.envelope.key or "").encode()) % 7 == partition


# ---- refusals ------------------------------------------------------------------------------------------------------


async def test_a_topic_that_nobody_declared_is_refused_and_not_created(kafka_url: str) -> None:
    async with opened(kafka_url) as log:
        sent = event()
        (error,) = await log.append("nobody", [sent])
        assert type(error) is MessageRefused
        assert str(error) == (
            f"The message {sent.id!r} was not sent: there is no topic 'nobody'. "
            f"Declare it, with `polywire bus apply` or when the service starts."
        )
        assert "nobody" not in await log._there().names()


async def test_a_message_that_the_broker_finds_too_large_is_refused(kafka_url: str) -> None:
    async with opened(kafka_url) as log:
        topic = await declared(log, partitions=2)
        admin = AdminClient({"bootstrap.servers": kafka_url.removeprefix("kafka://")})
        small = f"{topic}-small"
        for future in admin.create_topics([NewTopic(small, 1, 1, config={"max.message.bytes": "2000"})]).values():
            future.result()
        await log._there()._visible([small])
        one, large, two = event("1", key="a"), event("x" * 3000, key="a"), event("2", key="a")
        results = [(await log.append(small, [each]))[0] for each in (one, large, two)]
        assert [results[0], results[2]] == [None, None]
        assert str(results[1]) == (
            f"The message {large.id!r} was not sent to the topic {small!r}: "
            f"it is larger than the topic's max.message.bytes."
        )
        assert [record.envelope.body for record in await log.read(small, 0, 0, 10)] == [b"1", b"2"]


async def test_a_closed_log_refuses_events(kafka_url: str) -> None:
    log = KafkaLog(kafka_url)
    sent = event()
    (error,) = await log.append("orders", [sent])
    assert str(error) == f"The message {sent.id!r} was not sent to the topic 'orders': '{kafka_url}' is not open."


async def test_a_group_with_too_long_a_name_for_its_topics_is_refused(kafka_url: str) -> None:
    async with opened(kafka_url) as log:
        topic, group = "t" * 140, "g" * 140
        with pytest.raises(SetupError) as raised:
            await log.declare([], [GroupSpec(topic=topic, group=group)])
        assert str(raised.value) == (
            f"The group {group!r} of the topic {topic!r} was not declared: "
            f"its own topics would have names of 291 characters, and Kafka takes 249."
        )


async def test_differences_are_named_in_the_words_of_the_declaration(kafka_url: str) -> None:
    async with opened(kafka_url) as log:
        topic = await declared(log, partitions=3, retention=3600.0, retention_bytes=1000)
        same = TopicSpec(name=topic, partitions=3, retention=3600.0, retention_bytes=1000)
        assert await log.check([same]) == []
        other = TopicSpec(name=topic, partitions=4, retention=None, retention_bytes=None)
        lines = [
            f"The topic {topic!r} has partitions=3, but it is declared with partitions=4.",
            f"The topic {topic!r} has retention=3600.0, but it is declared with retention=None.",
            f"The topic {topic!r} has retention_bytes=1002, but it is declared with retention_bytes=None.",
        ]
        assert await log.check([other], [GroupSpec(topic=topic, group="new")]) == [
            f"would create the group 'new' of {topic!r}",
            *(f"would refuse: {line}" for line in lines),
        ]
        with pytest.raises(SetupError) as raised:
            await log.declare([other])
        advice = "Declare it as it is, or delete it once it is empty and declare it anew."
        assert str(raised.value) == "\n".join([*lines, advice])


async def test_a_running_group_is_not_sent_elsewhere(kafka_url: str) -> None:
    async with opened(kafka_url) as log:
        topic = await declared(log, "billing")
        consumer = await log.consumer([topic], of_topic(topic), limit=10)
        await until(lambda: bool(consumer.assigned))
        with pytest.raises(GroupRunning) as raised:
            await log.seek(topic, of_topic(topic), Seek(earliest=True))
        assert str(raised.value) == (
            f"The group {of_topic(topic)!r} of the topic {topic!r} was not sent elsewhere: "
            f"1 members of it are running, and Kafka tells them nothing. Stop them, and start them again afterwards."
        )


# ---- sending -------------------------------------------------------------------------------------------------------


async def test_more_than_librdkafka_holds_waits_and_stays_in_order(
    kafka_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_producer, "MAX_PENDING", 7)
    async with opened(kafka_url) as log:
        topic = await declared(log)
        calls = [log.append(topic, [event(f"{10 * call + n}", key="a") for n in range(10)]) for call in range(50)]
        assert await asyncio.gather(*calls) == [[None] * 10] * 50
        assert [int(r.envelope.body) for r in await log.read(topic, 0, 0, 1000)] == list(range(500))


async def test_a_cancelled_append_sends_no_more_and_disturbs_nobody(
    kafka_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_producer, "MAX_PENDING", 5)
    async with opened(kafka_url) as log:
        topic = await declared(log)
        assert await log.append(topic, [event("first")]) == [None]
        cancelled = asyncio.ensure_future(log.append(topic, [event(f"{n}") for n in range(1000)]))
        after = asyncio.ensure_future(log.append(topic, [event("after")]))
        await asyncio.sleep(0)
        cancelled.cancel()
        assert await asyncio.wait_for(after, SOON) == [None]
        texts = [record.envelope.body for record in await log.read(topic, 0, 0, 2000)]
        assert texts[-1] == b"after"
        assert len(texts) < 500


async def test_a_producer_that_ended_for_good_is_replaced(
    kafka_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_producer, "REPLACE", 0.3)
    async with opened(f"{kafka_url}?linger=1") as log:
        topic = await declared(log)
        assert await log.append(topic, [event("1")]) == [None]
        producer = log._producer
        assert producer is not None
        assert producer._client is not None
        waiting = asyncio.ensure_future(log.append(topic, [sent := event("2")]))
        await asyncio.sleep(0)
        producer._retire(producer._client, KafkaError(KafkaError._FATAL, "out of order", fatal=True))
        (error,) = await asyncio.wait_for(waiting, SOON)
        assert type(error) is MessageRefused
        assert str(error) == (
            f"The message {sent.id!r} was not sent to the topic {topic!r}: "
            f"Kafka's producer ended, Kafka says 'out of order'."
        )
        assert await log.append(topic, [event("3")]) == [None]
        assert "Kafka's producer is replaced after an error: out of order" in caplog.text
        assert [record.envelope.body for record in await log.read(topic, 0, 0, 10)] == [b"1", b"3"]


# ---- receiving -----------------------------------------------------------------------------------------------------


async def until(condition: Any) -> None:
    give_up = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < give_up
        await asyncio.sleep(0.02)


async def test_a_blocked_event_loop_does_not_cost_the_membership(kafka_url: str) -> None:
    url = f"{kafka_url}?{QUICK}&group_protocol=classic&session_timeout=1&rebalance_timeout=2"
    async with opened(url) as log:
        topic = await declared(log, "billing", partitions=2)
        consumer = await log.consumer([topic], of_topic(topic), limit=10)
        await log.append(topic, [event("1")])
        (before,) = await consumer.receive(1)
        time.sleep(3.0)  # noqa: ASYNC251 - what a handler should not do, but some do
        await consumer.done([before])
        await log.append(topic, [event(f"{n}") for n in range(20)])
        got: list[Record] = []
        while len(got) < 20:
            got += await asyncio.wait_for(consumer.receive(20 - len(got)), SOON)
            await consumer.done(got[-20:])
        assert {record.envelope.body.decode() for record in got} == {f"{n}" for n in range(20)}
        await until_lag(log, topic, 0)


async def until_lag(log: KafkaLog, topic: str, lag: int) -> None:
    async with asyncio.timeout(SOON):
        while (await log.stats(topic, of_topic(topic))).lag != lag:  # noqa: ASYNC110 - the broker knows
            await asyncio.sleep(0.05)


async def test_what_waits_for_slow_handlers_is_bounded(kafka_url: str) -> None:
    async with opened(f"{kafka_url}?{QUICK}") as log:
        topic = await declared(log, "billing")
        await log.append(topic, [event(f"{n}") for n in range(10_000)])
        consumer = await log.consumer([topic], of_topic(topic), limit=10)
        first = await consumer.receive(10)
        (lane,) = consumer._members[0].lanes.values()
        await until(lambda: lane.paused)
        assert lane.waiting <= BUFFERED + BATCH + 1
        await consumer.done(first)
        got = Counter(int(record.envelope.body) for record in first)
        while len(got) < 10_000:
            records = await asyncio.wait_for(consumer.receive(1000), SOON)
            assert lane.waiting <= BUFFERED + BATCH + 1
            got.update(int(record.envelope.body) for record in records)
            await consumer.done(records)
        assert set(got) == set(range(10_000))
        assert max(got.values()) == 1


async def test_a_group_that_starts_at_the_latest_begins_where_it_was_declared(kafka_url: str) -> None:
    async with opened(kafka_url) as log, opened(kafka_url) as other:
        topic = await declared(log)
        await log.append(topic, [event("before")])
        await log.declare([], [GroupSpec(topic=topic, group=of_topic(topic), start="latest")])
        await log.append(topic, [event("between")])
        # The process that consumes did not declare it.
        consumer = await other.consumer([topic], of_topic(topic), limit=10)
        (record,) = await asyncio.wait_for(consumer.receive(10), SOON)
        assert record.envelope.body == b"between"


@pytest.mark.parametrize("protocol", ["consumer", "classic"])
async def test_a_running_group_begins_with_another_topic_where_it_was_declared(kafka_url: str, protocol: str) -> None:
    url = f"{kafka_url}?group_protocol={protocol}"
    async with opened(url) as log, opened(url) as other:
        running = await declared(log, "billing")
        group = of_topic(running)
        member = await log.consumer([running], group, limit=10)
        await until(lambda: bool(member.assigned))
        topic = await declared(log)
        await log.append(topic, [event("before")])
        await log.declare([], [GroupSpec(topic=topic, group=group, start="latest")])
        await log.append(topic, [event("between")])
        # The process that consumes did not declare it.
        consumer = await other.consumer([topic], group, limit=10)
        (record,) = await asyncio.wait_for(consumer.receive(10), SOON)
        assert record.envelope.body == b"between"


async def test_an_event_that_dies_twice_is_one_dead_letter_the_last(kafka_url: str) -> None:
    async with opened(kafka_url) as log:
        topic = await declared(log, "billing")
        await log.append(topic, [event("1", key="a"), event("2")])
        consumer = await log.consumer([topic], of_topic(topic), limit=10)
        one, two = await consumer.receive(10)
        await consumer.bury(one, Bury("attempts", "first"))
        await consumer.bury(two, Bury("attempts", "other"))
        letters = await log.dead(topic, of_topic(topic))
        assert await log.revive(topic, of_topic(topic), letters[:1]) == 1
        (again,) = await asyncio.wait_for(consumer.receive(10), SOON)
        assert (again.topic, again.offset, again.retried) == (topic, 0, True)
        await consumer.bury(again, Bury("attempts", "second"))
        found = await log.dead(topic, of_topic(topic))
        assert [(letter.envelope.key, letter.error, letter.envelope.redrive_count) for letter in found] == [
            (None, "other", 0),
            ("a", "second", 1),
        ]
        assert await log.drop(topic, of_topic(topic), found) == 2
        assert await log.dead(topic, of_topic(topic)) == []
