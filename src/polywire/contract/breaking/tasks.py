"""The tasks of a contract in a comparison: messages of OLD may wait for longer than its workers live."""

from __future__ import annotations

from collections.abc import Iterator

from polywire.contract.breaking.contracts import Contracts
from polywire.contract.breaking.findings import Finding
from polywire.contract.breaking.payloads import Change, Direction, Pair, Walk, judge_rest
from polywire.contract.breaking.wire_rules import WIRE_RULES
from polywire.contract.message import Message
from polywire.contract.schema import schema_of
from polywire.contract.task import Task

_BODY = "CONTRACT_TASK_SAME_BODY"
_Form = type[Message] | None


def compare_tasks(old: Contracts, new: Contracts) -> Iterator[Finding]:
    """Tasks by their names on the wire, where both sides are Python: a `.proto` file has none."""
    if not new.is_python:
        return
    walk = Walk(old, new, _judge, _BODY)
    for name, was in old.tasks.items():
        now = new.tasks.get(name)
        if now is None:
            yield _found("CONTRACT_TASK_NO_DELETE", name, "It is gone: messages that wait would be buried.")
            continue
        yield from _changes(name, was, now)
        yield from _carried(walk, "request", was.request, now.request)
        yield from _carried(walk, "response", was.response, now.response)


def _changes(name: str, was: Task, now: Task) -> Iterator[Finding]:
    if was.queue != now.queue:
        yield _found("CONTRACT_TASK_SAME_QUEUE", name, f"It was in queue {was.queue!r} and is in {now.queue!r} now.")
    if (was.request is None) is not (now.request is None):
        yield _found(_BODY, name, f"It carried {_spelled(was.request)} and carries {_spelled(now.request)} now.")
    if was.response is not None and now.response is None:
        yield _found(_BODY, name, f"Its result was {_spelled(was.response)}, and it has none now.")


def _carried(walk: Walk, direction: Direction, was: _Form, now: _Form) -> Iterator[Finding]:
    if was is not None and now is not None:
        yield from walk.message(direction, schema_of(was).full_name, schema_of(now).full_name)


def _judge(pair: Pair) -> Iterator[Change]:
    """What wires of messages carry is the JSON of REST, and has its rules."""
    for _, change in judge_rest(pair):
        yield _BODY, change


def _spelled(message: _Form) -> str:
    return "nothing" if message is None else schema_of(message).full_name


def _found(rule: str, where: str, change: str) -> Finding:
    return Finding(rule=WIRE_RULES[rule], where=where, change=change)
