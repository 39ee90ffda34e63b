"""One version of some contracts, out of `.proto` files or of Python: what is compared with another one."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from google.protobuf import descriptor_pb2

from polywire.contract.breaking.described import FileProto, Index, index_of
from polywire.contract.export_files import Files
from polywire.contract.export_http import FILES
from polywire.contract.export_standard import STANDARD
from polywire.contract.message import Message
from polywire.contract.rpc import Rpc, Service
from polywire.contract.schema import EnumSchema, Schema, assign_packages, closure_of, enum_schema_of, schema_of
from polywire.contract.task import Task
from polywire.errors import ContractError


@dataclass(frozen=True, slots=True, kw_only=True)
class Contracts:
    """What a version promises. A `.proto` file does not say everything that a contract in Python does."""

    index: Index
    schemas: Mapping[str, Schema] = field(default_factory=dict)
    """The messages by full name; empty where it comes from `.proto` files."""
    enums: Mapping[str, EnumSchema] = field(default_factory=dict)
    rpcs: Mapping[str, Rpc] = field(default_factory=dict)
    """By full name, `shop.v1.Inventory/CheckStock`."""
    tasks: Mapping[str, Task] = field(default_factory=dict)
    """By full name; what they carry is among *schemas*, and in no `.proto` file."""

    is_python: bool = False
    """Whether it says which fields JSON has to have, their limits and defaults, and the status of answers."""
    single: bool = False
    """Whether it is one file that was named by itself, so that its own name says nothing."""

    known: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """What was worked out of it by the name of a message, while it is compared."""

    @property
    def methods(self) -> dict[str, Rpc | Task]:
        """Rpcs and tasks."""
        return {**self.rpcs, **self.tasks}


def contracts_of_files(
    compiled: descriptor_pb2.FileDescriptorSet, names: Iterable[str], *, single: bool = False
) -> Contracts:
    """The files *names* among *compiled*, which has what they import as well. *single*: see `Contracts`.

    Raises ContractError for files of an edition, whose features this cannot weigh.
    """
    named = set(names)
    files = [file for file in compiled.file if file.name in named]
    for file in files:
        if file.syntax == "editions":
            edition = descriptor_pb2.Edition.Name(file.edition).removeprefix("EDITION_")
            raise ContractError(
                f"{file.name} is written in edition {edition} of protobuf, but only proto3 and proto2 can be compared: "
                "`buf breaking` knows editions."
            )
    return Contracts(index=index_of(files, compiled.file), single=single)


def contracts_of_services(
    services: Sequence[Service], messages: Sequence[type[Message]] = (), enums: Sequence[type[enum.Enum]] = ()
) -> Contracts:
    """What *services* promise, with *messages* and *enums* besides. Raises ContractError as their export does."""
    assign_packages(services)
    files = Files(services, messages, enums, http=True)
    index = index_of([file.described for file in files.in_order()], _standard())
    declared = {name: cls for cls, name in files.names.items()}
    rpcs = [rpc for service in services for rpc in service.rpcs.values()]
    tasks = [task for service in services for task in service.tasks.values()]
    carried = closure_of(*(message for task in tasks for message in (task.request, task.response) if message))
    return Contracts(
        index=index,
        is_python=True,
        schemas={schema_of(message).full_name: schema_of(message) for message in carried}
        | {name: schema_of(cls) for name, cls in declared.items() if issubclass(cls, Message)},
        enums={name: enum_schema_of(cls) for name, cls in declared.items() if issubclass(cls, enum.Enum)},
        rpcs={rpc.full_name: rpc for rpc in rpcs},
        tasks={task.full_name: task for task in tasks},
    )


def _standard() -> Iterator[FileProto]:
    for described in STANDARD.values():
        file = FileProto()
        described.CopyToProto(file)
        yield file


_EVERYBODYS = frozenset({*FILES, *STANDARD})


def named_alike(old: Contracts, new: Contracts) -> Contracts:
    """*old* with the file names of *new*, where the name of a file was free to choose, and without what is everybody's.

    Contracts in Python have no file of their own, and two files that were named one by one are meant to be compared:
    where a package is in one file on each side, that is taken for the same file. Files of googleapis and of protobuf
    may lie beside the exported ones; they are not compared with contracts in Python, which have none.
    """
    one_each = old.single and new.single
    if old.is_python == new.is_python and not one_each:
        return old
    homes = _only_files(new.index)
    renamed = {}
    for package, name in _only_files(old.index).items():
        if package in homes and homes[package] != name and homes[package] not in old.index.files:
            renamed[name] = homes[package]
    if one_each and not renamed:
        renamed = {next(iter(old.index.files)): next(iter(new.index.files))}
    files = []
    for file in old.index.files.values():
        if new.is_python and file.name in _EVERYBODYS:
            continue
        copied = FileProto()
        copied.CopyFrom(file)
        copied.name = renamed.get(file.name, file.name)
        files.append(copied)
    return replace(old, index=index_of(files, old.index.imported.values()), known={})


def _only_files(index: Index) -> dict[str, str]:
    """The file of each package that has one only."""
    names: dict[str, list[str]] = {}
    for file in index.files.values():
        names.setdefault(file.package, []).append(file.name)
    return {package: found[0] for package, found in names.items() if len(found) == 1}
