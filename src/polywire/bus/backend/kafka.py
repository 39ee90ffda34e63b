"""Events on Apache Kafka: `kafka://host:9092,host2:9092`, `kafkas://` with TLS.

How it is put together: `kafka_address` reads the URL, `kafka_messages` turns envelopes into records and back,
`kafka_producer` sends, `kafka_consumer` is a member of a group with a `kafka_lane` per partition and what its commits
say in `kafka_marks`, `kafka_copies` knows retries and dead letters, `kafka_cluster` asks about topics and groups.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.cimpl import NewTopic

from polywire.bus.backend.kafka_address import ENVELOPE_BYTES, LOGGER, Address, parse, wrong
from polywire.bus.backend.kafka_cluster import Cluster, Topic
from polywire.bus.backend.kafka_consumer import KafkaConsumer
from polywire.bus.backend.kafka_copies import (
    Buried,
    dead_copy,
    dead_letters,
    dead_topic,
    group_of,
    new_topics,
    retry_of,
    retry_topics,
    revival_of,
    taken_out,
)
from polywire.bus.backend.kafka_lane import unread
from polywire.bus.backend.kafka_member import Joins
from polywire.bus.backend.kafka_messages import Message, appended, envelope_of, headers_of, value_of
from polywire.bus.backend.kafka_producer import Outgoing, Producer
from polywire.bus.core.checks import (
    checked_name,
    differences,
    not_there,
    refuse_differences,
    too_large,
    would_create_group,
    would_create_topic,
    would_refuse,
)
from polywire.bus.core.envelope import Envelope
from polywire.bus.core.guarantees import Guarantees
from polywire.bus.core.log import GroupSpec, GroupStats, Record, Revoking, Seek, TopicSpec
from polywire.bus.core.queue import EVERY_DEAD, Bury, DeadFilter, DeadLetter, RetryAfter
from polywire.clock import SYSTEM_CLOCK, Clock
from polywire.errors import (
    BackendLost,
    BackendUnreachable,
    GroupRunning,
    MessageRefused,
    SetupError,
    UndecodableMessage,
)

MAX_TOPIC_NAME = 249
"""Of Kafka's; the topics of a group have the names of its topic and its own in theirs."""
PROBE = 1.0
"""Seconds between two attempts to reach a cluster that is away."""

_NOT_LET_IN = {
    KafkaError._AUTHENTICATION,
    KafkaError._SSL,
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.UNSUPPORTED_SASL_MECHANISM,
}


