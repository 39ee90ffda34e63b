"""Task queues in one process: everything the seam asks for, in a few microseconds per message."""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import msgspec

from polywire.bus.backend.memory.space import space_at
from polywire.bus.core.checks import (
    checked_name,
    differences,
    not_there,
    refuse_differences,
    too_large,
    undeclared,
    would_create_queue,
    would_refuse,
)
from polywire.bus.core.envelope import Envelope, new_id, unpack
from polywire.bus.core.guarantees import Guarantees
from polywire.bus.core.queue import (
    EVERY_DEAD,
    Ack,
    Bury,
    DeadFilter,
    DeadLetter,
    Delivery,
    Outcome,
    QueueSpec,
    QueueStats,
    Release,
    RetryAfter,
    Settlement,
    Withdrawn,
)
from polywire.clock import SYSTEM_CLOCK, Clock, Timer
from polywire.errors import BackendLost, ConsumerClosed, MessageRefused, PolywireError, SetupError, UndecodableMessage

MAX_MESSAGES = 1_000_000
"""Per queue, dead ones included; more are refused when they are sent."""
MAX_ERROR = 2000
"""Characters kept of the error of a dead letter."""
DEDUPLICATION = 300.0
"""Seconds for which a second message of the same id is not kept, even if the first one is done."""
MAX_REMEMBERED = 100_000
"""Ids of done messages kept for that."""
SENDS_PER_TURN = 16
"""Calls of `send` after which others get a turn, as nothing here ever waits for a network."""

READY, BEHIND, LATER, HELD, GONE = range(5)
"""Where a message is: in its level, behind another one of its key, in the heap, with a consumer, nowhere any more."""


class _Message:
    __slots__ = (
        "due",
        "envelope",
        "holder",
        "lane",
        "level",
        "lost",
        "number",
        "only",
        "since",
        "started",
        "starts",
        "state",
        "why",
    )

    def __init__(self, envelope: Envelope, number: int, level: int) -> None:
        self.envelope = envelope
        self.lane = envelope.key or ""
        self.number = number
        self.level = level
        self.state = READY
        self.holder: tuple[MemoryConsumer, Delivery] | None = None
        """Who had it last."""
        self.due = 0.0
        """On the monotonic clock."""
        self.since = 0.0
        """When it became ready, on the monotonic clock."""
        self.starts = 0
        self.lost = 0
        self.started = False
        self.only = False
        """It is the one of its key that may be handed out."""
        self.why: str | None = None
        """Its bytes could not be read."""


