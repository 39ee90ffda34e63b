"""Bugs to be planted into the backends themselves, in this process or, run as a program, in that of a worker.

`python named_bugs_support.py BUG ...` is `polywire.testing.bus_worker ...` with the bug planted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

from confluent_kafka import TopicPartition
from pika.channel import Channel

from polywire.bus.backend import (
    kafka_consumer,
    kafka_lane,
    kafka_member,
    kafka_producer,
    rabbitmq_connection,
    rabbitmq_consumer,
    sqlite_consumer,
    sqlite_member,
    sqlite_messages,
    sqlite_sending,
)
from polywire.bus.backend.sqlite_file import SharedFile, Transaction, Work
from polywire.bus.core import Ack, Bury, Delivery, Record, RetryAfter, Settlement
from polywire.testing import bus_worker

Patch = Callable[[Any, str, Any], None]
"""`setattr`, or pytest's, which is undone."""
Bug = Callable[[Patch], None]


# ---- ack before handling ----


def rabbitmq_acks_before_handling(patch: Patch) -> None:
    """The broker forgets what it sends."""
    consume = Channel.basic_consume
    patch(Channel, "basic_consume", lambda self, **given: consume(self, **given, auto_ack=True))


def sqlite_acks_before_handling(patch: Patch) -> None:
    receive = sqlite_consumer.SqliteConsumer.receive

    async def receive_and_ack(self: sqlite_consumer.SqliteConsumer, limit: int) -> list[Delivery]:
        got = await receive(self, limit)
        held = dict(self._held)
        await self.settle([Settlement(delivery, Ack()) for delivery in got])
        self._held.update(held)
        return got

    patch(sqlite_consumer.SqliteConsumer, "receive", receive_and_ack)


def kafka_is_done_before_handling(patch: Patch) -> None:
    receive = kafka_consumer.KafkaConsumer.receive

    async def receive_and_be_done(self: kafka_consumer.KafkaConsumer, limit: int) -> list[Record]:
        got = await receive(self, limit)
        await self.done(got)
        return got

    patch(kafka_consumer.KafkaConsumer, "receive", receive_and_be_done)


# ---- commit of the last finished offset ----


def kafka_commits_the_last_finished(patch: Patch) -> None:
    def finish(self: kafka_lane.Lane, offset: int) -> None:
        self.out.discard(offset)
        self.finished.add(offset)
        self.watermark = max(self.watermark, offset + 1)

    patch(kafka_lane.Lane, "finish", finish)


def sqlite_commits_the_last_finished(patch: Patch) -> None:
    def finish(self: sqlite_member.Lane, offset: int) -> None:
        self.open -= 1
        self.watermark = max(self.watermark, offset + 1)

    patch(sqlite_member.Lane, "finish", finish)


# ---- unfenced ack ----


def rabbitmq_acks_without_fence(patch: Patch) -> None:
    """Believes in a delivery as long as there is a channel for it."""

    class Believing(dict[Delivery, Any]):
        def pop(self, delivery: Delivery, default: Any = None) -> Any:
            super().pop(delivery, None)
            return delivery.token

    made = rabbitmq_consumer.RabbitConsumer.__init__

    def make(self: rabbitmq_consumer.RabbitConsumer, *arguments: Any, **given: Any) -> None:
        made(self, *arguments, **given)
        self._held = Believing()

    patch(rabbitmq_consumer.RabbitConsumer, "__init__", make)


def sqlite_acks_without_fence(patch: Patch) -> None:
    """Takes a message for its own because it once was."""

    def settle(self: Any, work: Any, settlement: Settlement, now: float) -> None:
        self._held.pop(settlement.delivery.token, None)
        work.add(settlement.delivery, settlement.outcome, True, now)

    def finish(tx: Transaction, queue: Any, owner: int, positions: Sequence[int], keys: Any) -> None:
        which = sqlite_messages.numbers(positions)
        tx.execute("DELETE FROM held WHERE pos IN (SELECT value FROM carray(?))", (which,))
        sqlite_messages.forget(tx, queue, which, len(positions))
        sqlite_messages.follow(tx, queue, keys)

    patch(sqlite_consumer.SqliteConsumer, "_settle", settle)
    patch(sqlite_messages, "finish", finish)
    patch(Transaction, "owns", lambda self, owner: True)
    leave = sqlite_consumer.SqliteConsumer.close

    async def close(self: Any) -> None:
        owner = self._owner
        await leave(self)
        self._owner = owner

    patch(sqlite_consumer.SqliteConsumer, "close", close)


def kafka_commits_without_fence(patch: Patch) -> None:
    """Commits what is done, whoever has the partition by now: the broker takes it from any member of the group."""
    done, commit = kafka_consumer.KafkaConsumer.done, kafka_member.Member._commit
    stale: list[TopicPartition] = []

    async def note_too(self: kafka_consumer.KafkaConsumer, records: Sequence[Record]) -> None:
        places = [(record, self._place(record)[0]) for record in records]
        stale.extend(
            TopicPartition(record.topic, record.partition, record.offset + 1)
            for record, lane in places
            if lane is None or not lane.open
        )
        await done(self, records)

    def commit_too(self: kafka_member.Member) -> None:
        commit(self)
        while stale and stale[0].topic in self._joins.topics:
            self._send_commit([stale.pop(0)])

    patch(kafka_consumer.KafkaConsumer, "done", note_too)
    patch(kafka_member.Member, "_commit", commit_too)