class KafkaLog:
    """An event log on a Kafka cluster.

    A confirmed event was taken by all replicas that are in sync (`acks=all`; set `min.insync.replicas=2` and
    `?replication=3` where more than one broker shall have it). Keys are spread over partitions as Java's clients do it.

    A group is replayed by `seek` while none of its members runs, as Kafka would tell them nothing. Its generation is in
    the text beside its committed offsets: tools that move these in another way (`kafka-consumer-groups.sh`), and the
    broker that forgets those of a group without members (`offsets.retention.minutes`), take it back to 0, and what an
    inbox remembers of that generation is not done again.

    The URL's options: `group_protocol=consumer|classic` (where it names none, what the group has, or the new protocol
    where all brokers say that they offer it), `ca_file`, `cert_file`, `key_file`, `sasl=SCRAM-SHA-512`,
    `password_file`, `replication`, `max_message_bytes`, `compression`, the times in seconds `linger`,
    `connect_timeout`, `delivery_timeout`, `commit_interval`, `rebalance_timeout`, `session_timeout`; and librdkafka's
    own by their dotted names. What the URL does not name is taken from POLYWIRE_KAFKA_<OPTION>, the password from
    POLYWIRE_KAFKA_PASSWORD.
    """

    def __init__(self, url: str, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._address: Address = parse(url)
        self._clock = clock
        self.guarantees = Guarantees(
            backend="kafka",
            durable=True,
            shared=True,
            max_message_bytes=self._address.max_message_bytes,
            key_order=True,
            attempts="counted",
            replay=True,
        )
        self._specs: dict[tuple[str, str], GroupSpec] = {}
        """Declared or checked here, by topic and group."""
        self._consumers: set[KafkaConsumer] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._producer: Producer | None = None
        self._cluster: Cluster | None = None
        self._up = False
        self._probe: asyncio.Task[None] | None = None
        self._problem = ""
        self._not_let_in = False

    # ---- the connection ---------------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        return self._up

    async def start(self) -> None:
        if self._producer is not None:
            return
        self._loop = asyncio.get_running_loop()
        self._problem, self._not_let_in = "", False
        try:
            self._cluster = cluster = Cluster(self._address)
            self._producer = Producer(self._address, self._clock, exists=cluster.exists, trouble=self._trouble)
        except KafkaException as error:
            text = self._address.without_secrets(str(error.args[0].str()))
            raise wrong(self._address.shown, f"librdkafka says {text!r}") from None
        try:
            await self._reach(cluster)
        except BaseException:
            await self.close()
            raise

    async def _reach(self, cluster: Cluster) -> None:
        limit = self._address.connect_timeout
        give_up = self._clock.monotonic() + limit
        while True:
            try:
                await cluster.reach(min(1.0, limit))
                self._up = True
                return
            except BackendUnreachable:
                if self._not_let_in:
                    raise BackendUnreachable(
                        f"Kafka at '{self._address}' did not let us in: {self._problem}."
                    ) from None
                if self._clock.monotonic() >= give_up:
                    reason = self._problem or "nobody answered"
                    raise BackendUnreachable(
                        f"Kafka at '{self._address}' was not reached within {limit:g} s: {reason}."
                    ) from None

    def _trouble(self, error: KafkaError) -> None:
        """From a thread of librdkafka's: a connection broke, or does not come about."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._note, error)

    def _note(self, error: KafkaError) -> None:
        if error.code() != KafkaError._ALL_BROKERS_DOWN:
            self._problem = self._address.without_secrets(error.str())
            self._not_let_in = self._not_let_in or error.code() in _NOT_LET_IN
        elif self._up and self._cluster is not None:
            LOGGER.warning("Kafka at '%s' does not answer any more: %s.", self._address, self._problem)
            self._up = False
            self._probe = asyncio.get_running_loop().create_task(self._until_back(self._cluster))

    async def _until_back(self, cluster: Cluster) -> None:
        """librdkafka reconnects by itself; this is only to know about it."""
        while not self._up:
            try:
                await cluster.reach(PROBE)
                self._up = True
            except BackendUnreachable:
                await self._clock.sleep(PROBE)
        LOGGER.info("Kafka at '%s' answers again.", self._address)

    async def close(self) -> None:
        producer, self._producer = self._producer, None
        if self._probe is not None:
            self._probe.cancel()
        if self._consumers:
            await asyncio.gather(*(consumer.close() for consumer in self._consumers))
            self._consumers.clear()
        if producer is not None:
            await producer.close()
        self._cluster = None
        self._up = False

    def _there(self) -> Cluster:
        if self._cluster is None:
            raise BackendLost(f"Kafka at '{self._address}' was not asked: it is not open. Call `start` first.")
        return self._cluster

    # ---- declaring --------------------------------------------------------------------------------------------------

    async def declare(self, topics: Sequence[TopicSpec], groups: Sequence[GroupSpec] = ()) -> None:
        _check_names(topics, groups)
        cluster = self._there()
        found = await cluster.topics([topic.name for topic in topics])
        refuse_differences(_differences(topics, found))
        await cluster.create([self._new(topic) for topic in topics if topic.name not in found])
        for spec in groups:
            await self._declare_group(cluster, spec)

    async def _declare_group(self, cluster: Cluster, spec: GroupSpec) -> None:
        wanted = new_topics(spec.topic, spec.group, self._address)
        there = await cluster.partitions([spec.topic, *(topic.topic for topic in wanted)])
        partitions = there[spec.topic]
        if partitions is None:
            raise SetupError(f"The group {spec.group!r} was not declared: there is no topic {spec.topic!r}.")
        self._specs[spec.topic, spec.group] = spec
        is_new = there[dead_topic(spec.topic, spec.group)] is None
        if is_new and spec.start == "latest":
            await self._begin_here(cluster, spec, partitions)
        await cluster.create([topic for topic in wanted if there[topic.topic] is None])

    async def _begin_here(self, cluster: Cluster, spec: GroupSpec, partitions: int) -> None:
        """From now on, and not from when its first member comes."""
        # Asked first: should another process declare it meanwhile, what is sent after that is not jumped over.
        end = await cluster.end(spec.topic, partitions)
        if await cluster.committed(spec.group, spec.topic, partitions):
            return
        if not await cluster.commit(spec.group, spec.topic, end):
            await cluster.commit_beside(spec.group, spec.topic, end)

    async def check(self, topics: Sequence[TopicSpec], groups: Sequence[GroupSpec] = ()) -> list[str]:
        _check_names(topics, groups)
        cluster = self._there()
        found = await cluster.topics([topic.name for topic in topics])
        new = [topic for topic in topics if topic.name not in found]
        lines = [would_create_topic(topic.name, topic.partitions) for topic in new]
        for spec in groups:
            there = await cluster.partitions(self._topics_of(spec.topic, spec.group))
            if None in there.values():
                lines.append(would_create_group(spec.group, spec.topic))
            self._specs[spec.topic, spec.group] = spec
        return [*lines, *would_refuse(_differences(topics, found))]

    def _topics_of(self, topic: str, group: str) -> list[str]:
        return [*retry_topics(topic, group), dead_topic(topic, group)]

    def _new(self, topic: TopicSpec) -> NewTopic:
        settings = {**_settings_of(topic), "max.message.bytes": str(self._address.max_message_bytes + ENVELOPE_BYTES)}
        return NewTopic(topic.name, topic.partitions, self._address.replication, config=settings)

    # ---- appending --------------------------------------------------------------------------------------------------

    async def append(
        self, topic: str, envelopes: Sequence[Envelope], *, timeout: float | None = None
    ) -> list[Exception | None]:
        if self._producer is None:
            return [self._not_open(topic, envelope) for envelope in envelopes]
        limit = self._address.max_message_bytes
        outgoing: list[Outgoing] = []
        for envelope in envelopes:
            if len(envelope.body) > limit:
                return await self._append_what_fits(topic, envelopes, timeout)
            outgoing.append((envelope, envelope.key, value_of(envelope), headers_of(envelope)))
        return await self._producer.send(topic, outgoing, timeout)

    async def _append_what_fits(
        self, topic: str, envelopes: Sequence[Envelope], timeout: float | None
    ) -> list[Exception | None]:
        refused = [too_large(each, f"topic {topic!r}", self._address.max_message_bytes) for each in envelopes]
        fit = [each for each, refusal in zip(envelopes, refused, strict=True) if refusal is None]
        sent = iter(await self.append(topic, fit, timeout=timeout))
        return [refusal or next(sent) for refusal in refused]

    def _not_open(self, topic: str, envelope: Envelope) -> MessageRefused:
        return MessageRefused(
            f"The message {envelope.id!r} was not sent to the topic {topic!r}: '{self._address}' is not open."
        )

    async def _send(self, sending: Sequence[tuple[str, Outgoing]]) -> None:
        """Raises the first DeliveryError."""
        producer = self._producer
        if producer is None:
            raise BackendLost(f"Nothing was sent: Kafka at '{self._address}' is not open.")
        answers = await asyncio.gather(*(producer.send(topic, [outgoing], None) for topic, outgoing in sending))
        for (error,) in answers:
            if error is not None:
                raise error

    # ---- consuming --------------------------------------------------------------------------------------------------

    async def consumer(
        self, topics: Sequence[str], group: str, *, limit: int, revoking: Revoking | None = None
    ) -> KafkaConsumer:
        cluster = self._there()
        if not topics:
            raise SetupError(f"The group {group!r} was not joined: it names no topic.")
        joins = await self._joins(cluster, tuple(topics), group)

        async def copy(record: Record, outcome: RetryAfter | Bury) -> None:
            await self._copy(record, group, outcome)

        made = KafkaConsumer(
            self._address, joins, copy, limit=limit, revoking=revoking, clock=self._clock, trouble=self._trouble
        )
        self._consumers = {consumer for consumer in self._consumers if not consumer.gone}
        self._consumers.add(made)
        return made

    async def _joins(self, cluster: Cluster, topics: tuple[str, ...], group: str) -> list[Joins]:
        """The group itself, and that of its retries."""
        retries = {name: topic for topic in topics for name in retry_topics(topic, group)}
        there = await cluster.partitions([*topics, *retries])
        for topic in topics:
            if there[topic] is None:
                raise not_there(f"topic {topic!r}")
            if any(there[name] is None for name in retry_topics(topic, group)):
                raise not_there(f"group {group!r} of the topic {topic!r}")
        latest = frozenset(topic for topic in topics if self._starts_latest(topic, group))
        protocol = await self._protocol(cluster, group)
        return [
            Joins(
                group=group,
                topics=topics,
                protocol=protocol,
                latest=latest,
                partitions={topic: there[topic] or 0 for topic in topics},
            ),
            Joins(group=f"{group}.retry", topics=tuple(retries), protocol=protocol, retries=retries),
        ]

    def _starts_latest(self, topic: str, group: str) -> bool:
        spec = self._specs.get((topic, group))
        return spec is not None and spec.start == "latest"

    async def _protocol(self, cluster: Cluster, group: str) -> str:
        """A group keeps the protocol that its members have; the new one is for new groups, where it is certain."""
        if self._address.group_protocol != "auto":
            return self._address.group_protocol
        members, kind = await cluster.members(group)
        if members and kind in ("classic", "consumer"):
            return kind
        return "consumer" if await cluster.offers_new_protocol() else "classic"

    async def _copy(self, record: Record, group: str, outcome: RetryAfter | Bury) -> None:
        now = self._clock.time()
        if isinstance(outcome, Bury):
            sending = dead_topic(record.topic, group), dead_copy(record, outcome, now)
        else:
            sending = retry_of(record, group, outcome.delay, now + outcome.delay, outcome.error)
        await self._send([sending])

    # ---- looking ----------------------------------------------------------------------------------------------------

    async def _partitions(self, cluster: Cluster, topic: str) -> int:
        count = (await cluster.partitions([topic]))[topic]
        if count is None:
            raise not_there(f"topic {topic!r}")
        return count

    async def stats(self, topic: str, group: str) -> GroupStats:
        cluster = self._there()
        count = await self._partitions(cluster, topic)
        committed = await cluster.committed(group, topic, count)
        if not committed and (await cluster.partitions([dead_topic(topic, group)])).popitem()[1] is None:
            raise not_there(f"group {group!r} of the topic {topic!r}")
        first, end = await cluster.first(topic, count), await cluster.end(topic, count)
        start = end if self._starts_latest(topic, group) else first
        # Behind the start of the log where the retention was faster than the group.
        positions = {number: max(committed.get(number, start[number]), first[number]) for number in range(count)}
        behind = {number: max(0, end[number] - position) for number, position in positions.items()}
        members, _ = await cluster.members(group)
        return GroupStats(
            topic=topic,
            group=group,
            lag=sum(behind.values()),
            by_partition=behind,
            members=members,
            oldest=await self._oldest(cluster, topic, {n: positions[n] for n in behind if behind[n]}),
        )

    async def _oldest(self, cluster: Cluster, topic: str, positions: Mapping[int, int]) -> float | None:
        times = [appended(message) for message in await cluster.read(topic, positions, 1)] if positions else []
        return max(0.0, self._clock.time() - min(times)) if times else None

    async def groups(self, topic: str) -> list[str]:
        """Those that were declared, and those that committed anything of it."""
        cluster = self._there()
        count = await self._partitions(cluster, topic)
        names = await cluster.names()
        declared = {
            group
            for name in names
            if (group := group_of(name, topic)) is not None and not _is_of_another(name, topic, names)
        }
        return sorted(declared | set(await cluster.committing(topic, count)))

    async def read(self, topic: str, partition: int, offset: int, limit: int) -> list[Record]:
        cluster = self._there()
        if not 0 <= partition < await self._partitions(cluster, topic):
            raise not_there(f"partition {partition} of the topic {topic!r}")
        if limit <= 0:
            return []
        first, end = await cluster.first(topic, partition + 1), await cluster.end(topic, partition + 1)
        if offset >= end[partition]:
            return []
        messages = await cluster.read(topic, {partition: max(offset, first[partition])}, limit)
        return [_record(message) for message in messages]

    async def seek(self, topic: str, group: str, to: Seek) -> None:
        given = sum((to.time is not None, to.offsets is not None, to.earliest, to.latest))
        if given != 1:
            raise ValueError(f"Seek takes exactly one of time, offsets, earliest and latest; it was given {given}.")
        cluster = self._there()
        count = await self._partitions(cluster, topic)
        members, _ = await cluster.members(group)
        offsets = await self._goal(cluster, topic, count, to)
        marks = await cluster.marks(group, topic, count)
        generation = max((mark.generation for mark in marks.values()), default=0) + 1
        if members or not await cluster.commit(group, topic, offsets, generation):
            raise GroupRunning(
                f"The group {group!r} of the topic {topic!r} was not sent elsewhere: {members or 'some'} members of it "
                f"are running, and Kafka tells them nothing. Stop them, and start them again afterwards."
            )

    async def _goal(self, cluster: Cluster, topic: str, count: int, to: Seek) -> dict[int, int]:
        first, end = await cluster.first(topic, count), await cluster.end(topic, count)
        if to.time is not None:
            found = await cluster.at(topic, count, to.time)
            return {number: end[number] if offset < 0 else offset for number, offset in found.items()}
        if to.offsets is not None:
            known = {number: offset for number, offset in to.offsets.items() if 0 <= number < count}
            return {number: min(max(offset, first[number]), end[number]) for number, offset in known.items()}
        return end if to.latest else first

    # ---- dead letters -----------------------------------------------------------------------------------------------

    async def _buried(self, topic: str, group: str) -> list[Buried]:
        cluster, name = self._there(), dead_topic(topic, group)
        if (await cluster.partitions([name]))[name] is None:
            raise not_there(f"group {group!r} of the topic {topic!r}")
        return dead_letters(await cluster.read(name, {0: 0}, None), f"{topic}.{group}")

    async def dead(
        self, topic: str, group: str, which: DeadFilter = EVERY_DEAD, *, limit: int = 100
    ) -> list[DeadLetter]:
        found = await self._buried(topic, group)
        return [each.letter for each in found if which.fits(each.letter)][:limit]

    async def revive(self, topic: str, group: str, letters: Sequence[DeadLetter]) -> int:
        found = await self._still_buried(topic, group, letters)
        # First the copies: if we die in between, they are there twice, not gone.
        await self._send([revival_of(each.letter, topic, group, each.origin) for each in found])
        await self._send([(dead_topic(topic, group), taken_out(each)) for each in found])
        return len(found)

    async def drop(self, topic: str, group: str, letters: Sequence[DeadLetter]) -> int:
        found = await self._still_buried(topic, group, letters)
        await self._send([(dead_topic(topic, group), taken_out(each)) for each in found])
        return len(found)

    async def _still_buried(self, topic: str, group: str, letters: Sequence[DeadLetter]) -> list[Buried]:
        meant = {letter.position for letter in letters}
        return [each for each in await self._buried(topic, group) if each.letter.position in meant]


def _record(message: Message) -> Record:
    topic, partition, offset = message.topic() or "", message.partition() or 0, message.offset() or 0
    try:
        return Record(topic, partition, offset, envelope_of(message))
    except UndecodableMessage as error:
        return Record(topic, partition, offset, unread(message), unreadable=str(error))


def _is_of_another(name: str, topic: str, names: Sequence[str]) -> bool:
    """`a.b.g.dead` belongs to the group `g` of `a.b` where there is such a topic, and not to the group `b.g` of `a`."""
    return any(len(other) > len(topic) and group_of(name, other) for other in names)


def _check_names(topics: Sequence[TopicSpec], groups: Sequence[GroupSpec]) -> None:
    for topic in topics:
        checked_name("topic", topic.name)
        if topic.partitions < 1:
            raise SetupError(f"The topic {topic.name!r} was not declared: it has {topic.partitions} partitions.")
    for spec in groups:
        checked_name("group", spec.group)
        longest = max(map(len, retry_topics(spec.topic, spec.group)))
        where = f"The group {spec.group!r} of the topic {spec.topic!r} was not declared"
        if longest > MAX_TOPIC_NAME:
            raise SetupError(
                f"{where}: its own topics would have names of {longest} characters, and Kafka takes {MAX_TOPIC_NAME}."
            )
        if spec.start not in ("earliest", "latest"):
            raise SetupError(f"{where}: it starts at {spec.start!r}. Choose 'earliest' or 'latest'.")


def _settings_of(topic: TopicSpec) -> dict[str, str]:
    """Kafka counts the bytes of each partition, and its milliseconds are whole."""
    kept = -1 if topic.retention is None else round(topic.retention * 1000)
    most = -1 if topic.retention_bytes is None else -(-topic.retention_bytes // topic.partitions)
    return {"retention.ms": str(kept), "retention.bytes": str(most)}


def _differences(topics: Sequence[TopicSpec], found: Mapping[str, Topic]) -> list[str]:
    lines: list[str] = []
    for topic in topics:
        kept = found.get(topic.name)
        if kept is not None:
            lines += differences(f"topic {topic.name!r}", topic, _spec_of(topic, kept))
    return lines


def _spec_of(topic: TopicSpec, kept: Topic) -> TopicSpec:
    """As it would have to be declared to be what it is."""
    wanted = _settings_of(topic)
    retention = int(kept.settings["retention.ms"])
    most = int(kept.settings["retention.bytes"])
    found = TopicSpec(
        name=topic.name,
        partitions=kept.partitions,
        retention=None if retention < 0 else retention / 1000,
        retention_bytes=None if most < 0 else most * kept.partitions,
    )
    # What is the same in Kafka's measure is the same.
    if wanted["retention.ms"] == str(retention):
        found = replace(found, retention=topic.retention)
    if wanted["retention.bytes"] == str(most) and kept.partitions == topic.partitions:
        found = replace(found, retention_bytes=topic.retention_bytes)
    return found
