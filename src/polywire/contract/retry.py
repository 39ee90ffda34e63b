"""How often something that failed is tried again, and how long to wait in between."""

from __future__ import annotations

from dataclasses import dataclass

from polywire.errors import ContractError

Kinds = tuple[type[BaseException], ...]


def _are_exceptions(kinds: object) -> bool:
    return isinstance(kinds, tuple) and all(
        isinstance(kind, type) and issubclass(kind, BaseException) for kind in kinds
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """A policy as it is declared, for calls and for messages. What is None is left to whoever tries.

    The wait before the n-th retry is drawn evenly from 0 to ``min(cap, base * 2**(n-1))`` seconds (the "full jitter" of
    the AWS Architecture Blog, "Exponential Backoff And Jitter"), so that what failed together does not come back
    together.
    """

    attempts: int | None = None
    """The first one included: 1 switches retrying off. None: 3 for calls, 5 for messages."""
    base: float | None = None
    """Seconds. None: 0.05 for calls, 1 for messages."""
    cap: float | None = None
    """Seconds. None: 2 for calls, 300 for messages."""
    retry_on: Kinds = ()
    """Of messages: only these exceptions are worth another attempt; all are where it is empty."""
    give_up_on: Kinds = ()
    """Of messages: these exceptions end the attempts at once, also where `retry_on` has them."""

    def __post_init__(self) -> None:
        if self.attempts is not None and self.attempts < 1:
            raise ContractError(f"Retry(attempts={self.attempts!r}): the first attempt counts, so there is at least 1.")
        for name, seconds in (("base", self.base), ("cap", self.cap)):
            if seconds is not None and not seconds >= 0:
                raise ContractError(f"Retry({name}={seconds!r}): a wait is a number of seconds, 0 or more.")
        for name, kinds in (("retry_on", self.retry_on), ("give_up_on", self.give_up_on)):
            if not _are_exceptions(kinds):
                raise ContractError(f"Retry({name}={kinds!r}): give a tuple of exception classes, {name}=(OSError,).")

    def over(self, usual: Backoff) -> Backoff:
        """This policy with what it leaves open taken from *usual*."""
        return Backoff(
            attempts=usual.attempts if self.attempts is None else self.attempts,
            base=usual.base if self.base is None else self.base,
            cap=usual.cap if self.cap is None else self.cap,
            retry_on=self.retry_on or usual.retry_on,
            give_up_on=self.give_up_on or usual.give_up_on,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """A policy with nothing left open. Made by `Retry.over`."""

    attempts: int
    """The first one included."""
    base: float
    cap: float
    retry_on: Kinds = ()
    give_up_on: Kinds = ()

    def delay(self, retry: int, dice: float) -> float:
        """Seconds before the *retry*-th retry (1 is the first), for *dice* in [0, 1)."""
        # 2.0**1024 would overflow, and no cap is that far away.
        return dice * min(self.cap, self.base * 2.0 ** min(retry - 1, 64))

    def repeats(self, error: BaseException) -> bool:
        """Whether *error* of a message's handler is worth another attempt, however many there were."""
        if isinstance(error, self.give_up_on):
            return False
        return not self.retry_on or isinstance(error, self.retry_on)


FOR_CALLS = Backoff(attempts=3, base=0.05, cap=2.0)
FOR_MESSAGES = Backoff(attempts=5, base=1.0, cap=300.0)
