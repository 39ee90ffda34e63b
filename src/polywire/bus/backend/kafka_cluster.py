"""What a Kafka cluster is asked beside sending and receiving: topics, groups and their offsets, a look at records."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from confluent_kafka import (
    Consumer,
    ConsumerGroupState,
    ConsumerGroupTopicPartitions,
    KafkaError,
    KafkaException,
    Producer,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import ConfigResource
from confluent_kafka.admin._listoffsets import OffsetSpec
from confluent_kafka.cimpl import NewTopic

from polywire.bus.backend.kafka_address import LOGGER, Address, Log
from polywire.bus.backend.kafka_marks import Mark, read
from polywire.bus.backend.kafka_messages import Message
from polywire.errors import BackendUnreachable

T = TypeVar("T")

ASKING = 10.0
"""Seconds for one question."""
VISIBLE = 15.0
"""Seconds until a new topic can be used everywhere."""
AGAIN = 0.1
"""Seconds between two questions where the first was asked too early."""
READ_AT_ONCE = 500
GROUPS_AT_ONCE = 50

# confluent-kafka declares these functions without types.
_EARLIEST: Callable[[], Any] = OffsetSpec.earliest
_LATEST: Callable[[], Any] = OffsetSpec.latest
_GONE = {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC}
_SOON = {
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
}
_NO_GROUP = {KafkaError.GROUP_ID_NOT_FOUND}


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic as the cluster has it; *settings* are its own and the broker's, by name."""

    partitions: int
    settings: Mapping[str, str]


