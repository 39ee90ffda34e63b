"""Errors with details as google.rpc.Status, judged by Google's own messages."""

from __future__ import annotations

from datetime import timedelta

import pytest
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # has no types

from polywire.codec import Malformed, codec_for
from polywire.codec.status import (
    MAX_DETAILS,
    decode_status,
    encode_status,
    error_from,
    pack_details,
    unpack_details,
)
from polywire.contract import Message, schema_of
from polywire.contract import details as d
from polywire.errors import DO_NOT_RETRY, Aborted, InvalidArgument, NotFound, Unavailable, Unknown

DETAILS = [
    d.ErrorInfo(reason="OUT_OF_STOCK", domain="shop.example", metadata={"sku": "A"}),
    d.RetryInfo(retry_delay=timedelta(seconds=1.5)),
    d.DebugInfo(stack_entries=["a", "b"], detail="c"),
    d.QuotaFailure(violations=[d.QuotaViolation(subject="s", description="d", quota_value=5, future_quota_value=0)]),
    d.PreconditionFailure(violations=[d.PreconditionViolation(type="t", subject="s", description="d")]),
    d.BadRequest(
        field_violations=[
            d.FieldViolation(field="f", description="d", localized_message=d.LocalizedMessage(locale="de", message="m"))
        ]
    ),
    d.RequestInfo(request_id="r", serving_data="s"),
    d.ResourceInfo(resource_type="t", resource_name="n", owner="o", description="d"),
    d.Help(links=[d.Link(description="d", url="https://example.org")]),
    d.LocalizedMessage(locale="en", message="m"),
]


@pytest.mark.parametrize("detail", DETAILS, ids=lambda detail: type(detail).__name__)
def test_the_standard_details_are_those_of_google(detail: Message) -> None:
    theirs = getattr(error_details_pb2, type(detail).__name__)
    schema = schema_of(type(detail))
    assert schema.full_name == theirs.DESCRIPTOR.full_name
    assert [(f.name, f.number) for f in schema.fields] == [(f.name, f.number) for f in theirs.DESCRIPTOR.fields]
    codec = codec_for(type(detail), "proto")
    assert codec.decode(theirs.FromString(codec.encode(detail)).SerializeToString()) == detail


def test_there_is_a_class_for_each_standard_detail() -> None:
    assert {type(detail) for detail in DETAILS} == set(d.STANDARD)


def test_a_status_carries_code_message_and_details() -> None:
    error = Aborted("lost the race", details=DETAILS)
    status = status_pb2.Status.FromString(encode_status(error))
    assert (status.code, status.message) == (10, "lost the race")
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.reason == "OUT_OF_STOCK"
    assert decode_status(status.SerializeToString()) == (10, "lost the race", tuple(DETAILS))


def test_an_error_without_details_needs_no_status() -> None:
    assert encode_status(NotFound("no such order")) == b""


def test_the_field_at_fault_travels_as_a_bad_request() -> None:
    written = encode_status(InvalidArgument("quantity: expected `int` >= 1", field="quantity"))
    error = error_from(*decode_status(written))
    assert isinstance(error, InvalidArgument)
    assert (error.message, error.field) == ("quantity: expected `int` >= 1", "quantity")
    assert error.details == (
        d.BadRequest(
            field_violations=[d.FieldViolation(field="quantity", description="quantity: expected `int` >= 1")]
        ),
    )
    assert encode_status(error) == written  # passed on, it is not added again


def test_when_to_try_again_travels_as_retry_info_unless_it_is_never() -> None:
    error = error_from(*decode_status(encode_status(Unavailable("busy", retry_after=0.25))))
    assert error.retry_after == 0.25
    assert encode_status(Unavailable("busy", retry_after=DO_NOT_RETRY)) == b""
    forever = error_from(*decode_status(encode_status(Unavailable("busy", retry_after=float("inf")))))
    assert forever.retry_after == 315_576_000_000.0


def test_details_that_this_program_does_not_know_are_kept_and_sent_on() -> None:
    packed = [("type.googleapis.com/foreign.v1.Reason", b"\x0a\x01x"), ("", b"")]
    unpacked = unpack_details(packed)
    assert unpacked == (
        d.UnknownDetail("type.googleapis.com/foreign.v1.Reason", b"\x0a\x01x"),
        d.UnknownDetail("", b""),
    )
    assert pack_details(unpacked) == packed


def test_a_detail_that_cannot_be_read_does_not_hide_the_error_it_came_with() -> None:
    packed = [("type.googleapis.com/google.rpc.ErrorInfo", b"\xff")]
    assert unpack_details(packed) == (d.UnknownDetail(*packed[0]),)


def test_a_detail_of_one_s_own_is_a_message() -> None:
    class OutOfStock(Message, package="statuses.v1"):
        sku: str

    error = error_from(*decode_status(encode_status(NotFound("none", details=[OutOfStock(sku="A")]))))
    assert error.details == (OutOfStock(sku="A"),)


def test_what_is_no_message_is_no_detail() -> None:
    with pytest.raises(TypeError) as refused:
        pack_details(["text"])
    assert str(refused.value) == (
        "an error's details are messages, not str. Use those of polywire.contract.details, or a Message of your own."
    )


def test_a_code_that_does_not_exist_is_unknown() -> None:
    assert type(error_from(99, "what")) is Unknown
    assert type(error_from(-1, "what")) is Unknown


def test_a_status_that_is_none_is_malformed() -> None:
    with pytest.raises(Malformed) as refused:
        decode_status(b"\xff")
    assert refused.value.message == "google.rpc.Status: the protobuf bytes are malformed or truncated."


def test_the_number_of_details_is_bounded() -> None:
    status = status_pb2.Status(code=5)
    for _ in range(MAX_DETAILS + 50):
        status.details.add(type_url="t", value=b"")
    assert len(decode_status(status.SerializeToString())[2]) == MAX_DETAILS
