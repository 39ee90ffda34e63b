"""What the end of a call says about the health of whoever was called."""

from __future__ import annotations

from enum import Enum

from polywire.errors import CallError, Cancelled, DataLoss, DeadlineExceeded, Internal, ResourceExhausted, Unavailable
from polywire.errors import Unknown as UnknownError


class Evidence(Enum):
    HEALTHY = "healthy"
    """It answered, be it with an error that is the caller's own fault."""
    SICK = "sick"
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
