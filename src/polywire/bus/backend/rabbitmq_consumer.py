"""Receiving from RabbitMQ and settling: what is handed out, what is held back, and what becomes of it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection, Coroutine, Sequence
from functools import partial
from typing import Any

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
    channel_of,
)
from polywire.bus.backend.rabbitmq_dead import dead_message
from polywire.bus.backend.rabbitmq_messages import decode
from polywire.bus.backend.rabbitmq_notes import Entry, Notes
from polywire.bus.backend.rabbitmq_sources import Hold, Kind, Source, sources
from polywire.bus.backend.rabbitmq_topology import Message, address, routed
from polywire.bus.core import Ack, Bury, Delivery, QueueSpec, RetryAfter, Settlement, new_id
from polywire.clock import Clock
from polywire.errors import BackendLost, ConsumerClosed, DeliveryError, SetupError

BALANCE = 2.0
"""Seconds between looks at how many consumers share the lanes."""
NOTED_EVERY = 3.0
"""Seconds after which what is under way is noted again, as only the last notes are kept."""
GRACE = 0.02
"""Seconds to wait for the next of a level that was full before something less urgent is handed out."""
AGAIN = 1.0
"""Seconds after which a message in a lane is handled again that could not be settled."""
NACK_KEEPS_COUNT = (4, 3)
"""From this version on, giving a message back by nack costs no delivery."""


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
        self._notes = Notes(client, spec.name)
        self._sources = sources(spec, limit)
        self._held: dict[Delivery, Hold] = {}
        """What is handed out."""
        self._resting: set[Hold] = set()
        """Not handed out before they are due."""
        self._settling: set[Hold] = set()
        self._doubtful: list[Hold] = []
        """Delivered before, and waiting for what the notes say about them."""
        self._arrival = asyncio.Event()
        self._settled = asyncio.Event()
        self._asides: set[asyncio.Task[None]] = set()
        self._keepers: list[asyncio.Task[None]] = []
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
            if self._client.line is not None:
                await self._client.run(self._close_channels())
            raise
        work = [self._note_again(), self._balance()] if self._spec.keyed else [self._note_again()]
        self._keepers = [asyncio.create_task(each) for each in work]
        for keeper in self._keepers:
            keeper.add_done_callback(self._ended)

    @property
    def fetched(self) -> int:
        """Messages that are here, and neither handed out nor resting."""
        return sum(source.held for source in self._sources) - len(self._held) - len(self._resting)

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
            while len(found) < room and (hold := source.next(self._opened)) is not None:
                if (delivery := self._delivery(hold)) is not None:
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

    @staticmethod
    def _opened(source: Source, incoming: Incoming) -> Hold:
        received = decode(incoming.properties, incoming.body)
        envelope, unreadable = received.envelope, received.unreadable
        return Hold(
            source,
            source.generation,
            incoming.tag,
            envelope,
            unreadable,
            received.own.get("copy", "") if received.own else "",
            envelope.attempt,
            envelope.lost,
            received.count > 0 and unreadable is None,
        )

    def _delivery(self, hold: Hold) -> Delivery | None:
        """What is handed out; None where it is not to be handled, or not yet."""
        envelope = hold.envelope
        if hold.doubtful:
            self._doubtful.append(hold)
            if len(self._doubtful) == 1:
                self._aside(self._recall())
            return None
        if hold.lost >= self._spec.lost_limit:
            died = Bury("worker_lost", f"{hold.lost} workers ended while they handled it")
            self._aside(self._replace([(hold, self._dead(hold, died, hold.starts))]))
            return None
        if envelope.not_before is not None and (remaining := envelope.not_before - self._clock.time()) > 0:
            if topology.delay_for(remaining):
                self._aside(self._replace([(hold, self._copy(hold))]))
            else:
                self._rest(hold, remaining)
            return None
        source = hold.source.queue
        delivery = Delivery(self._spec.name, envelope, hold.starts + 1, hold.lost, hold, source, hold.unreadable)
        self._held[delivery] = hold
        return delivery

    def _rest(self, hold: Hold, delay: float) -> None:
        def due() -> None:
            self._resting.discard(hold)
            hold.timer = None
            if hold.is_ours:
                hold.source.ready.append(hold)
                self._arrival.set()

        self._resting.add(hold)
        hold.timer = self._clock.call_later(max(delay, 0.0), due)

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
                copies.append((hold, self._dead(hold, outcome, hold.starts + hold.started)))
            else:
                if isinstance(outcome, RetryAfter):
                    hold.starts = delivery.attempt
                if hold.source.kind is Kind.LANE:
                    in_place.append((hold, outcome.delay))
                else:
                    not_before = self._clock.time() + outcome.delay if outcome.delay > 0 else None
                    copies.append((hold, self._copy(hold, not_before)))
        if done:
            self._acknowledge(done)
        if copies or in_place:
            self._settling.update(hold for hold, _ in [*copies, *in_place])
            # Once begun it goes on: cancelled half-way, the messages would be nobody's until the connection ends.
            await asyncio.shield(self._aside(self._settle_slowly(copies, in_place)))
        if settlements:
            self._settled.set()
            self._arrival.set()  # There may be room again for one who waits.
        if starting:
            await self._start([self._held[each] for each in starting if each in self._held])
        return [delivery for delivery in starting if delivery in self._held]

    async def _settle_slowly(self, copies: list[tuple[Hold, Message]], in_place: list[tuple[Hold, float]]) -> None:
        try:
            if copies:
                await self._replace(copies)
            await self._notes.write([_settled(hold) for hold, _ in in_place])
        finally:
            # Where that failed, a crash would count more than there was; the message stays where it is.
            for hold, delay in in_place:
                hold.started = False
                if hold.is_ours:
                    self._rest(hold, delay)
            self._settling.difference_update(hold for hold, _ in [*copies, *in_place])
            self._settled.set()

    def _copy(self, hold: Hold, not_before: float | None = None) -> Message:
        """The same message with its own counts, and a mark that tells it from this one in the notes."""
        envelope = msgspec.structs.replace(hold.envelope, attempt=hold.starts, lost=hold.lost)
        if not_before is not None or hold.started:
            envelope.not_before = not_before
        return routed(envelope, address(self._spec, envelope), self._clock.time(), {"copy": new_id()})

    def _dead(self, hold: Hold, outcome: Bury, attempts: int) -> Message:
        envelope = msgspec.structs.replace(hold.envelope, attempt=attempts, lost=hold.lost)
        return dead_message(self._spec.name, envelope, outcome, attempts, self._clock.time())

    async def _replace(self, copies: list[tuple[Hold, Message]]) -> None:
        """Send the copies, and acknowledge what they replace once they are confirmed; never before."""
        results = await self._client.publisher.publish([message for _, message in copies], None)
        self._acknowledge([hold for (hold, _), error in zip(copies, results, strict=True) if error is None])
        self._arrival.set()
        failed = [(hold, error) for (hold, _), error in zip(copies, results, strict=True) if error is not None]
        if failed:
            # The copies are perhaps there, perhaps not: the originals are handled again.
            self._give_back([hold for hold, _ in failed])
            error = failed[0][1]
            raise BackendLost(f"{len(failed)} messages of {self._spec.name!r} were not settled: {error}") from error

    def _acknowledge(self, holds: Sequence[Hold]) -> None:
        ours = [hold for hold in holds if hold.is_ours]
        for hold in ours:
            source = hold.source
            if self._spec.priorities > 1 and source.held == source.prefetch:
                source.expecting = asyncio.get_running_loop().time() + GRACE
            source.done(hold)
        self._there(self._acknowledge_there, [(hold.source, hold.generation, hold.tag) for hold in ours])

    def _give_back(self, holds: Sequence[Hold]) -> None:
        """To the broker, which puts it at the back; in a lane it has to stay."""
        back: list[tuple[Source, int, int]] = []
        for hold in holds:
            if hold.is_ours and hold.source.kind is Kind.LANE:
                self._rest(hold, AGAIN)
            elif hold.is_ours:
                hold.source.done(hold)
                back.append((hold.source, hold.generation, hold.tag))
        self._there(self._give_back_there, back)

    def _there(self, function: Any, *arguments: Any) -> None:
        if self._line is not None:
            self._line.there.put(function, *arguments)

    def _aside(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Do *work* beside receiving. What goes wrong in it is raised by the next `receive`."""
        task = asyncio.create_task(work)
        self._asides.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._asides.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failure = self._failure or error
        self._arrival.set()

    # ---- starts: noted before they happen, looked up after a crash ------------------------------------------------

    async def _start(self, holds: Sequence[Hold]) -> None:
        for hold in holds:
            hold.started = True
        await self._notes.write([_running(hold) for hold in holds])

    async def _note_again(self) -> None:
        while True:
            await asyncio.sleep(NOTED_EVERY)
            running = [_running(hold) for hold in self._held.values() if hold.started]
            settled = [_settled(hold) for hold in self._resting if hold.starts > hold.envelope.attempt]
            await self._notes.write([*running, *settled])

    async def _recall(self) -> None:
        """Sort out what was delivered before: what was under way is suspect, the rest is as if nothing had been."""
        while self._doubtful:
            doubtful = list(self._doubtful)
            # Whoever had them wrote before they came back to the broker, and from there to us.
            noted = await self._notes.read()
            del self._doubtful[: len(doubtful)]
            suspects: list[tuple[Hold, Message]] = []
            for hold in doubtful:
                if not hold.is_ours:
                    continue
                hold.doubtful = False
                entry = noted.get((hold.envelope.id, hold.copy))
                if entry is not None:
                    hold.starts, hold.lost = entry.starts, entry.lost + entry.running
                if hold.source.kind is Kind.WORK and hold.envelope.lost < hold.lost < self._spec.lost_limit:
                    suspects.append((hold, self._copy(hold)))
                else:
                    hold.source.ready.append(hold)
            self._arrival.set()
            if suspects:
                await self._replace(suspects)

    # ---- lanes -----------------------------------------------------------------------------------------------------

    async def _balance(self) -> None:
        """Give lanes up where others have fewer: the broker gives all of them to whoever comes first."""
        members = topology.members(self._spec.name)
        while True:
            await asyncio.sleep(BALANCE * (0.5 + self._clock.random()))
            _, consumers = (await topology.depths(self._client, [members])).get(members, (0, 1))
            mine = [source for source in self._sources if source.active]
            surplus = len(mine) - math.ceil(self._spec.lanes / max(consumers, 1))
            for source in sorted(mine, key=lambda source: source.held)[: max(surplus, 0)]:
                await self._leave(source)

    async def _leave(self, source: Source) -> None:
        """Nothing more of it is handed out; once nothing is, the next one who waits for it has it, in order."""
        source.leaving = True
        while any(hold.source is source for hold in [*self._held.values(), *self._settling]):
            self._settled.clear()
            await self._settled.wait()
        for hold in [hold for hold in self._resting if hold.source is source]:
            self._stop_resting(hold)
        source.forget()
        await self._client.run(self._resubscribe(source))

    def _stop_resting(self, hold: Hold) -> None:
        self._resting.discard(hold)
        if hold.timer is not None:
            hold.timer.cancel()
            hold.timer = None

    # ---- ending --------------------------------------------------------------------------------------------------

    async def close(self) -> None:
        if self._closing is None:
            self._closing = asyncio.create_task(self._close())
            self._arrival.set()
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        self._client.forget(self)
        try:
            if self._gone is None and self._client.line is not None:
                await self._client.run(self._stop_work())
                await asyncio.gather(*self._asides, return_exceptions=True)
                await self._release()
        except DeliveryError:
            pass  # The connection is gone: the broker gives it all to others.
        finally:
            self._held.clear()
            if self._client.line is not None:
                await self._client.run(self._close_channels())
            for source in self._sources:
                source.forget()

    async def _release(self) -> None:
        """Everything that is held: sent again with its counts, or left in its lane with a note.

        What was delivered before and not looked up yet is left as it is, for the next one to look up.
        """
        holds = list(self._held.values())
        self._held.clear()
        for hold in list(self._resting):
            self._stop_resting(hold)
            holds.append(hold)
        if self._spec.keyed:
            await self._notes.write([_settled(hold) for hold in holds if hold.started])
            return
        for source in self._sources:
            holds += source.ready
            holds += [self._opened(source, incoming) for incoming in source.buffer]
        rest = [hold for hold in holds if not hold.doubtful and hold.is_ours]
        if self._client.version >= NACK_KEEPS_COUNT:
            unchanged = [hold for hold in rest if not hold.started and hold.starts == hold.envelope.attempt]
            self._give_back(unchanged)
            rest = [hold for hold in rest if hold not in unchanged]
        await self._replace([(hold, self._copy(hold, hold.envelope.not_before)) for hold in rest])

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
            await asking.closed(in_order=True)
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
            if source.asking is not None:
                await source.asking.closed(in_order=source.kind is Kind.LANE)
        if self._membership is not None:
            await self._membership.closed()

    def _acknowledge_there(self, holds: Sequence[tuple[Source, int, int]]) -> None:
        for asking, tags in _by_channel(holds):
            asking.acknowledge(tags)

    def _give_back_there(self, holds: Sequence[tuple[Source, int, int]]) -> None:
        for asking, tags in _by_channel(holds):
            asking.give_back(tags)

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
            source.held += 1
            source.active = True
            source.expecting = 0.0
            self._arrival.set()

    def _lost(self, reason: str) -> None:
        if self._gone is None and self._closing is None:
            self._gone = reason
            self._held.clear()
            for hold in list(self._resting):
                self._stop_resting(hold)
            for source in self._sources:
                source.forget()
            for keeper in self._keepers:
                keeper.cancel()
        self._arrival.set()


def _by_channel(holds: Sequence[tuple[Source, int, int]]) -> list[tuple[Asking, list[int]]]:
    """Delivery tags by the open channels that they came over."""
    found: dict[Asking, list[int]] = {}
    for source, generation, tag in holds:
        asking = source.asking
        if asking is not None and generation == source.generation and asking.channel.is_open:
            found.setdefault(asking, []).append(tag)
    return list(found.items())


def _running(hold: Hold) -> Entry:
    return Entry(hold.envelope.id, hold.copy, True, hold.starts + 1, hold.lost)


def _settled(hold: Hold) -> Entry:
    return Entry(hold.envelope.id, hold.copy, False, hold.starts, hold.lost)


def _not_called(*arguments: Any) -> None:
    """pika wants somebody for deliveries; `Connection` reads them before pika does."""
