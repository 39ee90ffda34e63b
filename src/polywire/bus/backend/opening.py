"""From a URL to a backend: the table that a new backend adds a line to."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, Literal

from polywire.bus.core import EventLog, Fanout, TaskQueue
from polywire.bus.core.urls import masked
from polywire.clock import SYSTEM_CLOCK, Clock
from polywire.errors import SetupError

Use = Literal["tasks", "events"]

TASKS = {
    "memory": ("polywire.bus.backend.memory", "MemoryQueue", ""),
    "sqlite": ("polywire.bus.backend.sqlite", "SqliteQueue", ""),
    "amqp": ("polywire.bus.backend.rabbitmq", "RabbitQueue", "rabbitmq"),
    "amqps": ("polywire.bus.backend.rabbitmq", "RabbitQueue", "rabbitmq"),
}
"""Scheme -> module, class, and the extra that installs its client."""
EVENTS = {
    "memory": ("polywire.bus.backend.memory", "MemoryLog", ""),
    "sqlite": ("polywire.bus.backend.sqlite_log", "SqliteLog", ""),
    "kafka": ("polywire.bus.backend.kafka", "KafkaLog", "kafka"),
    "kafkas": ("polywire.bus.backend.kafka", "KafkaLog", "kafka"),
    "amqp": ("polywire.bus.backend.rabbitmq_fanout", "RabbitFanout", "rabbitmq"),
    "amqps": ("polywire.bus.backend.rabbitmq_fanout", "RabbitFanout", "rabbitmq"),
}


def open_tasks(url: str, *, clock: Clock = SYSTEM_CLOCK) -> TaskQueue:
    """The task backend at *url*, not started yet. Raises SetupError where there is none, or its extra is missing."""
    made: TaskQueue = _maker(url, "tasks")(url, clock=clock)
    return made


def open_events(url: str, *, clock: Clock = SYSTEM_CLOCK) -> EventLog | Fanout:
    """The event backend at *url*, not started yet. Raises SetupError where there is none, or its extra is missing."""
    made: EventLog | Fanout = _maker(url, "events")(url, clock=clock)
    return made


def check_url(url: str, use: Use) -> None:
    """Raises SetupError where nothing of that scheme carries tasks, or events."""
    scheme, colon, _ = url.partition(":")
    scheme = scheme.lower()
    table, other = (TASKS, EVENTS) if use == "tasks" else (EVENTS, TASKS)
    if colon and scheme in table:
        return
    if not colon:
        shown, reason = masked(url), "it begins with the name of no backend"
    else:
        shown = f"{scheme}:..."
        reason = f"{scheme!r} carries no {use}" if scheme in other else f"{scheme!r} is no backend"
    choices = ", ".join(sorted(f"'{name}:'" for name in table))
    raise SetupError(f"{use} = {shown!r} was not opened: {reason}. Choose one of {choices}.")


def _maker(url: str, use: Use) -> Callable[..., Any]:
    check_url(url, use)
    scheme = url.partition(":")[0].lower()
    module, name, extra = (TASKS if use == "tasks" else EVENTS)[scheme]
    try:
        made: Callable[..., Any] = getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        if not extra or (error.name or "").startswith("polywire"):
            raise
        raise SetupError(
            f"{use} = {scheme + ':...'!r} was not opened: the package {error.name!r} is missing. "
            f"Install it with `pip install 'polywire[{extra}]'`."
        ) from error
    return made
