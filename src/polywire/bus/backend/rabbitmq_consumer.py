"""Receiving from RabbitMQ and settling: what is handed out, what is held back, and what becomes of it."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Collection, Coroutine, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any, TypeVar

import msgspec
from pika.channel import Channel

from polywire.bus.backend import rabbitmq_topology as topology
from polywire.bus.backend.rabbitmq_connection import (
    CONNECT_TIMEOUT,
    Asking,
    Client,
    Connection,
    Incoming,
    Line,
    Refused,
    acknowledgements,
    channel_of,
)
from polywire.bus.backend.rabbitmq_dead import dead_message
from polywire.bus.backend.rabbitmq_messages import decode, encode
from polywire.bus.backend.rabbitmq_reading import Reading
from polywire.bus.backend.rabbitmq_topology import Message, address, routed
from polywire.bus.core import (
    Ack,
    Bury,
    Delivery,
    Envelope,
    QueueSpec,
    RetryAfter,
    Settlement,
    new_id,
)
from polywire.clock import Clock, Timer
from polywire.errors import BackendLost, ConsumerClosed, DeliveryError, SetupError

T = TypeVar("T")

BALANCE = 2.0
"""Seconds between looks at how many consumers share the lanes."""
NOTED_EVERY = 3.0
"""Seconds after which the starts of handlers that still run are noted again."""
READING = 30.0
"""Seconds to wait for others who are reading notes."""
GRACE = 0.02
"""Seconds to wait for the next of a level that was full before something less urgent is handed out."""
NACK_KEEPS_COUNT = (4, 3)
"""From this version on, giving a message back by nack costs no delivery."""


class Kind(Enum):
    WORK = "work"
    SUSPECTS = "suspects"
    LANE = "lane"


@dataclass(slots=True, eq=False, repr=False)
class Source:
    """One queue of the broker that is consumed, over a channel of its own."""

    queue: str
    kind: Kind
    prefetch: int
    buffer: deque[Incoming] = field(default_factory=deque)
    due: deque[Hold] = field(default_factory=deque)
    """Received earlier, and to be handed out before the buffer."""
    generation: int = 0
    """Of its channel: deliveries of earlier ones are void."""
    holds: int = 0
    """Messages that were received and not settled, whether they were handed out or not."""
    active: bool = False
    """Of a lane: it is ours, as a message came."""
    noted: bool = False
    """Of a lane: there are notes beside it."""
    expecting: float = 0.0
    """Of a level: until when the next one is waited for, on the loop's clock; it was full until just now."""
    asking: Asking | None = None
    """Only touched in the thread of the line."""


@dataclass(slots=True, eq=False, repr=False)
class Hold:
    """A message that the broker gave us and we did not give back."""

    source: Source
    generation: int
    tag: int
    envelope: Envelope
    count: int
    starts: int
    """Of its handlers so far."""
    lost: int
    unreadable: str | None = None
    copy: str = ""
    """Tells it from earlier copies of the same message that had as many starts."""
    started: bool = False
    timer: Timer | None = None


Starts = list[tuple[str, int, str]]
"""A note: id, number of the start, and mark of the copy of messages whose handlers are about to start."""


class Note(msgspec.Struct):
    """What is known of a message at the head of a lane, when the broker had counted *count* deliveries."""

    id: str
    count: int
    starts: int
    lost: int


