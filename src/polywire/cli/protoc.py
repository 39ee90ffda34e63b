"""Compiles `.proto` files with the real compiler, so that they mean what they mean to everybody else."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from google.protobuf import descriptor_pb2

from polywire.contract.export_http import FILES
from polywire.contract.export_text import proto_text
from polywire.errors import SetupError

_PACKAGE = re.compile(r"(?:^|;)\s*package\s+([A-Za-z0-9_.]+)\s*;", re.MULTILINE)
_NOT_FOUND = re.compile(r"^(\S+): File not found\.", re.MULTILINE)
_TIMEOUT = 60.0


def compile_protos(
    files: Sequence[Path], include: Sequence[Path], *, done: str = "imported"
) -> tuple[descriptor_pb2.FileDescriptorSet, list[str]]:
    """The compiled *files* with all that they import, and the names by which the others import them.

    *include*: where imports are looked up, as protoc's `-I`; without it the directory that the first file's package
    says, which is `protos` for `protos/shop/v1/shop.proto` of package shop.v1. What comes with protobuf and with
    googleapis-common-protos is found by itself. Raises SetupError, with protoc's own words where it refuses; *done* is
    what was not done then.
    """
    for file in files:
        if not file.is_file():
            raise SetupError(f"{file} was not {done}: there is no such file.")
    roots = [directory.resolve() for directory in include] or [root_of(files[0])]
    for directory, given in zip(roots, include, strict=False):
        if not directory.is_dir():
            raise SetupError(f"{files[0]} was not {done}: {given}, given with -I, is no directory.")
    names = [_name_below(file, roots, done) for file in files]
    return _run(files[0], roots, names, done), names


def root_of(file: Path) -> Path:
    """The directory that imports of a file start at, judged by its package; its own where the two do not match."""
    directory = file.resolve().parent
    package = package_of(file)
    parts = tuple(package.split(".")) if package else ()
    if parts and directory.parts[-len(parts) :] == parts:
        return directory.parents[len(parts) - 1]
    return directory


def package_of(file: Path) -> str:
    """The package that a file says it is in, without compiling it; empty for none."""
    found = _PACKAGE.search(file.read_text(encoding="utf-8", errors="replace"))
    return found[1] if found else ""


def _name_below(file: Path, roots: Sequence[Path], done: str) -> str:
    for root in roots:
        if file.resolve().is_relative_to(root):
            return file.resolve().relative_to(root).as_posix()
    raise SetupError(
        f"{file} was not {done}: it is in none of the directories given with -I ({', '.join(map(str, roots))}). "
        f"Add -I {file.parent}."
    )


def _run(file: Path, roots: Sequence[Path], names: Sequence[str], done: str) -> descriptor_pb2.FileDescriptorSet:
    try:
        importlib.import_module("grpc_tools.protoc")
    except ImportError as error:
        raise SetupError(
            f"{file} was not {done}: that takes protoc, which is not installed. Run pip install 'polywire[proto]'."
        ) from error
    with tempfile.TemporaryDirectory() as directory:
        for name, described in FILES.items():
            path = Path(directory, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(proto_text(described), encoding="utf-8")
        output = Path(directory, "compiled.binpb")
        searched = [*roots, *_googleapis(), Path(directory)]
        try:
            ran = subprocess.run(  # noqa: S603  # our own interpreter, and the files that the user named
                [
                    *(sys.executable, "-m", "grpc_tools.protoc"),
                    *(f"-I{root}" for root in searched),
                    *("--include_imports", "--include_source_info", f"--descriptor_set_out={output}"),
                    *names,
                ],
                capture_output=True,
                text=True,
                timeout=_TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise SetupError(f"{file} was not {done}: protoc did not end within {_TIMEOUT:g} s.") from error
        if ran.returncode or not output.exists():
            raise SetupError(_refusal(file, ran.stderr, done))
        return descriptor_pb2.FileDescriptorSet.FromString(output.read_bytes())


def _googleapis() -> list[Path]:
    """Where googleapis-common-protos keeps its files, if it is installed."""
    try:
        package = importlib.import_module("google.api")
    except ImportError:
        return []
    return [Path(place).parent.parent for place in package.__path__]


def _refusal(file: Path, said: str, done: str) -> str:
    lines = "\n".join(f"  {line}" for line in said.strip().splitlines())
    missing = _NOT_FOUND.search(said)
    advice = f"\nSay where {missing[1]} is looked for with -I DIR." if missing else ""
    return f"{file} was not {done}: protoc refuses it.\n{lines}{advice}"
