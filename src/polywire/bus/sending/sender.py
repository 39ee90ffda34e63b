"""From a message to a confirmed envelope: options checked, envelope filled, sent, and the answer told."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

from polywire.bus.core import Envelope, EventLog, Fanout, TaskQueue, new_id
from polywire.bus.core.results import Results
from polywire.bus.sending.batch import Batch
from polywire.bus.sending.options import PLAIN, Options, apply, check, with_id
from polywire.bus.sending.pending import Pending
from polywire.bus.sending.target import Answers, Target, event_target, task_target
from polywire.bus.sending.wires import BusWires
from polywire.clock import SYSTEM_CLOCK, Clock
from polywire.codec import Format
from polywire.context import Call, _calling, _current, transaction_or_none
from polywire.contract import Contract, Event, Message, Task, event_of, service_of
from polywire.errors import (
    InvalidArgument,
    MessageRefused,
    NobodyListens,
    PublishInTransaction,
    PublishUnknown,
    Unsupported,
)
from polywire.policy.deadline import Deadlines

MAX_PENDING = 10_000
CONFIRM_TIMEOUT = 10.0
"""Seconds for a confirmation, where no deadline of the caller is shorter."""
CHUNK = 1_000
"""Messages that are handed to a backend at a time."""
GRACE = 0.25
"""Seconds for a backend's own answer at the deadline, which knows more than ours."""
HEARD_FOR = 5.0
"""Seconds for which a log is believed to have groups."""


class Sent:
    """How many messages of one type were confirmed, refused, left unknown, and wanted by nobody."""

    __slots__ = ("confirmed", "refused", "unheard", "unknown")

    def __init__(self) -> None:
        self.confirmed = 0
        self.refused = 0
        self.unknown = 0
        self.unheard = 0
        """Confirmed events that no group wanted."""


class _Confirmation:
    """Ends the waiting for a backend that does not keep to its time."""

    __slots__ = ("expired", "task")

    def __init__(self, task: asyncio.Task[Any] | None) -> None:
        self.task = task
        self.expired = False

    def expire(self) -> None:
        self.expired = True
        if self.task is not None:
            self.task.cancel()

    def taken_back(self) -> bool:
        """Whether we cancelled the task, and nobody else did. Our cancellation is over then."""
        return self.expired and self.task is not None and self.task.uncancel() == 0


