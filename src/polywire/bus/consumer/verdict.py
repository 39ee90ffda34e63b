"""What becomes of a message whose handler raised: again, given up, released, or done after all."""

from __future__ import annotations

import asyncio
from typing import Literal

from polywire.bus.core.queue import Ack, Bury, Outcome, Release, RetryAfter
from polywire.contract.retry import Backoff
from polywire.errors import AlreadyDone, BatchFailed, Reject, RetryLater

MAX_ERROR = 2000
"""Characters of an error that are kept with a message."""
STRAY_DELAY = 1.0
"""Seconds before a message is handled again whose handler was cancelled by nobody that we know of."""

ACK = Ack()
RELEASE = Release()

Ending = Literal["", "deadline", "shutdown", "withdrawn"]


class TimeLimit(Exception):
    """A handler was stopped at its time limit. Always worth another attempt."""

    reason = "attempts"


class WorkerLost(TimeLimit):
    """The process that a handler ran in is gone, and with it the handler."""

    reason = "worker_lost"


def judge(error: BaseException, *, ended: str | None, attempt: int, backoff: Backoff, dice: float) -> Outcome:
    """The outcome of a run that ended with *error*. Raises what is no handler's to raise, such as SystemExit.

    *ended*: why we cancelled it, None where we did not. *attempt*: which one it was. *dice* in [0, 1).
    """
    if isinstance(error, AlreadyDone):
        return ACK
    if ended in ("shutdown", "withdrawn"):
        return RELEASE
    if isinstance(error, asyncio.CancelledError):
        return Release(STRAY_DELAY)
    if not isinstance(error, Exception):
        raise error
    if isinstance(error, Reject):
        return Bury("rejected", clean(error.reason))
    text = error_text(error)
    reason = error.reason if isinstance(error, TimeLimit) else "attempts"
    if not isinstance(error, TimeLimit | RetryLater | BatchFailed) and not backoff.repeats(error):
        return Bury("rejected", text)
    if attempt >= backoff.attempts:
        return Bury(reason, text)
    after = error.after if isinstance(error, RetryLater) else None
    return RetryAfter(backoff.delay(attempt, dice) if after is None else max(0.0, after), text)


def error_text(error: BaseException) -> str:
    """Type and message, bounded and fit to be stored."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - an error that cannot say what it is is still an error
        text = "(its text could not be made)"
    if isinstance(error, TimeLimit):
        return clean(text)
    return clean(f"{type(error).__name__}: {text}" if text else type(error).__name__)


def clean(text: str) -> str:
    """At most 2,000 characters, all of which every backend can encode."""
    text = text if len(text) <= MAX_ERROR else text[: MAX_ERROR - 3] + "..."
    return text.encode("utf-8", "replace").decode().replace("\x00", "\\0")
