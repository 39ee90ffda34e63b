"""What queues and logs are consumed with alike: receiving, starting, stopping, and keeping at it."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

from polywire.bus.consumer.bell import Bell
from polywire.bus.consumer.handling import Handling, by_type
from polywire.bus.consumer.kinds import Kind
from polywire.bus.consumer.limits import Alone, Rate
from polywire.bus.consumer.reopening import Closable, Reopening
from polywire.bus.consumer.run import Runs, Work
from polywire.clock import Clock, Timer
from polywire.errors import SetupError
from polywire.threads import Threads

log = logging.getLogger("polywire.consumer")

CONCURRENCY = 32
"""Handlers at a time, where nobody says. What is settled together grows with it, and so does the speed."""
STOP_PATIENCE = 5.0
"""Seconds for handlers that were cancelled, and for the backend, when stopping."""
ODD_DELAY = 5.0
"""Seconds before a message is handled again that met a fault of the consumer itself."""


class Session(Protocol):
    """The life of one consumer of a backend."""

    @property
    def consumer(self) -> Closable: ...

    held: int
    """Messages that were received and are not settled."""


S = TypeVar("S", bound=Session)
Entry = TypeVar("Entry")
"""What waits to be started."""
Received = TypeVar("Received")

_NOTHING: list[Work] = []


class Runner(Generic[S, Entry, Received]):
    """Consumes one queue, or one group of a log, in this process.

    A backend that goes away is waited for: handlers that run finish, but what they held is somebody else's by then, and
    what became of it is not told to anybody.
    """

    def __init__(
        self,
        what: str,
        runs: Runs,
        handlings: Sequence[Handling],
        *,
        concurrency: int,
        rate: float | None,
        threads: Threads | None,
        alone: Alone | None,
        clock: Clock,
    ) -> None:
        if not handlings:
            raise SetupError(f"{what} cannot be consumed: there is no handler for any of its messages.")
        self.runs = runs
        self.counters = runs.counters
        self._what = what
        self._clock = clock
        self._own_threads = threads
        """To be closed with the runner."""
        self._concurrency = concurrency
        self._kinds: Mapping[str, Kind] = _kinds_of(handlings, runs)
        self._only = next(iter(self._kinds.values())) if len(self._kinds) == 1 else None
        """For foreign messages, which do not say what they are."""
        self._rate = Rate(rate, clock) if rate is not None else None
        self._rate_timer: Timer | None = None
        self._alone = alone or Alone(clock)
        self._waiting: deque[Entry] = deque()
        self._suspects: deque[Entry] = deque()
        self._suspect: Work | None = None
        self._running: set[Work] = set()
        self._bell = Bell()
        """Rings where something finished or can be started."""
        self._room = Bell()
        """Rings where more can be received."""
        self._session: S | None = None
        self._reopening = Reopening(what, clock)
        self._receiver: asyncio.Task[None] | None = None
        self._receiving = False
        self._interrupted = False
        self._paused = False
        self._stopping = False
        self._drained = False
        self._idle: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    # ---- what its owner may ask ------------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Handlers that run."""
        return len(self._running)

    @property
    def held(self) -> int:
        """Messages that were received and are not settled: waiting here, running, or on their way back."""
        return 0 if self._session is None else self._session.held

    @property
    def paused(self) -> bool:
        return self._paused

    async def start(self) -> None:
        """Begin to consume. A backend that is away is waited for. Raises SetupError where waiting would not help."""
        self._alone.listen(self._wake)
        first = self._session = await self._reopening.first(self._open)
        self._task = asyncio.get_running_loop().create_task(self._serve(first))

    def pause(self) -> None:
        """Receive and start nothing more. What runs goes on."""
        if not self._paused and not self._stopping:
            self._paused = True
            self._interrupt()
            self._pause()

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            self._resume()
            self._room.ring()
            self._wake()

    async def stop(self, grace: float = 30.0) -> None:
        """Receive nothing more and give back what was not started. What runs has *grace* seconds; then it is cancelled
        and given back, too, without costing an attempt. May be called twice."""
        if self._task is None:
            self._alone.forget(self._wake)
            return
        if not self._stopping:
            self._stopping = True
            self._interrupt()
            self._give_back()
            await self._until_idle(grace)
            for work in tuple(self._running):
                work.end("shutdown")
            self._hurry()
            await self._until_idle(STOP_PATIENCE)
            self._drained = True
            self._wake()
            self._room.ring()
            self._drain()
        await self._ended(self._task)

    # ---- what differs ----------------------------------------------------------------------------------------------

    async def _open(self) -> S:
        raise NotImplementedError

    def _loops(self, session: S) -> list[Coroutine[Any, Any, None]]:
        """What runs beside receiving: each returns once `_drained` is set and nothing is left to do."""
        raise NotImplementedError

    def _room_for(self, session: S) -> int:
        """How many messages more to receive now."""
        raise NotImplementedError

    async def _fetch(self, session: S, room: int) -> list[Received]:
        raise NotImplementedError

    def _place(self, session: S, received: Received, /) -> None:
        """Let it wait for its start, or settle it without one."""
        raise NotImplementedError

    def _work_for(self, session: S, entry: Entry, *, alone: bool = False) -> Work | None:
        """A run with its place taken (`_take_place`); None where *entry* has to wait, or needs no handler any more."""
        raise NotImplementedError

    def _clear(self) -> None:
        """Forget all that waits, because it is somebody else's now."""
        raise NotImplementedError

    def _give_back(self) -> None:
        """Release all that waits."""
        raise NotImplementedError

    def _pause(self) -> None: ...

    def _resume(self) -> None: ...

    def _hurry(self) -> None:
        """Let what waits to try something again give up instead."""

    def _drain(self) -> None:
        """Wake the loops that may wait for something else than the two bells."""

    # ---- a consumer and the next one -------------------------------------------------------------------------------

    async def _serve(self, session: S | None) -> None:
        while not self._stopping:
            if session is None:
                session = await self._reopening.again(self._open)
            self._session = session
            try:
                await self._consume(session)
            except Exception as error:  # noqa: BLE001 - whatever it is, this process goes on and the messages come again
                self.counters.reopened += 1
                self._reopening.failed(error)
            finally:
                self._forget(session)
                await self._reopening.close(session.consumer)
            session = None

    async def _consume(self, session: S) -> None:
        """Until it is stopped, or the consumer fails, which is raised."""
        create = asyncio.get_running_loop().create_task
        self._receiver = create(self._receive(session))
        tasks = [self._receiver, *(create(loop) for loop in self._loops(session))]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            self._receiver = None
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in tasks:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error

    def _forget(self, session: S) -> None:
        """What this session held is somebody else's now."""
        self.counters.lost += session.held
        session.held = 0
        self._clear()
        if self._suspect is None:
            self._alone.leave(self._wake)
        self._session = None

    # ---- receive ---------------------------------------------------------------------------------------------------

    async def _receive(self, session: S) -> None:
        while not self._stopping:
            room = 0 if self._paused else self._room_for(session)
            if room < 1:
                await self._room.wait()
                continue
            received = await self._next(session, room)
            if not received:
                continue
            self._reopening.worked()
            session.held += len(received)
            self.counters.received += len(received)
            for one in received:
                self._place(session, one)
            if self._stopping:
                self._give_back()
            elif self._paused:
                self._pause()
            self._bell.ring()

    async def _next(self, session: S, room: int) -> list[Received]:
        """Nothing where it was interrupted: cancelling a receive loses nothing."""
        self._receiving = True
        try:
            return await self._fetch(session, room)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self._interrupted or task is None or task.uncancel() > 0:
                raise
            return []
        finally:
            self._receiving = self._interrupted = False

    def _interrupt(self) -> None:
        if self._receiving and not self._interrupted and self._receiver is not None:
            self._interrupted = True
            self._receiver.cancel()
        self._room.ring()

    # ---- choose: what may start ------------------------------------------------------------------------------------

    def _choose(self, session: S) -> list[Work]:
        if self._paused or self._stopping:
            return _NOTHING
        waiting = self._waiting
        works: list[Work] = []
        free = self._concurrency - len(self._running)
        while free > 0 and waiting and not self._suspects and self._alone.open:
            if self._rate is not None and not self._may_start(self._rate):
                break
            work = self._work_for(session, waiting.popleft())
            if work is not None:
                works.append(work)
                free -= 1
        if self._suspects and not works:
            return self._choose_suspect(session)
        return works

    def _choose_suspect(self, session: S) -> list[Work]:
        """One at a time, and nothing beside it."""
        if self._suspect is not None or not self._alone.claim(self._wake):
            return _NOTHING
        work = self._suspect = self._work_for(session, self._suspects.popleft(), alone=True)
        if work is None:
            self._alone.leave(self._wake)
            self._bell.ring()
            return _NOTHING
        log.warning(
            "%s was under way when a worker ended, and is handled alone (id %s)",
            work.item.envelope.type, work.item.envelope.id,
        )  # fmt: skip
        return [work]

    def _may_start(self, rate: Rate) -> bool:
        wait = rate.wait()
        if wait > 0 and self._rate_timer is None:
            self._rate_timer = self._clock.call_later(wait, self._rate_allows)
        return wait == 0

    def _rate_allows(self) -> None:
        self._rate_timer = None
        self._bell.ring()

    def _take_place(self, work: Work, kind: Kind) -> None:
        work.kind = kind
        kind.running += 1
        self._running.add(work)
        self._alone.running += 1
        if self._rate is not None:
            self._rate.take(len(work.items) or 1)

    def _free_place(self, work: Work) -> None:
        """Another run may start."""
        if work not in self._running:
            return
        self._running.discard(work)
        work.task = None
        kind = work.kind
        kind.running -= 1
        if kind.waiting and not kind.full:
            self._waiting.appendleft(kind.waiting.popleft())
        alone = self._alone
        alone.running -= 1
        if not alone.open:
            if work is self._suspect:
                self._suspect = None
                alone.leave(self._wake)
            alone.ended()
        self._bell.ring()
        if self._idle is not None and not self._running:
            wake_up(self._idle)

    def _kind_of(self, type: str) -> Kind | None:
        return self._kinds.get(type) if type else self._only

    # ---- stop ------------------------------------------------------------------------------------------------------

    async def _until_idle(self, seconds: float) -> None:
        """Wait until no handler runs, at most *seconds*."""
        if not self._running or seconds <= 0:
            return
        idle = self._idle = asyncio.get_running_loop().create_future()
        timer = self._clock.call_later(seconds, lambda: wake_up(idle))
        try:
            await idle
        finally:
            timer.cancel()
            self._idle = None

    async def _ended(self, task: asyncio.Task[None]) -> None:
        """Wait for the last settlements, and let go of everything."""
        if self._session is None:
            task.cancel()  # it waits for the backend to come back
        timer = self._clock.call_later(STOP_PATIENCE, task.cancel)
        await asyncio.wait([task])
        timer.cancel()
        if self._rate_timer is not None:
            self._rate_timer.cancel()
        self._alone.forget(self._wake)
        self.runs.close()
        if self._own_threads is not None:
            self._own_threads.close()

    def _wake(self) -> None:
        self._bell.ring()


def _kinds_of(handlings: Sequence[Handling], runs: Runs) -> dict[str, Kind]:
    kinds: dict[Handling, Kind] = {}
    for handling in handlings:
        runs.check(handling)
        kinds[handling] = Kind(handling)
    return {name: kinds[handling] for name, handling in by_type(list(handlings)).items()}


def wake_up(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
