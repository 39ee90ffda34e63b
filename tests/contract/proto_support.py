"""protoc as a judge: compiles files, and makes the classes that every other protobuf program would have."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from polywire.contract.export_http import HttpRule, rule_in, set_rule

PROTOS = Path(__file__).parent / "protos"
# Neither has types.
protoc: Any = importlib.import_module("grpc_tools.protoc")
GOOGLEAPIS = Path(next(iter(importlib.import_module("google.api").__path__))).parent.parent
STANDARD = Path(protoc.__file__).parent / "_proto"
SAMPLES = sorted(path.name for path in PROTOS.glob("*.proto"))
FileProto = descriptor_pb2.FileDescriptorProto
_modules = count()


def compiled(root: Path, names: Sequence[str]) -> descriptor_pb2.FileDescriptorSet:
    """What protoc makes of files, with their imports and comments."""
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory, "set.binpb")
        status = protoc.main(
            [
                "protoc",
                *(f"-I{place}" for place in (root, GOOGLEAPIS, STANDARD)),
                *("--include_imports", "--include_source_info", f"--descriptor_set_out={output}"),
                *names,
            ]
        )
        assert status == 0, f"protoc refuses {names}"
        return descriptor_pb2.FileDescriptorSet.FromString(output.read_bytes())


def compiled_texts(files: Mapping[str, str]) -> descriptor_pb2.FileDescriptorSet:
    with tempfile.TemporaryDirectory() as directory:
        write(Path(directory), files)
        return compiled(Path(directory), list(files))


def write(directory: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def file_in(files: descriptor_pb2.FileDescriptorSet, name: str) -> FileProto:
    return next(file for file in files.file if file.name == name)


def without_comments(file: FileProto) -> FileProto:
    copied = FileProto()
    copied.CopyFrom(file)
    copied.ClearField("source_code_info")
    for service in copied.service:
        for method in service.method:
            # Both sides once through the same reader, whoever else has registered the extension.
            rule = rule_in(method.options)
            level = method.options.idempotency_level if method.options.HasField("idempotency_level") else None
            method.ClearField("options")
            if level is not None:
                method.options.idempotency_level = level
            if rule is not None:
                set_rule(method.options, HttpRule.FromString(rule.SerializeToString(deterministic=True)))
    return copied


def classes_of(files: descriptor_pb2.FileDescriptorSet) -> Callable[[str], Any]:
    """The message classes of compiled files: a function from full names."""
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    return lambda full_name: message_factory.GetMessageClass(pool.FindMessageTypeByName(full_name))


def module_of(text: str, directory: Path, name: str = "imported") -> ModuleType:
    """The text as an imported module."""
    name = f"{name}_{next(_modules)}"
    path = directory / f"{name}.py"
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
