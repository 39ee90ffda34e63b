"""Contracts as protobuf files: descriptors for reflection and tools, and readable `.proto` text for people."""

from __future__ import annotations

import enum
from collections.abc import Sequence

from google.protobuf import descriptor_pb2

from polywire.contract.export_files import Files
from polywire.contract.export_http import ANNOTATIONS, FILES
from polywire.contract.export_standard import add_standard
from polywire.contract.export_text import proto_text
from polywire.contract.message import Message
from polywire.contract.rpc import Service
from polywire.contract.schema import assign_packages


def file_descriptors(
    services: Sequence[Service],
    messages: Sequence[type[Message]] = (),
    enums: Sequence[type[enum.Enum]] = (),
    *,
    http: bool = True,
) -> list[descriptor_pb2.FileDescriptorProto]:
    """What protoc would make of these contracts: one file per package, each after those that it imports.

    With everything that *services* use, and *messages* and *enums* besides; docstrings become comments (source info).
    *http*: with the REST routes, as google.api.http. Raises ContractError where two things would have one name, or
    where two packages would need each other.
    """
    assign_packages(services)
    return [file.described for file in Files(services, messages, enums, http=http).in_order()]


def descriptor_set(services: Sequence[Service], *, http: bool = True) -> dict[str, bytes]:
    """The serialized FileDescriptorProtos of *services* by file name, each after all that it imports.

    Complete, the files that come with protobuf and googleapis included: what gRPC reflection tells.
    """
    found: dict[str, bytes] = {}
    for file in file_descriptors(services, http=http):
        for dependency in file.dependency:
            add_standard(found, dependency)
        file.ClearField("source_code_info")
        found[file.name] = file.SerializeToString(deterministic=True)
    return found


def proto_files(
    services: Sequence[Service],
    messages: Sequence[type[Message]] = (),
    enums: Sequence[type[enum.Enum]] = (),
    *,
    http: bool = True,
    imports: bool = False,
) -> dict[str, str]:
    """The `.proto` files of these contracts, by file name; see `file_descriptors`.

    *imports*: with the files of googleapis that declare google.api.http, where they are used.
    """
    described = file_descriptors(services, messages, enums, http=http)
    if imports and any(ANNOTATIONS in file.dependency for file in described):
        described.extend(FILES.values())
    return {file.name: proto_text(file) for file in described}
