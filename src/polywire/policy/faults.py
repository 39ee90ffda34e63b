"""Trouble that is switched on between two services on purpose: which calls it meets, and what it does to them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from polywire.errors import BY_CODE, SetupError

ANY = "*"
DROPPED = ("request", "answer")
ERRORS = tuple(sorted(BY_CODE))
MAX_FAULTS = 100
"""At once in a system."""


class WrongFault(SetupError):
    """A fault that could not be switched on: *name* is the value at fault, and *problem* what is wrong with it."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"The fault was not switched on: its {name} {problem}")
        self.name = name
        self.problem = problem


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What goes wrong with calls from one service to another. Raises WrongFault for what cannot be."""

    target: str
    """The service that is called."""
    caller: str = ANY
    """The service that calls; `*` is each."""
    method: str | None = None
    """`shop.v1.Inventory/check_stock` or `.../CheckStock`; None is each."""
    endpoint: str | None = None
    """Only at this address of the target."""
    delay: float | None = None
    """Seconds before a call is sent, or a stream opened."""
    error: str | None = None
    """The code of the error that calls end with; nothing is sent."""
    drop: str | None = None
    """`request`: nothing is sent, and the caller waits until its deadline. `answer`: the call is made and what comes of
    it lost."""
    partition: bool = False
    """The target cannot be reached, as if nobody listened there."""
    bandwidth: float | None = None
    """Bytes per second that pass, requests and answers together."""
    share: float = 1.0
    """Of the calls, drawn by chance for each."""

    def __post_init__(self) -> None:
        if not self.target or self.target == ANY:
            raise WrongFault("target", f"is {self.target!r}. Name one service; `caller` may be '*'.")
        if not self.caller:
            raise WrongFault("caller", "is empty. Name a service, or '*' for each.")
        for name in ("delay", "bandwidth"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise WrongFault(name, f"is {value:g}. It has to be more than 0.")
        if not 0 < self.share <= 1:
            raise WrongFault("share", f"is {self.share:g}. It has to be more than 0 and at most 1.")
        if self.error is not None and self.error not in ERRORS:
            raise WrongFault("error", f"is {self.error!r}, which is no code. Choose one of: {', '.join(ERRORS)}.")
        if self.drop is not None and self.drop not in DROPPED:
            raise WrongFault("drop", f"is {self.drop!r}. Choose one of: {', '.join(DROPPED)}.")
        if not (self.delay or self.error or self.drop or self.partition or self.bandwidth):
            raise WrongFault("kind", "is missing. Give delay, error, drop, partition or bandwidth.")

    def between(self, caller: str, target: str) -> bool:
        """Whether it concerns calls from *caller* to *target* at all."""
        return self.target == target and self.caller in (ANY, caller)

    def meets(self, methods: tuple[str, str], endpoint: str, dice: Callable[[], float]) -> bool:
        """Whether a call of a method, by either of its names, to *endpoint* is met by it."""
        if self.method is not None and self.method not in methods:
            return False
        if self.endpoint is not None and self.endpoint != endpoint:
            return False
        return self.share >= 1.0 or dice() < self.share

    @property
    def effects(self) -> str:
        """`delay 0.5 s, error unavailable, to 10 % of the calls`."""
        parts = []
        if self.partition:
            parts.append("partition")
        if self.delay is not None:
            parts.append(f"delay {self.delay:g} s")
        if self.error is not None:
            parts.append(f"error {self.error}")
        if self.drop is not None:
            parts.append(f"drop {self.drop}")
        if self.bandwidth is not None:
            parts.append(f"bandwidth {self.bandwidth:g} bytes/s")
        if self.share < 1:
            parts.append(f"to {100 * self.share:g} % of the calls")
        return ", ".join(parts)

    @property
    def edge(self) -> str:
        """`orders -> inventory shop.v1.Inventory/CheckStock`."""
        words = [self.caller, "->", self.target]
        if self.method is not None:
            words.append(self.method)
        if self.endpoint is not None:
            words.append(f"at {self.endpoint}")
        return " ".join(words)


FIELDS: dict[str, type[Any]] = {
    "caller": str,
    "target": str,
    "method": str,
    "endpoint": str,
    "delay": float,
    "error": str,
    "drop": str,
    "partition": bool,
    "bandwidth": float,
    "share": float,
}
"""What can be said of a fault, and of which type it is."""
