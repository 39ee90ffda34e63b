"""Samples of what others write: imported, they mean what protoc says they mean."""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from google.protobuf import descriptor_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from message_strategies import messages
from proto_support import (
    PROTOS,
    SAMPLES,
    FileProto,
    classes_of,
    compiled,
    compiled_texts,
    file_in,
    module_of,
    without_comments,
)

from polywire.cli.targets import Found
from polywire.codec import codec_for
from polywire.contract import Message, schema_of
from polywire.contract.export import file_descriptors, proto_files
from polywire.contract.export_http import rule_in
from polywire.contract.protofile import python_module

BIN = Path(sys.executable).parent


@functools.cache
def text_of(sample: str) -> str:
    return python_module(compiled(PROTOS, [sample]), [sample])


@pytest.fixture(scope="session")
def modules(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModuleType]:
    directory = tmp_path_factory.mktemp("imported")
    return {sample: module_of(text_of(sample), directory, sample.removesuffix(".proto")) for sample in SAMPLES}


def found_in(module: ModuleType) -> Found:
    found = Found()
    found.add(module.__name__)
    return found


def named(files: list[FileProto]) -> dict[str, tuple[str, Any]]:
    """Every message, enum and service by full name: two files may keep them in different orders."""
    things: dict[str, tuple[str, Any]] = {}

    def visit(scope: str, message: descriptor_pb2.DescriptorProto) -> None:
        own = f"{scope}.{message.name}"
        for nested in message.nested_type:
            visit(own, nested)
        for enum in message.enum_type:
            things[f"{own}.{enum.name}"] = "enum", enum
        bare = descriptor_pb2.DescriptorProto()
        bare.CopyFrom(message)
        bare.ClearField("nested_type")
        bare.ClearField("enum_type")
        for field in bare.field:
            field.ClearField("options")  # deprecated: nothing that a contract says
        things[own] = "message", bare

    for file in files:
        scope = f".{file.package}" if file.package else ""
        for message in file.message_type:
            visit(scope, message)
        for enum in file.enum_type:
            things[f"{scope}.{enum.name}"] = "enum", enum
        for service in without_comments(file).service:
            things[f"{scope}.{service.name}"] = "service", service
    return things


def as_lists(things: dict[str, tuple[str, Any]]) -> dict[str, tuple[str, Any]]:
    """Maps with keys of type bool as the lists of entries that an import makes of them."""
    for kind, thing in things.values():
        if kind == "message" and thing.options.map_entry and thing.field[0].type == thing.field[0].TYPE_BOOL:
            thing.ClearField("options")
    return things


def without_what_contracts_do_not_say(things: dict[str, tuple[str, Any]]) -> dict[str, tuple[str, Any]]:
    """Without the REST bindings that have no form, and with "no side effects" only where a GET says so."""
    for kind, thing in things.values():
        if kind == "service":
            for method in thing.method:
                if method.name == "Odd":
                    method.ClearField("options")
                elif method.options.idempotency_level == method.options.NO_SIDE_EFFECTS:
                    rule = rule_in(method.options)
                    if rule is None or not rule.get:
                        method.options.idempotency_level = method.options.IDEMPOTENT
    return things


@pytest.mark.parametrize("sample", SAMPLES)
def test_an_imported_file_exports_to_equal_descriptors(sample: str, modules: dict[str, ModuleType]) -> None:
    given = compiled(PROTOS, [sample])
    theirs = without_what_contracts_do_not_say(as_lists(named(list(given.file))))
    found = found_in(modules[sample])
    exported = compiled_texts(proto_files(found.services, found.messages, found.enums))
    ours = named([file for file in exported.file if not file.name.startswith(("google/protobuf/", "google/api/"))])
    assert ours == {name: thing for name, thing in theirs.items() if name in ours}
    assert not named([file_in(given, sample)]).keys() - ours.keys()


@pytest.mark.parametrize("sample", SAMPLES)
def test_what_an_import_exports_is_what_the_descriptors_say(sample: str, modules: dict[str, ModuleType]) -> None:
    found = found_in(modules[sample])
    described = file_descriptors(found.services, found.messages, found.enums)
    exported = compiled_texts(proto_files(found.services, found.messages, found.enums))
    for file in described:
        assert without_comments(file) == without_comments(file_in(exported, file.name))


def all_messages() -> list[Any]:
    cases = []
    for sample in SAMPLES:
        declared = file_in(compiled(PROTOS, [sample]), sample)
        names = [name for name, (kind, thing) in named([declared]).items() if kind == "message"]
        entries = [name for name in names if name.endswith("Entry")]
        cases += [(sample, name.removeprefix(".")) for name in names if name not in entries]
    return cases


@functools.cache
def classes_for(sample: str) -> Any:
    return classes_of(compiled(PROTOS, [sample]))


def message_named(module: ModuleType, full_name: str) -> type[Message]:
    for value in vars(module).values():
        if not isinstance(value, type) or not issubclass(value, Message) or value is Message:
            continue
        if schema_of(value).full_name == full_name and not schema_of(value).transparent:
            return value
    raise AssertionError(f"{module.__name__} has no {full_name}")


@pytest.mark.parametrize(("sample", "full_name"), all_messages())
@settings(max_examples=15, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_messages_are_the_same_to_generated_classes(
    sample: str, full_name: str, modules: dict[str, ModuleType], data: st.DataObject
) -> None:
    cls = message_named(modules[sample], full_name)
    theirs = classes_for(sample)(full_name)
    codec = codec_for(cls, "proto")
    message = data.draw(messages(cls))
    written = codec.encode(message)
    parsed = theirs.FromString(written)
    assert codec.decode(parsed.SerializeToString()) == message
    assert theirs.FromString(codec.encode(codec.decode(written))) == parsed


@pytest.mark.parametrize("sample", SAMPLES)
def test_an_import_is_the_same_each_time(sample: str) -> None:
    assert python_module(compiled(PROTOS, [sample]), [sample]) == text_of(sample)


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("written")
    for sample in SAMPLES:
        (directory / sample.replace(".proto", ".py")).write_text(text_of(sample), encoding="utf-8")
    return directory


def test_ruff_would_format_nothing_anew(written: Path) -> None:
    done = subprocess.run(
        [BIN / "ruff", "format", "--isolated", "--diff", written],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == ""
    assert done.returncode == 0, done.stderr


def test_ruff_finds_nothing_wrong(written: Path) -> None:
    done = subprocess.run(
        [BIN / "ruff", "check", "--isolated", "--select", "E,F,W,I,UP,PIE,RUF,B", written],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "All checks passed!\n"


@pytest.mark.slow
def test_mypy_is_content_with_every_import(written: Path) -> None:
    done = subprocess.run(
        [BIN / "mypy", "--strict", "--config-file=", "--cache-dir", written / ".cache", *sorted(written.glob("*.py"))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith("Success: no issues found in"), done.stdout


@pytest.mark.slow
def test_pyright_is_content_with_every_import(written: Path) -> None:
    assert shutil.which("pyright", path=str(BIN))
    (written / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}')
    done = subprocess.run(
        [BIN / "pyright", "-p", written, "--pythonpath", sys.executable],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "0 errors, 0 warnings" in done.stdout, done.stdout
