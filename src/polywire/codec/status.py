"""google.rpc.Status: an error with its details, as `grpc-status-details-bin` and Connect's error body carry it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from polywire.codec import codec_for
from polywire.codec.base import Malformed
from polywire.contract.details import BadRequest, FieldViolation, RetryInfo, UnknownDetail
from polywire.contract.message import Message, message_named
from polywire.contract.schema import schema_of
from polywire.errors import BY_NUMBER, CallError, InvalidArgument, Unknown

TYPE_URL = "type.googleapis.com/"
MAX_DETAILS = 100
"""More than that in one status are cut off: a peer chooses their number."""

MAX_DELAY = 315_576_000_000.0
"""Seconds: what google.protobuf.Duration can say."""


def _status_class() -> Any:
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(any_pb2.DESCRIPTOR.serialized_pb)
    file = descriptor_pb2.FileDescriptorProto(name="google/rpc/status.proto", package="google.rpc", syntax="proto3")
    file.dependency.append(any_pb2.DESCRIPTOR.name)
    status = file.message_type.add(name="Status")
    status.field.add(name="code", number=1, label=1, type=5)
    status.field.add(name="message", number=2, label=1, type=9)
    status.field.add(name="details", number=3, label=3, type=11, type_name=".google.protobuf.Any")
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("google.rpc.Status"))


_Status = _status_class()


def pack_details(details: Iterable[Any]) -> list[tuple[str, bytes]]:
    """Each detail as the type URL and value of a google.protobuf.Any.

    Raises TypeError for what is neither a Message nor an UnknownDetail.
    """
    packed = []
    for detail in details:
        if isinstance(detail, UnknownDetail):
            packed.append((detail.type_url, detail.value))
        elif isinstance(detail, Message):
            url = TYPE_URL + schema_of(type(detail)).full_name
            packed.append((url, codec_for(type(detail), "proto").encode(detail)))
        else:
            raise TypeError(
                f"an error's details are messages, not {type(detail).__name__}. "
                "Use those of polywire.contract.details, or a Message of your own."
            )
    return packed


def unpack_details(packed: Iterable[tuple[str, bytes]]) -> tuple[Any, ...]:
    """The details as messages; `UnknownDetail` where this program has no such class, or where one cannot be read."""
    return tuple(_unpack(url, value) for url, value in packed)


def _unpack(url: str, value: bytes) -> Any:
    message = message_named(url.rpartition("/")[2])
    if message is None:
        return UnknownDetail(url, value)
    try:
        return codec_for(message, "proto").decode(value)
    except InvalidArgument:
        # A detail only explains; that it cannot be read must not hide the error that it came with.
        return UnknownDetail(url, value)


def details_of(error: CallError) -> list[tuple[str, bytes]]:
    """The details of an error, packed, with what the error says itself: its field, and when to try again."""
    details = list(error.details)
    if isinstance(error, InvalidArgument) and error.field and not any(isinstance(d, BadRequest) for d in details):
        violation = FieldViolation(field=error.field, description=error.message)
        details.append(BadRequest(field_violations=[violation]))
    if error.retry_after is not None and error.retry_after > 0 and not any(isinstance(d, RetryInfo) for d in details):
        details.append(RetryInfo(retry_delay=timedelta(seconds=min(error.retry_after, MAX_DELAY))))
    return pack_details(details)


def encode_status(error: CallError) -> bytes:
    """`grpc-status-details-bin` of an error; empty where it has no details, and the header is not needed."""
    packed = details_of(error)
    if not packed:
        return b""
    status = _Status(code=error.number, message=error.message)
    for url, value in packed:
        status.details.add(type_url=url, value=value)
    written: bytes = status.SerializeToString()
    return written


def decode_status(data: bytes) -> tuple[int, str, tuple[Any, ...]]:
    """Code, message and details. Raises Malformed where the bytes are no google.rpc.Status."""
    try:
        status = _Status.FromString(data)
    except DecodeError as error:
        raise Malformed("google.rpc.Status: the protobuf bytes are malformed or truncated.") from error
    packed = [(detail.type_url, detail.value) for detail in status.details[:MAX_DETAILS]]
    return status.code, status.message, unpack_details(packed)


def error_from(code: int, message: str, details: Sequence[Any] = ()) -> CallError:
    """The error that a code stands for, with the field and the pushback that its details name.

    A code that does not exist is `Unknown`, as gRPC demands.
    """
    error = BY_NUMBER.get(code, Unknown)(message, details=details)
    for detail in details:
        if isinstance(detail, RetryInfo) and detail.retry_delay is not None and detail.retry_delay > timedelta(0):
            error.retry_after = detail.retry_delay.total_seconds()
        elif isinstance(detail, BadRequest) and detail.field_violations and isinstance(error, InvalidArgument):
            error.field = detail.field_violations[0].field or None
    return error
