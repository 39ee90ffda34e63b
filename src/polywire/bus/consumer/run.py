"""One run of a handler: decode > inbox > handler > verdict, in the context and the time that it has."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Sequence
from contextvars import copy_context
from typing import Any, Protocol

from polywire.bus.consumer.counters import Counters
from polywire.bus.consumer.handling import Handling, UnreadableBody
from polywire.bus.consumer.incoming import Incoming
from polywire.bus.consumer.verdict import ACK, STRAY_DELAY, TimeLimit, WorkerLost, clean, judge
from polywire.bus.core.envelope import Envelope
from polywire.bus.core.inbox import Inbox, UnderWay, _under_way
from polywire.bus.core.queue import Ack, Bury, Outcome, Release, RetryAfter
from polywire.clock import SYSTEM_CLOCK, Clock
from polywire.context import NO_METADATA, Call, _current
from polywire.errors import AlreadyDone, BatchFailed, Reject, RetryLater, SetupError
from polywire.policy.deadline import Deadlines, Slot
from polywire.threads import Threads
from polywire.wire.request_id import new_request_id

log = logging.getLogger("polywire.consumer")

RESULT_DELAY = 5.0
"""Seconds before the failure of a task is told again that could not be stored."""

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}").fullmatch


class Item(Protocol):
    """A message as a backend hands it out: a Delivery or a Record."""

    envelope: Envelope
    attempt: int

    @property
    def position(self) -> str: ...

    @property
    def generation(self) -> int: ...


class MessageLog(Protocol):
    """Where one line per run goes; `polywire.telemetry.message_log.MessageLog` is one."""

    def record(
        self,
        type: str,
        outcome: str,
        duration: float,
        destination: str,
        group: str | None,
        id: str,
        request_id: str,
        traceparent: str | None,
        attempt: int,
    ) -> None: ...


class Processes(Protocol):
    """Where handlers that keep a core busy run."""

    async def run(self, work: Work, dice: float) -> tuple[Outcome, str]:
        """Handle its message in a process, and let its time begin then. Returns what came of it, with its name for the
        log; raises WorkerLost where the process ended. Cancelling it kills the process."""
        ...


class Work:
    """A run of one handler, over one message, or over several in a batch."""

    __slots__ = (
        "call",
        "ended",
        "handling",
        "item",
        "items",
        "kind",
        "origin",
        "runs",
        "said",
        "slot",
        "started",
        "task",
    )

    def __init__(self, runs: Runs, handling: Handling, item: Item, items: Sequence[Item] = (), origin: Any = None):
        self.runs = runs
        self.handling = handling
        self.item = item
        """The message; of a batch the first one."""
        self.items = items
        """All of a batch; empty where it is none."""
        self.origin = origin
        """Where its messages came from. It and `kind` are the runner's own."""
        self.kind: Any = None
        self.task: asyncio.Task[Any] | None = None
        self.call: Call | None = None
        self.ended: str | None = None
        """Why it was cancelled by us: `deadline`, `shutdown` or `withdrawn`."""
        self.said = ""
        """How it ended, by the name that it has in logs."""
        self.started = 0.0
        self.slot: Slot = set()

    def expire(self) -> None:
        """Its time is over."""
        if self.handling.in_thread:
            self.runs.overdue(self)
        else:
            self.end("deadline")

    def end(self, why: str) -> None:
        """Cancel it, once. One that did not begin yet will find out by itself."""
        if self.ended is None:
            self.ended = why
            if self.call is not None and self.task is not None:
                self.call.ended_by = why
                self.task.cancel()

    def extend(self, seconds: float) -> None:
        """Let it go on for *seconds* more. To be called from the event loop."""
        call, deadlines = self.call, self.runs.deadlines
        if call is None or call.deadline is None or self.ended is not None:
            return
        self.slot.discard(self)
        call.deadline += seconds
        self.slot = deadlines.add(call.deadline, self)

    def hold(self) -> None:
        """Let its time stand still until `begin`."""
        self.slot.discard(self)

    def begin(self) -> None:
        """Let its time begin now."""
        if self.call is not None and self.ended is None:
            self.started = self.runs.now()
            self.call.deadline = self.started + self.handling.timeout
            self.slot = self.runs.deadlines.add(self.call.deadline, self)

    def time_limit(self) -> TimeLimit:
        given = 0.0
        if self.call is not None and self.call.deadline is not None:
            given = self.call.deadline - self.started
        if self.handling.runs_in == "process":
            return WorkerLost(f"{self.handling.title} was killed at its time limit of {given:g} s, with its process.")
        return TimeLimit(
            f"{self.handling.title} was stopped at its time limit of {given:g} s. It may have done part of its work."
        )


