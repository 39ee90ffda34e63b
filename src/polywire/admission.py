"""Who may call: `@allow` beside the code that it guards, and what checks a call before its body is read."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from polywire.context import Call
from polywire.errors import PermissionDenied, SetupError, Unauthenticated

Guarded = TypeVar("Guarded", bound=Callable[..., Any])
Rule = Callable[[Call], bool]
"""Whether a call may go on. It must not block; anything but True is a refusal."""
Admit = Callable[[Call], None]
"""Lets a call pass, or raises Unauthenticated or PermissionDenied."""

_MARK = "__allow__"


class Authenticator(Protocol):
    """Turns the credentials of a call into the identity of its caller."""

    def caller_of(self, call: Call) -> str | None:
        """The service that `call.credentials` or `call.peer_certificate` prove; None where they are missing or wrong.

        Called before every handler, so it must not block; tokens are compared in constant time.
        """
        ...


@dataclass(frozen=True, slots=True)
class Allowed:
    """One `@allow`: callers by name, or a function."""

    names: frozenset[str] = frozenset()
    rule: Rule | None = None

    def __call__(self, call: Call) -> bool:
        if self.rule is not None:
            return self.rule(call) is True
        return call.caller in self.names


def allow(*who: str | Rule) -> Callable[[Guarded], Guarded]:
    """Decorator of a service's class or method: only *who* may call it; everybody else gets `permission_denied`.

    *who* are names of callers, as tokens or certificates prove them, or one function of the `Call` that returns True
    for those who may go on: `@allow("orders", "gateway")`, `@allow(lambda call: call.principal == "root")`. It runs
    once the caller is known and before the body is read, so it must not block.

    Of several that apply (to the method, to its class, to what they override, in the system file) each has to allow a
    call. Raises SetupError for what could never be asked.
    """
    allowed = _allowed(who)

    def mark(guarded: Guarded) -> Guarded:
        if not _is_guardable(guarded):
            raise SetupError(f"@allow was put on {guarded!r}. It belongs on a service's class, or on a method of it.")
        setattr(guarded, _MARK, (*vars(guarded).get(_MARK, ()), allowed))
        return guarded

    return mark


def _is_guardable(what: object) -> bool:
    return isinstance(what, type) or inspect.isfunction(what)


def _allowed(who: tuple[str | Rule, ...]) -> Allowed:
    if not who:
        raise SetupError('@allow() would let nobody in. Name the callers, `@allow("orders")`, or give a function.')
    names = [name for name in who if isinstance(name, str) and name]
    if len(names) == len(who):
        return Allowed(frozenset(names))
    rule = who[0]
    if len(who) > 1 or not callable(rule):
        raise SetupError(f"@allow({', '.join(map(repr, who))}) mixes things. Give names of callers, or one function.")
    if inspect.iscoroutinefunction(rule):
        raise SetupError("@allow was given an `async` function, which could not be waited for. Give a plain one.")
    return Allowed(rule=rule)


def rules_of(cls: type, attribute: str) -> tuple[Allowed, ...]:
    """What *cls* and its bases say about who may call *attribute*: a subclass adds, and takes nothing away."""
    rules: list[Allowed] = []
    for base in cls.__mro__:
        rules += vars(base).get(_MARK, ())
        rules += getattr(vars(base).get(attribute), _MARK, ())
    return tuple(dict.fromkeys(rules))


def check_guarded(cls: type, rpcs: Collection[str]) -> None:
    """Raise SetupError where *cls* guards a method that is none of its *rpcs*, and would be run unasked."""
    for base in cls.__mro__:
        for attribute, function in vars(base).items():
            if attribute not in rpcs and not attribute.startswith("__") and hasattr(function, _MARK):
                raise SetupError(
                    f"@allow guards {cls.__qualname__}.{attribute}, which is no rpc of a contract. Tasks and events "
                    "come from queues and topics, where nobody proves who put them: guard those; @allow is for rpcs."
                )


def admission(authenticator: Authenticator | None, rules: Iterable[Allowed]) -> Admit | None:
    """What every call of a method has to pass, or None where anybody may call it."""
    checks = tuple(rules)
    if authenticator is None and not checks:
        return None

    def admit(call: Call) -> None:
        if authenticator is not None:
            call.caller = _proven(authenticator, call)
        else:
            call.principal = None  # before a rule looks at it
        for allowed in checks:
            if not allowed(call):
                raise PermissionDenied(f"{call.method} was refused: this caller may not call it.")

    return admit


def _proven(authenticator: Authenticator, call: Call) -> str:
    caller = authenticator.caller_of(call)
    if caller:
        return caller
    if call.credentials is None:
        raise Unauthenticated(f"{call.method} was refused: it needs credentials, and none came.")
    raise Unauthenticated(f"{call.method} was refused: the credentials are not valid here.")
