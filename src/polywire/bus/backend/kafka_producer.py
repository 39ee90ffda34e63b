"""Sends to Kafka: librdkafka's producer, asked by the event loop what became of what was sent."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import Producer as Client

from polywire.bus.backend.kafka_address import COPY_BYTES, ENVELOPE_BYTES, LOGGER, Address, Log
from polywire.bus.backend.kafka_messages import Headers
from polywire.bus.core.checks import undeclared
from polywire.bus.core.envelope import Envelope
from polywire.clock import Clock, Timer
from polywire.errors import MessageRefused, PublishUnknown

MAX_PENDING = 50_000
"""Messages that librdkafka holds and that are not confirmed; more wait their turn here."""
MAX_PENDING_KIBIBYTES = 65_536
POLL = 0.001
"""Seconds between two looks at what librdkafka has to say, while messages are on their way. Not in a thread of its own:
each report would then wait for the interpreter's lock, which costs 6 to 15 µs more per message than all the rest."""
IDLE_POLL = 0.1
REPLACE = 1.0
"""Seconds until a client that ended for good is replaced."""
SWEEP = 0.05
"""Seconds between two looks at which senders have waited too long: a timer each would cost more than the sending."""
CHECK_AGAIN = 0.5
"""Seconds after which a topic is asked for again, where the cluster did not answer."""
FLUSH = 5.0
"""Seconds for which `close` waits for confirmations."""

_REFUSALS = {
    KafkaError.MSG_SIZE_TOO_LARGE: "it is larger than the topic's max.message.bytes",
    KafkaError.RECORD_LIST_TOO_LARGE: "it is larger than the topic's segments",
    KafkaError.INVALID_MSG_SIZE: "it is larger than the broker takes",
    KafkaError.INVALID_RECORD: "the broker says that the record is invalid",
    KafkaError.POLICY_VIOLATION: "a policy of the broker forbids it",
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "this user may not write to the topic",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "this user may not write to the cluster",
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED: "this user may not write to the cluster",
    KafkaError.INVALID_TIMESTAMP: "the broker does not take its timestamp",
    KafkaError.UNSUPPORTED_FOR_MESSAGE_FORMAT: "the topic's format is too old for it",
    KafkaError.TOPIC_EXCEPTION: "the broker does not take the name of the topic",
}
"""After these the message is certainly not in the log. After every other error it may be."""
_UNKNOWN_TOPIC = {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION}


Outgoing = tuple[Envelope, str | bytes | None, bytes | None, Headers]
"""A record to be sent: the envelope that it is about, key, value and headers. A tuple, as there are many."""


class _Waiting(Exception):
    """The result of a record of which nothing is known yet."""


_WAITING = _Waiting()


Results = list[Exception | None]


class _Batch:
    """The records of one call, on their way."""

    __slots__ = ("deadline", "future", "left", "next", "open", "outgoing", "results", "timeout", "topic")

    def __init__(
        self,
        topic: str,
        outgoing: Sequence[Outgoing],
        timeout: float,
        deadline: float,
        future: asyncio.Future[Results],
        open: set[_Batch],
    ) -> None:
        self.topic = topic
        self.outgoing = outgoing
        self.timeout = timeout
        self.deadline = deadline
        self.future = future
        self.open = open
        """Where it is until all is known."""
        self.results: Results = [_WAITING] * len(outgoing)
        self.left = len(outgoing)
        """Of which nothing is known yet."""
        self.next = 0
        """The first that librdkafka does not have yet."""
        open.add(self)

    def settle(self, index: int, result: Exception | None) -> None:
        if self.results[index] is _WAITING:
            self.results[index] = result
            self.left -= 1
            if not self.left:
                self.open.discard(self)
                if not self.future.done():
                    self.future.set_result(self.results)

    def id(self, index: int) -> str:
        return self.outgoing[index][0].id

    def settle_rest(self, reason: Callable[[int], Exception]) -> None:
        for index, result in enumerate(self.results):
            if result is _WAITING:
                self.settle(index, reason(index))


