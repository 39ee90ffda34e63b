"""The rules of ProtoJSON, of REST and of contracts themselves: each has changes that break it, and ones that do not."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from evolution_pairs import PAIRS, Case
from proto_support import module_of

from polywire.contract import service_of
from polywire.contract.breaking import RULES, Contracts, Finding, breaking_changes, contracts_of_services

CASES = [
    pytest.param(rule, case, breaks, id=f"{rule}: {case.name}")
    for rule, (failing, passing) in PAIRS.items()
    for cases, breaks in ((failing, True), (passing, False))
    for case in cases
]


def contracts_of(text: str, directory: Path) -> Contracts:
    return contracts_of_services([service_of(module_of(text, directory, "shops").Shops)])


def beside_protobuf(case: Case, directory: Path) -> list[Finding]:
    old, new = contracts_of(case.old, directory), contracts_of(case.new, directory)
    return breaking_changes(old, new, sides=("protojson", "rest", "contract"))


@pytest.mark.parametrize(("rule", "case", "breaks"), CASES)
def test_a_change_breaks_what_it_is_known_to_break(rule: str, case: Case, breaks: bool, tmp_path: Path) -> None:
    found = beside_protobuf(case, tmp_path)
    assert sorted(f"{finding.rule.name} {finding.where}" for finding in found) == sorted(case.breaks)
    assert any(finding.rule.name == rule for finding in found) is breaks


def test_every_rule_beside_those_of_protobuf_has_a_change_that_breaks_it_and_one_that_does_not() -> None:
    assert set(PAIRS) == {name for name, rule in RULES.items() if rule.side != "protobuf"}
    assert all(failing and passing for failing, passing in PAIRS.values())
    names = [case.name for pair in PAIRS.values() for case in itertools.chain(*pair)]
    assert len(names) >= 60


def test_the_reference_lists_every_rule_beside_those_of_protobuf() -> None:
    page = Path(__file__).parents[2] / "docs" / "reference" / "contract-check.md"
    rows = [line.split(" | ") for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    listed = {row[0].strip("| `"): row[1] for row in rows if "_" in row[0]}
    assert listed == {name: rule.purpose for name, rule in RULES.items() if rule.side != "protobuf"}
