"""Tasks: methods of a contract whose work is done later, by one of many workers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, overload

from polywire.contract.failures import NOTHING, Raises
from polywire.contract.keys import check_key
from polywire.contract.message import Message
from polywire.contract.retry import Retry
from polywire.contract.schedule import Cron, Every, Schedule
from polywire.errors import ContractError

Function = TypeVar("Function", bound=Callable[..., Any])
RunsIn = Literal["loop", "thread", "process"]
MAX_NAME = 150
"""Characters: what every backend leaves after our own suffixes."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\Z")
MAX_PRIORITIES = 10

DEFAULT_TIMEOUT = 30.0
DEFAULT_RESULT_TTL = 24 * 3600.0
DEFAULT_UNKNOWN_AFTER = 3600.0


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Task:
    """One task of a contract, as senders and workers see it. Compared and hashed by identity."""

    attribute: str
    """The name of the Python method, `send_confirmation`."""
    name: str
    """The name on the wire, `SendConfirmation`."""
    service: str
    """The full name of the service, `shop.v1.Mail`."""
    request: type[Message] | None
    """None where the method takes no argument."""
    response: type[Message] | None
    """None where it returns None; otherwise its result is kept for `result_ttl`."""
    queue: str
    """Where its messages wait: the full name of the contract, unless another was given."""
    retry: Retry
    timeout: float
    """Seconds for one run of the handler."""
    key: str | None = None
    """The field whose value orders the messages: those of one key are handled one after the other."""
    priority: int = 0
    """Higher is handled earlier, 0 to `priorities` - 1."""
    priorities: int = 1
    """Levels of its queue."""
    at_most_once: bool = False
    """Acknowledged before the handler runs: one attempt, and a lost one is lost."""
    once: bool = False
    """Behind the inbox: effects happen once."""
    schedule: Schedule | None = None
    result_ttl: float = DEFAULT_RESULT_TTL
    """Seconds for which a result is kept."""
    runs_in: RunsIn = "loop"
    """Where its handler runs. A plain `def` runs in a thread where this says `loop`."""
    concurrency: int | None = None
    """Handlers of its queue at a time, over all processes."""
    rate: float | None = None
    """Starts per second of its queue, over all processes."""
    unknown_after: float = DEFAULT_UNKNOWN_AFTER
    """Seconds after which a message is buried whose task no worker of its queue knows."""
    doc: str = ""
    raises: Raises = field(default_factory=lambda: NOTHING)
    """The errors of its contract that who waits for its result gets as the same class, by their names on the wire."""

    @property
    def full_name(self) -> str:
        """`shop.v1.Mail/SendConfirmation`, the type of its messages."""
        return f"{self.service}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOptions:
    """What `@task(...)` says."""

    queue: str | None
    retry: Retry
    timeout: float
    key: str | None
    priority: int
    priorities: int
    at_most_once: bool
    once: bool
    schedule: Schedule | None
    result_ttl: float
    runs_in: RunsIn
    concurrency: int | None
    rate: float | None
    unknown_after: float
    name: str | None


@overload
def task(function: Function, /) -> Function: ...
@overload
def task(
    *,
    queue: str | None = None,
    retry: Retry | None = None,
    timeout: float = DEFAULT_TIMEOUT,
    key: str | None = None,
    priority: int = 0,
    priorities: int = 1,
    at_most_once: bool = False,
    once: bool = False,
    schedule: Schedule | None = None,
    result_ttl: float = DEFAULT_RESULT_TTL,
    runs_in: RunsIn = "loop",
    concurrency: int | None = None,
    rate: float | None = None,
    unknown_after: float = DEFAULT_UNKNOWN_AFTER,
    name: str | None = None,
) -> Callable[[Function], Function]: ...
def task(
    function: Any = None,
    /,
    *,
    queue: str | None = None,
    retry: Retry | None = None,
    timeout: float = DEFAULT_TIMEOUT,
    key: str | None = None,
    priority: int = 0,
    priorities: int = 1,
    at_most_once: bool = False,
    once: bool = False,
    schedule: Schedule | None = None,
    result_ttl: float = DEFAULT_RESULT_TTL,
    runs_in: RunsIn = "loop",
    concurrency: int | None = None,
    rate: float | None = None,
    unknown_after: float = DEFAULT_UNKNOWN_AFTER,
    name: str | None = None,
) -> Any:
    """Declare a method of a contract as work that is done later, by one of the processes that implement it.

    The fields of `Task` say what the options mean. *queue*, *priorities*, *concurrency*, *rate* and whether there is a
    *key* belong to the queue, which all tasks of a contract share unless they name another: they have to agree on it.
    """
    options = TaskOptions(
        queue=queue,
        retry=Retry() if retry is None else retry,
        timeout=timeout,
        key=key,
        priority=priority,
        priorities=priorities,
        at_most_once=at_most_once,
        once=once,
        schedule=schedule,
        result_ttl=result_ttl,
        runs_in=runs_in,
        concurrency=concurrency,
        rate=rate,
        unknown_after=unknown_after,
        name=name,
    )
    _check(options)

    def mark(function: Function) -> Function:
        function.__task__ = options  # type: ignore[attr-defined]  # a plain function takes attributes
        return function

    return mark if function is None else mark(function)