class Producer:
    """Sends records in the order of the calls, those of one key therefore in order, and tells what became of each.

    What is sent at a time is bounded: who comes then waits, in order too. librdkafka retries with idempotence, so that
    neither a lost answer nor a broker that was away makes a second copy or another order; where it gives up on one
    record, those behind it go on.

    `delivery.timeout.ms` belongs to the whole client in librdkafka. A caller's own time limit ends its waiting: its
    record may still be sent until `delivery_timeout` is over, which is what PublishUnknown says.
    """

    def __init__(
        self,
        address: Address,
        clock: Clock,
        *,
        exists: Callable[[str], Awaitable[bool]],
        trouble: Callable[[KafkaError], None],
    ) -> None:
        self._address = address
        self._clock = clock
        self._exists = exists
        self._trouble = trouble
        self._loop = asyncio.get_running_loop()
        self._topics: set[str] = set()
        """Known to exist. Where brokers create topics that are written to, a wrong name would go unnoticed."""
        self._checks: dict[str, asyncio.Task[None]] = {}
        self._queue: deque[_Batch] = deque()
        """With records that librdkafka does not have yet."""
        self._open: set[_Batch] = set()
        self._reports: deque[tuple[_Batch, int, KafkaError | None]] = deque()
        self._blocked = False
        self._sweeper: Timer | None = None
        self._closed = False
        self._client: Client | None = self._connect()
        self._again = 0.0
        """When a client that ended may be replaced, on the loop's clock."""
        self._ended = "the backend was closed"
        """Why what was not sent yet was given up, where librdkafka says no more than that."""
        self._retired: list[Client] = []
        """Of which some messages have not been reported yet."""
        self._poller = self._loop.call_later(IDLE_POLL, self._poll)
        self._polls_often = False

    # ---- the client -----------------------------------------------------------------------------------------------

    def _connect(self) -> Client:
        """Raises KafkaException where a setting makes no sense."""
        return Client(_settings(self._address, self._trouble), logger=Log(self._address))

    def _poll(self) -> None:
        """Hear what became of messages, and of the connection."""
        for client in [self._client, *self._retired] if self._client else list(self._retired):
            try:
                client.poll(0)
            except KafkaException as error:
                if client is self._client:
                    self._retire(client, error.args[0])
        self._retired = [retired for retired in self._retired if len(retired)]
        if self._reports:
            self._settle()
        elif self._blocked and self._usable() is not None:
            self._go_on()
        self._poller = self._loop.call_later(POLL if self._open else IDLE_POLL, self._poll)
        self._polls_often = bool(self._open)

    def _retire(self, client: Client, error: KafkaError) -> None:
        """librdkafka's idempotent producer ends for good where it cannot tell any more what was sent, or may not."""
        LOGGER.warning("Kafka's producer is replaced after an error: %s", self._address.without_secrets(error.str()))
        self._ended = _REFUSALS.get(error.code(), f"Kafka's producer ended, {_reason(error)}")
        client.purge()
        self._retired.append(client)
        self._client = None
        self._again = self._loop.time() + REPLACE

    def _usable(self) -> Client | None:
        """A client; None for a moment after one ended, so that an error that comes back does not make us busy."""
        if self._client is None and self._loop.time() >= self._again:
            self._client = self._connect()
        return self._client

    def _poll_often(self) -> None:
        self._poller.cancel()
        self._poller = self._loop.call_later(POLL, self._poll)
        self._polls_often = True

    def _report(self, batch: _Batch, index: int, error: KafkaError | None, message: Any) -> None:
        self._reports.append((batch, index, error))

    # ---- sending ----------------------------------------------------------------------------------------------------

    def send(self, topic: str, outgoing: Sequence[Outgoing], timeout: float | None) -> asyncio.Future[Results]:
        """For each, None once it is durable, or why it is not. Who cancels this lets go of what librdkafka has, and
        the rest is not sent any more."""
        future: asyncio.Future[Results] = self._loop.create_future()
        if not outgoing:
            future.set_result([])
            return future
        patience = self._address.delivery_timeout + 1 if timeout is None else timeout
        batch = _Batch(topic, outgoing, patience, self._clock.monotonic() + patience, future, self._open)
        if topic in self._topics and not self._queue and not self._blocked and not self._closed:
            self._produce(batch)
        if batch.next < len(outgoing):
            self._queue.append(batch)
            self._pump()
        if self._sweeper is None:
            self._sweeper = self._clock.call_later(SWEEP, self._sweep)
        if not self._polls_often:
            self._poll_often()
        return future

    def _pump(self) -> None:
        """Give librdkafka what it takes, in the order of the calls."""
        while self._queue and not self._blocked:
            batch = self._queue[0]
            if batch.future.done():
                batch.next = len(batch.outgoing)  # Cancelled, or too late.
            if self._closed:
                self._refuse(batch, "the backend was closed")
            elif batch.topic not in self._topics and batch.next < len(batch.outgoing):
                self._check(batch.topic)
                return
            else:
                self._produce(batch)
            if batch.next >= len(batch.outgoing):
                self._queue.popleft()

    def _produce(self, batch: _Batch) -> None:
        client = self._usable()
        if client is None:
            self._blocked = True
            return
        produce = client.produce
        while batch.next < len(batch.outgoing):
            index = batch.next
            _, key, value, headers = batch.outgoing[index]
            try:
                produce(batch.topic, value, key, headers=headers, on_delivery=partial(self._report, batch, index))
            except BufferError:
                self._blocked = True
                return
            except KafkaException as error:
                if error.args[0].code() == KafkaError._FATAL:
                    self._retire(client, error.args[0])
                    self._blocked = True
                    return
                self._failed(batch, index, error.args[0])
            batch.next = index + 1

    def _refuse(self, batch: _Batch, reason: str) -> None:
        """What librdkafka does not have yet."""
        for index in range(batch.next, len(batch.outgoing)):
            batch.settle(index, _refused(batch, index, reason))
        batch.next = len(batch.outgoing)

    # ---- what became of it ------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        reports = self._reports
        while reports:
            batch, index, error = reports.popleft()
            if error is None:
                batch.settle(index, None)
            else:
                self._failed(batch, index, error)
        self._go_on()

    def _go_on(self) -> None:
        self._blocked = False
        if self._queue:
            self._pump()

    def _failed(self, batch: _Batch, index: int, error: KafkaError) -> None:
        code = error.code()
        if code in _UNKNOWN_TOPIC:
            self._topics.discard(batch.topic)
            batch.settle(index, undeclared(batch.outgoing[index][0], f"topic {batch.topic!r}"))
        elif code == KafkaError._PURGE_QUEUE:
            batch.settle(index, _refused(batch, index, self._ended))
        elif code == KafkaError._PURGE_INFLIGHT:
            batch.settle(index, _unknown(batch, index, self._ended))
        elif code in _REFUSALS:
            batch.settle(index, _refused(batch, index, _REFUSALS[code]))
        else:
            batch.settle(index, _unknown(batch, index, self._address.without_secrets(_reason(error))))

    def _sweep(self) -> None:
        self._sweeper = None
        now = self._clock.monotonic()
        for batch in [batch for batch in self._open if batch.deadline <= now]:
            self._refuse(batch, f"its turn did not come within {batch.timeout:g} s. Try again later")
            batch.settle_rest(partial(_unknown, batch, reason=f"nobody confirmed it within {batch.timeout:g} s"))
        for batch in [batch for batch in self._open if batch.future.done()]:
            self._open.discard(batch)
        self._queue = deque(batch for batch in self._queue if not batch.future.done())
        if self._open:
            self._sweeper = self._clock.call_later(SWEEP, self._sweep)

    # ---- topics -----------------------------------------------------------------------------------------------------

    def _check(self, topic: str) -> None:
        """Find out whether it exists, and go on then."""
        if topic not in self._checks:
            self._checks[topic] = self._loop.create_task(self._check_topic(topic))

    async def _check_topic(self, topic: str) -> None:
        try:
            while not await self._ask(topic):
                await self._clock.sleep(CHECK_AGAIN)
        finally:
            del self._checks[topic]
        self._pump()

    async def _ask(self, topic: str) -> bool:
        """Whether there was an answer."""
        try:
            there = await self._exists(topic)
        except KafkaException as error:
            if error.args[0].code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
                reason = _REFUSALS[KafkaError.TOPIC_AUTHORIZATION_FAILED]
                self._refuse_topic(topic, lambda batch, index: _refused(batch, index, reason))
                return True
            LOGGER.info("Kafka was not asked for the topic %r: %s", topic, self._address.without_secrets(str(error)))
            # Nobody is waiting for the answer any more.
            return not self._queue
        if there:
            self._topics.add(topic)
        else:
            where = f"topic {topic!r}"
            self._refuse_topic(topic, lambda batch, index: undeclared(batch.outgoing[index][0], where))
        return True

    def _refuse_topic(self, topic: str, reason: Callable[[_Batch, int], Exception]) -> None:
        for batch in self._queue:
            if batch.topic == topic:
                for index in range(batch.next, len(batch.outgoing)):
                    batch.settle(index, reason(batch, index))
                batch.next = len(batch.outgoing)

    # ---- leaving ----------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Wait for what is on its way, for a while, and answer whoever still waits then."""
        waiting = [batch.future for batch in self._open]
        if waiting and not self._closed:
            await asyncio.wait(waiting, timeout=FLUSH)
        self._closed = True
        for check in list(self._checks.values()):
            check.cancel()
        if self._sweeper is not None:
            self._sweeper.cancel()
        for batch in list(self._open):
            self._refuse(batch, "the backend was closed")
            batch.settle_rest(partial(_unknown, batch, reason="the backend was closed before anybody confirmed it"))
        self._queue.clear()
        self._poller.cancel()
        # Not here: to end a client takes a while.
        await asyncio.to_thread(_end, [client for client in (self._client, *self._retired) if client is not None])