class Cluster:
    """Asks through librdkafka's AdminClient. Everything here raises BackendUnreachable where there is no answer."""

    def __init__(self, address: Address) -> None:
        """Raises KafkaException where a setting makes no sense."""
        self._address = address
        # What it would log, the producer logs too.
        self._admin = AdminClient({**address.settings, "log_level": 0}, logger=Log(address))

    async def reach(self, timeout: float) -> None:
        await self._asked("the cluster", lambda: self._admin.describe_cluster(request_timeout=timeout), timeout)

    # ---- topics -----------------------------------------------------------------------------------------------------

    async def exists(self, topic: str) -> bool:
        """Asked without the broker's creating it. Raises KafkaException."""
        return (await self._partitions([topic]))[topic] is not None

    async def _partitions(self, topics: Sequence[str]) -> dict[str, int | None]:
        """How many each has; None where there is no such topic. Raises KafkaException."""
        found: dict[str, int | None] = {}
        asked = self._admin.describe_topics(TopicCollection(list(topics)), request_timeout=ASKING) if topics else {}
        for topic, future in asked.items():
            try:
                found[topic] = len((await answer(future)).partitions)
            except KafkaException as error:
                if error.args[0].code() not in _GONE:
                    raise
                found[topic] = None
        return found

    async def partitions(self, topics: Sequence[str]) -> dict[str, int | None]:
        with self._translated("the topics"):
            return await self._partitions(topics)

    async def topics(self, names: Sequence[str]) -> dict[str, Topic]:
        """Those of *names* that there are."""
        there = {name: count for name, count in (await self.partitions(names)).items() if count is not None}
        with self._translated("the settings of topics"):
            resources = [ConfigResource(ConfigResource.Type.TOPIC, name) for name in there]
            asked = self._admin.describe_configs(resources, request_timeout=ASKING) if resources else {}
            settings = {resource.name: await answer(future) for resource, future in asked.items()}
        return {
            name: Topic(count, {key: entry.value or "" for key, entry in settings[name].items()})
            for name, count in there.items()
        }

    async def names(self) -> list[str]:
        """Of all topics."""
        with self._translated("the names of topics"):
            listed = await asyncio.to_thread(self._admin.list_topics, timeout=ASKING)
        return sorted(listed.topics)

    async def create(self, topics: Sequence[NewTopic]) -> None:
        """Those that somebody else creates at the same time are there as well."""
        if not topics:
            return
        with self._translated("for new topics"):
            for future in self._admin.create_topics(list(topics), request_timeout=ASKING).values():
                try:
                    await answer(future)
                except KafkaException as error:
                    if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                        raise
        await self._visible([topic.topic for topic in topics])

    async def _visible(self, topics: Sequence[str]) -> None:
        give_up = time.monotonic() + VISIBLE
        while any(count is None for count in (await self.partitions(topics)).values()):
            if time.monotonic() > give_up:
                raise BackendUnreachable(
                    f"Kafka at '{self._address}' created topics, but did not show them within {VISIBLE:g} s."
                )
            await asyncio.sleep(0.05)

    # ---- groups -----------------------------------------------------------------------------------------------------

    async def committed(self, group: str, topic: str, partitions: int) -> dict[int, int]:
        """Offsets of the group, of those partitions where it committed any."""
        return {number: mark.offset for number, mark in (await self.marks(group, topic, partitions)).items()}

    async def marks(self, group: str, topic: str, partitions: int) -> dict[int, Mark]:
        """What the group committed last, of those partitions where it committed anything."""
        places = [TopicPartition(topic, number) for number in range(partitions)]
        with self._translated(f"the offsets of the group {group!r}"):
            request = [ConsumerGroupTopicPartitions(group, places)]
            try:
                found = await _patiently(
                    lambda: self._admin.list_consumer_group_offsets(request, request_timeout=ASKING)[group]
                )
            except KafkaException as error:
                if error.args[0].code() not in _NO_GROUP:
                    raise
                return {}
        committed = [each for each in found.topic_partitions or () if each.offset >= 0]
        return {each.partition: read(each.offset, each.metadata) for each in committed}

    async def commit(self, group: str, topic: str, offsets: Mapping[int, int], generation: int = 0) -> bool:
        """False where the group has members: it is theirs to commit."""
        if not offsets:
            return True
        texts = {number: Mark(offset, generation=generation).text for number, offset in offsets.items()}
        places = [TopicPartition(topic, n, offset, metadata=texts[n]) for n, offset in offsets.items()]
        with self._translated(f"for other offsets of the group {group!r}"):
            request = [ConsumerGroupTopicPartitions(group, places)]
            try:
                done = await _patiently(
                    lambda: self._admin.alter_consumer_group_offsets(request, request_timeout=ASKING)[group]
                )
            except KafkaException as error:
                if error.args[0].code() not in (KafkaError.NON_EMPTY_GROUP, KafkaError.UNKNOWN_MEMBER_ID):
                    raise
                return False
            errors = [each.error for each in done.topic_partitions or () if each.error is not None]
            if any(error.code() in (KafkaError.NON_EMPTY_GROUP, KafkaError.UNKNOWN_MEMBER_ID) for error in errors):
                return False
            if errors:
                raise KafkaException(errors[0])
        return True

    async def commit_beside(self, group: str, topic: str, offsets: Mapping[int, int]) -> None:
        """Commit for a group that has members, of a topic that none of them reads yet.

        Its user needs the right to write to transactional ids that begin with `polywire.`.
        """
        with self._translated(f"for the first offsets of the running group {group!r}"):
            await asyncio.to_thread(self._commit_beside, group, topic, offsets)

    def _commit_beside(self, group: str, topic: str, offsets: Mapping[int, int]) -> None:
        # From others than its members a running group takes offsets by transactions alone (KIP-447).
        settings = {**self._address.settings, "log_level": 0}
        name = f"polywire.{group}.{topic}.{secrets.token_hex(8)}"
        producer = Producer(
            {**settings, "transactional.id": name, "transaction.timeout.ms": int(ASKING * 1000)},
            logger=Log(self._address),
        )
        producer.init_transactions(ASKING)
        producer.begin_transaction()
        places = [
            TopicPartition(topic, number, offset, metadata=Mark(offset).text) for number, offset in offsets.items()
        ]
        try:
            outsider = Consumer({**settings, "group.id": group}, logger=Log(self._address))
            try:
                producer.send_offsets_to_transaction(places, outsider.consumer_group_metadata(), ASKING)
            finally:
                outsider.close()
            producer.commit_transaction(ASKING)
        except BaseException:
            self._abort(producer, group)
            raise

    def _abort(self, producer: Producer, group: str) -> None:
        """End a transaction. Until it ends, its group cannot be asked for the offsets in it."""
        try:
            producer.abort_transaction(ASKING)
        except KafkaException as error:
            LOGGER.warning(
                "A transaction of the group %r at '%s' was not ended, and ends by its time, in %g s: Kafka says %r.",
                group,
                self._address,
                ASKING,
                self._address.without_secrets(error.args[0].str()),
            )

    async def members(self, group: str) -> tuple[int, str]:
        """How many the group has, and the kind of its protocol, `classic` or `consumer`."""
        with self._translated(f"the members of the group {group!r}"):
            try:
                found = await _patiently(
                    lambda: self._admin.describe_consumer_groups([group], request_timeout=ASKING)[group]
                )
            except KafkaException as error:
                if error.args[0].code() not in _NO_GROUP:
                    raise
                return 0, ""
        gone = found.state == ConsumerGroupState.DEAD
        return len(found.members), "" if gone else str(getattr(found.type, "name", "")).lower()

    async def groups(self) -> list[str]:
        """Ids of all groups that the cluster knows."""
        with self._translated("the groups"):
            listed = await _patiently(lambda: self._admin.list_consumer_groups(request_timeout=ASKING))
        return sorted(each.group_id for each in listed.valid or ())

    async def committing(self, topic: str, partitions: int) -> list[str]:
        """Groups that committed anything of the topic."""
        names = await self.groups()
        found: list[str] = []
        for start in range(0, len(names), GROUPS_AT_ONCE):
            some = names[start : start + GROUPS_AT_ONCE]
            offsets = await asyncio.gather(*(self.committed(name, topic, partitions) for name in some))
            found += [name for name, kept in zip(some, offsets, strict=True) if kept]
        return found

    async def offers_new_protocol(self) -> bool:
        """Whether brokers say that they offer the consumer protocol of KIP-848; False where they do not tell us."""
        try:
            cluster = await answer(self._admin.describe_cluster(request_timeout=ASKING))
            offered: list[bool] = []
            for node in cluster.nodes:
                resource = ConfigResource(ConfigResource.Type.BROKER, str(node.id))
                asked = self._admin.describe_configs([resource], request_timeout=ASKING)
                settings = await answer(next(iter(asked.values())))
                entry = settings.get("group.coordinator.rebalance.protocols")
                offered.append(entry is not None and "consumer" in (entry.value or "").split(","))
        except KafkaException:
            return False
        return bool(offered) and all(offered)

    # ---- offsets ----------------------------------------------------------------------------------------------------

    async def first(self, topic: str, partitions: int) -> dict[int, int]:
        return await self._offsets(topic, range(partitions), _EARLIEST())

    async def end(self, topic: str, partitions: int) -> dict[int, int]:
        return await self._offsets(topic, range(partitions), _LATEST())

    async def at(self, topic: str, partitions: int, seconds: float) -> dict[int, int]:
        """Of the first record that was appended at that time or later; -1 where there is none."""
        return await self._offsets(topic, range(partitions), OffsetSpec.for_timestamp(max(0, int(seconds * 1000))))

    async def _offsets(self, topic: str, partitions: Iterable[int], spec: Any) -> dict[int, int]:
        with self._translated(f"the offsets of the topic {topic!r}"):
            places = {TopicPartition(topic, number): spec for number in partitions}
            asked = self._admin.list_offsets(places, request_timeout=ASKING) if places else {}
            return {place.partition: (await answer(future)).offset for place, future in asked.items()}

    # ---- records ----------------------------------------------------------------------------------------------------

    async def read(self, topic: str, starts: Mapping[int, int], limit: int | None) -> list[Message]:
        """At most *limit* of each partition, in the order of their offsets, of what is there now."""
        with self._translated(f"the records of the topic {topic!r}"):
            return await asyncio.to_thread(self._read, topic, starts, limit)

    def _read(self, topic: str, starts: Mapping[int, int], limit: int | None) -> list[Message]:
        found: list[Message] = []
        missing: dict[int, int | None] = dict.fromkeys(starts, limit)
        last = time.monotonic()
        with self._reader() as client:
            client.assign([TopicPartition(topic, number, offset) for number, offset in starts.items()])
            while missing:
                # `consume` waits for as many as it is asked for.
                messages = client.consume(1, 0.1)
                if messages:
                    messages += client.consume(READ_AT_ONCE, 0)
                    last = time.monotonic()
                elif time.monotonic() - last > ASKING:
                    raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
                for message in messages:
                    _sort(message, missing, found)
        return found

    @contextmanager
    def _reader(self) -> Iterator[Consumer]:
        """In no group: its id is only there because librdkafka wants one."""
        client = Consumer(
            {
                **self._address.settings,
                "group.id": "polywire-reader",
                "enable.auto.commit": False,
                "enable.partition.eof": True,
                "auto.offset.reset": "earliest",
                "isolation.level": "read_committed",
            },
            logger=Log(self._address),
        )
        try:
            yield client
        finally:
            client.close()

    # ---- errors -----------------------------------------------------------------------------------------------------

    async def _asked(self, what: str, ask: Callable[[], concurrent.futures.Future[T]], timeout: float) -> T:
        with self._translated(what):
            async with asyncio.timeout(timeout + 1):
                return await answer(ask())

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except KafkaException as error:
            text = self._address.without_secrets(error.args[0].str())
            reason = f"Kafka says {text!r} ({error.args[0].name()})"
            raise BackendUnreachable(f"Kafka at '{self._address}' was not asked {_about(what)}: {reason}.") from error
        except TimeoutError:
            raise BackendUnreachable(
                f"Kafka at '{self._address}' was asked {_about(what)} and did not answer."
            ) from None


