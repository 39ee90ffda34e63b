"""Copies of events that Kafka does not take: the event they are made of is not done, and comes again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient
from kafka_support import QUICK, declared, event, of_topic, opened

from polywire.bus.backend.kafka import KafkaLog
from polywire.bus.backend.kafka_copies import dead_topic, retry_topics
from polywire.bus.core import Bury, GroupSpec, Record, RetryAfter, TopicSpec
from polywire.errors import DeliveryError

pytestmark = pytest.mark.slow


async def _delete(log: KafkaLog, kafka_url: str, names: list[str]) -> None:
    admin = AdminClient({"bootstrap.servers": kafka_url.removeprefix("kafka://")})
    for deleted in admin.delete_topics(names).values():
        await asyncio.wrap_future(deleted)
    # The broker takes records for a while after it said so.
    async with asyncio.timeout(60.0):
        for name in names:
            while await log.append(name, [event("probe")], timeout=2.0) == [None]:  # noqa: ASYNC110 - the broker knows
                await asyncio.sleep(0.05)


async def _receive(member: Any, count: int) -> list[Record]:
    found: list[Record] = []
    async with asyncio.timeout(60.0):
        while len(found) < count:
            found += await member.receive(count - len(found))
    return found


async def test_an_event_whose_copy_cannot_be_written_is_not_done(kafka_url: str) -> None:
    async with opened(f"{kafka_url}?{QUICK}") as log:
        topic = await declared(log, "billing")
        group = of_topic(topic)
        assert await log.append(topic, [event("0"), event("1")]) == [None, None]
        member = await log.consumer([topic], group, limit=10)
        first, second = await _receive(member, 2)
        gone = [dead_topic(topic, group), *retry_topics(topic, group)]
        await _delete(log, kafka_url, gone)
        with pytest.raises(DeliveryError) as retried:
            await member.retry(first, RetryAfter(1.0, "ValueError: no"))
        with pytest.raises(DeliveryError) as buried:
            await member.bury(second, Bury("rejected", "ValueError: no"))
        assert [first.envelope.id in str(retried.value), second.envelope.id in str(buried.value)] == [True, True]
        await member.close()
        await log.declare([TopicSpec(name=topic, partitions=1)], [GroupSpec(topic=topic, group=group)])
        again = await log.consumer([topic], group, limit=10)
        try:
            assert [record.offset for record in await _receive(again, 2)] == [0, 1]
        finally:
            await again.close()
