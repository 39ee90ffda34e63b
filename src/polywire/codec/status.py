"""google.rpc.Status: an error with its details, as `grpc-status-details-bin` and Connect's error body carry it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any

from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from polywire.codec import codec_for
from polywire.codec.base import Malformed
from polywire.codec.failures import TYPE_URL, own_details
from polywire.contract.details import BadRequest, FieldViolation, RetryInfo, UnknownDetail
from polywire.contract.message import Message, only_message_named
from polywire.contract.schema import schema_of
from polywire.errors import BY_NUMBER, CallError, InvalidArgument, Unavailable, Unknown

log = logging.getLogger("polywire.errors")

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
    """The details as messages; `UnknownDetail` where this program has no such class, or several, or cannot read it."""
    return tuple(_unpack(url, value) for url, value in packed)


def _unpack(url: str, value: bytes) -> Any:
    message = only_message_named(url.rpartition("/")[2])
    if message is None:
        return UnknownDetail(url, value)
    try:
        return codec_for(message, "proto").decode(value)
    except InvalidArgument:
        # A detail only explains; that it cannot be read must not hide the error that it came with.
        return UnknownDetail(url, value)


def details_of(error: CallError, *, derived: bool = True) -> list[tuple[str, bytes]]:
    """The details of an error, packed: its own fields, those it was given, and *derived*, what else it says itself."""
    return own_details(error) + pack_details((*error.details, *_derived(error)) if derived else error.details)


def _derived(error: CallError) -> Iterator[Message]:
    """The field of the request at fault, and when to try again, unless the error's details say so."""
    if isinstance(error, InvalidArgument) and error.field and not any(isinstance(d, BadRequest) for d in error.details):
        yield BadRequest(field_violations=[FieldViolation(field=error.field, description=error.message)])
    seconds = error.retry_after
    if seconds is not None and seconds > 0 and not any(isinstance(d, RetryInfo) for d in error.details):
        yield RetryInfo(retry_delay=timedelta(seconds=min(seconds, MAX_DELAY)))


def encode_status(error: CallError) -> bytes:
    """`grpc-status-details-bin` of an error; empty where it has no details, and the header is not needed."""
    return status_with(error, details_of(error))


def status_with(error: CallError, packed: Sequence[tuple[str, bytes]]) -> bytes:
    """The google.rpc.Status of an error with these details; empty where there are none."""
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


def travelled(error: CallError) -> CallError:
    """What the other side would get, had the error travelled: the canonical one, with copies of its details."""
    try:
        details = unpack_details(details_of(error)[:MAX_DETAILS])
    except (TypeError, InvalidArgument) as mistake:
        log.error("the details of %s were left out: %s", type(error).__name__, mistake)
        details = unpack_details(own_details(error))
    copied = error_from(error.number, error.message, details)
    copied.retry_after = error.retry_after
    if isinstance(copied, Unavailable) and isinstance(error, Unavailable):
        copied.reached = error.reached
    return copied.with_traceback(error.__traceback__)


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
