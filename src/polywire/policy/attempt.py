"""How long a call, and one attempt of it, may take."""

from __future__ import annotations


def call_deadline(now: float, timeout: float | None, parent: float | None) -> float | None:
    """When a call has to be over: after *timeout* seconds, and never later than the call that it is part of."""
    if timeout is None:
        return parent
    deadline = now + timeout
    return deadline if parent is None or deadline < parent else parent


def attempt_deadline(now: float, attempt_timeout: float | None, call: float | None) -> float | None:
    """When an attempt that starts *now* has to be over: never later than its *call*, all attempts together."""
    return call_deadline(now, attempt_timeout, call)


def worth_starting(now: float, deadline: float | None, least: float = 0.0) -> bool:
    """Whether there is time for an attempt of *least* seconds; none is begun at its deadline or later."""
    return deadline is None or now + least < deadline
