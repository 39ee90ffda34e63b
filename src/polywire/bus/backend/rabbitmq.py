"""Tasks on RabbitMQ, 3.10 or later: quorum queues, confirmed publishing, delays in queues of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NoReturn
from weakref import WeakSet

from polywire.bus.backend import rabbitmq_topology as topology
from polywire.bus.backend.rabbitmq_connection import Client, Unroutable, parse
from polywire.bus.backend.rabbitmq_consumer import RabbitConsumer
from polywire.bus.backend.rabbitmq_dead import DeadLetters
from polywire.bus.backend.rabbitmq_messages import refusal
from polywire.bus.backend.rabbitmq_topology import Message, address, routed
from polywire.bus.core import (
    EVERY_DEAD,
    DeadFilter,
    DeadLetter,
    Envelope,
    Guarantees,
    QueueSpec,
    QueueStats,
)
from polywire.clock import SYSTEM_CLOCK, Clock
from polywire.errors import BackendUnreachable, MessageRefused, SetupError, Unsupported

MAX_MESSAGE_BYTES = 16 * 1024 * 1024 - 64 * 1024
"""RabbitMQ 4 takes 16 MiB unless told otherwise."""
MAX_PRIORITIES = 10


class RabbitQueue:
    """Task queues on RabbitMQ, as `TaskQueue` says.

    A queue `mail` is a quorum queue `mail`, one more for each priority (`mail.p1`), and `mail.dead`. A keyed one is
    `mail.lane.0` and so on, each with a single active consumer, over which keys are spread by their hash. Delayed
    messages wait in queues of the whole virtual host (`polywire.delay.1000ms`), and come to their own when due.

    What the broker cannot do exactly:

    * Nothing durable marks a message as started, so that starts are noted in a queue of their own, `mail.notes`, before
      they happen: one confirmed publish each time a consumer starts handlers. After a crash everything comes back that
      the dead consumer had received. What was under way, as the notes say, moves to `mail.suspects`, of which
      one consumer at a time gets all; the rest goes on as if nothing had been. In a lane, suspects stay where they are.
    * Every way of giving a message back raises the broker's own count of deliveries. Released messages are therefore
      sent again, confirmed, before the first copy is acknowledged, with our own counts in their headers: they go to the
      back of the queue. In a lane the order matters more: there they stay where they are, and the notes keep the
      counts. Where this is not done (the connection is gone), the broker's limit (50, in lanes 1,000) is far away.
    * A consumer takes part in the lanes within some seconds after it came: those who have more than their share give
      some up.
    * With priorities, at least one message of each level is held, however small the limit.
    * Before RabbitMQ 3.12 a handler has to end within the broker's `consumer_timeout` (30 minutes unless configured).
    * Messages of consumers whose machine is gone come back after two heartbeats (40 s).
    """

    def __init__(self, url: str, *, clock: Clock = SYSTEM_CLOCK, client: Client | None = None) -> None:
        self._client = client or Client(parse(url))
        self._clock = clock
        self._specs: dict[str, QueueSpec] = {}
        self._consumers: dict[str, WeakSet[RabbitConsumer]] = {}
        self._dead = DeadLetters(self._client, clock)
        self.guarantees = Guarantees(
            backend="rabbitmq",
            durable=True,
            shared=True,
            max_message_bytes=MAX_MESSAGE_BYTES,
            key_order=True,
            delay=True,
            priorities=MAX_PRIORITIES,
            attempts="counted",
        )

    async def start(self) -> None:
        await self._client.open()

    async def close(self) -> None:
        await self._client.close()

    @property
    def connected(self) -> bool:
        return self._client.connected

    # ---- what exists ---------------------------------------------------------------------------------------------

    async def declare(self, queues: Sequence[QueueSpec]) -> None:
        wanted = self._wanted(queues)
        if differences := await topology.compare(self._client, wanted, create=True):
            raise SetupError(
                f"The queues at '{self._client.address}' are not as declared: {'; '.join(differences)}. "
                f"Delete what is different once it is empty, or declare it under another name."
            )
        self.learn(queues)

    async def check(self, queues: Sequence[QueueSpec]) -> list[str]:
        differences = await topology.compare(self._client, self._wanted(queues), create=False)
        if not differences:
            self.learn(queues)
        return differences

    def learn(self, queues: Sequence[QueueSpec]) -> None:
        """They exist as these specs say."""
        self._specs.update((spec.name, spec) for spec in queues)

    @staticmethod
    def _wanted(queues: Sequence[QueueSpec]) -> list[list[topology.Wanted]]:
        wanted = [topology.shared()]
        for spec in queues:
            if spec.priorities > MAX_PRIORITIES:
                raise SetupError(
                    f"The queue {spec.name!r} was not declared: it has {spec.priorities} priorities, and RabbitMQ "
                    f"queues have at most {MAX_PRIORITIES}, because each is a queue of its own. Declare fewer."
                )
            if spec.concurrency is not None or spec.rate is not None:
                name = "concurrency" if spec.concurrency is not None else "rate"
                raise SetupError(
                    f"The queue {spec.name!r} was not declared: RabbitMQ cannot keep {name}= over all processes. "
                    f"Limit each worker, or use a backend with shared limits (sqlite)."
                )
            wanted.append(topology.of_queue(spec))
        return wanted

    async def spec(self, queue: str) -> QueueSpec:
        """As it was declared here, or as it exists. Raises SetupError where there is none."""
        if (known := self._specs.get(queue)) is not None:
            return known
        found = await topology.found_spec(self._client, queue)
        if found is None:
            raise SetupError(
                f"There is no queue {queue!r} at '{self._client.address}'. Declare it first: `polywire bus apply`."
            )
        return self._specs.setdefault(queue, found)

    # ---- sending -------------------------------------------------------------------------------------------------

    async def send(
        self, queue: str, envelopes: Sequence[Envelope], *, timeout: float | None = None
    ) -> list[Exception | None]:
        try:
            if (spec := self._specs.get(queue)) is None:
                async with asyncio.timeout(timeout):
                    spec = await self.spec(queue)
        except (SetupError, BackendUnreachable, TimeoutError) as error:
            problem = str(error) or f"RabbitMQ at '{self._client.address}' did not answer within {timeout:g} s."
            return [MessageRefused(f"Message {each.id!r} to {queue!r} was not sent. {problem}") for each in envelopes]
        results: list[Exception | None] = [None] * len(envelopes)
        messages: list[Message] = []
        places: list[int] = []
        for index, envelope in enumerate(envelopes):
            if (reason := refusal(envelope, MAX_MESSAGE_BYTES)) is not None:
                results[index] = MessageRefused(f"Message {envelope.id!r} to {queue!r} was not sent: {reason}.")
                continue
            messages.append(routed(envelope, address(spec, envelope), self._clock.time()))
            places.append(index)
        try:
            outcomes = await self._client.publisher.publish(messages, timeout)
        except BackendUnreachable as error:  # It was closed.
            return [MessageRefused(f"Message {each.id!r} to {queue!r} was not sent. {error}") for each in envelopes]
        for index, result in zip(places, outcomes, strict=True):
            results[index] = self._explained(queue, envelopes[index], result) if result is not None else None
        return results

    def _explained(self, queue: str, envelope: Envelope, error: Exception) -> Exception:
        if isinstance(error, Unroutable):
            self._specs.pop(queue, None)  # It was deleted since: look again before the next one.
            return MessageRefused(
                f"Message {envelope.id!r} to {queue!r} was not sent. There is no queue {error.to!r} at "
                f"'{self._client.address}'. Declare it first: `polywire bus apply`."
            )
        return error

    # ---- receiving -----------------------------------------------------------------------------------------------

    async def consumer(self, queue: str, *, limit: int) -> RabbitConsumer:
        made = RabbitConsumer(self._client, await self.spec(queue), limit=limit, clock=self._clock)
        await made.open()
        self._consumers.setdefault(queue, WeakSet()).add(made)
        return made

    # ---- looking and tidying -------------------------------------------------------------------------------------

    async def stats(self, queue: str) -> QueueStats:
        spec = await self.spec(queue)
        own = topology.lanes(spec) if spec.keyed else [*topology.levels(spec), topology.suspects(queue)]
        depths = await topology.depths(self._client, [*own, topology.dead(queue)])
        dead, _ = depths.pop(topology.dead(queue), (0, 0))
        # To the broker, what consumers fetched ahead is under way; of our own we know that it waits.
        fetched = sum(consumer.fetched for consumer in self._consumers.get(queue, ()))
        return QueueStats(queue=queue, ready=fetched + sum(ready for ready, _ in depths.values()), dead=dead)

    async def cancel(self, queue: str, id: str) -> bool:
        self._unsupported("take a waiting message back", queue)

    async def move(self, queue: str, id: str, not_before: float) -> bool:
        self._unsupported("let a waiting message wait for another time", queue)

    async def peek(self, queue: str, limit: int) -> list[Envelope]:
        self._unsupported("show waiting messages without disturbing them", queue)

    def _unsupported(self, what: str, queue: str) -> NoReturn:
        raise Unsupported(f"RabbitMQ cannot {what}, so nothing was done to {queue!r}. A sqlite backend can.")

    async def dead(self, queue: str, which: DeadFilter = EVERY_DEAD, *, limit: int = 100) -> list[DeadLetter]:
        return await self._dead.listed(queue, which, limit)

    async def revive(self, queue: str, letters: Sequence[DeadLetter]) -> int:
        spec = await self.spec(queue)

        def again(envelope: Envelope) -> Message:
            return routed(envelope, address(spec, envelope), self._clock.time())

        return await self._dead.revived(queue, letters, again)

    async def drop(self, queue: str, letters: Sequence[DeadLetter]) -> int:
        return await self._dead.dropped(queue, letters)
