"""Events on RabbitMQ: a topic exchange, and a queue for each group that is bound to it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import replace

from polywire.bus.backend import rabbitmq_topology as topology
from polywire.bus.backend.rabbitmq import MAX_MESSAGE_BYTES, RabbitQueue
from polywire.bus.backend.rabbitmq_connection import Client, Unroutable, parse
from polywire.bus.backend.rabbitmq_messages import OWN, encode, header_name, refusal
from polywire.bus.backend.rabbitmq_topology import Bound, Exchange, Message, Wanted
from polywire.bus.core import Binding, Envelope, QueueSpec
from polywire.clock import SYSTEM_CLOCK, Clock
from polywire.errors import BackendUnreachable, MessageRefused, NobodyListens, PublishUnknown, SetupError

SLOT = "slot"
"""Header with the hash of the key, by which the lanes of keyed groups are bound."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_RESERVED = ("amq.", "polywire.")


class RabbitFanout:
    """Topics on RabbitMQ, as `Fanout` says. The queues of the groups are those of `RabbitQueue`.

    A topic is a topic exchange, on which events travel by their type. A group `billing` of `shop.orders` has the queue
    `shop.orders.billing`, bound by its types or its pattern. Where it asks for headers, or is keyed, a headers exchange
    `shop.orders.billing.filter` stands in between; the lanes of a keyed group are bound by the hash of the key, which
    `publish` writes into a header: what others publish without it reaches no keyed group.

    AMQP cannot say what is bound: `check` sees missing exchanges and queues, not missing bindings, and a binding that
    is declared no longer stays until its queue is deleted. What comes by it that the group does not handle, its
    consumer skips.
    """

    def __init__(self, url: str, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._client = Client(parse(url))
        self.queues = RabbitQueue(url, clock=clock, client=self._client)
        self.guarantees = replace(
            self.queues.guarantees, routing=frozenset({"topic", "direct", "fanout", "headers"}), priorities=1
        )
        self._topics: set[str] = set()

    async def start(self) -> None:
        await self.queues.start()

    async def close(self) -> None:
        await self.queues.close()

    @property
    def connected(self) -> bool:
        return self.queues.connected

    async def declare(self, topics: Sequence[str], bindings: Sequence[Binding]) -> None:
        differences = await topology.compare(self._client, _wanted(topics, bindings), create=True)
        if differences:
            raise SetupError(
                f"The topics and groups at '{self._client.address}' are not as declared: {'; '.join(differences)}. "
                f"Delete what is different once it is empty, or declare it under another name."
            )
        self._learn(topics, bindings)

    async def check(self, topics: Sequence[str], bindings: Sequence[Binding]) -> list[str]:
        differences = await topology.compare(self._client, _wanted(topics, bindings), create=False)
        if not differences:
            self._learn(topics, bindings)
        return differences

    def _learn(self, topics: Sequence[str], bindings: Sequence[Binding]) -> None:
        self._topics.update(topics)
        self.queues.learn([_spec(binding) for binding in bindings])

    # ---- publishing ------------------------------------------------------------------------------------------------

    async def publish(
        self, topic: str, envelopes: Sequence[Envelope], *, timeout: float | None = None
    ) -> list[Exception | None]:
        try:
            if topic not in self._topics:
                async with asyncio.timeout(timeout):
                    await self._find(topic)
            return await self._publish(topic, envelopes, timeout)
        except (SetupError, BackendUnreachable, TimeoutError) as error:
            problem = str(error) or f"RabbitMQ at '{self._client.address}' did not answer within {timeout:g} s."
            return [MessageRefused(f"Event {each.id!r} to {topic!r} was not sent. {problem}") for each in envelopes]

    async def _find(self, topic: str) -> None:
        if not await topology.exchange_exists(self._client, topic):
            raise SetupError(
                f"There is no topic {topic!r} at '{self._client.address}'. Declare it first: `polywire bus apply`."
            )
        self._topics.add(topic)

    async def _publish(
        self, topic: str, envelopes: Sequence[Envelope], timeout: float | None
    ) -> list[Exception | None]:
        results: list[Exception | None] = [None] * len(envelopes)
        messages: list[Message] = []
        places: list[int] = []
        for index, envelope in enumerate(envelopes):
            if (reason := refusal(envelope, MAX_MESSAGE_BYTES)) is not None:
                results[index] = MessageRefused(f"Event {envelope.id!r} to {topic!r} was not sent: {reason}.")
                continue
            properties = encode(envelope, {SLOT: str(topology.slot_of(envelope.key))})
            messages.append((envelope.id, topic, envelope.type, properties, envelope.body))
            places.append(index)
        outcomes = await self._client.publisher.publish(messages, timeout)
        for index, outcome in zip(places, outcomes, strict=True):
            if outcome is not None:
                results[index] = self._explained(topic, envelopes[index], outcome)
        return results

    def _explained(self, topic: str, envelope: Envelope, error: Exception) -> Exception:
        if isinstance(error, Unroutable):
            return NobodyListens(
                f"Event {envelope.id!r} to {topic!r} was not kept: no group is bound that wants {envelope.type!r}."
            )
        if isinstance(error, PublishUnknown):
            # Perhaps the topic was deleted, for which the broker closes the connection: look before the next one.
            self._topics.discard(topic)
        return error


# ---- what exists -------------------------------------------------------------------------------------------------


def _wanted(topics: Sequence[str], bindings: Sequence[Binding]) -> list[list[Wanted]]:
    for topic in topics:
        _check_name("topic", topic)
    wanted: list[list[Wanted]] = [topology.shared(), [Exchange(topic, "topic") for topic in topics]]
    for binding in bindings:
        _check_name("topic", binding.topic)
        _check_name("group", binding.group)
        exchange: list[Wanted] = [] if binding.topic in topics else [Exchange(binding.topic, "topic")]
        wanted.append([*exchange, *topology.of_queue(_spec(binding)), *_bound(binding)])
    return wanted


def _check_name(what: str, name: str) -> None:
    if not _NAME.fullmatch(name) or name.startswith(_RESERVED):
        raise SetupError(
            f"The {what} {name!r} was not declared: its name has to be a letter or digit, and up to 99 more of "
            f"letters, digits, '.', '-' and '_', and not begin with {' or '.join(map(repr, _RESERVED))}."
        )


def _spec(binding: Binding) -> QueueSpec:
    return QueueSpec(name=binding.queue, keyed=binding.keyed)


def _bound(binding: Binding) -> list[Wanted]:
    keys = _keys(binding)
    if not binding.keyed and not binding.headers:
        return [Bound(binding.topic, binding.queue, key) for key in keys]
    between = f"{binding.queue}.filter"
    wanted: list[Wanted] = [Exchange(between, "headers")]
    wanted += [Bound(binding.topic, between, key, to_exchange=True) for key in keys]
    asked = {"x-match": "all", **{header_name(name): value for name, value in binding.headers.items()}}
    if not binding.keyed:
        return [*wanted, Bound(between, binding.queue, "", asked)]
    lanes = topology.lanes(_spec(binding))
    for slot in range(topology.MAX_LANES):
        wanted.append(Bound(between, lanes[slot % len(lanes)], "", {**asked, OWN + SLOT: str(slot)}))
    return wanted


def _keys(binding: Binding) -> list[str]:
    """Routing keys that fit the types and the pattern."""
    if not binding.types:
        return [binding.pattern or "#"]
    if binding.pattern is None:
        return list(binding.types)
    found = [kind for kind in binding.types if fits(binding.pattern, kind)]
    if not found:
        raise SetupError(
            f"The group {binding.group!r} of {binding.topic!r} was not declared: no type it names fits its pattern "
            f"{binding.pattern!r}."
        )
    return found


def fits(pattern: str, kind: str) -> bool:
    """As the broker decides: `*` is one word, `#` any number of them, words are divided by dots."""
    return _fits(pattern.split("."), kind.split("."))


def _fits(pattern: list[str], words: list[str]) -> bool:
    if not pattern:
        return not words
    if pattern[0] == "#":
        return any(_fits(pattern[1:], words[skipped:]) for skipped in range(len(words) + 1))
    return bool(words) and pattern[0] in ("*", words[0]) and _fits(pattern[1:], words[1:])