# ---- retry copy after ack ----


def rabbitmq_copies_after_the_ack(patch: Patch) -> None:
    replace = rabbitmq_consumer.RabbitConsumer._replace

    async def ack_first(self: rabbitmq_consumer.RabbitConsumer, copies: list[Any]) -> None:
        self._acknowledge([hold for hold, _ in copies])
        await replace(self, copies)

    patch(rabbitmq_consumer.RabbitConsumer, "_replace", ack_first)


def kafka_copies_after_the_ack(patch: Patch) -> None:
    put_aside = kafka_consumer.KafkaConsumer._put_aside

    async def done_first(self: kafka_consumer.KafkaConsumer, record: Record, outcome: RetryAfter | Bury) -> None:
        await self.done([record])
        await self._copy(record, outcome)

    assert put_aside is not done_first
    patch(kafka_consumer.KafkaConsumer, "_put_aside", done_first)


# ---- publish without confirm ----


def rabbitmq_publishes_without_confirm(patch: Patch) -> None:
    write = rabbitmq_connection.Publisher._write

    def write_and_believe(self: rabbitmq_connection.Publisher) -> None:
        write(self)
        for publish in list(self._outstanding.values()):
            self._finish(publish, None)
        self._outstanding.clear()

    patch(rabbitmq_connection.Publisher, "_write", write_and_believe)


def kafka_publishes_without_confirm(patch: Patch) -> None:
    produce = kafka_producer.Producer._produce

    def produce_and_believe(self: kafka_producer.Producer, batch: Any) -> None:
        produce(self, batch)
        for index in range(batch.next):
            batch.settle(index, None)

    patch(kafka_producer.Producer, "_produce", produce_and_believe)


def sqlite_confirms_before_the_commit(patch: Patch) -> None:
    submit = SharedFile.submit

    def submit_and_believe(self: SharedFile, work: Work) -> None:
        submit(self, work)
        if isinstance(work, sqlite_sending.Confirming):
            work.finish()

    patch(SharedFile, "submit", submit_and_believe)


# ---- basic_cancel with deliveries outstanding ----


def rabbitmq_cancels_as_pika_does(patch: Patch) -> None:
    """pika rejects what was prefetched by a consumer that is cancelled."""
    stop_work = rabbitmq_consumer.RabbitConsumer._stop_work
    release = rabbitmq_consumer.RabbitConsumer._release

    async def stop_and_reject(self: rabbitmq_consumer.RabbitConsumer) -> None:
        await stop_work(self)
        for source in self._sources:
            for incoming in list(source.buffer):
                assert source.asking is not None
                source.asking.channel.basic_reject(incoming.tag, requeue=True)

    async def release_the_rest(self: rabbitmq_consumer.RabbitConsumer) -> None:
        for source in self._sources:
            source.buffer.clear()
        await release(self)

    patch(rabbitmq_consumer.RabbitConsumer, "_stop_work", stop_and_reject)
    patch(rabbitmq_consumer.RabbitConsumer, "_release", release_the_rest)


def rabbitmq_cancels_lanes_too(patch: Patch) -> None:
    """A lane whose consumer is cancelled is another one's, before its head is settled."""

    async def stop_work(self: rabbitmq_consumer.RabbitConsumer) -> None:
        for source in self._sources:
            if source.asking is not None and source.asking.channel.is_open:
                await source.asking.ask(source.asking.channel.basic_cancel, consumer_tag="c")

    patch(rabbitmq_consumer.RabbitConsumer, "_stop_work", stop_work)


def rabbitmq_closes_lanes_in_order_of_the_broker(patch: Patch) -> None:
    """A channel that is closed has its consumers cancelled first."""
    closed = rabbitmq_connection.Asking.closed

    async def only_close(self: rabbitmq_connection.Asking, *, in_order: bool = False) -> None:
        await closed(self)

    patch(rabbitmq_connection.Asking, "closed", only_close)


# ---- attempts counted at claim ----


def _starts_at_receive(patch: Patch, kind: Any) -> None:
    receive, settle = kind.receive, kind.settle

    async def receive_and_start(self: Any, limit: int) -> list[Delivery]:
        got: list[Delivery] = await receive(self, limit)
        await settle(self, (), got)
        return got

    async def settle_only(
        self: Any, settlements: Sequence[Settlement], starting: Sequence[Delivery] = ()
    ) -> Collection[Delivery]:
        await settle(self, settlements)
        return starting

    patch(kind, "receive", receive_and_start)
    patch(kind, "settle", settle_only)


rabbitmq_counts_at_claim: Bug = partial(_starts_at_receive, kind=rabbitmq_consumer.RabbitConsumer)
sqlite_counts_at_claim: Bug = partial(_starts_at_receive, kind=sqlite_consumer.SqliteConsumer)


if __name__ == "__main__":
    globals()[sys.argv.pop(1)](setattr)
    bus_worker.main()
