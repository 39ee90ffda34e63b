"""The errors of a contract in a comparison: which ones a method raises, with which code and status."""

from __future__ import annotations

from collections.abc import Iterator

from polywire.contract.breaking.contracts import Contracts
from polywire.contract.breaking.findings import Finding
from polywire.contract.breaking.wire_rules import WIRE_RULES
from polywire.contract.failures import form_of
from polywire.errors import CallError


def compare_errors(old: Contracts, new: Contracts) -> Iterator[Finding]:
    """Errors by their names on the wire, as far as both sides are Python."""
    methods = new.methods
    for name, was in old.methods.items():
        now = methods.get(name)
        for error, before in was.raises.items() if now is not None else ():
            after = now.raises.get(error) if now is not None else None
            if after is None:
                yield _found("CONTRACT_ERROR_NO_DELETE", name, f"It does not list {error} now.")
            else:
                yield from _changes(error, before, after)


def _changes(name: str, before: type[CallError], after: type[CallError]) -> Iterator[Finding]:
    if before.code != after.code:
        yield _found("CONTRACT_ERROR_SAME_CODE", name, f"Its code was {before.code} and is {after.code} now.")
    was, now = _status(before), _status(after)
    if was != now:
        yield _found("REST_ERROR_SAME_STATUS", name, f"Its status was {was} and is {now} now.")


def _status(error: type[CallError]) -> int:
    return form_of(error).rest_status or error.http_status


def _found(rule: str, where: str, change: str) -> Finding:
    return Finding(rule=WIRE_RULES[rule], where=where, change=change)