class Sender:
    """Sends the tasks and events of one app. Shared by all its services; used from one event loop.

    A send returns once the backend has confirmed the message. It raises MessageRefused where the message was certainly
    not sent, PublishUnknown where nobody can say; sending it again with the same id is then safe behind the inbox.
    The caller's deadline bounds the waiting, never the work. At most *max_pending* messages are on their way at a time:
    further ones wait for their turn, and are refused at the deadline.
    """

    def __init__(
        self,
        source: str,
        *,
        tasks: BusWires[TaskQueue] | None = None,
        events: BusWires[EventLog | Fanout] | None = None,
        results: Results | None = None,
        clock: Clock = SYSTEM_CLOCK,
        format: Format = "json",
        confirm_timeout: float = CONFIRM_TIMEOUT,
        max_pending: int = MAX_PENDING,
        require_subscriber: bool = False,
    ) -> None:
        self.source = source
        self.results = results
        self.clock = clock
        self.counters: dict[str, Sent] = {}
        """By type of message."""
        self._tasks: BusWires[TaskQueue] = tasks or BusWires()
        self._events: BusWires[EventLog | Fanout] = events or BusWires()
        self._format: Format = format
        self._confirm_timeout = confirm_timeout
        self._pending = Pending(max_pending, clock)
        self._deadlines = Deadlines(clock)
        self._require_subscriber = require_subscriber
        self._heard: dict[str, float] = {}
        """Topics whose log has groups, and until when that is believed."""
        self._task_targets: dict[Task, Target] = {}
        self._event_targets: dict[type[Event], Target] = {}

    # -- set up

    def check(self, contracts: Iterable[type[Contract]] = (), events: Iterable[type[Event]] = ()) -> None:
        """Raises SetupError where a wire is missing, or does not keep what is declared. For the start of a service."""
        for contract in contracts:
            for task in service_of(contract).tasks.values():
                self.target_of(task)
        for event in events:
            self.topic_of(event)

    def target_of(self, task: Task) -> Target:
        target = self._task_targets.get(task)
        if target is None:
            made = task_target(task, self.queue_of(task), self._format)
            target = self._task_targets[task] = made
        return target

    def topic_of(self, event: type[Event]) -> Target:
        target = self._event_targets.get(event)
        if target is None:
            read = event_of(event)
            wire = self._events.of(read.topic, "events")
            target = self._event_targets[event] = event_target(read, wire, self._format)
        return target

    def queue_of(self, task: Task) -> TaskQueue:
        """The backend that *task* is sent to. Raises SetupError where there is none."""
        return self._tasks.of(task.service, "tasks")

    def close(self) -> None:
        """Forget the alarms. The backends are closed by who opened them."""
        self._deadlines.close()

    # -- tasks

    async def send(
        self, task: Task, message: Message | None, options: Options = PLAIN, *, wants_result: bool = False
    ) -> str:
        """Send one task, and return its id once it is durable."""
        envelope = self._task_envelope(task, message, options, self._origin(), wants_result)
        await self._confirmed(self.target_of(task), envelope)
        return envelope.id

    async def send_all(
        self,
        task: Task,
        messages: Sequence[Message],
        options: Options = PLAIN,
        *,
        ids: Sequence[str] | None = None,
        wants_result: bool = False,
    ) -> list[str]:
        """Send many, and return their ids once all are durable. Raises PartlySent where some are not."""
        target, origin = self.target_of(task), self._origin()
        batch = Batch(len(messages), ids, self.clock)
        for index, message in enumerate(messages):
            try:
                own = with_id(options, batch.ids[index])
                batch.add(index, target, self._task_envelope(task, message, own, origin, wants_result))
            except MessageRefused as error:
                batch.errors[index] = error
        await self._send_batch(batch)
        return batch.finished()

    def _task_envelope(
        self, task: Task, message: Message | None, options: Options, origin: Call | None, wants_result: bool
    ) -> Envelope:
        envelope = self._envelope(self.target_of(task), message, options, origin)
        if wants_result and task.response is not None and self.results is not None:
            envelope.reply_to = self.results.name
        return envelope

    # -- events

    async def publish(self, event: Event, options: Options = PLAIN, *, require_subscriber: bool | None = None) -> str:
        """Publish one event, and return its id once it is durable."""
        target = self._target_of_event(event)
        envelope = self._envelope(target, event, options, self._origin())
        requires = self._requires(require_subscriber)
        if requires:
            await self._require_group(target, envelope)
        try:
            await self._confirmed(target, envelope)
        except NobodyListens:
            if requires:
                raise
        return envelope.id

    async def publish_all(
        self,
        events: Sequence[Event],
        options: Options = PLAIN,
        *,
        ids: Sequence[str] | None = None,
        require_subscriber: bool | None = None,
    ) -> list[str]:
        """Publish many, and return their ids once all are durable. Raises PartlySent where some are not."""
        origin, requires = self._origin(), self._requires(require_subscriber)
        batch = Batch(len(events), ids, self.clock)
        for index, event in enumerate(events):
            target = self._target_of_event(event)
            try:
                envelope = self._envelope(target, event, with_id(options, batch.ids[index]), origin)
                if requires:
                    await self._require_group(target, envelope)
                batch.add(index, target, envelope)
            except MessageRefused as error:
                batch.errors[index] = error
        await self._send_batch(batch)
        if not requires:
            batch.errors = {i: error for i, error in batch.errors.items() if not isinstance(error, NobodyListens)}
        return batch.finished()

    def _target_of_event(self, event: Event) -> Target:
        target = self._event_targets.get(type(event))
        if target is None:
            if not isinstance(event, Event):
                raise TypeError(f"nothing was published: an event is wanted, not a {type(event).__qualname__}.")
            target = self.topic_of(type(event))
        return target

    def _requires(self, require_subscriber: bool | None) -> bool:
        return self._require_subscriber if require_subscriber is None else require_subscriber

    async def _require_group(self, target: Target, envelope: Envelope) -> None:
        """Raises NobodyListens where a log has no group. A fan-out says it by itself."""
        if target.log is None or target.topic is None:
            return
        now = self.clock.monotonic()
        if self._heard.get(target.topic, 0.0) > now:
            return
        if not await target.log.groups(target.topic):
            self._counted(target.type).refused += 1
            raise NobodyListens(
                f"{target.type} was not sent to the {target.place}, id {envelope.id!r}: no group reads it. "
                "Start or declare one, or publish without require_subscriber."
            )
        self._heard[target.topic] = now + HEARD_FOR

    # -- the envelope

    def _origin(self) -> Call | None:
        """The call or message that this one is sent from. Raises PublishInTransaction where nothing may be sent."""
        store = transaction_or_none()
        if store is not None:
            raise PublishInTransaction(
                f"Nothing was sent: a transaction of {store!r} is open, and the message would stay sent if it were "
                "rolled back. Send it after the transaction."
            )
        return _current.get()

    def _envelope(self, target: Target, message: Message | None, options: Options, origin: Call | None) -> Envelope:
        if type(message) is not target.message:
            _check_type(target, message)
        try:
            body = target.encode(message)
        except InvalidArgument as error:
            self._counted(target.type).refused += 1
            raise MessageRefused(f"{target.type} was not sent: it is not what its class says. {error}") from error
        now = self.clock.time()
        envelope = Envelope(
            new_id(now) if options.id is None else options.id,
            target.type,
            body,
            self.source,
            now,
            target.content_type,
            target.version,
            None if target.read_key is None else target.read_key(message),
            priority=target.priority,
        )
        if origin is not None:
            envelope.request_id = origin.request_id or None
            envelope.traceparent = origin.traceparent
            envelope.tracestate = origin.tracestate
            if origin.message is not None:
                envelope.causation_id = origin.message.id
        try:
            if options is not PLAIN:
                apply(target, envelope, options, now)
            check(target, envelope)
        except (MessageRefused, Unsupported):
            self._counted(target.type).refused += 1
            raise
        return envelope

    # -- on its way

    async def _confirmed(self, target: Target, envelope: Envelope) -> None:
        (error,) = await self._hand_over(target, [envelope], self._deadline())
        if error is not None:
            raise error

    async def _send_batch(self, batch: Batch) -> None:
        deadline = self._deadline()
        for target, places, envelopes in batch.chunks(min(CHUNK, self._pending.limit)):
            answers = await self._hand_over(target, envelopes, deadline)
            batch.errors.update({index: error for index, error in zip(places, answers, strict=True) if error})

    async def _hand_over(self, target: Target, envelopes: Sequence[Envelope], deadline: float) -> Answers:
        """Send these, which go to one place, and count what became of them."""
        count = len(envelopes)
        timeout = deadline - self.clock.monotonic()
        if timeout <= 0 or not (self._pending.take(count) or await self._pending.wait(count, timeout)):
            answers: Answers = [self._no_turn(target, envelope, timeout) for envelope in envelopes]
        else:
            try:
                answers = await self._answers(target, envelopes, deadline)
            finally:
                self._pending.give(count)
        self._count(target, answers)
        return answers

    async def _answers(self, target: Target, envelopes: Sequence[Envelope], deadline: float) -> Answers:
        timeout = deadline - self.clock.monotonic()
        confirmation = _Confirmation(asyncio.current_task())
        slot = self._deadlines.add(deadline + GRACE, confirmation)
        try:
            answers = await target.send(envelopes, timeout)
            confirmation.taken_back()
            return answers
        except asyncio.CancelledError:
            # Ours alone ends here; the caller's own goes on, also where both came.
            if not confirmation.taken_back():
                raise
            return [_unconfirmed(target, envelope, timeout) for envelope in envelopes]
        finally:
            slot.discard(confirmation)

    def _deadline(self) -> float:
        """When the caller stops waiting, on the monotonic clock."""
        now = self.clock.monotonic()
        deadline = now + self._confirm_timeout
        asked, call = _calling.get(), _current.get()
        if asked is not None and asked.timeout is not None:
            deadline = now + asked.timeout
        if call is not None and call.deadline is not None and call.deadline < deadline:
            deadline = call.deadline
        return deadline

    def _no_turn(self, target: Target, envelope: Envelope, timeout: float) -> MessageRefused:
        why = "the caller's deadline had passed"
        if timeout > 0:
            why = f"{self._pending.limit} on their way are the limit, and no place was free within {timeout:g} s"
        return MessageRefused(
            f"{target.type} was not sent to the {target.place}, id {envelope.id!r}: {why}. It may be sent again."
        )

    def _counted(self, type: str) -> Sent:
        counted = self.counters.get(type)
        if counted is None:
            counted = self.counters[type] = Sent()
        return counted

    def _count(self, target: Target, answers: Answers) -> None:
        counted = self._counted(target.type)
        for error in answers:
            if error is None:
                counted.confirmed += 1
            elif isinstance(error, NobodyListens):
                counted.unheard += 1
            elif isinstance(error, MessageRefused):
                counted.refused += 1
            else:
                counted.unknown += 1


def _check_type(target: Target, message: object) -> None:
    if target.message is None:
        if message is None:
            return
        wanted = "nothing"
    else:
        if isinstance(message, target.message):
            return
        wanted = f"a {target.message.__qualname__}"
    raise TypeError(f"{target.type} was not sent: it takes {wanted}, not a {type(message).__qualname__}.")


def _unconfirmed(target: Target, envelope: Envelope, timeout: float) -> PublishUnknown:
    return PublishUnknown(
        f"{target.type} was perhaps sent to the {target.place}: nobody confirmed it within {timeout:g} s. "
        f"Sending it again with id={envelope.id!r} is safe where its handlers use the inbox.",
        id=envelope.id,
    )
