"""What is left in the sender's hand of a task that is done later."""

from __future__ import annotations

import asyncio
from typing import Any, Generic, TypeVar, cast

from polywire.bus.core.queue import Withdrawing
from polywire.bus.core.results import cancelled, result_key, value_of
from polywire.bus.sending.sender import Sender
from polywire.codec.failures import as_declared
from polywire.context import calling_or_none, current_or_none
from polywire.contract import Task
from polywire.errors import CallError, DeadlineExceeded, SetupError, Unsupported

R = TypeVar("R", covariant=True)


class Receipt(Generic[R]):
    """A task that was sent: wait for its result, take it back, or let it wait longer.

    It holds nothing but names: `receipt(self.images.resize, id)` makes another one from the id, in any process.
    """

    def __init__(self, sender: Sender, task: Task, id: str) -> None:
        self.id = id
        """Of the message."""
        self._sender = sender
        self._task = task

    async def result(self, *, timeout: float | None = None) -> R:
        """What the task returned, as soon as it is done.

        Raises the error of its contract that it failed with, Cancelled where it was taken back, and DeadlineExceeded
        where it is not done within *timeout* seconds, or by the deadline of the call under way. It then goes on, and
        may be asked again.
        """
        _refuse_without_result(self._task)
        results = self._sender.results
        if results is None:
            raise SetupError(
                f"The result of {self._task.full_name} cannot be waited for: there is no store of results. "
                "Name one in the system file, [wires] schedule = 'sqlite:.polywire/schedule.db'."
            )
        seconds = self._time_for(timeout)
        outcome = await results.wait(result_key(self._task.full_name, self.id), timeout=seconds)
        if outcome is None:
            raise DeadlineExceeded(
                f"{self._task.full_name} has no result after {seconds:g} s, id {self.id!r}. It may be waiting or "
                f"running still; a result is kept for {self._task.result_ttl:g} s."
            )
        try:
            value: R = value_of(outcome, self._task.full_name, self._task.response)
        except CallError as error:
            raise as_declared(error, self._task) from None
        return value

    def _time_for(self, timeout: float | None) -> float:
        """Seconds to wait: what was asked for, within the deadline of the call under way."""
        asked, call = calling_or_none(), current_or_none()
        seconds = timeout
        if seconds is None:
            seconds = self._task.result_ttl if asked is None or asked.timeout is None else asked.timeout
        left = None if call is None else call.time_left()
        return max(0.0, seconds if left is None else min(seconds, left))

    async def cancel(self) -> bool:
        """Take the task back. False where that is too late: it is done, or dead; or it runs, and the backend lacks
        `withdraw` among its guarantees.

        Where it has it, the handler of a task that runs is cancelled, in whatever process, and is not started again;
        what it did until then is done. One that does not let itself be cancelled, as in a thread, goes on for nothing.
        """
        queue = self._sender.queue_of(self._task)
        self._refuse_without_cancel(queue.guarantees.cancel, queue.guarantees.backend)
        if queue.guarantees.withdraw:
            taken = await cast(Withdrawing, queue).withdraw(self._task.queue, self.id)
        else:
            taken = await queue.cancel(self._task.queue, self.id)
        if taken and self._task.response is not None and self._sender.results is not None:
            key = result_key(self._task.full_name, self.id)
            await self._sender.results.put(key, cancelled(self._task.full_name), ttl=self._task.result_ttl)
        return taken

    async def move(self, not_before: float) -> bool:
        """Let the task wait until *not_before*, in seconds since the epoch. False where it does not wait (any more)."""
        queue = self._sender.queue_of(self._task)
        self._refuse_without_cancel(queue.guarantees.cancel, queue.guarantees.backend)
        return await queue.move(self._task.queue, self.id, not_before)

    def _refuse_without_cancel(self, possible: bool, backend: str) -> None:
        if not possible:
            raise Unsupported(
                f"{self._task.full_name} was not taken back or moved, id {self.id!r}: {backend!r} cannot find a "
                "waiting message by its id. Choose another wire for its tasks."
            )

    def __repr__(self) -> str:
        return f"Receipt({self._task.full_name!r}, {self.id!r})"


class DoneReceipt(Receipt[R]):
    """Of a task that was done at once, by a fake of a test."""

    def __init__(self, task: Task | None, id: str, value: Any) -> None:
        self.id = id
        self._declared = task
        self._value: R = value

    async def result(self, *, timeout: float | None = None) -> R:
        if self._declared is not None:
            _refuse_without_result(self._declared)
        await asyncio.sleep(0)
        return self._value

    async def cancel(self) -> bool:
        return False

    async def move(self, not_before: float) -> bool:
        return False

    def __repr__(self) -> str:
        return f"Receipt(done, {self.id!r})"


def _refuse_without_result(task: Task) -> None:
    if task.response is None:
        raise TypeError(
            f"{task.full_name} has no result to wait for: it returns None. Let it return a message if its end matters."
        )