class RabbitConsumer:
    """As `QueueConsumer` says; see `RabbitQueue` for what the broker cannot do exactly.

    It ends with its connection: `receive` raises BackendLost then, and whoever wants to go on asks for another one.
    Everything but the channels lives in the event loop that made it.
    """

    def __init__(self, client: Client, spec: QueueSpec, *, limit: int, clock: Clock) -> None:
        self._client = client
        self._spec = spec
        self._limit = limit
        self._clock = clock
        self._sources = _sources(spec, limit)
        self._held: dict[Delivery, Hold] = {}
        self._waiting: set[Hold] = set()
        """Held back until they are due."""
        self._recalling: list[Hold] = []
        """Delivered before, and waiting for what the notes say about them."""
        self._arrival = asyncio.Event()
        self._asides: set[asyncio.Task[None]] = set()
        self._keeper: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._gone: str | None = None
        self._failure: BaseException | None = None
        self._line: Line | None = None
        self._membership: Asking | None = None

    async def open(self) -> None:
        """Raises BackendUnreachable, SetupError where the queue does not exist."""
        self._line = self._client.line
        try:
            await self._client.run(self._open())
        except BaseException:
            await self._client.run(self._close_channels())
            raise
        self._keeper = asyncio.create_task(self._balance() if self._spec.keyed else self._note_again())
        self._keeper.add_done_callback(self._aside_done)

    # ---- receiving -----------------------------------------------------------------------------------------------

    async def receive(self, limit: int) -> list[Delivery]:
        while True:
            self._arrival.clear()
            self._check()
            if found := self._take(min(limit, self._limit - len(self._held))):
                return found
            await self._arrival.wait()

    def _check(self) -> None:
        if self._closing is not None:
            raise ConsumerClosed(f"The consumer of {self._spec.name!r} was closed.")
        if self._failure is not None:
            raise self._failure
        if self._gone is not None:
            raise BackendLost(
                f"The consumer of {self._spec.name!r} lost its connection to RabbitMQ: {self._gone}. "
                f"What it held is delivered again."
            )

    def _take(self, room: int) -> list[Delivery]:
        found: list[Delivery] = []
        for source in self._sources:
            while len(found) < room and (source.due or source.buffer):
                hold = source.due.popleft() if source.due else self._opened(source, source.buffer.popleft())
                if hold is not None and (delivery := self._delivery(hold)) is not None:
                    found.append(delivery)
            if source.expecting and not found and self._expects(source):
                break  # Something more urgent than what follows may be on its way.
        return found

    def _expects(self, source: Source) -> bool:
        loop = asyncio.get_running_loop()
        if loop.time() < source.expecting:
            loop.call_at(source.expecting, self._arrival.set)
            return True
        source.expecting = 0.0
        return False

    def _opened(self, source: Source, incoming: Incoming) -> Hold | None:
        """Read it; None where something has to be done about it first."""
        received = decode(incoming.properties, incoming.body)
        envelope, count = received.envelope, received.count
        hold = Hold(source, source.generation, incoming.tag, envelope, count, envelope.attempt, envelope.lost)
        hold.unreadable, hold.copy = received.unreadable, received.own.get("copy", "")
        if not count or received.unreadable is not None:
            return hold
        # Delivered before and never settled: was it started?
        if source.kind is Kind.LANE:
            self._aside(self._recall_head(hold))
        else:
            self._recalling.append(hold)
            if len(self._recalling) == 1:
                self._aside(self._recall())
        return None

    def _delivery(self, hold: Hold) -> Delivery | None:
        """What is handed out; None where it is not to be handled, or not yet."""
        envelope = hold.envelope
        if hold.lost >= self._spec.lost_limit:
            died = Bury("worker_lost", f"{hold.lost} workers ended while they handled it")
            self._aside(self._replace([(hold, self._dead(hold, died, hold.starts))]))
            return None
        if envelope.not_before is not None and (remaining := envelope.not_before - self._clock.time()) > 0:
            if topology.delay_for(remaining):
                self._aside(self._replace([(hold, self._routed(envelope))]))
            else:
                self._later(hold, remaining)
            return None
        delivery = Delivery(
            self._spec.name,
            envelope,
            hold.starts + 1,
            hold.lost,
            hold,
            hold.source.queue,
            hold.unreadable,
        )
        self._held[delivery] = hold
        return delivery

    def _later(self, hold: Hold, delay: float) -> None:
        def due() -> None:
            self._waiting.discard(hold)
            hold.timer = None
            if self._is_ours(hold):
                hold.source.due.append(hold)
                self._arrival.set()

        self._waiting.add(hold)
        hold.timer = self._clock.call_later(max(delay, 0.0), due)

    def _is_ours(self, hold: Hold) -> bool:
        return self._gone is None and hold.generation == hold.source.generation

    # ---- settling ------------------------------------------------------------------------------------------------

    async def settle(
        self, settlements: Sequence[Settlement], starting: Sequence[Delivery] = ()
    ) -> Collection[Delivery]:
        done: list[Hold] = []
        copies: list[tuple[Hold, Message]] = []
        in_place: list[tuple[Hold, float]] = []
        for settlement in settlements:
            delivery, outcome = settlement.delivery, settlement.outcome
            hold = self._held.pop(delivery, None)
            if hold is None:
                continue  # Somebody else's by now.
            if isinstance(outcome, Ack):
                done.append(hold)
            elif isinstance(outcome, Bury):
                copies.append((hold, self._dead(hold, outcome, delivery.attempt)))
            else:
                if isinstance(outcome, RetryAfter):
                    hold.starts = delivery.attempt
                if hold.source.kind is Kind.LANE:
                    in_place.append((hold, outcome.delay))
                else:
                    copies.append((hold, self._again(hold, outcome.delay)))
        if done:
            self._acknowledge(done)
        if copies or in_place:
            # Once begun it goes on: cancelled half-way, the messages would be nobody's until the connection ends.
            await asyncio.shield(self._aside(self._settle_slowly(copies, in_place)))
        if settlements:
            self._arrival.set()  # There may be room again for one who waits.
        if not self._spec.keyed and (begun := [self._held[each] for each in starting if each in self._held]):
            await self._note_starts(begun)
        return [delivery for delivery in starting if delivery in self._held]

    async def _settle_slowly(self, copies: list[tuple[Hold, Message]], in_place: list[tuple[Hold, float]]) -> None:
        if in_place:
            # Where the notes cannot be written, the counts are those before; the message stays where it is.
            await self._write_notes([hold for hold, _ in in_place if hold.starts > hold.envelope.attempt])
            for hold, delay in in_place:
                self._later(hold, delay)
        if copies:
            await self._replace(copies)

    def _again(self, hold: Hold, delay: float) -> Message:
        hold.envelope = msgspec.structs.replace(
            hold.envelope, not_before=self._clock.time() + delay if delay > 0 else None
        )
        return self._released(hold)

    def _released(self, hold: Hold) -> Message:
        """A copy with its own counts. Its mark tells its start from that of the original, which had the same number."""
        envelope = msgspec.structs.replace(hold.envelope, attempt=hold.starts, lost=hold.lost)
        return self._routed(envelope, {"copy": new_id()} if hold.started else None)

    def _routed(self, envelope: Envelope, own: dict[str, str] | None = None) -> Message:
        return routed(envelope, address(self._spec, envelope), self._clock.time(), own)

    def _dead(self, hold: Hold, outcome: Bury, attempts: int) -> Message:
        envelope = msgspec.structs.replace(hold.envelope, attempt=attempts, lost=hold.lost)
        return dead_message(self._spec.name, envelope, outcome, attempts, self._clock.time())

    async def _replace(self, copies: list[tuple[Hold, Message]]) -> None:
        """Send the copies, and acknowledge what they replace once they are confirmed; never before."""
        results = await self._client.publisher.publish([message for _, message in copies], None)
        self._acknowledge([hold for (hold, _), error in zip(copies, results, strict=True) if error is None])
        failed = [(hold, error) for (hold, _), error in zip(copies, results, strict=True) if error is not None]
        if failed:
            # The copies are perhaps there, perhaps not: the originals are delivered again.
            self._give_back([hold for hold, _ in failed])
            error = failed[0][1]
            raise BackendLost(f"{len(failed)} messages of {self._spec.name!r} were not settled: {error}") from error

    def _acknowledge(self, holds: Sequence[Hold]) -> None:
        ours = [hold for hold in holds if self._is_ours(hold)]
        for hold in ours:
            source = hold.source
            if self._spec.priorities > 1 and source.holds == source.prefetch:
                source.expecting = asyncio.get_running_loop().time() + GRACE
            source.holds -= 1
            if source.noted:
                source.noted = False
                self._aside(self._purge_notes(source))
        self._there(self._acknowledge_there, [(hold.source, hold.generation, hold.tag) for hold in ours])

    def _give_back(self, holds: Sequence[Hold]) -> None:
        ours = [hold for hold in holds if self._is_ours(hold)]
        for hold in ours:
            hold.source.holds -= 1
        self._there(self._give_back_there, [(hold.source, hold.generation, hold.tag) for hold in ours])

    def _there(self, function: Any, *arguments: Any) -> None:
        if self._line is not None:
            self._line.there.put(function, *arguments)

    def _aside(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do *work* beside receiving. What goes wrong in it is raised by the next `receive`."""
        task = asyncio.create_task(work)
        self._asides.add(task)
        task.add_done_callback(self._aside_done)
        return task

    def _aside_done(self, task: asyncio.Task[None]) -> None:
        self._asides.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = self._failure or error
        self._arrival.set()

    # ---- starts: noted before they happen, looked up after a crash ------------------------------------------------

    async def _note_starts(self, holds: Sequence[Hold]) -> None:
        starts = [(hold.envelope.id, hold.starts + 1, hold.copy) for hold in holds]
        [error] = await self._client.publisher.publish([self._note(topology.starts(self._spec.name), starts)], None)
        if error is not None:
            raise BackendLost(f"{len(holds)} starts of {self._spec.name!r} were not noted: {error}") from error
        for hold in holds:
            hold.started = True

    async def _note_again(self) -> None:
        """Only the last notes are kept: those of long handlers are written again from time to time."""
        while True:
            await asyncio.sleep(NOTED_EVERY)
            if running := [hold for hold in self._held.values() if hold.started]:
                await self._note_starts(running)

    async def _recall(self) -> None:
        """Sort out what was delivered before: what was started is suspect, the rest goes on as if nothing had been."""
        while self._recalling:
            # A start was noted before it happened, and its message came to us after that: the notes are there by now.
            recalling = list(self._recalling)
            noted = {start for note in await self._read(topology.starts(self._spec.name), Starts) for start in note}
            del self._recalling[: len(recalling)]
            suspects: list[tuple[Hold, Message]] = []
            for hold in filter(self._is_ours, recalling):
                if (hold.envelope.id, hold.starts + 1, hold.copy) in noted:
                    hold.starts += 1
                    hold.lost += 1
                    if hold.lost < self._spec.lost_limit and hold.source.kind is Kind.WORK:
                        suspects.append((hold, self._released(hold)))
                        continue
                hold.source.due.append(hold)
            self._arrival.set()
            if suspects:
                await self._replace(suspects)

    # ---- lanes: notes beside them, and who has which -------------------------------------------------------------

    async def _recall_head(self, hold: Hold) -> None:
        """What is known of a message at the head of a lane that was delivered before."""
        read = await self._read(topology.notes(hold.source.queue), Note)
        hold.source.noted = hold.source.noted or bool(read)
        known = [note for note in read if note.id == hold.envelope.id]
        if known:
            note = max(known, key=lambda note: (note.count, note.starts))
            since = max(hold.count - note.count, 0)
            hold.starts, hold.lost = note.starts + since, note.lost + since
        else:
            hold.starts += hold.count
            hold.lost += hold.count
        if self._is_ours(hold):
            hold.source.due.append(hold)
            self._arrival.set()

    async def _read(self, queue: str, kind: type[T]) -> list[T]:
        """All notes of a queue, once nobody else is reading them."""
        reading = Reading(self._client, queue)
        tries = int(READING / 0.05)
        for _ in range(tries):
            try:
                if await reading.open():
                    return [msgspec.json.decode(message.body, type=kind) for message in reading.messages]
            finally:
                await reading.close()
            await asyncio.sleep(0.1 * self._clock.random())
        raise BackendLost(f"{queue!r} was not read: others have been reading it for {READING:g} s.")

    async def _write_notes(self, holds: Sequence[Hold], *, releasing: bool = False) -> None:
        """*releasing*: the broker is about to count one delivery more, which was none."""
        messages: list[Message] = []
        for hold in holds:
            note = Note(hold.envelope.id, hold.count + releasing, hold.starts, hold.lost)
            messages.append(self._note(topology.notes(hold.source.queue), note))
            hold.source.noted = True
        for error in await self._client.publisher.publish(messages, None):
            if error is not None:
                raise BackendLost(f"A retry of {self._spec.name!r} was not noted: {error}") from error

    def _note(self, queue: str, note: object) -> Message:
        envelope = Envelope(new_id(), "polywire.note", msgspec.json.encode(note), time=self._clock.time())
        return envelope.id, "", queue, encode(envelope), envelope.body

    async def _purge_notes(self, source: Source) -> None:
        async def purge() -> None:
            asking = await self._client.asking()
            await asking.ask(asking.channel.queue_purge, queue=topology.notes(source.queue))
            asking.close()

        await self._client.run(purge())

    async def _balance(self) -> None:
        """Give lanes up where others have fewer: the broker gives all of them to whoever comes first."""
        while True:
            await asyncio.sleep(BALANCE * (0.5 + self._clock.random()))
            members = topology.members(self._spec.name)
            _, consumers = (await topology.depths(self._client, [members])).get(members, (0, 1))
            mine = [source for source in self._sources if source.active]
            surplus = len(mine) - math.ceil(self._spec.lanes / max(consumers, 1))
            idle = [source for source in mine if not source.holds and not source.buffer]
            for source in idle[: max(surplus, 0)]:
                source.active = False
                source.generation += 1
                await self._client.run(self._resubscribe(source))

    # ---- ending --------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        if self._closing is None:
            self._closing = asyncio.create_task(self._close())
            self._arrival.set()
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        self._client.forget(self)
        try:
            if self._gone is None:
                await self._client.run(self._stop_work())
                await asyncio.gather(*self._asides, return_exceptions=True)
                await self._release()
        except DeliveryError:
            pass  # The connection is gone: the broker gives it all to others.
        finally:
            await self._client.run(self._close_channels())

    async def _release(self) -> None:
        """Everything that is held: sent again with its counts, or left in its lane with a note."""
        holds = [*self._held.values(), *self._waiting]
        for hold in self._waiting:
            if hold.timer is not None:
                hold.timer.cancel()
        self._held.clear()
        self._waiting.clear()
        for source in self._sources:
            opened = [self._opened(source, incoming) for incoming in source.buffer]
            holds += [hold for hold in opened if hold is not None]
            source.buffer.clear()
        await asyncio.gather(*self._asides)  # Those that were delivered before are due then.
        for source in self._sources:
            holds += source.due
            source.due.clear()
        lanes = [hold for hold in holds if hold.source.kind is Kind.LANE]
        await self._write_notes(lanes, releasing=True)
        rest = [hold for hold in holds if hold.source.kind is not Kind.LANE]
        if self._client.version >= NACK_KEEPS_COUNT:
            self._give_back(rest)
        else:
            await self._replace([(hold, self._released(hold)) for hold in rest])

    # ---- in the thread of the line -------------------------------------------------------------------------------

    async def _open(self) -> None:
        connection = await self._client.consuming(CONNECT_TIMEOUT)
        self._client.when_lost(self, self._lost_there)
        if self._spec.keyed:
            # Nothing is sent there: its consumers are counted, which the broker does not do for those who wait.
            self._membership = await channel_of(connection)
            consume = self._membership.channel.basic_consume
            members = topology.members(self._spec.name)
            await self._membership.ask(consume, queue=members, on_message_callback=_not_called)
        for source in self._sources:
            await self._subscribe(connection, source)

    async def _subscribe(self, connection: Connection, source: Source) -> None:
        asking = source.asking = await channel_of(connection)
        channel, generation = asking.channel, source.generation
        connection.sinks[channel.channel_number] = partial(self._back, self._arrived, source, generation)
        channel.add_on_close_callback(partial(self._channel_closed, connection, source, generation))
        channel.add_on_cancel_callback(lambda _: self._lost_there(f"queue {source.queue!r} was deleted"))
        await asking.ask(channel.basic_qos, prefetch_count=source.prefetch)
        try:
            await asking.ask(
                channel.basic_consume, queue=source.queue, consumer_tag="c", on_message_callback=_not_called
            )
        except Refused as error:
            raise SetupError(f"Queue {self._spec.name!r} was not opened: {error}.") from None

    async def _resubscribe(self, source: Source) -> None:
        asking = source.asking
        if asking is not None:
            await asking.closed()
        await self._subscribe(await self._client.consuming(CONNECT_TIMEOUT), source)

    async def _stop_work(self) -> None:
        """No more deliveries. What is prefetched stays ours: deliveries do not go through pika, whose channels reject
        what arrives for a cancelled consumer. Lanes go on: cancelled, they would be somebody else's before their head
        is settled."""
        for source in self._sources:
            asking = source.asking
            if source.kind is not Kind.LANE and asking is not None and asking.channel.is_open:
                await asking.ask(asking.channel.basic_cancel, consumer_tag="c")

    async def _close_channels(self) -> None:
        for source in self._sources:
            source.generation += 1
            if source.asking is not None:
                await source.asking.closed()
        if self._membership is not None:
            await self._membership.closed()

    def _acknowledge_there(self, tags: Sequence[tuple[Source, int, int]]) -> None:
        connection: Any = None
        frames: list[tuple[int, int]] = []
        for source, generation, tag in tags:
            asking = source.asking
            if generation == source.generation and asking is not None and asking.channel.is_open:
                connection = asking.channel.connection
                frames.append((asking.channel.channel_number, tag))
        if connection is not None:
            connection.write(acknowledgements(frames))

    def _give_back_there(self, tags: Sequence[tuple[Source, int, int]]) -> None:
        for source, generation, tag in tags:
            asking = source.asking
            if generation == source.generation and asking is not None and asking.channel.is_open:
                asking.channel.basic_nack(tag, requeue=True)

    def _channel_closed(
        self, connection: Connection, source: Source, generation: int, channel: Channel, error: BaseException
    ) -> None:
        connection.sinks.pop(channel.channel_number, None)
        if generation == source.generation:
            self._lost_there(source.asking.refused if source.asking and source.asking.refused else str(error))

    def _lost_there(self, reason: str) -> None:
        self._back(self._lost, reason)

    def _back(self, function: Any, *arguments: Any) -> None:
        if self._line is not None:
            self._line.back.put(function, *arguments)

    # ---- told by it ----------------------------------------------------------------------------------------------

    def _arrived(self, source: Source, generation: int, incoming: Incoming) -> None:
        if generation == source.generation:
            source.buffer.append(incoming)
            source.holds += 1
            source.active = True
            source.expecting = 0.0
            self._arrival.set()

    def _lost(self, reason: str) -> None:
        if self._gone is None and self._closing is None:
            self._gone = reason
            self._held.clear()
            for source in self._sources:
                source.buffer.clear()
                source.due.clear()
            if self._keeper is not None:
                self._keeper.cancel()
            self._arrival.set()


def _sources(spec: QueueSpec, limit: int) -> list[Source]:
    """The most urgent first."""
    if spec.keyed:
        return [Source(lane, Kind.LANE, 1) for lane in topology.lanes(spec)]
    each = max(1, math.ceil(limit / max(spec.priorities, 1)))
    work = [Source(level, Kind.WORK, each) for level in reversed(topology.levels(spec))]
    return [Source(topology.suspects(spec.name), Kind.SUSPECTS, 1), *work]


def _not_called(*arguments: Any) -> None:
    """pika wants somebody for deliveries; `Connection` reads them before pika does."""
