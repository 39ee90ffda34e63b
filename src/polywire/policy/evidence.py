"""What the end of a call says about the health of whoever was called."""

from __future__ import annotations

from enum import Enum

from polywire.errors import (
    DO_NOT_RETRY,
    CallError,
    Cancelled,
    DataLoss,
    DeadlineExceeded,
    Internal,
    ResourceExhausted,
    Unavailable,
)
from polywire.errors import Unknown as UnknownError


class Evidence(Enum):
    HEALTHY = "healthy"
    """It answered, be it with an error that is the caller's own fault."""
    SICK = "sick"
    LATE = "late"
    """Of a target as a whole: no answer came in time. It may be down, or have more to do than it can."""
    NONE = "none"
    """Nothing was learnt: the call was given up, turned away with pushback, or failed here."""


def evidence(error: BaseException) -> Evidence:
    """What *error* says of whoever was called.

    Being turned away (`resource_exhausted`) is no sickness: a service at its limit sheds so that the calls it accepts
    are answered, and refusing those as well would take all of its work away. Cancellation, and whatever is not an
    error of a call, says nothing.
    """
    if isinstance(error, Unavailable | DeadlineExceeded | Internal | UnknownError | DataLoss):
        return Evidence.SICK
    if isinstance(error, CallError) and not isinstance(error, ResourceExhausted | Cancelled):
        return Evidence.HEALTHY
    return Evidence.NONE


def evidence_of_target(error: BaseException) -> Evidence:
    """What *error* says of a target as a whole, all of its endpoints together.

    One that answers that nobody need try again is up, and keeps others from trying: its own calls to somebody else
    failed, whose breaker is its affair. Were that held against it, each service on the way would stay closed to its
    callers for a while after the next one is open again.
    """
    if isinstance(error, Unavailable | DeadlineExceeded) and error.retry_after == DO_NOT_RETRY:
        return Evidence.NONE
    if isinstance(error, DeadlineExceeded):
        return Evidence.LATE
    return evidence(error)