class _Queue:
    """The messages of one queue. Synchronous: each method leaves it consistent."""

    def __init__(self, spec: QueueSpec, clock: Clock) -> None:
        self.spec = spec
        self.dead: dict[str, DeadLetter] = {}
        self.ready = self.delayed = self.in_flight = 0
        self._clock = clock
        self._levels: list[deque[_Message]] = [deque() for _ in range(spec.priorities)]
        self._behind: dict[str, deque[_Message]] = {}
        self._later: list[tuple[float, int, _Message]] = []
        self._by_id: dict[str, _Message] = {}
        self._remembered: set[str] = set()
        self._forgetting: deque[tuple[float, str]] = deque()
        self._numbers = 0
        self._stale = 0
        self._tokens = max(1.0, spec.rate or 0.0)
        self._filled = clock.monotonic()
        self._timer: Timer | None = None
        self._rings = 0.0
        self._waiting: deque[tuple[MemoryConsumer, asyncio.Future[None]]] = deque()

    @property
    def full(self) -> bool:
        return self.ready + self.delayed + self.in_flight + len(self.dead) >= MAX_MESSAGES

    # ---- coming in ------------------------------------------------------------------------------------------------

    def send(self, envelope: Envelope) -> None:
        if self._known(envelope.id):
            return
        delay = 0.0 if envelope.not_before is None else envelope.not_before - self._clock.time()
        self._put(self._new(envelope), delay)

    def inject(self, envelope: Envelope, why: str) -> None:
        message = self._new(envelope)
        message.why = why
        self._put(message, 0.0)

    def _known(self, id: str) -> bool:
        now = self._clock.monotonic()
        while self._forgetting and (self._forgetting[0][0] <= now or len(self._forgetting) > MAX_REMEMBERED):
            self._remembered.discard(self._forgetting.popleft()[1])
        if id in self._remembered or id in self._by_id:
            return True
        self._remembered.add(id)
        self._forgetting.append((now + DEDUPLICATION, id))
        return False

    def _new(self, envelope: Envelope) -> _Message:
        self._numbers += 1
        message = _Message(envelope, self._numbers, min(max(envelope.priority, 0), self.spec.priorities - 1))
        self._by_id[envelope.id] = message
        return message

    def _put(self, message: _Message, delay: float) -> None:
        if delay > 0:
            self._postpone(message, delay)
        else:
            self._arrive(message)

    def _arrive(self, message: _Message) -> None:
        """It may be handed out, once it is the oldest of its key. What was sent to be handled later counts from now."""
        if self.spec.keyed and message.lane and not message.only:
            behind = self._behind.get(message.lane)
            if behind is not None:
                message.state = BEHIND
                self.ready += 1
                behind.append(message)
                return
            self._behind[message.lane] = deque()
            message.only = True
        self._offer(message)

    def _offer(self, message: _Message, *, first: bool = False) -> None:
        message.state = READY
        message.since = self._clock.monotonic()
        self.ready += 1
        level = self._levels[message.level]
        if first:
            level.appendleft(message)
        else:
            level.append(message)
        self.wake()

    def _postpone(self, message: _Message, delay: float) -> None:
        message.state = LATER
        message.due = self._clock.monotonic() + delay
        self.delayed += 1
        heapq.heappush(self._later, (message.due, message.number, message))
        self.arm()

    # ---- going out ------------------------------------------------------------------------------------------------

    def take(self, limit: int) -> list[_Message]:
        """The next to be handled, at most *limit*."""
        limit = min(limit, self._allowed(limit))
        taken: list[_Message] = []
        for level in reversed(self._levels):
            while level and len(taken) < limit:
                message = level.popleft()
                if message.state == READY:
                    message.state = HELD
                    taken.append(message)
                else:
                    self._stale -= 1
        self.ready -= len(taken)
        self.in_flight += len(taken)
        if self.spec.rate is not None:
            self._tokens -= len(taken)
        if self.ready and taken:
            self.wake()
        return taken

    def _allowed(self, limit: int) -> int:
        """What `concurrency` and `rate` leave of *limit*."""
        if self.spec.concurrency is not None:
            limit = min(limit, self.spec.concurrency - self.in_flight)
        if self.spec.rate is not None:
            now = self._clock.monotonic()
            self._tokens = min(max(1.0, self.spec.rate), self._tokens + (now - self._filled) * self.spec.rate)
            self._filled = now
            # Time comes in binary fractions: a token of which the millionth part is missing is a token.
            limit = min(limit, int(self._tokens + 1e-6))
            if limit <= 0:
                self.arm()
        return max(limit, 0)

    def wait(self, consumer: MemoryConsumer, woken: asyncio.Future[None]) -> None:
        self._waiting.append((consumer, woken))

    def stop_waiting(self, consumer: MemoryConsumer, woken: asyncio.Future[None]) -> None:
        if (consumer, woken) in self._waiting:
            self._waiting.remove((consumer, woken))

    def wake(self) -> None:
        """Let one look who can take something; who took something and left some wakes the next."""
        for entry in self._waiting:
            consumer, woken = entry
            if consumer.room > 0 and not woken.done():
                self._waiting.remove(entry)
                woken.set_result(None)
                return

    # ---- settling ---------------------------------------------------------------------------------------------------

    def finish(self, message: _Message) -> None:
        self.in_flight -= 1
        self._remove(message)

    def bury(self, message: _Message, reason: str, error: str) -> None:
        self.finish(message)
        position = str(message.number)
        self.dead[position] = DeadLetter(
            queue=self.spec.name,
            envelope=message.envelope,
            reason=reason,
            error=error[:MAX_ERROR],
            attempts=message.starts,
            died=self._clock.time(),
            position=position,
        )

    def retry(self, message: _Message, delay: float) -> None:
        self.in_flight -= 1
        message.started = False
        self._put(message, delay)
        self._freed()

    def release(self, message: _Message, delay: float) -> None:
        if message.started:
            message.starts -= 1
        self._give_back(message, delay)

    def lose(self, message: _Message) -> None:
        """Its worker is dead."""
        if message.started:
            message.lost += 1
        if message.lost >= self.spec.lost_limit:
            died = "1 worker died" if message.lost == 1 else f"{message.lost} workers died"
            self.bury(message, "worker_lost", f"{died} while handling it.")
        else:
            self._give_back(message, 0.0)

    def _give_back(self, message: _Message, delay: float) -> None:
        self.in_flight -= 1
        message.started = False
        if delay > 0:
            self._postpone(message, delay)
        else:
            self._offer(message, first=True)
        self._freed()

    def _remove(self, message: _Message) -> None:
        message.state = GONE
        if self._by_id.get(message.envelope.id) is message:
            del self._by_id[message.envelope.id]
        if message.only:
            self._advance(message)
        self._freed()

    def _advance(self, message: _Message) -> None:
        """The next one of the key may be handed out."""
        message.only = False
        behind = self._behind[message.lane]
        if not behind:
            del self._behind[message.lane]
            return
        following = behind.popleft()
        following.only = True
        self.ready -= 1
        self._offer(following)

    def _freed(self) -> None:
        if self.ready and self.spec.concurrency is not None:
            self.wake()

    # ---- time -------------------------------------------------------------------------------------------------------

    def arm(self) -> None:
        """Ring when the next message is due, or the rate allows another one."""
        rings = self._later[0][0] if self._later else None
        if self.spec.rate is not None and self.ready and self._tokens < 1:
            allowed = self._filled + (1 - self._tokens) / self.spec.rate
            rings = allowed if rings is None else min(rings, allowed)
        if rings is None or (self._timer is not None and self._rings <= rings):
            return
        self.disarm()
        self._rings = rings
        self._timer = self._clock.call_later(max(rings - self._clock.monotonic(), 0.0), self._ring)

    def disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ring(self) -> None:
        self._timer = None
        now = self._clock.monotonic()
        while self._later and self._later[0][0] <= now:
            due, _, message = heapq.heappop(self._later)
            if message.state == LATER and message.due == due:
                self.delayed -= 1
                self._arrive(message)
            else:
                self._stale -= 1
        if self.ready:
            self.wake()
        self.arm()

    # ---- looking and changing ---------------------------------------------------------------------------------------

    def cancel(self, id: str) -> bool:
        message = self._waiting_one(id)
        if message is None:
            return False
        self._take_out(message)
        self._remove(message)
        # Who sends it again after taking it back means it.
        self._remembered.discard(id)
        return True

    def move(self, id: str, not_before: float) -> bool:
        message = self._waiting_one(id)
        if message is None:
            return False
        self._take_out(message)
        if message.only:
            self._advance(message)
        self._put(message, not_before - self._clock.time())
        return True

    def withdraw(self, id: str) -> bool:
        message = self._by_id.get(id)
        if message is None or message.state != HELD:
            return self.cancel(id)
        self.finish(message)
        self._remembered.discard(id)
        if message.holder is not None:
            consumer, delivery = message.holder
            consumer.withdrawn(delivery)
        return True

    def _waiting_one(self, id: str) -> _Message | None:
        message = self._by_id.get(id)
        return None if message is None or message.state == HELD else message

    def _take_out(self, message: _Message) -> None:
        """Of where it waits. Entries of levels and of the heap stay behind, and are skipped when their turn comes."""
        if message.state == LATER:
            self.delayed -= 1
        else:
            self.ready -= 1
        if message.state == BEHIND:
            self._behind[message.lane].remove(message)
        else:
            self._stale += 1
        message.state = GONE
        if self._stale > 100 + self.ready + self.delayed:
            self._sweep()

    def _sweep(self) -> None:
        self._stale = 0
        for number, level in enumerate(self._levels):
            self._levels[number] = deque(dict.fromkeys(message for message in level if message.state == READY))
        live = {
            message.number: (due, number, message)
            for due, number, message in self._later
            if message.state == LATER and message.due == due
        }
        self._later = sorted(live.values())

    def peek(self, limit: int) -> list[Envelope]:
        found: list[Envelope] = []
        for level in reversed(self._levels):
            for message in level:
                if len(found) >= limit:
                    return found
                if message.state == READY:
                    found.append(message.envelope)
        return found

    def stats(self) -> QueueStats:
        now = self._clock.monotonic()
        waits = [now - level[0].since for level in self._levels if level and level[0].state == READY]
        return QueueStats(
            queue=self.spec.name,
            ready=self.ready,
            delayed=self.delayed,
            in_flight=self.in_flight,
            dead=len(self.dead),
            oldest=max(waits, default=None),
        )

    def revive(self, letters: Sequence[DeadLetter]) -> int:
        found = [letter for letter in letters if letter.position in self.dead]
        for letter in found:
            kept = self.dead.pop(letter.position).envelope
            again = msgspec.structs.replace(kept, attempt=0, lost=0, redrive_count=kept.redrive_count + 1)
            self._put(self._new(again), 0.0)
        return len(found)

    def drop(self, letters: Sequence[DeadLetter]) -> int:
        return sum(self.dead.pop(letter.position, None) is not None for letter in letters)


