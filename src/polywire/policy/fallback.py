"""What a caller gets in place of an error."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

from polywire.contract.policies import NOTHING, Fallback


class LastGood:
    """The last good answer to each of *size* questions, for *age* seconds.

    Answers are copied when they come and when they go, so that no caller changes another's.
    """

    def __init__(self, size: int, age: float, copied: Callable[[Any], Any] = copy.deepcopy) -> None:
        self._size = size
        self._age = age
        self._copied = copied
        self._answers: OrderedDict[Hashable, tuple[float, Any]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._answers)

    def remember(self, key: Hashable, answer: Any, now: float) -> None:
        """Keep *answer* as the last good one; the question that was not answered for longest is forgotten for it."""
        self._answers[key] = (now, self._copied(answer))
        self._answers.move_to_end(key)
        if len(self._answers) > self._size:
            self._answers.popitem(last=False)

    def find(self, key: Hashable, now: float) -> Any:
        """The answer to *key*, or NOTHING where there is none that is young enough."""
        at, answer = self._answers.get(key, (0.0, NOTHING))
        if answer is NOTHING:
            return NOTHING
        if now - at > self._age:
            del self._answers[key]
            return NOTHING
        return self._copied(answer)


class Fallbacks:
    """The state behind a `Fallback` of one method.

    The *key* of a call is its request as it was encoded together with its principal: without that one user would see
    the last good answer of another.
    """

    def __init__(self, policy: Fallback, last_good: LastGood | None = None) -> None:
        """*last_good*: what remembers answers, where others share it."""
        self.policy = policy
        self.answered = 0
        """How often it gave an answer."""
        if last_good is None and policy.last_good is not None:
            last_good = LastGood(policy.remember, policy.last_good)
        self._last_good = last_good

    def succeeded(self, key: Hashable, answer: Any, now: float) -> None:
        if self._last_good is not None:
            self._last_good.remember(key, answer, now)

    def instead(self, key: Hashable, request: Any, error: BaseException, now: float) -> Any:
        """What the caller gets instead of *error*: an answer, an awaitable where the function made one, or NOTHING.

        NOTHING: the error stands. What the function raises goes to the caller, with *error* as its context.
        """
        policy = self.policy
        if not policy.enabled or not isinstance(error, policy.on):
            return NOTHING
        found = NOTHING if self._last_good is None else self._last_good.find(key, now)
        if found is NOTHING:
            found = self._declared(request, error)
        if found is not NOTHING:
            self.answered += 1
        return found

    def _declared(self, request: Any, error: BaseException) -> Any:
        if self.policy.function is not None:
            return self.policy.function(request, error)
        return NOTHING if self.policy.value is NOTHING else copy.deepcopy(self.policy.value)
