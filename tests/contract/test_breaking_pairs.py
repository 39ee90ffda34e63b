"""The rules of ProtoJSON, of REST and of contracts themselves: each has changes that break it, and ones that do not."""

from __future__ import annotations

import enum
import itertools
from pathlib import Path

import pytest
from evolution_pairs import PAIRS, Case
from google.protobuf import descriptor_pb2
from proto_support import PROTOS, SAMPLES, compiled, compiled_texts, module_of

from polywire.contract import Contract, Message, service_of
from polywire.contract.breaking import (
    RULES,
    Contracts,
    Finding,
    breaking_changes,
    contracts_of_files,
    contracts_of_services,
)
from polywire.contract.protofile import python_module

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


def files_of(sample: str) -> tuple[descriptor_pb2.FileDescriptorSet, list[str]]:
    return compiled(PROTOS, [sample]), [sample]


@pytest.mark.parametrize("sample", SAMPLES)
def test_files_of_others_break_nothing_compared_with_themselves_or_with_what_is_imported_from_them(
    sample: str, tmp_path: Path
) -> None:
    made, names = files_of(sample)
    theirs = contracts_of_files(made, names)
    assert breaking_changes(theirs, theirs) == []
    ours = imported(python_module(made, names), tmp_path)
    found = breaking_changes(theirs, ours)
    assert [f"{finding.rule.name} {finding.where}" for finding in found] == LOST.get(sample, [])
    back = breaking_changes(ours, theirs, category="wire_json")
    assert not {finding.rule.side for finding in back} - {"protobuf", "protojson"}


LOST = {
    # Only a route that reads says so in Python.
    "eliza.proto": ["RPC_SAME_IDEMPOTENCY_LEVEL connectrpc.eliza.v1.ElizaService/Say"],
    # Maps by bool are lists of entries in Python, and there are no such routes.
    "everything.proto": [
        "FIELD_SAME_CARDINALITY sample.everything.v1.Maps.bools",
        "PROTOJSON_FIELD_SAME_FORM sample.everything.v1.Maps.bools",
        "REST_ROUTE_NO_DELETE GET /v1/odd",
        "REST_ROUTE_NO_DELETE HEAD /v1/odd",
    ],
}
"""What an import cannot say in Python, which the check finds."""


def imported(text: str, directory: Path) -> Contracts:
    module = module_of(text, directory, "sample")
    classes = [value for value in vars(module).values() if isinstance(value, type)]
    services = [service_of(cls) for cls in classes if issubclass(cls, Contract) and cls is not Contract]
    messages = [cls for cls in classes if issubclass(cls, Message) and cls.__module__ == module.__name__]
    enums = [cls for cls in classes if issubclass(cls, enum.Enum) and cls.__module__ == module.__name__]
    return contracts_of_services(services, [cls for cls in messages if not cls.__polywire__.transparent], enums)


def test_messages_may_be_in_messages_without_end(tmp_path: Path) -> None:
    count = 1200

    def files(last: str) -> Contracts:
        chain = [f"message M{index} {{ M{index + 1} next = 1; }}" for index in range(count)]
        chain.append(f"message M{count} {{ M0 first = 1; {last} end = 2; }}")
        route = '{ option (google.api.http) = { post: "/m" body: "*" }; }'
        head = 'syntax = "proto3";\nimport "google/api/annotations.proto";\n'
        text = f"{head}service S {{ rpc Go(M0) returns (M0) {route} }}\n" + "\n".join(chain)
        return contracts_of_files(compiled_texts({"chain.proto": text}), ["chain.proto"])

    found = breaking_changes(files("string"), files("int32"))
    assert [f"{finding.rule.name} {finding.where}" for finding in found] == [
        f"FIELD_SAME_TYPE M{count}.end",
        f"PROTOJSON_FIELD_SAME_FORM M{count}.end",
        f"REST_REQUEST_FIELD_SAME_TYPE M{count}.end",
        f"REST_RESPONSE_FIELD_SAME_TYPE M{count}.end",
    ]
