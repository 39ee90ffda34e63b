"""The queues, topics and groups that a set of services needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from polywire.bus.core import Binding, GroupSpec, Guarantees, QueueSpec, TopicSpec
from polywire.contract import (
    Contract,
    Event,
    EventType,
    Subscription,
    Task,
    Where,
    check_agreement,
    event_of,
    service_of,
)
from polywire.errors import ContractError

EVERYTHING = Where()


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """What events need: topics and groups for a log, bindings for a fan-out."""

    topics: tuple[TopicSpec, ...]
    groups: tuple[GroupSpec, ...]
    bindings: tuple[Binding, ...]


def queues_of(contracts: Iterable[type[Contract]]) -> tuple[QueueSpec, ...]:
    """The queues that these contracts' tasks wait in, by name. Raises ContractError where two tasks that share one do
    not agree on it."""
    tasks = [task for contract in contracts for task in service_of(contract).tasks.values()]
    check_agreement(tasks)
    found = {task.queue: queue_spec(task) for task in tasks}
    return tuple(found[name] for name in sorted(found))


def queue_spec(task: Task) -> QueueSpec:
    return QueueSpec(
        name=task.queue,
        keyed=task.key is not None,
        priorities=task.priorities,
        concurrency=task.concurrency,
        rate=task.rate,
    )


def topics_of(
    events: Iterable[type[Event]],
    subscriptions: Iterable[Subscription] = (),
    *,
    known: Mapping[str, TopicSpec] | None = None,
) -> Topology:
    """The topics of these events and of what is subscribed to, with their groups.

    *known* has the topics of which more is said than their name. Raises ContractError where two events are called the
    same on the wire, or where members of one group do not agree on it.
    """
    subscribed = list(subscriptions)
    types = [event_of(event) for event in events]
    types += [event for subscription in subscribed for event in subscription.events]
    _refuse_namesakes(types)
    names = sorted({event.topic for event in types})
    members: dict[tuple[str, str], list[Subscription]] = {}
    for subscription in subscribed:
        members.setdefault((subscription.topic, subscription.group), []).append(subscription)
    return Topology(
        topics=tuple((known or {}).get(name) or TopicSpec(name=name) for name in names),
        groups=tuple(_group(topic, group, members[topic, group]) for topic, group in sorted(members)),
        bindings=tuple(_binding(topic, group, members[topic, group]) for topic, group in sorted(members)),
    )


def _refuse_namesakes(types: Iterable[EventType]) -> None:
    taken: dict[str, EventType] = {}
    for one in types:
        other = taken.setdefault(one.type, one)
        if other.event is not one.event:
            raise ContractError(
                f"{other.event.__module__}.{other.event.__qualname__} and {one.event.__module__}."
                f"{one.event.__qualname__} are both called {one.type!r} on the wire. Give one of them a name of its "
                "own, name='...'."
            )


def _group(topic: str, group: str, members: Sequence[Subscription]) -> GroupSpec:
    first = members[0]
    for other in members[1:]:
        if other.start != first.start:
            raise ContractError(
                f"{first.name} starts the group {group!r} of topic {topic!r} at {first.start!r}, {other.name} at "
                f"{other.start!r}. A group has one beginning: give both the same start=."
            )
    return GroupSpec(topic=topic, group=group, start=first.start)


def _binding(topic: str, group: str, members: Sequence[Subscription]) -> Binding:
    """One queue for the whole group: it gets what any of its methods wants, and each sorts out the rest."""
    wanted = {member.where or EVERYTHING for member in members}
    where = wanted.pop() if len(wanted) == 1 else EVERYTHING
    events = {event.type: event for member in members for event in member.events}
    return Binding(
        topic=topic,
        group=group,
        types=tuple(sorted(events)),
        pattern=where.pattern,
        headers=where.headers,
        keyed=any(event.key is not None for event in events.values()),
    )


def unkept(spec: QueueSpec, guarantees: Guarantees) -> list[str]:
    """What is declared of a queue and its backend does not promise, a sentence each."""
    backend = guarantees.backend
    found = []
    if spec.keyed and not guarantees.key_order:
        found.append(f"{backend!r} keeps no order by key")
    if spec.priorities > guarantees.priorities:
        levels = "1 level" if guarantees.priorities == 1 else f"{guarantees.priorities} levels"
        found.append(f"{backend!r} has {levels} of priority, not {spec.priorities}")
    for label, value in (("concurrency", spec.concurrency), ("rate", spec.rate)):
        if value is not None and not guarantees.shared_limits:
            found.append(f"{backend!r} cannot hold {label}={value} over all processes")
    return found
