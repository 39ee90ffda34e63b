"""The files and types that every protobuf compiler has, and those of googleapis that declare google.api.http."""

from __future__ import annotations

from google.protobuf import (
    any_pb2,
    api_pb2,
    descriptor_pb2,
    duration_pb2,
    empty_pb2,
    field_mask_pb2,
    source_context_pb2,
    struct_pb2,
    timestamp_pb2,
    type_pb2,
    wrappers_pb2,
)

from polywire.contract.export_http import FILES

EMPTY = "google.protobuf.Empty"
STANDARD = {
    module.DESCRIPTOR.name: module.DESCRIPTOR
    for module in (
        any_pb2,
        api_pb2,
        descriptor_pb2,
        duration_pb2,
        empty_pb2,
        field_mask_pb2,
        source_context_pb2,
        struct_pb2,
        timestamp_pb2,
        type_pb2,
        wrappers_pb2,
    )
}
STANDARD_TYPES = {
    f"google.protobuf.{name}": file.name
    for file in STANDARD.values()
    for name in (*file.message_types_by_name, *file.enum_types_by_name)
}
"""Where a compiler finds the types that come with protobuf."""


def add_standard(found: dict[str, bytes], name: str) -> None:
    """Add a file that comes with protobuf or googleapis, after what it imports; leave others alone."""
    if name in found:
        return
    if name in FILES:
        for dependency in FILES[name].dependency:
            add_standard(found, dependency)
        found[name] = FILES[name].SerializeToString(deterministic=True)
    elif name in STANDARD:
        for imported in STANDARD[name].dependencies:
            add_standard(found, imported.name)
        found[name] = STANDARD[name].serialized_pb