class MemoryConsumer:
    """A worker of a queue in memory. `kill` and `MemoryQueue.cut` are for tests of what happens then."""

    def __init__(self, queue: _Queue, limit: int, clock: Clock) -> None:
        self._queue = queue
        self._limit = limit
        self._clock = clock
        self._held: dict[Delivery, _Message] = {}
        self._receiving: set[asyncio.Future[None]] = set()
        self._ended: PolywireError | None = None
        self._told: Withdrawn | None = None

    def when_withdrawn(self, told: Withdrawn) -> None:
        self._told = told

    def withdrawn(self, delivery: Delivery) -> None:
        """It is not held any more."""
        if self._held.pop(delivery, None) is not None:
            self._queue.wake()
            if self._told is not None:
                self._told(delivery)

    @property
    def room(self) -> int:
        """How many more it may hold."""
        return self._limit - len(self._held)

    async def receive(self, limit: int) -> list[Delivery]:
        # Nothing here waits while there is work; others shall have a turn nevertheless.
        await asyncio.sleep(0)
        while True:
            taken = self._queue.take(min(limit, self.room)) if self._ended is None and self.room > 0 else ()
            if taken:
                return [self._hold(message) for message in taken]
            if self._ended is not None or self.room <= 0:
                # What this one was woken for and may not take is for another one.
                self._queue.wake()
            if self._ended is not None:
                raise self._ended.with_traceback(None)
            await self._something()

    def _hold(self, message: _Message) -> Delivery:
        delivery = Delivery(
            self._queue.spec.name,
            message.envelope,
            message.starts + 1,
            message.lost,
            message,
            str(message.number),
            message.why,
        )
        self._held[delivery] = message
        message.holder = self, delivery
        return delivery

    async def _something(self) -> None:
        """Wait until looking again makes sense."""
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._receiving.add(woken)
        self._queue.wait(self, woken)
        try:
            await woken
        except asyncio.CancelledError:
            # Another one shall have what this one was woken for.
            if woken.done() and not woken.cancelled():
                self._queue.wake()
            raise
        finally:
            self._receiving.discard(woken)
            self._queue.stop_waiting(self, woken)

    async def settle(
        self, settlements: Sequence[Settlement], starting: Sequence[Delivery] = ()
    ) -> Collection[Delivery]:
        full = not self.room
        for settlement in settlements:
            message = self._held.pop(settlement.delivery, None)
            if message is not None:
                self._apply(message, settlement.outcome)
        if full and self.room and self._queue.ready:
            self._queue.wake()
        return [delivery for delivery in starting if self._start(delivery)]

    def _apply(self, message: _Message, outcome: Outcome) -> None:
        match outcome:
            case Ack():
                self._queue.finish(message)
            case RetryAfter(delay=delay):
                self._queue.retry(message, delay)
            case Release(delay=delay):
                self._queue.release(message, delay)
            case Bury(reason=reason, error=error):
                self._queue.bury(message, reason, error)

    def _start(self, delivery: Delivery) -> bool:
        message = self._held.get(delivery)
        if message is None:
            return False
        if not message.started:
            message.started = True
            message.starts += 1
        return True

    async def close(self) -> None:
        held = self._end(
            ConsumerClosed(f"Nothing was received from the queue {self._queue.spec.name!r}: the consumer was closed.")
        )
        for message in reversed(held):
            self._queue.release(message, 0.0)

    def kill(self) -> None:
        """End as a killed process does: another one gets what this one holds once the lease has run out."""
        queue = self._queue
        held = self._end(BackendLost(f"Nothing was received from the queue {queue.spec.name!r}: the worker is dead."))
        if held:
            self._clock.call_later(queue.spec.lease, lambda: _lose_all(queue, held))

    def cut(self) -> None:
        """Lose the connection: what this one holds is somebody else's now."""
        held = self._end(BackendLost(f"Nothing was received from the queue {self._queue.spec.name!r}: it was cut off."))
        _lose_all(self._queue, held)

    def _end(self, reason: PolywireError) -> list[_Message]:
        """What was held, oldest first. The reason of the first end counts."""
        self._ended = self._ended or reason
        held = sorted(self._held.values(), key=lambda message: message.number)
        self._held.clear()
        for woken in self._receiving:
            if not woken.done():
                woken.set_result(None)
        return held


