"""The comparison of two versions, on all sides."""

from __future__ import annotations

from collections.abc import Collection

from polywire.contract.breaking.contracts import Contracts, named_alike
from polywire.contract.breaking.findings import SIDES, Category, Finding, Rule, Side
from polywire.contract.breaking.payloads import compare_promises
from polywire.contract.breaking.protobuf import compare_files, in_category
from polywire.contract.breaking.protobuf_enums import compare_enums, compare_services
from polywire.contract.breaking.protobuf_messages import compare_messages
from polywire.contract.breaking.protobuf_rules import PROTOBUF_RULES
from polywire.contract.breaking.protojson import compare_protojson
from polywire.contract.breaking.rest import compare_rest
from polywire.contract.breaking.wire_rules import WIRE_RULES

RULES: dict[str, Rule] = {**PROTOBUF_RULES, **WIRE_RULES}
"""Every rule, by name."""


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
    if "protojson" in sides:
        found += compare_protojson(old.index, new.index)
    if "rest" in sides:
        found += compare_rest(old, new)
    if "contract" in sides:
        found += compare_promises(old, new)
    once = {(finding.rule.name, finding.where, finding.change): finding for finding in reversed(found)}
    return sorted(once.values(), key=lambda finding: finding.sort_key)
