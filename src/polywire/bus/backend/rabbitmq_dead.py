"""Dead letters on RabbitMQ: a queue beside each queue, listed by reading it and putting everything back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from polywire.bus.backend import rabbitmq_topology as topology
from polywire.bus.backend.rabbitmq_connection import Client, Incoming, Refused
from polywire.bus.backend.rabbitmq_messages import Received, decode, encode
from polywire.bus.backend.rabbitmq_reading import Reading
from polywire.bus.backend.rabbitmq_topology import Message
from polywire.bus.core import Bury, DeadFilter, DeadLetter, Envelope, new_id
from polywire.clock import Clock
from polywire.errors import SetupError, Unsupported

MAX_ERROR = 2000


def dead_message(queue: str, envelope: Envelope, outcome: Bury, attempts: int, now: float) -> Message:
    """For the dead letters of *queue*."""
    about = {
        "dead-id": new_id(),
        "dead-reason": outcome.reason,
        "dead-error": outcome.error[:MAX_ERROR],
        "dead-attempts": str(attempts),
        "dead-at": repr(now),
    }
    return envelope.id, "", topology.dead(queue), encode(envelope, about), envelope.body


class DeadLetters:
    """Of the queues of one broker. While they are read, nobody else can read them; what is buried meanwhile waits."""

    def __init__(self, client: Client, clock: Clock) -> None:
        self._client = client
        self._clock = clock

    async def listed(self, queue: str, which: DeadFilter, limit: int) -> list[DeadLetter]:
        reading = await self._open(queue)
        try:
            letters = (self._letter(queue, message) for message in reading.messages)
            return [letter for letter in letters if which.fits(letter)][:limit]
        finally:
            await reading.close()

    async def revived(self, queue: str, letters: Sequence[DeadLetter], again: Callable[[Envelope], Message]) -> int:
        reading = await self._open(queue)
        try:
            meant = self._meant(queue, reading.messages, letters)
            copies = [again(_fresh(letter.envelope)) for _, letter in meant]
            results = await self._client.publisher.publish(copies, None)
            # Only what is certainly in its queue leaves the dead letters.
            sent = [message for (message, _), error in zip(meant, results, strict=True) if error is None]
            await reading.remove(sent)
            for error in results:
                if error is not None:
                    raise error
            return len(sent)
        finally:
            await reading.close()

    async def dropped(self, queue: str, letters: Sequence[DeadLetter]) -> int:
        reading = await self._open(queue)
        try:
            meant = [message for message, _ in self._meant(queue, reading.messages, letters)]
            await reading.remove(meant)
            return len(meant)
        finally:
            await reading.close()

    async def _open(self, queue: str) -> Reading:
        reading = Reading(self._client, topology.dead(queue))
        try:
            if not await reading.open():
                raise Unsupported(f"{topology.dead(queue)!r} was not read: somebody else is reading it. Try again.")
        except Refused as error:
            await reading.close()
            if error.code != 404:
                raise
            raise SetupError(
                f"There is no queue {queue!r} at '{self._client.address}'. Declare it first: `polywire bus apply`."
            ) from None
        except BaseException:
            await reading.close()
            raise
        return reading

    def _meant(
        self, queue: str, messages: Sequence[Incoming], letters: Sequence[DeadLetter]
    ) -> list[tuple[Incoming, DeadLetter]]:
        positions = {letter.position for letter in letters}
        found = ((message, self._letter(queue, message)) for message in messages)
        return [(message, letter) for message, letter in found if letter.position in positions]

    def _letter(self, queue: str, message: Incoming) -> DeadLetter:
        received = decode(message.properties, message.body)
        own = received.own
        return DeadLetter(
            queue=queue,
            envelope=received.envelope,
            reason=own.get("dead-reason", "worker_lost"),
            error=own.get("dead-error", _brokers_words(received)),
            attempts=_count(own.get("dead-attempts"), received.envelope.attempt),
            died=_seconds(own.get("dead-at")),
            position=own.get("dead-id") or f"id:{received.envelope.id}",
        )


def _brokers_words(received: Received) -> str:
    if received.died_by_broker:
        return f"delivered more than {topology.DELIVERY_LIMIT} times and never settled"
    return received.unreadable or ""


def _fresh(envelope: Envelope) -> Envelope:
    return msgspec.structs.replace(
        envelope, attempt=0, lost=0, not_before=None, expires=None, redrive_count=envelope.redrive_count + 1
    )


def _count(text: str | None, default: int) -> int:
    return int(text) if text is not None and text.isdecimal() else default


def _seconds(text: str | None) -> float:
    try:
        return float(text or 0)
    except ValueError:
        return 0.0
