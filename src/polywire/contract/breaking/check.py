"""The comparison of two versions, on all sides."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from polywire.contract.breaking.contracts import Contracts, named_alike
from polywire.contract.breaking.errors import compare_errors
from polywire.contract.breaking.findings import SIDES, Category, Finding, Rule, Side
from polywire.contract.breaking.payloads import compare_promises
from polywire.contract.breaking.protobuf import compare_files, in_category
from polywire.contract.breaking.protobuf_enums import compare_enums, compare_services
from polywire.contract.breaking.protobuf_messages import compare_messages
from polywire.contract.breaking.protobuf_rules import FILE_OPTIONS, PROTOBUF_RULES
from polywire.contract.breaking.protojson import compare_protojson
from polywire.contract.breaking.rest import compare_rest
from polywire.contract.breaking.tasks import compare_tasks
from polywire.contract.breaking.wire_rules import WIRE_RULES

RULES: dict[str, Rule] = {**PROTOBUF_RULES, **WIRE_RULES}
"""Every rule, by name."""


def _numbers_to_write(old: Contracts, new: Contracts) -> dict[str, dict[str, int]]:
    """By message of a contract in Python: the fields that have another number than before, with that of before.

    Numbers follow the order of declaration where none is given, so that a field put in between moves those after it.
    """
    moved: dict[str, dict[str, int]] = {}
    for name in new.schemas:
        before, after = old.index.messages.get(name), new.index.messages.get(name)
        if before is not None and after is not None:
            numbers = {field.name: field.number for field in before.described.field}
            fields = after.described.field
            other = {field.name: numbers.get(field.name, field.number) for field in fields}
            moved[name] = {field.name: other[field.name] for field in fields if other[field.name] != field.number}
    return {name: fields for name, fields in moved.items() if fields}


def _with_numbers(finding: Finding, numbers: Mapping[str, Mapping[str, int]]) -> Finding:
    message, _, _ = finding.where.rpartition(".")
    if message not in numbers or not finding.rule.name.startswith("FIELD_"):
        return finding
    fields = ", ".join(f"{name}: Annotated[..., Field(number={number})]" for name, number in numbers[message].items())
    instead = f"Numbers follow the order of declaration where none is given. Write the old ones: {fields}."
    return replace(finding, instead=instead)


def breaking_changes(
    old: Contracts, new: Contracts, *, category: Category = "file", sides: Collection[Side] = SIDES
) -> list[Finding]:
    """Everything that would break who still speaks *old* with who speaks *new*, each once, in a stable order.

    *category* says how much has to stay on the protobuf side.
    """
    old = named_alike(old, new)
    found: list[Finding] = []
    if "protobuf" in sides:
        before, after = old.index, new.index
        for compare in (compare_files, compare_messages, compare_enums, compare_services):
            found += in_category(compare(before, after), category)
        if old.is_python or new.is_python:  # contracts in Python have no options for other languages
            found = [finding for finding in found if finding.rule.name not in FILE_OPTIONS.values()]
    if "protojson" in sides:
        found += compare_protojson(old.index, new.index)
    if "rest" in sides:
        found += compare_rest(old, new)
    if "contract" in sides:
        found += compare_promises(old, new)
        found += compare_tasks(old, new)
    found += [finding for finding in compare_errors(old, new) if finding.rule.side in sides]
    found = (
        [_with_numbers(finding, numbers) for finding in found] if (numbers := _numbers_to_write(old, new)) else found
    )
    once = {(finding.rule.name, finding.where, finding.change): finding for finding in reversed(found)}
    return sorted(once.values(), key=lambda finding: finding.sort_key)