def _check(options: TaskOptions) -> None:
    _check_numbers(options)
    if options.queue is not None:
        check_name("@task", "queue", options.queue)
    if options.runs_in not in ("loop", "thread", "process"):
        raise ContractError(f"@task(runs_in={options.runs_in!r}): choose 'loop', 'thread' or 'process'.")
    if not isinstance(options.retry, Retry):
        raise ContractError(f"@task(retry={options.retry!r}): give a policy, retry=Retry(attempts=5).")
    if options.schedule is not None and not isinstance(options.schedule, Cron | Every):
        raise ContractError(
            f"@task(schedule={options.schedule!r}): give a schedule, Cron('0 3 * * *', zone='Europe/Berlin') or "
            "Every(60.0)."
        )
    check_once("@task", options.at_most_once, options.once, options.retry)


def _check_numbers(options: TaskOptions) -> None:
    for label, seconds in (
        ("timeout", options.timeout),
        ("result_ttl", options.result_ttl),
        ("unknown_after", options.unknown_after),
        ("rate", options.rate),
    ):
        if seconds is not None and not 0 < seconds < float("inf"):
            raise ContractError(f"@task({label}={seconds!r}): it is a positive number.")
    if options.concurrency is not None and options.concurrency < 1:
        raise ContractError(f"@task(concurrency={options.concurrency!r}): at least 1 handler has to run.")
    if not 1 <= options.priorities <= MAX_PRIORITIES:
        raise ContractError(f"@task(priorities={options.priorities!r}): a queue has 1 to {MAX_PRIORITIES} levels.")
    if not 0 <= options.priority < options.priorities:
        raise ContractError(
            f"@task(priority={options.priority!r}): the levels of its queue are 0 to {options.priorities - 1}. "
            f"Give it more with priorities=."
        )


def check_name(where: str, label: str, name: object) -> None:
    """Raises ContractError where *name* is no name of a queue, topic or group on every backend."""
    if not isinstance(name, str) or len(name) > MAX_NAME or not _NAME.match(name):
        raise ContractError(
            f"{where}({label}={name!r}): letters, digits, '.', '-' and '_', at most {MAX_NAME} of them, beginning with "
            "a letter, a digit or '_'."
        )


def check_once(where: str, at_most_once: bool, once: bool, retry: Retry) -> None:
    """Raises ContractError where these ask for opposite things."""
    if at_most_once and once:
        raise ContractError(
            f"{where}(at_most_once=True, once=True): what is acknowledged before it is handled needs no inbox. "
            "Choose one of them."
        )
    if at_most_once and retry.attempts not in (None, 1):
        raise ContractError(
            f"{where}(at_most_once=True, retry=Retry(attempts={retry.attempts})): what is acknowledged before it is "
            "handled has one attempt."
        )


def read_task(
    options: TaskOptions,
    *,
    where: str,
    attribute: str,
    name: str,
    service: str,
    request: type[Message] | None,
    response: type[Message] | None,
    doc: str,
    raises: Raises = NOTHING,
) -> Task:
    """A task of *service* from its options and its signature. Raises ContractError where they do not fit."""
    if options.key is not None:
        check_key(where, request, options.key)
    if options.schedule is not None and not _can_be_empty(request):
        raise ContractError(
            f"{where} is scheduled, but a schedule has nothing to say: let it take no argument, or a message whose "
            "fields all have defaults."
        )
    if options.at_most_once and response is not None:
        raise ContractError(
            f"{where} is at_most_once and has a result, for which somebody would wait in vain. Let it return None."
        )
    return Task(
        attribute=attribute,
        name=name,
        service=service,
        request=request,
        response=response,
        raises=raises,
        queue=options.queue or service,
        retry=options.retry,
        timeout=options.timeout,
        key=options.key,
        priority=options.priority,
        priorities=options.priorities,
        at_most_once=options.at_most_once,
        once=options.once,
        schedule=options.schedule,
        result_ttl=options.result_ttl,
        runs_in=options.runs_in,
        concurrency=options.concurrency,
        rate=options.rate,
        unknown_after=options.unknown_after,
        doc=doc,
    )


def _can_be_empty(request: type[Message] | None) -> bool:
    if request is None:
        return True
    try:
        request()
    except TypeError:
        return False
    return True


def check_agreement(tasks: Iterable[Task]) -> None:
    """Raises ContractError where tasks of one queue differ in what belongs to the queue."""
    first: dict[str, Task] = {}
    for one in tasks:
        other = first.setdefault(one.queue, one)
        for label, mine, theirs in (
            ("key=", one.key is not None, other.key is not None),
            ("priorities=", one.priorities, other.priorities),
            ("concurrency=", one.concurrency, other.concurrency),
            ("rate=", one.rate, other.rate),
        ):
            if mine != theirs:
                raise ContractError(
                    f"{other.full_name} and {one.full_name} share the queue {one.queue!r}, but differ in {label}, "
                    "which belongs to the queue. Give both the same, or one of them a queue=."
                )