class Runs:
    """Runs the handlers of one queue or one group, each in a context of its own, and says what came of it."""

    def __init__(
        self,
        destination: str,
        group: str | None,
        *,
        wire: str = "",
        clock: Clock = SYSTEM_CLOCK,
        inbox: Inbox | None = None,
        threads: Threads | None = None,
        processes: Processes | None = None,
        message_log: MessageLog | None = None,
    ) -> None:
        self.counters = Counters()
        self.average = 1.0
        """Of the durations of late, in seconds. It starts high: what is not known yet is taken for slow."""
        self.deadlines = Deadlines(clock)
        self._destination = destination
        self._group = group
        self._inbox_group = destination if group is None else group
        self._wire = wire
        self._clock = clock
        self.now = clock.monotonic
        self._inbox = inbox
        self._threads = threads
        self._processes = processes
        self._message_log = message_log

    def check(self, handling: Handling) -> None:
        """Raises SetupError where something is missing that it needs."""
        for wanted, missing, what in (
            (handling.once, self._inbox is None, "once=True, but there is no inbox. Give the app a store."),
            (handling.in_thread, self._threads is None, "a plain `def`, but there are no threads."),
            (handling.runs_in == "process", self._processes is None, "runs_in='process', but there are no processes."),
        ):
            if wanted and missing:
                raise SetupError(f"{handling.title} cannot be run: it is {what}")

    async def one(self, work: Work) -> Outcome:
        """Run it, over one message. Raises nothing but what no handler may raise, such as SystemExit."""
        handling = work.handling
        envelope = work.item.envelope
        call = self._enter(work, envelope)
        self.counters.started += 1
        said = "done"
        try:
            if work.ended is not None:
                raise asyncio.CancelledError
            if handling.runs_in == "process":
                outcome, said = await self._in_process(work)
            else:
                message = handling.decode(envelope)
                if handling.once and await self._seen(work):
                    raise AlreadyDone
                arguments = () if handling.empty else (message,)
                if handling.in_thread:
                    value = await self._in_thread(handling.function, arguments)
                else:
                    value = await handling.function(*arguments)
                if handling.once:
                    await self._record(work)
                if handling.answers is not None:
                    await handling.answers.done(envelope, value)
                outcome = ACK
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is judged
            outcome, said = self._failed(work, error)
            if handling.answers is not None and isinstance(outcome, Bury):
                outcome = await self.told(handling, envelope, outcome, error)
        self._leave(work, call)
        work.said = said
        self._account(work, work.item, said)
        return outcome

    async def batch(self, work: Work) -> list[Outcome]:
        """Run it, over several messages: an outcome for each. Raises as `one`."""
        call = self._enter(work, work.item.envelope)
        self.counters.started += len(work.items)
        outcomes: list[Outcome | None] = [None] * len(work.items)
        try:
            if work.ended is not None:
                raise asyncio.CancelledError
            messages = await self._decode_all(work, outcomes)
            if messages:
                if work.handling.in_thread:
                    await self._in_thread(work.handling.function, (messages,))
                else:
                    await work.handling.function(messages)
                if work.handling.once:
                    await self._record(work)
            found = [ACK if outcome is None else outcome for outcome in outcomes]
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is judged
            found = self._batch_failed(work, error, outcomes)
        self._leave(work, call)
        for item, outcome in zip(work.items, found, strict=True):
            self._account(work, item, said_of(outcome))
        return found

    # ---- the steps -------------------------------------------------------------------------------------------------

    def _enter(self, work: Work, envelope: Envelope) -> Call:
        """Put the call into the context of the running task, and set the alarm of its time limit."""
        work.started = started = self.now()
        deadline = started + work.handling.timeout
        call = Call(
            envelope.type, deadline, envelope.request_id or new_request_id(), NO_METADATA, "", self._wire, self._clock
        )
        call.attempt = work.item.attempt
        if envelope.traceparent is not None and _TRACEPARENT(envelope.traceparent):
            call.traceparent = envelope.traceparent
            call.tracestate = envelope.tracestate
        if not work.items:
            call.message = Incoming(work)
        work.call = call
        _current.set(call)
        group = self._inbox_group
        if not work.items:
            _under_way.set((UnderWay(group, envelope.source, envelope.id, work.item.generation),))
        else:
            found = ((item.envelope, item.generation) for item in work.items)
            _under_way.set(tuple(UnderWay(group, e.source, e.id, generation) for e, generation in found))
        work.slot = self.deadlines.add(deadline, work)
        return call

    def _leave(self, work: Work, call: Call) -> None:
        work.slot.discard(work)
        # The task's context holds the call: without this, every run is left to the garbage collector.
        work.call = None
        call.message = None

    async def _seen(self, work: Work) -> bool:
        return self._inbox is not None and await self._inbox.seen(_under_way.get()[0])

    async def _record(self, work: Work) -> None:
        """Write the rows that no transaction wrote."""
        if self._inbox is not None:
            for message in _under_way.get():
                if not message.recorded:
                    await self._inbox.record(message)

    async def _in_thread(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if self._threads is None:
            raise SetupError("There are no threads.")  # `check` said so before
        return await self._threads.run(copy_context().run, function, *arguments)

    async def _in_process(self, work: Work) -> tuple[Outcome, str]:
        if self._processes is None:
            raise SetupError("There are no processes.")  # `check` said so before
        outcome, said = await self._processes.run(work, self._clock.random())
        if said == "duplicate":
            self.counters.duplicates += 1
        return outcome, said

    async def _decode_all(self, work: Work, outcomes: list[Outcome | None]) -> list[Any]:
        """The messages of a batch to be handled; the others have their outcome."""
        messages: list[Any] = []
        left: list[UnderWay] = []
        for index, (item, message) in enumerate(zip(work.items, _under_way.get(), strict=True)):
            try:
                decoded = work.handling.decode(item.envelope)
            except UnreadableBody as error:
                outcomes[index] = self._undecodable(item, error)
                continue
            if self._inbox is not None and await self._inbox.seen(message):
                outcomes[index] = ACK
                self.counters.duplicates += 1
                continue
            messages.append(decoded)
            left.append(message)
        _under_way.set(tuple(left))
        return messages

    # ---- what came of it -------------------------------------------------------------------------------------------

    def _failed(self, work: Work, error: BaseException) -> tuple[Outcome, str]:
        if isinstance(error, AlreadyDone):
            self.counters.duplicates += 1
            return ACK, "duplicate"
        if isinstance(error, UnreadableBody):
            return self._undecodable(work.item, error), "undecodable"
        outcome = self._judge(work, work.item, self._ended(work, error))
        return outcome, said_of(outcome)

    def _ended(self, work: Work, error: BaseException) -> BaseException:
        """The error, or the time limit where that is what cancelled the handler."""
        if not isinstance(error, asyncio.CancelledError) or work.ended is None:
            return error
        if work.task is not None:
            work.task.uncancel()  # the cancellation ends here: the message has still to be settled
        return work.time_limit() if work.ended == "deadline" else error

    def _judge(self, work: Work, item: Item, error: BaseException, *, tell: bool = True) -> Outcome:
        backoff, attempt = work.handling.backoff, item.attempt
        outcome = judge(error, ended=work.ended, attempt=attempt, backoff=backoff, dice=self._clock.random())
        if tell:
            self._tell(work, item, error, outcome)
        return outcome

    def _tell(self, work: Work, item: Item, error: BaseException, outcome: Outcome) -> None:
        envelope = item.envelope
        # A traceback says nothing about errors that a handler raises to be understood.
        raised = None if isinstance(error, TimeLimit | RetryLater | Reject) else error
        if isinstance(outcome, RetryAfter):
            log.warning(
                "%s failed in attempt %d of %d and is tried again in %.3g s (id %s): %s",
                envelope.type, item.attempt, work.handling.backoff.attempts, outcome.delay, envelope.id, outcome.error,
                exc_info=raised,
            )  # fmt: skip
        elif isinstance(outcome, Bury) and work.handling.at_most_once:
            log.error("%s failed and is lost, as it is at_most_once (id %s): %s",
                envelope.type, envelope.id, outcome.error, exc_info=raised,
            )  # fmt: skip
        elif isinstance(outcome, Bury):
            log.error(
                "%s is given up in attempt %d of %d and goes to the dead letters (id %s): %s",
                envelope.type, item.attempt, work.handling.backoff.attempts, envelope.id, outcome.error,
                exc_info=raised,
            )  # fmt: skip
        elif isinstance(outcome, Release) and outcome.delay:
            log.warning(
                "%s was cancelled by itself or by something that it called, which is no failure; it is handled again "
                "in %g s (id %s)", envelope.type, outcome.delay, envelope.id, exc_info=raised,
            )  # fmt: skip

    def _undecodable(self, item: Item, error: UnreadableBody) -> Bury:
        envelope = item.envelope
        log.error("%s goes to the dead letters (id %s): %s", envelope.type, envelope.id, error)
        return Bury("undecodable", clean(str(error)))

    def _batch_failed(self, work: Work, error: BaseException, outcomes: list[Outcome | None]) -> list[Outcome]:
        """An outcome for each, where *outcomes* has those of messages that the handler did not get."""
        given = [index for index, outcome in enumerate(outcomes) if outcome is None]
        error = self._ended(work, error)
        if isinstance(error, AlreadyDone) and len(given) > 1:
            # One of them was done meanwhile, and nobody says which: next time `seen` will.
            return [Release(STRAY_DELAY) if outcome is None else outcome for outcome in outcomes]
        if work.ended == "shutdown" or not isinstance(error, BatchFailed):
            return self._all_failed(work, error, outcomes)
        found: list[Outcome] = [ACK if outcome is None else outcome for outcome in outcomes]
        for place, failure in error.errors.items():
            if not 0 <= place < len(given):
                return self._batch_failed(work, _no_such_index(work, place, len(given)), outcomes)
            index = given[place]
            found[index] = self._judge(work, work.items[index], failure)
        return found

    def _all_failed(self, work: Work, error: BaseException, outcomes: list[Outcome | None]) -> list[Outcome]:
        found: list[Outcome] = []
        told = False
        for item, outcome in zip(work.items, outcomes, strict=True):
            if outcome is None:
                outcome = self._judge(work, item, error, tell=not told)
                told = True
            found.append(outcome)
        return found

    def overdue(self, work: Work) -> None:
        """A thread cannot be stopped: this tells somebody, and its message stays ours until it returns."""
        self.counters.overdue += 1
        log.error(
            "%s runs in a thread beyond its time limit of %g s and cannot be stopped; its message is held until it "
            "returns (id %s)", work.handling.title, work.handling.timeout, work.item.envelope.id,
        )  # fmt: skip

    async def told(
        self, handling: Handling, envelope: Envelope, outcome: Bury, error: BaseException | None = None
    ) -> Outcome:
        """*outcome*, once whoever waits for a result was told of it. Where that fails, it is told again later."""
        if handling.answers is None:
            return outcome
        try:
            await handling.answers.given_up(envelope, outcome.reason, error)
        except Exception as failure:
            log.warning("the failure of %s could not be stored (id %s)", envelope.type, envelope.id, exc_info=failure)
            return RetryAfter(RESULT_DELAY, outcome.error)
        return outcome

    def _account(self, work: Work, item: Item, said: str) -> None:
        duration = self.now() - work.started
        self.counters.seconds += duration
        self.average += (duration - self.average) * 0.1
        if self._message_log is not None:
            envelope = item.envelope
            self._message_log.record(
                envelope.type,
                said,
                duration,
                self._destination,
                self._group,
                envelope.id,
                envelope.request_id or "",
                envelope.traceparent,
                item.attempt,
            )

    def close(self) -> None:
        self.deadlines.close()


_SAID: dict[type, str] = {Ack: "done", RetryAfter: "retry", Release: "released"}


def said_of(outcome: Outcome) -> str:
    """An outcome by the name that it has in logs."""
    return outcome.reason if isinstance(outcome, Bury) else _SAID[type(outcome)]


def _no_such_index(work: Work, place: int, count: int) -> ValueError:
    return ValueError(
        f"{work.handling.title} raised BatchFailed for the message at index {place}, but the batch had {count}. "
        "All of it counts as failed."
    )
