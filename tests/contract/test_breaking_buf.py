"""The protobuf side of a comparison against `buf breaking`, on every prepared change."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from evolution_changes import CHANGES, Change, Files, together
from evolution_support import VERDICTS, Verdict, ask_all, buf, buf_version, spelled, verdicts_of_buf
from google.protobuf import descriptor_pb2
from proto_support import compiled, write
from servers.pytest_plugin import MISSING

from polywire.contract.breaking import CATEGORIES, RULES, Category, Contracts, breaking_changes, contracts_of_files

STORED = json.loads(VERDICTS.read_text(encoding="utf-8"))


@pytest.fixture
def installed_buf(request: pytest.FixtureRequest) -> str:
    """The program; without it the test is skipped and named at the end of the run."""
    program = buf()
    if program is None:
        reason = "buf is not there: pip install buf-bin"
        if request.config.getoption("--require-servers"):
            pytest.fail(reason, pytrace=False)
        request.node.user_properties.append((MISSING, reason))
        pytest.skip(reason)
    return program


def contracts_of(files: Files, directory: Path) -> Contracts:
    write(directory, files)
    made: descriptor_pb2.FileDescriptorSet = compiled(directory, list(files))
    return contracts_of_files(made, list(files))


def ours(change: Change, old: Contracts, new: Contracts, category: Category) -> Verdict:
    found = breaking_changes(old, new, category=category, sides=["protobuf"])
    return sorted(
        spelled(finding.rule.name, finding.file if finding.file in change.new else "", finding.line)
        for finding in found
    )


def without_line(entry: str) -> str:
    return entry.rpartition(":")[0] or entry


def lines_that_differ(ours: Verdict, theirs: Verdict) -> list[str]:
    """Where both know a line. buf says 1 where it knows none, and the file's option where a Java text is meant."""
    missing = Counter(ours) - Counter(theirs)
    known = [entry for entry in theirs if not entry.endswith(":1")]
    return [
        entry
        for entry in missing
        if "JAVA_UTF8" not in entry and without_line(entry) in {without_line(other) for other in known}
    ]


def of_category(verdict: Verdict, category: Category) -> Verdict:
    return [entry for entry in verdict if category in RULES[entry.split()[0]].categories]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.name)
def test_we_name_what_buf_names_and_where(change: Change, tmp_path: Path) -> None:
    old, new = contracts_of(change.old, tmp_path / "old"), contracts_of(change.new, tmp_path / "new")
    for category in CATEGORIES:
        found, theirs = ours(change, old, new, category), of_category(STORED["verdicts"][change.name], category)
        assert sorted(map(without_line, found)) == sorted(map(without_line, theirs)), category
        assert not lines_that_differ(found, theirs)


def test_the_prepared_changes_are_many_and_touch_every_rule() -> None:
    assert len({change.name for change in CHANGES}) == len(CHANGES) >= 130
    assert set(STORED["verdicts"]) == {change.name for change in CHANGES}
    broken = {entry.split()[0] for verdict in STORED["verdicts"].values() for entry in verdict}
    assert broken == {name for name, rule in RULES.items() if rule.side == "protobuf"}
    passing = [name for name, verdict in STORED["verdicts"].items() if not verdict]
    assert len(passing) >= 15


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_buf_says_today_what_is_stored_of_it(installed_buf: str) -> None:
    now = ask_all(installed_buf)
    assert now == STORED["verdicts"], f"stored of buf {STORED['buf']}, now {buf_version(installed_buf)}"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_changes_together_are_judged_as_buf_judges_them(installed_buf: str, tmp_path: Path) -> None:
    read = []
    for index, change in enumerate(together(30, seed=7)):
        place = tmp_path / str(index)
        try:
            read.append((change, contracts_of(change.old, place / "old"), contracts_of(change.new, place / "new")))
        except AssertionError:
            continue  # one took away what another needs
    assert len(read) >= 15
    verdicts = verdicts_of_buf(installed_buf, [change for change, _, _ in read])
    for (change, old, new), theirs in zip(read, verdicts, strict=True):
        for category in CATEGORIES:
            found, expected = ours(change, old, new, category), of_category(theirs, category)
            assert sorted(map(without_line, found)) == sorted(map(without_line, expected)), change.name


def test_our_rules_are_in_the_categories_that_buf_puts_them_in(installed_buf: str) -> None:
    command = [installed_buf, "config", "ls-breaking-rules", "--version", "v2", "--format", "json"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    theirs = {}
    for line in said.splitlines():
        rule = json.loads(line)
        # CSR is for a registry of schemas, not for programs that call each other.
        theirs[rule["id"]] = {category.lower() for category in rule["categories"]} - {"csr"}
    mine = {name: set(rule.categories) for name, rule in RULES.items() if rule.side == "protobuf"}
    assert mine == theirs


def test_every_rule_says_what_to_do() -> None:
    for rule in RULES.values():
        assert rule.purpose.endswith(".")
        assert rule.way_out.endswith(".")
        assert "  " not in rule.purpose + rule.way_out


PROTOJSON = {
    "a field moves into a oneof": ["ONEOF quantity", "ONEOF farm", "ONEOF factory"],
    "a oneof is renamed": [],
    "a field gets another number": [],
    "a field is renamed and keeps its name in JSON": [],
    "two fields swap numbers": [],
    "a name is taken by another field": ["FORM quantity"],
    "int64 to uint64": [],
    "int64 to int32": ["FORM quantity"],
    "an enum to another": [f"DELETE STATE_{name}" for name in ("FRESH", "GONE", "STALE", "UNSPECIFIED")],
    "a message to another of the same form": [],
    "single to optional": ["PRESENCE quantity"],
    "single to repeated": ["FORM quantity"],
    "a value gets another number": [],
    "two values swap names": [],
}


@pytest.mark.parametrize("name", PROTOJSON)
def test_protojson_goes_by_names_where_protobuf_goes_by_numbers(name: str, tmp_path: Path) -> None:
    change = next(change for change in CHANGES if change.name == name)
    old, new = contracts_of(change.old, tmp_path / "old"), contracts_of(change.new, tmp_path / "new")
    found = breaking_changes(old, new, sides=["protojson"])
    named = [f"{finding.rule.name.rpartition('_')[2]} {finding.where.rpartition('.')[2]}" for finding in found]
    assert sorted(named) == sorted(PROTOJSON[name])