def _lose_all(queue: _Queue, held: list[_Message]) -> None:
    for message in reversed(held):
        if message.state == HELD:  # it may have been taken back meanwhile
            queue.lose(message)


@dataclass(eq=False)
class _Space:
    clock: Clock
    queues: dict[str, _Queue]
    open: int = 0


class MemoryQueue:
    """Task queues in this process. Two with the same `memory:NAME` share their queues while one of them is there."""

    def __init__(self, url: str = "memory:", *, clock: Clock = SYSTEM_CLOCK) -> None:
        self.guarantees = Guarantees(
            backend="memory",
            durable=False,
            shared=False,
            max_message_bytes=16 * 1024 * 1024,
            key_order=True,
            delay=True,
            priorities=10,
            cancel=True,
            withdraw=True,
            deduplicate=True,
            peek=True,
            shared_limits=True,
        )
        self._url = url
        self._clock = clock
        self._space = space_at(url, clock, lambda clock: _Space(clock, {}))
        self._consumers: list[MemoryConsumer] = []
        self._open = False
        self._sends = 0

    @property
    def connected(self) -> bool:
        return self._open

    async def start(self) -> None:
        if not self._open:
            self._open = True
            self._space.open += 1
            for queue in self._space.queues.values():
                # A timer of another event loop rings no more.
                queue.disarm()
                queue.arm()

    async def close(self) -> None:
        if not self._open:
            return
        self._open = False
        for consumer in self._consumers:
            await consumer.close()
        self._space.open -= 1
        if not self._space.open:
            for queue in self._space.queues.values():
                queue.disarm()

    def cut(self) -> None:
        """Lose all connections, as when a server is killed: consumers hear of it, and others get what they held."""
        for consumer in self._consumers:
            consumer.cut()
        self._consumers.clear()

    async def declare(self, queues: Sequence[QueueSpec]) -> None:
        refuse_differences([line for spec in queues for line in self._differences(spec)])
        for spec in queues:
            self._space.queues.setdefault(spec.name, _Queue(spec, self._clock))

    async def check(self, queues: Sequence[QueueSpec]) -> list[str]:
        missing = [would_create_queue(spec.name) for spec in queues if spec.name not in self._space.queues]
        return [*missing, *would_refuse([line for spec in queues for line in self._differences(spec)])]

    def _differences(self, spec: QueueSpec) -> list[str]:
        checked_name("queue", spec.name)
        if not 1 <= spec.priorities <= self.guarantees.priorities:
            raise SetupError(
                f"The queue {spec.name!r} was not declared: it has {spec.priorities} priorities, "
                f"'memory:' offers 1 to {self.guarantees.priorities}. Declare fewer."
            )
        found = self._space.queues.get(spec.name)
        return [] if found is None else differences(f"queue {spec.name!r}", spec, found.spec)

    async def send(
        self, queue: str, envelopes: Sequence[Envelope], *, timeout: float | None = None
    ) -> list[Exception | None]:
        self._sends += 1
        if self._sends % SENDS_PER_TURN == 0:
            await asyncio.sleep(0)
        found = self._space.queues.get(queue)
        return [self._send(queue, found, envelope) for envelope in envelopes]

    def _send(self, name: str, queue: _Queue | None, envelope: Envelope) -> Exception | None:
        if not self._open:
            return MessageRefused(
                f"The message {envelope.id!r} was not sent to the queue {name!r}: {self._url!r} is not open."
            )
        if queue is None:
            return undeclared(envelope, f"queue {name!r}")
        if queue.full:
            return MessageRefused(
                f"The message {envelope.id!r} was not sent: the queue {name!r} is full, with {MAX_MESSAGES} messages. "
                f"Try again when some are done, or start more workers."
            )
        refused = too_large(envelope, f"queue {name!r}", self.guarantees.max_message_bytes)
        if refused is None:
            queue.send(envelope)
        return refused

    def inject(self, queue: str, data: bytes) -> None:
        """Put bytes into a queue as a foreign sender would, readable or not."""
        try:
            self._queue(queue).send(unpack(data))
        except UndecodableMessage as error:
            self._queue(queue).inject(Envelope(new_id(self._clock.time()), "", data), str(error))

    async def consumer(self, queue: str, *, limit: int) -> MemoryConsumer:
        made = MemoryConsumer(self._queue(queue), limit, self._clock)
        self._consumers = [consumer for consumer in self._consumers if consumer._ended is None]
        self._consumers.append(made)
        return made

    def _queue(self, name: str) -> _Queue:
        if not self._open:
            raise BackendLost(f"The queue {name!r} was not reached: {self._url!r} is not open.")
        found = self._space.queues.get(name)
        if found is None:
            raise not_there(f"queue {name!r}")
        return found

    async def stats(self, queue: str) -> QueueStats:
        return self._queue(queue).stats()

    async def cancel(self, queue: str, id: str) -> bool:
        return self._queue(queue).cancel(id)

    async def withdraw(self, queue: str, id: str) -> bool:
        return self._queue(queue).withdraw(id)

    async def move(self, queue: str, id: str, not_before: float) -> bool:
        return self._queue(queue).move(id, not_before)

    async def peek(self, queue: str, limit: int) -> list[Envelope]:
        return self._queue(queue).peek(limit)

    async def dead(self, queue: str, which: DeadFilter = EVERY_DEAD, *, limit: int = 100) -> list[DeadLetter]:
        return _first(limit, self._queue(queue).dead.values(), which.fits)

    async def revive(self, queue: str, letters: Sequence[DeadLetter]) -> int:
        return self._queue(queue).revive(letters)

    async def drop(self, queue: str, letters: Sequence[DeadLetter]) -> int:
        return self._queue(queue).drop(letters)


def _first(limit: int, letters: Collection[DeadLetter], fits: Callable[[DeadLetter], bool]) -> list[DeadLetter]:
    found: list[DeadLetter] = []
    for letter in letters:
        if len(found) >= limit:
            break
        if fits(letter):
            found.append(letter)
    return found