def _end(clients: Sequence[Client]) -> None:
    for client in clients:
        client.purge()
        # It raises what ended it, if anything did; there is nobody left to be told.
        with contextlib.suppress(KafkaException):
            client.flush(1.0)


def _settings(address: Address, trouble: Callable[[KafkaError], None]) -> dict[str, Any]:
    # Copies among the retries and the dead letters are larger than what they were made of.
    most = address.max_message_bytes + ENVELOPE_BYTES + COPY_BYTES
    return {
        **address.settings,
        "acks": "all",
        "enable.idempotence": True,
        # As Java's producer: services in other languages put a key into the same partition.
        "partitioner": "murmur2_random",
        "message.timeout.ms": int(address.delivery_timeout * 1000),
        "message.max.bytes": most,
        "queue.buffering.max.messages": MAX_PENDING,
        "queue.buffering.max.kbytes": max(MAX_PENDING_KIBIBYTES, most // 512),
        "linger.ms": address.linger * 1000,
        "compression.type": address.compression,
        "error_cb": trouble,
    }


def _named(batch: _Batch, index: int) -> str:
    return f"The message {batch.id(index)!r} was"


def _refused(batch: _Batch, index: int, reason: str) -> MessageRefused:
    return MessageRefused(f"{_named(batch, index)} not sent to the topic {batch.topic!r}: {reason}.")


def _unknown(batch: _Batch, index: int, reason: str) -> PublishUnknown:
    return PublishUnknown(
        f"{_named(batch, index)} perhaps sent to the topic {batch.topic!r}, perhaps not: {reason}. "
        f"Send it again with the same id.",
        id=batch.id(index),
    )


def _reason(error: KafkaError) -> str:
    if error.code() == KafkaError._MSG_TIMED_OUT:
        return "no broker confirmed it in time"
    return f"Kafka says {error.str()!r}"