def _about(what: str) -> str:
    return what if what.startswith("for ") else f"for {what}"


def _sort(message: Any, missing: dict[int, int | None], found: list[Message]) -> None:
    error, partition = message.error(), message.partition()
    if error is not None:
        if error.code() == KafkaError._PARTITION_EOF:
            missing.pop(partition, None)
        elif error.fatal() or not error.retriable():
            raise KafkaException(error)
    elif partition in missing:
        found.append(message)
        left = missing[partition]
        if left is not None:
            missing[partition] = left - 1
            if left <= 1:
                del missing[partition]


async def _patiently(ask: Callable[[], concurrent.futures.Future[T]]) -> T:
    """The answer, asked for again while the group's coordinator is just starting."""
    give_up = time.monotonic() + ASKING
    while True:
        try:
            return await answer(ask())
        except KafkaException as error:
            if error.args[0].code() not in _SOON or time.monotonic() > give_up:
                raise
        await asyncio.sleep(AGAIN)


async def answer(future: concurrent.futures.Future[T]) -> T:
    """What a future of another thread gives. Cancelling this leaves the other one alone, whose owner would stumble."""
    loop = asyncio.get_running_loop()
    here: asyncio.Future[None] = loop.create_future()

    def tell() -> None:
        if not here.done():
            here.set_result(None)

    def answered(_: object) -> None:
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(tell)

    future.add_done_callback(answered)
    await here
    return future.result()
